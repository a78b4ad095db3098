"""How far a stage is: rows of .cache/progress/<stage>.jsonl, shown as they come."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stages.core import store

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One report: `done` of `total` units (total 0: unknown), with figures such as the loss."""

    stage: str
    done: int
    total: int
    unit: str
    metrics: dict[str, float] = field(default_factory=dict)
    note: str = ""


_listeners: list[Callable[[Step], None]] = []
_stage = ""


def begin(stage: str, *listeners: Callable[[Step], None]) -> None:
    """Send this process's steps to the stage's file and to the listeners."""
    global _stage
    _stage = stage
    path = store.workspace("progress", f"{stage}.jsonl")
    path.write_text("")

    def record(step: Step) -> None:
        row: dict[str, Any] = {"time": round(time.time(), 3), **step.__dict__}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    _listeners[:] = [record, *listeners]


@dataclass(frozen=True)
class Spent:
    """What a stage took when it last ran in this workspace."""

    began: float
    """Unix time."""
    seconds: float
    cost_usd: float


def spent(stage: str) -> Spent | None:
    """From the stage's own file; None where it has not run here."""
    try:
        lines = store.workspace("progress", f"{stage}.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return None
    rows = [json.loads(line) for line in lines]
    if not rows:
        return None
    cost = sum(row["metrics"].get("cost_usd", 0) for row in rows)
    return Spent(rows[0]["time"], rows[-1]["time"] - rows[0]["time"], cost)


def step(done: int, total: int, unit: str, note: str = "", **metrics: float) -> None:
    """Report; does nothing outside a stage's process."""
    report = Step(_stage, done, total, unit, metrics, note)
    for listener in _listeners:
        listener(report)


def note(text: str) -> None:
    """Say one line."""
    step(0, 0, "", note=text)


def track(rows: Iterable[T], unit: str, total: int) -> Iterator[T]:
    """The rows, reported at most ten times a second and at the end."""
    last, done = 0.0, 0
    for done, row in enumerate(rows, 1):
        yield row
        if time.monotonic() - last > 0.1:
            step(done, total, unit)
            last = time.monotonic()
    step(done, max(total, done), unit)
