"""How many calls start, when they are tried again, and how long one may take."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import billing
import pytest
from billing import ANSWER, Act
from chat import Call, config, good, serving, steps
from hypothesis import given
from hypothesis import strategies as st

from stages import llm
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.llm.limits import Gate, LateError, StoppedError


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    return tmp_path


def ask(teacher: llm.Teacher, rows: int) -> list[str]:
    def one(row: int) -> str:
        return teacher.complete((Message(role="user", content=f"row {row}"),), None).text

    return list(teacher.map(one, range(rows)))


# --- storms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server",
    [
        pytest.param({"latency_s": 0.02, "room": 8}, id="room for eight"),
        pytest.param(
            {"latency_s": 0.02, "per_second": 20.0},
            id="twenty a second",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"latency_s": 0.02, "per_second": 20.0, "retry_after": "1"}, id="it says when"
        ),
        pytest.param(
            {"latency_s": 0.02, "per_second": 8.0}, id="eight a second", marks=pytest.mark.slow
        ),
    ],
)
def test_a_storm_of_429_at_64_concurrent_completes_and_pays_for_nothing_twice(
    server: dict[str, Any],
) -> None:
    num_rows = 120 if "room" in server else 48
    with billing.serving(**server) as biller:
        cfg = config(biller.address, concurrency=64, max_attempts=8, backoff_s=0.1)
        with llm.open(cfg) as teacher:
            replies = ask(teacher, num_rows)
        assert biller.turned_away > 0
        assert len(replies) == num_rows and all(replies)
        assert (len(biller.bill), biller.duplicates) == (num_rows, 0)


@dataclass(frozen=True)
class Storm:
    replies: int
    """Of the calls asked for."""
    turned_away: int
    duplicates: int


def storm(num_rows: int) -> Storm:
    """Fifty requests a second find room; one in two hundred loses its reply on the way."""

    def script(number: int, body: dict[str, Any]) -> Act:
        return Act("cut") if number % 200 == 199 else ANSWER

    with billing.serving(script=script, latency_s=0.1, per_second=50.0, retry_after="1") as biller:
        cfg = config(biller.address, concurrency=64, max_attempts=8, backoff_s=0.1)
        with llm.open(cfg) as teacher:
            replies = sum(map(bool, ask(teacher, num_rows)))
        return Storm(replies, biller.turned_away, biller.duplicates)


@pytest.mark.slow
def test_a_storm_with_faults_that_bill_completes_with_at_most_one_duplicate_in_a_hundred() -> None:
    found = storm(1000)
    assert found.turned_away > 0
    assert found.replies == 1000
    assert 0 < found.duplicates <= 10


def test_no_call_has_more_attempts_than_configured_in_a_storm_without_end() -> None:
    refuse = Act("refuse", status=429)
    with billing.serving(script=lambda number, body: refuse) as biller:
        cfg = config(biller.address, concurrency=1, max_attempts=4, backoff_s=0.01)
        with llm.open(cfg) as teacher, pytest.raises(PipelineError, match="4 of at most 4"):
            ask(teacher, 3)
        assert len(biller.bodies) == 4 and not biller.bill


# --- the gate ----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wait(gate: Gate) -> float | None:
    """Seconds until one more may start."""
    gate._waiting.append((0, 0))
    try:
        return gate._wait((0, 0))
    finally:
        gate._waiting.remove((0, 0))


def test_requests_and_tokens_of_a_minute_are_spread_evenly() -> None:
    clock = Clock()
    gate = Gate(9, requests_per_minute=30, tokens_per_minute=600, now=clock)
    assert wait(gate) == 0
    gate.enter(10, 0, None)
    assert wait(gate) == pytest.approx(2)  # 30 a minute; 10 tokens would take 1 s
    clock.now += 2
    ticket = gate.enter(50, 0, None)
    assert wait(gate) == pytest.approx(5)
    gate.replied(ticket, 80)  # more than was thought
    assert wait(gate) == pytest.approx(8)


def test_an_overload_halves_the_calls_once_for_all_that_went_together() -> None:
    gate = Gate(64)
    tickets = [gate.enter(0, 0, None) for _ in range(64)]
    gate.turned_away(tickets[0])
    assert gate.allowed == 32
    for ticket in tickets[1:32]:
        gate.turned_away(ticket)
    assert gate.allowed == 32
    gate.turned_away(tickets[32])  # more than half of them
    assert gate.allowed == 1
    for ticket in tickets:
        gate.leave(ticket)
    for _ in range(31):
        gate.replied(gate.enter(0, 0, None), 0)
    assert gate.allowed == 32  # one a reply up to half of what was too much,
    gate.replied(tickets[0], 0)
    assert gate.allowed == 32  # and then one in as many replies


def test_where_one_call_is_too_much_the_time_between_two_starts_doubles_and_shrinks() -> None:
    clock = Clock()
    gate = Gate(1, first_gap_s=0.5, now=clock)
    for gap in (0.5, 1, 2):
        ticket = gate.enter(0, 0, None)
        gate.turned_away(ticket)
        gate.leave(ticket)
        assert wait(gate) == pytest.approx(gap)
        clock.now += gap
    ticket = gate.enter(0, 0, None)
    gate.replied(ticket, 0)
    gate.leave(ticket)
    clock.now += 2
    gate.leave(gate.enter(0, 0, None))
    assert wait(gate) == pytest.approx(1.8)


@given(st.integers(1, 16), st.lists(st.sampled_from(["enter", "good", "bad", "lost"])))
def test_the_calls_at_once_stay_between_one_and_the_most_and_come_back(
    most: int, events: list[str]
) -> None:
    clock = Clock()
    gate = Gate(most, now=clock)
    under_way = []
    for event in events:
        clock.now += 60
        if event == "enter":
            if wait(gate) == 0:
                under_way.append(gate.enter(0, 0, None))
        elif under_way:
            ticket = under_way.pop()
            if event == "good":
                gate.replied(ticket, 0)
            elif event == "bad":
                gate.turned_away(ticket)
            gate.leave(ticket)
        assert 1 <= gate.allowed <= most
        assert gate._in_flight == len(under_way)
    for ticket in under_way:
        gate.leave(ticket)
    for _ in range(most * most):
        clock.now += 60
        ticket = gate.enter(0, 0, None)
        gate.replied(ticket, 0)
        gate.leave(ticket)
    assert gate.allowed == most


def test_who_was_turned_away_goes_first_and_nobody_after_the_deadline_or_the_stop() -> None:
    gate, order = Gate(1), []
    first = gate.enter(0, 0, None)

    def go(attempt: int) -> None:
        ticket = gate.enter(0, attempt, None)
        order.append(attempt)
        gate.leave(ticket)

    threads = [threading.Thread(target=go, args=(attempt,)) for attempt in (0, 2, 1)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        while len(gate._waiting) < number:
            time.sleep(0.001)
    with pytest.raises(LateError):
        gate.enter(0, 9, time.monotonic())
    gate.leave(first)
    for thread in threads:
        thread.join()
    assert order == [2, 1, 0]
    gate.hold(50)
    with pytest.raises(LateError):
        gate.enter(0, 9, time.monotonic() + 40)
    gate.stop()
    with pytest.raises(StoppedError):
        gate.enter(0, 0, None)


# --- one call ----------------------------------------------------------------------------------


def test_a_call_that_would_wait_past_its_deadline_gives_up_and_says_so() -> None:
    answer = steps(lambda call: call.fail(429, Retry_After="250"), good)
    with serving(answer) as server:
        cfg = config(server.address, deadline_s=200.0)
        with llm.open(cfg) as teacher, pytest.raises(PipelineError, match=r"teacher\.deadline_s"):
            ask(teacher, 1)
        assert len(server.bodies) == 1


def test_a_reply_that_comes_in_drops_is_given_up_after_its_timeout() -> None:
    free = threading.Event()

    def drip(call: Call) -> None:
        call.send_response(200)
        call.send_header("Content-Length", "1000")
        call.end_headers()
        while not free.wait(0.05):  # each drop comes within the timeout, the whole never
            call.wfile.write(b" ")
            call.wfile.flush()

    with serving(steps(drip, good)) as server:
        with llm.open(config(server.address, timeout_s=0.4)) as teacher:
            assert ask(teacher, 1) == ["A span."]
        assert len(server.bodies) == 2
        free.set()


def test_half_a_body_and_an_end_without_a_word_are_tried_again() -> None:
    acts = [Act("cut"), Act("hang up"), Act("garble"), Act("refuse", status=500), ANSWER]
    with billing.serving(script=lambda number, body: acts[number - 1]) as biller:
        with llm.open(config(biller.address)) as teacher:
            assert ask(teacher, 1)
            assert teacher.usage.calls == 1
            assert teacher.usage.doubtful_usd > 0
        assert (len(biller.bodies), len(biller.bill)) == (5, 4)
