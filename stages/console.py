"""What a person sees of a run: a moving bar on a terminal, plain lines elsewhere, tables."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from stages.core.progress import Step

PLAIN_EVERY_S = 15.0
"""Seconds between two plain lines of one stage, so that a log of hours stays readable."""


SHOWN = 12
"""Figures in a stage's last line; all of them are in its manifest."""


class Display:
    """Shows one stage's steps on standard error; use as a context and as a progress listener."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._console = Console(stderr=True, highlight=False)
        self._live = sys.stderr.isatty()
        self._started = self._spoken = time.monotonic()
        self._bar = Progress(
            TextColumn(f"{stage:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def hear(self, step: Step) -> None:
        if step.note:
            self.say(step.note)
            return
        figures = "  ".join(f"{name} {value:.4g}" for name, value in step.metrics.items())
        if self._live:
            self._bar.update(
                self._task,
                completed=step.done,
                total=step.total or None,
                description=f"{step.unit}  {figures}",
            )
        elif time.monotonic() - self._spoken > PLAIN_EVERY_S:
            self._spoken = time.monotonic()
            of = f"/{step.total}" if step.total else ""
            self.say(f"{step.done}{of} {step.unit}  {figures}".rstrip())

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        self._console.print(f"{self._stage:<10} {text}", markup=False, soft_wrap=True)

    def end(self, metrics: dict[str, float]) -> None:
        seconds = time.monotonic() - self._started
        shown = [f"{name} {value:.6g}" for name, value in metrics.items()][:SHOWN]
        figures = ", ".join(shown + ["…"] * (len(metrics) > SHOWN))
        self.say(f"done in {seconds:.1f} s" + (f": {figures}" if figures else ""))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; the first column is text, the others are figures."""
    drawn = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(drawn)
