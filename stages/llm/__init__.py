"""Any model behind chat completions: messages in, a reply out, asked once and kept for ever."""

import contextlib
import email.utils
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx2
import openai
import tenacity
from pydantic import Field

from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.llm import ledger, outline

T = TypeVar("T")
R = TypeVar("R")


class Outline(config.Base):
    """The embedded teacher without a language model: it reads headings, tables and code."""

    kind: Literal["outline"]


class OpenAI(config.Base):
    """A model behind an OpenAI-compatible address."""

    kind: Literal["openai"]
    base_url: str
    """Address that the path /chat/completions is appended to, such as https://api.openai.com/v1."""
    model: str
    """Name of the model, as the endpoint knows it."""
    api_key_env: str | None
    """Name of the environment variable that holds the API key, which itself stands nowhere; null
    for an endpoint that wants none."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    """Sampling temperature of the replies; null leaves it to the endpoint."""
    max_tokens: Annotated[int, Field(gt=0)] | None
    """Longest reply, in tokens of the teacher's tokenizer; null leaves it to the endpoint."""
    response_format: Literal["json_schema", "json_object", "text"]
    """How the reply's shape is asked for, beside the prompt: json_schema, json_object or text."""
    extra_body: dict[str, Any]
    """Further fields of the request body, sent as they are, such as {seed: 1}."""
    concurrency: Annotated[int, Field(ge=1, le=256)]
    """Calls that are in flight at once."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Longest wait for one reply, in seconds."""
    max_attempts: Annotated[int, Field(ge=1)]
    """Tries of one call before the stage gives up; what was paid for is kept."""
    backoff_s: Annotated[float, Field(ge=0)]
    """First ceiling of the random wait between two tries, in seconds; it doubles each time."""
    retry_after_cap_s: Annotated[float, Field(ge=0)]
    """Longest wait between two tries, also where the endpoint asks for more, in seconds."""
    prompt_price_usd_per_mtok: Annotated[float, Field(ge=0)]
    """Price of a million prompt tokens, in US dollars, for the cost that is shown."""
    completion_price_usd_per_mtok: Annotated[float, Field(ge=0)]
    """Price of a million completion tokens, in US dollars, for the cost that is shown."""


Config = Annotated[Outline | OpenAI, Field(discriminator="kind")]


class RefusedError(Exception):
    """The endpoint will never answer this request (400, 422, …): the row's fault, not the run's."""


class _StoppedError(Exception):
    """Another call ended the run."""


class _NotAReplyError(Exception):
    """The endpoint answered 200 with something that is no chat completion."""


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
    """By the configured prices, paid now or when it was first asked."""


@dataclass
class Usage:
    """What this process asked for; it differs between equal runs, so it is no metric."""

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    """Sum of the calls' own durations."""


@contextlib.contextmanager
def open(cfg: Config, section: str = "teacher") -> Iterator["Teacher"]:
    """The configured model with its ledger; PipelineError where its key is not set.

    `section` is where in params.yaml its settings stand, for errors to name.
    """
    match cfg:
        case Outline():
            settings = _Settings(
                client=_client(
                    "http://outline.invalid/v1",
                    "none",
                    60,
                    httpx2.Client(transport=outline.Transport()),
                ),
                origin={"endpoint": "outline", "version": outline.version()},
                body={"model": "outline"},
                response_format="json_schema",
                concurrency=2,
                retries=_Retries(1, 0, 0),
                prices=(0, 0),
                address="outline",
                section=section,
            )
        case OpenAI():
            secret = api_key(cfg, section)
            sampling = {"temperature": cfg.temperature, "max_tokens": cfg.max_tokens}
            settings = _Settings(
                client=_client(cfg.base_url, secret, cfg.timeout_s, None),
                origin={"endpoint": _public(cfg.base_url)},
                body={
                    "model": cfg.model,
                    **{name: value for name, value in sampling.items() if value is not None},
                    **cfg.extra_body,
                },
                response_format=cfg.response_format,
                concurrency=cfg.concurrency,
                retries=_Retries(cfg.max_attempts, cfg.backoff_s, cfg.retry_after_cap_s),
                prices=(cfg.prompt_price_usd_per_mtok, cfg.completion_price_usd_per_mtok),
                address=_public(cfg.base_url),
                section=section,
            )
    teacher = Teacher(settings, ledger.Ledger(store.cache("ledger.db")))
    try:
        yield teacher
    finally:
        teacher.close()


def api_key(cfg: OpenAI, section: str = "teacher") -> str:
    """The API key from the environment; PipelineError where it is not set."""
    if cfg.api_key_env is None:
        return "none"  # the SDK wants one
    if found := os.environ.get(cfg.api_key_env, ""):
        return found
    instead = ", or take the embedded teacher with teacher=outline" if section == "teacher" else ""
    raise PipelineError(
        f"{section}.api_key_env: no environment variable {cfg.api_key_env!r} is set: "
        f"export it{instead}"
    )


@dataclass(frozen=True)
class _Retries:
    max_attempts: int
    backoff_s: float
    cap_s: float


@dataclass(frozen=True)
class _Settings:
    client: openai.OpenAI
    origin: dict[str, str]
    """What, beside the request body, decides the reply."""
    body: dict[str, Any]
    response_format: str
    concurrency: int
    retries: _Retries
    prices: tuple[float, float]
    """US dollars per million prompt and completion tokens."""
    address: str
    section: str


class Teacher:
    """A model that answers; threads may share it."""

    def __init__(self, settings: _Settings, calls: ledger.Ledger) -> None:
        self._settings = settings
        self._ledger = calls
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._in_flight: dict[str, threading.Lock] = {}
        self.usage = Usage()

    def complete(self, messages: Sequence[Message], schema: dict[str, Any] | None) -> Reply:
        """The reply to the messages, as JSON of the schema where one is given.

        RefusedError where the endpoint rejects this request; PipelineError where it rejects every
        one or stays away for all attempts.
        """
        body: dict[str, Any] = {
            **self._settings.body,
            "messages": [message.model_dump() for message in messages],
        }
        match self._settings.response_format if schema is not None else "text":
            case "json_schema":
                body["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "reply", "strict": True, "schema": schema},
                }
            case "json_object":
                body["response_format"] = {"type": "json_object"}
        request = {**self._settings.origin, "schema": schema, "body": body}
        key = ledger.key(request)
        with self._lock:
            same = self._in_flight.setdefault(key, threading.Lock())
        with same:  # a second thread with the same request waits for the first one's reply
            entry = self._ledger.find(key)
            cached = entry is not None
            if entry is None:
                begun = time.monotonic()
                entry = self._ask(body)
                seconds = time.monotonic() - begun
                cost = self._cost(entry)
                entry = self._ledger.store(key, request, entry, cost, seconds)
                with self._lock:
                    self.usage.calls += 1
                    self.usage.prompt_tokens += entry.prompt_tokens
                    self.usage.completion_tokens += entry.completion_tokens
                    self.usage.cost_usd += cost
                    self.usage.seconds += seconds
            else:
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
                    if self._failure is None and not isinstance(error, _StoppedError):
                        self._failure = error
                self._stop.set()
                raise

        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            futures = [pool.submit(attempt, row) for row in rows]
            try:
                for future in futures:
                    try:
                        yield future.result()
                    except _StoppedError:
                        assert self._failure is not None
                        raise self._failure from None
            finally:
                self._stop_unless_done(futures)
                pool.shutdown(wait=True, cancel_futures=True)

    def _stop_unless_done(self, futures: Sequence[Future[Any]]) -> None:
        if not all(future.done() for future in futures):
            self._stop.set()

    def _ask(self, body: dict[str, Any]) -> ledger.Entry:
        """One call, tried again where that may help."""
        retries = self._settings.retries
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(retries.max_attempts),
            wait=lambda state: _pause(state, retries),
            retry=tenacity.retry_if_exception(_passes),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return attempts(self._call, body)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):
                raise RefusedError(f"{error.status_code}: {_one_line(error.message)}") from None
            raise self._failed(error.status_code, error.message) from None
        except (openai.APIError, _NotAReplyError) as error:
            raise self._failed(type(error).__name__, str(error)) from None

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)  # a wait of minutes ends when another call ends the run

    def _call(self, body: dict[str, Any]) -> ledger.Entry:
        if self._stop.is_set():
            raise _StoppedError
        response = self._settings.client.chat.completions.with_raw_response.create(
            messages=body["messages"],
            model=body["model"],
            extra_body={k: v for k, v in body.items() if k not in ("messages", "model")},
        ).http_response
        try:
            reply = response.json()
            choice = reply["choices"][0]
            usage = reply.get("usage") or {}
            return ledger.Entry(
                text=choice["message"].get("content") or "",
                finish_reason=choice.get("finish_reason") or "stop",
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _NotAReplyError(f"no chat completion: {_one_line(response.text)}") from None

    def _cost(self, entry: ledger.Entry) -> float:
        prompt, completion = self._settings.prices
        return (entry.prompt_tokens * prompt + entry.completion_tokens * completion) / 1e6

    def _failed(self, what: object, detail: str) -> PipelineError:
        return PipelineError(
            f"{self._settings.section} at {self._settings.address}: {what}: {_one_line(detail)} "
            f"(after at most {self._settings.retries.max_attempts} attempts); check "
            f"{self._settings.section}.base_url, the model and the key, then run again: replies "
            "received so far are kept"
        )

    def close(self) -> None:
        self._settings.client.close()
        self._ledger.close()


def _client(
    base_url: str, api_key: str, timeout_s: float, http_client: httpx2.Client | None
) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=base_url,
        api_key=api_key,
        timeout=timeout_s,
        http_client=http_client,
        max_retries=0,  # the SDK gives a 429 two tries in a second; the one retry layer is ours
    )


def _passes(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, openai.APIStatusError):
        spent = error.code == "insufficient_quota"
        return not spent and (error.status_code in (408, 409, 429) or error.status_code >= 500)
    return isinstance(
        error, openai.APIConnectionError | _NotAReplyError
    )  # a timeout is one of them


def _pause(state: tenacity.RetryCallState, retries: _Retries) -> float:
    """Seconds to the next try: what the endpoint asks for, else full jitter under a ceiling."""
    assert state.outcome is not None
    error = state.outcome.exception()
    if isinstance(error, openai.APIStatusError):
        asked = _retry_after(error.response.headers.get("retry-after", ""))
        if asked is not None:
            return min(asked, retries.cap_s)
    ceiling = retries.backoff_s * 2.0 ** (state.attempt_number - 1)
    return random.uniform(0, min(ceiling, retries.cap_s))  # noqa: S311


def _retry_after(header: str) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _public(address: str) -> str:
    """The address without a user, a password or a query, which may be secrets."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
