"""From a rendered YAML to a trained folder: launch Axolotl, hear its report, name its failure."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.finetune import checkpoints, failures, launching
from stages.finetune.launching import ENVIRONMENT, HERE, Job

__all__ = ["ENVIRONMENT", "Report", "axolotl", "collect", "log", "replay"]


@dataclass
class Report:
    """What the plugin has told about one training."""

    num_parameters: int = 0
    num_examples: int = 0
    """Examples that were trained on, after Axolotl has dropped what is too long."""
    num_processes: int = 0
    """Those that trained together, on all machines."""
    too_long: dict[str, int] = field(default_factory=dict)
    """Tokens of each example that exceeds the context, by its id."""
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    """Figures by step; a resumed training tells some steps twice."""
    total: int = 0
    error: str = ""

    def hear(self, row: dict[str, Any]) -> None:
        if "error" in row:
            self.error = row["error"]
        elif "id" in row:
            self.too_long[row["id"]] = row["num_tokens"]
        elif "step" in row:
            self.total = row["total"]
            figures = {name: row[name] for name in FIGURES if name in row}
            self.steps.setdefault(row["step"], {}).update(figures)
        else:
            self.num_parameters = row["num_parameters"]
            self.num_examples = row["num_examples"]
            self.num_processes = row.get("num_processes", 0)

    def final(self, name: str) -> float:
        """The mean of a figure over the last tenth of the steps; of its last value if none."""
        told = [(step, row[name]) for step, row in sorted(self.steps.items()) if name in row]
        if not told:
            raise PipelineError(
                f"the training has told no {name!r} in {self.total} steps: remove "
                "finetune.axolotl.logging_steps and logging_strategy, or let it log more often"
            )
        last = [value for step, value in told if step > 0.9 * self.total] or [told[-1][1]]
        return sum(last) / len(last)

    def has(self, name: str) -> bool:
        return any(name in row for row in self.steps.values())


def axolotl(
    job: Job,
    launcher: launching.Config = HERE,
    prefix: str = "",
    heard: Callable[[Report], None] | None = None,
) -> Report:
    """Run Axolotl on a YAML, in the YAML's folder, and show its steps; what it told.

    The job's `work` survives a failure, with the report in it. `heard` is called when the examples
    are counted, before the first step; what it raises ends the training.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    rows, report = Rows(job.report), Report()
    rows.mend()
    for row in rows.new():  # of attempts before this one
        report.hear(row)
    report.error = ""

    def tick() -> None:
        for row in rows.new():
            report.hear(row)
            if heard and "num_examples" in row:
                heard(report)
            if "step" in row:
                figures = {prefix + key: row[key] for key in FIGURES if key in row}
                progress.step(row["step"], row["total"], "steps", **figures)

    code = launching.run(launcher, job, tick)
    if code != 0:
        said = job.log.read_text(errors="replace") if job.log.exists() else ""
        known = yaml.safe_load((job.folder / job.arguments[0]).read_text())
        reason = failures.explain(report.error, code, said, known)
        raise PipelineError(f"Axolotl failed: {reason} (log: {kept(job)})")
    return report


def log(name: str) -> Path:
    """What a start prints; two points of a sweep have each their own."""
    return store.workspace("logs", f"finetune-{name}.log")


def kept(job: Job) -> str:
    """The log of a start that failed, where the user finds it.

    DVC removes the workspace of a point of a sweep; its log is copied out of there.
    """
    place = job.log
    if place.exists() and not place.is_relative_to(store.root() / ".cache"):
        place = store.cache("logs", f"finetune-{job.name}-{job.key[:8]}.log")
        shutil.copyfile(job.log, place)
    return os.path.relpath(place, store.root())


FIGURES = (
    "loss",
    "eval_loss",
    "learning_rate",
    "tokens",
    "tokens_per_s",
    "memory_gb",
    "rewards/accuracies",
    "rewards/margins",
)


def replay(told: Path) -> Report:
    """What a training that had ended has told."""
    report = Report()
    for row in Rows(told).new():
        report.hear(row)
    return report


def ready(work: Path) -> None:
    """Make a training's folder fit to go on with: torn checkpoints go aside, so do prepared files.

    What Axolotl has prepared may be as torn as a checkpoint, and bears no mark of being whole.
    """
    for name in ("prepared", "datasets"):
        shutil.rmtree(work / name, ignore_errors=True)
    for name, fault in checkpoints.set_aside(work / "model", work / "torn").items():
        progress.note(f"{name} is not gone on from: {fault}")
    if steps := checkpoints.numbered(work / "model"):
        progress.note(f"going on from step {max(steps)}")


class Rows:
    """A JSONL file that another process appends to: each row once, and only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def mend(self) -> None:
        """Cut off a line that a killed writer left unfinished: the next would go on in it."""
        if self.path.exists():
            whole = self.path.read_bytes()
            if whole and not whole.endswith(b"\n"):
                with self.path.open("r+b") as file:
                    file.truncate(whole.rfind(b"\n") + 1)

    def new(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.position += len(line)
                yield json.loads(line)


MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
"""What of a trainer's folder is the model; its logs, cards and states vary between equal runs."""


def collect(trained: Path, folder: Path) -> None:
    """Copy the model out of a trainer's folder."""
    files = sorted({file for pattern in MODEL_FILES for file in trained.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise PipelineError(f"{trained}: Axolotl ended well but left no *.safetensors there")
    for file in files:
        if file.suffix == ".safetensors" and (fault := checkpoints.tensors_fault(file)):
            raise PipelineError(
                f"{file}: {file.name} {fault}, and is not exported: lower finetune.learning_rate, "
                "or look at the disk"
            )
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
