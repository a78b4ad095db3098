"""Questions that people asked to facts, with the answer's place in its document as evidence."""

from collections.abc import Iterable, Mapping, Sequence

from stages.core.records import Chunk, Document, Evidence, Imported, Reject
from stages.synthesize.facts import Fact, Written


def facts(
    pairs: Iterable[Imported], pages: Mapping[str, Document], chunks: Sequence[Chunk]
) -> tuple[list[Fact], list[Reject]]:
    """A fact for each pair, of the chunks that its answer stands in; no call wrote it."""
    by_page: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_page.setdefault(chunk.document_id, []).append(chunk)
    made: list[Fact] = []
    rejects: list[Reject] = []
    for pair in pairs:
        page = pages.get(pair.document_id)
        span = _span(page, pair.answer) if page else None
        within = [
            chunk
            for chunk in by_page.get(pair.document_id, ())
            if span and chunk.start < span.end and span.start < chunk.end
        ]
        if span is None or not within:
            reason = "imported: its answer is not in its document"
            rejects.append(Reject(id=pair.id, reason=reason, detail=pair.question))
            continue
        written = Written(
            kind="imported", forms=(pair.question,), answer=pair.answer, evidence=(pair.answer,)
        )
        made.append(Fact(pair.id, tuple(within), written, (span,), call_id=""))
    return made, rejects


def _span(page: Document, answer: str) -> Evidence | None:
    place = page.text.find(answer)
    if place < 0 or not answer:
        return None
    start = len(page.text[:place].encode())
    end = start + len(answer.encode())
    return Evidence(document_id=page.id, start=start, end=end, text=answer)
