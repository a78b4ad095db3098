"""Our stage against a bare `axolotl train` of the same YAML: tokens a second, memory, fixed cost.

Both train the same small Llama on the same examples, with the same threads and in float32 (the bare
one refuses bfloat16 on a CPU); the bare one has neither our plugin nor anything of us around it.
What a start costs (imports, preparing, saving) does not grow with the training, and stands apart.
Our stage also trains in bfloat16, in two processes, and an adapter: each is compared to our stage
in one process, on all weights, in float32. All take turns: in each round every one trains once, and
every second round begins at the other end. `--quick` trains a smaller model once with each of two.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from benchmarks import machine
from stages import finetune, pipeline
from stages.core import config, progress, store
from stages.core import model as base
from stages.core.records import Assignment, Document, Example, Message
from stages.finetune import scratch
from stages.finetune.launching import Job
from stages.finetune.launching.job import ALONE, variables

ROOT = Path(__file__).resolve().parent.parent
PYTHON = str(ROOT / ".venv-model/bin/python")
LIMIT_S = 12 * 60
"""No round is begun that would end later."""
ROUNDS = 3
TARGET = 0.05
"""Largest share of the bare trainer's steps that ours may take more."""
OURS, BARE = "our stage", "bare axolotl train"
FP32, BF16 = {"bf16": False}, {"bf16": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("full", {"axolotl": FP32}),
    BARE: ("full", {}),
    "in bfloat16": ("full", {"axolotl": BF16}),
    "in two processes": (
        "full",
        {"axolotl": FP32, "num_processes": 2, "gradient_accumulation_steps": 1},
    ),
    "an adapter (LoRA)": ("lora", {"axolotl": FP32}),
}
"""By its name: our recipe, and the settings that differ."""
SHAPE = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "vocab_size": 2048}
WORDS = ("share", "of", "rows", "that", "are", "kept", "when", "alpha", "beta", "is", "set", "to")

MAKE = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
folder, dtype = sys.argv[1:]
made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
made.to(getattr(torch, dtype)).save_pretrained(folder)
print(sum(p.numel() for p in made.parameters()))
"""


@dataclass(frozen=True)
class Run:
    wall_s: float
    train_s: float
    """What the trainer itself says that its steps took, with evaluation and checkpoints."""
    tokens: int
    cpu_s: float
    """Processor time of all processes, ours too: what others do on a busy machine hardly shows."""
    peak_bytes: int
    """Of all processes of the trainer together."""

    @property
    def fixed_s(self) -> float:
        return self.wall_s - self.train_s

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.train_s


class Memory(threading.Thread):
    """The most memory that the processes below us held together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._ended = 0, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            held = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    held += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, held)

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.peak


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="our stage once, on a smaller model")
    quick = reader.parse_args().quick
    packages = subprocess.run(
        [
            PYTHON,
            "-c",
            "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in "
            "('axolotl', 'torch', 'transformers', 'deepspeed')), sep='; ')",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    print(machine.describe(), packages, sep="; ")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        num_parameters = make_base(Path("base"), SHAPE if not quick else {**SHAPE, "num_layers": 1})
        write_examples(80 if quick else 480)
        print(f"a Llama of {num_parameters / 1e6:.1f}M parameters, micro batch 8, context 256\n")
        columns = ("wall s", "steps s", "fixed s", "tokens/s", "cpu s", "peak MB")
        print(" " * 26 + "".join(f"{name:>9}" for name in columns))
        runs = rounds(1, [OURS, BARE]) if quick else rounds(ROUNDS, list(VARIANTS))
    print(f"\nmedian of {len(runs[OURS])}")
    for name, several in runs.items():
        show(name, several)
    pairs = list(zip(runs[OURS], runs[BARE], strict=True))
    fixed = median(ours.fixed_s - bare.fixed_s for ours, bare in pairs)
    cpu = median(ours.cpu_s - bare.cpu_s for ours, bare in pairs)
    print(f"\nfixed start-up cost: {fixed:+.1f} s more than the bare one's, once")
    print(f"processor time of a whole run: {cpu:+.1f} s more than the bare one's")
    if quick:
        print("(one short run of each: no figure)")
        return 0
    for name in list(VARIANTS)[2:]:
        print(f"{name}: {1 / ratio(runs, name, OURS):.2f} times the speed of {OURS}")
    overhead = ratio(runs, OURS, BARE) - 1
    print(f"figure overhead_of_steps {overhead:.4f} target {TARGET}")
    return int(overhead > TARGET)


def rounds(count: int, names: list[str]) -> dict[str, list[Run]]:
    """Each variant once a round, in turns, so that what else the machine does falls on all."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    began = time.monotonic()
    for number in range(count):
        if (time.monotonic() - began) * (number + 1) > LIMIT_S * number > 0:
            print(f"(no time for round {number + 1})")
            break
        for name in names if number % 2 == 0 else reversed(names):
            option, values = VARIANTS[name]
            if name == BARE:
                run = bare(OURS, runs[OURS][0].tokens)
            else:
                run = ours(option, out=name, **values)
            runs[name].append(run)
            show(name, [run])
    return runs


def ratio(runs: dict[str, list[Run]], name: str, to: str) -> float:
    """Of the times that the steps took, each to its neighbour's of the same round."""
    return median(a.train_s / b.train_s for a, b in zip(runs[name], runs[to], strict=True))


# --- what is trained -----------------------------------------------------------------------------


def make_base(
    folder: Path, shape: dict[str, int], dtype: str = "float32", context: int = 256
) -> int:
    """A Llama of random weights with a tokenizer; how many parameters it has."""
    cfg = model_config("scratch", **shape, context_tokens=context)
    text = [" ".join(words(number, 400)) for number in range(40)]
    scratch.untrained(cfg, text, folder)
    done = subprocess.run(
        [PYTHON, "-c", MAKE, str(folder), dtype],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.split()[-1])


def words(number: int, count: int) -> list[str]:
    chosen = random.Random(number)
    return [chosen.choice(WORDS) for _ in range(count)]


def write_examples(count: int, num_words: int = 170) -> None:
    """Examples of like lengths: what a training takes hangs on how many there are alone."""
    rows = []
    for number in range(count):
        question = " ".join(words(number, 12))
        rows.append(
            Example(
                id=f"e{number}",
                kind="factual",
                track=None,
                messages=(Message(role="user", content=question),),
                question=question,
                answer=" ".join(words(-number, num_words)),
                chunk_ids=(),
                evidence=(),
                call_id="",
            )
        )
    store.write(Path("data/train.jsonl"), rows)
    store.write(Path("data/validation.jsonl"), [])
    store.write(
        Path("data/documents.jsonl"),
        [Document(id="d", url="u", title="t", text="text", source="s")],
    )
    store.write(
        Path("data/assignment.jsonl"),
        [Assignment(document_id="d", cluster_id="d", partition="train")],
    )


def model_config(option: str, **values: Any) -> Any:
    return config.load(
        {"model": section(f"model={option}")["model"] | values}, "model", base.Config
    )


def section(*overrides: str) -> dict[str, Any]:
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        return pipeline.compose(list(overrides))
    finally:
        os.chdir(here)


# --- one training --------------------------------------------------------------------------------


def ours(option: str, out: str, **values: Any) -> Run:
    """Our stage, from its inputs to its model in the folder `out`."""
    given = section(f"finetune={option}")["finetune"]
    extra = values.pop("axolotl", {})
    given |= {
        "python": PYTHON,
        "num_epochs": 1,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
    } | values
    given["axolotl"] |= extra
    cfg = config.load({"finetune": given}, "finetune", finetune.Config)
    model = model_config("local", path="base", context_tokens=256)
    tokens = 0

    def hear(step: progress.Step) -> None:
        nonlocal tokens
        tokens = int(step.metrics.get("tokens", tokens))

    shutil.rmtree(".cache", ignore_errors=True)
    progress.begin("finetune", hear)
    names = ("documents", "assignment", "train", "validation")
    inputs = {name: Path(f"data/{name}.jsonl") for name in names}
    memory = Memory()
    memory.start()
    began, before = time.monotonic(), processor_seconds()
    finetune.run(cfg, model, **inputs, out=Path(out))
    wall, cpu = time.monotonic() - began, processor_seconds() - before
    log = Path(".cache/logs/finetune-tune.log")
    return Run(wall, train_seconds(log), tokens, cpu, memory.end())


def bare(rendered: str, tokens: int) -> Run:
    """`axolotl train` of the YAML that our stage has rendered, without our plugin.

    It trains on the same tokens, which it does not count, and with the same variables, but for
    those that our plugin and its process group read.
    """
    folder = Path("bare")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(rendered, folder, ignore=shutil.ignore_patterns("model", "adapter"))
    recipe = yaml.safe_load((folder / "axolotl.yaml").read_text())
    del recipe["plugins"]
    recipe["base_model"] = str(Path("base").resolve())
    (folder / "axolotl.yaml").write_text(yaml.safe_dump(recipe))
    log = folder / "log"
    job = Job("", (), folder, folder.resolve(), "bare", log, PYTHON, num_processes=1)
    of_our_own = {"PYTHONPATH", "DOCENT_REPORT", *ALONE}
    given = {name: value for name, value in variables(job).items() if name not in of_our_own}
    memory = Memory()
    memory.start()
    began, before = time.monotonic(), processor_seconds()
    with log.open("wb") as output:
        code = subprocess.run(
            [Path(PYTHON).with_name("axolotl"), "train", "axolotl.yaml", "--launcher", "python"],
            cwd=folder,
            env=os.environ | given,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    wall, cpu = time.monotonic() - began, processor_seconds() - before
    if code:
        raise SystemExit(log.read_text()[-3000:])
    return Run(wall, train_seconds(log), tokens, cpu, memory.end())


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def train_seconds(log: Path) -> float:
    """`train_runtime` of the trainer's own summary."""
    found = re.findall(r"'?train_runtime'?: '?([\d.]+)", log.read_text(errors="replace"))
    return float(found[-1])


def show(name: str, runs: list[Run]) -> None:
    def middle(of: Any) -> float:
        return median(of(run) for run in runs)

    print(
        f"{name:<26}{middle(lambda r: r.wall_s):>9.1f}{middle(lambda r: r.train_s):>9.1f}"
        f"{middle(lambda r: r.fixed_s):>9.1f}{middle(lambda r: r.tokens_per_s):>9.0f}"
        f"{middle(lambda r: r.cpu_s):>9.1f}{middle(lambda r: r.peak_bytes) / 1e6:>9.0f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
