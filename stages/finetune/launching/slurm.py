"""As a job of a Slurm cluster, whose nodes share our folders: submit, follow, cancel with us."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.finetune.launching import processes
from stages.finetune.launching.gpu import Gpu
from stages.finetune.launching.job import Job, Nodes, command, exports, shell, variables
from stages.finetune.launching.processes import Tick


class Slurm(config.Base):
    """A job of a Slurm cluster; the project lies in a folder that all nodes share."""

    kind: Literal["slurm"]
    num_nodes: Annotated[int, Field(ge=1)]
    """Machines that share the training; each runs finetune.num_processes."""
    partition: str | None
    """Partition; null takes the cluster's default."""
    account: str | None
    """Account that is charged; null takes yours."""
    time_limit: str | None
    """Longest run, such as 12:00:00; null takes the partition's. A job that reaches it is gone on
    with by the next run."""
    gpus_per_node: Annotated[int, Field(ge=1)] | None
    """GPUs of each node; null asks for none."""
    gpu: Gpu
    """What they can do."""
    cpus_per_node: Annotated[int, Field(ge=1)] | None
    """Cores of each node; null takes the cluster's default."""
    memory_per_node: str | None
    """Memory of each node, such as 64G; null takes the cluster's default."""
    port: Annotated[int, Field(gt=0, lt=65536)]
    """Port of the first node at which the others meet it."""
    setup: tuple[str, ...]
    """Lines of shell that each node runs first, such as `module load cuda`."""
    options: tuple[str, ...]
    """Further options of sbatch, such as --constraint=a100."""
    poll_s: Annotated[float, Field(gt=0)]
    """Time between two looks at the job, in seconds."""


WAITS = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "RESIZING", "SUSPENDED"})
RUNS = frozenset({"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT"})
GIVES_UP_AFTER = 60
"""Looks in a row at which the controller did not answer."""


def run(cfg: Slurm, job: Job, tick: Tick) -> int:
    for program in ("sbatch", "scancel", "scontrol"):
        if not shutil.which(program):
            raise PipelineError(
                f"finetune.launcher: slurm: no `{program}` is on the PATH: run on a login node of "
                "the cluster, or train with finetune/launcher=local"
            )
    script, noted = job.work / f"{job.name}.sbatch", job.work / f"{job.name}.job"
    if noted.exists():  # of a run that was killed together with its guard
        subprocess.run(["scancel", noted.read_text()], capture_output=True, check=False)
        _wait_for_end(noted.read_text(), cfg)
    store.write_text(script, render(cfg, job))
    job.log.write_bytes(b"")
    id = _submit(script)
    store.write_text(noted, id)
    with processes.guarded(["scancel", id], job.log.with_suffix(".slurm.log")):
        state, code = _follow(id, cfg, tick)
    noted.unlink()
    if state in ("COMPLETED", "FAILED"):
        return code
    if state == "OUT_OF_MEMORY":
        return 137
    remedy = {
        "TIMEOUT": "raise finetune.launcher.time_limit, or run again: it goes on from the newest "
        "checkpoint",
        "CANCELLED": "run again: it goes on from the newest checkpoint",
    }.get(state, "look at the cluster, and run again: it goes on from the newest checkpoint")
    raise PipelineError(f"finetune.launcher: slurm: job {id} ended as {state}: {remedy}")


def render(cfg: Slurm, job: Job) -> str:
    """The batch script."""
    num_nodes = cfg.num_nodes if job.is_distributed else 1
    asked = {
        "job-name": f"docent-{job.name}",
        "nodes": num_nodes,
        "ntasks-per-node": 1,
        "partition": cfg.partition,
        "account": cfg.account,
        "time": cfg.time_limit,
        "gpus-per-node": cfg.gpus_per_node,
        "cpus-per-task": cfg.cpus_per_node,
        "mem": cfg.memory_per_node,
        "output": job.log,
        "open-mode": "append",
        # Only these: the keys of paid endpoints have no business in the cluster's spool.
        "export": "HOME,USER,PATH,LANG,HF_HOME" + ("" if job.offline else ",HF_TOKEN"),
    }
    options = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    # Started anew by the cluster it would run beside the one that we submit.
    options += ["--no-requeue", *cfg.options]
    python = store.interpreter(job.python, "finetune.python")
    nodes = Nodes(num_nodes, "$SLURM_NODEID", "$DOCENT_FIRST_NODE", str(cfg.port))
    ours = variables(job, num_nodes)
    del ours["OMP_NUM_THREADS"]  # the node knows its cores, and we do not
    cores = f"${{SLURM_CPUS_ON_NODE:-1}} / {job.num_processes}"
    inner = "\n".join([*cfg.setup, f"exec {shell(command(python, job, nodes))}"])
    return (
        "#!/bin/bash\n"
        + "".join(f"#SBATCH {option}\n" for option in options)
        + f"cd {shell([str(job.folder)])} || exit 1\n"
        + exports(ours)
        + f"cores=$(({cores}))\nexport OMP_NUM_THREADS=$((cores > 1 ? cores : 1))\n"
        + "export SLURM_EXPORT_ENV=ALL\n"
        + 'export DOCENT_FIRST_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        + f"exec srun --kill-on-bad-exit=1 bash -c {shell([inner])}\n"
    )


def _submit(script: Path) -> str:
    """The number of the new job."""
    environment = {k: v for k, v in os.environ.items() if k != store.LOCK_VARIABLE}
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
        raise PipelineError(
            f"finetune.launcher: slurm: sbatch refused {script}: {said[:300]}: look at "
            "finetune.launcher.partition, account, time_limit and options"
        )
    return done.stdout.strip().partition(";")[0]


def _follow(id: str, cfg: Slurm, tick: Tick) -> tuple[str, int]:
    """State and exit code of a job in the end."""
    said = ""
    looked, unanswered = 0.0, 0
    state, code, reason = "PENDING", 0, ""
    while True:
        if time.monotonic() - looked >= cfg.poll_s:
            looked = time.monotonic()
            found = _look(id)
            unanswered = 0 if found else unanswered + 1
            if unanswered > GIVES_UP_AFTER:
                raise PipelineError(
                    f"finetune.launcher: slurm: the controller knows job {id} no more, or does not "
                    "answer: look at the cluster, and run again: it goes on from the newest "
                    "checkpoint"
                )
            state, code, reason = found or (state, code, reason)
            if state in WAITS | RUNS:
                now = f"job {id}: {state.lower()}" + (f" ({reason})" if state in WAITS else "")
                if now != said:
                    progress.note(now)
                    said = now
        tick()
        if state not in WAITS | RUNS:
            return state, code
        time.sleep(min(processes.EVERY_S, cfg.poll_s))


def _wait_for_end(id: str, cfg: Slurm) -> None:
    for _ in range(GIVES_UP_AFTER):
        found = _look(id)
        if not found or found[0] not in WAITS | RUNS:
            return
        time.sleep(min(1.0, cfg.poll_s))
    raise PipelineError(f"finetune.launcher: slurm: job {id} does not end: `scancel {id}`")


def _look(id: str) -> tuple[str, int, str] | None:
    """State, exit code and reason; None where the controller does not say."""
    done = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", id], capture_output=True, text=True, check=False
    )
    found = re.search(r"\bJobState=(\S+) Reason=(\S+)", done.stdout)
    code = re.search(r"\bExitCode=(\d+):(\d+)", done.stdout)
    if not found or not code:
        return None
    return found[1], int(code[1]) or (128 + int(code[2]) if int(code[2]) else 0), found[2]
