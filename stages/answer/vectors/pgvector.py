"""A table of PostgreSQL with pgvector: rows, labels and vectors, filled in one transaction."""

import contextlib
import os
import queue
import struct
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import psycopg
from psycopg import errors, sql

from stages.answer import vectors
from stages.answer.vectors import postgres
from stages.answer.vectors.saved import Saved, others, ranked
from stages.core import store
from stages.core.errors import PipelineError

CONNECTIONS = 8
"""Searches at once; a further one waits for its turn."""

MOST_CANDIDATES = 1000
"""pgvector's limit to hnsw.ef_search; more rows than that are searched for exactly."""

Connection = psycopg.Connection[tuple[Any, ...]]

_EXTENSION = (errors.FeatureNotSupported, errors.UndefinedFile, errors.InsufficientPrivilege)


class Table:
    def __init__(self, cfg: vectors.Pgvector, rows: Saved) -> None:
        self._cfg = cfg
        self._saved = rows
        self._name = rows.name(cfg.prefix)
        self._server = None if cfg.dsn_env else postgres.hold(store.cache("postgres"))
        self._where = f"${cfg.dsn_env}" if cfg.dsn_env else str(store.cache("postgres"))
        self._idle: queue.LifoQueue[Connection | None] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put(None)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with self._connected() as connection:
                _fill(connection, cfg, rows)
            undo.pop_all()

    def search(
        self, query: np.ndarray, k: int, sources: Collection[str] | None = None
    ) -> list[tuple[int, float]]:
        self._saved.check(query)
        if k <= 0:
            return []
        # A walk finds no more rows than it keeps candidates.
        width = max(k, self._cfg.graph.expansion_search) if self._cfg.graph else MOST_CANDIDATES + 1
        exact = sources is not None or width > MOST_CANDIDATES
        # The index serves the bare distance alone: no other expression, and no second key.
        distance = "(embedding <#> %(query)s::vector)" + (" + 0" if exact else "")
        order = "negated, row" if exact else "negated"
        allowed = "" if sources is None else "WHERE source = ANY(%(sources)s)"
        text = sql.SQL(
            f"SELECT row, {distance} AS negated FROM {{}} {allowed} ORDER BY {order} LIMIT %(k)s"  # noqa: S608
        ).format(sql.Identifier(self._name))
        given = {"query": str(query.tolist()), "k": k, "sources": list(sources or ())}
        with self._connected() as connection:
            if not exact:
                connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(width)])
            found = connection.execute(text, given).fetchall()
        return ranked(np.array([row for row, _ in found]), np.array([-c for _, c in found]), k)

    def close(self) -> None:
        for _ in range(CONNECTIONS):
            connection = self._idle.get()
            if connection:
                connection.close()
        if self._server:
            self._server.release()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection of this thread's own for a while."""
        connection = self._idle.get()
        try:
            with _explained(self._where, self._name):
                if connection is None or not _alive(connection):
                    connection = self._connect()
                yield connection
        finally:
            if connection and connection.broken:
                connection.close()
                connection = None
            self._idle.put(connection)

    def _connect(self) -> Connection:
        variable = self._cfg.dsn_env
        dsn = self._server.dsn if self._server else os.environ.get(variable or "")
        if not dsn:
            raise PipelineError(
                f"index.store.dsn_env: {variable!r}: expected an environment variable that holds "
                "a PostgreSQL DSN; it is not set"
            )
        return psycopg.connect(dsn, autocommit=True, connect_timeout=10)


def _alive(connection: Connection) -> bool:
    """Whether the server still holds it: a service outlives restarts of its database."""
    with contextlib.suppress(psycopg.OperationalError):
        connection.execute("")
        return True
    return False


def _fill(connection: Connection, cfg: vectors.Pgvector, rows: Saved) -> None:
    """Make the table unless it is there, and drop this prefix's others: all at once or nothing."""
    name = rows.name(cfg.prefix)
    table = sql.Identifier(name)
    names = _tables(connection)
    if name in names and not others(names, cfg.prefix, name):
        return  # without waiting for one who fills
    with connection.transaction():
        _lock(connection, "CREATE EXTENSION")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    with connection.transaction():
        _lock(connection, cfg.prefix)
        names = _tables(connection)
        for other in others(names, cfg.prefix, name):
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(other)))
        if name in names:
            return
        connection.execute(
            sql.SQL(
                "CREATE TABLE {} (row integer PRIMARY KEY, source text NOT NULL, "
                "embedding vector({}) NOT NULL)"
            ).format(table, rows.vectors.shape[1])
        )
        with connection.cursor().copy(
            sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(table)
        ) as copy:
            for piece in _binary(rows):
                copy.write(piece)
        connection.execute(sql.SQL("CREATE INDEX ON {} (source)").format(table))
        if cfg.graph:
            # In memory, by one process: several need shared memory, of which containers have 64 MB.
            connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
            connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
            connection.execute(
                sql.SQL(
                    "CREATE INDEX ON {} USING hnsw (embedding vector_ip_ops) "
                    "WITH (m = {}, ef_construction = {})"
                ).format(table, cfg.graph.connectivity, cfg.graph.expansion_add)
            )
        connection.execute(sql.SQL("ANALYZE {}").format(table))


def _tables(connection: Connection) -> list[str]:
    listed = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    return [str(name) for (name,) in connection.execute(listed)]


def _lock(connection: Connection, what: str) -> None:
    """Let one do this at a time, until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"docent {what}"])


def _binary(rows: Saved) -> Iterator[bytes]:
    """The rows in COPY's binary format, with vectors as pgvector's vector_send writes them."""
    dim = rows.vectors.shape[1]
    yield b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
    for number, (source, vector) in enumerate(zip(rows.sources, rows.vectors, strict=True)):
        label = source.encode()
        head = struct.pack(f"!hiii{len(label)}s", 3, 4, number, len(label), label)
        yield head + struct.pack("!ihh", 4 + 4 * dim, dim, 0) + vector.astype(">f4").tobytes()
    yield struct.pack("!h", -1)


@contextlib.contextmanager
def _explained(where: str, table: str) -> Iterator[None]:
    """psycopg's errors in one line; a DSN, which holds a password, is never part of it."""
    try:
        yield
    except errors.UndefinedTable:
        raise PipelineError(
            f"{where}: table {table} is gone, another index took its place: open it again, or give "
            "each workspace an index.store.prefix of its own"
        ) from None
    except _EXTENSION as error:
        raise PipelineError(
            f"{where}: {_line(error)}; expected a PostgreSQL with the extension pgvector, and a "
            "user who may create it and tables (`CREATE EXTENSION vector` as its superuser)"
        ) from None
    except psycopg.ProgrammingError as error:
        if error.sqlstate is None:  # libpq could not read the DSN, and quotes it
            raise PipelineError(
                f"{where}: not a DSN: expected postgresql://user:password@host:port/database"
            ) from None
        raise PipelineError(f"{where}: PostgreSQL refused: {_line(error)}") from None
    except psycopg.OperationalError as error:
        raise PipelineError(f"{where}: no connection to PostgreSQL: {_line(error)}") from None
    except psycopg.Error as error:
        raise PipelineError(f"{where}: PostgreSQL refused: {_line(error)}") from None


def _line(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())
