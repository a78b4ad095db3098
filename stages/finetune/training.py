"""The phases of a recipe, one after another: train, merge the adapter, collect what they made."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import filelock

from stages.core import model as base
from stages.core import progress, store
from stages.core.records import identify
from stages.finetune import bundle, launching, lineage, trainer
from stages.finetune.lineage import Earlier, Lineage
from stages.finetune.recipe import Name, Phase
from stages.finetune.settings import Config
from stages.finetune.trainer import Report

INPUTS = (
    "train.jsonl",
    "validation.jsonl",
    "documents.jsonl",
    "preferences.jsonl",
    "base",
)
"""What of a stage's folder shapes a training, beside its YAMLs."""


def train(
    cfg: Config,
    model: base.Config,
    phases: Sequence[Phase],
    out: Path,
    places: Mapping[str, Path],
    history: Lineage,
    earlier: Earlier | None,
) -> dict[Name, Report]:
    """Train by the phases' YAMLs into out/model and out/adapter; what each phase has told.

    A checkpoint of this very training is resumed, and a phase that had ended is not run again.
    """
    started = [earlier.folder] if earlier else []
    key = training_key(cfg, phases, out, [*places.values(), *started])
    work = store.cache("training", key)
    reports: dict[Name, Report] = {}
    # Points of a sweep share .cache/; two of them may ask for the same training.
    with filelock.FileLock(work.with_name(f"{key}.lock")):
        if isinstance(cfg.launcher, launching.Bundle):
            bundle.require(cfg.launcher, pack(cfg, model, phases, out, places, started), work)
        elif not cfg.save_steps:
            shutil.rmtree(work, ignore_errors=True)  # of a training that was killed
        for phase in phases:
            folders = goes_on(cfg, phase, work, places, started)
            reports[phase.name] = tune(cfg, model, phase, out, work, folders)
        last = work / phases[-1].name / "model"
        if cfg.adapter:
            name = str(phases[-1].recipe["base_model"])
            lineage.collect(last, out / "adapter", name, history)
            if not (work / "merged").exists():
                progress.note("merging the adapter into the weights")
                merge = dict(places) | {"output_dir": last, "lora_model_dir": last}
                launch(cfg, model, out / phases[-1].file, work)(
                    "merge", merge, module="axolotl.cli.merge_lora"
                )
            last = last / "merged"
        trainer.collect(last, out / "model")
        if not isinstance(cfg.launcher, launching.Bundle):  # what was brought back is kept
            shutil.rmtree(work)
    return reports


def pack(
    cfg: Config,
    model: base.Config,
    phases: Sequence[Phase],
    out: Path,
    places: Mapping[str, Path],
    started: Sequence[Path],
) -> bundle.Packed:
    """What trains by the phases elsewhere, as `train` does here."""
    folders = dict(zip(("base",), places.values(), strict=False))
    folders |= dict(zip(("earlier",), started, strict=False))
    inside = {key: Path("base") for key in places}
    starts = []
    for phase in phases:
        given = goes_on(cfg, phase, Path(bundle.TRAINED), inside, [Path("earlier")][: len(started)])
        folder = f"{bundle.TRAINED}/{phase.name}"
        given |= {"output_dir": Path(folder, "model")}
        given |= {"dataset_prepared_path": Path(folder, "prepared")}
        words = {key: str(path) for key, path in given.items()}
        starts.append(bundle.Start(phase.name, "axolotl.cli.train", phase.file, words))
    if cfg.adapter:
        last = f"{bundle.TRAINED}/{phases[-1].name}/model"
        words = {key: str(path) for key, path in inside.items()}
        words |= {"output_dir": last, "lora_model_dir": last}
        starts.append(bundle.Start("merge", "axolotl.cli.merge_lora", phases[-1].file, words))
    files = [*(phase.file for phase in phases), *INPUTS]
    return bundle.Packed(
        files=[out / name for name in files if (out / name).exists()],
        folders=folders,
        starts=starts,
        num_processes=cfg.num_processes,
        offline=not isinstance(model, base.Hub),
    )


def tune(
    cfg: Config,
    model: base.Config,
    phase: Phase,
    out: Path,
    work: Path,
    places: Mapping[str, Path],
) -> Report:
    """Run one phase, unless it had ended."""
    folder = work / phase.name
    done = folder / "ended"
    if done.exists():
        progress.note(f"{phase.title} had ended")
        return trainer.replay(folder / f"{phase.name}.jsonl")
    trainer.ready(folder)
    progress.note(f"{phase.title}; Axolotl starts in half a minute")
    report = launch(cfg, model, out / phase.file, folder)(
        phase.name,
        dict(places)
        | {"output_dir": folder / "model", "dataset_prepared_path": folder / "prepared"},
        num_processes=cfg.num_processes,
        is_distributed=True,
        prefix=phase.prefix,
    )
    store.write_text(done, "")
    return report


def launch(cfg: Config, model: base.Config, recipe: Path, work: Path) -> "partial[Report]":
    return partial(
        trainer.axolotl,
        cfg.python,
        recipe,
        work,
        launcher=cfg.launcher,
        offline=not isinstance(model, base.Hub),
    )


def render(
    cfg: Config,
    model: base.Config,
    phases: Sequence[Phase],
    out: Path,
    places: Mapping[str, Path],
    started: Sequence[Path],
) -> str:
    """The commands that `train` would run, for a shell; KEY stands for the training's key."""
    if isinstance(cfg.launcher, launching.Bundle):
        return bundle.script(cfg.launcher, pack(cfg, model, phases, out, places, started))
    work = store.cache("training", "KEY")
    offline = not isinstance(model, base.Hub)
    text = []
    for phase in phases:
        folder = work / phase.name
        given = goes_on(cfg, phase, work, places, started)
        given |= {"output_dir": folder / "model", "dataset_prepared_path": folder / "prepared"}
        one = (out / phase.file, folder, phase.name, given, "axolotl.cli.train")
        task = trainer.job(cfg.python, *one, cfg.num_processes, True, offline)
        text.append(f"# {phase.title}\n{launching.render(cfg.launcher, task)}")
    if cfg.adapter:
        last = work / phases[-1].name / "model"
        given = dict(places) | {"output_dir": last, "lora_model_dir": last}
        merge = (out / phases[-1].file, work, "merge", given, "axolotl.cli.merge_lora")
        task = trainer.job(cfg.python, *merge, 1, False, offline)
        text.append(f"# the adapter into the weights\n{launching.render(cfg.launcher, task)}")
    return "\n".join(text)


def goes_on(
    cfg: Config, phase: Phase, work: Path, places: Mapping[str, Path], started: Sequence[Path]
) -> dict[str, Path]:
    """Where the weights or the adapter lie that a phase goes on from."""
    folders = dict(places)
    if phase.before:
        key = "lora_model_dir" if cfg.adapter else "base_model"
        folders[key] = work / phase.before / "model"
    elif started:
        folders["lora_model_dir"] = started[0]
    return folders


def training_key(cfg: Config, phases: Sequence[Phase], out: Path, folders: Sequence[Path]) -> str:
    """Names all that shapes a training, so that no other one's checkpoint is gone on from.

    Not where it runs: a training that was begun here may go on as a job of a cluster.
    """
    inputs = [*(phase.file for phase in phases), *INPUTS]
    return identify(
        *((name, store.digest(out / name)) for name in inputs if (out / name).exists()),
        *map(fingerprint, folders),
        [store.digest(path) for path in sorted(trainer.ENVIRONMENT.glob("*.py"))],
        launching.versions(cfg.launcher, cfg.python),
        cfg.num_processes * launching.num_nodes(cfg.launcher),
    )


def fingerprint(folder: Path) -> str:
    """Names, sizes and times of a model's files: its bytes may be too many to read."""
    files = sorted(folder.iterdir())
    return identify(*((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files))


def write_curve(reports: Mapping[Name, Report], path: Path) -> None:
    """The figures by step over all phases; a validation loss holds until the next.

    The loss of preferences has a column of its own, since it is none in nats per token.
    """
    rows: list[dict[str, object]] = []
    before = 0
    for name, report in reports.items():
        known: dict[str, float] = {}
        for step, figures in sorted(report.steps.items()):
            known |= figures
            if "loss" in figures:
                renamed = {
                    f"dpo_{k}" if name == "dpo" and k == "loss" else k: known[k] for k in known
                }
                rows.append({"step": before + step, "phase": name, **renamed})
        before += report.total
    columns = ["loss", "learning_rate", "eval_loss", *(["dpo_loss"] if "dpo" in reports else [])]
    lines = [",".join(["step", "phase", *columns])]
    for row in rows:
        values = [f"{row[name]:.6g}" if name in row else "" for name in columns]
        lines.append(",".join([str(row["step"]), str(row["phase"]), *values]))
    store.write_text(path, "".join(f"{line}\n" for line in lines))
