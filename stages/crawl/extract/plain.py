"""An element to its words on one line, as headings, signatures and names are written."""

import re

from selectolax.lexbor import LexborNode

# A character that no text may hold: it marks where the converter put a heading.
MARK = "\ufdd0"
MARKED = re.compile(f"{MARK}([0-9]{{1,6}}){MARK}")
INVISIBLE = "\u00ad\u200b\u2060\ufeff"


def plain(node: LexborNode | None) -> str:
    """The words, without permalink signs and what no reader sees."""
    if node is None:
        return ""
    words = " ".join(node.text().split())
    if not words.isascii():
        words = " ".join(visible(words).split())
    return words.removesuffix("¶").rstrip()


def visible(text: str) -> str:
    """Without the characters that only say where a word may break."""
    for char in INVISIBLE:
        if char in text:
            text = text.replace(char, "")
    return text
