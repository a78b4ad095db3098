"""A manifest (endpoint.json) in, answers of its models out: start, find, ask and end its server."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import psutil

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import Message, identify

if TYPE_CHECKING:
    from stages.answer.hosted import Hosted

ANSWER_TIMEOUT_S = 300
"""For one answer; a CPU that reads a long prompt for a full batch takes its time."""
READY_TIMEOUT_S = 600
"""For a server to load its models; TGI may download them first."""
DEFAULT_PORT = 8080

Models = Mapping[str, Mapping[str, Any]]


class RefusedError(PipelineError):
    """This one question was refused, perhaps as too long; others may be asked."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason
        """Without the address, so that it is the same in equal runs."""


@dataclass(frozen=True)
class Completion:
    """An answer, how many tokens it took, and why it ended: stop or length."""

    text: str
    tokens: int
    finish_reason: str
    cost_usd: float = 0.0
    """What was paid for it, in US dollars; nothing to a server of our own."""
    cached: bool = False
    """Whether it was kept from an earlier call."""


class Chat(Protocol):
    """Whatever completes a dialogue as one of its models."""

    def complete(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
    ) -> Completion: ...


@dataclass(frozen=True)
class Endpoint:
    """A running server; `complete` may be called from many threads."""

    base_url: str
    """Of the tuned model; the embedded server has base at the same address."""
    models: Models
    """What endpoint.json says of `base` and `tuned`."""
    log: str = ""
    """Where the server's own words are."""
    urls: Mapping[str, str] = field(default_factory=dict)
    _client: httpx.Client = field(
        default_factory=lambda: httpx.Client(
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=10),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,  # a proxy has no way to our loopback
        ),
        repr=False,
    )

    def complete(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
    ) -> Completion:
        """The model's answer to a dialogue; RefusedError, or PipelineError if the server fails."""
        url = self.urls.get(model, self.base_url)
        asked = {
            "model": self.models[model]["id"],
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": False,
        }
        try:
            response = self._client.post(f"{url}/v1/chat/completions", json=asked)
        except httpx.TimeoutException:
            raise PipelineError(
                f"endpoint {url}: no answer within {ANSWER_TIMEOUT_S} s{_see(self.log)}"
            ) from None
        except httpx.TransportError as error:
            raise PipelineError(
                f"endpoint {url}: the server has ended or cannot be reached ({_line(error)})"
                f"{_see(self.log)}"
            ) from None
        if response.status_code in (400, 413, 422):
            reason = f"{model} answered {response.status_code}: {_reason(response)}"
            raise RefusedError(f"endpoint {url}", reason)
        if response.status_code != 200:
            raise PipelineError(
                f"endpoint {url}: {model} answered {response.status_code}: "
                f"{_reason(response)}{_see(self.log)}"
            )
        answer = response.json()
        choice = answer["choices"][0]
        return Completion(
            choice["message"]["content"] or "",
            answer["usage"]["completion_tokens"],
            choice["finish_reason"],
        )

    def close(self) -> None:
        """Close the connections; the server runs on."""
        self._client.close()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- what a manifest says -----------------------------------------------------------------------


def identity(said: Mapping[str, Any], model: str) -> str:
    """Names all of a manifest that shapes a model's answers, wherever its files are."""
    settings = [word for word in said["command"] if "=" not in word]
    described = {k: v for k, v in said["models"][model].items() if k not in ("path", "id")}
    if "settings" in said:
        settings = [said["settings"]]
    return identify(said["engine"], settings, described)


def located(manifest: Path, said: Mapping[str, Any]) -> dict[str, str]:
    """Where the weights of each model are: a folder, or `name@revision` of the hub's cache."""
    workspace = manifest.resolve().parents[2]
    models = said["models"]
    return {
        name: _located(f"{name}={about['path']}", models, workspace).partition("=")[2]
        for name, about in models.items()
    }


def with_tuned(said: Mapping[str, Any], folder: Path, digest: str) -> dict[str, Any] | None:
    """The manifest of a server like this one whose only model is another tuned one.

    None where its weights are not in the command, as with TGI.
    """
    models = said["models"]
    ours = [f"{name}={about['path']}" for name, about in models.items()]
    if not set(ours) <= set(said["command"]):
        return None
    path = str(folder.resolve())
    others = (word for word in said["command"] if word not in ours[: len(ours) - 1])
    last = ours[-1]
    return {
        **said,
        "models": {"tuned": {**models["tuned"], "path": path, "digest": digest}},
        "command": [f"tuned={path}" if word == last else word for word in others],
    }


def is_hosted(manifest: Path) -> bool:
    """Whether its models are served elsewhere, so that nothing is to be started."""
    return manifest.exists() and store.read_json(manifest)["engine"] == "hosted"


# --- a private server, as long as the block that asks it ----------------------------------------


@contextlib.contextmanager
def start(manifest: Path) -> Iterator["Endpoint | Hosted"]:
    """A server of this manifest on a free loopback port, ended with the block or with us.

    Hosted models are asked where they are.
    """
    said = store.read_json(manifest)
    if said["engine"] == "hosted":
        from stages.answer import hosted  # with the SDK, which other engines do without

        with hosted.connect(manifest, said) as models:
            yield models
        return
    if said["engine"] == "tgi":
        project = f"docent-private-{os.getpid()}"
        ports = {name: _free_port() for name in said["models"]}
        try:
            _compose(manifest, said, ["up", "-d"], ports, project)
            urls = _urls(ports)
            _wait_until_ready(urls.values(), _always, "`docker compose logs`")
            with Endpoint(urls["tuned"], said["models"], "", urls) as endpoint:
                yield endpoint
        finally:
            _compose(manifest, said, ["down"], ports, project)
        return
    log = store.workspace("logs", f"endpoint-{os.getpid()}-{time.monotonic_ns()}.log")
    process, url = _spawn(manifest, said, log, port=0, detached=False)
    try:
        _wait_until_ready([url], lambda: process.poll() is None, log)
        with Endpoint(url, said["models"], str(log)) as endpoint:
            yield endpoint
    finally:
        _end(process.pid, drain_s=5)
        if process.stdin:
            process.stdin.close()
        process.wait()
    log.unlink()  # where all went well: an error names it


# --- the one server that outlives its command ---------------------------------------------------


def up(manifest: Path, port: int = DEFAULT_PORT) -> str:
    """Start the server; its address once it is ready. PipelineError where one is up already."""
    with _sole_up():
        state = _state()
        if state:
            raise PipelineError(
                f"an endpoint is up already at {state['urls']['tuned']}; "
                "`python -m stages down` stops it"
            )
        said = store.read_json(manifest)
        if said["engine"] == "hosted":
            raise PipelineError(
                f"{manifest}: its models are hosted by {said['settings']['base_url']}: nothing is "
                "to be started; `chat` and `evaluate` ask them there"
            )
        log = store.workspace("logs", "endpoint.log")
        state = {
            "manifest": str(manifest.resolve()),
            "digest": store.digest(manifest),
            "engine": said["engine"],
            "log": str(log),
        }
        progress.note(f"starting {' and '.join(said['models'])}; log: {log}")
        if said["engine"] == "tgi":
            # TGI serves one model: tuned has the port, base the one above.
            ports = {"tuned": port, "base": port + 1}
            for taken in ports.values():
                _check_port(taken)
            _compose(manifest, said, ["up", "-d"], ports)
            store.write_json(_state_file(), state | {"urls": dict(_urls(ports)), "ports": ports})
            _wait_until_ready(_urls(ports).values(), _always, "`docker compose logs`")
        else:
            _check_port(port)
            process, url = _spawn(manifest, said, log, port, detached=True)
            try:
                state |= {
                    "pid": process.pid,
                    "port": int(url.rpartition(":")[2]),
                    "create_time": psutil.Process(process.pid).create_time(),
                    "urls": dict.fromkeys(said["models"], url),
                }
                store.write_json(_state_file(), state)
                _wait_until_ready([url], lambda: process.poll() is None, log)
            except BaseException:  # Ctrl-C too: nothing half-started stays behind
                _end(process.pid, drain_s=5)
                process.wait()
                _state_file().unlink(missing_ok=True)
                raise
        url = str(status()["url"])
        progress.note(f"ready at {url}")
        return url


def down() -> bool:
    """Stop the server that `up` started, after the requests it is answering; whether it ran."""
    state = _state()
    if not state:
        return False
    if state["engine"] == "tgi":
        manifest = Path(state["manifest"])
        _compose(manifest, store.read_json(manifest), ["down"], state["ports"])
    else:
        _end(state["pid"], drain_s=30)
    _state_file().unlink(missing_ok=True)
    return True


def status() -> dict[str, Any]:
    """Whether a server runs, whether it is ready, and whether its models are the current ones."""
    state = _state()
    if not state:
        return {"running": False, "ready": False}
    return {
        "running": True,
        "ready": all(_healthy(url) for url in state["urls"].values()),
        "current": _is_current(state),
        "engine": state["engine"],
        "url": state["urls"]["tuned"],
        "pid": state.get("pid"),
        "log": state["log"],
    }


def connect(manifest: Path) -> Endpoint:
    """The server that `up` started with this manifest."""
    state = _state()
    if not state:
        raise PipelineError("no endpoint is up: `python -m stages up` starts it")
    url = state["urls"]["tuned"]
    if state["manifest"] != str(manifest.resolve()) or not _is_current(state):
        raise PipelineError(
            f"the endpoint at {url} serves other models than {manifest}: "
            "`python -m stages down`, then `python -m stages up`"
        )
    if not all(_healthy(url) for url in state["urls"].values()):
        raise PipelineError(f"the endpoint at {url} is not ready yet{_see(state['log'])}")
    return Endpoint(url, store.read_json(manifest)["models"], state["log"], state["urls"])


def _state_file() -> Path:
    return store.workspace("endpoint", "state.json")


def _state() -> dict[str, Any] | None:
    """What `up` wrote, if that server still runs; a dead one's state is removed."""
    _reap()
    path = _state_file()
    if not path.exists():
        return None
    state: dict[str, Any] = store.read_json(path)
    if state["engine"] != "tgi":
        alive = False
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(state["pid"])
            # The same number may be another process by now.
            alive = (
                process.status() != psutil.STATUS_ZOMBIE
                and abs(process.create_time() - state["create_time"]) < 1
            )
        if not alive:
            path.unlink(missing_ok=True)
            return None
    return state


def _is_current(state: Mapping[str, Any]) -> bool:
    manifest = Path(state["manifest"])
    return manifest.exists() and store.digest(manifest) == state["digest"]


@contextlib.contextmanager
def _sole_up() -> Iterator[None]:
    with store.workspace("endpoint", "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError("another `python -m stages up` is starting the endpoint") from None
        yield


# --- the embedded server's process --------------------------------------------------------------

_left_running: list["subprocess.Popen[bytes]"] = []
"""Popen warns of a child that outlives it, which is what `up` is for."""


def _reap() -> None:
    """Forget those that have ended; a killed child of ours is a zombie until it is asked after."""
    _left_running[:] = [process for process in _left_running if process.poll() is None]


def _spawn(
    manifest: Path, said: Mapping[str, Any], log: Path, port: int, *, detached: bool
) -> tuple["subprocess.Popen[bytes]", str]:
    """Run the manifest's command; its process and its address."""
    workspace = manifest.resolve().parents[2]
    announced = store.workspace("endpoint", f"announced-{os.getpid()}-{time.monotonic_ns()}.json")
    python, *arguments = said["command"]
    command = [
        str(store.locate(python, "deploy.python").absolute()),  # a venv's is a link: not resolved
        *(_located(argument, said["models"], workspace) for argument in arguments),
        *("--port", str(port), "--announce", str(announced)),
    ]
    if not detached:
        command += ["--host", "127.0.0.1", "--end-with-parent"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "1",  # deploy has fetched what there is to fetch
        "TOKENIZERS_PARALLELISM": "false",
    }
    if detached:
        environment.pop(store.LOCK_VARIABLE, None)
    with log.open("wb") as words:
        process = subprocess.Popen(
            command,
            cwd=workspace,
            env=environment,
            # Closes when we end, however we end: the server watches it.
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=detached,
        )
    if detached:
        _left_running.append(process)
    try:
        while not announced.exists():
            if process.poll() is not None:
                raise PipelineError(_died_loading(log))
            time.sleep(0.02)
        return process, f"http://127.0.0.1:{store.read_json(announced)['port']}"
    except BaseException:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()
        raise
    finally:
        announced.unlink(missing_ok=True)


def _located(argument: str, models: Models, workspace: Path) -> str:
    """`name=path` with the path where it is: in the workspace, in the checkout, or on the hub."""
    name, _, path = argument.partition("=")
    if name in models and path == models[name]["path"]:
        for folder in (workspace, store.root()):
            if (folder / path).is_dir():
                return f"{name}={folder / path}"
    return argument


def _wait_until_ready(urls: Iterable[str], alive: Callable[[], bool], log: Path | str) -> None:
    began = time.monotonic()
    waiting = list(urls)
    said = 0
    while waiting:
        if not alive():
            raise PipelineError(_died_loading(Path(log)))
        seconds = int(time.monotonic() - began)
        if seconds > READY_TIMEOUT_S:
            raise PipelineError(f"endpoint {waiting[0]}: not ready after {seconds} s{_see(log)}")
        if seconds > said:
            progress.step(seconds, 0, "seconds loading")
            said = seconds
        waiting = [url for url in waiting if not _healthy(url)]
        time.sleep(0.05 if waiting else 0)


def _healthy(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    return False


def _end(pid: int, drain_s: float) -> None:
    """SIGTERM, which lets requests under way end, then SIGKILL."""
    with contextlib.suppress(psutil.NoSuchProcess):
        store.end_processes([psutil.Process(pid)], patience_s=drain_s)
    _reap()


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise PipelineError(
                f"--port {port}: {_line(error)}; choose another, or 0 for a free one"
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- TGI in Docker ------------------------------------------------------------------------------


def _compose(
    manifest: Path,
    said: Mapping[str, Any],
    verb: Sequence[str],
    ports: Mapping[str, int],
    project: str = "docent",
) -> None:
    """`docker compose <verb>` on the manifest's compose.yaml, whose ports are variables."""
    if not shutil.which("docker"):
        raise PipelineError(
            "deploy=tgi runs in Docker, and no `docker` is on the PATH: install it, "
            "or serve with deploy=embedded"
        )
    # The manifest's command is the whole `docker compose -f … up -d`.
    command = [*said["command"][: said["command"].index("up")], *verb]
    variables = {f"{name.upper()}_PORT": str(port) for name, port in ports.items()}
    done = subprocess.run(
        command,
        cwd=manifest.resolve().parents[2],
        env={**os.environ, **variables, "COMPOSE_PROJECT_NAME": project},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PipelineError(f"`{' '.join(command)}` failed: {words[-1]}")


def _urls(ports: Mapping[str, int]) -> dict[str, str]:
    return {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}


def _always() -> bool:
    return True


# --- words --------------------------------------------------------------------------------------


def _died_loading(log: Path) -> str:
    words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return f"the server ended before it was ready: {words[-1]}{_see(log)}"


def _see(log: Path | str) -> str:
    return f"; see {log}" if log else ""


def _line(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()) or type(error).__name__


def _reason(response: httpx.Response) -> str:
    """The message of an error in OpenAI's form or TGI's."""
    try:
        said = response.json()["error"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return " ".join(response.text.split())[:200]
    return str(said["message"] if isinstance(said, dict) else said)
