"""Scores of the systems on the same questions → who is better, by how much, in words."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import Example, Track
from stages.evaluate import neural, statistics
from stages.evaluate.metrics import Scores
from stages.evaluate.neural import Likelihood
from stages.evaluate.statistics import Comparison

METRIC = "rougeL_f1"
"""What the comparisons are about."""

TRACK_MEANING = {
    "same_fact": "new wordings of facts on pages that were trained on: what was learned",
    "held_out": "pages never trained on: what carries over",
    "gold": "questions that people asked, with the answers that people gave",
}

WITHOUT_TUNING = {"tuned": "base", "tuned_rag": "base_rag"}
CHAMPION = {"tuned": "champion", "tuned_rag": "champion_rag"}
"""Whom the tuned model, without and with retrieval, is compared with."""


FORGOTTEN = 0.05
"""Rise of the general text's perplexity from which tuning is said to have cost knowledge."""


class Gate(config.Base):
    """What a model must show to become the champion."""

    system: Literal["tuned", "tuned_rag"]
    """Which of its two ways to answer counts: tuned or tuned_rag."""
    track: Track
    """Which questions count: same_fact, held_out or gold."""
    metric: str
    """Which figure of an answer counts, such as rougeL_f1 or token_f1."""
    direction: Literal["higher", "lower"]
    """Whether a higher or a lower figure is better."""
    bound: Annotated[float, Field(ge=-1, le=1)]
    """What the gain's whole 95 % interval must exceed: 0 asks for a shown gain, -0.02 allows a loss
    of so much."""


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
        by_system = {system: _values(scores, system, asked, metric) for system in systems}
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
    """What tuning gains: without retrieval, with it, against it, against the champion and against
    the systems of others; and every system against quoting."""
    ours = ("quote", "base", "base_few_shot", "base_rag", *CHAMPION, *CHAMPION.values())
    others = [system for system in systems if system not in ours]
    wanted = [("tuned", "base"), ("tuned", "base_few_shot"), ("tuned_rag", "base_rag")]
    wanted += [("tuned", "base_rag"), *CHAMPION.items()]
    wanted += [("tuned_rag" if other.endswith("_rag") else "tuned", other) for other in others]
    wanted += [(system, "quote") for system in systems if system != "quote"]
    yield from (pair for pair in wanted if set(pair) <= set(systems))


def gate(
    asked: Gate, examples: Sequence[Example], scores: Scores, seed: int, resamples: int
) -> dict[str, Any]:
    """Whether the tuned model may become the champion: by its gain over the champion, or where
    there is none over its base."""
    pages = {e.id: page(e) for e in examples if e.track == asked.track}
    rivals = (CHAMPION[asked.system], WITHOUT_TUNING[asked.system])
    rival = next((name for name in rivals if any((name, q) in scores for q in pages)), rivals[1])
    ours, theirs = (_values(scores, name, pages, asked.metric) for name in (asked.system, rival))
    known = {name for (system, _), row in scores.items() for name in row if system == asked.system}
    if known and asked.metric not in known:
        raise PipelineError(
            f"evaluate.gate.metric: {asked.metric!r}{config.nearest(asked.metric, known)}: "
            f"expected one of {', '.join(sorted(known))}"
        )
    sign = 1.0 if asked.direction == "higher" else -1.0
    row = statistics.compare(
        {question: sign * value for question, value in ours.items()},
        {question: sign * value for question, value in theirs.items()},
        pages,
        seed=seed,
        resamples=resamples,
    )
    passed = row.word != "too few" and row.low is not None and row.low > asked.bound
    what = f"{asked.metric} of {asked.system} on {asked.track} against {rival}"
    if row.word == "too few" or row.low is None or row.high is None:
        found = f"too few questions or pages ({row.num_questions} on {row.num_pages}) to judge"
    else:
        found = f"a gain of {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
    must = f"the whole interval must lie above {asked.bound:+.3f}"
    end = "passed: the model becomes the champion" if passed else "the model stays a challenger"
    return {
        "passed": passed,
        "rival": rival,
        **{name: getattr(row, name) for name in ("difference", "low", "high", "word")},
        "sentence": f"Gate, {what}: {found}; {must}; {end}.",
    }


def champion(about: Mapping[str, Any], systems: Collection[str]) -> dict[str, Any]:
    """Which model the challenger was compared with, in words."""
    name = f"version {about['version']} of the registered model {about['model']}"
    asked = sorted(set(CHAMPION.values()) & set(systems))
    answered = (
        f"answered the same questions of this test set as {' and '.join(asked)}"
        if asked
        else "could not be asked, so that nothing is compared with it"
    )
    return {**about, "sentence": f"The champion, {name}, {answered}."}


def forgetting(general: Mapping[str, Likelihood]) -> dict[str, Any]:
    """How likely base and tuned find a fixed general text, with a sentence about both."""
    found: dict[str, Any] = {
        name: {
            "perplexity": neural.perplexity([row]),
            "bits_per_byte": neural.bits_per_byte([row]),
        }
        for name, row in general.items()
    }
    if {"base", "tuned"} <= found.keys():
        before, after = (found[name]["perplexity"] for name in ("base", "tuned"))
        change = after / before - 1
        cost = "cost general knowledge" if change > FORGOTTEN else "cost no general knowledge"
        found["sentence"] = (
            f"Perplexity of a fixed general text is {before:,.1f} before and {after:,.1f} after "
            f"tuning ({change:+.0%}): by this measure tuning {cost}."
        )
    return found


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


def _values(
    scores: Scores, system: str, questions: Mapping[str, str], metric: str
) -> dict[str, float]:
    """The system's figure of those questions that have one."""
    rows = {question: scores.get((system, question), {}) for question in questions}
    return {question: row[metric] for question, row in rows.items() if metric in row}
