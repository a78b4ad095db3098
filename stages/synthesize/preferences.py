"""Right answers → pairs of the right answer and one that is wrong in one way."""

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
    by_kind: dict[str, list[str]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, []).append(example.answer)
    for example in examples:
        wrong = [
            *_other_number(example.answer),
            *_opposite(example.answer),
            *_another(example, by_kind[example.kind], seed),
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


def _another(example: Example, answers: Sequence[str], seed: int) -> list[str]:
    others = [answer for answer in answers if answer != example.answer]
    return [min(others, key=lambda answer: identify(seed, example.id, answer))] if others else []
