"""Our stage against a bare `axolotl train` of the same YAML: tokens a second, memory, fixed cost.

Both train the same small Llama on the same examples, in turns; the bare one has neither our plugin
nor anything of us around it. What a start costs (imports, preparing, saving) does not grow with the
training, so that both costs together say what our stage adds to a training of five minutes. Both
train in float32: the bare one refuses bfloat16 on a CPU. Beside them, of our stage alone: bfloat16,
two processes, and an adapter. `--quick` runs our stage once, on a smaller model.
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

ROOT = Path(__file__).resolve().parent.parent
PYTHON = str(ROOT / ".venv-model/bin/python")
FIVE_MINUTES = 300
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
        write_examples(160 if quick else 320)
        print(f"a Llama of {num_parameters / 1e6:.1f}M parameters, micro batch 8, context 256\n")
        columns = ("wall s", "steps s", "fixed s", "tokens/s", "cpu s", "peak MB")
        print(" " * 26 + "".join(f"{name:>9}" for name in columns))
        if quick:
            show("our stage", [ours()])
            return 0
        bare_runs: list[Run] = []
        our_runs: list[Run] = []
        for _ in range(2):
            our_runs.append(ours(axolotl={"bf16": False}))
            show("our stage", our_runs[-1:])
            bare_runs.append(bare(our_runs[-1].tokens))
            show("bare axolotl train", bare_runs[-1:])
        show("median: bare", bare_runs)
        show("median: our stage", our_runs)
        show("bfloat16 (autocast)", [ours()])
        show("two processes", [ours(num_processes=2, gradient_accumulation_steps=1)])
        show("adapter (LoRA)", [ours("lora")])
    slower = median(r.train_s for r in our_runs) / median(r.train_s for r in bare_runs) - 1
    fixed = median(r.fixed_s for r in our_runs) - median(r.fixed_s for r in bare_runs)
    share = (slower * FIVE_MINUTES + fixed) / FIVE_MINUTES
    print(f"\nsteps: {slower:+.1%}; fixed start-up cost: {fixed:+.1f} s more than the bare one's")
    print(f"on a training of five minutes: {slower:+.1%} of it, and {fixed:+.1f} s once")
    cpu = median(r.cpu_s for r in our_runs) - median(r.cpu_s for r in bare_runs)
    print(f"processor time of a whole run: {cpu:+.1f} s more than the bare one's")
    print(f"figure overhead_of_five_minutes {share:.4f} target 0.05")
    return int(share > 0.05)


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


def ours(option: str = "full", *overrides: str, **values: Any) -> Run:
    """Our stage, from its inputs to its model."""
    given = section(f"finetune={option}", *overrides)["finetune"]
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
    memory = Memory()
    memory.start()
    names = ("documents", "assignment", "train", "validation")
    inputs = {name: Path(f"data/{name}.jsonl") for name in names}
    began, before = time.monotonic(), processor_seconds()
    finetune.run(cfg, model, **inputs, out=Path("data/finetune"))
    wall, cpu = time.monotonic() - began, processor_seconds() - before
    log = Path(".cache/logs/finetune-tune.log")
    return Run(wall, train_seconds(log), tokens, cpu, memory.end())


def bare(tokens: int) -> Run:
    """`axolotl train` of the YAML that our stage has rendered last, without our plugin.

    It trains on the same tokens, which it does not count.
    """
    folder = Path("bare")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("data/finetune", folder, ignore=shutil.ignore_patterns("model", "adapter"))
    recipe = yaml.safe_load((folder / "axolotl.yaml").read_text())
    del recipe["plugins"]
    recipe["base_model"] = str(Path("base").resolve())
    (folder / "axolotl.yaml").write_text(yaml.safe_dump(recipe))
    variables = {
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(folder.resolve() / "datasets"),
    }
    log = folder / "log"
    memory = Memory()
    memory.start()
    began, before = time.monotonic(), processor_seconds()
    with log.open("wb") as output:
        code = subprocess.run(
            [Path(PYTHON).with_name("axolotl"), "train", "axolotl.yaml", "--launcher", "python"],
            cwd=folder,
            env=os.environ | variables,
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
