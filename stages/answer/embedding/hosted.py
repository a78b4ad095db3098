"""Vectors from an OpenAI-compatible embeddings endpoint."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import openai
import tenacity
from pydantic import Field

from stages import llm
from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import identify
from stages.llm.retries import Retries, passes, pause


class OpenAI(config.Base):
    """A model behind an OpenAI-compatible address."""

    kind: Literal["openai"]
    base_url: str
    """Address that the path /embeddings is appended to, such as https://api.openai.com/v1."""
    model: str
    """Name of the model, as the endpoint knows it, such as text-embedding-3-small or gte-large."""
    api_key_env: str | None
    """Name of the environment variable that holds the API key, which itself stands nowhere; null
    for an endpoint that wants none."""
    dimensions: Annotated[int, Field(gt=0)] | None
    """Length of the vectors, for models that let one choose; null for their own."""
    batch_size: Annotated[int, Field(ge=1, le=2048)]
    """Texts of one request."""
    concurrency: Annotated[int, Field(ge=1, le=64)]
    """Requests that are in flight at once."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Longest wait for one reply, in seconds."""
    max_attempts: Annotated[int, Field(ge=1)]
    """Tries of one request before the stage gives up; the vectors that came are kept."""
    window_tokens: Annotated[int, Field(ge=16)]
    """Longest part of a chunk that has a vector of its own, in tokens of cl100k."""
    query_prefix: str
    """What stands before a question, as some models were trained with, such as "query: "."""
    text_prefix: str
    """What stands before a text that is searched, such as "passage: "."""


BACKOFF_S, RETRY_AFTER_CAP_S = 1.0, 300.0
"""First ceiling of the random wait between two tries, and the longest, as conf/teacher has them."""


@dataclass
class Model:
    cfg: OpenAI
    client: openai.OpenAI

    @property
    def identity(self) -> str:
        cfg = self.cfg
        return identify(llm.public(cfg.base_url), cfg.model, cfg.dimensions)

    @property
    def at_once(self) -> int:
        return self.cfg.batch_size * self.cfg.concurrency

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        size = self.cfg.batch_size
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        with ThreadPoolExecutor(self.cfg.concurrency) as threads:
            rows = [row for part in threads.map(self._ask, parts) for row in part]
        found = np.array(rows, np.float32)
        if found.ndim != 2:
            raise PipelineError(f"{self._named}: its vectors have several lengths")
        lengths = np.sqrt((found**2).sum(axis=1, keepdims=True))
        unit: np.ndarray = found / np.where(lengths, lengths, 1)
        return unit

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        retries = Retries(self.cfg.max_attempts, BACKOFF_S, RETRY_AFTER_CAP_S, None)
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passes),
            wait=lambda state: pause(
                state.outcome.exception() if state.outcome else None, state.attempt_number, retries
            ),
            stop=tenacity.stop_after_attempt(self.cfg.max_attempts),
            reraise=True,
        )
        wanted = {"dimensions": self.cfg.dimensions} if self.cfg.dimensions else {}
        try:
            reply = tries(
                self.client.embeddings.create,
                model=self.cfg.model,
                input=list(texts),
                encoding_format="float",
                **wanted,
            )
        except openai.APIError as error:
            said = " ".join(str(error).split())[:300]
            raise PipelineError(
                f"{self._named}: no vectors after {self.cfg.max_attempts} tries: {said}; check the "
                "address, the model's name and the key"
            ) from None
        by_index = {row.index: row.embedding for row in reply.data}
        if sorted(by_index) != list(range(len(texts))):
            raise PipelineError(
                f"{self._named}: {len(by_index)} vectors for {len(texts)} texts; is it an "
                "embeddings endpoint?"
            )
        return [by_index[number] for number in range(len(texts))]

    @property
    def _named(self) -> str:
        return f"embedder.base_url: {llm.public(self.cfg.base_url)} ({self.cfg.model})"


@contextlib.contextmanager
def connected(cfg: OpenAI) -> Iterator[Model]:
    """A client of the endpoint; its own retries are off, since ours are the one layer."""
    secret = llm.api_key(cfg, "embedder")
    with openai.OpenAI(
        base_url=cfg.base_url, api_key=secret, timeout=cfg.timeout_s, max_retries=0
    ) as client:
        yield Model(cfg, client)
