"""Definition lists to what Markdown has: signatures as code with their text below, or a list."""

import html as escaping
import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from stages.crawl.extract.plain import plain

_TAG = re.compile(r"<(/?d[dlt])(?=[\s>])")
_SPELLED = {"dl": "<div", "/dl": "</div", "dt": "<p", "/dt": "</p", "dd": "<div", "/dd": "</div"}


def rewrite(tree: LexborHTMLParser, dl: LexborNode) -> None:
    """Signatures to code with their text below, the rest to a list of terms.

    A list of signatures alone keeps its elements until `spell`: to write a class's text anew for
    each list that it stands in takes long.
    """
    terms = _signatures(dl)
    if terms:
        for term in terms:
            term.inner_html = f"<code>{escaping.escape(plain(term))}</code>"
        return
    block = tree.create_node("div")
    block.inner_html = _written(dl)
    dl.replace_with(block, move=True)


def spell(html: str) -> str:
    """The lists of signatures that `rewrite` left, in elements that the converter knows."""
    return _TAG.sub(lambda tag: _SPELLED[tag.group(1)], html) if "<dl" in html else html


def _signatures(dl: LexborNode) -> list[LexborNode]:
    """The terms of a list of signatures, each with one text at most; none of any other list."""
    terms = []
    last = "dd"
    for node in dl.iter():
        if node.tag == "dt" and "sig" in (node.attributes.get("class") or "").split():
            terms.append(node)
        elif node.tag != "dd" or last != "dt":
            return []
        last = str(node.tag)
    return terms


def _written(dl: LexborNode) -> str:
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
