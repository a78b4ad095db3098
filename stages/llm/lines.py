"""The files of a batch: calls as lines, cut to what one may hold, and results read back."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.llm import retries, wire


@dataclass(frozen=True)
class Line:
    """A call on its way into a batch."""

    key: str
    request: str
    """Canonical."""
    text: bytes
    """As the input file has it."""
    most_usd: float


@dataclass(frozen=True)
class Outcome:
    """What became of a call: a reply, a refusal for its content, or neither."""

    key: str
    said: wire.Said | None = None
    refusal: str | None = None
    may_be_billed: bool = False
    """Though no reply came."""


def write(key: str, request: str, route: str, body: dict[str, Any], most_usd: float) -> Line:
    row = {"custom_id": key, "method": "POST", "url": route, "body": body}
    return Line(key, request, json.dumps(row, ensure_ascii=False).encode() + b"\n", most_usd)


def cut(
    rows: Iterable[Line], most_calls: int, most_bytes: int, has_room: Callable[[float], bool]
) -> Iterator[list[Line]]:
    """The lines in files, each within the limits, and within the budget where one line is."""
    piece: list[Line] = []
    size, cost = 0, 0.0
    for row in rows:
        fits = len(piece) < most_calls and size + len(row.text) <= most_bytes
        if piece and not (fits and has_room(cost + row.most_usd)):
            yield piece
            piece, size, cost = [], 0, 0.0
        piece.append(row)
        size, cost = size + len(row.text), cost + row.most_usd
    if piece:
        yield piece


def split(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file that comes in parts; only a line feed ends one."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield from filter(None, whole)
    if rest:
        yield rest


def read(row: bytes, requests: Mapping[str, str]) -> Outcome | None:
    """What a line of an output or error file says; None where it is about none of the requests."""
    try:
        said = json.loads(row)
        key = said["custom_id"]
        request = json.loads(requests[key])
        response, fault = said.get("response") or {}, said.get("error") or {}
        status, content = response.get("status_code"), response.get("body")
        if status == 200:
            return Outcome(key, wire.read(json.dumps(content).encode(), request))
        if retries.is_refusal(status):
            message = ((content or {}).get("error") or {}).get("message")
            return Outcome(key, refusal=f"{status}: {' '.join(str(message).split())[:200]}")
        unpaid = retries.is_unpaid(status) or fault.get("code") == "batch_expired"
        return Outcome(key, may_be_billed=not unpaid)
    except wire.NotAReplyError:
        return Outcome(key, may_be_billed=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
