import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stages.answer import endpoint
from stages.core.errors import PipelineError
from stages.core.records import Message

HERE = Path(__file__).parents[1]

# Takes the embedded server's arguments and speaks as much of its API as a client needs; what the
# last message says is what it does. The real server's own tests are in test_deploy.py.
STUB = """
import json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

behaviour = sys.argv[1]
if behaviour == "broken":
    print("Traceback ...")
    sys.exit("ValueError: no such model")
began = time.monotonic()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        loading = behaviour == "never" or time.monotonic() - began < 0.3
        self.reply(503 if loading else 200, {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = asked["messages"][-1]["content"]
        if said == "die":
            print("last words", flush=True)
            os._exit(9)
        if said == "refuse":
            return self.reply(422, {"error": {"message": "too long", "http_status_code": 422}})
        if said == "tgi's refusal":
            return self.reply(429, {"error": "Model is overloaded", "error_type": "overloaded"})
        if said == "proxy":
            return self.reply(502, ["no", "error", "here"])
        if said == "environment":
            said = json.dumps({"cwd": os.getcwd(), "argv": sys.argv, **os.environ})
        text = f"{asked['model']}: {said} {asked['max_tokens']} {asked['temperature']}"
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 3}})

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler)
if "--end-with-parent" in sys.argv:
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
with open(option("--announce") + ".part", "w") as file:
    json.dump({"port": server.server_port}, file)
os.rename(option("--announce") + ".part", option("--announce"))
server.serve_forever()
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/deploy").mkdir(parents=True)
    (tmp_path / "data/finetune/model").mkdir(parents=True)
    (tmp_path / "stub.py").write_text(STUB)
    yield tmp_path
    endpoint.down()


def manifest(workspace: Path, behaviour: str = "well") -> Path:
    model = {"digest": "d", "template_sha256": "t", "stop": ["<|end|>"]}
    said = {
        "engine": "embedded",
        "api": "tgi",
        "models": {
            "base": {"id": "base", "path": "org/model@main", **model},
            "tuned": {"id": "tuned", "path": "data/finetune/model", **model},
        },
        "command": [
            sys.executable,
            "stub.py",
            behaviour,
            "--models",
            "base=org/model@main",
            "tuned=data/finetune/model",
        ],
    }
    path = workspace / "data/deploy/endpoint.json"
    path.write_text(json.dumps(said))
    return path


def say(text: str) -> list[Message]:
    return [Message(role="system", content="s"), Message(role="user", content=text)]


def logs(workspace: Path) -> list[str]:
    return sorted(path.name for path in (workspace / ".cache/logs").iterdir())


# --- a private server -----------------------------------------------------------------------------


def test_a_private_server_answers_and_ends_with_the_block(workspace):
    before = psutil.Process().children()
    with endpoint.start(manifest(workspace)) as server:
        assert server.complete("tuned", say("hello"), max_tokens=5) == endpoint.Completion(
            "tuned: hello 5 0.0", 3, "stop"
        )
        base = server.complete("base", say("hi"), max_tokens=1, temperature=0.7)
        assert base.text == "base: hi 1 0.7"
        url = server.base_url
        [server_process] = set(psutil.Process().children()) - set(before)
    assert not endpoint._healthy(url)
    assert not server_process.is_running()
    assert logs(workspace) == []  # nothing went wrong


def test_a_private_server_ends_when_the_block_fails(workspace):
    with pytest.raises(ZeroDivisionError), endpoint.start(manifest(workspace)) as server:
        url = server.base_url
        raise ZeroDivisionError
    assert not endpoint._healthy(url)


def test_the_server_runs_in_the_workspace_on_loopback_and_offline(workspace):
    with endpoint.start(manifest(workspace)) as server:
        text = server.complete("tuned", say("environment"), max_tokens=1).text
    said = json.loads(text.removeprefix("tuned: ").rpartition("}")[0] + "}")
    assert said["cwd"] == str(workspace)
    assert said["HF_HUB_OFFLINE"] == "1"
    assert said["PYTHONPATH"] == str(HERE)
    assert f"tuned={workspace}/data/finetune/model" in said["argv"]
    assert "base=org/model@main" in said["argv"]
    assert said["argv"][said["argv"].index("--host") + 1] == "127.0.0.1"


def test_a_proxy_in_the_environment_does_not_stand_between(workspace, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with endpoint.start(manifest(workspace)) as server:
        assert server.complete("tuned", say("hello"), max_tokens=5).tokens == 3


def test_many_threads_ask_at_once_and_each_gets_its_own_answer(workspace):
    answers: dict[int, str] = {}
    with endpoint.start(manifest(workspace)) as server:

        def ask(i: int) -> None:
            for _ in range(5):
                answers[i] = server.complete("tuned", say(f"question {i}"), max_tokens=i).text

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {i: f"tuned: question {i} {i} 0.0" for i in range(16)}


def test_a_server_that_dies_is_one_line_with_its_log(workspace):
    with (
        pytest.raises(PipelineError, match=r"has ended or cannot be reached .*; see .*\.log$"),
        endpoint.start(manifest(workspace)) as server,
    ):
        server.complete("tuned", say("die"), max_tokens=5)
    (log,) = logs(workspace)
    assert (workspace / ".cache/logs" / log).read_text() == "last words\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("refuse", "tuned answered 422: too long"),
        ("tgi's refusal", "tuned answered 429: Model is overloaded; see"),
        ("proxy", "tuned answered 502: .*error.*; see"),
    ],
)
def test_a_refusal_is_one_line_with_its_reason(workspace, said, expected):
    with endpoint.start(manifest(workspace)) as server:
        with pytest.raises(PipelineError, match=expected) as raised:
            server.complete("tuned", say(said), max_tokens=5)
        assert "\n" not in str(raised.value)
        assert server.complete("tuned", say("hello"), max_tokens=5).tokens == 3


def test_a_server_that_ends_while_it_loads_is_one_line_with_its_last_words(workspace):
    with (
        pytest.raises(PipelineError, match="ended before it was ready: ValueError: no such model"),
        endpoint.start(manifest(workspace, "broken")),
    ):
        raise AssertionError("never reached")
    assert not list((workspace / ".cache/endpoint").iterdir())


def test_a_server_that_does_not_get_ready_in_time_is_ended(workspace, monkeypatch):
    before = psutil.Process().children()
    monkeypatch.setattr(endpoint, "READY_TIMEOUT_S", 0)
    with (
        pytest.raises(PipelineError, match="not ready after 1 s"),
        endpoint.start(manifest(workspace, "never")),
    ):
        raise AssertionError("never reached")
    assert psutil.Process().children() == before


def test_a_missing_manifest_or_interpreter_is_one_line(workspace):
    with pytest.raises(PipelineError, match=r"dvc repro"), endpoint.start(Path("absent.json")):
        raise AssertionError("never reached")
    path = manifest(workspace)
    said = json.loads(path.read_text())
    said["command"][0] = ".venv-absent/bin/python"
    path.write_text(json.dumps(said))
    with pytest.raises(PipelineError, match=r"deploy.python: '.venv-absent/bin/python'"):
        endpoint.up(path, 0)


def test_a_private_server_ends_when_its_parent_is_killed(workspace):
    manifest(workspace)
    parent = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from stages.answer import endpoint
        with endpoint.start(Path("data/deploy/endpoint.json")) as server:
            print(server.base_url, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    url = done.stdout.strip()
    deadline = time.monotonic() + 20
    while endpoint._healthy(url):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- up, down, status -----------------------------------------------------------------------------


def test_up_leaves_a_server_that_others_find_until_down(workspace):
    path = manifest(workspace)
    assert endpoint.status() == {"running": False, "ready": False}
    with pytest.raises(PipelineError, match=r"`python -m stages up` starts it"):
        endpoint.connect(path)
    url = endpoint.up(path, 0)
    with endpoint.connect(path) as server:
        assert server.base_url == url
        assert server.complete("tuned", say("x"), max_tokens=1).tokens == 3
    said = endpoint.status()
    assert (said["running"], said["ready"], said["current"]) == (True, True, True)
    assert said["url"] == url
    assert psutil.pid_exists(said["pid"])
    with pytest.raises(PipelineError, match=f"up already at {url}"):
        endpoint.up(path, 0)
    assert endpoint.down()
    assert not endpoint._healthy(url)
    assert endpoint.status()["running"] is False
    assert endpoint.down() is False


def test_a_server_that_up_left_outlives_the_command(workspace):
    manifest(workspace)
    code = "from pathlib import Path; from stages.answer import endpoint; "
    code += "endpoint.up(Path('data/deploy/endpoint.json'), 0)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(HERE)}, check=True
    )
    assert endpoint.status()["ready"]


def test_up_takes_the_port_that_it_is_given_and_refuses_a_taken_one(workspace):
    path = manifest(workspace)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PipelineError, match=f"--port {port}: Address already in use; choose"):
            endpoint.up(path, port)
    assert endpoint.status()["running"] is False
    assert endpoint.up(path, port) == f"http://127.0.0.1:{port}"
    with pytest.raises(PipelineError, match="--port 99999"):
        endpoint._check_port(99999)


def test_a_server_that_was_killed_is_forgotten_and_up_starts_another(workspace):
    path = manifest(workspace)
    endpoint.up(path, 0)
    pid = endpoint.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    assert endpoint.status()["running"] is False
    assert not (workspace / ".cache/endpoint/state.json").exists()
    endpoint.up(path, 0)
    assert endpoint.status()["ready"]


def test_a_process_that_took_over_the_number_is_neither_used_nor_ended(workspace):
    path = manifest(workspace)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    endpoint.up(path, 0)
    state = workspace / ".cache/endpoint/state.json"
    said = json.loads(state.read_text())
    earlier = said["create_time"] - 100
    state.write_text(json.dumps(said | {"pid": other.pid, "create_time": earlier}))
    assert endpoint.down() is False
    assert other.poll() is None
    other.kill()
    other.wait()
    endpoint._end(said["pid"], drain_s=5)


def test_a_server_of_older_models_is_not_asked(workspace):
    path = manifest(workspace)
    endpoint.up(path, 0)
    path.write_text(path.read_text().replace('"digest": "d"', '"digest": "newer"'))
    assert endpoint.status()["current"] is False
    with pytest.raises(PipelineError, match=r"serves other models .* `python -m stages down`"):
        endpoint.connect(path)


def test_an_up_that_fails_leaves_nothing_behind(workspace):
    with pytest.raises(PipelineError, match=r"no such model; see .*endpoint.log"):
        endpoint.up(manifest(workspace, "broken"), 0)
    assert endpoint.status()["running"] is False
    endpoint.up(manifest(workspace), 0)
    assert endpoint.status()["ready"]


# --- TGI in Docker, by a `docker` that writes down what it is told -------------------------------

DOCKER = """#!/bin/sh
echo "$COMPOSE_PROJECT_NAME $TUNED_PORT $BASE_PORT $@" >> docker.log
[ -e docker.fails ] && echo "unable to get image" >&2 && exit 1
case "$*" in
*up*) for port in $TUNED_PORT $BASE_PORT; do
        {python} stub.py well --port $port --announce announced-$port </dev/null >/dev/null 2>&1 &
        echo $! >> docker.pids
      done ;;
*down*) kill $(cat docker.pids); rm docker.pids ;;
esac
exit 0
"""


@pytest.fixture
def tgi(workspace, monkeypatch) -> Path:
    path = manifest(workspace)
    said = json.loads(path.read_text())
    said["engine"] = "tgi"
    said["command"] = ["docker", "compose", "-f", "data/deploy/compose.yaml", "up", "-d"]
    for model in said["models"].values():
        model["id"] = "tgi"
    path.write_text(json.dumps(said))
    docker = workspace / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.replace("{python}", sys.executable))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    return path


def test_tgi_goes_up_and_down_by_compose_with_a_port_for_each_model(workspace, tgi):
    port = endpoint._free_port()
    assert endpoint.up(tgi, port) == f"http://127.0.0.1:{port}"
    with endpoint.connect(tgi) as server:
        assert server.urls["base"] == f"http://127.0.0.1:{port + 1}"
        assert server.complete("tuned", say("x"), max_tokens=2).text == "tgi: x 2 0.0"
        assert server.complete("base", say("y"), max_tokens=2).text == "tgi: y 2 0.0"
    assert endpoint.down()
    assert (workspace / "docker.log").read_text().splitlines() == [
        f"docent {port} {port + 1} compose -f data/deploy/compose.yaml up -d",
        f"docent {port} {port + 1} compose -f data/deploy/compose.yaml down",
    ]


def test_a_private_tgi_has_a_project_of_its_own_and_is_taken_down(workspace, tgi):
    with endpoint.start(tgi) as server:
        assert server.complete("base", say("x"), max_tokens=2).tokens == 3
    told = (workspace / "docker.log").read_text().splitlines()
    assert [line.split()[-1] for line in told] == ["-d", "down"]
    assert all(line.startswith("docent-private-") for line in told)


def test_without_docker_tgi_is_one_clear_line(workspace, tgi, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PipelineError, match=r"no `docker` is on the PATH.*deploy=embedded"):
        endpoint.up(tgi, 0)
    assert endpoint.status()["running"] is False


def test_a_compose_that_fails_is_one_line_with_its_reason(workspace, tgi):
    (workspace / "docker.fails").touch()
    with pytest.raises(PipelineError, match=r"up -d` failed: unable to get image"):
        endpoint.up(tgi, endpoint._free_port())
    assert endpoint.status()["running"] is False
