"""Split documents into chunks of tokens, once for retrieval and once for training."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.core.model import Config as Model
from stages.core.records import Chunk, Document, Reject
from stages.split.chunks import Method, split
from stages.split.cutting import Product
from stages.split.tokens import counter

__all__ = ["Config", "run"]

BINARY_SHARE = 0.1
"""Of a text's characters; with more that no text has, it is not one."""
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0xFFFD))
for _code in (*b"\t\n\v\f\r", 0x85):
    del _CONTROLS[_code]


class Config(config.Base):
    method: Method
    """Where to cut: recursive at paragraphs, lines and words; markdown at headings before that,
    with fences, table rows and links whole; code at the definitions of a program's language, which
    the ending of its address tells, and other documents like markdown."""
    retrieval: Product
    """Chunks that are searched and shown to the model as context."""
    training: Product
    """Chunks that the teacher writes questions about."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest fraction of documents that may be rejected before the stage fails."""


def run(cfg: Config, model: Model, documents: Path, out: Path) -> dict[str, float]:
    count = counter(model)
    products = {"retrieval": cfg.retrieval, "training": cfg.training}
    rows = list(store.read(documents, Document))
    if not rows:
        raise PipelineError(
            f"{documents}: no documents to split; look at the crawl's rejects.jsonl"
        )
    chunks: dict[str, list[Chunk]] = {product: [] for product in products}
    rejects: list[Reject] = []
    num_hard_cuts = 0
    seen: set[str] = set()
    for document in progress.track(rows, "documents", len(rows)):
        reason = _fault(document, seen)
        pieces: dict[str, list[Chunk]] = {}
        if not reason:
            pieces = split(document, products, count, cfg.method)
            for product, parts in pieces.items():
                longest = max(chunk.num_tokens for chunk in parts)
                if longest > products[product].chunk_tokens:
                    reason = f"one character has {longest} tokens, above the {product} limit"
        if reason:
            rejects.append(Reject(id=document.id, reason=reason, detail=document.url))
            continue
        seen.add(document.id)
        for product, parts in pieces.items():
            chunks[product] += parts
            num_hard_cuts += _num_hard_cuts(document, parts)
    num_split = len(seen)
    assert len(rows) == num_split + len(rejects)
    store.write(out / "rejects.jsonl", rejects)
    if len(rejects) > cfg.max_reject_rate * len(rows):
        raise PipelineError(
            f"split.max_reject_rate: {len(rejects)} of {len(rows)} documents rejected, more than "
            f"{cfg.max_reject_rate:.0%} (the first: {rejects[0].reason}); see {out}/rejects.jsonl"
        )
    for product, parts in chunks.items():
        store.write(out / f"{product}.jsonl", parts)
    return {
        "num_documents": len(rows),
        "num_rejects": len(rejects),
        "num_retrieval_chunks": len(chunks["retrieval"]),
        "num_training_chunks": len(chunks["training"]),
        "mean_retrieval_tokens": _mean(c.num_tokens for c in chunks["retrieval"]),
        "mean_training_tokens": _mean(c.num_tokens for c in chunks["training"]),
        "num_hard_cuts": num_hard_cuts,
        "num_cut_fences": sum(bool(c.fence) for parts in chunks.values() for c in parts),
    }


def _fault(document: Document, seen: set[str]) -> str:
    """Why this document cannot be split, or the empty string."""
    text = document.text
    if document.id in seen:
        return "its id stands twice"
    if not text.strip():
        return "empty"
    num_controls = len(text) - len(text.translate(_CONTROLS))
    if num_controls > BINARY_SHARE * len(text):
        return f"binary: {num_controls / len(text):.0%} of its characters are in no text"
    data = text.encode()
    for heading in document.headings:
        inside = 0 <= heading.start < len(data)
        if not inside or data[heading.start] & 0xC0 == 0x80:  # 10xxxxxx continues a character
            return f"heading {heading.title!r} starts at byte {heading.start}, not at a character"
    return ""


def _num_hard_cuts(document: Document, chunks: Iterable[Chunk]) -> int:
    """Chunks that end inside a word, since no blank was near enough."""
    data = document.text.encode()
    following = (data[c.end : c.end + 4].decode(errors="ignore")[:1] for c in chunks)
    return sum(1 for character in following if character and not character.isspace())


def _mean(values: Iterable[int]) -> float:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 1) if numbers else 0.0
