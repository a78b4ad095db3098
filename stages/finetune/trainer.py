"""From a rendered YAML to a trained folder: launch Axolotl, hear its report, name its failure."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from stages.core import progress, store
from stages.core.errors import PipelineError

ENVIRONMENT = Path(__file__).with_name("environment")
"""What runs in the model environment: the Axolotl plugin."""


@dataclass
class Report:
    """What the plugin has told about one training."""

    num_parameters: int = 0
    num_examples: int = 0
    """Examples that were trained on, after Axolotl has dropped what is too long."""
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

    def final(self, name: str) -> float:
        """The mean of a figure over the last tenth of the steps; of its last value if none."""
        told = [(step, row[name]) for step, row in sorted(self.steps.items()) if name in row]
        last = [value for step, value in told if step > 0.9 * self.total] or [told[-1][1]]
        return sum(last) / len(last)


def axolotl(
    python: str,
    recipe: Path,
    work: Path,
    name: str,
    places: Mapping[str, Path],
    *,
    module: str = "axolotl.cli.train",
    num_processes: int = 1,
    offline: bool = True,
    prefix: str = "",
) -> Report:
    """Run Axolotl on a YAML, in the YAML's folder, and show its steps; what it told.

    `places` replace keys of the YAML whose values are folders of this machine. `work` survives a
    failure, with the report in it; the log is .cache/logs/finetune-<name>.log.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = store.workspace("logs", f"finetune-{name}.log")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
    arguments = [
        *store.interpreter(python, "finetune.python"),
        *((*torchrun, str(num_processes)) if num_processes > 1 else ()),
        *("-m", module, recipe.name),
        *(f"--{key}={path}" for key, path in sorted(places.items())),
    ]
    environment = os.environ | variables(num_processes, offline)
    environment["DOCENT_REPORT"] = str(work / f"{name}.jsonl")
    environment["HF_DATASETS_CACHE"] = str(work / "datasets")
    rows, report = Rows(work / f"{name}.jsonl"), Report()

    def tick() -> None:
        for row in rows.new():
            report.hear(row)
            if "step" in row and "loss" in row:
                figures = {prefix + key: row[key] for key in FIGURES if key in row}
                progress.step(row["step"], row["total"], "steps", **figures)

    code = watch(arguments, recipe.parent, environment, log, tick)
    if code != 0:
        said = report.error or decisive(log.read_text(errors="replace"))
        raise PipelineError(f"Axolotl failed: {said} (log: {log.relative_to(Path.cwd())})")
    return report


FIGURES = ("loss", "eval_loss", "learning_rate", "tokens")


def variables(num_processes: int, offline: bool) -> dict[str, str]:
    """Axolotl's environment: no telemetry, and each process its share of the cores."""
    paths = [str(ENVIRONMENT), *filter(None, [os.environ.get("PYTHONPATH")])]
    shared = {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        # Threads that spin while they wait made training five times slower on a busy machine, such
        # as one that runs several points of a sweep.
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": str(max(1, num_cores() // num_processes)),
    }
    if num_processes == 1:
        shared |= ALONE
    return shared | ({"HF_HUB_OFFLINE": "1"} if offline else {})


ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What torchrun tells a process that is the only one; torchrun itself takes seconds to start."""


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def watch(
    arguments: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    log: Path,
    tick: Callable[[], None],
) -> int:
    """Run a command, call `tick` five times a second and once after its end; its exit code.

    Whatever ends us ends it, and all that it has started.
    """
    with log.open("wb") as output:
        process = psutil.Popen(
            list(arguments),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches us alone: Axolotl would save half a model and call it a success.
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
    try:
        while process.poll() is None:
            tick()
            time.sleep(0.2)
        tick()
        return int(process.returncode)
    finally:
        end(process)


def die_with_parent() -> None:
    """In the child, between fork and exec: SIGTERM when the thread that started it is gone."""
    LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


LIBC = ctypes.CDLL(None)


def end(process: psutil.Process) -> None:
    """End a process and its descendants; nothing if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        store.end_processes([*process.children(recursive=True), process])


class Rows:
    """A JSONL file that another process appends to: each row once, and only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

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


TRACEBACK = re.compile(
    r"^Traceback \(most recent call last\):$.*?^(?P<said>[^\s].*?)"
    r"(?=^\s*$|^\[|^[WEI]\d{4} |^Traceback|\Z)",
    re.MULTILINE | re.DOTALL,
)


def decisive(log: str) -> str:
    """The line of a trainer's log that says why it failed: its last own exception, in one line.

    torchrun adds a traceback of its own that says only that a process failed.
    """
    log = re.sub(r"^\[rank\d+\]: ?", "", log, flags=re.MULTILINE)
    said = [" ".join(match["said"].split()) for match in TRACEBACK.finditer(log)]
    own = [line for line in said if not re.match(r"[\w.]*ChildFailedError", line)]
    if own:
        return own[-1][:500]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"


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
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
