"""Crawl a source into documents: each page's main text as Markdown, with its public address.

A refresh brings what the sources hold into the page store and writes the snapshot; the stage then
parses what the snapshot names, without any network.
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import Document, Imported, Reject, identify
from stages.crawl import fetching, filters, parsed, workers
from stages.crawl import snapshot as snapshots
from stages.crawl import source as sources
from stages.crawl.files import Files
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Body, Pages
from stages.crawl.scrub import clean, scrub
from stages.crawl.settings import Config
from stages.crawl.snapshot import Held
from stages.crawl.source import Single, Source
from stages.crawl.web import Web

__all__ = ["Config", "Source", "run"]


NO_FAULT = {
    *(
        "duplicate",
        "near_duplicate",
        "wrong_language",
        "not_html",
        "outside",
        "redirect",
        "robots",
        "excluded",
    ),
    *("empty", "link", "not_text", "subtitles"),
}
"""Reasons to leave an address out that say nothing against the crawl."""


def run(cfg: Config, source: Source, snapshot: Path, out: Path) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    parts = sources.parts(source)
    held = {}
    documents: list[Document] = []
    imported: list[Imported] = []
    rejects: dict[str, list[Reject]] = {}
    scrubbed: dict[str, Counter[str]] = {}
    for part in parts:
        with (
            sources.named(source, part),
            _held(cfg, part, snapshot) as (held[part.name], bodies),
        ):
            pages, rejects[part.name] = _read(cfg, part, held[part.name], bodies, scrubbed)
        documents += (_document(part, page) for page in pages)
        imported += (pair for page in pages for pair in _imported(cfg, part, page))
    documents.sort(key=lambda document: (document.url, document.source))
    together = sorted(
        (row for rows in rejects.values() for row in rows), key=lambda row: (row.detail, row.id)
    )
    store.write(out / "documents.jsonl", documents)
    imported.sort(key=lambda pair: pair.id)
    store.write(out / "imported.jsonl", imported)
    store.write(out / "rejects.jsonl", together)
    store.write(out / "scrubbed.jsonl", _scrubbed(documents, scrubbed))
    counts = Counter(document.source for document in documents)
    for part in parts:
        with sources.named(source, part):
            _check_whole(cfg, part, counts[part.name], rejects[part.name], out)
    return {
        "num_documents": len(documents),
        "num_rejects": len(together),
        "num_imported": len(imported),
        "num_not_fetched": sum(sum(one.not_fetched.values()) for one in held.values()),
        "num_chars": sum(len(document.text) for document in documents),
        "num_headings": sum(len(document.headings) for document in documents),
        **_num_scrubbed(cfg, documents, scrubbed),
    }


@contextlib.contextmanager
def _held(cfg: Config, part: Single, path: Path) -> Iterator[tuple[Held, Pages]]:
    """What the source holds, and the store of its bodies.

    A folder that is served on this machine is fetched on the spot.
    """
    if sources.is_local(part):
        with tempfile.TemporaryDirectory() as folder, Pages(Path(folder, "pages.sqlite")) as pages:
            yield fetching.hold(cfg, part, pages, None)[0], pages
    else:
        held = fetching.require(snapshots.read(path), cfg, part, path)
        with fetching.open_pages() as pages:
            yield held, pages


def _read(
    cfg: Config, part: Single, held: Held, bodies: Pages, scrubbed: dict[str, Counter[str]]
) -> tuple[list[Page], list[Reject]]:
    """The pages and rejects of one source; what was replaced in its documents, by their id."""
    pages: dict[str, Page] = {}
    failures = {sources.publish(part, url): why for url, why in held.left_out.items()}
    outcomes = _outcomes(cfg, part, held, bodies)
    for address, found in progress.track(outcomes, "pages", len(held.pages)):
        if isinstance(found, UnreadableError):
            failures[sources.publish(part, address)] = found.reason, found.detail
        else:
            pages |= {page.url: page for page in found}
    num_pages = len(pages) + len(failures)
    counts = {}
    for url, page in pages.items():
        pages[url], counts[url] = scrub(page, cfg.scrub)
    pages, flaws = _sifted(cfg, part, pages)
    failures |= flaws
    for url, page in pages.items():
        scrubbed[_id(part, page)] = counts[url]
    rejects = [
        Reject(
            id=identify(part.name, url),
            reason=reason,
            detail=f"{url}{': ' if detail else ''}{detail}",
        )
        for url, (reason, detail) in failures.items()
    ]
    assert num_pages == len(pages) + len(rejects)
    if held.not_fetched:
        told = ", ".join(f"{limit} {count}" for limit, count in sorted(held.not_fetched.items()))
        progress.note(f"{part.name}: more addresses are known than the limits let in: {told}")
    return [page for _, page in sorted(pages.items())], rejects


def _outcomes(cfg: Config, part: Single, held: Held, bodies: Pages) -> Iterator[workers.Outcome]:
    """What each address gives, in their order: a body is parsed once."""
    limits = workers.Limits(cfg.parse_timeout_s, cfg.parse_memory_mb)
    with parsed.opened() as known:
        # Not by the address itself: a folder is served on another port each time.
        keys = {
            address: parsed.key(part, sources.publish(part, address), digest)
            for address, digest in held.pages.items()
        }
        before = {address: known.get(key) for address, key in keys.items()}
        tasks = (
            (address, _body(bodies, address, digest))
            for address, digest in held.pages.items()
            if before[address] is None
        )
        with contextlib.closing(workers.parse(part, tasks, limits)) as now:
            for address, outcome in before.items():
                if outcome is None:
                    _, outcome = next(now)
                    if not isinstance(outcome, UnreadableError) or outcome.lasts:
                        known.keep(keys[address], outcome)
                yield address, outcome


def _sifted(
    cfg: Config, part: Single, pages: dict[str, Page]
) -> tuple[dict[str, Page], dict[str, tuple[str, str]]]:
    """The pages worth keeping, and the reason and detail of every other one."""
    of_site, of_prose = isinstance(part, Web), isinstance(part, Web | Files)
    if of_site:
        pages = filters.titled(pages)
        if cfg.boilerplate_share is not None:
            pages = filters.without_boilerplate(pages, cfg.boilerplate_share)
    flaws = {url: filters.flaw(page, cfg, of_site, of_prose) for url, page in pages.items()}
    failures = {url: flaw for url, flaw in flaws.items() if flaw is not None}
    pages = {url: page for url, page in pages.items() if url not in failures}
    same = {url: ("duplicate", f"of {kept}") for url, kept in duplicates(pages).items()}
    pages = {url: page for url, page in pages.items() if url not in same}
    if cfg.near_duplicate is not None and of_prose:  # two functions may well be alike
        near = filters.near_duplicates(pages, cfg.near_duplicate)
        same |= {url: ("near_duplicate", f"of {kept}") for url, kept in near.items()}
    return {url: page for url, page in pages.items() if url not in same}, failures | same


def _scrubbed(documents: list[Document], counts: dict[str, Counter[str]]) -> list[Reject]:
    """What was replaced in each document, by kind; never the thing itself."""
    return [
        Reject(id=document.id, reason=kind, detail=f"{document.url}: {number}")
        for document in documents
        for kind, number in sorted(counts[document.id].items())
    ]


def _num_scrubbed(
    cfg: Config, documents: list[Document], counts: dict[str, Counter[str]]
) -> dict[str, float]:
    total = Counter[str]()
    for document in documents:
        total += counts[document.id]
    return {f"num_scrubbed_{kind}": total[kind] for kind in sorted(cfg.scrub.kinds)}


def _body(bodies: Pages, address: str, digest: str) -> Body:
    body = bodies.body(digest)
    if body is None:
        raise PipelineError(
            f"{bodies.path}: lacks the page {address}: `make refresh` fetches it again"
        )
    return body


def _id(part: Single, page: Page) -> str:
    return identify(part.name, page.key or page.url)


def _document(part: Single, page: Page) -> Document:
    return Document(
        id=_id(part, page),
        url=page.url,
        title=page.title or urlsplit(page.url).path.strip("/").rpartition("/")[2] or page.url,
        text=page.text,
        source=part.name,
        headings=page.headings,
    )


def _imported(cfg: Config, part: Single, page: Page) -> Iterator[Imported]:
    document_id = _id(part, page)
    for pair in page.pairs:
        question, answer = (clean(words, cfg.scrub) for words in pair)
        yield Imported(
            id=identify(document_id, question, answer),
            question=question,
            answer=answer,
            document_id=document_id,
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


# --- failures ----------------------------------------------------------------------------------


def _check_whole(
    cfg: Config, part: Single, num_documents: int, rejects: list[Reject], out: Path
) -> None:
    """Raise if there is nothing to go on with, or too much is missing."""
    reasons = Counter(reject.reason for reject in rejects)
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    if num_documents == 0:
        doubt = "is it made by JavaScript, or " if isinstance(part, Web) else "is "
        raise PipelineError(
            f"{sources.place(part)}: no page with {cfg.min_chars} characters of text ({told}): "
            f"{doubt}crawl.min_chars too high?"
        )
    failed = sum(count for reason, count in reasons.items() if reason not in NO_FAULT)
    rate = failed / (num_documents + failed)
    if rate > cfg.max_reject_rate:
        raise PipelineError(
            f"crawl.max_reject_rate: {rate:.2f} of the pages failed ({told}), more than "
            f"{cfg.max_reject_rate:g}: see {out / 'rejects.jsonl'}, mend the site, or raise it"
        )
