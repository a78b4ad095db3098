"""What is said of GPUs that cannot be asked from here."""

from typing import Annotated

from pydantic import Field

from stages.core import config


class Gpu(config.Base):
    """The GPUs of the machine that trains, where nothing here can ask them."""

    capability: Annotated[float, Field(ge=5)] | None
    """Compute capability of the oldest, such as 9.0; null: 8.0 (Ampere) or later."""
    memory_gib: Annotated[float, Field(gt=0)] | None
    """Memory of the smallest, in GiB; null: not known, and activations are computed twice."""
    flash_attn: bool
    """Whether FlashAttention 2 is installed there, as in Axolotl's images; examples are packed."""
    liger_kernel: bool
    """Whether Liger's kernels are installed there, as they come with Axolotl."""
