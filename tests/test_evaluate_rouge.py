"""ROUGE is that of `rouge-score`, to the last digits."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from stages.evaluate import porter, rouge

PARTS = (("precision", "precision"), ("recall", "recall"), ("f1", "fmeasure"))
WORDS = (
    *("a", "the", "of", "model", "models", "modeling", "runs", "running", "flies", "sky", "dying"),
    *("news", "happily", "generational", "relational", "probate", "rolling", "3", "3.11", "don't"),
    *("state-of-art", "naïve", "İstanbul", "KELVIN", "\u212a", "文書", "🙂", "é", "###"),
)
SPACES = (" ", "  ", "\n", "\n\n", " \n ", "\t", "\r\n", ", ", "\u2028", "—")


def texts(rng, longest):
    count = rng.choice((0, 1, 2, rng.randrange(longest), rng.randrange(longest)))
    words = rng.sample(WORDS, rng.randrange(1, len(WORDS)))  # few words: many repeats
    return "".join(rng.choice(words) + rng.choice(SPACES) for _ in range(count))


def parity_pairs(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        answer = texts(rng, 60)
        if rng.random() < 0.3:  # a reworded reference
            words = answer.split(" ")
            rng.shuffle(words)
            yield answer, " ".join(words[: rng.randrange(len(words) + 1)])
        else:
            yield answer, texts(rng, 60)


def largest_gap(pairs, stemming):
    oracle = rouge_scorer.RougeScorer(rouge.NAMES, use_stemmer=stemming)
    ours = rouge.Scorer(stemming)
    gap = 0.0
    for answer, reference in pairs:
        expected, found = oracle.score(reference, answer), ours.score(answer, reference)
        assert list(found) == [f"{name}_{part}" for name in rouge.NAMES for part, _ in PARTS]
        for name in rouge.NAMES:
            for part, field in PARTS:
                gap = max(gap, abs(getattr(expected[name], field) - found[f"{name}_{part}"]))
    return gap


@pytest.mark.parametrize("stemming", [False, True])
def test_scores_are_those_of_rouge_score(stemming):
    assert largest_gap(parity_pairs(2_000, seed=1), stemming) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("stemming", [False, True])
def test_scores_are_those_of_rouge_score_on_many_pairs(stemming):
    assert largest_gap(parity_pairs(20_000, seed=2), stemming) < 1e-9


@pytest.mark.parametrize("stemming", [False, True])
def test_very_long_texts_score_as_in_rouge_score(stemming):
    rng = random.Random(3)

    def long(lines):
        words = [rng.choice(WORDS) for _ in range(900)]
        return "".join(word + ("\n" if rng.random() < lines else " ") for word in words)

    assert largest_gap([(long(0), long(0)), (long(0.1), long(0.1))], stemming) < 1e-9


@settings(deadline=None)
@given(answer=st.text(max_size=80), reference=st.text(max_size=80), stemming=st.booleans())
def test_any_text_scores_as_in_rouge_score(answer, reference, stemming):
    assert largest_gap([(answer, reference)], stemming) < 1e-9


LINES = st.text(alphabet="abc \n", max_size=60)


@settings(deadline=None)
@given(answer=LINES, reference=LINES)
def test_many_equally_long_subsequences_are_chosen_between_as_in_rouge_score(answer, reference):
    spaced = " ".join(answer), " ".join(reference)
    assert largest_gap([spaced], stemming=False) < 1e-9


def test_a_longest_common_subsequence_that_is_one_too_short_is_caught(monkeypatch):
    right = rouge.longest_common
    monkeypatch.setattr(rouge, "longest_common", lambda *args: max(0, right(*args) - 1))
    assert largest_gap(parity_pairs(50, seed=1), stemming=False) > 1e-3


def test_choosing_the_wrong_longest_common_subsequence_is_caught(monkeypatch):
    """As long as the right one, but the first in the text instead of the last."""
    right = rouge.common_places

    def first(places, length, other):
        mirrored = {
            token: int(f"{mask:0{length}b}"[::-1], 2) if length else 0
            for token, mask in places.items()
        }
        found = right(mirrored, length, other[::-1])
        return int(f"{found:0{length}b}"[::-1], 2) if length else 0

    monkeypatch.setattr(rouge, "common_places", first)
    assert largest_gap(parity_pairs(2_000, seed=1), stemming=False) > 1e-3


def test_the_worked_example_of_the_issue():
    found = rouge.Scorer(False).score(
        "AI accelerators facilitate extensive text processing in large language models",
        "Large language models use AI accelerators for improved processing and training.",
    )
    assert found["rouge1_recall"] == 6 / 11
    assert found["rouge1_precision"] == 6 / 10
    assert found["rouge1_f1"] == pytest.approx(0.5714, abs=1e-4)


@settings(deadline=None)
@given(answer=st.text(max_size=60), reference=st.text(max_size=60), stemming=st.booleans())
def test_precision_and_recall_change_places_with_the_texts(answer, reference, stemming):
    scorer = rouge.Scorer(stemming)
    there, back = scorer.score(answer, reference), scorer.score(reference, answer)
    for name in ("rouge1", "rouge2", "rougeL"):  # Lsum is not symmetric: its union is by reference
        assert there[f"{name}_precision"] == back[f"{name}_recall"]
        assert there[f"{name}_f1"] == pytest.approx(back[f"{name}_f1"])


@settings(deadline=None)
@given(answer=LINES, reference=LINES)
def test_every_figure_is_a_fraction_and_no_longer_run_is_commoner(answer, reference):
    found = rouge.Scorer(False).score(answer, reference)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["rougeL_recall"] <= found["rouge1_recall"]
    assert found["rougeLsum_recall"] <= found["rouge1_recall"]


@settings(deadline=None)
@given(text=LINES, stemming=st.booleans())
def test_a_text_is_wholly_like_itself(text, stemming):
    scorer = rouge.Scorer(stemming)
    found = scorer.score(text, text)
    num_tokens = len(scorer.tokenize(text))
    for name, needed in (("rouge1", 1), ("rouge2", 2), ("rougeL", 1), ("rougeLsum", 1)):
        assert found[f"{name}_f1"] == (1 if num_tokens >= needed else 0)


def planted_words(count, seed):
    """Words that end in what the rules of the stemmer look for, singly and in pairs."""
    rng = random.Random(seed)
    endings = [suffix for suffix, _ in porter.STEP_2 + porter.STEP_3] + [*porter.STEP_4]
    endings += ["ed", "ing", "s", "ss", "y", "ies", "ied", "eed", "logi", "ll", "e", "sses", "at"]
    for _ in range(count):
        head = "".join(rng.choice("abcdelstwyzxi9aeiouy") for _ in range(rng.randrange(7)))
        yield head + rng.choice(endings) * rng.randrange(2) + rng.choice(endings)


def test_stems_are_those_of_nltk():
    from nltk.stem.porter import PorterStemmer

    oracle = PorterStemmer()
    words = {*planted_words(30_000, seed=4), *porter.IRREGULAR}
    assert [word for word in words if porter.stem(word) != oracle.stem(word)] == []


@settings(deadline=None)
@given(word=st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20))
def test_any_word_has_the_stem_of_nltk(word):
    from nltk.stem.porter import PorterStemmer

    assert porter.stem(word) == PorterStemmer().stem(word)
