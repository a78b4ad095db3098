"""Where a command of Axolotl's runs: here, in a container, or on a cluster."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.core import store
from stages.finetune.launching import docker, local, slurm
from stages.finetune.launching.bundle import Bundle
from stages.finetune.launching.docker import Docker
from stages.finetune.launching.gpu import Gpu
from stages.finetune.launching.job import ENVIRONMENT, Job
from stages.finetune.launching.local import HERE, Local
from stages.finetune.launching.openai import OpenAI
from stages.finetune.launching.processes import Tick
from stages.finetune.launching.slurm import Slurm

__all__ = [
    "ENVIRONMENT",
    "HERE",
    "Bundle",
    "Config",
    "Docker",
    "Gpu",
    "Job",
    "Local",
    "OpenAI",
    "Slurm",
    "num_nodes",
    "render",
    "run",
    "versions",
]

Config = Annotated[Local | Docker | Slurm | Bundle | OpenAI, Field(discriminator="kind")]


def run(cfg: Config, job: Job, tick: Tick) -> int:
    """Run the job to its end, calling `tick` meanwhile; its exit code."""
    match cfg:
        case Local():
            return local.run(cfg, job, tick)
        case Docker():
            return docker.run(cfg, job, tick)
        case Slurm():
            return slurm.run(cfg, job, tick)
        case Bundle():  # what is left to do when the trained model is back
            return local.run(HERE, job, tick)
        case OpenAI():
            raise AssertionError("nothing of Axolotl's runs for a hosted model")


def render(cfg: Config, job: Job) -> str:
    """What `run` would run, for a shell."""
    match cfg:
        case Local():
            return local.render(cfg, job)
        case Docker():
            return docker.render(cfg, job)
        case Slurm():
            return slurm.render(cfg, job)
        case Bundle():
            return "sh train.sh  # in the bundle\n"
        case OpenAI():
            return f"# {cfg.model} is tuned at {cfg.base_url}: no command runs here\n"


def num_nodes(cfg: Config) -> int:
    return cfg.num_nodes if isinstance(cfg, Local | Slurm) else 1


def versions(cfg: Config, python: str) -> list[str]:
    """What trains: the image, or the packages beside the interpreter that shape a training."""
    if isinstance(cfg, Bundle):
        return []  # not known here
    if isinstance(cfg, Docker):
        return [cfg.image]
    packages = Path(store.interpreter(python, "finetune.python")[0]).parent.parent
    found = packages.glob("lib/python*/site-packages/*.dist-info")
    return sorted(path.stem for path in found if path.name.split("-")[0].lower() in SHAPING)


SHAPING = frozenset(
    (
        *("accelerate", "axolotl", "bitsandbytes", "deepspeed", "flash_attn", "liger_kernel"),
        *("peft", "torch", "transformers", "triton", "trl"),
    )
)
