"""What bodies were parsed to, by content, so that one changed file of many costs its own parsing.

A SQLite file under .cache/. A body is parsed again when it, its source's settings or the code that
reads it are other ones.
"""

import contextlib
import dataclasses
import functools
import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter

from stages.core import store
from stages.core.records import identify
from stages.crawl.page import Page, UnreadableError
from stages.crawl.source import Single

PACKAGES = (
    *("docutils", "html-to-markdown", "lxml", "markdown-it-py", "pyarrow", "pypdf", "pysubs2"),
    *("python-docx", "python-pptx", "selectolax", "trafilatura"),
)
"""What reads bodies, beside our own code."""

KEPT_S = 90 * 24 * 3600
"""Age from which an outcome is forgotten, so that the file does not grow with every edit."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS parsed (
  key TEXT PRIMARY KEY, time REAL NOT NULL, outcome BLOB NOT NULL
) WITHOUT ROWID
"""


@dataclasses.dataclass(frozen=True)
class _Outcome:
    pages: list[Page]
    reason: str = ""
    detail: str = ""


_OUTCOMES = TypeAdapter(_Outcome)


class Parsed:
    """The file, open."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __contains__(self, key: str) -> bool:
        found = self._database.execute("SELECT 1 FROM parsed WHERE key = ?", (key,))
        return found.fetchone() is not None

    def __getitem__(self, key: str) -> list[Page] | UnreadableError:
        """The pages, or why there are none."""
        row = self._database.execute("SELECT outcome FROM parsed WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        outcome = _OUTCOMES.validate_json(row[0])
        if outcome.reason:
            return UnreadableError(outcome.reason, outcome.detail)
        return outcome.pages

    def keep(self, key: str, pages: Sequence[Page] | UnreadableError) -> None:
        outcome = (
            _Outcome([], pages.reason, pages.detail)
            if isinstance(pages, UnreadableError)
            else _Outcome(list(pages))
        )
        row = key, time.time(), _OUTCOMES.dump_json(outcome)
        self._database.execute("INSERT OR REPLACE INTO parsed VALUES (?, ?, ?)", row)

    def forget(self, digests: Sequence[str]) -> None:
        """Drop what bodies with these digests were parsed to."""
        rows = [(digest, f"{digest}/") for digest in digests]  # the character after a full stop
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany("DELETE FROM parsed WHERE key >= ? AND key < ?", rows)
        self._database.execute("COMMIT")
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def opened() -> Iterator[Parsed]:
    """What was parsed is on the disk after this, also where it ends with an error."""
    path = store.cache("pages", "parsed.sqlite")
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")  # what is lost is parsed again
        database.execute("PRAGMA secure_delete=ON")  # what is forgotten is overwritten
        database.execute(_SCHEMA)
        database.execute("DELETE FROM parsed WHERE time < ?", (time.time() - KEPT_S,))
        yield Parsed(database)
    finally:
        database.close()


def key(source: Single, address: str, digest: str) -> str:
    """`address` is that which readers know. It begins with the digest, by which it is forgotten."""
    return f"{digest}.{identify(_reader(), source.model_dump(), address)}"


@functools.cache
def _reader() -> str:
    """Digest of the code that parses, and of the versions of what it uses."""
    total = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        total.update(file.read_bytes())
    return identify(total.hexdigest(), [metadata.version(package) for package in PACKAGES])
