"""The PostgreSQL of the pgserver package: started by its first user, stopped after its last.

Only the package's programs are used. Its own start makes a system user, opens every folder above
the data to everyone, and after a kill -9 of one user never stops the server again.
"""

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import psutil
import psycopg

from stages.core import store
from stages.core.errors import PipelineError

PATIENCE_S = 60.0

SETTINGS = {
    "listen_addresses": "",
    "port": "5432",  # part of the socket's name, and of nothing else
    # Nothing is replicated, and what a crash takes is filled again: less is written twice.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
}


class Held:
    """A server that runs until `release`, or the end of this process, and longer for others."""

    def __init__(self, folder: Path, dsn: str, users: IO[str]) -> None:
        self.dsn = dsn
        self.release = weakref.finalize(self, _release, folder, users)


def hold(folder: Path) -> Held:
    """The server whose data is in this folder, started unless it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        try:
            # Who uses the server shares this lock, which the kernel takes from a killed process.
            users = undo.enter_context((folder / "users").open("w"))
            with _turn(folder):
                fcntl.flock(users, fcntl.LOCK_SH)
                if _settled(folder) == "down":
                    _start(folder)
                dsn = _dsn(folder)
        except OSError as error:
            raise PipelineError(
                f"{folder}: PostgreSQL cannot be run here: {error}; its user ({_user() or 'you'}) "
                "must own the data in it and enter all folders above: run as another user, or "
                "name a server by index.store.dsn_env"
            ) from None
        undo.pop_all()
    return Held(folder, dsn, users)


def _dsn(folder: Path) -> str:
    return f"host={(folder / 'socket').read_text()} port=5432 user=postgres dbname=postgres"


def _release(folder: Path, users: IO[str]) -> None:
    with users, _turn(folder):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # others use it
        if _settled(folder) == "ready":
            _run("pg_ctl", "stop", "--wait", "--mode=fast", "--pgdata", str(folder / "data"))
        shutil.rmtree((folder / "socket").read_text(), ignore_errors=True)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One at a time starts or stops the server."""
    with (folder / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _settled(folder: Path) -> Literal["ready", "down"]:
    """The server's state, once it is neither starting nor stopping."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not _has_processes(folder / "data"):
            return "down"
        with contextlib.suppress(FileNotFoundError, psycopg.OperationalError):
            psycopg.connect(_dsn(folder), connect_timeout=10).close()
            return "ready"
        time.sleep(0.02)
    raise PipelineError(
        f"{folder}: PostgreSQL neither starts nor stops: see {folder}/data/server.log"
    )


def _has_processes(data: Path) -> bool:
    """Asked of the system: a pid in a file may be anyone's by now, as after a container's restart,
    and the children of a killed server may still be there."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "postgres" and process.cwd() == str(data.resolve()):
                return True
    return False


def _start(folder: Path) -> None:
    data = folder / "data"
    for left in folder.glob(".data.*"):  # by a killed start
        shutil.rmtree(left)
    if not data.exists():
        fresh = _owned(tempfile.mkdtemp(prefix=".data.", dir=folder))
        _run(
            "initdb", "--pgdata", str(fresh), "--username=postgres", "--auth=trust",
            "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
        )  # fmt: skip
        fresh.rename(data)
    (data / "postmaster.pid").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree((folder / "socket").read_text(), ignore_errors=True)
    # Not beside the data: a socket's path may have some hundred bytes only.
    socket = _owned(tempfile.mkdtemp(prefix="docent-postgres-"))
    store.write_text(folder / "socket", str(socket))
    settings = {**SETTINGS, "unix_socket_directories": str(socket)}
    options = " ".join(f"-c {shlex.quote(f'{key}={value}')}" for key, value in settings.items())
    (data / "server.log").unlink(missing_ok=True)
    _run(
        "pg_ctl", "start", "--wait", f"--timeout={PATIENCE_S:.0f}", "--silent",
        "--pgdata", str(data), "--log", str(data / "server.log"), "--options", options,
    )  # fmt: skip


def _owned(folder: str) -> Path:
    """The folder, given to the user who runs the server."""
    user = _user()
    if user:
        shutil.chown(folder, user, pwd.getpwnam(user).pw_gid)
    return Path(folder)


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    return None if os.geteuid() else "nobody"


def _run(program: str, *arguments: str) -> None:
    user = _user()
    drop: dict[str, Any] = {}
    if user:
        drop = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    # To a file: the server that pg_ctl starts would keep a pipe open.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            [str(_programs() / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",
            env={"LC_ALL": "C", "TZ": "UTC"},
            **drop,
        )
        said.seek(0)
        lines = said.read().splitlines()
    if done.returncode:
        data = Path(arguments[arguments.index("--pgdata") + 1])
        with contextlib.suppress(OSError):
            lines += (data / "server.log").read_text().splitlines()
        marks = ("error:", "FATAL:")
        told = next((line for line in lines if any(m in line for m in marks)), " ".join(lines))
        raise PipelineError(
            f"{data}: {program} failed: {told.strip()}; its user ({user or 'you'}) must own this "
            "folder and be let into those above; a damaged one can be removed: it is filled again"
        )


def _programs() -> Path:
    found = importlib.util.find_spec("pgserver")
    assert found and found.origin
    return Path(found.origin).with_name("pginstall") / "bin"
