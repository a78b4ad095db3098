"""One answer and its question → its figures; many of them → means by system, track and kind."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Any, Protocol, get_args

from stages.answer.embedding import Embedder
from stages.answer.prompt import NOT_FOUND
from stages.core.records import Answer, Chunk, Example, System, Track, url_at
from stages.evaluate import neural, rouge
from stages.evaluate.neural import Likelihood

Figures = dict[str, float]
"""Figures of one answer by name; one that does not apply to it is not there."""

Scores = Mapping[tuple[str, str], Figures]
"""By system and example id."""

DEPTHS = (1, 3)
"""The k of retrieval's recall@k."""

RESERVED = ("tracks", "kinds", "baselines")
"""What stands beside the systems in metrics.json, so that no system has such a name."""


class Span(Protocol):
    """A place in a document, in bytes of its text."""

    @property
    def document_id(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


@dataclass(frozen=True)
class Scoring:
    """What every answer is scored with."""

    scorer: rouge.Scorer
    chunks: Mapping[str, Chunk]
    """Of the index, by id."""
    refusals: tuple[str, ...]
    """Beginnings of an answer that say that there is none."""


def similarities(embedder: Embedder, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The cosine of each pair's texts, in -1…1, to four digits.

    A pair of which one text is blank scores 0, and 1 if both are: a vector of nothing means
    nothing.
    """
    texts = sorted({text for pair in pairs for text in pair if text.strip()})
    vectors = dict(zip(texts, embedder.texts(texts), strict=True))
    return [
        round(float(vectors[first] @ vectors[second]), 4) + 0.0
        if first in vectors and second in vectors
        else float(first not in vectors and second not in vectors)
        for first, second in pairs
    ]


def score(answer: Answer, example: Example, way: System | None, scoring: Scoring) -> Figures:
    """ROUGE, exact match, token F1 (as SQuAD counts them), length, citations and retrieval.

    `way` is how the answer came about, None for one that was only recorded. A citation is right
    where its span overlaps the evidence. Retrieval is judged for the systems that were given
    chunks: recall@k, and the reciprocal rank of the first chunk that overlaps. A refusal is right
    where the question has no answer in the documents, and wrong where it has.
    """
    figures = scoring.scorer.score(answer.answer, answer.reference)
    figures["exact_match"] = float(_words(answer.answer) == _words(answer.reference))
    figures["token_f1"] = _token_f1(answer.answer, answer.reference)
    figures["answer_words"] = len(answer.answer.split())
    figures["refused"] = float(refuses(answer.answer, scoring.refusals))
    if example.kind == "unanswerable":
        figures["fabricated"] = 1 - figures["refused"]
    if answer.citations and example.evidence:
        right = [overlaps(cited, example.evidence) for cited in answer.citations]
        figures["citation_precision"] = fmean(right)
    if example.evidence and way in ("quote", "base_rag", "tuned", "tuned_rag"):
        met = [overlaps(evidence, answer.citations) for evidence in example.evidence]
        figures["citation_recall"] = fmean(met)
    if example.evidence and way in ("quote", "base_rag", "tuned_rag"):
        chunks = [scoring.chunks[id] for id in answer.chunk_ids if id in scoring.chunks]
        found = [overlaps(chunk, example.evidence) for chunk in chunks]
        for depth in DEPTHS:
            figures[f"recall_at_{depth}"] = float(any(found[:depth]))
        figures["reciprocal_rank"] = 1 / (found.index(True) + 1) if True in found else 0.0
    return figures


def refuses(answer: str, refusals: Iterable[str]) -> bool:
    """Whether an answer is NOT_FOUND, or begins with one of the refusals, whatever its marks."""
    said = " ".join(_words(answer))
    beginnings = (" ".join(_words(refusal)) for refusal in (NOT_FOUND, *refusals))
    return any(said.startswith(beginning) for beginning in beginnings)


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    """Whether the span shares a byte with one of the others."""
    return any(
        span.document_id == other.document_id and span.start < other.end and other.start < span.end
        for other in others
    )


def address(span: Span, chunks: Iterable[Chunk]) -> str:
    """Where the span begins, as the first of the chunks that hold some of it says; else empty."""
    there = [chunk for chunk in chunks if overlaps(chunk, [span])]
    return url_at(min(there, key=lambda chunk: chunk.start), span.start) if there else ""


def summarize(
    systems: Sequence[str],
    examples: Sequence[Example],
    scores: Scores,
    likelihoods: Mapping[tuple[str, str], Likelihood],
) -> dict[str, Any]:
    """Means by system; under `tracks` and `kinds` by those and system.

    Beside the means stand the number of questions, percentiles of ROUGE-L F1, the abstention
    figures where a question has no answer, and the perplexity of the references by those models
    whose `likelihoods` are known. `baselines` are the abstention figures of refusing always and
    never.
    """

    def over(chosen: Sequence[Example]) -> dict[str, Figures]:
        found = {}
        for system in systems:
            rows = [scores[system, e.id] for e in chosen if (system, e.id) in scores]
            if rows:
                likely = [
                    likelihoods[system, e.id] for e in chosen if (system, e.id) in likelihoods
                ]
                found[system] = {
                    **mean(rows),
                    **percentiles(rows),
                    **abstention(rows),
                    **({"reference_perplexity": neural.perplexity(likely)} if likely else {}),
                    "num_questions": len(rows),
                }
        return found

    by_track = {track: over([e for e in examples if e.track == track]) for track in get_args(Track)}
    kinds = sorted({example.kind for example in examples})
    by_kind = {kind: over([e for e in examples if e.kind == kind]) for kind in kinds}
    summary: dict[str, Any] = {
        **over(examples),
        "tracks": {track: found for track, found in by_track.items() if found},
        "kinds": {kind: found for kind, found in by_kind.items() if found},
    }
    if "unanswerable" in kinds:
        summary["baselines"] = {
            name: abstention([_refusing(example, refused) for example in examples])
            for name, refused in (("always_refuse", 1.0), ("always_answer", 0.0))
        }
    return summary


def mean(rows: Sequence[Figures]) -> Figures:
    """The mean of each figure over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: fmean(row[name] for row in rows if name in row) for name in names}


def percentiles(rows: Sequence[Figures]) -> Figures:
    """Of ROUGE-L F1: what a tenth, a half and nine tenths of the answers stay below."""
    values = [row["rougeL_f1"] for row in rows]
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {f"rougeL_f1_p{10 * (k + 1)}": cuts[k] for k in (0, 4, 8)}


def abstention(rows: Sequence[Figures]) -> Figures:
    """Refusals as a search for the questions without an answer.

    The share of the questions with an answer that were refused; and where some have none, of
    those the share that got one (fabrication), and precision, recall and F1 of the refusals.
    """
    without = [row for row in rows if "fabricated" in row]
    refused = sum(row["refused"] for row in rows)
    right = sum(row["refused"] for row in without)
    found: Figures = {}
    if len(rows) > len(without):
        found["false_refusal_rate"] = (refused - right) / (len(rows) - len(without))
    if without:
        found |= {
            "fabrication_rate": 1 - right / len(without),
            "abstention_precision": right / refused if refused else 0.0,
            "abstention_recall": right / len(without),
            "abstention_f1": 2 * right / (refused + len(without)),
        }
    return found


def _refusing(example: Example, refused: float) -> Figures:
    without = example.kind == "unanswerable"
    return {"refused": refused} | ({"fabricated": 1 - refused} if without else {})


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
