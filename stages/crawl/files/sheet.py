"""Comma- or tab-separated values to a Markdown table, with a mark every few rows."""

import csv
import io

from stages.crawl.files.addresses import Place
from stages.crawl.files.draft import Draft, row_of
from stages.crawl.files.text import decode
from stages.crawl.page import Page, UnreadableError

MOST_ROWS = 2_000
"""Rows that are shown; how many more there are is said below them."""
LONGEST_CELL = 2_000
"""Characters of a cell that are shown."""
ROWS_PER_MARK = 20
_DELIMITERS = ",;\t|"
_SAMPLE_CHARS = 1 << 14


def parse(body: bytes, at: Place) -> Page:
    """The first row is the header; `L12` marks a row by its line in the file."""
    text = decode(body)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text), delimiter=delimiter(text))
    draft = Draft()
    width = shown = left = 0
    try:
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if shown > MOST_ROWS:
                left += 1
                continue
            cells = [cell[:LONGEST_CELL] for cell in cells]
            if not shown:
                width = len(cells)
                draft.block(f"{row_of(cells, width)}\n|{' --- |' * width}")
            else:
                if shown % ROWS_PER_MARK == 1:
                    draft.mark(f"L{rows.line_num}")
                cells = [*cells[: width - 1], " ".join(cells[width - 1 :])]
                draft.block(row_of(cells, width), "\n")
            shown += 1
    except csv.Error as error:
        raise UnreadableError("broken", f"line {rows.line_num}: {error}") from None
    if left:
        draft.block(f"{left} further rows are left out.")
    return draft.page(at.url, at.stem)


def delimiter(text: str) -> str:
    """The sign that parts the most cells of the header, equally in the rows below it."""
    sample = text[:_SAMPLE_CHARS]
    try:
        return csv.Sniffer().sniff(sample, _DELIMITERS).delimiter
    except csv.Error:
        header = sample.partition("\n")[0]
        return max(_DELIMITERS, key=header.count)
