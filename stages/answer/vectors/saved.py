"""The files of every vector store: its vectors, the labels of their rows, and what they are of."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.core import store
from stages.core.errors import PipelineError

VECTORS = "vectors.npy"
ABOUT = "vectors.json"
"""Written last: without it, or with another digest in it, the vectors are not read."""
GRAPH = "graph.usearch"
ABOUT_GRAPH = "graph.json"


@dataclass(frozen=True, eq=False)
class Saved:
    vectors: np.ndarray
    """(row, dim), float32, of unit length."""
    sources: tuple[str, ...]
    """The label of each row."""
    digest: str

    def __post_init__(self) -> None:
        assert self.vectors.ndim == 2 and self.vectors.dtype == np.float32
        assert len(self.vectors) == len(self.sources) > 0
        assert re.fullmatch("[0-9a-f]{16,}", self.digest), self.digest

    def name(self, prefix: str) -> str:
        """Of the collection."""
        return f"{prefix}_{self.digest[:16]}"

    def check(self, query: np.ndarray) -> None:
        dim = self.vectors.shape[1]
        if query.shape != (dim,):
            raise PipelineError(
                f"a query of {math.prod(query.shape)} dimensions for an index of {dim}: expected "
                "one model for both; `dvc repro` makes the index anew"
            )


def others(names: Collection[str], prefix: str, mine: str) -> list[str]:
    """The collections of this prefix but for `mine`."""
    pattern = re.compile(re.escape(prefix) + "_[0-9a-f]{16}")
    return sorted(name for name in names if pattern.fullmatch(name) and name != mine)


def ranked(rows: np.ndarray, cosines: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The k best, ties by row. Six decimals, since the last bits differ with place and machine."""
    cosines = np.round(cosines.astype(np.float64), 6)
    best = np.lexsort((rows, -cosines))[:k]
    return [(int(rows[i]), float(cosines[i])) for i in best]


def finish(rows: Saved, folder: Path) -> None:
    about = {"dim": rows.vectors.shape[1], "digest": rows.digest, "sources": rows.sources}
    store.write_json(folder / ABOUT, about)


def read(folder: Path, digest: str) -> Saved:
    """What was finished under this digest; the vectors are mapped, not read."""
    about = store.read_json(folder / ABOUT)
    if about["digest"] != digest:
        raise PipelineError(
            f"{folder / ABOUT}: digest: {about['digest'][:16]!r}: expected {digest[:16]!r}; these "
            "are another index's vectors: `dvc repro` makes this one's"
        )
    try:
        vectors = np.lib.format.open_memmap(folder / VECTORS, mode="r")
    except FileNotFoundError:
        raise PipelineError(f"{folder / VECTORS}: no such file; `dvc repro` makes it") from None
    except (ValueError, EOFError) as error:
        raise PipelineError(f"{folder / VECTORS}: not an array of numbers: {error}") from None
    shape = (len(about["sources"]), about["dim"])
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise PipelineError(
            f"{folder / VECTORS}: {vectors.dtype} {vectors.shape}: expected float32 {shape}; "
            "`dvc repro` makes it"
        )
    return Saved(np.asarray(vectors), tuple(about["sources"]), digest)
