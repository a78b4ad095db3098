"""One page's HTML to its Markdown: the main text alone, with its headings and absolute links."""

import html as escaping
import re
from urllib.parse import urljoin

from html_to_markdown import ConversionOptions, PreprocessingOptions, convert
from selectolax.lexbor import LexborHTMLParser, LexborNode

from stages.core.records import Heading
from stages.crawl.extract import body
from stages.crawl.extract.body import HEADINGS
from stages.crawl.page import Page
from stages.crawl.site import Site, base_of

JUNK = (
    "script, style, noscript, template, iframe, object, svg, canvas, dialog, nav, button, "
    "input, select, textarea, footer, .headerlink, .anchorjs-link, .toctree-wrapper, #toc, .toc, "
    "#footer, "
    "#comments, #respond, .comments-area, .sharedaddy, .jp-relatedposts, .post-navigation, "
    ".entry-meta, .entry-footer, "
    ".contents.local, .contents.topic, .related, .related-pages, .sphinxsidebar, "
    ".breadcrumb, .breadcrumbs, .rst-breadcrumbs-buttons, .viewcode-link, .viewcode-back, "
    ".copybtn, .linenos, .lineno, .gutter, .mw-editsection, .navbox, .sr-only, "
    ".visually-hidden, .visuallyhidden, .screen-reader-text, .edit-this-page, "
    ".view-this-page, .back-to-top, .prev-next-area, .prev-next-footer, "
    ".theme-doc-toc-mobile, .theme-doc-footer, .pagination-nav, .hash-link, .md-source-file, "
    ".md-content__button, [role=navigation], [role=search], [role=contentinfo]"
)
# Links that say nothing once they are text: permalinks, the way back from a footnote.
UNLINKED = (
    ".footnote-reference, .citation-reference, .fn-backref, [role=doc-noteref], "
    "[role=doc-backlink], h1 a, h2 a, h3 a, h4 a, h5 a, h6 a"
)

_LANGUAGE = re.compile(r"(?:^|\s)(?:highlight-source-|highlight-|language-|lang-)([\w+#.-]+)")
_NO_LANGUAGE = {"default", "none", "text", "plaintext", "plain", "txt", "notranslate"}
# A character that no text may hold: it marks where the converter put a heading.
_MARK = "\ufdd0"
_MARKED = re.compile(f"{_MARK}(\\d+){_MARK}")
_HEADING_LINE = re.compile(r"(?:[\s>*+-]|\d+[.)])*(#{1,6}) ")
_PRE = re.compile(r"(<pre\b.*?</pre>)", re.S)
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_OPTIONS = ConversionOptions(
    extract_metadata=False,
    bullets="-",
    compact_tables=True,  # padding costs tokens, and an edit of one row would change them all
    expand_abbreviations=False,  # Sphinx marks the `*` and `/` of signatures as abbreviations
    hidden_content="reachable",  # the panels of a tab are text
    highlight_style="none",
    preprocessing=PreprocessingOptions(enabled=False),  # it guesses at menus; JUNK does not
)


def extract(html: str, url: str, site: Site) -> Page:
    """The page at `url`. Its links are absolute, as readers know them."""
    tree = LexborHTMLParser(html.replace(_MARK, ""))
    canonical = None
    link = tree.css_first('link[rel="canonical"][href]')
    if link is not None:
        inside = site.resolve(link.attributes.get("href") or "", url)
        canonical = None if inside is None else site.publish(inside)
    public = site.publish(url) or url
    base = base_of(tree, url)
    name = _plain(tree.css_first("title"))
    main = body.find(html, tree)
    if main is None:
        return Page(public, name, "", (), canonical)
    titles = _mark_headings(main)
    _clean(tree, main)
    _link(main, url, base, site)
    text, headings = _convert(main, titles)
    top = next((heading.title for heading in headings if heading.level == 1), "")
    return Page(public, top or name, text, headings, canonical)


# --- headings ----------------------------------------------------------------------------------


def _mark_headings(main: LexborNode) -> list[tuple[str, str]]:
    """Number the headings in the text itself; their titles and anchors, by number."""
    titles: list[tuple[str, str]] = []
    for node in main.css(HEADINGS):
        anchor = _anchor(node)
        for junk in node.css(JUNK):
            junk.decompose()
        title = _plain(node)
        if not title:
            node.decompose()
            continue
        node.inner_html = f"{_MARK}{len(titles)}{_MARK}{node.inner_html}"
        titles.append((title, anchor))
    return titles


def _anchor(node: LexborNode) -> str:
    """The fragment that leads to a heading: its permalink's, its own id, or its section's."""
    for link in node.css("a[href]"):
        href = link.attributes.get("href") or ""
        classes = link.attributes.get("class") or ""
        if href.startswith("#") and ("link" in classes or "anchor" in classes):
            return href[1:]
    if node.id:
        return str(node.id)
    parent = node.parent
    if parent is not None and parent.id and parent.tag in ("section", "div"):
        first = parent.css_first(HEADINGS)
        if first is not None and first.mem_id == node.mem_id:
            return str(parent.id)
    for inner in node.css("[id], a[name]"):
        return str(inner.id or inner.attributes.get("name") or "")
    return ""


# --- cleaning ----------------------------------------------------------------------------------


def _clean(tree: LexborHTMLParser, main: LexborNode) -> None:
    """Drop what is not text, and write what Markdown has no word for with the words it has."""
    for node in main.css(JUNK):
        node.decompose()
    for table in main.css("table.highlighttable, table.rouge-table"):
        code = table.css_first("pre")
        if code is not None:
            table.replace_with(code, move=True)
    for pre in main.css("pre"):
        _code(pre)
    for node in main.css(UNLINKED):
        node.unwrap()
    for image in main.css("img"):
        source = image.attributes.get("src") or ""
        if source.startswith("data:") or not (image.attributes.get("alt") or "").strip():
            image.decompose()
    for node in main.css("sup"):
        if _plain(node).isalnum():  # 10^6 is not 106
            node.replace_with(f"^{_plain(node)}")
    for node in main.css("td ul, td ol"):
        items = [item.css_first("p") or item for item in node.css("li")]
        cell = tree.create_node("span")
        cell.inner_html = "; ".join((item.inner_html or "").strip() for item in items)
        node.replace_with(cell, move=True)
    for node in main.css(".admonition-title, .topic-title, .sidebar-title, aside > .label"):
        mark = _plain(node)
        _lead(node, mark if mark.startswith("[") else f"{mark}:")
    for node in reversed(main.css("dl")):  # the innermost first
        block = tree.create_node("div")
        block.inner_html = _definitions(node)
        node.replace_with(block, move=True)


def _code(pre: LexborNode) -> None:
    """Keep a code block's exact text and its language; drop the colours."""
    for line in pre.css("br"):
        line.replace_with("\n")
    language = ""
    inner = pre.css_first("code")
    node: LexborNode | None = inner if inner is not None else pre
    for _ in range(5):
        if node is None or node.tag in ("body", "article", "main", "section"):
            break
        classes = node.attributes.get("class") or ""
        named = _LANGUAGE.search(classes)
        language = (
            (node.attributes.get("data-lang") or node.attributes.get("data-language") or "")
            or (named.group(1) if named else "")
            or (classes.removeprefix("sourceCode ") if "sourceCode " in classes else "")
        )
        if language:
            break
        node = node.parent
    attribute = ""
    if language and language.lower() not in _NO_LANGUAGE:
        attribute = f' class="language-{escaping.escape(language)}"'
    pre.inner_html = f"<code{attribute}>{escaping.escape(pre.text())}</code>"


def _lead(node: LexborNode, words: str) -> None:
    """Put a box's title in bold before the first words of its text."""
    body = node.next
    while body is not None and not body.is_element_node:
        body = body.next
    bold = f"<strong>{escaping.escape(words)}</strong>"
    if body is not None and body.tag == "p":
        body.inner_html = f"{bold} {body.inner_html}"
        node.decompose()
    else:
        node.inner_html = bold


def _definitions(dl: LexborNode) -> str:
    """A definition list: signatures as code with their text below, the rest as a list of terms."""
    pairs: list[tuple[list[LexborNode], LexborNode | None]] = []
    for node in dl.iter():
        rows = [node] if node.tag in ("dt", "dd") else list(node.iter())  # <div> may group them
        for row in rows:
            if row.tag == "dt":
                if not pairs or pairs[-1][1] is not None:
                    pairs.append(([], None))
                pairs[-1][0].append(row)
            elif row.tag == "dd" and pairs:
                if pairs[-1][1] is None:
                    pairs[-1] = (pairs[-1][0], row)
                else:
                    pairs.append(([], row))
    classes = (dl.attributes.get("class") or "").split()
    parts = []
    for terms, text in pairs:
        body = (text.inner_html or "").strip() if text is not None else ""
        if any("sig" in (term.attributes.get("class") or "").split() for term in terms):
            signatures = "".join(
                f"<p><code>{escaping.escape(_plain(term))}</code></p>" for term in terms
            )
            parts.append(f"{signatures}<div>{body}</div>")
            continue
        names = ", ".join(f"<strong>{_term(term)}</strong>" for term in terms)
        if names:
            names += ":"
        opening = re.match(r"<p(?:\s[^>]*)?>", body)
        joined = (
            f"{opening.group()}{names} {body[opening.end() :]}"
            if opening
            else f"<p>{names}</p>{body}"
            if body.startswith("<")
            else f"<p>{names} {body}</p>"
        )
        parts.append(joined if "field-list" in classes else f"<li>{joined}</li>")
    if "field-list" in classes or all(part.startswith("<p><code>") for part in parts):
        return "".join(parts)
    return f"<ul>{''.join(parts)}</ul>"


def _term(node: LexborNode) -> str:
    return (node.inner_html or "").strip().removesuffix('<span class="colon">:</span>').rstrip(":")


def _link(main: LexborNode, url: str, base: str, site: Site) -> None:
    """Make links and images absolute and public; keep only the text of what leads nowhere."""
    known: dict[str, str | None] = {}  # a page repeats its links
    for node in main.css("a, img"):
        key = "src" if node.tag == "img" else "href"
        if "title" in node.attrs:
            del node.attrs["title"]  # what a pointer shows: the target's name once more
        href = (node.attributes.get(key) or "").strip()
        if key == "href" and not (_plain(node) or node.css_first("img")):
            node.decompose()
            continue
        if href not in known:
            known[href] = _publish(href, url if href.startswith("#") else base, site)
        public = known[href]
        if public is not None:
            node.attrs[key] = public
        elif key == "href":
            node.unwrap()
        else:
            node.decompose()


def _publish(href: str, base: str, site: Site) -> str | None:
    try:
        target = urljoin(base, href)
    except ValueError:
        return None
    if target.startswith("mailto:"):
        return target
    return site.publish(target) if href and target.startswith(("http://", "https://")) else None


# --- Markdown ----------------------------------------------------------------------------------


def _convert(main: LexborNode, titles: list[tuple[str, str]]) -> tuple[str, tuple[Heading, ...]]:
    """The Markdown, and its headings with the byte offset of each one's line.

    A space that must not break is a space, in code too, where it would be an error.
    """
    source = "".join(
        part
        if part.startswith("<pre")
        else re.sub("[\\s\u2028\u2029]+", " ", _INVISIBLE.sub("", part))
        for part in _PRE.split((main.html or "").replace("&nbsp;", " "))
    )
    marked = (convert(source, _OPTIONS).content or "").strip("\n")
    pieces: list[str] = []
    headings = []
    length = last = 0  # bytes of the text so far; where the marked text has been read to
    for mark in _MARKED.finditer(marked):
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


def _plain(node: LexborNode | None) -> str:
    """The words of an element on one line, without permalink signs and marks."""
    if node is None:
        return ""
    words = " ".join(_INVISIBLE.sub("", _MARKED.sub("", node.text())).split())
    return words.removesuffix("¶").rstrip()
