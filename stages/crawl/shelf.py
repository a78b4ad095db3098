"""The pages of one source while the stage sifts them: on the disk, so that memory holds one."""

import sqlite3
from collections.abc import Iterator, MutableMapping

from pydantic import TypeAdapter

from stages.crawl.page import Page

_PAGE = TypeAdapter(Page)


class Shelf(MutableMapping[str, Page]):
    """Pages by address, in the order in which they came. Nothing of it outlives the process."""

    def __init__(self) -> None:
        # Without a name SQLite keeps the table in a file that it has unlinked already.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(
            "CREATE TABLE shelf (place INTEGER PRIMARY KEY, url TEXT UNIQUE, page BLOB NOT NULL)"
        )

    def __enter__(self) -> "Shelf":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __getitem__(self, url: str) -> Page:
        row = self._database.execute("SELECT page FROM shelf WHERE url = ?", (url,)).fetchone()
        if row is None:
            raise KeyError(url)
        return _PAGE.validate_json(row[0])

    def __setitem__(self, url: str, page: Page) -> None:
        self._database.execute(
            "INSERT INTO shelf (url, page) VALUES (?, ?)"
            " ON CONFLICT (url) DO UPDATE SET page = excluded.page",
            (url, _PAGE.dump_json(page)),
        )

    def __delitem__(self, url: str) -> None:
        if not self._database.execute("DELETE FROM shelf WHERE url = ?", (url,)).rowcount:
            raise KeyError(url)

    def __iter__(self) -> Iterator[str]:
        """Those of now: what is put or taken away meanwhile changes nothing."""
        urls = self._database.execute("SELECT url FROM shelf ORDER BY place").fetchall()
        return (url for (url,) in urls)

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM shelf").fetchone()[0])

    def __contains__(self, url: object) -> bool:
        found = self._database.execute("SELECT 1 FROM shelf WHERE url = ?", (url,))
        return found.fetchone() is not None
