"""A sentence-transformers model as an OpenVINO graph, which runs in this process without torch.

convert.py makes the graph in the model environment, once for each content of the model's folder.
"""

import functools
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
from tokenizers import Tokenizer

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import identify

Precision = Literal["auto", "f32", "bf16"]
Task = Literal["embedding", "reranking"]

CONVERT = Path(__file__).with_name("convert.py")
BATCH = 8
"""Rows of every request. All have this many, and a length that is a multiple of STEP: a row's
vector is then equal to the bit whatever stands beside it."""
STEP = 16
STREAMS = os.cpu_count() or 1
"""Requests at once, each on one core: faster than one request on all of them."""


class Graph:
    """A converted model. Safe for many threads; loads when it is first used."""

    def __init__(self, folder: Path, python: str, precision: Precision, task: Task) -> None:
        self.place = converted(folder, python, task)
        self.about = store.read_json(self.place / "about.json")
        self.precision = supported() if precision == "auto" else precision
        self.identity = identify(self.about, self.precision, BATCH, STEP)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.place / "tokenizer.json"))
        # Either may be stored in tokenizer.json.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @functools.cached_property
    def _compiled(self) -> Any:
        return core().compile_model(
            self.place / "model.xml",
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "NUM_STREAMS": STREAMS,
                "INFERENCE_NUM_THREADS": STREAMS,
            },
        )

    def run(self, rows: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
        """What the graph makes of each row: (row, width), float32.

        A row holds the graph's inputs without the mask, token by token: ids, and where the graph
        wants them token types.
        """
        from openvino import AsyncInferQueue  # type: ignore[import-untyped]

        out: list[np.ndarray | None] = [None] * len(rows)

        def keep(request: Any, places: list[int]) -> None:
            found = request.get_output_tensor(0).data
            for row, place in enumerate(places):
                out[place] = found[row].copy()

        queue = AsyncInferQueue(self._compiled, STREAMS)
        queue.set_callback(keep)
        by_length: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            by_length.setdefault(-(-len(row[0]) // STEP) * STEP, []).append(place)
        for length, places in sorted(by_length.items()):
            for start in range(0, len(places), BATCH):
                some = places[start : start + BATCH]
                queue.start_async(_padded([rows[place] for place in some], length), some)
        queue.wait_all()
        return np.stack([row for row in out if row is not None])


def _padded(rows: Sequence[Sequence[Sequence[int]]], length: int) -> list[np.ndarray]:
    """The inputs, each (BATCH, length), and the mask second; a row that is not there reads one
    token, since the mean of none is no number."""
    inputs = [np.zeros((BATCH, length), np.int64) for _ in rows[0]]
    mask = np.zeros((BATCH, length), np.int64)
    mask[:, 0] = 1
    for number, row in enumerate(rows):
        mask[number, : len(row[0])] = 1
        for array, values in zip(inputs, row, strict=True):
            array[number, : len(values)] = values
    return [inputs[0], mask, *inputs[1:]]


class Model:
    """Vectors of texts. A text longer than the model reads is the mean of its parts."""

    at_once = 64

    def __init__(self, folder: Path, python: str, precision: Precision) -> None:
        self._graph = Graph(folder, python, precision, "embedding")
        self.identity = self._graph.identity

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        tokenizer = self._graph.tokenizer
        room = self._graph.about["max_tokens"] - tokenizer.num_special_tokens_to_add(False)
        around = _specials(tokenizer)
        parts: list[list[list[int]]] = []
        of: list[tuple[int, int]] = []  # text, tokens
        for number, encoding in enumerate(tokenizer.encode_batch(texts, add_special_tokens=False)):
            ids = encoding.ids
            for start in range(0, len(ids) or 1, room):
                part = ids[start : start + room]
                parts.append([around(part)])
                of.append((number, max(1, len(part))))
        found = self._graph.run(parts)
        sums = np.zeros((len(texts), found.shape[1]))
        for vector, (number, tokens) in zip(found, of, strict=True):
            sums[number] += vector.astype(np.float64) * tokens
        lengths = np.sqrt((sums**2).sum(axis=1, keepdims=True))
        unit: np.ndarray = (sums / np.where(lengths, lengths, 1)).astype(np.float32)
        return unit


def _specials(tokenizer: Tokenizer) -> Callable[[list[int]], list[int]]:
    """The tokens that stand before and after a text's own, such as [CLS] and [SEP]."""
    whole = tokenizer.encode("a").ids
    text = tokenizer.encode("a", add_special_tokens=False).ids
    at = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    before, after = whole[:at], whole[at + len(text) :]
    return lambda ids: [*before, *ids, *after]


@functools.cache
def core() -> Any:
    from openvino import Core  # half a second, which most verbs need not wait

    return Core()


@functools.cache
def supported() -> Literal["f32", "bf16"]:
    """The fastest precision that this processor computes in and that keeps the meaning."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


# --- conversion --------------------------------------------------------------------------------


def converted(folder: Path, python: str, task: Task) -> Path:
    """The folder of the graph: made from `folder` by the model environment, if it is not there."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "tokenizer.json").is_file():
        raise PipelineError(
            f"embedder: {folder}: no model there: expected *.safetensors and tokenizer.json, as "
            "`SentenceTransformer(…).save_pretrained(folder)` writes them"
        )
    files = {
        path.relative_to(folder).as_posix(): store.digest(path)
        for path in [*weights, *sorted(folder.rglob("*.json"))]
    }
    program = store.interpreter(python, "embedder.python")
    place = store.cache("embedders", identify(task, files, store.digest(CONVERT))[:16], "x").parent
    with filelock.FileLock(place.with_suffix(".lock")):
        if not (place / "about.json").is_file():
            progress.note("the embedding model becomes a graph, once; torch starts in some seconds")
            log = place / "convert.log"
            with log.open("wb") as words:
                # -P: modules beside the script have names of the standard library's.
                ended = subprocess.run(
                    [
                        *program,
                        "-P",
                        str(CONVERT),
                        task,
                        str(folder),
                        str(place),
                    ],
                    env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                    stdout=words,
                    stderr=words,
                )
            if ended.returncode:
                lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise PipelineError(
                    f"embedder: {folder} could not be converted: {lines[-1][:300]}; see {log}"
                )
            log.unlink()
    return place


def packaged(python: str, package: str, folder: str) -> Path:
    """A folder of a package of the model environment, without importing the package."""
    find = (
        "import importlib.util, sys; spec = importlib.util.find_spec(sys.argv[1]); "
        "print(spec.submodule_search_locations[0] if spec else '')"
    )
    found = subprocess.run(
        [*store.interpreter(python, "embedder.python"), "-I", "-c", find, package],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not found or not (Path(found) / folder).is_dir():
        raise PipelineError(
            f"embedder.package: {package!r} is not in the model environment, or has no folder "
            f"{folder!r}; `make setup` installs what requirements/model.txt names"
        )
    return Path(found) / folder
