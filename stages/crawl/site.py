"""Which addresses belong to the crawled site, and how each is written outside of the crawl."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from selectolax.lexbor import LexborHTMLParser
from w3lib.url import canonicalize_url

from stages.crawl import traps

NOT_PAGES = re.compile(
    r"\.("
    r"7z|aac|apk|avi|avif|bin|bmp|bz2|css|csv|deb|dmg|doc|docx|eot|epub|exe|flac|gif|gz|ico|"
    r"ics|inv|ipynb|iso|jar|jpeg|jpg|js|json|m4a|mid|mov|mp3|mp4|mpeg|msi|odp|ods|odt|ogg|otf|"
    r"pdf|pkg|png|ppt|pptx|ps|rar|rpm|rss|svg|tar|tgz|tif|tiff|ttf|txt|wav|webm|webp|whl|wmv|"
    r"woff|woff2|xls|xlsx|xml|xz|zip|zst"
    r")$",
    re.I,
)
"""Endings of addresses that are never pages; the others are told by their content type."""

LISTS = re.compile(
    r"(?<![a-z])(?:sitemaps?|feeds?|rss|atom|llms)(?![a-z])(?!.*\.x?html?$)|\.(?:xml|txt|gz)$", re.I
)
"""Addresses of sitemaps, feeds and llms.txt, as far as they are told from the address."""

_LINKS = "a[href], area[href], link[rel~=canonical][href], link[rel~=next][href]"
_REFRESH = re.compile(r"^\s*\d+\s*;\s*url\s*=\s*['\"]?([^'\"]+)", re.I)


@dataclass(frozen=True)
class Site:
    """The pages under the folder of the start page, on its host.

    `origin` is scheme and host, `folder` a path that ends in a slash, `public` what takes the
    place of both in every address that leaves the crawl; None leaves addresses as they are.
    """

    origin: str
    folder: str
    public: str | None

    @classmethod
    def around(cls, start: str, public: str | None) -> "Site":
        """The site of a start page: its folder; a last part without a dot is a folder itself."""
        parts = urlsplit(start)
        folder, _, last = parts.path.rpartition("/")
        if last and "." not in last:
            folder = f"{folder}/{last}"
        prefix = None if public is None else public.rstrip("/") + "/"
        return cls(f"{parts.scheme}://{parts.netloc}", f"{folder}/", prefix)

    def resolve(self, href: str, base: str) -> str | None:
        """The address that a link on page `base` leads to, or None if that is not in the site.

        Without fragment, in one spelling, with the site's own scheme.
        """
        try:
            url = urljoin(base, href.strip())
            if self.public is not None and url.startswith(self.public):
                url = self.origin + self.folder + url.removeprefix(self.public)
            parts = urlsplit(url)
            if _host(parts) != _host(urlsplit(self.origin)):
                return None
        except ValueError:  # a bracket or port that is no address
            return None
        path = parts.path or "/"
        if not f"{path}/".startswith(self.folder) or ".." in unquote(path).split("/"):
            return None
        # A path that is exactly the folder without its slash passes; a longer name does not.
        path, query = traps.without_session(path, parts.query)
        try:
            spelled: str = canonicalize_url(urlunsplit(("", "", path or "/", query, "")))
        except UnicodeError:  # bytes of a robots.txt that are no text
            return None
        return self.origin + spelled

    def publish(self, url: str) -> str | None:
        """The address as readers know it; None where it exists during the crawl only."""
        if self.public is None:
            return url
        inside = self.resolve(url, url)
        if inside is not None:
            rest = inside.removeprefix(self.origin).removeprefix(self.folder.rstrip("/"))
            fragment = urlsplit(url).fragment
            return self.public + rest.lstrip("/") + (f"#{fragment}" if fragment else "")
        try:
            return None if _host(urlsplit(url)) == _host(urlsplit(self.origin)) else url
        except ValueError:
            return None

    def resolve_on_host(self, href: str, base: str) -> str | None:
        """The address of a sitemap or feed, which may lie outside of the folder."""
        inside = self.resolve(href, base)
        return inside or replace(self, folder="/", public=None).resolve(href, base)

    def resolve_out(self, href: str, base: str) -> str | None:
        """The address that a link leads to outside of the site; None for what is not public."""
        try:
            parts = urlsplit(urljoin(base, href.strip()))
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                return None
            _host(parts)
            url: str = canonicalize_url(urlunsplit(parts._replace(fragment="")))
        except ValueError:
            return None
        return url if self.publish(url) == url and self.resolve(url, url) is None else None

    def hrefs(self, tree: LexborHTMLParser, page: str) -> list[tuple[str, str]]:
        """The links of a page as they are written, each once, with what they are relative to.

        A page repeats most of its links, and spelling one anew is dear: they are told apart raw.
        """
        hrefs = {node.attributes.get("href") for node in tree.css(_LINKS)}
        for node in tree.css("meta[http-equiv][content]"):
            if (node.attributes.get("http-equiv") or "").lower() == "refresh":
                target = _REFRESH.match(node.attributes.get("content") or "")
                hrefs.add(target and target.group(1))
        base = base_of(tree, page)
        raw = {href.partition("#")[0].strip() for href in hrefs if href}
        return [(href, base) for href in raw if href]


@dataclass(frozen=True)
class Filter:
    """Which pages are wanted, by regular expressions on the address's path."""

    include: tuple[re.Pattern[str], ...]
    exclude: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, include: Sequence[str], exclude: Sequence[str]) -> "Filter":
        return cls(tuple(map(re.compile, include)), tuple(map(re.compile, exclude)))

    def keeps(self, url: str) -> bool:
        path = urlsplit(url).path
        wanted = not self.include or any(pattern.search(path) for pattern in self.include)
        return wanted and not self.excludes(url)

    def excludes(self, url: str) -> bool:
        path = urlsplit(url).path
        return any(pattern.search(path) for pattern in self.exclude)


def may_be_page(url: str) -> bool:
    """Does the address end like a page's?"""
    return not NOT_PAGES.search(urlsplit(url).path)


def twins(url: str) -> tuple[str, ...]:
    """The pages that an address of Markdown repeats: llms.txt names `page.html.md` or `page.md`."""
    page = url.removesuffix(".md")
    folder = page.removesuffix("index") if page.endswith("/index") else f"{page}/"
    return page, f"{page}.html", folder


def may_be_list(url: str) -> bool:
    """Does the address look like that of a list of addresses?"""
    return LISTS.search(urlsplit(url).path) is not None


def feeds_of(tree: LexborHTMLParser, page: str) -> list[str]:
    """The feeds that a page names as its site's."""
    nodes = tree.css('link[rel~="alternate"][href]')
    kinds = ("application/rss+xml", "application/atom+xml")
    named = [node.attributes for node in nodes if node.attributes.get("type") in kinds]
    return [href for attributes in named if (href := attributes.get("href"))]


def base_of(tree: LexborHTMLParser, page: str) -> str:
    """What the page's relative addresses are relative to."""
    node = tree.css_first("base[href]")
    href = node.attributes.get("href") if node else None
    try:
        return urljoin(page, href) if href else page
    except ValueError:
        return page


def _host(parts: SplitResult) -> tuple[str, str | None, int | None]:
    """Host and port; http and https are one where the port is the scheme's own."""
    if parts.scheme not in ("http", "https"):
        return parts.scheme, parts.hostname, None
    port = parts.port
    return "http", parts.hostname, None if port in (80, 443) else port
