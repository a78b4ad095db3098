"""Documents and chunks to examples: partitions first, then a teacher's questions with evidence."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages import llm
from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.core.records import Assignment, Chunk, Document, Partition, Reject
from stages.synthesize import examples, facts, frozen, partition

__all__ = ["Config", "run"]

Count = Annotated[int, Field(ge=0)] | None


class Config(config.Base):
    seed: int
    """Decides the partitions, the held-out wordings and what is left out above a maximum."""
    duplicate_threshold: Annotated[float, Field(gt=0, le=1)]
    """Similarity (Jaccard index of five-word shingles) from which documents share a partition."""
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the clusters of documents that validate the training."""
    test_share: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the clusters of documents that are held out for the test."""
    num_held_forms: Annotated[int, Field(ge=1, le=len(facts.FORMS) - 2)]
    """Wording forms of each kind, of seven, that are kept from training and tested."""
    max_answer_words: Annotated[int, Field(ge=1)]
    """Longest answer that is taken from the teacher, in words."""
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
    review: Path,
    testset: Path,
    out: Path,
) -> dict[str, float]:
    """Write out/assignment.jsonl, train, validation, test and preferences, and what was left out.

    Where `testset` holds questions, they are the test set and none is written anew: no other
    partition repeats them, and the pages of the held-out ones are never trained on.
    """
    reviews = list(store.read(review, examples.Review))
    kept = frozen.read(testset)
    pages = {document.id: document for document in store.read(documents, Document)}
    rows = list(store.read(chunks, Chunk))
    assignment = partition.assign(
        list(pages.values()),
        cfg.seed,
        cfg.validation_share,
        cfg.test_share,
        cfg.duplicate_threshold,
        frozen.held_pages(kept),
        {page for page, _ in frozen.learnt(kept)},
    )
    store.write(out / "assignment.jsonl", assignment)

    written, rejects = _ask(cfg, teacher, pages, rows, out)
    by_partition, left_out = _choose(cfg, written, assignment, frozen.learnt(kept))
    sizes = examples.Sizes(cfg.num_validation, cfg.num_same_fact, cfg.num_held_out)
    composed, unused = examples.compose(by_partition, cfg.seed, cfg.num_held_forms, sizes, kept)
    settled, lost = frozen.settle(kept, pages)
    fixed = {example.id for example in kept}
    if ignored := [row.example_id for row in reviews if row.example_id in fixed]:
        progress.note(
            f"{review}: {len(ignored)} decisions are about frozen questions and do not count: "
            + ", ".join(ignored[:3])
        )
        reviews = [row for row in reviews if row.example_id not in fixed]
    reviewed, refused, unknown = examples.apply(reviews, composed)
    reviewed["test"] += settled
    if lost:
        progress.note(
            f"{testset}: {len(lost)} of {len(kept)} questions lost their page or their evidence, "
            "so that the test set is another one: see rejects.jsonl, and freeze again"
        )
    if unknown:
        progress.note(
            f"{review}: {len(unknown)} decisions name no example of this run: "
            + ", ".join(unknown[:3])
        )

    rejects += [*left_out, *unused, *refused, *lost]
    store.write(out / "rejects.jsonl", rejects)
    if not reviewed["train"]:
        reasons = Counter(reject.reason for reject in rejects).most_common(1)
        raise PipelineError(
            f"{chunks}: no training question came of {len(rows)} chunks"
            + (f" (most often: {reasons[0][0]})" if reasons else "")
            + f"; see {out}/rejects.jsonl, and give the pages headings, tables and definitions, or "
            "take a language model with teacher=openai"
        )
    for name, part in reviewed.items():
        store.write(out / f"{name}.jsonl", part)
    store.write(out / "preferences.jsonl", [])
    tracks = Counter(example.track for example in reviewed["test"])
    return {
        "num_documents": len(pages),
        "num_clusters": len({row.cluster_id for row in assignment}),
        "num_facts": len({(e.chunk_ids, e.evidence, e.answer, e.kind) for e in reviewed["train"]}),
        "num_train": len(reviewed["train"]),
        "num_validation": len(reviewed["validation"]),
        "num_test_same_fact": tracks["same_fact"],
        "num_test_held_out": tracks["held_out"],
        "num_frozen": len(kept),
        "num_rejects": len(rejects),
    }


def _ask(
    cfg: Config,
    teacher_cfg: llm.Config,
    pages: dict[str, Document],
    chunks: Sequence[Chunk],
    out: Path,
) -> tuple[list[facts.Fact], list[Reject]]:
    """The teacher's facts about all chunks, and what gave none."""
    texts = {id: document.text.encode() for id, document in pages.items()}
    written: list[facts.Fact] = []
    rejects: list[Reject] = []
    sound = []
    for chunk in chunks:
        if texts.get(chunk.document_id, b"")[chunk.start : chunk.end] == chunk.text.encode():
            sound.append(chunk)
        else:
            rejects.append(Reject(id=chunk.id, reason="not the document's text", detail=chunk.url))
    num_used = num_unusable = 0
    with llm.open(teacher_cfg) as teacher:

        def ask(chunk: Chunk) -> llm.Reply | llm.RefusedError:
            messages = facts.prompt(pages[chunk.document_id], chunk, cfg.max_answer_words)
            try:
                return teacher.complete(messages, facts.SCHEMA)
            except llm.RefusedError as refusal:
                return refusal

        replies = progress.track(teacher.map(ask, sound), "chunks", len(sound))
        for chunk, reply in zip(sound, replies, strict=True):
            if isinstance(reply, llm.RefusedError):
                found: list[facts.Fact] = []
                bad = [Reject(id=chunk.id, reason="refused by the teacher", detail=str(reply))]
            else:
                found, bad = facts.read(chunk, reply, cfg.max_answer_words)
            num_unusable += len(bad)
            num_used += bool(found)
            if not found and not bad:
                bad = [Reject(id=chunk.id, reason="no facts", detail=chunk.url)]
            written += found
            rejects += bad
        usage = teacher.usage
    progress.note(
        f"teacher: {usage.calls} calls made, {usage.cached} taken from the ledger, "
        f"{usage.prompt_tokens + usage.completion_tokens} tokens, {usage.cost_usd:.4f} USD, "
        f"{usage.seconds / max(1, usage.calls):.2f} s a call"
    )
    tokens = usage.prompt_tokens + usage.completion_tokens
    # Not metrics of the stage: a rerun pays nothing, and equal runs have equal metrics.
    progress.step(
        *(len(sound), len(sound), "chunks"),
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


def _choose(
    cfg: Config,
    written: Sequence[facts.Fact],
    assignment: Sequence[Assignment],
    first: Collection[tuple[str, str]],
) -> tuple[dict[Partition, list[facts.Fact]], list[Reject]]:
    """The facts of each partition, within the maxima; every other one is a reject.

    Those of the pages and answers that come `first` are kept before all others.
    """
    chosen: dict[Partition, list[facts.Fact]] = {"train": [], "validation": [], "test": []}
    rejects: list[Reject] = []
    for row in assignment:
        of_page = [fact for fact in written if fact.chunk.document_id == row.document_id]
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
