"""What calls cost: forecast before a run, capped in it, and held against the server's bill."""

import random
import re
import threading
from pathlib import Path
from typing import Any

import billing
import pytest
from billing import ANSWER, Act
from chat import config, good, serving, steps
from hypothesis import given
from hypothesis import strategies as st

from stages import llm
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.llm.budget import Budget, SpentError
from stages.llm.limits import StoppedError

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    return tmp_path


def prompts(number: int) -> list[tuple[Message, ...]]:
    """Chunks of many lengths, in words that tokenizers see differently."""
    chance = random.Random(number)
    words = re.findall(r"\S+", "chunk index naïve Überlauf token → serialization of a 2026 `x = y`")
    return [
        (
            Message(role="system", content="You write questions about a chunk. " * 10),
            Message(
                role="user", content=" ".join(chance.choices(words, k=chance.randint(20, 400)))
            ),
        )
        for _ in range(number)
    ]


def answer(asked: str) -> str:
    """As long as the chunk has it, within limits."""
    return "A sentence about it all. " * (4 + len(asked) // 150)


def bytes_by_two(text: str) -> int:
    """A tokenizer that makes far more tokens than cl100k."""
    return len(text.encode()) // 2


def ask(cfg: llm.OpenAI, rows: list[tuple[Message, ...]], schema: Any = None) -> llm.Usage:
    with llm.open(cfg) as teacher:
        try:
            for _ in teacher.map(lambda row: teacher.complete(row, schema), rows):
                pass
        finally:
            usage = teacher.usage
    return usage


# --- the cap -----------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_the_bill_stays_below_the_cap_and_a_higher_one_goes_on_from_there(
    concurrency: int,
) -> None:
    rows = prompts(150)
    with billing.serving(text=answer) as biller:
        cfg = config(biller.address, concurrency=concurrency, max_cost_usd=0.03)
        with pytest.raises(PipelineError) as stopped:
            ask(cfg, rows)
        spent, num_kept = biller.usd, len(biller.bill)
        assert 0.02 < spent <= 0.03
        line = str(stopped.value)
        assert line.startswith("teacher.max_cost_usd: 0.03: 0.02") and "\n" not in line
        assert f"{num_kept} replies" in line and "raise teacher.max_cost_usd" in line
        usage = ask(cfg.model_copy(update={"max_cost_usd": 1.0}), rows)
        assert usage.cached == num_kept
        assert (len(biller.bill), biller.duplicates) == (150, 0)


CAP_USD = 0.03


def capped(concurrency: int, says_usage: bool) -> billing.Server:
    """After a run that stopped at the cap, though a third of the calls went wrong."""
    faults = [Act("cut"), Act("garble"), Act("hang up"), Act("refuse"), Act("late", seconds=5)]

    def script(number: int, body: dict[str, Any]) -> Act:
        return faults[number // 3 % len(faults)] if number % 3 == 0 else ANSWER

    with billing.serving(
        script=script, text=answer, tokens=bytes_by_two, says_usage=says_usage
    ) as biller:
        cfg = config(
            biller.address,
            concurrency=concurrency,
            max_cost_usd=CAP_USD,
            timeout_s=0.25,
            max_attempts=20,
        )
        with pytest.raises(PipelineError, match=r"teacher\.max_cost_usd"):
            ask(cfg, prompts(300))
        return biller


@pytest.mark.parametrize("says_usage", [True, False])
@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_the_cap_holds_where_retries_bill_twice_tokens_are_others_and_usage_is_left_out(
    concurrency: int, says_usage: bool
) -> None:
    biller = capped(concurrency, says_usage)
    assert biller.duplicates > 0
    assert 0.005 < biller.usd <= CAP_USD


def test_a_request_that_was_turned_away_or_refused_is_not_held_for_paid() -> None:
    refuse = [Act("refuse", status=status) for status in (429, 503, 429)]
    with billing.serving(
        script=lambda number, body: refuse[number - 1] if number < 4 else ANSWER
    ) as biller:
        usage = ask(config(biller.address, max_cost_usd=0.002), prompts(1))
        assert (len(biller.bodies), usage.doubtful_usd) == (4, 0)
        assert usage.cost_usd == pytest.approx(biller.usd)


def test_a_cap_below_the_first_call_makes_none() -> None:
    with billing.serving() as biller:
        with pytest.raises(PipelineError, match=r"0\.000000 USD are spent, and the next call may"):
            ask(config(biller.address, max_cost_usd=1e-6), prompts(3))
        assert not biller.bodies


def test_what_the_ledger_holds_is_read_below_any_cap() -> None:
    with serving(steps(good)) as server:
        ask(config(server.address), prompts(3))
        usage = ask(config(server.address, max_cost_usd=1e-9), prompts(3))
    assert (usage.calls, usage.cached) == (0, 3)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"max_tokens": None}, "expected max_tokens beside a cap"),
        (
            {"prompt_price_usd_per_mtok": 0.0, "completion_price_usd_per_mtok": 0.0},
            "expected prices beside a cap",
        ),
    ],
)
def test_a_cap_that_could_not_hold_is_an_error_of_the_settings(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        config("http://127.0.0.1:1/v1", max_cost_usd=1.0, **changes)
    config("http://127.0.0.1:1/v1", **changes)


def test_other_names_of_the_longest_reply_bound_it_too() -> None:
    body = {"max_completion_tokens": 50, "n": 2}
    cfg = config("http://h/v1", max_tokens=None, extra_body=body, max_cost_usd=1.0)
    found = llm.forecast(cfg, [(prompts(1)[0], None)])
    assert found.worst_usd is not None
    assert found.worst_usd > 2 * 50 * 2 / 1e6


@given(
    st.floats(0.1, 10),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1), st.booleans())),
)
def test_paid_and_reserved_never_pass_the_cap(
    cap: float, steps: list[tuple[float, float, bool]]
) -> None:
    budget, held = Budget(cap), []
    for most, share, settles in steps:
        if budget.paid_usd + sum(held) + most <= cap:
            budget.reserve(most)
            held.append(most)
        elif not held:
            with pytest.raises(SpentError):
                budget.reserve(most)
        if settles and held:
            budget.settle(held[0], held.pop(0) * share)
        assert budget.paid_usd + sum(held) <= cap + 1e-9


def test_who_waits_for_room_in_the_budget_goes_on_when_another_was_cheaper() -> None:
    budget = Budget(1.0)
    budget.reserve(0.9)
    went = []

    def wait() -> None:
        try:
            budget.reserve(0.5)
            went.append("on")
        except StoppedError:
            went.append("stopped")

    waiting = threading.Thread(target=wait)
    waiting.start()
    budget.settle(0.9, 0.1)
    waiting.join()
    waiting = threading.Thread(target=wait)
    waiting.start()
    budget.stop()
    waiting.join()
    assert went == ["on", "stopped"]


# --- the forecast ------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["text", "schema"])
@pytest.mark.parametrize(
    "tokens", [billing.wire.count, bytes_by_two], ids=["cl100k", "bytes by two"]
)
def test_a_forecast_is_within_a_quarter_of_the_bill_once_some_replies_are_known(
    schema: Any, tokens: Any
) -> None:
    rows = prompts(120)
    with billing.serving(text=answer, tokens=tokens, heeds=frozenset({"json_object"})) as biller:
        cfg = config(biller.address, response_format="json_object", concurrency=8, max_tokens=4000)
        ask(cfg, rows[:30], schema)
        before, items = biller.usd, len(biller.bill)
        found = llm.forecast(cfg, [(row, schema) for row in rows])
        ask(cfg, rows, schema)
        usd, new = biller.usd - before, biller.bill[items:]
    assert (found.calls, found.cached) == (90, 30) == (len(new), len(rows) - len(new))
    assert found.cost_usd == pytest.approx(usd, rel=0.25)
    assert found.prompt_tokens == pytest.approx(sum(i.prompt_tokens for i in new), rel=0.25)
    assert found.completion_tokens == pytest.approx(sum(i.completion_tokens for i in new), rel=0.25)
    assert found.worst_usd is not None and found.worst_usd >= usd


def test_a_first_forecast_uses_the_guess_counts_the_probe_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = prompts(40)
    with billing.serving(text=answer) as biller:
        cfg = config(biller.address, completion_tokens_guess=100, max_tokens=None)
        monkeypatch.delenv("TEST_KEY")
        found = llm.forecast(cfg, [(row, SCHEMA) for row in [*rows, rows[0]]])
        assert not biller.bodies
        assert (found.calls, found.cached, found.worst_usd) == (41, 1, None)
        assert found.completion_tokens == pytest.approx(40 * 100, abs=30)
        monkeypatch.setenv("TEST_KEY", "k")
        ask(cfg, rows, SCHEMA)
        assert len(biller.bill) == found.calls
        assert found.prompt_tokens == pytest.approx(
            sum(item.prompt_tokens for item in biller.bill), rel=0.05
        )
    again = llm.forecast(cfg, [(row, SCHEMA) for row in rows])
    assert (again.calls, again.cached, again.cost_usd) == (0, 40, 0)


def test_the_outline_teacher_is_forecast_to_cost_nothing() -> None:
    found = llm.forecast(llm.Outline(kind="outline"), [(row, SCHEMA) for row in prompts(3)])
    assert (found.calls, found.cost_usd) == (3, 0)


def test_usage_that_a_server_leaves_out_is_counted_here() -> None:
    with billing.serving(text=answer, says_usage=False) as biller:
        usage = ask(config(biller.address), prompts(5))
        assert usage.completion_tokens == sum(item.completion_tokens for item in biller.bill)
        assert usage.prompt_tokens == pytest.approx(
            sum(item.prompt_tokens for item in biller.bill), rel=0.05
        )
