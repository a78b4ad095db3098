"""Markdown to its sentences, table rows, items and blocks of code, each where it stands."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sentence:
    """A sentence of prose, a table row, a list item or a block of code, in characters.

    A block of code belongs to the sentence that leads to it with a colon.
    """

    start: int
    end: int
    heading: str
    """The heading above it in the same text, or the empty string."""


_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*$")
_ROW = re.compile(r"\s*\|.*\|\s*$")
_ROW_RULE = re.compile(r"\s*\|?[\s:|\-]*-[\s:|\-]*$")
_RULE = re.compile(r" {0,3}([-*_=]\s*){3,}$")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s")
_DEFINITION = re.compile(r":\s+\S")  # under its term
_CODE_SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_STOP = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s)|[。！？]+[」』”]*")
_ABBREVIATED = (
    "al approx cf co corp dept dr e.g ed eds esp est etc i.e inc jr ltd mr mrs ms prof resp sr st "
    "vs"
)
ABBREVIATIONS = frozenset(_ABBREVIATED.split())
BEFORE_NUMBERS = frozenset(["ch", "eq", "fig", "no", "nr", "p", "pp", "sec", "vol"])


def sentences(text: str) -> list[Sentence]:
    """The sentences of Markdown text in order; headings are none, and neither are table heads."""
    found: list[Sentence] = []
    heading = ""
    for kind, start, end in _blocks(text):
        if kind == "heading":
            heading = text[start:end]
        elif kind == "prose":
            found += [Sentence(*span, heading) for span in _prose_sentences(text, start, end)]
        elif kind == "code" and found and _leads_to(text[found[-1].start : start]):
            found[-1] = Sentence(found[-1].start, end, heading)
        else:
            found.append(Sentence(start, end, heading))
    return found


def _leads_to(text: str) -> bool:
    """Whether nothing stands between a colon and the end of the text."""
    return text.rstrip().endswith(":")


Block = Literal["heading", "prose", "row", "item", "code"]


def _blocks(text: str) -> list[tuple[Block, int, int]]:
    """The text's blocks, stripped, in characters."""
    blocks: list[tuple[Block, int, int]] = []
    fence = ""
    after_blank = True
    lines = text.splitlines(keepends=True)
    at = 0
    for line, next_line in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        start, at = at, at + len(line)
        kind = blocks[-1][0] if blocks else None
        opened = _FENCE.match(line)
        if fence:
            blocks[-1] = ("code", blocks[-1][1], at)
            if opened and opened[1].startswith(fence) and not line.strip(" `~\r\n"):
                fence = ""
                after_blank = True
        elif opened and _is_closed(text, at, opened[1]):
            fence = opened[1]
            blocks.append(("code", start, at))
        elif not line.strip() or _RULE.match(line) or opened:
            after_blank = True
        elif _HEADING.match(line) or (after_blank and _UNDERLINE.match(next_line)):
            blocks.append(("heading", start, at))
            after_blank = True
        elif _ROW.match(line):
            if not _ROW_RULE.match(line):
                blocks.append(("row", start, at))
            elif kind == "row" and not after_blank:
                blocks.pop()  # the rule under a table's head
            after_blank = False
        elif _ITEM.match(line) or _DEFINITION.match(next_line):
            blocks.append(("item", start, at))
            after_blank = False
        elif line.startswith(("    ", "\t")) and after_blank and kind in (None, "heading", "prose"):
            blocks.append(("code", start, at))
            after_blank = False
        elif not after_blank and kind in ("prose", "item", "code"):
            blocks[-1] = (blocks[-1][0], blocks[-1][1], at)
        else:
            blocks.append(("prose", start, at))
            after_blank = False
    return [(kind, *_stripped(text, start, end)) for kind, start, end in blocks]


def _is_closed(text: str, at: int, fence: str) -> bool:
    """Whether the fence has an end: where a chunk was cut inside code, one fence is alone."""
    return re.compile(rf"^ {{0,3}}{fence}[`~]*[ \t]*$", re.MULTILINE).search(text, at) is not None


def _prose_sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    code = [match.span() for match in _CODE_SPAN.finditer(text, start, end)]
    first = start
    for stop in _STOP.finditer(text, start, end):
        inside_code = any(begin <= stop.start() < finish for begin, finish in code)
        if not inside_code and _ends_sentence(text[first : stop.start()], text[stop.end() : end]):
            yield _stripped(text, first, stop.end())
            first = stop.end()
    if text[first:end].strip():
        yield _stripped(text, first, end)


def _ends_sentence(before: str, after: str) -> bool:
    """Whether a full stop between these ends a sentence, not an abbreviation."""
    words = before.split()
    word = words[-1].lstrip("\"'“‘([*_").lower() if words else ""
    following = after.lstrip(" \t\r\n\"'“‘([*_>")[:1]
    if following.islower() or word in ABBREVIATIONS:
        return False
    initial = len(word) == 1 and word.isalpha() and words[-1][-1].isupper()
    of_a_name = initial and (len(words) == 1 or words[-2][0].isupper())
    return not of_a_name and not (word in BEFORE_NUMBERS and following.isdigit())


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
