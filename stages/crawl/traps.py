"""Addresses without end: how one is told from the address alone, and what it is alike to.

Calendars, session ids, links that grow and queries in every order make a site infinite; the caps
here, which do not depend on the order of answers, end each with its reason counted.
"""

import re
from collections import Counter
from urllib.parse import unquote, urlsplit

MAX_CHARS = 2000
"""Longest address that is asked for; browsers and servers take little more."""
MAX_SEGMENTS = 24
"""Deepest path that is asked for, in segments."""
MAX_REPEATS = 3
"""How often a path may hold one segment: links that are relative by mistake grow without end."""

_SESSION = re.compile(
    r"^(phpsessid|jsessionid|aspsessionid\w*|session_?id|sess_?id|cfid|cftoken|oscsid|zenid|"
    r"utm_\w+|gclid|fbclid|msclkid|dclid|yclid|mc_cid|mc_eid|_ga|_gl|igshid)$",
    re.I,
)
_SESSION_IN_PATH = re.compile(r";jsessionid=[^/?;]*|/\([SFA]\([^/()]{8,}\)\)(?=/|$)", re.I)
_DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d(?:([-/_])(?:0?[1-9]|1[0-2])(?:\1(?:0?[1-9]|[12]\d|3[01]))?"
    r"|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?!\d)"
)
"""Year and month, or a day: 2026-11, 2026/11/28, 20261128."""


def without_session(path: str, query: str) -> tuple[str, str]:
    """Path and query without what names a visitor or a campaign and not the page."""
    path = _SESSION_IN_PATH.sub("", path)
    if query:
        pairs = query.split("&")
        query = "&".join(pair for pair in pairs if not _SESSION.match(unquote(pair.split("=")[0])))
    return path, query


def fault(url: str) -> str:
    """Why an address is never asked for; empty where nothing speaks against it."""
    if len(url) > MAX_CHARS:
        return "long_address"
    segments = [segment for segment in urlsplit(url).path.split("/") if segment]
    if len(segments) > MAX_SEGMENTS:
        return "deep_address"
    if segments and max(Counter(segments).values()) > MAX_REPEATS:
        return "repeated_segments"
    return ""


def alike(url: str) -> str:
    """What the addresses of one calendar or one list with filters have in common.

    Empty for an address with neither a date nor a query: only these come without end.
    """
    parts = urlsplit(url)
    path, dates = _DATE.subn("#", parts.path)
    if parts.query:
        return f"{parts.netloc}{path}?"
    # A date in the middle of a path is that of an article; at its end, the page is the calendar's.
    return f"{parts.netloc}{path}" if dates and path.rstrip("/").endswith("#") else ""
