"""The section `finetune`: which recipe trains, for how long, on how many processes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.core import config
from stages.finetune import launching

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class NoDeepspeed(config.Base):
    """Every process holds everything."""

    kind: Literal["none"]


class Zero(config.Base):
    """DeepSpeed's ZeRO spreads the optimizer's state, gradients and weights over the processes."""

    kind: Literal["zero"]
    stage: Literal[1, 2, 3]
    """What is spread: 1 the optimizer's state, 2 also the gradients, 3 also the weights."""
    offload: bool
    """Keep the spread state in the host's memory: fits larger models, and is slower."""


Deepspeed = Annotated[NoDeepspeed | Zero, Field(discriminator="kind")]


class Training(config.Base):
    python: str
    """Command that starts Python in the model environment, where Axolotl runs."""
    launcher: launching.Config
    """Where the training runs."""
    device: Literal["auto", "cpu", "cuda"]
    """What the defaults of precision, packing and attention suit: auto asks the model environment
    of this machine, or of a launcher whether it gives GPUs."""
    num_processes: Count
    """Training processes of one machine: one per GPU, or gloo processes that share its cores."""
    deepspeed: Deepspeed
    """DeepSpeed's ZeRO, or none."""
    learning_rate: Positive
    """Peak learning rate of the instruction tuning."""
    num_epochs: Positive
    """Passes over the training examples."""
    micro_batch_size: Count
    """Examples that one process trains on at once."""
    gradient_accumulation_steps: Count
    """Micro-batches whose gradients are summed for one step of the optimizer, in every part."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps in which the learning rate rises from zero to its peak."""
    save_steps: Count | Annotated[float, Field(gt=0, lt=1)] | None
    """Steps between checkpoints that an interrupted training resumes from, as a number or as a
    share of all steps; null makes none."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    """Largest share of examples that may exceed the context before the stage fails."""
    seed: int
    """Seed of the random weights, of adapters and of the order of the examples."""
    axolotl: dict[str, Any]
    """Any other keys of Axolotl's own YAML, passed through untouched; a base from scratch takes
    only those that suit the machine, such as bf16."""

    @property
    def adapter(self) -> Literal["lora", "qlora"] | None:
        """The kind of adapter that is trained; None where all weights are."""
        return None


class Full(Training):
    """All weights are trained."""

    kind: Literal["full"]


class Adapted(Training):
    """A low-rank adapter may be trained in place of all weights, and is merged at the end."""

    lora_r: Count | None
    """Rank of the LoRA adapter; null trains all weights, where the recipe allows that."""
    lora_alpha: Positive
    """Scale of the LoRA adapter's contribution, before it is divided by the rank."""
    init_adapter: str | None
    """Digest or folder of an earlier adapter, which the training goes on from; null starts anew."""

    @property
    def adapter(self) -> Literal["lora", "qlora"] | None:
        return "lora" if self.lora_r else None

    @model_validator(mode="after")
    def _an_adapter_to_go_on_from(self) -> Self:
        if self.init_adapter and not self.adapter:
            raise PydanticCustomError(
                "init_adapter", "init_adapter goes on from an adapter: set lora_r to its rank"
            )
        return self


class Lora(Adapted):
    """A low-rank adapter is trained, and merged into the weights at the end."""

    kind: Literal["lora"]
    lora_r: Count
    """Rank of the LoRA adapter."""


class Qlora(Adapted):
    """A low-rank adapter is trained over weights of four bits; it needs CUDA and bitsandbytes."""

    kind: Literal["qlora"]
    lora_r: Count
    """Rank of the LoRA adapter."""

    @property
    def adapter(self) -> Literal["lora", "qlora"] | None:
        return "qlora"


class Dpo(Adapted):
    """Direct preference optimization: a right answer is made likelier than a wrong one."""

    kind: Literal["dpo"]
    start: Literal["sft", "base"]
    """What prefers: sft tunes on the instructions first; base takes the base, or init_adapter."""
    dpo_beta: Positive
    """How closely the model stays to the one that it starts as; larger is closer."""
    dpo_epochs: Positive
    """Passes over the preference pairs."""
    dpo_learning_rate: Positive
    """Peak learning rate of the preference optimization."""


class CptThenSft(Adapted):
    """Continued pretraining on the train documents, then instruction tuning."""

    kind: Literal["cpt_then_sft"]
    cpt_epochs: Positive
    """Passes over the train documents and paraphrases."""
    cpt_learning_rate: Positive
    """Peak learning rate of the continued pretraining."""
    cpt_micro_batch_size: Count
    """Pieces of the documents, each of the context's length, that one process reads at once."""


Config = Annotated[Full | Lora | Qlora | Dpo | CptThenSft, Field(discriminator="kind")]
