"""Jupyter notebooks to Markdown: text, code, and the text of what the code gave."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

from stages.crawl.files import markdown
from stages.crawl.files.addresses import Place
from stages.crawl.files.draft import Draft, fence
from stages.crawl.page import Page, UnreadableError

LONGEST_OUTPUT = 2_000
"""Characters of a cell's output that are kept."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def parse(body: bytes, at: Place) -> Page:
    """Headings have the anchors that Jupyter and GitHub give them in a notebook: `Second-part`."""
    try:
        notebook = json.loads(body)
        language, cells = _language(notebook), list(_cells(notebook))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError("broken", f"no notebook: {error}") from None
    draft = Draft()
    first = ""
    for kind, source, outputs in cells:
        if kind == "code":
            draft.block(fence(source, language) if source.strip() else "")
            for output in outputs:
                draft.block(fence(output))
        elif kind == "markdown":
            text, headings = markdown.outlined(source, _anchor, lambda href: urljoin(at.url, href))
            first = first or next((h.title for h in headings if h.level == 1), "")
            draft.outlined(text, headings)
        elif kind == "raw":
            draft.block(source)
    return draft.page(at.url, first or at.stem)


def _anchor(title: str) -> str:
    return "-".join(title.replace("`", "").split())


def _language(notebook: dict[str, Any]) -> str:
    about = notebook.get("metadata", {})
    named = about.get("language_info", {}).get("name") or about.get("kernelspec", {}).get(
        "language"
    )
    return str(named or "python")


def _cells(notebook: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Kind, source and outputs of each cell, of format 4 and of the older ones."""
    cells = notebook.get("cells")
    if cells is None:
        cells = [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
    for cell in cells:
        kind = str(cell["cell_type"])
        source = _text(cell.get("source", cell.get("input", "")))
        if kind == "heading":
            source = f"{'#' * int(cell.get('level', 1))} {source}"
            kind = "markdown"
        outputs = [_output(output) for output in cell.get("outputs", ())]
        yield kind, source, [output for output in outputs if output.strip()]


def _output(output: dict[str, Any]) -> str:
    """The text of an output; of an error its last line, and of a picture nothing."""
    if output.get("output_type") in ("error", "pyerr"):
        text = f"{output.get('ename', '')}: {output.get('evalue', '')}"
    else:
        data = output.get("data", output)
        text = _text(output.get("text") or data.get("text/plain") or "")
    text = _ANSI.sub("", text)
    return text if len(text) <= LONGEST_OUTPUT else f"{text[:LONGEST_OUTPUT]}\n…"


def _text(lines: Any) -> str:
    return "".join(map(str, lines)) if isinstance(lines, list) else str(lines)
