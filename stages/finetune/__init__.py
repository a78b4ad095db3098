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
    for stale in ("axolotl*.yaml", "documents.jsonl", "preferences.jsonl"):
        for path in out.glob(stale):  # of another recipe
            path.unlink()
    examples = list(store.read(train, Example))
    if not examples:
        raise PipelineError(
            f"{train}: no example to train on; see rejects.jsonl beside it for why none was written"
        )
    unseen = list(store.read(validation, Example))
    (out / "hosted.json").unlink(missing_ok=True)
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
    reports = training.train(cfg, model, phases, out, places, history, earlier)
    checks.end_turns(model, out / "model")
    training.write_curve(reports, out / "curve.csv")
    metrics |= judge(cfg, model, examples, unseen, pairs, reports, rejects, out)
    digest = lineage.keep(out / "adapter") if cfg.adapter else None
    if digest:
        progress.note(f"the adapter {digest[:16]} is kept: finetune.init_adapter goes on from it")
    store.write_json(out / "lineage.json", history.model_dump() | {"adapter": digest})
    given = {path.name: store.digest(path) for path in (documents, train, validation)}
    if isinstance(cfg, Dpo) and preferences:
        given[preferences.name] = store.digest(preferences)
    store.write_text(out / "README.md", card.render(cfg, model, history, given, metrics, digest))
    return metrics


def commands(cfg: Config, model: base.Config, out: Path) -> str:
    """What would train, for a shell; nothing is run, and no example is read."""
    if isinstance(cfg.launcher, launching.OpenAI):
        return hosted.render(cfg.launcher, cfg.seed)
    machine = hardware.machine(cfg)
    checks.machine(cfg, machine)
    phases = recipe.phases(cfg, model, machine, has_validation=True)
    places = {"base_model": checks.local(model)} if isinstance(model, base.Local) else {}
    return training.render(cfg, model, phases, out.absolute(), places, [])


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
    if report.steps:
        training.write_curve({"tune": report}, out / "curve.csv")
        metrics["train_loss"] = report.final("loss")
        if any("eval_loss" in row for row in report.steps.values()):
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
    cfg: Config,
    model: base.Config,
    examples: Sequence[Example],
    unseen: Sequence[Example],
    pairs: Sequence[Preference],
    reports: Mapping[Name, Report],
    rejects: list[Reject],
    out: Path,
) -> dict[str, float]:
    """Write out/rejects.jsonl, see that every row was trained on or rejected; the metrics."""
    metrics: dict[str, float] = {"num_parameters": max(r.num_parameters for r in reports.values())}
    long: list[Reject] = []
    if told := reports.get("tune"):
        long = too_long((example.id for example in examples), told, model)
        rejects += long + too_long((example.id for example in unseen), told, model)
        metrics |= {
            "train_loss": told.final("loss"),
            "num_steps": told.total,
            "num_examples": told.num_examples,
            "num_truncated": len(long),
        }
        if unseen:
            metrics["validation_loss"] = told.final("eval_loss")
    if told := reports.get("cpt"):
        metrics |= {"cpt_loss": told.final("loss"), "cpt_num_steps": told.total}
    if told := reports.get("dpo"):
        long_pairs = too_long((pair.example_id for pair in pairs), told, model)
        lost = [reject for reject in rejects if reject.reason == data.NO_EXAMPLE]
        rejects += long_pairs
        metrics |= {
            "dpo_loss": told.final("loss"),
            "dpo_accuracy": told.final("rewards/accuracies"),
            "dpo_margin": told.final("rewards/margins"),
            "dpo_num_steps": told.total,
            "num_pairs": told.num_examples,
            "num_pairs_truncated": len(long_pairs),
        }
    store.write(out / "rejects.jsonl", rejects)
    if told := reports.get("tune"):
        checks.counts(cfg, model, "examples", len(examples), len(long), told.num_examples)
    if told := reports.get("dpo"):
        left_out = len(long_pairs) + len(lost)
        checks.counts(cfg, model, "preference pairs", len(pairs), left_out, told.num_examples)
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
