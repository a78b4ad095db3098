"""From a rendered YAML to a trained folder: launch Axolotl, follow its report, name its failure."""

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from stages.core import store
from stages.core.errors import PipelineError

ENVIRONMENT = Path(__file__).with_name("environment")
"""What runs in the model environment: the Axolotl plugin."""

Row = dict[str, Any]


def axolotl(
    python: str,
    recipe: Path,
    log: Path,
    heard: Callable[[Row], None],
    *,
    num_processes: int = 1,
    offline: bool = True,
    **overrides: Path,
) -> None:
    """Train by a YAML, in its folder; rows of the plugin's report go to `heard` as they come.

    The overrides replace keys of the YAML whose values are places on this machine.
    """
    arguments = [
        *interpreter(python),
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)),
        *("-m", "axolotl.cli.train", recipe.name),
        *(f"--{key.replace('_', '-')}={path}" for key, path in sorted(overrides.items())),
    ]
    report = log.with_suffix(".report.jsonl")
    report.write_text("")
    rows = Rows(report)
    errors: list[str] = []

    def hear() -> None:
        for row in rows.new():
            if "error" in row:
                errors.append(row["error"])
            else:
                heard(row)

    environment = os.environ | variables(num_processes, offline) | {"DOCENT_REPORT": str(report)}
    code = watch(arguments, recipe.parent, environment, log, hear)
    if code != 0:
        said = errors[0] if errors else decisive(log.read_text(errors="replace"))
        raise PipelineError(f"Axolotl failed: {said} (log: {log})")


def interpreter(python: str) -> list[str]:
    """The command that starts Python in the model environment."""
    program, *arguments = shlex.split(python)
    found = shutil.which(program) if "/" not in program else None
    if found is None:
        try:
            # Not resolved: a virtual environment's interpreter is a link to the system's.
            found = str(store.locate(program, "finetune.python").absolute())
        except PipelineError as error:
            raise PipelineError(f"{error}; `make setup` builds the model environment") from None
    return [found, *arguments]


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
        "OMP_NUM_THREADS": str(max(1, num_cores() // num_processes)),
    }
    return shared | ({"HF_HUB_OFFLINE": "1"} if offline else {})


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
    """End a process and its descendants, politely, then not; nothing if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, stubborn = psutil.wait_procs(family, timeout=5)
        for member in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(stubborn, timeout=5)


class Rows:
    """A JSONL file that another process appends to: each row once, and only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def new(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.position += len(line)
                yield json.loads(line)


TRACEBACK = re.compile(
    r"^(?:\[rank\d+\]: ?)?Traceback \(most recent call last\):$.*?^(?:\[rank\d+\]: ?)?(?P<said>[^\s\[].*?)"
    r"(?=^\s*$|^\[|^[WEI]\d{4} |^Traceback|\Z)",
    re.MULTILINE | re.DOTALL,
)


def decisive(log: str) -> str:
    """The line of a trainer's log that says why it failed: its last own exception, in one line.

    torchrun adds a traceback of its own that says only that a process failed.
    """
    said = [" ".join(match["said"].split()) for match in TRACEBACK.finditer(log)]
    own = [line for line in said if not re.match(r"[\w.]*ChildFailedError", line)]
    if own:
        return own[-1][:500]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
