"""Scores of systems on the same questions → differences, intervals, p-values and a word for each.

Questions about one page rise and fall together, so pages are resampled, never questions: a page
counts by its sum of differences and its number of questions.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import NormalDist
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = Mapping[str, float]
"""By question id."""
Name = TypeVar("Name", bound=Hashable)
Word = Literal["better", "worse", "not shown", "too few"]

ALPHA = 0.05
POWER = 0.8
MIN_QUESTIONS = 30
MIN_PAGES = 10
SMALLEST_ERROR = 1 / 3  # of a resample's standard error, as a share of the sample's
CELLS = 2_000_000  # of a resampling matrix at a time: 16 MB


@dataclass(frozen=True)
class Interval:
    """A mean over questions; its 95 % interval is None where there is but one page."""

    mean: float
    low: float | None
    high: float | None
    num_questions: int
    num_pages: int


@dataclass(frozen=True)
class Comparison:
    """How far the first system's mean is above the second's, and whether that may be trusted.

    Interval and p-values are None where there is but one page, the difference where there is none.
    """

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    """Of the paired two-sided permutation test by page."""
    p_holm: float | None
    """The same, corrected for all comparisons that were made together."""
    word: Word
    num_questions: int
    num_pages: int
    needed: int | None
    """Questions that show a true difference of the size observed with 80 % power."""
    needed_minimal: int | None
    """Questions that show a true difference of the stated minimal size with 80 % power."""


def compare(
    first: Scores,
    second: Scores,
    pages: Mapping[str, str],
    *,
    seed: int,
    resamples: int = 10_000,
    minimal: float = 0.05,
) -> Comparison:
    """One comparison, alone in its family: see `compare_all`."""
    pair = ("first", "second")
    scores = dict(zip(pair, (first, second), strict=True))
    found = compare_all(scores, [pair], pages, seed=seed, resamples=resamples, minimal=minimal)
    return found[pair]


def compare_all(
    scores: Mapping[str, Scores],
    pairs: Sequence[tuple[str, str]],
    pages: Mapping[str, str],
    *,
    seed: int,
    resamples: int = 10_000,
    minimal: float = 0.05,
) -> dict[tuple[str, str], Comparison]:
    """Each pair of systems on the questions that both answered; `pages` is by question id.

    "better" and "worse" need the corrected p-value and the interval to agree. The numbers of
    questions count on Holm's strictest step: they hold whatever the other comparisons show.
    """
    differences = {
        (one, other): {
            question: scores[one][question] - scores[other][question]
            for question in scores[one].keys() & scores[other].keys()
        }
        for one, other in pairs
    }
    alpha = ALPHA / max(len(differences), 1)
    found: dict[tuple[str, str], Comparison] = {}
    for names, sample in _samples(differences, pages):
        reach = half_widths(sample, seed, resamples)
        p_values = permutation(sample, seed, resamples)
        for k, pair in enumerate(names):
            found[pair] = _comparison(
                sample, k, float(reach[k]), float(p_values[k]), alpha, minimal
            )
    corrected = holm({pair: row.p for pair, row in found.items() if row.p is not None})
    unknown = Comparison(None, None, None, None, None, "too few", 0, 0, None, None)
    return {pair: _judged(found.get(pair, unknown), corrected.get(pair)) for pair in differences}


def intervals(
    scores: Mapping[Name, Scores], pages: Mapping[str, str], *, seed: int, resamples: int = 10_000
) -> dict[Name, Interval]:
    """The mean of each system that has scores, resampled as `compare_all` resamples."""
    found: dict[Name, Interval] = {}
    for names, sample in _samples(scores, pages):
        reach = half_widths(sample, seed, resamples)
        for k, name in enumerate(names):
            mean, half = float(sample.means[k]), float(reach[k])
            known = sample.num_pages > 1
            found[name] = Interval(
                mean=_rounded(mean),
                low=_rounded(mean - half) if known else None,
                high=_rounded(mean + half) if known else None,
                num_questions=sample.num_questions,
                num_pages=sample.num_pages,
            )
    return {name: found[name] for name in scores if name in found}


@dataclass(frozen=True)
class Sample:
    """Columns of values on the same questions, by page."""

    sums: Floats  # (pages, columns)
    sizes: Floats  # (pages,): questions

    @property
    def num_pages(self) -> int:
        return len(self.sizes)

    @property
    def num_questions(self) -> int:
        return int(self.sizes.sum())

    @property
    def means(self) -> Floats:  # (columns,): over questions
        return np.asarray(self.sums.sum(axis=0) / self.sizes.sum())

    @property
    def residuals(self) -> Floats:  # (pages, columns)
        """What a page has above its share."""
        return np.asarray(self.sums - self.means * self.sizes[:, None])

    @property
    def errors(self) -> Floats:  # (columns,)
        """Standard errors of the means, robust to what the questions of a page share."""
        pages = self.num_pages
        if pages < 2:
            return np.zeros(self.sums.shape[1])
        squares = (self.residuals**2).sum(axis=0) * pages / (pages - 1)
        return np.asarray(np.sqrt(squares) / self.sizes.sum())


def sample(values: Floats, pages: Sequence[str]) -> Sample:
    """Values of (questions, columns), with the page of each question."""
    assert np.isfinite(values).all(), "a score is no number"
    codes = np.unique(np.asarray(pages), return_inverse=True)[1]
    sums = [np.bincount(codes, weights=column) for column in values.T]
    return Sample(np.stack(sums, axis=1), np.bincount(codes).astype(np.float64))


def half_widths(sample: Sample, seed: int, resamples: int) -> Floats:  # (columns,)
    """Half the width of each mean's 95 % interval: the symmetric studentized cluster bootstrap.

    Of percentile, basic, BCa, bootstrap-t and cluster-robust t intervals this one came nearest to
    95 % where pages are few and most differences are nil (benchmarks/evaluate.py): each resample's
    mean is measured in its own standard error, which few pages make as uncertain as the mean. That
    error is kept off zero, where resamples without the few pages that differ would put it.
    """
    residuals, sizes, pages = sample.residuals, sample.sizes[:, None], sample.num_pages
    if pages < 2:
        return np.zeros(residuals.shape[1])
    # A resample needs of a page only these: its residual r, size m, and r², rm, m² for the error.
    moments = np.hstack([residuals, residuals**2, residuals * sizes, sizes, sizes**2])
    columns = residuals.shape[1]
    floor = sample.errors * SMALLEST_ERROR
    random = np.random.default_rng(seed)
    ratios = []
    for count in _blocks(resamples, pages):
        drawn = random.integers(0, pages, (count, pages)) + np.arange(count)[:, None] * pages
        times = np.bincount(drawn.ravel(), minlength=count * pages).reshape(count, pages)
        total = times.astype(np.float64) @ moments
        r, rr, rm = (total[:, k * columns : (k + 1) * columns] for k in range(3))
        m, mm = total[:, -2, None], total[:, -1, None]
        shift = r / m
        squares = np.maximum(rr - 2 * shift * rm + shift**2 * mm, 0) * pages / (pages - 1)
        errors = np.maximum(np.sqrt(squares) / m, floor)
        ratios.append(np.abs(shift) / np.where(errors > 0, errors, 1))
    critical = np.quantile(np.concatenate(ratios), 1 - ALPHA, axis=0)
    return np.asarray(critical * sample.errors)


def permutation(sample: Sample, seed: int, resamples: int) -> Floats:  # (columns,)
    """Two-sided p-values of the means: had the two systems changed names on any of the pages.

    All 2^pages changes where they are no more than `resamples`, else as many drawn ones. The
    statistic is studentized, so that pages of unequal size or spread do not make it lie.
    """
    sums, sizes, pages = sample.sums, sample.sizes, sample.num_pages
    questions = sizes.sum()
    products = np.hstack([sums, sums * sizes[:, None]])
    columns = sums.shape[1]
    squares, mm = (sums**2).sum(axis=0), (sizes**2).sum()

    def statistic(signs: NDArray[np.floating]) -> Floats:  # (changes, columns)
        total = signs @ products
        mean = total[:, :columns] / questions
        spread = squares - 2 * mean * total[:, columns:] + mean**2 * mm
        # Off zero, where all pages agree and rounding would decide.
        return np.asarray(mean**2 / np.maximum(spread, np.maximum(squares * 1e-9, 1e-300)))

    reached = statistic(np.ones((1, pages))) * (1 - 1e-9)  # equal but for rounding is equal
    all_changes = 2 ** (pages - 1)  # changing all pages changes no square
    if all_changes <= resamples:
        bits = np.arange(all_changes)[:, None] >> np.arange(pages) & 1
        return np.asarray((statistic(1.0 - 2.0 * bits) >= reached).mean(axis=0))
    random = np.random.default_rng(seed)
    extreme = np.zeros(columns)
    for count in _blocks(resamples, pages):
        signs = random.integers(0, 2, (count, pages), dtype=np.int8) * 2.0 - 1.0
        extreme += (statistic(signs) >= reached).sum(axis=0)
    return np.asarray((1 + extreme) / (1 + resamples))


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's correction: the smallest p-value times their number, the next times one less, …"""
    corrected: dict[Name, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - rank)))
        corrected[name] = highest
    return corrected


def questions_needed(sample: Sample, column: int, difference: float, alpha: float) -> int | None:
    """Questions that show a true `difference` with 80 % power; None for none or a single page.

    Pages are taken to be as large and as varied as those of the sample.
    """
    if not difference or sample.num_pages < 2:
        return None
    normal = NormalDist()
    critical = normal.inv_cdf(1 - alpha / 2)
    variance = float(sample.errors[column]) ** 2 * sample.num_pages  # of one page's mean
    # The last term is what the variance's own uncertainty costs (Guenther 1981).
    pages = (critical + normal.inv_cdf(POWER)) ** 2 * variance / difference**2 + critical**2 / 2
    per_page = sample.num_questions / sample.num_pages
    return max(MIN_QUESTIONS, ceil(max(MIN_PAGES, pages) * per_page))


def _comparison(
    sample: Sample, column: int, half: float, p: float, alpha: float, minimal: float
) -> Comparison:
    difference = float(sample.means[column])
    known = sample.num_pages > 1
    return Comparison(
        difference=_rounded(difference),
        low=_rounded(difference - half) if known else None,
        high=_rounded(difference + half) if known else None,
        p=_rounded(p) if known else None,
        p_holm=None,
        word="too few",
        num_questions=sample.num_questions,
        num_pages=sample.num_pages,
        needed=questions_needed(sample, column, _rounded(difference), alpha),
        needed_minimal=questions_needed(sample, column, minimal, alpha),
    )


def _judged(row: Comparison, p_holm: float | None) -> Comparison:
    word: Word = "not shown"
    if row.num_questions < MIN_QUESTIONS or row.num_pages < MIN_PAGES:
        word = "too few"
    elif p_holm is not None and p_holm <= ALPHA:
        assert row.low is not None and row.high is not None
        word = "better" if row.low > 0 else "worse" if row.high < 0 else "not shown"
    return replace(row, p_holm=None if p_holm is None else _rounded(p_holm), word=word)


def _samples(
    columns: Mapping[Name, Scores], pages: Mapping[str, str]
) -> Iterator[tuple[list[Name], Sample]]:
    """Columns on the same questions together, so that they share one resampling matrix."""
    together: dict[tuple[str, ...], list[Name]] = {}
    for name, values in columns.items():
        if values:
            together.setdefault(tuple(sorted(values)), []).append(name)
    for questions, names in together.items():
        rows = [[columns[name][question] for name in names] for question in questions]
        yield names, sample(np.array(rows), [pages[question] for question in questions])


def _blocks(resamples: int, pages: int) -> Iterator[int]:
    size = max(1, CELLS // pages)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _rounded(value: float) -> float:
    """Without the last digits, in which processors differ; never -0."""
    return round(value, 9) + 0.0
