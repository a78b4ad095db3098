"""Tabs and admonitions to text that their name leads."""

import html as escaping
import re

from selectolax.lexbor import LexborNode

from stages.crawl.extract.plain import plain


def name_tabs(main: LexborNode) -> None:
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


def flatten(block: LexborNode) -> None:
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


def lead(node: LexborNode) -> None:
    """Put a box's title, or the mark of a note, in bold before the first words of its text."""
    words = plain(node)
    words = words if words.startswith("[") else f"{words}:"
    body = node.next
    while body is not None and not body.is_element_node:
        body = body.next
    bold = f"<strong>{escaping.escape(words)}</strong>"
    if body is not None and body.tag == "p":
        body.inner_html = f"{bold} {body.inner_html}"
        node.decompose()
    else:
        node.inner_html = bold
