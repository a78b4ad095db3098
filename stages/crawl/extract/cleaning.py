"""The main element to HTML that Markdown has words for: no frame, plain code, leads and lists."""

import functools
import html as escaping
import re
from collections.abc import Callable
from urllib.parse import urljoin

from selectolax.lexbor import LexborHTMLParser, LexborNode

from stages.crawl.extract.body import HEADINGS
from stages.crawl.site import Site

Publish = Callable[[str], str | None]
"""An address as it stands in the page to the one that readers know; None where it leads nowhere."""

_JUNK_TAGS = frozenset(
    (
        *("script", "style", "noscript", "template", "iframe", "object", "svg", "canvas"),
        *("dialog", "nav", "button", "input", "select", "textarea", "footer"),
    )
)
_JUNK_CLASSES = frozenset(
    (
        *("headerlink", "anchorjs-link", "hash-link", "header-anchor", "heading-anchor"),
        *("paramlink", "toctree-wrapper", "toc", "related", "related-pages"),
        *("sphinxsidebar", "table-of-contents", "breadcrumb", "breadcrumbs"),
        *("rst-breadcrumbs-buttons", "theme-doc-breadcrumbs", "viewcode-link"),
        *("viewcode-back", "copybtn", "clipboard-copy", "mw-editsection", "navbox"),
        *("linenos", "lineno", "gutter", "lnt", "hljs-ln-numbers", "line-numbers-rows"),
        *("blob-num", "sr-only", "visually-hidden", "visuallyhidden", "screen-reader-text"),
        *("katex-html", "edit-this-page", "view-this-page", "theme-edit-this-page"),
        *("back-to-top", "prev-next-area", "prev-next-footer", "pagination-nav"),
        *("theme-doc-footer", "nav-chapters", "theme-doc-toc-mobile"),
        *("theme-doc-version-badge", "md-source-file", "md-content__button"),
        *("comments-area", "sharedaddy", "jp-relatedposts", "post-navigation"),
        *("entry-meta", "entry-footer", "MathJax_Preview", "feedback-container"),
        "docs-feedback",
    )
)
_JUNK_IDS = frozenset(("toc", "footer", "comments", "respond", "disqus_thread"))
_JUNK_ROLES = frozenset(("navigation", "search", "contentinfo"))
_WANTED = {"a": "links", "img": "links"}
_WANTED |= {tag: tag for tag in ("sup", "td", "dl")}
_WANTED |= dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), "headings")
_BOXES = frozenset(("p", "div", "span", "label"))
_KINDS = ("junk", "leads", "boxes", *_WANTED.values())
_LEADS = frozenset(
    (
        *("admonition-title", "topic-title", "sidebar-title", "markdown-alert-title"),
        *("custom-block-title", "label"),
    )
)
# Links that say nothing once they are text: the way to a footnote and back from it.
_UNLINKED = frozenset(("footnote-reference", "citation-reference", "fn-backref"))
_NOTES = frozenset(("doc-noteref", "doc-backlink"))

_LANGUAGE = re.compile(r"(?:^|\s)(?:highlight-source-|highlight-|language-|lang-)([\w+#.-]+)")
_NO_LANGUAGE = {"default", "none", "text", "plaintext", "plain", "txt", "notranslate"}
INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
# A character that no text may hold: it marks where the converter put a heading.
MARK = "\ufdd0"
MARKED = re.compile(f"{MARK}(\\d+){MARK}")

Title = tuple[str, str]
"""A heading's words and its anchor."""


def clean(html: str, tree: LexborHTMLParser, main: LexborNode, publish: Publish) -> list[Title]:
    """Make the main element fit for the converter; the headings, which are numbered in its text.

    Elements are gathered in one walk: asking for each kind anew costs more than all that is done
    to them. What gives an element new contents comes after what was gathered inside of it.
    """
    if 'role="tablist"' in html or "tabbed-labels" in html:
        _tabs(main)
    if "math" in html or "katex" in html or "MathJax" in html:
        _math(main)
    _codes(main, html)
    found = _gathered(main)
    anchors = [_anchor(node) for node in found["headings"]]  # permalinks go as junk
    for node in found["junk"]:
        node.decompose()
    _link(found["links"], publish)
    titles = _mark(found["headings"], anchors)
    for node in found["sup"]:
        if plain(node).isalnum():  # 10^6 is not 106
            node.replace_with(f"^{plain(node)}")
    for node in found["boxes"]:
        _box(node)
    for node in found["leads"]:
        mark = plain(node)
        _lead(node, mark if mark.startswith("[") else f"{mark}:")
    for node in main.css("td ul, td ol") if found["td"] else ():
        items = [item.css_first("p") or item for item in node.css("li")]
        inner = tree.create_node("span")
        inner.inner_html = "; ".join((item.inner_html or "").strip() for item in items)
        node.replace_with(inner, move=True)
    for node in reversed(main.css("dl") if found["dl"] else []):  # the innermost first
        block = tree.create_node("div")
        block.inner_html = _definitions(node)
        node.replace_with(block, move=True)
    return titles


@functools.lru_cache(maxsize=4096)
def _is_junk(classes: str) -> bool:
    names = set(classes.split())
    return bool(names & _JUNK_CLASSES) or ("contents" in names and bool(names & {"local", "topic"}))


def _is_dropped(tag: str, attributes: dict[str, str | None]) -> bool:
    return tag in _JUNK_TAGS or (
        bool(attributes)
        and (
            _is_junk(attributes.get("class") or "")
            or attributes.get("role") in _JUNK_ROLES
            or attributes.get("id") in _JUNK_IDS
        )
    )


def _gathered(main: LexborNode) -> dict[str, list[LexborNode]]:
    """What is to go and what needs work, by kind, in the order of the page."""
    found: dict[str, list[LexborNode]] = {name: [] for name in _KINDS}
    inside: set[int] = set()  # of what goes: it is not touched
    for node in main.traverse():
        tag = str(node.tag)
        attributes = node.attributes
        if inside and node.mem_id in inside:
            continue
        if _is_dropped(tag, attributes) and node.mem_id != main.mem_id:
            found["junk"].append(node)
            first = node.first_child
            if first is not None and (first.is_element_node or first.next is not None):
                inside.update(inner.mem_id for inner in node.traverse())
        elif tag in _WANTED:
            found[_WANTED[tag]].append(node)
        elif tag in _BOXES and attributes:
            names = (attributes.get("class") or "").split()
            if not _LEADS.isdisjoint(names) and ("label" not in names or _is_aside(node)):
                found["leads"].append(node)
            elif "admonitionblock" in names:
                found["boxes"].append(node)
    return found


def _is_aside(node: LexborNode) -> bool:
    return node.parent is not None and node.parent.tag == "aside"


def plain(node: LexborNode | None) -> str:
    """The words of an element on one line, without permalink signs and marks."""
    if node is None:
        return ""
    words = " ".join(node.text().split())
    if not words.isascii():
        words = " ".join(INVISIBLE.sub("", MARKED.sub("", words)).split())
    return words.removesuffix("¶").rstrip()


# --- headings ----------------------------------------------------------------------------------


def _anchor(node: LexborNode) -> str:
    """The fragment that leads to a heading: its permalink's, its own id, or its section's."""
    for link in node.css("a[href]"):
        href = link.attributes.get("href") or ""
        classes = link.attributes.get("class") or ""
        if href.startswith("#") and ("link" in classes or "anchor" in classes or _is_sign(link)):
            return str(href[1:])
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


def _is_sign(link: LexborNode) -> bool:
    """Is it `#`, `¶` or an empty link?"""
    return not any(map(str.isalnum, link.text()))


def _mark(nodes: list[LexborNode], anchors: list[str]) -> list[Title]:
    """Number the headings in the text itself. Their links are text."""
    titles: list[Title] = []
    for node, anchor in zip(nodes, anchors, strict=True):
        for link in node.css("a"):
            if _is_sign(link) and not link.css_first("img"):
                link.decompose()
            else:
                link.unwrap()
        title = plain(node)
        if not title:
            node.decompose()
            continue
        node.inner_html = f"{MARK}{len(titles)}{MARK}{node.inner_html}"
        titles.append((title, anchor))
    return titles


# --- links -------------------------------------------------------------------------------------


def publisher(url: str, base: str, site: Site) -> Publish:
    @functools.cache  # a page repeats its links
    def publish(href: str) -> str | None:
        try:
            target = urljoin(url if href.startswith("#") else base, href)
        except ValueError:
            return None
        if target.startswith("mailto:"):
            return target
        is_web = target.startswith(("http://", "https://"))
        return site.publish(target) if href and is_web else None

    return publish


def _link(nodes: list[LexborNode], publish: Publish) -> None:
    """Make links and images absolute and public; keep only the text of what leads nowhere."""
    for node in nodes:
        attributes = node.attributes
        is_image = node.tag == "img"
        if "title" in attributes:
            del node.attrs["title"]  # what a pointer shows: the target's name once more
        key = "src" if is_image else "href"
        href = (attributes.get(key) or "").strip()
        if is_image:
            said = (attributes.get("alt") or "").strip()
            public = None if href.startswith("data:") or not said else publish(href)
            if public is None:
                node.decompose()
            else:
                node.attrs["src"] = public
            continue
        if not (node.text(strip=True) or node.css_first("img")):
            node.decompose()
            continue
        classes = attributes.get("class")
        is_note = attributes.get("role") in _NOTES
        if is_note or (classes and not _UNLINKED.isdisjoint(classes.split())):
            node.unwrap()
            continue
        public = publish(href)
        if public is None:
            node.unwrap()
        else:
            node.attrs["href"] = public


# --- code --------------------------------------------------------------------------------------


def _table(table: LexborNode) -> None:
    """A table of line numbers and code is its code."""
    classes = set((table.attributes.get("class") or "").split())
    if classes & {
        "highlighttable",
        "rouge-table",
        "lntable",
        "codehilitetable",
        "syntaxhighlighter",
    }:
        codes = [code for code in table.css("pre") if code.text(strip=True)]
        if codes:
            table.replace_with(codes[-1], move=True)


# What numbers lines, by a word that a page without it cannot hold.
_GUTTERS = (
    "lineno",
    "gutter",
    "lnt",
    "hljs-ln",
    "line-numbers",
    "highlighttable",
    "codehilitetable",
    "rouge-table",
    "<button",
)


def _codes(main: LexborNode, html: str) -> None:
    """Plain code first: the colours are most of a page's elements."""
    numbered = any(word in html for word in _GUTTERS)
    for table in main.css("table") if numbered else ():
        _table(table)
    for pre in main.css("pre"):
        for node in list(pre.traverse()) if numbered else ():
            inside = node.mem_id != pre.mem_id and node.tag != "code"
            if inside and _is_dropped(str(node.tag), node.attributes):
                node.inner_html = ""
        _code(pre)


def _code(pre: LexborNode) -> None:
    """Keep a code block's exact text and its language; drop the colours."""
    source = pre.inner_html or ""
    if "<br" in source:
        for line in pre.css("br"):
            line.replace_with("\n")
    if "<div" in source and source.count("</div>") > source.count("\n") + 1:  # a line each
        pre.inner_html = re.sub(r"(?<!</div>)</div>", "\n</div>", pre.inner_html or "")
    language = ""
    inner = pre.css_first("code") if "<code" in source else None
    node: LexborNode | None = inner if inner is not None else pre
    for _ in range(5):
        if node is None or node.tag in ("body", "article", "main", "section"):
            break
        attributes = node.attributes
        classes = attributes.get("class") or ""
        named = _LANGUAGE.search(classes) if "-" in classes else None
        language = (
            (attributes.get("data-lang") or attributes.get("data-language") or "")
            or (named.group(1) if named else "")
            or (classes.removeprefix("sourceCode ") if "sourceCode " in classes else "")
        )
        if language:
            break
        node = node.parent
    above = pre.parent
    if above is not None and "language-" in (above.attributes.get("class") or ""):
        for name in above.css("span.lang"):
            name.decompose()
    attribute = ""
    if language and language.lower() not in _NO_LANGUAGE:
        attribute = f' class="language-{escaping.escape(language)}"'
    pre.inner_html = f"<code{attribute}>{escaping.escape(pre.text())}</code>"


def _math(main: LexborNode) -> None:
    """Formulas as TeX between dollars, where the page has their TeX."""
    for node in main.css("script[type^='math/tex']"):
        shown = "display" in (node.attributes.get("type") or "")
        _put_math(node, node.text(), shown)
    for node in main.css(".katex, math"):
        tex = node.css_first("annotation[encoding='application/x-tex']")
        if tex is None or (node.tag == "math" and _is_inside(node, "katex")):
            continue
        above = node.parent
        shown = node.attributes.get("display") == "block" or (
            above is not None and "katex-display" in (above.attributes.get("class") or "")
        )
        _put_math(node, tex.text(), shown)
    for node in main.css("img.math"):
        _put_math(node, node.attributes.get("alt") or "", False)
    for node in main.css("span.math, div.math, span.arithmatex, div.arithmatex"):
        said = node.text().strip()
        for opening, closing, shown in (("\\(", "\\)", False), ("\\[", "\\]", True)):
            if said.startswith(opening) and said.endswith(closing):
                _put_math(node, said[2:-2], shown)


def _is_inside(node: LexborNode, name: str) -> bool:
    above = node.parent
    while above is not None:
        if name in (above.attributes.get("class") or "").split():
            return True
        above = above.parent
    return False


def _put_math(node: LexborNode, tex: str, shown: bool) -> None:
    words = " ".join(tex.split())
    if words:
        node.replace_with(f"$${words}$$" if shown else f"${words}$")


# --- boxes and tabs ----------------------------------------------------------------------------


def _tabs(main: LexborNode) -> None:
    """The name of each tab before what it shows, not all of them before the first."""
    for tabs in main.css("[role=tablist], .tabbed-labels"):
        names = [plain(tab) for tab in tabs.css("[role=tab], label")]
        around = tabs.parent
        if around is None or not names:
            continue
        panels = around.css("[role=tabpanel], .tabbed-block")
        if len(panels) == len(names):
            for name, panel in zip(names, panels, strict=True):
                lead = f"<p><strong>{escaping.escape(name)}:</strong></p>"
                panel.inner_html = f"{lead}{panel.inner_html}"
            tabs.decompose()


def _box(block: LexborNode) -> None:
    """AsciiDoc sets an admonition as a table of its name and its text."""
    text = block.css_first("td.content")
    icon = block.css_first("td.icon .title, td.icon img, td.icon i")
    if text is None or icon is None:
        return
    name = plain(icon) or icon.attributes.get("alt") or icon.attributes.get("title") or ""
    bold = f"<strong>{escaping.escape(name)}:</strong> " if name else ""
    inner = (text.inner_html or "").strip()
    opening = re.match(r"(?:<div[^>]*>\s*)?<p(?:\s[^>]*)?>", inner)
    block.inner_html = (
        f"{opening.group()}{bold}{inner[opening.end() :]}" if opening else f"<p>{bold}{inner}</p>"
    )


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


# --- definition lists --------------------------------------------------------------------------
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
                f"<p><code>{escaping.escape(plain(term))}</code></p>" for term in terms
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
