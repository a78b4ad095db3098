"""Which of a training's checkpoints may be gone on from: the whole ones, with finite numbers."""

import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SEAL = "docent.json"
"""Written last into a checkpoint by our plugin: the size of each of its files."""
WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
"""Bytes of a number, by safetensors' names of types."""
EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""As whole numbers, and the bits that are all set in a NaN or an infinity."""
AT_ONCE = 1 << 24


def numbered(trained: Path) -> dict[int, Path]:
    """The checkpoints of a training by their steps, whole or not."""
    found = {path: path.name.removeprefix("checkpoint-") for path in trained.glob("checkpoint-*")}
    return {int(step): path for path, step in sorted(found.items()) if step.isdigit()}


def set_aside(trained: Path, aside: Path) -> dict[str, str]:
    """Move away the checkpoints that cannot be gone on from; their names, and what is wrong.

    Axolotl takes the one of the highest step, and would not look whether it is whole. Only the last
    is kept aside: the disk may be full of them.
    """
    faults = {}
    for path in numbered(trained).values():
        if said := fault(path):
            faults[path.name] = said
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True, exist_ok=True)
            path.rename(aside / path.name)
    return faults


def sync(folder: Path) -> None:
    """See a folder's files onto the disk, before a mark or a name says that they are there."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be gone on from; None where it can."""
    return next(_faults(folder), None)


def _faults(folder: Path) -> Iterator[str]:
    """What is wrong: by its seal first, and by its files, whose bytes a power cut may have lost."""
    sizes = _read(folder / SEAL)
    if not isinstance(sizes, dict) or not sizes:
        yield "it was not written to its end"
        return
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size} bytes of {size}"
    yield from _state_faults(folder)
    for needed in ("scheduler.pt", "rng_state*.pth"):
        if not any(folder.glob(needed)):
            yield f"{needed} is missing"
    if (folder / "latest").exists():  # of DeepSpeed, whose folder holds weights and optimizer
        named = (folder / "latest").read_text(errors="replace").strip()
        shards = sorted((folder / named).glob("*_states.pt")) if named else []
        if not any("optim" in shard.name for shard in shards):
            yield f"the folder {named!r}, which `latest` names, holds no optimizer"
    else:
        for needed in ("optimizer.pt", "*.safetensors"):
            if not any(folder.glob(needed)):
                yield f"{needed} is missing"
    for path in sorted(folder.rglob("*.pt")) + sorted(folder.rglob("*.pth")):
        if said := archive_fault(path):
            yield f"{path.relative_to(folder)} {said}"
    for path in sorted(folder.glob("*.safetensors")):
        if said := tensors_fault(path):
            yield f"{path.name} {said}"


def _state_faults(folder: Path) -> Iterator[str]:
    state = _read(folder / "trainer_state.json")
    if not isinstance(state, dict) or "global_step" not in state:
        yield "trainer_state.json is missing or torn"
        return
    if folder.name != f"checkpoint-{state['global_step']}":
        yield f"trainer_state.json is of step {state['global_step']}"
    for row in state.get("log_history", ()):
        for name in ("loss", "eval_loss", "grad_norm"):
            if not math.isfinite(float(row.get(name, 0))):
                yield f"its {name} was {row[name]} at step {row.get('step')}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def archive_fault(path: Path) -> str | None:
    """What is wrong with a file of torch.save, which is a zip with a checksum of each part."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return "is torn"
    return f"is corrupt ({bad})" if bad else None


def tensors_fault(path: Path) -> str | None:
    """What is wrong with a safetensors file: torn, or with a number that is not finite."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= path.stat().st_size - 8:
                return "is torn"
            header = json.loads(file.read(length))
    except (OSError, ValueError):
        return "is torn"
    header.pop("__metadata__", None)
    start, end = 8 + length, path.stat().st_size - 8 - length
    if not header or max(about["data_offsets"][1] for about in header.values()) != end:
        return "is torn"
    for name, about in sorted(header.items()):
        first, last = about["data_offsets"]
        if last - first != math.prod(about["shape"]) * WIDTHS.get(about["dtype"], 0):
            return f"is corrupt ({name})"
        if about["dtype"] in EXPONENTS and not _is_finite(
            path, about["dtype"], start + first, last - first
        ):
            return f"holds a number that is not finite ({name})"
    return None


def _is_finite(path: Path, dtype: str, start: int, num_bytes: int) -> bool:
    """Read in pieces, so that a model of any size takes little memory."""
    kind, bits = EXPONENTS[dtype]
    if not num_bytes:
        return True
    numbers = np.memmap(path, kind, "r", start, num_bytes // np.dtype(kind).itemsize)
    return all(
        not np.any((numbers[at : at + AT_ONCE] & bits) == bits)
        for at in range(0, len(numbers), AT_ONCE)
    )
