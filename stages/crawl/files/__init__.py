"""Files of a folder or a glob: slides, papers, notes, tables and recordings, as Markdown."""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Annotated, Literal

from pydantic import Field

from stages.core import config
from stages.core.errors import PipelineError
from stages.crawl.files import addresses, listing, speech
from stages.crawl.files.addresses import Place
from stages.crawl.files.listing import Found
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Answer, Answered, Body, Crawl
from stages.crawl.settings import Address, Config, Host, Location, Name, Pattern
from stages.crawl.site import Filter

__all__ = ["Files", "explain", "fetch", "parse", "place", "publish"]


class Files(config.Base):
    """A folder of files, a glob such as `notes/**/*.md`, or one file."""

    kind: Literal["files"]
    name: Name
    """Name of the source, which every document carries and which is part of its id."""
    path: Location
    """Where the files are: a path, an https address, or one of s3 where s3fs is installed."""
    public_url: Address | None
    """Address under which readers find the files; null cites their paths inside the source."""
    include: list[Pattern]
    """Regular expressions on a file's path, from the source's folder on and with a slash in front:
    a file is read if one matches, or none is given."""
    exclude: list[Pattern]
    """Regular expressions on a file's path: a file is left alone if one of them matches."""
    max_file_mib: Annotated[int, Field(gt=0)]
    """Largest file that is read, in MiB; recordings may be larger, at an address up to 2 GiB."""
    whisper: speech.Whisper | None
    """The model that writes recordings down; null leaves out those without subtitles beside."""
    allow_hosts: list[Host]
    """Hosts of an inner network that may be asked, such as `files.local` or `10.0.0.7:8080`."""


READERS = {
    ".csv": "sheet",
    ".docx": "word",
    ".htm": "webpage",
    ".html": "webpage",
    ".ipynb": "notebook",
    ".markdown": "markdown",
    ".md": "markdown",
    ".pdf": "pdf",
    ".pptx": "slides",
    ".rest": "rst",
    ".rst": "rst",
    ".srt": "subtitles",
    ".text": "text",
    ".tsv": "sheet",
    ".txt": "text",
    ".vtt": "subtitles",
    ".xhtml": "webpage",
    "": "text",
}
"""Which module of this package reads files of an ending; each is imported with the first one."""
RECORDINGS = frozenset(
    (
        *(".aac", ".flac", ".m4a", ".m4v", ".mka", ".mkv", ".mov", ".mp3", ".mp4", ".mpeg"),
        *(".mpg", ".oga", ".ogg", ".ogv", ".opus", ".wav", ".webm", ".wma", ".wmv"),
    )
)
SUBTITLES = (".srt", ".vtt")
MAX_RECORDING_BYTES = 2 * 2**30
"""Largest recording that is fetched from an address; one on this machine is read where it lies."""
BATCH = 64
"""Files that are kept in one transaction."""


# --- fetching ----------------------------------------------------------------------------------


Steps = Generator[int, None, dict[str, int]]


def fetch(cfg: Config, source: Files, crawl: Crawl) -> Steps:
    """Bring the files that are new or changed into the crawl; after each, how many there are.

    In the end, how many were left out, by the limit.
    """
    with _listed(cfg, source, crawl) as (found, left):
        if not found:
            raise PipelineError(
                f"source.path: {source.path!r}: no file is there that source.include and "
                "source.exclude let in"
            )
        listener = speech.Listener(source.whisper) if source.whisper else None
        answers = _answers(found, crawl, source.max_file_mib << 20, listener)
        yield from keep(crawl, answers, len(found))
    return left


@contextlib.contextmanager
def _listed(
    cfg: Config, source: Files, crawl: Crawl
) -> Iterator[tuple[list[Found], dict[str, int]]]:
    """The files, and how many were left out, by the limit."""
    wanted = Filter.of(source.include, source.exclude)
    if "://" not in source.path:
        _, rows = listing.local(source.path, wanted, "source.path")
        num_left = len(rows) - cfg.max_pages
        yield rows[: cfg.max_pages], {"max_pages": num_left} if num_left > 0 else {}
        return
    from stages.crawl.files import remote  # fsspec and aiohttp, which a folder does without

    def is_opened(path: str) -> bool:
        return is_read(path) or suffix(path) in RECORDINGS

    with remote.opened(cfg, source.path, source.allow_hosts, wanted, crawl, is_opened) as listed:
        yield listed


def keep(crawl: Crawl, answers: Iterable[Answer], total: int) -> Iterator[int]:
    """Keep the answers, many at a time; a body that is held back is no more than a batch's."""
    batch: list[Answer] = []
    for answer in answers:
        batch.append(answer)
        if len(batch) == BATCH or (answer.body is not None and len(answer.body) > 1 << 20):
            crawl.keep(*batch)
            batch.clear()
        yield total
    if batch:
        crawl.keep(*batch)


def _answers(
    rows: list[Found], crawl: Crawl, max_bytes: int, listener: speech.Listener | None
) -> Iterator[Answer]:
    suffixes = {row.address: suffix(row.address) for row in rows if not row.reason}
    beside = listing.subtitles_of(
        [path for path, ending in suffixes.items() if ending in RECORDINGS],
        [path for path, ending in suffixes.items() if ending in SUBTITLES],
    )
    recording_of = {path: recording for recording, paths in beside.items() for path in paths}
    by_address = {row.address: row for row in rows}
    for row in rows:
        if crawl.answered(row.address):
            continue
        if row.reason:
            yield Answer(
                row.address, status=0, reason=row.reason, detail=row.detail, passing=row.passing
            )
        elif row.address in recording_of:
            detail = f"of {recording_of[row.address]}"
            yield Answer(row.address, status=0, reason="subtitles", detail=detail)
        elif row.address in beside:
            spoken = by_address[beside[row.address][0]]
            yield _read(row.address, spoken, crawl, max_bytes)
        elif suffixes[row.address] in RECORDINGS:
            yield _heard(row, crawl, listener)
        elif is_read(row.address):
            yield _read(row.address, row, crawl, max_bytes)
        else:
            yield Answer(row.address, status=0, reason="not_text", detail=suffixes[row.address])


def is_read(path: str) -> bool:
    """Whether the file is of a kind that is read as it is."""
    return suffix(path) in READERS


def suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _read(address: str, row: Found, crawl: Crawl, max_bytes: int) -> Answer:
    """The file's bytes, unless its time and size say that they are known."""
    if row.size > max_bytes:
        return Answer(address, status=0, reason="too_large", detail=f"{row.size} bytes")
    etag = f"{row.address} {row.etag}"
    known = crawl.known(address)
    if row.etag and known is not None and known.etag == etag:
        return Answer(address, unchanged=True)
    try:
        body = row.open(max_bytes + 1)
    except OSError as error:
        return _unreadable(replace(row, address=address), error)
    if len(body) > max_bytes:
        return Answer(address, status=0, reason="too_large", detail=f"over {max_bytes} bytes")
    return Answer(address, body=body, media_type=f"file/{suffix(row.address)[1:]}", etag=etag)


def _heard(row: Found, crawl: Crawl, listener: speech.Listener | None) -> Answer:
    """What is said in a recording, as subtitles."""
    if listener is None:
        detail = "no subtitles beside it: set source.whisper to a model that writes it down"
        return Answer(row.address, status=0, reason="no_transcript", detail=detail)
    etag = f"{row.etag} {listener.digest}"
    known = crawl.known(row.address)
    if row.etag and known is not None and known.etag == etag:
        return Answer(row.address, unchanged=True)
    try:
        if row.path is not None:
            body = listener.write_down(row.path)
        else:
            with NamedTemporaryFile(suffix=suffix(row.address)) as file:
                for piece in row.pieces(MAX_RECORDING_BYTES + 1):
                    file.write(piece)
                file.flush()
                if file.tell() > MAX_RECORDING_BYTES:
                    raise UnreadableError("too_large", f"over {MAX_RECORDING_BYTES} bytes")
                body = listener.write_down(Path(file.name))
    except UnreadableError as error:
        return Answer(row.address, status=0, reason=error.reason, detail=error.detail)
    except OSError as error:
        return _unreadable(row, error)
    return Answer(row.address, body=body, media_type="file/vtt", etag=etag)


def _unreadable(row: Found, error: OSError) -> Answer:
    """What is elsewhere may be there again: a page that is known stays."""
    said = error.strerror or str(error)
    away = row.path is None
    return Answer(row.address, status=0, reason="unreadable", detail=said, passing=away)


# --- parsing -----------------------------------------------------------------------------------


def parse(source: Files, address: str, body: Body) -> list[Page]:
    """The page of a file."""
    return [parse_file(address, body, source.public_url)]


def parse_file(address: str, body: Body, public: str | None) -> Page:
    """A file of a kind that is known by its ending; of a recording there are the subtitles."""
    ending = suffix(address)
    name = "subtitles" if ending in RECORDINGS else READERS[ending]
    page: Page = import_module(f"{__name__}.{name}").parse(body.data, Place(address, public))
    return page


def publish(source: Files, address: str) -> str:
    """The address as readers know it."""
    return addresses.publish(source.public_url, address)


def explain(source: Files, answered: Answered) -> str:
    """What a reject says beside its address."""
    return answered.detail


def place(source: Files) -> str:
    """The key and the value that say where the files are, as an error names them."""
    return f"source.path: {source.path!r}"
