"""Calls by the Batch API: noted first, sent as a file, waited for, and kept line by line."""

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import httpx2
import openai
from openai.types import Batch

from stages.core import progress
from stages.core.errors import PipelineError
from stages.llm import lines, orders, retries
from stages.llm.budget import Budget, SpentError, Terms
from stages.llm.connection import Server
from stages.llm.ledger import Entry, Ledger
from stages.llm.limits import StoppedError
from stages.llm.lines import Line, Outcome
from stages.llm.orders import Order, Orders
from stages.llm.retries import Retries

T = TypeVar("T")

MOST_BYTES = 200_000_000
"""Of an input file, as OpenAI allows; the most calls of one are a setting."""
MARK = "docent"
"""Key of a batch's metadata under which the name of its order stands."""
FOUND_FOR_S = 29 * 86_400
"""Age up to which a forgotten batch is taken up again: its files are kept for 30 days."""
AT_ONCE = 500
"""Replies that share a commit."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True)
class Settings:
    route: str
    most_calls: int
    poll_s: float


@dataclass
class _Harvest:
    """What a batch has brought so far."""

    requests: dict[str, str]
    most_usd: dict[str, float]
    """Reserved for each call; empty where an earlier run paid."""
    seen: set[str] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)
    num_kept: int = 0
    paid_usd: float = 0.0
    doubtful_usd: float = 0.0
    """Of what is paid, the part for calls without a reply."""


class Batches:
    """Fills the ledger with replies; one thread uses it."""

    def __init__(
        self,
        settings: Settings,
        server: Server,
        tries: Retries,
        terms: Terms,
        budget: Budget,
        calls: Ledger,
        noted: Orders,
        stop: threading.Event,
        place: str,
        arrived: Callable[[str, Entry, float], None],
        lost: Callable[[float], None],
    ) -> None:
        """`arrived` takes the key, the reply and the cost of a call that is first kept here; `lost`
        takes the most that calls may have cost whose reply never came."""
        self._settings, self._server, self._tries = settings, server, tries
        self._terms, self._budget, self._calls, self._orders = terms, budget, calls, noted
        self._stop, self._place, self._arrived, self._lost = stop, place, arrived, lost
        self._reserved: dict[int, dict[str, float]] = {}
        self.refused: dict[str, str] = {}
        """Of all calls that were wanted, why batches refused them."""

    def fetch(
        self, wanted: Mapping[str, dict[str, Any]], line: Callable[[str, dict[str, Any]], Line]
    ) -> None:
        """Have the replies to these requests, by key, in the ledger, as far as batches give them.

        It goes on with the batches that hold some of them, and orders the others, as many at once
        as the cap has room for; SpentError where it has none for the next. What a completed batch
        left out is for the caller to ask, and so is all of one that brought nothing in its time.
        """
        is_full = False
        while True:
            with self._orders.alone():
                missing = {key: row for key, row in wanted.items() if not self._calls.find(key)}
                held = self._orders.of(missing)
                self.refused |= {key: why for key, (_, why) in held.items() if why is not None}
                fresh = [key for key in missing if key not in held or _again(*held[key])]
                under_way = {o.number: o for o, _ in held.values() if o.status is None}
                unknown = [o for o in under_way.values() if o.batch_id is None]
                listed = self._listed() if unknown or (fresh and not is_full) else {}
                for order in unknown:
                    del under_way[order.number]
                    if order.name in listed:
                        under_way[order.number] = self._noted(order, listed[order.name])
                    else:
                        self._orders.drop(order.number)
                        fresh += [key for key, (of, _) in held.items() if of == order]
                if fresh and not (is_full and under_way):
                    rows = (line(key, missing[key]) for key in sorted(fresh))
                    most = 1 if is_full else None
                    for order in self._order(rows, listed, bool(under_way), most):
                        under_way[order.number] = order
            if not under_way:
                return
            is_full = self._wait(list(under_way.values()))

    # --- ordering ------------------------------------------------------------------------------

    def _order(
        self, rows: Iterator[Line], listed: Mapping[str, str], others: bool, most: int | None
    ) -> Iterator[Order]:
        """Batches of these lines, at most so many, as far as the cap goes."""
        pieces = lines.cut(rows, self._settings.most_calls, MOST_BYTES, self._budget.has_room)
        for place, piece in enumerate(itertools.islice(pieces, most)):
            keys = [line.key for line in piece]
            found = listed.get(orders.name(keys))
            total = sum(line.most_usd for line in piece)
            if found is None and not self._budget.has_room(total):
                if others or place:
                    return  # what is under way may turn out cheaper
                raise SpentError(total)
            order = self._orders.plan({line.key: line.request for line in piece})
            if found is None:
                self._budget.reserve(total)
                self._reserved[order.number] = {line.key: line.most_usd for line in piece}
                found = self._made(order, piece)
            progress.note(
                f"{self._place}: {len(piece)} calls are in batch {found}, which may take a day: "
                "a run that is ended goes on with it later"
            )
            yield self._noted(order, found)

    def _noted(self, order: Order, batch_id: str) -> Order:
        self._orders.made(order.number, batch_id)
        return Order(order.number, order.name, batch_id, None, 0)

    def _made(self, order: Order, piece: Sequence[Line]) -> str:
        """The id of a new batch."""
        client, route = self._server.client, self._settings.route
        with tempfile.TemporaryFile() as file:
            file.writelines(line.text for line in piece)

            def upload() -> str:
                file.seek(0)
                named = (f"{order.name}.jsonl", file)
                return client.files.create(
                    file=named, purpose="batch", timeout=self._tries.deadline_s
                ).id

            input_file = self._try(upload)
        tried = False

        def create() -> str:
            nonlocal tried
            # The answer to an earlier attempt may have got lost, and not the batch.
            if tried and (found := self._listed().get(order.name)):
                return found
            tried = True
            return client.batches.create(
                input_file_id=input_file,
                endpoint=cast(Any, route),
                completion_window="24h",
                metadata={MARK: order.name},
            ).id

        return self._try(create)

    def _listed(self) -> dict[str, str]:
        """The endpoint's batches of ours whose results are not kept yet: ids by name."""

        def ask() -> list[Batch]:
            return list(self._server.client.batches.list(limit=100))

        oldest, ended = time.time() - FOUND_FOR_S, self._orders.ended()
        return {
            batch.metadata[MARK]: batch.id
            for batch in self._try(ask)
            if batch.metadata
            and MARK in batch.metadata
            and batch.id not in ended
            and batch.status != "failed"
            and batch.created_at > oldest
        }

    # --- waiting -------------------------------------------------------------------------------

    def _wait(self, under_way: Sequence[Order]) -> bool:
        """Until one of them has ended, and is kept.

        Whether none of those could be begun because too much waits at the endpoint.
        """
        while True:
            found = [(order, self._look(order)) for order in under_way]
            counts = [batch.request_counts for _, batch in found if batch.request_counts]
            done = sum(count.completed + count.failed for count in counts)
            progress.step(done, sum(count.total for count in counts), "calls in batches")
            if ended := [(order, batch) for order, batch in found if batch.status in ENDED]:
                is_full = [self._keep(*each, alone=len(found) == 1) for each in ended]
                return all(is_full)
            if self._stop.wait(self._settings.poll_s):
                raise StoppedError

    def _look(self, order: Order) -> Batch:
        assert order.batch_id is not None
        id = order.batch_id
        return self._try(lambda: self._server.client.batches.retrieve(id))

    def _keep(self, order: Order, batch: Batch, alone: bool) -> bool:
        """Take over what a batch has brought; whether it found no room at the endpoint."""
        most_usd = self._reserved.pop(order.number, {})
        harvest = _Harvest(self._orders.requests(order.number), most_usd)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                self._try(lambda: self._download(file_id, harvest))  # noqa: B023
        if batch.status != "failed":
            for key in harvest.requests.keys() - harvest.seen:
                self._account(harvest, Outcome(key, may_be_billed=True))
        if most_usd:
            self._budget.settle(sum(most_usd.values()), harvest.paid_usd)
            self._lost(harvest.doubtful_usd)
        self._orders.end(order.number, batch.status, harvest.num_kept, harvest.refusals)
        num_left = len(harvest.requests) - harvest.num_kept
        faults = batch.errors.data or [] if batch.errors else []
        why = "; ".join(" ".join((fault.message or "").split())[:200] for fault in faults[:3])
        said = f"{self._place}: batch {batch.id}: {': '.join(filter(None, [batch.status, why]))}"
        if batch.status == "failed" and not harvest.num_kept:
            is_full = any(fault.code == "token_limit_exceeded" for fault in faults)
            if not is_full or alone:
                raise PipelineError(
                    f"{said}; mend what it names, or lower batch_requests where too much waits "
                    "there, and run again; kind=openai asks one by one"
                )
            return True
        if num_left:
            progress.note(f"{said}: {num_left} of {len(harvest.requests)} calls are left to ask")
        return False

    def _download(self, file_id: str, harvest: _Harvest) -> None:
        """Keep the results of a file while it comes."""
        files = self._server.client.files.with_streaming_response
        try:
            with files.content(file_id, timeout=self._tries.deadline_s) as response:
                rows = lines.split(response.iter_bytes())
                while some := list(itertools.islice(rows, AT_ONCE)):
                    self._take(some, harvest)
        except httpx2.TransportError as error:
            raise openai.APIConnectionError(request=error.request) from error

    def _take(self, rows: Sequence[bytes], harvest: _Harvest) -> None:
        found = [lines.read(row, harvest.requests) for row in rows]
        # By key: a second result of a call, or of one that was read before, does not count.
        new = {of.key: of for of in reversed(found) if of and of.key not in harvest.seen}
        replies = [(key, of.said.entry) for key, of in new.items() if of.said]
        costs = {key: self._cost(entry) for key, entry in replies}
        firsts = self._calls.store_all(
            [(key, harvest.requests[key], entry, costs[key]) for key, entry in replies]
        )
        for (key, entry), is_first in zip(replies, firsts, strict=True):
            if is_first:
                self._arrived(key, entry, costs[key])
        for of in new.values():
            self._account(harvest, of)
            harvest.seen.add(of.key)
            harvest.num_kept += of.said is not None or of.refusal is not None
            if of.refusal is not None:
                harvest.refusals[of.key] = of.refusal

    def _account(self, harvest: _Harvest, of: Outcome) -> None:
        most_usd = harvest.most_usd.get(of.key, 0.0)
        if of.said is not None:
            counts = of.said.is_billed or not most_usd
            harvest.paid_usd += self._cost(of.said.entry) if counts else most_usd
        elif of.may_be_billed:
            harvest.paid_usd += most_usd
            harvest.doubtful_usd += most_usd

    def _cost(self, entry: Entry) -> float:
        cost = self._terms.prices.cost(entry.prompt_tokens, entry.completion_tokens)
        return self._terms.share * cost

    # --- one request ---------------------------------------------------------------------------

    def _try(self, work: Callable[[], T]) -> T:
        """The result of the work, tried again where that may help."""
        try:
            return retries.until_done(work, self._tries, self._stop.wait)
        except openai.APIError as error:
            status = getattr(error, "status_code", type(error).__name__)
            said = " ".join(error.message.split())[:200]
            raise PipelineError(
                f"{self._place}: {status}: {said}: no batch can be made or read; look at the "
                "address and the key, and run again: what was ordered is noted, and not paid for "
                "again; kind=openai asks one by one"
            ) from None


def _again(order: Order, refusal: str | None) -> bool:
    """Whether a call that a batch left out goes into another one.

    Not where that brought nothing in its time; one that failed was not begun.
    """
    cut_off = order.status in ("expired", "cancelled") and order.num_kept > 0
    return refusal is None and (cut_off or order.status == "failed")
