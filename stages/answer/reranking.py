"""A question and texts to how well each text answers it: a cross-encoder."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from stages.answer.embedding.graph import Graph, Precision
from stages.core import config, store


class Config(config.Base):
    """A cross-encoder in a folder, of the BERT kin, with one label."""

    kind: Literal["local"]
    path: str
    """Folder that `CrossEncoder(…).save_pretrained(folder)` wrote."""
    python: str
    """The model environment's interpreter, which turns the model into a graph, once."""
    precision: Precision
    """auto is bf16 where the processor computes in it (three times as fast), and f32 elsewhere."""
    max_tokens: Annotated[int, Field(ge=16)]
    """Longest question with text that the model reads at once, in its own tokens; of a longer chunk
    it reads the part with most of the question's words."""


class Reranker:
    """A cross-encoder; threads may share it."""

    def __init__(self, graph: Graph, max_tokens: int) -> None:
        self._graph = graph
        self._max_tokens = min(max_tokens, graph.about["max_tokens"])
        self.passage_tokens = self._max_tokens * 5 // 8
        """Length of a text that leaves room for the question, in tokens of cl100k, which are longer
        than the model's own."""

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How likely each text answers the question, in 0…1."""
        rows = []
        for encoding in self._graph.tokenizer.encode_batch([(question, text) for text in texts]):
            # The last token closes the pair.
            kept = [*range(min(len(encoding.ids), self._max_tokens) - 1), len(encoding.ids) - 1]
            rows.append([[encoding.ids[i] for i in kept], [encoding.type_ids[i] for i in kept]])
        return [1 / (1 + math.exp(-float(row[0]))) for row in self._graph.run(rows)]


def open(cfg: Config) -> Reranker:
    folder = store.locate(cfg.path, "answer.search.reranker.path")
    return Reranker(Graph(folder, cfg.python, cfg.precision, "reranking"), cfg.max_tokens)
