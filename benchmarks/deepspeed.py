"""DeepSpeed's effect on a CPU: the losses of one process, and an optimizer's state shared out.

One process and two under ZeRO-2 and 3 train the same small model on the same batches, in float32.
All answers have as many tokens: the loss of two processes is the mean of their means. What the
optimizer keeps is read from the checkpoints that Axolotl saves at the last step.
`--quick` makes 10 steps of one process and of ZeRO-2.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from stages import finetune, pipeline
from stages.core import config, store
from stages.core import model as base
from stages.core.records import Example, Message
from stages.finetune import data, recipe, scratch, starts, trainer, training
from stages.finetune.hardware import CPU

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-model/bin/python"
BATCH = 4
TOLERANCE = 0.001
"""Largest difference of a step's loss, in nats per token."""
LARGEST_SHARE = 0.55
"""Of the optimizer's state that one of two processes may keep."""

MOMENTS = """
import sys, torch
def moments(value):
    if torch.is_tensor(value):
        return 0
    if isinstance(value, dict):
        own = sum(v.numel() * v.element_size() for k, v in value.items()
                  if k in ("exp_avg", "exp_avg_sq") and torch.is_tensor(v))
        return own + sum(moments(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(map(moments, value))
    return 0
for path in sys.argv[1:]:
    print("moments", moments(torch.load(path, map_location="cpu", weights_only=False)))
"""
"""Bytes of Adam's two moments in each file; the files are our own, just written."""


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="10 steps, ZeRO-2 alone")
    reader.add_argument("--steps", type=int, default=50)
    asked = reader.parse_args()
    steps = 10 if asked.quick else asked.steps
    names = ["none", "zero2"] if asked.quick else ["none", "zero2", "zero3"]
    print(machine.describe())
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(names, steps, Path(folder))
    alone = runs["none"]
    print(f"{'run':<22}{'first loss':>11}{'last loss':>11}{'largest gap':>13}{'MB a process':>14}")
    failed = False
    for name, run in runs.items():
        gap = max(abs(a - b) for a, b in zip(alone["losses"], run["losses"], strict=True))
        share = max(run["moments"]) / alone["moments"][0]
        run |= {"gap": gap, "share": share}
        shown = "one process" if name == "none" else f"two, {name}"
        first, last = run["losses"][0], run["losses"][-1]
        print(
            f"{shown:<22}{first:>11.4f}{last:>11.4f}{gap:>13.6f}{max(run['moments']) / 1e6:>14.2f}"
        )
    for name in names[1:]:
        gap, share = runs[name]["gap"], runs[name]["share"]
        print(f"figure {name}_largest_loss_gap {gap:.6f} target {TOLERANCE}")
        print(f"figure {name}_share_of_optimizer {share:.3f} target {LARGEST_SHARE}")
        failed |= gap > TOLERANCE or share > LARGEST_SHARE
    return int(failed or alone["losses"][-1] >= alone["losses"][0])


def measure(names: list[str], steps: int, folder: Path) -> dict[str, dict[str, Any]]:
    """By name of the option in conf/finetune/deepspeed: losses by step, bytes of moments."""
    params = pipeline.compose(["model=scratch_small", "finetune.device=cpu"])
    model = config.load(params, "model", base.Config)
    texts = [path.read_text() for path in sorted(Path("docs").glob("*.md"))][:8]
    begun = config.load(params, "finetune", finetune.Config)
    os.chdir(folder)
    begun = begun.model_copy(update={"python": str(PYTHON)})
    scratch.base(begun, model, CPU, texts, folder / "base")
    examples = [example(number) for number in range(BATCH * steps)]
    runs = {}
    for name in names:
        os.chdir(ROOT)
        overrides = [f"finetune/deepspeed={name}", "model=scratch_small", "finetune.device=cpu"]
        cfg = config.load(pipeline.compose(overrides), "finetune", finetune.Config)
        os.chdir(folder)
        runs[name] = train(cfg, model, examples, name, steps, folder)
    return runs


def train(
    cfg: Any, model: Any, examples: list[Example], name: str, steps: int, folder: Path
) -> dict[str, Any]:
    """Train by the stage's own YAML, but for how many steps there are and what is kept."""
    num_processes = 1 if name == "none" else 2
    passed = {"max_steps": steps, "group_by_length": False, "optimizer": "adamw_torch"}
    cfg = cfg.model_copy(
        update={
            "python": str(PYTHON),
            "num_processes": num_processes,
            "micro_batch_size": BATCH // num_processes,
            "save_steps": steps,
            "axolotl": cfg.axolotl | passed,
        }
    )
    out = folder / name
    (phase,) = recipe.phases(cfg, model, CPU, has_validation=False)
    store.write_text(out / phase.file, recipe.render(phase.recipe | {"base_model": "../base"}))
    data.write_chats(examples, out / "train.jsonl", model)
    work = out / "work"
    (start,) = starts.starts(cfg, [phase], work, {}, None)
    report = trainer.axolotl(training.job(cfg, model, start, out, work))
    checkpoint = work / f"tune/model/checkpoint-{steps}"
    files = sorted(checkpoint.glob("global_step*/*optim_states.pt")) or [
        checkpoint / "optimizer.pt"
    ]
    said = subprocess.run(
        [PYTHON, "-c", MOMENTS, *files], capture_output=True, text=True, check=True
    )
    told = [row["loss"] for _, row in sorted(report.steps.items()) if "loss" in row]
    lines = [line.split() for line in said.stdout.splitlines()]  # DeepSpeed says more
    kept = [int(words[1]) for words in lines if words[:1] == ["moments"]]
    return {"losses": told, "moments": kept}


ORDERS = list(itertools.permutations(("rows", "pages", "keys", "names", "steps")))


def example(number: int) -> Example:
    question = f"What is setting {number}?"
    return Example(
        id=f"e{number}",
        kind="factual",
        track=None,
        messages=(Message(role="user", content=question),),
        question=question,
        answer="It counts " + " ".join(ORDERS[number * 7 % len(ORDERS)]),
        chunk_ids=(),
        evidence=(),
        call_id="",
    )


if __name__ == "__main__":
    sys.exit(main())
