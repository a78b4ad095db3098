import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

from stages.answer import vectors
from stages.answer.vectors import postgres, saved
from stages.answer.vectors.pgvector import Table
from stages.core import config, store
from stages.core.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent
GRAPH = {"connectivity": 16, "expansion_add": 100, "expansion_search": 100}
KEY = "the-key-of-the-stand-in"
DIM = 24


# --- material ------------------------------------------------------------------------------------


def unit(array):
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


RANDOM = np.random.default_rng(0)
ROWS = unit(RANDOM.standard_normal((400, DIM)))
ROWS[311] = ROWS[17]  # a tie
LABELS = [("manual", "guide", "wiki")[row % 3] for row in range(len(ROWS))]
GONE = 40
"""The row of the document that is removed."""
QUERIES = unit(RANDOM.standard_normal((30, DIM)))
WITH, WITHOUT, OTHER = "a1" * 32, "b2" * 32, "c3" * 32


def expected(query, k, sources=None, rows=ROWS, labels=LABELS):
    """By numpy alone."""
    cosines = rows.astype(np.float64) @ query.astype(np.float64)
    allowed = [i for i, label in enumerate(labels) if sources is None or label in sources]
    best = sorted(allowed, key=lambda i: (-round(cosines[i], 6), i))[:k]
    return best, [cosines[i] for i in best]


# --- stores --------------------------------------------------------------------------------------


class StandIn(BaseHTTPRequestHandler):
    """Qdrant's REST over the engine inside its client: the wire is real, the server is not."""

    protocol_version = "HTTP/1.1"
    engine: QdrantClient
    lock = threading.Lock()

    def answer(self):
        # All of it is read, or the rest would be taken for the next request of the connection.
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("api-key") != KEY:
            return self.reply(401, {"status": {"error": "no key"}})
        said = json.loads(content or b"{}")
        parts = self.path.partition("?")[0].strip("/").split("/")[1:]
        with self.lock:
            if parts and self.command != "PUT" and not self.engine.collection_exists(parts[0]):
                return self.reply(404, {"status": {"error": "Not found"}})
            result = self.result(self.command, parts, said)
        return self.reply(200, {"result": result, "status": "ok", "time": 0.0})

    do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def result(self, method, parts, said):
        match method, parts:
            case "GET", []:
                return self.engine.get_collections().model_dump()
            case "PUT", [name]:
                made = models.CreateCollection(**said)
                return self.engine.create_collection(name, vectors_config=made.vectors)
            case "DELETE", [name]:
                return self.engine.delete_collection(name)
            case "PUT", [_, "index"]:
                return {"operation_id": 0, "status": "completed"}
            case "PUT", [name, "points"]:
                self.engine.upsert(name, models.Batch(**said["batch"]))
                return {"operation_id": 0, "status": "completed"}
            case "POST", [name, "points", "count"]:
                return self.engine.count(name).model_dump()
            case "POST", [name, "points", "query"]:
                asked = models.QueryRequest(**said)
                return self.engine.query_points(
                    name,
                    query=asked.query,
                    query_filter=asked.filter,
                    limit=asked.limit,
                    with_payload=False,
                ).model_dump(mode="json")
        raise AssertionError((method, parts))

    def reply(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@dataclass(frozen=True)
class Site:
    root: Path
    """Of the checkout, below which the server has its data."""
    dsn: str
    """Of the PostgreSQL that all tests of this module share."""
    url: str
    engine: QdrantClient

    def config(self, kind, prefix="docent"):
        given = {
            "flat": {},
            "hnsw": {**GRAPH, "precision": "bf16"},
            "pgvector": {"dsn_env": None, "prefix": prefix, "graph": None},
            "pgvector_graph": {"dsn_env": "PG_DSN", "prefix": f"{prefix}_g", "graph": GRAPH},
            "qdrant": {"url": None, "api_key_env": None, "prefix": prefix, "graph": None},
            "qdrant_server": {
                "url": self.url,
                "api_key_env": "QDRANT_KEY",
                "prefix": prefix,
                "graph": GRAPH,
            },
        }[kind]
        return TypeAdapter(vectors.Config).validate_python(
            {"kind": kind.partition("_")[0], **given}
        )

    def collections(self, kind):
        """What lies in the store itself: names and all their vectors."""
        if kind.startswith("pgvector"):
            with psycopg.connect(self.dsn) as connection:
                names = [
                    row[0]
                    for row in connection.execute(
                        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
                    )
                ]
                return {
                    name: [
                        json.loads(row[0])
                        for row in connection.execute(f"SELECT embedding::text FROM {name}")
                    ]
                    for name in names
                }
        if kind == "qdrant_server":
            return {
                one.name: [
                    point.vector
                    for point in self.engine.scroll(one.name, limit=1000, with_vectors=True)[0]
                ]
                for one in self.engine.get_collections().collections
            }
        return {}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # Not in pytest's folder, which only its user may enter, and PostgreSQL does not run as root.
    root = Path(tempfile.mkdtemp(prefix="docent-test-"))
    root.chmod(0o755)
    engine = QdrantClient(":memory:")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (StandIn,), {"engine": engine}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        held = None if shut_out() else postgres.hold(store.cache("postgres"))
        dsn = held.dsn if held else ""
        # For so few rows PostgreSQL would not care for the graph.
        patch.setenv("PG_DSN", f"{dsn} options='-c enable_seqscan=off'")
        patch.setenv("QDRANT_KEY", KEY)
        yield Site(root, dsn, f"http://127.0.0.1:{server.server_port}", engine)
        if held:
            held.release()
        server.shutdown()
        server.server_close()
        assert not servers(root)
    shutil.rmtree(root)


def servers(root):
    """The PostgreSQL processes whose data is below this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "postgres" and process.cwd().startswith(str(root)):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def cluster():
    """A server's folder of its own, and its data."""
    folder = Path(tempfile.mkdtemp(prefix="docent-test-"))
    folder.chmod(0o755)
    postgres.hold(folder).release()
    yield folder
    assert not servers(folder)
    shutil.rmtree(folder)


def shut_out() -> bool:
    """Is this root's checkout in a folder that root alone may enter, as /root is?

    PostgreSQL runs as another user then, and its programs lie in that checkout.
    """
    programs = postgres._programs()
    return os.geteuid() == 0 and any(
        not folder.stat().st_mode & stat.S_IXOTH for folder in (programs, *programs.parents)
    )


needs_postgres = pytest.mark.skipif(
    shut_out(), reason="PostgreSQL does not run as root, and only root may enter this checkout"
)


def run_here(*kinds: str) -> tuple[str, ...]:
    return tuple(kind for kind in kinds if not (shut_out() and kind.startswith("pgvector")))


KINDS = run_here("flat", "hnsw", "pgvector", "pgvector_graph", "qdrant", "qdrant_server")
EXACT = run_here("flat", "pgvector", "qdrant", "qdrant_server")
ON_SERVERS = run_here("pgvector", "pgvector_graph", "qdrant_server")
every_kind = pytest.mark.parametrize("kind", KINDS)
servers_only = pytest.mark.parametrize("kind", ON_SERVERS)
pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")


@contextlib.contextmanager
def opened(cfg, folder, digest=WITH):
    with contextlib.closing(vectors.open(cfg, folder, digest)) as found:
        yield found


@pytest.fixture(scope="module")
def built(site, tmp_path_factory):
    """One folder for each kind of store, and the store filled."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        vectors.build(site.config(kind), ROWS, LABELS, folder, WITH)
    return folders


@pytest.fixture
def shop(site, built, request):
    """A store of the test's kind, open."""
    kind = request.node.callspec.params["kind"]
    with opened(site.config(kind), built[kind]) as found:
        yield found


def run(code, *arguments):
    """Another process, which sees what a user's next command would."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


# --- search --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXACT)
def test_an_exact_store_finds_what_numpy_finds(shop, kind):
    for query in QUERIES:
        found = shop.search(query, 10)
        rows, cosines = expected(query, 10)
        assert [row for row, _ in found] == rows
        assert [cosine for _, cosine in found] == pytest.approx(cosines, abs=2e-6)


@pytest.mark.parametrize("kind", run_here("hnsw", "pgvector_graph"))
def test_a_graph_finds_nearly_all_and_scores_them_truly(shop, kind):
    hits = 0
    for query in QUERIES:
        found = shop.search(query, 10)
        cosines = [float(ROWS[row] @ query) for row, _ in found]
        assert [cosine for _, cosine in found] == pytest.approx(cosines, abs=2e-6)
        assert cosines == sorted(cosines, reverse=True)
        hits += len({row for row, _ in found} & set(expected(query, 10)[0]))
    assert hits >= 0.97 * 10 * len(QUERIES)


@needs_postgres
def test_postgresql_walks_its_graph_and_scans_for_a_filter(site, tmp_path):
    def walks():
        with psycopg.connect(site.dsn) as connection:
            walked = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s"
            name = f"walked_g_{WITH[:16]}_embedding_idx"
            return connection.execute(walked, [name]).fetchone()[0]

    cfg = site.config("pgvector_graph", "walked")
    vectors.build(cfg, ROWS, LABELS, tmp_path, WITH)
    for sources, counted in ((None, 1), (["wiki"], 1), (None, 2)):
        with opened(cfg, tmp_path) as found:
            found.search(QUERIES[0], 5, sources)
        assert walks() == counted


@every_kind
def test_only_rows_of_the_asked_sources_are_found(shop, kind):
    for sources in (["wiki"], {"wiki", "guide", "unheard of"}):
        for query in QUERIES[:5]:
            found = shop.search(query, 12, sources)
            assert [row for row, _ in found] == expected(query, 12, sources)[0]


@every_kind
def test_nothing_is_found_in_no_source_and_in_no_place(shop, kind):
    assert shop.search(QUERIES[0], 5, ["unheard of"]) == []
    assert shop.search(QUERIES[0], 5, []) == []
    assert shop.search(QUERIES[0], 0) == []


@every_kind
def test_equal_rows_come_in_their_order(shop, kind):
    (first, one), (second, same) = shop.search(ROWS[17], 2)
    assert (first, second) == (17, 311)
    assert one == same == pytest.approx(1, abs=2e-6)


@every_kind
def test_asking_for_more_than_there_is_gives_every_row(shop, kind):
    found = shop.search(QUERIES[0], 1500)
    assert sorted(row for row, _ in found) == list(range(len(ROWS)))


@every_kind
def test_many_threads_find_what_one_finds(shop, kind):
    asked = list(QUERIES)
    alone = [shop.search(query, 10) for query in asked]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda query: shop.search(query, 10), asked)) == alone


@every_kind
def test_a_query_of_another_model_is_an_error(shop, kind):
    with pytest.raises(PipelineError, match=rf"of 3 dimensions for an index of {DIM}.*dvc repro"):
        shop.search(unit(np.ones(3)), 5)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(-3, 3)] * 3).filter(any), min_size=1, max_size=40),
    k=st.integers(0, 45),
    sources=st.none() | st.sets(st.sampled_from(["even", "odd", "none"])),
)
def test_the_flat_store_is_numpy_for_any_vectors_and_ties(rows, k, sources):
    array = unit(np.array(rows, float))
    labels = [("even", "odd")[row % 2] for row in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        cfg = vectors.Flat(kind="flat")
        vectors.build(cfg, array, labels, Path(folder), WITH)
        with opened(cfg, Path(folder)) as found:
            hits = found.search(array[0], k, sources)
    assert [row for row, _ in hits] == expected(array[0], k, sources, array, labels)[0]


# --- removal -------------------------------------------------------------------------------------

ASK = """
    import json, sys, numpy as np
    from pathlib import Path
    from pydantic import TypeAdapter
    from stages.answer import vectors
    found = {}
    for kind, (given, folder, digest) in json.loads(sys.argv[1]).items():
        cfg = TypeAdapter(vectors.Config).validate_python(given)
        store = vectors.open(cfg, Path(folder), digest)
        found[kind] = store.search(np.array(json.loads(sys.argv[2]), np.float32), 5)
        store.close()
    print(json.dumps(found))
"""


def remove(kind, site, folder, prefix):
    """Build with the document and again without it."""
    cfg = site.config(kind, prefix)
    vectors.build(cfg, ROWS, LABELS, folder, WITH)
    left = [row for row in range(len(ROWS)) if row != GONE]
    vectors.build(cfg, ROWS[left], [LABELS[row] for row in left], folder, WITHOUT)
    return cfg


def asked_anew(site, stores):
    """What a process that starts now finds in each store for the removed vector itself."""
    given = {
        kind: (cfg.model_dump(), str(folder), WITHOUT) for kind, (cfg, folder) in stores.items()
    }
    done = run(ASK, json.dumps(given), json.dumps(ROWS[GONE].tolist()))
    return json.loads(done.stdout)


def check_gone(kind, site, folder, prefix, found):
    assert all(cosine < 0.99 for _, cosine in found), "it is still found"
    name = getattr(site.config(kind, prefix), "prefix", "") + "_"
    mine = {
        one: rows
        for one, rows in site.collections(kind).items()
        if one.startswith(name) and len(one) == len(name) + 16
    }
    if kind in ON_SERVERS:
        assert [name.endswith("_" + WITHOUT[:16]) for name in mine] == [True], mine.keys()
    for name, rows in mine.items():
        assert np.max(np.array(rows) @ ROWS[GONE]) < 0.99, f"it still lies in {name}"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["vectors.json", "vectors.npy"]
        + (["graph.json", "graph.usearch"] if kind == "hnsw" else [])
    )
    assert np.max(np.load(folder / "vectors.npy") @ ROWS[GONE]) < 0.99
    if kind == "hnsw":
        # The file begins with the number of vectors, the bytes of each, and the vectors in bf16,
        # the upper half of f32.
        content = (folder / "graph.usearch").read_bytes()
        halves = np.frombuffer(content, np.uint16, 399 * DIM, offset=8).reshape(399, DIM)
        rows = (halves.astype(np.uint32) << 16).view(np.float32)
        assert np.max(rows @ ROWS[GONE + 1]) > 0.99
        assert np.max(rows @ ROWS[GONE]) < 0.99


@pytest.fixture(scope="module")
def removed(site, tmp_path_factory):
    folders = {kind: tmp_path_factory.mktemp(f"removed_{kind}") for kind in KINDS}
    stores = {kind: (remove(kind, site, folders[kind], "gone"), folders[kind]) for kind in KINDS}
    return folders, asked_anew(site, stores)


@every_kind
def test_a_removed_document_is_in_no_store(site, removed, kind):
    folders, found = removed
    check_gone(kind, site, folders[kind], "gone", found[kind])


@needs_postgres
def test_a_store_that_keeps_old_collections_fails_the_removal_suite(site, monkeypatch, tmp_path):
    monkeypatch.setattr("stages.answer.vectors.pgvector.others", lambda *_: [])
    monkeypatch.setattr("stages.answer.vectors.qdrant.others", lambda *_: [])
    for kind in ("pgvector", "qdrant_server"):
        folder = tmp_path / kind
        cfg = remove(kind, site, folder, "kept")
        with opened(cfg, folder, WITHOUT) as found:
            hits = found.search(ROWS[GONE], 5)
        with pytest.raises(AssertionError):
            check_gone(kind, site, folder, "kept", hits)


@needs_postgres
def test_a_store_whose_name_lacks_the_digest_fails_the_removal_suite(site, monkeypatch, tmp_path):
    monkeypatch.setattr(saved.Saved, "name", lambda _, prefix: f"{prefix}_{'0' * 16}")
    cfg = remove("pgvector", site, tmp_path, "stale")
    with opened(cfg, tmp_path, WITHOUT) as found:
        hits = found.search(ROWS[GONE], 5)
    with pytest.raises(AssertionError, match="still found"):
        check_gone("pgvector", site, tmp_path, "stale", hits)


@every_kind
def test_another_index_is_not_read(site, removed, kind):
    folders, _ = removed
    with pytest.raises(PipelineError, match=r"vectors.json: digest: 'b2b2.*expected 'a1a1.*repro"):
        vectors.open(site.config(kind, "gone"), folders[kind], WITH)


@servers_only
def test_a_store_that_lacks_the_index_is_filled_from_the_folder(site, tmp_path, kind):
    cfg = site.config(kind, "refill")
    vectors.build(cfg, ROWS, LABELS, tmp_path / "old", WITH)
    vectors.build(cfg, ROWS[:50], LABELS[:50], tmp_path / "new", OTHER)  # takes the old one's place
    with opened(cfg, tmp_path / "old") as found:
        assert found.search(ROWS[399], 1)[0][0] == 399


@servers_only
def test_a_store_whose_place_was_taken_while_open_is_an_error(site, tmp_path, kind):
    cfg = site.config(kind, "taken")
    vectors.build(cfg, ROWS, LABELS, tmp_path / "old", WITH)
    with opened(cfg, tmp_path / "old") as found:
        vectors.build(cfg, ROWS[:50], LABELS[:50], tmp_path / "new", OTHER)
        with pytest.raises(PipelineError, match=r"a1a1a1a1.* is gone, another index"):
            found.search(QUERIES[0], 3)


def test_a_graph_of_another_index_is_not_read(tmp_path, site):
    cfg = site.config("hnsw")
    vectors.build(cfg, ROWS, LABELS, tmp_path / "a", WITH)
    vectors.build(cfg, ROWS[::-1].copy(), LABELS, tmp_path / "b", OTHER)
    for name in (saved.GRAPH, saved.ABOUT_GRAPH):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(PipelineError, match=r"graph\.usearch: not the file that was written"):
        vectors.open(cfg, tmp_path / "a", WITH)


def test_a_folder_that_changes_its_store_keeps_no_graph(tmp_path, site):
    vectors.build(site.config("hnsw"), ROWS, LABELS, tmp_path, WITH)
    vectors.build(site.config("flat"), ROWS[:9], LABELS[:9], tmp_path, WITHOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors.json", "vectors.npy"]


# --- kill -9 -------------------------------------------------------------------------------------

KILLED = """
    import json, os, signal, sys, psycopg, numpy as np
    from pathlib import Path
    from pydantic import TypeAdapter
    from stages.answer import vectors
    from stages.answer.vectors import postgres, qdrant, saved

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def dies(at, name, after):
        original, calls = getattr(at, name), []
        def counted(*given, **named):
            calls.append(1)
            return die() if len(calls) > after else original(*given, **named)
        setattr(at, name, counted)

    def work(kind, given, folder):
        cfg = TypeAdapter(vectors.Config).validate_python(given)
        if kind == "flat":
            dies(saved, "finish", 0)
            rows = np.eye(24, dtype=np.float32)
            vectors.build(cfg, rows, ["x"] * 24, Path(folder), "c3" * 32)
        elif kind == "qdrant_server":
            qdrant.NUMBERS_PER_REQUEST = 24 * 100
            dies(qdrant.QdrantClient, "upsert", 2)
            vectors.open(cfg, Path(folder), "a1" * 32)
        else:
            dies(psycopg.Copy, "write", 300)
            vectors.open(cfg, Path(folder), "a1" * 32)

    jobs, cluster = json.loads(sys.argv[1]), Path(sys.argv[2])
    tasks = [lambda job=job: work(*job) for job in jobs]
    tasks.append(lambda: (postgres.hold(cluster), die()))
    ended = []
    for task in tasks:
        child = os.fork()
        if not child:
            task()
        ended.append(os.waitpid(child, 0)[1])
    left = (cluster / "data" / "postmaster.pid").read_text().split()[0]
    held = postgres.hold(cluster)
    same = (cluster / "data" / "postmaster.pid").read_text().split()[0] == left
    print(json.dumps([ended, same]))
"""


@pytest.fixture(scope="module")
def killed(site, cluster, tmp_path_factory):
    """Stores that a process was filling when it got a kill -9, and what is left in them."""
    folders = {k: tmp_path_factory.mktemp(f"half_{k}") for k in (*HALF, "flat")}
    for kind, folder in folders.items():
        vectors.build(site.config(kind, "half"), ROWS, LABELS, folder, WITH)
    for kind in HALF:  # which takes the place in the store
        folder = tmp_path_factory.mktemp("other")
        vectors.build(site.config(kind, "half"), ROWS[:50], LABELS[:50], folder, OTHER)
    jobs = [
        (kind, site.config(kind, "half").model_dump(), str(folder))
        for kind, folder in folders.items()
    ]
    ended, same = json.loads(run(KILLED, json.dumps(jobs), cluster).stdout)
    assert ended == [signal.SIGKILL] * 4
    left = {kind: half_filled(site, kind) for kind in HALF}
    return folders, left, (same, servers(cluster))


HALF = ("pgvector_graph", "qdrant_server")


def half_filled(site, kind):
    return sorted(len(rows) for name, rows in site.collections(kind).items() if "half" in name)


@needs_postgres
@pytest.mark.parametrize("kind", HALF)
def test_a_half_filled_collection_is_never_read(site, killed, kind):
    folders, left, _ = killed
    # Of two requests by Qdrant, of a transaction that was undone by PostgreSQL.
    assert left[kind] == ([50, 200] if kind == "qdrant_server" else [50])
    with opened(site.config(kind, "half"), folders[kind]) as found:
        for query in QUERIES[:5]:
            assert [row for row, _ in found.search(query, 5)] == expected(query, 5)[0]
    assert half_filled(site, kind) == [len(ROWS)]


@needs_postgres
def test_files_of_a_killed_build_are_never_read(site, killed):
    folders, _, _ = killed
    for digest in (WITH, OTHER):
        with pytest.raises(PipelineError, match=r"vectors.json: no such file; `dvc repro`"):
            vectors.open(site.config("flat"), folders["flat"], digest)


@needs_postgres
def test_the_next_user_takes_over_the_server_of_a_killed_one_and_stops_it(killed):
    _, _, (same, left) = killed
    assert same
    assert not left  # though that one ended without a word


# --- errors --------------------------------------------------------------------------------------


def test_a_damaged_graph_is_an_error(site, tmp_path):
    cfg = site.config("hnsw")
    vectors.build(cfg, ROWS, LABELS, tmp_path, WITH)
    path = tmp_path / saved.GRAPH
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(PipelineError, match=r"graph.usearch: not the file.*dvc repro"):
            vectors.open(cfg, tmp_path, WITH)
    path.unlink()
    with pytest.raises(PipelineError, match=r"graph.usearch: no such file.*dvc repro"):
        vectors.open(cfg, tmp_path, WITH)


def test_damaged_vectors_are_an_error(site, tmp_path):
    cfg = site.config("flat")
    vectors.build(cfg, ROWS, LABELS, tmp_path, WITH)
    path = tmp_path / saved.VECTORS
    content = path.read_bytes()
    for damaged, said in (
        (content[:-5], "not an array"),
        (b"PK\3\4", "not an array"),
        (b"", "not an array"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(PipelineError, match=rf"vectors.npy: {said}"):
            vectors.open(cfg, tmp_path, WITH)
    for wrong in (ROWS[:, :5], ROWS.astype(np.float64)):
        np.save(path, wrong)
        with pytest.raises(PipelineError, match=r"expected float32 \(400, 24\)"):
            vectors.open(cfg, tmp_path, WITH)
    path.unlink()
    with pytest.raises(PipelineError, match=r"vectors\.npy: no such file"):
        vectors.open(cfg, tmp_path, WITH)


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@needs_postgres
def test_a_dsn_is_never_part_of_an_error(site, built, monkeypatch):
    secret = "hunter2"
    for dsn, said in (
        (f"postgresql://me:{secret}@127.0.0.1:{closed_port()}/docs", "no connection"),
        (f"postgres//me:{secret}@host", "not a DSN"),
        (f"host=127.0.0.1 pasword={secret}", "not a DSN"),
        (f"{site.dsn} password={secret} dbname=nowhere", 'database "nowhere" does not exist'),
        ("", "not set"),
    ):
        monkeypatch.setenv("PG_DSN", dsn)
        with pytest.raises(PipelineError, match=said) as told:
            vectors.open(site.config("pgvector_graph"), built["pgvector_graph"], WITH)
        assert "PG_DSN" in str(told.value) and "\n" not in str(told.value)
        assert secret not in "".join(traceback.format_exception(told.value))


@needs_postgres
def test_a_database_without_pgvector_is_an_error(site, built, monkeypatch):
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN")
        connection.execute("CREATE DATABASE bare OWNER plain")
    monkeypatch.setenv("PG_DSN", f"{site.dsn} dbname=bare user=plain")
    with pytest.raises(PipelineError, match=r"PG_DSN: permission denied.*CREATE EXTENSION vector"):
        vectors.open(site.config("pgvector_graph"), built["pgvector_graph"], WITH)


@needs_postgres
def test_a_search_outlives_a_restart_of_the_database(site, built):
    cfg = site.config("pgvector_graph")
    with opened(cfg, built["pgvector_graph"]) as found:
        before = found.search(QUERIES[0], 5)
        with psycopg.connect(site.dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        assert found.search(QUERIES[0], 5) == before


def test_a_qdrant_that_is_down_or_refuses_is_an_error(site, built, monkeypatch):
    cfg = site.config("qdrant_server")
    down = cfg.model_copy(update={"url": f"http://127.0.0.1:{closed_port()}"})
    with pytest.raises(PipelineError, match=r"http://127.0.0.1:\d+: no answer of Qdrant's: "):
        vectors.open(down, built["qdrant_server"], WITH)
    monkeypatch.setenv("QDRANT_KEY", "hunter2")
    with pytest.raises(PipelineError, match=r"401.*index.store.api_key_env: 'QDRANT_KEY'") as told:
        vectors.open(cfg, built["qdrant_server"], WITH)
    assert "hunter2" not in str(told.value)
    monkeypatch.delenv("QDRANT_KEY")
    with pytest.raises(PipelineError, match=r"'QDRANT_KEY': expected an environment variable"):
        vectors.open(cfg, built["qdrant_server"], WITH)


def test_a_prefix_is_a_plain_name():
    given = {"kind": "pgvector", "dsn_env": None, "prefix": 'x"; --', "graph": None}
    with pytest.raises(PipelineError, match=r"store.prefix: 'x\"; --'"):
        config.load({"store": given}, "store", vectors.Config)


# --- the PostgreSQL in a wheel -------------------------------------------------------------------


@needs_postgres
def test_the_server_stops_after_its_last_user_and_listens_on_no_port(cluster):
    first, second = postgres.hold(cluster), postgres.hold(cluster)
    assert first.dsn == second.dsn
    server = psutil.Process(int((cluster / "data" / "postmaster.pid").read_text().split()[0]))
    assert server.net_connections("unix")
    assert not server.net_connections("inet")
    place = Path((cluster / "socket").read_text())
    assert place.stat().st_mode & 0o77 == 0  # others of this machine stay out
    first.release()
    with psycopg.connect(second.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    second.release()
    assert not servers(cluster)
    assert not place.exists()


@needs_postgres
def test_a_killed_server_starts_again(cluster):
    held = postgres.hold(cluster)
    with psycopg.connect(held.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS number")
    first = int((cluster / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(first, signal.SIGKILL)
    again = postgres.hold(cluster)
    with psycopg.connect(again.dsn) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
    held.release()
    again.release()
    assert not servers(cluster)


@needs_postgres
def test_what_a_crash_left_stops_no_start(cluster):
    # The pid is that of another process by now, as after a restart of a container.
    (cluster / "data" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{cluster}/data\n1\n5432\n/tmp\n\n0 0\nready\n"
    )
    (cluster / ".data.halfmade").mkdir()
    held = postgres.hold(cluster)
    assert not (cluster / ".data.halfmade").exists()
    with psycopg.connect(held.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    held.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL takes another user only from root")
def test_a_folder_that_the_servers_user_cannot_enter_is_an_error(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(PipelineError, match=r"server.*nobody|nobody.*must own|failed") as told:
        postgres.hold(tmp_path / "postgres")
    assert "\n" not in str(told.value)


# --- long ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@needs_postgres
def test_the_server_runs_for_an_ordinary_user_too(site):
    root = Path(tempfile.mkdtemp(prefix="docent-test-"))
    shutil.chown(root, "nobody")
    code = """
        import os, pwd, sys
        from pathlib import Path
        from stages.answer.vectors import postgres
        user = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        held = postgres.hold(Path(sys.argv[1]))
        print("held")
    """
    assert run(code, root / "postgres").stdout == "held\n"
    assert not servers(root)
    shutil.rmtree(root)


@pytest.mark.slow
@needs_postgres
def test_a_postgresql_that_has_no_pgvector_is_an_error(monkeypatch, tmp_path):
    root = Path(tempfile.mkdtemp(prefix="docent-test-"))
    root.chmod(0o755)
    package = postgres._programs().parents[1]
    for name in ("pgserver", "pgserver.libs"):
        shutil.copytree(
            package.with_name(name), root / name, ignore=shutil.ignore_patterns("vector*")
        )
    monkeypatch.setattr(postgres, "_programs", lambda: root / "pgserver" / "pginstall" / "bin")
    monkeypatch.setenv("DVC_ROOT", str(root))
    cfg = vectors.Pgvector(kind="pgvector", dsn_env=None, prefix="docent", graph=None)
    with pytest.raises(PipelineError, match=r'extension "vector" is not available'):
        vectors.build(cfg, ROWS, LABELS, tmp_path, WITH)
    assert not servers(root)
    shutil.rmtree(root)


@pytest.mark.slow
@needs_postgres
def test_no_kill_at_any_moment_leaves_a_half_filled_store(site, tmp_path):
    rows = unit(RANDOM.standard_normal((4000, DIM)))
    labels = ["x"] * len(rows)
    cfg = site.config("pgvector_graph", "storm")
    vectors.build(cfg, rows, labels, tmp_path, WITH)
    code = ASK.replace("store = vectors", "print('begun', flush=True); store = vectors")
    given = json.dumps({"pgvector": (cfg.model_dump(), str(tmp_path), WITH)})
    for moment in range(12):
        with psycopg.connect(site.dsn, autocommit=True) as connection:
            connection.execute(f"DROP TABLE IF EXISTS storm_g_{WITH[:16]}")
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), given, json.dumps(rows[9].tolist())],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        with process:
            process.stdout.readline()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.15 * moment)
            process.kill()
        stored = site.collections("pgvector").get(f"storm_g_{WITH[:16]}")
        assert stored is None or len(stored) == len(rows)
        with opened(cfg, tmp_path) as found:
            assert isinstance(found, Table)
            assert found.search(rows[9], 1)[0][0] == 9


@pytest.mark.slow
def test_equal_vectors_give_equal_graphs_in_any_process(site, tmp_path):
    code = """
        import hashlib, sys, numpy as np
        from pathlib import Path
        from stages.answer import vectors
        rows = np.random.default_rng(3).standard_normal((3000, 48)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        cfg = vectors.Hnsw(kind="hnsw", precision=sys.argv[2], connectivity=16,
                           expansion_add=100, expansion_search=100)
        vectors.build(cfg, rows, ["x"] * len(rows), Path(sys.argv[1]), "ab" * 32)
        print(hashlib.sha256((Path(sys.argv[1]) / "graph.usearch").read_bytes()).hexdigest())
    """
    for precision in ("f32", "f16", "bf16"):
        made = {run(code, tmp_path / str(turn), precision).stdout for turn in range(3)}
        assert len(made) == 1
