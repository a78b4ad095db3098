"""The base model: built here from the documents, fetched from a hub, or a local folder."""

from typing import Annotated, Literal

from pydantic import Field

from stages.core import config

Tokenizer = Literal["cl100k", "o200k"]


class Scratch(config.Base):
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


class Hub(config.Base):
    """A model of the Hugging Face hub."""

    kind: Literal["hub"]
    id: str
    """Name on the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct."""
    revision: str
    """Branch, tag or commit; pin a commit for an exact rebuild."""
    context_tokens: Annotated[int, Field(ge=64)]
    """Longest sequence used for training and serving, in tokens."""
    chat_template: str | None
    """Jinja template, where the tokenizer carries none."""


class Local(config.Base):
    """A model folder on this machine: safetensors, config.json and tokenizer."""

    kind: Literal["local"]
    path: str
    """The folder."""
    context_tokens: Annotated[int, Field(ge=64)]
    """Longest sequence used for training and serving, in tokens."""
    chat_template: str | None
    """Jinja template, where the tokenizer carries none."""


Config = Annotated[Scratch | Hub | Local, Field(discriminator="kind")]
