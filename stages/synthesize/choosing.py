"""Facts and examples to those that are kept, and a reason for each of the others."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from stages.core import progress
from stages.core.errors import PipelineError
from stages.core.records import Assignment, Example, Partition, Reject
from stages.synthesize import curation, examples, facts, leakage, tasks
from stages.synthesize.curation import Embed
from stages.synthesize.facts import Fact
from stages.synthesize.settings import Config


def curate(
    cfg: Config,
    written: Sequence[Fact],
    partitions: Mapping[str, Partition],
    embed: Embed | None,
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
        if embed:
            rows, left_out = curation.semantic(rows, embed, cfg.semantic_duplicate_threshold)
            rejects += left_out
        kept |= {row.id for row in rows}
    assert len(written) == len(kept) + len(rejects)
    return [fact for fact in written if fact.id in kept], rejects


def leaks(
    cfg: Config,
    parts: dict[Partition, list[Example]],
    settled: Sequence[Example],
    embed: Embed | None,
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
    found = leakage.check(
        train, rows["held_out"], rows["same_fact"], embed, cfg.semantic_leak_threshold
    )
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


def choose(
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
    by_page: dict[str, list[Fact]] = {}
    for fact in written:
        by_page.setdefault(fact.document_id, []).append(fact)
    for row in assignment:
        of_page = by_page.get(row.document_id, [])
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


def review(
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
