"""The base model: built here from the documents, fetched from a hub, or a local folder."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config, formats, store

Tokenizer = Literal["cl100k", "o200k"]

FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What decides a model's answers."""


class Rendered(config.Base):
    """How conversations become text, for training and serving alike."""

    format: formats.Config | None
    """Marks around questions and answers, in place of the tokenizer's chat template; null leaves
    that. Its stop text must be the token that ends a text."""

    @property
    def marks(self) -> tuple[str, str] | None:
        """The format's chat template and stop text; None without a format, or one of no marks."""
        return formats.chat_template(self.format) if self.format else None


class Pretrained(Rendered):
    """A model that others made, with its tokenizer."""

    context_tokens: Annotated[int, Field(ge=64)]
    """Longest sequence used for training and serving, in tokens."""
    chat_template: str | None
    """Jinja template in place of the tokenizer's own; null leaves that."""
    template_head: str | None
    """Jinja text before the template, which settles what that leaves to the moment or the caller,
    such as the date, thinking, or where a system message goes."""
    end_of_turn: str | None
    """Token that ends an answer, where it is not the one that ends a text; null: it is."""
    license: str | None
    """Licence of the model, as its card names it; the tuned model's card repeats it."""
    trained_answers: Literal["all", "last"]
    """Which answers of a conversation are learned; last where the template shows an earlier answer
    otherwise than it was asked for."""

    @model_validator(mode="after")
    def _one_template(self) -> Self:
        if self.marks and self.chat_template:
            raise PydanticCustomError(
                "template", "expected format or chat_template, and null for the other"
            )
        if self.template_head and not self.chat_template:
            raise PydanticCustomError(
                "template_head", "template_head stands before a chat_template: set that too"
            )
        return self

    @property
    def template(self) -> str | None:
        """The chat template in place of the tokenizer's own; None leaves that."""
        if self.chat_template:
            return (self.template_head or "") + self.chat_template
        return self.marks[0] if self.marks else None


class Scratch(Rendered):
    """A tokenizer and a small Llama, both made from the documents assigned to train.

    A demonstration and a control, never a substitute for a pretrained model: it knows nothing
    but those documents.
    """

    kind: Literal["scratch"]
    tokenizer: Tokenizer
    """Counts tokens before the model's own tokenizer exists: cl100k or o200k."""
    vocab_size: Annotated[int, Field(ge=300)]
    """Entries of the byte-level BPE tokenizer."""
    hidden_size: Annotated[int, Field(gt=0)]
    """Width of the model."""
    num_layers: Annotated[int, Field(gt=0)]
    """Transformer blocks."""
    num_heads: Annotated[int, Field(gt=0)]
    """Attention heads; they divide hidden_size."""
    context_tokens: Annotated[int, Field(ge=64)]
    """Longest sequence, in tokens."""
    pretrain_epochs: Annotated[float, Field(gt=0)]
    """Passes over the train documents that make the base."""
    pretrain_learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate of that pretraining."""


class Hub(Pretrained):
    """A model of the Hugging Face hub."""

    kind: Literal["hub"]
    id: str
    """Name on the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct."""
    revision: str
    """Branch, tag or commit; pin a commit for an exact rebuild."""


class Local(Pretrained):
    """A model folder on this machine: safetensors, config.json and tokenizer."""

    kind: Literal["local"]
    path: str
    """The folder."""


Config = Annotated[Scratch | Hub | Local, Field(discriminator="kind")]


def files(folder: Path) -> list[Path]:
    """The files of a model's folder that decide its answers."""
    return sorted({file for pattern in FILES for file in folder.glob(pattern)})


def digest(folder: Path) -> str:
    """Of a model, whatever else lies in its folder."""
    parts = "".join(f"{file.name}\0{store.digest(file)}\n" for file in files(folder))
    return hashlib.sha256(parts.encode()).hexdigest()
