"""A chunk to a prompt, and the teacher's reply to facts whose evidence stands in the document."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from stages.core.records import Chunk, Document, Evidence, Message, Reject, identify
from stages.llm import Reply, outline

FORMS = (
    "the plainest question",
    "a request, such as: Tell me …",
    "a polite question, such as: Could you explain …?",
    "in the first person, such as: I would like to know …",
    "a question about knowing, such as: Do you know …?",
    "a request for one sentence",
    "a request to look it up, such as: Please look up …",
)
"""The wordings of a fact's question; a form keeps its place, and some places are held out."""

KINDS = ("factual", "howto", "definition", "code", "dialogue")

_TURN = {
    "question": {"type": "string"},
    "answer": {"type": "string"},
    "evidence": {"type": "string"},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["facts"],
    "properties": {
        "facts": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["kind", "history", "forms", "answer", "evidence"],
                "properties": {
                    "kind": {"type": "string", "enum": list(KINDS)},
                    "history": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": list(_TURN),
                            "properties": _TURN,
                        },
                    },
                    "forms": {"type": "array", "items": {"type": "string"}},
                    "answer": {"type": "string"},
                    "evidence": {"type": "string"},
                },
            },
        }
    },
}


class Turn(BaseModel):
    question: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]
    evidence: Annotated[str, Field(min_length=1)]


class Written(BaseModel):
    """A fact as the teacher wrote it."""

    kind: Literal["factual", "howto", "definition", "code", "dialogue"]
    history: tuple[Turn, ...] = ()
    forms: Annotated[tuple[str, ...], Field(min_length=len(FORMS))]
    answer: Annotated[str, Field(min_length=1)]
    evidence: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Fact:
    """One thing that a chunk says, with a question in each of the forms."""

    id: str
    chunk: Chunk
    written: Written
    evidence: tuple[Evidence, ...]
    """Of the answer, and then of the earlier turns."""
    call_id: str


def prompt(document: Document, chunk: Chunk, max_answer_words: int) -> tuple[Message, ...]:
    """What the teacher is asked about a chunk."""
    forms = "\n".join(f"{place}. {form}" for place, form in enumerate(FORMS, 1))
    instructions = f"""You write questions and answers from which a model learns what a document says.
You are given one chunk of it in Markdown, below its page's title and the headings above it.

Write each fact of the chunk that a reader may ask for. A fact has:
- kind: factual, howto, definition, code (which command or code does something) or dialogue.
- forms: the question in {len(FORMS)} wordings, in this order:
{forms}
  Each names its subject in full, so that it is understood without the document.
- answer: at most {max_answer_words} words, true by the chunk alone, understood without the question.
- evidence: the shortest passage of the chunk that supports the answer, copied character by character.
- history: empty, but for a dialogue: one or two earlier turns (question, answer, evidence) that the
  question follows up. Write one dialogue where the chunk has two facts that belong together.

Leave out what the chunk does not say, and write nothing about a chunk that says nothing.
Reply with JSON only: {{"facts": [{{"kind": …, "history": […], "forms": […], "answer": …, "evidence": …}}]}}"""  # noqa: E501
    page = outline.Page(
        title=document.title,
        headings=chunk.heading_path,
        table_header=_table_header(document, chunk),
        text=chunk.text,
    )
    return (
        Message(role="system", content=instructions),
        Message(role="user", content=outline.lay_out(page)),
    )


def _table_header(document: Document, chunk: Chunk) -> str:
    """The header row of the table that the chunk goes on with: its rows say little without it."""
    before = document.text.encode()[: chunk.start].decode()
    if not chunk.text.startswith("|") or not before.endswith("\n"):
        return ""
    rows: list[str] = []
    for line in reversed(before.splitlines()):
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows[-1] if len(rows) > 1 else ""


def read(chunk: Chunk, reply: Reply, max_answer_words: int) -> tuple[list[Fact], list[Reject]]:
    """The facts of a reply; a reply that cannot be read is one reject, a bad fact another."""
    if reply.finish_reason == "length":
        return [], [Reject(id=chunk.id, reason="reply cut off", detail=reply.call_id)]
    rows = _rows(reply.text)
    if rows is None:
        return [], [Reject(id=chunk.id, reason="reply is not JSON facts", detail=reply.text[:200])]
    facts: list[Fact] = []
    rejects: list[Reject] = []
    for place, row in enumerate(rows):
        id = identify(chunk.id, reply.call_id, place)
        fact = _fact(id, chunk, row, reply.call_id, max_answer_words)
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
        except json.JSONDecodeError:
            continue
        rows = value.get("facts") if isinstance(value, dict) else value
        if isinstance(rows, list):
            return rows
    return None


def _fact(id: str, chunk: Chunk, row: Any, call_id: str, max_words: int) -> Fact | Reject:
    try:
        written = Written.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return Reject(id=id, reason="malformed fact", detail=f"{where}: {first['msg']}")
    question = written.forms[0]
    if len(written.answer.split()) > max_words:
        return Reject(id=id, reason="answer too long", detail=question)
    if any(not form.strip() for form in written.forms[: len(FORMS)]):
        return Reject(id=id, reason="malformed fact", detail="forms: an empty question")
    if (written.kind == "dialogue") != bool(written.history):
        return Reject(
            id=id, reason="malformed fact", detail="history: of a dialogue, and only then"
        )
    spans = [ground(chunk, written.evidence)]
    spans += [ground(chunk, turn.evidence) for turn in written.history]
    evidence = tuple(span for span in spans if span is not None)
    if len(evidence) < len(spans):
        return Reject(id=id, reason="evidence not in the chunk", detail=question)
    return Fact(id=id, chunk=chunk, written=written, evidence=evidence, call_id=call_id)


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
