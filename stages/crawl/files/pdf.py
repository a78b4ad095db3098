"""PDF to Markdown: paragraphs without hyphens and running heads, headings, a mark for each page."""

import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pypdf import PdfReader
from pypdf.errors import DependencyError, PyPdfError

from stages.crawl.files.addresses import Place
from stages.crawl.files.draft import Draft, one_line, sound
from stages.crawl.page import Page, UnreadableError

EDGE_LINES = 3
"""Lines at the top and at the bottom of a page among which running heads are looked for."""
HEADING_SIZE = 1.15
"""How many times larger than the body's a heading's letters are."""
LONGEST_HEADING = 120
"""Characters."""
SHORT_LINE = 0.75
"""Of the page's usual line; a shorter one that ends a sentence ends its paragraph."""

# What pypdf raises on a broken file, beside its own errors.
_FAULTS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
_BULLET = re.compile(r"^[•‣▪●◦○■–—][ \t]*(?=\S)|^[-*][ \t]+")
_NUMBERED = re.compile(r"^(?:\d{1,3}[.)]|\([a-z\d]{1,3}\))\s+\S")
_PAGE_NUMBER = re.compile(r"(?i)\W*(?:page\s*)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:/|of)\s*\d+)?\W*")
_SENTENCE_END = re.compile(r"[.!?:][\"”’')\]]*$")
_HYPHEN = re.compile(r"(\w+)[-\u2010]$")

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it mends is not our reader's concern


@dataclass(frozen=True)
class Line:
    text: str
    size: float
    """Of its letters, in points."""


def parse(body: bytes, at: Place) -> Page:
    """A PDF without text or behind a password is unreadable."""
    try:
        reader = PdfReader(io.BytesIO(body))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("encrypted", "a password is needed to open it")
        pages = [_lines(page) for page in reader.pages]
        marks = list(_bookmarks(reader, reader.outline))
        named = (reader.metadata.title if reader.metadata else None) or ""
    except DependencyError as error:
        raise UnreadableError("encrypted", one_line(str(error))) from None
    except (PyPdfError, *_FAULTS) as error:
        raise UnreadableError("broken", one_line(str(error))) from None
    if not any(pages):
        raise UnreadableError(
            "no_text", f"{len(pages)} pages without text, such as scans: add it by OCR first"
        )
    named = one_line(sound(named))
    return draft(pages, marks).page(at.url, named if _is_title(named) else at.stem)


def draft(pages: Sequence[Sequence[Line]], bookmarks: Sequence[tuple[int, int, str]]) -> Draft:
    """Pages of lines, and the bookmarks as page, level and title, to Markdown.

    The bookmarks are the headings; where there are none, the lines in large letters are.
    """
    body_size = _body_size(pages)
    large = [] if bookmarks else _sizes_of_headings(pages, body_size)
    pages = without_running_heads(pages, large)
    words = Counter(
        word.lower() for page in pages for line in page for word in re.findall(r"[\w-]+", line.text)
    )
    made = Draft()
    held = separator = ""  # the last paragraph, which the next page may go on with
    for number, page in enumerate(pages, 1):
        titles = [(level, title) for place, level, title in bookmarks if place == number]
        for place, (level, text) in enumerate(_blocks(page, titles, large, words)):
            between = "\n\n"
            if place == 0 and not level and _goes_on(held, text):
                held, between = _parted(held, text, words)
            made.block(held, separator)
            held = ""
            if place == 0:
                made.mark(f"page={number}")
            if level:
                made.heading(level, text, f"page={number}")
            else:
                held, separator = text, between
    made.block(held, separator)
    return made


def _goes_on(held: str, text: str) -> bool:
    """Whether a paragraph goes on at the top of the next page."""
    unfinished = held and not held.startswith("- ") and not _SENTENCE_END.search(held)
    return bool(unfinished) and text[:1].islower()


def _parted(held: str, text: str, words: Counter[str]) -> tuple[str, str]:
    """The paragraph's first part without the hyphen that it may end in, and what comes between."""
    whole = joined([held, text], words)
    before = whole.removesuffix(text)
    return before.rstrip(" "), " " if before.endswith(" ") else ""


def _lines(page: Any) -> list[Line]:
    """The lines of a page in the order of its content, with the size of most of their letters."""
    lines: list[Line] = []
    sizes: Counter[float] = Counter()
    said: list[str] = []

    def end() -> None:
        text = one_line(sound("".join(said)).replace("\u00ad\n", "\u00ad"))
        if text:
            lines.append(Line(text, sizes.most_common(1)[0][0] if sizes else 0.0))
        said.clear()
        sizes.clear()

    def visit(text: str, cm: Any, tm: Any, _font: Any, size: Any) -> None:
        scale = abs(float(tm[3]) or float(tm[1])) * abs(float(cm[3]) or float(cm[1]))
        points = round(abs(float(size or 0)) * (scale or 1.0), 1)
        first, *rest = text.split("\n")
        for place, part in enumerate([first, *rest]):
            if place:
                end()
            said.append(part)
            if letters := sum(map(str.isalnum, part)):
                sizes[points] += letters

    page.extract_text(visitor_text=visit)
    end()
    return lines


def _bookmarks(reader: PdfReader, outline: Iterable[Any], level: int = 1) -> Iterator[Any]:
    """Page from 1, level and title of each, in the outline's order."""
    for item in outline:
        if isinstance(item, list):
            yield from _bookmarks(reader, item, level + 1)
        elif (page := reader.get_destination_page_number(item)) is not None and page >= 0:
            yield page + 1, level, one_line(sound(str(item.title)))


def _is_title(named: str) -> bool:
    """Whether the file's own title is one: word processors put its name there, or nothing."""
    return len(named) > 3 and not re.search(
        r"(?i)\.(?:docx?|pptx?|tex|dvi|indd|pdf|html?)$|^untitled|^microsoft|^document\d*$", named
    )


# --- running heads -----------------------------------------------------------------------------


def without_running_heads(
    pages: Sequence[Sequence[Line]], large: Sequence[float]
) -> list[list[Line]]:
    """The pages without the lines that most have at their edge, whatever their numbers, and
    without page numbers that stand alone there. Headings stay, and so does a single page.
    """
    filled = [page for page in pages if page]
    if len(filled) < 2:
        return [list(page) for page in pages]

    def edge(page: Sequence[Line]) -> list[int]:
        last = len(page)
        return sorted({*range(min(EDGE_LINES, last)), *range(max(0, last - EDGE_LINES), last)})

    seen = Counter(
        said
        for page in filled
        for said in {_numberless(page[n].text) for n in edge(page) if page[n].size not in large}
    )
    running = {said for said, count in seen.items() if count >= 2 and count > len(filled) / 2}
    kept = []
    for page in pages:
        gone = set()
        places = edge(page)
        half = len(page) / 2
        for ordered in ([n for n in places if n < half], [n for n in places[::-1] if n >= half]):
            for n in ordered:  # from the edge inwards, as far as each line runs
                line = page[n]
                runs = _numberless(line.text) in running and line.size not in large
                if not (runs or _PAGE_NUMBER.fullmatch(line.text)):
                    break
                gone.add(n)
        kept.append([line for n, line in enumerate(page) if n not in gone])
    return kept


def _numberless(text: str) -> str:
    return re.sub(r"\d+|\b[ivxlc]+\b", "#", text.lower())


# --- headings ----------------------------------------------------------------------------------


def _body_size(pages: Sequence[Sequence[Line]]) -> float:
    sizes: Counter[float] = Counter()
    for page in pages:
        for line in page:
            sizes[line.size] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0.0


def _sizes_of_headings(pages: Sequence[Sequence[Line]], body_size: float) -> list[float]:
    """The sizes that are clearly larger than the body's, the largest first; five at most."""
    if not body_size:
        return []
    found = {
        line.size
        for page in pages
        for line in page
        if line.size >= HEADING_SIZE * body_size and _may_head(line.text)
    }
    return sorted(found, reverse=True)[:5]


def _may_head(text: str) -> bool:
    return len(text) <= LONGEST_HEADING and any(map(str.isalpha, text))


# --- paragraphs --------------------------------------------------------------------------------


def _blocks(
    page: Sequence[Line],
    titles: Sequence[tuple[int, str]],
    large: Sequence[float],
    words: Counter[str],
) -> Iterator[tuple[int, str]]:
    """The headings with their level, and the paragraphs and items of a list with level 0."""
    wanted = list(titles)
    usual = _usual_length(page)
    paragraph: list[str] = []

    def end() -> Iterator[tuple[int, str]]:
        if paragraph:
            yield 0, _listed(joined(paragraph, words))
            paragraph.clear()

    present = {_bare(line.text) for line in page}
    for level, title in [row for row in wanted if _bare(row[1]) not in present]:
        yield level, title  # the page says it in other words, or in several lines
        wanted.remove((level, title))
    place = 0
    while place < len(page):
        line = page[place]
        place += 1
        found = next((row for row in wanted if _bare(row[1]) == _bare(line.text)), None)
        if found:
            yield from end()
            yield found
            wanted.remove(found)
            continue
        if line.size in large and _may_head(line.text):
            text = line.text
            while place < len(page) and page[place].size == line.size:  # a heading of two lines
                if len(text) + len(page[place].text) > LONGEST_HEADING:
                    break
                text = f"{text} {page[place].text}"
                place += 1
            yield from end()
            yield large.index(line.size) + 1, text
            continue
        if _BULLET.match(line.text) or _NUMBERED.match(line.text):
            yield from end()
        paragraph.append(line.text)
        if _SENTENCE_END.search(line.text) and len(line.text) < SHORT_LINE * usual:
            yield from end()
    yield from end()


def _usual_length(page: Sequence[Line]) -> int:
    lengths = sorted(len(line.text) for line in page)
    return lengths[int(0.8 * (len(lengths) - 1))] if lengths else 0


def _bare(title: str) -> str:
    """A heading without its number and marks, as bookmarks often leave them out."""
    return re.sub(r"[\W_]+", "", re.sub(r"^[\d.]+\s", "", title)).casefold()


def _listed(text: str) -> str:
    return _BULLET.sub("- ", text, count=1)


def joined(lines: Sequence[str], words: Counter[str]) -> str:
    """The lines as one paragraph; a hyphen at a line's end goes where the word is known without it,
    stays where it is known with it, and goes where neither is.
    """
    text = lines[0]
    for line in lines[1:]:
        cut = _HYPHEN.search(text)
        rest = re.match(r"[^\W\d_]+", line)
        if text.endswith("\u00ad"):
            text = text[:-1] + line
        elif cut and rest and rest[0][0].islower():
            first, second = cut[1].lower(), rest[0].lower()
            keeps = words[f"{first}-{second}"] > 0 and not words[first + second]
            text = text + line if keeps else text[:-1] + line
        else:
            text = f"{text} {line}"
    return text.replace("\u00ad", "")
