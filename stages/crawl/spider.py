"""The crawl itself, a process of its own: an order as JSON on stdin, a row per address on stdout.

Twisted's reactor starts once per process, so a refresh starts this one for each site. Of Scrapy it
takes the downloader; the way is `walk`'s, the manners are `asking`'s, and the answers go straight
to the page store.
"""

import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scrapy import Spider
from scrapy.crawler import AsyncCrawlerProcess

from stages.crawl import render
from stages.crawl.asking import Asker, Manners
from stages.crawl.guard import reactor as guard
from stages.crawl.pages import Answered, Pages
from stages.crawl.shells import chromium
from stages.crawl.site import Filter, Site
from stages.crawl.walk import Keeper, Reach, Walk

MAX_PAGE_BYTES = 32 * 2**20

_UNUSED = (
    "corestats.CoreStats",
    "feedexport.FeedExporter",
    "logcount.LogCount",
    "logstats.LogStats",
    "memusage.MemoryUsage",
    "remote_control.RemoteControl",  # a way in
)
"""What Scrapy would do beside: it costs time on every page, or an import."""


@dataclass(frozen=True)
class Order:
    """What to crawl: the store and the crawl in it, the start page, and the limits of `Config`."""

    pages: str
    source: str
    crawl: int
    start: str
    public: str | None
    local: bool
    """Whether `allow_hosts` are all that may be asked: a folder that is served on this machine."""
    include: list[str]
    exclude: list[str]
    external: bool
    lists: list[str]
    allow_hosts: list[str]
    render: str
    max_pages: int
    max_depth: int
    max_alike: int
    concurrent_requests: int
    delay_s: float
    retry_s: float
    timeout_s: float
    user_agent: str
    obey_robots: bool
    full_fetch_days: float


@dataclass(frozen=True)
class Row:
    """What one address gave: a page, or why there is none; or a word for the user, in `detail`.

    `total` is how many addresses are to be asked for, as far as known. The last row is an `end`
    with the number of known addresses that the limits left out; without it a crawl is not whole.
    """

    kind: Literal["answer", "note", "end"]
    url: str = ""
    total: int = 0
    reason: str = ""
    detail: str = ""
    left: dict[str, int] | None = None
    undrawn: int = 0
    """Pages that a browser was needed for, and none was there."""


class SiteSpider(Spider):
    name = "site"

    def __init__(self, order: Order, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = order

    async def start(self) -> AsyncIterator[Any]:
        order = self.order
        assert self.crawler.engine is not None
        # Reading does not wait for the writer: each has a connection of its own.
        with Pages(Path(order.pages)) as reading, Pages(Path(order.pages)) as writing:
            crawl = reading.crawl(order.source, order.crawl)
            site = Site.around(order.start, order.public)
            manners = Manners(
                user_agent=order.user_agent,
                obey_robots=order.obey_robots,
                concurrent_requests=order.concurrent_requests,
                delay_s=order.delay_s,
                retry_s=order.retry_s,
                full_fetch_days=order.full_fetch_days,
            )
            drawer = None
            if order.render != "never":
                young_s = order.full_fetch_days * 86400
                drawer = render.Drawer(
                    *(self.crawler.engine, order.render, order.user_agent, order.timeout_s, young_s)
                )
            walk = Walk(
                site=site,
                wanted=Filter.of(order.include, order.exclude),
                reach=Reach(
                    max_pages=order.max_pages,
                    max_depth=order.max_depth,
                    max_alike=order.max_alike,
                    external=order.external,
                    kinds=frozenset(order.lists),
                ),
                crawl=crawl,
                asker=Asker(self.crawler.engine, manners, crawl, drawer, _note),
                keeper=Keeper(writing.crawl(order.source, order.crawl)),
                concurrent=order.concurrent_requests,
                tell=_tell,
            )
            await walk.go(site.resolve(order.start, order.start) or order.start)
            undrawn = drawer.undrawn if drawer is not None else 0
            _emit(Row("end", left=walk.left, undrawn=undrawn))
        return
        yield  # every request goes to the downloader from the walk: none is scheduled


def _tell(answered: Answered, total: int) -> None:
    _emit(Row("answer", answered.url, total, answered.reason, answered.detail))


def _note(said: str) -> None:
    _emit(Row("note", detail=said))


def _emit(row: Row) -> None:
    sys.stdout.write(json.dumps(asdict(row)) + "\n")
    sys.stdout.flush()


def settings(order: Order) -> dict[str, Any]:
    """Scrapy's settings; what is not here is as Scrapy has it."""
    drawn: dict[str, Any] = {}
    executable = chromium()
    if order.render != "never" and executable is not None:
        drawn = render.settings(executable, order.allow_hosts, order.local, order.timeout_s)
    return {
        **_merged(guard.settings(order.allow_hosts, order.local), drawn),
        "AUTOTHROTTLE_ENABLED": False,
        "CONCURRENT_REQUESTS": 0,  # the asker keeps every host's limits itself
        "CONCURRENT_REQUESTS_PER_DOMAIN": order.concurrent_requests,
        "COOKIES_ENABLED": False,
        "DOWNLOADER_STATS": False,
        "DOWNLOAD_DELAY": 0.0,
        "DOWNLOAD_MAXSIZE": MAX_PAGE_BYTES,
        "DOWNLOAD_TIMEOUT": order.timeout_s,
        "EXTENSIONS": {f"scrapy.extensions.{name}": None for name in _UNUSED},
        "HTTPCACHE_ENABLED": False,
        "LOG_LEVEL": "ERROR",
        "METAREFRESH_ENABLED": False,  # a link like any other
        "REDIRECT_ENABLED": False,  # a redirect may leave the site: the spider follows it itself
        "RETRY_ENABLED": False,  # it does not wait: the asker tries again
        "ROBOTSTXT_OBEY": False,  # it allows everything when robots.txt fails: the spider reads it
        "STATS_CLASS": "scrapy.statscollectors.DummyStatsCollector",
        "USER_AGENT": order.user_agent,
    }


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    handlers = first["DOWNLOAD_HANDLERS"] | second.get("DOWNLOAD_HANDLERS", {})
    return {**first, **second, "DOWNLOAD_HANDLERS": handlers}


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
