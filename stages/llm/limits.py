"""When a call may start: so many at once and a minute, and fewer after the endpoint says 429."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_GAP_S = 60.0


class StoppedError(Exception):
    """Another call ended the run."""


class LateError(Exception):
    """The deadline comes before the call may start."""


@dataclass(frozen=True)
class Ticket:
    """Leave to make one attempt."""

    round: int
    """Number of cuts before it: what started before a cut says nothing against what it left."""
    tokens: int


class Gate:
    """Lets attempts start; threads share it.

    The calls at once follow additive increase and multiplicative decrease (Chiu and Jain 1989): an
    overload halves them, and a reply adds one in as many replies as there are calls. Where more
    than half of what was under way is turned away, they begin at one again and grow by one a reply
    up to that half, as TCP does after a timeout (RFC 5681). Where one call alone is too much, the
    time between two starts doubles, and each reply takes a tenth off it. Requests and tokens a
    minute are spread evenly. Who was turned away most often goes first, so that no call runs out
    of attempts.
    """

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        first_gap_s: float = 1.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._most = float(concurrency)
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._changed = threading.Condition()
        self._allowed = self._threshold = self._most
        self._first_gap_s, self._gap_s = first_gap_s, 0.0
        self._in_flight = self._round = self._lost = self._arrived = 0
        self._cut_from = self._most
        self._held_until = self._next_request = self._next_tokens = 0.0
        self._waiting: list[tuple[int, int]] = []
        self._stopped = False

    @property
    def allowed(self) -> int:
        """Calls that may be under way at once now."""
        return int(self._allowed)

    def enter(self, tokens: int, attempt: int, ends: float | None) -> Ticket:
        """Wait for leave to start an attempt of about so many tokens.

        StoppedError after `stop`; LateError where leave does not come by `ends`.
        """
        with self._changed:
            self._arrived += 1
            me = (-attempt, self._arrived)
            self._waiting.append(me)
            try:
                while True:
                    if self._stopped:
                        raise StoppedError
                    wait = self._wait(me)
                    if wait == 0:
                        break
                    left = None if ends is None else ends - self._now()
                    if left is not None and (left <= 0 or (wait is not None and wait > left)):
                        raise LateError
                    waits = [some for some in (wait, left) if some is not None]
                    self._changed.wait(min(waits) if waits else None)
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()
            self._in_flight += 1
            now = self._now()
            self._next_request = max(now, self._next_request) + max(self._request_s, self._gap_s)
            self._next_tokens = max(now, self._next_tokens) + tokens * self._token_s
            return Ticket(self._round, tokens)

    def _wait(self, me: tuple[int, int]) -> float | None:
        """Seconds until it may start, 0 for now, None for until something changes."""
        if self._in_flight >= self.allowed or me != min(self._waiting):
            return None
        return max(0.0, max(self._held_until, self._next_request, self._next_tokens) - self._now())

    def leave(self, ticket: Ticket) -> None:
        """The attempt is over, whatever came of it."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def replied(self, ticket: Ticket, tokens: int) -> None:
        """It brought a reply, of so many tokens with its prompt."""
        with self._changed:
            self._gap_s = self._gap_s * 0.9 if self._gap_s > 0.001 else 0.0
            self._next_tokens += (tokens - ticket.tokens) * self._token_s
            step = 1.0 if self._allowed < self._threshold else 1 / self._allowed
            self._allowed = min(self._most, self._allowed + step)
            self._changed.notify_all()

    def turned_away(self, ticket: Ticket) -> None:
        """It met an overload."""
        with self._changed:
            if ticket.round == self._round:  # the first one of those that went together
                if self._allowed == 1:
                    self._gap_s = min(max(2 * self._gap_s, self._first_gap_s), LONGEST_GAP_S)
                    self._next_request = max(self._next_request, self._now() + self._gap_s)
                self._round += 1
                self._lost = 0
                self._cut_from = max(1.0, min(self._allowed, float(self._in_flight)))
                self._threshold = self._allowed = max(1.0, self._cut_from / 2)
            self._lost += 1
            if self._lost > self._cut_from / 2:
                self._allowed = 1.0

    def hold(self, seconds: float) -> None:
        """Let nothing start for so long."""
        with self._changed:
            self._held_until = max(self._held_until, self._now() + seconds)

    def stop(self) -> None:
        """Let nothing start any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
