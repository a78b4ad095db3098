"""Hydra composes, DVC schedules: conf/ into params.yaml, one run of the DAG, a sweep over it."""

import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.core import config, store, tracking
from stages.core.errors import PipelineError
from stages.core.records import identify

STAGES = ("crawl", "split", "index", "synthesize", "finetune", "deploy", "evaluate")
"""In the order of the DAG."""


# --- what a stage asks for ---------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """What a stage's `run` asks for: its sections of params.yaml, its own first, and its inputs."""

    run: Callable[..., dict[str, float]]
    sections: dict[str, Any]
    inputs: tuple[str, ...]

    def load(self, params: dict[str, Any], origin: str) -> list[Any]:
        """The sections' values, checked, in the order of the parameters."""
        return [config.load(params, name, schema, origin) for name, schema in self.sections.items()]


def signature(stage: str) -> Signature:
    run = importlib.import_module(f"stages.{stage}").run
    sections: dict[str, Any] = {}
    inputs = []
    for name, parameter in inspect.signature(run).parameters.items():
        if name == "cfg":
            sections[stage] = parameter.annotation
        elif parameter.annotation is not Path:
            sections[name] = parameter.annotation
        elif name != "out":
            inputs.append(name)
    return Signature(run, sections, tuple(inputs))


def check(params: dict[str, Any], origin: str = "conf") -> None:
    """Every section of every stage, before anything runs."""
    config.load(params, "tracking", tracking.Config, origin)
    for stage in STAGES:
        signature(stage).load(params, origin)


# --- Hydra -------------------------------------------------------------------------------------


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """conf/ with the overrides, as params.yaml holds it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with initialize_config_dir(str(Path("conf").resolve()), version_base="1.3"):
        try:
            return _plain(hydra_compose("config", overrides=list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise PipelineError(_explain(error)) from None
        except yaml.YAMLError as error:
            raise PipelineError(f"conf: not YAML: {' '.join(str(error).split())}") from None


def _plain(composed: Any) -> dict[str, Any]:
    """What Hydra composed as plain values, interpolations resolved, without its own choices."""
    from omegaconf import OmegaConf

    params = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(params, dict)
    return {
        str(name): value for name, value in params.items() if name not in ("experiment", "hydra")
    }


def _explain(error: Exception) -> str:
    """Hydra's message in one line, with what would have been right."""
    message = " ".join(str(error).split())
    cause = error.__cause__
    if options := getattr(error, "options", None):
        missing = str(getattr(error, "missing_cfg_file", "")).strip()
        group, _, option = missing.rpartition("/")
        near = config.nearest(option, options)
        return f"{group}={option}: no such option{near}: expected one of {', '.join(options)}"
    if cause is not None and "Key '" in str(cause):
        unknown = str(getattr(cause, "full_key", "") or str(cause).split("'")[1])
        key = unknown.rpartition(".")[2]
        parent = getattr(cause, "parent_node", None)
        known = [str(name) for name in parent if name != "hydra"] if parent is not None else []
        near = config.nearest(key, known)
        return f"{unknown}: unknown key{near}: expected one of {', '.join(known)}"
    return f"conf: {message}"


PARAMS = Path("params.yaml")


def write_params(params: dict[str, Any]) -> None:
    store.write_text(PARAMS, render_params(params))


def render_params(params: dict[str, Any]) -> str:
    """The text of params.yaml."""
    from omegaconf import OmegaConf

    head = "# Composed from conf/ by `python -m stages params`; edit conf/, not this file.\n"
    return head + OmegaConf.to_yaml(OmegaConf.create(params), sort_keys=False)


# --- DVC ---------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """This environment, with the interpreter's own folder first: `dvc` and `python` are ours."""
    folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}


@dataclass(frozen=True)
class Spent:
    """What a stage took; `ran` is false where its outs were there already or restored."""

    ran: bool
    seconds: float = 0
    cost_usd: float = 0


def run(overrides: Sequence[str], force: bool = False) -> dict[str, Spent]:
    """Validate, run what changed, record; what each stage took.

    Without overrides it is `dvc repro`; with them `dvc exp run -S …`, so that the run has a name
    and `dvc exp show` lists it.
    """
    params = compose(overrides)
    check(params)
    _clear()
    if overrides:
        command = ["dvc", "exp", "run", *_settings(overrides)]
    else:
        command = ["dvc", "repro"]
        if render_params(params) != (PARAMS.read_text() if PARAMS.exists() else ""):
            write_params(params)  # an experiment leaves its own there, which DVC takes for good
    if force:
        command.append("--force")
    tracked = config.load(params, "tracking", tracking.Config)
    started = time.time()
    with tracking.pipeline(tracked, " ".join(["run", *overrides]), "pipeline", params) as recorded:
        if subprocess.run(command, env=environment()).returncode:
            raise PipelineError(
                "the run stopped (the reason stands above); `dvc checkout` brings the last good "
                "outs back, and running again goes on from here"
            )
        recorded.log(metrics(Path("data")))
        if Path("data/evaluate/report.html").exists():
            recorded.log_artifact(Path("data/evaluate/report.html"))
    return {stage: spent(stage, started) for stage in STAGES}


def _settings(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("-S", override)]


def metrics(data: Path, before: str = "") -> dict[str, float]:
    """The metrics of all stages by `stage.name`, or of those before the one named."""
    manifests = store.read_manifests(data)
    stages = STAGES[: STAGES.index(before)] if before else STAGES
    return _metrics({stage: manifests[stage] for stage in stages if stage in manifests})


def _metrics(manifests: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {
        f"{stage}.{name}": value
        for stage, manifest in manifests.items()
        for name, value in manifest["metrics"].items()
    }


def spent(stage: str, since: float) -> Spent:
    """What the stage took after `since` (a Unix time), from its progress."""
    try:
        lines = store.workspace("progress", f"{stage}.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return Spent(ran=False)
    rows = [json.loads(line) for line in lines]
    if not rows or rows[0]["time"] < since:
        return Spent(ran=False)
    cost = sum(row["metrics"].get("cost_usd", 0) for row in rows)
    return Spent(ran=True, seconds=rows[-1]["time"] - rows[0]["time"], cost_usd=cost)


def _clear() -> None:
    """Take away what a killed run leaves behind: orphaned stages and an empty lock file of DVC."""
    for stage in store.end_orphans():
        print(f"ended the orphaned stage {stage} of a pipeline that is gone", file=sys.stderr)
    rwlock = Path(".dvc/tmp/rwlock")
    if rwlock.exists() and not rwlock.read_bytes().strip():
        rwlock.unlink()  # DVC, killed while it wrote it, would refuse every command for good


# --- a sweep -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its overrides, its DVC experiment, its metrics or why it failed."""

    overrides: str
    experiment: str
    metrics: dict[str, Any]
    failure: str = ""


def sweep(arguments: Sequence[str]) -> list[Point]:
    """Hydra's multirun: each point is one `dvc exp run --temp`, unchanged stages restored."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    head = subprocess.run(["git", "rev-parse", "-q", "--verify", "HEAD"], capture_output=True)
    if head.returncode:
        raise PipelineError("sweep: a DVC experiment starts from a git commit; commit first")
    _clear()
    words = [word for word in arguments if word not in ("-m", "--multirun")]
    tracked = config.load(compose(), "tracking", tracking.Config)
    points: list[Point] = []

    def task(composed: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        params = _plain(composed)
        check(params)
        with tracking.pipeline(tracked, " ".join(overrides), "point", params, parent.id) as run:
            points.append(_run_point(overrides, run))

    with tracking.pipeline(tracked, " ".join(["sweep", *words]), "sweep", {}) as parent:
        sys.argv = ["sweep", "--multirun", *words]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors reach us instead of being printed
        conf = str(Path("conf").resolve())
        try:
            hydra.main(config_path=conf, config_name="config", version_base="1.3")(task)()
        except (HydraException, OmegaConfBaseException) as error:
            raise PipelineError(_explain(error)) from None
    return points


def _run_point(overrides: list[str], run: tracking.PipelineRun) -> Point:
    title = " ".join(overrides)
    name = f"point-{identify(title, time.time_ns())[:8]}"
    print(f"point      {title} ({name})", file=sys.stderr)
    # The flag stands before `exp`: without it parallel points fail on DVC's lock.
    command = ["dvc", "--wait-for-lock", "exp", "run", "--temp", "-n", name, *_settings(overrides)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        said = [row for row in done.stdout.splitlines() if row.strip()]
        failure = said[-1] if said else "failed (see above)"
        return Point(title, name, {}, failure)
    from dvc.api import DVCFileSystem  # type: ignore[import-untyped]

    files = DVCFileSystem(rev=name)
    manifests = {
        stage: json.loads(files.read_text(f"data/{stage}/manifest.json")) for stage in STAGES
    }
    run.log(_metrics(manifests))
    return Point(title, name, json.loads(files.read_text("data/evaluate/metrics.json")))
