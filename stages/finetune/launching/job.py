"""One command of Axolotl's, with all that a launcher needs to know to run it somewhere."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.records import identify

ENVIRONMENT = Path(__file__).parents[1] / "environment"
"""What runs in the model environment: the Axolotl plugin."""


@dataclass(frozen=True)
class Job:
    module: str
    """Of Axolotl's, such as axolotl.cli.train."""
    arguments: tuple[str, ...]
    """The YAML, and the keys of it that are places of this machine."""
    folder: Path
    """Where it runs: the folder of the YAML."""
    work: Path
    """What survives a failure: checkpoints, the report, prepared examples."""
    name: str
    """Of the report in `work`, and of the log."""
    log: Path
    python: str
    """finetune.python."""
    num_processes: int
    """On each node."""
    reads: tuple[Path, ...] = ()
    """Folders outside the project that it reads."""
    offline: bool = True
    is_distributed: bool = True
    """Whether several nodes may share it: merging an adapter is for one alone."""

    @property
    def report(self) -> Path:
        return self.work / f"{self.name}.jsonl"

    @property
    def key(self) -> str:
        """Names this job among all of this machine."""
        return identify(str(self.work), self.name)


@dataclass(frozen=True)
class Nodes:
    """The machines that share a training, and which of them this is; shell words may stand here."""

    num: int
    rank: str
    address: str
    """Of the first, where the others meet it."""
    port: str


def command(python: Sequence[str], job: Job, nodes: Nodes | None = None) -> list[str]:
    """The job's words, under torchrun where several processes share it."""
    torchrun = [*python, "-m", "torch.distributed.run"]
    per_node = ["--nproc_per_node", str(job.num_processes)]
    if nodes and nodes.num > 1:
        where = ["--master_addr", nodes.address, "--master_port", nodes.port]
        start = [
            *torchrun,
            "--nnodes",
            str(nodes.num),
            "--node_rank",
            nodes.rank,
            *where,
            *per_node,
        ]
    elif job.num_processes > 1:
        start = [*torchrun, "--standalone", *per_node]
    else:
        start = list(python)
    return [*start, "-m", job.module, *job.arguments]


def variables(job: Job, num_nodes: int = 1, num_cores: int | None = None) -> dict[str, str]:
    """Axolotl's environment on this machine: each process has its share of the cores."""
    cores = num_cores or available_cores()
    ours = everywhere(job.offline) | {
        "PYTHONPATH": str(ENVIRONMENT),
        "OMP_NUM_THREADS": str(max(1, cores // job.num_processes)),
        "DOCENT_REPORT": str(job.report),
        "HF_DATASETS_CACHE": str(job.work / "datasets"),
    }
    return ours | (ALONE if job.num_processes == num_nodes == 1 else {})


def everywhere(offline: bool) -> dict[str, str]:
    """What holds on any machine: no telemetry, and no question to the hub that is not needed."""
    shared = {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # Threads that spin while they wait made training five times slower on a busy machine, such
        # as one that runs several points of a sweep.
        "OMP_WAIT_POLICY": "passive",
    }
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


def inherited(ours: Mapping[str, str]) -> dict[str, str]:
    """Our environment with these in it; what the user has on PYTHONPATH stays there."""
    paths = filter(None, [ours["PYTHONPATH"], os.environ.get("PYTHONPATH")])
    return os.environ | dict(ours) | {"PYTHONPATH": os.pathsep.join(paths)}


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shell(words: Sequence[str]) -> str:
    """A command as a shell reads it; words that begin with a dollar sign are left to the shell."""
    return " ".join(f'"{word}"' if word.startswith("$") else shlex.quote(word) for word in words)


def exports(ours: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(ours.items()))
