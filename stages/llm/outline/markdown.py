"""A chunk of Markdown to sections of blocks, sentences and table cells, each as it stands there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from stages.llm.outline.english import SMALL, inside


@dataclass(frozen=True)
class Page:
    """What a prompt holds of a chunk."""

    title: str
    headings: tuple[str, ...]
    """The headings above the chunk's first character, or on it."""
    table_header: str
    """The header row of the table that the chunk continues, or the empty string."""
    text: str


@dataclass(frozen=True)
class Block:
    kind: Literal["heading", "fence", "table", "item", "paragraph"]
    start: int
    """In characters of the chunk; `text` is the chunk from here to `end`."""
    end: int
    text: str


@dataclass
class Section:
    page: Page
    path: tuple[str, ...]
    titled: bool
    """Whether the heading's line stands in the chunk."""
    blocks: list[Block] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.path[-1] if self.path else ""

    @property
    def qualifier(self) -> str:
        """The page's title in brackets, where the heading alone does not say what it is about."""
        said = [word for word in re.findall(r"[\w`./-]+", self.title) if word.lower() not in SMALL]
        pronoun = re.search(r"(?i)\b(it|this|them|these)\b", self.title)
        vague = len(said) < 2 or (pronoun and len(said) < 3)
        page = self.path[0] if len(self.path) > 1 else self.page.title
        return f" ({inside(page)})" if vague and page and page != self.title else ""


def sections(page: Page) -> list[Section]:
    current = Section(page, tuple(map(plain, page.headings)), titled=False)
    sections = [current]
    for block in blocks(page.text):
        if block.kind != "heading":
            current.blocks.append(block)
            continue
        marks, _, title = block.text.partition(" ")
        title = plain(title.strip().rstrip("#"))
        above = current.path
        if title in above:  # the chunk starts on this heading
            above = above[: above.index(title)]
        current = Section(page, (*above[: len(marks) - 1], title), titled=True)
        sections.append(current)
    return sections


_FENCE = re.compile(r"\s*(```+|~~~+)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])\s+\S")


def blocks(text: str) -> Iterator[Block]:
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    place = 0
    while place < len(lines):
        first = place
        place += 1
        line = lines[first]
        kind: Literal["heading", "fence", "table", "item", "paragraph"]
        if not line.strip():
            continue
        if fence := _FENCE.match(line):
            kind = "fence"
            while place < len(lines) and not lines[place].strip().startswith(fence[1]):
                place += 1
            place += 1
        elif re.match(r"#{1,6} ", line):
            kind = "heading"
        elif line.startswith("|"):
            kind = "table"
            while place < len(lines) and lines[place].startswith("|"):
                place += 1
        else:
            kind = "item" if _ITEM.match(line) else "paragraph"
            while place < len(lines) and not _starts_block(lines[place]):
                place += 1
        start, end = starts[first], starts[min(place, len(lines))]
        inner = text[start:end].rstrip()
        start += len(inner) - len(inner.lstrip())
        yield Block(kind, start, start + len(inner.lstrip()), inner.lstrip())


def _starts_block(line: str) -> bool:
    opens = not line.strip() or line.startswith("|") or re.match(r"#{1,6} ", line)
    return bool(opens or _FENCE.match(line) or _ITEM.match(line))


_END = re.compile(r"[.!?:][\"”')\]*]*(?=\s|$)")
_ABBREVIATED = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|incl|ca|Fig|No)|\b[A-Z])\.$")


def sentences(text: str) -> Iterator[str]:
    """The whole sentences of a paragraph, as they stand in it."""
    masked = re.sub(r"`[^`]*`|\]\([^)]*\)", lambda code: "x" * len(code[0]), text)
    start = 0
    for mark in _END.finditer(masked):
        rest = masked[mark.end() :].lstrip()
        if mark[0][0] == ":" and rest:
            continue
        if _ABBREVIATED.search(masked[: mark.start() + 1]) or (
            rest and rest[0].islower() and text[mark.end() :].lstrip()[0] != "`"
        ):
            continue
        sentence = text[start : mark.end()].strip()
        start = mark.end()
        if sentence:
            yield sentence


def is_rule(row: str) -> bool:
    return re.fullmatch(r"[\s|:-]+", row) is not None and "-" in row


def cells_of(row: str) -> list[str]:
    """A row's cells as plain text; a pipe within a cell is escaped, within ticks it may not be."""
    inner = row.strip().removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith("\\|") else inner
    masked = re.sub(r"`[^`]*`", lambda code: "x" * len(code[0]), inner)
    cuts = [mark.start() for mark in re.finditer(r"(?<!\\)\|", masked)]
    edges = zip([0, *[cut + 1 for cut in cuts]], [*cuts, len(inner)], strict=True)
    return [plain(inner[start:end]) for start, end in edges]


_LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\](?:\((?:[^()]|\([^)]*\))*\)|\[[^\[\]]+\])")
_TAG = re.compile(r"</?(?:a|b|br|code|div|em|i|img|kbd|p|span|strong|sub|sup)\b[^<>]*>")
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1|(?<![\w*])\*(?=[^\s*])([^*]+)\*(?![\w*])")


def plain(text: str) -> str:
    """Markdown as words on one line: links and emphasis are gone, code keeps its ticks."""
    text = text.replace("\0", "")  # which marks a code's place below
    parts = re.split(r"(`[^`]*`)", _LINK.sub(r"\1", text))
    codes = [code.replace("\\|", "|") for code in parts[1::2]]
    words = "\0".join(parts[0::2])  # emphasis may stand around code, and is none within it
    words = _TAG.sub(" ", words)
    words = _EMPHASIS.sub(lambda found: found[2] or found[3], words)
    words = re.sub(r"\\([\\`*_{}\[\]()#+.!|<>~-])", r"\1", words)
    return one_line(re.sub("\0", lambda _: codes.pop(0), words))


def one_line(text: str) -> str:
    return " ".join(text.split())
