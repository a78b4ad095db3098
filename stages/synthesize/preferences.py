"""Right answers → pairs of the right answer and one that is wrong in one way."""

import bisect
import re
from collections.abc import Sequence

from stages.core.records import Example, Preference, identify

_NUMBER = re.compile(r"\d+")
_IS = re.compile(r"\b(is|are|was|were|can|does|do|must|should|will)\b(?! not)")
_NOT = re.compile(r"\b(is|are|was|were|can|does|do|must|should|will) not\b|\b(can)not\b")


def pairs(examples: Sequence[Example], seed: int) -> list[Preference]:
    """For each example one wrong answer: another number, the opposite, or another fact's answer.

    Which of those that go is chosen by the example's id, so that an edit elsewhere changes none.
    """
    made = []
    by_kind: dict[str, set[str]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, set()).add(example.answer)
    rings = {
        kind: sorted((identify(seed, answer), answer) for answer in answers)
        for kind, answers in by_kind.items()
    }
    for example in examples:
        wrong = [
            *_other_number(example.answer),
            *_opposite(example.answer),
            *_another(example, rings[example.kind], seed),
        ]
        if wrong:
            said = min(wrong, key=lambda answer: identify(seed, example.id, answer))
            made.append(Preference(example_id=example.id, chosen=example.answer, rejected=said))
    return made


def _other_number(answer: str) -> list[str]:
    found = _NUMBER.search(answer)
    if not found:
        return []
    return [f"{answer[: found.start()]}{int(found[0]) + 1}{answer[found.end() :]}"]


def _opposite(answer: str) -> list[str]:
    if found := _NOT.search(answer):
        return [answer[: found.start()] + (found[1] or found[2]) + answer[found.end() :]]
    if found := _IS.search(answer):
        return [f"{answer[: found.end()]} not{answer[found.end() :]}"]
    return []


def _another(example: Example, ring: Sequence[tuple[str, str]], seed: int) -> list[str]:
    """The answer whose hash comes next after the example's: an edit elsewhere seldom changes it."""
    at = bisect.bisect(ring, (identify(seed, example.id), ""))
    following = [answer for _, answer in (*ring[at : at + 2], *ring[:2])]
    return [answer for answer in following if answer != example.answer][:1]
