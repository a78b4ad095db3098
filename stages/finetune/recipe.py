"""From a Config and a model section to the one YAML that Axolotl trains by."""

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from stages.core import config
from stages.core import model as base
from stages.core.errors import PipelineError
from stages.finetune import launching


class Training(config.Base):
    python: str
    """Command that starts Python in the model environment, where Axolotl runs."""
    launcher: launching.Config
    """Where the training runs."""
    num_processes: Annotated[int, Field(ge=1)]
    """Training processes of one machine: one per GPU, or gloo processes that share its cores."""
    deepspeed: Literal["zero1", "zero2", "zero3"] | None
    """DeepSpeed's ZeRO stage (zero1, zero2 or zero3), or null to train without DeepSpeed."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate of the instruction tuning."""
    num_epochs: Annotated[float, Field(gt=0)]
    """Passes over the training examples."""
    micro_batch_size: Annotated[int, Field(ge=1)]
    """Examples that one process trains on at once."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)]
    """Micro-batches whose gradients are summed for one step of the optimizer."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps in which the learning rate rises from zero to its peak."""
    save_steps: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None
    """Steps between checkpoints that an interrupted training resumes from, as a number or as a
    share of all steps; null makes none."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest share of examples that may exceed the context before the stage fails."""
    seed: int
    """Seed of the random weights, of adapters and of the order of the examples."""
    axolotl: dict[str, Any]
    """Any other keys of Axolotl's own YAML, passed through untouched."""


class Full(Training):
    """All weights are trained."""

    kind: Literal["full"]


class Lora(Training):
    """A low-rank adapter is trained, and merged into the weights at the end."""

    kind: Literal["lora"]
    lora_r: Annotated[int, Field(ge=1)]
    """Rank of the LoRA adapter."""
    lora_alpha: Annotated[float, Field(gt=0)]
    """Scale of the LoRA adapter's contribution, before it is divided by the rank."""


Config = Annotated[Full | Lora, Field(discriminator="kind")]

PLUGIN = "docent_axolotl.Plugin"
PRETRAINING_BATCH_SIZE = 2
"""Sequences a step; the documents are few, and small steps learn most from each pass."""


def tuning(cfg: Config, model: base.Config, has_validation: bool) -> dict[str, Any]:
    """Instruction tuning: the loss is on the answers and on the end of their turns only."""
    recipe: dict[str, Any] = {
        "base_model": "./base",
        "chat_template": "tokenizer_default",
        "sequence_len": model.context_tokens,
        "datasets": [chats("./train.jsonl")],
        "output_dir": "./model",
        "num_epochs": cfg.num_epochs,
        "micro_batch_size": cfg.micro_batch_size,
        "gradient_accumulation_steps": cfg.gradient_accumulation_steps,
        "learning_rate": cfg.learning_rate,
        "warmup_ratio": cfg.warmup_ratio,
        "seed": cfg.seed,
        "val_set_size": 0.0,
    }
    if has_validation:
        recipe["test_datasets"] = [chats("./validation.jsonl")]
        recipe["eval_strategy"] = "epoch"
        recipe["eval_batch_size"] = cfg.micro_batch_size
    if isinstance(model, base.Hub):
        recipe |= {"base_model": model.id, "revision_of_model": model.revision}
    if isinstance(model, base.Local):
        recipe["base_model"] = model.path
    if isinstance(model, base.Pretrained) and model.template is not None:
        recipe |= {"chat_template": "jinja", "chat_template_jinja": model.template}
    if isinstance(cfg, Lora):
        recipe |= {"adapter": "lora", "lora_r": cfg.lora_r, "lora_alpha": cfg.lora_alpha}
    if cfg.deepspeed:
        recipe["deepspeed"] = deepspeed(int(cfg.deepspeed.removeprefix("zero")))
    if cfg.save_steps:
        recipe |= {
            "save_steps": cfg.save_steps,
            "save_total_limit": 2,
            "auto_resume_from_checkpoints": True,
        }
    else:
        recipe["save_strategy"] = "no"
    for key in sorted(set(cfg.axolotl) & (set(recipe) | set(OWNED))):
        owner = OWNED.get(key, "Docent's own files")
        raise PipelineError(
            f"finetune.axolotl.{key}: {cfg.axolotl[key]!r}: this key is rendered from {owner}: "
            f"set it there, and remove it here"
        )
    return complete({"optimizer": optimizer(cfg, model)} | cfg.axolotl | recipe)


def complete(recipe: dict[str, Any]) -> dict[str, Any]:
    return recipe | {"plugins": [*recipe.get("plugins", []), PLUGIN]}


def optimizer(cfg: Config, model: base.Config) -> str:
    """Muon for a scratch model: 390 steps took its loss to 2.6, and with AdamW to 5.1.

    Pretrained weights and adapters want AdamW, and Axolotl has no Muon with DeepSpeed.
    """
    able = isinstance(model, base.Scratch) and isinstance(cfg, Full) and not cfg.deepspeed
    return "muon" if able else "adamw_torch_fused"


def chats(path: str) -> dict[str, Any]:
    """A JSONL file of chats, of which the answers and the ends of their turns are learned."""
    return {
        "path": path,
        "ds_type": "json",
        "split": "train",  # what `datasets` calls the rows of a plain file
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }


OWNED = {
    "base_model": "model.id or model.path",
    "revision_of_model": "model.revision",
    "chat_template": "model.chat_template",
    "chat_template_jinja": "model.chat_template",
    "sequence_len": "model.context_tokens",
    "adapter": "finetune.kind",
    "lora_r": "finetune.lora_r",
    "lora_alpha": "finetune.lora_alpha",
    **{
        key: f"finetune.{key}"
        for key in (
            "num_epochs",
            "micro_batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "warmup_ratio",
            "seed",
            "deepspeed",
            "save_steps",
        )
    },
    **dict.fromkeys(("save_strategy", "auto_resume_from_checkpoints"), "finetune.save_steps"),
    **dict.fromkeys(
        ("datasets", "test_datasets", "val_set_size"), "the examples of the synthesize stage"
    ),
}
"""Axolotl's keys that are ours to render, and from which of our keys."""


def pretraining(cfg: Config, model: base.Scratch) -> dict[str, Any]:
    """Random weights, then plain language modelling of the train documents: the base."""
    passed = {
        key: value
        for key, value in cfg.axolotl.items()
        if not key.startswith(("lora_", "peft_", "optim"))
    }
    recipe = {
        "optimizer": "muon",
        "base_model": "./random",
        "reinit_weights": True,
        "sequence_len": model.context_tokens,
        "datasets": [{"path": "./documents.jsonl", "ds_type": "json", "type": "completion"}],
        "output_dir": "./base",
        "num_epochs": model.pretrain_epochs,
        "micro_batch_size": PRETRAINING_BATCH_SIZE,
        "gradient_accumulation_steps": 1,
        "learning_rate": model.pretrain_learning_rate,
        "warmup_ratio": 0.05,
        "seed": cfg.seed,
        "val_set_size": 0.0,
        "save_strategy": "no",
    }
    return complete(passed | recipe)


def deepspeed(stage: int) -> dict[str, Any]:
    """ZeRO: 1 shards the optimizer's state, 2 also the gradients, 3 also the parameters."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
    }
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def render(recipe: dict[str, Any]) -> str:
    """The YAML's text, its keys sorted, so that equal configs give equal bytes."""
    # ASCII: PyYAML writes some line breaks of Unicode plain, and reads them as spaces.
    return yaml.safe_dump(recipe, sort_keys=True)
