"""What calls cost: by the prices, ahead of a run, and under a cap."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.records import Message
from stages.llm import probe, wire
from stages.llm.ledger import Entry, Ledger, canonical, key
from stages.llm.limits import StoppedError

SAMPLE = 2000
"""Earlier replies of a model that a forecast looks at."""


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


# --- the cap -----------------------------------------------------------------------------------


class SpentError(Exception):
    """The next attempt could pass the cap, and none is under way that may turn out cheaper."""

    def __init__(self, most_usd: float) -> None:
        super().__init__(most_usd)
        self.most_usd = most_usd


class Budget:
    """Keeps what is paid within a cap; threads share it.

    Each attempt reserves the most that it can cost, so that paid + reserved <= cap holds at every
    moment, and settles for what it did cost.
    """

    def __init__(self, cap_usd: float | None) -> None:
        self._cap = float("inf") if cap_usd is None else cap_usd
        self._changed = threading.Condition()
        self._reserved: list[float] = []
        self._paid = 0.0
        self._stopped = False

    @property
    def paid_usd(self) -> float:
        """What was paid, where it is not known at most."""
        return self._paid

    def has_room(self, most_usd: float) -> bool:
        """Whether so much may be paid now."""
        return self._paid + sum(self._reserved) + most_usd <= self._cap

    def reserve(self, most_usd: float) -> None:
        """Wait until so much may be paid.

        SpentError where it may not, though nothing is reserved; StoppedError after `stop`.
        """
        with self._changed:
            while not self.has_room(most_usd):
                if self._stopped:
                    raise StoppedError
                if not self._reserved:
                    raise SpentError(most_usd)
                self._changed.wait()
            self._reserved.append(most_usd)

    def settle(self, most_usd: float, paid_usd: float) -> None:
        """Give back what was reserved, less what was paid."""
        with self._changed:
            self._reserved.remove(most_usd)
            self._paid += paid_usd
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


# --- the forecast ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """What asking all requests would take."""

    calls: int
    """That would be made, a probe of the endpoint among them."""
    cached: int
    """Requests whose reply the ledger holds, or that repeat an earlier one."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    """Of the calls; each attempt that brings no reply may add to it."""
    worst_usd: float | None
    """The same with every reply as long as it may be, and no batch; None where nothing bounds a
    reply."""


@dataclass(frozen=True)
class Habits:
    """How long a model's replies were, and how many tokens it makes of a prompt."""

    guess: int
    """Tokens of a reply, where none is known."""
    lengths: dict[str, float]
    """By schema the mean tokens of a reply; under "" of all."""
    ratio: float
    """Prompt tokens as billed by those that cl100k counts."""

    def length(self, schema: dict[str, Any] | None) -> float:
        return self.lengths.get(canonical({"": schema}), self.lengths.get("", self.guess))


def habits(earlier: Sequence[tuple[dict[str, Any], Entry]], guess: int) -> Habits:
    """Of earlier requests and their replies."""
    lengths = defaultdict(list)
    billed = counted = 0
    for request, entry in earlier:
        lengths[""].append(entry.completion_tokens)
        lengths[canonical({"": request["schema"]})].append(entry.completion_tokens)
        billed += entry.prompt_tokens
        counted += wire.prompt_tokens(request)
    means = {schema: sum(tokens) / len(tokens) for schema, tokens in lengths.items()}
    return Habits(guess, means, billed / counted if billed else 1.0)


@dataclass(frozen=True)
class Terms:
    """What a model takes for a call, and how long its replies can be."""

    prices: Prices
    guess: int
    """Tokens of a reply, where none is known."""
    longest: int | None
    """Most tokens of a reply."""
    needs_probe: bool
    share: float = 1.0
    """Of the prices, what a call costs that was foreseen and goes into a batch."""


def forecast(
    requests: Iterable[tuple[Sequence[Message], dict[str, Any] | None]],
    target: wire.Target,
    calls: Ledger,
    terms: Terms,
) -> Forecast:
    """What is not in the ledger, with replies as long as earlier ones of this model were."""
    found = habits(calls.newest(target.origin["endpoint"], target.model, SAMPLE), terms.guess)
    needs_probe = terms.needs_probe and calls.probed(probe.key(target)) is None
    seen: set[str] = set()
    num_probes = num_cached = prompt = most = 0
    completion = 0.0

    def add(request: dict[str, Any], length: float) -> None:
        nonlocal prompt, completion, most
        prompt += wire.prompt_tokens(request)
        completion += length
        most += wire.most_prompt_tokens(wire.body(target, request, target.form))

    for messages, schema in requests:
        request = wire.request(target, messages, schema)
        id = key(request)
        if id in seen or calls.find(id):
            num_cached += 1
            continue
        seen.add(id)
        add(request, found.length(schema))
        if schema is not None and needs_probe and not num_probes:
            num_probes = 1
            add(probe.request(target), probe.REPLY_TOKENS)
    prompt_tokens, completion_tokens = round(prompt * found.ratio), round(completion)
    num_calls, prices = len(seen) + num_probes, terms.prices
    worst = None if terms.longest is None else prices.cost(most, terms.longest * num_calls)
    return Forecast(
        calls=num_calls,
        cached=num_cached,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=round(terms.share * prices.cost(prompt_tokens, completion_tokens), 9),
        worst_usd=None if worst is None else round(worst, 9),
    )
