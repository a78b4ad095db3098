"""Question/answer rows to those worth training on, and a counted reason for every other one.

Each function returns the kept rows in their order and a reject for each of the others. Ids are
unique among the rows.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash, RMinHashLSH  # type: ignore[import-untyped]

from stages.answer.lexical import STOPWORDS
from stages.core.records import Example, Reject, identify
from stages.core.shingles import NUM_BANDS, NUM_PERMUTATIONS, jaccard
from stages.synthesize import grounding

SHINGLE_WORDS = 2
"""Rows are short: pairs of words tell them apart where those of five would rarely meet."""
BLOCK = 1024
"""Rows whose embeddings are compared at a time."""

Embed = Callable[[Sequence[str]], NDArray[np.floating]]
"""Texts to one vector each, of any length but zero: (texts, dimensions)."""


class Row(Protocol):
    """What curation reads of an example, a fact or anything else."""

    @property
    def id(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def page(self) -> str:
        """The document that it is about; the first one of many."""

    @property
    def earlier(self) -> Sequence[str]:
        """The questions that were asked before it in the same dialogue."""


R = TypeVar("R", bound=Row)
Curated = tuple[list[R], list[Reject]]


@dataclass(frozen=True)
class Pair:
    """The plainest row."""

    id: str
    question: str
    answer: str
    kind: str
    page: str
    earlier: tuple[str, ...] = ()


def pair(example: Example) -> Pair:
    """The example as a row, under its own id."""
    asked = [message.content for message in example.messages if message.role == "user"]
    return Pair(
        id=example.id,
        question=example.question,
        answer=example.answer,
        kind=example.kind,
        page=example.evidence[0].document_id if example.evidence else "",
        earlier=tuple(asked[:-1]),
    )


# --- rows by themselves ------------------------------------------------------------------------


def sift(rows: Sequence[R], min_answer_words: int) -> Curated[R]:
    """Without the rows that say too little or do not stand on their own."""
    found = {row.id: flaw(row, min_answer_words) for row in rows}
    return _divided(rows, {id: reason for id, reason in found.items() if reason is not None})


def flaw(row: Row, min_answer_words: int) -> str | None:
    """The first reason against the row by itself, in the order in which they are told."""
    answerable = row.kind != "unanswerable"  # else a refusal is what is right
    if answerable and _REFUSAL.search(row.answer):
        return "refusal"
    if _BOILERPLATE.search(row.answer) or _BOILERPLATE.search(row.question):
        return "boilerplate"
    if leans(row.question, bool(row.earlier)):
        return "question leans on a text that is not there"
    if answerable and _repeats(row):
        return "answer repeats the question"
    if answerable and _is_short(row.answer, min_answer_words):
        return "answer too short"
    return None


_PART = r"(?:text|passage|section|chapter|chunk|excerpt|paragraph|snippet|context|document|article)"
_SAYS = r"(?:says?|said|mentions?|describes?|states?|suggests?|explains?|provides?|tells?|lists?)"
_LEANING = re.compile(
    rf"\b(?:the|this|that) (?:given |provided |above |following |same )?{_PART}\b,? "
    rf"(?:(?:does not |do not )?{_SAYS}|above|below)\b"
    rf"|\b(?:does|did|do) (?:the|this) {_PART} {_SAYS}\b"
    rf"|\b(?:according to|based on|as per) (?:the|this|that)(?: \w+)? {_PART}\b(?! of\b| that\b)"
    rf"|\b(?:in|from|of|by|with) (?:this|the (?:given|provided|above|following|present)) {_PART}\b"
    rf"|\b(?:in|from) the (?:passage|excerpt|snippet|chunk)\b(?! of\b| that\b| which\b)"
    rf"|\bthis (?:{_PART}|page|manual|guide|tutorial|table|list|example|code|figure|topic)\b"
    r"|\b(?:the|these|those) (?:following|above)\b|\bof the following\b"
    r"|\b(?:the|this|that) (?:example|code|table|list|figure|command|snippet|sentence|words?) "
    r"(?:above|below|shown|given|here)\b"
    r"|\b(?:mentioned|described|shown|given|listed|stated|discussed|provided|explained|defined) "
    r"(?:above|below|here|earlier|previously|in (?:the|this) (?:text|passage|context|document))\b"
    rf"|^(?:in|from) the {_PART}, |\b(?:author|speaker|writer)s? {_SAYS}\b"
    r"|\b(?:as|see) (?:above|below)\b|\babove-mentioned\b|\baforementioned\b",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\bthis (?:page|manual|guide) [“\"'`«]", re.IGNORECASE)
_REFERS = re.compile(
    r"\b(?P<word>it|its|itself|they|them|their|theirs|these|those|he|him|his|she|her|this|that)\b",
    re.IGNORECASE,
)
# `It takes an hour to …`, `I want it to …` and `the way that …` refer to nothing before.
_EMPTY = re.compile(
    r"\b(?:(?:is|was|does|will|can|would|could|has|how (?:long|much|often)\b.*) )?it "
    r"(?:take|takes|took|cost|costs|mean|means|matter|matters|help|helps|work out|make sense|"
    r"possible|necessary|safe|better|best|worth|ok|okay|allowed|advisable|wise|important|needed|"
    r"enough|recommended|common|normal|true|likely|required|legal|sufficient)\b.*?"
    r"\b(?:to|that|if|when|for|whether|\w+ing)\b"
    r"|\b(?:is|are) there\b",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r"that (?:is|are|can|was|have|has)\b", re.IGNORECASE)
_SMALL = frozenset(("a", "an", "the", "is", "are", "it", "its", "this", "that", "s"))
_COMMON = """
    do does did is are was were be can could should will would may might must have has had use used
    using work works worked mean means meant run runs change changes set sets start starts stop
    stops install installs configure enable disable find make makes get gets happen happens need
    needs create say says look looks call called define defined explain describe tell show give know
    come comes go goes store stored keep kept handle fix solve read write open close delete remove
    add update check test build like want please affect apply differ compare long much many often
    default possible main
"""
_VERBS = frozenset(_COMMON.split())
"""Words before a pronoun that it cannot refer to."""


def leans(question: str, has_antecedent: bool) -> bool:
    """Whether it can be understood only beside a text, or after words that nobody said."""
    if _LEANING.search(question) and not _NAMED.search(question):
        return True
    if has_antecedent:
        return False
    # `Tell me this: …` says itself what it refers to.
    body = question.split(":", 1)[1] if re.match(r"[^:]*\bthis\b[^:]*: ", question) else question
    for match in _REFERS.finditer(body):
        before = body[: match.start()]
        if _is_named(before):
            return False
        after = body[match.end() :]
        word = match["word"].lower()
        if word == "it" and _EMPTY.search(body):
            continue
        if word == "that" and _RELATIVE.match(body, match.start()):
            continue
        if word in {"this", "that", "these", "those"} and re.match(r" [`“\"'A-Z]", after):
            continue
        return True
    return False


def _is_named(text: str) -> bool:
    """Whether anything stands there that a pronoun may refer to."""
    if re.search(r"[`“\"«]|\b[A-Z]\w*[A-Z]|\d|\w[_.]\w", text):
        return True
    words = re.findall(r"[\w'’-]+", text)
    if len(words) == 2 and words[0].lower() in {"who", "what", "which"}:
        return False  # `Who maintains it?`
    named = [word for word in words[1:] if word[0].isupper() and word != "I"]
    said = [w for w in words if w.lower() not in STOPWORDS and w.lower() not in _VERBS]
    return bool(named or said)


_BOILERPLATE = re.compile(
    r"\bclick (?:here|below|the (?:link|button) below)\b|\ball rights reserved\b"
    r"|(?:©|\(c\)|\bcopyright\b) ?(?:©|\(c\))? ?(?:19|20)\d\d"
    r"|\b(?:we|(?:this|our) (?:web ?)?site) uses? cookies\b|\baccept (?:all|our) cookies\b"
    r"|\bcookie (?:policy|notice|consent|preferences|settings)\b"
    r"|\b(?:subscribe|sign up) (?:to|for) (?:our|the) (?:newsletter|mailing list)\b"
    r"|\bskip to (?:main )?content\b|\bback to top\b|\bedit (?:this page|on github)\b"
    r"|\blast (?:updated|modified)(?: on|:) ?\w|\b(?:follow|share) (?:us |this )?on "
    r"(?:twitter|x|facebook|linkedin|github)\b|\bpowered by sphinx\b|\bread more\s*(?:»|…|\.\.\.|$)"
    r"|\bterms (?:of (?:service|use)|and conditions) apply\b|\blorem ipsum\b"
    r"|\bprevious page\b.*\bnext page\b",
    re.IGNORECASE,
)
_GIVEN = r"(?:text|passage|context|chunk|excerpt|document(?:s|ation)?|information|section|source)"
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|assistant)\b"
    r"|^(?:unfortunately,? |sorry,? |apologies,? |i(?:['’]m| am) (?:sorry|afraid)\b)"
    r"|\bi (?:cannot|can['’]?t|can not|could not|couldn['’]t|am (?:not able|unable) to|(?:do not|"
    r"don['’]t) (?:have|know|see)) (?:answer|help|assist|provide|find|determine|access|any|enough|"
    r"say|tell|see|the answer|information|fulfil|comply|do that|what|how|why)\b"
    rf"|\b(?:the|this) (?:given |provided )?{_GIVEN} (?:does|do)(?: not|n['’]t) "
    r"(?:say|mention|provide|specify|contain|state|include|give|explain|indicate)\b"
    rf"|\b(?:is|are)(?: not|n['’]t) (?:mentioned|specified|provided|stated|given|explained|covered)"
    rf" (?:in|by) (?:the|this) (?:given |provided )?{_GIVEN}\b"
    rf"|\bno (?:such )?information (?:is|was|about)\b|\bcannot be (?:determined|answered)\b"
    r"|^(?:n/?a|unknown|not (?:specified|available|mentioned|provided|applicable)|none given)\W*$",
    re.IGNORECASE,
)


def _is_short(answer: str, least: int) -> bool:
    """Whether it has few words, none of which is a number, a name or an identifier."""
    said = grounding.read(answer)
    return len(re.findall(r"\w+", answer)) < least and not (said.numbers or said.names or said.code)


def _repeats(row: Row) -> bool:
    """Whether the answer adds no word to the question, where that asks for one."""
    if re.match(r"\W*(?:yes|no|true|false)\b", row.answer, re.IGNORECASE):
        return False
    if re.search(r"\b(?:or|which|either)\b", row.question, re.IGNORECASE):
        return False
    asked, said = grounding.read(row.question), grounding.read(row.answer)
    if any(sentence.negations for sentence in said.sentences):
        return False
    code = {found.removesuffix("()") for found in said.code}
    told = {number.value for number in said.numbers} - {number.value for number in asked.numbers}
    code -= {found.removesuffix("()") for found in asked.code}
    return said.words - _SMALL <= asked.words and not told and not code


# --- rows beside each other --------------------------------------------------------------------


def exact(rows: Sequence[R]) -> Curated[R]:
    """Without the rows whose question and answer stand before, whatever their letters and marks."""
    seen: dict[Hashable, str] = {}
    reasons = {}
    for row in rows:
        said = tuple(map(_words, (*row.earlier, row.question, row.answer)))
        first = seen.setdefault(said, row.id)
        if first != row.id:
            reasons[row.id] = "exact duplicate"
    return _divided(rows, reasons)


def near(rows: Sequence[R], seed: int, threshold: float) -> Curated[R]:
    """Without those like a kept one before: MinHash finds the pairs, the Jaccard index decides.

    Rows with other numbers, names or identifiers are never alike: the default of one key is not
    that of another, however much the words agree.
    """
    shingles = [_shingles(row) for row in rows]
    sketches = RMinHash.from_token_sets([sorted(s) for s in shingles], NUM_PERMUTATIONS, seed)
    kept = RMinHashLSH(threshold, NUM_PERMUTATIONS, NUM_BANDS)
    items = [_items(row) for row in rows]
    reasons = {}
    for place, (row, sketch) in enumerate(zip(rows, sketches, strict=True)):
        alike = (
            other
            for other in kept.query(sketch)
            if items[other] == items[place]
            and jaccard(shingles[place], shingles[other]) >= threshold
        )
        if any(True for _ in alike):
            reasons[row.id] = "near duplicate"
        else:
            kept.insert(place, sketch)
    return _divided(rows, reasons)


def semantic(rows: Sequence[R], embed: Embed, threshold: float) -> Curated[R]:
    """Without those whose vector has at least this cosine with that of a kept one before.

    As in `near`, rows with other numbers, names or identifiers are never alike.
    """
    if not rows:
        return [], []
    vectors = np.asarray(embed([f"{row.question}\n{row.answer}" for row in rows]), np.float32)
    assert len(vectors) == len(rows), "one vector for each text"
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    items = [_items(row) for row in rows]
    left_out = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), BLOCK):
        block = vectors[start : start + BLOCK]
        cosines = block @ vectors[: start + len(block)].T  # (block, rows so far)
        for n, others in enumerate(cosines):
            place = start + n
            alike = np.flatnonzero(others[:place] >= threshold)
            left_out[place] = any(
                not left_out[other] and items[other] == items[place] for other in alike.tolist()
            )
    return _divided(
        rows, {row.id: "semantic duplicate" for row, out in zip(rows, left_out, strict=True) if out}
    )


def balance(rows: Sequence[R], seed: int, most: int | None) -> Curated[R]:
    """At most so many of a page. A smaller number chooses among those of a larger one."""
    by_page: dict[str, list[R]] = {}
    for row in rows:
        by_page.setdefault(row.page, []).append(row)
    reasons: dict[str, str] = {}
    for page, of_page in by_page.items() if most is not None else ():
        # By what is asked and not by the id, which changes with every call of a teacher.
        ranked = sorted(
            of_page, key=lambda row: identify(seed, page, *row.earlier, row.question, row.answer)
        )
        reasons |= {row.id: "over the maximum of its page" for row in ranked[most:]}
    return _divided(rows, reasons)


def _divided(rows: Sequence[R], reasons: Mapping[str, str]) -> Curated[R]:
    assert len({row.id for row in rows}) == len(rows), "an id stands twice"
    kept = [row for row in rows if row.id not in reasons]
    rejects = [
        Reject(id=row.id, reason=reasons[row.id], detail=row.question)
        for row in rows
        if row.id in reasons
    ]
    assert len(rows) == len(kept) + len(rejects)
    return kept, rejects


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _shingles(row: Row) -> frozenset[str]:
    """Single words and pairs of them: an exchanged word changes three of them."""
    words = _words(" ".join((*row.earlier, row.question, row.answer))).split()
    last = len(words) - SHINGLE_WORDS + 1
    return frozenset([*words, *(" ".join(words[n : n + SHINGLE_WORDS]) for n in range(last)), ""])


def _items(row: Row) -> Hashable:
    """What makes two rows different, however alike their words are."""
    read = grounding.read(f"{row.question}\n\n{row.answer}")
    return (
        frozenset(number.value for number in read.numbers),
        frozenset(name.lower() for name in read.names),
        frozenset(code.removesuffix("()") for code in read.code),
    )
