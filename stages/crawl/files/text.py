"""Plain text: from bytes in whatever encoding, with a mark every few lines."""

import re

import charset_normalizer

from stages.crawl.files.addresses import Place
from stages.crawl.files.draft import Draft
from stages.crawl.page import Page, UnreadableError

LONGEST_LINE = 1_000_000
"""Characters; a longer line is data or a minified program, and no text that is read."""
BINARY_SHARE = 0.05
"""Of a text's characters that no text has; with more it is none."""
LINES_PER_MARK = 20
"""Lines after which the next paragraph gets an anchor of its own."""
FEW_LETTERS, LATIN_SHARE = 40, 0.4
"""Letters beyond ASCII, in number and as a share, below which a text is taken for Windows-1252."""
_SAMPLE_BYTES = 1 << 16
_BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_CONTROLS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")  # \x1b colours terminals


def decode(body: bytes) -> str:
    """The text with `\\n` as line end, in the encoding that it names, is valid in, or looks like.

    What is no text, and a line too long for one, is unreadable.
    """
    text = _decoded(body).replace("\r\n", "\n").replace("\r", "\n")
    num_controls = len(_CONTROLS.findall(text[:_SAMPLE_BYTES]))
    if "\0" in text or num_controls > BINARY_SHARE * min(len(text), _SAMPLE_BYTES):
        raise UnreadableError("binary", "not a text")
    longest = max(map(len, text.split("\n")))
    if longest > LONGEST_LINE:
        raise UnreadableError("line_too_long", f"a line of {longest} characters")
    return text


def _decoded(body: bytes) -> str:
    for bom, encoding in _BOMS.items():
        if body.startswith(bom):
            try:
                return body.decode(encoding)
            except UnicodeDecodeError:
                break
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if b"\0" in body[:_SAMPLE_BYTES]:
        raise UnreadableError("binary", "not a text")
    # A guess from the start: the whole of a large file takes minutes and says the same.
    sample = body[:_SAMPLE_BYTES]
    letters = sum(byte > 0x7F for byte in sample)
    if letters < FEW_LETTERS and letters < LATIN_SHARE * len(sample):
        return body.decode("cp1252", "replace")  # so few that a guess would be drawn by lot
    found = charset_normalizer.from_bytes(sample).best()
    return body.decode(found.encoding if found else "cp1252", "replace")


def parse(body: bytes, at: Place) -> Page:
    """The paragraphs as they stand, with `L12` where one begins at line 12."""
    draft = Draft()
    marked = -LINES_PER_MARK
    number = 1
    for part in re.split(r"(\n[ \t]*\n\s*)", decode(body)):
        if part.strip() and number - marked >= LINES_PER_MARK:
            marked = number + len(part) - len(part.lstrip("\n"))
            draft.mark(f"L{marked}")
        draft.block(part)
        number += part.count("\n")
    return draft.page(at.url, at.stem)
