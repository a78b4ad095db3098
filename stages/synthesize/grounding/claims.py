"""The numbers, names and identifiers of an answer that its evidence does not say."""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from stages.synthesize.grounding.case import Case
from stages.synthesize.grounding.english import CLASSES, GLUE_STEMS, NUMERALS, stem
from stages.synthesize.grounding.reading import CAMEL, Number, Reading

SUPPORT = 0.4
"""Least share of words, by their stems, that stand in the evidence: the mean of the share of the
answer's and the share of those of question and answer together."""
STRICT = 0.8
"""Least share of the answer's words where the evidence names no code that is asked about."""

_HINTS = {
    "0": "none",
    "0.5": "half",
    "1": "once single first",
    "2": "both pair twice double doubles doubled second",
    "3": "thrice triple third",
    "4": "fourth",
    "5": "fifth",
    "6": "sixth",
}
_HINTED = {word: value for value, words in _HINTS.items() for word in words.split()}
"""Words that tell a number without being one: they support one, and need no support."""


def numbers(case: Case) -> Iterator[str]:
    for number in case.answer.numbers:
        if not is_held(number, case):
            yield f"number {number.said} is not in the evidence"


def is_held(number: Number, case: Case) -> bool:
    known = case.evidence.numbers
    values = {one.value for one in known}
    hinted = {value for word, value in _HINTED.items() if word in case.evidence.words}
    if number.quantity is not None:
        dimension, _ = number.quantity
        if any(one.quantity == number.quantity for one in known):
            return True
        # Elsewhere the unit may stand in a table's head or in a key's name.
        if any(one.value == number.value for one in known if not one.quantity):
            return True
        if dimension == "share":
            return f"{(Decimal(number.value) / 100).normalize():f}" in values
        return number.value in hinted - values
    if number.value not in values | hinted:
        shares = {one.value for one in known if one.unit == "%"}
        if _times_hundred(number.value) in shares:
            return True
        nouns = {one.noun for one in known} - {""}
        return number.noun not in nouns and _is_counted(number, case)
    # `3 workers` is not supported by `4 workers and 3 retries`.
    of_noun = {one.value for one in known if one.noun == number.noun}
    others = {one.noun for one in known if one.value == number.value}
    return not (number.noun and of_noun and number.value not in of_noun and "" not in others)


def _times_hundred(value: str) -> str:
    """Of a decimal fraction; of anything else, nothing."""
    fraction = re.fullmatch(r"-?\d+\.\d+", value)
    return f"{(Decimal(value) * 100).normalize():f}" if fraction else ""


def _is_counted(number: Number, case: Case) -> bool:
    """Whether the evidence lists as many things: items, or words with commas between them."""
    if number.said.lower() not in NUMERALS:
        return False
    if number.value == "1":
        return bool({"a", "an", "single", "every", "each", "once"} & case.evidence.words)
    items = len(_ITEM.findall(case.evidence.text))
    listed = {
        match.group().count(",") + (2 if match["ends"] is None else 1)
        for match in _LIST.finditer(case.evidence.text)
    }
    return int(number.value) in listed | {items}


_ITEM = re.compile(r"(?:^|¶) *(?:[-*+]|\d+[.)]) ")
_ONE = r"(?!(?:and|or)\b)[^\s,.;:|()]+"
_FEW = rf"{_ONE}(?: {_ONE}){{0,2}}"
_LIST = re.compile(rf"(?:{_FEW}, )+{_FEW}(?:(?=,? (?:and|or) )|(?P<ends>(?=[.;)]|$)))")


def names(case: Case) -> Iterator[str]:
    around = Words.of(case.question) | Words.of(case.context)
    told = Words.of(case.evidence)
    for name in case.answer.names:
        if not told.have(name) and not around.have(name):
            yield f"name {name} is not in the evidence"
        elif not told.have(name) and (own := _exchanged(name, case)):
            yield f"name {name} is not in the evidence, which has {own} in its place"


@dataclass(frozen=True)
class Words:
    words: frozenset[str]
    stems: frozenset[str]

    @classmethod
    def of(cls, reading: Reading) -> "Words":
        return cls(reading.words, reading.stems)

    def __or__(self, other: "Words") -> "Words":
        return Words(self.words | other.words, self.stems | other.stems)

    def have(self, name: str) -> bool:
        """Whether the name is among them, in capitals or not, or all its parts are."""
        lower = name.lower()
        if lower in self.words or stem(lower) in self.stems or lower.rstrip("s") in self.words:
            return True
        parts = [part.lower() for part in CAMEL.split(name) if part]
        return len(parts) > 1 and all(part in self.words for part in parts)


def _exchanged(name: str, case: Case) -> str | None:
    """A name that the answer lacks and the evidence has beside a word beside which this stands."""
    beside = set(_beside(name, case.answer))
    known = case.answer.words | case.question.words
    for other in case.evidence.names:
        if other.lower() not in known and beside & set(_beside(other, case.evidence)):
            return other
    return None


def _beside(name: str, reading: Reading) -> Iterator[tuple[int, str]]:
    """The words that say something before and after the name, with the side."""
    for sentence in reading.sentences:
        for place, word in enumerate(sentence.words):
            if word == name.lower():
                for side in (-1, 1):
                    next_to = place + side
                    if 0 <= next_to < len(sentence.words) and sentence.stems[next_to]:
                        yield side, sentence.stems[next_to]


def code(case: Case) -> Iterator[str]:
    known = (case.evidence.text, case.question.text, case.context.text)
    for code in case.answer.code:
        if any(stands(code, text) for text in known):
            continue
        # A command may be put together from what the evidence says, word by word.
        pieces = [piece.strip("\"'()[]{}:") for piece in re.split(r"[\s,;]+", code)]
        pieces = [piece for piece in pieces if piece and not _PLACE.search(piece)]
        if pieces != [code] and all(_is_set(piece, known) for piece in pieces):
            continue
        yield f"code identifier {code} is not in the evidence"


def _is_set(piece: str, texts: Sequence[str]) -> bool:
    """Whether a word of a command stands in the texts; of `key=value`, each where no other does."""
    key, sign, value = piece.partition("=")
    if any(stands(piece, text) for text in texts):
        return True
    if not sign or not key or any(f"{key}=" in text for text in texts):
        return False
    return all(any(stands(part, text) for text in texts) for part in (key, value))


_PLACE = re.compile(r"^(?:<.*>|\.{3}|…|[|&]+)$")


def stands(code: str, text: str) -> bool:
    """Whether it stands there whole; letters alone may be capital or small."""
    code = code.removesuffix("()")
    if not _JOINED.search(code):
        code, text = code.lower(), text.lower()
    at = text.find(code)
    while at >= 0 and code:
        end = at + len(code)
        inside = _INNER.search(code[0]) and at and _INNER.search(text[at - 1])
        goes_on = _INNER.search(code[-1]) and _INNER.match(text, end)
        more = code.startswith("-") and re.compile(r"-\w").match(text, end)
        digits = code[-1].isdigit() and re.compile(r"\.\d").match(text, end)
        if not (inside or goes_on or more or digits):
            return True
        at = text.find(code, at + 1)
    return False


_INNER = re.compile(r"\w")
_JOINED = re.compile(r"[^A-Za-z ]")


def unsupported(case: Case) -> Iterator[str]:
    held = {number.roots for number in case.answer.numbers if is_held(number, case)}
    known = alike(case.evidence.stems).union(*held)
    answer = alike(case.answer.stems - GLUE_STEMS)
    whole = answer | alike(case.question.stems - GLUE_STEMS)
    found, share = len(answer & known), _share(answer, known)
    # `DeepSpeed` may be a name, `zero.stage` may not.
    asked = [code for code in case.question.code if not re.fullmatch(r"\W*\w?\W*|[A-Z]\w*", code)]
    elsewhere = asked and not any(stands(code, case.evidence.text) for code in asked)
    if (share + _share(whole, known)) / 2 < SUPPORT or (elsewhere and share < STRICT):
        yield f"little of it is in the evidence: {found} of {len(answer)} words"


def _share(said: frozenset[str], known: frozenset[str]) -> float:
    return len(said & known) / len(said) if said else 1.0


@functools.lru_cache(maxsize=1 << 13)
def alike(stems: frozenset[str]) -> frozenset[str]:
    """The stems, with one for all that may stand for each other."""
    return frozenset(CLASSES.get(said, said) for said in stems)
