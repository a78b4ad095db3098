"""A model that answers: each request is asked once, paid for within the cap, and kept."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
import tenacity

from stages.core import progress
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.llm import batches as batching
from stages.llm import ledger, lines, probe, retries, wire
from stages.llm.budget import Budget, SpentError, Terms
from stages.llm.connection import Server
from stages.llm.limits import Gate, LateError, StoppedError
from stages.llm.orders import Orders
from stages.llm.retries import Retries
from stages.llm.settings import Form
from stages.llm.wire import NotAReplyError, Target

T = TypeVar("T")
R = TypeVar("R")
Keep = Callable[[ledger.Entry, float], ledger.Entry]
"""Puts a reply, which took so many seconds, where it is not lost; what then counts."""


class RefusedError(Exception):
    """The endpoint will never answer this request (400, 422, …): the row's fault, not the run's."""


@dataclass(frozen=True)
class Reply:
    """What the model said; `call_id` is the head of the call's ledger key."""

    call_id: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool
    """Whether it came from the ledger, so that nothing was paid."""
    finish_reason: str = "stop"
    """`length` where the model was cut off."""
    cost_usd: float = 0.0
    """By the configured prices of a call on its own, paid now or when it was first asked."""


@dataclass
class Usage:
    """What this process asked for; it differs between equal runs, so it is no metric."""

    calls: int = 0
    """Replies that were asked for and came."""
    cached: int = 0
    probes: int = 0
    """Calls that asked only how the endpoint answers; their tokens count too."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    doubtful_usd: float = 0.0
    """The most that was billed, beside, for attempts whose reply never came; 0 where nothing
    bounds a reply."""
    seconds: float = 0.0
    """Sum of the calls' own durations, without the waits between attempts."""


@dataclass(frozen=True)
class Settings:
    server: Server
    target: Target
    terms: Terms
    retries: Retries
    address: str
    section: str
    concurrency: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_cost_usd: float | None = None
    batches: batching.Settings | None = None


@dataclass
class _Call:
    """A request on its way."""

    request: dict[str, Any]
    body: dict[str, Any]
    most_usd: float
    """Of one attempt."""
    tokens: int
    """Of the prompt and a reply as long as others."""
    paid_usd: float = 0.0
    """For the latest attempt."""
    attempts: int = 0
    ends: float | None = None
    """By the monotonic clock; the deadline begins with the first attempt."""


class Teacher:
    """A model that answers; threads may share it."""

    def __init__(self, settings: Settings, calls: ledger.Ledger, orders: Orders) -> None:
        self._settings = settings
        self._ledger = calls
        self._gate = Gate(
            settings.concurrency,
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.retries.backoff_s,
        )
        self._budget = Budget(settings.max_cost_usd)
        self._form: Form | None = None if settings.terms.needs_probe else settings.target.form
        self._probing = threading.Lock()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._in_flight: dict[str, threading.Lock] = {}
        self.usage = Usage()
        self._fetched: set[str] = set()
        self._batches: batching.Batches | None = None
        if settings.batches is not None:
            self._batches = batching.Batches(
                settings.batches,
                settings.server,
                settings.retries,
                settings.terms,
                self._budget,
                calls,
                orders,
                self._stop,
                f"{settings.section} at {settings.address}",
                self._fetch,
                self._lose,
            )

    def prefetch(self, requests: Iterable[tuple[Sequence[Message], dict[str, Any] | None]]) -> None:
        """Ask for all these in batches, where the settings say so, and wait for their replies.

        `complete` then finds them in the ledger, raises the refusals, and asks for what a batch
        left out; without batches it asks for all. PipelineError as there.
        """
        if self._batches is None:
            return
        wanted = {}
        for messages, schema in requests:
            request = wire.request(self._settings.target, messages, schema)
            wanted[ledger.key(request)] = request
        try:
            self._batches.fetch(wanted, self._line)
        except SpentError as error:
            raise self._spent(error) from None

    def _line(self, key: str, request: dict[str, Any]) -> lines.Line:
        settings = self._settings
        assert settings.batches is not None
        form = settings.target.form if request["schema"] is None else self._heeded_form()
        body = wire.body(settings.target, request, form)
        text, most_usd = ledger.canonical(request), settings.terms.share * self._most_usd(body)
        return lines.write(key, text, settings.batches.route, body, most_usd)

    def _fetch(self, key: str, entry: ledger.Entry, cost_usd: float) -> None:
        self._fetched.add(key)
        self._count(entry, cost_usd, 0.0, calls=1)

    def complete(self, messages: Sequence[Message], schema: dict[str, Any] | None) -> Reply:
        """The reply to the messages, as JSON of the schema where one is given.

        RefusedError where the endpoint rejects this request; PipelineError where it rejects every
        one or stays away for all attempts, and where the next call could pass `max_cost_usd`.
        """
        request = wire.request(self._settings.target, messages, schema)
        key = ledger.key(request)
        with self._lock:
            same = self._in_flight.setdefault(key, threading.Lock())
        with same:  # a second thread with the same request waits for the first one's reply
            entry = self._ledger.find(key)
            cached = entry is not None and key not in self._fetched
            if entry is None:
                if self._batches and key in self._batches.refused:
                    raise RefusedError(self._batches.refused[key])
                form = self._settings.target.form if schema is None else self._heeded_form()
                text = ledger.canonical(request)

                def keep(entry: ledger.Entry, seconds: float) -> ledger.Entry:
                    kept = self._ledger.store(key, text, entry, self._cost(entry), seconds)
                    self._count(entry, self._cost(entry), seconds, calls=1)
                    return kept

                entry = self._ask(request, form, keep)
            elif cached:
                with self._lock:
                    self.usage.cached += 1
        return Reply(
            call_id=key[:16],
            text=entry.text,
            prompt_tokens=entry.prompt_tokens,
            completion_tokens=entry.completion_tokens,
            cached=cached,
            finish_reason=entry.finish_reason,
            cost_usd=self._cost(entry),
        )

    def map(self, work: Callable[[T], R], rows: Iterable[T]) -> Iterator[R]:
        """`work` of every row in the rows' order, as many at once as the endpoint is given.

        The first exception ends all that waits, and is raised once the calls in flight have ended.
        """

        def attempt(row: T) -> R:
            try:
                return work(row)
            except BaseException as error:
                with self._lock:
                    if self._failure is None and not isinstance(error, StoppedError):
                        self._failure = error
                self._end()
                raise

        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            futures = [pool.submit(attempt, row) for row in rows]
            try:
                for future in futures:
                    try:
                        yield future.result()
                    except StoppedError:
                        assert self._failure is not None
                        raise self._failure from None
            finally:
                self._end_unless_done(futures)
                pool.shutdown(wait=True, cancel_futures=True)

    def _end_unless_done(self, futures: Sequence[Future[Any]]) -> None:
        if not all(future.done() for future in futures):
            self._end()

    def _end(self) -> None:
        """Wake what waits, for minutes perhaps, and let nothing start any more."""
        self._stop.set()
        self._gate.stop()
        self._budget.stop()

    # --- one call ------------------------------------------------------------------------------

    def _ask(self, request: dict[str, Any], form: Form, keep: Keep) -> ledger.Entry:
        """The reply, once it is kept; tried again where that may help."""
        settings = self._settings
        body = wire.body(settings.target, request, form)
        call = _Call(request, body, self._most_usd(body), self._likely_tokens(request))
        attempts = tenacity.Retrying(
            stop=lambda state: self._is_last(state, call),
            wait=self._pause,
            retry=tenacity.retry_if_exception(retries.passes),
            sleep=self._stop.wait,  # type: ignore[arg-type]  # ends when another call ends the run
            reraise=True,
        )
        try:
            return attempts(self._attempt, call, keep)
        except openai.APIStatusError as error:
            if retries.is_refusal(error.status_code):
                raise RefusedError(f"{error.status_code}: {_one_line(error.message)}") from None
            raise self._failed(call, f"{error.status_code}: {error.message}", error) from None
        except (openai.APIError, NotAReplyError) as error:
            raise self._failed(call, f"{type(error).__name__}: {error}", error) from None
        except LateError as error:
            raise self._failed(call, "too many calls at once", error) from None
        except SpentError as error:
            raise self._spent(error) from None

    def _attempt(self, call: _Call, keep: Keep) -> ledger.Entry:
        self._budget.reserve(call.most_usd)
        call.paid_usd = 0.0
        try:
            # Kept before it is settled: who finds the cap reached then finds all replies kept.
            return keep(*self._send(call))
        finally:
            self._budget.settle(call.most_usd, call.paid_usd)

    def _send(self, call: _Call) -> tuple[ledger.Entry, float]:
        """The reply and its seconds, and in `call` what the attempt cost, with or without one."""
        ticket = self._gate.enter(call.tokens, call.attempts, call.ends)
        try:
            began = time.monotonic()
            deadline_s = self._settings.retries.deadline_s
            if call.ends is None and deadline_s is not None:
                call.ends = began + deadline_s
            call.attempts += 1
            call.paid_usd = call.most_usd  # until it is known
            left = self._settings.server.timeout_s if call.ends is None else call.ends - began
            said = wire.read(self._settings.server.post(call.body, left), call.request)
            seconds = time.monotonic() - began
            call.paid_usd = self._paid(said, call)
            self._gate.replied(ticket, said.entry.prompt_tokens + said.entry.completion_tokens)
            return said.entry, seconds
        except (openai.APIError, NotAReplyError) as error:
            if retries.is_overload(error):
                self._gate.turned_away(ticket)
            if not retries.may_be_billed(error):
                call.paid_usd = 0.0
            self._lose(call.paid_usd)
            raise
        finally:
            self._gate.leave(ticket)

    def _is_last(self, state: tenacity.RetryCallState, call: _Call) -> bool:
        late = call.ends is not None and time.monotonic() + state.upcoming_sleep >= call.ends
        return call.attempts >= self._settings.retries.max_attempts or late

    def _pause(self, state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        error = state.outcome.exception()
        seconds = retries.pause(error, state.attempt_number, self._settings.retries)
        if error is not None and retries.is_overload(error) and retries.asked(error) is not None:
            self._gate.hold(seconds)  # what the endpoint asks of one, it asks of all
        return seconds

    # --- what it costs -------------------------------------------------------------------------

    def _most_usd(self, body: dict[str, Any]) -> float:
        if self._settings.terms.longest is None:  # then there is no cap
            return 0.0
        return self._settings.terms.prices.cost(
            wire.most_prompt_tokens(body), self._settings.terms.longest
        )

    def _paid(self, said: wire.Said, call: _Call) -> float:
        """What a reply cost; where the endpoint does not say, the most that it can have cost."""
        if said.is_billed or self._settings.max_cost_usd is None:
            return self._cost(said.entry)
        return call.most_usd

    def _likely_tokens(self, request: dict[str, Any]) -> int:
        if self._settings.tokens_per_minute is None:
            return 0
        usage = self.usage
        mean = usage.completion_tokens // usage.calls if usage.calls else self._settings.terms.guess
        return wire.prompt_tokens(request) + mean

    def _cost(self, entry: ledger.Entry) -> float:
        return self._settings.terms.prices.cost(entry.prompt_tokens, entry.completion_tokens)

    def _lose(self, most_usd: float) -> None:
        with self._lock:
            self.usage.doubtful_usd += most_usd

    def _count(
        self, entry: ledger.Entry, cost_usd: float, seconds: float, calls: int = 0, probes: int = 0
    ) -> None:
        with self._lock:
            self.usage.calls += calls
            self.usage.probes += probes
            self.usage.prompt_tokens += entry.prompt_tokens
            self.usage.completion_tokens += entry.completion_tokens
            self.usage.cost_usd += cost_usd
            self.usage.seconds += seconds

    # --- the shape of replies ------------------------------------------------------------------

    def _heeded_form(self) -> Form:
        """The configured form of a reply, or the next plainer one that the endpoint heeds."""
        with self._probing:
            if self._form is None:
                target = self._settings.target
                key = probe.key(target)
                found = self._ledger.probed(key) or self._probe(target.form)
                self._ledger.keep_probe(key, found)
                self._form = found  # type: ignore[assignment]
                if found != target.form:
                    progress.note(
                        f"{self._settings.section}.response_format: {target.model} at "
                        f"{self._settings.address} does not heed {target.form}: replies are asked "
                        f"for as {found}, and the prompt says their shape"
                    )
            assert self._form is not None
            return self._form

    def _probe(self, form: Form) -> Form:
        def keep(entry: ledger.Entry, seconds: float) -> ledger.Entry:
            self._count(entry, self._cost(entry), seconds, probes=1)
            return entry

        while form != "text":
            try:
                entry = self._ask(probe.request(self._settings.target), form, keep)
            except RefusedError:
                form = probe.PLAINER[form]
                continue
            if probe.is_heeded(form, entry):
                break
            form = probe.PLAINER[form]
        return form

    # --- what is said to the user --------------------------------------------------------------

    def _failed(self, call: _Call, said: str, error: Exception) -> PipelineError:
        section = self._settings.section
        most = self._settings.retries.max_attempts
        tried = f"after {call.attempts} of at most {most} attempts"
        if isinstance(error, LateError) or (call.attempts < most and retries.passes(error)):
            tried += f", and no time for another within {section}.deadline_s"
        return PipelineError(
            f"{section} at {self._settings.address}: {_one_line(said)} ({tried}); check "
            f"{section}.base_url, the model and the key, then run again: replies received so far "
            "are kept"
        )

    def _spent(self, error: SpentError) -> PipelineError:
        key = f"{self._settings.section}.max_cost_usd"
        return PipelineError(
            f"{key}: {self._settings.max_cost_usd}: {self._budget.paid_usd:.6f} USD are spent, and "
            f"the next call may cost {error.most_usd:.6f}: {self.usage.calls} replies of this run "
            f"are kept and not paid for again; raise {key} and run again"
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
