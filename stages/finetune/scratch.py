"""From the train documents to the base: a tokenizer, random weights, a short pretraining."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import filelock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.model import Scratch
from stages.core.records import identify
from stages.finetune import checkpoints, data, launching, recipe, starts, trainer
from stages.finetune.hardware import Machine
from stages.finetune.launching import Job
from stages.finetune.settings import Config
from stages.finetune.starts import Start

END, PAD = "<|end|>", "<|pad|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""ChatML with one token for each end of a turn: a small model's context is short."""


def base(
    cfg: Config, model: Scratch, machine: Machine, texts: Sequence[str], folder: Path
) -> float:
    """Put the base of these texts into a folder; its last loss on them, in nats per token.

    Kept in .cache/models/base/<key>, so that a sweep of the tuning builds it once.
    """
    architecture(model, model.vocab_size)
    rendered = recipe.render(recipe.pretraining(cfg, model, machine))
    versions = [store.digest(path) for path in (Path(__file__), *sorted(requirements()))]
    key = identify(model.model_dump(), rendered, list(texts), versions)
    kept = store.cache("models", "base", key)
    with filelock.FileLock(kept.with_name(f"{key}.lock")):
        if not kept.exists():
            made = kept.with_name(f".{key}.{os.getpid()}")
            shutil.rmtree(made, ignore_errors=True)
            try:
                pretrain(cfg, model, texts, rendered, made)
                checkpoints.sync(made)
                made.rename(kept)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(kept / "model", folder)
    return float(store.read_json(kept / "loss.json"))


def pretrain(cfg: Config, model: Scratch, texts: Sequence[str], rendered: str, made: Path) -> None:
    """Write made/model and made/loss.json, in a folder of scratch files that is removed."""
    work = made / "work"
    untrained(model, texts, work / "random")
    data.write_texts(texts, work / "documents.jsonl", model.context_tokens)
    store.write_text(work / "axolotl.yaml", rendered)
    progress.note(f"pretraining a base on {len(texts)} documents; Axolotl starts in half a minute")
    report = trainer.axolotl(job(cfg, work), here(cfg), START.prefix)
    trainer.collect(work / "base", made / "model")
    store.write_json(made / "loss.json", report.final("loss"))
    shutil.rmtree(work)


def render(cfg: Config) -> str:
    """The command that `pretrain` would run, for a shell; KEY stands for the base's key."""
    task = job(cfg, store.cache("models", "base", "KEY", "work"))
    return f"# {START.title}\n{launching.render(here(cfg), task)}"


def job(cfg: Config, work: Path) -> Job:
    """One process makes it, of whatever recipe the tuning is."""
    places = {"output_dir": work / "base", "dataset_prepared_path": work / "prepared"}
    start = replace(START, places=places)
    return starts.job(start, work, work, trainer.log(start.name), cfg.python, offline=True)


START = Start("base", "pretraining a base", "axolotl.yaml", {}, prefix="base_")


def here(cfg: Config) -> launching.Config:
    """Where the base is made: here, also where the tuning is packed for elsewhere."""
    return launching.HERE if isinstance(cfg.launcher, launching.Bundle) else cfg.launcher


def requirements() -> Iterator[Path]:
    """What else shapes the weights: the plugin, and the versions of the model environment."""
    yield from trainer.ENVIRONMENT.glob("*.py")
    yield from store.root().glob("requirements/model.txt")


def untrained(model: Scratch, texts: Sequence[str], folder: Path) -> None:
    """Write a Hugging Face model folder without weights: Axolotl draws them (`reinit_weights`)."""
    template, end = model.marks or (TEMPLATE, END)
    tokenizer = tokenize(texts, model.vocab_size, end)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    store.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "pad_token": PAD,
            "model_max_length": model.context_tokens,
            "clean_up_tokenization_spaces": False,
        },
    )
    store.write_text(folder / "chat_template.jinja", template)
    store.write_json(folder / "config.json", architecture(model, tokenizer.get_vocab_size()))


def tokenize(texts: Sequence[str], vocab_size: int, end: str = END) -> Tokenizer:
    """A byte-level BPE tokenizer of these texts; every string has an encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, end, *TURNS],  # numbers 0, 1, …
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def architecture(model: Scratch, vocab_size: int) -> dict[str, object]:
    """The config.json of a small Llama; its feed-forward is 8/3 as wide as the model (Shazeer)."""
    if model.hidden_size % (2 * model.num_heads):
        raise PipelineError(
            f"model.num_heads: {model.num_heads}: expected a divisor of model.hidden_size "
            f"({model.hidden_size}) that leaves heads of even width"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.hidden_size * 8 // 3 // 32 * 32,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_heads,
        "max_position_embeddings": model.context_tokens,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
    }
