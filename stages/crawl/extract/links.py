"""Links and images to absolute, public addresses; what leads nowhere to its text."""

import functools
import re
from collections.abc import Callable
from urllib.parse import urljoin

from selectolax.lexbor import LexborNode

from stages.crawl.site import Site

Publish = Callable[[str], str | None]
"""An address as it stands in the page to the one that readers know; None where it leads nowhere."""

# Links that say nothing once they are text: the way to a footnote and back from it.
_UNLINKED = frozenset(("footnote-reference", "citation-reference", "fn-backref"))
_NOTES = frozenset(("doc-noteref", "doc-backlink"))
_WEB = ("http://", "https://")


# A link to a file beside the page or below it, which `urljoin` would take long to see.
_BELOW = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*(?:#[!-~]+)?", re.ASCII)
_WITHIN = re.compile(r"#[!-~]+")


def publisher(url: str, base: str, site: Site) -> Publish:
    try:
        page, folder = urljoin(url, "#x")[:-2], urljoin(base, "x")[:-1]
    except ValueError:
        page = folder = ""
    is_plain = page.startswith(_WEB) and folder.startswith(_WEB)

    @functools.cache  # a page repeats its links
    def publish(href: str) -> str | None:
        if is_plain and _WITHIN.fullmatch(href):
            target = page + href
        elif is_plain and _BELOW.fullmatch(href):
            target = folder + href
        else:
            try:
                target = urljoin(url if href.startswith("#") else base, href)
            except ValueError:
                return None
        if target.startswith("mailto:"):
            return target
        return site.publish(target) if href and target.startswith(_WEB) else None

    return publish


def publish_all(nodes: list[LexborNode], publish: Publish) -> None:
    """Make links and images absolute and public; keep only the text of what leads nowhere."""
    for node in nodes:
        attributes = node.attributes
        if "title" in attributes:
            del node.attrs["title"]  # what a pointer shows: the target's name once more
        if node.tag == "img":
            said = (attributes.get("alt") or "").strip()
            source = (attributes.get("src") or "").strip()
            public = None if source.startswith("data:") or not said else publish(source)
            if public is None:
                node.decompose()
            else:
                node.attrs["src"] = public
            continue
        if not (node.text(strip=True) or node.css_first("img")):
            node.decompose()
            continue
        classes = attributes.get("class")
        is_note = attributes.get("role") in _NOTES
        if is_note or (classes and not _UNLINKED.isdisjoint(classes.split())):
            node.unwrap()
            continue
        public = publish((attributes.get("href") or "").strip())
        if public is None:
            node.unwrap()
        else:
            node.attrs["href"] = public
