"""Lists of addresses: sitemaps and their indexes, packed or not, llms.txt, and feeds."""

import io
import itertools
import re
import zlib
from dataclasses import dataclass
from urllib.parse import urljoin

from lxml import etree  # type: ignore[import-untyped]  # scrapy brings it

MAX_BYTES = 50 * 2**20
"""Largest list once unpacked, as the sitemap protocol has it."""
MAX_ADDRESSES = 50_000
"""Most addresses of one list, as the protocol has it too; the rest is not read."""

_MARKDOWN_LINK = re.compile(r"\[[^\]\n]*\]\(\s*<?([^\s)>]+)")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Addresses:
    """What a list names: pages, and further lists."""

    pages: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


def read(data: bytes, url: str) -> Addresses:
    """The absolute addresses in a list; of one that cannot be read to its end, those before."""
    data = _unpack(data)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        found = _read_xml(data)
    else:
        found = _read_text(data.decode("utf-8-sig", "replace"))
    return Addresses(*(_absolute(urls, url) for urls in (found.pages, found.lists)))


def _unpack(data: bytes) -> bytes:
    if not data.startswith(_GZIP):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES)
    except zlib.error:
        return b""


def _read_xml(data: bytes) -> Addresses:
    """Of a sitemap, a sitemap index, an RSS or an Atom feed."""
    pages: list[str] = []
    lists: list[str] = []
    # Neither entities nor a network: a list is read as it stands, part by part.
    parsed = etree.iterparse(
        io.BytesIO(data),
        events=("end",),
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        recover=True,
    )
    try:
        for _, element in parsed:
            if not isinstance(element.tag, str):
                continue
            if len(pages) + len(lists) >= MAX_ADDRESSES:
                break
            name, parent = _name(element), element.getparent()
            above = _name(parent) if parent is not None else ""
            text = (element.text or "").strip()
            if name == "loc" and above == "url":
                pages.append(text)
            elif name == "loc" and above == "sitemap":
                lists.append(text)
            elif name == "link" and above in ("item", "entry"):
                if element.get("rel", "alternate") == "alternate":
                    pages.append(element.get("href") or text)
            elif name in ("url", "sitemap", "item", "entry"):
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]
    except etree.XMLSyntaxError:
        pass  # what stands before it is good
    return Addresses(tuple(pages), tuple(lists))


def _name(element: "etree._Element") -> str:
    # Not by QName, which raises at a name like `:`, and a broken list may hold any.
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _read_text(text: str) -> Addresses:
    """Of a sitemap with an address on each line, or of llms.txt, which is Markdown."""
    rows = (line.strip() for line in io.StringIO(text))
    lines = list(itertools.islice(filter(None, rows), MAX_ADDRESSES))
    if lines and all(line.startswith(("http://", "https://")) for line in lines):
        return Addresses(tuple(lines))
    links = itertools.islice(_MARKDOWN_LINK.finditer(text), MAX_ADDRESSES)
    return Addresses(tuple(found.group(1) for found in links))


def _absolute(urls: tuple[str, ...], base: str) -> tuple[str, ...]:
    found = []
    for url in urls:
        try:
            found.append(urljoin(base, url))
        except ValueError:  # a bracket or port that is no address
            continue
    return tuple(dict.fromkeys(url for url in found if url))
