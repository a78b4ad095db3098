"""What the sources hold, as data/inputs/snapshot.json commits it: digests, and what is gone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Record


class Held(Record):
    """What one source held when it was last refreshed. No times: equal sites give equal bytes."""

    settings: str
    """Digest of all that decides what is fetched; another one asks for a refresh."""
    pages: dict[str, str]
    """Digest of body and media type, by address."""
    left_out: dict[str, tuple[str, str]]
    """Reason and detail by address, for what gave no page."""
    gone: dict[str, str]
    """By address why a page that was held once no longer is."""
    not_fetched: dict[str, int]
    """By the limit how many known addresses it left out."""


Snapshot = dict[str, list[Held]]
"""By name of the source, one for each of the settings that it was fetched with: the points of a
sweep stand beside each other."""


def read(path: Path) -> Snapshot:
    rows = store.read_json(path)
    try:
        return {name: [Held.model_validate(row) for row in held] for name, held in rows.items()}
    except (ValidationError, AttributeError, TypeError):
        raise PipelineError(
            f"{path}: not a snapshot of this version: write {{}} into it and `make refresh`"
        ) from None


def write(path: Path, snapshot: Snapshot) -> None:
    rows = {
        name: [one.model_dump(mode="json") for one in sorted(held, key=lambda one: one.settings)]
        for name, held in snapshot.items()
    }
    store.write_json(path, rows)


def find(snapshot: Snapshot, name: str, settings: str) -> Held | None:
    """What a source holds with these settings."""
    return next((held for held in snapshot.get(name, ()) if held.settings == settings), None)


def joined(held: Sequence[Held]) -> Held | None:
    """What a source held with several other settings, as one."""
    if not held:
        return None
    pages = {url: digest for one in held for url, digest in one.pages.items()}
    gone = {url: reason for one in held for url, reason in one.gone.items() if url not in pages}
    return Held(settings="", pages=pages, left_out={}, gone=gone, not_fetched={})


@dataclass(frozen=True)
class Change:
    """What a refresh found in one source, by address."""

    source: str
    new: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: int
    gone: tuple[str, ...]


def compare(source: str, before: Held | None, after: Held) -> Change:
    old = before.pages if before else {}
    return Change(
        source,
        new=tuple(sorted(after.pages.keys() - old.keys())),
        changed=tuple(
            sorted(url for url in after.pages.keys() & old.keys() if after.pages[url] != old[url])
        ),
        unchanged=sum(old.get(url) == page for url, page in after.pages.items()),
        gone=tuple(sorted(old.keys() - after.pages.keys())),
    )


def tell(change: Change) -> str:
    """A refresh of one source in words."""
    return (
        f"{change.source}: {len(change.new)} new, {len(change.changed)} changed, "
        f"{change.unchanged} unchanged, {len(change.gone)} gone"
    )
