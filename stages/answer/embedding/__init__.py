"""Texts to vectors: a sentence-transformers model run here without torch, or a hosted endpoint."""

import base64
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import Field

from stages.answer.embedding import graph, hosted
from stages.core import config, progress, store
from stages.core.errors import PipelineError
from stages.core.kept import opened
from stages.core.records import identify


class NoEmbedder(config.Base):
    """No embeddings: search goes by words alone, and nothing compares meanings."""

    kind: Literal["none"]


class Graph(config.Base):
    """What every model has that is run here."""

    python: str
    """The model environment's interpreter, which turns a model into a graph, once."""
    precision: graph.Precision
    """auto is bf16 where the processor computes in it (three times as fast), and f32 elsewhere."""
    window_tokens: Annotated[int, Field(ge=16)]
    """Longest part of a chunk that has a vector of its own, in tokens of cl100k."""
    query_prefix: str
    """What stands before a question, as some models were trained with, such as "query: "."""
    text_prefix: str
    """What stands before a text that is searched, such as "passage: "."""


class Packaged(Graph):
    """A sentence-transformers model that a Python package carries, so that no hub is needed."""

    kind: Literal["packaged"]
    package: str
    """Name of the package, installed in the model environment."""
    folder: str
    """The model's folder in it."""


class Local(Graph):
    """A sentence-transformers model in a folder."""

    kind: Literal["local"]
    path: str
    """Folder that `SentenceTransformer(…).save_pretrained(folder)` wrote."""


class Hub(Graph):
    """A sentence-transformers model of the Hugging Face hub, fetched once."""

    kind: Literal["hub"]
    id: str
    """Its name, such as thenlper/gte-large."""
    revision: str
    """Commit, tag or branch; a commit makes the run repeatable."""


Config = Annotated[NoEmbedder | Packaged | Local | Hub | hosted.OpenAI, Field(discriminator="kind")]


class Model(Protocol):
    """What computes vectors."""

    @property
    def identity(self) -> str:
        """Names all that decides a text's vector."""

    @property
    def at_once(self) -> int:
        """Texts that keep it busy: so many are asked for, and then kept."""

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(text, dimension), float32, each of length 1."""


class Embedder:
    """Texts to vectors, each computed once: they are kept in .cache/embeddings/ by content."""

    def __init__(self, cfg: Graph | hosted.OpenAI, model: Model) -> None:
        self.window_tokens = cfg.window_tokens
        self.identity = identify(model.identity, cfg.query_prefix, cfg.text_prefix)
        """Equal for embedders that give equal vectors."""
        self._prefixes = cfg.query_prefix, cfg.text_prefix
        self._model = model
        self.question: Callable[[str], np.ndarray] = functools.lru_cache(256)(self._question)
        """The vector of a question: (dimension,), float32, unit. Not kept on the disk."""
        self._path = store.cache("embeddings", f"{identify(model.identity)[:16]}.db")

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of texts that are searched or compared: (text, dimension), float32, unit."""
        texts = [self._prefixes[1] + text for text in texts]
        keys = [identify(text) for text in texts]
        missing = dict(zip(keys, texts, strict=True))
        with opened(self._path) as kept:
            found = kept.find(list(missing))
            wanted = sorted(
                (key for key in missing if key not in found), key=lambda key: len(missing[key])
            )
            step = self._model.at_once
            for start in range(0, len(wanted), step):
                some = wanted[start : start + step]
                new = self._model.vectors([missing[key] for key in some])
                packed = {key: _packed(row) for key, row in zip(some, new, strict=True)}
                kept.keep(packed)
                found |= packed
                progress.step(start + len(some), len(wanted), "embeddings")
        vectors = [_unpacked(found[key]) for key in keys]
        if len({len(vector) for vector in vectors}) > 1:
            raise PipelineError(
                f"{self._path}: its vectors and those that the embedder gives now have different "
                "lengths, so that it is another model by the same name: remove the file"
            )
        return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def _question(self, text: str) -> np.ndarray:
        vector: np.ndarray = self._model.vectors([self._prefixes[0] + text])[0]
        return _unpacked(_packed(vector))


def _packed(vector: np.ndarray) -> str:
    # Half precision: below what the texts' meaning moves, and half of the space.
    return base64.b64encode(vector.astype(np.float16).tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    """The vector, of length 1 again."""
    vector = np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32)
    return vector / np.float32(np.sqrt(vector @ vector) or 1)


@contextlib.contextmanager
def open(cfg: Config) -> Iterator[Embedder | None]:
    """The embedder of these settings; None for `kind: none`."""
    if isinstance(cfg, NoEmbedder):
        yield None
    elif isinstance(cfg, hosted.OpenAI):
        with hosted.connected(cfg) as model:
            yield Embedder(cfg, model)
    else:
        folder = _folder(cfg)
        yield Embedder(cfg, graph.Model(folder, cfg.python, cfg.precision))


def _folder(cfg: Packaged | Local | Hub) -> Path:
    if isinstance(cfg, Local):
        return store.locate(cfg.path, "embedder.path")
    if isinstance(cfg, Packaged):
        return graph.packaged(cfg.python, cfg.package, cfg.folder)
    try:
        try:
            found = snapshot_download(cfg.id, revision=cfg.revision, local_files_only=True)
        except LocalEntryNotFoundError:
            progress.note(f"fetching {cfg.id} at {cfg.revision}")
            found = snapshot_download(
                cfg.id,
                revision=cfg.revision,
                allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
            )
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        said = " ".join(str(error).split())
        raise PipelineError(
            f"embedder.id: {cfg.id!r} at {cfg.revision!r}: not in the hub's cache, and could not "
            f"be fetched ({type(error).__name__}: {said[:200]}); check the name and the network, "
            "or use embedder=minilm"
        ) from None
    return Path(found)
