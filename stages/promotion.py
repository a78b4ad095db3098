"""The registry of models: the champion to beat, a version for each model, and who is promoted."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core import model, store, tracking


def champion(cfg: Any, given: Mapping[str, Any]) -> Path | None:
    """A folder with champion.json (model, version, digest) and model/; None where there is none.

    Neither is there one where the model that is evaluated is the champion itself, so that running
    again gives the same bytes.
    """
    if not isinstance(cfg, tracking.Mlflow) or "endpoint" not in given or "champion" in given:
        return None
    registry = tracking.Registry(cfg)
    version = registry.champion()
    if version is None or version.digest == _digest(given["endpoint"]):
        return None
    folder = store.cache("champion", version.digest[:16], "champion.json").parent
    if not (folder / "champion.json").exists():
        registry.fetch(version, folder / "model")
    about = {"model": version.model, "version": version.version, "digest": version.digest}
    store.write_json(folder / "champion.json", about)
    return folder


def register(cfg: Any, run_id: str, given: Mapping[str, Any], out: Path) -> list[str]:
    """A version for the model that was evaluated; the champion's alias if it passed the gate.

    A point of a sweep is registered and never promoted: `dvc exp apply` makes it the workspace's.
    """
    if not isinstance(cfg, tracking.Mlflow) or "endpoint" not in given or "weights" not in given:
        return []
    judged = store.read_json(out / "verdict.json")
    gate = judged.get("gate", {"passed": False})
    registry = tracking.Registry(cfg)
    version = registry.register(run_id, _digest(given["endpoint"]), testset=judged["testset"])
    said = [f"version {version.version} of the registered model {version.model}"]
    if sentence := gate.get("sentence"):
        said.append(sentence)
    if gate["passed"] and store.root() == Path.cwd().resolve():
        if (given["weights"] / "model").is_dir():
            registry.promote(version, given["weights"] / "model")
        else:
            said.append("a hosted model has no files to keep: it becomes no champion")
    return said


def tuned(cfg: Any, run_id: str, out: Path) -> list[str]:
    """A version for the model that was just tuned; its adapter goes into the registry."""
    if not isinstance(cfg, tracking.Mlflow) or not (out / "lineage.json").exists():
        return []  # or a provider keeps the model
    registry = tracking.Registry(cfg)
    adapter = store.read_json(out / "lineage.json")["adapter"]
    named = {"adapter": adapter} if adapter else {}
    version = registry.register(run_id, model.digest(out / "model"), **named)
    if adapter and version.run_id == run_id:
        registry.keep_adapter(run_id, out / "adapter")
    return [f"version {version.version} of the registered model {version.model}"]


def fetch_adapter(cfg: Any, named: str | None) -> None:
    """Put the adapter of this digest beside the kept ones, where only the registry has it."""
    if not isinstance(cfg, tracking.Mlflow) or not re.fullmatch(r"[0-9a-f]{8,64}", named or ""):
        return
    assert named
    kept = store.cache("adapters", "any").parent
    if any(kept.glob(f"{named[:16]}*")):
        return
    registry = tracking.Registry(cfg)
    if version := registry.with_adapter(named):
        registry.fetch(version, kept / named[:16], "adapter")


def _digest(endpoint: Path) -> str:
    """Of the tuned model that the endpoint serves."""
    with contextlib.suppress(KeyError):
        return str(store.read_json(endpoint)["models"]["tuned"]["digest"])
    return ""
