"""What an answer denies that its evidence asserts, and the other way round."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stages.synthesize.grounding.case import Case
from stages.synthesize.grounding.english import (
    CONDITIONS,
    MARKS,
    NOBODY,
    PREFIXES,
    SCOPE_ENDS,
    SMALL,
    TWICE,
    companions,
    opposites,
    stem,
)
from stages.synthesize.grounding.reading import Sentence

YES_NO = 0.8
"""Share of a yes-no question's words in a sentence from which that sentence answers it."""
ALIGNED = 0.5
"""Share of a sentence's words in another one from which both speak of the same thing."""
REACH = 6
"""Words between two others, at most, that have changed places with one."""
WEAK_REACH = 5
"""Words on either side that a word such as `except` may deny."""
HEADS = 3
"""Words of what a negation speaks of that are looked for in the other text."""
NEAR = 3
"""Words between two opposites, at most, that are named together, as in `before and after`."""
BESIDE = 4
"""Words that say something, on either side of a word, by which its uses are told apart."""
MIN_BESIDE = 2
"""Words that two opposites have to stand beside in common, where none is used in its sense."""


def negations(case: Case) -> Iterator[str]:
    yield from _agreed(case)
    yield from _added(case)
    yield from _lost(case)


def _added(case: Case) -> Iterator[str]:
    """Negations of the answer that the evidence has not."""
    twice = any(map(_denies_twice, case.evidence.sentences))
    for sentence in case.answer.sentences:
        if _denies_twice(sentence) and not twice:
            yield "negation: the answer denies twice what the evidence does not"
            continue
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
            repeated = matches and _heads(sentence, place, end)
            if not (any(matches) if repeated else _is_denied(sentence, place, end, case)):
                yield f"negation “{sentence.words[place]}” is not in the evidence"


def _lost(case: Case) -> Iterator[str]:
    """Negations of the evidence without which the answer says the same."""
    for other in case.evidence.sentences:
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


def _denies_twice(sentence: Sentence) -> bool:
    """Whether a negation speaks of another in its clause, as in `not no` or `not unable`."""
    words = sentence.words
    inside = [words[place + 1 : end] for place, end in sentence.negations]
    return any(not CONDITIONS & set(inner) and TWICE & set(inner) for inner in inside)


def _answers(sentence: Sentence) -> bool:
    """Whether it begins as the answer to a yes-no question does."""
    return sentence.words[0] in ("yes", "no") and not (sentence.words[1:2] or (".",))[0].isalnum()


def _agreed(case: Case) -> Iterator[str]:
    """Whether `Yes` or `No` is what the evidence says of the question."""
    first = case.answer.sentences[0] if case.answer.sentences else None
    if first is None or not _answers(first) or not case.question.sentences:
        return
    asked = case.question.sentences[0]
    content = [said for said in asked.stems if said]
    if asked.negations or not content:
        return
    for other in case.evidence.sentences:
        same = [said for said in content if said in other.content]
        against = [
            opposites(root) & set(other.roots)
            for root in asked.roots
            if root not in other.roots and opposites(root) & set(other.roots)
        ]
        if len(same) + len(against) < YES_NO * len(content):
            continue
        turned = frozenset().union(*against)
        if any(
            other.words[n] not in asked.words and other.roots[n] not in turned for n in other.weak
        ):
            continue
        denied = any(
            other.stems[head] in content
            for place, end in other.negations
            for head in _heads(other, place, end)
        )
        if other.negations and not denied:
            continue
        if (denied + len(against)) % 2 == (first.words[0] == "yes"):
            yield f"negation: “{first.words[0]}” is not what the evidence says"
            return


def _head(sentence: Sentence, place: int, end: int) -> int:
    """The first word that a negation speaks of; the one before it, where it ends a clause."""
    inside = (n for n in range(place + 1, end) if sentence.words[n] not in SMALL)
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
    said = said or [n for n in inside if sentence.words[n] not in SMALL]
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
        and not MARKS & set(words[min(n, place) : max(n, place)])
        and not (beside and words[n] in beside.words)
        for n in near
    )
    # `needs no GPU` is `does not need a GPU`.
    reached = NOBODY & set(words[place + 1 : place + 4])
    times = sum(start < place < end for start, end in sentence.negations)
    return _Use(frozenset([*before, *after]), times % 2 == 1, weak or bool(reached) or times > 1)


def _uses(one: Sentence, place: int, sentences: Sequence[Sentence]) -> Iterator[_Use]:
    """The uses of the word at the place, or of an opposite of it, in other sentences."""
    contrary = opposites(one.roots[place])
    said = one.stems[place]
    for other in sentences:
        for n, word in enumerate(other.words):
            if other.stems[n] == said if said else word == one.words[place]:
                yield _use(other, n, one)
            elif other.roots[n] in contrary or _is_prefixed(one.words[place], word):
                use = _use(other, n, one)
                yield replace(use, denied=not use.denied)


def _is_prefixed(word: str, other: str) -> bool:
    """Whether one is the other with `un-` or the like before it."""
    short, long = sorted((word, other), key=len)
    return long.startswith(PREFIXES) and any(
        len(short) > 3 and long.startswith(p) and stem(long.removeprefix(p)) == stem(short)
        for p in PREFIXES
    )


def _is_denied(sentence: Sentence, place: int, end: int, case: Case) -> bool:
    """Whether the evidence denies what the answer's negation at this place speaks of."""
    told = case.evidence.sentences
    heads = _heads(sentence, place, end)
    if not heads:  # `The others are not.`
        before = frozenset([said for said in sentence.stems[:place] if said][-1:])
        return any(before <= one.content and (one.negations or one.weak) for one in told)
    known = False
    for head in heads:
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
    first = max((n for n in range(place) if sentence.words[n] in SCOPE_ENDS), default=-1)
    clause = {said for n in range(first + 1, end) if (said := sentence.stems[n])}
    clause -= {sentence.stems[n] for n in heads}
    best = max((len(clause & other.content) for other in told), default=0)
    if 2 * best < len(clause) or not clause:
        return True
    return any(
        (other.negations or other.weak) and len(clause & other.content) == best for other in told
    )


def _is_asserted(other: Sentence, place: int, end: int, case: Case) -> bool:
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
    return asserted


def opposed(case: Case) -> Iterator[str]:
    """Words of the answer whose opposite the evidence uses of the same things."""
    for sentence in case.answer.sentences:
        for place, root in enumerate(sentence.roots):
            contrary = opposites(root)
            if not contrary:
                continue
            if _is_exchanged(sentence, place, contrary, case):
                yield f"negation: the evidence has the opposite of “{sentence.words[place]}” here"
                continue
            if contrary & set(sentence.roots[max(0, place - NEAR) : place + NEAR + 1]):
                continue
            own = _use(sentence, place)
            same = other_way = 0
            for other in case.evidence.sentences:
                for n, found in enumerate(other.roots):
                    if found == root or found in companions(root):
                        same = max(same, 1 + len(own.beside & _use(other, n).beside))
                    elif found in contrary and root not in other.roots:
                        use = _use(other, n)
                        if use.denied == own.denied:
                            other_way = max(other_way, 1 + len(own.beside & use.beside))
            if other_way > same + (1 if same else MIN_BESIDE):
                yield f"negation: the evidence says the opposite of “{sentence.words[place]}”"


def _is_exchanged(sentence: Sentence, place: int, contrary: frozenset[str], case: Case) -> bool:
    """Whether an opposite stands in its place in a sentence that the answer's repeats."""
    for one, other, match in case.aligned:
        if one is not sentence or place in match:
            continue
        before = max((m for n, m in match.items() if n < place), default=-1)
        after = min((m for n, m in match.items() if n > place), default=len(other.words))
        for m in range(before + 1, min(after, before + 1 + REACH)):
            even = _is_even(sentence, place) == _is_even(other, m)
            if other.roots[m] in contrary and even:
                return True
    return False
