"""A server on loopback that speaks chat completions as a test tells it to."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stages import llm
from stages.llm import probe


class Server(ThreadingHTTPServer):
    """Chat completions on loopback; `answer` gets each request and its number, and sends."""

    daemon_threads = True

    def __init__(self, answer: Callable[["Call", int], None]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.counted = threading.Lock()
        super().__init__(("127.0.0.1", 0), Call)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Call(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it holds a reply's second write back for 40 ms

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if probe.is_asked(body):  # what is counted are the calls of the test
            said = dict.fromkeys(probe.SCHEMA["required"], "yes")
            self.reply(json.dumps(said), tokens=(0, 0))
            return
        with self.server.counted:
            self.server.bodies.append(body)
            self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
            number = len(self.server.bodies)
        self.server.answer(self, number)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reply(
        self, text: str, finish_reason: str = "stop", tokens: tuple[int, int] = (11, 7)
    ) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
        completion = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        self.send(200, json.dumps({**completion, "choices": [choice], "usage": usage}).encode())

    def fail(self, status: int, code: str | None = None, **headers: str) -> None:
        error = {"message": f"status {status}", "code": code}
        self.send(status, json.dumps({"error": error}).encode(), **headers)

    def disconnect(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving(answer: Callable[[Call, int], None]) -> Iterator[Server]:
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def config(base_url: str, **changes: Any) -> llm.OpenAI:
    keys: dict[str, Any] = {
        "kind": "openai",
        "base_url": base_url,
        "api": "chat",
        "api_version": None,
        "model": "m",
        "api_key_env": "TEST_KEY",
        "temperature": 0.0,
        "max_tokens": 100,
        "response_format": "json_schema",
        "extra_body": {},
        "concurrency": 3,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "timeout_s": 30.0,
        "deadline_s": 600.0,
        "max_attempts": 5,
        "backoff_s": 0.0,
        "retry_after_cap_s": 300.0,
        "prompt_price_usd_per_mtok": 1.0,
        "completion_price_usd_per_mtok": 2.0,
        "completion_tokens_guess": 7,
        "max_cost_usd": None,
    }
    return llm.OpenAI(**(keys | changes))


def steps(*actions: Callable[[Call], None]) -> Callable[[Call, int], None]:
    """The first request meets the first action, and so on; the last one stays."""
    return lambda call, number: actions[min(number, len(actions)) - 1](call)


def good(call: Call) -> None:
    call.reply("A span.")
