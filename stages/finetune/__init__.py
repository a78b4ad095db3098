"""Fine-tune the base on the training examples: render Axolotl's YAML, launch it, follow it."""

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import filelock

from stages.core import model as base
from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import Assignment, Document, Example, Reject, identify
from stages.finetune import launching, recipe, scratch, trainer
from stages.finetune.recipe import Config

__all__ = ["Config", "run"]


def run(
    cfg: Config,
    model: base.Config,
    documents: Path,
    assignment: Path,
    train: Path,
    validation: Path,
    out: Path,
) -> dict[str, float]:
    """Write out/model, out/axolotl.yaml, out/curve.csv, and out/base where it is built here.

    The loss figures are means over the last tenth of the steps, in nats per token.
    """
    out.mkdir(parents=True, exist_ok=True)
    out = out.absolute()
    for stale in ("base", "model"):
        shutil.rmtree(out / stale, ignore_errors=True)
    examples = list(store.read(train, Example))
    if not examples:
        raise PipelineError(
            f"{train}: no example to train on; see rejects.jsonl beside it for why none was written"
        )
    unseen = list(store.read(validation, Example))
    rendered = recipe.tuning(cfg, model, has_validation=bool(unseen))
    store.write_text(out / "axolotl.yaml", recipe.render(rendered))
    write_chats(examples, out / "train.jsonl")
    write_chats(unseen, out / "validation.jsonl")

    metrics: dict[str, float] = {}
    places: dict[str, Path] = {}
    if isinstance(model, base.Scratch):
        metrics["base_loss"] = scratch.base(
            cfg, model, train_texts(documents, assignment), out / "base"
        )
    if isinstance(model, base.Local):
        places["base_model"] = check_local(model)
    report = tune(cfg, model, out, places)

    write_curve(report, out / "curve.csv")
    rejects = too_long(examples, report, model)
    store.write(out / "rejects.jsonl", rejects + too_long(unseen, report, model))
    check_counts(cfg, model, len(examples), len(rejects), report.num_examples)
    metrics |= {
        "train_loss": report.final("loss"),
        "num_steps": report.total,
        "num_examples": report.num_examples,
        "num_truncated": len(rejects),
        "num_parameters": report.num_parameters,
    }
    if unseen:
        metrics["validation_loss"] = report.final("eval_loss")
    return metrics


def tune(cfg: Config, model: base.Config, out: Path, places: dict[str, Path]) -> trainer.Report:
    """Train by out/axolotl.yaml, resuming a checkpoint of this very training if there is one."""
    key = training_key(cfg, out, places)
    work = store.cache("training", key)
    axolotl = partial(
        trainer.axolotl,
        cfg.python,
        out / "axolotl.yaml",
        work,
        launcher=cfg.launcher,
        offline=not isinstance(model, base.Hub),
    )
    trained = work / "model"
    # Points of a sweep share .cache/; two of them may ask for the same training.
    with filelock.FileLock(work.with_name(f"{key}.lock")):
        if not cfg.save_steps:
            shutil.rmtree(work, ignore_errors=True)  # of a training that was killed
        trainer.ready(work)
        progress.note("instruction tuning; Axolotl starts in half a minute")
        report = axolotl(
            "tune",
            places | {"output_dir": trained, "dataset_prepared_path": work / "prepared"},
            num_processes=cfg.num_processes,
            is_distributed=True,
        )
        if isinstance(cfg, recipe.Lora):
            progress.note("merging the adapter into the weights")
            axolotl("merge", places | {"output_dir": trained}, module="axolotl.cli.merge_lora")
            trained = trained / "merged"
        trainer.collect(trained, out / "model")
        shutil.rmtree(work)
    return report


INPUTS = ("axolotl.yaml", "train.jsonl", "validation.jsonl", "base")
"""What of a stage's folder shapes the tuning."""


def training_key(cfg: Config, out: Path, places: dict[str, Path]) -> str:
    """Names all that shapes a training, so that no other one's checkpoint is gone on from.

    Not where it runs: a training that was begun here may go on as a job of a cluster.
    """
    return identify(
        *((name, store.digest(out / name)) for name in INPUTS if (out / name).exists()),
        *map(fingerprint, places.values()),
        [store.digest(path) for path in sorted(trainer.ENVIRONMENT.glob("*.py"))],
        launching.versions(cfg.launcher, cfg.python),
        cfg.num_processes * launching.num_nodes(cfg.launcher),
    )


def fingerprint(folder: Path) -> str:
    """Names, sizes and times of a model's files: its bytes may be too many to read."""
    files = sorted(folder.iterdir())
    return identify(*((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files))


def write_chats(examples: Iterable[Example], path: Path) -> None:
    """Write the examples as Axolotl's `chat_template` reads them, each ending with its answer."""
    lines = []
    for example in examples:
        turns = [turn.model_dump() for turn in example.messages]
        if turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": example.answer})
        lines.append(json.dumps({"id": example.id, "messages": turns}, ensure_ascii=False))
    store.write_text(path, "".join(f"{line}\n" for line in lines))


def train_texts(documents: Path, assignment: Path) -> list[str]:
    """The texts of the documents that are assigned to train, in the order of their ids."""
    train = {
        row.document_id for row in store.read(assignment, Assignment) if row.partition == "train"
    }
    texts = {row.id: row.text for row in store.read(documents, Document) if row.id in train}
    if not texts:
        raise PipelineError(f"{assignment}: no document is assigned to train: add documents")
    return [texts[id] for id in sorted(texts)]


def check_local(model: base.Local) -> Path:
    """The model's folder, absolute; an error names what it lacks."""
    folder = store.locate(model.path, "model.path").absolute()
    config, *tokenizer = ("config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
    for names in ([config], tokenizer, ["*.safetensors"]):
        if not any(any(folder.glob(name)) for name in names):
            raise PipelineError(
                f"model.path: {model.path!r} has no {' or '.join(names)}: expected a folder that "
                "save_pretrained() of a model and of its tokenizer wrote"
            )
    if model.template is None and not has_template(folder):
        raise PipelineError(
            f"model.path: the tokenizer in {model.path!r} carries no chat template: "
            "set model.format or model.chat_template"
        )
    if model.marks and (end := end_token(folder)) != model.marks[1]:
        raise PipelineError(
            f"model.format.stop: {model.marks[1]!r}: the tokenizer in {model.path!r} ends a text "
            f"with {end!r}: set it to that, so that training teaches where an answer ends"
        )
    return folder


def end_token(folder: Path) -> str | None:
    settings = folder / "tokenizer_config.json"
    found = store.read_json(settings).get("eos_token") if settings.exists() else None
    return found["content"] if isinstance(found, dict) else found


def has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    return any(folder.glob("chat_template*")) or (
        settings.exists() and "chat_template" in store.read_json(settings)
    )


def write_curve(report: trainer.Report, path: Path) -> None:
    """The tuning's figures by step; a validation loss holds until the next."""
    names = ["loss", "learning_rate"]
    if any("eval_loss" in row for row in report.steps.values()):
        names.append("eval_loss")
    lines = [",".join(["step", *names])]
    known: dict[str, float] = {}
    for step, row in sorted(report.steps.items()):
        known |= row
        if "loss" in row:
            values = (f"{known[name]:.6g}" if name in known else "" for name in names)
            lines.append(",".join([str(step), *values]))
    store.write_text(path, "".join(f"{line}\n" for line in lines))


def too_long(
    examples: Iterable[Example], report: trainer.Report, model: base.Config
) -> list[Reject]:
    return [
        Reject(
            id=example.id,
            reason="longer than the context",
            detail=f"{report.too_long[example.id]} tokens of {model.context_tokens}",
        )
        for example in examples
        if example.id in report.too_long
    ]


def check_counts(
    cfg: Config, model: base.Config, num_given: int, num_rejected: int, num_trained: int
) -> None:
    """Every example is trained on or rejected, and not too many are rejected."""
    if num_given != num_trained + num_rejected:
        raise PipelineError(
            f"Axolotl trained on {num_trained} of {num_given} examples, though only {num_rejected} "
            "exceed the context: a key of finetune.axolotl drops the others; remove it"
        )
    if num_rejected > cfg.max_reject_rate * num_given:
        raise PipelineError(
            f"finetune.max_reject_rate: {cfg.max_reject_rate}: {num_rejected} of {num_given} "
            f"examples are longer than model.context_tokens ({model.context_tokens}): raise either"
        )
