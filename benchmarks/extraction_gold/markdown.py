"""A page's Markdown to what its extraction should hold."""

from markdown_it import MarkdownIt
from markdown_it.token import Token

from benchmarks.extraction_gold.records import Code, Gold, Title, dense


def read_markdown(text: str) -> Gold:
    gold = Gold()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    page = ""
    for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and inside is not None:
            title = words(inside)
            page = page or title
            anchors = {dense(title), dense(page + title)}
            gold.titles.append(Title(int(token.tag[1]), title, frozenset(anchors)))
            if "(" in title:
                gold.signatures.append(title)
        elif token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.split() else ""
            gold.codes.append(Code(token.content.strip("\n"), language))
        elif token.type == "paragraph_open" and inside is not None:
            gold.paragraphs.append(words(inside))
    return gold


def words(inline: Token) -> str:
    parts = []
    for child in inline.children or ():
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts)
