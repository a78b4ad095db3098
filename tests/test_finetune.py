"""The fine-tune stage: rendering, the base's cache, a followed trainer, and real trainings."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stages import finetune
from stages.core import config, formats, progress, store
from stages.core import model as base
from stages.core.errors import PipelineError
from stages.core.records import Assignment, Document, Example, Message, Preference, Reject
from stages.finetune import failures, hardware, passthrough, recipe, scratch, trainer
from stages.finetune.hardware import CPU

ROOT = Path(__file__).parents[1]
PYTHON = str(ROOT / ".venv-model/bin/python")
TEXT = "# Notes\n\n## alpha\n\nThe alpha setting is the share of rows that are kept.\n" * 5

# A trainer that learns nothing, but speaks and writes like Axolotl under our plugin.
TRAINER = """
import json, os, runpy, sys, time
from pathlib import Path

import yaml

if sys.argv[-1].endswith("probe.py"):
    runpy.run_path(sys.argv[-1], run_name="__main__")
    sys.exit()
places = dict(a[2:].split("=", 1) for a in sys.argv if a.startswith("--") and "=" in a)
recipe = yaml.safe_load(Path(next(a for a in sys.argv if a.endswith(".yaml"))).read_text())
def model(out, name):
    weight = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    head = json.dumps({"w": weight, "__metadata__": {"recipe": json.dumps(recipe)}}).encode()
    (out / name).write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    for name in ("config.json", "tokenizer.json", "README.md", "debug.log"):
        (out / name).write_text(name + json.dumps(recipe, sort_keys=True))
out = Path(places.get("output_dir", "."))
if "axolotl.cli.merge_lora" in sys.argv:
    (out / "merged").mkdir()
    model(out / "merged", "model.safetensors")
    sys.exit()
report = open(os.environ["DOCENT_REPORT"], "a")
def say(**row):
    report.write(json.dumps(row) + "\\n")
    report.flush()
rows = [json.loads(line) for line in open(recipe["datasets"][0]["path"])]
long = [r for r in rows if len(json.dumps(r)) > 2000]
for row in long:
    say(id=row["id"], num_tokens=999)
say(num_parameters=7, num_examples=len(rows) - len(long))
BEFORE
for step in (1, 2, 3, 4):
    more = {"rewards/accuracies": 1.0, "rewards/margins": 2.0} if recipe.get("rl") else {}
    say(step=step, total=4, loss=4.0 / step, learning_rate=0.1, tokens=step, **more)
report.write('{"step": 4, "total": 4, "eval_')
report.flush()
time.sleep(0.3)
report.write('loss": 0.5}\\n')
report.flush()
out.mkdir(parents=True)
if "adapter" in recipe:
    model(out, "adapter_model.safetensors")
    about = {"r": recipe["lora_r"], "target_modules": ["v", "q"]}
    about["base_model_name_or_path"] = str(out)
    (out / "adapter_config.json").write_text(json.dumps(about))
else:
    model(out, "model.safetensors")
AFTER
"""


# --- what a run reads --------------------------------------------------------------------------


def section(option: str, **values: Any) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "conf" / f"{option}.yaml").read_text())
    for chosen in found.pop("defaults", []):  # as Hydra composes them
        if isinstance(chosen, dict):
            for group, name in chosen.items():
                found[group] = section(f"{option.rpartition('/')[0]}/{group}/{name}")
    return found | ({"seed": 0} if "seed" in found else {}) | values


def tuning_config(option: str = "full", zero: str | None = None, **values: Any) -> Any:
    values |= {"deepspeed": section(f"finetune/deepspeed/{zero}")} if zero else {}
    params = {"finetune": section(f"finetune/{option}", **values)}
    return config.load(params, "finetune", finetune.Config)


def model_config(option: str = "scratch", **values: Any) -> Any:
    return config.load({"model": section(f"model/{option}", **values)}, "model", base.Config)


def example(number: int, answer: str = "", partition: str = "train") -> Example:
    question = f"What is setting {number}?"
    return Example(
        id=f"{partition}{number}",
        kind="factual",
        track=None,
        messages=(Message(role="user", content=question),),
        question=question,
        # U+2028 ends a line for str.splitlines, and no row of a JSONL file.
        answer=answer or f"Setting {number} is the share\u2028of rows that are kept, of {number}.",
        chunk_ids=(),
        evidence=(),
        call_id="call",
    )


class Workspace:
    """A folder with the stage's inputs, and what a run on it does."""

    metrics: dict[str, float]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.give(train=[example(n) for n in range(8)], validation=[example(0, "", "validation")])
        documents = [
            Document(id=f"d{n}", url=f"u{n}", title="t", text=f"{TEXT} page {n}", source="s")
            for n in range(3)
        ]
        store.write(self.data / "documents.jsonl", documents)
        self.assign(d0="train", d1="train", d2="test")
        pairs = [
            Preference(example_id=f"train{n}", chosen=f"{n} rows.", rejected=f"{n + 1} rows.")
            for n in range(8)
        ]
        store.write(self.data / "preferences.jsonl", pairs)

    def give(self, **partitions: list[Example]) -> None:
        for name, rows in partitions.items():
            store.write(self.data / f"{name}.jsonl", rows)

    def assign(self, **partitions: Any) -> None:
        rows = [Assignment(document_id=d, cluster_id=d, partition=p) for d, p in partitions.items()]
        store.write(self.data / "assignment.jsonl", rows)

    def trainer(self, before: str = "", after: str = "") -> str:
        """The command of a fake model environment, with code run before and after its steps."""
        path = self.folder / "trainer.py"
        path.write_text(TRAINER.replace("BEFORE", before).replace("AFTER", after))
        return shlex.join([sys.executable, str(path)])

    def run(self, cfg: Any, model: Any, out: str = "data/finetune") -> dict[str, float]:
        names = ("documents", "assignment", "train", "validation", "preferences")
        inputs = {name: self.data / f"{name}.jsonl" for name in names}
        return finetune.run(cfg, model, **inputs, out=self.folder / out)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    yield Workspace(tmp_path)


def local_model(folder: Path, *missing: str) -> Any:
    names = {"config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"}
    folder.mkdir(exist_ok=True)
    for name in names - set(missing):
        (folder / name).write_text("{}")
    return model_config("local", path=str(folder))


# --- rendering ---------------------------------------------------------------------------------


def rendered_by(
    cfg: Any, model: Any, has_validation: bool = False, machine: hardware.Machine = CPU
) -> dict[str, Any]:
    """The YAML of the instruction tuning."""
    phases = recipe.phases(cfg, model, machine, has_validation)
    return {phase.name: phase.recipe for phase in phases}["tune"]


@settings(deadline=None)
@given(st.sampled_from(sorted(passthrough.OWNED)), st.integers())
def test_a_passed_through_key_that_is_ours_is_an_error_that_names_both(
    key: str, value: int
) -> None:
    cfg = tuning_config(axolotl={key: value})
    with pytest.raises(PipelineError) as error:
        rendered_by(cfg, model_config(), has_validation=True)
    assert f"finetune.axolotl.{key}: {value}" in str(error.value)
    assert passthrough.OWNED[key] in str(error.value)


@pytest.mark.parametrize("option", ["full", "lora"])
@pytest.mark.parametrize("kind", ["scratch", "hub", "local"])
def test_every_key_that_we_render_is_refused_in_the_pass_through(option: str, kind: str) -> None:
    cfg = tuning_config(option, axolotl={}, zero="zero2", save_steps=5)
    model = model_config(kind, **({} if kind == "scratch" else {"chat_template": "x"}))
    rendered = rendered_by(cfg, model, has_validation=True)
    suits = hardware.keys(cfg, model, CPU).keys()  # ours unless the user says otherwise
    for key in rendered.keys() - {"plugins", "optimizer"} - suits:
        passed = cfg.model_copy(update={"axolotl": {key: 1}})
        with pytest.raises(PipelineError, match=key):
            rendered_by(passed, model, has_validation=True)


@settings(deadline=None)
@given(st.dictionaries(st.text("xyz", min_size=1), st.integers() | st.lists(st.text()), max_size=4))
def test_any_other_key_of_axolotl_passes_through_untouched(keys: dict[str, Any]) -> None:
    rendered = rendered_by(tuning_config(axolotl=keys), model_config(), has_validation=False)
    assert keys.items() <= yaml.safe_load(recipe.render(rendered)).items()


def test_muon_trains_a_scratch_model_where_it_can_and_another_optimizer_may_be_named() -> None:
    def chosen(cfg: Any, model: Any) -> Any:
        return rendered_by(cfg, model, has_validation=False)["optimizer"]

    assert chosen(tuning_config(), model_config()) == "muon"
    assert chosen(tuning_config(zero="zero1"), model_config()) == "adamw_torch_fused"
    assert chosen(tuning_config("lora"), model_config()) == "adamw_torch_fused"
    assert chosen(tuning_config(), model_config("hub")) == "adamw_torch_fused"
    assert chosen(tuning_config(axolotl={"optimizer": "sgd"}), model_config()) == "sgd"


def test_a_users_plugin_stands_beside_ours() -> None:
    cfg = tuning_config(axolotl={"plugins": ["other.Plugin"]})
    rendered = rendered_by(cfg, model_config(), has_validation=False)
    assert rendered["plugins"] == ["other.Plugin", recipe.PLUGIN]
    assert recipe.pretraining(cfg, model_config(), CPU)["plugins"] == [recipe.PLUGIN]


def test_the_loss_is_on_the_answers_and_their_ends_only() -> None:
    rendered = rendered_by(tuning_config(), model_config(), has_validation=True)
    for dataset in (*rendered["datasets"], *rendered["test_datasets"]):
        assert dataset["roles_to_train"] == ["assistant"]
        assert dataset["train_on_eos"] == "turn"


def test_a_hub_model_is_named_by_id_and_revision_and_nothing_is_built() -> None:
    model = model_config("hub", id="org/name", revision="abc123", chat_template="{{ messages }}")
    rendered = rendered_by(tuning_config(), model, has_validation=False)
    assert (rendered["base_model"], rendered["revision_of_model"]) == ("org/name", "abc123")
    assert rendered["chat_template_jinja"] == "{{ messages }}"
    assert "test_datasets" not in rendered


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_deepspeed_stage_is_rendered_as_its_number(stage: int) -> None:
    cfg = tuning_config(zero=f"zero{stage}")
    rendered = rendered_by(cfg, model_config(), has_validation=False)
    assert rendered["deepspeed"]["zero_optimization"]["stage"] == stage


def test_without_deepspeed_or_an_adapter_neither_is_rendered() -> None:
    rendered = rendered_by(tuning_config(), model_config(), has_validation=False)
    assert not {"deepspeed", "adapter", "lora_r"} & rendered.keys()


def test_an_adapter_is_rendered_for_the_tuning_and_not_for_the_base() -> None:
    cfg = tuning_config("lora", lora_r=8, lora_alpha=24)
    rendered = rendered_by(cfg, model_config(), has_validation=False)
    assert (rendered["adapter"], rendered["lora_r"], rendered["lora_alpha"]) == ("lora", 8, 24)
    base_recipe = recipe.pretraining(cfg, model_config(), CPU)
    assert not any(key.startswith(("lora", "adapter")) for key in base_recipe)


def test_equal_configs_render_equal_bytes_without_a_place_of_this_machine() -> None:
    texts = {
        recipe.render(rendered_by(tuning_config(), model_config(), has_validation=True))
        for _ in range(3)
    }
    (text,) = texts
    assert str(ROOT) not in text
    assert "&id" not in text


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("full", {"deepspeed": {"kind": "zero", "stage": 4, "offload": False}}),
        ("full", {"lora_r": 8}),
        ("lora", {"lora_r": 0}),
        ("full", {"num_processes": 0}),
        ("full", {"learning_rate": -1.0}),
        ("full", {"kind": "dora"}),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_key(kind: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=next(iter(wrong))) as error:
        tuning_config(kind, **wrong)
    assert "\n" not in str(error.value)


# --- the scratch model -------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5), st.text())
def test_the_tokenizer_gives_back_any_text(texts: list[str], text: str) -> None:
    tokenizer = scratch.tokenize(texts, 300)
    plain = text.replace("<|", "< |")
    assert tokenizer.decode(tokenizer.encode(plain).ids) == plain


def test_the_tokenizer_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = "from stages.finetune import scratch; print(scratch.tokenize({}, 400).to_str())"
    texts = [f"{TEXT} {n} words that differ, {n * 7}" for n in range(20)]
    said = {
        subprocess.run(
            [sys.executable, "-c", code.format(repr(texts))],
            env=os.environ | {"PYTHONHASHSEED": str(n), "RAYON_NUM_THREADS": str(n + 1)},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for n in range(3)
    }
    assert len(said) == 1


def test_the_ends_of_turns_are_single_tokens_and_the_template_places_them(tmp_path: Path) -> None:
    jinja2 = pytest.importorskip("jinja2")
    scratch.untrained(model_config(vocab_size=400), [TEXT], tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    template = jinja2.Template((tmp_path / "chat_template.jinja").read_text())
    turns = [{"role": "user", "content": "alpha?"}, {"role": "assistant", "content": "rows"}]
    text = template.render(messages=turns, add_generation_prompt=False)
    assert text == "<|user|>alpha?<|end|><|assistant|>rows<|end|>"
    prompt = template.render(messages=turns[:1], add_generation_prompt=True)
    assert text.startswith(prompt)
    shape = json.loads((tmp_path / "config.json").read_text())
    ids = tokenizer.encode(text).ids
    assert ids[-1] == shape["eos_token_id"] == tokenizer.token_to_id(scratch.END)
    assert ids.count(shape["eos_token_id"]) == 2
    assert shape["vocab_size"] == tokenizer.get_vocab_size()


@pytest.mark.parametrize("num_heads", [3, 7, 256])
def test_heads_that_do_not_divide_the_width_are_one_line(
    workspace: Workspace, num_heads: int
) -> None:
    with pytest.raises(PipelineError, match=r"model.num_heads.*model.hidden_size \(256\)"):
        workspace.run(tuning_config(python=workspace.trainer()), model_config(num_heads=num_heads))


def test_a_base_is_built_once_for_equal_documents_and_rebuilt_for_others(
    workspace: Workspace,
) -> None:
    cfg, model = tuning_config(python=workspace.trainer()), model_config(vocab_size=400)

    def kept() -> set[str]:
        return {path.name for path in Path(".cache/models/base").iterdir() if path.is_dir()}

    first = workspace.run(cfg, model)
    (key,) = kept()
    marked = Path(".cache/models/base", key, "model", "config.json")
    marked.write_text("marked")
    again = workspace.run(cfg.model_copy(update={"learning_rate": 0.5, "num_processes": 2}), model)
    assert kept() == {key}
    assert again == first
    assert Path("data/finetune/base/config.json").read_text() == "marked"

    workspace.run(cfg, model.model_copy(update={"hidden_size": 64}))
    assert len(kept()) == 2
    workspace.run(cfg.model_copy(update={"seed": 1}), model)
    assert len(kept()) == 3
    workspace.assign(d0="train", d1="train", d2="train")
    workspace.run(cfg, model)
    assert len(kept()) == 4


def test_a_held_out_document_shapes_no_base(workspace: Workspace) -> None:
    cfg, model = tuning_config(python=workspace.trainer()), model_config(vocab_size=400)
    workspace.run(cfg, model)
    documents = list(store.read(Path("data/documents.jsonl"), Document))
    documents[2] = documents[2].model_copy(update={"text": "another page, held out"})
    store.write(Path("data/documents.jsonl"), documents)
    workspace.run(cfg, model)
    assert len([p for p in Path(".cache/models/base").iterdir() if p.is_dir()]) == 1


def test_a_base_that_failed_leaves_nothing_in_the_cache(workspace: Workspace) -> None:
    failing = tuning_config(python=workspace.trainer("sys.exit('ValueError: no')"))
    with pytest.raises(PipelineError):
        workspace.run(failing, model_config(vocab_size=400))
    assert [path.name for path in Path(".cache/models/base").iterdir() if path.is_dir()] == []


# --- a run with a fake trainer -----------------------------------------------------------------


def test_a_run_leaves_the_model_the_recipe_the_curve_and_its_metrics(workspace: Workspace) -> None:
    cfg = tuning_config(python=workspace.trainer())
    metrics = workspace.run(cfg, model_config(vocab_size=400))
    out = Path("data/finetune")
    assert metrics == {
        "base_loss": 1.0,
        "train_loss": 1.0,
        "num_steps": 4,
        "num_examples": 8,
        "num_truncated": 0,
        "num_parameters": 7,
        "validation_loss": 0.5,
    }
    names = {"config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in (out / "model").iterdir()} == names
    assert {path.name for path in (out / "base").iterdir()} == names
    assert yaml.safe_load((out / "axolotl.yaml").read_text())["base_model"] == "./base"
    with (out / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([4, 2, 4 / 3, 1], rel=1e-5)
    assert (out / "rejects.jsonl").read_text() == ""
    assert not any(path.is_dir() for path in Path(".cache/training").iterdir())


def test_a_chat_ends_with_its_answer_whether_the_example_has_that_turn_or_not(
    workspace: Workspace,
) -> None:
    asked = example(1, "yes")
    answered = asked.model_copy(
        update={
            "id": "b",
            "messages": (*asked.messages, Message(role="assistant", content=asked.answer)),
        }
    )
    workspace.give(train=[asked, answered])
    workspace.run(tuning_config(python=workspace.trainer()), local_model(Path("m")))
    first, second = map(json.loads, Path("data/finetune/train.jsonl").read_text().splitlines())
    assert first["messages"] == second["messages"]
    assert first["messages"][-1] == {"role": "assistant", "content": "yes"}


def test_an_example_above_the_context_is_a_counted_reject(workspace: Workspace) -> None:
    workspace.give(train=[*(example(n) for n in range(19)), example(99, "long " * 500)])
    metrics = workspace.run(tuning_config(python=workspace.trainer()), local_model(Path("m")))
    assert (metrics["num_examples"], metrics["num_truncated"]) == (19, 1)
    (reject,) = store.read(Path("data/finetune/rejects.jsonl"), Reject)
    assert reject.id == "train99"
    assert "999 tokens of 2048" in reject.detail


def test_too_many_rejects_are_an_error(workspace: Workspace) -> None:
    workspace.give(train=[example(1), example(99, "long " * 500)])
    with pytest.raises(PipelineError, match=r"max_reject_rate.*1 of 2.*context_tokens \(2048\)"):
        workspace.run(tuning_config(python=workspace.trainer()), local_model(Path("m")))


def test_an_example_that_axolotl_drops_silently_is_an_error(workspace: Workspace) -> None:
    dropping = workspace.trainer("say(num_parameters=7, num_examples=len(rows) - 3)")
    with pytest.raises(PipelineError, match="trained on 5 of 8"):
        workspace.run(tuning_config(python=dropping), local_model(Path("m")))


@pytest.mark.parametrize("option", ["full", "dpo"])
def test_what_too_many_rejects_end_is_ended_before_its_first_step(
    workspace: Workspace, option: str
) -> None:
    stepped = workspace.folder / "stepped"
    command = workspace.trainer(f"time.sleep(30); open({str(stepped)!r}, 'w').close()")
    workspace.give(train=[example(1), example(99, "long " * 500)])
    pairs = [
        Preference(example_id=f"train{n}", chosen="no " * 9 * n, rejected="n") for n in (1, 99)
    ]
    store.write(Path("data/preferences.jsonl"), pairs)
    more = {"start": "base"} if option == "dpo" else {}
    cfg = tuning_config(option, python=command, **more)
    assert "max_reject_rate" in one_line(workspace, cfg, local_model(Path("m")))
    assert not stepped.exists()
    rejects = list(store.read(Path("data/finetune/rejects.jsonl"), Reject))
    assert [reject.reason for reject in rejects] == ["longer than the context"] * len(rejects)
    assert rejects


@pytest.mark.parametrize("save_steps", [None, 0.1])
def test_a_training_whose_card_cannot_be_written_is_not_made_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, save_steps: float | None
) -> None:
    ran = workspace.folder / "ran"
    command = workspace.trainer(f"open({str(ran)!r}, 'a').write('x')")
    cfg, model = tuning_config(python=command, save_steps=save_steps), local_model(Path("m"))
    with monkeypatch.context() as patch:
        patch.setattr(finetune.card, "render", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workspace.run(cfg, model)
    assert workspace.run(cfg, model)["num_steps"] == 4
    assert ran.read_text() == "x"
    assert not any(path.is_dir() for path in Path(".cache/training").iterdir())


def test_figures_that_were_not_told_are_no_traceback(workspace: Workspace) -> None:
    rare = (
        "say(step=4, total=4, learning_rate=.1, tokens=4, FIGURES); out.mkdir(parents=True)\n"
        "model(out, 'model.safetensors'); sys.exit()"
    )
    cfg = tuning_config(python=workspace.trainer(rare.replace("FIGURES", "eval_loss=1.0")))
    assert "finetune.axolotl.logging_steps" in one_line(workspace, cfg, local_model(Path("m")))
    cfg = tuning_config(python=workspace.trainer(rare.replace("FIGURES", "loss=1.0")), seed=1)
    metrics = workspace.run(cfg, local_model(Path("m")))
    assert metrics["train_loss"] == 1.0 and "validation_loss" not in metrics


def test_steps_are_shown_while_the_trainer_runs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[progress.Step] = []
    gate = workspace.folder / "go"

    def listen(step: progress.Step) -> None:
        seen.append(step)
        if step.done == 4:
            gate.touch()  # the trainer goes on only when its last step has been shown

    monkeypatch.setattr(progress, "_listeners", [listen])
    waiting = workspace.trainer(after=f"while not os.path.exists({str(gate)!r}): time.sleep(0.05)")
    workspace.run(tuning_config(python=waiting), local_model(Path("m")))
    steps = [step for step in seen if step.unit == "steps"]
    assert [(step.done, step.total) for step in steps] == [(n, 4) for n in (1, 2, 3, 4, 4)]
    assert steps[0].metrics == {"loss": 4.0, "learning_rate": 0.1, "tokens": 1}
    assert steps[-1].metrics == {"eval_loss": 0.5}


def test_the_base_and_the_tuning_show_their_losses_under_different_names(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[set[str]] = []
    monkeypatch.setattr(progress, "_listeners", [lambda step: names.append(set(step.metrics))])
    workspace.run(tuning_config(python=workspace.trainer()), model_config(vocab_size=400))
    told = [seen for seen in names if seen]
    assert [{"base_loss"} <= seen for seen in told] == [True] * 4 + [False] * 6
    assert told[4] == {"base_eval_loss"} and told[-1] == {"eval_loss"}


def test_a_checkpoint_of_the_same_training_is_resumed_and_of_another_is_not(
    workspace: Workspace,
) -> None:
    stop = workspace.folder / "stop"
    command = workspace.trainer(
        f"from pathlib import Path; mark = Path(places['output_dir']).parent / 'checkpoint'\n"
        f"print('resumed' if mark.exists() else 'fresh', file=open({str(stop)!r}, 'a'))\n"
        f"if not mark.exists(): mark.touch(); sys.exit('RuntimeError: power cut')\n"
    )
    cfg, model = tuning_config(python=command, save_steps=2), local_model(Path("m"))
    with pytest.raises(PipelineError, match="power cut"):
        workspace.run(cfg, model)
    with pytest.raises(PipelineError, match="power cut"):
        workspace.run(cfg.model_copy(update={"learning_rate": 0.5}), model)
    workspace.run(cfg, model)
    assert stop.read_text().split() == ["fresh", "fresh", "resumed"]


def test_what_another_launcher_left_is_gone_after_a_hosted_training(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lineage.json", "README.md", "curve.csv", "model/config.json"):
        store.write_text(Path("data/finetune", name), "{}")
    monkeypatch.setattr(finetune, "tune_hosted", lambda *_: {})
    workspace.run(tuning_config(launcher=section("finetune/launcher/openai")), model_config())
    assert list(Path("data/finetune").iterdir()) == []


def test_a_failed_point_of_a_sweep_names_a_log_that_is_still_there(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = workspace.folder / ".dvc/tmp/exps/point"
    shutil.copytree(workspace.data, temporary / "data")
    monkeypatch.setenv("DVC_ROOT", str(workspace.folder))
    monkeypatch.chdir(temporary)
    cfg = tuning_config(python=workspace.trainer("raise ValueError('no')"))
    point = Workspace.__new__(Workspace)
    point.folder, point.data = temporary, temporary / "data"
    said = one_line(point, cfg, local_model(Path("m")))
    shutil.rmtree(temporary)
    named = workspace.folder / said.rpartition("log: ")[2].rstrip(")")
    assert "ValueError: no" in named.read_text()


# --- endings -----------------------------------------------------------------------------------

FAILURES = {
    "raise ValueError('learning_rate must fall')": "ValueError: learning_rate must fall",
    "sys.exit('no axolotl here')": "no axolotl here",
    "say(error='the loss is nan at step 3'); raise SystemExit(1)": "the loss is nan at step 3",
    "os.kill(os.getpid(), 9)": "it was killed (signal 9)",
    "raise RuntimeError('CUDA out of memory')": "finetune.micro_batch_size",
    "raise OSError(28, 'No space left on device')": "no room is left on the disk",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_trainer_is_one_line_with_its_reason_and_its_log(
    workspace: Workspace, failure: str
) -> None:
    with pytest.raises(PipelineError) as error:
        workspace.run(tuning_config(python=workspace.trainer(failure)), local_model(Path("m")))
    said = str(error.value)
    assert FAILURES[failure] in said
    assert "\n" not in said
    assert Path(said.rpartition("log: ")[2].rstrip(")")).exists()
    assert not Path("data/finetune/model").exists()


TORCHRUN = """\
W1120 10:52:28.437000 9190 torch/utils/_pytree.py:630] <enum 'KernelPreference'> is an Enum
[rank0]: Traceback (most recent call last):
[rank0]:   File "axolotl/cli/train.py", line 205, in <module>
[rank0]:     fire.Fire(do_cli)
[rank0]: pydantic_core._pydantic_core.ValidationError: 1 validation error for AxolotlInputCfg
[rank0]: lora_r
[rank0]:   Input should be a valid integer [type=int_type, input_value='x']

E1120 11:00:00.000000 99 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: 1)
Traceback (most recent call last):
  File "torchrun", line 7, in <module>
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
axolotl.cli.train FAILED
"""


def test_the_decisive_line_is_the_trainers_own_and_not_torchruns() -> None:
    said = failures.decisive(TORCHRUN)
    assert said.startswith("pydantic_core._pydantic_core.ValidationError")
    assert "lora_r Input should be a valid integer" in said
    assert "ChildFailed" not in said


def refusal(key: str, said: str) -> str:
    """A log of pydantic's, as Axolotl ends with it."""
    return (
        "Traceback (most recent call last):\n  File 'x', line 1\n"
        f"pydantic_core._pydantic_core.ValidationError: 1 validation error for AxolotlInputConfig\n"
        f"{key}  {said} [type=value_error, input_value={{'lora_r': 8, 'seed': 1}}]\n"
        "    For further information visit https://errors.pydantic.dev/2.12/v/value_error\n"
    )


TWO = "save_steps and saves_per_epoch are mutually exclusive, please use one."
REFUSED = {
    TORCHRUN: "finetune.lora_r: Input should be a valid integer",
    refusal(
        "", f"Value error, {TWO}"
    ): f"finetune.save_steps and finetune.axolotl.saves_per_epoch: {TWO}",
    refusal("", "Value error, no such thing"): "finetune.axolotl: no such thing",
    refusal(
        "sample_packing\n", "Input should be a valid boolean"
    ): "finetune.axolotl.sample_packing: Input should be a valid boolean",
    refusal(
        "datasets.0.type\n", "Value error, it is odd"
    ): "the examples of the synthesize stage: it is odd",
}


@pytest.mark.parametrize("log", REFUSED)
def test_a_value_that_axolotl_refuses_is_told_with_our_key(log: str) -> None:
    said = failures.explain("", 1, log, {"saves_per_epoch": 2, "seed": 1})
    assert said == f"{REFUSED[log]} (look at conf/finetune)"


def test_the_keys_of_a_recipe_are_known_where_axolotl_refuses_several(
    workspace: Workspace,
) -> None:
    command = workspace.trainer(
        "print('pydantic.ValidationError: 1 validation error for X Value error, "
        "neftune_noise_alpha and seed'); sys.exit(1)"
    )
    cfg = tuning_config(python=command, axolotl={"neftune_noise_alpha": 5})
    said = one_line(workspace, cfg, local_model(Path("m")))
    assert "finetune.axolotl.neftune_noise_alpha and finetune.seed: " in said


@settings(deadline=None)
@given(st.text(max_size=300))
def test_the_decisive_line_of_any_log_is_one_line(log: str) -> None:
    said = failures.decisive(log)
    assert said
    assert "\n" not in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_trainer_does_not_outlive_its_stage(workspace: Workspace, how: signal.Signals) -> None:
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    mark = workspace.folder / "trainer.pid"
    command = workspace.trainer(
        f"open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    code = (
        "import sys; from pathlib import Path; from stages.finetune import starts, trainer\n"
        "start, here = starts.Start('tune', '', 'axolotl.yaml', {}), Path.cwd()\n"
        "log = trainer.log('tune')\n"
        "trainer.axolotl(starts.job(start, here, here / 'work', log, sys.argv[1], offline=True))"
    )
    store.write_text(Path("axolotl.yaml"), yaml.safe_dump({"datasets": [{"path": "chats"}]}))
    Path("chats").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen([sys.executable, "-c", code, command], env=environment)
    while not (mark.exists() and mark.read_text()):
        assert stage.poll() is None
        time.sleep(0.02)
    child = psutil.Process(int(mark.read_text()))
    stage.send_signal(how)
    stage.wait(timeout=20)
    _, alive = psutil.wait_procs([child], timeout=20)
    assert alive == []


# --- a user's mistakes -------------------------------------------------------------------------


def one_line(workspace: Workspace, cfg: Any, model: Any, out: str = "data/finetune") -> str:
    with pytest.raises(PipelineError) as error:
        workspace.run(cfg, model, out)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_model_environment_names_its_remedy(workspace: Workspace) -> None:
    said = one_line(workspace, tuning_config(python="no/python"), local_model(Path("m")))
    assert "finetune.python" in said
    assert "make setup" in said


def test_a_missing_model_folder_is_named(workspace: Workspace) -> None:
    model = model_config("local", path="models/none")
    said = one_line(workspace, tuning_config(python=workspace.trainer()), model)
    assert said.startswith("model.path: 'models/none'")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_folder_that_lacks_a_file_says_which(workspace: Workspace, name: str) -> None:
    said = one_line(
        workspace, tuning_config(python=workspace.trainer()), local_model(Path("m"), name)
    )
    assert name.replace("model.safe", "*.safe") in said


def test_a_tokenizer_without_a_chat_template_asks_for_one(workspace: Workspace) -> None:
    cfg, model = (
        tuning_config(python=workspace.trainer()),
        local_model(Path("m"), "chat_template.jinja"),
    )
    assert "model.chat_template" in one_line(workspace, cfg, model)
    workspace.run(cfg, model.model_copy(update={"chat_template": "{{ messages }}"}))
    assert Path("data/finetune/model/config.json").exists()


def test_no_example_or_no_train_document_is_an_error(workspace: Workspace) -> None:
    cfg = tuning_config(python=workspace.trainer())
    workspace.assign(d0="test", d1="validation", d2="test")
    said = one_line(workspace, cfg, model_config(vocab_size=400))
    assert "no document is assigned to train" in said
    workspace.give(train=[])
    assert "no example to train on" in one_line(workspace, cfg, model_config(vocab_size=400))


# --- the plugin --------------------------------------------------------------------------------


class Stub(types.ModuleType):
    """A module of the model environment, as far as the plugin reads it."""

    def __init__(self, name: str, **values: Any) -> None:
        super().__init__(name)
        self.__dict__.update(values)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin's module over stubs of torch, transformers and Axolotl, on a host with CUDA."""
    manager = types.SimpleNamespace(get_input_args=list)
    fields = dict.fromkeys(("learning_rate", "plugins", "lora_mlp_kernel"))
    stubs = [
        Stub(
            "torch",
            cuda=types.SimpleNamespace(is_available=lambda: True, max_memory_allocated=lambda: 7),
        ),
        Stub("transformers", TrainerCallback=object, set_seed=lambda seed: None),
        Stub("axolotl"),
        Stub("axolotl.integrations"),
        Stub(
            "axolotl.integrations.base",
            BasePlugin=object,
            PluginManager=types.SimpleNamespace(get_instance=lambda: manager),
        ),
        Stub("axolotl.utils"),
        Stub("axolotl.utils.schemas"),
        Stub(
            "axolotl.utils.schemas.config",
            AxolotlInputConfig=types.SimpleNamespace(model_fields=fields),
        ),
    ]
    for stub in stubs:
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.syspath_prepend(str(trainer.ENVIRONMENT))
    monkeypatch.delitem(sys.modules, "docent_axolotl", raising=False)
    import docent_axolotl  # type: ignore[import-not-found]

    monkeypatch.setattr(docent_axolotl.ctypes, "CDLL", lambda name: Stub("c", prctl=lambda *a: 0))
    yield docent_axolotl
    sys.modules.pop("docent_axolotl", None)


def test_with_cuda_the_plugin_leaves_the_keys_and_the_libraries_of_processes(plugin: Any) -> None:
    cfg = {"learning_rate": 1.0, "plugins": [recipe.PLUGIN]}
    before = set(sys.modules)
    plugin.Plugin().register(cfg)
    assert cfg == {"learning_rate": 1.0, "plugins": [recipe.PLUGIN]}
    assert not {name for name in set(sys.modules) - before if "accelerate" in name}
    arguments = plugin.Plugin().get_training_args(types.SimpleNamespace(deepspeed=None))
    assert not {"bf16", "use_cpu"} & arguments.keys()
    assert arguments["logging_nan_inf_filter"] is False


def test_the_plugin_tells_how_many_processes_train(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCENT_REPORT", str(tmp_path / "report"))
    monkeypatch.setenv("WORLD_SIZE", "8")
    model = types.SimpleNamespace(parameters=list)
    trainer = types.SimpleNamespace(model=model, train_dataset=["a", "b"])
    plugin.Plugin().add_callbacks_post_trainer({}, trainer)
    said = json.loads((tmp_path / "report").read_text())
    assert said == {"num_parameters": 0, "num_examples": 2, "num_processes": 8}


def test_a_key_that_axolotl_does_not_know_is_told_with_ours(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCENT_REPORT", str(tmp_path / "report"))
    with pytest.raises(SystemExit):
        plugin.Plugin().register({"lerning_rate": 1})
    said = json.loads((tmp_path / "report").read_text())["error"]
    assert said.startswith("finetune.axolotl.lerning_rate")
    assert "did you mean learning_rate?" in said


def test_the_last_step_is_always_logged(plugin: Any) -> None:
    for step, is_logged in ((8, False), (9, True)):
        state = types.SimpleNamespace(global_step=step, max_steps=9)
        control = types.SimpleNamespace(should_save=False, should_log=False)
        plugin.Reporter().on_step_end(None, state, control)
        assert control.should_log is is_logged


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    monkeypatch.setenv("DOCENT_REPORT", str(tmp_path / "report"))
    state = types.SimpleNamespace(global_step=3, max_steps=9, num_input_tokens_seen=0)
    plugin.Reporter().on_log(None, state, None, {"loss": 1.5, "learning_rate": 0.1})
    with pytest.raises(SystemExit, match="step 3 of 9: lower the learning rate"):
        plugin.Reporter().on_log(None, state, None, {"loss": loss})
    rows = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert [row.get("loss") for row in rows] == [1.5, None]


def test_only_the_first_process_reports(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCENT_REPORT", str(tmp_path / "report"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        plugin.report(step=1)
    assert (tmp_path / "report").read_text() == '{"step": 1}\n'


# --- a format as the chat template -------------------------------------------------------------


def a_format(kind: str, **changes: Any) -> dict[str, Any]:
    return section(f"synthesize/formats/{kind}", **changes)


@pytest.mark.parametrize("kind", ["alpaca", "completion", "question_answer"])
def test_a_format_is_the_chat_template_of_training(kind: str) -> None:
    model = model_config("hub", format=a_format(kind))
    rendered = rendered_by(tuning_config(), model, has_validation=False)
    template, stop = formats.chat_template(model.format) or ("", "")
    assert rendered["chat_template_jinja"] == template == model.template
    assert stop == model.format.stop


def test_a_format_beside_a_chat_template_is_an_error_that_names_both() -> None:
    with pytest.raises(PipelineError, match="expected format or chat_template"):
        model_config("hub", format=a_format("alpaca"), chat_template="{{ messages }}")


def test_a_chat_without_marks_leaves_the_tokenizer_its_template() -> None:
    assert model_config("hub", format=a_format("chat", stop=None)).template is None


def test_a_stop_text_that_does_not_end_the_tokenizers_texts_is_one_line(
    workspace: Workspace,
) -> None:
    cfg, model = tuning_config(python=workspace.trainer()), local_model(Path("m"))
    Path("m/tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    model = model.model_copy(update={"format": formats_of("alpaca", stop="<END>")})
    said = one_line(workspace, cfg, model)
    assert said.startswith("model.format.stop: '<END>'") and "'</s>'" in said
    workspace.run(cfg, model.model_copy(update={"format": formats_of("alpaca", stop="</s>")}))


def formats_of(kind: str, **changes: Any) -> Any:
    return model_config("hub", format=a_format(kind, **changes)).format


# --- real trainings: Axolotl in the model environment --------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "context_tokens": 128,
    "pretrain_epochs": 2,
}
QUICK: dict[str, Any] = {"python": PYTHON, "num_epochs": 3, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace in which a small scratch model was really pretrained and tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        workspace = Workspace(Path.cwd())
        workspace.give(train=[*(example(n) for n in range(39)), example(99, "long " * 500)])
        workspace.metrics = workspace.run(tuning_config(**QUICK), model_config(**SMALL))
        yield workspace


def losses(workspace: Workspace, out: str) -> list[float]:
    with (workspace.folder / out / "curve.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_scratch_model_is_really_pretrained_and_tuned(trained: Workspace) -> None:
    metrics, out = trained.metrics, trained.folder / "data/finetune"
    curve = losses(trained, "data/finetune")
    assert metrics["num_steps"] == 30
    assert (metrics["num_examples"], metrics["num_truncated"]) == (39, 1)
    assert curve[0] > 5.5  # about ln 400
    assert metrics["train_loss"] < 0.8 * curve[0]
    assert metrics["validation_loss"] < curve[0]
    for name in ("base", "model"):
        assert (out / name / "model.safetensors").exists()
        assert json.loads((out / name / "config.json").read_text())["use_cache"] is True
    assert store.digest(out / "base/tokenizer.json") == store.digest(out / "model/tokenizer.json")
    assert store.digest(out / "base") != store.digest(out / "model")
    text = "".join(path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".yaml"))
    assert str(trained.folder) not in text


@pytest.mark.slow
def test_equal_runs_give_equal_weights_from_an_empty_cache(trained: Workspace) -> None:
    (trained.folder / ".cache/models").rename(trained.folder / ".cache/models-before")
    metrics = trained.run(tuning_config(**QUICK), model_config(**SMALL), "other/finetune")
    assert metrics == trained.metrics
    first, second = trained.folder / "data/finetune", trained.folder / "other/finetune"
    assert store.digest(first) == store.digest(second)


ADAPTED: dict[str, Any] = QUICK | {"learning_rate": 0.01, "num_epochs": 6}
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"option": "lora", **ADAPTED},
    "lora under ZeRO-2 in two processes": {
        "option": "lora",
        "zero": "zero2",
        "num_processes": 2,
        "gradient_accumulation_steps": 1,
        **ADAPTED,
    },
    "lora under ZeRO-3 in two processes": {
        "option": "lora",
        "zero": "zero3",
        "num_processes": 2,
        "gradient_accumulation_steps": 1,
        **ADAPTED,
    },
    "full in two processes": {"option": "full", "num_processes": 2, **ADAPTED},
    "full under ZeRO-1 in two processes": {
        "option": "full",
        "zero": "zero1",
        "num_processes": 2,
        **ADAPTED,
    },
    "full under ZeRO-2 in two processes": {
        "option": "full",
        "zero": "zero2",
        "num_processes": 2,
        **ADAPTED,
    },
    "dpo": {"option": "dpo", **QUICK, "dpo_epochs": 16, "dpo_learning_rate": 0.001},
    "dpo with an adapter": {
        "option": "dpo",
        **ADAPTED,
        "lora_r": 8,
        "dpo_epochs": 24,
        "dpo_learning_rate": 0.01,
    },
    "cpt_then_sft": {"option": "cpt_then_sft", **QUICK, "cpt_epochs": 12},
    "cpt_then_sft with an adapter": {
        "option": "cpt_then_sft",
        **ADAPTED,
        "lora_r": 8,
        "cpt_epochs": 12,
        "cpt_learning_rate": 0.01,
    },
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_of_each_recipe_really_falls(trained: Workspace, name: str) -> None:
    cfg = tuning_config(**RECIPES[name])
    model = model_config("local", path="data/finetune/base", context_tokens=128)
    out = trained.folder / name.replace(" ", "-")
    metrics = trained.run(cfg, model, out.name)
    with (out / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    assert phases == {"dpo": ["tune", "dpo"], "cpt_then_sft": ["cpt", "tune"]}.get(
        cfg.kind, ["tune"]
    )
    for phase in phases:
        column = "dpo_loss" if phase == "dpo" else "loss"
        losses = [float(row[column]) for row in rows if row["phase"] == phase]
        assert losses[-1] < 0.95 * losses[0], (name, phase, losses)
    if cfg.kind == "dpo":
        assert 0.6 < float(next(row["dpo_loss"] for row in rows if row["dpo_loss"])) < 0.75  # ln 2
        assert metrics["dpo_accuracy"] > 0.6 and metrics["dpo_margin"] > 0
        assert metrics["num_pairs"] == 8
    assert (out / "model/model.safetensors").exists()
    assert (out / "adapter/adapter_model.safetensors").exists() == bool(cfg.adapter)
    assert str(trained.folder) not in (out / "README.md").read_text()
    given = store.digest(trained.folder / "data/finetune/base/model.safetensors")
    assert store.digest(out / "model/model.safetensors") != given


@pytest.mark.slow
def test_a_scratch_model_is_tuned_by_muon_in_two_processes(trained: Workspace) -> None:
    cfg = tuning_config(**QUICK, num_processes=2)
    metrics = trained.run(cfg, model_config(**SMALL), "two")
    assert "optimizer: muon" in (trained.folder / "two/axolotl.yaml").read_text()
    curve = losses(trained, "two")
    assert metrics["num_steps"] == 15 and curve[-1] < 0.9 * curve[0]


@pytest.mark.slow
def test_an_adapter_is_trained_and_merged_into_the_weights(trained: Workspace) -> None:
    model = model_config("local", path="data/finetune/base", context_tokens=128)
    cfg = tuning_config("lora", **QUICK | {"learning_rate": 0.01, "num_epochs": 6})
    metrics = trained.run(cfg, model, "lora")
    assert metrics["train_loss"] < losses(trained, "lora")[0]
    assert not (trained.folder / "lora/base").exists()
    base_files = {path.name for path in (trained.folder / "data/finetune/base").iterdir()}
    assert {path.name for path in (trained.folder / "lora/model").iterdir()} >= base_files
    weights = [
        trained.folder / f"{name}/model.safetensors"
        for name in ("data/finetune/base", "lora/model")
    ]
    assert weights[0].stat().st_size == weights[1].stat().st_size
    assert store.digest(weights[0]) != store.digest(weights[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"axolotl": {"lerning_rate": 1}}, "finetune.axolotl.lerning_rate: Axolotl knows no such"),
        ({"axolotl": {"sample_packing": "x"}}, "finetune.axolotl.sample_packing: "),
        ({"learning_rate": 1e30}, "lower the learning rate"),
    ],
)
def test_a_training_that_cannot_be_right_is_one_line_and_exports_nothing(
    trained: Workspace, wrong: dict[str, Any], said: str
) -> None:
    cfg = tuning_config(**QUICK | {"num_epochs": 6} | wrong)
    model = model_config("local", path="data/finetune/base", context_tokens=128)
    assert said in one_line(trained, cfg, model, "wrong")
    assert not (trained.folder / "wrong/model").exists()
