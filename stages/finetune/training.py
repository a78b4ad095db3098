"""The starts of a recipe, one after another: train, merge the adapter, collect what they made."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import filelock

from stages.core import model as base
from stages.core import progress, store
from stages.core.records import identify
from stages.finetune import bundle, checkpoints, launching, lineage, recipe, starts, trainer
from stages.finetune.launching import Job
from stages.finetune.lineage import Earlier, Lineage
from stages.finetune.recipe import Name, Phase
from stages.finetune.settings import Config
from stages.finetune.starts import Start
from stages.finetune.trainer import Report

INPUTS = (
    "train.jsonl",
    "validation.jsonl",
    "documents.jsonl",
    "preferences.jsonl",
    "base",
)
"""What of a stage's folder shapes a training, beside its YAMLs."""

Heard = Callable[[Name, Report], None]
"""Called when a phase has counted its examples, before its first step."""


@contextlib.contextmanager
def train(
    cfg: Config,
    model: base.Config,
    phases: Sequence[Phase],
    out: Path,
    places: Mapping[str, Path],
    history: Lineage,
    earlier: Earlier | None,
    heard: Heard,
) -> Iterator[dict[Name, Report]]:
    """Train by the phases' YAMLs into out/model and out/adapter; what each phase has told.

    A checkpoint of this very training is resumed, and a phase that had ended is not run again.
    What was trained is kept until the block ends well.
    """
    started = earlier.folder if earlier else None
    key = training_key(cfg, phases, out, [*places.values(), *([started] if started else [])])
    work = store.cache("training", key)
    # Points of a sweep share .cache/; two of them may ask for the same training.
    with filelock.FileLock(work.with_name(f"{key}.lock")):
        note_left_behind(work)
        if isinstance(cfg.launcher, launching.Bundle) and not (work / bundle.KEPT).exists():
            bundle.ask(cfg.launcher, pack(cfg, model, phases, out, places, started), work)
        reports: dict[Name, Report] = {}
        todo = starts.starts(cfg, phases, work, places, started)
        for phase, start in zip(phases, todo, strict=False):
            reports[phase.name] = tune(cfg, model, phase, start, out, work, heard)
        last = work / phases[-1].name / "model"
        if cfg.adapter:
            name = str(phases[-1].recipe["base_model"])
            lineage.collect(last, out / "adapter", name, history)
            if not (work / "merged").exists():  # in a bundle
                progress.note(todo[-1].title)
                shutil.rmtree(last / "merged", ignore_errors=True)
                trainer.axolotl(job(cfg, model, todo[-1], out, work), cfg.launcher)
            last = last / "merged"
        trainer.collect(last, out / "model")
        yield reports
        if not isinstance(cfg.launcher, launching.Bundle):  # what was brought back is kept
            shutil.rmtree(work)


def tune(
    cfg: Config,
    model: base.Config,
    phase: Phase,
    start: Start,
    out: Path,
    work: Path,
    heard: Heard,
) -> Report:
    """Run one phase, unless it had ended."""
    folder = work / phase.name
    done = folder / "ended"
    brought = isinstance(cfg.launcher, launching.Bundle)
    if done.exists() and not brought and (fault := weights_fault(folder / "model")):
        # A power cut can lose what was written before the mark, and leave that.
        progress.note(f"{phase.title} had ended, but {fault}")
        done.unlink()
    if done.exists():
        progress.note(f"{phase.title} had ended")
        report = trainer.replay(folder / f"{phase.name}.jsonl")
        heard(phase.name, report)
        return report
    if not cfg.save_steps:
        shutil.rmtree(folder, ignore_errors=True)  # of a training that was killed
    trainer.ready(folder)
    progress.note(f"{phase.title}; Axolotl starts in half a minute")
    report = trainer.axolotl(
        job(cfg, model, start, out, work),
        cfg.launcher,
        phase.prefix,
        lambda told: heard(phase.name, told),
    )
    heard(phase.name, report)
    checkpoints.sync(folder / "model")
    store.write_text(done, "")
    return report


def weights_fault(folder: Path) -> str | None:
    """What is wrong with the weights that a phase has left."""
    files = sorted(folder.glob("*.safetensors"))
    faults = ((path.name, checkpoints.tensors_fault(path)) for path in files)
    found = (f"{name} {fault}" for name, fault in faults if fault)
    return next(found, None) if files else "its weights are gone"


def note_left_behind(work: Path) -> None:
    """Say what other trainings keep on the disk that have not ended, and that no one runs."""
    others = (path for path in work.parent.glob("*") if path.is_dir() and path != work)
    sizes = [left_behind(path) for path in others if not (path / bundle.KEPT).exists()]
    if left := [size for size in sizes if size]:
        progress.note(
            f".cache/training keeps {sum(left) / 1e9:.3g} GB of {len(left)} other trainings that "
            "have not ended: remove what is not to be gone on with"
        )


def left_behind(work: Path) -> int:
    """Bytes of a training's folder; 0 while another process trains there."""
    try:
        with filelock.FileLock(work.with_name(f"{work.name}.lock"), timeout=0):
            return sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    except filelock.Timeout:
        return 0


def job(cfg: Config, model: base.Config, start: Start, out: Path, work: Path) -> Job:
    """One start of the training's, for a launcher; one process alone merges."""
    return starts.job(
        start,
        out,
        work if start.is_merge else work / start.name,
        trainer.log(start.name),
        cfg.python,
        offline=not isinstance(model, base.Hub),
        num_processes=1 if start.is_merge else cfg.num_processes,
        is_distributed=not start.is_merge,
    )


def pack(
    cfg: Config,
    model: base.Config,
    phases: Sequence[Phase],
    out: Path,
    places: Mapping[str, Path],
    started: Path | None,
) -> bundle.Packed:
    """What trains by the phases elsewhere, as `train` does here."""
    folders = dict(zip(("base",), places.values(), strict=False))
    if started:
        folders["earlier"] = started
    inside = {key: Path("base") for key in places}
    earlier = Path("earlier") if started else None
    files = [*(phase.file for phase in phases), *INPUTS]
    return bundle.Packed(
        files=[out / name for name in files if (out / name).exists()],
        folders=folders,
        starts=starts.starts(cfg, phases, Path(bundle.TRAINED), inside, earlier),
        num_processes=cfg.num_processes,
        offline=not isinstance(model, base.Hub),
    )


def render(
    cfg: Config,
    model: base.Config,
    phases: Sequence[Phase],
    out: Path,
    places: Mapping[str, Path],
    started: Path | None,
) -> str:
    """The commands that `train` would run, for a shell; KEY stands for the training's key."""
    if isinstance(cfg.launcher, launching.Bundle):
        return bundle.script(cfg.launcher, pack(cfg, model, phases, out, places, started))
    work = store.cache("training", "KEY")
    text = []
    for start in starts.starts(cfg, phases, work, places, started):
        task = job(cfg, model, start, out, work)
        text.append(f"# {start.title}\n{launching.render(cfg.launcher, task)}")
    return "\n".join(text)


CHECKPOINTS = (
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "auto_resume_from_checkpoints",
)
"""Keys of a YAML that shape no weight: a training goes on where they change."""


def training_key(cfg: Config, phases: Sequence[Phase], out: Path, folders: Sequence[Path]) -> str:
    """Names all that shapes a training, so that no other one's checkpoint is gone on from.

    Not where it runs: a training that was begun here may go on as a job of a cluster.
    """
    shaping = (
        {key: value for key, value in phase.recipe.items() if key not in CHECKPOINTS}
        for phase in phases
    )
    return identify(
        *((phase.file, recipe.render(kept)) for phase, kept in zip(phases, shaping, strict=True)),
        *((name, store.digest(out / name)) for name in INPUTS if (out / name).exists()),
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
