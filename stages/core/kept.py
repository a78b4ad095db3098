"""JSON values by content key in a SQLite file: what was asked or computed once, and is kept."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PER_QUERY = 500
"""Keys of one SELECT: SQLite takes 999 at least."""


class Kept:
    """A table of values; threads and processes may share it. A value survives a killed process."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = sqlite3.connect(
            path, timeout=60, isolation_level=None, check_same_thread=False
        )
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")  # only a power cut can take the last ones
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT"
        )

    def find(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values of those keys that are there."""
        found: dict[str, str] = {}
        with self._lock:
            for start in range(0, len(keys), PER_QUERY):
                some = keys[start : start + PER_QUERY]
                places = ",".join("?" * len(some))
                query = f"SELECT key, value FROM kept WHERE key IN ({places})"  # noqa: S608
                found.update(self._file.execute(query, some).fetchall())
        return {key: json.loads(value) for key, value in found.items()}

    def keep(self, values: Mapping[str, Any]) -> None:
        """Keep values; one that is there already stays as it is."""
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in values.items()]
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", rows)
            self._file.execute("COMMIT")

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Kept]:
    kept = Kept(path)
    try:
        yield kept
    finally:
        kept.close()
