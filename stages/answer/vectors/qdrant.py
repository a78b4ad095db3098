"""A collection of Qdrant: on a server, or in the memory of this process."""

import contextlib
import os
import threading
import warnings
from collections.abc import Collection, Iterator

import httpx
import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from stages.answer import vectors
from stages.answer.vectors.saved import Saved, others, ranked
from stages.core.errors import PipelineError

NUMBERS_PER_REQUEST = 256_000
"""A server takes 32 MB at once, and a number is up to 22 bytes of JSON."""


class Points:
    def __init__(self, cfg: vectors.Qdrant, rows: Saved) -> None:
        self._cfg = cfg
        self._saved = rows
        self._name = rows.name(cfg.prefix)
        self._where = cfg.url or "qdrant in memory"
        # Not in a folder: there it syncs every point by itself, and unpickles them all at a start.
        self._client = (
            QdrantClient(":memory:")
            if cfg.url is None
            else QdrantClient(url=cfg.url, api_key=_key(cfg), timeout=60, check_compatibility=False)
        )
        self._lock = threading.Lock() if cfg.url is None else contextlib.nullcontext()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with self._explained(), warnings.catch_warnings():
                # That it is not made for more than 20,000 points is said in the settings.
                warnings.filterwarnings("ignore", "Local mode is not recommended")
                self._fill()
            undo.pop_all()

    def search(
        self, query: np.ndarray, k: int, sources: Collection[str] | None = None
    ) -> list[tuple[int, float]]:
        self._saved.check(query)
        if k <= 0:
            return []
        allowed = None
        if sources is not None:
            match = models.MatchAny(any=sorted(sources))
            allowed = models.Filter(must=[models.FieldCondition(key="source", match=match)])
        graph = self._cfg.graph
        how = (
            models.SearchParams(exact=True)
            if graph is None
            else models.SearchParams(hnsw_ef=max(k, graph.expansion_search))
        )
        with self._explained(), self._lock:
            found = self._client.query_points(
                self._name,
                query=query.tolist(),
                query_filter=allowed,
                search_params=how if self._cfg.url else None,
                limit=k,
                with_payload=False,
            ).points
        rows = np.array([point.id for point in found])
        return ranked(rows, np.array([point.score for point in found]), k)

    def close(self) -> None:
        self._client.close()

    def _fill(self) -> None:
        """Make the collection unless it is there and whole, then drop this prefix's others.

        Whole is having all rows: a row's content hangs on nothing but the digest in the name, so
        that what another process, or a killed one, has put there is what is put there again.
        """
        client, name, total = self._client, self._name, len(self._saved.vectors)
        names = [one.name for one in client.get_collections().collections]
        if name not in names:
            self._create()
        if client.count(name, exact=True).count != total:
            dim = self._saved.vectors.shape[1]
            step = max(1, NUMBERS_PER_REQUEST // dim)
            for start in range(0, total, step):
                part = range(start, min(start + step, total))
                batch = models.Batch(
                    ids=list(part),
                    vectors=self._saved.vectors[part.start : part.stop].tolist(),
                    payloads=[{"source": self._saved.sources[row]} for row in part],
                )
                client.upsert(name, batch, wait=True)
        for other in others(names, self._cfg.prefix, name):
            client.delete_collection(other)

    def _create(self) -> None:
        dim = self._saved.vectors.shape[1]
        graph = self._cfg.graph
        self._client.create_collection(
            self._name,
            vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
            hnsw_config=models.HnswConfigDiff(
                m=graph.connectivity, ef_construct=graph.expansion_add
            )
            if graph
            else models.HnswConfigDiff(m=0),
        )
        if self._cfg.url:
            self._client.create_payload_index(
                self._name, "source", models.PayloadSchemaType.KEYWORD, wait=True
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """The client's errors in one line."""
        try:
            yield
        except UnexpectedResponse as error:
            said = f"{error.status_code} {error.reason_phrase}".strip()
            if error.status_code == 404:
                said += f": {self._name} is gone, another index took its place: open it again"
            elif error.status_code in (401, 403):
                said += f": index.store.api_key_env: {self._cfg.api_key_env!r}: not the key"
            raise PipelineError(f"{self._where}: Qdrant answers {said}") from None
        except (ResponseHandlingException, httpx.HTTPError, httpx.InvalidURL) as error:
            told = " ".join(str(error).split())
            raise PipelineError(f"{self._where}: no answer of Qdrant's: {told}") from None


def _key(cfg: vectors.Qdrant) -> str | None:
    if cfg.api_key_env is None:
        return None
    key = os.environ.get(cfg.api_key_env)
    if not key:
        raise PipelineError(
            f"index.store.api_key_env: {cfg.api_key_env!r}: expected an environment variable "
            "that holds the key of the Qdrant server; it is not set"
        )
    return key
