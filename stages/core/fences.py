"""Code fences of Markdown: where they stand, and a part of a text with its cut fences mended."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_MARKS = re.compile("`{3}|~{3}")
_LINE = re.compile(
    r"(?P<indent>(?:[ \t>]|[-*+][ \t]|\d{1,9}[.)][ \t])*)(?P<mark>`{3,}|~{3,})(?P<info>.*)"
)


@dataclass(frozen=True)
class Fence:
    """A fenced block of code, from its opening to its closing line; offsets in characters."""

    start: int
    body: int
    """Start of the first line of code."""
    closing: int
    """Start of the closing line."""
    end: int
    opening: str
    """The opening line, with the language and what it is indented by."""


def find(text: str, first: int, last: int) -> Iterator[Fence]:
    """The fences between two offsets; one that is never closed there is none."""
    opening, start, body = "", 0, 0
    for begin, end in _marked_lines(text, first, last):
        line = text[begin:end]
        after = _after(opening, line)
        if opening and not after:
            yield Fence(start, body, begin, end, opening)
        elif after and not opening:
            start, body = begin, min(end + 1, last)
        opening = after


def mend(text: str, opening: str) -> str:
    """The part of a page as it can be shown alone: a cut fence is reopened, and closed.

    `opening` is the opening line of the fence that the part begins in, empty outside of one.
    """
    if not text:
        return text
    left_open = after(text, opening)
    if opening:
        text = f"{opening}\n{text}"
    if left_open:
        found = _LINE.match(left_open)
        assert found
        indent = re.sub(r"[^\s>]", " ", found["indent"])
        text = f"{text}\n{indent}{found['mark']}"
    return text


def after(text: str, opening: str) -> str:
    """The opening line of the fence that is open after the text, empty where none is.

    `opening` is the one that is open before it.
    """
    for begin, end in _marked_lines(text, 0, len(text)):
        opening = _after(opening, text[begin:end])
    return opening


def _after(opening: str, line: str) -> str:
    found = _LINE.match(line)
    if not found:
        return opening
    if not opening:
        # Three backticks with others behind them are code in a line.
        return "" if "`" in found["info"] else line.rstrip()
    opened = _LINE.match(opening)
    assert opened
    closes = found["mark"].startswith(opened["mark"]) and not found["info"].strip()
    return "" if closes else opening


def _marked_lines(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Lines that hold a mark: offsets without the line's end. Only a few lines are looked at."""
    end = first
    while found := _MARKS.search(text, end, last):
        start = text.rfind("\n", first, found.start()) + 1 or first
        end = text.find("\n", found.end(), last)
        end = last if end < 0 else end
        yield start, end
