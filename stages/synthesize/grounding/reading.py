"""A text to what it claims: its numbers, names, code, and sentences with their negations."""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from stages.answer.lexical import STOPWORDS
from stages.synthesize.grounding.english import (
    ABBREVIATED,
    ATTACHED,
    CLASSES,
    ENDS,
    NOT,
    NUMERALS,
    OPENERS,
    PHRASES,
    SCOPE_ENDS,
    UNITS,
    WEAK,
    stem,
)

SCOPE = 5
"""Words that say something, at most, that a negation speaks of."""


@dataclass(frozen=True)
class Number:
    said: str
    """As it is written, with its unit."""
    value: str
    """The shortest decimal form, or a version such as 3.11.2."""
    unit: str
    noun: str
    """The stem of the word after it, or the empty string."""

    @property
    def roots(self) -> frozenset[str]:
        """What it adds to the stems of its text."""
        last = self.said.lower().split(" ")[-1]
        return frozenset({self.value, stem(self.said.lower()), *_stems(last)})

    @property
    def quantity(self) -> tuple[str, Decimal] | None:
        """Dimension and value in its smallest unit; None for what is no quantity."""
        if self.unit not in UNITS or not re.fullmatch(r"-?\d+(\.\d+)?", self.value):
            return None
        dimension, size = UNITS[self.unit]
        return dimension, Decimal(self.value) * size


@dataclass(frozen=True)
class Sentence:
    words: tuple[str, ...]
    """In lower case, with the marks between them."""
    stems: tuple[str, ...]
    """One per word, the same for words that may stand for each other; empty for small words."""
    roots: tuple[str, ...]
    """One per word, each word's own."""
    negations: tuple[tuple[int, int], ...]
    """The place of each negating word, and the end of what it speaks of."""
    weak: frozenset[int]
    """Places of words that deny without a negation, such as `except` or `fails`."""
    content: frozenset[str]
    denied: frozenset[int]
    """Places that a negation speaks of."""


@dataclass(frozen=True)
class Reading:
    """What a text says, by the sorts of things that are checked."""

    text: str
    """Without the marks of Markdown that are no words."""
    words: frozenset[str]
    """In lower case, names also in their parts."""
    stems: frozenset[str]
    numbers: tuple[Number, ...]
    names: tuple[str, ...]
    code: tuple[str, ...]
    """Identifiers, commands, options, paths and addresses."""
    sentences: tuple[Sentence, ...]


_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|<>~])")
_TICKED = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_TICKED_OR_LINK = re.compile(
    _TICKED.pattern
    + r"|!?\[(?P<said>(?:[^\]\[`]|`[^`]*`)*)\]\((?:[^()\s]|\([^()\s]*\))*(?: \"[^\"]*\")?\)",
    re.DOTALL,
)
_EMPHASIS = re.compile(r"\*+|(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)")
_BREAK = re.compile(r"\n(?=[ \t]*(?:[-*+|#>]|\d{1,9}[.)][ \t]|\n|```|~~~))")
_CODE = re.compile(
    r"https?://[^\s<>()|`\"“”]+"
    r"|(?<![\w-])--?[A-Za-z][\w-]*"  # options
    r"|(?<![\w./~-])(?:~|\.{1,2})?/?(?:[\w.-]+/)+[\w.-]*\w/?"  # paths
    r"|(?<![\w.])\.?[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"  # dotted names and files
    r"|(?<!\w)[A-Za-z]*_\w+(?:\(\))?|(?<!\w)[A-Za-z]\w*_\w*(?:\(\))?"  # snake
    r"|(?<!\w)(?:[a-z]+|[A-Z][a-z]+\d*)[A-Z]\w*(?:\(\))?"  # camel
    r"|(?<!\w)[A-Za-z]\w*\(\)"
)
_TOKEN = re.compile(
    r"(?P<number>(?<![\w.])(?:(?<![\w)\]}`.,])[-+−])?\d+(?:[,_\u00a0\u202f]\d{3}(?!\d))*"
    r"(?:\.\d+)*(?:[eE][-+]?\d+(?!\w))?)(?:[ \u00a0\u202f]?(?P<unit>%|[A-Za-zµ]+(?!\w)))?"
    r"|(?P<word>\w+(?:['’][^\W\d_]+)?)"
    r"|(?P<mark>[.!?](?=\s|$|[\"”'’)*`])|[;:,()|“”\"—–…¶])"
)
_CUE = re.compile(r"(?i)\b(?:not|no|none|never|without|unless|cannot|\w+n['’]t)\b")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+|(?<=[A-Za-z])(?=\d)")


@functools.lru_cache(maxsize=1 << 13)
def read(text: str) -> Reading:
    """The numbers, names, identifiers, stems and negations of Markdown text."""
    text = _TICKED_OR_LINK.sub(lambda found: found["said"] or found[0], text)
    text = _ESCAPED.sub(r"\1", text)
    # A sentence ends with a paragraph, an item or a row, but not with a line of prose.
    text = _BREAK.sub(" ¶ ", text).replace("\n", " ")
    # In code, `not` and `None` deny nothing.
    plain = _TICKED.sub(lambda found: " " + _CUE.sub(" ", found[2]) + " ", text)
    plain = _EMPHASIS.sub("", plain.replace("`", " "))
    lowered = plain.lower()
    for hints, pattern, phrase in PHRASES:
        if any(hint in lowered for hint in hints):
            plain = pattern.sub(phrase, plain)
    words: set[str] = set()
    stems: set[str] = set()
    numbers: list[Number] = []
    names: dict[str, None] = {}
    found: list[Sentence] = []
    begun: list[tuple[str, str]] = []  # the sentence's words and what each says
    starts = True
    for token, following in itertools.pairwise([*_TOKEN.finditer(plain), None]):
        assert token is not None
        after = (following["word"] or "") if following else ""
        if mark := token["mark"]:
            begun.append((mark, ""))
            starts = mark in ENDS or mark in ':"“('
            if mark in ENDS:
                found.append(_sentence(begun))
                begun = []
            continue
        if token["number"]:
            number = _number(token["number"], token["unit"] or "", after)
            numbers.append(number)
            stems.add(number.value)
            begun.append((number.value, number.value))
            if (unit := (token["unit"] or "").lower()).isalpha():
                words.add(unit)
                stems |= _stems(unit)
                begun.append((unit, "".join(_stems(unit))))
        else:
            word = token["word"].replace("’", "'").removesuffix("'s")
            lower = word.lower()
            if lower in NUMERALS and not (lower == "one" and _is_pronoun(begun, after)):
                numbers.append(_number(NUMERALS[lower], "", after, word))
            words.add(lower)
            stems |= _stems(lower)
            if not (word == lower and word.isalpha()):
                if _is_name(word, starts, after):
                    names[word] = None
                for part in filter(None, CAMEL.split(word)):
                    words.add(part.lower())
                    stems |= _stems(part.lower())
            # The constant of Python is no negation.
            lower = "None" if word == "None" and not starts else lower
            begun.append((lower, "".join(_stems(lower))))
        starts = False
    found.append(_sentence(begun))
    return Reading(
        text=" ".join(text.split()),
        words=frozenset(words),
        stems=frozenset(stems),
        numbers=tuple(numbers),
        names=tuple(names),
        code=tuple(dict.fromkeys(_identifiers(text))),
        sentences=tuple(sentence for sentence in found if sentence.words),
    )


def _stems(word: str) -> set[str]:
    """What the word says: its stem, or nothing."""
    small = len(word) < 2 or word in STOPWORDS or word.endswith("n't")
    return set() if small else {stem(word)}


_FIGURE = re.compile(r"[-+−]?[\d.,_]+ ?%?|¶")


def _identifiers(text: str) -> Iterator[str]:
    for match in _TICKED.finditer(text):
        ticked = " ".join(match[2].split()).strip(",;")
        if ticked and not _FIGURE.fullmatch(ticked):
            yield ticked
    for match in _CODE.finditer(_TICKED.sub(" ", text)):
        found = match.group().rstrip(".,;:")
        if found.lower() not in ABBREVIATED and found.strip("_"):
            yield found


def _number(digits: str, unit: str, following: str, said: str = "") -> Number:
    value = re.sub(r"[,_\u00a0\u202f]", "", digits).replace("−", "-")
    lower = unit.lower() or following.lower()
    known = lower if lower in UNITS or (unit and lower in ATTACHED) else ""
    noun = following.lower() if unit and known else lower
    if value.count(".") < 2 and "e" not in value.lower():
        # 0.50 is 0.5, and 5.0 s is 5 s, but 3.10 may be a version and not 3.1.
        if "." not in value:
            value = str(int(value))
        elif abs(Decimal(value)) < 1 or known:
            value = f"{Decimal(value).normalize():f}"
    written = f"{digits} {unit}" if unit and known else digits
    return Number(said or written, value, known, "".join(_stems(noun)))


def _is_pronoun(before: list[tuple[str, str]], following: str) -> bool:
    """Whether `one` counts nothing: `the one that`, `one of them`, `no one`."""
    last = before[-1][0] if before else ""
    counts = following and following.lower() not in STOPWORDS
    return not counts or last in {"the", "this", "that", "no", "any", "which", "every", "each"}


_ACTS = re.compile(r"is|has|does|was|[a-z]{2,}[^sui\W]s")
_MAY_ACT = re.compile(r"can|will|then|also|only|always|never|still")


def _is_name(word: str, starts: bool, following: str) -> bool:
    """Whether it is written as a proper name; at a sentence's start, as it is used as well."""
    if not word[0].isupper():
        return any(c.isupper() for c in word[1:]) or (
            word[0].isalpha() and any(c.isdigit() for c in word) and "_" not in word
        )
    if "_" in word or len(word) < 2:
        return False
    if not starts or any(c.isupper() or c.isdigit() for c in word[1:]):
        return not word.startswith(("I'", "A'"))
    # `Docent crawls …`: a singular subject without an article is a name or a mass noun.
    lower = word.lower()
    if lower in STOPWORDS | OPENERS or lower in NUMERALS or lower.endswith("ing"):
        return False
    plural = lower.endswith("s")
    return bool(_ACTS.fullmatch(following) or (not plural and _MAY_ACT.fullmatch(following)))


def _sentence(said: list[tuple[str, str]]) -> Sentence:
    words = tuple(word for word, _ in said)
    stems = tuple(CLASSES.get(one, one) for _, one in said)
    negations = []
    for place, word in enumerate(words):
        if word in NOT or word.endswith("n't"):
            end, num_words = place + 1, 0
            while end < len(words) and words[end] not in SCOPE_ENDS and num_words < SCOPE:
                if words[end] == ",":
                    break
                num_words += bool(stems[end])
                end += 1
            negations.append((place, end))
    return Sentence(
        words=words,
        stems=stems,
        roots=tuple(map(stem, words)),
        negations=tuple(negations),
        weak=frozenset(place for place, word in enumerate(words) if word in WEAK),
        content=frozenset(stems) - {""},
        denied=frozenset(n for place, end in negations for n in range(place + 1, end)),
    )
