"""Latency, recall, memory and disk of every vector store, at 10,000 and 100,000 sentences.

The sentences are real and distinct: the prose of Debian's python3-doc (`apt-get install
python3-doc`), then docstrings of the standard library and of the packages installed here, file by
file in the order of their paths' hashes, until there are enough. `embedder=minilm` makes their
vectors, which are kept in .cache/. Another thousand sentences are the queries.

Each store is built and opened with the settings of conf/index/store, and asked for ten rows, one
query at a time on one thread, in a process of its own; Qdrant in the client's own engine, since no
server is at hand, and pgvector with and without an HNSW index. The peers are `numpy`, one product
and one partition of the rows in memory, and hnswlib and faiss, where they are installed, with the
graph's settings of `hnsw` and f32 vectors. Memory is what the process (and PostgreSQL's) holds more
than before the store was opened, shared pages counted in part and mapped files where they were
touched. Disk is all that the store needs to open.

`--quick` measures 10,000 sentences of python3-doc, with fewer queries; `--only` some stores.
`--kept FILE` takes vectors from a .npy file instead of embedding, for 30 minutes less.
"""

import argparse
import ast
import contextlib
import ctypes
import gc
import hashlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from selectolax.lexbor import LexborHTMLParser

from benchmarks import machine
from stages.answer import embedding, vectors
from stages.answer.vectors import saved
from stages.core import config, store
from stages.core.errors import PipelineError

DOCS = Path("/usr/share/doc/python3-doc/html")
QUERIES = 1_000
K = 10
DIGEST = "0" * 64
RECALL_TARGET, LATENCY_TARGET_MS = 0.97, 0.25
OWN = ("flat", "hnsw", "pgvector", "pgvector_graph", "qdrant")
PEERS = ("numpy", "hnswlib", "faiss")
SLOW = ("numpy", "flat", "pgvector", "qdrant")
"""Compare a query with every row, up to a fifth of a second for each at 100,000."""
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")

Search = Callable[[np.ndarray], list[int]]


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="10,000 sentences and fewer queries")
    reader.add_argument("--kept", type=Path, help="vectors that were made before (.npy)")
    reader.add_argument(
        "--only", nargs="+", choices=(*PEERS, *OWN), default=(*PEERS, *OWN), metavar="STORE"
    )
    reader.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = reader.parse_args()
    if given.measure:
        name, file, rows, queries = given.measure
        print(json.dumps(measure(name, np.load(file), int(rows), int(queries))))
        return 0
    if not DOCS.exists():
        print(f"{DOCS} is missing: apt-get install python3-doc", file=sys.stderr)
        return 1
    try:
        return compare(given.quick, given.kept, given.only)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1


def compare(quick: bool, kept: Path | None, only: Collection[str]) -> int:
    print(machine.describe("numpy", "usearch", "pgserver", "psycopg", "qdrant-client"), flush=True)
    sizes = (10_000,) if quick else (10_000, 100_000)
    file = kept or embedded(sizes[-1] + QUERIES)
    found: dict[str, Any] = {}
    for rows in sizes:
        print(
            f"\n{rows:,} sentences   build s   open s    p50 ms    p95 ms  cpu p50 ms  recall@10  "
            "memory MB  disk MB"
        )
        for name in only:
            if name in ("hnswlib", "faiss") and importlib.util.find_spec(name) is None:
                print(f"{name:<16} not installed")
                continue
            queries = 100 if quick or name in SLOW else QUERIES
            said = found[name] = measured(name, file, rows, queries)
            print(
                f"{name:<16}{said['build_s']:10.2f}{said['open_s']:9.2f}{said['p50_ms']:10.3f}"
                f"{said['p95_ms']:10.3f}{said['cpu_ms']:12.3f}{said['recall']:11.4f}"
                f"{said['memory_mb']:11.0f}{said['disk_mb']:9.0f}",
                flush=True,
            )
    reached = []
    if "hnsw" in only:
        near = found["hnsw"]
        reached += [
            figure("stores_hnsw_recall", near["recall"], RECALL_TARGET, at_least=True),
            figure("stores_hnsw_ms", near["p50_ms"], LATENCY_TARGET_MS, at_least=False),
        ]
    reached += [
        figure(f"stores_{name}_recall", found[name]["recall"], 1.0, at_least=True)
        for name in ("flat", "pgvector", "qdrant")
        if name in only
    ]
    return 0 if all(reached) else 1


def figure(name: str, value: float, target: float, at_least: bool) -> bool:
    print(f"figure {name} {value:.4g} target {target:.4g}")
    return value >= target if at_least else value <= target


# --- sentences -----------------------------------------------------------------------------------


def embedded(count: int) -> Path:
    """The file with the vectors of so many sentences, made once."""
    texts = sentences(count)
    cfg = config.load(
        {"embedder": yaml.safe_load(Path("conf/embedder/minilm.yaml").read_text())},
        "embedder",
        embedding.Config,
    )
    with embedding.open(cfg) as embedder:
        assert embedder
        said = [embedder.identity, *texts]
        name = hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
        path = store.cache("benchmarks", f"sentences-{name}.npy")
        if not path.exists():
            began = time.monotonic()
            rows = embedder.texts(texts)
            print(f"embedded {len(texts):,} sentences in {time.monotonic() - began:.0f} s")
            with store.replacing(path) as file:
                np.save(file, rows)
    return path


def sentences(count: int) -> list[str]:
    """Distinct, and in the order of their hashes."""
    found: dict[str, None] = {}
    where: dict[str, int] = {}
    for name, texts in (("python3-doc", prose()), ("docstrings", docstrings())):
        before = len(found)
        for text in texts:
            found |= dict.fromkeys(split(text))
            if len(found) >= count and name != "python3-doc":
                break
        where[name] = len(found) - before
        if len(found) >= count:
            break
    print(f"sentences of {', '.join(f'{name}: {number:,}' for name, number in where.items())}")
    assert len(found) >= count
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())[:count]


def split(text: str) -> Iterator[str]:
    """Its sentences of five to sixty words, mostly letters."""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`\"'(])", " ".join(text.split())):
        letters = sum(map(str.isalpha, sentence))
        if 5 <= len(sentence.split()) <= 60 and letters > 0.6 * len(sentence):
            yield sentence


def prose() -> Iterator[str]:
    for path in sorted(DOCS.rglob("*.html")):
        for node in LexborHTMLParser(path.read_text(encoding="utf-8")).css("p, dt, li"):
            if node.tag == "p" or not node.css_first("p, li"):
                yield node.text().replace("¶", "")


def docstrings() -> Iterator[str]:
    """Of the standard library and what is installed beside it, by paragraph."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    files = {
        str(path.relative_to(root)): path for root in reversed(roots) for path in root.rglob("*.py")
    }
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(files[name].read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):
            continue  # a test's bad file
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from re.split(r"\n\s*\n", ast.get_docstring(node) or "")


# --- one store -----------------------------------------------------------------------------------


def measured(name: str, file: Path, rows: int, queries: int) -> dict[str, float]:
    """What a process of its own measures, in a checkout of its own."""
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)  # PostgreSQL does not run as root, and must get in
        done = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-m", "benchmarks.stores", "--measure"),
                *(name, str(file), str(rows), str(queries)),
            ],
            env={**os.environ, **ONE_THREAD, "DVC_ROOT": root},
            stdout=subprocess.PIPE,
            check=True,
        )
    said: dict[str, float] = json.loads(done.stdout)
    return said


def measure(name: str, every: np.ndarray, rows: int, queries: int) -> dict[str, float]:
    table, asked = every[:rows].copy(), every[-queries:].copy()
    del every
    cosines = [table @ query for query in asked]
    # A row as near as the tenth is right, too: no store can tell them apart.
    truth = [set(np.flatnonzero(row >= np.sort(row)[-K] - 1e-6).tolist()) for row in cosines]
    del cosines
    folder = store.cache("stores", "index")
    began = time.monotonic()
    opening = peer(name, table, folder) if name in PEERS else own(name, table, folder)
    build_s = time.monotonic() - began
    del table
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building took must not be there to be taken again
    before = memory()
    began = time.monotonic()
    with opening() as (search, disk):
        open_s = time.monotonic() - began
        for query in asked[: max(20, queries // 10)]:
            search(query)
        walls, cpus, hits = [], [], 0
        for _ in range(1 if name in SLOW else 3):
            for query, best in zip(asked, truth, strict=True):
                wall, cpu = time.perf_counter(), time.process_time()
                found = search(query)
                cpus.append(time.process_time() - cpu)
                walls.append(time.perf_counter() - wall)
                hits += len(best & set(found))
        held = memory() - before
        return {
            "build_s": build_s,
            "open_s": open_s,
            "p50_ms": statistics.median(walls) * 1e3,
            "p95_ms": float(np.percentile(walls, 95)) * 1e3,
            "cpu_ms": statistics.median(cpus) * 1e3,
            "recall": hits / len(walls) / K,
            "memory_mb": held / 1e6,
            "disk_mb": disk() / 1e6,
        }


def memory() -> float:
    """Proportional set of this process and of the PostgreSQL below its folder, in bytes."""
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.name() == "postgres" and str(store.root()) in process.cwd()
            if ours or process.pid == os.getpid():
                total += process.memory_full_info().pss
    return total


def files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


Opening = Callable[[], contextlib.AbstractContextManager[tuple[Search, Callable[[], int]]]]


def settings(name: str) -> vectors.Config:
    """Those of conf/; pgvector with both kinds of index, and Qdrant in the client's own engine."""
    conf = Path("conf/index/store")
    said = yaml.safe_load((conf / f"{name.partition('_')[0]}.yaml").read_text())
    graph = yaml.safe_load((conf / "hnsw.yaml").read_text())
    if name == "pgvector_graph":
        keys = ("connectivity", "expansion_add", "expansion_search")
        said["graph"] = {key: graph[key] for key in keys}
    elif name == "pgvector":
        said["graph"] = None
    elif name == "qdrant":
        said["url"] = None
    cfg: vectors.Config = config.load({"store": said}, "store", vectors.Config)
    return cfg


def own(name: str, table: np.ndarray, folder: Path) -> Opening:
    cfg = settings(name)
    vectors.build(cfg, table, ["python"] * len(table), folder, DIGEST)

    @contextlib.contextmanager
    def opening() -> Iterator[tuple[Search, Callable[[], int]]]:
        with contextlib.closing(vectors.open(cfg, folder, DIGEST)) as opened:

            def search(query: np.ndarray) -> list[int]:
                return [row for row, _ in opened.search(query, K)]

            def disk() -> int:
                return files(folder) + files(store.cache("postgres"))

            yield search, disk

    return opening


def peer(name: str, table: np.ndarray, folder: Path) -> Opening:
    graph = yaml.safe_load(Path("conf/index/store/hnsw.yaml").read_text())
    folder.mkdir(parents=True)
    path = folder / saved.VECTORS
    if name == "numpy":
        np.save(path, table)
    elif name == "hnswlib":
        import hnswlib

        made = hnswlib.Index(space="ip", dim=table.shape[1])
        made.init_index(len(table), M=graph["connectivity"], ef_construction=graph["expansion_add"])
        made.add_items(table, num_threads=1)
        made.save_index(str(path))
    else:
        import faiss

        faiss.omp_set_num_threads(1)
        made = faiss.IndexHNSWFlat(
            table.shape[1], graph["connectivity"], faiss.METRIC_INNER_PRODUCT
        )
        made.hnsw.efConstruction = graph["expansion_add"]
        made.add(table)
        faiss.write_index(made, str(path))
    dim = table.shape[1]

    @contextlib.contextmanager
    def opening() -> Iterator[tuple[Search, Callable[[], int]]]:
        search: Search
        if name == "numpy":
            held = np.load(path)

            def search(query: np.ndarray) -> list[int]:
                scores = held @ query
                best = np.argpartition(-scores, K)[:K]
                return [int(row) for row in best[np.argsort(-scores[best])]]

        elif name == "hnswlib":
            index = hnswlib.Index(space="ip", dim=dim)
            index.load_index(str(path))
            index.set_ef(graph["expansion_search"])
            index.set_num_threads(1)

            def search(query: np.ndarray) -> list[int]:
                return [int(row) for row in index.knn_query(query, k=K)[0][0]]

        else:
            index = faiss.read_index(str(path))
            index.hnsw.efSearch = graph["expansion_search"]

            def search(query: np.ndarray) -> list[int]:
                return [int(row) for row in index.search(query[None], K)[1][0]]

        yield search, lambda: files(folder)

    return opening


if __name__ == "__main__":
    sys.exit(main())
