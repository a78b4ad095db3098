"""The page store: what every address of a source answered, its body and how to ask for it anew.

It is a SQLite file under .cache/, so that it survives a rerun and a kill: what `keep` was given is
on the disk when it returns. A refresh of a source is one crawl; a crawl that was killed goes on
with what it has been answered.
"""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import zstandard

from stages.crawl import encoding

RESUME_WITHIN_S = 24 * 3600
"""Age up to which a killed crawl is gone on with; the answers of an older one are asked anew."""

KEPT_S = 90 * 24 * 3600
"""Age from which what was fetched with settings that no snapshot holds is forgotten."""

Role = Literal["page", "list"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS crawls (
  id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, settings TEXT NOT NULL,
  began REAL NOT NULL, ended INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS answers (
  source TEXT NOT NULL, url TEXT NOT NULL, crawl INTEGER NOT NULL, time REAL NOT NULL,
  role TEXT NOT NULL, status INTEGER NOT NULL, digest TEXT NOT NULL,
  reason TEXT NOT NULL, detail TEXT NOT NULL, referrer TEXT NOT NULL,
  PRIMARY KEY (source, url)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (
  source TEXT NOT NULL, url TEXT NOT NULL, digest TEXT NOT NULL,
  etag TEXT NOT NULL, modified TEXT NOT NULL, time REAL NOT NULL, plain TEXT NOT NULL,
  PRIMARY KEY (source, url)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS robots (origin TEXT PRIMARY KEY, time REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS bodies (
  digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, body BLOB NOT NULL
);
"""

_DROP_CRAWLS = """
DELETE FROM crawls
WHERE ended AND id NOT IN (SELECT max(id) FROM crawls GROUP BY source, settings)
OR began < ? AND source || ' ' || settings NOT IN (SELECT value FROM json_each(?))
"""
_DROP_ROWS = [
    f"""
DELETE FROM {table} WHERE source NOT IN (
  SELECT source || ' ' || settings FROM crawls UNION SELECT value FROM json_each(?)
)
"""  # noqa: S608
    for table in ("answers", "pages")
]
_UNNAMED = """
SELECT digest FROM bodies WHERE digest NOT IN (
  SELECT digest FROM pages UNION SELECT digest FROM answers UNION SELECT value FROM json_each(?)
)
"""


@dataclass(frozen=True)
class Answer:
    """What an address answered: a body, the word that the known one still holds, or neither."""

    url: str
    status: int = 200
    """Of HTTP; 0 where no answer came."""
    body: bytes | None = None
    unchanged: bool = False
    """The page that is known holds: no body was sent."""
    media_type: str = ""
    etag: str = ""
    """What tells whether the page has changed: a server's ETag, or a file's time and size."""
    modified: str = ""
    """A server's Last-Modified."""
    plain: str = ""
    """Digest of the HTML that was sent, where the body is what a browser made of it."""
    reason: str = ""
    """Why this is no page, as rejects.jsonl counts it; empty for a page."""
    detail: str = ""
    """For a redirect where it leads, for the rest what went wrong."""
    passing: bool = False
    """The fault may pass: a page that is known stays."""
    referrer: str = ""
    """The first page, by address, that links here."""
    role: Role = "page"
    """A list (a sitemap, a feed) leads to pages and is none."""


@dataclass(frozen=True)
class Body:
    """What stands at an address; its digest is that of both."""

    media_type: str
    data: bytes

    def text(self) -> str:
        """The text, in the encoding that it is in."""
        return encoding.decode(self.media_type, self.data)


@dataclass(frozen=True)
class Known:
    """A page as it was last fetched."""

    digest: str
    etag: str
    modified: str
    time: float
    """Unix time of the last answer that carried the body."""
    plain: str
    """Digest of the HTML that was sent, where the body is what a browser made of it."""


@dataclass(frozen=True)
class Answered:
    """What this crawl was answered by an address, without the body."""

    url: str
    status: int
    digest: str
    """Of the page's body, which is an older one where the fault may pass; empty without a page."""
    reason: str
    detail: str
    referrer: str
    role: Role


class Pages:
    """The store, open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite itself lets one thread in at a time.
        self._db = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")  # what is forgotten is overwritten
        self._db.executescript(_SCHEMA)
        self._pack = zstandard.ZstdCompressor(level=1)
        self._unpack = zstandard.ZstdDecompressor()

    def __enter__(self) -> "Pages":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def body(self, digest: str) -> Body | None:
        row = self._db.execute(
            "SELECT media_type, body FROM bodies WHERE digest = ?", (digest,)
        ).fetchone()
        return None if row is None else Body(row[0], self._unpack.decompress(row[1]))

    def begin(self, source: str, settings: str) -> "Crawl":
        """The crawl of this source with these settings that was killed, or a new one.

        Sources of one name with different settings, as the points of a sweep are, know nothing of
        each other: equal addresses may be other pages there.
        """
        now = time.time()
        row = self._db.execute(
            "SELECT id FROM crawls WHERE source = ? AND settings = ? AND NOT ended AND began > ? "
            "ORDER BY id DESC LIMIT 1",
            (source, settings, now - RESUME_WITHIN_S),
        ).fetchone()
        if row is None:
            made = "INSERT INTO crawls (source, settings, began) VALUES (?, ?, ?) RETURNING id"
            row = self._db.execute(made, (source, settings, now)).fetchone()
        return Crawl(self, f"{source} {settings}", row[0])

    def crawl(self, source: str, number: int) -> "Crawl":
        """A crawl that another process began."""
        return Crawl(self, source, number)

    def keep(self, source: str, crawl: int, answers: Iterable[Answer]) -> None:
        now = time.time()
        # Packed before the transaction, which holds every other writer up.
        rows = [(answer, self._packed(answer)) for answer in answers]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for answer, packed in rows:
                digest = self._keep_page(source, answer, packed, now)
                self._db.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(source, answer.url, crawl, now, answer.role, answer.status, digest),
                        *(answer.reason, answer.detail, answer.referrer),
                    ),
                )
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _packed(self, answer: Answer) -> tuple[str, bytes] | None:
        if answer.body is None:
            return None
        digest = hashlib.sha256(answer.media_type.encode() + b"\n")
        digest.update(answer.body)
        return digest.hexdigest(), self._pack.compress(answer.body)

    def _keep_page(
        self, source: str, answer: Answer, packed: tuple[str, bytes] | None, now: float
    ) -> str:
        """Bring the known page up to the answer; its digest, empty where there is none."""
        key = (source, answer.url)
        if packed is not None:
            digest, body = packed
            row = (digest, answer.media_type, body)
            self._db.execute("INSERT OR IGNORE INTO bodies VALUES (?, ?, ?)", row)
            self._db.execute(
                "INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, digest, answer.etag, answer.modified, now, answer.plain),
            )
            return digest
        if not answer.unchanged and not answer.passing:
            self._db.execute("DELETE FROM pages WHERE source = ? AND url = ?", key)
            return ""
        known = self.known(*key)
        return known.digest if known else ""

    def known(self, source: str, url: str) -> Known | None:
        row = self._db.execute(
            "SELECT digest, etag, modified, time, plain FROM pages WHERE source = ? AND url = ?",
            (source, url),
        ).fetchone()
        return Known(*row) if row else None

    def answered(self, source: str, crawl: int, url: str) -> Answered | None:
        row = self._db.execute(
            "SELECT url, status, digest, reason, detail, referrer, role FROM answers "
            "WHERE source = ? AND url = ? AND crawl = ?",
            (source, url, crawl),
        ).fetchone()
        return Answered(*row) if row else None

    def all_answered(self, source: str, crawl: int) -> Iterator[Answered]:
        rows = self._db.execute(
            "SELECT url, status, digest, reason, detail, referrer, role FROM answers "
            "WHERE source = ? AND crawl = ? ORDER BY url",
            (source, crawl),
        )
        return (Answered(*row) for row in rows)

    def robots(self, origin: str, max_age_s: float) -> tuple[float, bytes] | None:
        """When a host's robots.txt was read and what it says, unless that is too long ago."""
        row = self._db.execute(
            "SELECT time, body FROM robots WHERE origin = ? AND time > ?",
            (origin, time.time() - max_age_s),
        ).fetchone()
        return row and (row[0], row[1])

    def keep_robots(self, origin: str, body: bytes) -> None:
        row = (origin, time.time(), body)
        # By a connection of its own, which waits its turn: this one may be reading just now, and
        # what it reads would be out of date, which SQLite calls locked.
        with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as db, db:
            db.execute("INSERT OR REPLACE INTO robots VALUES (?, ?, ?)", row)

    def end(self, source: str, crawl: int, whole: bool) -> None:
        """End a crawl; after a whole one nothing is known but what it has been answered."""
        self._db.execute("BEGIN IMMEDIATE")
        if whole:
            of_crawl = "SELECT url FROM answers WHERE source = ?1 AND crawl = ?2"
            gone = f"DELETE FROM pages WHERE source = ?1 AND url NOT IN ({of_crawl})"  # noqa: S608
            self._db.execute(gone, (source, crawl))
            self._db.execute("DELETE FROM answers WHERE source = ? AND crawl <> ?", (source, crawl))
        alike = "(source, settings) = (SELECT source, settings FROM crawls WHERE id = ?)"
        self._db.execute(f"UPDATE crawls SET ended = 1 WHERE {alike}", (crawl,))  # noqa: S608
        self._db.execute("COMMIT")

    def forget(
        self,
        held: Mapping[tuple[str, str], Collection[str]],
        heard: Callable[[Sequence[str]], None],
    ) -> int:
        """Drop every body that nothing names any more; how many.

        What names one: `held`, the digests of the snapshot by name and settings; and the last crawl
        with any other settings, for KEPT_S. `heard` is told the digests before they go: killed in
        between, the next refresh tells them again.
        """
        keys = json.dumps([f"{name} {settings}" for name, settings in held])
        digests = json.dumps([digest for named in held.values() for digest in named])
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(_DROP_CRAWLS, (time.time() - KEPT_S, keys))
            for drop in _DROP_ROWS:
                db.execute(drop, (keys,))
            lost = db.execute(_UNNAMED, (digests,)).fetchall()
            heard([digest for (digest,) in lost])
            db.executemany("DELETE FROM bodies WHERE digest = ?", lost)
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # nor is it in the log
        return len(lost)


@dataclass(frozen=True)
class Crawl:
    """One refresh of one source, which goes on where a killed one stopped."""

    pages: Pages
    source: str
    """Its name, and the digest of all that decides what is fetched."""
    number: int

    def answered(self, url: str) -> Answered | None:
        """What this crawl was answered already, before it was killed."""
        return self.pages.answered(self.source, self.number, url)

    def known(self, url: str) -> Known | None:
        """The page as this or an earlier crawl fetched it."""
        return self.pages.known(self.source, url)

    def keep(self, *answers: Answer) -> None:
        """On the disk when this returns."""
        self.pages.keep(self.source, self.number, answers)

    def body(self, digest: str) -> Body | None:
        return self.pages.body(digest)

    def all_answered(self) -> Iterator[Answered]:
        return self.pages.all_answered(self.source, self.number)

    def robots(self, origin: str, max_age_s: float) -> tuple[float, bytes] | None:
        return self.pages.robots(origin, max_age_s)

    def keep_robots(self, origin: str, body: bytes) -> None:
        self.pages.keep_robots(origin, body)

    def end(self, whole: bool) -> None:
        self.pages.end(self.source, self.number, whole)
