"""Scoring beside `rouge-score`, resampling, and how often intervals and verdicts are right.

The texts are real: each section of Debian's python3-doc (`apt-get install python3-doc`) is a
question (page title and heading) whose reference is its first paragraph. Five systems quote other
paragraphs as the pipeline's systems do: `quote` the best by BM25, `two` the best two on two lines,
`lead` the first sentence of the best, `near` and `again` any other of the same page (right subject,
wrong fact: closed-book answers). One to four questions are asked per page, so pages differ in size.

Simulations draw whole pages with replacement from these scores, so that the true difference is
known: the one over all pages. A system is compared with itself in two ways, where the true answer
is that neither is better: two systems change names question by question, or page by page.
"""

import argparse
import random
import re
import statistics as plain
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from rouge_score import rouge_scorer
from scipy import stats
from selectolax.lexbor import LexborHTMLParser, LexborNode

from benchmarks import machine
from stages.evaluate import rouge, statistics

DOCS = Path("/usr/share/doc/python3-doc/html")
SYSTEMS = ("quote", "two", "lead", "near", "again")
COMPARED = (
    ("lead", "quote"),
    ("quote", "two"),
    ("quote", "near"),
    ("lead", "near"),
    ("near", "again"),
)
SIZES = (30, 100, 500)

Pair = tuple[str, str]
"""Answer and reference."""
Section = tuple[str, str, list[str]]
"""Page, question, paragraphs."""


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="fewer rounds and simulations")
    quick = reader.parse_args().quick
    if not DOCS.exists():
        print(f"{DOCS} is missing: apt-get install python3-doc", file=sys.stderr)
        return 1
    print(machine.describe("numpy", "rouge-score", "nltk"))
    answers, pages = answered()
    print(f"{len(answers)} questions over {len(set(pages))} pages of {DOCS}\n")
    figures: list[tuple[str, float, float, bool]] = []

    def figure(name: str, value: float, target: float, at_least: bool) -> None:
        figures.append((name, value, target, value >= target if at_least else value <= target))

    pairs = [pair for row in answers for pair in row]
    pairs = random.Random(0).choices(pairs, k=1_000 if quick else 5_000)
    for stemming, target in ((False, 7.0), (True, 12.0)):
        name = "stemmed" if stemming else "plain"
        speedup, gap = scoring(pairs, stemming, rounds=1 if quick else 5)
        figure(f"scoring_speedup_{name}", speedup, target, True)
        figure(f"scoring_gap_{name}", gap, 1e-9, False)
    vocabulary = sorted({word for pair in pairs for text in pair for word in text.split()})
    made = list(random_pairs(500 if quick else 10_000, vocabulary))
    figure("scoring_parity_random", random_parity(made), 1e-9, False)

    figure("resampling_s", resampling(rounds=3 if quick else 7), 2.0, False)

    simulations = 200 if quick else 2_000
    scorer = rouge.Scorer(stemming=False)
    scores = np.array([[scorer.score(*pair)["rougeL_f1"] for pair in row] for row in answers])
    # What chance alone moves a rate by: three standard errors of a single one.
    chance = 3 * (0.05 * 0.95 / simulations) ** 0.5
    for size in SIZES:
        coverage, false_better, power = simulate(scores, pages, size, simulations)
        if size > 30:  # at 30 questions on 14 pages no interval tried gets there: only stated
            slack = chance if quick else 0.0
            figure(f"coverage_n{size}_lowest", min(coverage), 0.93 - slack, True)
            figure(f"coverage_n{size}_highest", max(coverage), 0.97 + slack, False)
            figure(f"power_n{size}_mean", plain.fmean(power), statistics.POWER - 0.05, True)
        figure(f"false_better_n{size}", max(false_better), 0.05, False)
    print()
    for name, value, target, _ in figures:
        print(f"figure {name} {value:.4g} target {target:.4g}")
    return 0 if all(reached for *_, reached in figures) else 1


def sections() -> Iterator[Section]:
    """Of each page: its sections and described objects that have a paragraph of eight words."""

    def text(node: LexborNode) -> str:
        return " ".join(node.text().replace("¶", "").split())

    for path in sorted(DOCS.glob("*/*.html")):
        tree = LexborHTMLParser(path.read_text(encoding="utf-8"))
        title = tree.css_first("h1")
        for node in tree.css("section, dl.py > dd") if title else []:
            if node.tag == "section":
                heading = node.css_first("h1, h2, h3, h4")
            else:
                heading = node.prev
                while heading is not None and heading.tag != "dt":
                    heading = heading.prev
            paragraphs = [text(child) for child in node.iter() if child.tag in ("p", "pre", "div")]
            paragraphs = [found for found in paragraphs if len(found.split()) >= 8]
            if heading is not None and paragraphs:
                yield str(path.relative_to(DOCS)), f"{text(title)} {text(heading)}", paragraphs


def answered() -> tuple[list[tuple[Pair, ...]], list[str]]:
    """Per question the pairs of all systems, and its page."""
    rng = random.Random(0)
    by_page: dict[str, list[Section]] = {}
    for section in sections():
        by_page.setdefault(section[0], []).append(section)
    asked = [
        section
        for page in sorted(by_page)
        for section in rng.sample(by_page[page], min(len(by_page[page]), rng.randrange(1, 5)))
    ]
    corpus = sorted({text for rows in by_page.values() for *_, texts in rows for text in texts})
    index = bm25s.BM25()
    index.index(bm25s.tokenize(corpus, stopwords="en", show_progress=False), show_progress=False)
    questions = bm25s.tokenize([row[1] for row in asked], stopwords="en", show_progress=False)
    best, _ = index.retrieve(questions, k=2, show_progress=False)
    answers = []
    for (page, question, texts), (first, second) in zip(asked, best, strict=True):
        others = [text for row in by_page[page] for text in row[2] if text != texts[0]]
        near, again = rng.choices(others or [question], k=2)
        top = corpus[first]
        said = (
            top,
            f"{top}\n{corpus[second]}",
            re.split(r"(?<=[.!?]) ", top)[0],
            near,
            again,
        )
        answers.append(tuple((answer, texts[0]) for answer in said))
    return answers, [row[0] for row in asked]


def scoring(pairs: list[Pair], stemming: bool, rounds: int) -> tuple[float, float]:
    """Median speed-up in processor time, each round with cold caches; the largest difference."""

    def timed(score: Callable[[str, str], object]) -> tuple[float, list[object]]:
        began = time.process_time()
        found = [score(*pair) for pair in pairs]
        return time.process_time() - began, found

    oracle = rouge_scorer.RougeScorer(rouge.NAMES, use_stemmer=stemming)  # keeps nothing
    seconds = []
    for _ in range(rounds):
        ours, found = timed(rouge.Scorer(stemming).score)
        theirs, expected = timed(lambda answer, reference: oracle.score(reference, answer))
        seconds.append((ours, theirs))
    gap = largest_gap(found, expected)
    ours, theirs = (plain.median(column) for column in zip(*seconds, strict=True))
    print(
        f"scoring, stemming {'on' if stemming else 'off'}: {len(pairs) / ours:,.0f} pairs/s, "
        f"rouge-score {len(pairs) / theirs:,.0f}, median of {rounds}; largest gap {gap:.1e}"
    )
    return plain.median(theirs / ours for ours, theirs in seconds), gap


def largest_gap(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Of all figures of all pairs: ours against those of `rouge-score`."""
    return max(
        abs(mine[f"{name}_{part}"] - getattr(other[name], field))
        for mine, other in zip(found, expected, strict=True)
        for name in rouge.NAMES
        for part, field in (("precision", "precision"), ("recall", "recall"), ("f1", "fmeasure"))
    )


def random_parity(pairs: Sequence[Pair]) -> float:
    """The largest difference, stemming off and on."""
    gaps = []
    for stemming in (False, True):
        oracle = rouge_scorer.RougeScorer(rouge.NAMES, use_stemmer=stemming)
        ours = rouge.Scorer(stemming)
        found = [ours.score(answer, reference) for answer, reference in pairs]
        expected = [oracle.score(reference, answer) for answer, reference in pairs]
        gaps.append(largest_gap(found, expected))
    empty = sum(not (answer.strip() and reference.strip()) for answer, reference in pairs)
    longest = max(len(text.split()) for pair in pairs for text in pair)
    print(
        f"{len(pairs):,} random pairs, {empty:,} with an empty text, the longest of {longest:,} "
        f"words, {sum(not ''.join(pair).isascii() for pair in pairs):,} beyond ASCII: "
        f"largest gap {max(gaps):.1e}"
    )
    return max(gaps)


def random_pairs(count: int, vocabulary: Sequence[str]) -> Iterator[Pair]:
    """Texts of up to 60 words, one pair in 500 of up to 2,000; one text in twelve has none.

    The words are from the vocabulary and from all of Unicode, few different ones in a pair, so
    that much is common; half of the references are the answer with words dropped and replaced.
    """
    rng = random.Random(0)
    to_ascii = ("\u212aelvin", "\u0130stanbul")  # their first letters, in lowercase

    def word() -> str:
        if rng.random() < 0.5:
            return rng.choice(vocabulary)
        if rng.random() < 0.1:
            return rng.choice(to_ascii)
        first, last = rng.choice(((0, 0x24F), (0, 0xD7FF), (0xE000, 0x10FFFF)))
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randrange(1, 6)))

    for number in range(count):
        longest = 60 if number % 500 else 2_000
        words = [word() for _ in range(rng.randrange(2, 60))]

        def text(longest: int = longest, words: Sequence[str] = words) -> list[str]:
            if longest <= 60 and rng.random() < 1 / 12:
                return []
            return rng.choices(words, k=rng.randrange(longest // 2 * (longest > 60), longest))

        answer, reference = text(), text()
        if rng.random() < 0.5:
            changed = (rng.choice(([each], [each], words[:1], [])) for each in answer)
            reference = [each for some in changed for each in some]
        ends = rng.choice((" ", " \n", "    \n,\t\r\u2028"))
        one, other = (
            "".join(each + rng.choice(ends) for each in said) for said in (answer, reference)
        )
        yield one, other


def resampling(rounds: int) -> float:
    """Median seconds for the verdict's seven comparisons of five systems, permutations included."""
    systems = ("quote", "base", "base_rag", "tuned", "tuned_rag")
    compared = [
        ("tuned", "base"),
        ("tuned_rag", "base_rag"),
        ("tuned", "base_rag"),
        *((system, "quote") for system in systems[1:]),
    ]
    rng = np.random.default_rng(0)
    pages = {f"question {k:04}": f"page {k // 2:04}" for k in range(5_000)}
    scores = {
        system: dict(zip(pages, rng.random(len(pages)).tolist(), strict=True)) for system in systems
    }
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        statistics.compare_all(scores, compared, pages, seed=0, resamples=10_000)
        seconds.append(time.perf_counter() - began)
    print(
        f"10,000 resamples and permutations of 2,500 pages, 5,000 questions, 5 systems, "
        f"{len(compared)} comparisons: {plain.median(seconds):.2f} s, median of {rounds}\n"
    )
    return plain.median(seconds)


def simulate(
    scores: np.ndarray, pages: list[str], size: int, simulations: int, resamples: int = 1_000
) -> tuple[list[float], list[float], list[float]]:
    """Coverage per comparison, false "better" per way of comparing a system with itself, and power.

    Power is how often a gain is shown that is as large as `size` questions are promised to show.
    """
    column = {name: k for k, name in enumerate(SYSTEMS)}
    differences = np.stack(
        [scores[:, column[one]] - scores[:, column[other]] for one, other in COMPARED], axis=1
    )
    everything = statistics.sample(differences, pages)
    truth = everything.means
    by_page = [np.flatnonzero(np.array(pages) == page) for page in sorted(set(pages))]
    num_pages = round(size * len(by_page) / len(pages))
    gains = np.array([smallest_gain(everything, k, size) for k in range(len(COMPARED))])
    rng = np.random.default_rng(size)
    covered: dict[str, np.ndarray] = {}
    width = power = np.zeros(len(COMPARED))
    better = worse = np.zeros(2)
    for number in range(simulations):
        drawn = [by_page[k] for k in rng.integers(0, len(by_page), num_pages)]
        lengths = [len(rows) for rows in drawn]
        names = np.repeat([f"{k:03}" for k in range(num_pages)], lengths).tolist()
        values = differences[np.concatenate(drawn)]
        sample = statistics.sample(values, names)
        half = statistics.half_widths(sample, number, resamples)
        width = width + 2 * half
        ends = {"ours": (sample.means - half, sample.means + half)}
        for name, (low, high) in (ends | alternatives(sample, rng, resamples)).items():
            covered[name] = covered.get(name, 0) + ((low <= truth) & (truth <= high))
        question_flips = rng.choice((-1, 1), len(values))
        page_flips = np.repeat(rng.choice((-1, 1), num_pages), lengths)
        itself = np.column_stack([values[:, 4] * question_flips, values[:, 2] * page_flips])
        above, below = words(np.hstack([itself, values - truth + gains]), names, number, resamples)
        better, worse = better + above[:2], worse + below[:2]
        power = power + above[2:]
    rates = {name: counts / simulations for name, counts in covered.items()}
    print(f"n = {size} questions: {num_pages} pages at a time, {simulations} simulations; coverage")
    print(f"  {'':16}  truth  width" + "".join(f"{name:>13}" for name in rates) + "   gain shown")
    for k, (one, other) in enumerate(COMPARED):
        print(
            f"  {one + ' - ' + other:16} {truth[k]:+.3f}  {width[k] / simulations:.3f}"
            + "".join(f"{rate[k]:13.3f}" for rate in rates.values())
            + f"   {gains[k]:.3f} {power[k] / simulations:.3f}"
        )
    means = "".join(f"{rate.mean():13.3f}" for rate in rates.values())
    print(f"  {'mean':16} {'':13}{means}         {power.mean() / simulations:.3f}")
    for way, name in enumerate(("question by question", "page by page")):
        print(
            f"  against itself, names changed {name}: better {better[way] / simulations:.3f}, "
            f"worse {worse[way] / simulations:.3f}"
        )
    print()
    return list(rates["ours"]), list(better / simulations), list(power / simulations)


def words(
    values: np.ndarray, pages: list[str], seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which columns, each a family of its own, are called better, and which worse."""
    sample = statistics.sample(values, pages)
    half = statistics.half_widths(sample, seed, resamples)
    shown = statistics.permutation(sample, seed, resamples) <= statistics.ALPHA
    return shown & (sample.means > half), shown & (sample.means < -half)


def smallest_gain(sample: statistics.Sample, column: int, size: int) -> float:
    """The smallest gain that `size` questions are promised to show."""
    low, high = 0.0, 2.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        needed = statistics.questions_needed(sample, column, middle, statistics.ALPHA)
        low, high = (low, middle) if needed is not None and needed <= size else (middle, high)
    return high


def alternatives(
    sample: statistics.Sample, rng: np.random.Generator, resamples: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ends of the other intervals that one could have chosen."""
    means, errors, pages = sample.means, sample.errors, sample.num_pages
    sizes, residuals = sample.sizes[:, None], sample.residuals
    times = rng.multinomial(pages, np.full(pages, 1 / pages), resamples).astype(float)
    m = times @ sizes
    shift = times @ residuals / m
    squares = times @ residuals**2 - 2 * shift * (times @ (residuals * sizes))
    squares = np.maximum(squares + shift**2 * (times @ sizes**2), 1e-12) * pages / (pages - 1)
    low, high = np.quantile(shift, (0.025, 0.975), axis=0)
    ratio_low, ratio_high = np.quantile(shift * m / np.sqrt(squares), (0.025, 0.975), axis=0)
    student = stats.t.ppf(0.975, pages - 1) * errors
    below = np.clip((shift < 0).mean(axis=0) + (shift == 0).mean(axis=0) / 2, 1e-4, 1 - 1e-4)
    bias = stats.norm.ppf(below)
    left_out = -residuals / (sizes.sum() - sizes)  # jackknife: the mean without a page, less it
    pull = left_out.mean(axis=0) - left_out
    skew = (pull**3).sum(axis=0) / (6 * (pull**2).sum(axis=0) ** 1.5 + 1e-300)
    corrected = []
    for normal in (-1.96, 1.96):
        level = stats.norm.cdf(bias + (bias + normal) / (1 - skew * (bias + normal)))
        corrected.append([np.quantile(shift[:, k], level[k]) for k in range(len(means))])
    return {
        "percentile": (means + low, means + high),
        "BCa": (means + corrected[0], means + corrected[1]),
        "bootstrap-t": (means - ratio_high * errors, means - ratio_low * errors),
        "robust t": (means - student, means + student),
    }


if __name__ == "__main__":
    sys.exit(main())
