"""Every vector compared with the query: exact, without a server, fast enough for most bodies."""

from collections.abc import Collection

import numpy as np

from stages.answer.vectors.saved import Saved, ranked


class Scan:
    def __init__(self, rows: Saved) -> None:
        self._saved = rows
        self._labels, self._label_of = np.unique(rows.sources, return_inverse=True)

    def search(
        self, query: np.ndarray, k: int, sources: Collection[str] | None = None
    ) -> list[tuple[int, float]]:
        self._saved.check(query)
        cosines = np.vecdot(self._saved.vectors, query)  # each row alone: no threads, true ties
        rows = np.arange(len(cosines))
        if sources is not None:
            rows = np.flatnonzero(np.isin(self._labels, list(sources))[self._label_of])
            cosines = cosines[rows]
        if 0 < k < len(rows):
            least = np.partition(cosines, -k)[-k]
            near = cosines >= least - 1e-6  # what `ranked` may round to the same
            rows, cosines = rows[near], cosines[near]
        return ranked(rows, cosines, max(k, 0))

    def close(self) -> None:
        """Nothing is held but the mapped file."""
