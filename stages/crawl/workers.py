"""Parsing in processes of its own: a hostile page costs one counted reject, and the rest go on.

What is sent is an address and its body, what comes back is JSON: nothing that a page can shape is
ever unpickled. A worker answers page by page, so that the page which ended it is known.
"""

import atexit
import collections
import contextlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from stages.crawl import source as sources
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Body
from stages.crawl.source import Single

COMMAND = [sys.executable, "-m", "stages.crawl.workers"]
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""Makes glibc hand a large page's memory back, which it would keep for the next one."""
BATCH_PAGES = 16
BATCH_BYTES = 2**20
START_TIMEOUT_S = 120
MAX_ANSWER_BYTES = 256 * 2**20
WALL_FACTOR = 20
"""A page may take this many times its processor time before its worker counts as stuck."""

Task = tuple[str, Body]
"""An address, and what stands there."""

Outcome = tuple[str, list[Page] | UnreadableError]
"""An address, and its pages or why there are none."""

_PAGES = TypeAdapter(list[Page])
_SOURCE: TypeAdapter[Single] = TypeAdapter(Single)
_FRAME = struct.Struct(">I")


@dataclass(frozen=True)
class Limits:
    """What one page may take."""

    cpu_s: float
    memory_mb: int
    """Beyond what the worker holds before it begins."""


# --- the pool ----------------------------------------------------------------------------------


def parse(
    source: Single, tasks: Iterable[Task], limits: Limits, num_workers: int | None = None
) -> Generator[Outcome, None, None]:
    """What each task gives, in their order; a few are read ahead and no more."""
    number = num_workers or len(os.sched_getaffinity(0))
    order = {"source": source.model_dump(mode="json"), **limits.__dict__}
    threads = ThreadPoolExecutor(number)
    waiting: collections.deque[Future[list[Outcome]]] = collections.deque()
    busy: set[_Worker] = set()
    try:
        for batch in _batches(tasks):
            waiting.append(threads.submit(_work, order, batch, busy))
            if len(waiting) > 2 * number:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(busy):  # only where the caller has had enough
            worker.end()
        threads.shutdown()


_idle: list["_Worker"] = []
"""They stay for the next source, until this process ends: starting one takes a third of a second.
"""


def _work(order: dict[str, Any], batch: list[Task], busy: set["_Worker"]) -> list[Outcome]:
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    busy.add(worker)
    done = list(worker.parse(order, batch))
    busy.discard(worker)
    _idle.append(worker)
    return done


@atexit.register
def _end_idle() -> None:
    while _idle:
        worker = _idle.pop()
        worker.end()
        worker.close()


def _batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    batch: list[Task] = []
    size = 0
    for address, body in tasks:
        if batch and (len(batch) == BATCH_PAGES or size + len(body.data) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((address, body))
        size += len(body.data)
    if batch:
        yield batch


class _Worker:
    """One process, started when it is first needed and again after each end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._ended = False

    def parse(self, order: dict[str, Any], batch: list[Task]) -> Iterator[Outcome]:
        left = collections.deque(batch)
        while left:
            self._send(order, left)
            while left:
                try:
                    answer = self._receive(time.monotonic() + WALL_FACTOR * order["cpu_s"])
                except (EOFError, TimeoutError) as error:
                    failure = self._bury(isinstance(error, TimeoutError))
                    yield left.popleft()[0], failure
                    break  # what is left goes to a new process
                yield left.popleft()[0], _outcome(answer)

    def end(self) -> None:
        self._ended = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> int:
        """The status of a process that has ended, or is about to; 0 where there is none."""
        process, errors = self._process, self._errors
        if process is None or errors is None:
            return 0
        self._process = self._errors = None
        for file in (process.stdin, process.stdout, errors):
            assert file is not None
            file.close()
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._ended:
            raise RuntimeError("the workers were ended")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        root = Path(__file__).resolve().parents[2]  # where `stages` is found
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, **GIVES_BACK},
        )
        try:
            self._receive(time.monotonic() + START_TIMEOUT_S)
        except (EOFError, TimeoutError) as error:
            failure = self._bury(isinstance(error, TimeoutError))
            raise RuntimeError(f"a worker does not start: {failure.detail}") from None
        return self._process

    def _send(self, order: dict[str, Any], tasks: Sequence[Task]) -> None:
        process = self._process or self._start()
        # The worker reads all of it before it answers, so that neither waits for the other.
        parts: list[Any] = [{**order, "num_tasks": len(tasks)}]
        for address, body in tasks:
            parts += [[address, body.media_type], body.data]
        with contextlib.suppress(BrokenPipeError):  # then it has no answer either
            _write(process.stdin, parts)

    def _receive(self, until: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        size = _FRAME.unpack(_read_exactly(pipe, _FRAME.size, until))[0]
        if size > MAX_ANSWER_BYTES:
            self._process.kill()
            raise EOFError
        return _read_exactly(pipe, size, until)

    def _bury(self, stuck: bool) -> UnreadableError:
        """Why the process ended, once it has."""
        assert self._process is not None and self._errors is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if stuck else 10)
        self._process.kill()  # no more than a word where it has ended
        self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        said = self._errors.read().decode("utf-8", "replace").strip()
        status = self.close()
        if stuck or status == -signal.SIGPROF:
            return UnreadableError("parse_timeout", "")
        if status == -signal.SIGKILL or any(word in said for word in _OUT_OF_MEMORY):
            return UnreadableError("parse_memory", "")
        last = said.rpartition("\n")[2][:200]
        how = signal.Signals(-status).name if status < 0 else last
        return UnreadableError("parse_crashed", how)


_OUT_OF_MEMORY = ("MemoryError", "memory allocation of", "bad_alloc", "Cannot allocate memory")


def _read_exactly(pipe: int, size: int, until: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        chunk = os.read(pipe, size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _write(file: IO[bytes] | None, parts: Iterable[Any]) -> None:
    """Each part as a frame: bytes as they are, the rest as JSON."""
    assert file is not None
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part).encode()
        for piece in (_FRAME.pack(len(data)), memoryview(data)):
            rest = memoryview(piece)
            while rest:  # a raw pipe takes what it has room for
                rest = rest[file.write(rest) or 0 :]


def _outcome(answer: bytes) -> list[Page] | UnreadableError:
    if answer.startswith(b"["):
        return _PAGES.validate_json(answer)
    row = json.loads(answer)
    return UnreadableError(row["reason"], row["detail"])


# --- in the worker -----------------------------------------------------------------------------


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_stay_inside)
    with os.fdopen(answers, "wb", buffering=0) as out:
        _write(out, [b""])  # ready
        while (head := _next()) is not None:
            order = json.loads(head)
            source = _SOURCE.validate_json(json.dumps(order["source"]))
            tasks = [(json.loads(_must()), _must()) for _ in range(order["num_tasks"])]
            for (address, media_type), data in tasks:
                body = Body(media_type, data)
                _limit(order["cpu_s"], order["memory_mb"])
                try:
                    answer = _PAGES.dump_json(sources.parse(source, address, body))
                except UnreadableError as error:
                    row = {"reason": error.reason, "detail": error.detail}
                    answer = json.dumps(row).encode()
                signal.setitimer(signal.ITIMER_PROF, 0)
                _write(out, [answer])


def _limit(cpu_s: float, memory_mb: int) -> None:
    """Let the kernel end this process where a page takes more: no C library can put that off."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:  # not Linux, where nothing holds this limit
        return
    most = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _stay_inside(event: str, _: tuple[Any, ...]) -> None:
    """Parsing needs no network: a library that asks for it has been talked into it by a page."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise PermissionError(f"{event} while parsing")


def _next() -> bytes | None:
    """The next frame; None where the other side is gone."""
    head = sys.stdin.buffer.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    return sys.stdin.buffer.read(_FRAME.unpack(head)[0])


def _must() -> bytes:
    frame = _next()
    if frame is None:
        raise EOFError
    return frame


if __name__ == "__main__":
    main()
