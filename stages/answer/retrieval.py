"""Chunks to an index, by words and by meaning, and a question to the chunks that answer it."""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from stages.answer import lexical, reranking
from stages.answer.dense import Dense, parts
from stages.answer.lexical import Lexical, terms
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Chunk


class Search(config.Base):
    method: Literal["lexical", "dense", "hybrid"]
    """How chunks are found: by their words (BM25), by their meaning (embeddings), or by both,
    whose rankings are fused."""
    candidates: Annotated[int, Field(ge=1)]
    """Chunks of each ranking that are fused or reranked."""
    rank_constant: Annotated[float, Field(ge=0)]
    """What the fusion adds to each rank, usually 60: the higher, the less the first ranks count."""
    dense_weight: Annotated[float, Field(ge=0)]
    """What the ranking by meaning counts in the fusion, where the one by words counts 1."""
    reranker: reranking.Config | None
    """The cross-encoder that orders the candidates anew; null for none."""
    neighbours: Annotated[int, Field(ge=0)]
    """Chunks before and after each found one, of the same page, that are shown with it."""
    sources: tuple[str, ...]
    """Sources, by name, that chunks may come from; empty for all."""
    min_support: Annotated[float, Field(ge=0, le=1)]
    """Least share of a question that the best chunks must have, by words and meaning, to be quoted;
    below, the answer is that it is not in the documents. 0 quotes whatever shares a word."""


LEXICAL = Search(
    method="lexical",
    candidates=1,
    rank_constant=0,
    dense_weight=0,
    reranker=None,
    neighbours=0,
    sources=(),
    min_support=0,
)
"""A search by words alone, which every index can do."""


@dataclass(frozen=True)
class Hit:
    """A chunk that was found, with its span, headings and address."""

    score: float
    """Higher is better; of one search only. By words BM25, by meaning a cosine, by both a sum of
    inverse ranks of which 1 is the best, after reranking a probability."""
    chunk: Chunk
    words: float = 0.0
    """Its BM25 as a share of what the question's words could reach, 0…1."""
    cosine: float | None = None
    """Of its best part with the question; None where it was not found by meaning."""


def build(chunks: Sequence[Chunk], folder: Path, k1: float, b: float) -> int:
    """Write the index by words of chunks with a term each; how many terms there are."""
    ordered = sorted(chunks, key=lambda chunk: chunk.id)
    store.write(folder / "chunks.jsonl", ordered)
    return lexical.build(ordered, folder, k1, b)


@dataclass(frozen=True, eq=False)
class Index:
    """Chunks that can be searched; safe for many threads at once."""

    chunks: tuple[Chunk, ...]
    """In the order of their ids."""
    lexical: Lexical
    how: Search = LEXICAL
    dense: Dense | None = None
    rerank: reranking.Reranker | None = None
    _resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def open(cls, folder: Path, how: Search = LEXICAL) -> "Index":
        """Read what the index stage wrote, with what this search needs of it."""
        chunks = tuple(store.read(folder / "chunks.jsonl", Chunk))
        names = sorted({chunk.source for chunk in chunks})
        for name in how.sources:
            if name not in names:
                raise PipelineError(
                    f"{folder}: no chunk is of the source {name!r}{config.nearest(name, names)}: "
                    f"it holds {', '.join(names)}"
                )
        with contextlib.ExitStack() as resources:
            dense = None
            if how.method != "lexical":
                dense = resources.enter_context(Dense.opened(folder))
                if dense.num_chunks != len(chunks):
                    raise PipelineError(
                        f"{folder}: its files are not of one index; `dvc repro` makes it"
                    )
            rerank = reranking.open(how.reranker) if how.reranker else None
            words = Lexical.open(folder, len(chunks))
            return cls(chunks, words, how, dense, rerank, resources.pop_all())

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(self, query: str, k: int, how: Search | None = None) -> list[Hit]:
        """The k best chunks, best first; ties by chunk id. By words, those that share a term."""
        how = how or self.how
        if k <= 0 or not query.strip():
            return []
        most = max(k, how.candidates) if how.method == "hybrid" or how.reranker else k
        words = {} if how.method == "dense" else self._by_words(query, most, how.sources)
        meanings: Mapping[int, float] = {}
        if how.method != "lexical":
            assert self.dense, "opened for a search by words"
            meanings = self.dense.search(query, most, how.sources)
        if how.method == "hybrid":
            weights = (1.0, how.dense_weight)
            ranked = _ordered(fused((words, meanings), weights, how.rank_constant))
        else:
            ranked = _ordered(words or meanings)
        if how.reranker and ranked:
            best = [place for place, _ in ranked[: how.candidates]]
            ranked = _ordered(dict(zip(best, self._reranked(query, best), strict=True)))
        shares = self.lexical.shares(query)
        return [
            Hit(score, self.chunks[place], float(shares[place]), meanings.get(place))
            for place, score in ranked[:k]
        ]

    def _reranked(self, query: str, places: Sequence[int]) -> list[float]:
        assert self.rerank, "opened without a reranker"
        room = self.rerank.passage_tokens
        return self.rerank.scores(
            query, [self.passage(query, self.chunks[place], room) for place in places]
        )

    def passage(self, query: str, chunk: Chunk, tokens: int) -> str:
        """The part of the chunk that has most of the query's words, under its headings."""
        asked = frozenset(terms(query))
        return max(
            parts(chunk, tokens),
            key=lambda part: self.lexical.total(asked.intersection(terms(part))),
        )

    def _by_words(self, query: str, most: int, sources: Collection[str]) -> dict[int, float]:
        scores = self.lexical.scores(query)
        if sources:
            allowed = [chunk.source in sources for chunk in self.chunks]
            scores = np.where(allowed, scores, 0)
        found = np.flatnonzero(scores > 0)
        if len(found) > most:
            least = np.partition(scores[found], -most)[-most]
            found = found[scores[found] >= least]
        return dict(_ordered({int(i): float(scores[i]) for i in found})[:most])

    def around(self, hits: Sequence[Hit]) -> list[Hit]:
        """The hits with the neighbours that the search shows, each page's in its order."""
        if not self.how.neighbours:
            return list(hits)
        num = self.how.neighbours
        shown: dict[str, Hit] = {}
        for hit in hits:
            page = [c for c in self.chunks if c.document_id == hit.chunk.document_id]
            page.sort(key=lambda chunk: chunk.start)
            at = page.index(hit.chunk)
            for chunk in page[max(0, at - num) : at + num + 1]:
                shown.setdefault(chunk.id, dataclasses.replace(hit, chunk=chunk))
        return list(shown.values())


def _ordered(scores: Mapping[int, float]) -> list[tuple[int, float]]:
    """Best first; of equals, the first chunk."""
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def fused(
    rankings: Sequence[Mapping[int, float]], weights: Sequence[float], constant: float
) -> dict[int, float]:
    """Reciprocal rank fusion (Cormack et al., SIGIR 2009), scaled so that 1 is first everywhere."""
    best = sum(weights) / (constant + 1)
    fused: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, (place, _) in enumerate(_ordered(ranking), 1):
            fused[place] = fused.get(place, 0.0) + weight / (constant + rank) / best
    return fused
