"""Crawl a source into documents: each page's main text as Markdown, with its public address.

A refresh brings what the sources hold into the page store and writes the snapshot; the stage then
parses what the snapshot names, without any network.
"""

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import Document, Imported, Reject, identify
from stages.crawl import fetching, filters, parsed, scrub, workers
from stages.crawl import snapshot as snapshots
from stages.crawl import source as sources
from stages.crawl.files import Files
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Body, Pages
from stages.crawl.settings import Config
from stages.crawl.shelf import Shelf
from stages.crawl.snapshot import Held
from stages.crawl.source import Single, Source
from stages.crawl.web import Web

__all__ = ["Config", "Source", "run"]

MAX_TITLE_CHARS = 300
"""A longer title is cut: each of a document's chunks carries it into prompts."""
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
    read: dict[str, _Read] = {}
    with contextlib.ExitStack() as stack:
        for part in sources.parts(source):
            pages = stack.enter_context(Shelf())
            with sources.named(source, part), _held(cfg, part, snapshot) as (held, bodies):
                read[part.name] = _read(cfg, part, held, bodies, pages)
        totals = _write(cfg, read, out)
        for one in read.values():
            with sources.named(source, one.part):
                _check_whole(cfg, one, out)
    return {
        "num_documents": totals["documents"],
        "num_rejects": totals["rejects"],
        "num_imported": totals["imported"],
        "num_not_fetched": totals["not_fetched"],
        "num_chars": totals["chars"],
        "num_headings": totals["headings"],
        **{f"num_scrubbed_{kind}": totals[kind] for kind in sorted(cfg.scrub.kinds)},
    }


@dataclass(frozen=True)
class _Read:
    """What one source gave: the pages worth keeping, and a reject for every other address."""

    part: Single
    pages: Shelf
    rejects: list[Reject]
    scrubbed: dict[str, Counter[str]]
    """By address, how much of which kind was replaced."""
    num_not_fetched: int


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


def _read(cfg: Config, part: Single, held: Held, bodies: Pages, pages: Shelf) -> _Read:
    """Parse what one source holds, put it on the shelf, and sift it there."""
    failures = {sources.publish(part, url): why for url, why in held.left_out.items()}
    scrubbed: dict[str, Counter[str]] = {}
    outcomes = _outcomes(cfg, part, held, bodies)
    for address, found in progress.track(outcomes, "pages", len(held.pages)):
        if isinstance(found, UnreadableError):
            failures[sources.publish(part, address)] = found.reason, found.detail
        else:
            for page in found:
                pages[page.url], scrubbed[page.url] = scrub.scrub(page, cfg.scrub)
    num_pages = len(pages) + len(failures)
    failures |= _sift(cfg, part, pages)
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
    return _Read(part, pages, rejects, scrubbed, sum(held.not_fetched.values()))


def _outcomes(cfg: Config, part: Single, held: Held, bodies: Pages) -> Iterator[workers.Outcome]:
    """What each address gives, in their order: a body is parsed once."""
    limits = workers.Limits(cfg.parse_timeout_s, cfg.parse_memory_mb)
    with parsed.opened() as known:
        # Not by the address itself: a folder is served on another port each time.
        keys = {
            address: parsed.key(part, sources.publish(part, address), digest)
            for address, digest in held.pages.items()
        }
        new = {address for address, key in keys.items() if key not in known}
        tasks = (
            (address, _body(bodies, address, digest))
            for address, digest in held.pages.items()
            if address in new
        )
        with contextlib.closing(workers.parse(part, tasks, limits)) as now:
            for address, key in keys.items():
                if address not in new:
                    yield address, known[key]
                    continue
                _, outcome = next(now)
                if not isinstance(outcome, UnreadableError) or outcome.lasts:
                    known.keep(key, outcome)
                yield address, outcome


def _sift(cfg: Config, part: Single, pages: Shelf) -> dict[str, tuple[str, str]]:
    """Take away what is not worth keeping: the reason and detail, by address."""
    of_site, of_prose = isinstance(part, Web), isinstance(part, Web | Files)
    frame = filters.frame(pages.values(), cfg.boilerplate_share) if of_site else None
    failures: dict[str, tuple[str, str]] = {}
    for url, page in pages.items():
        if frame is not None:
            whole, page = page, filters.unframed(page, frame)
            if page != whole:
                pages[url] = page
        flaw = filters.flaw(page, cfg, of_site, of_prose)
        if flaw is not None:
            failures[url] = flaw
            del pages[url]
    for url, kept in filters.duplicates(pages).items():
        failures[url] = "duplicate", f"of {kept}"
        del pages[url]
    if cfg.near_duplicate is not None and of_prose:  # two functions may well be alike
        for url, kept in filters.near_duplicates(pages, cfg.near_duplicate).items():
            failures[url] = "near_duplicate", f"of {kept}"
            del pages[url]
    return failures


def _write(cfg: Config, read: dict[str, _Read], out: Path) -> Counter[str]:
    """The rows of all sources, by address; how many there are of everything."""
    totals = Counter[str]()
    imported: list[Imported] = []
    scrubbed: list[Reject] = []
    ids: set[str] = set()

    def documents() -> Iterator[Document]:
        for url, name in sorted((url, name) for name, one in read.items() for url in one.pages):
            page, part = read[name].pages[url], read[name].part
            document = _document(part, page)
            assert document.id not in ids, f"two documents have the id {document.id}: {url}"
            ids.add(document.id)
            yield document
            imported.extend(_imported(cfg, document, page))
            counts = read[name].scrubbed[url]
            scrubbed.extend(_scrubbed(document, counts))
            totals.update(counts)
            totals.update(documents=1, chars=len(document.text), headings=len(document.headings))

    rejects = [row for one in read.values() for row in one.rejects]
    store.write(out / "documents.jsonl", documents())
    imported.sort(key=lambda pair: pair.id)
    store.write(out / "imported.jsonl", imported)
    rejects.sort(key=lambda row: (row.detail, row.id))
    store.write(out / "rejects.jsonl", rejects)
    store.write(out / "scrubbed.jsonl", scrubbed)
    not_fetched = sum(one.num_not_fetched for one in read.values())
    totals.update(rejects=len(rejects), imported=len(imported), not_fetched=not_fetched)
    return totals


def _body(bodies: Pages, address: str, digest: str) -> Body:
    body = bodies.body(digest)
    if body is None:
        raise PipelineError(
            f"{bodies.path}: lacks the page {address}: `make refresh` fetches it again"
        )
    return body


def _document(part: Single, page: Page) -> Document:
    title = page.title or urlsplit(page.url).path.strip("/").rpartition("/")[2] or page.url
    return Document(
        id=identify(part.name, page.key or page.url),
        url=page.url,
        title=title[:MAX_TITLE_CHARS],
        text=page.text,
        source=part.name,
        headings=page.headings,
    )


def _imported(cfg: Config, document: Document, page: Page) -> Iterator[Imported]:
    for pair in page.pairs:
        question, answer = (scrub.clean(words, cfg.scrub) for words in pair)
        yield Imported(
            id=identify(document.id, question, answer),
            question=question,
            answer=answer,
            document_id=document.id,
        )


def _scrubbed(document: Document, counts: Counter[str]) -> Iterator[Reject]:
    """What was replaced in a document, by kind; never the thing itself."""
    for kind, number in sorted(counts.items()):
        yield Reject(id=document.id, reason=kind, detail=f"{document.url}: {number}")


# --- failures ----------------------------------------------------------------------------------


def _check_whole(cfg: Config, read: _Read, out: Path) -> None:
    """Raise if there is nothing to go on with, or too much is missing."""
    part, num_documents = read.part, len(read.pages)
    reasons = Counter(reject.reason for reject in read.rejects)
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
            f"{cfg.max_reject_rate:g}: see {out / 'rejects.jsonl'}, {_again(reasons)}mend the site,"
            " or raise it"
        )


def _again(reasons: Counter[str]) -> str:
    """What helps where a site was in trouble when it was asked: of its pages, none is held."""
    passing = re.compile(r"http_(5\d\d|408|425|429)|robots_.*|timeout|unreachable|refused")
    return "`make refresh` to ask again, " if any(map(passing.fullmatch, reasons)) else ""
