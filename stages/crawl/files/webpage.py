"""HTML files, and reStructuredText by way of HTML, to Markdown as pages of a site are."""

import re
from dataclasses import replace
from urllib.parse import quote, unquote

from stages.crawl.extract import extract
from stages.crawl.files import addresses
from stages.crawl.files.addresses import Place
from stages.crawl.files.text import decode
from stages.crawl.page import Page, UnreadableError
from stages.crawl.site import Site

_ORIGIN = "http://files.invalid"
"""Where a folder of files would be if it were a site; no such host can exist."""
_CHARSET = re.compile(rb"<meta[^>]+?charset\s*=\s*[\"']?\s*([\w-]+)", re.I)


class _Folder(Site):
    """A site whose addresses are those of files: relative, or under the source's public address."""

    def publish(self, url: str) -> str | None:
        if not url.startswith(f"{_ORIGIN}/"):
            return url
        inside, hash, fragment = url.removeprefix(f"{_ORIGIN}/").partition("#")
        return addresses.publish(self.public, unquote(inside)) + hash + fragment


def parse(body: bytes, at: Place) -> Page:
    return of_html(_decoded(body), at)


def of_html(html: str, at: Place) -> Page:
    site = _Folder(_ORIGIN, "/", at.public)
    page = extract(html, f"{_ORIGIN}/{quote(at.path)}", site)
    if not page.text.strip():
        raise UnreadableError("empty")
    return replace(page, title=page.title or at.stem, canonical=None)


def _decoded(body: bytes) -> str:
    """In the encoding that the file names; decode finds out where it names none."""
    named = _CHARSET.search(body[:4096])
    if named and not body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        try:
            return body.decode(named[1].decode())
        except (LookupError, UnicodeDecodeError):
            pass
    return decode(body)
