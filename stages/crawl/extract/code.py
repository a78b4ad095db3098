"""Code blocks to plain code with its language: no colours, no numbers of lines."""

import html as escaping
import re

from selectolax.lexbor import LexborNode

from stages.crawl.extract.junk import is_junk

_LANGUAGE = re.compile(r"(?:^|\s)(?:highlight-source-|highlight-|language-|lang-)([\w+#.-]+)")
_NO_LANGUAGE = {"default", "none", "text", "plaintext", "plain", "txt", "notranslate"}


# What numbers lines or copies them, by a word that code without it cannot hold.
_GUTTERS = (
    *("lineno", "gutter", "lnt", "hljs-ln", "line-numbers", "blob-num", "<button", "copybtn"),
    *("clipboard", "sr-only", "visually"),
)
_NUMBERED = frozenset(
    ("highlighttable", "rouge-table", "lntable", "codehilitetable", "syntaxhighlighter")
)


def plain_blocks(main: LexborNode) -> None:
    """Every code block to its text; a table of line numbers and code to the code."""
    seen: set[int] = set()  # the blocks of such tables
    for pre in main.css("pre"):
        if pre.mem_id in seen:
            continue
        table = _table_around(pre)
        codes = [] if table is None else [code for code in table.css("pre") if _says(code)]
        if table is None or not codes:
            _plain(pre)
            continue
        seen.update(inner.mem_id for inner in table.css("pre"))
        table.replace_with(codes[-1], move=True)
        _plain(codes[-1])


def _says(pre: LexborNode) -> bool:
    return bool(pre.text(strip=True))


def _table_around(pre: LexborNode) -> LexborNode | None:
    """The table that sets a block's lines beside their numbers."""
    above = pre.parent
    while above is not None and above.tag in ("td", "tr", "tbody", "div", "figure"):
        above = above.parent
    if above is None or above.tag != "table":
        return None
    names = (above.attributes.get("class") or "").split()
    return None if _NUMBERED.isdisjoint(names) else above


def _plain(pre: LexborNode) -> None:
    """Keep a code block's exact text and its language; drop the colours."""
    source = pre.inner_html or ""
    if any(word in source for word in _GUTTERS):
        for node in list(pre.traverse()):
            inside = node.mem_id != pre.mem_id and node.tag != "code"
            if inside and is_junk(str(node.tag), node.attributes):
                node.inner_html = ""
        source = pre.inner_html or ""
    if "<br" in source:
        for line in pre.css("br"):
            line.replace_with("\n")
    if "<div" in source and source.count("</div>") > source.count("\n") + 1:  # a line each
        pre.inner_html = re.sub(r"(?<!</div>)</div>", "\n</div>", pre.inner_html or "")
    language = _language(pre, "<code" in source)
    above = pre.parent
    if above is not None and "language-" in (above.attributes.get("class") or ""):
        for name in above.css("span.lang"):
            name.decompose()
    attribute = ""
    if language and language.lower() not in _NO_LANGUAGE:
        attribute = f' class="language-{escaping.escape(language)}"'
    pre.inner_html = f"<code{attribute}>{escaping.escape(pre.text())}</code>"


def _language(pre: LexborNode, has_code: bool) -> str:
    """What a block or an element around it calls the language; else empty."""
    inner = pre.css_first("code") if has_code else None
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
            return language
        node = node.parent
    return ""
