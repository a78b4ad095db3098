"""MLflow: a run per pipeline execution, a nested run per stage, a parent per sweep.

The only module that imports mlflow, and only when something is logged: the import takes seconds.
"""

import contextlib
import json
import logging
import os
import platform
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import filelock
import psutil
from pydantic import Field

from stages.core import config, store
from stages.core.progress import Step

if TYPE_CHECKING:
    pass

PIPELINE_VARIABLE = "DOCENT_RUN_ID"
"""The MLflow run of this pipeline execution, set by whoever started it."""


class Mlflow(config.Base):
    """Runs are recorded in MLflow."""

    kind: Literal["mlflow"]
    experiment: str
    """Name of the MLflow experiment that the runs are recorded under."""
    uri: str | None
    """Tracking server's address; null is the SQLite file mlruns/mlflow.db of the main checkout."""
    registered_model: str
    """Name in MLflow's registry whose versions are the models that were evaluated."""


class Nothing(config.Base):
    """Nothing is recorded."""

    kind: Literal["none"]


Config = Annotated[Mlflow | Nothing, Field(discriminator="kind")]


class Store:
    """An MLflow experiment, opened; made first, under a lock, where it is the embedded one."""

    def __init__(self, cfg: Mlflow) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = store.root() / "mlruns"
        folder.mkdir(exist_ok=True)
        uri = cfg.uri or f"sqlite:///{folder}/mlflow.db"
        artifacts = None if cfg.uri else (folder / "artifacts").as_uri()
        # A fresh SQLite store that several processes initialise at once breaks for good.
        with filelock.FileLock(folder / ".mlflow.lock"):
            self.client: MlflowClient = MlflowClient(uri)
            found = self.client.get_experiment_by_name(cfg.experiment)
            self.experiment_id = (
                found.experiment_id
                if found
                else self.client.create_experiment(cfg.experiment, artifacts)
            )

    def start(self, name: str, kind: str, parent: str = "", process: str = "") -> str:
        """A new run's id; `process` is whose run it is, this one if not told."""
        tags = {
            "mlflow.runName": name,
            "docent.kind": kind,
            "docent.process": process or _key(psutil.Process()),
            **_commit(),
        }
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment_id, tags=tags)
        return str(run.info.run_id)

    def log(
        self,
        run_id: str,
        metrics: dict[str, float] | None = None,
        params: dict[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            metrics=[Metric(k, float(v), now, step) for k, v in (metrics or {}).items()],
            params=[Param(k, str(v)[:500]) for k, v in (params or {}).items()],
        )

    def pipeline(self) -> tuple[str, bool]:
        """The run of this pipeline execution, and whether someone above us will end it.

        It is given by who started us, or there is one for each `dvc` process.
        """
        if run_id := os.environ.get(PIPELINE_VARIABLE):
            return run_id, True
        owner = next((p for p in psutil.Process().parents() if store.is_dvc(p)), psutil.Process())
        with filelock.FileLock(store.root() / "mlruns" / ".mlflow.lock"):
            found = self.client.search_runs(
                [self.experiment_id],
                f"tags.`docent.process` = '{_key(owner)}' and tags.`docent.kind` = 'pipeline'",
                max_results=1,
            )
            if found:
                return str(found[0].info.run_id), False
            return self.start("dvc repro", "pipeline", process=_key(owner)), False

    def end_abandoned(self) -> None:
        """Mark the runs whose process was killed: nobody else would ever end them."""
        alive = {_key(process) for process in psutil.process_iter()}
        running = "attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment_id], running):
            process = run.data.tags.get("docent.process", "")
            if process.startswith(f"{platform.node()}:") and process not in alive:
                self.client.set_terminated(run.info.run_id, "KILLED")


def _key(process: psutil.Process) -> str:
    """Names a process for good: its number alone would be given away again."""
    try:
        return f"{platform.node()}:{process.pid}:{process.create_time():.0f}"
    except psutil.Error:
        return ""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat


class StageRun:
    """The MLflow run of one stage. It logs from a thread, so that no stage waits for MLflow."""

    def __init__(self, cfg: Mlflow, stage: str, sections: dict[str, Any], inputs: dict[str, Path]):
        self._queue: queue.Queue[Step | None] = queue.Queue()
        self._result: tuple[str, dict[str, float], dict[str, float]] = ("FAILED", {}, {})
        self._out: Path | None = None
        self._failure = ""
        self.id = ""
        """Of the run in MLflow, once it has begun there."""
        self._arguments = (cfg, stage, sections, inputs)
        self._thread = threading.Thread(target=self._log, name="mlflow", daemon=True)
        self._thread.start()

    def hear(self, step: Step) -> None:
        """A listener of `progress`: steps with figures become curves while the stage runs."""
        if step.metrics:
            self._queue.put(step)

    def end(
        self,
        status: Literal["FINISHED", "FAILED", "KILLED"],
        metrics: dict[str, float],
        upstream: dict[str, float],
        out: Path,
    ) -> str:
        """Close the run; a line that says why nothing was recorded, or the empty string.

        `upstream` are the metrics of the stages before, run or restored: the parent has them too.
        Of `out` the report and the answers go along, where the stage made them.
        """
        self._result = (status, metrics, upstream)
        self._out = out if status == "FINISHED" else None
        self._queue.put(None)
        self._thread.join()
        return self._failure

    def _log(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._record(*self._arguments)
        except MlflowException as error:  # a stage's work is not thrown away for its record
            self._failure = f"not recorded in MLflow: {str(error).splitlines()[0]}"

    def _record(
        self, cfg: Mlflow, stage: str, sections: dict[str, Any], inputs: dict[str, Path]
    ) -> None:
        runs = Store(cfg)
        parent, ended_above = runs.pipeline()
        self.id = run_id = runs.start(stage, "stage", parent)
        runs.log(run_id, params=flatten(sections))
        self._log_inputs(runs, run_id, stage, inputs)
        while (step := self._queue.get()) is not None:
            runs.log(run_id, step.metrics, step=step.done)
        status, metrics, upstream = self._result
        runs.log(run_id, metrics)
        if self._out:
            self._log_results(runs, run_id, self._out)
        runs.log(parent, upstream | {f"{stage}.{name}": value for name, value in metrics.items()})
        runs.client.set_terminated(run_id, status)
        if not ended_above:
            runs.client.set_terminated(parent, status)

    @staticmethod
    def _log_results(runs: Store, run_id: str, out: Path) -> None:
        if (report := out / "report.html").exists():
            runs.client.log_artifact(run_id, str(report))
        if (answers := out / "answers.jsonl").exists():
            rows = [json.loads(line) for line in answers.read_text().splitlines()]
            columns = ("system", "question", "answer", "reference", "example_id")
            table = {name: [row[name] for row in rows] for name in columns}
            runs.client.log_table(run_id, table, "answers.json")

    @staticmethod
    def _log_inputs(runs: Store, run_id: str, stage: str, inputs: dict[str, Path]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for name, path in inputs.items():
            value = store.digest(path)
            runs.client.set_tag(run_id, f"docent.input.{name}", value)
            datasets.append(
                DatasetInput(
                    Dataset(name, value[:36], "local", f'{{"path": "{path}"}}'),
                    [InputTag("mlflow.data.context", stage)],
                )
            )
        runs.client.log_inputs(run_id, datasets=datasets)


@dataclass(frozen=True)
class Version:
    """A version of the registered model: a tuned model that was evaluated."""

    model: str
    version: str
    digest: str
    """Of its files, as endpoint.json has it."""
    run_id: str


class Registry:
    """The versions of the registered model, of which one may be the champion."""

    ALIAS = "champion"

    def __init__(self, cfg: Mlflow) -> None:
        self._runs = Store(cfg)
        self._model = cfg.registered_model

    def champion(self) -> Version | None:
        from mlflow.exceptions import MlflowException

        try:
            found = self._runs.client.get_model_version_by_alias(self._model, self.ALIAS)
        except MlflowException:  # no such model, or no such alias
            return None
        return self._version(found)

    def keep_adapter(self, run_id: str, folder: Path) -> None:
        """Copy a run's adapter into the registry: it is small, and may be gone on from."""
        self._runs.client.log_artifacts(run_id, str(folder), "adapter")

    def with_adapter(self, digest: str) -> Version | None:
        """The version whose adapter's digest begins so."""
        for found in self._runs.client.search_model_versions(f"name = '{self._model}'"):
            if found.tags.get("docent.adapter", "").startswith(digest):
                return self._version(found)
        return None

    def fetch(self, version: Version, folder: Path, part: str = "model") -> None:
        """Copy the version's files into the folder, whole or not at all."""
        from mlflow.artifacts import download_artifacts

        beside = folder.with_name(f".{folder.name}.{os.getpid()}")
        beside.mkdir(parents=True)
        try:
            got = Path(
                download_artifacts(
                    artifact_uri=f"runs:/{version.run_id}/{part}",
                    dst_path=str(beside),
                    tracking_uri=self._runs.client.tracking_uri,
                )
            )
            shutil.rmtree(folder, ignore_errors=True)
            got.replace(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def register(self, run_id: str, digest: str, **tags: str) -> Version:
        """The version of the model with this digest, tagged; a new one where it was never seen."""
        from mlflow.exceptions import MlflowException

        client = self._runs.client
        named = {f"docent.{name}": value for name, value in tags.items()}
        with filelock.FileLock(store.root() / "mlruns" / ".mlflow.lock"):
            with contextlib.suppress(MlflowException):  # it is there already
                client.create_registered_model(self._model)
            for found in client.search_model_versions(f"name = '{self._model}'"):
                if found.tags.get("docent.digest") == digest:
                    for name, value in named.items():
                        client.set_model_version_tag(self._model, found.version, name, value)
                    return self._version(found)
            source = f"{client.get_run(run_id).info.artifact_uri}/model"
            return self._version(
                client.create_model_version(
                    self._model,
                    source,
                    run_id,
                    tags={"docent.digest": digest, **named, **_commit()},
                )
            )

    def promote(self, version: Version, folder: Path) -> None:
        """Make the version the champion; its files go into the registry, to be asked again."""
        champion = self.champion()
        if champion is None or champion.version != version.version:
            self._runs.client.log_artifacts(version.run_id, str(folder), "model")
            self._runs.client.set_registered_model_alias(self._model, self.ALIAS, version.version)

    def _version(self, found: Any) -> Version:
        return Version(
            model=self._model,
            version=str(found.version),
            digest=found.tags.get("docent.digest", ""),
            run_id=found.run_id,
        )


@dataclass(frozen=True)
class PipelineRun:
    """The MLflow run of one pipeline execution or sweep; without an id nothing is recorded."""

    id: str
    runs: Store | None

    def log(self, metrics: dict[str, float]) -> None:
        if self.runs:
            self.runs.log(self.id, metrics)

    def log_artifact(self, path: Path) -> None:
        if self.runs:
            self.runs.client.log_artifact(self.id, str(path))


@contextlib.contextmanager
def pipeline(
    cfg: Any, name: str, kind: str, params: dict[str, Any], parent: str = ""
) -> Iterator[PipelineRun]:
    """A run for what happens inside; the stages find it by the environment."""
    if not isinstance(cfg, Mlflow):
        yield PipelineRun("", None)
        return
    runs = Store(cfg)
    runs.end_abandoned()
    run_id = runs.start(name, kind, parent)
    runs.log(run_id, params=flatten(params))
    above = os.environ.get(PIPELINE_VARIABLE)
    os.environ[PIPELINE_VARIABLE] = run_id
    status = "FAILED"
    try:
        yield PipelineRun(run_id, runs)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if above is None:
            del os.environ[PIPELINE_VARIABLE]
        else:
            os.environ[PIPELINE_VARIABLE] = above
        runs.client.set_terminated(run_id, status)


def _commit() -> dict[str, str]:
    """The git commit that the code is at, where there is one."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=store.root(), capture_output=True, text=True, check=False
    )
    return {"mlflow.source.git.commit": done.stdout.strip()} if done.returncode == 0 else {}
