"""Web sites: fetched by a spider in a process of its own, and each page parsed to Markdown."""

import contextlib
import functools
import http.server
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.crawl import robots, screen
from stages.crawl.extract import extract
from stages.crawl.files.addresses import Place
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Answered, Body, Crawl
from stages.crawl.settings import FETCHING, Address, Config, Host, Name, Pattern
from stages.crawl.shells import BROWSERS, chromium, needs_browser
from stages.crawl.site import Filter, Site


class Web(config.Base):
    """A web site, or a folder of HTML that is served on this machine while it is crawled."""

    kind: Literal["web"]
    name: Name
    """Name of the source, which every document carries and which is part of its id."""
    url: Address | None
    """Address of the start page; the crawl stays on its host and under its folder."""
    serve_dir: str | None
    """Folder of HTML to serve on a free local port and crawl in place of `url`."""
    public_url: Address | None
    """Address that takes the place of the crawled site's in documents, links and citations."""
    include: list[Pattern]
    """Regular expressions on a URL's path: a page is fetched if one matches, or none is given."""
    exclude: list[Pattern]
    """Regular expressions on a URL's path: a page is left alone if one of them matches."""
    external: bool
    """Whether pages elsewhere are read too that the site's pages link to; their links are not."""
    lists: list[Literal["sitemap", "llms_txt", "feed"]]
    """What is read for addresses beside the links of pages."""
    render: Literal["auto", "always", "never"]
    """Whether pages are drawn in the system's Chromium: `auto` those without text of their own."""
    allow_hosts: list[Host]
    """Hosts of an inner network that may be asked, such as `wiki.local` or `10.0.0.7:8080`; no
    other request leaves for an address that is not public."""

    @field_validator("serve_dir", "public_url", "external")
    @classmethod
    def _fit_a_folder(cls, value: Any, info: ValidationInfo) -> Any:
        """A folder that is served stands in place of an address, is cited, and asks nobody."""
        folder = info.data.get("serve_dir", value if info.field_name == "serve_dir" else None)
        match info.field_name:
            case "serve_dir" if folder is not None and info.data.get("url") is not None:
                said = "set this or source.url to null"
            case "public_url" if folder is not None and value is None:
                said = "required beside source.serve_dir: links lead there"
            case "external" if folder is not None and value:
                said = "expected false beside source.serve_dir, which is read without a network"
            case _:
                return value
        raise PydanticCustomError("serve_dir", said)


# --- fetching ----------------------------------------------------------------------------------


def fetch(cfg: Config, source: Web, crawl: Crawl) -> Generator[int, None, dict[str, int]]:
    """Bring the site into the crawl's pages; at each address, how many are known so far.

    In the end, how many addresses were left out, by the limit.
    """
    left: dict[str, int] = {}
    if source.render == "always" and chromium() is None:
        raise PipelineError(
            f"source.render: 'always': no Chromium on the PATH ({', '.join(BROWSERS)}): install "
            "one, or set auto or never"
        )
    with _served(source) as start:
        order = {
            "pages": str(crawl.pages.path),
            "source": crawl.source,
            "crawl": crawl.number,
            "start": start,
            "public": source.public_url,
            "local": source.serve_dir is not None,
            "include": source.include,
            "exclude": source.exclude,
            "external": source.external,
            "lists": source.lists,
            "render": source.render,
            "allow_hosts": _allowed(source, start),
            **cfg.model_dump(include=set(FETCHING)),
            "delay_s": 0.0 if source.serve_dir is not None else cfg.delay_s,
        }
        starting = True
        for row in _rows(order):
            if row["kind"] == "note":
                progress.note(f"{source.name}: {row['detail']}")
                continue
            if starting:
                _check_start(row, source, cfg)
                starting = row["reason"] == "redirect"
            if row["kind"] == "end":
                left = row["left"]
                if row["undrawn"]:
                    progress.note(
                        f"{source.name}: {row['undrawn']} pages are drawn by JavaScript, and no "
                        "Chromium is on the PATH to do it"
                    )
            else:
                yield row["total"]
    return left


def _allowed(source: Web, start: str) -> list[str]:
    """A folder that is served here is all that its crawl may ask for."""
    return source.allow_hosts if source.serve_dir is None else [urlsplit(start).netloc]


def _rows(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The spider's rows as they come. It ends with this process: its stdin closes."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "stages.crawl.spider"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            cwd=Path(__file__).resolve().parents[2],  # where `stages` is found
        ) as spider,
    ):
        assert spider.stdin is not None and spider.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # then it says why
                spider.stdin.write(json.dumps(order) + "\n")
                spider.stdin.flush()
            for line in spider.stdout:
                row = json.loads(line)
                yield row
                if row["kind"] == "end":
                    return
            spider.wait()
            errors.seek(0)
            said = errors.read()[-2000:]
            raise RuntimeError(f"the spider ended early (status {spider.returncode}):\n{said}")
        finally:
            spider.kill()


@contextlib.contextmanager
def _served(source: Web) -> Iterator[str]:
    """The address of the start page; a folder is served as long as this lasts."""
    if source.url is not None:
        yield source.url
        return
    if source.serve_dir is None:
        raise PipelineError("source.url: required: the address of the site's start page")
    folder = store.locate(source.serve_dir, "source.serve_dir").resolve()
    if not (folder / "index.html").is_file():
        raise PipelineError(
            f"source.serve_dir: {source.serve_dir!r}: expected a folder with an index.html"
        )
    answer = functools.partial(_Folder, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Folder(http.server.SimpleHTTPRequestHandler):
    """Serves a folder's files, without a word."""

    protocol_version = "HTTP/1.1"

    def list_directory(self, path: object) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _check_start(row: dict[str, Any], source: Web, cfg: Config) -> None:
    """Raise if a row of the start page, or of where it leads, says that there is none."""
    reason = row["reason"]
    if not reason or reason == "redirect":
        return
    asked = urlsplit(row["url"])
    if reason.startswith("robots_") and not reason[-1].isdigit():
        reason = reason.removeprefix("robots_")  # robots.txt is what is asked for first
        if row["detail"].startswith(("http://", "https://")):  # where it leads
            asked = urlsplit(row["detail"].split(": ")[0])
    host = asked.netloc
    match reason:
        case "refused":
            said = f"{host} refuses the connection: check the address, and that the site is up"
        case "unknown_host":
            said = f"no host {asked.hostname}: check the address and the network"
        case "timeout":
            said = f"no answer in {cfg.timeout_s:g} s: check the address, or raise crawl.timeout_s"
        case "robots":
            said = "the site's robots.txt forbids it: ask its owner, or set crawl.obey_robots=false"
        case "delay":
            said = (
                f"robots.txt asks for a pause of more than {robots.MAX_DELAY_S:g} s between two "
                f"requests ({row['detail']}): ask its owner, or set crawl.obey_robots=false"
            )
        case "not_public":
            said = row["detail"]
        case "outside":
            said = f"leads out of the source, to {row['detail']}: set source.url to that address"
        case "not_html":
            said = f"answers with {row['detail'] or 'no content type'}: expected an HTML page"
        case _ if reason.startswith("robots_"):
            said = (
                f"robots.txt answers {reason.removeprefix('robots_')}, which forbids everything: "
                "try later, or set crawl.obey_robots=false"
            )
        case _ if reason.startswith("http_"):
            said = f"answers {reason.removeprefix('http_')}: expected a page to start from"
        case _:
            said = f"{reason.replace('_', ' ')}: {row['detail']}: check the address"
    raise PipelineError(f"{place(source)}: {said}")


def place(source: Web) -> str:
    """The key and the value that say where the site is, as an error names them."""
    if source.url is not None:
        return f"source.url: {source.url!r}"
    return f"source.serve_dir: {source.serve_dir!r}"


# --- parsing -----------------------------------------------------------------------------------


def parse(source: Web, address: str, body: Body) -> list[Page]:
    """The page at an address."""
    if not Filter.of(source.include, source.exclude).keeps(address):
        raise UnreadableError("excluded")  # the start page, which is read for its links
    if body.media_type.startswith("text/markdown"):
        return [_written(body, _site(source, address), address)]
    html = body.text()
    if (fault := screen.fault(html)) is not None:
        raise UnreadableError(fault)
    if needs_browser(html):
        raise UnreadableError("javascript", "a browser draws it: source.render")
    return [extract(html, address, _site(source, address))]


@dataclass(frozen=True)
class _At(Place):
    """A page's place is its address."""

    @property
    def url(self) -> str:
        return self.path


def _written(body: Body, site: Site, address: str) -> Page:
    """A page that is written in Markdown, with the addresses that readers know."""
    from stages.crawl.files import markdown  # where it is needed: few sites have such pages

    text = body.text()
    if site.public is not None:
        text = text.replace(site.origin + site.folder, site.public)
    return markdown.parse(
        text.encode("utf-8", "replace"), _At(site.publish(address) or address, None)
    )


def publish(source: Web, address: str) -> str:
    """The address as readers know it."""
    return _site(source, address).publish(address) or address


def explain(source: Web, answered: Answered) -> str:
    """What a reject says beside its address; never the crawled address where it is not public."""
    site = _site(source, answered.url)
    match answered.reason:
        case "redirect":
            return f"to {site.publish(answered.detail)}"
        case "outside":
            return f"leads to {site.publish(answered.detail) or 'a page outside of the source'}"
        case "not_html":
            return answered.detail
        case "external":
            return f"{answered.detail}, linked from {site.publish(answered.referrer)}"
        case _:
            return f"linked from {site.publish(answered.referrer)}" if answered.referrer else ""


def _site(source: Web, address: str) -> Site:
    parts = urlsplit(address)
    # A folder is served on another port each time.
    return Site.around(source.url or f"{parts.scheme}://{parts.netloc}/", source.public_url)
