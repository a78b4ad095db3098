"""The main element to HTML that Markdown has words for: no frame, plain code, leads and lists."""

import functools

from selectolax.lexbor import LexborHTMLParser, LexborNode

from stages.crawl.extract import boxes, code, definitions, formulas, headings, junk, links
from stages.crawl.extract.body import HEADING_TAGS
from stages.crawl.extract.headings import Title
from stages.crawl.extract.links import Publish
from stages.crawl.extract.plain import plain

_WANTED = {"a": "links", "img": "links", "sup": "sup", "dl": "dl", "math": "formulas"}
_WANTED |= {"td": "cells", "ul": "lists", "ol": "lists"}
_WANTED |= dict.fromkeys(HEADING_TAGS, "headings")
_BOXES = frozenset(("p", "div", "span", "label"))
_LEADS = frozenset(
    (
        *("admonition-title", "topic-title", "sidebar-title", "markdown-alert-title"),
        *("custom-block-title", "label"),
    )
)
_JUNK = ("junk",)
_FORMULAS = frozenset(("katex", "math", "arithmatex"))


class _Found(dict[str, list[LexborNode]]):
    """What is to go and what needs work, by kind, in the order of the page."""

    def __missing__(self, kind: str) -> list[LexborNode]:
        return self.setdefault(kind, [])


def clean(tree: LexborHTMLParser, main: LexborNode, publish: Publish) -> list[Title]:
    """Make the main element fit for the converter; the headings, which are numbered in its text.

    Elements are gathered in one walk: asking for each kind anew costs more than all that is done
    to them. What gives an element new contents comes after what was gathered inside of it.
    """
    code.plain_blocks(main)  # first: the colours are most of a page's elements
    found = _gathered(main)
    if "tabs" in found or "formulas" in found:
        boxes.name_tabs(main)
        formulas.spell(main)
        found = _gathered(main)
    anchors = [headings.anchor(node) for node in found["headings"]]  # permalinks go as junk
    for node in found["junk"]:
        node.decompose()
    links.publish_all(found["links"], publish)
    for node in found["words"]:  # Sphinx sets each word of code in an element
        node.unwrap()
    for node in found["sup"]:
        if plain(node).isalnum():  # 10^6 is not 106
            node.replace_with(f"^{plain(node)}")
    titles = headings.mark(found["headings"], anchors)
    for node in found["boxes"]:
        boxes.flatten(node)
    for node in found["leads"]:
        boxes.lead(node)
    lists = main.css("ul, ol") if found["boxes"] else found["lists"]
    in_cells = [node for node in lists if _is_in_cell(node, main)] if found["cells"] else []
    for node in in_cells:
        items = [item.css_first("p") or item for item in node.css("li")]
        inner = tree.create_node("span")
        inner.inner_html = "; ".join((item.inner_html or "").strip() for item in items)
        node.replace_with(inner, move=True)
    renewed = found["boxes"] or in_cells
    for node in reversed(main.css("dl") if renewed else found["dl"]):  # the innermost first
        definitions.rewrite(tree, node)
    return titles


def _gathered(main: LexborNode) -> _Found:
    found = _Found()
    inside: set[int] = set()  # of what goes: it is not touched
    _show(main)
    nodes = main.traverse()
    next(nodes)  # the main element itself
    for node in nodes:
        if inside and node.mem_id in inside:
            continue
        tag = str(node.tag)
        attributes = node.attributes
        kinds: tuple[str, ...] = ()
        if attributes:
            if "style" in attributes or "hidden" in attributes:  # what is shown later is text too
                _show(node)
            kinds = _kinds(tag, attributes.get("class") or "")
        if tag in junk.TAGS or kinds == _JUNK or (attributes and junk.is_part(attributes)):
            found["junk"].append(node)
            if tag == "script" and (attributes.get("type") or "").startswith("math/tex"):
                found["formulas"].append(node)
            first = node.first_child
            if first is not None and (first.is_element_node or first.next is not None):
                inside.update(inner.mem_id for inner in node.traverse())
            continue
        if tag in _WANTED:
            found[_WANTED[tag]].append(node)
        for kind in kinds:
            if kind == "labels":
                if node.parent is not None and node.parent.tag == "aside":
                    found["leads"].append(node)
            else:
                found[kind].append(node)
        if attributes and attributes.get("role") == "tablist":
            found["tabs"].append(node)
    return found


def _show(node: LexborNode) -> None:
    for name in ("style", "hidden"):
        if name in node.attrs:
            del node.attrs[name]


@functools.lru_cache(maxsize=4096)
def _kinds(tag: str, classes: str) -> tuple[str, ...]:
    """What an element is by its classes; pages repeat few of them."""
    names = set(classes.split())
    if junk.is_named(names):
        return _JUNK
    kinds = []
    if tag in _BOXES and names & _LEADS:
        kinds.append("labels" if "label" in names else "leads")
    elif tag in _BOXES and "admonitionblock" in names:
        kinds.append("boxes")
    if names & _FORMULAS:
        kinds.append("formulas")
    if "tabbed-labels" in names:
        kinds.append("tabs")
    if tag == "span" and names == {"pre"}:
        kinds.append("words")
    return tuple(kinds)


def _is_in_cell(node: LexborNode, main: LexborNode) -> bool:
    above = node.parent
    while above is not None and above.mem_id != main.mem_id:
        if above.tag == "td":
            return True
        above = above.parent
    return False
