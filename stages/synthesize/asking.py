"""Chunks to facts: what the teacher is asked, and what of its replies holds."""

import contextlib
import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages import llm
from stages.answer import prompt, retrieval
from stages.answer.retrieval import Index
from stages.core import progress
from stages.core.records import Chunk, Document, Message, Partition, Reject
from stages.synthesize import facts, tasks
from stages.synthesize.facts import Fact
from stages.synthesize.settings import Config
from stages.synthesize.tasks import Task

K1, B = 1.5, 0.75
"""Of the index that looks for distractors and similar pages; conf/index has the same at first."""


def index_of(chunks: Iterable[Chunk], pages: Collection[str], out: Path) -> Index:
    """An index by words of the chunks of these pages."""
    out.mkdir()
    retrieval.build([chunk for chunk in chunks if chunk.document_id in pages], out, K1, B)
    return Index.open(out)


# --- which chunks ------------------------------------------------------------------------------


def usable(
    cfg: Config, pages: Mapping[str, Document], chunks: Iterable[Chunk]
) -> tuple[list[Chunk], list[Reject]]:
    """The chunks that the teacher may be asked about, by the rules that cost nothing."""
    texts = {id: document.text.encode() for id, document in pages.items()}
    headings, text = (list(map(re.compile, of)) for of in (cfg.skip_headings, cfg.skip_text))
    kept, rejects = [], []
    for chunk in chunks:
        if texts.get(chunk.document_id, b"")[chunk.start : chunk.end] != chunk.text.encode():
            rejects.append(Reject(id=chunk.id, reason="not the document's text", detail=chunk.url))
        elif skipped := tasks.unasked(chunk, headings, text, cfg.min_chunk_words):
            rejects.append(skipped)
        else:
            kept.append(chunk)
    return kept, rejects


def judging(cfg: Config, pages: Mapping[str, Document], chunks: Sequence[Chunk]) -> list[Task]:
    """The calls that ask of each chunk whether it is worth questions."""
    return [
        tasks.of_chunk("worth", pages[chunk.document_id], chunk, cfg.prompts, 0) for chunk in chunks
    ]


def worthy(
    cfg: Config, teacher: llm.Teacher, pages: Mapping[str, Document], chunks: Sequence[Chunk]
) -> tuple[list[Chunk], list[Reject]]:
    """The chunks that the teacher finds worth questions; one that it refuses to judge is."""
    asked = judging(cfg, pages, chunks)

    def judge(task: Task) -> bool:
        try:
            reply = teacher.complete(task.messages, task.schema)
        except llm.RefusedError:
            return True
        return not re.search(r'"worth"\s*:\s*false', reply.text)

    teacher.prefetch((task.messages, task.schema) for task in asked)
    verdicts = progress.track(teacher.map(judge, asked), "judged chunks", len(asked))
    kept, rejects = [], []
    for chunk, worth in zip(chunks, verdicts, strict=True):
        if worth:
            kept.append(chunk)
        else:
            rejects.append(Reject(id=chunk.id, reason="not worth questions", detail=chunk.url))
    return kept, rejects


# --- the calls ---------------------------------------------------------------------------------


def planned(
    cfg: Config,
    teacher: llm.Config,
    pages: Mapping[str, Document],
    partitions: Mapping[str, Partition],
    chunks: Sequence[Chunk],
) -> list[Task]:
    """The calls that write facts of these chunks."""

    def about(sort: tasks.Sort, chosen: Sequence[Chunk]) -> Iterator[Task]:
        for chunk in chosen:
            page = pages[chunk.document_id]
            yield tasks.of_chunk(sort, page, chunk, cfg.prompts, cfg.max_answer_words)

    asked = list(about("facts", chunks))
    if isinstance(teacher, llm.OpenAI):  # the outline teacher writes facts only
        sort: tasks.Sort
        for sort, fraction in (
            ("unanswerable", cfg.shares.unanswerable),
            ("style", cfg.shares.style),
        ):
            named = partial(_named, sort)
            asked += about(sort, tasks.share(chunks, fraction, cfg.seed, named))
        if cfg.shares.multihop:
            with tempfile.TemporaryDirectory() as folder:
                index = index_of(chunks, set(pages), Path(folder) / "chunks")
            groups = list(tasks.linked(chunks, pages, partitions, index))
            for group in tasks.share(
                groups, cfg.shares.multihop, cfg.seed, lambda group: [c.id for c in group]
            ):
                asked.append(tasks.of_several(pages, group, cfg.prompts, cfg.max_answer_words))
    return asked


def _named(sort: tasks.Sort, chunk: Chunk) -> list[str]:
    return [sort, chunk.id]


# --- the replies -------------------------------------------------------------------------------


def written(
    cfg: Config, teacher: llm.Teacher, asked: Sequence[Task]
) -> tuple[list[Fact], list[Reject], int]:
    """The teacher's facts, what gave none, and how much of that was unusable."""
    found: list[Fact] = []
    rejects: list[Reject] = []
    num_unusable = 0

    def ask(task: Task) -> llm.Reply | llm.RefusedError:
        try:
            return teacher.complete(task.messages, task.schema)
        except llm.RefusedError as refusal:
            return refusal

    teacher.prefetch((task.messages, task.schema) for task in asked)
    replies = progress.track(teacher.map(ask, asked), "chunks", len(asked))
    for task, reply in zip(asked, replies, strict=True):
        of_task: list[Fact] = []
        if isinstance(reply, llm.RefusedError):
            reason, detail = "refused by the teacher", str(reply)
            bad = [Reject(id=task.chunks[0].id, reason=reason, detail=detail)]
        else:
            of_task, bad = facts.read(task, reply, cfg.max_answer_words)
        num_unusable += len(bad)
        if not of_task and not bad:
            url = task.chunks[0].url
            bad = [Reject(id=task.chunks[0].id, reason=f"no {task.sort}", detail=url)]
        found += of_task
        rejects += bad
    return found, rejects, num_unusable


def grounded(
    cfg: Config,
    teacher_cfg: llm.Config,
    teacher: llm.Teacher,
    written: Sequence[Fact],
    pages: Mapping[str, Document],
) -> tuple[list[Fact], list[Reject]]:
    """The facts that their evidence supports, with no more evidence than that takes.

    A language model may put an answer right once; what is wrong after that is left out.
    """

    def supported(fact: Fact) -> Fact | Reject:
        found = facts.unsupported(fact, pages[fact.document_id].title)
        if found and isinstance(teacher_cfg, llm.OpenAI):
            task = tasks.repair(fact.written.forms[0], fact.written.answer, fact.texts, found)
            with contextlib.suppress(llm.RefusedError):
                fact = facts.repaired(fact, teacher.complete(*task), cfg.max_answer_words)
                found = facts.unsupported(fact, pages[fact.document_id].title)
        if found:
            reason = "not supported by its evidence"
            return Reject(id=fact.id, reason=reason, detail=f"{fact.written.forms[0]}: {found[0]}")
        return facts.trimmed(fact, cfg.max_evidence_tokens)

    checked = list(teacher.map(supported, written))
    return (
        [row for row in checked if isinstance(row, Fact)],
        [row for row in checked if isinstance(row, Reject)],
    )


def graded(
    cfg: Config, teacher: llm.Teacher, chosen: Sequence[Fact]
) -> tuple[list[Fact], list[Reject]]:
    """The facts that the teacher grades `min_grade` or better; one without a grade is left out."""
    assert cfg.min_grade
    least: int = cfg.min_grade

    def call(fact: Fact) -> tuple[tuple[Message, ...], dict[str, Any]]:
        question, answer = fact.written.forms[0], fact.written.answer
        return tasks.grade(question, answer, fact.texts, cfg.prompts)

    def grade(fact: Fact) -> Fact | Reject:
        question = fact.written.forms[0]
        try:
            reply = teacher.complete(*call(fact))
            said = json.loads(reply.text)
            mark, why = int(said["grade"]), str(said.get("reason", ""))
        except llm.RefusedError as refusal:
            return Reject(id=fact.id, reason="without a grade", detail=f"{question}: {refusal}")
        except (ValueError, TypeError, KeyError):
            return Reject(id=fact.id, reason="without a grade", detail=f"{question}: no JSON")
        if mark < least:
            reason = f"graded {mark}, below min_grade"
            return Reject(id=fact.id, reason=reason, detail=f"{question}: {why}")
        return fact

    teacher.prefetch(map(call, chosen))
    marked = list(progress.track(teacher.map(grade, chosen), "graded facts", len(chosen)))
    return (
        [row for row in marked if isinstance(row, Fact)],
        [row for row in marked if isinstance(row, Reject)],
    )


def answered(
    cfg: Config, teacher: llm.Teacher, questions: Sequence[Fact], index: Index
) -> dict[str, Reject]:
    """The open questions that passages of the documents answer all the same, by the fact's id."""

    def check(fact: Fact) -> bool:
        question = fact.written.forms[0]
        chunks = [hit.chunk for hit in index.search(question, ANSWERABLE_CHUNKS)]
        passages = prompt.with_context([], chunks, ANSWERABLE_TOKENS)[0].content
        instruction = cfg.prompts.render(cfg.prompts.answerable, cfg.max_answer_words)
        turns = (
            Message(role="system", content=instruction),
            Message(role="user", content=f"{passages}\n\nQuestion: {question}"),
        )
        try:
            reply = teacher.complete(turns, tasks.ANSWERABLE)
        except llm.RefusedError:
            return True  # unchecked is not open
        return not re.search(r'"answered"\s*:\s*false', reply.text)

    verdicts = zip(questions, teacher.map(check, questions), strict=True)
    return {
        fact.id: Reject(
            id=fact.id, reason="unanswerable: answered elsewhere", detail=fact.written.forms[0]
        )
        for fact, answered in verdicts
        if answered
    }


ANSWERABLE_CHUNKS, ANSWERABLE_TOKENS = 5, 3000
"""What an open question is checked against: the best chunks of all pages, in cl100k tokens."""
