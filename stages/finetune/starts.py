"""From a recipe's phases to the starts of Axolotl, in order: to be run, printed or packed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.finetune.launching import Job
from stages.finetune.recipe import Phase
from stages.finetune.settings import Config


@dataclass(frozen=True)
class Start:
    """One start of Axolotl."""

    name: str
    """Of its report, its log and its folder; `merge` merges the adapter, in the last phase's."""
    title: str
    file: str
    """The YAML."""
    places: Mapping[str, Path]
    """Keys of the YAML whose values are folders."""
    module: str = "axolotl.cli.train"
    prefix: str = ""
    """Of the figures that it tells."""

    @property
    def is_merge(self) -> bool:
        return self.name == "merge"


def starts(
    cfg: Config,
    phases: Sequence[Phase],
    work: Path,
    places: Mapping[str, Path],
    earlier: Path | None,
) -> list[Start]:
    """All that trains by the phases into folders of `work`, and then merges the adapter.

    `places` are folders of this machine that every start reads; `earlier` is the adapter that the
    first phase goes on from.
    """
    made = []
    for phase in phases:
        folder = work / phase.name
        given = dict(places)
        if phase.before:
            key = "lora_model_dir" if cfg.adapter else "base_model"
            given[key] = work / phase.before / "model"
        elif earlier:
            given["lora_model_dir"] = earlier
        given |= {"output_dir": folder / "model", "dataset_prepared_path": folder / "prepared"}
        made.append(Start(phase.name, phase.title, phase.file, given, prefix=phase.prefix))
    if cfg.adapter:
        last = work / phases[-1].name / "model"
        given = dict(places) | {"output_dir": last, "lora_model_dir": last}
        title = "merging the adapter into the weights"
        made.append(Start("merge", title, phases[-1].file, given, "axolotl.cli.merge_lora"))
    return made


def job(
    start: Start,
    folder: Path,
    work: Path,
    log: Path,
    python: str,
    *,
    offline: bool,
    num_processes: int = 1,
    is_distributed: bool = False,
) -> Job:
    """The start as a command for a launcher; `folder` holds the YAML."""
    return Job(
        module=start.module,
        arguments=(start.file, *arguments(start)),
        folder=folder,
        work=work,
        name=start.name,
        log=log,
        python=python,
        num_processes=num_processes,
        reads=tuple(path for path in start.places.values() if path.is_absolute() and path.is_dir()),
        offline=offline,
        is_distributed=is_distributed,
    )


def arguments(start: Start) -> list[str]:
    return [f"--{key}={path}" for key, path in sorted(start.places.items())]
