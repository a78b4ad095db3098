"""The crawl itself, a process of its own: an order as JSON on stdin, a row per address on stdout.

Twisted's reactor starts once per process, so the stage starts this one for each crawl. It goes
level by level: a level is every address that the pages of the level before lead to, sorted, so
that neither the speed of an answer nor the number of connections decides what is fetched.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from protego import Protego
from scrapy import Request, Spider
from scrapy.crawler import AsyncCrawlerProcess
from scrapy.exceptions import (
    CannotResolveHostError,
    DownloadCancelledError,
    DownloadConnectionRefusedError,
    DownloadFailedError,
    DownloadTimeoutError,
    IgnoreRequest,
    NotSupported,
    ResponseDataLossError,
    UnsupportedURLSchemeError,
)
from scrapy.http import HtmlResponse, Response
from selectolax.lexbor import LexborHTMLParser
from twisted.internet.error import ConnectError, ConnectionClosed

from stages.crawl.site import Filter, Site

MAX_PAGE_BYTES = 32 * 2**20
MAX_REDIRECTS = 10

REASONS: dict[type[Exception], str] = {
    CannotResolveHostError: "unknown_host",
    ConnectError: "unreachable",
    ConnectionClosed: "unreachable",
    DownloadCancelledError: "too_large",
    DownloadConnectionRefusedError: "refused",
    DownloadFailedError: "unreachable",
    DownloadTimeoutError: "timeout",
    IgnoreRequest: "too_large",  # once unpacked
    NotSupported: "unreachable",
    OSError: "unreachable",
    ResponseDataLossError: "unreachable",
    UnsupportedURLSchemeError: "unreachable",
}
"""Why an address gave no answer, by what Scrapy's downloader raises."""


@dataclass(frozen=True)
class Order:
    """What to crawl: the start page, and the limits of `Config`."""

    start: str
    public: str | None
    local: bool
    include: list[str]
    exclude: list[str]
    max_pages: int
    max_depth: int
    concurrent_requests: int
    delay_s: float
    timeout_s: float
    user_agent: str
    obey_robots: bool


@dataclass(frozen=True)
class Row:
    """What one address gave: a page with its HTML, or why there is none.

    `total` is how many addresses are to be asked for, as far as known. The last row is an `end`,
    whose total is how many known addresses the limits left out; without it a crawl is not whole.
    """

    kind: Literal["page", "reject", "end"]
    url: str
    total: int
    html: str = ""
    reason: str = ""
    detail: str = ""
    """For a redirect where it leads, for the rest what went wrong in Scrapy's words."""
    referrer: str = ""
    """The first page, by address, that links here."""


@dataclass(frozen=True)
class Silence:
    """Why an address gave no answer."""

    reason: str
    detail: str


class SiteSpider(Spider):
    name = "site"

    def __init__(self, order: Order, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = order
        self.site = Site.around(order.start, order.public)
        self.filter = Filter.of(order.include, order.exclude)
        self.robots: Protego | None = None
        self.seen: dict[str, str] = {}  # address: the page that led there
        self.found: dict[str, str] = {}  # the same, for what pages link to
        self.redirected: dict[str, str] = {}  # the same, for the rest of this level

    async def start(self) -> AsyncIterator[Any]:
        start = self.site.resolve(self.order.start, self.order.start) or self.order.start
        if not self.order.obey_robots or await self._read_robots(start):
            level, left = {start: ""}, 0
            for _ in range(self.order.max_depth + 1):
                await self._fetch_all(level)
                new = sorted(self.found.keys() - self.seen.keys())
                room = max(self.order.max_pages - len(self.seen), 0)
                left = len(new[room:])
                level = {url: self.found[url] for url in new[:room]}
                if not level:
                    break
            self._emit("end", "", total=left)
        return
        yield  # every request goes to the downloader from here, in its level: none is scheduled

    async def _fetch_all(self, level: dict[str, str]) -> None:
        """Fetch a level, then where its redirects lead, which belongs to it."""
        for _ in range(MAX_REDIRECTS):
            self.seen |= level
            self.redirected = {}
            queue: Iterator[str] = iter(sorted(level))
            await asyncio.gather(
                *(self._work(queue) for _ in range(self.order.concurrent_requests))
            )
            level = {url: by for url, by in self.redirected.items() if url not in self.seen}
            if not level:
                break

    async def _work(self, queue: Iterator[str]) -> None:
        for url in queue:
            await self._fetch(url)

    async def _fetch(self, url: str) -> None:
        """Fetch one address, tell what came, and note where it leads."""
        if self.robots is not None and not self.robots.can_fetch(url, self.order.user_agent):
            return self._emit("reject", url, reason="robots", detail="robots.txt forbids it")
        response = await self._download(url)
        if isinstance(response, Silence):
            return self._emit("reject", url, reason=response.reason, detail=response.detail)
        if 300 <= response.status < 400 and response.headers.get("Location"):
            location = response.headers.get("Location") or b""
            target = urljoin(url, location.decode("latin-1"))
            inside = self.site.resolve(target, url)
            if inside is None or not self.filter.keeps(inside):
                return self._emit("reject", url, reason="outside", detail=target)
            self.redirected[inside] = min(self.redirected.get(inside, url), url)
            return self._emit("reject", url, reason="redirect", detail=inside)
        if response.status != 200:
            return self._emit("reject", url, reason=f"http_{response.status}")
        if not isinstance(response, HtmlResponse):
            kind = (response.headers.get("Content-Type") or b"").decode("latin-1")
            return self._emit("reject", url, reason="not_html", detail=kind)
        html = response.text
        self._emit("page", url, html=html)
        for link in self.site.links(LexborHTMLParser(html), url):
            if self.filter.keeps(link):
                self.found[link] = min(self.found.get(link, url), url)
        return None

    async def _download(self, url: str) -> "Response | Silence":
        assert self.crawler.engine is not None
        try:
            return await self.crawler.engine.download_async(Request(url))
        except tuple(REASONS) as error:
            reason = next(REASONS[kind] for kind in type(error).__mro__ if kind in REASONS)
            return Silence(reason, " ".join(str(error).split()))

    async def _read_robots(self, start: str) -> bool:
        """Read robots.txt; False, and the crawl over, where the site gives no answer at all.

        RFC 9309: no such file allows everything, a failing server forbids everything.
        """
        url = f"{self.site.origin}/robots.txt"
        response = await self._download(url)
        for _ in range(5):
            if isinstance(response, Silence) or not 300 <= response.status < 400:
                break
            location = (response.headers.get("Location") or b"").decode("latin-1")
            target = urljoin(url, location)
            if urlsplit(target).netloc != urlsplit(url).netloc:
                break
            response = await self._download(target)
        if not isinstance(response, Silence) and response.status >= 500:
            response = Silence(f"robots_{response.status}", "")
        if isinstance(response, Silence):
            self.seen[start] = ""
            self._emit("reject", start, reason=response.reason, detail=response.detail)
            self._emit("end", "", total=0)
            return False
        if response.status == 200:
            self.robots = Protego.parse(response.body.decode("utf-8", "replace"))
            pause = self.robots.crawl_delay(self.order.user_agent)
            assert self.crawler.engine is not None
            for slot in self.crawler.engine.downloader.slots.values():
                slot.delay = max(slot.delay, pause or 0.0)
        return True

    def _emit(
        self,
        kind: Literal["page", "reject", "end"],
        url: str,
        total: int | None = None,
        html: str = "",
        reason: str = "",
        detail: str = "",
    ) -> None:
        known = len(self.seen) if total is None else total
        row = Row(kind, url, known, html, reason, detail, self.seen.get(url, ""))
        sys.stdout.write(json.dumps(asdict(row)) + "\n")
        sys.stdout.flush()


def settings(order: Order) -> dict[str, Any]:
    """Scrapy's settings; what is not here is as Scrapy has it."""
    return {
        "AUTOTHROTTLE_ENABLED": False,
        "CONCURRENT_REQUESTS": order.concurrent_requests,
        "CONCURRENT_REQUESTS_PER_DOMAIN": order.concurrent_requests,
        "COOKIES_ENABLED": False,
        "DOWNLOAD_DELAY": order.delay_s,
        "DOWNLOAD_MAXSIZE": MAX_PAGE_BYTES,
        "DOWNLOAD_TIMEOUT": order.timeout_s,
        "DOWNLOAD_VERIFY_CERTIFICATES": True,
        "HTTPCACHE_ENABLED": False,
        "HTTPPROXY_ENABLED": not order.local,
        "LOG_LEVEL": "ERROR",
        "METAREFRESH_ENABLED": False,  # a link like any other
        "REDIRECT_ENABLED": False,  # a redirect may leave the site: the spider follows it itself
        "RETRY_GIVE_UP_LOG_LEVEL": "DEBUG",  # the row says it
        "ROBOTSTXT_OBEY": False,  # it allows everything when robots.txt fails: the spider reads it
        "TELNETCONSOLE_ENABLED": False,
        "USER_AGENT": order.user_agent,
    }


def main() -> None:
    order = Order(**json.load(sys.stdin))
    process = AsyncCrawlerProcess(settings(order))
    process.crawl(SiteSpider, order=order)
    process.start()


if __name__ == "__main__":
    main()
