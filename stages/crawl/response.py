"""What a server's response says beside its body, whatever stands in its head."""

import re
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import quote_from_bytes, urljoin, urlsplit

from scrapy.http import Response

PASSING = (408, 425, 429)
"""Statuses below 500 that say nothing of the page itself."""


@dataclass(frozen=True)
class Silence:
    """Why an address gave no answer."""

    reason: str
    detail: str


def header(response: Response, name: str) -> str:
    value = response.headers.get(name)
    return value.decode("latin-1") if value else ""


def target_of(url: str, response: Response) -> str | None:
    """Where a redirect leads; None where it does not say, or that is no address."""
    said = response.headers.get("Location")
    if not said:
        return None
    try:
        # UTF-8 as it stands, as many servers write it; other bytes stay what they are.
        place = said.decode("utf-8")
    except UnicodeDecodeError:
        place = quote_from_bytes(said, safe=string.printable)
    try:
        return urljoin(url, place)
    except ValueError:  # a bracket that stays open
        return None


def markdown_of(url: str, response: Response) -> str:
    """The media type of a page that is written in Markdown; empty for any other."""
    name, semicolon, rest = header(response, "Content-Type").partition(";")
    name = name.strip().lower()
    plain = name in ("", "text/plain") and urlsplit(url).path.endswith(".md")
    if name not in ("text/markdown", "text/x-markdown") and not plain:
        return ""
    return f"text/markdown{semicolon}{rest}"


def is_same(response: Response) -> bool:
    """Does it claim that what is known holds, where nothing is?"""
    return bool(response.status == 304)


def may_pass(response: Response | Silence) -> bool:
    if isinstance(response, Silence):
        return response.reason != "too_large"
    return response.status >= 500 or response.status in PASSING


def modified_of(response: Response) -> str:
    """Last-Modified where it is a validator: a page may change again within the second."""
    modified, date = header(response, "Last-Modified"), header(response, "Date")
    try:
        since = parsedate_to_datetime(modified)
        age_s = parsedate_to_datetime(date).timestamp() - since.timestamp()
    except (OverflowError, TypeError, ValueError):
        return ""
    return modified if age_s >= 1 else ""


def speaks_of(response: Response, validators: Mapping[str, str]) -> bool:
    """Is a 304 about the version that was asked for? Where it names another, it is wrong."""
    etag, modified = header(response, "ETag"), header(response, "Last-Modified")
    ours = validators.get("If-None-Match", "")
    if etag and ours:
        return etag.removeprefix("W/") == ours.removeprefix("W/")
    since = validators.get("If-Modified-Since", "")
    return not (modified and since) or modified == since


def seconds_of(retry_after: str, otherwise: float) -> float:
    """What Retry-After asks for: seconds, or a date."""
    if re.fullmatch(r"\s*[0-9]+\s*", retry_after):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (OverflowError, TypeError, ValueError):
        return otherwise
