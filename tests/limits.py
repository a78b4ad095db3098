"""A limit on processor time that only work out of proportion reaches."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(cpu_s: float) -> Iterator[None]:
    """Fail after so many seconds: to be set where work that grows as the square takes minutes, and
    work in proportion a small part of it.
    """

    def over(*_: object) -> None:
        raise AssertionError(f"more than {cpu_s:g} s of processor time: it grows out of proportion")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
