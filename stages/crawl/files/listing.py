"""The files of a folder, a glob or a storage: each with its address, or why it is left out."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.core import store
from stages.core.errors import PipelineError
from stages.crawl.site import Filter

MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """A file, or with a reason what is none."""

    address: str
    """Its path relative to the source's folder, with slashes."""
    size: int = 0
    etag: str = ""
    """What changes with its content: its time and size."""
    open: Callable[[int], bytes] = lambda _: b""
    """Its bytes, so many at most."""
    path: Path | None = None
    """Where it lies on this machine."""
    pieces: Callable[[int], Iterator[bytes]] = lambda _: iter(())
    """The bytes of one that lies elsewhere, so many at most, as they arrive."""
    reason: str = ""
    detail: str = ""
    passing: bool = False
    """The reason may pass: a page that is known stays."""


def local(path: str, wanted: Filter, key: str) -> tuple[Path, list[Found]]:
    """The folder that addresses are relative to, and its files by address.

    Links are not followed: what they lead to is read at its own place, or is outside.
    """
    whole = Path(path).expanduser()
    if not MAGIC.search(path) or whole.exists() or (store.root() / path).exists():
        found = store.locate(path, key).resolve()
        if found.is_file():
            return found.parent, [_file(found.parent, found)]
        root, pattern = found, None
    else:
        parts = whole.parts
        magic = next(place for place, part in enumerate(parts) if MAGIC.search(part))
        root = store.locate(str(Path(*parts[:magic])), key).resolve()
        pattern = glob("/".join(parts[magic:]))
    try:
        rows = [
            row
            for row in _walk(root, root)
            if (pattern is None or pattern.fullmatch(row.address))
            and wanted.keeps(as_path(row.address))
        ]
    except OSError as error:
        raise PipelineError(f"{key}: {path!r}: {error.strerror}") from None
    return root, sorted(rows, key=lambda row: row.address)


def as_path(address: str) -> str:
    """An address as the path of a URL, which is what patterns are about."""
    return "/" + address.replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def glob(pattern: str) -> re.Pattern[str]:
    """A pattern of paths: `*` and `?` stay within a folder, `**` does not."""
    said = re.escape(pattern)
    for sign, meaning in (
        (r"\*\*/", "(?:.*/)?"),
        (r"\*\*", ".*"),
        (r"\*", "[^/]*"),
        (r"\?", "[^/]"),
    ):
        said = said.replace(sign, meaning)
    said = re.sub(r"\\\[(!?)(.*?)\\\]", lambda of: f"[{'^' if of[1] else ''}{of[2]}]", said)
    return re.compile(said, re.S)


def _walk(root: Path, folder: Path) -> Iterator[Found]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if folder == root:
            raise
        yield Found(_address(root, folder), reason="unreadable", detail=error.strerror or "")
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            yield _link(root, path)
        elif entry.is_dir():
            yield from _walk(root, path)
        else:
            yield _file(root, path)


def _address(root: Path, path: Path) -> str:
    """A name that is no UTF-8 is told with its bytes escaped."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _link(root: Path, path: Path) -> Found:
    address = _address(root, path)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return Found(address, reason="broken_link")
    if target.is_relative_to(root):
        if path.parent.resolve().is_relative_to(target):
            return Found(address, reason="link_loop", detail="leads to a folder above it")
        return Found(address, reason="link", detail=f"to {target.relative_to(root).as_posix()}")
    return Found(address, reason="outside", detail="a link that leads out of the source")


def _file(root: Path, path: Path) -> Found:
    address = _address(root, path)
    try:
        found = path.lstat()
    except OSError as error:
        return Found(address, reason="unreadable", detail=error.strerror or "")
    if not stat.S_ISREG(found.st_mode):
        return Found(address, reason="not_a_file")

    def read(most: int) -> bytes:
        # A link or a pipe that has taken the file's place since is not opened.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise OSError(0, "not a file any more")
            return file.read(most)

    etag = f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"
    return Found(address, found.st_size, etag, read, path)


def subtitles_of(recordings: Sequence[str], subtitles: Sequence[str]) -> dict[str, list[str]]:
    """Which subtitles stand beside which recording: `talk.srt`, or `talk.en.vtt`, for `talk.mp4`.

    The first of them is the one without a language, or else the first by name.
    """
    beside: dict[str, list[str]] = {}
    by_name = {str(PurePosixPath(path).with_suffix("")): path for path in reversed(recordings)}
    for path in sorted(subtitles, key=lambda path: (PurePosixPath(path).name.count("."), path)):
        stem = str(PurePosixPath(path).with_suffix(""))
        shorter = re.sub(r"\.[A-Za-z]{2,3}(?:[-_][A-Za-z]{2,4})?$", "", stem)
        recording = by_name.get(stem) or by_name.get(shorter)
        if recording is not None:
            beside.setdefault(recording, []).append(path)
    return beside
