"""One page's HTML to its Markdown: the main text alone, with its headings and absolute links."""

import re

from html_to_markdown import ConversionOptions, PreprocessingOptions, convert
from selectolax.lexbor import LexborHTMLParser

from stages.core.records import Heading
from stages.crawl.extract import body, cleaning
from stages.crawl.extract.cleaning import INVISIBLE, MARK, MARKED, Title
from stages.crawl.page import Page
from stages.crawl.site import Site, base_of

__all__ = ["extract"]

_HEADING_LINE = re.compile(r"(?:[\s>*+-]|\d+[.)])*(#{1,6}) ")
_PRE = re.compile(r"(<pre\b.*?</pre>)", re.S)
_OPTIONS = ConversionOptions(
    extract_metadata=False,
    bullets="-",
    compact_tables=True,  # padding costs tokens, and an edit of one row would change them all
    expand_abbreviations=False,  # Sphinx marks the `*` and `/` of signatures as abbreviations
    hidden_content="reachable",  # the panels of a tab are text
    highlight_style="none",
    preprocessing=PreprocessingOptions(enabled=False),  # it guesses at menus; `cleaning` does not
)


def extract(html: str, url: str, site: Site) -> Page:
    """The page at `url`. Its links are absolute, as readers know them."""
    tree = LexborHTMLParser(html.replace(MARK, ""))
    public = site.publish(url) or url
    name, canonical, base = "", None, url
    if tree.head is not None:
        name = cleaning.plain(tree.head.css_first("title"))
        link = tree.head.css_first('link[rel="canonical"][href]')
        if link is not None:
            inside = site.resolve(link.attributes.get("href") or "", url)
            canonical = None if inside is None else site.publish(inside)
    if "<base" in html or "<BASE" in html:
        base = base_of(tree, url)
    main = body.find(html, tree)
    if main is None:
        return Page(public, name, "", (), canonical)
    titles = cleaning.clean(html, tree, main, cleaning.publisher(url, base, site))
    text, headings = _converted(main.html or "", titles)
    top = next((heading.title for heading in headings if heading.level == 1), "")
    return Page(public, top or name, text, headings, canonical)


def _converted(html: str, titles: list[Title]) -> tuple[str, tuple[Heading, ...]]:
    """The Markdown, and its headings with the byte offset of each one's line.

    A space that must not break is a space, in code too, where it would be an error.
    """
    source = html.replace("&nbsp;", " ")
    # Between code, white space of any kind is one space.
    parts = (
        part.replace("\xa0", " ")
        if part.startswith("<pre")
        else " ".join((part if part.isascii() else INVISIBLE.sub("", part)).split())
        for part in _PRE.split(source)
    )
    marked = (convert("".join(parts), _OPTIONS).content or "").strip("\n")
    pieces: list[str] = []
    headings = []
    length = last = 0  # bytes of the text so far; where the marked text has been read to
    for mark in MARKED.finditer(marked):
        piece = marked[last : mark.start()]
        pieces.append(piece)
        length += len(piece.encode())
        last = mark.end()
        line = "".join(pieces[-2:]).rpartition("\n")[2]
        opening = _HEADING_LINE.fullmatch(line)
        if opening:  # in a table cell it is no heading line
            title, anchor = titles[int(mark.group(1))]
            headings.append(
                Heading(
                    start=length - len(line.encode()),
                    level=len(opening.group(1)),
                    title=title,
                    anchor=anchor,
                )
            )
    pieces.append(marked[last:])
    return "".join(pieces), tuple(headings)
