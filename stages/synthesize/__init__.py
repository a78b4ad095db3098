"""Documents and chunks to examples: partitions first, then a teacher's questions with evidence."""

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from stages import llm
from stages.answer import prompt, retrieval
from stages.answer.retrieval import Index
from stages.core import config, formats, progress, store
from stages.core.errors import PipelineError
from stages.core.records import (
    Assignment,
    Chunk,
    Document,
    Example,
    Kind,
    Message,
    Partition,
    Reject,
)
from stages.synthesize import (
    card,
    context,
    curation,
    examples,
    facts,
    frozen,
    leakage,
    partition,
    preferences,
    tasks,
    unanswerable,
)
from stages.synthesize.facts import Fact
from stages.synthesize.tasks import Prompts, Task

__all__ = ["Config", "plan", "run"]

Count = Annotated[int, Field(ge=0)] | None
Share = Annotated[float, Field(ge=0, le=1)]

K1, B = 1.5, 0.75
"""Of the index that looks for distractors and similar pages; conf/index has the same at first."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PydanticCustomError(
            "pattern", "expected a regular expression: {why}", {"why": str(error)}
        ) from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class Shares(config.Base):
    """How many examples of each kind."""

    factual: Share
    """Fraction of the facts of this kind that is kept."""
    howto: Share
    """Fraction of the facts of this kind that is kept."""
    definition: Share
    """Fraction of the facts of this kind that is kept."""
    code: Share
    """Fraction of the facts of this kind that is kept."""
    dialogue: Share
    """Fraction of the facts of this kind that is kept."""
    multihop: Share
    """Fraction of the chunks that the teacher is asked about with a linked or similar one."""
    unanswerable: Share
    """Fraction of the chunks that the teacher writes open questions to, and of the facts on a name
    that become open questions on an invented one."""
    style: Share
    """Fraction of the chunks whose paragraphs become answers as they stand."""
    raft: Share
    """Fraction of the trained questions that are also trained with passages in the prompt."""
    raft_absent: Share
    """Fraction of those whose passages lack the answer, so that "not in the documents" is right."""
    preferences: Share
    """Fraction of the trained facts that also give a pair of a right and a wrong answer."""


class Config(config.Base):
    seed: int
    """Decides the partitions, the held-out wordings and what is left out above a maximum."""
    duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """Similarity (Jaccard index of five-word shingles) from which documents share a partition."""
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the clusters of documents that validate the training."""
    test_share: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the clusters of documents that are held out for the test."""
    skip_headings: tuple[Pattern, ...]
    """Chunks under such headings are not asked about: regular expressions that search."""
    skip_text: tuple[Pattern, ...]
    """Chunks with such text are not asked about: regular expressions that search."""
    min_chunk_words: Annotated[int, Field(ge=0)]
    """Shortest chunk that the teacher is asked about, in words."""
    prompts: Prompts
    """What the teacher is told."""
    shares: Shares
    """How many examples of each kind."""
    formats: dict[str, formats.Config]
    """Further formats by name, each written into a folder of its name; empty for none."""
    context: context.Config
    """What prompts with passages hold."""
    num_held_forms: Annotated[int, Field(ge=1, le=len(tasks.FORMS) - 2)]
    """Wording forms of each kind, of seven, that are kept from training and tested."""
    max_answer_words: Annotated[int, Field(ge=1)]
    """Longest answer that is taken from the teacher, in words."""
    min_answer_words: Annotated[int, Field(ge=1)]
    """Shortest answer that is kept, in words."""
    max_evidence_tokens: Annotated[int, Field(ge=20)]
    """Longest span of evidence, in tokens of cl100k; a longer one is cut to what supports."""
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """Similarity (Jaccard index) from which the second of two facts is left out."""
    max_leak_rate: Share
    """Largest fraction of test questions that may leak into train before the stage fails; those
    that do are left out."""
    max_facts: Count
    """Most facts that are trained, over all pages; null is all of them."""
    max_facts_per_page: Count
    """Most facts that are taken from one page; null is all of them."""
    num_validation: Count
    """Most validation questions; null is all of them."""
    num_same_fact: Count
    """Most test questions about trained facts in held-out wordings; null is all of them."""
    num_held_out: Count
    """Most test questions about pages that are never trained on; null is all of them."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest fraction of replies and facts that may be unusable before the stage fails."""

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise PydanticCustomError(
                "shares",
                "expected validation_share and test_share below 1 in sum, train is the rest",
            )
        return self


def run(
    cfg: Config,
    teacher: llm.Config,
    documents: Path,
    chunks: Path,
    passages: Path,
    review: Path,
    testset: Path,
    out: Path,
) -> dict[str, float]:
    """Write out/assignment.jsonl, train, validation, test and preferences, and what was left out.

    Where `testset` holds questions, they are the test set and none is written anew: no other
    partition repeats them, and the pages of the held-out ones are never trained on. Prompts with
    context are made of `passages`, as those of service are.
    """
    reviews = list(store.read(review, examples.Review))
    kept = frozen.read(testset)
    pages = {document.id: document for document in store.read(documents, Document)}
    learnt_pages, learnt = frozen.learnt(kept)
    assignment = partition.assign(
        list(pages.values()),
        cfg.seed,
        cfg.validation_share,
        cfg.test_share,
        cfg.duplicate_threshold,
        frozen.held_pages(kept),
        learnt_pages,
    )
    store.write(out / "assignment.jsonl", assignment)
    partitions = {row.document_id: row.partition for row in assignment}

    with tempfile.TemporaryDirectory() as folder:
        index = _index(store.read(passages, Chunk), set(pages), Path(folder) / "all")
        trained = {page for page, part in partitions.items() if part == "train"}
        trained_index = _index(index.chunks, trained, Path(folder) / "trained")
    asked, rejects = _tasks(cfg, teacher, pages, partitions, chunks)
    written, unusable = _ask(cfg, teacher, asked, pages, index, out)
    written, uncurated = _curate(cfg, written, partitions)
    rejects += [*unusable, *uncurated]
    by_partition, left_out = _choose(cfg, written, assignment, learnt)
    texts = [document.text for document in pages.values()]
    for facts_of_part in by_partition.values():
        facts_of_part += unanswerable.invented(
            facts_of_part, texts, cfg.shares.unanswerable, cfg.seed
        )
    sizes = examples.Sizes(cfg.num_validation, cfg.num_same_fact, cfg.num_held_out)
    composed, unused = examples.compose(by_partition, cfg.seed, cfg.num_held_forms, sizes, kept)
    settled, lost = frozen.settle(kept, pages)
    reviewed, refused = _review(reviews, composed, {example.id for example in kept}, review)
    leaking = _leaks(cfg, reviewed, settled)
    reviewed["test"] += settled
    if lost:
        progress.note(
            f"{testset}: {len(lost)} of {len(kept)} questions lost their page or their evidence, "
            "so that the test set is another one: see rejects.jsonl, and freeze again"
        )
    raft, no_room = _raft(cfg, reviewed["train"], trained_index)
    plain = _plainest(reviewed["train"])
    reviewed["train"] += raft

    rejects += [*left_out, *unused, *refused, *lost, *leaking, *no_room]
    store.write(out / "rejects.jsonl", rejects)
    if not reviewed["train"]:
        reasons = Counter(reject.reason for reject in rejects).most_common(1)
        raise PipelineError(
            f"{chunks}: no training question came of its chunks"
            + (f" (most often: {reasons[0][0]})" if reasons else "")
            + f"; see {out}/rejects.jsonl, and give the pages headings, tables and definitions, or "
            "take a language model with teacher=openai"
        )
    for name, part in reviewed.items():
        store.write(out / f"{name}.jsonl", part)
    for called, format in cfg.formats.items():
        for part_name, part in reviewed.items():
            suffix = "csv" if format.file == "csv" else "jsonl"
            bad = formats.write(format, part, out / "formats" / called / f"{part_name}.{suffix}")
            if bad:
                progress.note(
                    f"formats.{called}: {len(bad)} examples are left out: {bad[0].reason}"
                )
    chosen = tasks.share(plain, cfg.shares.preferences, cfg.seed, lambda example: example.id)
    store.write(out / "preferences.jsonl", preferences.pairs(chosen, cfg.seed))
    zeros = _tell_counts(cfg, teacher, reviewed)
    num_tested = len(reviewed["test"]) + len(leaking)
    written_card = card.card(
        f"Questions and answers about {_sites(pages)}",
        list(pages.values()),
        assignment,
        reviewed,
        rejects,
        _named_teacher(teacher),
        cfg.prompts.hashes,
        f"{len(leaking)} of {num_tested} test questions were given away by the training data and "
        "left out; none is left.",
        zeros,
    )
    store.write_text(out / "README.md", written_card)
    tracks = Counter(example.track for example in reviewed["test"])
    kinds = Counter(example.kind for example in reviewed["train"])
    return {
        "num_documents": len(pages),
        "num_clusters": len({row.cluster_id for row in assignment}),
        "num_facts": len(plain),
        "num_train": len(reviewed["train"]),
        "num_validation": len(reviewed["validation"]),
        "num_test_same_fact": tracks["same_fact"],
        "num_test_held_out": tracks["held_out"],
        "num_frozen": len(kept),
        "num_rejects": len(rejects),
        **{f"num_train_{kind}": kinds[kind] for kind in sorted(kinds)},
    }


def plan(cfg: Config, teacher: llm.Config, documents: Path, chunks: Path) -> list[Task]:
    """The calls that a run would make, without making any."""
    pages = {document.id: document for document in store.read(documents, Document)}
    assignment = partition.assign(
        list(pages.values()),
        cfg.seed,
        cfg.validation_share,
        cfg.test_share,
        cfg.duplicate_threshold,
    )
    return _tasks(
        cfg, teacher, pages, {row.document_id: row.partition for row in assignment}, chunks
    )[0]


# --- what the teacher is asked -----------------------------------------------------------------


def _index(chunks: Iterator[Chunk] | Sequence[Chunk], pages: Collection[str], out: Path) -> Index:
    """An index of the chunks of these pages."""
    out.mkdir()
    retrieval.build([chunk for chunk in chunks if chunk.document_id in pages], out, K1, B)
    return Index.open(out)


def _tasks(
    cfg: Config,
    teacher: llm.Config,
    pages: Mapping[str, Document],
    partitions: Mapping[str, Partition],
    path: Path,
) -> tuple[list[Task], list[Reject]]:
    """The calls, and the chunks that none is made for."""
    texts = {id: document.text.encode() for id, document in pages.items()}
    headings, text = (list(map(re.compile, of)) for of in (cfg.skip_headings, cfg.skip_text))
    rejects = []
    chunks = []
    for chunk in store.read(path, Chunk):
        if texts.get(chunk.document_id, b"")[chunk.start : chunk.end] != chunk.text.encode():
            rejects.append(Reject(id=chunk.id, reason="not the document's text", detail=chunk.url))
        elif skipped := tasks.unasked(chunk, headings, text, cfg.min_chunk_words):
            rejects.append(skipped)
        else:
            chunks.append(chunk)

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
                index = _index(chunks, set(pages), Path(folder) / "chunks")
            groups = list(tasks.linked(chunks, pages, partitions, index))
            for group in tasks.share(
                groups, cfg.shares.multihop, cfg.seed, lambda group: [c.id for c in group]
            ):
                asked.append(tasks.of_several(pages, group, cfg.prompts, cfg.max_answer_words))
    return asked, rejects


def _named(sort: tasks.Sort, chunk: Chunk) -> list[str]:
    return [sort, chunk.id]


def _ask(
    cfg: Config,
    teacher_cfg: llm.Config,
    asked: Sequence[Task],
    pages: Mapping[str, Document],
    index: Index,
    out: Path,
) -> tuple[list[Fact], list[Reject]]:
    """The teacher's facts, and what gave none."""
    written: list[Fact] = []
    rejects: list[Reject] = []
    num_unusable = 0
    with llm.open(teacher_cfg) as teacher:

        def ask(task: Task) -> llm.Reply | llm.RefusedError:
            try:
                return teacher.complete(task.messages, task.schema)
            except llm.RefusedError as refusal:
                return refusal

        replies = progress.track(teacher.map(ask, asked), "chunks", len(asked))
        for task, reply in zip(asked, replies, strict=True):
            found: list[Fact] = []
            if isinstance(reply, llm.RefusedError):
                reason, detail = "refused by the teacher", str(reply)
                bad = [Reject(id=task.chunks[0].id, reason=reason, detail=detail)]
            else:
                found, bad = facts.read(task, reply, cfg.max_answer_words)
            num_unusable += len(bad)
            if not found and not bad:
                url = task.chunks[0].url
                bad = [Reject(id=task.chunks[0].id, reason=f"no {task.sort}", detail=url)]
            written += found
            rejects += bad
        written, unsupported = _ground(cfg, teacher_cfg, teacher, written, pages)
        rejects += unsupported
        open_questions = [fact for fact in written if fact.written.kind == "unanswerable"]
        answered = _answered(cfg, teacher, open_questions, index)
        usage = teacher.usage
    written = [fact for fact in written if fact.id not in answered]
    rejects += answered.values()
    progress.note(
        f"teacher: {usage.calls} calls made, {usage.cached} taken from the ledger, "
        f"{usage.prompt_tokens + usage.completion_tokens} tokens, {usage.cost_usd:.4f} USD, "
        f"{usage.seconds / max(1, usage.calls):.2f} s a call"
    )
    tokens = usage.prompt_tokens + usage.completion_tokens
    # Not metrics of the stage: a rerun pays nothing, and equal runs have equal metrics.
    progress.step(
        *(len(asked), len(asked), "chunks"),
        calls=usage.calls,
        tokens=tokens,
        cost_usd=usage.cost_usd,
    )
    if num_unusable > cfg.max_reject_rate * (len(written) + num_unusable):
        store.write(out / "rejects.jsonl", rejects)
        raise PipelineError(
            f"synthesize.max_reject_rate: {num_unusable} of {len(written) + num_unusable} "
            f"facts and replies are unusable, more than {cfg.max_reject_rate:.0%}; "
            f"see {out}/rejects.jsonl"
        )
    return written, rejects


def _ground(
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


def _curate(
    cfg: Config, written: Sequence[Fact], partitions: Mapping[str, Partition]
) -> tuple[list[Fact], list[Reject]]:
    """The facts that stand on their own and say something new, in their order."""
    kept: set[str] = set()
    rejects: list[Reject] = []
    for part in get_args(Partition):
        rows = [fact.row for fact in written if partitions[fact.document_id] == part]
        for step in (
            partial(curation.sift, min_answer_words=cfg.min_answer_words),
            partial(curation.near, seed=cfg.seed, threshold=cfg.near_duplicate_threshold),
        ):
            rows, left_out = step(rows)
            rejects += left_out
        kept |= {row.id for row in rows}
    assert len(written) == len(kept) + len(rejects)
    return [fact for fact in written if fact.id in kept], rejects


def _leaks(
    cfg: Config, parts: dict[Partition, list[Example]], settled: Sequence[Example]
) -> list[Reject]:
    """Take the test questions that train gives away out of `parts`, as rejects.

    More than `max_leak_rate` of them fail the stage, and so does a leak of a frozen question: those
    are not exchanged.
    """
    test = [*parts["test"], *settled]
    rows = {
        track: [curation.pair(e) for e in test if e.track == track and e.kind != "unanswerable"]
        for track in ("held_out", "same_fact")
    }
    train = [curation.pair(e) for e in parts["train"] if e.kind != "unanswerable"]
    found = leakage.check(train, rows["held_out"], rows["same_fact"])
    leaking = {leak.test_id: leak for leak in found}
    fixed = {example.id for example in settled}
    if len(leaking) > cfg.max_leak_rate * len(test) or leaking.keys() & fixed:
        raise PipelineError(
            f"synthesize.max_leak_rate: {cfg.max_leak_rate}: {leakage.tell(found, 5)}; let the "
            "pages share a partition with a lower duplicate_threshold, or freeze again"
        )
    parts["test"] = [example for example in parts["test"] if example.id not in leaking]
    return [
        Reject(
            id=id,
            reason=f"leaks into train: {leak.kind}",
            detail=f"{leak.question} ~ {leak.train_id}",
        )
        for id, leak in sorted(leaking.items())
    ]


def _answered(
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


# --- which of it is kept -----------------------------------------------------------------------


def _choose(
    cfg: Config,
    written: Sequence[Fact],
    assignment: Sequence[Assignment],
    first: Collection[str],
) -> tuple[dict[Partition, list[Fact]], list[Reject]]:
    """The facts of each partition, within the maxima; every other one is a reject.

    Those that one of the questions that come `first` asks for are kept before all others.
    """
    chosen: dict[Partition, list[Fact]] = {"train": [], "validation": [], "test": []}
    rejects: list[Reject] = []
    for row in assignment:
        of_page = [fact for fact in written if fact.document_id == row.document_id]
        of_page, left_out = _by_kind(cfg, of_page)
        rejects += left_out
        kept, left_out = examples.cap(
            of_page, cfg.seed, cfg.max_facts_per_page, "over max_facts_per_page", first
        )
        chosen[row.partition] += kept
        rejects += left_out
    chosen["train"], left_out = examples.cap(
        chosen["train"], cfg.seed, cfg.max_facts, "over max_facts", first
    )
    rejects += left_out
    assert len(written) == sum(map(len, chosen.values())) + len(rejects)
    return chosen, rejects


def _by_kind(cfg: Config, of_page: Sequence[Fact]) -> tuple[list[Fact], list[Reject]]:
    """The shares of the kinds that one call writes together."""
    kept: set[str] = set()
    for kind in get_args(facts.FactKind):
        of_kind = [fact for fact in of_page if fact.written.kind == kind]
        fraction = getattr(cfg.shares, kind) if kind in tasks.KINDS else 1.0
        lasting = lambda fact: [fact.document_id, fact.written.forms[0]]  # noqa: E731
        kept |= {fact.id for fact in tasks.share(of_kind, fraction, cfg.seed, lasting)}
    rejects = [
        Reject(id=f.id, reason=f"over shares.{f.written.kind}", detail=f.written.forms[0])
        for f in of_page
        if f.id not in kept
    ]
    return [fact for fact in of_page if fact.id in kept], rejects


def _review(
    reviews: Sequence[examples.Review],
    composed: dict[Partition, list[Example]],
    fixed: Collection[str],
    path: Path,
) -> tuple[dict[Partition, list[Example]], list[Reject]]:
    """The examples after people's decisions; those on frozen questions do not count."""
    if ignored := [row.example_id for row in reviews if row.example_id in fixed]:
        progress.note(
            f"{path}: {len(ignored)} decisions are about frozen questions and do not count: "
            + ", ".join(ignored[:3])
        )
    counting = [row for row in reviews if row.example_id not in fixed]
    reviewed, refused, unknown = examples.apply(counting, composed)
    if unknown:
        progress.note(
            f"{path}: {len(unknown)} decisions name no example of this run: "
            + ", ".join(unknown[:3])
        )
    return reviewed, refused


def _plainest(train: Sequence[Example]) -> list[Example]:
    """One example of each fact: its first wording."""
    first: dict[object, Example] = {}
    for example in train:
        first.setdefault(
            (example.chunk_ids, example.evidence, example.answer, example.kind), example
        )
    return list(first.values())


def _raft(
    cfg: Config, train: Sequence[Example], index: Index
) -> tuple[list[Example], list[Reject]]:
    able = [e for e in train if e.evidence and e.kind not in ("style", "dialogue", "multihop")]
    chosen = tasks.share(able, cfg.shares.raft, cfg.seed, lambda example: example.id)
    return context.in_context(chosen, index, cfg.context, cfg.shares.raft_absent, cfg.seed)


def _sites(pages: Mapping[str, Document]) -> str:
    return ", ".join(sorted({urlsplit(page.url).netloc or page.source for page in pages.values()}))


def _named_teacher(teacher: llm.Config) -> card.Teacher:
    if isinstance(teacher, llm.Outline):
        return card.Teacher("outline", None, None)
    return card.Teacher(teacher.kind, teacher.model, llm.public(teacher.base_url))


def _tell_counts(
    cfg: Config, teacher: llm.Config, parts: Mapping[Partition, Sequence[Example]]
) -> dict[Kind, str]:
    """Say how many examples of each kind there are; why there is none, for those without."""
    zeros: dict[Kind, str] = {
        "paraphrase": "the other wordings of a question stand under its own kind",
        "imported": "people's questions stand in data/inputs/gold",
    }
    counts = {name: Counter(e.kind for e in part) for name, part in parts.items()}
    kinds: tuple[Kind, ...] = (*get_args(facts.FactKind), "raft")
    for kind in kinds:
        of_kind = [f"{name} {count[kind]}" for name, count in counts.items() if count[kind]]
        if of_kind:
            progress.note(f"{kind}: {', '.join(of_kind)}")
            continue
        if not getattr(cfg.shares, kind):
            why = f"synthesize.shares.{kind} is 0"
        elif isinstance(teacher, llm.Outline) and kind in ("multihop", "style"):
            why = "the outline teacher does not write it"
        else:
            why = "the chunks gave none; see rejects.jsonl"
        progress.note(f"{kind}: none, since {why}")
        zeros[kind] = why
    return zeros
