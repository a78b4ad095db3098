"""Files at an address of fsspec, on a web server or in a storage, reached through the guard."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import aiohttp
import fsspec  # type: ignore[import-untyped]

from stages.core.errors import PipelineError
from stages.crawl import guard
from stages.crawl.files import listing
from stages.crawl.files.listing import Found
from stages.crawl.site import Filter

_FAULTS = (OSError, ValueError, aiohttp.ClientError, asyncio.TimeoutError)
_TAGS = ("ETag", "etag", "LastModified", "mtime", "Content-MD5")
"""What storages call the thing that changes with a file's content."""


@contextlib.contextmanager
def opened(url: str, allow_hosts: Sequence[str], wanted: Filter, key: str) -> Iterator[list[Found]]:
    """The files of a folder, a glob or one address, which can be read as long as this lasts."""
    with guard.proxy(guard.Allowed.of(allow_hosts)) as proxy:
        options = guard.storage(url, proxy, key)
        try:
            storage, root = fsspec.url_to_fs(url, **options)
            rows = list(_found(storage, root))
        except ImportError as error:
            raise PipelineError(f"{key}: {url!r}: {error}: install it beside Docent") from None
        except _FAULTS as error:
            refused = next((no.detail for no in proxy.refused.values()), "")
            said = refused or " ".join(str(error).split()) or type(error).__name__
            raise PipelineError(f"{key}: {url!r}: {said}") from None
        yield sorted(
            (row for row in rows if wanted.keeps(listing.as_path(row.address))),
            key=lambda row: row.address,
        )


def _found(storage: Any, root: str) -> Iterator[Found]:
    magic = listing.MAGIC.search(root)
    if magic:
        folder = root[: root.rfind("/", 0, magic.start()) + 1]
        names = storage.glob(root)
    elif not root.endswith("/") and storage.isfile(root):
        folder = root[: root.rfind("/") + 1]
        names = [root]
    else:
        folder = root.rstrip("/") + "/"
        names = storage.find(folder)
    for name in names:
        if name.startswith(folder) and not name.endswith("/"):
            yield _file(storage, name, unquote(name.removeprefix(folder)))


def _file(storage: Any, name: str, address: str) -> Found:
    if ".." in address.split("/"):
        return Found(address, reason="outside")
    try:
        about = storage.info(name)
    except _FAULTS as error:
        return Found(address, reason="unreadable", detail=" ".join(str(error).split()))

    def read(most: int) -> bytes:
        streaming = {"block_size": 0} if name.startswith("http") else {}
        try:
            with storage.open(name, "rb", **streaming) as file:
                body = b""
                # A stream gives what has arrived, and nothing only at its end.
                while len(body) < most and (part := file.read(most - len(body))):
                    body += part
                return body
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(0, " ".join(str(error).split())) from None

    tags = [str(about[tag]) for tag in _TAGS if about.get(tag)]
    etag = " ".join([*tags, str(about.get("size"))]) if tags else ""
    return Found(address, int(about.get("size") or 0), etag, read)
