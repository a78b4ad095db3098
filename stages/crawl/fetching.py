"""A refresh: every source's pages into the store, and what they are into the snapshot.

It is the only part of the crawl that uses the network or looks at disks that change.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.crawl import parsed, snapshot, source
from stages.crawl.pages import Crawl, Pages
from stages.crawl.settings import Config
from stages.crawl.snapshot import Change, Held
from stages.crawl.source import Single, Source


def open_pages() -> Pages:
    """The page store of the main checkout."""
    return Pages(store.cache("pages", "pages.sqlite"))


def refresh(
    cfg: Config, whole: Source, parts: Sequence[Single], path: Path, keep_others: bool = False
) -> list[Change]:
    """Fetch these parts of the source and write the snapshot at `path`; what has changed in each.

    What the snapshot holds of them with other settings goes, unless `keep_others` says that other
    runs need it. A source that cannot be fetched leaves its part of the snapshot as it is.
    """
    known = snapshot.read(path)
    changes = []
    with open_pages() as pages:
        for part in parts:
            progress.note(f"{part.name}: fetching {source.place(part)}")
            settings = source.digest(cfg, part)
            others = [one for one in known.get(part.name, ()) if one.settings != settings]
            before = snapshot.find(known, part.name, settings)
            if before is None and not keep_others:
                before = snapshot.joined(others)
            with source.named(whole, part):
                held, crawl = hold(cfg, part, pages, before)
            known[part.name] = [held, *(others if keep_others else ())]
            snapshot.write(path, known)
            crawl.end(whole=True)  # last: killed before, the refresh goes on from here
            changes.append(snapshot.compare(part.name, before, held))
            progress.note(snapshot.tell(changes[-1]))
        _forget(pages, known)
    return changes


def _forget(pages: Pages, known: snapshot.Snapshot) -> None:
    """Drop the bodies that nothing names any more, and what they were parsed to."""
    held = {
        (name, one.settings): one.pages.values()
        for name, several in known.items()
        for one in several
    }
    with parsed.opened() as outcomes:
        count = pages.forget(held, outcomes.forget)
    if count:
        progress.note(f"{count} old pages are forgotten")


def uncovered(cfg: Config, whole: Source, path: Path) -> list[Single]:
    """The sources that the snapshot does not hold as they are set now."""
    known = snapshot.read(path)
    return [
        part
        for part in source.parts(whole)
        if not source.is_local(part)
        and snapshot.find(known, part.name, source.digest(cfg, part)) is None
    ]


def require(known: snapshot.Snapshot, cfg: Config, part: Single, path: Path) -> Held:
    """What the snapshot holds of a source; PipelineError where that is not what is set now."""
    held = snapshot.find(known, part.name, source.digest(cfg, part))
    if held is None:
        what = "holds with other settings" if part.name in known else "does not hold"
        raise PipelineError(
            f"{path}: {what} the source {part.name!r}: `make refresh` fetches it "
            "(`python -m stages run` does so by itself)"
        )
    return held


def hold(cfg: Config, part: Single, pages: Pages, before: Held | None) -> tuple[Held, Crawl]:
    """Fetch one source; what it holds, and the crawl, which is still to be ended."""
    settings = source.digest(cfg, part)
    crawl = pages.begin(part.name, settings)
    try:
        held = _hold(cfg, part, crawl, before)
        _check_any(part, held)
        _check_gone(cfg, part, before, held)
    except PipelineError:
        crawl.end(whole=False)  # what failed is asked again
        raise
    return held, crawl


def _hold(cfg: Config, part: Single, crawl: Crawl, before: Held | None) -> Held:
    left = _fetch(cfg, part, crawl)
    rows = [row for row in crawl.all_answered() if row.role == "page"]
    found = {row.url: row.digest for row in rows if row.digest}
    left_out = {row.url: (row.reason, source.explain(part, row)) for row in rows if not row.digest}
    gone = dict(before.gone) if before else {}
    for url in before.pages if before else ():
        gone[url] = left_out[url][0] if url in left_out else "unlinked"
    return Held(
        settings=source.digest(cfg, part),
        pages=found,
        left_out=left_out,
        gone={url: reason for url, reason in gone.items() if url not in found},
        not_fetched=left,
    )


def _check_any(part: Single, held: Held) -> None:
    """Raise if there is nothing at all: a source that is as good as empty answers no question."""
    if held.pages:
        return
    reasons = Counter(reason for reason, _ in held.left_out.values()) + Counter(held.not_fetched)
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    raise PipelineError(
        f"{source.place(part)}: nothing to read is there ({told or 'no address'}): check that it "
        "names the right place, or try later; the snapshot is as it was"
    )


def _check_gone(cfg: Config, part: Single, before: Held | None, held: Held) -> None:
    """Raise if too much is gone at once, with equal settings: that is a site in trouble."""
    if before is None or before.settings != held.settings:
        return
    reasons = Counter(held.gone[url] for url in before.pages if url not in held.pages)
    rate = reasons.total() / max(len(before.pages), 1)
    if rate > cfg.max_gone_rate:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        raise PipelineError(
            f"crawl.max_gone_rate: {rate:.2f} of the pages of {part.name!r} are gone ({told}), "
            f"more than {cfg.max_gone_rate:g}: look at the site, or set it to 1 for this refresh; "
            "the snapshot is as it was"
        )


def _fetch(cfg: Config, part: Single, crawl: Crawl) -> dict[str, int]:
    steps = source.fetch(cfg, part, crawl)
    done = 0
    try:
        while True:
            total = next(steps)
            done += 1
            progress.step(done, total, "addresses")
    except StopIteration as end:
        left: dict[str, int] = end.value
        return left
    finally:
        steps.close()
