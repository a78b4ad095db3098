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
from typing import TYPE_CHECKING, Any, get_args

import yaml

from stages.core import config, progress, store, tracking
from stages.core.errors import PipelineError
from stages.core.records import Document, Example, Partition, identify

if TYPE_CHECKING:  # importing it takes a second, which most verbs need not wait
    from stages import crawl, llm
    from stages.crawl.snapshot import Change

STAGES = ("crawl", "split", "index", "synthesize", "finetune", "deploy", "evaluate")
"""In the order of the DAG."""


# --- what a stage asks for ---------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """What a stage's `run` asks for: its sections of params.yaml, its own first, and its inputs."""

    run: Callable[..., dict[str, float]]
    sections: dict[str, Any]
    inputs: dict[str, Any]
    """By name: Path, `Path | None` where it may be absent, `tuple[Path, ...]` for several."""

    def load(self, params: dict[str, Any], origin: str) -> dict[str, Any]:
        """The sections' values by parameter, checked; the stage's own is the first."""
        values = [config.load(params, *section, origin) for section in self.sections.items()]
        return dict(zip(["cfg", *list(self.sections)[1:]], values, strict=True))


def signature(stage: str) -> Signature:
    run = importlib.import_module(f"stages.{stage}").run
    sections: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for name, parameter in inspect.signature(run).parameters.items():
        if name == "cfg":
            sections[stage] = parameter.annotation
        elif parameter.annotation not in (Path, Path | None, tuple[Path, ...]):
            sections[name] = parameter.annotation
        elif name != "out":
            inputs[name] = parameter.annotation
    return Signature(run, sections, inputs)


def check(params: dict[str, Any], origin: str = "conf") -> None:
    """Every section of every stage, before anything runs."""
    config.load(params, "tracking", tracking.Config, origin)
    sections: dict[str, Any] = {}
    for stage in STAGES:
        sections |= signature(stage).load(params, origin)
    _check_together(sections)


def _check_together(sections: dict[str, Any]) -> None:
    """What one section asks of another one."""
    from stages.crawl import source as sources

    search = sections["answer"].search
    if sections["embedder"].kind == "none" and search.method != "lexical":
        raise PipelineError(
            f"answer.search.method: {search.method!r} searches by meaning, and embedder=none gives "
            "no vectors: set answer.search.method=lexical, or take another embedder"
        )
    names = [part.name for part in sources.parts(sections["source"])]
    for name in search.sources:
        if name not in names:
            raise PipelineError(
                f"answer.search.sources: {name!r}: no such source{config.nearest(name, names)}: "
                f"expected one of {', '.join(names)}"
            )


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
            raise PipelineError(_unquoted(overrides) or _explain(error)) from None
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


def _unquoted(overrides: Sequence[str]) -> str | None:
    """What is wrong with the first override that Hydra's grammar reads as something else."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            return f"{override}: not an override: expected key=value"
        try:
            if not OverridesParser.create().parse_override(override).is_sweep_override():
                continue
        except HydraException:
            pass
        if value.startswith("[") and value.endswith("]"):
            remedy = f"""'{key}=["{value[1:-1]}"]'"""
        else:
            remedy = f"""'{key}="{value}"'"""
        return f"{override}: signs such as = , ~ ( ^ want quotes around the value: {remedy}"
    return None


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


def run(overrides: Sequence[str], force: bool = False) -> dict[str, progress.Spent | None]:
    """Validate, run what changed, record; what each stage took, None where it was restored.

    Without overrides it is `dvc repro`; with them `dvc exp run -S …`, so that the run has a name
    and `dvc exp show` lists it.
    """
    params = compose(overrides)
    check(params)
    _clear()
    _refresh_missing(params, overrides)
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
    spent = {stage: progress.spent(stage) for stage in STAGES}
    return {stage: row if row and row.began >= started else None for stage, row in spent.items()}


SNAPSHOT = Path("data/inputs/snapshot.json")


def refresh(overrides: Sequence[str], missing: bool) -> "list[Change]":
    """Fetch the sources anew, or those `missing` in the snapshot; what has changed.

    A folder that is served is left to the stage, which reads it each time. With overrides it is one
    run of several: what the snapshot holds for the others stays.
    """
    from stages.crawl import fetching, source

    params = compose(overrides)
    check(params)
    cfg, whole = _crawled(params)
    parts = (
        fetching.uncovered(cfg, whole, SNAPSHOT)
        if missing
        else [part for part in source.parts(whole) if not source.is_local(part)]
    )
    return fetching.refresh(cfg, whole, parts, SNAPSHOT, keep_others=bool(overrides))


def _refresh_missing(params: dict[str, Any], overrides: Sequence[str]) -> None:
    """Fetch what the snapshot does not hold as it is set now: `dvc repro` never does."""
    from stages.crawl import fetching

    if fetching.uncovered(*_crawled(params), SNAPSHOT):
        command = [sys.executable, "-m", "stages", "refresh", "--missing", *overrides]
        if subprocess.run(command, env=environment()).returncode:
            raise PipelineError(
                "the refresh stopped (the reason stands above); running again goes on from here"
            )


def _crawled(params: dict[str, Any]) -> "tuple[crawl.Config, crawl.Source]":
    from stages import crawl

    return (
        config.load(params, "crawl", crawl.Config, "conf"),
        config.load(params, "source", crawl.Source, "conf"),
    )


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


def _clear() -> None:
    """Take away what a killed run leaves behind: orphaned stages and an empty lock file of DVC."""
    for stage in store.end_orphans():
        print(f"ended the orphaned stage {stage} of a pipeline that is gone", file=sys.stderr)
    rwlock = Path(".dvc/tmp/rwlock")
    if rwlock.exists() and not rwlock.read_bytes().strip():
        rwlock.unlink()  # DVC, killed while it wrote it, would refuse every command for good


# --- the teacher -------------------------------------------------------------------------------


def plan(overrides: Sequence[str]) -> "llm.Forecast":
    """What synthesize would ask of the teacher about the chunks of the last run.

    Where there are none, the stages before it run, which cost nothing.
    """
    from stages import llm, synthesize

    params = compose(overrides)
    check(params)
    if not Path("data/split/training.jsonl").exists() and (
        subprocess.run(["dvc", "repro", "-q", "split"], env=environment()).returncode
    ):
        raise PipelineError("plan: the stages before synthesize stopped (the reason stands above)")
    teacher = config.load(params, "teacher", llm.Config, "conf")
    cfg = config.load(params, "synthesize", synthesize.Config, "conf")
    tasks = synthesize.plan(
        cfg, teacher, Path("data/crawl/documents.jsonl"), Path("data/split/training.jsonl")
    )
    return llm.forecast(teacher, ((task.messages, task.schema) for task in tasks))


def examples(data: Path) -> dict[Partition, list[Example]]:
    """The examples of the last run by partition."""
    return {part: list(store.read(data / f"{part}.jsonl", Example)) for part in get_args(Partition)}


def addresses() -> dict[str, str]:
    """The address of each document of the last run."""
    documents = store.read(Path("data/crawl/documents.jsonl"), Document)
    return {document.id: document.url for document in documents}


# --- a sweep -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its overrides, its DVC experiment, its metrics or why it failed."""

    overrides: str
    experiment: str
    metrics: dict[str, Any]
    failure: str = ""
    testset: str = ""
    """Digest of the questions: points with different ones do not compare."""


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
        _refresh_missing(params, overrides)
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
    found = json.loads(files.read_text("data/evaluate/metrics.json"))
    judged = json.loads(files.read_text("data/evaluate/verdict.json"))
    return Point(title, name, found, testset=judged["testset"])


# --- test sets and runs that compare -----------------------------------------------------------

TESTSET = Path("data/inputs/testset.jsonl")


def freeze(commit: bool) -> str:
    """Make the questions of the last run the project's test set; what was done, in words."""
    questions = Path("data/synthesize/test.jsonl")
    frozen = list(store.read(questions, Example))
    if not frozen:
        raise PipelineError(f"{questions}: holds no question to freeze; run the pipeline first")
    count = store.write(TESTSET, frozen)
    pages = {span.document_id for row in frozen if row.track == "held_out" for span in row.evidence}
    said = (
        f"{TESTSET}: {count} questions are the test set from now on, and {len(pages)} pages are "
        "never trained on"
    )
    add = ["git", "add", str(TESTSET)]
    keep = ["git", "commit", "-q", "-m", f"Freeze the test set: {count} questions", str(TESTSET)]
    if not commit:
        return f"{said}; commit it: `{' '.join(add)} && git commit`"
    same = ["git", "diff", "--cached", "--quiet", "--", str(TESTSET)]
    for command in (add, same, keep):
        done = subprocess.run(command, capture_output=True, text=True)
        if command == same and not done.returncode:
            return f"{said}; it was committed before"
        if command != same and done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise PipelineError(f"{said}; git did not commit it: {words[-1]}")
    return f"{said}; committed"


@dataclass(frozen=True)
class Compared:
    """One system of two runs on one track."""

    track: str
    system: str
    word: str
    difference: float | None
    low: float | None
    high: float | None
    sentence: str


def compare(first: str, second: str | None, metric: str) -> list[Compared]:
    """How every system of the second run does against the same system of the first.

    Runs are git revisions, DVC experiments, or None for the workspace. PipelineError where they
    answered different test sets.
    """
    from stages.evaluate import statistics, verdict

    runs = [_scores(revision) for revision in (first, second)]
    names = [first, second or "the workspace"]
    digests = [judged["testset"] for judged, _ in runs]
    if digests[0] != digests[1]:
        raise PipelineError(
            f"{names[0]} answered the test set {digests[0][:12]} and {names[1]} {digests[1][:12]}: "
            "runs over different test sets do not compare; `python -m stages freeze` keeps one"
        )
    known = {name for _, scores in runs for row in scores for name in row["figures"]}
    if metric not in known:
        raise PipelineError(
            f"--metric {metric}{config.nearest(metric, known)}: expected one of "
            f"{', '.join(sorted(known))}"
        )
    values: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    pages = {}
    for name, (_, scores) in zip(names, runs, strict=True):
        for score in scores:
            if metric in score["figures"]:
                of_track = values.setdefault(score["track"], {})
                of_system = of_track.setdefault((name, score["system"]), {})
                of_system[score["example_id"]] = score["figures"][metric]
                pages[score["example_id"]] = score["page"]
    found = []
    for track, by_name in values.items():
        both = [s for name, s in by_name if name == names[0] and (names[1], s) in by_name]
        told = {f"{name}: {s}": scores for (name, s), scores in by_name.items()}
        pairs = [(f"{names[1]}: {s}", f"{names[0]}: {s}") for s in both]
        compared = statistics.compare_all(told, pairs, pages, seed=0)
        found += [
            Compared(
                *(track, system, row.word, row.difference, row.low, row.high),
                verdict.tell(*pair, row),
            )
            for system, (pair, row) in zip(both, compared.items(), strict=True)
        ]
    return found


def _scores(revision: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Verdict and scores of a run."""
    places = [Path("data/evaluate") / name for name in ("verdict.json", "scores.jsonl")]
    if revision is None:
        judged, scores = store.read_json(places[0]), places[1].read_text()
    else:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException  # type: ignore[import-untyped]
        from dvc.scm import SCMError  # type: ignore[import-untyped]

        try:
            files = DVCFileSystem(rev=revision)
            judged = json.loads(files.read_text(places[0].as_posix()))
            scores = files.read_text(places[1].as_posix())
        except (SCMError, DvcException, FileNotFoundError) as error:
            raise PipelineError(
                f"{revision}: no evaluation of this revision is here ({_one_line(error)}): "
                "`git checkout` it and run it, or `dvc pull`"
            ) from None
    return judged, [json.loads(line) for line in scores.splitlines()]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
