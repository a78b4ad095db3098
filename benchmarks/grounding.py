"""How many planted errors the check of answers against their evidence rejects, and what is lost.

The pairs are those of tests/planted.py. `copied` is what the outline teacher writes about this
manual and Debian's python3-doc (`apt-get install python3-doc`), `reworded` are answers as language
models write them, and `turned` are answers by hand that say what a page says in other words, often
by an opposite or two negations, with wrong ones by hand that differ from them in little more than
that. Nothing was tuned on the half `held_out`; `reworded` has none, since the rules were made on
it. One person wrote both halves of `turned`, so that its held-out half has new sentences and not a
new author. A chunk is another one of the set, `chunk near` another one of the same page. `--quick`
takes every tenth page of python3-doc that the whole takes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from benchmarks import machine
from stages.synthesize import grounding

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import planted

CAUGHT = 0.95
LOST = 0.05
Z = 1.959964
"""Of a 95 % interval."""

Set = tuple[str, planted.Half, list[planted.Planted], tuple[str, ...]]
"""Name, half, pairs, and the titles that the reader is told."""


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="fewer pages and one round")
    quick = reader.parse_args().quick
    if not planted.PYTHON_DOC.exists():
        print(f"{planted.PYTHON_DOC} is missing: apt-get install python3-doc", file=sys.stderr)
        return 1
    print(machine.describe(), flush=True)
    short = False
    figures: list[tuple[str, float, float]] = []
    for name, half, pairs, titles in measured(quick):
        table = planted.judge(pairs, titles)
        show(f"{name}, {half}", table)
        print(f"{microseconds(pairs, titles, 1 if quick else 5):.0f} µs a pair", flush=True)
        for sort, (total, rejected) in table.items():
            target = LOST if sort == "right" else CAUGHT
            figures.append((f"{name}_{half}_{sort.replace(' ', '_')}", rejected / total, target))
            short |= rejected / total > LOST if sort == "right" else rejected / total < CAUGHT
    print()
    for figure, value, target in figures:
        print(f"figure {figure} {value:.3f} target {target}")
    return int(short)


def measured(quick: bool) -> list[Set]:
    step = 10 if quick else 1
    python = {half: planted.of_pythons_manual(half, step) for half in planted.HALVES}
    reworded = planted.as_models_write()
    return [
        ("copied", "tuned", planted.plant(planted.of_this_manual() + python["tuned"]), ()),
        ("copied", "held_out", planted.plant(python["held_out"]), ()),
        ("reworded", "tuned", planted.plant_often(reworded), planted.TITLES),
        *(
            ("turned", half, planted.plant_turned(planted.by_hand(half)), planted.TITLES)
            for half in planted.HALVES
        ),
    ]


def show(name: str, table: planted.Table) -> None:
    print(f"\n{name:<22}{'pairs':>8}{'rejected':>10}{'share':>8}   95 % interval")
    for sort, (total, rejected) in table.items():
        low, high = wilson(rejected, total)
        share = rejected / total
        print(f"{sort:<22}{total:>8}{rejected:>10}{share:>8.3f}   {low:.3f} to {high:.3f}")


def wilson(found: int, total: int) -> tuple[float, float]:
    """The score interval of a share (Wilson, 1927)."""
    share, weight = found / total, Z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    width = Z * sqrt(share * (1 - share) / total + weight / total / 4) / (1 + weight)
    return max(0.0, middle - width), min(1.0, middle + width)


def microseconds(pairs: Sequence[planted.Planted], titles: Sequence[str], num_rounds: int) -> float:
    """A pair takes, read anew; median of the rounds."""
    rounds = []
    for _ in range(num_rounds):
        grounding.read.cache_clear()
        began = time.process_time()
        for _, (_, question, answer, evidence) in pairs:
            grounding.faults(question, answer, [evidence], titles)
        rounds.append((time.process_time() - began) / len(pairs) * 1e6)
    return statistics.median(rounds)


if __name__ == "__main__":
    sys.exit(main())
