"""DOCX to Markdown: headings by style, lists, tables, code, links and footnotes."""

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import docx
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.exceptions import OpcError
from lxml import etree  # type: ignore[import-untyped]

from stages.crawl.files import zipped
from stages.crawl.files.addresses import Place
from stages.crawl.files.anchors import Anchors
from stages.crawl.files.draft import Draft, fence, one_line, table
from stages.crawl.page import Page, UnreadableError

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_FAULTS = (
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError, OSError),
    *(NotImplementedError, zipfile.BadZipFile, etree.LxmlError, OpcError),
)
_CODE_STYLE = re.compile(r"(?i)\b(?:source ?code|code|preformatted|macro|listing|verbatim)\b")
_CODE_FONT = re.compile(r"(?i)\b(?:courier|consolas|menlo|monaco|mono)")


def parse(body: bytes, at: Place) -> Page:
    """Text that was deleted under tracked changes is not there; inserted text is."""
    zipped.check(body)
    try:
        read = _Reader(docx.Document(io.BytesIO(body)))
        draft = read.draft()
        named = read.title()
    except _FAULTS as error:
        raise UnreadableError("broken", one_line(str(error))) from None
    return draft.page(at.url, named or at.stem)


class _Reader:
    def __init__(self, document: Any) -> None:
        self._document = document
        self._styles = {style.style_id: style for style in document.styles}
        self._notes = _notes(document.part)
        self._numbered = _numbered(document.part)
        self._first = ""

    def title(self) -> str:
        named = one_line(self._document.core_properties.title or "")
        return self._first if named in ("", "Word Document") else named

    def draft(self) -> Draft:
        """The body's blocks in their order, then the footnotes that are referred to."""
        draft = Draft()
        anchors = Anchors()
        code: list[str] = []
        in_list = False
        used: list[str] = []
        blocks = list(_blocks(self._document.element.body))
        # Under a title of the whole, the first level of headings is the second.
        titled = any(
            self._is_title(element) and self._text(element, []).strip() for element in blocks
        )
        for element in blocks:
            if element.tag == f"{_W}tbl":
                self._end_code(draft, code)
                draft.block(table(self._rows(element, used)))
                in_list = False
                continue
            text = self._text(element, used)
            if self._is_code(element) and (text.strip() or code):
                code.append(text)
                continue
            self._end_code(draft, code)
            if not text.strip():
                continue
            level = self._heading(element)
            item = self._item(element)
            if level is not None:
                title = one_line(text)
                self._first = self._first or title
                below = titled and not self._is_title(element)
                draft.heading(level + below, title, anchors.of(title))
            elif item is not None:
                depth, sign = item
                draft.block(f"{'  ' * depth}{sign} {one_line(text)}", "\n" if in_list else "\n\n")
            else:
                draft.block("\n".join(line.strip() for line in text.split("\n")))
            in_list = item is not None and level is None
        self._end_code(draft, code)
        for name in dict.fromkeys(used):
            draft.block(f"[^{name}]: {self._notes[name]}")
        return draft

    def _end_code(self, draft: Draft, code: list[str]) -> None:
        if any(line.strip() for line in code):
            draft.block(fence("\n".join(code).rstrip()))
        code.clear()

    def _style(self, paragraph: Any) -> Iterator[Any]:
        """The paragraph's style and those that it is based on."""
        named = paragraph.find(f"{_W}pPr/{_W}pStyle")
        style = self._styles.get(named.get(f"{_W}val")) if named is not None else None
        seen = set()
        while style is not None and style.style_id not in seen:
            seen.add(style.style_id)
            yield style
            style = getattr(style, "base_style", None)

    def _is_title(self, paragraph: Any) -> bool:
        return any(style.name == "Title" for style in self._style(paragraph))

    def _heading(self, paragraph: Any) -> int | None:
        if self._is_title(paragraph):
            return 1
        for style in self._style(paragraph):
            if found := re.fullmatch(r"(?i)heading ([1-9])", style.name or ""):
                return int(found[1])
            outlined = style.element.find(f"{_W}pPr/{_W}outlineLvl")
            if outlined is not None and (level := int(outlined.get(f"{_W}val"))) < 9:
                return level + 1
        return None

    def _item(self, paragraph: Any) -> tuple[int, str] | None:
        """Depth and sign of an item of a list."""
        listed = paragraph.find(f"{_W}pPr/{_W}numPr")
        for style in () if listed is not None else self._style(paragraph):
            if found := re.match(r"List (Bullet|Number)(?: (\d))?", style.name or ""):
                return int(found[2] or 1) - 1, "-" if found[1] == "Bullet" else "1."
            listed = style.element.find(f"{_W}pPr/{_W}numPr")
            if listed is not None:
                break
        if listed is None:
            return None
        depth, number = (listed.find(f"{_W}{name}") for name in ("ilvl", "numId"))
        place = int(depth.get(f"{_W}val")) if depth is not None else 0
        name = number.get(f"{_W}val") if number is not None else ""
        if name == "0":
            return None  # takes a style's number away
        return place, "1." if (name, place) in self._numbered else "-"

    def _is_code(self, paragraph: Any) -> bool:
        if any(_CODE_STYLE.search(style.name or "") for style in self._style(paragraph)):
            return True
        runs = [run for run in paragraph.iter(f"{_W}r") if "".join(run.itertext()).strip()]
        return bool(runs) and all(map(_in_code_font, runs))

    def _rows(self, element: Any, used: list[str]) -> list[list[str]]:
        return [
            [
                "; ".join(
                    text for p in cell.iter(f"{_W}p") if (text := one_line(self._text(p, used)))
                )
                for cell in row.iterfind(f"{_W}tc")
            ]
            for row in element.iterfind(f"{_W}tr")
        ]

    def _text(self, paragraph: Any, used: list[str]) -> str:
        """The words, with links and references to footnotes; `used` gets the names of these."""
        parts: list[str] = []
        self._walk(paragraph, parts, used)
        return "".join(parts)

    def _walk(self, element: Any, parts: list[str], used: list[str]) -> None:
        for child in element:
            match child.tag:
                case str(tag) if tag == f"{_W}t":
                    parts.append(child.text or "")
                case str(tag) if tag == f"{_W}tab":
                    parts.append("\t")
                case str(tag) if tag in (f"{_W}br", f"{_W}cr"):
                    parts.append("\n")
                case str(tag) if tag == f"{_W}noBreakHyphen":
                    parts.append("-")
                case str(tag) if tag == f"{_W}footnoteReference":
                    name = child.get(f"{_W}id") or ""
                    if name in self._notes:
                        used.append(name)
                        parts.append(f"[^{name}]")
                case str(tag) if tag == f"{_W}hyperlink":
                    said: list[str] = []
                    self._walk(child, said, used)
                    text, target = "".join(said), self._target(child)
                    parts.append(f"[{text}]({target})" if target and text.strip() else text)
                case str(tag) if tag in (f"{_W}del", f"{_W}moveFrom", f"{_W}pPr", _FALLBACK):
                    pass
                case str():
                    self._walk(child, parts, used)

    def _target(self, link: Any) -> str:
        name = link.get(f"{_R}id")
        relations = self._document.part.rels
        if name is None or name not in relations or not relations[name].is_external:
            return ""
        target = str(relations[name].target_ref)
        return target if target.startswith(("http://", "https://", "mailto:")) else ""


def _blocks(body: Any) -> Iterator[Any]:
    """Paragraphs and tables in their order, also those inside of content controls."""
    for child in body:
        if child.tag in (f"{_W}p", f"{_W}tbl"):
            yield child
        elif child.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml"):
            yield from _blocks(child)


def _in_code_font(run: Any) -> bool:
    fonts = run.find(f"{_W}rPr/{_W}rFonts")
    return fonts is not None and bool(_CODE_FONT.search(fonts.get(f"{_W}ascii") or ""))


def _notes(part: Any) -> dict[str, str]:
    """The footnotes by their id; a separator is none."""
    found = {}
    for relation in part.rels.values():
        if relation.reltype == RELATIONSHIP_TYPE.FOOTNOTES and not relation.is_external:
            parser = etree.XMLParser(resolve_entities=False, no_network=True)
            for note in etree.fromstring(relation.target_part.blob, parser):
                words = one_line("".join(t.text or "" for t in note.iter(f"{_W}t")))
                if words and note.get(f"{_W}type") in (None, "normal"):
                    found[note.get(f"{_W}id")] = words
    return found


def _numbered(part: Any) -> set[tuple[str, int]]:
    """The lists and depths whose items are numbered, and not marked with a sign."""
    for relation in part.rels.values():
        if relation.reltype == RELATIONSHIP_TYPE.NUMBERING and not relation.is_external:
            root = relation.target_part.element
            break
    else:
        return set()
    formats: dict[str, set[int]] = {}
    for kind in root.iterfind(f"{_W}abstractNum"):
        levels = set()
        for level in kind.iterfind(f"{_W}lvl"):
            how = level.find(f"{_W}numFmt")
            if how is not None and how.get(f"{_W}val") not in ("bullet", "none"):
                levels.add(int(level.get(f"{_W}ilvl")))
        formats[kind.get(f"{_W}abstractNumId")] = levels
    numbered = set()
    for number in root.iterfind(f"{_W}num"):
        kind = number.find(f"{_W}abstractNumId")
        for place in formats.get(kind.get(f"{_W}val") if kind is not None else "", ()):
            numbered.add((number.get(f"{_W}numId"), place))
    return numbered
