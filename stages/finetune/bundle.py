"""A training as one folder: packed here, run anywhere, and taken back by digest."""

import contextlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from stages.core import store
from stages.core.errors import PipelineError
from stages.finetune import checkpoints
from stages.finetune.launching import ENVIRONMENT, Bundle
from stages.finetune.launching import job as jobs
from stages.finetune.starts import Start, arguments

SUMS = "SHA256SUMS"
TRAINED = "trained"
SAYS = "bundle"
"""File in trained/ with the digest of the bundle that it was trained from."""
KEPT = "imported"
"""File in a training's folder that says the same, once it was taken back."""


@dataclass(frozen=True)
class Packed:
    """What a bundle is made of."""

    files: Sequence[Path]
    """YAMLs, examples, and the folder of a base from scratch."""
    folders: Mapping[str, Path]
    """Further folders by their name in the bundle: a local base, an earlier adapter."""
    starts: Sequence[Start]
    num_processes: int
    offline: bool


def ask(cfg: Bundle, packed: Packed, work: Path) -> NoReturn:
    """Pack the bundle, and say what to do with it.

    PipelineError is how a stage ends without its outs: it goes on in the next run.
    """
    folder = pack(cfg, packed)
    digest = store.digest(folder / SUMS)
    store.write_json(store.cache("bundles", f"{digest}.json"), {"training": work.name})
    shown = os.path.relpath(folder, store.root())
    raise PipelineError(
        f"finetune.launcher: bundle: the training is packed in {shown}: run `sh train.sh` in it "
        "where the GPUs are, bring the folder back, then "
        f"`python -m stages bundle import {shown}`, and run again, which goes on from there"
    )


# --- packing -------------------------------------------------------------------------------------


def pack(cfg: Bundle, packed: Packed) -> Path:
    """Write the bundle, unless it is there; its folder. Equal trainings give equal bundles."""
    target = store.root() / Path(cfg.folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".", dir=target))
    try:
        for path in packed.files:
            place(path, beside / path.name)
        for name, path in packed.folders.items():
            place(path, beside / name)
        (beside / "environment").mkdir()
        own = (*sorted(ENVIRONMENT.glob("*.py")), Path(__file__).with_name("checkpoints.py"))
        for path in own:
            place(path, beside / "environment" / path.name)
        store.write_text(beside / "train.sh", script(cfg, packed))
        store.write_text(beside / "README.md", README)
        store.write_text(beside / SUMS, sums(beside, contents(beside)))
        folder = target / store.digest(beside / SUMS)[:16]
        if not (folder / SUMS).exists():
            beside.chmod(0o755)
            beside.rename(folder)
        return folder
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def place(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def contents(folder: Path) -> list[Path]:
    """The files of a bundle, without what was trained in it."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
    return [p for p in files if p.name != SUMS and folder / TRAINED not in p.parents]


def sums(folder: Path, files: Sequence[Path]) -> str:
    """As `sha256sum --check` reads them."""
    rows = ((store.digest(path), path.relative_to(folder).as_posix()) for path in files)
    return "".join(f"{digest}  {name}\n" for digest, name in rows)


README = """\
# A training, packed by Docent

`sh train.sh` trains what this folder holds, into `trained/`. It needs Linux, and a Python with
Axolotl 0.19.0 and DeepSpeed, such as in the image `axolotlai/axolotl:0.19.0`.

    PYTHON=python NUM_PROCESSES=8 sh train.sh

NUM_PROCESSES is the number of GPUs; as packed it is the one that the settings say, and another one
changes the global batch. A run that was killed goes on from its newest whole checkpoint when it is
started again. In a notebook: `!sh train.sh`.

Bring this folder back, or a tar of it, and in the project run

    python -m stages bundle import FOLDER
    python -m stages run

The model is taken over only where it was trained from this very bundle: change nothing here.
"""


def script(cfg: Bundle, packed: Packed) -> str:
    """The shell script that trains in the bundle's own folder."""
    lines = [
        "#!/bin/sh",
        "# Trains what this folder holds, into trained/. See README.md.",
        "set -e",
        'cd "$(dirname "$0")"',
        f"sha256sum --check --quiet {SUMS}",
        f'PYTHON="${{PYTHON:-{cfg.python}}}"',
        f'NUM_PROCESSES="${{NUM_PROCESSES:-{packed.num_processes}}}"',
        'export PYTHONPATH="$PWD/environment${PYTHONPATH:+:$PYTHONPATH}"',
        'export HF_DATASETS_CACHE="$PWD/trained/datasets"',
    ]
    lines += jobs.exports(jobs.everywhere(packed.offline)).splitlines()
    alone = " ".join(f"{name}={value}" for name, value in sorted(jobs.ALONE.items()))
    lines += [
        "start() {",
        '  if [ "$NUM_PROCESSES" -gt 1 ]; then',
        '    "$PYTHON" -m torch.distributed.run --standalone '
        '--nproc_per_node "$NUM_PROCESSES" "$@"',
        "  else",
        f'    env {alone} "$PYTHON" "$@"',
        "  fi",
        "}",
        "goes_on() {",
        f'  rm -rf "{TRAINED}/$1/prepared" {TRAINED}/datasets',
        f'  mkdir -p "{TRAINED}/$1"',
        f'  "$PYTHON" -c "import pathlib, checkpoints; folder = pathlib.Path(\'{TRAINED}/$1\'); '
        "print(checkpoints.set_aside(folder / 'model', folder / 'torn') or '')\"",
        "}",
    ]
    for one in packed.starts:
        words = jobs.shell(["-m", one.module, one.file, *arguments(one)])
        done = f"{TRAINED}/merged" if one.is_merge else f"{TRAINED}/{one.name}/ended"
        lines.append(f"if [ ! -e {done} ]; then")
        if one.is_merge:
            lines += [f"  NUM_PROCESSES=1 start {words}"]
        else:
            lines += [
                f"  goes_on {one.name}",
                f'  export DOCENT_REPORT="$PWD/{TRAINED}/{one.name}/{one.name}.jsonl"',
                f"  start {words}",
                "  unset DOCENT_REPORT",
            ]
        lines += ["  sync", f"  touch {done}", "fi"]
    lines += [
        f"rm -rf {TRAINED}/datasets {TRAINED}/*/prepared {TRAINED}/*/torn",
        f"rm -rf {TRAINED}/*/model/checkpoint-*",
        f'sha256sum {SUMS} | cut -d " " -f 1 | tr -d "\\n" > {TRAINED}/{SAYS}',
        f"cd {TRAINED}",
        f"find . -type f ! -name {SUMS} -exec sha256sum {{}} + > ../.sums",
        f"mv ../.sums {SUMS}",
        'echo "Trained. Bring this folder back: python -m stages bundle import FOLDER"',
    ]
    return "\n".join(lines) + "\n"


# --- taking back ---------------------------------------------------------------------------------


def take_back(path: Path) -> str:
    """Take over what was trained in a bundle, a folder or a tar of it; a line that says so."""
    if not path.exists():
        raise PipelineError(f"{path}: no such file or folder")
    with opened(path) as folder:
        trained = folder if (folder / SAYS).is_file() else folder / TRAINED
        if not (trained / SAYS).is_file() or not (trained / SUMS).is_file():
            raise PipelineError(
                f"{path}: no {TRAINED}/{SAYS} in it: `sh train.sh` has not come to its end there"
            )
        digest = (trained / SAYS).read_text().strip()
        known = store.cache("bundles", "any").parent
        noted = known / f"{digest}.json"
        if len(digest) != 64 or not noted.is_file():
            found = ", ".join(p.stem[:16] for p in sorted(known.glob("*.json"))) or "none"
            raise PipelineError(
                f"{path}: it was trained from the bundle {digest[:16]!r}, which was not packed "
                f"here: expected one of {found}"
            )
        check_sums(trained, path)
        work = store.cache("training", store.read_json(noted)["training"])
        beside = work.with_name(f".{work.name}.{os.getpid()}")
        try:
            shutil.copytree(trained, beside)
            checkpoints.sync(beside)
            store.write_text(beside / KEPT, digest)
            shutil.rmtree(work, ignore_errors=True)
            beside.rename(work)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return (
        f"the model of bundle {digest[:16]} is taken over: `python -m stages run` goes on with it"
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A folder, or a tar unpacked for as long as the block; nothing of it lands outside."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(dir=store.cache("bundles", "any").parent) as unpacked:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(unpacked, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise PipelineError(
                f"{path}: expected a folder or a tar: {' '.join(str(error).split())}"
            ) from None
        inner = list(Path(unpacked).iterdir())
        is_one = len(inner) == 1 and inner[0].is_dir() and inner[0].name != TRAINED
        yield inner[0] if is_one else Path(unpacked)


def check_sums(trained: Path, origin: Path) -> None:
    """Every file is there as it was when the training ended, and no other."""
    wanted = dict(_read_sums(trained / SUMS))
    found = {
        p.relative_to(trained).as_posix(): p
        for p in sorted(trained.rglob("*"))
        if p.is_file() and p != trained / SUMS
    }
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise PipelineError(f"{origin}: {TRAINED}/{name} is missing: bring it back whole")
        if name not in wanted or store.digest(found[name]) != wanted[name]:
            raise PipelineError(
                f"{origin}: {TRAINED}/{name} is not as it was when the training ended: bring the "
                "folder back anew"
            )


def _read_sums(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        digest, _, name = line.partition("  ")
        yield name.removeprefix("./"), digest
