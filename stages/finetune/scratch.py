"""From the train documents to an untrained model folder: BPE tokenizer, chat template, config."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.core import store
from stages.core.errors import PipelineError
from stages.core.model import Scratch

END, PAD = "<|end|>", "<|pad|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""ChatML with one token for each end of a turn: a small model's context is short."""


def build(model: Scratch, texts: Sequence[str], folder: Path) -> None:
    """A Hugging Face model folder without weights: Axolotl draws them (`reinit_weights`)."""
    tokenizer = tokenize(texts, model.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    store.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": model.context_tokens,
            "clean_up_tokenization_spaces": False,
        },
    )
    store.write_text(folder / "chat_template.jinja", TEMPLATE)
    store.write_json(folder / "config.json", architecture(model, tokenizer.get_vocab_size()))


def tokenize(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of these texts; every string has an encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
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
            f"({model.hidden_size}) that leaves heads of even width (rotary positions come in pairs)"
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
        "eos_token_id": SPECIAL.index(END),
        "pad_token_id": SPECIAL.index(PAD),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
    }


def write_texts(texts: Sequence[str], path: Path) -> None:
    """The corpus of the continued pretraining, as Axolotl's `completion` reads it."""
    lines = (json.dumps({"text": text + END}, ensure_ascii=False) + "\n" for text in texts)
    store.write_text(path, "".join(lines))
