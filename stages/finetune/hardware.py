"""What the training machine can do → the keys of Axolotl that suit it: the fastest safe ones."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from pydantic import BaseModel, ConfigDict

from stages.core import model as base
from stages.core import store
from stages.core.errors import PipelineError
from stages.finetune import launching
from stages.finetune.settings import Config, Zero

PROBE = launching.ENVIRONMENT / "probe.py"


class Machine(BaseModel):
    """What the probe says of the machine that trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cuda: bool
    num_gpus: int
    capability: tuple[int, int] | None
    """Compute capability of the oldest GPU: 8.0 is Ampere."""
    memory_bytes: int
    """Of the smallest GPU, or of the host where there is none; 0 if unknown."""
    bf16: bool
    cores: int
    flash_attn: bool
    liger_kernel: bool
    bitsandbytes: bool

    def is_since(self, major: int) -> bool:
        """Whether every GPU is known to be of this compute capability or a later one."""
        return self.capability is not None and self.capability >= (major, 0)

    def __str__(self) -> str:
        """One line, without the choices that follow from it."""
        if not self.cuda:
            return f"{self.cores} CPU cores, {'with' if self.bf16 else 'without'} bfloat16"
        parts = [f"{self.num_gpus or 'some'} GPUs"]
        if self.memory_bytes:
            parts.append(f"of {self.memory_bytes / 2**30:.0f} GiB")
        if not self.capability:
            return " ".join([*parts, "that cannot be asked here"])
        major, minor = self.capability
        return " ".join([*parts, f"with compute capability {major}.{minor}"])


CPU = Machine(
    cuda=False,
    num_gpus=0,
    capability=None,
    memory_bytes=0,
    bf16=False,
    cores=1,
    flash_attn=False,
    liger_kernel=False,
    bitsandbytes=False,
)
GPU = CPU.model_copy(
    update={"cuda": True, "bf16": True, "bitsandbytes": True, "liger_kernel": True, "cores": 8}
)
"""One that cannot be asked: what every GPU since Ampere (2020) can do, with what Axolotl brings."""


def machine(cfg: Config, *, asks_image: bool = True) -> Machine:
    """The machine that the settings name, or the one that trains, as its environment sees it."""
    if cfg.device == "cpu":
        return CPU
    match cfg.launcher:
        case launching.Local():
            found = probe(cfg.python)
            return GPU if cfg.device == "cuda" and not found.cuda else found
        case launching.Docker() if cfg.device == "auto" and asks_image:
            said = launching.docker.ask(cfg.launcher, PROBE)
            return GPU if said is None else heard(said, "finetune.launcher.image", "it")
        case launching.Slurm() if cfg.device == "auto" and not cfg.launcher.gpus_per_node:
            return CPU
        case launching.Slurm():
            asked = cfg.launcher
            more = {"num_gpus": asked.gpus_per_node or 0, "cores": asked.cpus_per_node or GPU.cores}
            return stated(asked.gpu).model_copy(update=more)
        case launching.Bundle():
            return stated(cfg.launcher.gpu)
        case _:
            return GPU


def stated(gpu: launching.Gpu) -> Machine:
    """GPUs by what the settings say of them."""
    tenths = None if gpu.capability is None else round(10 * gpu.capability)
    return GPU.model_copy(
        update={
            "capability": None if tenths is None else divmod(tenths, 10),
            "bf16": tenths is None or tenths >= 80,
            "memory_bytes": round((gpu.memory_gib or 0) * 2**30),
            "flash_attn": gpu.flash_attn,
            "liger_kernel": gpu.liger_kernel,
        }
    )


def here(cfg: Config) -> Machine:
    """This machine, where a base is built also for a training that is packed for elsewhere."""
    return CPU if cfg.device == "cpu" else probe(cfg.python)


@functools.cache
def probe(python: str) -> Machine:
    """Ask the model environment, once in a process."""
    command = [*store.interpreter(python, "finetune.python"), str(PROBE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return heard(done.stdout.strip() or done.stderr, "finetune.python", repr(python))


def heard(said: str, key: str, who: str) -> Machine:
    """What the probe has printed, in its last line."""
    last = (said.strip() or "nothing").splitlines()[-1]
    try:
        return Machine.model_validate(json.loads(last))
    except ValueError:
        raise PipelineError(
            f"{key}: {who} cannot say what this machine is: {last[:300]}; set finetune.device to "
            "cpu or cuda, which asks nothing"
        ) from None


def keys(cfg: Config, model: base.Config, found: Machine, *, packs: bool = True) -> dict[str, Any]:
    """Axolotl's keys for the machine. Preference pairs are not packed: `packs` is False for them.

    A CPU packs nothing, since without a kernel for it each token would see its whole sequence;
    batches of like lengths waste least on padding there. Packing with SDPA in bfloat16 can give a
    loss of zero before Hopper (pytorch/pytorch test_transformers.py; Axolotl warns of it).
    """
    if not found.cuda:
        return {
            "bf16": found.bf16 and not isinstance(cfg.deepspeed, Zero),
            "fp16": False,
            "tf32": False,
            "attn_implementation": "sdpa",
            "sample_packing": False,
            "pad_to_sequence_len": False,
            "group_by_length": packs,
            "gradient_checkpointing": False,
            "dataset_num_proc": 1,
        }
    flash = found.flash_attn and found.is_since(8)  # FlashAttention 2 refuses a GPU before Ampere
    packed = packs and (flash or found.is_since(9))
    chosen: dict[str, Any] = {
        "bf16": found.bf16,
        # Of an adapter alone: weights in float16 are no floor for their own gradients.
        "fp16": not found.bf16 and cfg.adapter is not None,
        "tf32": found.bf16,  # both came with Ampere
        "attn_implementation": "flash_attention_2" if flash else "sdpa",
        "sample_packing": packed,
        "eval_sample_packing": False,  # few examples fill no pack
        "pad_to_sequence_len": packed,
        "group_by_length": packs and not packed,
        "gradient_checkpointing": checkpoints(cfg, model, found),
        "dataset_num_proc": min(found.cores, 8),
    }
    if found.liger_kernel and packs:
        chosen |= {
            "plugins": ["axolotl.integrations.liger.LigerPlugin"],
            "liger_rope": True,
            "liger_rms_norm": True,
            "liger_glu_activation": True,
            "liger_fused_linear_cross_entropy": True,
        }
    return chosen


def sentence(found: Machine, chosen: dict[str, Any]) -> str:
    """What was found and chosen, in one line."""
    precision = "bf16" if chosen["bf16"] else "fp16" if chosen["fp16"] else "fp32"
    parts = [precision, str(chosen["attn_implementation"])]
    for key, name in (
        ("sample_packing", "packed"),
        ("liger_rope", "Liger"),
        ("gradient_checkpointing", "gradient checkpointing"),
    ):
        if chosen.get(key):
            parts.append(name)
    return f"trains on {found}: {', '.join([*parts, str(chosen['optimizer'])])}"


# --- memory ------------------------------------------------------------------------------------

BYTES_TRAINED = 16
"""Of a trained weight: itself and its gradient in 2 bytes each, and Adam's copy and two moments in
4 each (Rajbhandari et al. 2020, ZeRO, section 3.1)."""
BYTES_PER_ACTIVATION = 34
"""Of a layer, for each token and unit of width, with fused attention (Korthikanti et al. 2022,
Reducing Activation Recomputation, equation 2 without its attention term)."""
SHARE_USABLE = 0.8


def checkpoints(cfg: Config, model: base.Config, found: Machine) -> bool:
    """Whether activations must be computed twice, since they would not fit; yes if unknown."""
    shape = architecture(model)
    if shape is None or not found.memory_bytes:
        return True
    needed = weights_bytes(cfg, shape) + activation_bytes(cfg, model, shape)
    return needed > SHARE_USABLE * found.memory_bytes


def weights_bytes(cfg: Config, shape: dict[str, Any]) -> float:
    """Of weights, gradients and the optimizer's state on one GPU, under ZeRO's sharding."""
    num = num_parameters(shape)
    if cfg.adapter:
        return num * (0.6 if cfg.adapter == "qlora" else 2)
    kept, shards = BYTES_TRAINED, cfg.num_processes * launching.num_nodes(cfg.launcher)
    # Bytes that each stage spreads: the state, then the gradient too, then the weight too.
    spread = {1: 12, 2: 14, 3: 16}[cfg.deepspeed.stage] if isinstance(cfg.deepspeed, Zero) else 0
    offloaded = isinstance(cfg.deepspeed, Zero) and cfg.deepspeed.offload
    return num * (kept - spread + (0 if offloaded else spread / shards))


def activation_bytes(cfg: Config, model: base.Config, shape: dict[str, Any]) -> float:
    """Of one micro-batch, with the logits and their gradient in 4 bytes each."""
    tokens = cfg.micro_batch_size * model.context_tokens
    layers = shape["num_hidden_layers"] * shape["hidden_size"] * BYTES_PER_ACTIVATION
    return float(tokens * (layers + 8 * shape["vocab_size"]))


def num_parameters(shape: dict[str, Any]) -> float:
    """Of a decoder with a gated feed-forward and grouped heads, such as Llama."""
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    grouped = (shape.get("num_key_value_heads") or heads) / heads
    attention = 2 * width * width * (1 + grouped)
    feed_forward = 3 * width * (shape.get("intermediate_size") or 4 * width)
    embeddings = (1 if shape.get("tie_word_embeddings") else 2) * shape["vocab_size"] * width
    return float(shape["num_hidden_layers"] * (attention + feed_forward) + embeddings)


SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def architecture(model: base.Config) -> dict[str, Any] | None:
    """The model's config.json as far as it is known before the training; None if it is not."""
    match model:
        case base.Scratch():
            shape: dict[str, Any] = {
                "hidden_size": model.hidden_size,
                "num_hidden_layers": model.num_layers,
                "num_attention_heads": model.num_heads,
                "vocab_size": model.vocab_size,
                "tie_word_embeddings": True,
            }
        case base.Hub():
            found = hub_config(model.id, model.revision)
            if found is None:
                return None
            shape = store.read_json(found)
        case base.Local():
            shape = store.read_json(store.locate(model.path, "model.path") / "config.json")
    shape = shape.get("text_config", shape)  # of a model that also sees pictures
    return shape if all(shape.get(key) for key in SHAPE) else None


@functools.cache
def hub_config(id: str, revision: str) -> Path | None:
    """The hub's config.json on this machine; None where it cannot be had."""
    try:
        return Path(huggingface_hub.hf_hub_download(id, "config.json", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None
