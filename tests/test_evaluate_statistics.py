"""Intervals, p-values and words on data whose answers are known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluate import statistics


def data(rng, num_pages, per_page=2, gain=0.0, spread=0.2, shared=0.2):
    """Two systems and the pages: differences of mean `gain` that questions of a page share."""
    first, second, pages = {}, {}, {}
    for page in range(num_pages):
        common = rng.normal(0, shared)
        for number in range(per_page):
            question = f"q{page}-{number}"
            second[question] = rng.normal(0.5, 0.2)
            first[question] = second[question] + gain + common + rng.normal(0, spread)
            pages[question] = f"page {page}"
    return first, second, pages


def test_a_large_gain_is_better_and_turned_round_it_is_worse():
    first, second, pages = data(np.random.default_rng(1), 60, gain=0.3)
    found = statistics.compare(first, second, pages, seed=0, resamples=2_000)
    back = statistics.compare(second, first, pages, seed=0, resamples=2_000)
    assert (found.word, back.word) == ("better", "worse")
    assert (back.difference, back.low, back.high) == (-found.difference, -found.high, -found.low)
    assert back.p == found.p
    assert found.low < found.difference < found.high
    assert found.difference == pytest.approx(np.mean([first[q] - second[q] for q in first]))
    assert (found.num_questions, found.num_pages) == (120, 60)


def test_a_system_is_never_better_than_itself():
    first, _, pages = data(np.random.default_rng(2), 40)
    found = statistics.compare(first, first, pages, seed=0, resamples=1_000)
    assert found.word == "not shown"
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.needed is None


@pytest.mark.parametrize(
    ("num_pages", "per_page", "word"),
    [(30, 1, "better"), (29, 1, "too few"), (10, 3, "better"), (9, 10, "too few")],
)
def test_below_thirty_questions_or_ten_pages_is_too_few(num_pages, per_page, word):
    first, second, pages = data(
        np.random.default_rng(3), num_pages, per_page, gain=1.0, spread=0.05, shared=0.05
    )
    found = statistics.compare(first, second, pages, seed=0, resamples=2_000)
    assert found.word == word


def test_a_single_page_and_no_common_question_have_no_interval():
    alone = statistics.compare({"q": 1.0}, {"q": 0.5}, {"q": "p"}, seed=0)
    assert (alone.difference, alone.low, alone.p, alone.word) == (0.5, None, None, "too few")
    nothing = statistics.compare({"q": 1.0}, {"r": 0.5}, {"q": "p", "r": "p"}, seed=0)
    assert (nothing.difference, nothing.num_questions, nothing.word) == (None, 0, "too few")


def test_only_questions_that_both_answered_count():
    first, second, pages = data(np.random.default_rng(4), 40)
    short = {question: score for question, score in first.items() if question != "q0-0"}
    found = statistics.compare(short, second, pages, seed=0, resamples=500)
    assert (found.num_questions, found.num_pages) == (79, 40)


def test_the_order_of_questions_and_pairs_changes_nothing():
    first, second, pages = data(np.random.default_rng(5), 30)
    third, _, _ = data(np.random.default_rng(6), 30)
    scores = {"a": first, "b": second, "c": third}
    turned = {name: dict(reversed(rows.items())) for name, rows in reversed(scores.items())}
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    found = statistics.compare_all(scores, pairs, pages, seed=3, resamples=1_000)
    other = statistics.compare_all(
        turned, pairs[::-1], dict(reversed(pages.items())), seed=3, resamples=1_000
    )
    assert found == other
    assert list(found) == pairs
    assert found != statistics.compare_all(scores, pairs, pages, seed=4, resamples=1_000)


def test_questions_of_one_page_do_not_count_as_many():
    """The same answers scored ten times over are no more evidence."""
    first, second, pages = data(np.random.default_rng(7), 20, per_page=1)
    tenfold = [
        {f"{question} {k}": value for question, value in rows.items() for k in range(10)}
        for rows in (first, second, pages)
    ]
    once = statistics.compare(first, second, pages, seed=0, resamples=2_000)
    many = statistics.compare(*tenfold, seed=0, resamples=2_000)
    assert (many.low, many.high) == pytest.approx((once.low, once.high))
    assert many.p == once.p


def test_the_standard_error_is_the_textbook_one_where_each_page_has_one_question():
    values = np.random.default_rng(8).normal(size=(50, 1))
    sample = statistics.sample(values, [f"p{k:02}" for k in range(50)])
    assert sample.errors[0] == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_the_bootstrap_is_that_of_a_plain_loop():
    rng = np.random.default_rng(9)
    pages = rng.integers(0, 12, 40)
    values = rng.normal(size=(40, 1))
    sample = statistics.sample(values, [f"{page:02}" for page in pages])
    kinds = np.unique(pages)
    mean = values.mean()
    ratios = []
    for _ in range(4_000):
        drawn = [values[pages == kind, 0] for kind in rng.choice(kinds, len(kinds))]
        again = np.concatenate(drawn)
        residuals = [(part - again.mean()).sum() for part in drawn]
        error = math.sqrt(len(kinds) / (len(kinds) - 1) * np.square(residuals).sum()) / len(again)
        ratios.append(abs(again.mean() - mean) / max(error, sample.errors[0] / 3))
    expected = np.quantile(ratios, 0.95) * sample.errors[0]
    assert statistics.half_widths(sample, 0, 20_000)[0] == pytest.approx(expected, rel=0.05)


def test_the_permutation_of_few_pages_is_the_enumeration_of_all_sign_changes():
    rng = np.random.default_rng(10)
    sums = rng.normal(0.3, 1, size=(11, 1))
    sample = statistics.Sample(sums, np.full(11, 2.0))
    totals = [abs(np.dot(signs, sums[:, 0])) for signs in itertools.product((1.0, -1.0), repeat=11)]
    expected = np.mean([total >= abs(sums.sum()) - 1e-12 for total in totals])
    assert statistics.permutation(sample, 0, 10_000)[0] == pytest.approx(expected)
    drawn = statistics.permutation(sample, 0, 1_000)[0]  # fewer than 2^10: sampled
    assert drawn == pytest.approx(expected, abs=0.06)


def test_holm_is_the_textbook_example():
    found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


@settings(deadline=None)
@given(st.dictionaries(st.integers(), st.floats(0, 1), max_size=8))
def test_holm_only_raises_keeps_the_order_and_stays_below_bonferroni(p_values):
    found = statistics.holm(p_values)
    for name, p in p_values.items():
        assert p <= found[name] <= min(1, p * len(p_values)) + 1e-12
    ranked = sorted(p_values, key=lambda name: p_values[name])
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(ranked))


def test_a_gain_that_is_shown_alone_may_not_be_shown_among_many():
    first, second, pages = data(np.random.default_rng(12), 60, gain=0.085)
    alone = statistics.compare(first, second, pages, seed=0, resamples=2_000)
    noise = {f"n{k}": data(np.random.default_rng(100 + k), 60)[0] for k in range(9)}
    scores = {"first": first, "second": second, **noise}
    pairs = [("first", "second"), *((name, "second") for name in noise)]
    family = statistics.compare_all(scores, pairs, pages, seed=0, resamples=2_000)
    among = family["first", "second"]
    assert alone.word == "better"
    assert among.word == "not shown"
    assert (among.low, among.high, among.p) == pytest.approx((alone.low, alone.high, alone.p))
    assert among.needed > alone.needed


def test_the_number_of_questions_needed_grows_with_the_square_of_the_gain():
    values = np.random.default_rng(13).normal(0, 0.3, size=(400, 1))
    sample = statistics.sample(values, [f"p{k // 2}" for k in range(400)])
    small = statistics.questions_needed(sample, 0, 0.02, 0.05)
    half = statistics.questions_needed(sample, 0, 0.01, 0.05)
    assert half == pytest.approx(4 * small, rel=0.02)
    # Independent questions: the textbook (1.96 + 0.84)² σ² / δ².
    assert small == pytest.approx(2.8**2 * 0.3**2 / 0.02**2, rel=0.2)
    assert statistics.questions_needed(sample, 0, 0.0, 0.05) is None
    assert statistics.questions_needed(sample, 0, 9.0, 0.05) == 30


def test_the_interval_of_a_mean_stands_around_it():
    first, second, pages = data(np.random.default_rng(14), 50)
    found = statistics.intervals({"a": first, "none": {}, "b": second}, pages, seed=0)
    assert list(found) == ["a", "b"]
    assert found["a"].low < found["a"].mean < found["a"].high
    assert found["b"].mean == pytest.approx(np.mean([*second.values()]))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(AssertionError, match="no number"):
        statistics.compare({"q": math.nan}, {"q": 0.0}, {"q": "p"}, seed=0)


@settings(max_examples=30, deadline=None)
@given(
    scores=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12)), min_size=1, max_size=40),
    seed=st.integers(0, 5),
)
def test_any_scores_give_a_finite_interval_around_the_difference(scores, seed):
    first = {f"q{k}": score for k, (score, _) in enumerate(scores)}
    second = dict.fromkeys(first, 0.5)
    pages = {f"q{k}": f"p{page}" for k, (_, page) in enumerate(scores)}
    found = statistics.compare(first, second, pages, seed=seed, resamples=200)
    if found.num_pages > 1:
        assert -math.inf < found.low <= found.difference <= found.high < math.inf
        assert 0 < found.p <= found.p_holm <= 1
    if found.word in ("better", "worse"):
        assert found.p_holm <= 0.05
        assert found.low > 0 or found.high < 0


def rates(simulations, num_pages, seed, gain):
    """How often the interval covers the gain, and how often the word is better, and worse."""
    rng = np.random.default_rng(seed)
    covered = better = worse = 0
    for number in range(simulations):
        first, second, pages = data(rng, num_pages, gain=gain)
        found = statistics.compare(first, second, pages, seed=number, resamples=500)
        covered += found.low <= gain <= found.high
        better += found.word == "better"
        worse += found.word == "worse"
    return covered / simulations, better / simulations, worse / simulations


def test_the_interval_covers_and_no_gain_is_seldom_called_one():
    covered, better, worse = rates(200, num_pages=30, seed=1, gain=0.0)
    assert covered >= 0.91  # 95 % less 2.6 standard errors of 200 simulations
    assert better + worse <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize("num_pages", [15, 50, 250])
def test_the_interval_covers_in_many_simulations(num_pages):
    covered, better, worse = rates(2_000, num_pages, seed=2, gain=0.0)
    assert 0.93 <= covered <= 0.97
    assert better <= 0.035
    assert worse <= 0.035


def test_a_planted_gain_is_found_at_the_promised_number_of_questions():
    gain = 0.1
    pilot = statistics.compare(
        *data(np.random.default_rng(3), 400, gain=gain), seed=0, resamples=500, minimal=gain
    )
    _, better, worse = rates(150, round(pilot.needed_minimal / 2), seed=4, gain=gain)
    assert 0.7 <= better <= 0.92  # 80 %, three standard errors of 150 simulations
    assert worse == 0


def test_resampling_questions_instead_of_pages_would_cover_too_little():
    """The planted defect: what the simulation above must be able to see."""
    rng = np.random.default_rng(5)
    covered = 0
    for number in range(200):
        first, second, _ = data(rng, 30, per_page=6)
        own = {question: question for question in first}
        found = statistics.compare(first, second, own, seed=number, resamples=300)
        covered += found.low <= 0 <= found.high
    assert covered / 200 < 0.85
