"""On this machine; with num_nodes also on others, which share its folders, by hand."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config, progress, store
from stages.finetune.launching import processes
from stages.finetune.launching.job import (
    Job,
    Nodes,
    command,
    exports,
    inherited,
    shell,
    variables,
)
from stages.finetune.launching.processes import Tick


class Local(config.Base):
    """Processes of this machine, under torchrun where there are several."""

    kind: Literal["local"]
    num_nodes: Annotated[int, Field(ge=1)]
    """Machines that share the training; each runs finetune.num_processes."""
    rendezvous: str | None
    """Where the machines meet, such as 10.0.0.1:29500: an address of this one; null for one."""

    @model_validator(mode="after")
    def _they_can_meet(self) -> Self:
        if self.num_nodes > 1 and not re.fullmatch(r".+:\d+", self.rendezvous or ""):
            raise PydanticCustomError(
                "rendezvous",
                "expected rendezvous as address:port beside num_nodes {num}, such as "
                "10.0.0.1:29500",
                {"num": self.num_nodes},
            )
        return self


HERE = Local(kind="local", num_nodes=1, rendezvous=None)


def run(cfg: Local, job: Job, tick: Tick) -> int:
    python = store.interpreter(job.python, "finetune.python")
    nodes = _nodes(cfg, job, "0")
    if nodes:
        script = job.work / "node.sh"
        store.write_text(script, node_script(cfg, job, python))
        progress.note(
            f"waiting for {nodes.num - 1} more machines: on number 1 and so on run "
            f"`sh {script} 1`, in a checkout under the same path"
        )
    environment = inherited(variables(job, nodes.num if nodes else 1))
    return processes.watch(command(python, job, nodes), job.folder, environment, job.log, tick)


def render(cfg: Local, job: Job) -> str:
    python = store.interpreter(job.python, "finetune.python")
    nodes = _nodes(cfg, job, "0")
    ours = variables(job, nodes.num if nodes else 1)
    first = f"cd {shell([str(job.folder)])}\n{exports(ours)}{shell(command(python, job, nodes))}\n"
    join = shell(["sh", str(job.work / "node.sh"), "1"])
    return first + (f"# on each other machine, with its number:\n{join}\n" if nodes else "")


def node_script(cfg: Local, job: Job, python: list[str]) -> str:
    nodes = _nodes(cfg, job, "$1")
    assert nodes
    return (
        "#!/bin/sh\n# Joins a training: `sh node.sh 1` on the second machine, 2 on the third.\n"
        f"set -e\ncd {shell([str(job.folder)])}\n{exports(variables(job, nodes.num))}"
        f"exec {shell(command(python, job, nodes))}\n"
    )


def _nodes(cfg: Local, job: Job, rank: str) -> Nodes | None:
    if cfg.num_nodes == 1 or not job.is_distributed:
        return None
    address, _, port = (cfg.rendezvous or "").rpartition(":")
    return Nodes(cfg.num_nodes, rank, address, port)
