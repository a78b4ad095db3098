"""PPTX to Markdown: each slide with its title, bullets, tables and notes, and its number."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from lxml import etree  # type: ignore[import-untyped]
from pptx import Presentation
from pptx.enum.shapes import PP_PLACEHOLDER
from pptx.exc import PythonPptxError

from stages.crawl.files import zipped
from stages.crawl.files.addresses import Place
from stages.crawl.files.draft import Draft, one_line, table
from stages.crawl.page import Page, UnreadableError

_FAULTS = (
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError, OSError),
    *(NotImplementedError, zipfile.BadZipFile, etree.LxmlError, PythonPptxError),
)
_UNLISTED = {
    *(PP_PLACEHOLDER.TITLE, PP_PLACEHOLDER.CENTER_TITLE, PP_PLACEHOLDER.SUBTITLE),
    *(PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER, PP_PLACEHOLDER.SLIDE_NUMBER),
}
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_REPEATED = {PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER, PP_PLACEHOLDER.SLIDE_NUMBER}


def parse(body: bytes, at: Place) -> Page:
    """Hidden slides are left out; a slide keeps the number that the file shows."""
    zipped.check(body)
    draft = Draft()
    try:
        deck = Presentation(io.BytesIO(body))
        named = one_line(deck.core_properties.title or "")
        for number, slide in enumerate(deck.slides, 1):
            if slide._element.get("show") != "0":
                _slide(draft, number, slide)
                named = named or one_line(_title(slide))
    except _FAULTS as error:
        raise UnreadableError("broken", one_line(str(error))) from None
    generic = not named or named.lower() in ("powerpoint presentation", "presentation")
    return draft.page(at.url, at.stem if generic else named)


def _slide(draft: Draft, number: int, slide: Any) -> None:
    draft.mark(f"slide={number}")
    draft.heading(2, _title(slide), f"slide={number}")
    for shape in _shapes(slide.shapes):
        if shape == slide.shapes.title or _placeholder(shape) in _REPEATED:
            continue
        if shape.has_text_frame:
            bullets = _placeholder(shape) is not None and _placeholder(shape) not in _UNLISTED
            draft.block(_text(shape.text_frame, bullets))
        elif getattr(shape, "has_table", False) and shape.has_table:
            rows = [[cell.text for cell in row.cells] for row in shape.table.rows]
            draft.block(table(rows))
        elif getattr(shape, "has_chart", False) and shape.has_chart and shape.chart.has_title:
            draft.block(f"Chart: {one_line(shape.chart.chart_title.text_frame.text)}")
    if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
        said = _text(notes, bullets=False)
        if said:
            draft.block(f"Notes: {said}")


def _title(slide: Any) -> str:
    shape = slide.shapes.title
    return one_line(shape.text_frame.text) if shape is not None else ""


def _shapes(shapes: Iterable[Any]) -> Iterator[Any]:
    for shape in shapes:
        if hasattr(shape, "shapes"):  # a group
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _placeholder(shape: Any) -> Any:
    return shape.placeholder_format.type if shape.is_placeholder else None


def _text(frame: Any, bullets: bool) -> str:
    """The paragraphs; those of a list with their levels, which PowerPoint counts from 0."""
    said = [
        (paragraph.level, one_line("".join(_runs(paragraph)))) for paragraph in frame.paragraphs
    ]
    if bullets:
        return "\n".join(f"{'  ' * level}- {text}" for level, text in said if text)
    return "\n\n".join(text for _, text in said if text)


def _runs(paragraph: Any) -> Iterator[str]:
    """The text with its links; a line break in a paragraph is a blank."""
    for child in paragraph._p:
        match etree.QName(child).localname:
            case "r" | "fld":
                text = "".join(t.text or "" for t in child.iterfind(f"{_A}t"))
                run = next((run for run in paragraph.runs if run._r is child), None)
                target = (run.hyperlink.address if run is not None else None) or ""
                web = target.startswith(("http://", "https://"))
                yield f"[{text}]({target})" if web and text.strip() else text
            case "br":
                yield " "
