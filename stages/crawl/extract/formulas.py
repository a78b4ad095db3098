"""Formulas to TeX between dollars, where the page has their TeX."""

from selectolax.lexbor import LexborNode


def spell(main: LexborNode) -> None:
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
