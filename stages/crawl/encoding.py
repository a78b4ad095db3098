"""The bytes of a page to its text, whatever label they bear."""

import re

from w3lib.encoding import (
    html_body_declared_encoding,
    html_to_unicode,
    http_content_type_encoding,
)

# Encodings whose bytes can be taken for UTF-8 or ASCII: their label is believed.
_ESCAPED = re.compile(
    r"(?:charset|encoding)\s*=\s*[\"']?\s*(?:utf[-_]?(?:7|16|32)|iso-?2022|hz)", re.IGNORECASE
)
# Codecs of Python that no page is in; punycode takes quadratic time.
_NEVER = {"punycode", "raw-unicode-escape", "unicode-escape"}


def decode(media_type: str, data: bytes) -> str:
    """The text: by its byte order mark, as UTF-8 where it is that, else by its labels.

    Bytes that are valid UTF-8 are nothing else in practice, so a wrong label on them is not
    believed. The labels are the header's and then the page's own, read as browsers read them;
    where they say UTF-8 and most of it is none, it is the encoding of western Windows.
    """
    head = data[:2048].decode("latin-1")
    marked = data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"))
    if not marked and not _ESCAPED.search(f"{media_type} {head}"):
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            pass
    label = http_content_type_encoding(media_type) or html_body_declared_encoding(data)
    if label in _NEVER:
        return _unlabelled(data)
    try:
        encoding, text = html_to_unicode(media_type, data, auto_detect_fun=_detect)
    except (LookupError, UnicodeError):  # a codec that makes no text of bytes: rot13, idna
        return _unlabelled(data)
    broken = text.count("\ufffd")
    if encoding == "utf-8" and 2 * broken > sum(char > "\x7f" for char in text):
        return data.decode("cp1252", "replace")
    return str(text)


def _unlabelled(data: bytes) -> str:
    return data.decode(_detect(data), "replace")


def _detect(data: bytes) -> str:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"  # as in browsers
    return "utf-8"
