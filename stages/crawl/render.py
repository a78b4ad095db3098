"""Pages that JavaScript draws, as the system's Chromium shows them, through scrapy-playwright.

The browser is started for the first page that needs it. All that it asks for goes through the
guard's proxy; a page begins with the HTML that was fetched already, in a context of its own.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from playwright.async_api import Browser, Route, async_playwright
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page as Tab
from playwright.async_api import Request as Asked
from playwright.async_api import TimeoutError as PlaywrightTimeoutError
from scrapy import Request
from scrapy.core.engine import ExecutionEngine
from scrapy_playwright.handler import Config as HandlerConfig  # type: ignore[import-untyped]
from scrapy_playwright.page import PageMethod  # type: ignore[import-untyped]
from w3lib.url import canonicalize_url

from stages.crawl import guard
from stages.crawl.pages import Answer, Body, Crawl
from stages.crawl.shells import chromium, needs_browser

MAX_TABS = 2
MAX_HTML_CHARS = 32 * 2**20
MAX_CONNECTION_BYTES = 64 * 2**20
IDLE_S = 10.0
"""Longest wait for a page's requests to end, after which it is taken as it stands."""
STILL_S = 0.25
"""A page whose elements have not changed for so long is drawn."""
LONGEST_CHANGE_S = 3.0

_UNREAD = ("font", "image", "media", "texttrack", "ping")
"""What a page asks for that has no part in its text."""
_WAIT_STILL = """([still, most]) => new Promise(done => {
  let timer = setTimeout(done, still);
  setTimeout(done, most);
  new MutationObserver(() => { clearTimeout(timer); timer = setTimeout(done, still); })
    .observe(document, {subtree: true, childList: true, characterData: true});
})"""
# What has run is not to be taken for what is still to run.
_TAKE = """() => {
  for (const done of document.querySelectorAll('script, noscript')) done.remove();
  // Of the document, whatever a router has put into the address bar.
  const [loaded] = performance.getEntriesByType('navigation');
  return [document.documentElement.outerHTML.length, loaded ? loaded.name : location.href];
}"""
# WebRTC is kept to the proxy by a switch, and taken away besides.
_NO_WEBRTC = (
    "for (const name of ['RTCPeerConnection', 'webkitRTCPeerConnection']) delete self[name]"
)


def settings(executable: str, allow_hosts: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """What Scrapy needs to hand pages to the browser; the rest goes on as before."""
    handler = "scrapy_playwright.handler.ScrapyPlaywrightDownloadHandler"
    return {
        "DOWNLOAD_HANDLERS": dict.fromkeys(("http", "https"), handler),
        "PLAYWRIGHT_BROWSER_PROVIDER": "stages.crawl.render.Chromium",
        "PLAYWRIGHT_LAUNCH_OPTIONS": {
            "executable_path": executable,
            "allow_hosts": list(allow_hosts),
        },
        "PLAYWRIGHT_ABORT_REQUEST": _is_unread,
        "PLAYWRIGHT_MAX_PAGES_PER_CONTEXT": 1,
        "PLAYWRIGHT_DEFAULT_NAVIGATION_TIMEOUT": timeout_s * 1000,
        "PLAYWRIGHT_DOWNLOAD_TIMEOUT": 1000,
    }


def _is_unread(asked: Asked) -> bool:
    if asked.resource_type in _UNREAD:
        return True
    return not asked.url.startswith(("http://", "https://", "data:", "blob:"))


class Chromium:
    """Starts the browser behind the guard's proxy when the first page needs it."""

    def __init__(self, config: HandlerConfig) -> None:
        self._options = dict(config.launch_options)
        self._allow_hosts = self._options.pop("allow_hosts")
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Nothing yet: most sites need no browser."""

    async def launch_browser(self) -> Browser:
        await self.close()
        allowed = guard.Allowed.of(self._allow_hosts)
        proxy = self._stack.enter_context(guard.proxy(allowed, MAX_CONNECTION_BYTES))
        playwright = await self._stack.enter_async_context(async_playwright())
        return await playwright.chromium.launch(
            **self._options,
            args=_switches(),
            # A container's root has no sandbox to give; anyone else has.
            chromium_sandbox=os.getuid() != 0,
            env={key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ},
            # Loopback too: without the rule Chromium goes there by itself.
            proxy={"server": proxy.url, "bypass": "<-loopback>"},
        )

    async def launch_persistent_context(self, context_kwargs: dict[str, Any]) -> None:
        raise NotImplementedError("each page has a context of its own")

    async def close(self) -> None:
        await self._stack.aclose()


def _switches() -> list[str]:
    return [
        # Names are for the proxy to resolve.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
        "--webrtc-ip-handling-policy=disable_non_proxied_udp",
        "--disable-quic",
        "--dns-prefetch-disable",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-domain-reliability",
        "--disable-sync",
        "--no-pings",
        "--js-flags=--max-old-space-size=1024",
    ]


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
        self._numbers = itertools.count()
        self.undrawn = 0
        """Pages that a browser was needed for, and none was there."""

    async def draw(self, answer: Answer, crawl: Crawl) -> Answer:
        """The answer with the page as it looks once its scripts have run, where it needs that."""
        known = crawl.known(answer.url)
        body = None if answer.body is None else Body(answer.media_type, answer.body)
        if answer.unchanged and known is not None and not known.plain:
            body = crawl.body(known.digest)  # as it was sent: no browser was there, or wanted
            answer = replace(answer, etag=known.etag, modified=known.modified)
        if answer.role != "page" or body is None:
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
        try:
            async with self._tabs, asyncio.timeout(2 * self._timeout_s + IDLE_S):
                place, html = await self._look(answer.url, body)
        except (PlaywrightTimeoutError, TimeoutError):
            return replace(answer, reason="render_timeout", passing=True)
        except PlaywrightError as error:
            detail = error.message.partition("\n")[0]
            return replace(answer, reason="render_failed", detail=detail, passing=True)
        if canonicalize_url(place) != canonicalize_url(answer.url):
            return replace(answer, reason="redirect", detail=place)  # by a script
        if html is None:
            return replace(answer, reason="too_large", detail="once it is drawn")
        data = html.encode("utf-8", "replace")
        return replace(answer, body=data, media_type="text/html; charset=utf-8", plain=plain)

    async def _look(self, url: str, body: Body) -> tuple[str, str | None]:
        """Whose HTML is there once the page stands still, and the HTML; None for one too large."""
        settled: list[tuple[int, str]] = []

        async def begin(tab: Tab, _: Request) -> None:
            """The browser begins with what was fetched: the server is not asked twice."""
            await tab.add_init_script(_NO_WEBRTC)

            async def answer(route: Route) -> None:
                await route.fulfill(body=body.data, content_type=body.media_type or "text/html")

            await tab.route(url, answer, times=1)

        async def settle(tab: Tab) -> None:
            settled.append(await _settle(tab))
            if settled[-1][0] > MAX_HTML_CHARS:
                await tab.set_content("")

        request = Request(
            url,
            dont_filter=True,
            meta={
                "playwright": True,
                "playwright_include_page": True,
                "playwright_context": f"page-{next(self._numbers)}",
                "playwright_context_kwargs": {
                    "accept_downloads": False,
                    "service_workers": "block",
                    "user_agent": self._user_agent,
                },
                "playwright_page_goto_kwargs": {"wait_until": "domcontentloaded"},
                "playwright_page_init_callback": begin,
                "playwright_page_methods": [PageMethod(settle)],
            },
        )
        try:
            response = await self._engine.download_async(request)
        finally:
            tab = request.meta.get("playwright_page")
            if tab is not None:
                await tab.context.close()
        size, place = settled[-1]
        return place, None if size > MAX_HTML_CHARS else str(response.text)


async def _settle(tab: Tab) -> tuple[int, str]:
    """Wait until the page is drawn; how many characters its HTML has, and whose it is."""
    with contextlib.suppress(PlaywrightTimeoutError):  # a page that polls is never idle
        await tab.wait_for_load_state("networkidle", timeout=IDLE_S * 1000)
    for _ in range(3):
        with contextlib.suppress(PlaywrightError):  # the script led to another page
            await tab.evaluate(_WAIT_STILL, [STILL_S * 1000, LONGEST_CHANGE_S * 1000])
            break
        await tab.wait_for_load_state()
    size, place = await tab.evaluate(_TAKE)
    return int(size), str(place)
