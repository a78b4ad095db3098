"""Sites for the tests of the crawl: pages, and a server on loopback that remembers its requests."""

import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import crawl
from stages.core import config
from stages.core.records import Document, Reject
from stages.core.store import read
from stages.crawl import fetching, workers
from stages.crawl import source as sources
from stages.crawl.page import UnreadableError
from stages.crawl.snapshot import Change

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = "https://docs.example.org/en/"
WORDS = "The quick brown fox jumps over the lazy dog near the river bank. "

Answer = tuple[int, dict[str, str], str | bytes]


@dataclass(frozen=True)
class Asked:
    """A request as the server saw it."""

    path: str
    headers: dict[str, str]


Responder = Callable[[Asked], Answer]


# --- pages -------------------------------------------------------------------------------------


def page(title: str, *blocks: str, head: str = "") -> str:
    """A page with enough text of its own to be a document."""
    body = "".join(blocks)
    return (
        f"<!doctype html><html><head><title>{title} - Site</title>{head}</head><body>"
        f"<nav><a href='/docs/'>Home navigation</a></nav><main><h1>{title}</h1>"
        f"<p>{title} says: {WORDS}{WORDS}</p>{body}</main>"
        "<footer>Copyright nobody</footer></body></html>"
    )


def link(*hrefs: str) -> str:
    return "".join(f'<p>See <a href="{href}">there</a>.</p>' for href in hrefs)


def ok(body: str | bytes, kind: str = "text/html; charset=utf-8", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return 200, {"Content-Type": kind, **named}, body


def moved(to: str, status: int = 302) -> Answer:
    return status, {"Location": to}, ""


MISSING: Answer = (404, {"Content-Type": "text/html"}, "<p>no such page</p>")


# --- servers -----------------------------------------------------------------------------------


@contextmanager
def responding(
    respond: Callable[[str], Responder],
    wait_s: Callable[[str], float] = lambda path: 0.0,
    halfway: Callable[[str], None] = lambda path: None,
    finished: Callable[[str], None] = lambda path: None,
) -> Iterator[tuple[str, list[Asked]]]:
    """A server that answers as it is told; its address, and the log.

    `halfway` is called when half of a body is sent, `finished` when there is no more to send.
    """
    log: list[Asked] = []
    closing = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = Asked(self.path, {name.lower(): v for name, v in self.headers.items()})
            log.append(asked)
            try:
                closing.wait(wait_s(self.path))
                self._send(answer(asked))
            finally:
                finished(self.path)

        def _send(self, told: Answer) -> None:
            status, headers, body = told
            data = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if status != 304:
                self.wfile.write(data[: len(data) // 2])
                halfway(self.path)
                self.wfile.write(data[len(data) // 2 :])

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the crawler gave up on a slow page, or was killed
                self.close_connection = True

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        origin = f"http://127.0.0.1:{server.server_port}"
        answer = respond(origin)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield origin, log
        finally:
            closing.set()
            server.shutdown()
            thread.join()


@contextmanager
def serving(
    answers: Callable[[str], Mapping[str, Answer]],
    wait_s: Callable[[str], float] = lambda path: 0.0,
) -> Iterator[tuple[str, list[str]]]:
    """A server of the answers by path, made for its own address; that address, and the paths."""
    paths: list[str] = []

    def respond(origin: str) -> Responder:
        table = answers(origin)

        def answer(asked: Asked) -> Answer:
            paths.append(asked.path)
            return table.get(asked.path, MISSING)

        return answer

    with responding(respond, wait_s) as (origin, _):
        yield origin, paths


# --- the stage ---------------------------------------------------------------------------------


def sections(**changes: Any) -> tuple[crawl.Config, crawl.Source]:
    """Both sections as shipped, with changes by key; no pauses, and no lists."""
    hasty = {"delay_s": 0.0, "retry_s": 0.01}
    params = {
        "crawl": yaml.safe_load((ROOT / "conf/crawl/default.yaml").read_text()) | hasty,
        "source": yaml.safe_load((ROOT / "conf/source/web.yaml").read_text())
        | {"lists": [], "render": "never", "allow_hosts": ["127.0.0.1"]},
    }
    for key, value in changes.items():
        section = "crawl" if key in params["crawl"] else "source"
        params[section][key] = value
    return (
        config.load(params, "crawl", crawl.Config),
        config.load(params, "source", crawl.Source),
    )


def snapshot_beside(out: Path) -> Path:
    """The snapshot beside a stage's folder; the page store stands there too."""
    path = out.with_name(f"{out.name}.snapshot.json")
    if not path.exists():
        path.write_text("{}")
    return path


def refreshed(out: Path, **changes: Any) -> Change:
    """Refresh the source, whatever the snapshot holds; what changed."""
    cfg, source = sections(**changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(out.parent))
        (change,) = fetching.refresh(cfg, source, [source], snapshot_beside(out))
    return change


def parse_here(source: Any, tasks: Any, limits: Any) -> Iterator[Any]:
    """In place of `workers.parse`, without processes of its own, whose start takes a second."""
    for address, body in tasks:
        try:
            yield address, sources.parse(source, address, body)
        except UnreadableError as error:
            yield address, error


def refresh_and_run(
    out: Path, cfg: crawl.Config, source: crawl.Source, here: bool = False
) -> dict[str, float]:
    """The stage after a refresh of what the snapshot lacks; `here`: parsed in this process."""
    snapshot = snapshot_beside(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(out.parent))
        if here:
            patch.setattr(workers, "parse", parse_here)
        fetching.refresh(cfg, source, fetching.uncovered(cfg, source, snapshot), snapshot)
        return crawl.run(cfg, source, snapshot, out)


def crawled(out: Path, **changes: Any) -> tuple[dict[str, Document], dict[str, Reject]]:
    """Refresh and run the stage; documents and rejects by address."""
    metrics = refresh_and_run(out, *sections(**changes))
    documents = {row.url: row for row in read(out / "documents.jsonl", Document)}
    rejects = {row.detail.split(": ")[0]: row for row in read(out / "rejects.jsonl", Reject)}
    assert metrics["num_documents"] == len(documents)
    assert metrics["num_rejects"] == len(rejects)
    return documents, rejects
