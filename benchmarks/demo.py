"""The demo's DAG stage by stage (seconds, peak memory, rows), with a control beside it.

The control is tuned on the same questions with the answers shuffled between them: what it scores
is what training on the form alone is worth, without a fact in it.
`--quick` measures the stages up to the examples only.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks import machine
from stages import pipeline
from stages.core import store
from stages.core.records import Example, Message

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--quick", action="store_true", help="no training, no model")
    quick = reader.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        subprocess.run(["git", "clone", "-q", ROOT, project], check=True)
        os.chdir(project)
        (project / ".venv-model").symlink_to(ROOT / ".venv-model")
        pipeline.write_params(pipeline.compose(["tracking=none"]))
        commands = {
            name: stage["cmd"]
            for name, stage in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items()
        }
        print(machine.describe("dvc", "scrapy", "bm25s"))
        print(f"{'stage':<18}{'seconds':>9}{'peak MB':>9}  rows")
        last = pipeline.STAGES.index("synthesize") if quick else len(pipeline.STAGES)
        for stage in ("site", *pipeline.STAGES[: last + 1]):
            measure(stage, commands[stage], Path("data", stage))
        if quick:
            return 0

        shuffle(Path("data/synthesize/train.jsonl"), Path("control/synthesize/train.jsonl"))
        for stage in ("finetune", "deploy", "evaluate"):
            command = commands[stage]
            for out in ("data/finetune", "data/deploy", "data/evaluate", "data/synthesize/train"):
                command = command.replace(out, out.replace("data", "control"))
            measure(f"control {stage}", command, Path("control", stage))
        return report()


def measure(name: str, command: str, out: Path) -> None:
    """Run one stage and print its row; memory is that of its largest process."""
    began = time.monotonic()
    environment = {**pipeline.environment(), "DVC_ROOT": str(Path.cwd())}
    child = subprocess.Popen(
        shlex.split(command), env=environment, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr
    said = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command}\n{said}")
    rows = ""
    if (out / "manifest.json").exists():
        counts = json.loads((out / "manifest.json").read_text())["rows"]
        rows = ", ".join(f"{Path(file).stem} {count}" for file, count in counts.items() if count)
    print(
        f"{name:<18}{time.monotonic() - began:>9.1f}{used.ru_maxrss / 1024:>9.0f}  {rows}",
        flush=True,
    )


def shuffle(train: Path, out: Path) -> None:
    """The examples with their answers moved to other questions."""
    rows = list(store.read(train, Example))
    answers = [row.answer for row in rows]
    random.Random(0).shuffle(answers)
    store.write(
        out,
        [
            row.model_copy(
                update={
                    "answer": answer,
                    "messages": (*row.messages[:-1], Message(role="assistant", content=answer)),
                }
            )
            for row, answer in zip(rows, answers, strict=True)
        ],
    )


def report() -> int:
    """The table of the real run and of the control, and the figures; 1 where one falls short."""
    tracks = {
        name: store.read_json(Path(name, "evaluate/metrics.json"))["tracks"]
        for name in ("data", "control")
    }
    print(f"\n{'ROUGE-L F1':<18}{'same_fact':>10}{'held_out':>10}")
    for name, system in [
        *(("data", system) for system in tracks["data"]["same_fact"]),
        ("control", "tuned"),
    ]:
        label = system if name == "data" else "control"
        row = [tracks[name][track][system]["rougeL_f1"] for track in ("same_fact", "held_out")]
        print(f"{label:<18}{row[0]:>10.3f}{row[1]:>10.3f}")
    facts = store.read_json(Path("data/synthesize/manifest.json"))["metrics"]["num_facts"]
    same = tracks["data"]["same_fact"]
    gain = same["tuned"]["rougeL_f1"] - same["base"]["rougeL_f1"]
    over = same["tuned"]["rougeL_f1"] - tracks["control"]["same_fact"]["tuned"]["rougeL_f1"]
    figures = [
        ("facts", facts, 150),
        ("same_fact_questions", same["tuned"]["num_questions"], 75),
        ("tuned_minus_base", gain, 0.2),
        ("tuned_minus_control", over, 0.2),
    ]
    for name, value, target in figures:
        print(f"figure {name} {value:.4g} target {target}")
    return int(any(value < target for _, value, target in figures))


if __name__ == "__main__":
    shutil.which("dvc") or sys.exit("run it by `make bench NAME=demo`")
    sys.exit(main())
