"""Elsewhere, by hand: one folder with all that a training needs, and a script that runs it."""

from typing import Literal

from stages.core import config
from stages.finetune.launching.gpu import Gpu


class Bundle(config.Base):
    """The training is packed as a folder for a notebook or another cluster; what it trains is
    brought back with `python -m stages bundle import`."""

    kind: Literal["bundle"]
    folder: str
    """Folder in which bundles are written, each under its digest."""
    python: str
    """Command that starts Python there, unless PYTHON says another."""
    gpu: Gpu
    """What the GPUs there can do."""
