"""Scores of the systems on the same questions → who is better, by how much, in words."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stages.core.records import Example
from stages.evaluate import statistics
from stages.evaluate.statistics import Comparison

TRACK_MEANING = {
    "same_fact": "new wordings of facts on pages that were trained on: what was learned",
    "held_out": "pages never trained on: what carries over",
}

Scores = Mapping[tuple[str, str], Mapping[str, float]]
"""Figures by system and example id."""


def judge(
    systems: Sequence[str],
    examples: Sequence[Example],
    scores: Scores,
    metric: str,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Intervals of every system and comparisons of the pairs that matter, by track.

    Questions are grouped by the page of their evidence. Holm's correction is over the comparisons
    of one track. The digest names the test set: verdicts over different ones do not compare.
    """
    tracks: dict[str, Any] = {}
    for track in TRACK_MEANING:
        asked = {e.id: page(e) for e in examples if e.track == track}
        by_system = {
            system: {q: scores[system, q][metric] for q in asked if (system, q) in scores}
            for system in systems
        }
        if not any(by_system.values()):
            continue
        found = statistics.compare_all(
            by_system, list(pairs(systems)), asked, seed=seed, resamples=resamples
        )
        spans = statistics.intervals(by_system, asked, seed=seed, resamples=resamples)
        tracks[track] = {
            "intervals": {system: asdict(span) for system, span in spans.items()},
            "comparisons": [
                {"first": one, "second": other, **asdict(row), "sentence": tell(one, other, row)}
                for (one, other), row in found.items()
            ],
        }
    return {"metric": metric, "testset": testset_digest(examples), "tracks": tracks}


def pairs(systems: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What tuning gains: without retrieval, with it, against it; and all against quoting."""
    wanted = [("tuned", "base"), ("tuned_rag", "base_rag"), ("tuned", "base_rag")]
    wanted += [(system, "quote") for system in systems if system != "quote"]
    yield from (pair for pair in wanted if set(pair) <= set(systems))


def page(example: Example) -> str:
    """The page that a question is about, by which the statistics group it."""
    return example.evidence[0].document_id if example.evidence else example.id


def testset_digest(examples: Sequence[Example]) -> str:
    """SHA-256 of the questions with their references, whatever their order."""
    total = hashlib.sha256()
    for row in sorted(f"{e.id}\0{e.question}\0{e.answer}\n" for e in examples):
        total.update(row.encode())
    return total.hexdigest()


def tell(one: str, other: str, row: Comparison) -> str:
    """The comparison in one sentence."""
    over = f"over {row.num_questions} questions on {row.num_pages} pages"
    if row.difference is None or row.low is None or row.high is None:
        return f"{one} against {other}: too few questions to say anything."
    gap = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}] {over}"
    more = ""
    if row.needed and row.needed > row.num_questions:
        more = f" A difference of this size would take about {row.needed} questions to show."
    match row.word:
        case "better" | "worse":
            return f"{one} is {row.word} than {other}: {gap}."
        case "not shown":
            return f"A difference between {one} and {other} is not shown: {gap}.{more}"
        case _:
            return (
                f"{one} against {other}: too few questions or pages for a verdict "
                f"(below {statistics.MIN_QUESTIONS} or {statistics.MIN_PAGES}): {gap}.{more}"
            )
