"""One document to its chunks: exact spans with their headings, address and cut fences."""

import bisect
import itertools
from collections import Counter as Counting
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from stages.core import fences
from stages.core.records import Chunk, Document, Heading, Mark, anchored, identify
from stages.split import blocks
from stages.split.cutting import TEXT, Cutter, Product, Separators, Span, nothing
from stages.split.tokens import Counter, Ruler

Method = Literal["recursive", "markdown", "code"]
T = TypeVar("T", str, bytes)


def split(
    document: Document, products: Mapping[str, Product], counter: Counter, method: Method
) -> dict[str, list[Chunk]]:
    """The document's chunks of each product in reading order; all of them hold every character
    but blanks. No chunk is above its limit, unless one character alone is.
    """
    ruler = Ruler(document.text, counter)
    language = blocks.language(document) if method == "code" else None
    headings = _in_characters(document)
    found: list[fences.Fence] = []
    if not language:
        # No fence goes on below a heading: one left open spoils its own section only.
        titled = {heading.start for heading in headings if heading.title}
        parts = itertools.pairwise([0, *sorted(titled), len(document.text)])
        found = [fence for part in parts for fence in fences.find(document.text, *part)]
    chunks = {}
    for name, product in products.items():
        separators: Separators = blocks.separators(language) if language else TEXT
        starts, whole = [0], nothing
        if method != "recursive" and not language:
            starts = _section_starts(document.text, headings)
            whole = blocks.Markdown(ruler, found, product.chunk_tokens).within
        cutter = Cutter(ruler, product, separators, whole)
        sections = itertools.pairwise([*starts, len(document.text)])
        spans = [span for section in sections for span in cutter.spans(*section)]
        chunks[name] = list(_chunks(document, name, spans, headings, found))
    return chunks


def _chunks(
    document: Document,
    product: str,
    spans: Sequence[Span],
    headings: Sequence[Heading],
    found: Sequence[fences.Fence],
) -> Iterator[Chunk]:
    text = document.text
    outline = _outline(document, headings)
    marks = _marks(document)
    in_bytes = _offsets(text, (place for span in spans for place in span[:2]), _num_bytes)
    occurrences: Counting[str] = Counting()
    for start, end, num_tokens in spans:
        content = text[start:end]
        _, path, url = outline[bisect.bisect_right(outline, start, key=lambda place: place[0]) - 1]
        place = bisect.bisect_left(found, start, key=lambda fence: fence.start) - 1
        inside = place >= 0 and start < found[place].end
        yield Chunk(
            # The occurrence tells equal texts of one document apart; the offset would too, but an
            # edit above would change it.
            id=identify(document.id, product, content, occurrences[content]),
            document_id=document.id,
            start=in_bytes[start],
            end=in_bytes[end],
            heading_path=path,
            url=url,
            text=content,
            num_tokens=num_tokens,
            source=document.source,
            fence=found[place].opening if inside else "",
            marks=_between(marks, in_bytes[start], in_bytes[end]),
        )
        occurrences[content] += 1


def _section_starts(text: str, headings: Sequence[Heading]) -> list[int]:
    """Where sections begin; a heading with nothing under it stays with the next one."""
    borders = sorted({0, *(heading.start for heading in headings if heading.title)})
    starts = [0]
    for start, end in itertools.pairwise([*borders, len(text)]):
        lines = text[start:end].strip().splitlines()
        if any(line.strip() for line in lines[1:]) or start == 0:
            starts.append(end)
    return [start for start in starts if start < len(text)]


def _outline(
    document: Document, headings: Sequence[Heading]
) -> list[tuple[int, tuple[str, ...], str]]:
    """From which character on which headings enclose the text, and its nearest address."""
    outline: list[tuple[int, tuple[str, ...], str]] = [(0, (), document.url)]
    enclosing: list[tuple[int, str]] = []
    url = document.url
    for heading in headings:
        if heading.title:
            while enclosing and enclosing[-1][0] >= heading.level:
                enclosing.pop()
            enclosing.append((heading.level, heading.title))
        if heading.anchor:
            url = anchored(document.url, heading.anchor)
        outline.append((heading.start, tuple(title for _, title in enclosing), url))
    return outline


def _marks(document: Document) -> list[Mark]:
    """The places at which the nearest anchor changes, in order."""
    marks: list[Mark] = []
    for heading in sorted(document.headings, key=lambda heading: heading.start):
        if heading.anchor and not (marks and marks[-1][1] == heading.anchor):
            marks.append((heading.start, heading.anchor))
    return marks


def _between(marks: Sequence[Mark], start: int, end: int) -> tuple[Mark, ...]:
    """Those inside of the span; one at its start is its address already."""
    first = bisect.bisect_right(marks, start, key=_place)
    return tuple(marks[first : bisect.bisect_left(marks, end, first, key=_place)])


def _place(mark: Mark) -> int:
    return mark[0]


# --- bytes and characters ------------------------------------------------------------------------


def _in_characters(document: Document) -> list[Heading]:
    """The document's headings in order, each starting at a character."""
    headings = sorted(document.headings, key=lambda heading: heading.start)
    starts = _offsets(document.text.encode(), (heading.start for heading in headings), _num_chars)
    return [heading.model_copy(update={"start": starts[heading.start]}) for heading in headings]


def _num_bytes(text: str) -> int:
    return len(text.encode())


def _num_chars(data: bytes) -> int:
    return len(data.decode())


def _offsets(whole: T, places: Iterable[int], size: Callable[[T], int]) -> dict[int, int]:
    """Places in the whole to what is before them, in the other unit; each part is read once."""
    found = {0: 0}
    last = 0
    for place in sorted(set(places)):
        found[place] = found[last] + size(whole[last:place])
        last = place
    return found
