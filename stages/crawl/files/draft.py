"""A file's Markdown, block by block, with headings and the marks that a citation names."""

import re
from collections.abc import Sequence

from stages.core.records import Heading
from stages.crawl.page import Page, UnreadableError

MARK = 7
"""Level of a mark: a heading without a title, below all others, which gives the text from there on
an anchor (`page=3`) and has no place in the outline."""

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF))
for _code in b"\t\n":
    del _CONTROLS[_code]


class Draft:
    """Blocks are joined by a blank line, and what no text may hold is dropped."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0  # bytes
        self._headings: list[Heading] = []
        self._anchor = ""

    def block(self, text: str, separator: str = "\n\n") -> None:
        """A block of Markdown; nothing where it is blank. Code goes in as it is."""
        text = sound(text).lstrip("\n").rstrip()
        if not text.strip():
            return
        self._append(separator if self._parts else "")
        if self._anchor:
            self._headings.append(
                Heading(start=self._size, level=MARK, title="", anchor=self._anchor)
            )
            self._anchor = ""
        self._append(text)

    def heading(self, level: int, title: str, anchor: str = "") -> None:
        title = one_line(sound(title))
        if not title:
            return
        self._append("\n\n" if self._parts else "")
        anchor = anchor or self._anchor
        self._anchor = ""
        level = max(1, min(6, level))
        self._headings.append(Heading(start=self._size, level=level, title=title, anchor=anchor))
        self._append(f"{'#' * level} {title}")

    def outlined(self, text: str, headings: Sequence[Heading]) -> None:
        """A piece of Markdown with headings of its own, which start at bytes of the piece."""
        if not text.strip():
            return
        self._append("\n\n" if self._parts else "")
        self._headings += [
            heading.model_copy(update={"start": self._size + heading.start}) for heading in headings
        ]
        self._append(text)

    def mark(self, anchor: str) -> None:
        """What is written from here on stands at this anchor."""
        self._anchor = anchor

    def page(self, url: str, title: str) -> Page:
        """The whole; without text there is none."""
        text = "".join(self._parts)
        if not text.strip():
            raise UnreadableError("empty")
        return Page(url, one_line(sound(title)), text, tuple(self._headings))

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text.encode())


def sound(text: str) -> str:
    """The text in one kind of line ends, without controls and halves of surrogate pairs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)
    return text.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    return " ".join(text.split())


def fence(code: str, language: str = "") -> str:
    """A fenced block of code; its marks are longer than any run of them inside."""
    longest = max((len(run) for run in re.findall("`{3,}", code)), default=2)
    marks = "`" * (longest + 1)
    return f"{marks}{language}\n{code.strip(chr(10))}\n{marks}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is its header; short rows are filled up."""
    width = max(map(len, rows), default=0)
    if not width:
        return ""
    lines = [row_of(cells, width) for cells in rows]
    return "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])


def row_of(cells: Sequence[str], width: int) -> str:
    said = [one_line(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join([*said, *[''] * (width - len(said))])} |"
