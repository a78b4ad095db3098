"""Tune at a provider: the examples go there, and the name of a model comes back."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import identify
from stages.finetune.launching import OpenAI
from stages.finetune.trainer import Report
from stages.llm import api_key, public, tuning, wire

SECTION = "finetune.launcher"
TEACHES = ("full", "lora", "qlora")
"""Kinds of finetune that learn from examples; what is trained of the weights is the provider's."""


def tune(cfg: OpenAI, kind: str, seed: int, out: Path) -> Report:
    """Train on out/train.jsonl, and write out/hosted.json; what was told of the training."""
    if kind not in TEACHES:
        raise PipelineError(
            f"finetune.kind: {kind!r}: the hosted API is given examples alone: expected "
            f"{', '.join(TEACHES)}, or another finetune/launcher"
        )
    training, validation = (chats(out / f"{name}.jsonl") for name in ("train", "validation"))
    check_cost(cfg, training)
    secret = api_key(cfg, SECTION)
    key = training_key(cfg, seed, training, validation)
    folder = store.cache("hosted", key, "notes.json").parent
    for name, rows in (("train", training), ("validation", validation)):
        store.write_text(folder / f"{name}.jsonl", "".join(f"{row}\n" for row in rows))
    order = tuning.Order(
        name=key,
        model=cfg.model,
        training=folder / "train.jsonl",
        validation=folder / "validation.jsonl" if validation else None,
        hyperparameters=hyperparameters(cfg),
        seed=seed,
        suffix=cfg.suffix,
    )
    steps, report = folder / "steps.json", Report(num_examples=len(training))
    heard(steps, report)

    def tell(event: tuning.Event) -> None:
        progress.note(event.message)
        if row := told(event):
            report.hear(row)
            keep(steps, report)
            shown: dict[str, Any] = {k: row[k] for k in ("loss", "eval_loss") if k in row}
            progress.step(row["step"], row["total"], "steps", **shown)

    # Points of a sweep share .cache/; two of them may ask for the same training.
    with filelock.FileLock(folder / "lock"):
        client = tuning.Tuning(cfg, secret, folder / "notes.json", SECTION)
        try:
            progress.note(f"training {cfg.model} at {public(cfg.base_url)}: it is gone on with")
            made = client.train(order, tell)
        except KeyboardInterrupt:
            progress.note(
                "the job goes on there, and the next run with it; "
                "`python -m stages tuning cancel` ends it"
            )
            raise
        finally:
            client.close()
    cost = made.trained_tokens * cfg.price_usd_per_mtok / 1e6
    progress.step(1, 1, "trainings", cost_usd=cost if made.is_new else 0.0)
    about = {
        "base": cfg.model,
        "tuned": made.model,
        "job": made.job,
        "base_url": public(cfg.base_url),
        "trained_tokens": made.trained_tokens,
    }
    store.write_json(out / "hosted.json", about)
    return report


def chats(path: Path) -> list[str]:
    """The conversations of a file of ours, a line each, as the API reads them."""
    lines = filter(None, path.read_text(encoding="utf-8").split("\n")) if path.exists() else ()
    rows = [{"messages": json.loads(line)["messages"]} for line in lines]
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def training_key(cfg: OpenAI, seed: int, training: Sequence[str], validation: Sequence[str]) -> str:
    """Names all that shapes a hosted training."""
    where = public(cfg.base_url)
    return identify(where, cfg.model, hyperparameters(cfg), seed, list(training), list(validation))


def hyperparameters(cfg: OpenAI) -> dict[str, int | float | str]:
    chosen = {
        "n_epochs": cfg.num_epochs,
        "batch_size": cfg.batch_size,
        "learning_rate_multiplier": cfg.learning_rate_multiplier,
    }
    return {name: "auto" if value is None else value for name, value in chosen.items()}


def check_cost(cfg: OpenAI, training: Sequence[str]) -> None:
    """Nothing is sent that may cost more than the cap."""
    if cfg.max_cost_usd is None:
        return
    tokens = sum(
        wire.count(turn["content"]) + wire.MESSAGE_TOKENS
        for row in training
        for turn in json.loads(row)["messages"]
    )
    cost = tokens * (cfg.num_epochs or 1) * cfg.price_usd_per_mtok / 1e6
    if cost > cfg.max_cost_usd:
        raise PipelineError(
            f"finetune.launcher.max_cost_usd: {cfg.max_cost_usd}: {tokens} tokens, "
            f"{cfg.num_epochs} times, would cost {cost:.2f} USD: raise it, or lower "
            "finetune.launcher.num_epochs; nothing was sent"
        )


def told(event: tuning.Event) -> dict[str, Any] | None:
    """An event's figures under our names; None where it has none."""
    names = {"train_loss": "loss", "full_valid_loss": "eval_loss", "valid_loss": "eval_loss"}
    figures = event.figures
    if "step" not in figures or not names.keys() & figures.keys():
        return None
    row: dict[str, Any] = {
        names[name]: figures[name] for name in reversed(names) if name in figures
    }
    step = int(figures["step"])
    return row | {"step": step, "total": int(figures.get("total_steps", step))}


def heard(path: Path, report: Report) -> None:
    """Take over what earlier runs have heard of this training: an event is told once."""
    if path.exists():
        known = store.read_json(path)
        report.total = known["total"]
        report.steps = {int(step): figures for step, figures in known["steps"].items()}


def keep(path: Path, report: Report) -> None:
    steps = {str(step): figures for step, figures in sorted(report.steps.items())}
    store.write_json(path, {"total": report.total, "steps": steps})


def render(cfg: OpenAI, seed: int) -> str:
    """What would be asked of the endpoint, as requests by hand."""
    address = public(cfg.base_url)
    key = f'-H "Authorization: Bearer ${cfg.api_key_env}"' if cfg.api_key_env else ""
    job = {
        "model": cfg.model,
        "training_file": "FILE",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters(cfg)}},
        "seed": seed,
        "suffix": cfg.suffix,
        "metadata": {tuning.MARK: "KEY"},
    }
    return (
        f"curl {address}/files {key} -F purpose=fine-tune -F file=@train.jsonl\n"
        f"curl {address}/fine_tuning/jobs {key} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(job))}\n"
        f"curl {address}/fine_tuning/jobs/JOB {key}\n"
    )


def cancel(cfg: OpenAI) -> list[str]:
    """Cancel the trainings that go on at this endpoint; their jobs' numbers.

    One that cannot be asked for keeps no other from its end: it is told at last.
    """
    secret = api_key(cfg, SECTION)
    ended, faults = [], []
    for notes in sorted(store.cache("hosted", "any").parent.glob("*/notes.json")):
        client = tuning.Tuning(cfg, secret, notes, SECTION)
        try:
            if job := client.cancel():
                ended.append(job)
        except PipelineError as fault:
            faults.append(str(fault))
        finally:
            client.close()
    if faults:
        raise PipelineError(f"{'; '.join(faults)}; cancelled: {', '.join(ended) or 'none'}")
    return ended
