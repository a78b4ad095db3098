"""Axolotl's own keys in `finetune.axolotl`: passed on as they stand, if none of them is ours."""

from typing import Any

from stages.core.errors import PipelineError
from stages.finetune.settings import Config

ADAPTERS = ("lora_", "peft_")
"""How Axolotl's keys begin that shape an adapter."""

OWNED = {
    "base_model": "model.id or model.path",
    "revision_of_model": "model.revision",
    "reinit_weights": "model.kind",
    "chat_template": "model.chat_template",
    "chat_template_jinja": "model.chat_template",
    "eot_tokens": "model.end_of_turn",
    "sequence_len": "model.context_tokens",
    "adapter": "finetune.kind",
    "load_in_4bit": "finetune.kind",
    "rl": "finetune.kind",
    "rl_beta": "finetune.dpo_beta",
    "lora_model_dir": "finetune.init_adapter",
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
            "lora_r",
            "lora_alpha",
        )
    },
    "eval_batch_size": "finetune.micro_batch_size",
    **dict.fromkeys(
        ("save_strategy", "save_total_limit", "auto_resume_from_checkpoints"),
        "finetune.save_steps",
    ),
    **dict.fromkeys(
        ("datasets", "test_datasets", "val_set_size", "eval_strategy"),
        "the examples of the synthesize stage",
    ),
    **dict.fromkeys(
        # To resume by hand would go round the lineage, and round what was removed.
        ("output_dir", "dataset_prepared_path", "resume_from_checkpoint"),
        "Docent's own files",
    ),
}
"""Axolotl's keys that are ours to render, and from which of our keys."""


def refuse_owned(cfg: Config) -> None:
    """An error for a key that is ours, or for plugins that cannot stand beside ours."""
    for key in sorted(set(cfg.axolotl) & set(OWNED)):
        raise PipelineError(
            f"finetune.axolotl.{key}: {cfg.axolotl[key]!r}: this key is rendered from "
            f"{OWNED[key]}: set it there, and remove it here"
        )
    plugins = cfg.axolotl.get("plugins", [])
    if not (isinstance(plugins, list) and all(isinstance(name, str) for name in plugins)):
        raise PipelineError(
            f"finetune.axolotl.plugins: {plugins!r}: expected a list of names, such as [my.Plugin]"
        )


def untouched(cfg: Config) -> dict[str, Any]:
    """The keys of the pass-through, but for those of an adapter where there is none."""
    if cfg.adapter:
        return cfg.axolotl
    return {k: v for k, v in cfg.axolotl.items() if not k.startswith(ADAPTERS)}
