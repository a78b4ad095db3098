"""ROUGE of answers against references: the figures of `rouge-score`, at a fraction of its time."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise

from stages.evaluate import porter

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

WORD = re.compile(r"[a-z0-9]+")

Tokens = list[str]
Places = dict[str, int]
"""Where each token stands in a text: bit i is set where token i is that token."""


class Scorer:
    """Compares texts; the stems of the words that it met are kept, so use one for many pairs."""

    def __init__(self, stemming: bool) -> None:
        self._stem: Callable[[str], str] | None = cache(porter.stem) if stemming else None

    def score(self, answer: str, reference: str) -> dict[str, float]:
        """Precision, recall and F1 of each ROUGE, as fractions: `rougeL_f1` and so on."""
        said, wanted = self.tokenize(answer), self.tokenize(reference)
        n, m = len(said), len(wanted)
        places = _places(wanted)
        common = longest_common(places, m, said)
        in_sentences = (
            self._common_in_sentences(answer, reference)
            if "\n" in answer or "\n" in reference
            else common
        )
        figures: dict[str, float] = {}
        for name, hits, num_said, num_wanted in (
            ("rouge1", _shared(Counter(said), places), n, m),
            ("rouge2", _shared_pairs(said, wanted), n - 1, m - 1),
            ("rougeL", common, n, m),
            ("rougeLsum", in_sentences, n, m),
        ):
            precision = hits / num_said if num_said > 0 else 0.0
            recall = hits / num_wanted if num_wanted > 0 else 0.0
            total = precision + recall
            figures[f"{name}_precision"] = precision
            figures[f"{name}_recall"] = recall
            figures[f"{name}_f1"] = 2 * precision * recall / total if total > 0 else 0.0
        return figures

    def tokenize(self, text: str) -> Tokens:
        """Runs of ASCII letters and digits in lower case; stemmed where longer than three."""
        tokens: Tokens = WORD.findall(text.lower())
        stem = self._stem
        return tokens if stem is None else [stem(t) if len(t) > 3 else t for t in tokens]

    def _common_in_sentences(self, answer: str, reference: str) -> int:
        """Tokens of the union of the longest common subsequences of all pairs of lines.

        No token counts oftener than it stands in the answer.
        """
        said, wanted = self._lines(answer), self._lines(reference)
        if len(said) == 1 and len(wanted) == 1:
            return longest_common(_places(wanted[0]), len(wanted[0]), said[0])
        found: Counter[str] = Counter()
        for line in wanted:
            places = _places(line)
            union = 0
            for other in said:
                union |= common_places(places, len(line), other)
            for token, mask in places.items():
                if hits := (union & mask).bit_count():
                    found[token] += hits
        available = Counter(token for line in said for token in line)
        return sum(min(count, available[token]) for token, count in found.items())

    def _lines(self, text: str) -> list[Tokens]:
        return [tokens for line in text.split("\n") if (tokens := self.tokenize(line))]


def longest_common(places: Places, length: int, other: Tokens) -> int:
    """Length of the longest common subsequence of a text of `length` tokens and another.

    Bit-parallel (Crochemore et al. 2001, Hyyrö 2004): a row of the usual table is one integer, in
    which a zero bit says that the table grows by one there.
    """
    if not length:
        return 0
    full = (1 << length) - 1
    row = full
    for token in other:
        if (mask := places.get(token)) is not None:
            met = row & mask
            row = (row + met) | (row - met)
    return length - (row & full).bit_count()


def common_places(places: Places, length: int, other: Tokens) -> int:
    """Where a longest common subsequence stands in the text: the one that `rouge-score` picks.

    Of several it takes the last: from the ends, a token that both texts have is taken; else a step
    back is made in the other text where the table grew by this token, and in this text where not.
    The first place from the end that stops the walk in this text is one bit operation per token.
    """
    full = (1 << length) - 1
    row = full
    columns: list[tuple[int, int]] = []  # per token of the other: its places, where the table grew
    for token in other:
        mask = places.get(token, 0)
        if mask:
            met = row & mask
            row = ((row + met) | (row - met)) & full
        columns.append((mask, row ^ full))
    chosen = 0
    before = full  # the places that the walk has not yet passed
    for mask, grown in reversed(columns):
        stop = ((mask | grown) & before).bit_length()
        if not stop:
            break
        bit = 1 << (stop - 1)
        if mask & bit:
            chosen |= bit
            before = bit - 1
        else:
            before = (bit << 1) - 1
    return chosen


def _places(tokens: Tokens) -> Places:
    places: Places = {}
    bit = 1
    for token in tokens:
        places[token] = places.get(token, 0) | bit
        bit <<= 1
    return places


def _shared(counts: Counter[str], places: Places) -> int:
    return sum(
        min(count, places[token].bit_count()) for token, count in counts.items() if token in places
    )


def _shared_pairs(said: Tokens, wanted: Tokens) -> int:
    first = Counter(pairwise(said))
    second = Counter(pairwise(wanted))
    return sum(min(first[pair], second[pair]) for pair in first.keys() & second.keys())
