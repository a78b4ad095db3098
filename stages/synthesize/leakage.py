"""Train and test rows to the leaks between them: pairs of which one gives the other away.

A row of `held_out` leaks where train says its fact or asks its question; a row of `same_fact`,
whose fact is trained on purpose, only where train has its wording. No pair is compared that shares
nothing rare: each comparison begins with an inverted index.
"""

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.answer.lexical import STOPWORDS
from stages.core.records import Track
from stages.synthesize import grounding
from stages.synthesize.curation import BLOCK, Embed, Row

LONG_WORDS = 13
"""Words in a row that two texts share by copying only."""
SHINGLE_WORDS = 5
SHINGLE_SHARE = 0.5
"""Share of a row's five-word shingles in one train row from which it is a leak."""
MIN_SHINGLES = 5
"""Shingles of a row below which their share says nothing."""
COMMON_ANSWERS = 8
"""Different answers with the same words in a row from which these are a pattern of wording."""
QUESTION_SHARE = 0.8
"""Jaccard index, by the words' weights, from which two questions ask the same."""
ANSWER_SHARE = 0.7
"""Share of an answer, by the words' weights, in another one from which both say the same."""
SUBJECT_SHARE = 0.5
"""The same of a question, from which both are about the same thing."""
FEW_WORDS = 4
BRIEF_SHARE = 0.8
"""The same where the answer has fewer words that say something: it fits many questions."""
RELATED_SHARE = 0.3
"""The same of an answer, from which the same question is no coincidence."""
MIN_WORDS = 3
"""Words that say something, below which two texts are alike by chance."""

Kind = Literal[
    "long overlap", "many shingles", "near question", "same fact", "near in meaning", "same wording"
]


@dataclass(frozen=True)
class Leak:
    track: Track
    test_id: str
    train_id: str
    kind: Kind
    share: float
    """How much of the test row is given away, from 0 to 1."""
    question: str
    """Of the test row."""


def check(
    train: Sequence[Row],
    held_out: Sequence[Row],
    same_fact: Sequence[Row],
    embed: Embed | None = None,
    min_cosine: float = 0.95,
) -> list[Leak]:
    """For each test row and kind of leak the worst pair, by track, test id and kind.

    With `embed`, rows whose vectors have at least `min_cosine` are leaks, too.
    """
    seen = _Train(train)
    leaks = [leak for row in held_out for leak in seen.leaks(row)]
    if embed is not None:
        leaks += _in_meaning(train, held_out, embed, min_cosine)
    leaks += _wordings(train, same_fact)
    return sorted(leaks, key=lambda leak: (leak.track, leak.test_id, leak.kind, leak.train_id))


def tell(leaks: Sequence[Leak], limit: int) -> str:
    """One line with the worst pairs, at most `limit` of them."""
    rows = {(leak.track, leak.test_id) for leak in leaks}
    worst: dict[tuple[str, str], Leak] = {}
    for leak in sorted(leaks, key=lambda leak: (-leak.share, leak.track, leak.test_id, leak.kind)):
        worst.setdefault((leak.track, leak.test_id), leak)
    named = [
        f"{leak.track} {leak.test_id} ~ train {leak.train_id} ({leak.kind}, {leak.share:.2f}: "
        f"{_shortened(leak.question)})"
        for leak in list(worst.values())[:limit]
    ]
    more = len(rows) - len(named)
    return (
        f"{len(rows)} test question{'s' * (len(rows) != 1)} leak{'s' * (len(rows) == 1)} into "
        "train: " + "; ".join(named) + (f"; and {more} more" if more > 0 else "")
    )


def _shortened(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


# --- held_out ----------------------------------------------------------------------------------

Bag = frozenset[str]


@dataclass(frozen=True)
class _Text:
    """What is compared of a row."""

    words: tuple[str, ...]
    asked: Bag
    """Stems of the question."""
    subject: Bag
    """Those that tell what it is about, not how it is asked."""
    said: Bag
    """Stems of the answer."""
    items: Bag
    """Numbers and identifiers of the answer: where they differ, the fact is another."""
    asked_items: Bag


def _text(row: Row) -> _Text:
    asked = [_bag(question) for question in (*row.earlier, row.question)]
    said, items = _bag(row.answer)
    return _Text(
        words=tuple(_TOKEN.findall(f"{row.question} {row.answer}".casefold())),
        asked=frozenset().union(*(stems for stems, _ in asked)),
        subject=asked[-1][0] - _WORDING or asked[-1][0],
        said=said,
        items=items,
        asked_items=asked[-1][1],
    )


# A dotted name or a setting is one word: a long one is copied by everyone who means it.
_TOKEN = re.compile(r"\w+(?:[.=/:@-]+\w+)*")
_JOINT = re.compile(r"[.=/:@-]")
_PART = re.compile(r"[^\W_]+")


_ASKING = """
    anything ask command define describe detail do document explain give happen hear information
    interest know learn like look mean name need please purpose question say sentence show something
    step tell term thing understand use want way wonder work
"""
_WORDING = frozenset(map(grounding.stem, _ASKING.split()))


@functools.lru_cache(maxsize=1 << 15)
def _bag(text: str) -> tuple[Bag, Bag]:
    """The stems of a text, and its numbers and identifiers.

    `grounding.read` tells more, and takes five times as long.
    """
    stems: set[str] = set()
    items: set[str] = set()
    for token in _TOKEN.findall(text.casefold()):
        if token in grounding.NUMERALS:
            items.add(grounding.NUMERALS[token])
        elif token[0].isdigit() or ("_" in token or _JOINT.search(token.replace("-", ""))):
            items.add(token)
        for part in _PART.findall(token) if not token.isalpha() else (token,):
            if part not in STOPWORDS and (len(part) > 1 or part.isdigit()):
                stems.add(grounding.stem(part))
    return frozenset(stems), frozenset(items)


def _are_apart(one: Bag, other: Bag) -> bool:
    """Whether two questions name things, and none in common."""
    return bool(one and other and not one & other)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _grams(words: tuple[str, ...], size: int) -> list[int]:
    """A number for each run of words; it is the same within one process only."""
    return [hash(words[n : n + size]) for n in range(len(words) - size + 1)]


class _Train:
    """The train rows, so indexed that a test row meets those alone that are like it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._texts = [_text(row) for row in rows]
        answers: dict[tuple[str, ...], int] = {}
        same_answer = [
            answers.setdefault(tuple(_words(row.answer)), n) for n, row in enumerate(rows)
        ]
        self._long = self._index(LONG_WORDS, same_answer)
        self._short = self._index(SHINGLE_WORDS, same_answer)
        # A word's weight is its inverse frequency among facts, of which each is asked many times:
        # the words of a wording are in most facts, and weigh little.
        facts: dict[int, set[str]] = defaultdict(set)
        for fact, text in zip(same_answer, self._texts, strict=True):
            facts[fact] |= text.asked | text.said
        frequency = Counter(stem for stems in facts.values() for stem in stems)
        self._weights = {stem: math.log(1 + len(facts) / n) for stem, n in frequency.items()}
        self._unknown = math.log(2 + len(facts))
        self._asked = _postings([text.subject for text in self._texts])
        self._said = _postings([text.said for text in self._texts])

    def _index(self, size: int, same_answer: Sequence[int]) -> Mapping[int, Sequence[int]]:
        """The rows with each run of words, but for what many different answers share."""
        places: dict[int, list[int]] = defaultdict(list)
        for n, text in enumerate(self._texts):
            for gram in set(_grams(text.words, size)):
                places[gram].append(n)
        return {
            gram: rows
            for gram, rows in places.items()
            if len(rows) < COMMON_ANSWERS or len({same_answer[n] for n in rows}) < COMMON_ANSWERS
        }

    def leaks(self, row: Row) -> Iterator[Leak]:
        """At most one of each kind."""
        text = _text(row)
        finders: tuple[tuple[Kind, Iterator[tuple[float, int]]], ...] = (
            ("long overlap", self._overlaps(text, LONG_WORDS, self._long)),
            ("many shingles", self._overlaps(text, SHINGLE_WORDS, self._short)),
            ("near question", self._questions(text)),
            ("same fact", self._facts(text)),
        )
        for kind, found in finders:
            best = min(found, key=lambda one: (-one[0], self._rows[one[1]].id), default=None)
            if best is not None:
                yield Leak(
                    track="held_out",
                    test_id=row.id,
                    train_id=self._rows[best[1]].id,
                    kind=kind,
                    share=round(best[0], 3),
                    question=row.question,
                )

    def _overlaps(
        self, text: _Text, size: int, index: Mapping[int, Sequence[int]]
    ) -> Iterator[tuple[float, int]]:
        grams = set(_grams(text.words, size))
        shared = Counter(place for gram in grams for place in index.get(gram, ()))
        if size == SHINGLE_WORDS and len(grams) < MIN_SHINGLES:
            return
        least = 1 if size == LONG_WORDS else SHINGLE_SHARE * len(grams)
        yield from (
            (count / len(grams), place) for place, count in shared.items() if count >= least
        )

    def _questions(self, text: _Text) -> Iterator[tuple[float, int]]:
        if len(text.subject) < MIN_WORDS:
            return
        for place, common in self._alike(text.subject, self._asked, QUESTION_SHARE):
            other = self._texts[place]
            if other.asked_items != text.asked_items:
                continue
            share = self._weight(common) / self._weight(text.subject | other.subject)
            related = self._weight(text.said & other.said) >= RELATED_SHARE * self._weight(
                text.said
            )
            if share >= QUESTION_SHARE and (related or text.asked == other.asked):
                yield share, place

    def _facts(self, text: _Text) -> Iterator[tuple[float, int]]:
        if len(text.said) < MIN_WORDS and not text.items:
            return
        for place, common in self._alike(text.said, self._said, ANSWER_SHARE):
            other = self._texts[place]
            if other.items != text.items or _are_apart(text.asked_items, other.asked_items):
                continue
            # What one asks, the other may say.
            about = self._weight(text.subject & (other.asked | other.said))
            least = BRIEF_SHARE if len(text.said) < FEW_WORDS else SUBJECT_SHARE
            if about >= least * self._weight(text.subject):
                yield self._weight(common) / self._weight(text.said), place

    def _weight(self, stems: Bag) -> float:
        # fsum: the sum does not depend on the order, which a set's would be.
        return math.fsum(self._weights.get(stem, self._unknown) for stem in stems)

    def _alike(
        self, stems: Bag, index: Mapping[str, Sequence[tuple[int, Bag]]], least: float
    ) -> Iterator[tuple[int, Bag]]:
        """The rows that share so much of the stems' weight, and what they share."""
        weights = {stem: self._weights.get(stem, self._unknown) for stem in stems}
        ranked = sorted(stems, key=lambda stem: (-weights[stem], stem))
        left = self._weight(stems)
        enough = least * left
        num_shared = 0  # at least, even of the heaviest
        reached = 0.0
        while reached < enough:
            reached += weights[ranked[num_shared]]
            num_shared += 1
        seen: set[int] = set()
        for stem in ranked:
            if left < enough:  # what shares none of those before shares too little
                return
            left -= weights[stem]
            for place, other in index.get(stem, ()):
                if place in seen:
                    continue
                seen.add(place)
                common = stems & other
                if len(common) >= num_shared and self._weight(common) >= enough:
                    yield place, common


def _postings(bags: Sequence[Bag]) -> Mapping[str, Sequence[tuple[int, Bag]]]:
    places: dict[str, list[tuple[int, Bag]]] = defaultdict(list)
    for place, bag in enumerate(bags):
        for stem in bag:
            places[stem].append((place, bag))
    return places


def _in_meaning(
    train: Sequence[Row], held_out: Sequence[Row], embed: Embed, min_cosine: float
) -> Iterator[Leak]:
    if not train or not held_out:
        return
    known, asked = (_unit(embed, rows) for rows in (train, held_out))
    for start in range(0, len(held_out), BLOCK):
        cosines = asked[start : start + BLOCK] @ known.T  # (block, train)
        for row, of_row in zip(held_out[start : start + BLOCK], cosines, strict=True):
            best = int(np.argmax(of_row))  # the first of equals
            if of_row[best] >= min_cosine:
                yield Leak(
                    track="held_out",
                    test_id=row.id,
                    train_id=train[best].id,
                    kind="near in meaning",
                    share=round(float(of_row[best]), 3),
                    question=row.question,
                )


def _unit(embed: Embed, rows: Sequence[Row]) -> np.ndarray:
    vectors = np.asarray(embed([f"{row.question}\n{row.answer}" for row in rows]), np.float32)
    assert len(vectors) == len(rows), "one vector for each text"
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


# --- same_fact ---------------------------------------------------------------------------------

_SAY_MORE = ("no", "nor", "not", "off", "on", "out", "up", "more", "most", "other", "same", "only")
_ASK = ("how", "there", "what", "when", "where", "which", "who", "whom", "whose", "why")
_POLITE = ("please", "kindly", "hello", "hi", "hey", "thanks")
IDLE = STOPWORDS.difference(_SAY_MORE, _ASK).union(_POLITE)
"""Words that a question may have or not and be the same wording."""


def _wordings(train: Sequence[Row], same_fact: Sequence[Row]) -> Iterator[Leak]:
    exact: dict[str, Row] = {}
    variants: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in train:
        exact.setdefault(_asked(row), row)
        variants[_variant(row)].append(row)
    for row in same_fact:
        known = exact.get(_asked(row))
        if known is None:
            known = next(
                (other for other in variants.get(_variant(row), ()) if _says_same(row, other)), None
            )
        if known is not None:
            yield Leak(
                track="same_fact",
                test_id=row.id,
                train_id=known.id,
                kind="same wording",
                share=1.0,
                question=row.question,
            )


def _asked(row: Row) -> str:
    """The questions of the whole dialogue, whatever their letters and marks."""
    return " / ".join(" ".join(_words(question)) for question in (*row.earlier, row.question))


def _variant(row: Row) -> tuple[str, ...]:
    """The words of a wording without their order; of a dialogue, its earlier turns as they are."""
    words = _words(row.question)
    said = [word for word in words if word not in IDLE] or words
    return (*(" ".join(_words(question)) for question in row.earlier), *sorted(said))


def _says_same(row: Row, other: Row) -> bool:
    """Else `from A to B` and `from B to A` would be one question."""
    one, two = _bag(row.answer)[0], _bag(other.answer)[0]
    return 2 * len(one & two) >= min(len(one), len(two))
