"""Files at an address of fsspec, on a web server or in a storage, reached through the guard.

A web server is asked as the crawl of a site asks it: by the crawler's name, under its robots.txt,
with a pause, and level by level up to the limits of the crawl.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec  # type: ignore[import-untyped]
from selectolax.lexbor import LexborHTMLParser
from w3lib.url import canonicalize_url

from stages.core.errors import PipelineError
from stages.crawl import guard, robots, screen, traps
from stages.crawl.files import folders
from stages.crawl.files.folders import Folder
from stages.crawl.files.listing import Found
from stages.crawl.pages import Body, Crawl
from stages.crawl.robots import Robots
from stages.crawl.settings import Config
from stages.crawl.site import Filter, Site

TRANSFER_S = 600
"""Longest transfer of one file, in seconds."""
MAX_LISTING_BYTES = 32 * 2**20
_PIECE_BYTES = 2**20
_PASSING = (408, 425, 429)
_FAULTS = (OSError, ValueError, aiohttp.ClientError, asyncio.TimeoutError)
_TAGS = ("ETag", "etag", "LastModified", "mtime", "Content-MD5")
"""What storages call the thing that changes with a file's content."""


@contextlib.contextmanager
def opened(
    cfg: Config,
    url: str,
    allow_hosts: Sequence[str],
    wanted: Filter,
    crawl: Crawl,
    is_read: Callable[[str], bool],
) -> Iterator[tuple[list[Found], dict[str, int]]]:
    """The files of a folder, a glob or one address, which can be read as long as this lasts; and
    how many were left out, by the limit. Nothing is asked about a file of a kind that is not read.
    """
    with guard.proxy(guard.Allowed.of(allow_hosts)) as proxy:
        options = guard.storage(url, proxy)
        on_web = urlsplit(url).scheme in ("http", "https")
        try:
            if on_web:
                storage: _Storage = _Web(cfg, url, options, crawl, proxy)
            else:
                storage = _Storage(url, options)
            names, left = folders.walk(storage.folder(wanted), storage.inside, storage.fault, cfg)
            found = [
                Found(address)
                if crawl.answered(address) or not is_read(address)
                else _found(storage, name, address)
                for name, address in names
            ]
        except ImportError as error:
            raise PipelineError(
                f"source.path: {url!r}: {error}: install it beside Docent"
            ) from None
        except _FAULTS as error:
            refused = next((no.detail for no in proxy.refused.values()), "")
            raise PipelineError(f"source.path: {url!r}: {refused or _said(error)}") from None
        yield sorted(found, key=lambda row: row.address), left


def _found(storage: "_Storage", name: str, address: str) -> Found:
    if ".." in address.split("/"):
        return Found(address, reason="outside")
    if not storage.allows(name):
        return Found(address, reason="robots")
    try:
        about = storage.about(name)
    except _FAULTS as error:
        status = _status(error)
        reason = f"http_{status}" if status else "unreadable"
        passing = not status or status >= 500 or status in _PASSING
        return Found(address, reason=reason, detail=_said(error), passing=passing)

    def pieces(most: int) -> Iterator[bytes]:
        try:
            yield from storage.read(name, most)
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(0, _said(error)) from None

    tags = [str(about[tag]) for tag in _TAGS if about.get(tag)]
    etag = " ".join([*tags, str(about.get("size"))]) if tags else ""
    size = int(about.get("size") or 0)
    return Found(address, size, etag, lambda most: b"".join(pieces(most)), pieces=pieces)


def _status(error: BaseException) -> int:
    """What a server answered; 0 where none did."""
    if isinstance(error, FileNotFoundError):  # of fsspec, whatever went wrong
        return _status(error.__cause__) if error.__cause__ else 404
    return error.status if isinstance(error, aiohttp.ClientResponseError) else 0


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Storage:
    """What fsspec opens, as it is."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._files, self._root = fsspec.url_to_fs(url, **options)

    def folder(self, wanted: Filter) -> Folder:
        is_file = not self._root.endswith("/") and self._files.isfile(self._root)
        return Folder.of(self._root, is_file, wanted)

    def inside(self, name: str) -> list[str]:
        """What is in a folder; the name of a folder ends in a slash."""
        rows = self._files.ls(name.rstrip("/"), detail=True)
        return [row["name"] + "/" * (row["type"] == "directory") for row in rows]

    def fault(self, name: str) -> str:
        """Why a name is never asked for; empty where nothing speaks against it."""
        return ""

    def allows(self, name: str) -> bool:
        return True

    def about(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._files.info(name)
        return found

    def read(self, name: str, most: int, **options: Any) -> Iterator[bytes]:
        """So many bytes of a file, in pieces; a stream gives what has arrived."""
        with self._files.open(name, "rb", **options) as file:
            while most > 0 and (piece := file.read(min(most, _PIECE_BYTES))):
                most -= len(piece)
                yield piece


class _Web(_Storage):
    """A web server, whose folders are pages with links."""

    def __init__(
        self,
        cfg: Config,
        url: str,
        options: dict[str, Any],
        crawl: Crawl,
        proxy: guard.Proxy,
    ) -> None:
        timeout = aiohttp.ClientTimeout(
            total=TRANSFER_S, sock_connect=cfg.timeout_s, sock_read=cfg.timeout_s
        )
        options["client_kwargs"] |= {
            "headers": {"User-Agent": cfg.user_agent},
            "timeout": timeout,
        }
        super().__init__(url, options)
        self._delay_s = cfg.delay_s
        self._next = 0.0
        self._refused = proxy.refused
        self._robots = self._read_robots(cfg, url, crawl) if cfg.obey_robots else Robots()
        self._delay_s = max(cfg.delay_s, self._robots.delay_s)
        if self._robots.delay_s > robots.MAX_DELAY_S:
            raise PipelineError(
                f"source.path: {url!r}: robots.txt asks for a pause of {self._robots.delay_s:g} s: "
                "ask its owner, or set crawl.obey_robots=false"
            )

    def folder(self, wanted: Filter) -> Folder:
        folder = Folder.of(self._root, not self._root.endswith("/"), wanted, magic="*[")
        if not folder.is_file:
            # In the spelling of the links that are compared with it.
            self._site = Site.around(str(canonicalize_url(folder.name)), None)
            folder = folder.renamed(self._site.origin + self._site.folder)
        if not self.allows(folder.name):
            raise PipelineError(
                f"source.path: {self._root!r}: the host's robots.txt forbids it: ask its owner, "
                "or set crawl.obey_robots=false"
            )
        return folder

    def inside(self, name: str) -> list[str]:
        if not self.allows(name):
            return []
        html = Body("", b"".join(self.read(name, MAX_LISTING_BYTES))).text()
        if screen.fault(html):
            return []
        links = self._site.hrefs(LexborHTMLParser(html), name)
        found = {self._site.resolve(*link) for link in links}
        # A query sorts the list another way.
        return [link for link in found if link and not urlsplit(link).query]

    def fault(self, name: str) -> str:
        return traps.fault(name)

    def allows(self, name: str) -> bool:
        return self._robots.allows(name)

    def about(self, name: str) -> dict[str, Any]:
        self._pause()
        return super().about(name)

    def read(self, name: str, most: int, **options: Any) -> Iterator[bytes]:
        self._pause()
        # As a stream; with a size it is not asked for once more.
        return super().read(name, most, block_size=0, size=1, **options)

    def _pause(self) -> None:
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + self._delay_s

    def _read_robots(self, cfg: Config, url: str, crawl: Crawl) -> Robots:
        """RFC 9309: no such file allows everything, a failing server forbids everything."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        kept = crawl.robots(origin, robots.MAX_AGE_S)
        if kept is not None:
            return robots.parse(kept[1], cfg.user_agent)
        most, redirects = robots.MAX_BYTES + 1, robots.MAX_REDIRECTS
        try:
            data = b"".join(self.read(f"{origin}/robots.txt", most, max_redirects=redirects))
        except _FAULTS as error:
            status = _status(error)
            if self._refused or not status:
                raise
            if status >= 500:
                raise PipelineError(
                    f"source.path: {url!r}: robots.txt answers {status}, which forbids everything: "
                    "try later, or set crawl.obey_robots=false"
                ) from None
            data = b""
        crawl.keep_robots(origin, data)
        return robots.parse(data, cfg.user_agent)
