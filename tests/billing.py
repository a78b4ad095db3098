"""A server on loopback that speaks OpenAI's protocol and bills: its bill is the truth.

It answers one by one (chat and plain completions) and in batches (files and batches), at half the
price, and tunes models (files and fine-tuning jobs). `python tests/billing.py --latency 0.5` serves
in a process of its own until its input ends.
"""

import argparse
import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import queue
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from stages.llm import probe, wire

PROMPT_USD, COMPLETION_USD = 1.0, 2.0  # per million tokens, as tests/chat.py configures


@dataclass(frozen=True)
class Act:
    """What becomes of one request. All but `refuse` make a reply, and bill it."""

    kind: Literal["answer", "refuse", "late", "cut", "garble", "hang up", "half"] = "answer"
    """late: the reply comes after `seconds`, to nobody perhaps; cut: half of the body, then the end
    of the connection; half: half of the body, and nothing more; garble: 200 with no JSON."""
    status: int = 429
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0


ANSWER = Act()
Script = Callable[[int, dict[str, Any]], Act]
"""By the number of the request, from 1, and its body."""


@dataclass(frozen=True)
class Item:
    """A line of the bill."""

    asked: str
    """Digest of what was asked."""
    text: str
    prompt_tokens: int
    completion_tokens: int
    share: float = 1.0
    """Of the price: less in a batch."""

    @property
    def usd(self) -> float:
        spent = self.prompt_tokens * PROMPT_USD + self.completion_tokens * COMPLETION_USD
        return self.share * spent / 1e6


Fate = Literal["answer", "refuse", "fail", "expire", "garble", "lose"]
"""Of a line of a batch: a reply; 400; 500, billed all the same; nothing before the time was up;
200 with a body that is no completion, billed; a reply that is billed and stands in no file."""


@dataclass
class Job:
    """A batch."""

    id: str
    marks: dict[str, str]
    input_file: str
    num_calls: int
    ends_as: str
    counts: dict[str, int]
    output: list[bytes]
    errors: list[bytes]
    looks_left: int
    created_at: int


@dataclass
class Tuning:
    """A fine-tuning job."""

    id: str
    model: str
    file: str
    validation: str | None
    marks: dict[str, str]
    method: dict[str, Any]
    seed: int
    suffix: str | None
    ends_as: str
    looks_left: int
    tokens: int
    num_steps: int
    created_at: int
    cancelled: bool = False


@dataclass
class Settings:
    script: Script = lambda number, body: ANSWER
    latency_s: float = 0.0
    room: int | None = None
    """Requests that it works on at once; further ones get 429."""
    per_second: float | None = None
    """Requests that it takes a second, as many in one go; further ones get 429."""
    retry_after: str | None = None
    """Header of those 429."""
    says_usage: bool = True
    tokens: Callable[[str], int] = wire.count
    text: Callable[[str], str] = lambda asked: f"What {asked[:8]} says. " + "It goes on. " * 20
    """The answer to the last message."""
    heeds: frozenset[str] = frozenset({"json_schema", "json_object", "json"})
    """Kinds of response_format that shape its replies; others it accepts and ignores."""
    refuses: frozenset[str] = frozenset()
    """Kinds that it answers with 400."""
    say: Callable[[dict[str, Any]], str] | None = None
    """The whole text of the reply to a body, in place of all of the above."""
    finish: Callable[[str], str] = lambda text: "stop"
    """The finish_reason of a reply."""
    fate: Callable[[str], Fate] = lambda asked: "answer"
    """Of a line of a batch, by its last message."""
    ends_as: Callable[[int, list[str]], str] = lambda number, asked: "completed"
    """Status of a batch in the end, by its number, from 1, and the last messages of its lines; one
    that is "full" fails for want of room."""
    looks: int = 2
    """Times that a batch or a training is looked at before it has ended."""
    tuning_ends_as: Callable[[int], str] = lambda number: "succeeded"
    """Status of a training in the end, by its number, from 1."""
    keeps_marks: bool = True
    """Whether trainings keep their metadata."""
    desk: Callable[[int, str], Act] = lambda number, asked: ANSWER
    """By the number of the request about files and batches, from 1, and its method and path."""


@dataclass
class Server:
    settings: Settings
    bill: list[Item] = field(default_factory=list)
    turned_away: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of each request."""
    seen: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    """Acts as they happen."""
    most: int = 0
    """Requests that it worked on at once."""
    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    trainings: list[Tuning] = field(default_factory=list)
    """Each of them is billed."""

    def __post_init__(self) -> None:
        self._at_desk = itertools.count(1)
        self._numbers = itertools.count(1)
        self._working = 0
        self._taken = (time.monotonic(), self.settings.per_second or 0.0)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def usd(self) -> float:
        return sum(item.usd for item in self.bill)

    @property
    def duplicates(self) -> int:
        """Items that bill again what was billed before."""
        return sum(times - 1 for times in Counter(item.asked for item in self.bill).values())

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, path = head[0].split()[:2]
                pairs = (line.split(": ", 1) for line in head[1:] if line)
                headers = {name.lower(): value for name, value in pairs}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                self.heads.append((path, headers))
                if any(name in path for name in ("/files", "/batches", "/fine_tuning")):
                    if not await self.serve(method, path, headers, content, writer):
                        break
                    continue
                body = json.loads(content)
                self.bodies.append(body)
                if not await self.answer(body, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server ends
        finally:
            writer.close()

    async def answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        settings = self.settings
        number = next(self._numbers)
        act = settings.script(number, body)
        kind = (body.get("response_format") or {}).get("type", "text")
        if act.kind == "refuse":
            return await self.refuse(writer, act.status, dict(act.headers))
        if kind in settings.refuses:
            return await self.refuse(writer, 400, {})
        if not self.has_room():
            headers = {"Retry-After": settings.retry_after} if settings.retry_after else {}
            return await self.refuse(writer, 429, headers)
        self._working += 1
        self.most = max(self.most, self._working)
        try:
            await asyncio.sleep(settings.latency_s)
            content = self.reply(body, kind)
        finally:
            self._working -= 1
        self.seen.put(act.kind)
        if act.kind == "late":
            await asyncio.sleep(act.seconds)
        if act.kind == "hang up":
            return False
        if act.kind == "garble":
            content = b"<html>gateway</html>"
        whole = _head(200, len(content), {}) + content
        if act.kind in ("cut", "half"):
            whole = whole[: -len(content) // 2]
        writer.write(whole)
        await writer.drain()
        if act.kind == "half":
            await asyncio.sleep(3600)
        return act.kind != "cut"

    async def refuse(
        self, writer: asyncio.StreamWriter, status: int, headers: dict[str, str]
    ) -> bool:
        self.turned_away += 1
        content = json.dumps({"error": {"message": f"status {status}", "code": None}}).encode()
        writer.write(_head(status, len(content), headers) + content)
        await writer.drain()
        return True

    def has_room(self) -> bool:
        settings = self.settings
        if settings.room is not None and self._working >= settings.room:
            return False
        if settings.per_second is not None:
            then, left = self._taken
            now = time.monotonic()
            left = min(settings.per_second, left + (now - then) * settings.per_second)
            self._taken = (now, left - 1 if left >= 1 else left)
            return left >= 1
        return True

    # --- batches -------------------------------------------------------------------------------

    async def serve(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        content: bytes,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Whether the connection goes on."""
        act = self.settings.desk(next(self._at_desk), f"{method} {path}")
        if act.kind == "refuse":
            return await self.refuse(writer, act.status, dict(act.headers))
        said = self.at_desk(method, path, headers, content)
        self.seen.put(f"{act.kind} {method} {path}")
        if act.kind == "hang up":
            return False
        whole = _head(200 if said is not None else 404, len(said or b"{}"), {}) + (said or b"{}")
        if act.kind in ("cut", "half"):
            whole = whole[: -len(said or b"{}") // 2]
        writer.write(whole)
        await writer.drain()
        if act.kind == "half":
            await asyncio.sleep(3600)
        return act.kind != "cut"

    def at_desk(
        self, method: str, path: str, headers: dict[str, str], content: bytes
    ) -> bytes | None:
        route, _, query = path.partition("?")
        name = route.removesuffix("/content").rpartition("/")[2]
        if "/fine_tuning/jobs" in route:
            said = self.at_tuning(method, route.partition("/fine_tuning/jobs")[2], query, content)
            return None if said is None else json.dumps(said).encode()
        if method == "POST" and name == "files":
            return json.dumps(self.take_file(headers["content-type"], content)).encode()
        if method == "POST":
            return json.dumps(self.begin(json.loads(content))).encode()
        if name == "batches":
            after = dict(pair.split("=") for pair in query.split("&")).get("after")
            newest = [self.describe(job) for job in reversed(self.jobs)]
            first = [row["id"] for row in newest].index(after) + 1 if after else 0
            page = newest[first : first + 2]  # short ones, so that some are turned over
            more = first + 2 < len(newest)
            return json.dumps({"object": "list", "data": page, "has_more": more}).encode()
        if route.endswith("/content"):
            return self.files.get(name)
        job = next((job for job in self.jobs if job.id == name), None)
        if job is not None:
            job.looks_left -= 1
        return None if job is None else json.dumps(self.describe(job)).encode()

    def take_file(self, kind: str, content: bytes) -> dict[str, Any]:
        mark = b"--" + kind.partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n") for part in content.split(mark)[1:-1]]
        fields = {re.search(rb'name="(\w+)"', head)[1]: rest[:-2] for head, _, rest in parts}  # type: ignore[index]
        purpose = fields[b"purpose"].decode()
        assert purpose in ("batch", "fine-tune")
        id = f"file-{len(self.files) + 1}"
        self.files[id] = fields[b"file"]
        about = {"bytes": len(fields[b"file"]), "created_at": 1, "filename": "x.jsonl"}
        return {"id": id, "object": "file", "purpose": purpose, "status": "processed", **about}

    # --- trainings -----------------------------------------------------------------------------

    def at_tuning(
        self, method: str, route: str, query: str, content: bytes
    ) -> dict[str, Any] | None:
        if method == "POST" and not route:
            return self.begin_tuning(json.loads(content))
        if not route:
            newest = [self.describe_tuning(job) for job in reversed(self.trainings)]
            return _page(newest, query)
        id, _, verb = route.removeprefix("/").partition("/")
        job = next((job for job in self.trainings if job.id == id), None)
        if job is None:
            return None
        if verb == "events":
            return _page(list(reversed(self.events(job))), query)
        if verb == "cancel":
            job.cancelled = True
        elif method == "GET":
            job.looks_left -= 1
        return self.describe_tuning(job)

    def begin_tuning(self, body: dict[str, Any]) -> dict[str, Any]:
        """A new job, which is billed."""
        rows = [json.loads(line) for line in self.files[body["training_file"]].splitlines()]
        for row in rows:
            assert row.keys() == {"messages"}
            assert row["messages"][-1]["role"] == "assistant"
        epochs = body["method"]["supervised"]["hyperparameters"]["n_epochs"]
        words = " ".join(turn["content"] for row in rows for turn in row["messages"])
        number = len(self.trainings) + 1
        job = Tuning(
            *(f"ftjob-{number}", body["model"], body["training_file"]),
            body.get("validation_file"),
            (body.get("metadata") or {}) if self.settings.keeps_marks else {},
            *(body["method"], body["seed"], body.get("suffix")),
            *(self.settings.tuning_ends_as(number), self.settings.looks),
            self.settings.tokens(words) * epochs,
            len(rows) * epochs,
            int(time.time()),
        )
        self.trainings.append(job)
        return self.describe_tuning(job)

    def events(self, job: Tuning) -> list[dict[str, Any]]:
        """All that it has told by now, the oldest first."""
        share = 1 - max(0, job.looks_left) / max(1, self.settings.looks)
        rows = [{"message": "The job has begun", "type": "message", "data": {}}]
        for step in range(1, int(share * job.num_steps) + 1):
            data = {"step": step, "total_steps": job.num_steps, "train_loss": 4.0 / step}
            if step == job.num_steps:
                data["full_valid_loss"] = 0.5
            rows.append({"message": f"Step {step}", "type": "metrics", "data": data})
        common = {"object": "fine_tuning.job.event", "created_at": 1, "level": "info"}
        return [{"id": f"{job.id}-{n}", **common, **row} for n, row in enumerate(rows)]

    def describe_tuning(self, job: Tuning) -> dict[str, Any]:
        has_ended = job.looks_left <= 0 or job.cancelled
        status = "queued" if job.looks_left >= self.settings.looks else "running"
        if has_ended:
            status = "cancelled" if job.cancelled else job.ends_as
        fault = {"code": "invalid", "message": "line 3 is not right", "param": None}
        is_done = status == "succeeded"
        return {
            "id": job.id,
            "object": "fine_tuning.job",
            "created_at": job.created_at,
            "organization_id": "org",
            "model": job.model,
            "training_file": job.file,
            "validation_file": job.validation,
            "hyperparameters": job.method["supervised"]["hyperparameters"],
            "method": job.method,
            "metadata": job.marks,
            "seed": job.seed,
            "status": status,
            "error": fault if status == "failed" else None,
            "fine_tuned_model": f"ft:{job.model}:{job.suffix}:{job.id}" if is_done else None,
            "finished_at": 2 if has_ended else None,
            "trained_tokens": job.tokens if is_done else None,
            "result_files": [],
        }

    def begin(self, body: dict[str, Any]) -> dict[str, Any]:
        """A new batch; what it answers is billed at once, and read when it has ended."""
        rows = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert body["completion_window"] == "24h"
        assert len({row["custom_id"] for row in rows}) == len(rows)
        assert all(row["method"] == "POST" and row["url"] == body["endpoint"] for row in rows)
        number, asked = len(self.jobs) + 1, [row["body"]["messages"][-1]["content"] for row in rows]
        ends_as = self.settings.ends_as(number, asked)
        counts = {"total": len(rows), "completed": 0, "failed": 0}
        marks, looks = body.get("metadata") or {}, self.settings.looks
        job = Job(
            *(f"batch-{number}", marks, body["input_file_id"], len(rows), ends_as, counts),
            *([], [], looks, int(time.time())),
        )
        if ends_as not in ("failed", "full"):
            for row, message in zip(rows, asked, strict=True):
                self.work(job, row, self.settings.fate(message))
        random.Random(number).shuffle(job.output)
        self.files[f"{job.id}-out"] = b"".join(job.output)
        self.files[f"{job.id}-err"] = b"".join(job.errors)
        self.jobs.append(job)
        return self.describe(job)

    def work(self, job: Job, row: dict[str, Any], fate: Fate) -> None:
        kind = (row["body"].get("response_format") or {}).get("type", "text")
        response: dict[str, Any] | None = None
        error = None
        if fate in ("answer", "fail", "garble", "lose"):
            body = json.loads(self.reply(row["body"], kind, share=0.5))
            response = {"status_code": 200, "request_id": "r", "body": body}
        if fate == "garble":
            response = {"status_code": 200, "request_id": "r", "body": {"choices": []}}
        if fate in ("refuse", "fail"):
            status = 400 if fate == "refuse" else 500
            body = {"error": {"message": f"status {status}", "code": None}}
            response = {"status_code": status, "request_id": "r", "body": body}
        if fate == "expire":
            error = {"code": "batch_expired", "message": "not in time"}
        if fate != "lose":
            said = {"custom_id": row["custom_id"], "response": response, "error": error}
            good = fate in ("answer", "garble")
            job.counts["completed" if good else "failed"] += 1
            line = json.dumps({"id": "x", **said}, ensure_ascii=False).encode() + b"\n"
            (job.output if good else job.errors).append(line)

    def describe(self, job: Job) -> dict[str, Any]:
        has_ended = job.looks_left <= 0
        status = "in_progress" if job.looks_left < self.settings.looks else "validating"
        fault = {"code": None, "message": "the file is not right", "line": None, "param": None}
        if job.ends_as == "full":
            fault |= {"code": "token_limit_exceeded", "message": "too many tokens wait"}
        is_bad = has_ended and job.ends_as in ("failed", "full")
        ended = {
            "status": "failed" if is_bad else job.ends_as,
            "output_file_id": f"{job.id}-out" if job.output else None,
            "error_file_id": f"{job.id}-err" if job.errors else None,
            "errors": {"object": "list", "data": [fault]} if is_bad else None,
        }
        return {
            "id": job.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": job.input_file,
            "completion_window": "24h",
            "created_at": job.created_at,
            "metadata": job.marks,
            "request_counts": job.counts,
            "status": status,
            **(ended if has_ended else {}),
        }

    def reply(self, body: dict[str, Any], kind: str, share: float = 1.0) -> bytes:
        """A completion, and its line on the bill."""
        is_chat = "messages" in body
        turns = (
            [message["content"] for message in body["messages"]] if is_chat else [body["prompt"]]
        )
        text = self.settings.text(turns[-1])
        if self.settings.say is not None and not probe.is_asked(body):
            text = self.settings.say(body)
        elif kind in self.settings.heeds:
            text = json.dumps(_object(body["response_format"]) or {"answer": text})
        words = text.split(" ")
        while body.get("max_tokens") and self.settings.tokens(text) > body["max_tokens"]:
            words = words[: len(words) * 9 // 10]
            text = " ".join(words)
        asked = hashlib.sha256(json.dumps(turns).encode()).hexdigest()
        prompt_tokens = sum(self.settings.tokens(turn) + 4 for turn in turns) + 3
        item = Item(asked, text, prompt_tokens, self.settings.tokens(text), share)
        self.bill.append(item)
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        reply: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": self.settings.finish(text), **said}],
        }
        if self.settings.says_usage:
            tokens = (item.prompt_tokens, item.completion_tokens)
            reply["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        return json.dumps(reply).encode()


def _page(newest: list[dict[str, Any]], query: str) -> dict[str, Any]:
    """Short ones, so that some are turned over."""
    asked = dict(pair.split("=") for pair in query.split("&") if pair)
    after = asked.get("after")
    first = [row["id"] for row in newest].index(after) + 1 if after else 0
    more = first + 3 < len(newest)
    return {"object": "list", "data": newest[first : first + 3], "has_more": more}


def _object(response_format: dict[str, Any]) -> dict[str, Any]:
    """An object of the schema, as far as its required strings and lists go."""
    schema = response_format.get("value") or response_format.get("json_schema", {}).get("schema")
    if not schema:
        return {}
    empty: dict[str, Any] = {"array": []}
    return {
        name: empty.get(schema["properties"][name]["type"], "yes")
        for name in schema.get("required", [])
    }


def _head(status: int, length: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _serve(server: Server, ready: Callable[[], None], end: asyncio.Event) -> None:
    listening = await asyncio.start_server(server.converse, "127.0.0.1", 0, backlog=512)
    server.port = listening.sockets[0].getsockname()[1]
    ready()
    await end.wait()
    listening.close()
    conversations = asyncio.all_tasks() - {asyncio.current_task()}
    for conversation in conversations:
        conversation.cancel()
    await asyncio.gather(*conversations, return_exceptions=True)
    await asyncio.sleep(0)  # closed connections are let go in the next round


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """Serves in a thread; `settings` are those of `Settings`."""
    server = Server(Settings(**settings))
    ready = threading.Event()
    loop, end = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(_serve(server, ready.set, end))
    )
    thread.start()
    try:
        assert ready.wait(20)
        yield server
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--latency", type=float, default=0.0, help="seconds to each reply")
    # Its own processor time is not to count as the client's.
    tokens = functools.lru_cache(wire.count)
    server = Server(Settings(latency_s=reader.parse_args().latency, tokens=tokens))

    async def serve() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(end.set)), daemon=True
        ).start()
        await _serve(server, lambda: print(server.address, flush=True), end)
        print(len(server.bill), flush=True)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
