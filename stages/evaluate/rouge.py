"""ROUGE of answers against references, as `rouge-score` counts it."""

from collections.abc import Sequence
from statistics import fmean

from rouge_score import rouge_scorer  # type: ignore[import-untyped]

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def score(answer: str, reference: str, scorer: rouge_scorer.RougeScorer) -> dict[str, float]:
    """Precision, recall and F1 of each ROUGE, as fractions: `rougeL_f1` and so on."""
    scored = scorer.score(reference, answer)
    return {
        f"{name}_{part}": float(getattr(scored[name], field))
        for name in NAMES
        for part, field in (("precision", "precision"), ("recall", "recall"), ("f1", "fmeasure"))
    }


def scorer(stemming: bool) -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(NAMES, use_stemmer=stemming)


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the rows, which are not empty."""
    return {name: fmean(row[name] for row in rows) for name in rows[0]}
