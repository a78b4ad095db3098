"""Index the retrieval chunks by their words and their meaning: what search and quote read."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.answer import dense, embedding, lexical, retrieval, vectors
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Chunk, Reject


class Config(config.Base):
    k1: Annotated[float, Field(ge=0)]
    """How much a repeated word adds to a chunk's score in BM25, usually 1.2 to 2."""
    b: Annotated[float, Field(ge=0, le=1)]
    """How much BM25 discounts long chunks, from 0 (not at all) to 1 (by their full length)."""
    store: vectors.Config
    """Where the vectors are, if there is an embedder."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest fraction of chunks that may be rejected before the stage fails."""


def run(cfg: Config, embedder: embedding.Config, chunks: Path, out: Path) -> dict[str, float]:
    rows = list(store.read(chunks, Chunk))
    kept: dict[str, Chunk] = {}
    rejects = []
    for chunk in rows:
        if chunk.id in kept:
            rejects.append(Reject(id=chunk.id, reason="its id stands twice", detail=chunk.url))
        elif next(lexical.indexed_terms(chunk), None) is None:
            rejects.append(Reject(id=chunk.id, reason="no word to find it by", detail=chunk.url))
        else:
            kept[chunk.id] = chunk
    assert len(rows) == len(kept) + len(rejects)
    store.write(out / "rejects.jsonl", rejects)
    if not kept:
        raise PipelineError(f"{chunks}: no chunk with a word in it; nothing to index")
    if len(rejects) > cfg.max_reject_rate * len(rows):
        raise PipelineError(
            f"index.max_reject_rate: {len(rejects)} of {len(rows)} chunks rejected, more than "
            f"{cfg.max_reject_rate:.0%} (the first: {rejects[0].reason}); see {out}/rejects.jsonl"
        )
    num_terms = retrieval.build(list(kept.values()), out, cfg.k1, cfg.b)
    return {
        "num_chunks": len(kept),
        "num_rejects": len(rejects),
        "num_terms": num_terms,
        "num_vectors": dense.build(list(kept.values()), out, embedder, cfg.store),
    }
