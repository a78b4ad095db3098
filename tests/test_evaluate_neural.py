import contextlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_deploy import tiny_llama
from tokenizers import Tokenizer

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import Example, Message
from stages.evaluate import neural

HERE = Path(__file__).parents[1]
MODEL_PYTHON = str(HERE / ".venv-model/bin/python")
CONTEXT = 160
JOINING = (
    "{% for m in messages %}{{ m.content }}"
    "{{ '<|end|>' if m.role == 'assistant' else ' ' }}{% endfor %}"
)
"""Joins the prompt's last character and the answer's first in one token."""
ENDLESS = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
"""Writes no token that ends an answer."""
NAMES = ("base", "tuned", "joining", "endless")


def example(id: str, *turns: str) -> Example:
    roles = ("user", "assistant")
    return Example(
        id=id,
        kind="factual",
        track="held_out",
        messages=tuple(
            Message(role=roles[k % 2], content=text)  # type: ignore[arg-type]
            for k, text in enumerate(turns)
        ),
        question=turns[-2],
        answer=turns[-1],
        chunk_ids=(),
        evidence=(),
        call_id="",
    )


EXAMPLES = [
    example("short", "What jumps?", "the quick brown fox"),
    example("words", "Who is lazy, then?", "the dog — it is the dog"),
    example("turns", "What jumps?", "the fox", "Over what?", "over the lazy dog; λόγος"),
    example("one", "naïve?", "a"),
    example("long", "the quick brown fox " * 8, "jumps over the lazy dog " * 7),
]
TOO_LONG = example("too long", "What jumps?", "xyz " * CONTEXT)


class Oracle:
    """A Llama in numpy: one text at a time, without batch, padding or template."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw = (folder / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        self.weights = {}
        for name, what in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                first, last = (start + offset for offset in what["data_offsets"])
                tensor = np.frombuffer(raw[first:last], "float32").reshape(what["shape"])
                self.weights[name] = tensor.astype("float64")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def losses(self, ids: list[int]) -> np.ndarray:
        """Nats of each token but the first."""
        logits = self.logits(ids)[:-1]
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return -logits[np.arange(len(ids) - 1), ids[1:]]

    def logits(self, ids: list[int]) -> np.ndarray:
        heads, width, layers = 4, 8, 2
        w, n = self.weights, len(ids)
        angles = np.arange(n)[:, None] * 10_000.0 ** -(np.arange(0, width, 2) / width)
        cos, sin = (np.tile(f(angles), 2) for f in (np.cos, np.sin))

        def norm(x, scale):
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

        def split(x):  # (heads, tokens, width); two query heads share a key
            x = x.reshape(n, -1, width).transpose(1, 0, 2)
            return np.repeat(x, heads // len(x), axis=0)

        def turned(x):
            half = np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], -1)
            return x * cos + half * sin

        x = w["model.embed_tokens.weight"][ids]
        for k in range(layers):
            at = f"model.layers.{k}"
            h = norm(x, w[f"{at}.input_layernorm.weight"])
            q, key, v = (split(h @ w[f"{at}.self_attn.{p}_proj.weight"].T) for p in "qkv")
            seen = turned(q) @ turned(key).transpose(0, 2, 1) / math.sqrt(width)
            seen[:, ~np.tri(n, dtype=bool)] = -np.inf
            seen = np.exp(seen - seen.max(-1, keepdims=True))
            met = (seen / seen.sum(-1, keepdims=True)) @ v
            x = x + met.transpose(1, 0, 2).reshape(n, -1) @ w[f"{at}.self_attn.o_proj.weight"].T
            h = norm(x, w[f"{at}.post_attention_layernorm.weight"])
            gate, up = (h @ w[f"{at}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T
        return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T

    def reference(self, prompt: str, said: str) -> tuple[float, int, float]:
        """Nats and tokens of what is said, and nats of the prompt and it."""
        ids = self.encode(said)
        losses = self.losses(self.encode(prompt) + ids)
        return float(losses[-len(ids) :].sum()), len(ids), float(losses.sum())


class Run:
    """One measurement of models with templates of three kinds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {}
        for seed, name in enumerate(NAMES):
            tiny_llama(folder / name, seed=seed, eos_bias=0)
            config = json.loads((folder / name / "config.json").read_text())
            config["max_position_embeddings"] = CONTEXT
            (folder / name / "config.json").write_text(json.dumps(config))
            self.models[name] = neural.Model(str(folder / name), f"digest of {name}")
        (folder / "endless/chat_template.jinja").write_text(ENDLESS)
        self.steps: list[progress.Step] = []
        with contextlib.chdir(folder):
            progress.begin("evaluate", self.steps.append)
            self.measured = self.measure(MODEL_PYTHON)
            progress._listeners.clear()

    def measure(self, python: str, examples=(*EXAMPLES, TOO_LONG)) -> neural.Measured:
        """`joining` with a template from outside, which stands in place of a tokenizer's own."""
        given = {"joining": self.models["joining"]}
        own = {name: model for name, model in self.models.items() if name not in given}
        one = neural.measure(python, own, None, examples)
        other = neural.measure(python, given, JOINING, examples)
        return neural.Measured(one.references | other.references, one.general | other.general)

    def expected(self, name: str, example: Example) -> tuple[float, int, float]:
        """By hand: what the model reads, and what training teaches it to say after it."""
        *turns, last = example.messages
        match name:
            case "joining":
                end = {"user": " ", "assistant": "<|end|>"}
                prompt = "".join(turn.content + end[turn.role] for turn in turns)
                said = last.content + "<|end|>"
            case "endless":
                prompt, said = "".join(turn.content + "\n" for turn in turns), last.content
            case _:
                prompt = "".join(f"<|{turn.role}|>{turn.content}<|end|>" for turn in turns)
                prompt, said = prompt + "<|assistant|>", last.content + "<|end|>"
        return Oracle(self.folder / name).reference(prompt, said)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("neural"))


@pytest.fixture
def inside(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(run.folder)
    return run


# --- likelihoods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.id)
@pytest.mark.parametrize("name", NAMES)
def test_a_reference_scores_what_its_tokens_and_its_end_score_alone(run, name, example):
    found = run.measured.references[name, example.id]
    nats, tokens, of_prompt_too = run.expected(name, example)
    assert (found.nats, found.tokens) == (pytest.approx(nats, abs=2e-3), tokens)
    assert found.num_bytes == len(example.answer.encode())
    assert of_prompt_too > nats + 1  # so that scoring the prompt too would be seen


def test_an_example_longer_than_the_context_is_left_out(run):
    scored = {id for _, id in run.measured.references}
    assert scored == {example.id for example in EXAMPLES}


@pytest.mark.parametrize("name", NAMES)
def test_the_general_text_is_scored_whole_in_windows_of_the_context(run, name):
    found, oracle = run.measured.general[name], Oracle(run.folder / name)
    passages = neural.GENERAL.read_text().strip().split("\n\n")
    nats, tokens = 0.0, 0
    for passage in passages:
        ids, before = oracle.encode(passage), oracle.encode("<|end|>")
        while ids:
            window, ids = ids[: CONTEXT - 1], ids[CONTEXT - 1 :]
            nats += oracle.losses(before + window).sum()
            tokens += len(window)
            before = window[-1:]
    assert (found.nats, found.tokens) == (pytest.approx(nats, rel=1e-6), tokens)
    assert found.num_bytes == sum(len(passage.encode()) for passage in passages)
    assert tokens > CONTEXT * len(passages)


def test_the_general_text_is_of_many_registers_and_plain():
    passages = neural.GENERAL.read_text(encoding="ascii").strip().split("\n\n")
    assert len(passages) == 12
    assert all(passage == passage.strip() and len(passage) > 200 for passage in passages)
    assert 1000 < sum(len(passage.split()) for passage in passages) < 1500


# --- what is kept ---------------------------------------------------------------------------------


def test_what_was_measured_starts_no_process_again_in_any_order(inside):
    again = inside.measure("no/such/python", [TOO_LONG, *EXAMPLES[::-1]])
    assert again.references == inside.measured.references
    assert again.general == inside.measured.general


def test_a_model_of_the_same_content_elsewhere_is_not_scored_again(inside):
    moved = neural.Model("no/such/folder", inside.models["tuned"].digest)
    again = neural.measure("no/such/python", {"x": moved}, None, EXAMPLES)
    assert again.general["x"] == inside.measured.general["tuned"]
    assert again.references["x", "turns"] == inside.measured.references["tuned", "turns"]


@pytest.mark.parametrize("what", ["reference", "prompt", "template", "model"])
def test_whatever_shapes_a_score_is_part_of_its_key(inside, what):
    models = {"joining": inside.models["joining"]}
    template, examples = JOINING, list(EXAMPLES)
    neural.measure("no/such/python", models, template, examples)  # as it was
    match what:
        case "reference":
            examples.append(example("new", "What jumps?", "the quick brown dog"))
        case "prompt":
            examples.append(example("new", "Who jumps?", "the quick brown fox"))
        case "template":
            template += "!"
        case "model":
            models["joining"] = neural.Model(models["joining"].path, "of another content")
    with pytest.raises(PipelineError, match=r"^evaluate\.python: 'no/such/python'"):
        neural.measure("no/such/python", models, template, examples)


def test_progress_counts_every_score_once(run):
    told = [step for step in run.steps if step.unit]
    by_models = {n: [s.done for s in told if s.total == n * (len(EXAMPLES) + 2)] for n in (3, 1)}
    assert sum(map(len, by_models.values())) == len(told)
    for num_models, done in by_models.items():
        assert done == sorted(done)
        assert done[-1] == num_models * (len(EXAMPLES) + 2)


def test_nothing_is_left_behind_where_all_went_well(run):
    left = {path.name for path in run.folder.glob(".cache/*/*")} - {"evaluate.jsonl"}
    assert left <= {"scores.db", "scores.db-wal", "scores.db-shm"}


# --- failures -------------------------------------------------------------------------------------


def fails(run: Run, folder: Path, python: str, **changed: object) -> str:
    """The one line that a measurement with nothing kept ends in."""
    with contextlib.chdir(folder), pytest.raises(PipelineError) as caught:
        neural.measure(
            python,
            **{"models": run.models, "template": JOINING, "examples": EXAMPLES} | changed,
        )
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_missing_interpreter_is_one_line_that_names_the_key(run, tmp_path):
    said = fails(run, tmp_path, "no/such/python")
    assert said.startswith("evaluate.python: 'no/such/python': no such file")
    assert said.endswith("`make setup` builds the model environment")


def test_an_interpreter_that_is_no_program_is_one_line(run, tmp_path):
    (tmp_path / "python").write_text("")
    assert "'./python' is no program; `make setup`" in fails(run, tmp_path, "./python")


def test_an_interpreter_without_torch_is_one_line_that_names_the_log(run, tmp_path):
    said = fails(run, tmp_path, sys.executable)
    assert "No module named 'torch'; see " in said
    assert "No module named 'torch'" in Path(said.rpartition("see ")[2]).read_text()


def test_a_process_that_ends_without_a_word_is_one_line(run, tmp_path):
    assert "ended early: it said nothing; see " in fails(run, tmp_path, shutil.which("false"))


@pytest.mark.slow
def test_a_broken_model_folder_is_one_line_and_what_came_before_it_is_kept(run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run.folder / "base", broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    models = {"a": run.models["base"], "z": neural.Model(str(broken), "z")}
    said = fails(run, tmp_path, MODEL_PYTHON, models=models, examples=EXAMPLES)
    assert said.startswith("evaluate: the neural metrics failed: ")
    assert "safetensor" in said.lower() or "header" in said.lower()
    with contextlib.chdir(tmp_path):
        kept = neural.measure("no/such", {"a": models["a"]}, JOINING, EXAMPLES)
    assert kept.general["a"] == run.measured.general["base"]


def test_the_process_ends_when_its_parent_is_killed(run, tmp_path):
    def measure() -> None:
        os.chdir(tmp_path)
        # It imports for seconds before its first word to the parent, whose loss would end it.
        neural.measure(MODEL_PYTHON, run.models, JOINING, EXAMPLES)

    parent = multiprocessing.get_context("fork").Process(target=measure)
    parent.start()
    started: list[psutil.Process] = []
    while not started:
        assert parent.is_alive()
        started = psutil.Process(parent.pid).children()
        time.sleep(0.02)
    parent.kill()
    parent.join()
    _, alive = psutil.wait_procs(started, timeout=30)
    store.end_processes(alive)
    assert not alive


# --- slow: against others, and in other company ---------------------------------------------------


@pytest.mark.slow
def test_scores_are_the_same_in_other_company(run, tmp_path):
    with contextlib.chdir(tmp_path):
        fewer = run.measure(MODEL_PYTHON, EXAMPLES[1:4])
    for name, found in fewer.references.items():
        assert found.nats == pytest.approx(run.measured.references[name].nats, abs=2e-3)
    assert fewer.general == run.measured.general


# --- figures --------------------------------------------------------------------------------------

tokens = st.integers(1, 500)


@given(st.lists(tokens, min_size=1), st.integers(2, 100_000))
def test_the_perplexity_of_a_uniform_guess_is_the_number_of_its_choices(sizes, choices):
    rows = [neural.Likelihood(size * math.log(choices), size, 1) for size in sizes]
    assert neural.perplexity(rows) == pytest.approx(choices, rel=1e-4)


@given(st.lists(tokens, min_size=1))
def test_a_uniform_guess_of_bytes_needs_eight_bits_a_byte_in_tokens_of_any_size(sizes):
    rows = [neural.Likelihood(size * math.log(256), 1, size) for size in sizes]
    assert neural.bits_per_byte(rows) == 8


@pytest.mark.parametrize("nats", [1e6, math.inf])
def test_a_perplexity_that_no_float_holds_is_infinite(nats):
    assert neural.perplexity([neural.Likelihood(nats, 1, 1)]) == math.inf
