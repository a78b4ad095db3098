"""The frozen test set: questions that stay as they are, and pages that are never trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Document, Evidence, Example, Reject


def read(path: Path) -> list[Example]:
    """The frozen questions; none where the file is blank."""
    rows = list(store.read(path, Example))
    with path.open(encoding="utf-8") as file:  # not splitlines: U+2028 in a question ends no row
        lines = [number for number, line in enumerate(file, 1) if line.strip()]
    seen: dict[str, int] = {}
    for number, row in zip(lines, rows, strict=True):
        if row.id in seen:
            raise PipelineError(
                f"{path}:{number}: the id {row.id!r} stands in line {seen[row.id]} too: remove one"
            )
        if row.track not in ("same_fact", "held_out"):
            raise PipelineError(
                f"{path}:{number}: track: {row.track or 'null'}: expected same_fact or held_out, "
                "as `python -m stages freeze` writes them"
            )
        seen[row.id] = number
    return rows


def held_pages(frozen: Sequence[Example]) -> set[str]:
    """The documents that the held-out questions are about: they are never trained on."""
    return {span.document_id for e in frozen if e.track == "held_out" for span in e.evidence}


def learnt(frozen: Sequence[Example]) -> tuple[set[str], set[str]]:
    """Pages and questions about trained facts: both stay trained, the facts in other words."""
    asked = [e for e in frozen if e.track == "same_fact"]
    return {span.document_id for e in asked for span in e.evidence}, {e.question for e in asked}


def settle(
    frozen: Sequence[Example], pages: Mapping[str, Document]
) -> tuple[list[Example], list[Reject]]:
    """The questions with their evidence where it stands today, and those that lost it."""
    texts: dict[str, bytes] = {}
    settled = []
    rejects = []
    for example in frozen:
        moved: list[Evidence] = []
        for span in example.evidence:
            if span.document_id not in pages:
                rejects.append(_gone(example, "frozen: its page is gone"))
                break
            text = texts.setdefault(span.document_id, pages[span.document_id].text.encode())
            if (start := _nearest(text, span)) is None:
                rejects.append(_gone(example, "frozen: its evidence is gone from the page"))
                break
            end = start + span.end - span.start
            moved.append(span.model_copy(update={"start": start, "end": end}))
        else:
            settled.append(example.model_copy(update={"evidence": tuple(moved)}))
    assert len(settled) + len(rejects) == len(frozen)
    return settled, rejects


def _nearest(text: bytes, span: Evidence) -> int | None:
    """Where the evidence starts now, in bytes: the place nearest to the old one."""
    wanted = span.text.encode()
    places = []
    at = text.find(wanted)
    while at >= 0:
        places.append(at)
        at = text.find(wanted, at + 1)
    return min(places, key=lambda place: (abs(place - span.start), place), default=None)


def _gone(example: Example, reason: str) -> Reject:
    return Reject(id=example.id, reason=reason, detail=example.question)
