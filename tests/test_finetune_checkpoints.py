"""A training that is killed, torn, filled up and made to diverge goes on, or ends in one line."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_finetune import (
    PYTHON,
    SMALL,
    Workspace,
    example,
    local_model,
    model_config,
    one_line,
    tuning_config,
    workspace,
)

from stages import finetune
from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.finetune import bundle, checkpoints, failures, trainer, training

__all__ = ["workspace"]

ROOT = Path(__file__).parents[1]

# A trainer with one weight, that saves and resumes as Axolotl does: from the highest number.
TRAINER = """
import json, os, sys, time, zipfile
from pathlib import Path

import yaml

places = dict(a[2:].split("=", 1) for a in sys.argv if a.startswith("--") and "=" in a)
recipe = yaml.safe_load(Path(next(a for a in sys.argv if a.endswith(".yaml"))).read_text())
out = Path(places["output_dir"])
out.mkdir(parents=True, exist_ok=True)
def say(**row):
    with open(os.environ["DOCENT_REPORT"], "a") as file:
        file.write(json.dumps(row) + "\\n")
def tensors(path, weight):
    import struct
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + struct.pack("<f", weight))
def archive(path, value):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("value", json.dumps(value))
rows = [json.loads(line) for line in open(recipe["datasets"][0]["path"])]
say(num_parameters=1, num_examples=len(rows))
found = sorted((int(p.name.split("-")[1]), p) for p in out.glob("checkpoint-*"))
step, weight, total = 0, 8.0, 40
if found:
    step, newest = found[-1]
    with zipfile.ZipFile(newest / "optimizer.pt") as file:
        weight = json.loads(file.read("value"))
while step < total:
    step += 1
    weight -= weight * recipe["learning_rate"]
    time.sleep(PACE)
    say(step=step, total=total, loss=weight, learning_rate=0.1, tokens=step)
    if step % recipe["save_steps"] == 0:
        folder = out / f"checkpoint-{step}"
        folder.mkdir()
        tensors(folder / "model.safetensors", weight)
        time.sleep(PACE)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            archive(folder / name, weight)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
        (folder / "docent.json").write_text(json.dumps(sizes))
tensors(out / "model.safetensors", weight)
for name in ("config.json", "tokenizer.json"):
    (out / name).write_text(name)
"""

STAGE = """
import json, sys
from pathlib import Path
from stages import finetune
from stages.finetune import training
from stages.core import config, model as base, progress
from stages.core.errors import PipelineError
from stages.finetune import checkpoints
params = json.loads(Path("params.json").read_text())
progress.begin("finetune")
PLANT
try:
    metrics = finetune.run(
        config.load(params, "finetune", finetune.Config),
        config.load(params, "model", base.Config),
        *(Path("data", f"{n}.jsonl") for n in ("documents", "assignment", "train", "validation")),
        out=Path(sys.argv[1]),
    )
except PipelineError as error:
    sys.exit(f"error: {error}")
print(json.dumps(metrics))
"""


# --- the suite: kill, tear, go on ----------------------------------------------------------------


@dataclass
class Training:
    """A stage in processes of its own, that are killed."""

    folder: Path
    cfg: Any
    model: Any
    plant: str = ""
    executed: list[int] = field(default_factory=list)
    """Steps that the trainer has told, in their order; each time that it made them."""

    def start(self, out: str) -> "subprocess.Popen[str]":
        params = {"finetune": self.cfg.model_dump(), "model": self.model.model_dump()}
        store.write_json(self.folder / "params.json", params)
        return subprocess.Popen(
            [sys.executable, "-c", STAGE.replace("PLANT", self.plant), out],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, out: str) -> dict[str, float]:
        """Run to the end; what it measured."""
        stage = self.start(out)
        while stage.poll() is None:
            self.listen()
            time.sleep(0.02)
        said, errors = stage.communicate()
        self.listen()
        assert stage.returncode == 0, errors[-600:]
        return dict(json.loads(said.splitlines()[-1]))

    @property
    def work(self) -> Path | None:
        found = [p for p in (self.folder / ".cache/training").glob("*") if p.is_dir()]
        return max(found, key=os.path.getmtime, default=None)

    @property
    def newest(self) -> Path:
        """The newest whole checkpoint: a kill may have torn one above it already."""
        assert self.work
        found = checkpoints.numbered(self.work / "tune/model")
        return max((n, p) for n, p in found.items() if (p / checkpoints.SEAL).exists())[1]

    def listen(self) -> None:
        """Keep the report beyond the training's end: by a second name of the file."""
        kept = self.folder / "heard"
        if self.work and (self.work / "tune/tune.jsonl").exists() and not kept.exists():
            kept.hardlink_to(self.work / "tune/tune.jsonl")
        if kept.exists():
            lines = kept.read_text().splitlines()
            rows = [json.loads(line) for line in lines if line.endswith("}")]
            self.executed = [row["step"] for row in rows if "loss" in row]

    def kill(self, who: Callable[[psutil.Process], list[psutil.Process]], steps: int) -> None:
        """Start it, let it make so many steps, and kill -9 a part of the process tree."""
        stage = self.start("killed")
        self.listen()
        before = len(self.executed)
        while len(self.executed) < before + steps:
            assert stage.poll() is None, stage.communicate()[1][-600:]
            time.sleep(0.01)
            self.listen()
        tree = psutil.Process(stage.pid)
        family = tree.children(recursive=True)
        for process in who(tree):
            process.kill()
        stage.communicate(timeout=120)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == [], "the trainer outlives its stage"
        self.listen()


def the_stage(tree: psutil.Process) -> list[psutil.Process]:
    return [tree]


def everything(tree: psutil.Process) -> list[psutil.Process]:
    return [tree, *tree.children(recursive=True)]


def the_trainer(tree: psutil.Process) -> list[psutil.Process]:
    """What the stage has started: torchrun, where there are several processes."""
    return tree.children()[:1]


def one_worker(tree: psutil.Process) -> list[psutil.Process]:
    """A process that trains, below torchrun."""
    found = [p for p in tree.children(recursive=True) if "axolotl.cli.train" in p.cmdline()]
    workers = [p for p in found if "torch.distributed.run" not in p.cmdline()]
    return workers[-1:]


def cut(folder: Path) -> None:
    """Half of a file is there."""
    optimizer = next(folder.rglob("*optim*.pt"))
    os.truncate(optimizer, optimizer.stat().st_size // 2)


def zero(folder: Path) -> None:
    """The size is right, and the blocks were never written."""
    for path in folder.glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))


def lose(folder: Path) -> None:
    next(folder.rglob("rng_state*")).unlink()


def unseal(folder: Path) -> None:
    (folder / checkpoints.SEAL).unlink()


TEARS = (None, cut, zero, lose, unseal)


def survive(
    training: Training,
    kills: list[tuple[Any, Any]],
    *,
    wanted: dict[str, float],
    steps: int,
    exact: Path,
) -> None:
    """Kill the training so often, and see that no more is lost than the promise says.

    `kills` are pairs of who is killed and what is torn after it; `steps` are made before each.
    """
    for who, tear in kills:
        training.kill(who, steps)
        if tear:
            tear(training.newest)
    metrics = training.finish("killed")
    total, every = int(metrics["num_steps"]), training.cfg.save_steps
    num_torn = sum(tear is not None for _, tear in kills)
    assert len(training.executed) <= total + (len(kills) + num_torn) * every
    assert training.executed[-1] == total
    assert metrics["train_loss"] == pytest.approx(wanted["train_loss"], abs=1e-6)
    killed = training.folder / "killed/model"
    assert {p.name: store.digest(p) for p in killed.iterdir()} == {
        p.name: store.digest(p) for p in exact.iterdir()
    }


def small(workspace: Workspace, pace: float = 0.02, **values: Any) -> Training:
    workspace.give(validation=[])
    script = workspace.folder / "trainer.py"
    script.write_text(TRAINER.replace("PACE", str(pace)))
    command = shlex.join([sys.executable, str(script)])
    cfg = tuning_config(
        **{"python": command, "device": "cpu", "save_steps": 5, "learning_rate": 0.05} | values
    )
    return Training(workspace.folder, cfg, local_model(Path("m")))


def unkilled(training: Training) -> dict[str, float]:
    """What it measures when it is left alone, into whole/."""
    metrics = training.finish("whole")
    (training.folder / "heard").unlink()
    training.executed = []
    return metrics


def a_killed_and_torn_training_goes_on(workspace: Workspace, plant: str = "") -> None:
    training = small(workspace)
    training.plant = plant
    weights = [8.0]
    for _ in range(40):
        weights.append(weights[-1] - weights[-1] * training.cfg.learning_rate)
    whole = workspace.folder / "whole"
    whole.mkdir()
    tensors(whole / "model.safetensors", np.array(weights[-1:], "<f4"), about={})
    for name in ("config.json", "tokenizer.json"):
        (whole / name).write_text(name)
    wanted = {"train_loss": sum(weights[-4:]) / 4}
    survive(training, [(the_stage, cut)], wanted=wanted, steps=13, exact=whole)


def test_a_killed_and_torn_training_goes_on_from_its_newest_whole_checkpoint(
    workspace: Workspace,
) -> None:
    a_killed_and_torn_training_goes_on(workspace)


def test_a_planted_trust_in_torn_checkpoints_is_found(workspace: Workspace) -> None:
    with pytest.raises(AssertionError, match=r"BadZipFile|optimizer\.pt"):
        a_killed_and_torn_training_goes_on(workspace, "checkpoints.fault = lambda folder: None")


def another_training_begins_anew(workspace: Workspace, plant: str = "") -> None:
    training = small(workspace)
    training.plant = plant
    training.kill(everything, 13)
    (training.folder / "heard").unlink()
    assert training.work
    (training.work / "tune/tune.jsonl").unlink()
    other = small(workspace, learning_rate=0.1, pace=0.0)
    other.plant = plant
    other.finish("other")
    assert other.executed == list(range(1, 41)), "it goes on from another's"


def test_a_checkpoint_of_another_training_is_not_gone_on_from(workspace: Workspace) -> None:
    another_training_begins_anew(workspace)


def test_a_planted_key_that_ignores_the_settings_is_found(workspace: Workspace) -> None:
    with pytest.raises(AssertionError, match="goes on from another's"):
        another_training_begins_anew(workspace, "training.training_key = lambda *_: 'key'")


def test_all_that_shapes_a_training_is_in_its_key(workspace: Workspace) -> None:
    from stages.finetune import recipe
    from stages.finetune.hardware import CPU
    from stages.finetune.training import training_key

    out = workspace.folder / "out"
    store.write_text(out / "train.jsonl", "an example")
    base_folder = workspace.folder / "m"
    cfg = small(workspace).cfg
    phases = recipe.phases(cfg, local_model(base_folder), CPU, has_validation=False)
    keys = [training_key(cfg, phases, out, [base_folder])]

    def another() -> None:
        keys.append(training_key(cfg, phases, out, [base_folder]))

    store.write_text(out / "train.jsonl", "another example")
    another()
    phases = [replace(phase, recipe=phase.recipe | {"seed": 7}) for phase in phases]
    another()
    store.write_text(base_folder / "model.safetensors", "another base")
    another()
    cfg = cfg.model_copy(update={"num_processes": 2})
    another()
    packages = workspace.folder / "env/lib/python3.11/site-packages"
    (workspace.folder / "env/bin").mkdir(parents=True)
    (workspace.folder / "env/bin/python").symlink_to(sys.executable)
    cfg = cfg.model_copy(update={"python": str(workspace.folder / "env/bin/python")})
    for version in ("1", "2"):
        (packages / f"torch-{version}.dist-info").mkdir(parents=True)
        another()
        (packages / f"torch-{version}.dist-info").rmdir()
    (packages / "wandb-1.dist-info").mkdir()  # shapes no training
    (packages / "torch-2.dist-info").mkdir()
    assert training_key(cfg, phases, out, [base_folder]) == keys[-1]
    phases = [replace(phase, recipe=phase.recipe | {"save_steps": 7}) for phase in phases]
    assert training_key(cfg, phases, out, [base_folder]) == keys[-1]
    assert len(set(keys)) == 7


def notes(workspace: Workspace) -> list[str]:
    rows = (workspace.folder / ".cache/progress/finetune.jsonl").read_text().splitlines()
    return [row["note"] for row in map(json.loads, rows)]


def test_a_training_that_had_ended_with_torn_weights_is_gone_on_from_its_checkpoint(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = small(workspace, pace=0.0)
    progress.begin("finetune")
    with monkeypatch.context() as patch:
        patch.setattr(finetune.card, "render", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workspace.run(training.cfg, training.model)
    weights = Path("data/finetune/model/model.safetensors").read_bytes()
    assert training.work
    cut = training.work / "tune/model/model.safetensors"
    os.truncate(cut, len(weights) - 1)
    metrics = workspace.run(training.cfg, training.model)
    assert Path("data/finetune/model/model.safetensors").read_bytes() == weights
    assert metrics["num_steps"] == 40
    said = notes(workspace)
    assert "instruction tuning had ended, but model.safetensors is torn" in said
    assert "going on from step 40" in said


def test_what_other_trainings_keep_on_the_disk_is_noted(workspace: Workspace) -> None:
    work, left = store.cache("training", "ours"), store.cache("training", "left")
    for folder, size in ((work, 5), (left, 3), (store.cache("training", "brought"), 7)):
        store.write_text(folder / "tune/model/checkpoint-5/weights", "x" * 1_000_000 * size)
    store.write_text(store.cache("training", "brought") / bundle.KEPT, "digest")
    progress.begin("finetune")
    training.note_left_behind(work)
    (said,) = notes(workspace)
    assert said.startswith(".cache/training keeps 0.003 GB of 1 other trainings")
    hold = (
        "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(left.with_name("left.lock"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout and other.stdout.readline()
        progress.begin("finetune")
        training.note_left_behind(work)
        other.communicate("\n")
    assert notes(workspace) == [], "another run trains there"


# --- which checkpoint is whole -------------------------------------------------------------------


def tensors(path: Path, values: Any, dtype: str = "F32", about: Any = None) -> None:
    content = values.tobytes()
    weight = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [0, len(content)]}
    more = {"__metadata__": {"format": "pt"}} if about is None else about
    head = json.dumps({"w": weight, **more}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)


def checkpoint(folder: Path, *, sharded: bool = False) -> Path:
    """A whole one, as the trainer and the plugin leave it."""
    made = folder / "checkpoint-20"
    made.mkdir(parents=True)
    tensors(made / "model.safetensors", np.ones((4, 4), "<f4"))
    archives = ["scheduler.pt", "rng_state_0.pth", "optimizer.pt"]
    if sharded:
        (made / "global_step20").mkdir()
        (made / "latest").write_text("global_step20")
        archives[2:] = [
            f"global_step20/{name}_states.pt"
            for name in ("zero_pp_rank_0_mp_rank_00_model", "zero_pp_rank_0_mp_rank_00_optim")
        ]
    for name in archives:
        with zipfile.ZipFile(made / name, "w") as file:
            file.writestr("data.pkl", os.urandom(200))
    state = {"global_step": 20, "log_history": [{"step": 10, "loss": 1.5, "grad_norm": 0.1}]}
    (made / "trainer_state.json").write_text(json.dumps(state))
    seal(made)
    return made


def seal(folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != checkpoints.SEAL]
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
    (folder / checkpoints.SEAL).write_text(json.dumps(sizes))


@pytest.mark.parametrize("sharded", [False, True])
def test_every_file_of_a_checkpoint_counts(tmp_path: Path, sharded: bool) -> None:
    whole = checkpoint(tmp_path / "whole", sharded=sharded)
    assert checkpoints.fault(whole) is None
    names = [p.relative_to(whole) for p in sorted(whole.rglob("*")) if p.is_file()]
    assert len(names) == (8 if sharded else 6)
    for number, name in enumerate(names):
        for harm in ("missing", "empty", "short", "zeros"):
            torn = tmp_path / f"{number}-{harm}" / "checkpoint-20"
            shutil.copytree(whole, torn)
            path = torn / name
            size = path.stat().st_size
            match harm:
                case "missing":
                    path.unlink()
                case "empty":
                    path.write_bytes(b"")
                case "short":
                    os.truncate(path, size - 1)
                case "zeros":
                    path.write_bytes(bytes(size))
            assert checkpoints.fault(torn), (name, harm)
            assert checkpoints.set_aside(torn.parent, torn.parent / "aside").keys() == {torn.name}
            assert checkpoints.numbered(torn.parent) == {}
            assert (torn.parent / "aside/checkpoint-20").is_dir()


def test_one_torn_checkpoint_is_kept_aside_and_no_more(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / f"model/checkpoint-{step}").mkdir(parents=True)
    assert len(checkpoints.set_aside(tmp_path / "model", tmp_path / "torn")) == 3
    assert len(list((tmp_path / "torn").iterdir())) == 1


@pytest.mark.parametrize("sharded", [False, True])
def test_one_flipped_byte_of_an_optimizer_is_seen(tmp_path: Path, sharded: bool) -> None:
    made = checkpoint(tmp_path, sharded=sharded)
    path = next(made.rglob("*optim*.pt"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert "corrupt" in (checkpoints.fault(made) or "")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_checkpoint_with_a_number_that_is_not_finite_is_not_gone_on_from(
    tmp_path: Path, bad: float, dtype: str
) -> None:
    made = checkpoint(tmp_path)
    values = np.full(1000, 3e4, "<f4")

    def write() -> None:
        match dtype:
            case "F32":
                tensors(made / "model.safetensors", values)
            case "F16":
                tensors(made / "model.safetensors", values.astype("<f2"), dtype)
            case "BF16":
                halves = (values.view("<u4") >> 16).astype("<u2")
                tensors(made / "model.safetensors", halves, dtype)
        seal(made)

    write()
    assert checkpoints.fault(made) is None
    values[777] = bad
    write()
    assert "not finite" in (checkpoints.fault(made) or "")


@pytest.mark.parametrize("name", ["loss", "eval_loss", "grad_norm"])
def test_a_checkpoint_after_a_loss_that_was_no_number_is_not_gone_on_from(
    tmp_path: Path, name: str
) -> None:
    made = checkpoint(tmp_path)
    rows = [{"step": 10, "loss": 1.0}, {"step": 20, name: float("nan")}]
    state = {"global_step": 20, "log_history": rows}
    (made / "trainer_state.json").write_text(json.dumps(state))
    seal(made)
    assert f"its {name} was nan at step 20" in (checkpoints.fault(made) or "")


def test_the_highest_number_counts_and_not_the_last_name(tmp_path: Path) -> None:
    for step in (5, 40, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    assert sorted(checkpoints.numbered(tmp_path)) == [5, 40, 100]


def test_a_model_that_is_torn_or_not_finite_is_not_exported(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    tensors(trained / "model.safetensors", np.array([1, np.nan], "<f4"))
    with pytest.raises(PipelineError, match="not finite") as error:
        trainer.collect(trained, tmp_path / "model")
    assert "\n" not in str(error.value)
    os.truncate(trained / "model.safetensors", 20)
    with pytest.raises(PipelineError, match="torn"):
        trainer.collect(trained, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- why a training ended ------------------------------------------------------------------------

DEATHS = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.": "micro_batch_size",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 68719476736 bytes.": "micro_batch_size",
    "numpy._core._exceptions._ArrayMemoryError: out of memory": "context_tokens",
    "MemoryError": "finetune.deepspeed",
    "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0; "
    "OSError: [Errno 28] No space left on device": ".cache/training",
    "SafetensorError: I/O error: No space left on device (os error 28)": "no room is left",
}


@pytest.mark.parametrize("death", DEATHS)
def test_memory_and_disk_that_run_out_are_told_with_the_keys_that_help(death: str) -> None:
    log = f"step 1\nTraceback (most recent call last):\n  File 'x', line 1\n{death}\n"
    said = failures.explain("", 1, log)
    assert DEATHS[death] in said
    assert "\n" not in said


@pytest.mark.parametrize("code", [-9, 137, 1])
def test_a_trainer_that_the_system_killed_is_told_what_may_have_been(code: int) -> None:
    log = "E1128 api.py:1] failed (exitcode: -9) local_rank: 1\n" if code == 1 else ""
    said = failures.explain("", code, log)
    assert "signal 9" in said and "finetune.micro_batch_size" in said


def test_what_the_plugin_told_goes_before_the_log() -> None:
    said = failures.explain("the loss is nan at step 3", -9, "CUDA out of memory")
    assert said == "the loss is nan at step 3"


def test_an_error_of_an_earlier_attempt_is_not_told_again(workspace: Workspace) -> None:
    once = workspace.folder / "once"
    command = workspace.trainer(
        f"first = not os.path.exists({str(once)!r}); open({str(once)!r}, 'w').close()\n"
        "say(error='the first reason') if first else None\n"
        'report.write(\'{"step": 1, "tot\'); report.flush()\n'  # torn by the kill
        "sys.exit('SystemError: the second reason')"
    )
    cfg, model = tuning_config(python=command, device="cpu"), local_model(Path("m"))
    assert "the first reason" in one_line(workspace, cfg, model)
    assert "the second reason" in one_line(workspace, cfg, model)


# --- real trainings ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with a small base, really pretrained, and 40 examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("kills"))
        patch.delenv("DVC_ROOT", raising=False)
        workspace = Workspace(Path.cwd())
        workspace.give(train=[example(n) for n in range(40)])
        cfg = tuning_config(python=PYTHON, num_epochs=1, micro_batch_size=4, save_steps=None)
        workspace.run(cfg, model_config(**SMALL), "made")
        yield workspace


def real(trained: Workspace, option: str = "full", **values: Any) -> Training:
    """Sixty steps, of which each is logged."""
    wanted = {"python": PYTHON, "num_epochs": 6, "micro_batch_size": 4, "save_steps": 5}
    cfg = tuning_config(option, **wanted | values)
    cfg = cfg.model_copy(update={"axolotl": cfg.axolotl | {"logging_steps": 1}})
    for name in ("heard", "killed", "whole"):
        path = trained.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return Training(
        trained.folder, cfg, model_config("local", path="made/base", context_tokens=128)
    )


def in_a_save(training: Training) -> None:
    """Kill everything while a checkpoint is being written."""
    stage = training.start("killed")
    while True:
        assert stage.poll() is None, stage.communicate()[1][-600:]
        folders = checkpoints.numbered(training.work / "tune/model") if training.work else {}
        if any(not (folder / checkpoints.SEAL).exists() for folder in folders.values()):
            break
        training.listen()
        time.sleep(0.001)
    family = everything(psutil.Process(stage.pid))
    for process in family:
        process.send_signal(signal.SIGKILL)
    stage.communicate()
    psutil.wait_procs(family, timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_six_kills_of_a_real_training_cost_no_more_than_their_checkpoints(
    trained: Workspace,
) -> None:
    training = real(trained)
    wanted = unkilled(training)
    in_a_save(training)
    training.listen()
    kills = [
        (the_stage, None),
        (everything, cut),
        (the_trainer, zero),
        (everything, lose),
        (the_stage, unseal),
    ]
    survive(training, kills, wanted=wanted, steps=8, exact=trained.folder / "whole/model")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_checkpoint_of_the_last_step_of_an_epoch_is_gone_on_from_exactly(
    trained: Workspace, num_processes: int
) -> None:
    """What is drawn after it, as by the epoch's evaluation, has no part in the next epoch."""
    training = real(trained, num_processes=num_processes, num_epochs=3, save_steps=5)
    wanted = unkilled(training)
    survive(training, [(the_stage, None)], wanted=wanted, steps=12 // num_processes,
            exact=trained.folder / "whole/model")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_four_kills_of_two_processes_under_zero_2_cost_no_more_than_their_checkpoints(
    trained: Workspace,
) -> None:
    training = real(trained, num_processes=2, zero="zero2", num_epochs=8, learning_rate=0.001)
    wanted = unkilled(training)
    kills = [(the_stage, None), (one_worker, cut), (the_trainer, None), (everything, lose)]
    survive(training, kills, wanted=wanted, steps=7, exact=trained.folder / "whole/model")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("full", {}),
        ("full", {"num_processes": 2, "zero": "zero2"}),
        ("full", {"num_processes": 2, "zero": "zero3"}),
        ("dpo", {"start": "base", "dpo_learning_rate": 1e38, "dpo_epochs": 6}),
    ],
)
def test_a_real_nan_ends_the_training_and_leaves_nothing_to_go_on_from(
    trained: Workspace, option: str, values: dict[str, Any]
) -> None:
    training = real(trained, option, **{"learning_rate": 1e38} | values)
    # A weight that is too large ends in a norm, and the loss is finite: the decay overflows it.
    decay = training.cfg.axolotl | {"weight_decay": 10.0}
    cfg = training.cfg.model_copy(update={"axolotl": decay})
    said = one_line(trained, cfg, training.model, "nan")
    assert "lower the learning rate" in said
    assert not (trained.folder / "nan/model").exists()
    work = training.work
    assert work is not None
    for folder in work.glob("*/model/checkpoint-*"):
        assert checkpoints.fault(folder)
    shutil.rmtree(work)


@contextlib.contextmanager
def tiny_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={megabytes}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_full_disk_is_one_line_and_what_was_saved_is_gone_on_from(trained: Workspace) -> None:
    training = real(trained, save_steps=10)
    disk = trained.folder / ".cache/training"
    with tiny_disk(disk, 24):
        filling = disk / "filling"
        stage = training.start("full")
        while not (training.work and list(training.work.glob(f"tune/model/*/{checkpoints.SEAL}"))):
            assert stage.poll() is None, stage.communicate()[1][-600:]
            time.sleep(0.005)
        with contextlib.suppress(OSError), filling.open("wb") as file:
            while shutil.disk_usage(disk).free > 300_000:
                file.write(bytes(100_000))
                file.flush()
        said = stage.communicate(timeout=300)[1]
        assert stage.returncode == 1
        assert "no room is left on the disk" in said and "free some room" in said
        assert not (trained.folder / "full/model").exists()
        filling.unlink()
        stage = training.start("full")
        said = stage.communicate(timeout=300)[0]
        assert json.loads(said.splitlines()[-1])["num_steps"] == 60
        notes = (trained.folder / ".cache/progress/finetune.jsonl").read_text()
        assert "going on from step" in notes
        assert (trained.folder / "full/model/model.safetensors").exists()


@pytest.mark.slow
def test_memory_that_runs_out_ends_with_the_keys_that_help(trained: Workspace) -> None:
    limited = trained.folder / "limited.sh"
    limited.write_text(f'#!/bin/sh\nulimit -v 9000000\nexec {PYTHON} "$@"\n')
    limited.chmod(0o755)
    cfg = real(trained, python=str(limited)).cfg
    more = {"hidden_size": 2048, "num_layers": 100, "num_heads": 16}
    said = one_line(trained, cfg, model_config(**SMALL | more), "memory")
    assert "out of memory" in said and "finetune.micro_batch_size" in said
