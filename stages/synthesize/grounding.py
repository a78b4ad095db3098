"""An answer and its evidence to faults: what the answer says that the evidence does not say.

Rules decide, and no model: equal texts have equal faults. Each kind of fault is one rule.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from stages.answer.lexical import STOPWORDS
from stages.answer.prompt import count
from stages.answer.sentences import sentences
from stages.core.records import Evidence

SUPPORT = 0.35
"""Least share of the answer's own words, by their stems, that stand in the evidence."""
STRICT = 0.75
"""The same where the evidence names nothing of the code that is asked about."""
YES_NO = 0.7
"""Share of a yes-no question's words in a sentence from which that sentence answers it."""
WHOLE_SUPPORT = 0.25
"""Least share of the words of question and answer together."""
FEW_WORDS = 3
"""Own words of an answer below which the question has to be supported as an answer has."""
ALIGNED = 0.5
"""Share of a sentence's words in another one from which both speak of the same thing."""
SCOPE = 5
"""Words that say something, at most, that a negation speaks of."""
REACH = 6
"""Words between two others, at most, that have changed places with one."""
WEAK_REACH = 5
"""Words on either side that a word such as `except` may deny."""
REPEATED = 0.7
"""Share of a sentence's words that another has in the same order, from which it repeats that."""
HEADS = 3
"""Words of what a negation speaks of that are looked for in the other text."""
BESIDE = 4
"""Words that say something, on either side of a word, by which its uses are told apart."""
MIN_BESIDE = 2
"""Words that two opposites have to stand beside in common, where none is used in its sense."""
ITEM_WEIGHT = 3
"""What a number, a name or an identifier counts beside a word, when a span is narrowed."""


def faults(
    question: str, answer: str, evidence: Sequence[str], context: Sequence[str] = ()
) -> list[str]:
    """Why the evidence does not support the answer, in the order of `RULES`; empty where it does.

    Question and `context`, such as the page's title and headings, may name what the evidence takes
    for granted: their names and identifiers count as known. Their numbers and words do not.
    """
    case = _Case(
        read(question), read(answer), read("\n\n".join(evidence)), read("\n\n".join(context))
    )
    return [fault for rule in RULES.values() for fault in rule(case)]


def trim(span: Evidence, question: str, answer: str, max_tokens: int) -> tuple[Evidence, ...]:
    """The sentences of the span that support the answer, in reading order; a short span as it is.

    None of them has more than `max_tokens` (as cl100k counts them), so that none is a whole chunk
    that is longer. Together they support the answer if the span as a whole does, unless a sentence
    had to be cut. Faults such as a lost negation are looked for in the whole span, before.
    """
    if count(span.text) <= max_tokens:
        return (span,)
    pieces = list(_pieces(span.text, max_tokens))
    texts = [span.text[start:end] for start, end in pieces]
    told = [read(text) for text in texts]
    asked = read(answer)
    least = faults(question, answer, texts)
    missing = _claims(asked)
    chosen: list[int] = []
    left = list(range(len(pieces)))
    while left:
        gains = {n: sum(weight for c, weight in missing.items() if _says(told[n], c)) for n in left}
        best = max(left, key=lambda n: gains[n])  # the first of equals
        if chosen and gains[best] < 2:  # one word alone is no reason
            kept = [texts[n] for n in sorted(chosen)]
            if len(faults(question, answer, kept)) <= len(least):
                break
            best = max(left, key=lambda n: len(told[n].stems & asked.stems))
        chosen.append(best)
        left.remove(best)
        missing = {c: weight for c, weight in missing.items() if not _says(told[best], c)}
    spans = _joined(span.text, [pieces[n] for n in sorted(chosen)], max_tokens)
    return tuple(_part(span, start, end) for start, end in spans)


def _pieces(text: str, max_tokens: int) -> Iterator[tuple[int, int]]:
    """The text's sentences in characters; a long one in lines, and a long line in words."""
    whole = [(sentence.start, sentence.end) for sentence in sentences(text)]
    for start, end in whole or [(0, len(text))]:
        if count(text[start:end]) <= max_tokens:
            yield start, end
            continue
        for line in re.finditer(r"[^\n]*\S[^\n]*", text[start:end]):
            yield from _cut(text, start + line.start(), start + line.end(), max_tokens)


def _cut(text: str, start: int, end: int, max_tokens: int) -> Iterator[tuple[int, int]]:
    words = [(start + m.start(), start + m.end()) for m in re.finditer(r"\S+", text[start:end])]
    first, last = words[0]
    for begin, finish in words[1:]:
        if count(text[first:finish]) > max_tokens:
            yield first, last
            first = begin
        last = finish
    yield first, last


def _joined(text: str, spans: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Spans with nothing between them as one, as long as that is short enough."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if (
            joined
            and not text[joined[-1][1] : start].strip()
            and count(text[joined[-1][0] : end]) <= most
        ):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _part(span: Evidence, start: int, end: int) -> Evidence:
    first = span.start + len(span.text[:start].encode())
    text = span.text[start:end]
    return span.model_copy(update={"start": first, "end": first + len(text.encode()), "text": text})


def _claims(answer: "Reading") -> dict[tuple[str, str], int]:
    """What has to be supported, by its sort, with what it counts."""
    claims = {("word", said): 1 for said in sorted(_alike(answer.stems - _GLUE_STEMS))}
    claims |= {("number", number.value): ITEM_WEIGHT for number in answer.numbers}
    claims |= {("name", name.lower()): ITEM_WEIGHT for name in answer.names}
    return claims | {("code", code): ITEM_WEIGHT for code in answer.code}


def _says(told: "Reading", claim: tuple[str, str]) -> bool:
    sort, what = claim
    if sort == "word":
        return what in _alike(told.stems)
    if sort == "number":
        return what in {number.value for number in told.numbers}
    return what in told.words if sort == "name" else _stands(what, told.text)


# --- reading -----------------------------------------------------------------------------------


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
    def roots(self) -> set[str]:
        """What it adds to the stems of its text."""
        return {self.value, stem(self.said.lower()), *_stems(self.said.lower().split(" ")[-1])}

    @property
    def quantity(self) -> tuple[str, Decimal] | None:
        """Dimension and value in its smallest unit; None for what is no quantity."""
        if self.unit not in _UNITS or not re.fullmatch(r"-?\d+(\.\d+)?", self.value):
            return None
        dimension, size = _UNITS[self.unit]
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


@dataclass(frozen=True)
class _Case:
    question: Reading
    answer: Reading
    evidence: Reading
    context: Reading

    @functools.cached_property
    def aligned(self) -> list["Alignment"]:
        return list(_alignments(self.answer.sentences, self.evidence.sentences))


Alignment = tuple[Sentence, Sentence, Mapping[int, int]]
"""A sentence of the answer, one of the evidence, and which of its words stand where in that."""


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
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+|(?<=[A-Za-z])(?=\d)")
# Each is one word to the rules below, and looked for where its last words stand at all.
_PHRASES = [
    (hints.split(), re.compile(rf"(?i)\b(?:{pattern})(?!\w)"), f" {word} ")
    for hints, pattern, word in (
        (
            "least than minimum",
            "at least|no (?:less|fewer) than|not (?:less|fewer) than|a minimum of",
            "atleast",
        ),
        (
            "most than maximum up",
            "at most|no (?:more|longer|later) than|not more than|up to|a maximum of",
            "atmost",
        ),
        (
            "exceed than",
            "(?:must|may|can|could|should|will|do|does)? ?(?:not|never|cannot|n't) "
            "(?:exceed|be (?:larger|bigger|longer|more|greater|higher) than)",
            "atmost",
        ),
        (
            "not",
            "not only(?=.{1,90}\\bbut\\b)|not necessarily|why not|(?:whether )?or not|if not",
            "",
        ),
        ("matter", "no matter", ""),
        ("on", "(?:turn|switch)(?:s|es|ed|ing)? on|on by default", "switchon"),
        ("off", "(?:turn|switch)(?:s|es|ed|ing)? off|off by default", "switchoff"),
        ("than", "other than", "except"),
        ("cent", "per ?cent", "%"),
    )
]


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
    for hints, pattern, phrase in _PHRASES:
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
            starts = mark in _ENDS or mark in ':"“('
            if mark in _ENDS:
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
                for part in filter(None, _CAMEL.split(word)):
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
        if found.lower() not in _ABBREVIATED and found.strip("_"):
            yield found


def _number(digits: str, unit: str, following: str, said: str = "") -> Number:
    value = re.sub(r"[,_\u00a0\u202f]", "", digits).replace("−", "-")
    lower = unit.lower() or following.lower()
    known = lower if lower in _UNITS or (unit and lower in _ATTACHED) else ""
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
    if lower in STOPWORDS | _OPENERS or lower in NUMERALS or lower.endswith("ing"):
        return False
    plural = lower.endswith("s")
    return bool(_ACTS.fullmatch(following) or (not plural and _MAY_ACT.fullmatch(following)))


def _sentence(said: list[tuple[str, str]]) -> Sentence:
    words = tuple(word for word, _ in said)
    stems = tuple(_CLASSES.get(one, one) for _, one in said)
    negations = []
    for place, word in enumerate(words):
        if word in _NOT or word.endswith("n't"):
            end, num_words = place + 1, 0
            while end < len(words) and words[end] not in _SCOPE_ENDS and num_words < SCOPE:
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
        weak=frozenset(place for place, word in enumerate(words) if word in _WEAK),
        content=frozenset(stems) - {""},
        denied=frozenset(n for place, end in negations for n in range(place + 1, end)),
    )


# --- numbers -----------------------------------------------------------------------------------


def _numbers(case: _Case) -> Iterator[str]:
    for number in case.answer.numbers:
        if not _is_held(number, case):
            yield f"number {number.said} is not in the evidence"


def _is_held(number: Number, case: _Case) -> bool:
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


def _is_counted(number: Number, case: _Case) -> bool:
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


# --- names and identifiers ---------------------------------------------------------------------


def _names(case: _Case) -> Iterator[str]:
    words = case.evidence.words | case.question.words | case.context.words
    stems = case.evidence.stems | case.question.stems | case.context.stems
    for name in case.answer.names:
        lower = name.lower()
        if lower in words or stem(lower) in stems or lower.rstrip("s") in words:
            continue
        parts = [part.lower() for part in _CAMEL.split(name) if part]
        if len(parts) > 1 and all(part in words for part in parts):
            continue
        yield f"name {name} is not in the evidence"


def _code(case: _Case) -> Iterator[str]:
    known = (case.evidence.text, case.question.text, case.context.text)
    for code in case.answer.code:
        if any(_stands(code, text) for text in known):
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
    if any(_stands(piece, text) for text in texts):
        return True
    if not sign or not key or any(f"{key}=" in text for text in texts):
        return False
    return all(any(_stands(part, text) for text in texts) for part in (key, value))


_PLACE = re.compile(r"^(?:<.*>|\.{3}|…|[|&]+)$")


def _stands(code: str, text: str) -> bool:
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


# --- negations and opposites -------------------------------------------------------------------


def _negations(case: _Case) -> Iterator[str]:
    told = case.evidence.sentences
    yield from _agreed(case)
    for sentence in case.answer.sentences:
        for place, end in sentence.negations:
            if _answers(sentence) and place == 0:
                continue
            if sentence.words[place] == "unless" and "default" in case.evidence.words:
                continue
            head = _head(sentence, place, end)
            matches = [
                _is_even(sentence, head) == _is_even(other, match[head])
                for one, other, match in case.aligned
                if one is sentence and head in match
            ]
            ends = not _heads(sentence, place, end)
            if not (
                any(matches) if matches and not ends else _is_denied(sentence, place, end, case)
            ):
                yield f"negation “{sentence.words[place]}” is not in the evidence"
    for other in told:
        for place, end in other.negations:
            head = _head(other, place, end)
            matches = [
                _is_even(sentence, n) == _is_even(other, m)
                for sentence, one, match in case.aligned
                for n, m in match.items()
                if one is other and m == head
            ]
            if not all(matches) if matches else _is_asserted(other, place, end, case):
                yield f"negation “{other.words[place]}” of the evidence is lost"


def _answers(sentence: Sentence) -> bool:
    """Whether it begins as the answer to a yes-no question does."""
    return sentence.words[0] in ("yes", "no") and not (sentence.words[1:2] or (".",))[0].isalnum()


def _agreed(case: _Case) -> Iterator[str]:
    """Whether `Yes` or `No` is what the evidence says of the question."""
    first = case.answer.sentences[0] if case.answer.sentences else None
    if first is None or not _answers(first) or not case.question.sentences:
        return
    asked = case.question.sentences[0]
    content = [said for said in asked.stems if said]
    if asked.negations or not content:
        return
    for other in case.evidence.sentences:
        found = [said for said in content if said in other.content]
        if len(found) < YES_NO * len(content) or other.weak:
            continue
        denied = any(
            other.stems[head] in content
            for place, end in other.negations
            for head in _heads(other, place, end)
        )
        if any(_opposites(root) & set(other.roots) for root in asked.roots):
            continue
        if denied == (first.words[0] == "yes") and (denied or not other.negations):
            yield f"negation: “{first.words[0]}” is not what the evidence says"
            return


def _alignments(answer: Sequence[Sentence], evidence: Sequence[Sentence]) -> Iterator[Alignment]:
    """The sentences of the answer that repeat one of the evidence nearly word by word."""
    for sentence in answer:
        for other in evidence:
            least = REPEATED * len(sentence.content)
            if len(sentence.content & other.content) < least or not sentence.content:
                continue
            match = _match(sentence.words, other.words)
            if len(match) >= REPEATED * len(sentence.words):
                yield sentence, other, match


@functools.lru_cache(maxsize=1 << 10)
def _match(words: tuple[str, ...], others: tuple[str, ...]) -> dict[int, int]:
    found = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    return {block.a + n: block.b + n for block in found for n in range(block.size)}


def _head(sentence: Sentence, place: int, end: int) -> int:
    """The first word that a negation speaks of; the one before it, where it ends a clause."""
    inside = (n for n in range(place + 1, end) if sentence.words[n] not in _SMALL)
    return next(inside, place - 1)


def _is_even(sentence: Sentence, head: int) -> bool:
    """Whether it is denied not at all or twice."""
    return (
        sum(_head(sentence, *one) == head or one[0] < head < one[1] for one in sentence.negations)
        % 2
        == 0
    )


@dataclass(frozen=True)
class _Use:
    """A word in a sentence: what stands beside it, and whether it is denied."""

    beside: frozenset[str]
    denied: bool
    open: bool
    """Whether it may be read both ways: a word such as `except` is near."""

    def agrees(self, other: "_Use") -> float:
        """The share of the words beside both."""
        least = min(len(self.beside), len(other.beside))
        return len(self.beside & other.beside) / least if least else 1.0


def _heads(sentence: Sentence, place: int, end: int) -> list[int]:
    """The first places that a negation speaks of; among small words, where there are no others."""
    inside = range(place + 1, end)
    said = [n for n in inside if sentence.stems[n]]
    said = said or [n for n in inside if sentence.words[n] not in _SMALL]
    return said[:HEADS]


def _use(sentence: Sentence, place: int, beside: Sentence | None = None) -> _Use:
    """The use of a word; what `beside` denies in the same weak words leaves nothing open."""
    words = sentence.words
    before = [said for said in sentence.stems[:place] if said][-BESIDE:]
    after = [said for said in sentence.stems[place + 1 :] if said][:BESIDE]
    near = range(max(0, place - WEAK_REACH), min(len(words), place + WEAK_REACH + 1))
    weak = any(
        n in sentence.weak
        and n != place
        and not _MARKS & set(words[min(n, place) : max(n, place)])
        and not (beside and words[n] in beside.words)
        for n in near
    )
    # `needs no GPU` is `does not need a GPU`.
    reached = _NOBODY & set(words[place + 1 : place + 4])
    times = sum(start < place < end for start, end in sentence.negations)
    return _Use(frozenset([*before, *after]), times % 2 == 1, weak or bool(reached) or times > 1)


def _uses(one: Sentence, place: int, sentences: Sequence[Sentence]) -> Iterator[_Use]:
    """The uses of the word at the place in other sentences."""
    said = one.stems[place]
    for other in sentences:
        for n in range(len(other.words)):
            if other.stems[n] == said if said else other.words[n] == one.words[place]:
                yield _use(other, n, one)


def _is_denied(sentence: Sentence, place: int, end: int, case: _Case) -> bool:
    """Whether the evidence denies what the answer's negation at this place speaks of."""
    told = case.evidence.sentences
    heads = _heads(sentence, place, end)
    if not heads:  # `The others are not.`
        before = frozenset([said for said in sentence.stems[:place] if said][-1:])
        return any(before <= one.content and (one.negations or one.weak) for one in told)
    known = False
    for head in heads:
        contrary = _opposites(sentence.roots[head]) | {p + sentence.roots[head] for p in _PREFIXES}
        if contrary & case.evidence.stems:
            return True
        own = _use(sentence, head)
        uses = list(_uses(sentence, head, told))
        if uses:
            known = True
            best = max(use.agrees(own) for use in uses)
            if any((use.denied or use.open) and use.agrees(own) == best for use in uses):
                return True
    if known:
        return False
    # In words of its own: it may put differently what the rest of its clause does not repeat.
    first = max((n for n in range(place) if sentence.words[n] in _SCOPE_ENDS), default=-1)
    clause = {said for n in range(first + 1, end) if (said := sentence.stems[n])}
    clause -= {sentence.stems[n] for n in heads}
    best = max((len(clause & other.content) for other in told), default=0)
    if 2 * best < len(clause) or not clause:
        return True
    return any(
        (other.negations or other.weak) and len(clause & other.content) == best for other in told
    )


def _is_asserted(other: Sentence, place: int, end: int, case: _Case) -> bool:
    """Whether the answer asserts what the evidence's negation at this place denies."""
    asserted = False
    for head in _heads(other, place, end):
        denied = _use(other, head)
        for own in _uses(other, head, case.answer.sentences):
            alike = own.agrees(denied)
            if alike < ALIGNED:
                continue
            if own.denied or own.open:
                return False
            stated = (use for use in _uses(other, head, case.evidence.sentences) if not use.denied)
            if any(use.agrees(own) >= alike for use in stated):
                return False
            asserted = True
        contrary = _opposites(other.roots[head]) | {p + other.roots[head] for p in _PREFIXES}
        if any(contrary & set(one.roots) for one in case.answer.sentences):
            return False
    return asserted


def _opposed(case: _Case) -> Iterator[str]:
    """Words of the answer whose opposite the evidence uses of the same things."""
    for sentence in case.answer.sentences:
        for place, root in enumerate(sentence.roots):
            opposites = _opposites(root)
            if not opposites:
                continue
            if _is_exchanged(sentence, place, opposites, case):
                yield f"negation: the evidence has the opposite of “{sentence.words[place]}” here"
                continue
            if opposites & set(sentence.roots):
                continue
            own = _use(sentence, place)
            same = contrary = 0
            for other in case.evidence.sentences:
                for n, found in enumerate(other.roots):
                    if found == root or found in _companions(root):
                        same = max(same, 1 + len(own.beside & _use(other, n).beside))
                    elif found in opposites:
                        use = _use(other, n)
                        if use.denied == own.denied:
                            contrary = max(contrary, 1 + len(own.beside & use.beside))
            if contrary > same + (1 if same else MIN_BESIDE):
                yield f"negation: the evidence says the opposite of “{sentence.words[place]}”"


def _is_exchanged(sentence: Sentence, place: int, opposites: frozenset[str], case: _Case) -> bool:
    """Whether an opposite stands in its place in a sentence that the answer's repeats."""
    for one, other, match in case.aligned:
        if one is not sentence or place in match:
            continue
        before = max((m for n, m in match.items() if n < place), default=-1)
        after = min((m for n, m in match.items() if n > place), default=len(other.words))
        for m in range(before + 1, min(after, before + 1 + REACH)):
            even = _is_even(sentence, place) == _is_even(other, m)
            if other.roots[m] in opposites and even:
                return True
    return False


# --- words -------------------------------------------------------------------------------------


def _unsupported(case: _Case) -> Iterator[str]:
    held = {
        root for number in case.answer.numbers if _is_held(number, case) for root in number.roots
    }
    known = _alike(case.evidence.stems).union(*held)
    answer = _alike(case.answer.stems - _GLUE_STEMS)
    question = _alike(case.question.stems - _GLUE_STEMS)
    own = answer - question
    # `DeepSpeed` may be a name, `zero.stage` may not.
    asked = [code for code in case.question.code if not re.fullmatch(r"\W*\w?\W*|[A-Z]\w*", code)]
    text = case.evidence.text
    least = SUPPORT if not asked or any(_stands(code, text) for code in asked) else STRICT
    said = own if len(own) >= FEW_WORDS else answer
    if len(said & known) < least * len(said):
        yield f"little of it is in the evidence: {len(said & known)} of {len(said)} words"
    whole = answer | question
    if len(own) < FEW_WORDS and len(whole & known) < WHOLE_SUPPORT * len(whole):
        yield f"little of it is in the evidence: {len(whole & known)} of {len(whole)} words"


@functools.lru_cache(maxsize=1 << 13)
def _alike(stems: frozenset[str]) -> frozenset[str]:
    """The stems, with one for all that may stand for each other."""
    return frozenset(_CLASSES.get(said, said) for said in stems)


RULES: Mapping[str, Callable[[_Case], Iterator[str]]] = MappingProxyType(
    {
        "numbers": _numbers,
        "names": _names,
        "code": _code,
        "negations": _negations,
        "opposites": _opposed,
        "support": _unsupported,
    }
)
"""All that is checked, by name."""


# --- English -----------------------------------------------------------------------------------


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMERALS = {word: str(value) for value, word in enumerate(_NUMERALS.split())} | {"dozen": "12"}
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
_SIZES: tuple[tuple[str, dict[str, int]], ...] = (
    ("time", {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}),
    ("time", {"nanosecond": 1, "microsecond": 10**3, "millisecond": 10**6}),
    ("time", {"sec": 10**9, "second": 10**9, "min": 60 * 10**9, "minute": 60 * 10**9}),
    ("time", {"h": 3600 * 10**9, "hour": 3600 * 10**9, "day": 86_400 * 10**9}),
    ("time", {"week": 604_800 * 10**9}),
    ("months", {"month": 1, "year": 12}),
    ("bytes", {"byte": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}),
    ("bytes", {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}),
    ("bytes", {"kilobyte": 10**3, "megabyte": 10**6, "gigabyte": 10**9, "terabyte": 10**12}),
    ("share", {"%": 1}),
    ("length", {"mm": 1, "cm": 10, "km": 10**6, "metre": 1000, "meter": 1000}),
)
_UNITS = {unit: (name, size) for name, sizes in _SIZES for unit, size in sizes.items()}
_UNITS |= {unit + "s": size for unit, size in _UNITS.items() if len(unit) > 3}
_UNITS |= {"secs": _UNITS["sec"], "mins": _UNITS["min"], "hrs": _UNITS["h"]}
_ATTACHED = frozenset(["x", "k", "d", "m", "st", "nd", "rd", "th"])

_NOT = _listed(
    """
    not no never without neither nor none nothing nobody nowhere cannot unless
    """
)
_WEAK = _listed(
    """
    absent avoid avoids deny disable drop dropped drops empty except exclude excluded fail
    fails false few forbid free gone hardly ignore ignored impossible independent instead
    lack lacks leave leaves left little lose lost missing null off omit omitted only
    optional prevent prevents rarely rather refuse regardless reject removed seldom skip
    skipped stop too unable undefined unlike zero
    """
)
"""Words that deny without a negation, or that a negation may be put into."""
_NOBODY = _listed("no nothing none nobody nowhere")
_MARKS = frozenset(".!?;:|¶…,()")
_ENDS = frozenset(".!?|¶…")
_SCOPE_ENDS = frozenset(".!?;:|¶()—–…") | _listed(
    "but so because while although whereas that which who"
)
_SMALL = _listed("a an the of to in on at by for be is are was were been being it its")
_OPENERS = _listed(
    """
    another anything everyone everything neither nobody nor note nothing only otherwise
    someone something today yes
    """
)
"""Words that begin a sentence as a name may."""
_ABBREVIATED = _listed("e.g i.e a.m p.m u.s and/or either/or yes/no")
_PREFIXES = ("un", "in", "im", "non", "dis", "ir")

_ENDINGS = """
    izations isations ization isation fulness ousness iveness ations ating ation ators
    ition ments ances ences ator ated ates ment ness ings ions ance ence able ible edly
    ally ives ate ing ies ied ers ors ion ive als ed es er or al ly s e y
"""
_SUFFIXES = tuple(_ENDINGS.split())
"""In the order in which they are tried."""
_SHORT = _listed("ing ings ed es s e y ies ied er ers")
_FORMS = """
    choose: chose chosen; write: wrote written; run: ran; begin: began begun; keep: kept;
    hold: held; build: built; make: made; find: found; send: sent; take: took taken; give:
    gave given; see: saw seen; stand: stood; tell: told; say: said; leave: left; lose: lost;
    go: went gone goes; break: broke broken; throw: threw thrown; hide: hidden; know: known
    knew; show: shown; draw: drawn drew; spend: spent; mean: meant; bring: brought; buy:
    bought; catch: caught; read: read; lead: led; index: indices indexes indexed; child:
    children; use: used uses using; user: user users; day: daily; week: weekly; month:
    monthly; year: yearly; hour: hourly; pay: paid; forbid: forbidden; lay: laid;
    data: data; lie: lies lying
"""
_IRREGULAR = {
    form: word.strip()
    for word, forms in (row.split(":") for row in _FORMS.split(";"))
    for form in forms.split()
}


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """What inflected and derived forms of an English word share; `word` is in lower case."""
    word = _IRREGULAR.get(word, word)
    if len(word) <= 3 or not word.isalpha():
        return word
    for _ in range(3):
        for suffix in _SUFFIXES:
            head = word.removesuffix(suffix)
            least = 3 if suffix in _SHORT else 4
            if head != word and len(head) >= least and re.search("[aeiouy]", head):
                if suffix == "s" and head.endswith(("s", "u", "i")):
                    continue  # `class`, `status` and `basis` are no plurals
                word = head
                break
        else:
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou":
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") else word


_ALIKE = (
    "use employ utilize apply pass put",
    "run execute launch start begin",
    "stop end finish terminate halt",
    "remove delete discard revoke",
    "keep retain store save hold contain",
    "large big huge",
    "allow permit",
    "need require necessary must",
    "make create build generate produce",
    "show display print",
    "change modify alter edit adjust",
    "increase raise",
    "lower reduce decrease cut",
    "choose select pick",
    "get fetch retrieve obtain",
    "find locate look",
    "spread distribute share divide",
    "rarely seldom hardly",
    "several multiple many various",
    "folder directory",
    "setting configuration config option configure",
    "ignore skip omit leave",
    "wrong incorrect error fault",
    "entire whole complete full",
    "simultaneous concurrent once together parallel",
    "fast quick",
    "limit restrict cap maximum",
    "every each all any",
    "infinite unlimited unbounded",
    "name specify",
    "answer reply respond response",
    "tell say state describe",
    "return give yield",
    "reach access",
    "part section",
    "possible able can",
    "equal identical same",
    "seed start",
    "type kind sort",
    "give issue",
    "new recent",
    "support offer provide include",
    "mean denote",
    "exceed above over beyond",
    "destroy delete",
    "own belong",
)
"""Words, of which one may stand for the other."""
_CLASSES = {stem(word): stem(row.split()[0]) for row in reversed(_ALIKE) for word in row.split()}
_GLUE = _listed(
    """
    also another around automatically basically be become behave case consider currently
    else ensure especially etc example generally get go going however in just keep like mean
    meant merely normally note order otherwise please point purpose really simply since so
    still such therefore thing though thus together treat usually via want way whether yes
    """
)
"""Words that an answer may add to what the evidence says."""
_GLUE_STEMS = frozenset(map(stem, {*_GLUE, *_NOT, *NUMERALS, "only"}))

_PAIRS = (
    ("enable enabled activate", "disable disabled deactivate"),
    ("allow permit accept", "forbid deny prohibit refuse reject disallow"),
    ("increase raise grow higher", "decrease reduce lower shrink"),
    ("before earlier", "after later afterwards"),
    ("atleast minimum min smallest lowest shortest least", "atmost maximum max largest longest"),
    ("highest", "lowest"),
    ("always", "never"),
    ("include included including", "exclude excluded excluding"),
    ("switchon", "switchoff"),
    ("true", "false"),
    ("succeed success successful pass", "fail failure"),
    ("above over exceed", "below under"),
    ("upper", "lower"),
    ("faster quicker", "slower"),
    ("longer", "shorter"),
    ("more", "less fewer"),
    ("better", "worse"),
    ("best", "worst"),
    ("first", "last"),
    ("local locally", "remote remotely"),
    ("public", "private"),
    ("required mandatory", "optional"),
    ("internal", "external"),
    ("ascending", "descending"),
    ("left", "right"),
    ("inside", "outside"),
    ("mutable", "immutable"),
    ("synchronous", "asynchronous"),
    ("automatic automatically", "manual manually"),
    ("visible show", "hidden hide"),
    ("import", "export"),
    ("upload", "download"),
    ("encode", "decode"),
    ("encrypt", "decrypt"),
    ("lock", "unlock"),
    ("add", "remove delete"),
    ("start begin", "stop end"),
    ("open", "close closed"),
    ("newest latest", "oldest"),
    ("next", "previous"),
    ("read", "write"),
    ("input", "output"),
    ("send", "receive"),
    ("online", "offline"),
    ("backward backwards", "forward forwards"),
    ("positive", "negative"),
    ("full", "empty"),
    ("seldom rarely", "often usually"),
)
"""Words, of which one does not stand for the other."""


def _sides(of: Callable[[int], int]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for pair in _PAIRS:
        sides = [frozenset(stem(word) for word in side.split()) for side in pair]
        for place, side in enumerate(sides):
            for word in side:
                found[word] = found.get(word, frozenset()) | sides[of(place)]
    return found


_OPPOSITE = _sides(lambda place: 1 - place)
_SAME = _sides(lambda place: place)


def _opposites(said: str) -> frozenset[str]:
    return _OPPOSITE.get(said, frozenset())


def _companions(said: str) -> frozenset[str]:
    return _SAME.get(said, frozenset())
