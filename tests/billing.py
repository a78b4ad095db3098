"""A server on loopback that speaks OpenAI's protocol and bills: its bill is the truth.

`python tests/billing.py --latency 0.5` serves in a process of its own until its input ends.
"""

import argparse
import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from stages.llm import wire

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

    @property
    def usd(self) -> float:
        spent = self.prompt_tokens * PROMPT_USD + self.completion_tokens * COMPLETION_USD
        return spent / 1e6


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

    def __post_init__(self) -> None:
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
                path = head[0].split()[1]
                pairs = (line.split(": ", 1) for line in head[1:] if line)
                headers = {name.lower(): value for name, value in pairs}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.heads.append((path, headers))
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

    def reply(self, body: dict[str, Any], kind: str) -> bytes:
        """A completion, and its line on the bill."""
        is_chat = "messages" in body
        turns = (
            [message["content"] for message in body["messages"]] if is_chat else [body["prompt"]]
        )
        text = self.settings.text(turns[-1])
        if kind in self.settings.heeds:
            text = json.dumps(_object(body["response_format"]) or {"answer": text})
        words = text.split(" ")
        while body.get("max_tokens") and self.settings.tokens(text) > body["max_tokens"]:
            words = words[: len(words) * 9 // 10]
            text = " ".join(words)
        asked = hashlib.sha256(json.dumps(turns).encode()).hexdigest()
        prompt_tokens = sum(self.settings.tokens(turn) + 4 for turn in turns) + 3
        item = Item(asked, text, prompt_tokens, self.settings.tokens(text))
        self.bill.append(item)
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        reply: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", **said}],
        }
        if self.settings.says_usage:
            tokens = (item.prompt_tokens, item.completion_tokens)
            reply["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        return json.dumps(reply).encode()


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
