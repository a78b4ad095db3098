"""A command that is followed until it ends, and that ends, with all it has started, when we do."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from stages.core import store

Tick = Callable[[], None]
EVERY_S = 0.2


def watch(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    tick: Tick,
) -> int:
    """Run a command, call `tick` five times a second and once after its end; its exit code.

    Whatever ends us ends it, and all that it has started.
    """
    with log.open("wb") as output:
        process = psutil.Popen(
            list(arguments),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches us alone: Axolotl would save half a model and call it a success.
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
    try:
        while process.poll() is None:
            tick()
            time.sleep(EVERY_S)
        tick()
        return int(process.returncode)
    finally:
        end(process)


def die_with_parent() -> None:
    """In the child, between fork and exec: SIGTERM when the thread that started it is gone."""
    LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


LIBC = ctypes.CDLL(None)


def end(process: psutil.Process) -> None:
    """End a process and its descendants; nothing if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        store.end_processes([*process.children(recursive=True), process])


@contextlib.contextmanager
def guarded(command: Sequence[str], log: Path) -> Iterator[None]:
    """Run a command when the block ends, and also when we are killed in it.

    For what no signal reaches: a container, or the job of a cluster. A small shell waits on a pipe
    that closes with us, however we end; it is in a session of its own, out of Ctrl-C's way.
    """
    with log.open("ab") as output:
        guard = subprocess.Popen(
            ["sh", "-c", 'read _ || true; exec "$@"', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Not of the stage's own: those are ended as orphans, before they could do their work.
            env={k: v for k, v in os.environ.items() if k != store.LOCK_VARIABLE},
        )
    assert guard.stdin is not None
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait()
