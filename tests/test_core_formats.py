"""Formats: no text is lost, the ambiguous is refused, and the template says what the row says."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stages.core import config, formats
from stages.core.errors import PipelineError
from stages.core.records import Example, Message, Reject
from stages.finetune import scratch

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-model/bin/python"

PREAMBLE = "Below is an instruction that describes a task. "
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. "
)
REQUEST = "Write a response that appropriately completes the request.\n\n"
SECTIONS: dict[str, dict[str, Any]] = {
    "chat": {
        "file": "jsonl",
        "id_key": "id",
        "messages_key": "messages",
        "role_key": "role",
        "content_key": "content",
        "stop": "<|end|>",
    },
    "alpaca": {
        "file": "jsonl",
        "id_key": "id",
        "instruction_key": "instruction",
        "input_key": "input",
        "output_key": "output",
        "preamble": PREAMBLE + REQUEST,
        "preamble_with_input": WITH_INPUT + REQUEST,
        "instruction_mark": "### Instruction:\n",
        "input_mark": "\n\n### Input:\n",
        "response_mark": "\n\n### Response:\n",
        "turn_separator": "\n\n",
        "stop": "<|end|>",
    },
    "completion": {
        "file": "jsonl",
        "id_key": "id",
        "prompt_key": "prompt",
        "completion_key": "completion",
        "context_prefix": "",
        "context_suffix": "\n\n===\n\n",
        "prompt_suffix": "\n\n###\n\n",
        "completion_prefix": " ",
        "turn_separator": "\n",
        "stop": " END",
    },
    "question_answer": {
        "file": "jsonl",
        "id_key": "id",
        "text_key": "text",
        "context_prefix": "context: ",
        "context_suffix": " ",
        "question_prefix": "question: ",
        "answer_mark": " answer:",
        "answer_prefix": " ",
        "turn_separator": "\n",
        "stop": " END",
    },
}
FLAT = ["alpaca", "completion", "question_answer"]


def load(kind: str, **changes: Any) -> Any:
    section = {"kind": kind} | SECTIONS[kind] | changes
    return config.load({"format": section}, "format", formats.Config)


def example(*turns: str, context: str | None = None, id: str = "e1") -> Example:
    """Questions and answers in turn."""
    messages = [] if context is None else [Message(role="system", content=context)]
    for place, content in enumerate(turns):
        messages.append(Message(role="assistant" if place % 2 else "user", content=content))
    return Example(
        id=id,
        kind="factual",
        track=None,
        messages=tuple(messages),
        question=turns[-2],
        answer=turns[-1],
        chunk_ids=(),
        evidence=(),
        call_id="call",
    )


SINGLE = example("What is it?", "A thing.")
GROUNDED = example("What is it?", "A thing.", context="[1] Things\nIt is a thing.\n\n[2] More")
MULTI = example("What is it?", "A thing.", "And now?", "Still a thing.")
BOTH = example("What is it?", "A thing.", "And now?", "Still.", context="[1] It is.\n\n[2] So.")
DIALOGUES = [SINGLE, GROUNDED, MULTI, BOTH]


def jinja(template: str, messages: Any, **variables: Any) -> str:
    """As transformers renders a chat template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    turns = [message.model_dump() for message in messages]
    return environment.from_string(template).render(messages=turns, **variables)


# --- rows --------------------------------------------------------------------------------------


def test_a_chat_row_is_what_axolotl_reads() -> None:
    (row,) = formats.rows(load("chat"), [GROUNDED])
    assert row == {
        "id": "e1",
        "messages": [
            {"role": "system", "content": "[1] Things\nIt is a thing.\n\n[2] More"},
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "A thing."},
        ],
    }


def test_an_alpaca_row_has_the_context_as_its_input_and_a_dialogue_in_its_instruction() -> None:
    single, grounded, multi, _ = formats.rows(load("alpaca"), DIALOGUES)
    assert single == {
        "id": "e1",
        "instruction": "What is it?",
        "input": "",
        "output": "A thing.",
    }
    assert grounded["input"] == "[1] Things\nIt is a thing.\n\n[2] More"
    assert multi["instruction"] == (
        "What is it?\n\n### Response:\nA thing.<|end|>\n\n### Instruction:\nAnd now?"
    )
    assert multi["output"] == "Still a thing."


def test_a_completion_row_has_separator_and_stop_word() -> None:
    single, grounded, multi, _ = formats.rows(load("completion"), DIALOGUES)
    assert single == {
        "id": "e1",
        "prompt": "What is it?\n\n###\n\n",
        "completion": " A thing. END",
    }
    assert grounded["prompt"].startswith("[1] Things\nIt is a thing.\n\n[2] More\n\n===\n\nWhat")
    assert multi["prompt"] == "What is it?\n\n###\n\n A thing. END\nAnd now?\n\n###\n\n"


def test_a_question_answer_row_is_one_text() -> None:
    rows = list(formats.rows(load("question_answer"), [SINGLE, MULTI]))
    assert rows[0] == {"id": "e1", "text": "question: What is it? answer: A thing. END"}
    assert rows[1]["text"] == (
        "question: What is it? answer: A thing. END\nquestion: And now? answer: Still a thing. END"
    )


def test_keys_have_any_name_and_the_id_may_be_left_out() -> None:
    cfg = load("completion", id_key=None, prompt_key="question text", completion_key="Ziel")
    assert [list(row) for row in formats.rows(cfg, DIALOGUES)] == [["question text", "Ziel"]] * 4
    cfg = load("chat", messages_key="conversations", role_key="from", content_key="value")
    (row,) = formats.rows(cfg, [SINGLE])
    assert row["conversations"][0] == {"from": "user", "value": "What is it?"}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("completion", {"completion_key": "prompt"}, "two keys are named 'prompt'"),
        ("alpaca", {"id_key": "input"}, "two keys are named 'input'"),
        ("completion", {"stop": ""}, r"format\.stop: '': string should have at least 1 character"),
        ("chat", {"file": "csv"}, r"format\.file: 'csv': expected 'jsonl'"),
        ("completion", {"separator": "#"}, r"format\.separator: unknown key"),
    ],
)
def test_a_format_that_cannot_be_is_one_line(kind: str, changes: Any, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        load(kind, **changes)


def test_a_question_without_its_answer_as_a_message_ends_with_it_all_the_same() -> None:
    asked = SINGLE.model_copy(update={"messages": SINGLE.messages[:1]})
    assert list(formats.rows(load("chat"), [asked])) == list(formats.rows(load("chat"), [SINGLE]))


# --- nothing is lost ---------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["\n\n###\n\n", "###", "\n", " END", "EN", "D", "===", "question: ", " answer:", " answer: ",
     "context: ", " ", "### Response:\n", "\n\n### Input:\n", "### Instruction:\n", "<|end|>",
     "<|user|>", "<|end", '"', '""', ",", ";", "\r\n", "\r", "\x85", "\u2028", "\x00", "{{ x }}",
     "{%- raw -%}", "'", "\\n", "\\"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=4).map("".join)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)


@st.composite
def hostile(draw: st.DrawFn) -> list[Example]:
    """Up to four dialogues that are made of marks and of what is near to them."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        turns = [text for pair in draw(TURNS) for text in pair]
        context = draw(st.none() | TEXTS)
        found.append(example(*turns, context=context, id=f"e{number}"))
    return found


OPTIONS = [(kind, "jsonl") for kind in SECTIONS] + [(kind, "csv") for kind in FLAT]


@pytest.mark.parametrize(("kind", "file"), OPTIONS)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(examples=hostile())
def test_every_text_is_read_back_or_its_example_is_a_counted_reject(
    tmp_path: Path, kind: str, file: str, examples: list[Example]
) -> None:
    cfg = load(kind, file=file)
    path = tmp_path / "rows"
    rejects = formats.write(cfg, examples, path)
    refused = {reject.id for reject in rejects}
    kept = [row.messages for row in examples if row.id not in refused]
    assert formats.read_back(cfg, path) == kept
    assert len(kept) + len(rejects) == len(examples)
    for row in examples:
        if row.id not in refused:
            assert not any(cfg.stop in turn.content for turn in row.messages)
    if file == "jsonl":  # also for one who reads it by str.splitlines
        assert len(path.read_text(encoding="utf-8").splitlines()) == len(kept)


@pytest.mark.parametrize("kind", FLAT)
def test_without_the_rule_texts_would_be_lost(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect that the property above is for."""
    cfg = load(kind)
    whole = "".join(formats.render(cfg, MULTI.messages))
    forged = whole[whole.index("A thing.") : -len(cfg.stop)]  # an answer that holds a turn
    row = example("What is it?", forged, "More?", "No.")
    refused = formats.refuse(cfg, row)
    assert refused is not None and refused.reason == formats.MARK_INSIDE
    monkeypatch.setattr(formats, "refuse", lambda cfg, example: None)
    (planted,) = formats.rows(cfg, [row])
    assert len(formats._messages(cfg, planted)) == len(row.messages) + 2


@pytest.mark.parametrize(
    ("kind", "turns", "context", "reason", "detail"),
    [
        ("completion", ("THE ENDING", "x"), None, formats.MARK_INSIDE, "' END'"),
        ("completion", ("a\n\n###\n\nb", "x"), None, formats.MARK_INSIDE, r"'\n\n###\n\n'"),
        ("completion", ("a", "b\n\n===\n\nc"), None, formats.MARK_INSIDE, r"'\n\n===\n\n'"),
        ("completion", ("a\n\n###", "x"), None, formats.AMBIGUOUS, "a\n\n###"),
        ("question_answer", ("an answer: what?", "x"), None, formats.MARK_INSIDE, "' answer:'"),
        ("alpaca", ("q", "a<|end|>"), None, formats.MARK_INSIDE, "'<|end|>'"),
        ("alpaca", ("q", "a"), "", formats.AMBIGUOUS, "q"),
        ("chat", ("q", "<|assistant|> a"), None, formats.MARK_INSIDE, "'<|assistant|>'"),
    ],
)
def test_a_text_with_a_mark_in_it_is_refused_with_the_mark(
    kind: str, turns: Any, context: str | None, reason: str, detail: str
) -> None:
    refused = formats.refuse(load(kind), example(*turns, context=context))
    assert refused == Reject(id="e1", reason=reason, detail=detail)


def test_a_chat_that_leaves_the_tokenizer_its_template_refuses_nothing() -> None:
    cfg = load("chat", stop=None)
    assert formats.refuse(cfg, example("<|user|>", "<|end|>")) is None
    assert formats.chat_template(cfg) is None


def test_messages_out_of_order_are_refused_by_flat_formats_alone() -> None:
    messages = (*SINGLE.messages, Message(role="system", content="Late."), *SINGLE.messages)
    odd = SINGLE.model_copy(update={"messages": messages})
    for kind in FLAT:
        refused = formats.refuse(load(kind), odd)
        assert refused is not None and refused.reason == formats.NO_DIALOGUE
    assert formats.refuse(load("chat"), odd) is None


@pytest.mark.parametrize("kind", FLAT)
def test_a_cell_of_a_million_characters_is_read_back(tmp_path: Path, kind: str) -> None:
    cfg = load(kind, file="csv")
    long = example("What?", "word " * 200_000 + ".")
    assert formats.write(cfg, [long], tmp_path / "rows.csv") == []
    assert formats.read_back(cfg, tmp_path / "rows.csv") == [long.messages]


def test_a_csv_has_a_line_of_keys(tmp_path: Path) -> None:
    cfg = load("alpaca", file="csv")
    formats.write(cfg, [SINGLE, example('Say "a,b"\nplease', "a,b")], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == (
        '"id","instruction","input","output"\n'
        '"e1","What is it?","","A thing."\n'
        '"e1","Say ""a,b""\nplease","","a,b"\n'
    )


@pytest.mark.parametrize(
    ("kind", "file", "text", "said"),
    [
        ("completion", "jsonl", '{"prompt": "q"}\n', ":1: .*expected the keys prompt, completion"),
        ("completion", "jsonl", "{}\n{\n", ":1: no row of kind completion"),
        ("question_answer", "jsonl", "\n{", ":1: not JSON"),
        ("question_answer", "jsonl", '{"text": "hello"}\n', ":1: .*expected 'question: ' before"),
        ("question_answer", "jsonl", '{"text": 3}\n', ":1: .*expected text in text"),
        ("completion", "csv", '"prompt","completion"\n"a"\n', ":2: 1 cells: expected 2"),
        ("completion", "csv", '"prompt","completion"\n"a', ":2: no row of CSV"),
        ("chat", "jsonl", '{"messages": ["x"]}\n', ":1: .*expected messages with role and content"),
        ("chat", "jsonl", '{"messages": [{"role": "a", "content": "b"}]}\n', ":1: .*should be"),
    ],
)
def test_a_row_that_is_none_is_named_by_its_line(
    tmp_path: Path, kind: str, file: str, text: str, said: str
) -> None:
    (tmp_path / "rows").write_text(text)
    with pytest.raises(PipelineError, match=said) as raised:
        formats.read_back(load(kind, file=file), tmp_path / "rows")
    assert "\n" not in str(raised.value)


def test_equal_examples_give_equal_bytes(tmp_path: Path) -> None:
    for kind, file in OPTIONS:
        cfg = load(kind, file=file)
        for name in ("a", "b"):
            formats.write(cfg, DIALOGUES, tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- the template ------------------------------------------------------------------------------


def text_of(kind: str, row: dict[str, Any]) -> str:
    """What a trainer makes of a row, by its own rule and not by ours."""
    if kind == "completion":
        return str(row["prompt"] + row["completion"])
    if kind == "question_answer":
        return str(row["text"])
    if kind == "chat":
        turns = [f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in row["messages"]]
        return "".join(turns)
    head = (WITH_INPUT if row["input"] else PREAMBLE) + REQUEST
    given = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
    asked = f"### Instruction:\n{row['instruction']}{given}\n\n### Response:\n"
    return f"{head}{asked}{row['output']}<|end|>"


@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize("dialogue", DIALOGUES, ids=["single", "grounded", "multi", "both"])
def test_the_template_renders_the_text_of_the_row(kind: str, dialogue: Example) -> None:
    cfg = load(kind)
    template, stop = formats.chat_template(cfg)
    (row,) = formats.rows(cfg, [dialogue])
    whole = jinja(template, dialogue.messages, add_generation_prompt=False)
    prompt = jinja(template, dialogue.messages[:-1], add_generation_prompt=True)
    assert whole == text_of(kind, row)
    assert whole.startswith(prompt) and whole.endswith(stop)
    assert (prompt, whole[len(prompt) :]) == formats.render(cfg, dialogue.messages)
    if kind == "completion":
        assert prompt == row["prompt"]


MARKS = st.text(min_size=1, max_size=6) | PIECES


@pytest.mark.parametrize("kind", FLAT)
@settings(deadline=None, max_examples=50)
@given(data=st.data(), examples=hostile())
def test_the_template_renders_the_text_of_every_row_whatever_the_marks(
    kind: str, data: st.DataObject, examples: list[Example]
) -> None:
    names = [n for n, value in SECTIONS[kind].items() if n[-4:] != "_key" and n != "file" and value]
    cfg = load(kind, **{name: data.draw(MARKS, label=name) for name in names})
    template, stop = formats.chat_template(cfg)
    for row in examples:
        if formats.refuse(cfg, row) is None:
            prompt, completion = formats.render(cfg, row.messages)
            assert jinja(template, row.messages) == prompt + completion
            asked = jinja(template, row.messages[:-1], add_generation_prompt=True)
            assert asked == prompt
            assert completion.endswith(stop)
            (read,) = formats.rows(cfg, [row])
            assert formats._messages(cfg, read) == row.messages


def test_a_template_that_forgets_a_mark_is_found_out() -> None:
    """The planted defect that the two tests above are for."""
    cfg = load("completion")
    template, _ = formats.chat_template(cfg)
    planted = template.replace("loop.index0 > 1", "loop.index0 > 2")
    assert planted != template
    said = ["".join(formats.render(cfg, dialogue.messages)) for dialogue in DIALOGUES]
    assert [jinja(template, dialogue.messages) for dialogue in DIALOGUES] == said
    assert [jinja(planted, dialogue.messages) for dialogue in DIALOGUES] != said


def test_the_template_of_a_chat_is_that_of_the_scratch_model() -> None:
    template, stop = formats.chat_template(load("chat"))
    assert stop == scratch.END
    for dialogue in DIALOGUES:
        for turns, more in ((dialogue.messages, False), (dialogue.messages[:-1], True)):
            ours = jinja(template, turns, add_generation_prompt=more)
            assert ours == jinja(scratch.TEMPLATE, turns, add_generation_prompt=more)


# --- through the real tokenizer ----------------------------------------------------------------

TOKENIZE = """
import json, sys

from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy
from axolotl.prompters import AlpacaPrompter
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = []
for case in json.load(sys.stdin):
    turns = case["messages"]
    tokenizer.chat_template = case["template"]
    tokenizer.add_special_tokens({"eos_token": case["stop"]})
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = tokenizer.apply_chat_template(
        turns[:-1], add_generation_prompt=True, return_dict=False
    )
    strategy = ChatTemplateStrategy(
        ChatTemplatePrompter(tokenizer, case["template"], max_length=4096),
        tokenizer, False, 4096, roles_to_train=["assistant"], train_on_eos="turn",
    )
    labels = strategy.tokenize_prompt({"messages": turns})["labels"]
    found.append({
        "text": tokenizer.apply_chat_template(turns, tokenize=False),
        "prompt": tokenizer.apply_chat_template(
            turns[:-1], add_generation_prompt=True, tokenize=False
        ),
        "same_tokens": whole[: len(prompt)] == prompt,
        "trained": tokenizer.decode([label for label in labels if label != -100]),
        "alpaca": "".join(AlpacaPrompter().build_prompt(**case["alpaca"])),
    })
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What transformers and Axolotl make of each kind and dialogue, the stop being the end token.

    A stop that is several tokens is rendered as well, but Axolotl's chat_template leaves it out of
    the labels: the model would never learn to stop.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    text = "What is it? A thing. question: And now? answer: Still a thing.\n\n### Input:\n" * 20
    scratch.tokenize([text], 400).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": scratch.END,
        "pad_token": scratch.PAD,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    cases = []
    for kind in SECTIONS:
        cfg = load(kind)
        template, stop = formats.chat_template(cfg)
        for dialogue in DIALOGUES:
            (alpaca,) = formats.rows(load("alpaca", id_key=None), [dialogue])
            cases.append(
                {
                    "kind": kind,
                    "template": template,
                    "stop": stop,
                    "messages": [turn.model_dump() for turn in dialogue.messages],
                    "alpaca": alpaca,
                    "expected": formats.render(cfg, dialogue.messages),
                }
            )
    out = folder / "found.json"
    done = subprocess.run(
        [PYTHON, "-c", TOKENIZE, folder, out],
        input=json.dumps(cases),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    yield [case | row for case, row in zip(cases, found, strict=True)]


@pytest.mark.slow
def test_the_real_tokenizer_renders_the_text_of_the_row(tokenized: list[dict[str, Any]]) -> None:
    for case in tokenized:
        prompt, completion = case["expected"]
        assert case["text"] == prompt + completion
        assert case["prompt"] == prompt


@pytest.mark.slow
def test_the_tokens_of_the_prompt_begin_those_of_the_whole(tokenized: list[dict[str, Any]]) -> None:
    """Else the model would be served after tokens that it was never trained after."""
    assert [case["kind"] for case in tokenized if not case["same_tokens"]] == []


@pytest.mark.slow
def test_axolotl_trains_the_answers_and_a_stop_that_is_the_end_token(
    tokenized: list[dict[str, Any]],
) -> None:
    for case in tokenized:
        answers = [turn["content"] for turn in case["messages"] if turn["role"] == "assistant"]
        trained = [part.strip() for part in case["trained"].split(case["stop"])]
        assert trained == [*answers, ""]


@pytest.mark.slow
def test_axolotls_own_alpaca_makes_our_text_of_our_row(tokenized: list[dict[str, Any]]) -> None:
    for case in tokenized:
        if case["kind"] == "alpaca":
            assert case["alpaca"] + scratch.END == "".join(case["expected"])
