"""Vectors of an index behind one seam: what `build` puts into a store, `open` searches."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from stages.answer.vectors import saved
from stages.core import config, store

# Prefixes stand in the names of tables and collections.
Prefix = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,39}$")]


class Graph(config.Base):
    connectivity: Annotated[int, Field(ge=2, le=100)]
    """Neighbours of a vector in each layer of the graph (M in HNSW's paper): more of them find more
    and take more memory."""
    expansion_add: Annotated[int, Field(ge=4, le=1000)]
    """Candidates that are kept while a vector is added (ef_construction)."""
    expansion_search: Annotated[int, Field(ge=1, le=1000)]
    """Candidates that are kept while a query is answered (ef): more find more and take longer."""


class Flat(config.Base):
    """Compares the query with every vector of a memory-mapped file; exact."""

    kind: Literal["flat"]


class Hnsw(Graph):
    """Walks a graph in a memory-mapped file; a filtered search compares every allowed vector."""

    kind: Literal["hnsw"]
    precision: Literal["f32", "f16", "bf16"]
    """Of the vectors in the graph; what it finds is scored again in f32."""


class Pgvector(config.Base):
    """A table of a PostgreSQL that has the extension pgvector."""

    kind: Literal["pgvector"]
    dsn_env: str | None
    """Environment variable that holds the DSN; null starts the PostgreSQL of the pgserver package,
    with its data in .cache/postgres and a Unix socket that only its user can open."""
    prefix: Prefix
    """What the table's name begins with. A prefix has one table: filling it drops the others."""
    graph: Graph | None
    """Of an HNSW index; null compares with every vector, as a filtered search always does."""


class Qdrant(config.Base):
    """A collection of a Qdrant server, or of qdrant-client's own engine."""

    kind: Literal["qdrant"]
    url: str | None
    """Of the server. Null is the engine inside qdrant-client, filled in memory at every start: for
    trying things out, up to some 20,000 vectors."""
    api_key_env: str | None
    """Environment variable that holds the server's key; null sends none."""
    prefix: Prefix
    """What the collection's name begins with. A prefix has one collection: filling it drops the
    others."""
    graph: Graph | None
    """Of the server's HNSW index; null compares with every vector."""


Config = Annotated[Flat | Hnsw | Pgvector | Qdrant, Field(discriminator="kind")]


class Vectors(Protocol):
    """The vectors of one index, open for search; safe for many threads at once."""

    def search(
        self, query: np.ndarray, k: int, sources: Collection[str] | None = None
    ) -> list[tuple[int, float]]:
        """Rows and cosines of the k vectors nearest to a unit vector (dim,); ties by row.

        With `sources`, only rows that bear one of these labels.
        """

    def close(self) -> None: ...


def build(
    cfg: Config, vectors: np.ndarray, sources: Sequence[str], folder: Path, digest: str
) -> None:
    """Write unit vectors (row, dim), float32, and the label of each row: all, or none that opens.

    `digest` is hexadecimal and names all that the rows are made of. A collection bears it in its
    name, and takes the place of every other one with the same prefix. `folder` gets the vectors
    whatever the store is, since a store that lost its collection is filled from there again.
    """
    rows = saved.Saved(vectors, tuple(sources), digest)
    for name in (saved.ABOUT, saved.GRAPH, saved.ABOUT_GRAPH):
        (folder / name).unlink(missing_ok=True)
    with store.replacing(folder / saved.VECTORS) as file:
        np.save(file, rows.vectors, allow_pickle=False)
    # Imported when used: the clients of the stores take up to a second.
    match cfg:
        case Flat() | Qdrant(url=None):
            pass
        case Hnsw():
            from stages.answer.vectors import hnsw

            hnsw.build(cfg, rows, folder)
        case Pgvector() | Qdrant():
            _open(cfg, rows, folder).close()
    saved.finish(rows, folder)


def open(cfg: Config, folder: Path, digest: str) -> Vectors:
    """The vectors that `build` wrote under this digest; a store that lacks them is filled again."""
    return _open(cfg, saved.read(folder, digest), folder)


def _open(cfg: Config, rows: saved.Saved, folder: Path) -> Vectors:
    match cfg:
        case Flat():
            from stages.answer.vectors import flat

            return flat.Scan(rows)
        case Hnsw():
            from stages.answer.vectors import hnsw

            return hnsw.Walk(cfg, rows, folder)
        case Pgvector():
            from stages.answer.vectors import pgvector

            return pgvector.Table(cfg, rows)
        case Qdrant():
            from stages.answer.vectors import qdrant

            return qdrant.Points(cfg, rows)
