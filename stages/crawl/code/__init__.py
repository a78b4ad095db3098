"""Code of a folder or a git repository: Python by its symbols, other files as text with lines."""

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from stages.core import config, store
from stages.core.errors import PipelineError
from stages.crawl import files, guard
from stages.crawl.code import forge, python, repository
from stages.crawl.files import addresses, listing, text
from stages.crawl.files.draft import Draft
from stages.crawl.files.listing import Found
from stages.crawl.page import Page
from stages.crawl.pages import Answer, Answered, Body, Crawl
from stages.crawl.settings import Address, Config, Host, Location, Name, Pattern
from stages.crawl.site import Filter

__all__ = ["Code", "explain", "fetch", "parse", "place", "publish"]


def _revision(said: str) -> str:
    if not re.fullmatch(r"[\w./+@-]+", said) or said.startswith("-") or ".." in said:
        raise PydanticCustomError("revision", "expected a branch, a tag or a commit")
    return said


class Code(config.Base):
    """Python code with its documentation and whatever text is beside it."""

    kind: Literal["code"]
    name: Name
    """Name of the source, which every document carries and which is part of its id."""
    path: Location
    """A folder, or the https address of a git repository."""
    revision: Annotated[str, AfterValidator(_revision)] | None
    """Branch, tag or commit; null takes a repository's default branch, and a folder as it lies
    there."""
    public_url: Address | None
    """Address under which readers find the files; null links to the forge of the repository's
    remote at the commit, and without one cites paths."""
    forge: Literal["github", "gitlab", "bitbucket", "gitea"] | None
    """How the forge writes addresses; null tells by the name of its host."""
    include: list[Pattern]
    """Regular expressions on a file's path, from the top on and with a slash in front: a file is
    read if one matches, or none is given."""
    exclude: list[Pattern]
    """Regular expressions on a file's path: a file is left alone if one of them matches."""
    private: bool
    """Whether names with a leading underscore are documented, too."""
    max_source_lines: Annotated[int, Field(gt=0)]
    """Lines of a function that are shown below its docstring."""
    max_file_mib: Annotated[int, Field(gt=0)]
    """Largest file that is read, in MiB."""
    allow_hosts: list[Host]
    """Hosts of an inner network that may be asked, such as `git.local` or `10.0.0.7:8080`."""


PYTHON = (".py", ".pyi", ".pyw")
_ENDINGS = """
    adoc asm awk bash bat c cc cfg clj cmake cpp cs css cu cxx dart el erl ex exs f90 fish fs go
    gradle graphql groovy h hcl hh hpp hs hxx ini java jl js jsx kt kts lisp lua m mjs ml nim nix
    pas php pl pm proto ps1 pyx r rb rs sass scala scm scss sh sol sql swift tcl tf toml ts tsx v
    vb vim vue yaml yml zig zsh
"""
TEXTS = frozenset(f".{ending}" for ending in _ENDINGS.split())
NAMED = frozenset(("Dockerfile", "Makefile", "Justfile", "Rakefile", "Gemfile", "Procfile"))
BLOCK_LINES = 40
"""Lines of a file that is not Python after which the next block has an anchor of its own."""

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:", re.I)


# --- fetching ----------------------------------------------------------------------------------


Steps = Generator[int, None, dict[str, int]]


def fetch(cfg: Config, source: Code, crawl: Crawl) -> Steps:
    """Bring the files that are new or changed into the crawl; after each, how many there are.

    A file keeps the link to the commit at which it was last seen to change: its lines are there.
    In the end, how many were left out, by the limit.
    """
    if not _REMOTE.match(source.path) and source.revision is None:  # as it lies there
        return (yield from _fetch_folder(cfg, source, crawl))
    return (yield from _fetch_repository(cfg, source, crawl))


def _fetch_folder(cfg: Config, source: Code, crawl: Crawl) -> Steps:
    wanted = Filter.of(source.include, source.exclude)
    root, found = listing.local(source.path, wanted, "source.path")
    found = [row for row in found if not f"/{row.address}/".startswith("/.git/")]
    if not found:
        raise _nothing(source)
    tree = repository.around(root)
    links = _Links.of(tree.remote, tree.commit, source.forge, tree.prefix) if tree else _Links()
    rows, left = found[: cfg.max_pages], found[cfg.max_pages :]

    def link(path: str, body: bytes) -> str:
        return links.folder if tree and tree.holds(path, body) else ""

    def answers() -> Iterator[Answer]:
        for row in rows:
            if not crawl.answered(row.address):
                committed = tree.digests.get(row.address, "") if tree else ""
                known_by = replace(row, etag=f"{row.etag} {committed} {links.lasting}")
                yield _answer(known_by, link, crawl, source.max_file_mib << 20)

    yield from files.keep(crawl, answers(), len(rows))
    return {"max_pages": len(left)} if left else {}


def _fetch_repository(cfg: Config, source: Code, crawl: Crawl) -> Steps:
    with _repository(source) as (repo, remote):
        commit = repo.fetch(source.revision)
    links = _Links.of(remote, commit, source.forge)
    wanted = Filter.of(source.include, source.exclude)
    entries = [row for row in repo.entries(commit) if wanted.keeps(listing.as_path(row.path))]
    if not entries:
        raise _nothing(source)
    rows, left = entries[: cfg.max_pages], entries[cfg.max_pages :]
    with repo.reading() as blobs:

        def answers() -> Iterator[Answer]:
            for row in rows:
                if crawl.answered(row.path):
                    continue
                if not row.is_file:
                    yield Answer(row.path, status=0, reason="not_a_file")
                    continue
                read = partial(_first, blobs, row.digest)
                found = Found(row.path, row.size, f"{row.digest} {links.lasting}", read)
                yield _answer(found, lambda *_: links.folder, crawl, source.max_file_mib << 20)

        yield from files.keep(crawl, answers(), len(rows))
    return {"max_pages": len(left)} if left else {}


@dataclass(frozen=True)
class _Links:
    """Where a forge shows the folder; both are empty where none does."""

    folder: str = ""
    """Its address at the commit."""
    lasting: str = ""
    """The same without the commit: files are read anew when it changes, and keep their commit."""

    @classmethod
    def of(cls, remote: str, commit: str, kind: forge.Forge | None, prefix: str = "") -> "_Links":
        at, lasting = (forge.base(remote, name, kind) for name in (commit, "-"))
        return cls(f"{at}/{quote(prefix)}", f"{lasting}/{quote(prefix)}") if at else cls()


@contextlib.contextmanager
def _repository(source: Code) -> Iterator[tuple[repository.Repository, str]]:
    """On the web through the guard's proxy, or in a folder that the user named; and its remote."""
    local = source.path.removeprefix("file://")
    if not _REMOTE.match(local):
        folder = store.locate(local, "source.path").resolve()
        yield repository.Repository(folder.as_uri(), None), repository.remote(folder)
    elif local.startswith(("https://", "http://")):
        with guard.proxy(guard.Allowed.of(source.allow_hosts)) as proxy:
            try:
                yield repository.Repository(local, proxy), local
            except PipelineError:
                for refused in proxy.refused.values():
                    raise PipelineError(f"{place(source)}: {refused.detail}") from None
                raise
    else:
        raise PipelineError(f"{place(source)}: expected a folder, or an https address of git")


def _first(blobs: repository.Blobs, digest: str, most: int) -> bytes:
    return blobs.read(digest)[:most]


def _nothing(source: Code) -> PipelineError:
    return PipelineError(
        f"{place(source)}: no file is there that source.include and source.exclude let in"
    )


def _answer(row: Found, link: Callable[[str, bytes], str], crawl: Crawl, max_bytes: int) -> Answer:
    """`link` gives the address of the folder that a file is committed in, where it is."""
    if row.reason:
        return Answer(row.address, status=0, reason=row.reason, detail=row.detail)
    if not _is_read(row.address):
        ending = files.suffix(row.address)
        return Answer(row.address, status=0, reason="not_text", detail=ending)
    if row.size > max_bytes:
        return Answer(row.address, status=0, reason="too_large", detail=f"{row.size} bytes")
    known = crawl.known(row.address)
    if known is not None and known.etag == row.etag:
        return Answer(row.address, unchanged=True)
    try:
        body = row.open(max_bytes)
    except OSError as error:
        said = error.strerror or str(error)
        return Answer(row.address, status=0, reason="unreadable", detail=said)
    media_type = f"code {link(row.address, body)}".strip()
    return Answer(row.address, body=body, media_type=media_type, etag=row.etag)


def _is_read(path: str) -> bool:
    ending = files.suffix(path)
    known = ending in PYTHON or ending in TEXTS or PurePosixPath(path).name in NAMED
    return known or files.is_read(path)


# --- parsing -----------------------------------------------------------------------------------


def parse(source: Code, address: str, body: Body) -> list[Page]:
    """The pages of a file: of Python one for each symbol, of any other file one."""
    at = body.media_type.removeprefix("code").strip()
    base = source.public_url or at or None
    url = addresses.publish(base, address)
    ending = files.suffix(address)
    if ending in PYTHON:
        settings = python.Settings(source.private, source.max_source_lines)
        anchor = partial(forge.lines, url)
        return list(python.pages(body.data, address, url, anchor, settings))
    if ending in TEXTS or PurePosixPath(address).name in NAMED:
        return [_lines(body.data, address, url, partial(forge.lines, url))]
    page = files.parse_file(address, body, base)
    return [Page(page.url, page.title, page.text, page.headings, key=address)]


def _lines(body: bytes, path: str, url: str, anchor: Callable[[int, int], str]) -> Page:
    """A text as it stands, in blocks of about so many lines that end at a blank one."""
    draft = Draft()
    lines = text.decode(body).rstrip().split("\n")
    first = 0
    while first < len(lines):
        last = min(first + BLOCK_LINES, len(lines))
        while last < len(lines) and lines[last].strip() and last - first < 2 * BLOCK_LINES:
            last += 1
        draft.mark(anchor(first + 1, last))
        draft.block("\n".join(lines[first:last]), "\n")
        first = last
    page = draft.page(url, path)
    return Page(page.url, page.title, page.text, page.headings, key=path)


def publish(source: Code, address: str) -> str:
    """The address as readers know it, where no commit says more."""
    return addresses.publish(source.public_url, address)


def explain(source: Code, answered: Answered) -> str:
    """What a reject says beside its address."""
    return answered.detail


def place(source: Code) -> str:
    """The key and the value that say where the code is, as an error names them."""
    return f"source.path: {source.path!r}"
