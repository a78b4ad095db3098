"""Facts to examples: which wordings are trained and which are tested, and none said twice."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from stages.answer.prompt import NOT_FOUND, closed_book
from stages.core.records import Example, Message, Partition, Record, Reject, Track, identify
from stages.synthesize.facts import Fact, FactKind
from stages.synthesize.tasks import FORMS


class Review(Record):
    """A person's decision on an example."""

    example_id: str
    decision: Literal["accept", "edit", "reject"]
    answer: str | None = None
    """The right answer, with an edit."""

    @model_validator(mode="after")
    def _edit_has_an_answer(self) -> Self:
        if (self.decision == "edit") != bool(self.answer):
            raise PydanticCustomError("answer", "an edit needs an answer, and nothing else has one")
        return self


@dataclass(frozen=True)
class Question:
    """A fact in one of its forms: a candidate for an example."""

    fact: Fact
    text: str
    track: Track | None

    @property
    def key(self) -> str:
        """What is asked, whatever its letters and marks, with the turns before it."""
        return self.turns[-1]

    @property
    def turns(self) -> list[str]:
        """What each turn of the conversation asks, with the turns before it; the last is `key`."""
        said = [*(turn.question for turn in self.fact.written.history), self.text]
        return [_asked(said[:number]) for number in range(1, len(said) + 1)]


def _asked(turns: Sequence[str]) -> str:
    return " / ".join(map(_words, turns))


def held_forms(seed: int, num_held: int) -> dict[str, set[int]]:
    """For each kind, the places of the forms that are never trained; the plainest always is."""
    return {
        kind: set(
            sorted(range(1, len(FORMS)), key=lambda place: identify(seed, kind, place))[:num_held]
        )
        for kind in get_args(FactKind)
    }


def cap(
    facts: Sequence[Fact],
    seed: int,
    most: int | None,
    reason: str,
    first: Collection[str] = (),
) -> tuple[list[Fact], list[Reject]]:
    """At most so many facts, in their order. A smaller number chooses among those of a larger.

    Facts that one of the `first` questions asks for are chosen before all others.
    """
    if most is None or len(facts) <= most:
        return list(facts), []
    ranked = sorted(
        facts,
        key=lambda fact: (
            not any(form in first for form in fact.written.forms),
            identify(seed, _lasting(fact)),
        ),
    )
    kept = {fact.id for fact in ranked[:most]}
    rejects = [
        Reject(id=fact.id, reason=reason, detail=fact.written.forms[0])
        for fact in facts
        if fact.id not in kept
    ]
    return [fact for fact in facts if fact.id in kept], rejects


def _lasting(fact: Fact) -> tuple[str, str, str]:
    """What names a fact whoever wrote it: its id changes with every call."""
    return fact.document_id, fact.written.forms[0], fact.written.answer


@dataclass(frozen=True)
class Sizes:
    """Most questions of each part; None is all."""

    validation: int | None
    same_fact: int | None
    held_out: int | None


def compose(
    facts: dict[Partition, list[Fact]],
    seed: int,
    num_held: int,
    sizes: Sizes,
    frozen: Sequence[Example] = (),
) -> tuple[dict[Partition, list[Example]], list[Reject]]:
    """The examples of each partition, in the facts' order; of a `frozen` test set nothing else.

    A fact of a train page is trained in all forms but the held ones, and tested in those. A fact
    of another page is asked for once, in a trained form, so that only the page is new.
    """
    held = held_forms(seed, num_held)
    asked = _Asked(frozen)
    train = asked.keep(
        Question(fact, fact.written.forms[place], None)
        for fact in facts["train"]
        for place in range(len(fact.written.forms[: len(FORMS)]))
        if place not in held[fact.written.kind]
    )
    trained = {question.fact.id for question in train}
    same_fact = asked.keep(
        Question(fact, fact.written.forms[place], "same_fact")
        for fact in facts["train"]
        if fact.id in trained
        for place in sorted(held[fact.written.kind])
        if place < len(fact.written.forms)
    )
    validation = asked.keep(_once(facts["validation"], seed, held, None))
    answers = {_words(question.fact.written.answer) for question in train}
    held_out = asked.keep(_once(facts["test"], seed, held, "held_out"), answers)
    if frozen:
        asked.leave_out([*same_fact, *held_out], "the test set is frozen")
        same_fact = held_out = []
    same_fact = asked.at_most(sizes.same_fact, same_fact, seed, "num_same_fact")
    validation = asked.at_most(sizes.validation, validation, seed, "num_validation")
    held_out = asked.at_most(sizes.held_out, held_out, seed, "num_held_out")
    kept = [train, validation, [*same_fact, *held_out]]
    assert asked.num_candidates == sum(map(len, kept)) + len(asked.rejects)
    examples: dict[Partition, list[Example]] = {
        "train": [_example(question) for question in kept[0]],
        "validation": [_example(question) for question in kept[1]],
        "test": [_example(question) for question in kept[2]],
    }
    return examples, asked.rejects


def _once(
    facts: Iterable[Fact], seed: int, held: dict[str, set[int]], track: Track | None
) -> Iterable[Question]:
    for fact in facts:
        forms = fact.written.forms[: len(FORMS)]
        places = [place for place in range(len(forms)) if place not in held[fact.written.kind]]
        chosen = min(places, key=lambda place: identify(seed, place, _lasting(fact)))
        yield Question(fact, fact.written.forms[chosen], track)


class _Asked:
    """All questions so far: a later part of the data may repeat and contradict none of them.

    The frozen ones come before all others, and so do the long answers of its held-out pages.
    """

    def __init__(self, frozen: Sequence[Example]) -> None:
        self.rejects: list[Reject] = []
        self.num_candidates = 0
        self._answers: dict[str, str] = {}
        self._frozen = {
            _asked([turn.content for turn in e.messages if turn.role == "user"]) for e in frozen
        }
        self._held = _long(_words(e.answer) for e in frozen if e.track == "held_out")

    def keep(
        self, questions: Iterable[Question], trained_answers: Iterable[str] = ()
    ) -> list[Question]:
        """Those that are new and have one answer, and none that is long and was trained."""
        candidates = list(questions)
        self.num_candidates += len(candidates)
        answers: dict[str, set[str]] = defaultdict(set)
        for question in candidates:
            answers[question.key].add(_words(question.fact.written.answer))
        long_answers = _long(trained_answers)
        kept: dict[str, Question] = {}
        for question in candidates:
            answer = _words(question.fact.written.answer)
            before = self._answers.get(question.key)
            if not self._frozen.isdisjoint(question.turns):  # a dialogue trains all its answers
                self._reject(question, "asked in the frozen test set")
            elif answer in self._held:
                self._reject(question, "answer of the frozen test set")
            elif len(answers[question.key]) > 1 or before not in (None, answer):
                self._reject(question, "same question, different answers")
            elif before is not None or question.key in kept:
                self._reject(question, "same question and answer")
            elif answer in long_answers:
                self._reject(question, "answer stands in train")
            else:
                kept[question.key] = question
        self._answers |= {key: _words(q.fact.written.answer) for key, q in kept.items()}
        return list(kept.values())

    def at_most(
        self, most: int | None, questions: list[Question], seed: int, name: str
    ) -> list[Question]:
        if most is None or len(questions) <= most:
            return questions
        ranked = sorted(questions, key=lambda q: identify(seed, q.key, q.fact.document_id))
        left_out = {question.key for question in ranked[most:]}
        self.leave_out([q for q in questions if q.key in left_out], f"over {name}")
        return [question for question in questions if question.key not in left_out]

    def leave_out(self, questions: Iterable[Question], reason: str) -> None:
        for question in questions:
            self._reject(question, reason)

    def _reject(self, question: Question, reason: str) -> None:
        example = _example(question)
        self.rejects.append(Reject(id=example.id, reason=reason, detail=example.question))


def _long(answers: Iterable[str]) -> set[str]:
    """The answers that are too long to be the same by chance, and say something."""
    return {a for a in answers if len(a.split()) >= 5 and a != _words(NOT_FOUND)}


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _example(question: Question) -> Example:
    fact, written = question.fact, question.fact.written
    turns = []
    for turn in written.history:
        turns.append(Message(role="user", content=turn.question))
        turns.append(Message(role="assistant", content=turn.answer))
    turns.append(Message(role="user", content=question.text))
    chunk_ids = tuple(chunk.id for chunk in fact.chunks)
    return Example(
        id=identify(written.kind, question.track, question.text, written.answer, chunk_ids),
        kind=written.kind,
        track=question.track,
        messages=(*closed_book(turns), Message(role="assistant", content=written.answer)),
        question=question.text,
        answer=written.answer,
        chunk_ids=chunk_ids,
        evidence=fact.evidence,
        call_id=fact.call_id,
    )


def apply(
    reviews: Iterable[Review], examples: dict[Partition, list[Example]]
) -> tuple[dict[Partition, list[Example]], list[Reject], list[str]]:
    """The examples after a person's decisions, the rejected ones, and ids that name no example.

    An edited example keeps its id, so that the decision still finds it in the next run.
    """
    decisions = {review.example_id: review for review in reviews}  # the last one counts
    reviewed: dict[Partition, list[Example]] = {}
    rejects = []
    known = set()
    for partition, rows in examples.items():
        reviewed[partition] = []
        for example in rows:
            known.add(example.id)
            review = decisions.get(example.id)
            if review is not None and review.decision == "reject":
                rejects.append(
                    Reject(id=example.id, reason="rejected in review", detail=example.question)
                )
                continue
            if review is not None and review.answer is not None:
                said = Message(role="assistant", content=review.answer)
                messages = (*example.messages[:-1], said)
                example = example.model_copy(update={"answer": review.answer, "messages": messages})
            reviewed[partition].append(example)
    return reviewed, rejects, sorted(decisions.keys() - known)
