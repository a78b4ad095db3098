"""robots.txt as RFC 9309 has it: which addresses of a host a crawler may ask for, and how often."""

import math
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_BYTES = 500 * 1024
"""What is parsed of a file; the rest is not read."""
MAX_REDIRECTS = 5
"""A file behind more of them counts as one that does not exist."""
MAX_DELAY_S = 120.0
"""Longest pause between two requests that is kept to; a host that asks for more is left alone."""
LONG_DELAY_S = 5.0
"""Pause from which the one who waits is told."""
MAX_AGE_S = 24 * 3600
"""How long a file is good for."""

_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_KEPT = _UNRESERVED + b"/?:@!&'()+,;="
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_TOKEN = re.compile(r"[A-Za-z_-]*")


@dataclass(frozen=True)
class Rule:
    """A path pattern: parts between its `*`, in one spelling, and whether it must end the path."""

    parts: tuple[bytes, ...]
    ends: bool
    allows: bool
    length: int

    def matches(self, path: bytes) -> bool:
        """Is the pattern found? Each part at its first place, so that it takes linear time."""
        first, *rest = self.parts
        if not path.startswith(first):
            return False
        at = len(first)
        last = rest.pop() if rest and self.ends else None
        for part in rest:
            found = path.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        if last is not None:
            return len(path) - len(last) >= at and path.endswith(last)
        return not self.ends or at == len(path)


@dataclass(frozen=True)
class Robots:
    """What a host's robots.txt says to one crawler."""

    rules: tuple[Rule, ...] = ()
    """The longest first, and of equal ones those that allow: the first that matches decides."""
    delay_s: float = 0.0
    sitemaps: tuple[str, ...] = ()

    def allows(self, url: str) -> bool:
        parts = urlsplit(url)
        if parts.path == "/robots.txt":
            return True
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        spelled = _spell(path.encode("utf-8", "surrogatepass"))
        return next((rule.allows for rule in self.rules if rule.matches(spelled)), True)


def parse(data: bytes, user_agent: str) -> Robots:
    """The groups that name the crawler, or those of `*` where none does."""
    ours = _product(user_agent)
    named: dict[str, list[Rule]] = {}
    delays: dict[str, float] = {}
    agents: list[str] = []  # of the group that is being read
    ruled = False  # has the group a rule yet? The next user-agent line begins another one
    sitemaps = []
    for key, value in _lines(data):
        if key == "user-agent":
            if ruled:
                agents, ruled = [], False
            agents.append("*" if re.match(r"\*(\s|$)", value) else _product(value))
            named.setdefault(agents[-1], [])
        elif key in ("allow", "disallow"):
            ruled = ruled or bool(agents)
            rule = _rule(value, key == "allow")
            for agent in agents:
                named[agent] += [rule] if rule else []
        elif key == "crawl-delay":
            for agent in agents:
                delays.setdefault(agent, _seconds(value))
        elif key == "sitemap" and value:
            sitemaps.append(value)
    group = ours if ours in named else "*"
    rules = sorted(named.get(group, []), key=lambda rule: (-rule.length, not rule.allows))
    return Robots(tuple(rules), delays.get(group, 0.0), tuple(sitemaps))


FORBIDS_ALL = Robots((Rule((b"/",), False, False, 1),))


def _lines(data: bytes) -> list[tuple[str, str]]:
    """Key and value of every line that has both; a line that the limit cuts is left out."""
    head = data[:MAX_BYTES].removeprefix(b"\xef\xbb\xbf")
    rows = re.split(rb"\r\n|\r|\n", head)
    if len(data) > MAX_BYTES:
        rows.pop()
    found = []
    for row in rows:
        key, colon, value = row.partition(b"#")[0].partition(b":")
        if colon:
            name = key.strip().lower().decode("ascii", "replace")
            # Bytes that are no UTF-8 come out again as they were.
            found.append((name, value.strip().decode("utf-8", "surrogateescape")))
    return found


def _product(user_agent: str) -> str:
    """The name by which a crawler is called: the letters at the beginning."""
    token = _TOKEN.match(user_agent.strip())
    return token.group().lower() if token else ""


def _rule(pattern: str, allows: bool) -> Rule | None:
    """A rule; None for an empty pattern, which says nothing."""
    raw = pattern.encode("utf-8", "surrogateescape")
    if not raw:
        return None
    ends = raw.endswith(b"$")
    parts = tuple(_spell(part) for part in raw.removesuffix(b"$").split(b"*"))
    return Rule(parts, ends, allows, sum(map(len, parts)) + len(parts) - 1 + ends)


def _spell(path: bytes) -> bytes:
    """One spelling of equal paths: only what needs an escape has one, in capitals."""
    plain = _ESCAPE.sub(_unescape, path)
    return b"".join(
        bytes([byte]) if byte in _KEPT or byte == ord("%") else b"%%%02X" % byte for byte in plain
    )


def _unescape(escape: re.Match[bytes]) -> bytes:
    byte = bytes([int(escape.group(1), 16)])
    return byte if byte in _UNRESERVED else b"%" + escape.group(1).upper()


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
