"""usearch's HNSW graph in a file: near neighbours in a fraction of a millisecond, most of them."""

import hashlib
import threading
from collections.abc import Collection
from pathlib import Path

import numpy as np
from usearch.index import Index

from stages.answer import vectors
from stages.answer.vectors.flat import Scan
from stages.answer.vectors.saved import ABOUT_GRAPH, GRAPH, Saved, ranked
from stages.core import store
from stages.core.errors import PipelineError


def build(cfg: vectors.Hnsw, rows: Saved, folder: Path) -> None:
    """Write the graph: on machines of one kind, equal vectors give equal bytes."""
    index = Index(
        ndim=rows.vectors.shape[1],
        metric="ip",
        dtype=cfg.precision,
        connectivity=cfg.connectivity,
        expansion_add=cfg.expansion_add,
        expansion_search=cfg.expansion_search,
    )
    keys = np.arange(len(rows.vectors), dtype=np.uint64)
    index.add(keys, rows.vectors, threads=1)  # with more, the graph hangs on who comes first
    content = index.save()
    assert content is not None
    with store.replacing(folder / GRAPH) as file:
        file.write(content)
    about = {"digest": rows.digest, "sha256": hashlib.sha256(content).hexdigest()}
    store.write_json(folder / ABOUT_GRAPH, about)


class Walk:
    def __init__(self, cfg: vectors.Hnsw, rows: Saved, folder: Path) -> None:
        self._saved = rows
        self._scan = Scan(rows)
        # usearch gives up the interpreter's lock and puts every caller on its thread 0.
        self._lock = threading.Lock()
        self._index = _map(cfg, rows, folder)

    def search(
        self, query: np.ndarray, k: int, sources: Collection[str] | None = None
    ) -> list[tuple[int, float]]:
        if sources is not None or k <= 0:
            return self._scan.search(query, k, sources)
        self._saved.check(query)
        # All candidates are scored again: what lies close in half precision changes places.
        most = max(k, self._index.expansion_search)
        with self._lock:
            found = self._index.search(query, most, threads=1).keys
        rows = found.astype(np.int64)
        return ranked(rows, np.vecdot(self._saved.vectors[rows], query), k)

    def close(self) -> None:
        self._index.reset()  # type: ignore[no-untyped-call]


def _map(cfg: vectors.Hnsw, rows: Saved, folder: Path) -> Index:
    about = store.read_json(folder / ABOUT_GRAPH)
    path = folder / GRAPH
    # usearch trusts the offsets in its file: a damaged one would end this process.
    try:
        whole = about == {"digest": rows.digest, "sha256": store.digest(path)}
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; `dvc repro` makes it") from None
    if not whole:
        raise PipelineError(f"{path}: not the file that was written; `dvc repro` makes it")
    index = Index.restore(path, view=True, expansion_search=cfg.expansion_search)
    assert index is not None
    return index
