"""A forward proxy on loopback for what connects by itself (git, fsspec, Chromium): it resolves a
host, checks the addresses and connects to the one that it checked.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from stages.crawl.guard.addresses import Allowed, ForbiddenError, resolve

MAX_HEAD_BYTES = 64 * 2**10
CONNECT_TIMEOUT_S = 20.0
IDLE_TIMEOUT_S = 120.0
_CHUNK = 64 * 2**10
# They are the connection's own: what goes on to the server is `Connection: close`.
_OWN = {b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"upgrade"}


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its address, and which hosts it has refused, with why."""

    url: str
    refused: dict[str, ForbiddenError] = field(default_factory=dict)


@contextlib.contextmanager
def proxy(allowed: Allowed, max_bytes: int | None = None) -> Iterator[Proxy]:
    """Run the proxy in a thread; `max_bytes` is the most that one connection may bring."""
    loop = asyncio.new_event_loop()
    started: list[Proxy] = []
    ready = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        refused: dict[str, ForbiddenError] = {}
        gate = _Gate(allowed, max_bytes, refused)
        try:
            server = await asyncio.start_server(gate.answer, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
            port = server.sockets[0].getsockname()[1]
            started.append(Proxy(f"http://127.0.0.1:{port}", refused))
        finally:
            ready.set()
        async with server:
            await stop.wait()
            server.close()
            await gate.close()

    thread = threading.Thread(target=_run, args=(loop, serve()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        loop.run_until_complete(work)
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


class _Gate:
    """Answers one client's request: a tunnel (CONNECT), or one exchange in plain HTTP."""

    def __init__(
        self, allowed: Allowed, max_bytes: int | None, refused: dict[str, ForbiddenError]
    ) -> None:
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._refused = refused
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:  # it was accepted, and not yet heard, when the proxy ended
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # one that was cancelled closes nothing

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            method, host, port, onward = _target(head)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                far_reader, far_writer = await self._connect(host, port)
        except ForbiddenError as error:
            await _say(writer, "403 Forbidden", error.detail)
        except ValueError as error:
            await _say(writer, "400 Bad Request", str(error))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.close()
        except OSError as error:  # a timeout too
            await _say(writer, "502 Bad Gateway", str(error) or "no answer in time")
        else:
            if method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                far_writer.write(onward)
            # A second request on a plain connection could name another host: the server is told
            # to close after the first, and what the client sends then goes nowhere else.
            await self._pump(reader, writer, far_reader, far_writer)

    async def _connect(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        try:
            addresses = await loop.run_in_executor(None, resolve, host, port, self._allowed)
        except ForbiddenError as error:
            self._refused[host] = error
            raise
        failure = OSError(f"no such host: {host}")
        for address in addresses:
            try:
                return await asyncio.open_connection(str(address), port)
            except OSError as error:
                failure = error
        raise failure

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        up = asyncio.ensure_future(_copy(reader, far_writer, None))
        down = asyncio.ensure_future(_copy(far_reader, writer, self._max_bytes))
        try:
            await down  # the server has said all; what the client has left to say is for nobody
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            for end in (writer, far_writer):
                end.close()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_bytes: int | None
) -> None:
    copied = 0
    with contextlib.suppress(OSError):  # an end that is gone has nothing to be told
        while max_bytes is None or copied < max_bytes:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                chunk = await reader.read(_CHUNK)
                if not chunk:
                    break
                copied += len(chunk)
                writer.write(chunk)
                await writer.drain()


async def _say(writer: asyncio.StreamWriter, status: str, why: str) -> None:
    body = f"{why}\n".encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        writer.write(head.encode() + body)
        await writer.drain()
    writer.close()


def _target(head: bytes) -> tuple[bytes, str, int, bytes]:
    """Method, host and port of a request, and its head as the server is to see it."""
    line, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    try:
        method, target, version = line.split(b" ")
        if method == b"CONNECT":
            parts = urlsplit(b"//" + target)
        else:
            parts = urlsplit(target)
            if parts.scheme != b"http":
                raise ValueError("expected http:// or CONNECT")
        port = parts.port or (443 if method == b"CONNECT" else 80)
        host = (parts.hostname or b"").decode("ascii")
    except ValueError as error:
        raise ValueError(f"not a request to a proxy: {error}") from error
    if not host:
        raise ValueError("not a request to a proxy: no host")
    path = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
    kept = [row for row in fields if row.partition(b":")[0].strip().lower() not in {*_OWN, b"host"}]
    netloc = parts.netloc.rpartition(b"@")[2]
    onward = b"\r\n".join(
        [b" ".join((method, path, version)), b"Host: " + netloc, *kept, b"Connection: close"]
    )
    return method, host, port, onward + b"\r\n\r\n"
