"""The registry of models: the champion to beat, a version for each model, and who is promoted."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core import store, tracking


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
    version = registry.register(run_id, _digest(given["endpoint"]), judged["testset"])
    said = [f"version {version.version} of the registered model {version.model}"]
    if sentence := gate.get("sentence"):
        said.append(sentence)
    if gate["passed"] and store.root() == Path.cwd().resolve():
        if (given["weights"] / "model").is_dir():
            registry.promote(version, given["weights"] / "model")
        else:
            said.append("a hosted model has no files to keep: it becomes no champion")
    return said


def _digest(endpoint: Path) -> str:
    """Of the tuned model that the endpoint serves."""
    with contextlib.suppress(KeyError):
        return str(store.read_json(endpoint)["models"]["tuned"]["digest"])
    return ""
