"""What a rebuild pays again, and what a storm, a kill or a bad reply costs: whole counts.

A server on loopback speaks the teacher's protocol and bills each reply, and its bill is the truth.
First `synthesize` runs on a site of 500 pages, again on the same, and again after the edit of each
of eight pages. Then come replies of a model that is not at its best, a storm of 429, runs that are
killed with -9, runs under a cap, and runs of batches that are killed. The scenarios are those of
the tests, which run them with lower counts. `--quick` does so too.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from benchmarks import machine

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import test_llm_batches  # noqa: E402
import test_llm_budget  # noqa: E402
import test_llm_ledger  # noqa: E402
import test_llm_limits  # noqa: E402
import test_synthesize_rebuild  # noqa: E402

Figure = tuple[str, float, str, float]
"""Name, value, whether it is to be at least or at most, and the target."""

NOOP_S = 10.0


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="lower counts")
    quick = reader.parse_args().quick
    print(machine.describe("openai", "httpx2", "tenacity"), flush=True)
    figures: list[Figure] = []
    for scenario in (edits, bad_replies, storm, kills, caps, batch_kills):
        with elsewhere() as folder:
            figures += scenario(folder, quick)
    print()
    for name, value, _, target in figures:
        print(f"figure {name} {value:.4g} target {target:g}")
    short = [
        value < target if side == ">=" else value > target for _, value, side, target in figures
    ]
    return int(any(short) and not quick)


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """An empty folder with a ledger of its own."""
    here = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"TEST_KEY": "none", "DVC_ROOT": folder}),
    ):
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(here)


def edits(folder: Path, quick: bool) -> list[Figure]:
    num_pages, num_edits, num_sections = (40, 2, 4) if quick else (500, 8, 6)
    found = test_synthesize_rebuild.rebuilt(folder, num_pages, num_edits, num_sections)
    took, whole = found.took, found.all_facts
    print(
        f"\n{num_pages} pages, {found.chunks} chunks: the first build makes {found.first} calls; "
        f"builds of the same make {found.again}, in {took.seconds:.2f} s ({took.processor_s:.2f} s "
        f"of processor time) with the limits of conf/synthesize, and in {whole.seconds:.2f} s "
        f"({whole.processor_s:.2f} s) without\n"
        f"{'edited page':>12}{'own calls':>11}{'it is in the prompt':>21}{'others':>8}"
        f"{'billed twice':>14}"
    )
    for number, edit in enumerate(found.edits, 1):
        print(
            f"{number:>12}{edit.own:>11}{edit.shared:>21}{len(edit.others):>8}{edit.repeated:>14}"
            f"  {' '.join(edit.others)}",
            flush=True,
        )
    return [
        ("noop_calls", found.again, "<=", 0),
        ("noop_s", took.seconds, "<=", NOOP_S),
        ("noop_all_facts_s", whole.seconds, "<=", NOOP_S),
        ("edited_calls_of_others", sum(len(edit.others) for edit in found.edits), "<=", 0),
        ("edited_calls_billed_twice", max(edit.repeated for edit in found.edits), "<=", 0),
    ]


def bad_replies(folder: Path, quick: bool) -> list[Figure]:
    found = test_synthesize_rebuild.reconciled(folder, *((40, 4) if quick else (900, 12)))
    print(
        f"\n{found.replies} replies, malformed in many ways, and {found.facts} facts in them\n"
        f"{'quarantined whole':>18}{'empty':>7}{'facts accepted':>16}{'repaired':>10}"
        f"{'quarantined':>13}{'unaccounted':>13}\n"
        f"{found.unread:>18}{found.empty:>7}{found.accepted:>16}{found.repaired:>10}"
        f"{found.quarantined:>13}{len(found.strays):>13}",
        flush=True,
    )
    return [
        ("malformed_replies", found.replies, ">=", 5000),
        ("malformed_unaccounted", len(found.strays), "<=", 0),
    ]


def storm(folder: Path, quick: bool) -> list[Figure]:
    num_rows = 100 if quick else 1000
    found = test_llm_limits.storm(num_rows)
    print(
        f"\n{num_rows} calls, 64 at once, where 50 a second find room: {found.replies} replies, "
        f"{found.turned_away} times 429, {found.duplicates} billed twice",
        flush=True,
    )
    return [
        ("storm_completed", found.replies / num_rows, ">=", 1),
        ("storm_duplicates", found.duplicates / num_rows, "<=", 0.01),
    ]


def kills(folder: Path, quick: bool) -> list[Figure]:
    num_kills, num_rows = (4, 60) if quick else (24, 200)
    found = test_llm_ledger.killed(folder, num_kills, num_rows)
    points = ", ".join(f"{count} {point}" for point, count in sorted(found.kills.items()))
    print(
        f"\n{num_rows} calls, {test_llm_ledger.CONCURRENCY} at once, killed {points}: "
        f"{found.stored} replies stored, {found.lost} of them lost or asked for again; at most "
        f"{found.most_repeated} calls of a run repeated, {found.duplicates} in all",
        flush=True,
    )
    return [
        ("kills", sum(found.kills.values()), ">=", 20),
        ("kills_lost_replies", found.lost + num_rows - found.stored, "<=", 0),
        ("kills_most_repeated", found.most_repeated, "<=", test_llm_ledger.CONCURRENCY),
    ]


def caps(folder: Path, quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    print("\na third of the calls goes wrong, the cap is 1")
    print(f"{'calls at once':>14}{'usage':>10}{'billed':>9}{'billed twice':>14}")
    for concurrency in (1, 8, 64):
        for says_usage in (True, False):
            with elsewhere():
                found = test_llm_budget.capped(concurrency, says_usage)
            share = found.usd / test_llm_budget.CAP_USD
            usage = "said" if says_usage else "not said"
            print(f"{concurrency:>14}{usage:>10}{share:>9.3f}{found.duplicates:>14}", flush=True)
            figures.append((f"cap_{concurrency}_usage_{usage.replace(' ', '_')}", share, "<=", 1))
    return figures


def batch_kills(folder: Path, quick: bool) -> list[Figure]:
    points = (
        test_llm_batches.POINTS[::4]
        if quick
        else sorted(test_llm_batches.POINTS * 2, key=test_llm_batches.POINTS.index)
    )
    num_rows, size = 300, 20
    found = test_llm_batches.killed(folder, points, num_rows, size)
    print(
        f"\n{num_rows} calls in batches of {size}, killed {found.kills} times at "
        f"{len(set(points))} points: {found.batches} batches, {found.stored} replies stored, "
        f"{found.duplicates} calls billed twice, {found.singles} outside of batches",
        flush=True,
    )
    return [
        ("batch_kills", found.kills, ">=", 20),
        ("batches_made_twice", found.batches - num_rows // size, "<=", 0),
        ("batch_calls_billed_twice", found.duplicates + found.singles, "<=", 0),
        ("batch_lost_replies", found.lost + num_rows - found.stored, "<=", 0),
    ]


if __name__ == "__main__":
    sys.exit(main())
