"""One page's HTML to its Markdown: the main text alone, with its headings and absolute links."""

import re

from html_to_markdown import ConversionOptions, PreprocessingOptions, convert
from selectolax.lexbor import LexborHTMLParser

from stages.core.records import Heading
from stages.crawl.extract import body, definitions
from stages.crawl.extract.cleaning import clean
from stages.crawl.extract.headings import Title
from stages.crawl.extract.links import publisher
from stages.crawl.extract.plain import MARK, MARKED, plain, visible
from stages.crawl.page import Page
from stages.crawl.site import Site, base_of

__all__ = ["extract"]

_HEADING_LINE = re.compile(r"(?:[\s>*+-]|\d+[.)])*(#{1,6}) ")
_PRE = re.compile(r"<pre[\s>]")
_PRE_END = "</pre>"
_OPTIONS = ConversionOptions(
    extract_metadata=False,
    bullets="-",
    compact_tables=True,  # padding costs tokens, and an edit of one row would change them all
    expand_abbreviations=False,  # Sphinx marks the `*` and `/` of signatures as abbreviations
    hidden_content="drop",  # nothing is hidden any more, and looking for it costs a fifth
    highlight_style="none",
    preprocessing=PreprocessingOptions(enabled=False),  # it guesses at menus; `cleaning` does not
)


def extract(html: str, url: str, site: Site) -> Page:
    """The page at `url`. Its links are absolute, as readers know them."""
    tree = LexborHTMLParser(html.replace(MARK, ""))
    public = site.publish(url) or url
    name, canonical, base = "", None, url
    if tree.head is not None:
        name = plain(tree.head.css_first("title"))
        link = tree.head.css_first('link[rel="canonical"][href]')
        if link is not None:
            inside = site.resolve(link.attributes.get("href") or "", url)
            canonical = None if inside is None else site.publish(inside)
    if "<base" in html or "<BASE" in html:
        base = base_of(tree, url)
    main = body.find(html, tree)
    if main is None:
        return Page(public, name, "", (), canonical)
    titles = clean(tree, main, publisher(url, base, site))
    text, headings = _converted(definitions.spell(main.html or ""), titles)
    top = next((heading.title for heading in headings if heading.level == 1), "")
    return Page(public, top or name, text, headings, canonical)


def _converted(html: str, titles: list[Title]) -> tuple[str, tuple[Heading, ...]]:
    """The Markdown, and its headings with the byte offset of each one's line.

    A space that must not break is a space, in code too, where it would be an error.
    """
    marked = (convert(_narrowed(html.replace("&nbsp;", " ")), _OPTIONS).content or "").strip("\n")
    pieces = MARKED.split(marked)  # text, the number of a heading, text, …
    headings = []
    length, line = 0, ""  # bytes of the text so far, and its last line
    for at, piece in enumerate(pieces):
        if at % 2 == 0:
            length += len(piece.encode())
            line = piece.rpartition("\n")[2] if "\n" in piece else line + piece
            continue
        opening = _HEADING_LINE.fullmatch(line)
        if opening and int(piece) < len(titles):  # in a table cell it is no heading line
            title, anchor = titles[int(piece)]
            headings.append(
                Heading(
                    start=length - len(line.encode()),
                    level=len(opening.group(1)),
                    title=title,
                    anchor=anchor,
                )
            )
    return "".join(pieces[::2]), tuple(headings)


def _narrowed(html: str) -> str:
    """White space of any kind as one space, except in code."""
    parts = []
    at = 0
    for opening in _PRE.finditer(html):
        end = html.find(_PRE_END, opening.end())
        if opening.start() >= at and end >= 0:
            end += len(_PRE_END)
            code = html[opening.start() : end].replace("\xa0", " ")
            parts += [_one_space(html[at : opening.start()]), code]
            at = end
    parts.append(_one_space(html[at:]))
    return "".join(parts)


def _one_space(html: str) -> str:
    return " ".join((html if html.isascii() else visible(html)).split())
