"""Calls in batches: paid for once and half, whatever is killed, lost, late or left out."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import billing
import pytest
from billing import ANSWER, Act, Fate
from chat import config
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import llm
from stages.core import progress
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.llm import lines
from stages.llm.lines import Line

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    return tmp_path


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(progress, "_listeners", [lambda step: said.append(step.note)])
    return said


def batched(address: str, **changes: Any) -> llm.Batch:
    keys = {
        "kind": "openai_batch",
        "batch_route": "/v1/chat/completions",
        "batch_price_share": 0.5,
        "batch_requests": 50_000,
        "batch_poll_s": 0.01,
    }
    return llm.Batch(**{**config(address).model_dump(), **keys, **changes})


def row(number: int) -> tuple[Message, ...]:
    return (Message(role="user", content=f"row {number} ä\u2028"),)


def ask(
    cfg: llm.OpenAI, num_rows: int = 20, schema: Any = None, first: int = 0
) -> tuple[list[str], llm.Usage]:
    """As the stage asks: all of it ahead, then each. The reply's text, or why there is none."""

    def one(number: int) -> str:
        try:
            return teacher.complete(row(number), schema).text
        except llm.RefusedError as refusal:
            return f"refused: {refusal}"

    numbers = range(first, first + num_rows)
    with llm.open(cfg) as teacher:
        teacher.prefetch([(row(number), schema) for number in numbers])
        return list(teacher.map(one, numbers)), teacher.usage


def said(number: int) -> str:
    return f"What {row(number)[0].content[:8]} says. " + "It goes on. " * 20


def singles(server: billing.Server) -> int:
    return sum(item.share == 1 for item in server.bill)


# --- what it brings ----------------------------------------------------------------------------


def test_calls_go_into_one_batch_at_half_the_price_and_a_rerun_makes_none(
    notes: list[str],
) -> None:
    with billing.serving() as server:
        replies, usage = ask(batched(server.address))
        assert replies == [said(number) for number in range(20)]
        assert (len(server.jobs), len(server.bill), len(server.bodies)) == (1, 20, 0)
        assert (usage.calls, usage.cached) == (20, 0)
        assert usage.cost_usd == pytest.approx(server.usd)
        assert server.usd == pytest.approx(sum(item.usd for item in server.bill))
        num_requests = len(server.heads)
        again, usage = ask(batched(server.address))
        assert again == replies
        assert (usage.calls, usage.cached, len(server.heads)) == (0, 20, num_requests)
        ask(config(server.address))  # nor does the same model without batches
        assert len(server.heads) == num_requests
    assert any("20 calls are in batch batch-1" in note for note in notes)


def test_a_teacher_without_batches_asks_nothing_ahead() -> None:
    with billing.serving() as server, llm.open(config(server.address)) as teacher:
        teacher.prefetch([(row(0), None)])
        assert not server.heads


def test_only_what_the_ledger_lacks_goes_into_a_batch() -> None:
    with billing.serving() as server:
        ask(config(server.address), 5)
        ask(batched(server.address), 8)
        assert (server.jobs[0].num_calls, len(server.bill), server.duplicates) == (3, 8, 0)


def test_a_line_asks_as_a_call_does() -> None:
    with billing.serving(heeds=frozenset({"json_object"})) as server:
        replies, usage = ask(batched(server.address), 3, SCHEMA)
        assert usage.probes == 2  # ignores the schema, heeds json_object
        line = json.loads(server.files["file-1"].splitlines()[0])
        ask(config(server.address), 1, SCHEMA, first=3)
        body = server.bodies[-1]
    assert line["body"].pop("messages") != body.pop("messages")
    assert line["body"] == body
    assert len(set(replies)) == 3 and all("answer" in json.loads(text) for text in replies)


def test_azure_with_a_dated_version_gets_it_in_each_query() -> None:
    with billing.serving() as server:
        address = server.address.replace("/v1", "/openai")
        ask(batched(address, api_version="2024-10-21", batch_route="/chat/completions"), 2)
        paths = [path for path, _ in server.heads]
        assert all("api-version=2024-10-21" in path.partition("?")[2] for path in paths)
        assert paths[1].startswith("/openai/files?")
        assert singles(server) == 0


@pytest.mark.parametrize("api, route", [("completions", "/v1/chat/completions"), ("chat", "/v1/x")])
def test_a_route_that_is_not_that_of_the_api_is_an_error_of_the_settings(
    api: str, route: str
) -> None:
    with pytest.raises(ValueError, match="expected a route that ends as api says"):
        batched("http://127.0.0.1:1/v1", api=api, batch_route=route)
    batched("http://127.0.0.1:1/v1", api="completions", batch_route="/v1/completions")


FATES: dict[int, Fate] = {3: "refuse", 5: "fail", 7: "lose", 9: "garble", 11: "expire"}


def fate(asked: str) -> Fate:
    return FATES.get(int(asked.split()[1]), "answer")


def test_what_a_completed_batch_left_out_is_asked_one_by_one_and_a_refusal_is_none(
    notes: list[str],
) -> None:
    with billing.serving(fate=fate) as server:
        replies, usage = ask(batched(server.address))
        assert replies == [
            "refused: 400: status 400" if number == 3 else said(number) for number in range(20)
        ]
        assert (len(server.jobs), singles(server)) == (1, 4)
        assert len(server.bill) == 15 + 3 + 4  # three of the five were billed for nothing
        assert usage.doubtful_usd > 0
        num_requests = len(server.heads)
        assert ask(batched(server.address))[0] == replies
        assert len(server.heads) == num_requests, "a refusal is not asked for again"
    assert any("4 of 20 calls are left to ask" in note for note in notes)


def test_a_batch_killed_after_its_end_was_noted_leaves_its_rest_to_single_calls() -> None:
    with billing.serving(fate=fate) as server:
        with llm.open(batched(server.address)) as teacher:
            teacher.prefetch([(row(number), None) for number in range(20)])
        replies, _ = ask(batched(server.address))
        assert (len(server.jobs), singles(server), len(replies)) == (1, 4, 20)


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_the_rest_of_a_batch_that_came_to_no_end_goes_into_another(status: str) -> None:
    def late(asked: str) -> Fate:
        return "expire" if len(server.jobs) == 0 and int(asked.split()[1]) % 2 else "answer"

    def ends_as(number: int, asked: list[str]) -> str:
        return status if number == 1 else "completed"

    with billing.serving(fate=late, ends_as=ends_as) as server:
        replies, _ = ask(batched(server.address))
        assert [job.num_calls for job in server.jobs] == [20, 10]
        assert (server.duplicates, singles(server)) == (0, 0)
    assert replies == [said(number) for number in range(20)]


def test_calls_of_a_batch_that_brought_nothing_in_its_time_are_asked_one_by_one() -> None:
    with billing.serving(
        fate=lambda asked: "expire", ends_as=lambda number, asked: "expired"
    ) as server:
        ask(batched(server.address))
        ask(batched(server.address))
        assert (len(server.jobs), singles(server), server.duplicates) == (1, 20, 0)


def test_a_batch_that_failed_is_one_line_and_is_ordered_anew_by_the_next_run() -> None:
    def ends_as(number: int, asked: list[str]) -> str:
        return "failed" if number == 1 else "completed"

    with billing.serving(ends_as=ends_as) as server:
        with pytest.raises(PipelineError) as failed:
            ask(batched(server.address))
        assert "batch-1: failed: the file is not right; mend" in str(failed.value)
        assert "\n" not in str(failed.value) and "sk-secret" not in str(failed.value)
        assert ask(batched(server.address))[0] == [said(number) for number in range(20)]
        assert (len(server.jobs), server.duplicates, singles(server)) == (2, 0, 0)


def test_batches_that_find_no_room_wait_for_one_that_does() -> None:
    """Two at once are too many for the endpoint."""

    def ends_as(number: int, asked: list[str]) -> str:
        running = [job for job in server.jobs if job.looks_left > 0 and job.ends_as != "full"]
        return "full" if running else "completed"

    with billing.serving(ends_as=ends_as, looks=3) as server:
        replies, _ = ask(batched(server.address, batch_requests=5))
        good = [job.num_calls for job in server.jobs if job.ends_as == "completed"]
        assert (good, server.duplicates, singles(server)) == ([5] * 4, 0, 0)
        assert len(server.jobs) > 4
    assert replies == [said(number) for number in range(20)]
    with (
        billing.serving(ends_as=lambda number, asked: "full") as server,
        pytest.raises(PipelineError, match=r"too many tokens wait; mend .* lower batch_requests"),
    ):
        ask(batched(server.address, batch_requests=5))


# --- limits and the cap ------------------------------------------------------------------------


def test_more_calls_than_one_batch_may_hold_go_into_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with billing.serving() as server:
        ask(batched(server.address, batch_requests=8))
        assert [job.num_calls for job in server.jobs] == [8, 8, 4]
        monkeypatch.setattr("stages.llm.batches.MOST_BYTES", 1000)
        ask(batched(server.address), 20, first=20)
        sizes = [len(server.files[job.input_file]) for job in server.jobs[3:]]
        assert len(sizes) > 1 and max(sizes) <= 1000
        assert (len(server.bill), server.duplicates, singles(server)) == (40, 0, 0)


COSTS = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 2)), max_size=30)


@given(COSTS, st.integers(1, 8), st.integers(1, 120), st.floats(0.1, 5))
def test_each_file_is_within_the_limits_and_none_of_the_calls_is_lost(
    sizes: list[tuple[int, float]], most_calls: int, most_bytes: int, cap: float
) -> None:
    rows = [Line(f"{n}", "", b"x" * size, usd) for n, (size, usd) in enumerate(sizes)]
    pieces = list(lines.cut(iter(rows), most_calls, most_bytes, lambda usd: usd <= cap))
    assert [line for piece in pieces for line in piece] == rows
    for piece in pieces:
        assert 0 < len(piece) <= most_calls
        assert len(piece) == 1 or sum(len(line.text) for line in piece) <= most_bytes
        assert len(piece) == 1 or sum(line.most_usd for line in piece) <= cap + 1e-9


@pytest.mark.parametrize("says_usage", [True, False])
def test_batches_stay_below_the_cap_and_a_higher_one_goes_on_from_there(says_usage: bool) -> None:
    with billing.serving(fate=fate, says_usage=says_usage) as server:
        with pytest.raises(PipelineError, match=r"teacher\.max_cost_usd: 0\.003: 0\.00"):
            ask(batched(server.address, max_cost_usd=0.003), 60)
        # Where no usage is said, the most that a call can cost is what counts.
        assert (0.001 if says_usage else 0.0005) < server.usd <= 0.003
        assert len(server.jobs) > says_usage, "what was reserved and not paid makes room for more"
        before = len(server.bill)
        replies, _ = ask(batched(server.address, max_cost_usd=1.0), 60)
        assert len(replies) == 60
        assert len(server.bill) > before
        assert server.duplicates == 3  # the three that were billed and brought nothing


def test_a_forecast_of_batches_is_half_and_its_worst_case_is_not() -> None:
    calls = [(row(number), None) for number in range(9)]
    one, other = (
        llm.forecast(cfg, calls) for cfg in (config("http://h/v1"), batched("http://h/v1"))
    )
    assert other.cost_usd == pytest.approx(one.cost_usd / 2)
    assert other.worst_usd == one.worst_usd


# --- faults on the way -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["hang up", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cut", "refuse"))],
)
@pytest.mark.parametrize("at", range(1, 8))
def test_no_fault_on_the_way_makes_a_second_batch(at: int, kind: Any) -> None:
    fault = Act(kind, status=503)
    with billing.serving(
        desk=lambda number, asked: fault if number == at else ANSWER, fate=fate
    ) as server:
        replies, _ = ask(batched(server.address, backoff_s=0.001), 12)
        assert (len(server.jobs), singles(server), server.duplicates) == (1, 4, 3)
        assert replies[4] == said(4)


def test_a_wrong_key_ends_it_in_one_line() -> None:
    with billing.serving(desk=lambda number, asked: Act("refuse", status=401)) as server:
        with pytest.raises(PipelineError) as failed:
            ask(batched(server.address))
        assert len(server.heads) == 1
    assert "401: " in str(failed.value) and "\n" not in str(failed.value)


@given(st.lists(st.binary()), st.integers(1, 5))
def test_lines_come_whole_however_the_file_is_parted(parts: list[bytes], size: int) -> None:
    content = b"".join(parts)
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    assert list(lines.split(pieces)) == [line for line in content.split(b"\n") if line]


REQUESTS = {"k": json.dumps({"body": {"messages": []}})}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50)
@given(
    st.binary()
    | st.fixed_dictionaries(
        {"custom_id": st.just("k") | JSON},
        optional={
            "response": JSON
            | st.fixed_dictionaries(
                {"status_code": st.sampled_from([200, 400, 429, 500, "x"]), "body": JSON}
            ),
            "error": JSON,
        },
    ).map(lambda said: json.dumps(said).encode())
)
def test_any_line_of_a_result_is_a_reply_a_refusal_or_neither(content: bytes) -> None:
    found = lines.read(content, REQUESTS)
    assert found is None or found.key == "k"
    assert found is None or found.said is None or found.refusal is None


# --- kill -9 -----------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from openai.resources import Batches as Routes, Files
from stages.llm import batches, ledger, orders
from test_llm_batches import ask, batched

address, point, due = sys.argv[1], sys.argv[2], int(sys.argv[3])

def dying(owner, name, before, after):
    work = getattr(owner, name)
    def instead(*args, **kwargs):
        here(before)
        result = work(*args, **kwargs)
        here(after)
        return result
    setattr(owner, name, instead)

def here(name):
    global due
    if point == name:
        due -= 1
        if due <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

dying(orders.Orders, "plan", "before the plan", "after the plan")
dying(Files, "create", "before the upload", "after the upload")
dying(Routes, "create", "before the batch", "after the batch")
dying(orders.Orders, "made", "before its id is noted", "after its id is noted")
dying(Routes, "retrieve", "before a look", "after a look")
dying(ledger.Ledger, "store_all", "before replies are kept", "after replies are kept")
dying(orders.Orders, "end", "before the end is noted", "after the end is noted")
batches.AT_ONCE = 4
print(ask(batched(address, batch_requests=int(sys.argv[5])), int(sys.argv[4]))[1].calls)
"""

POINTS = (
    *("before the plan", "after the plan", "before the upload", "after the upload"),
    *("before the batch", "after the batch", "before its id is noted", "after its id is noted"),
    *("before a look", "after a look", "in the download", "before replies are kept"),
    *("after replies are kept", "before the end is noted", "after the end is noted"),
)


def child(address: str, point: str, due: int, num_rows: int, size: int) -> Any:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, address, point, *map(str, (due, num_rows, size))],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        stdout=subprocess.PIPE,
        text=True,
    )


def stored(workspace: Path) -> int:
    path = workspace / ".cache" / "ledger.db"
    if not path.exists():
        return 0
    file = sqlite3.connect(path)
    (count,) = file.execute("SELECT count(*) FROM calls").fetchone()
    file.close()
    return int(count)


@dataclass(frozen=True)
class Killed:
    kills: int
    lost: int
    """Stored replies that were gone later."""
    stored: int
    batches: int
    duplicates: int
    singles: int
    """Calls outside batches."""


def killed(workspace: Path, points: Sequence[str], num_rows: int, size: int) -> Killed:
    """Runs that are killed one after the other, and one that ends."""
    chance = random.Random(len(points))
    halves = False

    def desk(number: int, asked: str) -> Act:
        return Act("half") if halves and asked.endswith("-out/content") else ANSWER

    kept = kills = lost = 0
    with billing.serving(desk=desk, looks=4) as server:
        for point in points:
            halves = point == "in the download"
            process = child(server.address, point, chance.randint(1, 2), num_rows, size)
            if halves:
                while not server.seen.get(timeout=60).startswith("half"):
                    pass
                process.kill()
            process.communicate()
            assert process.returncode in (0, -signal.SIGKILL)
            kills += process.returncode == -signal.SIGKILL
            lost += max(0, kept - stored(workspace))
            kept = stored(workspace)
        halves = False
        replies, usage = ask(batched(server.address, batch_requests=size), num_rows)
        assert replies == [said(number) for number in range(num_rows)]
        assert usage.calls == num_rows - kept
        assert len(server.bill) == num_rows
        counts = (len(server.jobs), server.duplicates, singles(server))
        return Killed(kills, lost, stored(workspace), *counts)


@pytest.mark.parametrize(
    ("points", "num_rows", "size"),
    [
        (("after replies are kept",), 20, 50_000),
        pytest.param(POINTS, 60, 50_000, marks=pytest.mark.slow),
        pytest.param(sorted(POINTS * 2, key=POINTS.index), 300, 20, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_any_point_pays_for_no_call_twice_and_makes_no_second_batch(
    workspace: Path, points: Sequence[str], num_rows: int, size: int
) -> None:
    found = killed(workspace, points, num_rows, size)
    assert found.kills >= len(points) * 4 // 5
    assert (found.lost, found.stored) == (0, num_rows)
    assert found.batches == -(-num_rows // size)
    assert (found.duplicates, found.singles) == (0, 0)


def test_a_batch_is_found_by_its_name_where_the_ledger_is_lost(workspace: Path) -> None:
    def desk(number: int, asked: str) -> Act:
        return Act("refuse", status=401) if number == 4 else ANSWER

    with billing.serving(desk=desk) as server:
        with pytest.raises(PipelineError, match="401"):
            ask(batched(server.address))
        for path in (workspace / ".cache").glob("ledger.db*"):
            path.unlink()
        ask(batched(server.address))
        assert (len(server.jobs), len(server.bill)) == (1, 20)


def test_an_edit_between_a_kill_and_the_rerun_asks_only_for_what_is_new() -> None:
    with billing.serving() as server:
        process = child(server.address, "after the batch", 1, 20, 50_000)
        process.communicate()
        replies, _ = ask(batched(server.address), 20, first=3)  # three gone, three new
        assert [job.num_calls for job in server.jobs] == [20, 3]
        assert (len(server.bill), server.duplicates) == (23, 0)
    assert replies == [said(number) for number in range(3, 23)]


def test_two_runs_at_once_share_their_batches() -> None:
    together = threading.Barrier(2)
    found: list[list[str]] = []

    def run() -> None:
        together.wait(20)
        found.append(ask(batched(server.address))[0])

    with billing.serving() as server:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(server.jobs), len(server.bill)) == (1, 20)
    assert found[0] == found[1] == [said(number) for number in range(20)]
