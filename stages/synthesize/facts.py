"""The teacher's reply to facts whose evidence stands in the documents."""

import json
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from stages.answer.prompt import NOT_FOUND
from stages.core.records import Chunk, Evidence, Reject, identify
from stages.llm import Reply
from stages.synthesize import curation, grounding
from stages.synthesize.tasks import FORMS, Task

FactKind = Literal[
    "factual",
    "howto",
    "definition",
    "code",
    "dialogue",
    "multihop",
    "unanswerable",
    "style",
    "imported",
]


def _is_text(said: str) -> str:
    said.encode()  # raises a ValueError for half a surrogate pair, which JSON may escape
    return said


Form = Annotated[str, AfterValidator(_is_text)]
Text = Annotated[Form, Field(min_length=1)]


class Turn(BaseModel):
    question: Text
    answer: Text
    evidence: Text


class Written(BaseModel):
    """A fact as the teacher wrote it."""

    kind: FactKind
    history: tuple[Turn, ...] = ()
    forms: Annotated[tuple[Form, ...], Field(min_length=1)]
    answer: Text
    evidence: tuple[Text, ...]
    """Passages that support the answer; of the task's chunks in their order."""


@dataclass(frozen=True)
class Fact:
    """One thing that chunks say, with a question in each of the forms."""

    id: str
    chunks: tuple[Chunk, ...]
    written: Written
    evidence: tuple[Evidence, ...]
    """Of the answer, and then of the earlier turns."""
    call_id: str

    @property
    def document_id(self) -> str:
        """The page that it counts for."""
        return self.chunks[0].document_id

    @property
    def texts(self) -> list[str]:
        """The evidence of the answer, as it stands in the documents."""
        return [span.text for span in self.evidence[: len(self.written.evidence)]]

    @property
    def row(self) -> curation.Pair:
        """What curation reads of it."""
        return curation.Pair(
            id=self.id,
            question=self.written.forms[0],
            answer=self.written.answer,
            kind=self.written.kind,
            page=self.document_id,
            earlier=tuple(turn.question for turn in self.written.history),
        )


def unsupported(fact: Fact, title: str) -> list[str]:
    """What the answers of the fact say that their evidence does not."""
    if fact.written.kind in ("unanswerable", "style", "imported"):
        return []  # nothing to support, and the evidence itself
    around = [title, *(heading for chunk in fact.chunks for heading in chunk.heading_path)]
    first = len(fact.written.evidence)
    answers = [(fact.written.forms[0], fact.written.answer, fact.texts)]
    for turn, span in zip(fact.written.history, fact.evidence[first:], strict=True):
        answers.append((turn.question, turn.answer, [span.text]))
        around.append(turn.question)  # a later question may lean on it
    return [fault for said in answers for fault in grounding.faults(*said, around)]


def trimmed(fact: Fact, max_tokens: int) -> Fact:
    """The fact with each span of its evidence cut to what supports its answer."""
    if fact.written.kind in ("style", "imported"):
        return fact
    first = len(fact.written.evidence)
    asked = [(fact.written.forms[0], fact.written.answer)] * first
    asked += [(turn.question, turn.answer) for turn in fact.written.history]
    spans = [
        part
        for span, (question, answer) in zip(fact.evidence, asked, strict=True)
        for part in grounding.trim(span, question, answer, max_tokens)
    ]
    return replace(fact, evidence=tuple(spans))


def repaired(fact: Fact, reply: Reply, max_answer_words: int) -> Fact:
    """The fact with the answer of the reply, if it has one that is short enough."""
    try:
        answer = json.loads(reply.text[reply.text.find("{") : reply.text.rfind("}") + 1])["answer"]
        _is_text(answer)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return fact
    if not isinstance(answer, str) or not 0 < len(answer.split()) <= max_answer_words:
        return fact
    return replace(fact, written=fact.written.model_copy(update={"answer": answer}))


def read(task: Task, reply: Reply, max_answer_words: int) -> tuple[list[Fact], list[Reject]]:
    """The facts of a reply; a reply that cannot be read is one reject, a bad fact another."""
    name = task.chunks[0].id
    if reply.finish_reason == "length":
        return [], [Reject(id=name, reason="reply cut off", detail=reply.call_id)]
    rows = _rows(reply.text)
    if rows is None:
        return [], [Reject(id=name, reason="reply is not JSON facts", detail=reply.text[:200])]
    facts: list[Fact] = []
    rejects: list[Reject] = []
    for place, row in enumerate(rows):
        id = identify(name, reply.call_id, place)
        fact = _fact(id, task, row, reply.call_id, max_answer_words)
        if isinstance(fact, Reject):
            rejects.append(fact)
        else:
            facts.append(fact)
    assert len(rows) == len(facts) + len(rejects)
    return facts, rejects


def _rows(text: str) -> list[Any] | None:
    """The facts of a reply, also where the model wrapped its JSON in a fence or in words."""
    start, end = text.find("{"), text.rfind("}") + 1
    bare = text.find("["), text.rfind("]") + 1
    for candidate in (text, text[start:end], text[bare[0] : bare[1]]):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):  # a number too long, brackets too deep
            continue
        rows = value.get("facts") if isinstance(value, dict) else value
        if isinstance(rows, list):
            return rows
    return None


def _completed(task: Task, row: Any) -> Any:
    """The row with what the kind of call leaves out."""
    if not isinstance(row, dict):
        return row
    match task.sort:
        case "facts":
            return row | {"evidence": [row.get("evidence")]}
        case "multihop":
            return row | {"kind": "multihop"}
        case "unanswerable":
            return row | {"kind": "unanswerable", "answer": NOT_FOUND, "evidence": []}
        case "style":
            said = row.get("evidence")
            asked = {"forms": [row.get("question")], "answer": said, "evidence": [said]}
            return asked | {"kind": "style"}


def _fact(id: str, task: Task, row: Any, call_id: str, max_words: int) -> Fact | Reject:
    try:
        written = Written.model_validate(_completed(task, row))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return Reject(id=id, reason="malformed fact", detail=f"{where}: {first['msg']}")
    question = written.forms[0]
    wanted = 1 if written.kind == "style" else len(FORMS)
    if len(written.forms) < wanted or any(not form.strip() for form in written.forms[:wanted]):
        return Reject(id=id, reason="malformed fact", detail=f"forms: expected {wanted} questions")
    if len(written.answer.split()) > max_words and written.kind != "style":
        return Reject(id=id, reason="answer too long", detail=question)
    if (written.kind == "dialogue") != bool(written.history):
        return Reject(
            id=id, reason="malformed fact", detail="history: of a dialogue, and only then"
        )
    if task.sort == "multihop" and len(written.evidence) != len(task.chunks):
        said = f"evidence: expected {len(task.chunks)} passages, one of each chunk"
        return Reject(id=id, reason="malformed fact", detail=said)
    spans = [ground(*pair) for pair in zip(task.chunks, written.evidence, strict=False)]
    spans += [ground(task.chunks[0], turn.evidence) for turn in written.history]
    evidence = tuple(span for span in spans if span is not None)
    if len(evidence) < len(spans):
        return Reject(id=id, reason="evidence not in the chunk", detail=question)
    if written.kind == "style":  # the author's own text, as it stands
        written = written.model_copy(update={"answer": evidence[0].text})
    return Fact(id=id, chunks=task.chunks, written=written, evidence=evidence, call_id=call_id)


def ground(chunk: Chunk, passage: str) -> Evidence | None:
    """Where the passage stands in the document; None: nowhere in the chunk.

    A model that copies a passage may change its line breaks and blanks: those are forgiven, and
    the evidence is what the document says.
    """
    words = passage.split()
    if not words:
        return None
    start = chunk.text.find(passage)
    end = start + len(passage)
    if start < 0:
        found = re.search(r"\s+".join(map(re.escape, words)), chunk.text)
        if found is None:
            return None
        start, end = found.span()
    text = chunk.text[start:end]
    first = chunk.start + len(chunk.text[:start].encode())
    return Evidence(
        document_id=chunk.document_id, start=first, end=first + len(text.encode()), text=text
    )
