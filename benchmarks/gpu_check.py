"""The GPU part, on a machine with GPUs and without network: speed, memory and MFU of our recipes.

On a machine with network, collect what is needed once, beside the checkout:

    python3 benchmarks/gpu_check.py --collect wheels --torch-index https://download.pytorch.org/whl/cu128

The platform and the Python must be those of the GPUs. FlashAttention is taken along where a wheel
of it is named, built for that torch: `--also URL`; without one, packing waits for a Hopper card.
Carry the checkout with the folder to the GPUs, and there, in one command:

    python3 benchmarks/gpu_check.py --wheels wheels

It builds both environments from the wheels, measures the card's own rate of matrix products, and
trains a locally initialised Llama of 1.1 billion parameters by our stage: all weights, an adapter,
ZeRO-2 and ZeRO-3. MFU is the share of the card's measured rate that goes into 6 (with an adapter 4)
operations a parameter and token (Kaplan et al. 2001.08361; PaLM's appendix B for attention).
`--quick` runs the same path on a CPU, on a model of a million parameters.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CORE, MODEL = ROOT / ".venv", ROOT / ".venv-model"
TARGET_MFU = 0.4
LLAMA_1B = {"hidden_size": 2048, "num_layers": 22, "num_heads": 32, "vocab_size": 32000}
TINY = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}

RATE = """
import json, time, torch
cuda = torch.cuda.is_available()
size, device = (8192, "cuda") if cuda else (1024, "cpu")
a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
def wait():
    torch.cuda.synchronize() if cuda else None
best = 0.0
for _ in range(5):
    wait(); began = time.perf_counter(); count = 0
    while time.perf_counter() - began < 0.6:
        for _ in range(4 if cuda else 1):
            a @ b
        count += 4 if cuda else 1
        wait()
    best = max(best, 2 * size**3 * count / (time.perf_counter() - began))
name = torch.cuda.get_device_name() if cuda else "CPU"
print(json.dumps([name, max(1, torch.cuda.device_count()), cuda, best]))
"""


def main() -> int:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    reader.add_argument("--quick", action="store_true", help="the same on a CPU, with a tiny model")
    reader.add_argument("--wheels", type=Path, help="build both environments from this folder")
    reader.add_argument(
        "--collect", type=Path, help="download the wheels into this folder, and end"
    )
    reader.add_argument("--torch-index", help="index of torch's CUDA build, for --collect")
    reader.add_argument(
        "--also", action="append", default=[], help="a further wheel or its URL, for --collect"
    )
    given = reader.parse_args()
    if given.collect:
        return collect(given.collect, given.torch_index, given.also)
    if given.wheels:
        build(given.wheels.resolve())
    if not __package__:  # run as a file, by any Python: all else needs the core environment
        python = CORE / "bin/python"
        if not python.exists():
            raise SystemExit(f"{CORE}: no such environment: give --wheels, or run `make setup`")
        words = [str(python), "-m", "benchmarks.gpu_check", *(["--quick"] if given.quick else [])]
        return subprocess.run(words, cwd=ROOT, check=False).returncode
    return measure(given.quick)


# --- a machine without network -------------------------------------------------------------------


def collect(folder: Path, torch_index: str | None, also: Sequence[str]) -> int:
    """Download what both environments hold, for this platform and this Python."""
    for words in downloads(folder, torch_index, also):
        # DeepSpeed comes as source.
        subprocess.run(words, env=os.environ | {"DS_BUILD_OPS": "0"}, check=True)
    print(f"{folder}: carry it with the checkout, then --wheels {folder}")
    return 0


def downloads(folder: Path, torch_index: str | None, also: Sequence[str]) -> list[list[str]]:
    """The commands that fill the folder.

    The lock was resolved with torch's build for CPUs: the libraries of CUDA, and the Triton that
    goes with them, are known to torch's own wheel alone.
    """
    pip = [sys.executable, "-m", "pip", "download", "--dest", str(folder), "--prefer-binary"]
    if torch_index:
        pip += ["--extra-index-url", torch_index]
    return [
        *([*pip, "--no-deps", "-r", str(lock(name))] for name in ("core", "model")),
        [*pip, torch()],
        [*pip, "setuptools", "wheel", "ninja", "py-cpuinfo", "hjson"],  # what builds DeepSpeed
        *([*pip, "--no-deps", wheel] for wheel in also),
    ]


def build(wheels: Path) -> None:
    """Both environments, from the wheels alone."""
    for name, folder in (("core", CORE), ("model", MODEL)):
        done = folder / "installed"  # as in the Makefile
        if done.exists():
            continue
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for words in installs(name, str(folder / "bin/python"), wheels):
            subprocess.run(words, env=os.environ | {"DS_BUILD_OPS": "0"}, check=True)
        done.touch()


def installs(name: str, python: str, wheels: Path) -> list[list[str]]:
    """The commands that fill an environment: the lock, then what torch asks for over it."""
    pip = [python, "-m", "pip", "install", "--no-index", "--find-links", str(wheels)]
    commands = [
        [*pip, "--no-deps", "setuptools", "wheel"],
        [*pip, "--no-deps", "--no-build-isolation", "-r", str(lock(name))],
    ]
    if name == "model":
        commands.append([*pip, torch()])
        flash = sorted(map(str, wheels.glob("flash_attn-*.whl")))
        commands += [[*pip, "--no-deps", wheel] for wheel in flash[:1]]
    return commands


def lock(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.txt"


def torch() -> str:
    """The version that is locked; an index of CUDA builds adds its own suffix."""
    found = re.search(r"^torch==[^\s+]+", lock("model").read_text(), re.MULTILINE)
    assert found
    return found[0]


# --- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    name: str
    tokens_per_s: float
    peak_gb: float
    mfu: float


def measure(quick: bool) -> int:
    from benchmarks import finetune as bench
    from benchmarks import machine

    python = str(MODEL / "bin/python")
    done = subprocess.run([python, "-c", RATE], capture_output=True, text=True, check=True)
    card, num_gpus, cuda, rate = json.loads(done.stdout)
    if not cuda and not quick:
        raise SystemExit("no GPU is here: --quick runs the same path on a CPU")
    print(machine.describe())
    print(f"{num_gpus} × {card}: {rate / 1e12:.3g} TFLOP/s of bfloat16 matrix products, measured")
    shape = TINY if quick else LLAMA_1B
    context = 256 if quick else 2048
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        os.chdir(folder)
        dtype = "float32" if quick else "bfloat16"
        num_parameters = bench.make_base(Path("base"), shape, dtype, context)
        bench.write_examples(96 if quick else 4000, num_words=100 if quick else 700)
        print(f"a Llama of {num_parameters / 1e6:.1f}M parameters, context {context}\n")
        print(f"{'':<28}{'tokens/s':>10}{'peak GB':>9}{'MFU':>7}")
        several = max(2, num_gpus) if quick else num_gpus
        trials: list[tuple[str, str, tuple[str, ...], int]] = [
            ("all weights", "full", (), 1),
            ("adapter (LoRA)", "lora", (), 1),
            (f"all weights, ZeRO-2 × {several}", "full", ("finetune/deepspeed=zero2",), several),
            (f"all weights, ZeRO-3 × {several}", "full", ("finetune/deepspeed=zero3",), several),
        ]
        if not quick:
            trials.append(
                (f"adapter, ZeRO-2 × {several}", "lora", ("finetune/deepspeed=zero2",), several)
            )
        rows = []
        for name, option, overrides, processes in trials:
            row = train(
                name, option, overrides, processes, quick, shape, context, num_parameters, rate
            )
            rows.append(row)
            print(
                f"{row.name:<28}{row.tokens_per_s:>10.0f}{row.peak_gb:>9.2f}{row.mfu:>7.1%}",
                flush=True,
            )
    best = rows[0].mfu
    if quick:
        print("\n(a CPU: the path was run, and no figure of it is a GPU's)")
        return 0
    print(f"\nfigure mfu_all_weights {best:.3f} target {TARGET_MFU}")
    return int(best < TARGET_MFU)


def train(
    name: str,
    option: str,
    overrides: tuple[str, ...],
    processes: int,
    quick: bool,
    shape: dict[str, int],
    context: int,
    num_parameters: int,
    rate: float,
) -> Row:
    """One training by our stage; its speed is that of its steps after the first fifth."""
    from benchmarks import finetune as bench
    from stages import finetune
    from stages.core import config, progress

    given: dict[str, Any] = bench.section(f"finetune={option}", *overrides)["finetune"]
    given |= {
        "python": str(MODEL / "bin/python"),
        "num_processes": processes,
        "num_epochs": 1,
        "micro_batch_size": 4 if quick else 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-5,
        "save_steps": None,
    }
    given["axolotl"] |= {"max_steps": 12 if quick else 60, "logging_steps": 1}
    cfg = config.load({"finetune": given}, "finetune", finetune.Config)
    model = bench.model_config("local", path="base", context_tokens=context)
    speeds: list[float] = []
    peak = 0.0

    def hear(step: progress.Step) -> None:
        nonlocal peak
        if "tokens_per_s" in step.metrics and step.done > step.total / 5:
            speeds.append(step.metrics["tokens_per_s"])
        peak = max(peak, step.metrics.get("memory_gb", 0.0))

    shutil.rmtree(".cache", ignore_errors=True)
    progress.begin("finetune", hear)
    inputs = {
        n: Path(f"data/{n}.jsonl") for n in ("documents", "assignment", "train", "validation")
    }
    finetune.run(cfg, model, **inputs, out=Path("data/finetune"))
    speed = median(speeds)
    each = 4 if option == "lora" else 6
    attention = 2 * each * shape["num_layers"] * shape["hidden_size"] * context
    return Row(name, speed, peak, speed * (each * num_parameters + attention) / (rate * processes))


if __name__ == "__main__":
    sys.exit(main())
