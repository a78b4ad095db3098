"""The crawl itself, a process of its own: an order as JSON on stdin, a row per address on stdout.

Twisted's reactor starts once per process, so a refresh starts this one for each crawl. It goes
level by level: a level is every address that the pages of the level before lead to, sorted, so
that neither the speed of an answer nor the number of connections decides what is fetched. What an
address answered is in the page store before the next is asked for in its place; a crawl that was
killed walks the same way again and asks for what is not there.
"""

import asyncio
import functools
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
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

from stages.crawl.pages import Answer, Body, Crawl, Pages
from stages.crawl.site import Filter, Site

MAX_PAGE_BYTES = 32 * 2**20
MAX_REDIRECTS = 10
PASSING = (304, 408, 425, 429)
"""Statuses that say nothing of the page, beside those from 500 on."""

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
    """What to crawl: the store and the crawl in it, the start page, and the limits of `Config`."""

    pages: str
    source: str
    crawl: int
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
    """What one address gave: a page, or why there is none.

    `total` is how many addresses are to be asked for, as far as known. The last row is an `end`
    with the number of known addresses that the limits left out; without it a crawl is not whole.
    """

    kind: Literal["answer", "end"]
    url: str
    total: int
    reason: str = ""
    detail: str = ""
    left: dict[str, int] | None = None


@dataclass(frozen=True)
class Silence:
    """Why an address gave no answer."""

    reason: str
    detail: str


class Keeper:
    """Keeps answers in groups: all that came while the group before went to the disk."""

    def __init__(self, crawl: Crawl) -> None:
        self._crawl = crawl
        self._waiting: list[tuple[Answer, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def keep(self, answer: Answer) -> None:
        """On the disk when this returns."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, kept))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await kept

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._crawl.keep, *(answer for answer, _ in group))
            except BaseException as error:
                for _, kept in group:
                    kept.set_exception(error)
                raise
            for _, kept in group:
                kept.set_result(None)
        self._writing = None


class SiteSpider(Spider):
    name = "site"

    def __init__(self, order: Order, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = order
        self.site = Site.around(order.start, order.public)
        self.filter = Filter.of(order.include, order.exclude)
        # Reading does not wait for the writer: each has a connection of its own.
        self.crawl = Pages(Path(order.pages)).crawl(order.source, order.crawl)
        self.keeper = Keeper(Pages(Path(order.pages)).crawl(order.source, order.crawl))
        self.robots: Protego | None = None
        self.seen: dict[str, str] = {}  # address: the page that led there
        self.found: dict[str, str] = {}  # the same, for what pages link to
        self.redirected: dict[str, str] = {}  # the same, for the rest of this level

    async def start(self) -> AsyncIterator[Any]:
        start = self.site.resolve(self.order.start, self.order.start) or self.order.start
        if not self.order.obey_robots or await self._read_robots(start):
            level = {start: ""}
            for _ in range(self.order.max_depth + 1):
                await self._visit_all(level)
                new = sorted(self.found.keys() - self.seen.keys())
                room = max(self.order.max_pages - len(self.seen), 0)
                level = {url: self.found[url] for url in new[:room]}
                if not level:
                    break
            left = len(self.found.keys() - self.seen.keys())
            limit = "max_pages" if len(self.seen) >= self.order.max_pages else "max_depth"
            self._emit(Row("end", "", len(self.seen), left={limit: left} if left else {}))
        return
        yield  # every request goes to the downloader from here, in its level: none is scheduled

    async def _visit_all(self, level: dict[str, str]) -> None:
        """Visit a level, then where its redirects lead, which belongs to it."""
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
            await self._visit(url)

    async def _visit(self, url: str) -> None:
        """Learn what an address answers, from the store or by asking; note where it leads."""
        body: Body | None = None
        answered = self.crawl.answered(url)
        if answered is None:
            answer = await self._ask(url)
            await self.keeper.keep(answer)
            if answer.body is not None:
                body = Body(answer.media_type, answer.body)
            answered = self.crawl.answered(url)
            assert answered is not None
        self._emit(Row("answer", url, len(self.seen), answered.reason, answered.detail))
        if answered.reason == "redirect":
            target = answered.detail
            self.redirected[target] = min(self.redirected.get(target, url), url)
        elif answered.digest:
            body = body or self.crawl.body(answered.digest)
            assert body is not None
            for link in self.site.links(LexborHTMLParser(body.text()), url):
                if self.filter.keeps(link):
                    self.found[link] = min(self.found.get(link, url), url)

    async def _ask(self, url: str) -> Answer:
        """What an address answers now."""
        answer = functools.partial(Answer, url, referrer=self.seen[url])
        if self.robots is not None and not self.robots.can_fetch(url, self.order.user_agent):
            return answer(status=0, reason="robots", detail="robots.txt forbids it")
        known = self.crawl.known(url)
        headers = {}
        if known is not None and known.etag:
            headers["If-None-Match"] = known.etag
        if known is not None and known.modified:
            headers["If-Modified-Since"] = known.modified
        response = await self._download(url, headers)
        if isinstance(response, Silence):
            passing = response.reason != "too_large"
            return answer(status=0, reason=response.reason, detail=response.detail, passing=passing)
        status = response.status
        if status == 304 and headers:
            return answer(status=status, unchanged=True)
        location = _header(response, "Location")
        if 300 <= status < 400 and location:
            target = urljoin(url, location)
            inside = self.site.resolve(target, url)
            if inside is None or not self.filter.keeps(inside):
                return answer(status=status, reason="outside", detail=target)
            return answer(status=status, reason="redirect", detail=inside)
        if status != 200:
            passing = status in PASSING or status >= 500
            return answer(status=status, reason=f"http_{status}", passing=passing)
        kind = _header(response, "Content-Type")
        if not isinstance(response, HtmlResponse):
            return answer(status=status, reason="not_html", detail=kind)
        return answer(
            status=status,
            body=response.body,
            media_type=kind,
            etag=_header(response, "ETag"),
            modified=_header(response, "Last-Modified"),
        )

    async def _download(
        self, url: str, headers: Mapping[str, str] | None = None
    ) -> "Response | Silence":
        """The one way out: every request of a crawl goes through here."""
        assert self.crawler.engine is not None
        try:
            return await self.crawler.engine.download_async(Request(url, headers=headers))
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
            self._emit(Row("answer", start, 1, response.reason, response.detail))
            self._emit(Row("end", "", 1, left={}))
            return False
        if response.status == 200:
            self.robots = Protego.parse(response.body.decode("utf-8", "replace"))
            pause = self.robots.crawl_delay(self.order.user_agent)
            assert self.crawler.engine is not None
            for slot in self.crawler.engine.downloader.slots.values():
                slot.delay = max(slot.delay, pause or 0.0)
        return True

    def _emit(self, row: Row) -> None:
        sys.stdout.write(json.dumps(asdict(row)) + "\n")
        sys.stdout.flush()


def _header(response: Response, name: str) -> str:
    value = response.headers.get(name)
    return value.decode("latin-1") if value else ""


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


def _end_with_parent() -> None:
    """The pipe on stdin closes when the process that holds its other end is gone, killed or not."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    order = Order(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    process = AsyncCrawlerProcess(settings(order))
    process.crawl(SiteSpider, order=order)
    process.start()


if __name__ == "__main__":
    main()
