"""Asking a host: in its turn, as its robots.txt allows, and only for what may have changed."""

import asyncio
import contextlib
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from gzip import BadGzipFile
from urllib.parse import urlsplit

import brotli  # type: ignore[import-untyped]
from backports.zstd import ZstdError
from scrapy import Request
from scrapy.core.engine import ExecutionEngine
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
from twisted.internet.error import ConnectError, ConnectionClosed

from stages.crawl import robots
from stages.crawl.guard.reactor import refused
from stages.crawl.page import UnreadableError
from stages.crawl.pages import Answer, Crawl, Known, Role
from stages.crawl.render import Drawer
from stages.crawl.response import (
    Silence,
    header,
    is_same,
    markdown_of,
    may_pass,
    modified_of,
    seconds_of,
    speaks_of,
    target_of,
)
from stages.crawl.robots import FORBIDS_ALL, Robots

MAX_TRIES = 3
MAX_RETRY_AFTER_S = 120.0
"""Longest pause that a server may ask for before a try; asked for more, the crawl goes on."""
PAST_CACHES = {"Cache-Control": "no-cache", "Pragma": "no-cache"}

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
    ValueError: "bad_address",  # a host that is none
    # What is packed is not what its label says, or is torn; Scrapy's slip at one of another kind.
    **dict.fromkeys((BadGzipFile, EOFError, UnicodeDecodeError), "broken_body"),
    **dict.fromkeys((TypeError, struct.error, zlib.error, brotli.error, ZstdError), "broken_body"),
}
"""Why an address gave no answer, by what Scrapy's downloader raises."""


@dataclass(frozen=True)
class Manners:
    """How hosts are asked."""

    user_agent: str
    obey_robots: bool
    concurrent_requests: int
    """Under way to a host at the same time."""
    delay_s: float
    """Between two requests to a host."""
    retry_s: float
    """Before an address that failed is asked again where the server names no time."""
    full_fetch_days: float
    """Age of a body from which it is asked for whole."""


class Host:
    """Whose turn it is to ask a host, and what its robots.txt says."""

    def __init__(self, manners: Manners) -> None:
        self.delay_s = manners.delay_s
        self._slots = asyncio.Semaphore(manners.concurrent_requests)
        self._next = 0.0  # on the loop's clock
        self.reading = asyncio.Lock()
        self.robots: Robots | None = None
        self.read_at = 0.0  # Unix time
        self.silence: Silence | None = None

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._slots:
            now = asyncio.get_running_loop().time()
            begin = max(now, self._next)
            self._next = begin + self.delay_s
            if begin > now:
                await asyncio.sleep(begin - now)
            yield


class Asker:
    """Asks for addresses on behalf of one crawl."""

    def __init__(
        self,
        engine: ExecutionEngine,
        manners: Manners,
        crawl: Crawl,
        drawer: Drawer | None,
        note: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._note = note
        self._drawer = drawer
        self._manners = manners
        self._crawl = crawl
        self._hosts: dict[str, Host] = {}

    async def ask(self, url: str, referrer: str, role: Role) -> Answer:
        """What an address answers now, one redirect at a time, as a browser shows it if need be."""
        answer = await self._ask(url, referrer, role)
        return answer if self._drawer is None else await self._drawer.draw(answer, self._crawl)

    async def _ask(self, url: str, referrer: str, role: Role) -> Answer:
        answer = Answer(url, status=0, referrer=referrer, role=role)
        rules, silence = await self.robots(url)
        if silence is not None:
            reason = silence.reason.removeprefix("robots_")
            detail = silence.detail
            return replace(answer, reason=f"robots_{reason}", detail=detail, passing=True)
        if not rules.allows(url):
            return replace(answer, reason="robots", detail="robots.txt forbids it")
        known = self._crawl.known(url)
        validators = self._validators(known)
        response = await self._get(url, validators)
        if isinstance(response, Response) and response.status == 304:
            if validators and speaks_of(response, validators):
                return replace(answer, status=304, unchanged=True)
            # Nobody asked for it, or it is about another version than ours: it says nothing.
            response = await self._get(url, PAST_CACHES)
        if isinstance(response, Silence):
            passing = may_pass(response)
            return replace(answer, reason=response.reason, detail=response.detail, passing=passing)
        return _read(answer, response)

    def _validators(self, known: Known | None) -> dict[str, str]:
        if known is None or time.time() - known.time > self._manners.full_fetch_days * 86400:
            return {}
        if known.plain and self._drawer is None:
            return {}  # it was drawn, and is wanted as it is sent now
        named = {"If-None-Match": known.etag, "If-Modified-Since": known.modified}
        return {name: value for name, value in named.items() if value}

    async def _get(self, url: str, headers: Mapping[str, str]) -> Response | Silence:
        """The last answer of up to three: an error of the server or of the way may pass."""
        host = self._host(url)
        for number in range(1, MAX_TRIES + 1):
            async with host.turn():
                response = await self._download(url, headers)
            if not may_pass(response) or number == MAX_TRIES:
                break
            pause_s = self._manners.retry_s * number
            if isinstance(response, Response):
                pause_s = seconds_of(header(response, "Retry-After"), pause_s)
            if pause_s > MAX_RETRY_AFTER_S:
                break
            await asyncio.sleep(pause_s)
        return response

    async def _download(self, url: str, headers: Mapping[str, str]) -> Response | Silence:
        """The one way out: every request of a crawl goes through here."""
        try:
            return await self._engine.download_async(Request(url, headers=dict(headers)))
        except UnreadableError as error:  # the guard's
            return Silence(error.reason, error.detail)
        except tuple(REASONS) as error:
            refusal = refused(urlsplit(url).hostname or "")
            if isinstance(error, CannotResolveHostError) and refusal is not None:
                return Silence(refusal.reason, refusal.detail)
            reason = next(REASONS[kind] for kind in type(error).__mro__ if kind in REASONS)
            return Silence(reason, " ".join(str(error).split()))

    def _host(self, url: str) -> Host:
        """By scheme, name and port, as robots.txt holds for."""
        origin = origin_of(url)
        if origin not in self._hosts:
            self._hosts[origin] = Host(self._manners)
        return self._hosts[origin]

    # --- robots.txt ----------------------------------------------------------------------------

    async def robots(self, url: str) -> tuple[Robots, Silence | None]:
        """The rules that hold for an address, and why they forbid everything where they do."""
        if not self._manners.obey_robots:
            return Robots(), None
        host = self._host(url)
        async with host.reading:
            if host.robots is None or time.time() - host.read_at > robots.MAX_AGE_S:
                await self._read_robots(host, origin_of(url))
        assert host.robots is not None
        return host.robots, host.silence

    async def _read_robots(self, host: Host, origin: str) -> None:
        """RFC 9309: no such file allows everything, a failing server forbids everything."""
        kept = self._crawl.robots(origin, robots.MAX_AGE_S)
        if kept is not None:
            host.read_at, data = kept
        else:
            host.read_at = time.time()
            response = await self._get_robots(f"{origin}/robots.txt")
            if isinstance(response, Response) and (response.status >= 500 or is_same(response)):
                response = Silence(f"robots_{response.status}", "")
            if isinstance(response, Silence):
                host.robots, host.silence = FORBIDS_ALL, response
                return
            # One byte more tells that the file goes on.
            data = response.body[: robots.MAX_BYTES + 1] if response.status == 200 else b""
            await asyncio.to_thread(self._crawl.keep_robots, origin, data)
        host.robots, host.silence = robots.parse(data, self._manners.user_agent), None
        delay_s = host.robots.delay_s
        if delay_s > robots.MAX_DELAY_S:
            host.robots = FORBIDS_ALL
            host.silence = Silence("robots_delay", f"Crawl-delay: {delay_s:g}")
        elif delay_s > max(robots.LONG_DELAY_S, self._manners.delay_s):
            self._note(f"{origin}/robots.txt asks for {delay_s:g} s between two requests")
        host.delay_s = max(self._manners.delay_s, delay_s)

    async def _get_robots(self, url: str) -> Response | Silence:
        """The answer behind up to five redirects, on whatever host; the last one behind more."""
        first, response = url, await self._get(url, {})
        for _ in range(robots.MAX_REDIRECTS):
            if isinstance(response, Silence) or not 300 <= response.status < 400:
                break
            target = target_of(url, response)
            if target is None or not target.startswith(("http://", "https://")):
                break
            url = target
            response = await self._get(url, {})
        if isinstance(response, Response) and is_same(response):  # as what, nobody has said
            response = await self._get(url, PAST_CACHES)
        if isinstance(response, Silence) and url != first:
            return Silence(response.reason, f"{url}: {response.detail}")
        return response


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _read(answer: Answer, response: Response) -> Answer:
    """The answer with what the response says."""
    status = response.status
    answer = replace(answer, status=status)
    if 300 <= status < 400 and header(response, "Location"):
        target = target_of(answer.url, response)
        if target is None:
            return replace(answer, reason="bad_address", detail=header(response, "Location"))
        return replace(answer, reason="redirect", detail=target)
    if status != 200:
        passing = may_pass(response) or status == 304
        return replace(answer, reason=f"http_{status}", passing=passing)
    kind = header(response, "Content-Type")
    if answer.role == "page" and not isinstance(response, HtmlResponse):
        said, kind = kind, markdown_of(answer.url, response)
        if not kind:
            return replace(answer, reason="not_html", detail=said)
    return replace(
        answer,
        body=response.body,
        media_type=kind,
        etag=header(response, "ETag"),
        modified=modified_of(response),
    )
