"""The ground floor: records, config, files, locks, progress."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Reject, identify

ROOT = Path(__file__).resolve().parent.parent


class Inner(config.Base):
    depth: Annotated[int, Field(gt=0)]
    """How deep."""


class Web(config.Base):
    kind: Literal["web"]
    url: str
    """Where."""
    inner: Inner
    """What."""


class Files(config.Base):
    kind: Literal["files"]
    path: str
    """Where."""


Source = Annotated[Web | Files, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"kind": "web", "url": "x", "inner": {"depht": 1}},
            "p.yaml: source.inner.depht: unknown key (did you mean depth?): expected one of depth"
            " (and 1 more)",
        ),
        ({"kind": "wob"}, "p.yaml: source.kind: 'wob': expected one of 'web', 'files'"),
        ({}, "p.yaml: source.kind: required, and not set"),
        ({"kind": "files"}, "p.yaml: source.path: required, and not set"),
        (
            {"kind": "web", "url": "x", "inner": {"depth": 0}},
            "p.yaml: source.inner.depth: 0: input should be greater than 0",
        ),
        (
            {"kind": "web", "url": 3, "inner": {"depth": "1"}},
            "p.yaml: source.url: 3: input should be a valid string (and 1 more)",
        ),
    ],
)
def test_a_mistake_in_a_section_is_one_line_that_names_key_value_and_what_is_right(section, said):
    with pytest.raises(PipelineError) as caught:
        config.load({"source": section}, "source", Source, "p.yaml")
    assert str(caught.value) == said


def test_a_missing_section_is_named_with_those_that_are_there():
    with pytest.raises(PipelineError, match="section 'source' is missing; it has crawl"):
        config.load({"crawl": {}}, "source", Source)


def test_a_params_file_that_is_not_yaml_is_one_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(PipelineError, match="not YAML") as caught:
        config.read(path)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.text(), st.text(), st.text())))
def test_rows_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rejects.jsonl"
    written = [Reject(id=i, reason=r, detail=d) for i, r, d in rows]
    assert store.write(path, written) == len(rows)
    assert list(store.read(path, Reject)) == written


def test_a_bad_line_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "rejects.jsonl"
    path.write_text('{"id":"a","reason":"b"}\n{"id":1}\n')
    with pytest.raises(PipelineError, match=r"rejects\.jsonl:2: id: .*expected a Reject"):
        list(store.read(path, Reject))


def test_a_file_that_fails_half_way_leaves_the_old_one_and_no_other(tmp_path):
    path = tmp_path / "rejects.jsonl"
    store.write(path, [Reject(id="old", reason="x")])
    before = path.read_bytes()

    def rows():
        yield Reject(id="new", reason="x")
        raise ValueError("power cut")

    with pytest.raises(ValueError, match="power cut"):
        store.write(path, rows())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["rejects.jsonl"]


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5))
def test_an_id_is_16_digits_and_the_same_for_the_same_parts(part):
    assert identify(part) == identify(part)
    assert len(identify(part)) == 16
    assert identify(part, "x") != identify(part)


def test_the_digest_of_a_folder_changes_with_a_name_and_with_a_byte(tmp_path):
    (tmp_path / "a").write_text("1")
    first = store.digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = store.digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, store.digest(tmp_path)}) == 3


def test_a_user_path_is_found_in_the_main_checkout_from_a_temp_workspace(tmp_path, monkeypatch):
    checkout, workspace = tmp_path / "checkout", tmp_path / "workspace"
    (checkout / "models").mkdir(parents=True)
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(checkout))
    assert store.locate("models", "model.path") == checkout / "models"
    with pytest.raises(PipelineError, match=r"model\.path: 'nowhere': no such file"):
        store.locate("nowhere", "model.path")


def test_the_manifest_of_equal_runs_is_equal(tmp_path):
    made = []
    for name in ("one", "two"):
        out = tmp_path / name / "crawl"
        store.write(out / "rejects.jsonl", [Reject(id="a", reason="b")])
        store.write_manifest(out, "crawl", {"crawl": {}}, {"x": out / "rejects.jsonl"}, {"n": 1.0})
        made.append((out / "manifest.json").read_bytes())
    assert made[0] == made[1]
    assert json.loads(made[0])["rows"] == {"rejects.jsonl": 1}


# --- one writer per stage: real processes, really killed ---------------------------------------

STAGE = """
import subprocess, sys, time
from stages.core import store
with store.lock("crawl"):
    trainer = subprocess.Popen(["sleep", "600"])
    print(trainer.pid, flush=True)
    time.sleep(600)
"""
PIPELINE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.fixture
def running(tmp_path, monkeypatch):
    """A pipeline process with a stage that holds the lock and has started a trainer."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipeline = subprocess.Popen(
        [sys.executable, "-c", PIPELINE, STAGE], stdout=subprocess.PIPE, env=environment
    )
    trainer = psutil.Process(int(pipeline.stdout.readline()))
    stage = trainer.parent()
    yield pipeline, stage, trainer
    for process in (pipeline, stage, trainer):
        if psutil.pid_exists(process.pid):
            process.kill()
    pipeline.wait()
    pipeline.stdout.close()


def ended(process):
    try:
        process.wait(timeout=10)
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_stage_whose_pipeline_lives_is_not_run_beside(running):
    pipeline, stage, _ = running
    said = f"crawl is already running here .process {stage.pid}, started by process {pipeline.pid}"
    with pytest.raises(PipelineError, match=said), store.lock("crawl"):
        pass
    assert stage.is_running()


def test_a_stage_whose_pipeline_was_killed_is_ended_with_its_trainer(running):
    pipeline, stage, trainer = running
    pipeline.kill()
    pipeline.wait()
    assert stage.is_running()
    with store.lock("crawl"):
        assert ended(stage)
        assert ended(trainer)


def test_a_trainer_whose_stage_was_killed_is_ended(running):
    pipeline, stage, trainer = running
    stage.send_signal(signal.SIGKILL)
    pipeline.wait()
    assert trainer.is_running()
    assert store.end_orphans() == ["crawl"]
    assert ended(trainer)


def test_with_the_search_for_orphans_planted_away_a_trainer_would_outlive_its_stage(
    running, monkeypatch
):
    pipeline, stage, trainer = running
    stage.send_signal(signal.SIGKILL)
    pipeline.wait()
    monkeypatch.setattr(store, "_end_orphans_of", lambda path: False)
    with store.lock("crawl"):
        assert trainer.is_running(), "what the tests above would miss is not there to be missed"


def test_the_locks_of_two_stages_do_not_exclude_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with store.lock("crawl"), store.lock("split"):
        held = {path.stem: path.read_text() for path in Path(".cache/locks").iterdir()}
    assert held["crawl"] == held["split"] != ""


# --- progress ----------------------------------------------------------------------------------


def test_every_step_reaches_the_file_and_the_listener(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heard = []
    progress.begin("crawl", heard.append)
    assert list(progress.track(iter("abc"), "pages", 3)) == ["a", "b", "c"]
    progress.step(5, 9, "steps", loss=0.5)
    rows = [json.loads(row) for row in Path(".cache/progress/crawl.jsonl").read_text().splitlines()]
    assert [row["done"] for row in rows][-2:] == [3, 5]
    assert rows[-1]["metrics"] == {"loss": 0.5}
    assert heard[-1].metrics == {"loss": 0.5}


SHOWN = """
import time
from stages import console
from stages.core import progress
console.PLAIN_EVERY_S = 0.2
with console.Display("crawl") as display:
    progress.begin("crawl", display.hear)
    for page in progress.track(range(30), "pages", 30):
        time.sleep(0.02)
    progress.note("robots.txt allows all")
    display.end({"num_documents": 30})
"""


def test_a_terminal_sees_a_moving_bar(tmp_path):
    import pty

    reader, writer = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SHOWN],
        cwd=tmp_path,
        stderr=writer,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(writer)
    seen = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(reader)
    assert child.wait() == 0
    drawn = {count for count in range(31) if f"{count}/30".encode() in seen}
    assert len(drawn) > 3, "the bar did not move"
    assert b"\x1b[" in seen
    assert b"done in" in seen


def test_a_pipe_sees_plain_lines_without_carriage_returns(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SHOWN],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0
    assert b"\r" not in done.stderr
    assert b"\x1b" not in done.stderr
    lines = done.stderr.decode().splitlines()
    assert any("/30 pages" in line for line in lines)
    assert lines[-2].endswith("robots.txt allows all")
    assert "num_documents 30" in lines[-1]


def test_what_a_stage_took_is_read_from_its_progress_and_nothing_if_it_did_not_run(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    began = time.time()
    progress.begin("synthesize")
    progress.note("started")
    progress.step(1, 1, "chunks", cost_usd=0.25)
    progress.step(1, 1, "done")
    took = progress.spent("synthesize")
    assert took.cost_usd == 0.25
    assert began - 1 < took.began <= time.time() + 1
    assert progress.spent("split") is None
