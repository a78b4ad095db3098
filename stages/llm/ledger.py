"""The call ledger: every reply that a teacher gave, on the disk before anyone reads it."""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Record

COLUMNS = "key, request, text, finish_reason, prompt_tokens, completion_tokens, cost_usd, seconds"

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Entry:
    """One stored reply."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Call(Record):
    """One call as a line of an exported ledger."""

    model_config = ConfigDict(strict=True)

    key: str
    request: dict[str, Any]
    text: str
    finish_reason: str
    prompt_tokens: Count
    completion_tokens: Count
    cost_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Imported:
    """How many calls of a file were new here, and how many were known already."""

    new: int
    known: int


def canonical(request: dict[str, Any]) -> str:
    """The one way to write a request down."""
    return json.dumps(request, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def key(request: dict[str, Any]) -> str:
    """The SHA-256 of all that decides a reply: endpoint, model, messages, sampling, schema."""
    return hashlib.sha256(canonical(request).encode()).hexdigest()


@dataclass(eq=False)
class _Row:
    values: tuple[str | float, ...]
    first: bool | None = None
    """Whether it is what the ledger now holds; None until it is on the disk."""
    woken: threading.Event = field(default_factory=threading.Event)


def _row(key: str, request: str, entry: Entry, cost_usd: float, seconds: float) -> _Row:
    said = (entry.text, entry.finish_reason, entry.prompt_tokens, entry.completion_tokens)
    return _Row((key, request, *said, cost_usd, seconds, time.time()))


@dataclass(eq=False)
class _Queue:
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: list[_Row] = field(default_factory=list)
    is_busy: bool = False
    """Whether one of the threads is committing."""


class Ledger:
    """A SQLite file of calls; threads and processes may share it.

    A commit that reaches the disk takes milliseconds. Replies that arrive during one share the
    next, so that many calls in flight do not wait in line; each is on the disk before `store`
    returns. PipelineError where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._queue = _Queue()
        try:
            self._file = connect(path)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, request TEXT NOT NULL,"
                " text TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,"
                " completion_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL, seconds REAL NOT"
                " NULL, time REAL NOT NULL) STRICT"
            )
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS probes (key TEXT PRIMARY KEY, form TEXT NOT NULL)"
                " STRICT"
            )
            # A reader of its own: in WAL mode it does not wait for a commit.
            self._reader = connect(path)
        except sqlite3.DatabaseError as error:
            raise unusable(path, error) from None

    def find(self, key: str) -> Entry | None:
        with self._reading:
            row = self._reader.execute(
                "SELECT text, finish_reason, prompt_tokens, completion_tokens FROM calls"
                " WHERE key = ?",
                (key,),
            ).fetchone()
        return Entry(*row) if row else None

    def store(self, key: str, request: str, entry: Entry, cost_usd: float, seconds: float) -> Entry:
        """Keep a reply; where another process was first, its reply is the one that counts.

        `request` is canonical, and `key` is its own.
        """
        row = _row(key, request, entry, cost_usd, seconds)
        with self._queue.lock:
            self._queue.rows.append(row)
        while not self._is_kept(row):
            pass
        return entry if row.first else (self.find(key) or entry)

    def store_all(self, replies: Sequence[tuple[str, str, Entry, float]]) -> list[bool]:
        """Keep replies of a batch, by key, request, entry and cost, in one commit.

        Whether each is the first to its request. How long one took, nobody says: 0 s are kept.
        """
        rows = [_row(*reply, seconds=0.0) for reply in replies]
        self._insert_now(rows)
        return [row.first is True for row in rows]

    def _is_kept(self, row: _Row) -> bool:
        """Commit what waits, or wait for the thread that does and wakes those that it took along.

        A lock in place of the events would let each wait for all before it, though it is done.
        """
        with self._queue.lock:
            if row.first is not None:
                return True
            leads, self._queue.is_busy = not self._queue.is_busy, True
        if leads:
            self._commit()
        else:
            row.woken.wait()
            row.woken.clear()
        return row.first is not None

    def _commit(self) -> None:
        """Put all that waits on the disk; what cannot be waits on."""
        with self._queue.lock:
            rows, self._queue.rows = self._queue.rows, []
        try:
            self._insert_now(rows)
        finally:
            with self._queue.lock:
                self._queue.rows[:0] = [row for row in rows if row.first is None]
                self._queue.is_busy = False
                heirs = self._queue.rows[-1:]
            for row in (*rows, *heirs):
                row.woken.set()

    def _insert_now(self, rows: list[_Row]) -> None:
        with self._writing:
            try:
                self._insert(rows)
            except sqlite3.DatabaseError as error:
                raise unusable(self.path, error) from None

    def _insert(self, rows: list[_Row]) -> None:
        """All of them or none."""
        places = ", ".join("?" * len(rows[0].values)) if rows else ""
        query = f"INSERT OR IGNORE INTO calls ({COLUMNS}, time) VALUES ({places})"  # noqa: S608
        self._file.execute("BEGIN IMMEDIATE")
        try:
            first = [bool(self._file.execute(query, row.values).rowcount) for row in rows]
            self._file.execute("COMMIT")
        finally:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
        for row, is_first in zip(rows, first, strict=True):
            row.first = is_first

    def newest(self, endpoint: str, model: str, most: int) -> list[tuple[dict[str, Any], Entry]]:
        """Up to so many requests to this model and their replies, the latest first."""
        with self._reading:
            rows = self._reader.execute(
                "SELECT request, text, finish_reason, prompt_tokens, completion_tokens FROM calls"
                " WHERE json_extract(request, '$.endpoint') = ?"
                " AND json_extract(request, '$.body.model') = ? ORDER BY rowid DESC LIMIT ?",
                (endpoint, model, most),
            ).fetchall()
        return [(json.loads(request), Entry(*entry)) for request, *entry in rows]

    def probed(self, key: str) -> str | None:
        """The form that a probe found to be heeded."""
        with self._reading:
            row = self._reader.execute("SELECT form FROM probes WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def keep_probe(self, key: str, form: str) -> None:
        with self._writing:
            self._file.execute("INSERT OR REPLACE INTO probes VALUES (?, ?)", (key, form))

    # --- sharing -------------------------------------------------------------------------------

    def export(self, path: Path) -> int:
        """Write every call as a line of JSON, ordered by key; how many there are.

        Equal ledgers give equal bytes: when a call was made is left out.
        """
        count = 0
        with store.replacing(path) as file, self._reading:
            rows = self._reader.execute(f"SELECT {COLUMNS} FROM calls ORDER BY key")  # noqa: S608
            names = COLUMNS.split(", ")
            for row in rows:
                values = dict(zip(names, row, strict=True))
                values["request"] = json.loads(values["request"])
                line = json.dumps(values, ensure_ascii=False, sort_keys=True)
                file.write(line.encode() + b"\n")
                count += 1
        return count

    def import_(self, path: Path) -> Imported:
        """Take over the calls of an exported file, all of them or none; known ones stay as are.

        PipelineError names file and line of the first one that is no call of a ledger.
        """
        rows = [_Row((*values, time.time())) for values in _calls(path)]
        self._insert_now(rows)
        new = sum(row.first is True for row in rows)
        return Imported(new, len(rows) - new)

    def close(self) -> None:
        self._reader.close()
        self._file.close()


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits reach the disk: what is paid for survives a power cut."""
    file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    file.execute("PRAGMA journal_mode=WAL")
    file.execute("PRAGMA synchronous=FULL")
    return file


def unusable(path: Path, error: sqlite3.DatabaseError) -> PipelineError:
    return PipelineError(
        f"{path}: {' '.join(str(error).split())}: expected a call ledger that can be written: "
        "make room on the disk, or move the file away if it is another's"
    )


def _calls(path: Path) -> Iterator[tuple[str | float, ...]]:
    """The rows of an exported ledger, each checked against its key."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise PipelineError(
            f"{path}: {error.strerror}: expected a file that `ledger export` wrote"
        ) from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                call = Call.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise PipelineError(
                    f"{path}:{number}: {where + ': ' if where else ''}{first['msg']}: expected a "
                    "call of a ledger; export it again, nothing was imported"
                ) from None
            request = canonical(call.request)
            if hashlib.sha256(request.encode()).hexdigest() != call.key:
                raise PipelineError(
                    f"{path}:{number}: key: {call.key[:16]!r} is not that of its request: expected "
                    "a line as `ledger export` wrote it; export it again, nothing was imported"
                )
            yield (
                call.key,
                request,
                call.text,
                call.finish_reason,
                call.prompt_tokens,
                call.completion_tokens,
                call.cost_usd,
                call.seconds,
            )
