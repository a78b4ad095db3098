"""Which calls are in which batch: on the disk before it is made, and until their replies are."""

import contextlib
import fcntl
import hashlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.llm import ledger


@dataclass(frozen=True)
class Order:
    """A batch as it was ordered."""

    number: int
    name: str
    """Of the calls in it; the batch carries it, by which it is found where its id is not known."""
    batch_id: str | None
    """None until the endpoint has said it."""
    status: str | None
    """What it ended as, once all that it brought is kept."""
    num_kept: int
    """Replies and refusals that it brought."""


def name(keys: Collection[str]) -> str:
    """The same for the same calls, so that a batch is found also without this file."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


class Orders:
    """Tables beside the calls of a ledger; processes may share it, a thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._telling():
            self._file = ledger.connect(path)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS batches (number INTEGER PRIMARY KEY, name TEXT NOT"
                " NULL, batch_id TEXT, status TEXT, num_kept INTEGER NOT NULL) STRICT"
            )
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS batch_calls (key TEXT PRIMARY KEY, batch INTEGER NOT"
                " NULL REFERENCES batches, request TEXT NOT NULL, refusal TEXT) STRICT"
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from ordering; a killed one keeps nobody."""
        with self._path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def plan(self, requests: Mapping[str, str]) -> Order:
        """Note that a batch of these calls, canonical requests by key, is about to be made."""
        order = name(requests)
        with self._changing():
            number = self._file.execute(
                "INSERT INTO batches (name, num_kept) VALUES (?, 0)", (order,)
            ).lastrowid
            assert number is not None
            self._file.executemany(
                "INSERT OR REPLACE INTO batch_calls VALUES (?, ?, ?, NULL)",
                [(key, number, request) for key, request in requests.items()],
            )
        return Order(number, order, None, None, 0)

    def made(self, number: int, batch_id: str) -> None:
        with self._changing():
            self._file.execute(
                "UPDATE batches SET batch_id = ? WHERE number = ?", (batch_id, number)
            )

    def drop(self, number: int) -> None:
        """Forget a batch that was never made."""
        with self._changing():
            self._file.execute("DELETE FROM batch_calls WHERE batch = ?", (number,))
            self._file.execute("DELETE FROM batches WHERE number = ?", (number,))

    def end(self, number: int, status: str, num_kept: int, refusals: Mapping[str, str]) -> None:
        """Note what a batch ended as; of its calls, those without a stored reply stay known."""
        with self._changing():
            self._file.execute(
                "UPDATE batches SET status = ?, num_kept = ? WHERE number = ?",
                (status, num_kept, number),
            )
            self._file.executemany(
                "UPDATE batch_calls SET refusal = ? WHERE key = ? AND batch = ?",
                [(refusal, key, number) for key, refusal in refusals.items()],
            )
            self._file.execute(
                "DELETE FROM batch_calls WHERE batch = ? AND key IN (SELECT key FROM calls)",
                (number,),
            )

    def of(self, keys: Collection[str]) -> dict[str, tuple[Order, str | None]]:
        """The last batch of each of these calls that ever was in one, and why it was refused."""
        with self._telling():
            orders = {row[0]: Order(*row) for row in self._file.execute("SELECT * FROM batches")}
            rows = self._file.execute("SELECT key, batch, refusal FROM batch_calls").fetchall()
        return {key: (orders[batch], refusal) for key, batch, refusal in rows if key in keys}

    def requests(self, number: int) -> dict[str, str]:
        """The canonical requests of a batch by key."""
        with self._telling():
            return dict(
                self._file.execute(
                    "SELECT key, request FROM batch_calls WHERE batch = ?", (number,)
                ).fetchall()
            )

    def ended(self) -> set[str]:
        """Ids of the batches whose results are kept."""
        with self._telling():
            rows = self._file.execute("SELECT batch_id FROM batches WHERE status IS NOT NULL")
            return {row[0] for row in rows}

    def close(self) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """All of it or nothing, and on the disk."""
        with self._telling():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._file.execute("COMMIT")
            finally:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise ledger.unusable(self._path, error) from None
