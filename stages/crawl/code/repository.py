"""A git repository at a revision: its files, read from its objects and never checked out."""

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import identify
from stages.crawl import guard

TIMEOUT_S = 600
"""Longest fetch of a repository, in seconds."""


@dataclass(frozen=True)
class Entry:
    """A file as git knows it."""

    path: str
    digest: str
    size: int
    is_file: bool
    """Else a link or a submodule."""


class Repository:
    """A bare one under .cache/, which holds what was fetched and nothing of what it may run."""

    def __init__(self, url: str, proxy: guard.Proxy | None) -> None:
        self._url = url
        self._how = guard.git(proxy)
        self._folder = store.cache("git", identify(url))

    def fetch(self, revision: str | None) -> str:
        """Bring a revision here; its commit. One commit alone where the server gives that."""
        if not (self._folder / "HEAD").exists():
            self._git("init", "--quiet", "--bare", str(self._folder))
        wanted = revision or "HEAD"
        try:
            self._git(
                *self._in, "fetch", "--quiet", "--depth=1", "--no-tags", "--", self._url, wanted
            )
            said = "FETCH_HEAD"
        except PipelineError:
            if revision is None:
                raise
            # A commit by the head of its name, or one that the server does not give by itself.
            whole = ("--unshallow",) if (self._folder / "shallow").exists() else ()
            refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            self._git(*self._in, "fetch", "--quiet", *whole, "--", self._url, *refs)
            said = revision
        try:
            found = ("rev-parse", "--verify", "--end-of-options", f"{said}^{{commit}}")
            return self._git(*self._in, *found).strip()
        except PipelineError:
            raise PipelineError(
                f"source.revision: {revision!r}: no such branch, tag or commit in {self._url}"
            ) from None

    @property
    def _in(self) -> tuple[str, ...]:
        return "--git-dir", str(self._folder)

    def entries(self, commit: str) -> list[Entry]:
        return listed(self._git(*self._in, *LIST, commit))

    @contextlib.contextmanager
    def reading(self) -> Iterator["Blobs"]:
        command = ["git", *self._how.options, *self._in, "cat-file", "--batch"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._how.environment,
        ) as running:
            try:
                yield Blobs(running)
            finally:
                running.kill()

    def _git(self, *arguments: str) -> str:
        return run(self._how, arguments, self._url)


class Blobs:
    def __init__(self, running: "subprocess.Popen[bytes]") -> None:
        self._running = running

    def read(self, digest: str) -> bytes:
        given, taken = self._running.stdin, self._running.stdout
        assert given is not None and taken is not None
        given.write(f"{digest}\n".encode())
        given.flush()
        size = int(taken.readline().split()[2])
        body = taken.read(size)
        taken.read(1)
        return body


def run(how: guard.Git, arguments: Sequence[str], place: str) -> str:
    """What git says; its last line is the error where it fails."""
    try:
        done = subprocess.run(
            ["git", *how.options, *arguments],
            capture_output=True,
            env=how.environment,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        raise PipelineError("git: not installed: source.path names a repository") from None
    except subprocess.TimeoutExpired:
        raise PipelineError(f"source.path: {place!r}: no answer in {TIMEOUT_S} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise PipelineError(f"source.path: {place!r}: git says: {said}")
    return done.stdout.decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Tree:
    """What a repository around a folder has committed of it."""

    remote: str
    commit: str
    prefix: str
    """Of the folder inside the repository, empty or with a slash at its end."""
    digests: dict[str, str]
    """Of the committed files, by path in the folder."""

    def holds(self, path: str, body: bytes) -> bool:
        """Whether these bytes are committed at this path: its lines are the same on the web."""
        digest = self.digests.get(path, "")
        made = hashlib.sha1 if len(digest) == 40 else hashlib.sha256
        return made(b"blob %d\0" % len(body) + body).hexdigest() == digest


def around(folder: Path) -> Tree | None:
    """The repository that a folder lies in; None where there is none with a commit.

    Only its objects are read: what a working tree is compared by may run its filters.
    """
    how = guard.git(None)
    inside = ("-C", str(folder))
    try:
        prefix = run(how, (*inside, "rev-parse", "--show-prefix"), str(folder)).strip("\n")
        commit = run(how, (*inside, "rev-parse", "--verify", "HEAD"), str(folder)).strip()
        rows = listed(run(how, (*inside, *LIST, commit), str(folder)))
    except PipelineError:
        return None
    digests = {
        row.path.removeprefix(prefix): row.digest for row in rows if row.path.startswith(prefix)
    }
    return Tree(remote(folder), commit, prefix, digests)


def remote(folder: Path) -> str:
    """The address that a repository on this machine came from; empty where it has none."""
    try:
        command = ("-C", str(folder), "remote", "get-url", "origin")
        return run(guard.git(None), command, str(folder)).strip()
    except PipelineError:
        return ""


LIST = ("ls-tree", "-r", "-z", "--long", "--full-tree")


def listed(said: str) -> list[Entry]:
    """The files that git's `LIST` names."""
    found = []
    for row in filter(None, said.split("\0")):
        about, _, path = row.partition("\t")
        mode, kind, digest, size = about.split()
        is_file = kind == "blob" and mode != "120000"
        found.append(Entry(path, digest, int(size) if size.isdigit() else 0, is_file))
    return sorted(found, key=lambda entry: entry.path)
