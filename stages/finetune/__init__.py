"""Fine-tune the base on the training examples: render Axolotl's YAML, launch it, follow it."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stages.core import model as base
from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import Document, Example, Preference, Reject
from stages.finetune import (
    card,
    checks,
    data,
    hardware,
    hosted,
    launching,
    lineage,
    recipe,
    scratch,
    training,
)
from stages.finetune.recipe import Name
from stages.finetune.settings import Adapted, Config, CptThenSft, Dpo
from stages.finetune.trainer import Report

__all__ = ["Config", "run"]

STALE = (
    *("axolotl*.yaml", "documents.jsonl", "preferences.jsonl"),
    *("lineage.json", "README.md", "curve.csv", "hosted.json"),
)
"""What another recipe or launcher may have left in the stage's folder, and this one not write."""


def run(
    cfg: Config,
    model: base.Config,
    documents: Path,
    assignment: Path,
    train: Path,
    validation: Path,
    out: Path,
    preferences: Path | None = None,
) -> dict[str, float]:
    """Write out/model, the YAMLs, the curve, lineage and card; out/adapter and out/base if made.

    The loss figures are means over the last tenth of the steps, in nats per token.
    """
    out.mkdir(parents=True, exist_ok=True)
    out = out.absolute()
    for stale in ("base", "model", "adapter"):
        shutil.rmtree(out / stale, ignore_errors=True)
    for stale in STALE:
        for path in out.glob(stale):
            path.unlink()
    examples = list(store.read(train, Example))
    if not examples:
        raise PipelineError(
            f"{train}: no example to train on; see rejects.jsonl beside it for why none was written"
        )
    unseen = list(store.read(validation, Example))
    if isinstance(cfg.launcher, launching.OpenAI):
        return tune_hosted(cfg, cfg.launcher, model, examples, unseen, out)
    pairs = read_pairs(cfg, preferences)
    model = lineage.pinned(model)
    machine = hardware.machine(cfg)
    checks.machine(cfg, machine)
    phases = recipe.phases(cfg, model, machine, has_validation=bool(unseen))
    progress.note(hardware.sentence(machine, phases[0].recipe))
    for phase in phases:
        store.write_text(out / phase.file, recipe.render(phase.recipe))

    learnt = data.train_documents(documents, assignment)
    data.write_chats(examples, out / "train.jsonl", model)
    data.write_chats(unseen, out / "validation.jsonl", model)
    rejects: list[Reject] = []
    if isinstance(cfg, CptThenSft):
        texts = [*data.train_texts(learnt, assignment), *data.paraphrases(examples)]
        data.write_texts(texts, out / "documents.jsonl", model.context_tokens)
    if isinstance(cfg, Dpo):
        by_id = {example.id: example for example in examples}
        rejects += data.write_pairs(pairs, by_id, out / "preferences.jsonl")

    metrics: dict[str, float] = {}
    places: dict[str, Path] = {}
    if isinstance(model, base.Scratch):
        # Built here, also where the tuning is packed for elsewhere.
        here = hardware.here(cfg) if isinstance(cfg.launcher, launching.Bundle) else machine
        metrics["base_loss"] = scratch.base(
            cfg, model, here, data.train_texts(learnt, assignment), out / "base"
        )
    if isinstance(model, base.Local):
        places["base_model"] = checks.local(model)
    base_folder = out / "base" if isinstance(model, base.Scratch) else places.get("base_model")
    base_id = lineage.identify_base(model, base_folder)
    earlier = None
    if isinstance(cfg, Adapted):
        earlier = lineage.earlier(cfg, base_id, list(store.read(documents, Document)), out)
    history = lineage.lineage(base_id, learnt, earlier)
    given: dict[Name, tuple[str, list[str]]] = {
        "tune": ("examples", [example.id for example in examples]),
        "dpo": ("preference pairs", [pair.example_id for pair in pairs]),
    }

    def heard(name: Name, told: Report) -> None:
        """See that every row is trained on or rejected, while nothing is trained yet."""
        if name in given:
            what, ids = given[name]
            long = too_long(ids, told, model)
            lost = rejects if name == "dpo" else []
            store.write(out / "rejects.jsonl", [*rejects, *long])
            checks.counts(cfg, model, what, len(ids), len(long) + len(lost), told.num_examples)

    with training.train(cfg, model, phases, out, places, history, earlier, heard) as reports:
        checks.end_turns(model, out / "model")
        training.write_curve(reports, out / "curve.csv")
        metrics |= judge(model, examples, unseen, pairs, reports, rejects, out)
        digest = lineage.keep(out / "adapter") if cfg.adapter else None
        if digest:
            progress.note(
                f"the adapter {digest[:16]} is kept: finetune.init_adapter goes on from it"
            )
        store.write_json(out / "lineage.json", history.model_dump() | {"adapter": digest})
        files = {path.name: store.digest(path) for path in (documents, train, validation)}
        if isinstance(cfg, Dpo) and preferences:
            files[preferences.name] = store.digest(preferences)
        trained_by = max(told.num_processes for told in reports.values())
        card_text = card.render(cfg, model, history, files, metrics, digest, trained_by)
        store.write_text(out / "README.md", card_text)
    return metrics


def commands(cfg: Config, model: base.Config, out: Path) -> str:
    """What would train, for a shell; nothing is run, and no example is read."""
    if isinstance(cfg.launcher, launching.OpenAI):
        return hosted.render(cfg.launcher, cfg.seed)
    machine = hardware.machine(cfg, asks_image=False)
    checks.machine(cfg, machine)
    phases = recipe.phases(cfg, model, machine, has_validation=True)
    places = {"base_model": checks.local(model)} if isinstance(model, base.Local) else {}
    named = cfg.init_adapter if isinstance(cfg, Adapted) else None
    earlier = lineage.find(named, out).absolute() if named else None
    first = scratch.render(cfg) + "\n" if isinstance(model, base.Scratch) else ""
    return first + training.render(cfg, model, phases, out.absolute(), places, earlier)


def tune_hosted(
    cfg: Config,
    launcher: launching.OpenAI,
    model: base.Config,
    examples: Sequence[Example],
    unseen: Sequence[Example],
    out: Path,
) -> dict[str, float]:
    """Have a provider tune its own model; out/hosted.json names what came of it."""
    data.write_chats(examples, out / "train.jsonl", model)
    data.write_chats(unseen, out / "validation.jsonl", model)
    report = hosted.tune(launcher, cfg.kind, cfg.seed, out)
    store.write(out / "rejects.jsonl", [])
    metrics: dict[str, float] = {"num_examples": report.num_examples, "num_steps": report.total}
    if report.has("loss"):
        training.write_curve({"tune": report}, out / "curve.csv")
        metrics["train_loss"] = report.final("loss")
        if report.has("eval_loss"):
            metrics["validation_loss"] = report.final("eval_loss")
    return metrics


def read_pairs(cfg: Config, preferences: Path | None) -> list[Preference]:
    """The preference pairs, where the recipe learns from them."""
    if not isinstance(cfg, Dpo):
        return []
    pairs = list(store.read(preferences, Preference)) if preferences else []
    if not pairs:
        raise PipelineError(
            f"{preferences or '--preferences'}: finetune=dpo has no pair to learn from: set "
            "synthesize.shares.preferences above 0"
        )
    return pairs


def judge(
    model: base.Config,
    examples: Sequence[Example],
    unseen: Sequence[Example],
    pairs: Sequence[Preference],
    reports: Mapping[Name, Report],
    rejects: Sequence[Reject],
    out: Path,
) -> dict[str, float]:
    """Write out/rejects.jsonl, with what is too long; the metrics."""
    metrics: dict[str, float] = {"num_parameters": max(r.num_parameters for r in reports.values())}
    found = list(rejects)
    if told := reports.get("tune"):
        long = too_long((example.id for example in examples), told, model)
        found += long + too_long((example.id for example in unseen), told, model)
        metrics |= {
            "train_loss": told.final("loss"),
            "num_steps": told.total,
            "num_examples": told.num_examples,
            "num_truncated": len(long),
        }
        if told.has("eval_loss"):  # Axolotl validates nothing where all is too long
            metrics["validation_loss"] = told.final("eval_loss")
    if told := reports.get("cpt"):
        metrics |= {"cpt_loss": told.final("loss"), "cpt_num_steps": told.total}
    if told := reports.get("dpo"):
        long = too_long((pair.example_id for pair in pairs), told, model)
        found += long
        metrics |= {
            "dpo_loss": told.final("loss"),
            "dpo_accuracy": told.final("rewards/accuracies"),
            "dpo_margin": told.final("rewards/margins"),
            "dpo_num_steps": told.total,
            "num_pairs": told.num_examples,
            "num_pairs_truncated": len(long),
        }
    store.write(out / "rejects.jsonl", found)
    return metrics


def too_long(ids: Iterable[str], report: Report, model: base.Config) -> list[Reject]:
    return [
        Reject(
            id=id,
            reason="longer than the context",
            detail=f"{report.too_long[id]} tokens of {model.context_tokens}",
        )
        for id in ids
        if id in report.too_long
    ]
