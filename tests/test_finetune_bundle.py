"""A training as a folder: packed, run elsewhere, and taken back only where it is of this bundle."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from test_finetune import (
    PYTHON,
    SMALL,
    Workspace,
    example,
    local_model,
    model_config,
    one_line,
    section,
    tuning_config,
    workspace,
)

from stages.__main__ import main
from stages.core import store
from stages.core.errors import PipelineError
from stages.finetune import bundle

__all__ = ["workspace"]


def packing(**values: Any) -> Any:
    option = values.pop("option", "full")
    return tuning_config(option, launcher=section("finetune/launcher/bundle"), **values)


def packed(workspace: Workspace, cfg: Any, model: Any) -> Path:
    """Run the stage, which packs; the bundle."""
    said = one_line(workspace, cfg, model)
    assert said.startswith("finetune.launcher: bundle: the training is packed in bundles/")
    assert "python -m stages bundle import" in said
    return workspace.folder / said.split(" is packed in ")[1].split(":")[0]


def elsewhere(folder: Path, target: Path) -> Path:
    """The bundle on another machine: nothing of ours is there."""
    shutil.copytree(folder, target)
    return target


def a_python(workspace: Workspace) -> str:
    """A Python in which Axolotl learns nothing, but speaks and writes as it does."""
    script = workspace.trainer().split()[1]
    program = workspace.folder / "python-there"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in -m) exec {sys.executable} {script} "$@";; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


def train(folder: Path, python: str, **more: str) -> "subprocess.CompletedProcess[str]":
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHON": python}
    return subprocess.run(
        ["sh", str(folder / "train.sh")],
        env=clean | more,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def trained_elsewhere(workspace: Workspace, cfg: Any, model: Any) -> Path:
    folder = packed(workspace, cfg, model)
    there = elsewhere(folder, workspace.folder.parent / f"{workspace.folder.name}-there")
    done = train(there, a_python(workspace))
    assert done.returncode == 0, done.stderr
    return there


def test_a_training_goes_away_and_comes_back(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, model = packing(device="cpu"), local_model(Path("m"))
    there = trained_elsewhere(workspace, cfg, model)
    assert main(["bundle", "import", str(there)]) == 0
    assert "taken over" in capsys.readouterr().out
    metrics = workspace.run(cfg, model)
    assert metrics["num_steps"] == 4
    assert metrics["train_loss"] == 1.0
    assert Path("data/finetune/model/model.safetensors").exists()
    assert Path("data/finetune/curve.csv").read_text().count("\n") == 5
    assert workspace.run(cfg, model) == metrics  # what was brought back stays


def test_equal_trainings_give_equal_bundles_without_a_place_of_this_machine(
    workspace: Workspace,
) -> None:
    first = packed(workspace, packing(device="cpu"), local_model(Path("m")))
    again = packed(workspace, packing(device="cpu"), local_model(Path("m")))
    assert first == again
    texts = [p.read_bytes() for p in first.rglob("*") if p.is_file()]
    assert not any(str(workspace.folder).encode() in text for text in texts)
    other = packed(workspace, packing(device="cpu", learning_rate=0.5), local_model(Path("m")))
    assert other != first


def test_a_bundle_of_a_point_of_a_sweep_lands_in_the_checkout(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = local_model(Path("m"))
    monkeypatch.setenv("DVC_ROOT", str(workspace.folder))
    (workspace.folder / "point").mkdir()
    monkeypatch.chdir(workspace.folder / "point")
    assert (packed(workspace, packing(device="cpu"), model) / "train.sh").exists()


def test_nothing_is_packed_again_once_the_model_is_back(workspace: Workspace) -> None:
    cfg, model = packing(device="cpu"), local_model(Path("m"))
    bundle.take_back(trained_elsewhere(workspace, cfg, model))
    shutil.rmtree("bundles")
    workspace.run(cfg, model)
    assert not Path("bundles").exists()


def test_a_tar_comes_back_as_a_folder_does(workspace: Workspace) -> None:
    cfg, model = packing(device="cpu"), local_model(Path("m"))
    there = trained_elsewhere(workspace, cfg, model)
    with tarfile.open("back.tar.gz", "w:gz") as archive:
        archive.add(there, arcname=there.name)
    bundle.take_back(Path("back.tar.gz"))
    assert workspace.run(cfg, model)["num_steps"] == 4


def test_a_model_of_another_bundle_is_not_taken(workspace: Workspace) -> None:
    model = local_model(Path("m"))
    there = trained_elsewhere(workspace, packing(device="cpu"), model)
    bundle.take_back(there)
    said = one_line(workspace, packing(device="cpu", learning_rate=0.5), model)
    assert "the training is packed in" in said
    shutil.rmtree(".cache/bundles")
    with pytest.raises(PipelineError, match=r"which was not packed here: expected one of none"):
        bundle.take_back(there)


@pytest.mark.parametrize("harm", ["changed", "missing", "more", "not ended"])
def test_what_was_not_brought_back_whole_is_named(workspace: Workspace, harm: str) -> None:
    there = trained_elsewhere(workspace, packing(device="cpu"), local_model(Path("m")))
    weights = next(there.rglob("trained/*/model/model.safetensors"))
    match harm:
        case "changed":
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        case "missing":
            weights.unlink()
        case "more":
            (weights.parent / "model-2.safetensors").write_bytes(b"x")
        case "not ended":
            (there / "trained" / bundle.SAYS).unlink()
    with pytest.raises(PipelineError) as error:
        bundle.take_back(there)
    assert "\n" not in str(error.value)
    assert ("sh train.sh" if harm == "not ended" else "safetensors") in str(error.value)


def test_a_bundle_that_was_changed_does_not_train(workspace: Workspace) -> None:
    folder = packed(workspace, packing(device="cpu"), local_model(Path("m")))
    with (folder / "axolotl.yaml").open("a") as file:
        file.write("learning_rate: 1\n")
    done = train(folder, a_python(workspace))
    assert done.returncode != 0
    assert "axolotl.yaml: FAILED" in done.stdout + done.stderr
    assert not (folder / "trained" / bundle.SAYS).exists()


def test_nothing_of_a_tar_lands_outside(workspace: Workspace) -> None:
    for name in ("../outside", "/tmp/docent-outside", "link"):
        with tarfile.open("bad.tar", "w") as archive:
            about = tarfile.TarInfo(name)
            if name == "link":
                about.type, about.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(about)
        with pytest.raises(PipelineError) as error:
            bundle.take_back(Path("bad.tar"))
        assert "\n" not in str(error.value)
    assert not (workspace.folder.parent / "outside").exists()
    assert not Path("/tmp/docent-outside").exists()


def test_a_file_that_is_no_bundle_is_one_line(workspace: Workspace) -> None:
    Path("x").write_text("x")
    for path, said in ((Path("none"), "no such file"), (Path("x"), "expected a folder or a tar")):
        with pytest.raises(PipelineError, match=said):
            bundle.take_back(path)


# --- real trainings ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bundle_really_trains_what_is_trained_here(workspace: Workspace) -> None:
    workspace.give(train=[example(n) for n in range(40)])
    real: dict[str, Any] = {
        "python": PYTHON,
        "device": "cpu",
        "num_epochs": 3,
        "micro_batch_size": 4,
    }
    small = model_config(**SMALL)
    for option in ("full", "lora"):
        here = workspace.run(tuning_config(option, **real), small, f"{option}-here")
        cfg = packing(option=option, **real)
        with pytest.raises(PipelineError) as error:
            workspace.run(cfg, small, f"{option}-there")
        folder = Path(str(error.value).split(" is packed in ")[1].split(":")[0]).absolute()
        there = elsewhere(folder, workspace.folder / f"machine-{option}")
        done = train(there, PYTHON)
        assert done.returncode == 0, done.stderr[-800:]
        bundle.take_back(there)
        back = workspace.run(cfg, small, f"{option}-there")
        assert back == here
        weights = [
            store.digest(Path(f"{option}-{where}/model/model.safetensors"))
            for where in ("here", "there")
        ]
        assert weights[0] == weights[1]
