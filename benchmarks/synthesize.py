"""How near the teacher's client comes to Little's law, and what a call costs it.

A server in a process of its own answers each request after 0.5 s. With N calls in flight no client
makes more than N / 0.5 s calls a second (Little's law): that is the limit. By turns with ours the
same calls are made without the ledger, and by a pool of threads over the bare SDK, which keeps,
limits and counts nothing. Ratios are within a round; processor time is that of the asking process
alone. The disk is measured beside: commits that reach it one by one, and replies of 64 threads
into the ledger. `--quick` makes fewer calls, once.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import openai

from benchmarks import machine
from stages import llm
from stages.core import store
from stages.core.records import Message
from stages.llm.ledger import Entry, Ledger

ROOT = Path(__file__).resolve().parent.parent
LATENCY_S = 0.5
TURNS = {1: 12, 8: 12, 64: 48}
"""Calls of each place, by calls at once: the more places, the longer is the start, which counts."""
QUICK_TURNS = {1: 4, 8: 4, 64: 20}
TARGET = 0.95
LEDGER_TARGET = 0.05
"""Most of the throughput that the ledger may take."""
CPU_TARGET_MS = 5.0
PROMPT = "You write questions and answers from which a model learns what a document says. " * 50


@dataclass(frozen=True)
class Pass:
    seconds: float
    processor_s: float
    calls: int

    @property
    def rate(self) -> float:
        return self.calls / self.seconds

    @property
    def processor_ms(self) -> float:
        return 1000 * self.processor_s / self.calls


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="fewer calls, one round")
    quick = reader.parse_args().quick
    print(machine.describe("openai", "httpx2", "tenacity"), flush=True)
    with serving() as address:
        figures = law(address, QUICK_TURNS if quick else TURNS, num_rounds=1 if quick else 3)
    disk()
    print()
    for name, value, target in figures:
        print(f"figure {name} {value:.4g} target {target}")
    short = [
        value > target if name.startswith(("ledger", "client")) else value < target
        for name, value, target in figures
    ]
    return int(any(short))


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The billing server of the tests."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "billing.py", "--latency", str(LATENCY_S)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate("")


def law(address: str, turns: dict[int, int], num_rounds: int) -> list[tuple[str, float, float]]:
    print(
        f"\n{LATENCY_S} s to a reply, median of {num_rounds}\n"
        f"{'calls at once':>13}{'calls':>7}{'limit /s':>10}{'ours /s':>9}"
        f"{'of limit':>10}{'no ledger':>11}{'bare SDK':>10}"
        f"{'CPU ms/call':>13}{'no ledger':>11}{'bare SDK':>10}",
        flush=True,
    )
    figures: list[tuple[str, float, float]] = []
    for concurrency, num_turns in turns.items():
        limit, calls = concurrency / LATENCY_S, concurrency * num_turns
        ways = (
            lambda: ours(address, concurrency, calls),  # noqa: B023
            lambda: forgetful(address, concurrency, calls),  # noqa: B023
            lambda: bare(address, concurrency, calls),  # noqa: B023
        )
        rounds = [[way() for way in ways] for _ in range(num_rounds)]
        shares = [
            statistics.median(one[place].rate / limit for one in rounds) for place in range(3)
        ]
        costs = [statistics.median(one[place].processor_ms for one in rounds) for place in range(3)]
        lost = statistics.median(1 - one[0].rate / one[1].rate for one in rounds)
        print(
            f"{concurrency:>13}{calls:>7}{limit:>10.0f}{shares[0] * limit:>9.2f}"
            f"{shares[0]:>10.3f}{shares[1]:>11.3f}{shares[2]:>10.3f}"
            f"{costs[0]:>13.2f}{costs[1]:>11.2f}{costs[2]:>10.2f}",
            flush=True,
        )
        figures.append((f"littles_law_{concurrency}", shares[0], TARGET))
    figures.append(("ledger_share_64", max(0.0, lost), LEDGER_TARGET))
    figures.append(("client_cpu_ms_64", costs[0], CPU_TARGET_MS))
    return figures


def timed(work: Callable[[], int]) -> Pass:
    began, used = time.perf_counter(), time.process_time()
    calls = work()
    return Pass(time.perf_counter() - began, time.process_time() - used, calls)


def messages(row: int) -> tuple[Message, ...]:
    return (
        Message(role="system", content=PROMPT),
        Message(role="user", content=f"row {row}"),
    )


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """A folder on the project's own disk, and so without its ledger."""
    cache = store.workspace("synthesize").parent
    with (
        tempfile.TemporaryDirectory(dir=cache) as folder,
        mock.patch.dict(os.environ, {"DVC_ROOT": folder}),
    ):
        yield Path(folder)


def ours(address: str, concurrency: int, calls: int) -> Pass:
    cfg = llm.OpenAI(
        kind="openai",
        base_url=address,
        api="chat",
        api_version=None,
        model="m",
        api_key_env=None,
        temperature=0.0,
        max_tokens=400,
        response_format="text",
        extra_body={},
        concurrency=concurrency,
        requests_per_minute=None,
        tokens_per_minute=None,
        timeout_s=60,
        deadline_s=600,
        max_attempts=8,
        backoff_s=1.0,
        retry_after_cap_s=300,
        prompt_price_usd_per_mtok=1.0,
        completion_price_usd_per_mtok=2.0,
        completion_tokens_guess=100,
        max_cost_usd=1000.0,
    )
    with elsewhere(), llm.open(cfg) as teacher:

        def work() -> int:
            asked = teacher.map(lambda row: teacher.complete(messages(row), None), range(calls))
            return sum(not reply.cached for reply in asked)

        return timed(work)


def forgetful(address: str, concurrency: int, calls: int) -> Pass:
    """Ours, but no reply is kept and none is looked for."""
    with mock.patch.multiple(
        Ledger,
        find=lambda self, key: None,
        store=lambda self, key, request, entry, cost_usd, seconds: entry,
    ):
        return ours(address, concurrency, calls)


def bare(address: str, concurrency: int, calls: int) -> Pass:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:

        def ask(row: int) -> str:
            completion = client.chat.completions.create(
                model="m",
                messages=[turn.model_dump() for turn in messages(row)],  # type: ignore[misc]
                temperature=0.0,
                max_tokens=400,
            )
            return completion.choices[0].message.content or ""

        def work() -> int:
            with ThreadPoolExecutor(concurrency) as pool:
                return sum(map(bool, pool.map(ask, range(calls))))

        return timed(work)


def disk() -> None:
    """What the disk takes, and what the ledger makes of it."""
    text = json.dumps({"body": {"messages": PROMPT}})
    entry = Entry("It goes on. " * 100, "stop", 1000, 300)
    with elsewhere() as folder:
        file = sqlite3.connect(folder / "one.db", isolation_level=None)
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("PRAGMA synchronous=FULL")
        file.execute("CREATE TABLE calls (request TEXT)")
        insert = "INSERT INTO calls VALUES (?)"
        alone = timed(lambda: sum(bool(file.execute(insert, (text,))) for _ in range(1000)))
        file.close()
        calls = Ledger(folder / "many.db")

        def keep(row: int) -> bool:
            return calls.store(f"{row}", text, entry, 0.0, 0.0) == entry

        with ThreadPoolExecutor(64) as pool:
            shared = timed(lambda: sum(pool.map(keep, range(5000))))
        calls.close()
    print(
        f"\nfully synced: {alone.rate:.0f} commits/s one by one; {shared.rate:.0f} replies/s of 64 "
        f"threads into the ledger, {shared.processor_ms:.2f} ms of processor time each"
    )


if __name__ == "__main__":
    sys.exit(main())
