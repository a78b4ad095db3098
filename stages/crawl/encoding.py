"""The bytes of a page to its text, whatever label they bear."""

import re

from w3lib.encoding import html_to_unicode

_NO_ASCII = re.compile(rb"[\x80-\xff]")
# Encodings whose bytes can be taken for UTF-8 or ASCII: their label is believed.
_ESCAPED = re.compile(r"charset\s*=\s*[\"']?\s*(?:utf-?(?:7|16|32)|iso-2022|hz-gb)", re.IGNORECASE)


def decode(media_type: str, data: bytes) -> str:
    """The text: by its byte order mark, as UTF-8 where it is that, else by its labels.

    Bytes above 127 that are valid UTF-8 are nothing else in practice, so a wrong label on them is
    not believed. The labels are the header's and then the page's own, read as browsers read them;
    where they say UTF-8 and most of it is none, it is the encoding of western Windows.
    """
    head = data[:2048].decode("latin-1")
    marked = data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"))
    if not marked and _NO_ASCII.search(data) and not _ESCAPED.search(f"{media_type} {head}"):
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            pass
    encoding, text = html_to_unicode(media_type, data, auto_detect_fun=_detect)
    broken = text.count("\ufffd")
    if encoding == "utf-8" and 2 * broken > sum(char > "\x7f" for char in text):
        return data.decode("cp1252", "replace")
    return str(text)


def _detect(data: bytes) -> str:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"  # as in browsers
    return "utf-8"
