"""Which HTML no parser is given: such as is built so that reading it takes for ever.

A parser's time grows with the square of a page's depth and of a tag's attributes, and the spider
reads pages for their links in its own process. Browsers stop at a depth of 512 elements too.
"""

import re

MAX_DEPTH = 512
MAX_ATTRIBUTES = 4096
"""Of one tag."""
MAX_TAGS = 2_000_000
"""Openings and endings; each opening takes some 200 bytes of memory."""
SMALL_CHARS = 128 * 2**10
"""A page up to this length costs a second at worst, and is not looked at."""

_NAME = r"[a-zA-Z][^\s/>]*+"
_VALUE = r"(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z)|[^\s>\"'][^\s>]*+)?+"
_ATTRIBUTE = rf"[^\s/>][^\s/>=]*+(?:\s*+=\s*+{_VALUE})?+"
# As the standard reads them, in one pass: what is not closed goes on to the end.
_ANY = (
    r"<(?P<raw>(?i:script|style|textarea|title|xmp|iframe|noembed|noframes))(?=[\s/>]).*?"
    r"(?:</(?i:(?P=raw))(?=[\s/>])|\Z)"
    r"|<!--.*?(?:-->|\Z)"
    rf"|<(?P<closing>/?+)(?P<name>{_NAME})"
    rf"(?P<attributes>(?:[\s/]*+{_ATTRIBUTE})*+)[\s/]*+(?:>|\Z)"
)
_TOKEN = re.compile(_ANY, re.S)
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)
RUN_DEPTH = 4
"""Up to which depth elements are skipped as a whole that end as they began."""
_PLAIN = r"(?:[ \n][a-zA-Z_:@.-]++(?:=\"[^\"<>]*+\")?+){0,64}+>"


def _run(depth: int) -> str:
    """Elements without a loose end one after the other, up to a depth."""
    within = f"(?:{_run(depth - 1)})?+" if depth > 1 else ""
    name = f"run{depth}"
    return rf"(?:<(?P<{name}>[a-zA-Z][a-zA-Z0-9-]*+){_PLAIN}[^<]*+{within}</(?P={name})>[^<]*+)++"


_RUN_OR_TOKEN = re.compile(f"{_run(RUN_DEPTH)}|{_ANY}", re.S)
_VOID = frozenset(
    (
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param"),
        *("source", "track", "wbr"),
    )
)
_ENDED_BY_THE_NEXT = frozenset(
    ("a", "dd", "dt", "li", "nobr", "option", "p", "tbody", "td", "tfoot", "th", "thead", "tr")
)
_FOREIGN = frozenset(("svg", "math"))
_NEVER_FOREIGN = frozenset(
    (
        *("b", "big", "blockquote", "body", "br", "center", "code", "dd", "div", "dl", "dt", "em"),
        *("embed", "font", "h1", "h2", "h3", "h4", "h5", "h6", "head", "hr", "i", "img", "li"),
        *("listing", "menu", "meta", "nobr", "ol", "p", "pre", "ruby", "s", "small", "span"),
        *("strong", "strike", "sub", "sup", "table", "tt", "u", "ul", "var"),
    )
)


def fault(html: str) -> str | None:
    """Why a page is not to be parsed; None for what people and their programs write."""
    if len(html) <= SMALL_CHARS:
        return None
    if html.count("<") > MAX_TAGS:
        return "too_many_tags"
    return None if _is_surely_flat(html) else _fault(html)


def _is_surely_flat(html: str) -> bool:
    """Is no element deeper than allowed, even if no opening ended one before it?

    Elements that end as they began leave nothing open, and what an ending closes besides its own
    name only makes the page flatter: ordinary pages pass here, at a fifth of the time.
    """
    counts: dict[str, int] = {}
    depth = 0
    for token in _RUN_OR_TOKEN.finditer(html):
        closing, name, attributes = token.group("closing", "name", "attributes")
        if name is None:
            continue
        name = name.lower()
        if closing:
            if counts.get(name, 0):
                counts[name] -= 1
                depth -= 1
            continue
        if len(attributes) > MAX_ATTRIBUTES:
            return False
        if name not in _VOID:
            counts[name] = counts.get(name, 0) + 1
            depth += 1
            if depth > MAX_DEPTH - RUN_DEPTH:
                return False
    return True


def _fault(html: str) -> str | None:
    open_names: list[str] = []
    counts: dict[str, int] = {}
    for token in _TOKEN.finditer(html):
        closing, name, attributes = token.group("closing", "name", "attributes")
        if name is None:
            continue
        name = name.lower()
        if closing:
            if counts.get(name, 0):
                _close(name, open_names, counts)
            continue
        if len(attributes) > MAX_ATTRIBUTES and _has_many(attributes):
            return "too_many_attributes"
        if name in _NEVER_FOREIGN:
            for foreign in _FOREIGN:
                if counts.get(foreign, 0):
                    _close(foreign, open_names, counts)
        elif html[token.end() - 2 : token.end()] == "/>" and any(map(counts.get, _FOREIGN)):
            continue
        if name in _VOID:
            continue
        if name in _ENDED_BY_THE_NEXT:
            while open_names and open_names[-1] in _ENDED_BY_THE_NEXT and counts.get(name, 0):
                _close(open_names[-1], open_names, counts)
        open_names.append(name)
        counts[name] = counts.get(name, 0) + 1
        if len(open_names) > MAX_DEPTH:
            return "too_deep"
    return None


def _close(name: str, open_names: list[str], counts: dict[str, int]) -> None:
    """Close the innermost element of a name, and all that stands open in it."""
    while True:
        last = open_names.pop()
        counts[last] -= 1
        if last == name:
            return


def _has_many(attributes: str) -> bool:
    found = _ONE_ATTRIBUTE.finditer(attributes)
    return any(number > MAX_ATTRIBUTES for number, _ in enumerate(found, 1))
