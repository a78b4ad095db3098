"""Headings to their anchors, and to numbers that outlast the converter."""

from selectolax.lexbor import LexborNode

from stages.crawl.extract.body import HEADINGS
from stages.crawl.extract.plain import MARK, plain

Title = tuple[str, str]
"""A heading's words and its anchor."""


def anchor(node: LexborNode) -> str:
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


def mark(nodes: list[LexborNode], anchors: list[str]) -> list[Title]:
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
        first = node.first_child
        assert first is not None  # it holds the title
        first.insert_before(f"{MARK}{len(titles)}{MARK}")
        titles.append((title, anchor))
    return titles
