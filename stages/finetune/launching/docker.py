"""In Axolotl's own image: the project is mounted at its own path, so that every path holds."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.finetune.launching import processes
from stages.finetune.launching.job import Job, command, shell, variables
from stages.finetune.launching.processes import Tick


class Docker(config.Base):
    """A container of Axolotl's image, on this machine."""

    kind: Literal["docker"]
    image: str
    """Docker image with its tag, which is a part of what a checkpoint belongs to."""
    python: str
    """Command that starts Python in the image."""
    gpus: str | None
    """What the container gets of the GPUs, as `docker run --gpus` reads it; null for none."""
    environment: dict[str, str]
    """Further variables in the container."""
    options: tuple[str, ...]
    """Further options of `docker run`, such as --shm-size=16g."""


FAILED_TO_START = (125, 126, 127)
"""Exit codes of `docker run` itself: the engine, a command that cannot run, one that is missing."""


def run(cfg: Docker, job: Job, tick: Tick) -> int:
    if not shutil.which("docker"):
        raise PipelineError(
            "finetune.launcher: docker: no `docker` is on the PATH: install Docker, or train with "
            "finetune/launcher=local"
        )
    remove = ["docker", "rm", "--force", _name(job)]
    # One that was left behind would write into the same checkpoints.
    subprocess.run(remove, capture_output=True, check=False)
    with processes.guarded(remove, job.log.with_suffix(".docker.log")):
        code = processes.watch(words(cfg, job), job.folder, os.environ, job.log, tick)
    if code in FAILED_TO_START:
        raise did_not_start(job.log.read_text(errors="replace"))
    return code


def did_not_start(said: str) -> PipelineError:
    shown = " ".join(said.split())[-300:] or "it said nothing"
    return PipelineError(
        f"finetune.launcher: docker: the container did not start: {shown}: look at "
        "finetune.launcher.image, gpus and options, and at the Docker engine"
    )


def ask(cfg: Docker, script: Path) -> str | None:
    """What a script of ours prints in the image; None where there is no Docker."""
    if not shutil.which("docker"):
        return None
    progress.note("asking the image what this machine can do; Docker fetches it the first time")
    given = (word for name in sorted(cfg.environment) for word in ("--env", name))
    words = [
        *("docker", "run", "--rm", "--init", "--user", f"{os.getuid()}:{os.getgid()}"),
        *(("--gpus", cfg.gpus) if cfg.gpus else ()),
        *("--volume", f"{script.parent}:{script.parent}", "--workdir", str(script.parent)),
        *(*given, *cfg.options, cfg.image, cfg.python, str(script)),
    ]
    environment = os.environ | cfg.environment
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise did_not_start(done.stderr)
    return done.stdout


def render(cfg: Docker, job: Job) -> str:
    return shell(words(cfg, job)) + "\n"


def words(cfg: Docker, job: Job) -> list[str]:
    """The whole `docker run`."""
    ours = variables(job) | {"HOME": "/tmp"} | cfg.environment  # noqa: S108
    mounts = _outermost([store.root(), Path.cwd().resolve(), job.folder, job.work, *job.reads])
    secret = []
    if not job.offline:  # a model of the hub: its cache is shared, and the key goes by name alone
        hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        ours["HF_HOME"] = str(hub)
        mounts.append(hub)
        secret = ["--env", "HF_TOKEN"] if "HF_TOKEN" in os.environ else []
    return [
        *("docker", "run", "--rm", "--init", "--name", _name(job)),
        *("--user", f"{os.getuid()}:{os.getgid()}", "--ipc", "host"),
        *(("--gpus", cfg.gpus) if cfg.gpus else ()),
        *(word for folder in mounts for word in ("--volume", f"{folder}:{folder}")),
        *("--workdir", str(job.folder)),
        *(word for name in sorted(ours) for word in ("--env", f"{name}={ours[name]}")),
        *secret,
        *cfg.options,
        *(cfg.image, *command([cfg.python], job)),
    ]


def _name(job: Job) -> str:
    return f"docent-{job.name}-{job.key[:12]}"


def _outermost(folders: list[Path]) -> list[Path]:
    """The folders without those inside another of them."""
    several = sorted({folder.resolve() for folder in folders})
    return [
        f for f in several if not any(f != other and f.is_relative_to(other) for other in several)
    ]
