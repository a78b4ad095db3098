"""What is kept: found again by any thread or process, whole or not at all."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stages.core import kept

ROOT = Path(__file__).resolve().parent.parent
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), json_values, max_size=8))
def test_every_value_is_found_as_it_was_kept(tmp_path_factory, values):
    with kept.opened(tmp_path_factory.mktemp("kept") / "a.db") as file:
        file.keep(values)
        assert file.find([*values, "another"]) == values


def test_the_first_value_of_a_key_stays(tmp_path):
    with kept.opened(tmp_path / "a.db") as file:
        file.keep({"a": 1})
        file.keep({"a": 2, "b": 3})
        assert file.find(["a", "b"]) == {"a": 1, "b": 3}


def test_more_keys_than_sqlite_takes_at_once_are_found(tmp_path):
    values = {str(n): n for n in range(3000)}
    with kept.opened(tmp_path / "a.db") as file:
        file.keep(values)
        assert file.find(list(values)) == values


def test_threads_share_one_file(tmp_path):
    with kept.opened(tmp_path / "a.db") as file, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: file.keep({str(n): n}), range(200)))
        assert len(file.find([str(n) for n in range(200)])) == 200


KILLED = """
import os, sys
from pathlib import Path
from stages.core import kept
file = kept.Kept(Path(sys.argv[1]))
for n in range(50):
    file.keep({str(n): n})
os.kill(os.getpid(), 9)
"""


def test_what_was_kept_survives_a_killed_process(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.db")], cwd=ROOT)
    assert done.returncode == -9
    with kept.opened(tmp_path / "a.db") as file:
        assert len(file.find([str(n) for n in range(50)])) == 50
