"""Crawl a source into documents: each page's main text as Markdown, with its public address."""

import contextlib
import functools
import http.server
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Document, Reject, identify
from stages.crawl.extract import extract
from stages.crawl.page import Page
from stages.crawl.site import Filter, Site

__all__ = ["Config", "Source", "run"]


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PydanticCustomError(
            "regular_expression", "not a regular expression: {why}", {"why": str(error)}
        ) from None
    return pattern


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PydanticCustomError(
            "address", "expected an address such as https://example.org/docs/"
        )
    return url


Pattern = Annotated[str, AfterValidator(_regular_expression)]
Address = Annotated[str, AfterValidator(_address)]


class Web(config.Base):
    """A web site, or a folder of HTML that is served on this machine while it is crawled."""

    kind: Literal["web"]
    name: Annotated[str, Field(min_length=1)]
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


Source = Web  # `files`, `code` and `table` become variants of a union told apart by `kind`


class Config(config.Base):
    max_pages: Annotated[int, Field(gt=0)]
    """Most addresses that a crawl asks for."""
    max_depth: Annotated[int, Field(ge=0)]
    """Longest way from the start page, in links."""
    concurrent_requests: Annotated[int, Field(gt=0)]
    """Requests under way to the site at the same time."""
    delay_s: Annotated[float, Field(ge=0)]
    """Pause between two requests to a site, in seconds; a served folder is read without it."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Longest wait for one page, in seconds; a page is tried three times."""
    user_agent: Annotated[str, Field(min_length=1)]
    """How the crawler names itself to sites, with an address where its operator is told of."""
    obey_robots: bool
    """Whether the site's robots.txt is obeyed, its crawl delay included."""
    min_chars: Annotated[int, Field(ge=0)]
    """Shortest text that makes a page a document, in characters of Markdown."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest share of pages that may fail or be too short before the crawl counts as failed."""


NO_FAULT = {"duplicate", "not_html", "outside", "redirect", "robots", "excluded"}
"""Reasons to leave an address out that say nothing against the crawl."""


def run(cfg: Config, source: Source, out: Path) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    with _served(source) as start, contextlib.closing(_crawl(cfg, source, start)) as rows:
        site = Site.around(start, source.public_url)
        pages: dict[str, Page] = {}
        failures: dict[str, tuple[str, str]] = {}  # address: reason, detail
        left = 0
        for done, row in enumerate(rows, 1):
            url = row["url"]
            if row["kind"] == "end":
                left = row["total"]
                break
            if row["kind"] == "page":
                pages[url] = extract(row["html"], url, site)
            else:
                _check_start(row, done, source, cfg)
                failures[url] = row["reason"], _detail(row, site)
            progress.step(done, row["total"], "pages")
    num_pages = len(pages) + len(failures)

    wanted = Filter.of(source.include, source.exclude)
    for url, page in pages.items():
        if not wanted.keeps(url):  # the start page, which is read for its links
            failures[url] = "excluded", ""
        elif len(page.text) < cfg.min_chars:
            failures[url] = "too_short", f"{len(page.text)} characters"
    pages = {url: page for url, page in pages.items() if url not in failures}
    for url, kept in duplicates(pages).items():
        failures[url] = "duplicate", f"of {site.publish(kept)}"
    documents = sorted(
        (_document(source, site, url, page) for url, page in pages.items() if url not in failures),
        key=lambda document: document.url,
    )
    rejects = [
        Reject(
            id=identify(source.name, site.publish(url)),
            reason=reason,
            detail=f"{site.publish(url)}{': ' if detail else ''}{detail}",
        )
        for url, (reason, detail) in failures.items()
    ]
    rejects.sort(key=lambda reject: (reject.detail, reject.id))
    assert num_pages == len(documents) + len(rejects)
    store.write(out / "documents.jsonl", documents)
    store.write(out / "rejects.jsonl", rejects)
    if left:
        limits = f"crawl.max_pages={cfg.max_pages} and crawl.max_depth={cfg.max_depth}"
        progress.note(f"{left} more addresses are known than {limits} let in")
    _check_whole(cfg, source, len(documents), rejects, out)
    return {
        "num_documents": len(documents),
        "num_rejects": len(rejects),
        "num_not_fetched": left,
        "num_chars": sum(len(document.text) for document in documents),
        "num_headings": sum(len(document.headings) for document in documents),
    }


def _document(source: Source, site: Site, url: str, page: Page) -> Document:
    public = site.publish(url)
    assert public is not None  # every crawled page is inside the site
    return Document(
        id=identify(source.name, public),
        url=public,
        title=page.title or urlsplit(public).path.strip("/").rpartition("/")[2] or public,
        text=page.text,
        source=source.name,
        headings=page.headings,
    )


def duplicates(pages: dict[str, Page]) -> dict[str, str]:
    """Addresses whose page stands at another one too, with that one: the shortest of them.

    Equal text makes a duplicate. So does naming another page as canonical, but only when half of
    the lines are there: sites exist whose every page names the home page.
    """
    kept: dict[str, str] = {}  # text: address
    gone: dict[str, str] = {}
    for url in sorted(pages, key=lambda url: (pages[url].canonical != url, len(url), url)):
        page = pages[url]
        first = kept.setdefault(page.text, url)
        if first != url:
            gone[url] = first
    for url, page in pages.items():
        other = page.canonical
        if url in gone or other is None or other == url or other not in pages or other in gone:
            continue
        if pages[other].canonical not in (None, other):
            continue  # a chain, or two pages that name each other
        lines = {line for line in page.text.splitlines() if line.strip()}
        if 2 * len(lines & set(pages[other].text.splitlines())) >= len(lines):
            gone[url] = other
    return gone


# --- the crawl ---------------------------------------------------------------------------------


def _crawl(cfg: Config, source: Source, start: str) -> Generator[dict[str, Any], None, None]:
    """The spider's rows as they come: it is a process of its own."""
    order = {
        "start": start,
        "public": source.public_url,
        "local": source.serve_dir is not None,
        "include": source.include,
        "exclude": source.exclude,
        **cfg.model_dump(exclude={"min_chars", "max_reject_rate"}),
        "delay_s": 0.0 if source.serve_dir is not None else cfg.delay_s,
    }
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
            spider.stdin.write(json.dumps(order))
            spider.stdin.close()
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


def _detail(row: dict[str, Any], site: Site) -> str:
    """What a reject says beside its address; never the crawled address where it is not public."""
    match row["reason"]:
        case "redirect":
            return f"to {site.publish(row['detail'])}"
        case "outside":
            return f"leads to {site.publish(row['detail']) or 'a page outside of the source'}"
        case "not_html":
            return str(row["detail"])
        case _:
            return f"linked from {site.publish(row['referrer'])}" if row["referrer"] else ""


@contextlib.contextmanager
def _served(source: Source) -> Iterator[str]:
    """The address of the start page; a folder is served as long as this lasts."""
    if source.url is not None and source.serve_dir is not None:
        raise PipelineError(f"source.url: {source.url!r}: set this or source.serve_dir to null")
    if source.url is not None:
        yield source.url
        return
    if source.serve_dir is None:
        raise PipelineError("source.url: required: the address of the site's start page")
    if source.public_url is None:
        raise PipelineError("source.public_url: required beside source.serve_dir: links lead there")
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


# --- failures ----------------------------------------------------------------------------------


def _check_start(row: dict[str, Any], done: int, source: Source, cfg: Config) -> None:
    """Raise if the crawl's first row says that there is no start page."""
    if done > 1 or row["reason"] == "redirect":
        return
    key = "source.url" if source.url is not None else "source.serve_dir"
    value = source.url if source.url is not None else source.serve_dir
    host = urlsplit(row["url"]).netloc
    match row["reason"]:
        case "refused":
            said = f"{host} refuses the connection: check the address, and that the site is up"
        case "unknown_host":
            said = f"no host {urlsplit(row['url']).hostname}: check the address and the network"
        case "timeout":
            said = f"no answer in {cfg.timeout_s:g} s: check the address, or raise crawl.timeout_s"
        case "robots":
            said = "the site's robots.txt forbids it: ask its owner, or set crawl.obey_robots=false"
        case "outside":
            said = f"leads out of the source, to {row['detail']}: set source.url to that address"
        case "not_html":
            said = f"answers with {row['detail'] or 'no content type'}: expected an HTML page"
        case reason if reason.startswith("robots_"):
            said = (
                f"robots.txt answers {reason.removeprefix('robots_')}, which forbids everything: "
                "try later, or set crawl.obey_robots=false"
            )
        case reason if reason.startswith("http_"):
            said = f"answers {reason.removeprefix('http_')}: expected a page to start from"
        case reason:
            said = f"{reason.replace('_', ' ')}: {row['detail']}: check the address"
    raise PipelineError(f"{key}: {value!r}: {said}")


def _check_whole(
    cfg: Config, source: Source, num_documents: int, rejects: list[Reject], out: Path
) -> None:
    """Raise if there is nothing to go on with, or too much is missing."""
    reasons = Counter(reject.reason for reject in rejects)
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    if num_documents == 0:
        key = "source.url" if source.url is not None else "source.serve_dir"
        raise PipelineError(
            f"{key}: {source.url or source.serve_dir!r}: no page with {cfg.min_chars} "
            f"characters of text ({told}): is it made by JavaScript, or crawl.min_chars too high?"
        )
    failed = sum(count for reason, count in reasons.items() if reason not in NO_FAULT)
    rate = failed / (num_documents + failed)
    if rate > cfg.max_reject_rate:
        raise PipelineError(
            f"crawl.max_reject_rate: {rate:.2f} of the pages failed ({told}), more than "
            f"{cfg.max_reject_rate:g}: see {out / 'rejects.jsonl'}, mend the site, or raise it"
        )
