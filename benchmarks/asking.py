"""How busy `evaluate` keeps the endpoint, beside a bare load generator.

Both put the test questions of four systems to the embedded server of data/deploy, by turns and
over as many connections. Ours is the stage's `ask_all` with no answer kept from before: it
retrieves, makes the prompts, asks, cites and keeps. The bare one sends the very bytes that ours
would, made before its clock runs, from one asyncio loop, and parses the answers after it. Busy is
tokens generated per second of wall time, as the server counts them; starting the server is not in
it. The questions come in four parts, each asked by both before the next, so that what else the
machine does meets both; ratios are within a part. `--quick` asks a tenth of the questions.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from benchmarks import machine
from stages import answer as answering
from stages import evaluate
from stages.answer import endpoint as serving
from stages.answer.retrieval import Index
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Example, Message, System
from stages.evaluate import asking

MANIFEST = Path("data/deploy/endpoint.json")
SYSTEMS: tuple[System, ...] = ("base", "base_rag", "tuned", "tuned_rag")
TARGET = 0.9
SAME_TARGET = 0.99
"""Share of equal answers: a tie in the last bits of the logits falls by the company in a batch."""

T = TypeVar("T")
Key = tuple[str, str]
"""System and id of the question."""


@dataclass(frozen=True)
class Request:
    key: Key
    data: bytes
    """Head and body, as they go over the wire."""


@dataclass(frozen=True)
class Call:
    system: str
    began: float
    ended: float
    tokens: int


@dataclass(frozen=True)
class Pass:
    """A part of the questions asked once."""

    seconds: float
    processor_s: float
    """Of this process, the one that asks."""
    calls: list[Call]
    answers: Mapping[Key, tuple[str, int] | None]
    """Texts and tokens; None for a question that was refused."""

    def rate(self, system: str | None = None) -> float:
        """Tokens per second: of all, or of a system from its first question to its last answer."""
        calls = [call for call in self.calls if system in (None, call.system)]
        seconds = max(call.ended for call in calls) - min(call.began for call in calls)
        return sum(call.tokens for call in calls) / (seconds if system else self.seconds)


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="fewer questions and rounds")
    quick = reader.parse_args().quick
    if not MANIFEST.exists():
        print(f"{MANIFEST} is missing: make demo", file=sys.stderr)
        return 1
    try:
        return measure(quick)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1


def measure(quick: bool) -> int:
    params = config.read(Path("params.yaml"))
    cfg: evaluate.Config = config.load(params, "evaluate", evaluate.Config)
    material = asking.Material(
        Index.open(Path("data/index")),
        store.digest(Path("data/index")),
        config.load(params, "answer", answering.Config),
        shots=(),
    )
    examples = list(store.read(Path("data/synthesize/test.jsonl"), Example))
    parts = [examples[::10]] if quick else [examples[start::4] for start in range(4)]
    said = store.read_json(MANIFEST)
    if said["engine"] != "embedded":
        raise PipelineError(
            f"{MANIFEST}: engine: {said['engine']!r}: expected 'embedded'; run "
            "`python -m stages run deploy=embedded`"
        )
    print(machine.describe("httpx"), flush=True)
    with serving.start(MANIFEST) as server:
        prepared = [prepare(server, part, material) for part in parts]
        print(
            f"{sum(map(len, parts))} questions, {sum(map(len, prepared))} requests over "
            f"{cfg.concurrency} connections, {len(parts)} parts"
        )
        first = prepared[0]
        bare(server, first[:: max(1, len(first) // 32)], cfg.concurrency)  # warms both models
        pairs = []
        for part, requests in [*zip(parts, prepared, strict=True)] * (2 if quick else 3):
            ours = stage(server, part, material, cfg.concurrency)
            pairs.append((ours, bare(server, requests, cfg.concurrency)))
    return report(pairs)


def prepare(
    server: serving.Endpoint, examples: Sequence[Example], material: asking.Material
) -> list[Request]:
    """What the stage would send for these questions, in its order."""
    sent: list[httpx.Request] = []

    def record(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        choice = {"message": {"content": ""}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": {"completion_tokens": 0}})

    client = httpx.Client(transport=httpx.MockTransport(record))
    requests = []
    with serving.Endpoint(server.base_url, server.models, _client=client) as recorder:
        for system in SYSTEMS:
            for example in examples:
                answering.ask(system, example.messages[:-1], material.index, recorder, material.cfg)
                for request in sent:  # none where retrieval finds nothing
                    requests.append(Request((system, example.id), wire(request)))
                sent.clear()
    return requests


def wire(request: httpx.Request) -> bytes:
    head = [f"{request.method} {request.url.path} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + request.content


# --- ours ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """The endpoint, and when it was asked what."""

    server: serving.Endpoint
    calls: list[Call] = field(default_factory=list)

    def complete(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
    ) -> serving.Completion:
        system = f"{model}_rag" if messages[0].role == "system" else model
        began, tokens = time.perf_counter(), 0
        try:
            said = self.server.complete(
                model, messages, max_tokens=max_tokens, temperature=temperature
            )
            tokens = said.tokens
        finally:  # a refusal too
            self.calls.append(Call(system, began, time.perf_counter(), tokens))
        return said


def stage(
    server: serving.Endpoint,
    examples: Sequence[Example],
    material: asking.Material,
    concurrency: int,
) -> Pass:
    respondents = [asking.Respondent(name, name, "ours", name) for name in SYSTEMS]
    watched = []

    @contextlib.contextmanager
    def opened() -> Iterator[Watched]:
        with serving.Endpoint(server.base_url, server.models) as again:
            watched.append(Watched(again))
            yield watched[-1]

    # Beside the real one, and so on its disk; a folder of its own, and so without its answers.
    with tempfile.TemporaryDirectory(dir=store.workspace("asking").parent) as folder:
        kept_at, os.environ["DVC_ROOT"] = os.environ.get("DVC_ROOT"), folder
        try:
            sources = {"ours": asking.Source(opened, concurrency)}
            (found, _), seconds, processor_s = timed(
                lambda: asking.ask_all(respondents, examples, material, sources)
            )
        finally:
            del os.environ["DVC_ROOT"]
            if kept_at is not None:
                os.environ["DVC_ROOT"] = kept_at
    rows = [asked.answer for asked in found]
    answers = {(row.system, row.example_id): (row.answer, row.tokens) for row in rows}
    return Pass(seconds, processor_s, watched[0].calls, answers)


# --- the bare one --------------------------------------------------------------------------------


def bare(server: serving.Endpoint, requests: Sequence[Request], connections: int) -> Pass:
    address = httpx.URL(server.base_url)
    read, seconds, processor_s = timed(
        lambda: asyncio.run(post(address.host, address.port, requests, connections))
    )
    calls = []
    answers: dict[Key, tuple[str, int] | None] = {}
    for (system, id), began, ended, body in read:
        said = json.loads(body)
        answers[system, id], tokens = None, 0
        if "choices" in said:
            tokens = said["usage"]["completion_tokens"]
            answers[system, id] = (said["choices"][0]["message"]["content"].strip(), tokens)
        calls.append(Call(system, began, ended, tokens))
    return Pass(seconds, processor_s, calls, answers)


async def post(
    host: str, port: int | None, requests: Iterable[Request], connections: int
) -> list[tuple[Key, float, float, bytes]]:
    """When each was sent and answered, and the body that came; in the order of the answers."""
    waiting = iter(requests)
    read = []

    async def connect() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for request in waiting:
            began = time.perf_counter()
            writer.write(request.data)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            assert length, head
            body = await reader.readexactly(int(length[1]))
            read.append((request.key, began, time.perf_counter(), body))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(connect() for _ in range(connections)))
    return read


# --- the two side by side ------------------------------------------------------------------------


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What it returns, its wall time and its processor time."""
    began, used = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - began, time.process_time() - used


def report(pairs: Sequence[tuple[Pass, Pass]]) -> int:
    """The table and the figures; 1 where one falls short."""
    print(f"{'tokens/s, median':<18}{'ours':>8}{'bare':>8}{'ratio':>8}   its quartiles")
    ratio = 0.0
    for system in (*SYSTEMS, None):
        rates = [(ours.rate(system), other.rate(system)) for ours, other in pairs]
        ours, other = (statistics.median(column) for column in zip(*rates, strict=True))
        low, ratio, high = statistics.quantiles(
            (ours / other for ours, other in rates), n=4, method="inclusive"
        )
        print(
            f"{system or 'together':<18}{ours:>8.0f}{other:>8.0f}{ratio:>8.3f}   "
            f"{low:.3f} to {high:.3f} of {len(pairs)}"
        )
    for name, passes in zip(("ours", "bare"), zip(*pairs, strict=True), strict=True):
        seconds = sum(one.seconds for one in passes)
        in_flight = sum(call.ended - call.began for one in passes for call in one.calls)
        print(
            f"{name}: {sum(len(one.calls) for one in passes):,} requests, "
            f"{sum(call.tokens for one in passes for call in one.calls):,} tokens in "
            f"{seconds:.1f} s, {in_flight / seconds:.2f} requests under way; processor time of "
            f"the asking process {sum(one.processor_s for one in passes):.2f} s"
        )
    same = statistics.fmean(
        ours.answers.get(key) == answer
        for ours, other in pairs
        for key, answer in other.answers.items()
    )
    print(f"\nfigure same_answers {same:.4g} target {SAME_TARGET}")
    print(f"figure endpoint_busy {ratio:.4g} target {TARGET}")
    return int(same < SAME_TARGET or ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
