"""Which failures pass, how long to wait for it, and whether the failed attempt may be billed."""

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx2
import openai
import tenacity

from stages.llm.wire import NotAReplyError

T = TypeVar("T")


@dataclass(frozen=True)
class Retries:
    max_attempts: int
    backoff_s: float
    cap_s: float
    deadline_s: float | None
    """For all attempts and the waits between them; None for no such limit."""


def until_done(work: Callable[[], T], tries: Retries, sleep: Callable[[float], object]) -> T:
    """The result of the work, tried again where that may help; else what it raised last."""
    ends = None if tries.deadline_s is None else time.monotonic() + tries.deadline_s
    attempts = tenacity.Retrying(
        stop=lambda state: (
            state.attempt_number >= tries.max_attempts
            or (ends is not None and time.monotonic() + state.upcoming_sleep >= ends)
        ),
        wait=lambda state: pause(
            state.outcome.exception() if state.outcome else None, state.attempt_number, tries
        ),
        retry=tenacity.retry_if_exception(passes),
        sleep=sleep,  # type: ignore[arg-type]
        reraise=True,
    )
    return attempts(work)


def passes(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, openai.APIStatusError):
        spent = error.code == "insufficient_quota"
        return not spent and (error.status_code in (408, 409, 429) or error.status_code >= 500)
    # A timeout is a connection error.
    return isinstance(error, openai.APIConnectionError | NotAReplyError)


def is_overload(error: BaseException) -> bool:
    """Whether the endpoint has too much to do: 429, or 503 with a time to come back."""
    if not isinstance(error, openai.APIStatusError) or not passes(error):
        return False
    return error.status_code == 429 or (error.status_code == 503 and asked(error) is not None)


def may_be_billed(error: BaseException) -> bool:
    """Whether the endpoint may bill an attempt that brought no reply.

    A request that was refused (4xx, 503) or never sent made nothing. Of any other, what was made
    for it may have got lost on the way.
    """
    if isinstance(error, openai.APIStatusError):
        return not is_unpaid(error.status_code)
    unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
    return not isinstance(error.__cause__, unsent)


def is_unpaid(status: object) -> bool:
    """Whether a status says that nothing was made."""
    return isinstance(status, int) and (400 <= status < 500 or status == 503)


def is_refusal(status: object) -> bool:
    """Whether a status says that the endpoint will never answer this request."""
    return status in (400, 413, 422)


def pause(error: BaseException | None, attempt: int, retries: Retries) -> float:
    """Seconds to the next try: what the endpoint asks for, else full jitter under a ceiling."""
    seconds = asked(error)
    if seconds is not None:
        return min(seconds, retries.cap_s)
    ceiling = retries.backoff_s * 2.0 ** min(attempt - 1, 60)
    return random.uniform(0, min(ceiling, retries.cap_s))  # noqa: S311


def asked(error: BaseException | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date."""
    if not isinstance(error, openai.APIStatusError):
        return None
    header = error.response.headers.get("retry-after", "")
    try:
        seconds = float(header)
        return max(0.0, seconds) if seconds == seconds else None  # NaN is no number of seconds
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
