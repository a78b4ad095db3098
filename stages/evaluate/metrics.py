"""One answer and its question → its figures; many of them → means by system, track and kind."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, quantiles
from typing import Any, Protocol, get_args

from stages.answer.prompt import NOT_FOUND
from stages.core.records import Answer, Chunk, Example, Track
from stages.evaluate import rouge

Figures = dict[str, float]
"""Figures of one answer by name; one that does not apply to it is not there."""

DEPTHS = (1, 3)
"""The k of retrieval's recall@k."""


class Span(Protocol):
    """A place in a document, in bytes of its text."""

    @property
    def document_id(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


def score(
    answer: Answer, example: Example, chunks: Mapping[str, Chunk], scorer: rouge.Scorer
) -> Figures:
    """ROUGE, exact match, token F1 (as SQuAD counts them), length, citations and retrieval.

    A citation is right where its span overlaps the evidence. Retrieval is judged for the systems
    that were given chunks: recall@k, and the reciprocal rank of the first chunk that overlaps.
    """
    figures = scorer.score(answer.answer, answer.reference)
    figures["exact_match"] = float(_words(answer.answer) == _words(answer.reference))
    figures["token_f1"] = _token_f1(answer.answer, answer.reference)
    figures["answer_words"] = len(answer.answer.split())
    figures["refused"] = float(answer.answer == NOT_FOUND)
    if answer.citations:
        right = [overlaps(cited, example.evidence) for cited in answer.citations]
        figures["citation_precision"] = fmean(right)
    if answer.citations or answer.system != "base":
        met = [overlaps(evidence, answer.citations) for evidence in example.evidence]
        if met:
            figures["citation_recall"] = fmean(met)
    if answer.system.endswith("_rag") or answer.system == "quote":
        found = [overlaps(chunks[id], example.evidence) for id in answer.chunk_ids if id in chunks]
        for depth in DEPTHS:
            figures[f"recall_at_{depth}"] = float(any(found[:depth]))
        figures["reciprocal_rank"] = 1 / (found.index(True) + 1) if True in found else 0.0
    return figures


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    """Whether the span shares a byte with one of the others."""
    return any(
        span.document_id == other.document_id and span.start < other.end and other.start < span.end
        for other in others
    )


def summarize(
    systems: Sequence[str],
    examples: Sequence[Example],
    scores: Mapping[tuple[str, str], Figures],
) -> dict[str, Any]:
    """Means by system; under `tracks` and `kinds` by those and system.

    Beside the means stand the number of questions and percentiles of ROUGE-L F1.
    """

    def over(chosen: Sequence[Example]) -> dict[str, Figures]:
        found = {}
        for system in systems:
            rows = [scores[system, e.id] for e in chosen if (system, e.id) in scores]
            if rows:
                found[system] = {**mean(rows), **percentiles(rows), "num_questions": len(rows)}
        return found

    by_track = {track: over([e for e in examples if e.track == track]) for track in get_args(Track)}
    kinds = sorted({example.kind for example in examples})
    by_kind = {kind: over([e for e in examples if e.kind == kind]) for kind in kinds}
    return {
        **over(examples),
        "tracks": {track: found for track, found in by_track.items() if found},
        "kinds": {kind: found for kind, found in by_kind.items() if found},
    }


def mean(rows: Sequence[Figures]) -> Figures:
    """The mean of each figure over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: fmean(row[name] for row in rows if name in row) for name in names}


def percentiles(rows: Sequence[Figures]) -> Figures:
    """Of ROUGE-L F1: what a tenth, a half and nine tenths of the answers stay below."""
    values = [row["rougeL_f1"] for row in rows]
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {f"rougeL_f1_p{10 * (k + 1)}": cuts[k] for k in (0, 4, 8)}


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _words(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _token_f1(answer: str, reference: str) -> float:
    said, wanted = _words(answer), _words(reference)
    if not said or not wanted:
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))
