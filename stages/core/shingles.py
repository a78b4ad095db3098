"""Texts that are nearly the same: MinHash finds the pairs, the Jaccard index decides."""

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
from rensa import RMinHash, RMinHashLSH  # type: ignore[import-untyped]

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
NUM_BANDS = 32
"""Bands of four rows find a pair of similarity 0.5 in 87 % of cases, one of 0.7 in 99.98 %."""


_BATCH = 8
_PRINTS_KEPT = 64


def pairs(
    number: int, text: Callable[[int], str], seed: int, threshold: float
) -> Iterator[tuple[int, int]]:
    """The places of two of a number of texts that are alike, the earlier one first; in order of
    the later one.

    Whether two are alike depends on those two alone. A text is asked for when it is needed, and
    again where it may be like another one; what stays of it is a sketch of some 2 KB.
    """
    for place, others in _alike(number, text, seed, threshold):
        for other in others:
            yield other, place


def earliest(
    number: int, text: Callable[[int], str], seed: int, threshold: float
) -> Iterator[tuple[int, int]]:
    """Those of the pairs that hold the earliest text that a later one is like."""
    for place, others in _alike(number, text, seed, threshold):
        for other in itertools.islice(others, 1):
            yield other, place


def _alike(
    number: int, text: Callable[[int], str], seed: int, threshold: float
) -> Iterator[tuple[int, Iterator[int]]]:
    """Each place with the earlier ones that are like it, which are compared as they are taken."""
    seen = RMinHashLSH(threshold, NUM_PERMUTATIONS, NUM_BANDS)
    printed = functools.lru_cache(_PRINTS_KEPT)(lambda place: prints(shingles(text(place))))

    def like(words: Collection[str], found: Iterable[int]) -> Iterator[int]:
        own = prints(words)
        return (other for other in sorted(found) if share(own, printed(other)) >= threshold)

    for begin in range(0, number, _BATCH):
        batch = range(begin, min(begin + _BATCH, number))
        # Equal texts have equal sets, and so equal sketches, wherever and whenever they are made.
        sets = [sorted(shingles(text(place))) for place in batch]
        sketches = RMinHash.from_token_sets(sets, NUM_PERMUTATIONS, seed)
        for place, words, sketch in zip(batch, sets, sketches, strict=True):
            found = seen.query(sketch)
            if found:
                yield place, like(words, found)
            seen.insert(place, sketch)


def shingles(text: str) -> frozenset[str]:
    words = re.findall(r"\w+", text.casefold())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[n : n + SHINGLE_WORDS]) for n in range(last))


def prints(words: Collection[str]) -> np.ndarray:
    """(shingle,), uint64, in order: their hashes, which take a twentieth of their memory."""
    return np.unique(np.array(RMinHash.hash_token_sets([list(words)])[0], np.uint64))


def share(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard index of two texts, by their prints."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
