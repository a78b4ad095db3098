"""Recipes of several phases, the machine's keys, and what a recipe refuses."""

import csv
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from test_finetune import (
    PYTHON,
    TEXT,
    Workspace,
    example,
    local_model,
    model_config,
    one_line,
    rendered_by,
    section,
    tuning_config,
    workspace,
)

from benchmarks import deepspeed
from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Preference, Reject
from stages.finetune import checks, data, hardware, launching, recipe, scratch
from stages.finetune.hardware import CPU, GPU, Machine

__all__ = ["workspace"]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that is asked would be waited for."""

    def absent(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no hub here")

    monkeypatch.setattr(hardware.huggingface_hub, "hf_hub_download", absent)
    hardware.hub_config.cache_clear()


H100 = GPU.model_copy(
    update={
        "num_gpus": 1,
        "capability": (9, 0),
        "memory_bytes": 80 * 2**30,
        "cores": 16,
        "liger_kernel": True,
    }
)
A100 = H100.model_copy(update={"capability": (8, 0)})
T4 = A100.model_copy(update={"capability": (7, 5), "bf16": False, "memory_bytes": 16 * 2**30})


# --- phases ------------------------------------------------------------------------------------


def phases(option: str, model: Any = None, machine: Machine = CPU, **values: Any) -> Any:
    cfg = tuning_config(option, **values)
    made = recipe.phases(cfg, model or model_config("hub"), machine, has_validation=False)
    return {phase.name: phase.recipe for phase in made}


def test_each_recipe_has_its_phases_in_order() -> None:
    assert list(phases("full")) == list(phases("lora")) == list(phases("qlora")) == ["tune"]
    assert list(phases("cpt_then_sft")) == ["cpt", "tune"]
    assert list(phases("dpo")) == ["tune", "dpo"]
    assert list(phases("dpo", start="base")) == ["dpo"]


def test_a_phase_goes_on_from_the_weights_of_the_one_before() -> None:
    made = phases("dpo")
    assert made["tune"]["base_model"] == model_config("hub").id
    assert made["tune"]["revision_of_model"] == "main"
    assert made["dpo"]["base_model"] == "./tune"
    assert "revision_of_model" not in yaml.safe_load(recipe.render(made["dpo"]))


def test_a_phase_goes_on_from_the_adapter_of_the_one_before_over_the_same_base() -> None:
    made = phases("cpt_then_sft", lora_r=8, init_adapter="0123456789abcdef")
    assert made["cpt"]["lora_model_dir"] == "./adapter"
    assert made["tune"]["lora_model_dir"] == "./cpt"
    assert made["tune"]["base_model"] == made["cpt"]["base_model"] == model_config("hub").id


def test_a_base_and_a_continued_pretraining_read_the_same_way() -> None:
    continued = phases("cpt_then_sft", model_config())["cpt"]
    scratch = recipe.pretraining(tuning_config("cpt_then_sft"), model_config(), CPU)
    assert continued["datasets"] == scratch["datasets"]
    assert continued["micro_batch_size"] == scratch["micro_batch_size"]
    assert "reinit_weights" not in continued


def test_the_documents_are_read_in_a_batch_of_their_own() -> None:
    made = phases("cpt_then_sft", micro_batch_size=8, cpt_micro_batch_size=3)
    assert [made[name]["micro_batch_size"] for name in ("cpt", "tune")] == [3, 8]


PASSED = {"weight_decay": 0.1, "neftune_noise_alpha": 5, "max_steps": 10, "lr_scheduler": "linear"}


@pytest.mark.parametrize("machine", ["CPU", "H100", "T4"])
def test_what_shapes_the_tuning_shapes_no_base(machine: str) -> None:
    def base_of(option: str, **values: Any) -> str:
        cfg = tuning_config(option, **values)
        return recipe.render(recipe.pretraining(cfg, model_config(), globals()[machine]))

    wanted = base_of("full")
    assert base_of("full", axolotl=PASSED) == wanted
    assert base_of("full", micro_batch_size=500, num_processes=2, zero="zero2") == wanted
    assert base_of("lora") == base_of("qlora") == base_of("cpt_then_sft", lora_r=8) == wanted
    slow = yaml.safe_load(base_of("full", axolotl={"bf16": False, "attn_implementation": "eager"}))
    assert (slow["bf16"], slow["attn_implementation"]) == (False, "eager")


def test_preferences_are_neither_packed_nor_read_by_ligers_loss() -> None:
    made = phases("dpo", machine=H100)
    assert made["tune"]["sample_packing"] is True
    assert made["dpo"]["sample_packing"] is False
    assert not [key for key in made["dpo"] if key.startswith("liger")]
    assert (made["dpo"]["rl"], made["dpo"]["rl_beta"]) == ("dpo", 0.1)


def test_qlora_loads_four_bits() -> None:
    made = phases("qlora", machine=A100)["tune"]
    assert (made["adapter"], made["load_in_4bit"]) == ("qlora", True)


def test_keys_of_an_adapter_are_not_passed_where_there_is_none() -> None:
    assert not [key for key in phases("dpo")["tune"] if key.startswith("lora")]
    assert phases("dpo", lora_r=8)["tune"]["lora_target_linear"] is True


@pytest.mark.parametrize("option", ["dpo", "cpt_then_sft"])
def test_an_adapter_to_go_on_from_wants_a_rank(option: str) -> None:
    with pytest.raises(PipelineError, match=r"init_adapter.*set lora_r"):
        tuning_config(option, init_adapter="0123456789abcdef")


# --- DeepSpeed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_each_option_of_deepspeed_renders_what_it_spreads(name: str) -> None:
    made = phases("full", zero=name, num_processes=2)["tune"]
    zero = made["deepspeed"]["zero_optimization"]
    stage, _, offload = name.removeprefix("zero").partition("_")
    assert zero["stage"] == int(stage)
    assert ("offload_optimizer" in zero) == bool(offload)
    assert ("offload_param" in zero) == (name == "zero3_offload")
    assert made["optimizer"] == ("adamw_torch" if offload else "adamw_torch_fused")
    assert made["bf16"] is False


# --- the machine -------------------------------------------------------------------------------


def test_a_cpu_trains_in_bfloat16_where_it_multiplies_it_and_packs_nothing() -> None:
    fast = CPU.model_copy(update={"bf16": True, "cores": 8, "liger_kernel": True})
    made = phases("full", machine=fast)["tune"]
    assert (made["bf16"], made["fp16"], made["sample_packing"]) == (True, False, False)
    assert made["plugins"] == [recipe.PLUGIN]
    assert phases("full", machine=CPU)["tune"]["bf16"] is False


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (H100, ("sdpa", True, True)),
        (A100, ("sdpa", False, True)),  # packing with SDPA in bf16 is unsafe before Hopper
        (A100.model_copy(update={"flash_attn": True}), ("flash_attention_2", True, True)),
        (T4, ("sdpa", False, False)),
        (T4.model_copy(update={"flash_attn": True}), ("sdpa", False, False)),
    ],
)
def test_a_gpu_gets_what_it_can_do(machine: Machine, expected: tuple[str, bool, bool]) -> None:
    made = phases("full", machine=machine)["tune"]
    found = (made["attn_implementation"], made["sample_packing"], made["bf16"])
    assert found == expected
    assert made["fp16"] is False, "torch scales no gradients of weights in float16"
    assert phases("lora", machine=machine)["tune"]["fp16"] == (not machine.bf16)
    assert made["group_by_length"] == (not made["sample_packing"])
    assert made["plugins"] == ["axolotl.integrations.liger.LigerPlugin", recipe.PLUGIN]
    assert made["optimizer"] == "adamw_torch_fused"


def test_every_choice_for_the_machine_can_be_overridden() -> None:
    chosen = hardware.keys(tuning_config(), model_config("hub"), H100)
    for key in chosen.keys() - {"plugins"}:
        passed = phases("full", machine=H100, axolotl={key: "mine"})["tune"]
        assert passed[key] == "mine"


def test_activations_are_computed_twice_only_where_they_would_not_fit(tmp_path: Path) -> None:
    def checkpoints(machine: Machine, option: str = "full", **values: Any) -> bool:
        return hardware.checkpoints(tuning_config(option, **values), seven, machine)

    folder = tmp_path / "m"
    seven = local_model(folder)
    shape = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
    }
    (folder / "config.json").write_text(json.dumps(shape))
    assert hardware.num_parameters(shape) == pytest.approx(7.24e9, rel=0.01)  # Mistral 7B
    assert checkpoints(H100) is True  # 116 GB of weights and optimizer alone
    assert checkpoints(H100, "lora", micro_batch_size=1) is False
    assert checkpoints(T4, "lora", micro_batch_size=1) is True
    assert checkpoints(H100, zero="zero3", num_processes=8, micro_batch_size=1) is False
    assert checkpoints(GPU) is True, "unknown memory"
    (folder / "config.json").write_text("{}")
    assert checkpoints(H100, "lora", micro_batch_size=1) is True, "unknown shape"


def test_what_was_found_and_chosen_is_one_line() -> None:
    said = hardware.sentence(H100, phases("full", machine=H100)["tune"])
    assert said == (
        "trains on 1 GPUs of 80 GiB with compute capability 9.0: bf16, sdpa, packed, Liger, "
        "gradient checkpointing, adamw_torch_fused"
    )
    assert "fp32" in hardware.sentence(CPU, phases("full")["tune"])


def test_the_machine_is_the_launchers_where_that_trains_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without a Docker to ask

    def machine(launcher: str, device: str = "auto", **values: Any) -> Machine:
        given = yaml.safe_load(Path(f"{ROOT}/conf/finetune/launcher/{launcher}.yaml").read_text())
        cfg = tuning_config(python=sys.executable, device=device, launcher=given | values)
        return hardware.machine(cfg)

    assert machine("docker") == GPU
    assert machine("slurm") == CPU
    four = GPU.model_copy(update={"num_gpus": 4})
    assert machine("slurm", gpus_per_node=4) == four
    assert machine("slurm", gpus_per_node=4, cpus_per_node=3).cores == 3
    assert machine("bundle") == machine("slurm", "cuda") == GPU
    assert machine("local", device="cpu") == machine("docker", device="cpu") == CPU
    assert machine("local").cores >= 1
    assert machine("local", device="cuda").cuda is True
    hopper = {"capability": 9.0, "memory_gib": 80, "flash_attn": True, "liger_kernel": False}
    for kind in ("slurm", "bundle"):
        found = machine(kind, "cuda", gpu=hopper)
        assert (found.capability, found.memory_bytes) == ((9, 0), 80 * 2**30)
        assert (found.bf16, found.flash_attn, found.liger_kernel) == (True, True, False)
        turing = machine(kind, "cuda", gpu=hopper | {"capability": 7.5})
        assert (turing.capability, turing.bf16) == ((7, 5), False)


def test_the_image_is_asked_what_its_machine_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys\n"
        "python, script = sys.argv[-2:]\n"
        "assert python == 'python' and sys.argv[-3].startswith('axolotlai/axolotl')\n"
        "assert sys.argv[sys.argv.index('--gpus') + 1] == 'all'\n"
        "assert f'{os.path.dirname(script)}:{os.path.dirname(script)}' in sys.argv\n"
        "if os.environ.get('FAILS'): sys.exit('no such image')\n"
        "sys.exit(subprocess.run([sys.executable, script]).returncode)\n"
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cfg = tuning_config(launcher=section("finetune/launcher/docker"))
    assert hardware.machine(cfg) == hardware.probe(sys.executable)
    assert hardware.machine(cfg, asks_image=False) == GPU
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(PipelineError, match=r"the container did not start: no such image"):
        hardware.machine(cfg)


def test_a_gpu_that_cannot_be_asked_gets_what_axolotl_brings() -> None:
    made = phases("full", machine=GPU)["tune"]
    assert made["liger_rope"] is True and made["dataset_num_proc"] == 8
    assert "some GPUs that cannot be asked here" in hardware.sentence(GPU, made)


def test_more_processes_than_gpus_are_one_line_and_idle_gpus_are_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(checks.progress, "note", said.append)
    with pytest.raises(PipelineError, match=r"finetune.num_processes: 4: .*there are 1"):
        checks.machine(tuning_config(num_processes=4), H100)
    eight = H100.model_copy(update={"num_gpus": 8})
    checks.machine(tuning_config(num_processes=8), eight)
    checks.machine(tuning_config(num_processes=2), CPU)
    assert said == []
    checks.machine(tuning_config(), eight)
    assert said == ["7 of 8 GPUs are idle: finetune.num_processes=8 uses all"]


@pytest.mark.parametrize("plugins", ["my.Plugin", None, [1]])
def test_plugins_that_are_no_list_of_names_are_one_line(plugins: Any) -> None:
    with pytest.raises(PipelineError, match=r"finetune.axolotl.plugins: .*such as \[my.Plugin\]"):
        phases("full", axolotl={"plugins": plugins})


ROOT = Path(__file__).parents[1]


def test_a_model_environment_that_cannot_be_asked_is_one_line() -> None:
    mute = shlex.join([sys.executable, "-c", "raise SystemExit('no torch here')"])
    with pytest.raises(PipelineError, match=r"finetune.python: .*no torch here; set finetune.dev"):
        hardware.machine(tuning_config(python=mute))


def test_the_probe_answers_without_torch() -> None:
    found = hardware.probe(sys.executable)
    assert found.cores >= 1 and found.memory_bytes > 2**28
    assert (launching.ENVIRONMENT / "probe.py").exists()


# --- runs with a fake trainer ------------------------------------------------------------------


def test_continued_pretraining_reads_train_documents_and_paraphrases_alone(
    workspace: Workspace,
) -> None:
    said_anew = example(50, "The alpha setting says which rows stay.").model_copy(
        update={"kind": "paraphrase"}
    )
    workspace.give(train=[*(example(n) for n in range(8)), said_anew])
    model = local_model(Path("m"))
    metrics = workspace.run(tuning_config("cpt_then_sft", python=workspace.trainer()), model)
    out = Path("data/finetune")
    lines = (out / "documents.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert [text[-1] for text in texts] == ["0", "1", "."]  # d0 and d1; d2 is a test page
    assert texts[2] == said_anew.answer
    assert (metrics["cpt_loss"], metrics["train_loss"]) == (1.0, 1.0)
    with (out / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["cpt"] * 4 + ["tune"] * 4
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 9)]
    assert (out / "axolotl-cpt.yaml").exists() and (out / "axolotl.yaml").exists()


@given(st.text("aé\n ", max_size=300), st.integers(8, 60))
def test_a_text_that_axolotl_would_cut_is_given_in_pieces(text: str, most: int) -> None:
    made = data.pieces(text, most)
    assert "".join(made) == text
    assert all(len(piece.encode()) <= most for piece in made)


def test_preferences_are_learned_after_the_instructions(workspace: Workspace) -> None:
    model = local_model(Path("m"))
    metrics = workspace.run(tuning_config("dpo", python=workspace.trainer()), model)
    lines = Path("data/finetune/preferences.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[3] == {
        "id": "train3",
        "messages": [{"role": "user", "content": "What is setting 3?"}],
        "chosen": "3 rows.",
        "rejected": "4 rows.",
    }
    assert (metrics["dpo_accuracy"], metrics["dpo_margin"], metrics["num_pairs"]) == (1.0, 2.0, 8)
    with Path("data/finetune/curve.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["phase"], last["loss"], last["dpo_loss"]) == ("dpo", "", "1")


def test_a_pair_whose_example_is_gone_is_a_counted_reject(workspace: Workspace) -> None:
    store.write(
        Path("data/preferences.jsonl"),
        [
            Preference(example_id="train1", chosen="a", rejected="b"),
            Preference(example_id="reviewed", chosen="a", rejected="b"),
        ],
    )
    cfg = tuning_config("dpo", python=workspace.trainer(), max_reject_rate=0.5)
    assert workspace.run(cfg, local_model(Path("m")))["num_pairs"] == 1
    (reject,) = store.read(Path("data/finetune/rejects.jsonl"), Reject)
    assert (reject.id, reject.reason) == ("reviewed", data.NO_EXAMPLE)


def test_no_preference_is_one_line_that_names_the_key(workspace: Workspace) -> None:
    store.write(Path("data/preferences.jsonl"), [])
    cfg = tuning_config("dpo", python=workspace.trainer())
    said = one_line(workspace, cfg, local_model(Path("m")))
    assert "data/preferences.jsonl" in said and "synthesize.shares.preferences" in said


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_qlora_without_cuda_is_one_line(workspace: Workspace, device: str) -> None:
    """The interpreter of the tests has no torch: what it is asked for finds no CUDA anywhere."""
    cfg = tuning_config("qlora", python=workspace.trainer("sys.exit('trained')"), device=device)
    said = one_line(workspace, cfg, local_model(Path("m")))
    assert said.startswith("finetune.kind: 'qlora': it needs CUDA") and "finetune=lora" in said
    assert "finds no CUDA here" in said


@pytest.mark.slow
def test_a_base_of_the_hub_without_a_chat_template_is_one_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = workspace.folder / "hub/models--org--name"
    base = kept / "snapshots" / ("a" * 40)
    scratch.untrained(model_config(vocab_size=400), [TEXT], base)
    (base / "chat_template.jinja").unlink()
    store.write_text(kept / "refs/main", "a" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(kept.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg = tuning_config(python=PYTHON, device="cpu")
    said = one_line(workspace, cfg, model_config("hub", id="org/name"))
    assert "model.chat_template: the tokenizer of 'org/name' carries no chat template" in said
    assert "set model.format or model.chat_template" in said


def test_a_phase_that_had_ended_is_not_trained_again(workspace: Workspace) -> None:
    ran = workspace.folder / "ran"
    command = workspace.trainer(
        f"print(recipe.get('rl', 'sft'), file=open({str(ran)!r}, 'a'))\n"
        f"if recipe.get('rl') and len(open({str(ran)!r}).readlines()) == 2: sys.exit('power cut')\n"
    )
    cfg, model = tuning_config("dpo", python=command), local_model(Path("m"))
    assert "power cut" in one_line(workspace, cfg, model)
    metrics = workspace.run(cfg, model)
    assert ran.read_text().split() == ["sft", "dpo", "dpo"]
    assert metrics["train_loss"] == 1.0


def test_the_last_answer_alone_is_marked_for_templates_that_rewrite_the_earlier(
    tmp_path: Path,
) -> None:
    turns = example(1).messages
    dialogue = example(2).model_copy(
        update={"messages": (*turns, turns[0].model_copy(update={"role": "assistant"}), *turns)}
    )
    data.write_chats([dialogue], tmp_path / "chats", model_config("qwen3"))
    (row,) = map(json.loads, (tmp_path / "chats").read_text("utf-8").split("\n")[:-1])
    assert [turn["train"] for turn in row["messages"]] == [False, False, False, True]
    datasets = rendered_by(tuning_config(), model_config("qwen3"))["datasets"]
    assert datasets[0]["message_field_training"] == "train"


# --- DeepSpeed's effect, really ------------------------------------------------------------------


@pytest.fixture
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["deepspeed", "--quick"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_learn_what_one_does_and_share_the_optimizers_state(
    in_the_root: None,
) -> None:
    assert deepspeed.main() == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_planted_difference_of_two_processes_is_found(
    in_the_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = deepspeed.train

    def faster(cfg: Any, *rest: Any) -> Any:
        rate = cfg.learning_rate * (2 if rest[2] == "zero2" else 1)
        return train(cfg.model_copy(update={"learning_rate": rate}), *rest)

    monkeypatch.setattr(deepspeed, "train", faster)
    assert deepspeed.main() == 1
