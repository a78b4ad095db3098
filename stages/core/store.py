"""Files: where they are, how they are read, written whole, digested, locked and listed."""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import ValidationError

from stages.core.errors import PipelineError
from stages.core.records import Record

R = TypeVar("R", bound=Record)

LOCK_VARIABLE = "DOCENT_STAGE_LOCK"
"""Names the lock in the environment of every process that a stage starts."""


# --- places ------------------------------------------------------------------------------------


def root() -> Path:
    """The main checkout, also from inside a DVC temp workspace."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def cache(*parts: str) -> Path:
    """A path under .cache/, which survives a rerun; its folder exists."""
    path = root().joinpath(".cache", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def workspace(*parts: str) -> Path:
    """Like `cache`, but of this workspace alone: locks and progress of parallel points."""
    path = Path.cwd().joinpath(".cache", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def locate(path: str, key: str) -> Path:
    """A user's path: as it stands if it exists, else against the main checkout.

    A DVC temp workspace holds tracked files and outs only; anything else is in the checkout.
    """
    for candidate in (Path(path).expanduser(), root() / path):
        if candidate.exists():
            return candidate
    raise PipelineError(f"{key}: {path!r}: no such file or folder (looked in {root()})")


def interpreter(python: str, key: str) -> list[str]:
    """The command that starts Python in the model environment."""
    program, *arguments = shlex.split(python)
    found = shutil.which(program) if "/" not in program else None
    remedy = "`make setup` builds the model environment"
    if found is None:
        try:
            # Not resolved: a virtual environment's interpreter is a link to the system's.
            found = str(locate(program, key).absolute())
        except PipelineError as error:
            raise PipelineError(f"{error}; {remedy}") from None
    if not (Path(found).is_file() and os.access(found, os.X_OK)):
        raise PipelineError(f"{key}: {python!r} is no program; {remedy}")
    return [found, *arguments]


# --- reading and writing -----------------------------------------------------------------------


def read(path: Path, schema: type[R]) -> Iterator[R]:
    """The rows of a JSONL file; a bad line is named by file and line."""
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; `dvc repro` makes it") from None
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield schema.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    raise PipelineError(
                        f"{path}:{number}: {where + ': ' if where else ''}{first['msg']}"
                        f" (expected a {schema.__name__})"
                    ) from None


def write(path: Path, rows: Iterable[Record]) -> int:
    """Write rows as JSONL, whole or not at all; how many there were."""
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(row.model_dump_json().encode() + b"\n")
            count += 1
    return count


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON with sorted keys, whole or not at all."""
    with replacing(path) as file:
        text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True)
        file.write(text.encode() + b"\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; `dvc repro` makes it") from None
    except json.JSONDecodeError as error:
        raise PipelineError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` once it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# --- digests -----------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and file digests."""
    if path.is_dir():
        total = hashlib.sha256()
        for inner in sorted(p for p in path.rglob("*") if p.is_file()):
            total.update(f"{inner.relative_to(path).as_posix()}\0{digest(inner)}\n".encode())
        return total.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- manifests ---------------------------------------------------------------------------------


def write_manifest(
    out: Path,
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
    metrics: dict[str, float],
) -> None:
    """What made this folder. Written last, so a folder without it is not whole.

    Nothing in it varies between equal runs: no time, no host, no absolute path.
    """
    rows = {file.name: file.read_bytes().count(b"\n") for file in sorted(out.glob("*.jsonl"))}
    manifest = {
        "stage": stage,
        "config": config,
        "inputs": {name: digest(path) for name, path in inputs.items()},
        "rows": rows,
        "metrics": metrics,
    }
    write_json(out / "manifest.json", manifest)


def read_manifests(data: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the stages that have run, by stage."""
    return {path.parent.name: read_json(path) for path in sorted(data.glob("*/manifest.json"))}


# --- one writer per stage ----------------------------------------------------------------------


@contextlib.contextmanager
def lock(stage: str) -> Iterator[None]:
    """Hold the stage's lock in this workspace; processes that it starts carry the lock's name.

    `dvc repro` killed with -9 leaves its stage running, and a killed stage leaves its trainer.
    Such an orphan's work is lost to DVC, and what it paid for is in .cache/: it is ended. A stage
    whose pipeline lives is not touched, and is an error here.
    """
    path = workspace("locks", f"{stage}.json")
    with path.open("a+") as file:
        for _ in range(100):
            _end_orphans_of(path)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise PipelineError(f"{path}: still locked; end the process that holds it")
        file.seek(0)
        file.truncate()
        json.dump(_holder(), file)
        file.flush()
        os.environ[LOCK_VARIABLE] = str(path)
        try:
            yield
        finally:
            os.environ.pop(LOCK_VARIABLE, None)
            file.seek(0)
            file.truncate()


def end_orphans() -> list[str]:
    """End the stages of this workspace whose pipeline is gone; their names."""
    locks = sorted(workspace("locks", "any").parent.glob("*.json"))
    return [path.stem for path in locks if _end_orphans_of(path)]


def _end_orphans_of(path: Path) -> bool:
    """End what still runs under a lock whose pipeline is gone; raise if the pipeline lives."""
    try:
        held = json.loads(path.read_text())
    except json.JSONDecodeError:
        held = {}  # free, or just being taken
    stage, owner = _alive(held, "pid"), _alive(held, "owner")
    if stage and owner:
        raise PipelineError(
            f"stage {path.stem} is already running here (process {stage.pid}, started by process "
            f"{owner.pid}): wait for it, or end it with `kill {owner.pid}`"
        )
    orphans = [stage] if stage else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(LOCK_VARIABLE) == str(path):
                orphans.append(process)
    end_processes(orphans)
    return bool(orphans)


def end_processes(processes: Sequence[psutil.Process], patience_s: float = 5) -> None:
    """End processes politely, and after `patience_s` for good; nothing where they have ended."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=patience_s)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def _holder() -> dict[str, float]:
    """This process, and the one that would miss it: its dvc, else whatever started it."""
    this = psutil.Process()
    parents = this.parents()
    owner = next((p for p in parents if is_dvc(p)), parents[0] if parents else this)
    return {
        "pid": this.pid,
        "pid_since": this.create_time(),
        "owner": owner.pid,
        "owner_since": owner.create_time(),
    }


def _alive(held: dict[str, float], who: str) -> psutil.Process | None:
    """The process that the lock names, unless it has ended or its number was given away."""
    with contextlib.suppress(psutil.Error, KeyError):
        process = psutil.Process(int(held[who]))
        running = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        if running and abs(process.create_time() - held[f"{who}_since"]) < 1:
            return process
    return None


def is_dvc(process: psutil.Process) -> bool:
    """Is this a `dvc` command?"""
    with contextlib.suppress(psutil.Error):
        return any(Path(word).name == "dvc" for word in process.cmdline()[:2])
    return False
