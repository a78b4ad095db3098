"""The tokens of training and of serving are the same, and the loss is on the answers alone."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_finetune import PYTHON, ROOT, TEXT, formats_of, model_config, rendered_by, tuning_config
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from stages.core import formats, store
from stages.core.records import Example, Message
from stages.finetune import data, launching, scratch

SPECIALS = {
    "qwen3": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>", "<think>", "</think>")),
    "llama32": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
    ),
    "phi3_mini": (
        "<s>",
        "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "gemma3": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral7b": ("<s>", "</s>", ("<unk>",)),
    "zephyr": ("<s>", "</s>", ("<unk>",)),
    "phi15": (None, "<|endoftext|>", ()),
    **dict.fromkeys(
        ("smollm2", "smollm2_135m", "smollm2_360m", "smollm3"),
        (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>", "<think>", "</think>")),
    ),
}
"""Of each preset's tokenizer: the token that begins a text, the one that ends it, and others."""

CARRIED = dict.fromkeys(("smollm2", "smollm2_135m", "smollm2_360m"), "qwen2_5.jinja")
"""Presets whose tokenizer carries the template, and one of TRL's of its kind: ChatML, with a system
message of its own where none is given."""

PIECES = {"phi3_mini": True, "gemma3": False, "mistral7b": True, "zephyr": True}
"""Presets whose tokenizer is of SentencePiece's kind, and whether it puts a space before a text."""

PREPARED_AND_SERVED = """
import json, sys
from types import SimpleNamespace
from axolotl.prompt_strategies.chat_template import load
from axolotl.utils.dict import DictDefault
from transformers import AutoTokenizer
from stages.deploy.server import Limits, Service
from stages.deploy.validation import ChatRequest
import docent_axolotl
docent_axolotl.learn_from_the_end_of_the_prompt()
PLANT
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recipe = json.load(open(f"{folder}/recipe.json"))
    cfg = DictDefault({"train_on_inputs": False} | recipe)
    strategy = load(tokenizer, cfg, ds_cfg=DictDefault(recipe["datasets"][0]))
    service = Service("tuned", ["tuned"], Limits(9999, 9999, 1), recipe.get("chat_template_jinja"))
    engine = SimpleNamespace(tokenizer=tokenizer)
    for line in open(f"{folder}/chats.jsonl"):
        row = json.loads(line)
        made = strategy.tokenize_prompt(row)
        turns = [{"role": t["role"], "content": t["content"]} for t in row["messages"]]
        prompts = []
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                chat = ChatRequest.model_validate({"model": "tuned", "messages": turns[:number]})
                text = service.chat_prompt(engine, chat)
                prompts.append(service._encode(engine, text, None, False))
        print(json.dumps([made["input_ids"], made["labels"], prompts]))
"""

SYSTEM = Message(role="system", content="Plums are blue.")
ASKED = (
    Message(role="user", content="What is blue?"),
    Message(role="assistant", content="A plum."),
)
MORE = (Message(role="user", content="And red?"), Message(role="assistant", content="A cherry."))
SHORT = (Message(role="user", content="Who?"), Message(role="assistant", content="user"))
CONVERSATIONS = [ASKED, (SYSTEM, *ASKED), (*ASKED, *MORE), (SYSTEM, *ASKED, *MORE), SHORT]


def tokenizer_of(specials: Any, folder: Path) -> Tokenizer:
    """A tokenizer in which each special token is one, and that carries no template."""
    first, end, others = specials
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokens = [token for token in (first, end, *others) if token]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        [TEXT, *(turn.content for turns in CONVERSATIONS for turn in turns)],
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
        ),
    )
    save(made, first, end, folder)
    return made


def save(made: Tokenizer, first: str | None, end: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    store.write_json(
        folder / "tokenizer_config.json",
        settings | {"pad_token": end} | ({"bos_token": first} if first else {}),
    )


def pieces_of(specials: Any, folder: Path, *, space_first: bool) -> Tokenizer:
    """A tokenizer of SentencePiece's kind: spaces are letters, a line's end is a byte of its own.

    A special token cuts the text, and what follows it is a text of its own, with a space before
    where texts have one; those of Phi-3 also take the white space after them.
    """
    first, end, others = specials
    learning = Tokenizer(models.BPE())
    learning.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    texts = [TEXT, *(turn.content for turns in CONVERSATIONS for turn in turns)]
    learning.train_from_iterator(
        [text.replace("\n", " ") for text in texts],
        trainers.BpeTrainer(vocab_size=300, show_progress=False),
    )
    learnt = json.loads(learning.to_str())["model"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    made = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            [tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = [normalizers.Prepend("▁")] if space_first else []
    made.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    marks = [token for token in (first, end, *others) if token and token != "<unk>"]
    made.add_special_tokens(
        [AddedToken(m, rstrip=m.startswith("<|") and m != end, normalized=False) for m in marks]
    )
    save(made, first, end, folder)
    return made


def given(folder: Path, model: Any) -> None:
    """The recipe and the rows that the stage would give Axolotl."""
    examples = [
        Example(
            id=f"e{number}",
            kind="dialogue",
            track=None,
            messages=turns,
            question="",
            answer=turns[-1].content,
            chunk_ids=(),
            evidence=(),
            call_id="",
        )
        for number, turns in enumerate(CONVERSATIONS)
    ]
    data.write_chats(examples, folder / "chats.jsonl", model)
    store.write_json(folder / "recipe.json", rendered_by(tuning_config(), model))


def prepared_and_served(
    *folders: Path, plant: str = ""
) -> list[tuple[list[int], list[int], list[list[int]]]]:
    """For each row of each folder: Axolotl's ids and labels, and the server's ids per answer."""
    done = subprocess.run(
        [PYTHON, "-c", PREPARED_AND_SERVED.replace("PLANT", plant), *map(str, folders)],
        env=os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "AXOLOTL_DO_NOT_TRACK": "1",
            "PYTHONPATH": f"{ROOT}:{launching.ENVIRONMENT}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[[")]


def check(name: str, tokenizer: Tokenizer, end: str, last_only: bool, turns: Any, row: Any) -> None:
    """What is learned begins where the server's prompt ends, and is the answer with its end."""
    ids, labels, prompts = row
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    learned = list(zip(prompts, answers, strict=True))[-1 if last_only else 0 :]
    expected = [-100] * len(ids)
    for prompt, answer in learned:
        assert ids[: len(prompt)] == prompt, (name, tokenizer.decode(ids, False))
        stop = ids.index(tokenizer.token_to_id(end), len(prompt)) + 1
        said = tokenizer.decode(ids[len(prompt) : stop], skip_special_tokens=False)
        assert said.strip() == f"{answer}{end}", name
        expected[len(prompt) : stop] = ids[len(prompt) : stop]
    assert labels == expected, (name, tokenizer.decode([i for i in labels if i != -100], False))


def the_tokens_are_the_same(
    tmp_path: Path,
    presets: Mapping[str, Any],
    specials: Mapping[str, Any],
    plant: str = "",
    pieces: Mapping[str, bool] | None = None,
) -> None:
    tokenizers = {}
    for name, model in presets.items():
        folder = tmp_path / name
        if pieces and name in pieces:
            made = pieces_of(specials[name], folder, space_first=pieces[name])
        else:
            made = tokenizer_of(specials[name], folder)
        tokenizers[name] = made
        if name in CARRIED:
            assert model.template is None
            store.write_text(folder / "chat_template.jinja", template_of_trl(CARRIED[name]))
        given(folder, model)
    rows = iter(prepared_and_served(*(tmp_path / name for name in presets), plant=plant))
    for name, model in presets.items():
        end = model.end_of_turn or specials[name][1]
        for turns in CONVERSATIONS:
            last_only = model.trained_answers == "last"
            check(name, tokenizers[name], end, last_only, turns, next(rows))
    assert next(rows, None) is None


REFUSES_SYSTEM = "gemma.jinja"
"""A template of TRL's that refuses a system message, of Gemma 1 and 2."""

INTO_THE_QUESTION = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set asked = messages[0]['content'] + '\n\n' + messages[1]['content'] -%}
{%- set messages = [{'role': 'user', 'content': asked}] + messages[2:] -%}
{%- endif -%}
"""


def template_of_trl(name: str) -> str:
    found = list(
        (ROOT / ".venv-model").glob(f"lib/python*/site-packages/trl/chat_templates/{name}")
    )
    return found[0].read_text()


def test_each_preset_trains_on_the_tokens_that_its_server_receives(tmp_path: Path) -> None:
    presets = {name: model_config(name) for name in SPECIALS}
    refusing = model_config(
        "gemma3",
        chat_template=template_of_trl(REFUSES_SYSTEM),
        template_head=INTO_THE_QUESTION,
    )
    in_pieces = {f"{name} in pieces": name for name in PIECES}
    the_tokens_are_the_same(
        tmp_path,
        presets
        | {"refuses system": refusing}
        | {name: presets[preset] for name, preset in in_pieces.items()},
        SPECIALS
        | {"refuses system": SPECIALS["gemma3"]}
        | {name: SPECIALS[preset] for name, preset in in_pieces.items()},
        pieces={name: PIECES[preset] for name, preset in in_pieces.items()},
    )


def test_every_preset_is_among_those_whose_tokens_are_compared() -> None:
    ours = {"hub", "local", "scratch", "scratch_small", "scratch_large"}
    assert {path.stem for path in (ROOT / "conf/model").glob("*.yaml")} - ours == set(SPECIALS)


@pytest.mark.parametrize("preset", sorted(set(SPECIALS) - set(CARRIED)))
def test_the_prompt_of_a_preset_asks_for_no_date(preset: str) -> None:
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda form: pytest.fail(f"{preset} asks for {form}")
    template = environment.from_string(model_config(preset).template)
    asked = [{"role": "user", "content": "What is blue?"}]
    text = template.render(
        messages=asked, add_generation_prompt=True, bos_token="", eos_token="<end>"
    )
    assert "What is blue?" in text


@pytest.mark.parametrize(
    ("preset", "template"),
    [
        ("qwen3", "qwen3.jinja"),
        ("llama32", "llama3_2.jinja"),
        ("phi3_mini", "phi3.jinja"),
        ("gemma3", "gemma3.jinja"),
    ],
)
def test_a_presets_template_is_the_one_that_it_names(preset: str, template: str) -> None:
    assert model_config(preset).chat_template == template_of_trl(template)
    assert f"trl/chat_templates/{template}" in (ROOT / f"conf/model/{preset}.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    [
        "Service.chat_prompt = lambda self, engine, chat: chat.messages[-1].content",
        "import axolotl.prompt_strategies.chat_template as c; "
        "c.ChatTemplateStrategy.find_first_eot_token = lambda *_, **__: -1; "
        "c.ChatTemplateStrategy.find_first_eos_token = lambda *_, **__: -1",
    ],
)
def test_a_planted_difference_of_the_tokens_is_found(tmp_path: Path, plant: str) -> None:
    with pytest.raises(AssertionError):
        the_tokens_are_the_same(tmp_path, {"zephyr": model_config("zephyr")}, SPECIALS, plant)


@pytest.mark.slow
def test_each_format_is_trained_on_and_served_as_it_is_written(tmp_path: Path) -> None:
    ends = {"chat": {"stop": "<|e|>"}}
    kinds = ["chat", "alpaca", "completion", "question_answer"]
    chosen = {kind: formats_of(kind, **ends.get(kind, {})) for kind in kinds}
    for kind, format in chosen.items():
        model = model_config(vocab_size=500, format=format.model_dump())
        scratch.untrained(model, [TEXT], tmp_path / kind)
        given(tmp_path / kind, model)
    rows = iter(prepared_and_served(*(tmp_path / kind for kind in kinds)))
    # The formats show a system message before the last question, and earlier ones without it.
    for kind in kinds:
        tokenizer = Tokenizer.from_file(str(tmp_path / kind / "tokenizer.json"))
        for turns in CONVERSATIONS:
            row = next(rows)
            if turns[0] is not SYSTEM or len(turns) == 3:
                check(kind, tokenizer, chosen[kind].stop, False, turns, row)
            prompt, completion = formats.render(chosen[kind], turns)
            assert tokenizer.decode(row[0], False) == prompt + completion, kind
