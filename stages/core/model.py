"""The base model: built here from the documents, fetched from a hub, or a local folder."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config, formats

Tokenizer = Literal["cl100k", "o200k"]


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
    """Jinja template, where the tokenizer carries none."""

    @model_validator(mode="after")
    def _one_template(self) -> Self:
        if self.marks and self.chat_template:
            raise PydanticCustomError(
                "template", "expected format or chat_template, and null for the other"
            )
        return self

    @property
    def template(self) -> str | None:
        """The chat template in place of the tokenizer's own; None leaves that."""
        return self.marks[0] if self.marks else self.chat_template


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
