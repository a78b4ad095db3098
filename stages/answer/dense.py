"""Chunks as vectors of their parts, and a question to the chunks whose parts mean the same."""

import contextlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.answer import embedding, prompt, vectors
from stages.answer.embedding import Embedder
from stages.answer.lexical import load_array, unlinked
from stages.answer.sentences import sentences
from stages.answer.vectors import Vectors
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Chunk, identify

FOLDER = "dense"
PARTS_PER_CHUNK = 4
"""Rows that are asked for to find one chunk: parts of one chunk stand together in a ranking."""


def build(
    chunks: Sequence[Chunk],
    folder: Path,
    embedder_cfg: embedding.Config,
    store_cfg: vectors.Config,
) -> int:
    """Add the vectors of the chunks, in the order of their ids; how many there are."""
    ordered = sorted(chunks, key=lambda chunk: chunk.id)
    with embedding.open(embedder_cfg) as embedder:
        if embedder is None:
            return 0
        tokens = embedder.window_tokens
        cut = [(row, part) for row, c in enumerate(ordered) for part in parts(c, tokens)]
        found = embedder.texts([part for _, part in cut])
        identity = embedder.identity
    rows = np.array([row for row, _ in cut], np.int32)
    labels = [ordered[row].source for row in rows]
    digest = identify(identity, [part for _, part in cut], rows.tolist(), labels)
    about = {
        "embedder": embedder_cfg.model_dump(),
        "identity": identity,
        "store": store_cfg.model_dump(),
        "digest": digest,
        "num_chunks": len(ordered),
    }
    with store.replacing(folder / FOLDER / "rows.npy") as file:
        np.save(file, rows, allow_pickle=False)
    vectors.build(store_cfg, found, labels, folder / FOLDER, digest)
    store.write_json(folder / FOLDER / "about.json", about)
    return len(rows)


def parts(chunk: Chunk, tokens: int) -> Iterator[str]:
    """The chunk in parts of whole sentences under its headings: what has a vector each.

    A part has at most so many tokens (as cl100k counts them), unless one sentence has more.
    """
    head = " > ".join(chunk.heading_path)
    room = max(16, tokens - prompt.count(head))
    part, used = "", 0
    for text in _pieces(unlinked(chunk.text)):
        more = prompt.count(text)
        if part and used + more > room:
            yield f"{head}\n{part}".strip()
            part, used = "", 0
        part += text
        used += more
    yield f"{head}\n{part}".strip()


def _pieces(text: str) -> Iterator[str]:
    """The text cut where sentences begin."""
    starts = [0, *(sentence.start for sentence in sentences(text) if sentence.start), len(text)]
    for start, end in itertools.pairwise(starts):
        yield text[start:end]


@dataclass(frozen=True, eq=False)
class Dense:
    embedder: Embedder
    vectors: Vectors
    rows: np.ndarray
    """(row,), the chunk of each vector."""
    num_chunks: int

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path) -> Iterator["Dense"]:
        """What `build` wrote; PipelineError where the embedder is another by now."""
        place = folder / FOLDER
        if not (place / "about.json").is_file():
            raise PipelineError(
                f"{place}: this index has no vectors: build it with an embedder "
                "(embedder=minilm), or search with answer.search.method=lexical"
            )
        about = store.read_json(place / "about.json")
        origin = str(place / "about.json")
        embedder_cfg: embedding.Config = config.load(about, "embedder", embedding.Config, origin)
        store_cfg: vectors.Config = config.load(about, "store", vectors.Config, origin)
        with embedding.open(embedder_cfg) as embedder:
            assert embedder
            if embedder.identity != about["identity"]:
                raise PipelineError(
                    f"{place}: the embedding model has changed since: `dvc repro -f index` "
                    "makes the vectors anew"
                )
            with contextlib.closing(vectors.open(store_cfg, place, about["digest"])) as opened:
                yield cls(embedder, opened, load_array(place / "rows.npy"), about["num_chunks"])

    def search(self, query: str, k: int, sources: Collection[str]) -> dict[int, float]:
        """The k chunks of which a part means most alike, with that part's cosine."""
        question = self.embedder.question(query)
        found: dict[int, float] = {}
        most = k * PARTS_PER_CHUNK
        for row, cosine in self.vectors.search(question, most, sources or None):
            found.setdefault(int(self.rows[row]), cosine)  # the best part comes first
        return dict(list(found.items())[:k])
