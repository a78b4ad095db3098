"""What a model was trained on; an earlier adapter to go on from: found, fitting and untainted."""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.core import model as base
from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Document, Record
from stages.finetune import checkpoints, hardware
from stages.finetune.settings import Adapted

KEY = "finetune.init_adapter"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
COMMIT = re.compile(r"[0-9a-f]{40}")


class Page(Record):
    """A document that a model was trained on."""

    id: str
    url: str
    text_sha256: str


class Lineage(Record):
    """What shaped the weights: the base, and every document that any training of them saw."""

    base: str
    documents: tuple[Page, ...]
    """In the order of their ids; those of the adapter that it went on from are among them."""
    init_adapter: str | None
    """Digest of the adapter that it went on from."""
    adapter: str | None = None
    """Digest of the adapter that was trained; null where it stands in that adapter's own folder."""


def lineage(
    base_id: str, documents: Sequence[Document], earlier: "Earlier | None" = None
) -> Lineage:
    """Of a training on these documents: all that are assigned to train, since a passage of any
    may stand in a prompt."""
    pages = {page.id: page for page in (earlier.lineage.documents if earlier else ())}
    for document in documents:
        pages[document.id] = Page(
            id=document.id,
            url=document.url,
            text_sha256=hashlib.sha256(document.text.encode()).hexdigest(),
        )
    return Lineage(
        base=base_id,
        documents=tuple(pages[id] for id in sorted(pages)),
        init_adapter=earlier.digest if earlier else None,
    )


def pinned(model: base.Config) -> base.Config:
    """With the commit that a branch or tag of the hub names now, for what is trained over it.

    The name itself where neither the hub nor its cache on this machine says more.
    """
    if not isinstance(model, base.Hub) or COMMIT.fullmatch(model.revision):
        return model
    found = hardware.hub_config(model.id, model.revision)  # in a folder of the commit's name
    commit = found.parent.name if found else ""
    return model.model_copy(update={"revision": commit}) if COMMIT.fullmatch(commit) else model


def identify_base(model: base.Config, folder: Path | None) -> str:
    """Names the weights under an adapter; `folder` holds them where they are on this machine."""
    if isinstance(model, base.Hub):
        return f"{model.id}@{model.revision}"
    assert folder
    return f"{model.kind}:{base.digest(folder)}"


# --- adapters ----------------------------------------------------------------------------------


class Earlier(Record):
    """An adapter that a training goes on from."""

    folder: Path
    digest: str
    lineage: Lineage


def earlier(cfg: Adapted, base_id: str, documents: Sequence[Document], out: Path) -> Earlier | None:
    """The adapter that `init_adapter` names; an error where it may not be gone on from."""
    if cfg.init_adapter is None:
        return None
    folder = find(cfg.init_adapter, out)
    shown = f"{KEY}: {cfg.init_adapter!r}"
    for name in ADAPTER_FILES:
        if not (folder / name).exists():
            raise PipelineError(f"{shown}: {folder} has no {name}: expected an adapter of PEFT")
    if fault := checkpoints.tensors_fault(folder / ADAPTER_FILES[1]):
        raise PipelineError(
            f"{shown}: {folder / ADAPTER_FILES[1]} {fault}: remove {folder}, and train it again or "
            "name another"
        )
    if not (folder / "lineage.json").exists():
        raise PipelineError(
            f"{shown}: {folder} has no lineage.json, so that nobody knows which pages shaped it: "
            "take an adapter that this stage made"
        )
    found = Lineage.model_validate(store.read_json(folder / "lineage.json"))
    if found.base != base_id:
        name, _, revision = found.base.partition("@")
        is_moved = revision and base_id.startswith(f"{name}@")
        remedy = f"set model.revision to {revision}" if is_moved else "choose that model again"
        raise PipelineError(
            f"{shown}: it was trained over the base {found.base}, and this is {base_id}: "
            f"{remedy}, or set {KEY} to null"
        )
    kept = {document.id for document in documents}
    if gone := [page for page in found.documents if page.id not in kept]:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise PipelineError(
            f"{shown}: it was trained on {gone[0].url}{more}, which the documents no longer hold: "
            f"set {KEY} to null, which trains without what was removed"
        )
    rank = store.read_json(folder / "adapter_config.json").get("r")
    if rank != cfg.lora_r:
        raise PipelineError(
            f"finetune.lora_r: {cfg.lora_r}: the adapter {cfg.init_adapter!r} has rank {rank}: "
            "set it to that"
        )
    return Earlier(folder=folder.absolute(), digest=digest(folder), lineage=found)


def find(named: str, out: Path) -> Path:
    """A folder of this machine, or a kept adapter by the head of its digest."""
    path = Path(named).expanduser()
    if path.absolute().is_relative_to(out.absolute()):
        raise PipelineError(
            f"{KEY}: {named!r}: this folder is emptied before the stage runs: give the digest that "
            "its README.md names; a copy is kept"
        )
    if re.fullmatch(r"[0-9a-f]{8,64}", named) and not path.exists():
        return find_kept(named)
    return store.locate(named, KEY)


def find_kept(named: str) -> Path:
    """The one kept adapter whose digest begins so, and whose files still say so."""
    known = sorted(path.name for path in kept().iterdir() if not path.name.startswith("."))
    found = [name for name in known if name.startswith(named[:16])]
    if len(found) > 1:
        raise PipelineError(f"{KEY}: {named!r}: expected more digits: {' or '.join(found)}")
    for name in found:
        if not is_whole(kept() / name):
            raise PipelineError(
                f"{KEY}: {named!r}: {kept() / name} is not what its name says: remove it, and "
                "train it again or name another"
            )
        if digest(kept() / name).startswith(named):
            return kept() / name
    raise PipelineError(
        f"{KEY}: {named!r}: no adapter of this digest is kept here or in MLflow's registry: "
        f"expected one of {', '.join(known) or 'none'}"
    )


def is_whole(folder: Path) -> bool:
    """Whether a kept adapter is the one that its folder's name says."""
    return all((folder / name).exists() for name in ADAPTER_FILES) and digest(folder).startswith(
        folder.name
    )


def kept() -> Path:
    """Where a copy of every adapter is kept, each in a folder named by its digest."""
    folder = store.cache("adapters", "any").parent
    folder.mkdir(exist_ok=True)
    return folder


def keep(adapter: Path) -> str:
    """Copy an adapter to where its digest finds it; the digest."""
    made = digest(adapter)
    folder = kept() / made[:16]
    if folder.exists() and not is_whole(folder):
        shutil.rmtree(folder)
    if not folder.exists():
        beside = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(adapter, beside)
        checkpoints.sync(beside)
        try:
            beside.rename(folder)
        except OSError:  # another point of a sweep has made the same one meanwhile
            shutil.rmtree(beside)
    return made


def digest(adapter: Path) -> str:
    """Of an adapter's weights and settings."""
    parts = "".join(f"{name}\0{store.digest(adapter / name)}\n" for name in ADAPTER_FILES)
    return hashlib.sha256(parts.encode()).hexdigest()


def collect(trained: Path, folder: Path, base_name: str, found: Lineage) -> None:
    """Copy an adapter out of a trainer's folder, without what names this machine's folders."""
    for name in ADAPTER_FILES:
        if not (trained / name).exists():
            raise PipelineError(f"{trained}: Axolotl ended well but left no {name} there")
    if fault := checkpoints.tensors_fault(trained / ADAPTER_FILES[1]):
        raise PipelineError(
            f"{trained / ADAPTER_FILES[1]}: {ADAPTER_FILES[1]} {fault}, and is not exported: lower "
            "finetune.learning_rate, or look at the disk"
        )
    folder.mkdir(parents=True)
    shutil.copyfile(trained / ADAPTER_FILES[1], folder / ADAPTER_FILES[1])
    settings: dict[str, Any] = store.read_json(trained / ADAPTER_FILES[0])
    targets = settings.get("target_modules")
    if isinstance(targets, list):  # a set, in an order that varies
        settings["target_modules"] = sorted(targets)
    store.write_json(folder / ADAPTER_FILES[0], settings | {"base_model_name_or_path": base_name})
    store.write_json(folder / "lineage.json", found.model_dump())
