"""The call ledger: every reply that a teacher gave, on the disk before anyone reads it."""

import hashlib
import json
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One stored reply."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def key(request: dict[str, Any]) -> str:
    """The SHA-256 of all that decides a reply: endpoint, model, messages, sampling, schema."""
    canonical = json.dumps(request, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class Ledger:
    """A SQLite file of calls; threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = sqlite3.connect(
            path, timeout=60, isolation_level=None, check_same_thread=False
        )
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=FULL")  # a paid reply survives a power cut
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, request TEXT NOT NULL,"
            " text TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,"
            " completion_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL, seconds REAL NOT NULL,"
            " time REAL NOT NULL) STRICT"
        )

    def find(self, key: str) -> Entry | None:
        with self._lock:
            row = self._file.execute(
                "SELECT text, finish_reason, prompt_tokens, completion_tokens FROM calls"
                " WHERE key = ?",
                (key,),
            ).fetchone()
        return Entry(*row) if row else None

    def store(
        self, key: str, request: dict[str, Any], entry: Entry, cost_usd: float, seconds: float
    ) -> Entry:
        """Keep a reply; where another process was first, its reply is the one that counts."""
        with self._lock:
            self._file.execute(
                "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    json.dumps(request, ensure_ascii=False, sort_keys=True),
                    entry.text,
                    entry.finish_reason,
                    entry.prompt_tokens,
                    entry.completion_tokens,
                    cost_usd,
                    seconds,
                    time.time(),
                ),
            )
        return self.find(key) or entry

    def close(self) -> None:
        self._file.close()
