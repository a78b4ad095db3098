"""Documents and chunks to examples: partitions first, then a teacher's questions with evidence."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from stages import llm
from stages.answer import embedding
from stages.answer.retrieval import Index
from stages.core import formats, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Chunk, Document, Example, Imported, Kind, Partition, Reject
from stages.synthesize import (
    asking,
    card,
    choosing,
    context,
    examples,
    facts,
    frozen,
    partition,
    preferences,
    tasks,
    unanswerable,
)
from stages.synthesize import imported as people
from stages.synthesize.facts import Fact
from stages.synthesize.settings import Config
from stages.synthesize.tasks import Task

__all__ = ["Config", "plan", "run"]


def run(
    cfg: Config,
    teacher: llm.Config,
    embedder: embedding.Config,
    documents: Path,
    imported: Path,
    chunks: Path,
    passages: Path,
    review: Path,
    testset: Path,
    out: Path,
) -> dict[str, float]:
    """Write out/assignment.jsonl, train, validation, test and preferences, and what was left out.

    Where `testset` holds questions, they are the test set and none is written anew: no other
    partition repeats them, and the pages of the held-out ones are never trained on. Prompts with
    context are made of `passages`, as those of service are. The pairs that were `imported` come
    before what the teacher writes.
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
        index = asking.index_of(store.read(passages, Chunk), set(pages), Path(folder) / "all")
        trained = {page for page, part in partitions.items() if part == "train"}
        trained_index = asking.index_of(index.chunks, trained, Path(folder) / "trained")
    all_chunks = list(store.read(chunks, Chunk))
    usable, rejects = asking.usable(cfg, pages, all_chunks)
    pairs, lost_pairs = people.facts(store.read(imported, Imported), pages, all_chunks)
    rejects += lost_pairs
    with llm.open(teacher) as asked, embedding.open(embedder) as model:
        embed = model.texts if model else None
        written, left_out = _written(cfg, teacher, asked, usable, pages, partitions, index, out)
        written, uncurated = choosing.curate(cfg, [*pairs, *written], partitions, embed)
        rejects += [*left_out, *uncurated]
        if cfg.min_grade and isinstance(teacher, llm.OpenAI):
            written, left_out = asking.graded(cfg, asked, written)
            rejects += left_out
        _tell_spent(asked.usage)
    asked_by_people = {fact.written.forms[0] for fact in pairs}
    by_partition, left_out = choosing.choose(cfg, written, assignment, learnt | asked_by_people)
    texts = [document.text for document in pages.values()]
    for facts_of_part in by_partition.values():
        facts_of_part += unanswerable.invented(
            facts_of_part, texts, cfg.shares.unanswerable, cfg.seed
        )
    sizes = examples.Sizes(cfg.num_validation, cfg.num_same_fact, cfg.num_held_out)
    composed, unused = examples.compose(by_partition, cfg.seed, cfg.num_held_forms, sizes, kept)
    settled, lost = frozen.settle(kept, pages)
    reviewed, refused = choosing.review(reviews, composed, {example.id for example in kept}, review)
    with embedding.open(embedder) as model:
        leaking = choosing.leaks(cfg, reviewed, settled, model.texts if model else None)
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
    """The calls that a run would make, without making any; those that judge facts are unknown."""
    pages = {document.id: document for document in store.read(documents, Document)}
    assignment = partition.assign(
        list(pages.values()),
        cfg.seed,
        cfg.validation_share,
        cfg.test_share,
        cfg.duplicate_threshold,
    )
    partitions = {row.document_id: row.partition for row in assignment}
    usable, _ = asking.usable(cfg, pages, store.read(chunks, Chunk))
    return [
        *(asking.judging(cfg, pages, usable) if _judges_chunks(cfg, teacher) else ()),
        *asking.planned(cfg, teacher, pages, partitions, usable),
    ]


def _judges_chunks(cfg: Config, teacher: llm.Config) -> bool:
    return cfg.judge_chunks and isinstance(teacher, llm.OpenAI)


def _written(
    cfg: Config,
    teacher_cfg: llm.Config,
    teacher: llm.Teacher,
    chunks: Sequence[Chunk],
    pages: Mapping[str, Document],
    partitions: Mapping[str, Partition],
    index: Index,
    out: Path,
) -> tuple[list[Fact], list[Reject]]:
    """The teacher's facts that their evidence supports, and what was left out for a reason.

    More unusable replies and facts than `max_reject_rate` fail the stage.
    """
    rejects: list[Reject] = []
    if _judges_chunks(cfg, teacher_cfg):
        chunks, rejects = asking.worthy(cfg, teacher, pages, chunks)
    asked = asking.planned(cfg, teacher_cfg, pages, partitions, chunks)
    written, unusable, num_unusable = asking.written(cfg, teacher, asked)
    written, unsupported = asking.grounded(cfg, teacher_cfg, teacher, written, pages)
    open_questions = [fact for fact in written if fact.written.kind == "unanswerable"]
    answered = asking.answered(cfg, teacher, open_questions, index)
    written = [fact for fact in written if fact.id not in answered]
    rejects += [*unusable, *unsupported, *answered.values()]
    if num_unusable > cfg.max_reject_rate * (len(written) + num_unusable):
        store.write(out / "rejects.jsonl", rejects)
        raise PipelineError(
            f"synthesize.max_reject_rate: {num_unusable} of {len(written) + num_unusable} "
            f"facts and replies are unusable, more than {cfg.max_reject_rate:.0%}; "
            f"see {out}/rejects.jsonl"
        )
    return written, rejects


def _tell_spent(usage: llm.Usage) -> None:
    tokens = usage.prompt_tokens + usage.completion_tokens
    progress.note(
        f"teacher: {usage.calls} calls made, {usage.cached} taken from the ledger, "
        f"{tokens} tokens, {usage.cost_usd:.4f} USD, "
        f"{usage.seconds / max(1, usage.calls):.2f} s a call"
    )
    # Not metrics of the stage: a rerun pays nothing, and equal runs have equal metrics.
    asked = usage.calls + usage.cached
    progress.step(asked, asked, "calls", calls=usage.calls, tokens=tokens, cost_usd=usage.cost_usd)


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
    }
    counts = {name: Counter(e.kind for e in part) for name, part in parts.items()}
    kinds: tuple[Kind, ...] = (*get_args(facts.FactKind), "raft")
    for kind in kinds:
        of_kind = [f"{name} {count[kind]}" for name, count in counts.items() if count[kind]]
        if of_kind:
            progress.note(f"{kind}: {', '.join(of_kind)}")
            continue
        if kind == "imported":
            why = "no source holds questions with their answers"
        elif not getattr(cfg.shares, kind):
            why = f"synthesize.shares.{kind} is 0"
        elif isinstance(teacher, llm.Outline) and kind in ("multihop", "style"):
            why = "the outline teacher does not write it"
        else:
            why = "the chunks gave none; see rejects.jsonl"
        progress.note(f"{kind}: none, since {why}")
        zeros[kind] = why
    return zeros
