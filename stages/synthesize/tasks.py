"""Chunks to calls: what the teacher is asked for each kind of example that it writes."""

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from stages.answer.retrieval import Index
from stages.core import config
from stages.core.records import Chunk, Document, Message, Partition, Reject, identify
from stages.llm import outline

T = TypeVar("T")

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
"""Kinds that one call writes of one chunk."""

Sort = Literal["worth", "facts", "multihop", "unanswerable", "style"]
"""Of calls, by what they ask for."""


class Prompts(config.Base):
    """What the teacher is told, with `$names` for what differs from call to call."""

    persona: str
    """Who the teacher writes as, `$persona` in the other texts."""
    audience: str
    """Whom it writes for, `$audience` in the other texts."""
    facts: str
    """For the facts of one chunk."""
    multihop: str
    """For facts that need several chunks."""
    unanswerable: str
    """For questions that a chunk seems to answer and does not."""
    answerable: str
    """For the check whether retrieved passages answer such a question all the same."""
    style: str
    """For questions that a paragraph of the author answers as it stands."""
    worth: str
    """For the judgement whether a chunk is worth questions."""
    grade: str
    """For the grade of a fact."""

    def render(self, text: str, max_answer_words: int) -> str:
        forms = "\n".join(f"  {place}. {form}" for place, form in enumerate(FORMS, 1))
        return string.Template(text).safe_substitute(
            persona=self.persona,
            audience=self.audience,
            forms=forms.strip(),
            num_forms=len(FORMS),
            max_answer_words=max_answer_words,
        )

    @property
    def hashes(self) -> dict[str, str]:
        """Of each text with persona and audience, so that data names the prompt it came of."""
        texts = {name: getattr(self, name) for name in Prompts.model_fields}
        common = texts.pop("persona"), texts.pop("audience")
        return {name: identify(*common, text) for name, text in texts.items()}


@dataclass(frozen=True)
class Task:
    """One call about one chunk, or about several together."""

    sort: Sort
    chunks: tuple[Chunk, ...]
    messages: tuple[Message, ...]
    schema: dict[str, Any]


# --- the shape of the replies ------------------------------------------------------------------


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT = {"type": "string"}
_TURN = _object(question=_TEXT, answer=_TEXT, evidence=_TEXT)
_FACTS: dict[Sort, dict[str, Any]] = {
    "facts": _object(
        kind={"type": "string", "enum": list(KINDS)},
        history=_list(_TURN),
        forms=_list(_TEXT),
        answer=_TEXT,
        evidence=_TEXT,
    ),
    "multihop": _object(forms=_list(_TEXT), answer=_TEXT, evidence=_list(_TEXT)),
    "unanswerable": _object(forms=_list(_TEXT)),
    "style": _object(question=_TEXT, evidence=_TEXT),
}
SCHEMAS: dict[Sort, dict[str, Any]] = {
    "worth": _object(worth={"type": "boolean"}),
    **{sort: _object(facts=_list(fact)) for sort, fact in _FACTS.items()},
}
ANSWERABLE = _object(answered={"type": "boolean"})
REPAIRED = _object(answer=_TEXT)
GRADED = _object(reason=_TEXT, grade={"type": "integer", "enum": [1, 2, 3, 4, 5]})


# --- the calls ---------------------------------------------------------------------------------


def of_chunk(
    sort: Sort, document: Document, chunk: Chunk, prompts: Prompts, max_answer_words: int
) -> Task:
    """The call about one chunk."""
    return Task(
        sort,
        (chunk,),
        (
            _instruction(sort, prompts, max_answer_words),
            Message(role="user", content=_laid_out(document, chunk)),
        ),
        SCHEMAS[sort],
    )


def of_several(
    pages: Mapping[str, Document],
    chunks: tuple[Chunk, ...],
    prompts: Prompts,
    max_answer_words: int,
) -> Task:
    """The call about chunks that belong together."""
    text = "\n\n---\n\n".join(_laid_out(pages[chunk.document_id], chunk) for chunk in chunks)
    return Task(
        "multihop",
        chunks,
        (
            _instruction("multihop", prompts, max_answer_words),
            Message(role="user", content=text),
        ),
        SCHEMAS["multihop"],
    )


def repair(
    question: str, answer: str, evidence: Sequence[str], faults: Sequence[str]
) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """The call that asks for an answer without these faults, and the shape of its reply."""
    system = (
        "An answer says what its evidence does not. Write it again, as short as it is, so that the "
        'evidence supports all of it. Reply with JSON only: {"answer": …}'
    )
    text = "\n\n".join(
        [
            f"Question: {question}",
            "Evidence:\n" + "\n".join(evidence),
            f"Answer: {answer}",
            "Faults:\n" + "\n".join(f"- {fault}" for fault in faults),
        ]
    )
    turns = (Message(role="system", content=system), Message(role="user", content=text))
    return turns, REPAIRED


def grade(
    question: str, answer: str, evidence: Sequence[str], prompts: Prompts
) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """The call that asks for a fact's grade, and the shape of its reply."""
    text = "\n\n".join(
        [f"Question: {question}", f"Answer: {answer}", "Evidence:\n" + "\n".join(evidence)]
    )
    system = Message(role="system", content=prompts.render(prompts.grade, 0))
    return (system, Message(role="user", content=text)), GRADED


def _instruction(sort: Sort, prompts: Prompts, max_answer_words: int) -> Message:
    text = prompts.render(getattr(prompts, sort), max_answer_words)
    return Message(role="system", content=text)


def _laid_out(document: Document, chunk: Chunk) -> str:
    return outline.lay_out(
        outline.Page(
            title=document.title,
            headings=chunk.heading_path,
            table_header=_table_header(document, chunk),
            text=chunk.text,
        )
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


# --- which chunks ------------------------------------------------------------------------------


def unasked(
    chunk: Chunk,
    skip_headings: Sequence[re.Pattern[str]],
    skip_text: Sequence[re.Pattern[str]],
    min_words: int,
) -> Reject | None:
    """Why the teacher is not asked about the chunk, if it is not."""
    for heading in chunk.heading_path:
        for pattern in skip_headings:
            if pattern.search(heading):
                return Reject(id=chunk.id, reason="skipped by heading", detail=heading)
    for pattern in skip_text:
        if found := pattern.search(chunk.text):
            return Reject(id=chunk.id, reason="skipped by text", detail=found[0][:80])
    if len(chunk.text.split()) < min_words:
        return Reject(id=chunk.id, reason="fewer words than min_chunk_words", detail=chunk.url)
    return None


_LINK = re.compile(r"\]\((https?://[^\s()]+)\)")


def linked(
    chunks: Sequence[Chunk],
    pages: Mapping[str, Document],
    partitions: Mapping[str, Partition],
    index: Index,
) -> Iterator[tuple[Chunk, ...]]:
    """For each chunk: it and another page's that it links to, or else one that is like it.

    Only pages of one partition come together, so that no fact of a test page is trained on.
    """
    documents = {document.url: document.id for document in pages.values()}
    by_page: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_page.setdefault(chunk.document_id, []).append(chunk)
    own = {chunk.id: chunk for chunk in chunks}

    def fits(chunk: Chunk, page: str) -> bool:
        return page != chunk.document_id and partitions.get(page) == partitions[chunk.document_id]

    for chunk in chunks:
        targets: list[Chunk] = []
        for url in _LINK.findall(chunk.text):
            page = documents.get(url.partition("#")[0])
            if page and fits(chunk, page):
                there = by_page.get(page, [])
                targets += [c for c in there if c.url == url] or there[:1]
        if not targets:
            query = "\n".join([*chunk.heading_path, chunk.text[:200]])
            targets = [
                own[hit.chunk.id]
                for hit in index.search(query, 10)
                if hit.chunk.id in own and fits(chunk, hit.chunk.document_id)
            ]
        if targets:
            yield chunk, targets[0]


def share(items: Iterable[T], fraction: float, seed: int, name: Callable[[T], Any]) -> list[T]:
    """About that fraction of the items, in their order.

    Each is chosen by what `name` gives of it, so that the others change nothing, and a smaller
    fraction chooses among those of a larger.
    """
    return [item for item in items if int(identify(seed, name(item)), 16) < fraction * 16**16]
