"""One page in the system's Chromium, through scrapy-playwright, as it is once its scripts have run.

All that the browser asks for goes through the guard's proxy; a page begins with the HTML that was
fetched already, in a context of its own. Importing this takes .4 s: `render` does so when it must.
"""

import asyncio
import contextlib
import itertools
import os
from typing import Any

from playwright.async_api import Browser, Route, async_playwright
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page as Tab
from playwright.async_api import Request as Asked
from playwright.async_api import TimeoutError as PlaywrightTimeoutError
from scrapy import Request
from scrapy.core.engine import ExecutionEngine
from scrapy.crawler import Crawler
from scrapy_playwright.handler import Config as HandlerConfig  # type: ignore[import-untyped]
from scrapy_playwright.handler import ScrapyPlaywrightDownloadHandler
from scrapy_playwright.page import PageMethod  # type: ignore[import-untyped]

from stages.crawl import guard
from stages.crawl.page import UnreadableError
from stages.crawl.pages import Body

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


def is_unread(asked: Asked) -> bool:
    if asked.resource_type in _UNREAD:
        return True
    return not asked.url.startswith(("http://", "https://", "data:", "blob:"))


class Chromium:
    """Starts the browser behind the guard's proxy when the first page needs it."""

    def __init__(self, config: HandlerConfig) -> None:
        self._options = dict(config.launch_options)
        self._allowed = guard.Allowed.of(
            self._options.pop("allow_hosts"), self._options.pop("only")
        )
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Nothing yet: most sites need no browser."""

    async def launch_browser(self) -> Browser:
        await self.close()
        proxy = self._stack.enter_context(guard.proxy(self._allowed, MAX_CONNECTION_BYTES))
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


class Handler(ScrapyPlaywrightDownloadHandler):  # type: ignore[misc]
    """Downloads with the browser, also where it is made long after the crawl has begun."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        # It would make one at a signal that has gone by.
        self.browser_provider = self.browser_provider_cls(self.config)


_numbers = itertools.count()
"""Of contexts, so that no page shares one."""


async def look(
    engine: ExecutionEngine, url: str, body: Body, user_agent: str, timeout_s: float
) -> tuple[str, str | None]:
    """Whose HTML is there once the page stands still, and the HTML; None for one too large.

    UnreadableError where the browser fails, or takes too long.
    """
    try:
        async with asyncio.timeout(2 * timeout_s + IDLE_S):
            return await _look(engine, url, body, user_agent)
    except (PlaywrightTimeoutError, TimeoutError):
        raise UnreadableError("render_timeout") from None
    except PlaywrightError as error:
        raise UnreadableError("render_failed", error.message.partition("\n")[0]) from None


async def _look(
    engine: ExecutionEngine, url: str, body: Body, user_agent: str
) -> tuple[str, str | None]:
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
            "playwright_context": f"page-{next(_numbers)}",
            "playwright_context_kwargs": {
                "accept_downloads": False,
                "service_workers": "block",
                "user_agent": user_agent,
            },
            "playwright_page_goto_kwargs": {"wait_until": "domcontentloaded"},
            "playwright_page_init_callback": begin,
            "playwright_page_methods": [PageMethod(settle)],
        },
    )
    try:
        response = await engine.download_async(request)
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
