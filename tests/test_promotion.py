"""The registry: a version per model, a champion that passed the gate, and its weights to ask it."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages import promotion
from stages.__main__ import main
from stages.core import model, store, tracking

ROOT = Path(__file__).parents[1]
NOTHING = tracking.Nothing(kind="none")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    """A tracking store that was used before: making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        tracking.Store(config()).start("first", "stage")
    return folder / "mlruns"


def config():
    return tracking.Mlflow(kind="mlflow", experiment="docent", uri=None, registered_model="docent")


@pytest.fixture
def place(tmp_path, monkeypatch, mlflow):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copytree(mlflow, tmp_path / "mlruns")
    return tmp_path


def evaluated(place, digest, passed):
    """What deploy, finetune and evaluate leave for a model of this digest."""
    given = {"endpoint": place / "endpoint.json", "weights": place / "finetune"}
    store.write_json(given["endpoint"], {"models": {"tuned": {"digest": digest}}})
    store.write_text(place / "finetune/model/model.safetensors", f"weights of {digest}")
    gate = {"passed": passed, "sentence": "so it is"}
    store.write_json(place / "out/verdict.json", {"testset": "t", "gate": gate})
    return given


def register(place, digest, passed):
    given = evaluated(place, digest, passed)
    run = tracking.Store(config()).start("evaluate", "stage")
    return promotion.register(config(), run, given, place / "out")


def tune(place, weights, adapter=None):
    """What finetune leaves for these weights, and what the registry says of it."""
    out = place / "data/finetune"
    store.write_text(out / "model/model.safetensors", weights)
    if adapter:
        store.write_text(out / "adapter/adapter_model.safetensors", adapter)
    store.write_json(out / "lineage.json", {"adapter": adapter and adapter * 8})
    run = tracking.Store(config()).start("finetune", "stage")
    return promotion.tuned(config(), run, out)


def champion_for(place, digest):
    return promotion.champion(config(), evaluated(place, digest, False))


def about(folder):
    return json.loads((folder / "champion.json").read_text())


def test_a_model_that_passes_the_gate_is_the_champion_of_the_next(place):
    assert champion_for(place, "one") is None
    assert register(place, "one", passed=True) == [
        "version 1 of the registered model docent",
        "so it is",
    ]
    folder = champion_for(place, "two")
    assert about(folder) == {
        "digest": "one",
        "model": "docent",
        "version": "1",
    }
    assert (folder / "model/model.safetensors").read_text() == "weights of one"


def test_a_model_that_fails_stays_a_challenger_and_a_later_one_takes_over(place):
    register(place, "one", passed=True)
    register(place, "two", passed=False)
    assert (
        json.loads((champion_for(place, "three") / "champion.json").read_text())["digest"] == "one"
    )
    register(place, "three", passed=True)
    found = champion_for(place, "four")
    assert json.loads((found / "champion.json").read_text())["version"] == "3"
    assert (found / "model/model.safetensors").read_text() == "weights of three"


def test_the_champion_has_no_rival_so_that_running_again_gives_the_same_bytes(place):
    register(place, "one", passed=True)
    assert champion_for(place, "one") is None


def test_a_model_that_is_evaluated_again_is_the_same_version(place):
    register(place, "one", passed=False)
    assert register(place, "one", passed=False)[0] == "version 1 of the registered model docent"
    assert register(place, "two", passed=False)[0] == "version 2 of the registered model docent"


def test_a_point_of_a_sweep_is_registered_and_never_promoted(place, monkeypatch):
    (place / "temp").mkdir()
    monkeypatch.chdir(place / "temp")
    said = register(place, "one", passed=True)
    assert said[0] == "version 1 of the registered model docent"
    monkeypatch.chdir(place)
    assert champion_for(place, "two") is None


def test_without_mlflow_or_a_model_of_ours_nothing_is_registered(place):
    given = evaluated(place, "one", True)
    assert promotion.register(NOTHING, "", given, place / "out") == []
    assert promotion.champion(NOTHING, given) is None
    assert promotion.register(config(), "", {}, place / "out") == []
    assert promotion.champion(config(), {}) is None


def test_a_tuned_model_has_a_version_which_its_evaluation_does_not_double(place):
    (first,) = tune(place, "weights of one")
    digest = model.digest(place / "data/finetune/model")
    assert first == register(place, digest, True)[0] == tune(place, "weights of one")[0]
    (second,) = tune(place, "others")
    assert second != first
    registry = tracking.Registry(config())
    assert registry.champion().digest == digest, "tuning promotes nobody"


def test_an_adapter_that_only_the_registry_has_is_fetched_by_its_digest(place):
    tune(place, "weights", adapter="0123abcd")
    named = "0123abcd" * 2
    kept = place / ".cache/adapters" / named
    for unknown in (None, "models/adapter", "ffff" * 4):
        promotion.fetch_adapter(config(), unknown)
    promotion.fetch_adapter(NOTHING, named)
    assert not kept.exists()
    promotion.fetch_adapter(config(), named)
    assert (kept / "adapter_model.safetensors").read_text() == "0123abcd"
    promotion.fetch_adapter(config(), named)  # it is there


def status(place, monkeypatch, rows, stopped=None):
    """The status of the run that a stage leaves which has these examples and is stopped so."""
    for name in ("documents", "assignment", "train", "validation"):
        store.write_text(place / f"{name}.jsonl", rows if name == "train" else "")
    if stopped:
        monkeypatch.setattr("stages.finetune.read_pairs", stopped)
    inputs = [
        f"--{n}={place / n}.jsonl" for n in ("documents", "assignment", "train", "validation")
    ]
    params = f"--params={ROOT / 'params.yaml'}"
    code = main(["finetune", params, *inputs, f"--out={place / 'data/finetune'}"])
    runs = tracking.Store(config())
    found = runs.client.search_runs([runs.experiment_id], order_by=["start_time DESC"])
    (run,) = [run for run in found if run.info.run_name == "finetune"][:1]
    return code, run.info.status


def test_the_run_of_a_stage_that_fails_is_marked_failed(place, monkeypatch):
    assert status(place, monkeypatch, "") == (1, "FAILED")


def test_the_run_of_a_stage_that_is_ended_is_marked_killed(place, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    row = json.dumps(
        {
            "id": "e",
            "kind": "factual",
            "track": None,
            "messages": [],
            "question": "?",
            "answer": "!",
            "chunk_ids": [],
            "evidence": [],
            "call_id": "",
        }
    )
    assert status(place, monkeypatch, f"{row}\n", stopped) == (130, "KILLED")


def test_the_run_of_a_process_that_was_killed_is_marked_by_the_next(place):
    runs = tracking.Store(config())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    abandoned = runs.start("finetune", "stage", process=f"{platform.node()}:{gone.pid}:1")
    own = runs.start("finetune", "stage")
    runs.end_abandoned()
    assert runs.client.get_run(abandoned).info.status == "KILLED"
    assert runs.client.get_run(own).info.status == "RUNNING"
