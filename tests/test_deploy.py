import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import openai
import pytest
import text_generation
import yaml
from hypothesis import given
from hypothesis import strategies as st
from text_generation import errors as tgi_errors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stages import deploy
from stages.answer import endpoint
from stages.core import config
from stages.core.errors import PipelineError
from stages.core.model import Config as Model
from stages.core.records import Message
from stages.deploy.generation import End, Generation

HERE = Path(__file__).parents[1]
MODEL_PYTHON = HERE / ".venv-model/bin/python"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = "the quick brown fox — jumps over the lazy dog; λόγος 日本語 🦊🦊 naïve"
EOS = 0
CONTEXT = 32768


def tiny_tokenizer() -> Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=sorted(byte_level.alphabet()),
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def tiny_llama(folder: Path, seed: int, eos_bias: float) -> None:
    """A random Llama as transformers would save it, made without torch.

    Dimension 0 of the residual stream is held constant, so that the unembedding's column 0 is a
    bias: it decides whether the model ends at once or never.
    """
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocab, hidden, inner, layers = tokenizer.get_vocab_size(), 32, 64, 2
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|end|>",
            "pad_token": "<|end|>",
        },
        "generation_config.json": {"eos_token_id": EOS},
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocab,
            "max_position_embeddings": CONTEXT,
            "eos_token_id": EOS,
            "pad_token_id": EOS,
            "tie_word_embeddings": False,
            "dtype": "float32",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATE)

    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.6).astype("float32")

    tensors = {
        "model.embed_tokens.weight": normal(vocab, hidden),
        "lm_head.weight": normal(vocab, hidden),
        "model.norm.weight": np.ones(hidden, "float32"),
    }
    tensors["model.embed_tokens.weight"][:, 0] = 5
    tensors["lm_head.weight"][:, 0] = 0
    tensors["lm_head.weight"][EOS, 0] = eos_bias
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 2, hidden),
            "self_attn.v_proj": (hidden // 2, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            tensors[f"{at}.{name}.weight"] = normal(*shape)
        tensors[f"{at}.self_attn.o_proj.weight"][0] = 0
        tensors[f"{at}.mlp.down_proj.weight"][0] = 0
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = np.ones(hidden, "float32")
    # The safetensors format: the header's length, the header, the data.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": tensor.shape,
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)


def options(name: str, **changed: object) -> deploy.Config:
    values = yaml.safe_load((HERE / f"conf/deploy/{name}.yaml").read_text())
    values["max_total_tokens"] = CONTEXT
    return config.load({"deploy": values | changed}, "deploy", deploy.Config)


def scratch(**changed: object) -> Model:
    values = yaml.safe_load((HERE / "conf/model/scratch.yaml").read_text())
    return config.load({"model": values | {"context_tokens": CONTEXT} | changed}, "model", Model)


# --- a real server, shared by the tests below -----------------------------------------------------

SLOTS = 6

REFERENCE = """
import sys
for unused in ("accelerate", "datasets", "peft", "sklearn", "torchao"):  # seconds of imports
    sys.modules[unused] = None
import json, torch, transformers
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
for prompt, new in prompts:
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=new, do_sample=False)
    print(json.dumps(out[0, ids["input_ids"].shape[1]:].tolist()))
"""
PROMPTS = [(" ".join([TEXT] * (i % 4) + [TEXT[: 3 + 5 * i]]), 5 + 7 * (i % 5)) for i in range(11)]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/finetune as the stage finetune leaves it: base ends at once, tuned never does."""
    made = tmp_path_factory.mktemp("served") / "data/finetune"
    tiny_llama(made / "base", seed=1, eos_bias=500)
    tiny_llama(made / "model", seed=2, eos_bias=-500)
    return made


@pytest.fixture(scope="session")
def reference(weights: Path) -> "subprocess.Popen[str]":
    """What `transformers.generate` says to PROMPTS, each alone."""
    return subprocess.Popen(
        [str(MODEL_PYTHON), "-c", REFERENCE, str(weights / "model"), json.dumps(PROMPTS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(scope="session")
def deployed(weights: Path) -> tuple[Path, dict[str, float], list[Path]]:
    """data/deploy, the stage's metrics, and what it proved (for which it starts a server)."""
    out = weights.parent / "deploy"
    cfg = options("embedded", max_concurrent_requests=SLOTS, max_input_tokens=400)
    proven: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "prove", proven.append)
        metrics = deploy.run(cfg, scratch(), weights, out)
    return out, metrics, proven


@pytest.fixture(scope="session")
def server(deployed: tuple[Path, object, object], reference: object):
    with endpoint.start(deployed[0] / "endpoint.json") as started:
        yield started


def generate(url: str, inputs: str, **parameters: object) -> dict:
    body = {"inputs": inputs, "parameters": {"details": True, **parameters}}
    response = httpx.post(f"{url}/generate", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_run_describes_both_models_without_port_or_absolute_path(deployed, weights):
    out, metrics, proven = deployed
    assert proven == [out / "endpoint.json"]
    text = (out / "endpoint.json").read_text()
    said = json.loads(text)
    assert said["engine"] == "embedded"
    assert said["models"].keys() == {"base", "tuned"}
    assert said["models"]["base"]["path"] == "data/finetune/base"
    assert said["models"]["tuned"]["path"] == "data/finetune/model"
    assert said["models"]["base"]["digest"] != said["models"]["tuned"]["digest"]
    assert said["models"]["tuned"]["stop"] == ["<|end|>"]
    assert (
        said["models"]["tuned"]["template_sha256"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    )
    assert said["command"][1:3] == ["-m", "stages.deploy.server"]
    assert str(weights.parent.parent) not in text
    assert "--port" not in said["command"]
    assert (out / "rejects.jsonl").read_bytes() == b""
    assert metrics["num_models"] == 2


def test_the_digest_follows_the_weights_and_ignores_what_decides_nothing(tmp_path):
    tiny_llama(tmp_path / "model", seed=3, eos_bias=0)
    before = deploy.describe(tmp_path / "model", None)
    (tmp_path / "model/README.md").write_text("no matter")
    assert deploy.describe(tmp_path / "model", None) == before
    with (tmp_path / "model/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert deploy.describe(tmp_path / "model", None)["digest"] != before["digest"]


def test_greedy_batched_answers_equal_transformers_generate_of_each_prompt_alone(server, reference):
    answers: dict[int, dict] = {}

    def ask(i: int) -> None:
        prompt, new = PROMPTS[i]
        answers[i] = generate(server.base_url, prompt, max_new_tokens=new)

    # Never more at once than there are slots, and all kinds of company.
    for first in range(0, len(PROMPTS), SLOTS):
        threads = [
            threading.Thread(target=ask, args=(i,))
            for i in range(first, min(first + SLOTS, len(PROMPTS)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = [json.loads(line) for line in reference.communicate()[0].splitlines()]
    assert len(expected) == len(PROMPTS)
    for i, ids in enumerate(expected):
        assert [token["id"] for token in answers[i]["details"]["tokens"]] == ids, PROMPTS[i]


def test_complete_answers_from_the_model_that_is_asked(server):
    messages = [Message(role="user", content="What jumps?")]
    tuned = server.complete("tuned", messages, max_tokens=9)
    base = server.complete("base", messages, max_tokens=9)
    assert (tuned.tokens, tuned.finish_reason) == (9, "length")
    assert tuned.text
    assert (base.text, base.tokens, base.finish_reason) == ("", 1, "stop")


def test_a_chat_prompt_is_the_template_of_the_tokenizer(server):
    """The chat route and /generate of the same templated text give the same answer."""
    messages = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Über λόγος?"),
    ]
    chat = server.complete("tuned", messages, max_tokens=12)
    templated = "<|system|>Be brief.<|end|><|user|>Über λόγος?<|end|><|assistant|>"
    plain = generate(server.base_url, templated, max_new_tokens=12)
    assert chat.text == plain["generated_text"]


# --- the official clients -------------------------------------------------------------------------

by_pydantic_1 = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")


@by_pydantic_1
def test_the_official_tgi_client_generates_and_streams_the_same_tokens(server):
    client = text_generation.Client(server.base_url, timeout=60)
    whole = client.generate("the quick", max_new_tokens=30)
    streamed = list(client.generate_stream("the quick", max_new_tokens=30))
    assert whole.details.finish_reason == "length"
    assert whole.details.generated_tokens == 30
    assert [t.token.id for t in streamed] == [t.id for t in whole.details.tokens]
    assert "".join(t.token.text for t in streamed if not t.token.special) == whole.generated_text
    assert streamed[-1].generated_text == whole.generated_text
    assert all(t.generated_text is None for t in streamed[:-1])
    assert all(t.logprob <= 0 for t in whole.details.tokens)
    full = client.generate("the quick", max_new_tokens=30, return_full_text=True)
    assert full.generated_text == "the quick" + whole.generated_text


@by_pydantic_1
def test_the_official_tgi_client_raises_its_own_errors(server):
    client = text_generation.Client(server.base_url, timeout=60)
    with pytest.raises(tgi_errors.ValidationError, match=r"must be <= 32768"):
        client.generate("the", max_new_tokens=CONTEXT)
    with pytest.raises(tgi_errors.ValidationError, match="less than 400 tokens"):
        client.generate("xyz qw " * 300)
    with pytest.raises(tgi_errors.ValidationError, match="best_of"):
        client.generate("the", best_of=2, do_sample=True)
    with pytest.raises(tgi_errors.ValidationError, match="up to 4 stop sequences"):
        list(client.generate_stream("the", stop_sequences=list("abcde")))


def test_the_hub_client_generates_and_chats(server):
    client = huggingface_hub.InferenceClient(server.base_url, timeout=60)
    text = client.text_generation("the quick", max_new_tokens=20)
    detailed = client.text_generation("the quick", max_new_tokens=20, details=True)
    streamed = list(client.text_generation("the quick", max_new_tokens=20, stream=True))
    assert detailed.generated_text == text == "".join(streamed)
    assert detailed.details.finish_reason == "length"
    messages = [{"role": "user", "content": "What jumps?"}]
    chat = client.chat_completion(messages, max_tokens=10)
    chunks = client.chat_completion(messages, max_tokens=10, stream=True)
    assert (
        "".join(c.choices[0].delta.content for c in chunks if c.choices)
        == chat.choices[0].message.content
    )
    assert chat.usage.completion_tokens == 10
    with pytest.raises(Exception, match="max_new_tokens"):
        client.text_generation("the", max_new_tokens=0)


@pytest.fixture
def openai_client(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


ASKED = [{"role": "user", "content": "What jumps?"}]


def test_the_openai_client_chats_and_streams_the_same_text(openai_client):
    chat = openai_client.chat.completions.create(model="tuned", messages=ASKED, max_tokens=25)
    assert chat.choices[0].finish_reason == "length"
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + 25
    chunks = list(
        openai_client.chat.completions.create(
            model="tuned",
            messages=ASKED,
            max_tokens=25,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content for c in chunks if c.choices)
    assert text == chat.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == chat.usage
    default = openai_client.chat.completions.create(model="tgi", messages=ASKED, max_tokens=25)
    assert default.choices[0].message.content == text
    assert default.model == "tuned"
    parts = [{"role": "user", "content": [{"type": "text", "text": "What jumps?"}]}]
    again = openai_client.chat.completions.create(model="tuned", messages=parts, max_tokens=25)
    assert again.choices[0].message.content == text


def test_the_openai_client_lists_the_models_and_maps_the_errors(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["base", "tuned"]
    create = openai_client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        create(model="gpt-5", messages=ASKED)
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        create(model="tuned", messages=ASKED, max_tokens=0)
    assert refused.value.body["message"].startswith("Input validation error: `max_new_tokens`")
    assert refused.value.body["http_status_code"] == 422
    with pytest.raises(openai.UnprocessableEntityError, match="not supported"):
        create(model="tuned", messages=ASKED, logprobs=True)
    with pytest.raises(openai.UnprocessableEntityError, match="no tools"):
        create(model="tuned", messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}])


def test_a_stop_sequence_ends_the_text_and_stays_out_of_a_chat(server, openai_client):
    create = openai_client.chat.completions.create
    text = create(model="tuned", messages=ASKED, max_tokens=40).choices[0].message.content
    stop = text[len(text) // 2 :][:3]  # over more than one token
    before = text[: text.index(stop)]
    whole = create(model="tuned", messages=ASKED, max_tokens=40, stop=stop)
    assert whole.choices[0].message.content == before
    assert whole.choices[0].finish_reason == "stop"
    chunks = create(model="tuned", messages=ASKED, max_tokens=40, stop=[stop], stream=True)
    assert "".join(c.choices[0].delta.content for c in chunks) == before
    # TGI's own routes keep it, as TGI does.
    templated = "<|user|>What jumps?<|end|><|assistant|>"
    kept = generate(server.base_url, templated, max_new_tokens=40, stop=[stop])
    assert kept["details"]["finish_reason"] == "stop_sequence"
    assert kept["generated_text"].startswith(before + stop)


def test_a_seed_repeats_a_sample_in_any_company(server):
    def sample(seed: int) -> list[int]:
        said = generate(
            server.base_url, "the", max_new_tokens=20, do_sample=True, seed=seed, temperature=1.5
        )
        assert said["details"]["seed"] == seed
        return [token["id"] for token in said["details"]["tokens"]]

    alone = sample(7)
    together: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda s=seed: together.update({s: sample(s)}))
        for seed in (5, 6, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together[7] == alone
    assert together[5] != together[6]


def test_top_k_of_one_is_greedy_and_a_repetition_penalty_is_not(server):
    greedy = generate(server.base_url, "the fox", max_new_tokens=40)["generated_text"]
    only = generate(server.base_url, "the fox", max_new_tokens=40, do_sample=True, top_k=1)
    tiny = generate(server.base_url, "the fox", max_new_tokens=40, do_sample=True, top_p=1e-6)
    assert only["generated_text"] == tiny["generated_text"] == greedy
    varied = generate(server.base_url, "the fox", max_new_tokens=40, repetition_penalty=5.0)
    ids = [token["id"] for token in varied["details"]["tokens"]]
    assert len(set(ids)) == 40


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/generate", b"{", 422, "JSON"),
        ("/generate", b'{"inputs": ""}', 422, "`inputs` cannot be empty"),
        ("/generate", b'{"inputs": 3}', 422, "inputs: Input should be a valid string"),
        ("/", b'{"inputs": "x", "parameters": {"temperature": 0}}', 422, "strictly positive"),
        ("/", b'{"inputs": "x", "parameters": {"top_p": 1}}', 422, "`top_p` must be > 0.0"),
        ("/", b'{"inputs": "x", "parameters": {"truncate": 401}}', 422, "less than 400"),
        ("/generate_stream", b'{"inputs": "x", "parameters": {"top_k": -1}}', 422, "`top_k`"),
        ("/generate", b'{"inputs": "' + b"x" * 2_000_001 + b'"}', 413, "larger than 2000000"),
    ],
)
def test_a_bad_request_is_refused_with_tgis_code_and_words(server, path, body, status, said):
    response = httpx.post(f"{server.base_url}{path}", content=body)
    assert response.status_code == status
    assert said in response.json()["error"]
    assert response.json()["error_type"] == "validation"


def test_info_and_health_say_what_tgi_says(server):
    assert httpx.get(f"{server.base_url}/health").status_code == 200
    said = httpx.get(f"{server.base_url}/info").json()
    assert said["model_id"] == "tuned"
    assert said["max_total_tokens"] == CONTEXT
    assert said["max_input_tokens"] == 400
    assert said["max_concurrent_requests"] == SLOTS
    assert said["model_dtype"] == "torch.float32"


def test_truncate_keeps_the_end_of_the_prompt(server):
    long = generate(server.base_url, "dog " * 350 + "the quick", max_new_tokens=5, truncate=1)
    last = tiny_tokenizer().encode("dog the quick").tokens[-1].replace("Ġ", " ")
    short = generate(server.base_url, last, max_new_tokens=5)
    assert long["generated_text"] == short["generated_text"]


def test_one_request_too_many_is_429_and_a_client_that_leaves_frees_its_slot(server):
    body = {"inputs": "the", "parameters": {"max_new_tokens": 30000}}  # minutes, left alone
    url = server.base_url
    refused = {
        "error": "Model is overloaded",
        "error_type": "overloaded",
    }
    with httpx.Client(timeout=60) as client:
        streams = [client.stream("POST", f"{url}/generate_stream", json=body) for _ in range(SLOTS)]
        for stream in streams:
            assert stream.__enter__().status_code == 200  # the first token has come
        overloaded = client.post(f"{url}/generate", json=body)
        assert (overloaded.status_code, overloaded.json()) == (429, refused)
        with pytest.raises(PipelineError, match="429: Model is overloaded"):
            server.complete("tuned", [Message(role="user", content="x")], max_tokens=1)
        for stream in streams:
            stream.__exit__(None, None, None)
        statuses = _until_accepted(url)
    assert set(statuses[:-1]) <= {429}
    # The same of a client that waits for a whole answer, or for its first token.
    for path in ("/generate", "/v1/chat/completions"):
        asked = body if path == "/generate" else {"messages": ASKED, "max_tokens": 30000}
        for _ in range(SLOTS):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}{path}", json=asked, timeout=httpx.Timeout(20, read=0.2))
        assert set(_until_accepted(url)[:-1]) <= {429}


def _until_accepted(url: str) -> list[int]:
    """Statuses until one is 200; fails where a slot is not given back."""
    statuses: list[int] = []
    deadline = time.monotonic() + 20
    while not statuses or statuses[-1] != 200:
        assert time.monotonic() < deadline, statuses
        asked = {"inputs": "the", "parameters": {"max_new_tokens": 1}}
        statuses.append(httpx.post(f"{url}/generate", json=asked, timeout=60).status_code)
    return statuses


# --- the process ----------------------------------------------------------------------------------


def launch(folder: Path, announced: Path, *more: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            *(str(MODEL_PYTHON), "-m", "stages.deploy.server", "--models", f"tuned={folder}"),
            *("--default", "tuned", "--port", "0", "--announce", str(announced)),
            *("--max-input-tokens", "99", "--max-total-tokens", "9999"),
            *("--max-batch-size", "2", "--max-concurrent-requests", "2", *more),
        ],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def address(announced: Path) -> str:
    deadline = time.monotonic() + 60
    while not announced.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return f"http://127.0.0.1:{json.loads(announced.read_text())['port']}"


def test_a_private_server_is_alive_before_it_is_ready_and_ends_with_its_parent(weights, tmp_path):
    process = launch(weights / "model", tmp_path / "announced.json", "--end-with-parent")
    url = address(tmp_path / "announced.json")
    early = httpx.get(f"{url}/health", timeout=60)
    assert early.status_code == 503
    assert early.json() == {"error": "unhealthy", "error_type": "healthcheck"}
    asked = httpx.post(f"{url}/v1/chat/completions", json={"messages": ASKED}, timeout=60)
    assert asked.status_code == 503
    process.stdin.close()
    assert process.wait(20) == 0
    process.stderr.close()


@pytest.mark.slow
def test_run_proves_that_both_models_answer_and_equal_runs_give_equal_bytes(weights, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/finetune").symlink_to(weights)
    cfg = options("embedded", max_concurrent_requests=SLOTS, max_input_tokens=400)
    deploy.run(cfg, scratch(), tmp_path / "data/finetune", tmp_path / "data/deploy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "prove", lambda _: None)
        deploy.run(cfg, scratch(), weights, tmp_path / "elsewhere/data/deploy")
    said = json.loads((tmp_path / "data/deploy/endpoint.json").read_text())
    other = json.loads((tmp_path / "elsewhere/data/deploy/endpoint.json").read_text())
    for name in ("base", "tuned"):
        assert said["models"][name]["digest"] == other["models"][name]["digest"]


@pytest.mark.slow
def test_a_server_without_safetensors_ends_and_says_so(weights, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in (weights / "model").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    process = launch(folder, tmp_path / "announced.json")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert b"safetensors" in said.splitlines()[-1]


@pytest.mark.slow
def test_sigterm_lets_requests_under_way_end_and_leaves_with_zero(weights, tmp_path):
    process = launch(weights / "model", tmp_path / "announced.json")
    url = address(tmp_path / "announced.json")
    while httpx.get(f"{url}/health", timeout=60).status_code != 200:
        time.sleep(0.1)
    asked = {"inputs": "the", "parameters": {"max_new_tokens": 500, "details": True}}
    with httpx.stream("POST", f"{url}/generate_stream", json=asked, timeout=60) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert rest[-1]["details"]["generated_tokens"] == 500
    assert process.wait(30) == 0
    process.stdin.close()
    process.stderr.close()


# --- text from tokens -----------------------------------------------------------------------------


class Words:
    """The tiny tokenizer as a vocabulary."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()
        self.eos = frozenset({EOS})
        self.special = frozenset({0, 1, 2, 3})

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


WORDS = Words()


def tell(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], End]:
    """The pieces of text of a stream of these tokens, and its end."""
    events = []
    generation = Generation([1], len(ids), events.append, stop=stop, stream=True)
    for id in ids:
        if generation.add(id, -1.0, WORDS):
            break
    return [token.text for token, _ in events if not token.special], events[-1][1]


@given(st.lists(st.integers(0, WORDS.tokenizer.get_vocab_size() - 1), min_size=1, max_size=40))
def test_streamed_pieces_join_to_the_whole_text_of_any_tokens(ids):
    pieces, end = tell(ids)
    said = ids[: ids.index(EOS)] if EOS in ids else ids
    whole = WORDS.tokenizer.decode(said, skip_special_tokens=True).rstrip("\ufffd")
    assert "".join(pieces) == end.text == whole
    assert end.finish_reason == ("eos_token" if EOS in ids else "length")


@given(st.text(min_size=1, max_size=30).filter(lambda text: "\ufffd" not in text))
def test_no_piece_of_a_stream_holds_half_a_character(text):
    ids = WORDS.tokenizer.encode(text, add_special_tokens=False).ids
    pieces, end = tell(ids)
    assert "".join(pieces) == end.text
    if not set(ids) & WORDS.special:
        assert end.text == text
    assert "\ufffd" not in "".join(pieces)


@given(st.text("abλ🦊", min_size=1, max_size=20), st.text("abλ🦊", min_size=1, max_size=3))
def test_generation_stops_at_the_first_stop_sequence(text, stop):
    ids = WORDS.tokenizer.encode(text).ids
    _, end = tell(ids, (stop,))
    if stop in text:
        assert end.finish_reason == "stop_sequence"
        assert end.stop_at == text.index(stop)
        assert text.startswith(end.text)
    else:
        assert (end.finish_reason, end.stop_at, end.text) == ("length", None, text)


# --- mistakes, and the real TGI -------------------------------------------------------------------


def test_limits_beyond_the_model_are_one_clear_line(tmp_path):
    with pytest.raises(PipelineError, match=r"deploy.max_total_tokens: 32768: .* 512"):
        deploy.run(options("embedded"), scratch(context_tokens=512), tmp_path, tmp_path / "d/o")
    with pytest.raises(PipelineError, match=r"deploy.max_input_tokens: 32768"):
        cfg = options("embedded", max_input_tokens=CONTEXT)
        deploy.run(cfg, scratch(), tmp_path, tmp_path / "d/o")


def test_missing_weights_are_one_clear_line(tmp_path):
    with pytest.raises(PipelineError, match=r"base: no \*.safetensors.*dvc repro finetune"):
        deploy.run(options("embedded"), scratch(), tmp_path / "finetune", tmp_path / "data/deploy")


def test_a_model_without_a_chat_template_needs_one_from_the_config(tmp_path):
    tiny_llama(tmp_path / "model", seed=1, eos_bias=0)
    (tmp_path / "model/chat_template.jinja").unlink()
    with pytest.raises(PipelineError, match=r"set model.format or model.chat_template"):
        deploy.describe(tmp_path / "model", None)
    assert deploy.describe(tmp_path / "model", "x")["template_sha256"] == (
        hashlib.sha256(b"x").hexdigest()
    )


@pytest.mark.parametrize("several", [False, True])
def test_the_template_of_an_older_tokenizer_is_found_in_its_config(tmp_path, several):
    template = [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template if several else "yes"})
    )
    assert deploy.chat_template(tmp_path) == "yes"


OWN = {
    **dict.fromkeys(("chat_template", "template_head", "format", "end_of_turn", "license")),
    "trained_answers": "all",
}
"""A model whose tokenizer knows how a conversation is written."""


def local(path: Path) -> Model:
    values = {"kind": "local", "path": str(path), "context_tokens": CONTEXT, **OWN}
    return config.load({"model": values}, "model", Model)


def test_tgi_renders_a_compose_file_with_one_service_per_model(weights, tmp_path):
    out = tmp_path / "data/deploy"
    finetune = tmp_path / "data/finetune"
    finetune.parent.mkdir()
    finetune.symlink_to(weights)
    cfg = options("tgi", num_shard=2, quantize="fp8", port=9000)
    deploy.run(cfg, local(weights / "base"), finetune, out)
    said = json.loads((out / "endpoint.json").read_text())
    assert said["engine"] == "tgi"
    assert said["command"] == ["docker", "compose", "-f", "data/deploy/compose.yaml", "up", "-d"]
    assert {model["id"] for model in said["models"].values()} == {"tgi"}
    services = yaml.safe_load((out / "compose.yaml").read_text())["services"]
    assert services["tuned"]["ports"] == ["127.0.0.1:${TUNED_PORT:-9000}:80"]
    assert services["base"]["ports"] == ["127.0.0.1:${BASE_PORT:-9001}:80"]
    command = services["tuned"]["command"]
    assert command[:2] == ["--model-id", "/models/tuned"]
    assert command[command.index("--quantize") + 1] == "fp8"
    assert command[command.index("--max-input-tokens") + 1] == str(CONTEXT - 1)
    assert "--trust-remote-code" not in command
    devices = {
        name: service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name, service in services.items()
    }
    assert devices == {"tuned": ["0", "1"], "base": ["2", "3"]}


def test_a_hub_model_is_served_from_the_local_cache_at_its_revision(weights, tmp_path, monkeypatch):
    cached = tmp_path / "hub/models--org--tiny"
    commit = "0" * 40
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    (cached / "snapshots" / commit).symlink_to(weights / "base")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    values = {"kind": "hub", "id": "org/tiny", "revision": "main", "context_tokens": CONTEXT}
    hub = config.load({"model": values | OWN}, "model", Model)
    paths, folders = deploy._places(hub, weights, weights.parents[1])
    assert paths["base"] == "org/tiny@main"
    assert deploy.describe(folders["base"], None) == deploy.describe(weights / "base", None)
    values["id"] = "org/absent"
    absent = config.load({"model": values | OWN}, "model", Model)
    with pytest.raises(PipelineError, match="'org/absent' at 'main' cannot be fetched"):
        deploy._places(absent, weights, weights.parents[1])


def test_the_command_line_without_models_is_refused():
    done = subprocess.run(
        [str(MODEL_PYTHON), "-m", "stages.deploy.server", "--port", "0"],
        cwd=HERE,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"--models" in done.stderr
    assert sys.version_info >= (3, 11)
