"""An index as one JSON file, which a function without a disk, or a page, can search by itself."""

import base64
from pathlib import Path
from typing import Any

from stages.answer.dense import FOLDER
from stages.answer.lexical import ARRAYS, load_array
from stages.core import store
from stages.core.records import Chunk

VERSION = 1


def export(folder: Path, out: Path) -> int:
    """Write the index in `folder` to one file; how many chunks it has.

    `terms` gives, for each term, the chunks (by place) and what the term adds to their BM25 score.
    `dense`, null without an embedder, has all vectors as base64 of little-endian half floats, row
    after row, and the chunk of each row; `embedder` says which model a question needs.
    """
    chunks = list(store.read(folder / "chunks.jsonl", Chunk))
    vocabulary = store.read_json(folder / "vocabulary.json")
    data, indices, indptr = (load_array(folder / f"{name}.npy") for name in ARRAYS)
    terms = {
        term: [
            [int(indices[at]), round(float(data[at]), 5)]
            for at in range(indptr[number], indptr[number + 1])
        ]
        for number, term in enumerate(vocabulary)
    }
    whole = {
        "format": "docent-index",
        "version": VERSION,
        "chunks": [chunk.model_dump() for chunk in chunks],
        "terms": terms,
        "dense": _dense(folder / FOLDER),
    }
    store.write_json(out, whole)
    return len(chunks)


def _dense(folder: Path) -> dict[str, Any] | None:
    if not (folder / "about.json").is_file():
        return None
    vectors = load_array(folder / "vectors.npy")
    return {
        "embedder": store.read_json(folder / "about.json")["embedder"],
        "dimension": vectors.shape[1],
        "rows": load_array(folder / "rows.npy").tolist(),
        "vectors": base64.b64encode(vectors.astype("<f2").tobytes()).decode(),
    }
