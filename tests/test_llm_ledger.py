"""The ledger: on the disk before anyone reads it, shared by export, killed without loss."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import billing
import pytest
from billing import ANSWER, Act
from chat import config, serving, steps
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import llm
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.llm import ledger
from stages.llm.ledger import Entry, Imported, Ledger

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    return tmp_path


def fill(path: Path, requests: list[dict[str, Any]]) -> None:
    calls = Ledger(path)
    for number, request in enumerate(requests):
        text = ledger.canonical(request)
        entry = Entry(f"Reply ä→{number}", "stop", number, 2 * number)
        calls.store(ledger.key(request), text, entry, number / 7, 0.1)
    calls.close()


# --- on the disk -------------------------------------------------------------------------------


def test_replies_that_arrive_during_a_commit_share_the_next_and_none_is_told_early(
    workspace: Path,
) -> None:
    calls = Ledger(workspace / "ledger.db")
    commits: list[str] = []
    calls._file.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    told = []

    def store(number: int) -> None:
        key = f"key {number}"
        calls.store(key, "{}", Entry("text", "stop", 1, 1), 0.0, 0.0)
        other = sqlite3.connect(workspace / "ledger.db")
        told.append(other.execute("SELECT 1 FROM calls WHERE key = ?", (key,)).fetchone())
        other.close()

    threads = [threading.Thread(target=store, args=(number,)) for number in range(64)]
    calls._queue.is_busy = True
    for thread in threads:
        thread.start()
    while len(calls._queue.rows) < 64:
        threading.Event().wait(0.001)
    assert not told
    calls._commit()
    for thread in threads:
        thread.join()
    assert told == [(1,)] * 64
    assert len(commits) == 1
    calls.close()


def test_a_commit_reaches_the_disk_before_it_returns(workspace: Path) -> None:
    calls = Ledger(workspace / "ledger.db")
    assert calls._file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert calls._file.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    calls.close()


def test_of_two_processes_with_one_request_the_first_reply_counts(workspace: Path) -> None:
    one, other = Ledger(workspace / "ledger.db"), Ledger(workspace / "ledger.db")
    first, second = Entry("first", "stop", 1, 1), Entry("second", "stop", 2, 2)
    assert one.store("k", "{}", first, 0, 0) == first
    assert other.store("k", "{}", second, 0, 0) == first
    one.close()
    other.close()


def test_a_file_that_is_no_ledger_is_one_clear_line(workspace: Path) -> None:
    (workspace / "ledger.db").write_bytes(b"no database at all, but long enough " * 90)
    with pytest.raises(PipelineError, match=r"ledger\.db: file is not a database: expected a call"):
        Ledger(workspace / "ledger.db")


def test_a_disk_that_is_full_is_one_clear_line_for_all_who_wait(workspace: Path) -> None:
    calls = Ledger(workspace / "ledger.db")
    pages = calls._file.execute("PRAGMA page_count").fetchone()[0]
    calls._file.execute(f"PRAGMA max_page_count = {pages}")
    long = Entry("x" * 100_000, "stop", 1, 1)
    for key in ("a", "b"):
        with pytest.raises(PipelineError, match="make room on the disk"):
            calls.store(key, "{}", long, 0, 0)
    calls._file.execute("PRAGMA max_page_count = 100000")
    assert calls.store("c", "{}", long, 0, 0) == long
    assert calls.find("a") == calls.find("b") == long  # what came before is not lost
    calls.close()


def test_an_older_ledger_without_probes_is_read(workspace: Path) -> None:
    fill(workspace / "ledger.db", [{"n": 1}])
    file = sqlite3.connect(workspace / "ledger.db")
    file.execute("DROP TABLE probes")
    file.commit()
    file.close()
    calls = Ledger(workspace / "ledger.db")
    assert calls.find(ledger.key({"n": 1})) and calls.probed("k") is None
    calls.close()


# --- export and import -------------------------------------------------------------------------


def test_what_was_paid_on_one_machine_is_not_paid_on_another(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(folder: str) -> llm.Usage:
        (workspace / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(workspace / folder)
        with llm.open(config(server.address)) as teacher:
            for row in range(5):
                teacher.complete((Message(role="user", content=f"row {row} ä"),), None)
            return teacher.usage

    with billing.serving() as server:
        ask("one")
        assert llm.export_ledger(workspace / "paid.jsonl") == 5
        (workspace / "two").mkdir()
        monkeypatch.chdir(workspace / "two")
        assert llm.import_ledger(workspace / "paid.jsonl") == Imported(5, 0)
        assert llm.import_ledger(workspace / "paid.jsonl") == Imported(0, 5)
        usage = ask("two")
        assert (usage.calls, usage.cached, len(server.bill)) == (0, 5, 5)
        llm.export_ledger(workspace / "again.jsonl")
    assert (workspace / "again.jsonl").read_bytes() == (workspace / "paid.jsonl").read_bytes()
    assert b"sk-secret" not in (workspace / "paid.jsonl").read_bytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=10)  # each makes two ledgers
@given(
    st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=4, unique_by=ledger.canonical)
)
def test_export_and_import_keep_every_call(requests: list[dict[str, Any]]) -> None:
    for name in ("a.db", "b.db", "out.jsonl", "back.jsonl"):
        for path in Path().glob(f"{name}*"):
            path.unlink()
    fill(Path("a.db"), requests)
    one, other = Ledger(Path("a.db")), Ledger(Path("b.db"))
    assert one.export(Path("out.jsonl")) == len(requests)
    assert other.import_(Path("out.jsonl")) == Imported(len(requests), 0)
    assert all(other.find(ledger.key(r)) == one.find(ledger.key(r)) for r in requests)
    other.export(Path("back.jsonl"))
    assert Path("back.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    one.close()
    other.close()


def change(**values: Any) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps(json.loads(line) | values).encode() + b"\n"


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda line: line[:-20], "Invalid JSON"),
        (lambda line: b'{"id": "1", "question": "?"}\n', "key: Field required"),
        (lambda line: b"\xff\xfe\n", "Invalid JSON"),
        (lambda line: b"[]\n", "Input should be an object"),
        (change(text="other", request={"model": "n"}), "is not that of its request"),
        (change(prompt_tokens=-1), "prompt_tokens: "),
        (change(prompt_tokens=1.5), "prompt_tokens: "),
        (change(cost_usd="free"), "cost_usd: "),
        (change(more=1), "more: Extra inputs"),
    ],
)
def test_a_foreign_or_torn_line_is_named_and_nothing_is_imported(
    workspace: Path, spoil: Callable[[bytes], bytes], said: str
) -> None:
    fill(workspace / "a.db", [{"n": number} for number in range(4)])
    one, other = Ledger(workspace / "a.db"), Ledger(workspace / "b.db")
    one.export(workspace / "out.jsonl")
    lines = (workspace / "out.jsonl").read_bytes().splitlines(keepends=True)
    (workspace / "out.jsonl").write_bytes(b"".join([*lines[:3], spoil(lines[3])]))
    with pytest.raises(PipelineError) as failed:
        other.import_(workspace / "out.jsonl")
    assert f"{workspace}/out.jsonl:4: " in str(failed.value) and said in str(failed.value)
    assert "\n" not in str(failed.value)
    assert other._reader.execute("SELECT count(*) FROM calls").fetchone() == (0,)
    one.close()
    other.close()


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(PipelineError, match=r"no\.jsonl: No such file or directory: expected"):
        llm.import_ledger(Path("no.jsonl"))


# --- kill -9 -----------------------------------------------------------------------------------

CONCURRENCY = 4

CHILD = """
import os, signal, sys
from chat import config, serving, steps
from stages import llm
from stages.core.records import Message
from stages.llm import connection, ledger

address, point, due, num_rows, concurrency = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
connect, insert, post = ledger.connect, ledger.Ledger._insert, connection.Server.post

def here(name):
    global due
    if point == name:
        due -= 1
        if due == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def connecting(path):
    file = connect(path)
    file.set_trace_callback(lambda sql: here("before the commit") if sql == "COMMIT" else None)
    return file

def inserting(self, rows):
    insert(self, rows)
    here("after the commit")

def posting(self, *more):
    here("before it is sent")
    return post(self, *more)

ledger.connect, ledger.Ledger._insert, connection.Server.post = connecting, inserting, posting
cfg = config(address, concurrency=concurrency, timeout_s=60.0)
with llm.open(cfg) as teacher:
    def ask(row):
        return teacher.complete((Message(role="user", content=f"row {row}"),), None)
    for _ in teacher.map(ask, range(num_rows)):
        pass
    print(teacher.usage.calls)
"""

POINTS = ("before it is sent", "in the body", "before the commit", "after the commit")


def stored(workspace: Path) -> set[str]:
    """The rows whose reply is in the ledger."""
    path = workspace / ".cache" / "ledger.db"
    if not path.exists():
        return set()
    file = sqlite3.connect(path)
    rows = file.execute("SELECT json_extract(request, '$.body.messages[0].content') FROM calls")
    found = {row for (row,) in rows}
    file.close()
    return found


def child(address: str, point: str, due: int, num_rows: int) -> "subprocess.Popen[str]":
    numbers = map(str, (due, num_rows, CONCURRENCY))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, address, point, *numbers],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        stdout=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Killed:
    kills: dict[str, int]
    """By the point where they struck."""
    lost: int
    """Stored replies that were gone later, or asked for again."""
    most_repeated: int
    """Calls of one killed run whose reply was not stored."""
    stored: int
    duplicates: int


def killed(workspace: Path, num_kills: int, num_rows: int) -> Killed:
    """Runs that are killed one after the other, and one that ends."""
    chance = random.Random(num_kills)
    half_at: set[int] = set()

    def script(number: int, body: dict[str, Any]) -> Act:
        return Act("half") if number in half_at else ANSWER

    kept: set[str] = set()
    lost = most_repeated = 0
    kills: Counter[str] = Counter()
    with billing.serving(script=script) as server:
        for kill in range(num_kills):
            point = POINTS[(kill + 1) % len(POINTS)]
            due, before = chance.randint(1, 5), len(server.bodies)
            half_at = {before + due} if point == "in the body" else set()
            process = child(server.address, point, due, num_rows)
            if half_at:
                while server.seen.get(timeout=60) != "half":
                    pass
                process.kill()
            process.communicate()
            kills[point] += process.returncode == -signal.SIGKILL
            asked = Counter(body["messages"][0]["content"] for body in server.bodies[before:])
            now_kept = stored(workspace)
            lost += len(kept - now_kept) + len(kept & asked.keys())
            assert max(asked.values(), default=0) <= 1
            most_repeated = max(most_repeated, len(asked.keys() - now_kept))
            kept = now_kept
        half_at = set()
        assert 0 < len(kept) < num_rows
        for num_left in (num_rows - len(kept), 0):
            process = child(server.address, "never", 0, num_rows)
            assert process.communicate()[0] == f"{num_left}\n"
        return Killed(dict(kills), lost, most_repeated, len(stored(workspace)), server.duplicates)


@pytest.mark.parametrize(
    "num_kills, num_rows", [(3, 40), pytest.param(24, 200, marks=pytest.mark.slow)]
)
def test_a_killed_run_loses_no_stored_reply_and_repeats_at_most_the_calls_in_flight(
    workspace: Path, num_kills: int, num_rows: int
) -> None:
    found = killed(workspace, num_kills, num_rows)
    assert sum(found.kills.values()) == num_kills
    assert found.lost == 0
    assert found.most_repeated <= CONCURRENCY
    assert found.stored == num_rows
    assert found.duplicates <= num_kills * CONCURRENCY


# --- what JSON can say and a file cannot -------------------------------------------------------


def test_half_a_surrogate_pair_and_counts_beyond_all_bounds_are_stored_all_the_same() -> None:
    reply = {
        "choices": [{"message": {"content": "a \ud800 b"}, "finish_reason": "stop\udfff"}],
        "usage": {"prompt_tokens": 10**30, "completion_tokens": 1},
    }
    answer = json.dumps(reply).encode()
    with serving(steps(lambda call: call.send(200, answer))) as server:
        with llm.open(config(server.address)) as teacher:
            teacher.complete((Message(role="user", content="?"),), None)
        with llm.open(config(server.address)) as teacher:
            found = teacher.complete((Message(role="user", content="?"),), None)
    assert (found.text, found.finish_reason, found.cached) == ("a ? b", "stop?", True)
    assert found.prompt_tokens == 9
