"""The element of a page that holds its main text, without what stands around it."""

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

# From the surest sign of the main text to the vaguest, each with a word that it cannot lack; the
# first with any text is taken.
MAIN = {
    "[itemprop=articleBody]": "articleBody",
    "article[role=main]": "<article",
    "div.body[role=main]": "body",
    "[role=main]": "role",
    ".theme-doc-markdown": "theme-doc-markdown",
    ".md-content__inner": "md-content__inner",
    ".markdown-body": "markdown-body",
    "main": "<main",
    "article": "<article",
    "div.body": "body",
    "div.documentwrapper": "documentwrapper",
    "#content": "content",
    "#main-content": "main-content",
    "#main": "main",
}
_ROLE = "[role=main]"
HEADING_TAGS = ("h1", "h2", "h3", "h4", "h5", "h6")
HEADINGS = ", ".join(HEADING_TAGS)
# What manuals have and articles lack: code, and headings that can be linked to.
_MANUAL = (
    "pre code, .highlight pre, pre.highlight, .listingblock, .headerlink, .hash-link, "
    ".anchorjs-link, .heading-anchor, .header-anchor, h2 > a.anchor, h3 > a.anchor, .rst-content, "
    ".md-content, .theme-doc-markdown, .markdown-body, body.manpage"
)
_ARTICLE = (
    'meta[property^="article:"], meta[property="og:type"][content=article], [itemprop=articleBody]'
)
_ARTICLE_TYPE = re.compile(
    r'"@type"\s*:\s*\[?\s*"(?:\w*Article|BlogPosting)"|schema\.org/(?:\w*Article|BlogPosting)'
)
# Elements that hold the text and the list of the site's pages beside it.
_FRAMES = {"#content", "#main-content", "#main", "div.documentwrapper"}
MAIN_SHARE = 0.9
"""Share of a frame's words outside of links that its main text holds at least."""

# Lines that ask the reader for something or lead elsewhere, as news pages strew them in.
_ASIDE = re.compile(
    r"""\W*(?:
    (?:related|read\ (?:more|also|next)|see\ (?:also|more)|more\ (?:from|on)|don['’]t\ miss
      |popular\ on|recommended|you\ may\ also\ like)\b[^.]{0,160}
    |(?:follow|like|find|join)\ .{0,60}\bon\ (?:facebook|twitter|instagram|youtube|linkedin)\b.*
    |(?:sign\ up|subscribe|register)\b.{0,120}\b(?:newsletters?|e-?mails?|inbox|alerts?|today
      |updates?|channel)\b.*
    |get\ (?:the\ )?(?:latest|our|more)\b.{0,120}\b(?:inbox|newsletters?|e-?mail|updates?)\b.*
    |click\ here\ (?:to|for)\b.{0,100}|have\ a\ (?:news\ )?tip\?.*
    |(?:post|leave|add|write|view|show|load)\ (?:an?\ |your\ |all\ )?comments?\b.{0,20}
    |\d*\ ?comments?
    |(?:filed\ under|tags?|topics?|categories|share(?:\ this)?|advertisement|sponsored|copyright
      |©|all\ rights\ reserved)\b.{0,100}
    |(?:first\ published|published|posted|updated|last\ (?:updated|modified))\b.{0,50}\d{4}.{0,30}
    |\(?(?:additional\ )?(?:reporting|editing|writing)\ by\b.{0,200}
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def find(html: str, tree: LexborHTMLParser) -> LexborNode | None:
    """The element with the main text. That of an article may belong to a tree of its own."""
    if tree.body is None:
        return None
    if tree.css_first(_MANUAL) is not None:
        return _marked(html, tree) or _around(html, tree)
    if tree.css_first(_ARTICLE) is not None or _ARTICLE_TYPE.search(html):
        return _article(html, tree) or _marked(html, tree) or _around(html, tree)
    return _marked(html, tree) or _around(html, tree)


def _marked(html: str, tree: LexborHTMLParser) -> LexborNode | None:
    """The element that holds the main text, or None where the page does not say."""
    if 'id="header"' in html and 'id="content"' in html:
        content = tree.css_first("#header + #content")
        if content is not None and tree.css_first("#header > h1") is not None:
            return content.parent  # AsciiDoc: the title and the first section are in the header
    roles: list[LexborNode] | None = None
    for selector, word in MAIN.items():
        if word not in html:
            continue  # looked for in the text, which is ten times as fast
        if selector.endswith(_ROLE):
            roles = tree.css(_ROLE) if roles is None else roles
            nodes = [node for node in roles if node.css_matches(selector) and _says(node)]
        else:
            nodes = [node for node in tree.css(selector) if _says(node)]
        if selector == "article" and len(nodes) > 1:
            continue  # a list of teasers
        if nodes:
            main = nodes[0] if len(nodes) == 1 else max(nodes, key=lambda node: len(node.text()))
            return _pruned(_narrowed(main)) if selector in _FRAMES else main
    return None


def _says(node: LexborNode) -> bool:
    """Is there any text? A paragraph nearly always is, and found at once."""
    first = node.css_first("p, pre")
    return bool((first is not None and first.text(strip=True)) or node.text(strip=True))


def _narrowed(frame: LexborNode) -> LexborNode:
    """The innermost element of the frame with nearly all of its words outside of links."""
    node = frame
    enough = MAIN_SHARE * _num_said(frame)
    while True:
        inner = next(
            (
                child
                for child in node.iter()
                if child.tag in ("div", "section", "article", "main")
                and _num_said(child, enough) >= enough
            ),
            None,
        )
        if inner is None or (node.css_first("h1") and not inner.css_first(HEADINGS)):
            return node
        node = inner


def _pruned(node: LexborNode) -> LexborNode:
    """Without the lists of links beside its largest part, and without a header full of links.

    Where no other part has a heading, that header keeps its own.
    """
    children = [child for child in node.iter() if child.tag in ("div", "header", "ul", "details")]
    parts = [child for child in children if child.tag != "header"] or children
    largest = max(parts, key=lambda child: len(child.text()), default=None)
    for child in children:
        num_links = len(child.css("a"))
        if num_links < 5 or largest is None or child.mem_id == largest.mem_id:
            continue
        said = _num_said(child)
        if child.tag == "header":  # a heading is no word of a menu
            said -= sum(_num_said(heading) for heading in child.css(HEADINGS))
        if 5 * said > _num_letters(child.text()):
            continue
        if child.tag == "header" and not any(
            other.css_first(HEADINGS) for other in children if other.mem_id != child.mem_id
        ):
            for inner in list(child.iter()):
                if inner.tag not in HEADING_TAGS and not inner.css_first(HEADINGS):
                    inner.decompose()
            continue
        child.decompose()
    return node


def _num_said(node: LexborNode, least: float = 0) -> int:
    """Letters outside of links, scripts and styles; or any number, if there are fewer than that."""
    letters = _num_letters(node.text())
    if letters < least:
        return letters
    return letters - _num_letters("".join([part.text() for part in node.css("a, script, style")]))


def _num_letters(text: str) -> int:
    """Characters other than spaces."""
    return len(text.encode("ascii", "replace").translate(None, b" \t\n\r\f\v\x1c\x1d\x1e\x1f"))


# --- articles ----------------------------------------------------------------------------------


def _article(html: str, tree: LexborHTMLParser) -> LexborNode | None:
    """What trafilatura takes for the body of an article, in a tree of its own, below the title.

    It is the best there is at telling a story from what stands around it; what it loses, code and
    the ids of headings, articles do not have. Links are left out: with them it finds worse.
    """
    import trafilatura  # a second to import, and manuals never need it

    found = trafilatura.extract(
        html,
        include_comments=False,
        include_formatting=True,
        fast=True,
        favor_recall=True,
        output_format="html",
    )
    body = LexborHTMLParser(found).body if found else None
    if body is None:
        return None
    for node in body.css("p, li, h2, h3, h4, h5, h6"):
        if _ASIDE.fullmatch(" ".join(node.text().split())):
            node.decompose()
    title = _title(tree)
    if title is not None:
        said = _dense(title.text())
        for node in list(body.iter())[:2]:
            if _dense(node.text()) == said:
                node.decompose()
        first = next(iter(body.iter()), None)
        if first is not None:
            first.insert_before(title)
    return body if body.text(strip=True) else None


def _title(tree: LexborHTMLParser) -> LexborNode | None:
    """The heading that says what the page's title begins with."""
    name = tree.css_first("title")
    begins = _dense(name.text()) if name is not None else ""
    for heading in tree.css("h1"):
        said = _dense(heading.text())
        if said and (begins.startswith(said) or said.startswith(begins)):
            return heading
    return None


def _around(html: str, tree: LexborHTMLParser) -> LexborNode | None:
    """The main text of a page that does not mark it: the innermost element around what
    trafilatura finds, since its own output loses code, a third of the headings and all ids.
    """
    import trafilatura

    assert tree.body is not None
    node = tree.body
    body = _dense(node.text())
    found = trafilatura.extract(html, include_comments=False, include_tables=False) or ""
    lines = {_dense(line.removeprefix("- ")) for line in found.splitlines()}
    lines = {line for line in lines if len(line) >= 20 and line in body}
    enough = 0.9 * sum(map(len, lines))
    while lines:
        for child in node.iter():
            text = _dense(child.text())
            if sum(len(line) for line in lines if line in text) >= enough:
                node = child
                break
        else:
            break
    for child in list(node.iter()):
        text = _dense(child.text())
        boxed = child.tag in ("div", "section", "header", "aside", "form", "table", "ul")
        if boxed and lines and not any(line in text for line in lines):
            if not child.css_first(f"{HEADINGS}, pre, td, dl"):
                child.decompose()
        elif child.tag == "header" and not lines:
            child.decompose()
    return node


def _dense(text: str) -> str:
    return "".join(text.split())
