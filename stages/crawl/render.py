"""Pages that JavaScript draws: which of them are given to a browser, and what comes back.

The browser, and what drives it, is loaded for the first page that needs it.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scrapy import Request
from scrapy.core.downloader.handlers.http11 import HTTP11DownloadHandler
from scrapy.core.engine import ExecutionEngine
from scrapy.crawler import Crawler
from scrapy.http import Response
from w3lib.url import canonicalize_url

from stages.crawl.page import UnreadableError
from stages.crawl.pages import Answer, Body, Crawl
from stages.crawl.shells import chromium, needs_browser

if TYPE_CHECKING:
    from stages.crawl import browser

MAX_TABS = 2


def settings(
    executable: str, allow_hosts: Sequence[str], only: bool, timeout_s: float
) -> dict[str, Any]:
    """What Scrapy needs to hand pages to the browser; the rest goes on as before."""
    return {
        "DOWNLOAD_HANDLERS": dict.fromkeys(("http", "https"), "stages.crawl.render.Handler"),
        "PLAYWRIGHT_BROWSER_PROVIDER": "stages.crawl.browser.Chromium",
        "PLAYWRIGHT_LAUNCH_OPTIONS": {
            "executable_path": executable,
            "allow_hosts": list(allow_hosts),
            "only": only,
        },
        "PLAYWRIGHT_ABORT_REQUEST": "stages.crawl.browser.is_unread",
        "PLAYWRIGHT_MAX_PAGES_PER_CONTEXT": 1,
        "PLAYWRIGHT_DEFAULT_NAVIGATION_TIMEOUT": timeout_s * 1000,
        "PLAYWRIGHT_DOWNLOAD_TIMEOUT": 1000,
    }


class Handler(HTTP11DownloadHandler):
    """Scrapy's own, but for a page that is to be drawn."""

    lazy = False

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self._of = crawler
        self._drawing: browser.Handler | None = None

    async def download_request(self, request: Request) -> Response:
        if not request.meta.get("playwright"):
            return await super().download_request(request)
        if self._drawing is None:
            from stages.crawl import browser  # where it is needed: .4 s

            self._drawing = browser.Handler(self._of)
        drawn: Response = await self._drawing.download_request(request)
        return drawn

    async def close(self) -> None:
        if self._drawing is not None:
            await self._drawing.close()
        await super().close()


class Drawer:
    """Draws the pages of one crawl that need it."""

    def __init__(
        self, engine: ExecutionEngine, mode: str, user_agent: str, timeout_s: float, young_s: float
    ) -> None:
        self._engine = engine
        self._mode = mode
        self._user_agent = user_agent
        self._timeout_s = timeout_s
        self._young_s = young_s
        """Age up to which a page is taken to be as it was drawn where its HTML has not changed."""
        self._has_browser = chromium() is not None
        self._tabs = asyncio.Semaphore(MAX_TABS)
        self.undrawn = 0
        """Pages that a browser was needed for, and none was there."""

    async def draw(self, answer: Answer, crawl: Crawl) -> Answer:
        """The answer with the page as it looks once its scripts have run, where it needs that."""
        known = crawl.known(answer.url)
        body = None if answer.body is None else Body(answer.media_type, answer.body)
        if answer.unchanged and known is not None and not known.plain:
            body = crawl.body(known.digest)  # as it was sent: no browser was there, or wanted
            answer = replace(answer, etag=known.etag, modified=known.modified)
        if answer.role != "page" or body is None or body.media_type.startswith("text/markdown"):
            return answer
        if self._mode == "auto" and not needs_browser(body.text()):
            return answer
        if not self._has_browser:
            self.undrawn += 1
            return answer
        plain = hashlib.sha256(body.data).hexdigest()
        if known is not None and known.plain == plain and time.time() - known.time < self._young_s:
            return replace(answer, body=None, unchanged=True)
        answer = replace(answer, body=None, media_type="", unchanged=False)
        from stages.crawl import browser

        try:
            async with self._tabs:
                place, html = await browser.look(
                    *(self._engine, answer.url, body, self._user_agent, self._timeout_s)
                )
        except UnreadableError as error:
            return replace(answer, reason=error.reason, detail=error.detail, passing=True)
        if canonicalize_url(place) != canonicalize_url(answer.url):
            return replace(answer, reason="redirect", detail=place)  # by a script
        if html is None:
            return replace(answer, reason="too_large", detail="once it is drawn")
        data = html.encode("utf-8", "replace")
        return replace(answer, body=data, media_type="text/html; charset=utf-8", plain=plain)
