"""From the settings, the model and the machine to the YAMLs that Axolotl trains by, in order."""

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from stages.core import model as base
from stages.finetune import hardware
from stages.finetune.hardware import Machine
from stages.finetune.passthrough import refuse_owned, untouched
from stages.finetune.settings import (
    Config,
    CptThenSft,
    Dpo,
    Full,
    NoDeepspeed,
    Training,
    Zero,
)

PLUGIN = "docent_axolotl.Plugin"
PRETRAINING: dict[str, Any] = {
    "micro_batch_size": 2,  # the documents are few, and small steps learn most from each pass
    "gradient_accumulation_steps": 1,
    "warmup_ratio": 0.05,
    "lr_scheduler": "cosine",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optimizer": "muon",
}
"""How a base from scratch steps, whatever the tuning does: its points are compared over one."""

Name = Literal["cpt", "tune", "dpo"]


@dataclass(frozen=True)
class Phase:
    """One start of Axolotl. Each phase goes on from the weights or the adapter of the one before.

    In the YAML `base_model` or `lora_model_dir` says so as a folder `./<name>`.
    """

    name: Name
    title: str
    recipe: dict[str, Any]
    before: Name | None
    """The phase that it goes on from."""

    @property
    def file(self) -> str:
        return "axolotl.yaml" if self.name == "tune" else f"axolotl-{self.name}.yaml"

    @property
    def prefix(self) -> str:
        """Of the phase's figures, so that the losses of different texts are told apart."""
        return "" if self.name == "tune" else f"{self.name}_"


def phases(cfg: Config, model: base.Config, found: Machine, has_validation: bool) -> list[Phase]:
    """What the recipe trains, in order."""
    refuse_owned(cfg)
    rendered: list[tuple[Name, str, dict[str, Any]]] = []
    if isinstance(cfg, CptThenSft):
        read = continued(cfg, model, found)
        rendered.append(("cpt", "continued pretraining", read))
    if not isinstance(cfg, Dpo) or cfg.start == "sft":
        rendered.append(("tune", "instruction tuning", tuning(cfg, model, found, has_validation)))
    if isinstance(cfg, Dpo):
        rendered.append(("dpo", "preference optimization", preferring(cfg, model, found)))
    made: list[Phase] = []
    for name, title, recipe in rendered:
        before = made[-1].name if made else None
        made.append(Phase(name, title, recipe | goes_on(cfg, recipe, before), before))
    return made


def goes_on(cfg: Config, recipe: dict[str, Any], before: Name | None) -> dict[str, Any]:
    """The keys that make a phase go on from the one before."""
    if before is None:
        return {}
    if cfg.adapter:
        return {"lora_model_dir": f"./{before}"}
    return {"base_model": f"./{before}"} | (
        {"revision_of_model": None} if "revision_of_model" in recipe else {}
    )


# --- the three kinds of training ---------------------------------------------------------------


def tuning(cfg: Config, model: base.Config, found: Machine, has_validation: bool) -> dict[str, Any]:
    """Instruction tuning: the loss is on the answers and on the end of their turns only."""
    recipe = {
        **steps(cfg),
        **conversations(model),
        "datasets": [chats("./train.jsonl", model)],
        "num_epochs": cfg.num_epochs,
        "learning_rate": cfg.learning_rate,
    }
    if has_validation:
        recipe["test_datasets"] = [chats("./validation.jsonl", model)]
        recipe["eval_strategy"] = "epoch"
        recipe["eval_batch_size"] = cfg.micro_batch_size
    return complete(cfg, model, found, recipe)


def continued(cfg: CptThenSft, model: base.Config, found: Machine) -> dict[str, Any]:
    """Plain language modelling of the train documents and of paraphrases."""
    cfg = cfg.model_copy(update={"micro_batch_size": cfg.cpt_micro_batch_size})
    recipe = {
        **steps(cfg),
        **conversations(model),
        **reading(cfg.cpt_epochs, cfg.cpt_learning_rate),
    }
    return complete(cfg, model, found, recipe)


def preferring(cfg: Dpo, model: base.Config, found: Machine) -> dict[str, Any]:
    """Direct preference optimization against the model that it starts as."""
    pairs = {
        "path": "./preferences.jsonl",
        "ds_type": "json",
        "split": "train",
        "type": "docent_axolotl.preferences",
    }
    recipe = {
        **steps(cfg),
        **conversations(model),
        "rl": "dpo",
        "rl_beta": cfg.dpo_beta,
        "datasets": [pairs],
        "num_epochs": cfg.dpo_epochs,
        "learning_rate": cfg.dpo_learning_rate,
    }
    return complete(cfg, model, found, recipe, packs=False)


def pretraining(cfg: Config, model: base.Scratch, found: Machine) -> dict[str, Any]:
    """Random weights, then plain language modelling of the train documents: the base.

    One process makes it, of whatever recipe the tuning is. Of what the user passes to Axolotl only
    what suits the machine counts here: the rest is the tuning's.
    """
    recipe = {
        "base_model": "./random",
        "reinit_weights": True,
        "sequence_len": model.context_tokens,
        **reading(model.pretrain_epochs, model.pretrain_learning_rate),
        **PRETRAINING,
        "output_dir": "./base",
        "seed": cfg.seed,
        "val_set_size": 0.0,
        "save_strategy": "no",
    }
    shared = {name: getattr(cfg, name) for name in Training.model_fields}
    batch = PRETRAINING["micro_batch_size"]
    shared |= {"num_processes": 1, "micro_batch_size": batch, "deepspeed": NoDeepspeed(kind="none")}
    shaped = hardware.keys(Full(kind="full", **shared), model, found)
    passed = {key: cfg.axolotl[key] for key in shaped.keys() & cfg.axolotl.keys() - {"plugins"}}
    return plugged(shaped | passed | recipe, shaped)


def reading(num_epochs: float, learning_rate: float) -> dict[str, Any]:
    """Language modelling of texts, each by itself, in pieces of the context's length."""
    return {
        "datasets": [{"path": "./documents.jsonl", "ds_type": "json", "type": "completion"}],
        "num_epochs": num_epochs,
        "learning_rate": learning_rate,
    }


# --- keys that they share ----------------------------------------------------------------------


def steps(cfg: Config) -> dict[str, Any]:
    """How the optimizer steps, what is trained and what is kept on the way."""
    recipe: dict[str, Any] = {
        "micro_batch_size": cfg.micro_batch_size,
        "gradient_accumulation_steps": cfg.gradient_accumulation_steps,
        "warmup_ratio": cfg.warmup_ratio,
        "output_dir": "./model",
        "seed": cfg.seed,
        "val_set_size": 0.0,
    }
    if cfg.adapter and not isinstance(cfg, Full):
        recipe |= {"adapter": cfg.adapter, "lora_r": cfg.lora_r, "lora_alpha": cfg.lora_alpha}
        if cfg.init_adapter:
            recipe["lora_model_dir"] = "./adapter"
    if cfg.adapter == "qlora":
        recipe["load_in_4bit"] = True
    if isinstance(cfg.deepspeed, Zero):
        recipe["deepspeed"] = deepspeed(cfg.deepspeed)
    if cfg.save_steps:
        recipe |= {
            "save_steps": cfg.save_steps,
            "save_total_limit": 2,
            "auto_resume_from_checkpoints": True,
        }
    else:
        recipe["save_strategy"] = "no"
    return recipe


def conversations(model: base.Config) -> dict[str, Any]:
    """The base, its context and its chat template."""
    recipe: dict[str, Any] = {
        "base_model": "./base",
        "chat_template": "tokenizer_default",
        "sequence_len": model.context_tokens,
    }
    if isinstance(model, base.Hub):
        recipe |= {"base_model": model.id, "revision_of_model": model.revision}
    if isinstance(model, base.Local):
        recipe["base_model"] = model.path
    if isinstance(model, base.Pretrained) and model.template is not None:
        recipe |= {"chat_template": "jinja", "chat_template_jinja": model.template}
    if isinstance(model, base.Pretrained) and model.end_of_turn:
        recipe["eot_tokens"] = [model.end_of_turn]
    return recipe


def chats(path: str, model: base.Config) -> dict[str, Any]:
    """A JSONL file of chats, of which the answers and the ends of their turns are learned.

    Where the end of a turn is not the end of a text, the latter is none of the answer's.
    """
    other_end = isinstance(model, base.Pretrained) and model.end_of_turn
    return {
        "path": path,
        "ds_type": "json",
        "split": "train",  # what `datasets` calls the rows of a plain file
        "type": "chat_template",
        "field_messages": "messages",
        "message_field_training": "train",
        "roles_to_train": ["assistant"],
        "train_on_eos": None if other_end else "turn",
        "train_on_eot": "turn",
    }


def complete(
    cfg: Config, model: base.Config, found: Machine, recipe: dict[str, Any], *, packs: bool = True
) -> dict[str, Any]:
    """With what suits the machine, and over that what the user passes."""
    shaped = hardware.keys(cfg, model, found, packs=packs)
    chosen = {"optimizer": optimizer(cfg, model)} | shaped | untouched(cfg)
    return plugged(chosen | recipe, shaped)


def plugged(recipe: dict[str, Any], shaped: dict[str, Any]) -> dict[str, Any]:
    """The machine's plugins, then the user's, then ours."""
    plugins = [*shaped.get("plugins", []), *recipe.get("plugins", []), PLUGIN]
    return recipe | {"plugins": list(dict.fromkeys(plugins))}


def optimizer(cfg: Config, model: base.Config) -> str:
    """Muon for a scratch model: 390 steps took its loss to 2.6, and with AdamW to 5.1.

    Pretrained weights and adapters want AdamW, and Axolotl has no Muon with DeepSpeed. The fused
    AdamW wants its state beside the weights, which offloading takes away.
    """
    if isinstance(cfg.deepspeed, Zero):
        return "adamw_torch" if cfg.deepspeed.offload else "adamw_torch_fused"
    return "muon" if isinstance(model, base.Scratch) and not cfg.adapter else "adamw_torch_fused"


def deepspeed(zero: Zero) -> dict[str, Any]:
    """DeepSpeed's own configuration, which takes batch, precision and clipping from Axolotl's."""
    spread: dict[str, Any] = {
        "stage": zero.stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
    }
    if zero.stage == 3:
        spread["stage3_gather_16bit_weights_on_model_save"] = True
    if zero.offload:
        spread["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if zero.offload and zero.stage == 3:
        spread["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": spread,
        **({"zero_force_ds_cpu_optimizer": False} if zero.offload else {}),
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
    plain = {key: value for key, value in recipe.items() if value is not None}
    return yaml.safe_dump(plain, sort_keys=True)
