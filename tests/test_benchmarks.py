"""The machinery of benchmarks whose figures cannot be had here."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu_check


def wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    """A wheel of one module, which pip installs like any other."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose lock, like ours, was resolved without what torch's CUDA build asks for."""
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    (requirements / "core.txt").write_text("hydra==1.0\n")
    (requirements / "model.txt").write_text("torch==2.0\n    # via axolotl\ntriton==3.9\n")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "CORE", tmp_path / "core")
    monkeypatch.setattr(gpu_check, "MODEL", tmp_path / "model")
    return tmp_path


def test_gpu_check_collects_and_installs_what_the_cuda_build_of_torch_asks_for(
    locked: Path,
) -> None:
    commands = gpu_check.downloads(Path("w"), "https://index", ["https://host/flash_attn-2.whl"])
    (of_torch,) = [words for words in commands if words[-1] == "torch==2.0"]
    assert "--no-deps" not in of_torch and "https://index" in of_torch
    assert commands[-1][-1] == "https://host/flash_attn-2.whl"
    wheels = locked / "w"
    flash = wheel(wheels, "flash_attn", "2.8")
    commands = gpu_check.installs("model", "python", wheels)
    assert all("--no-index" in words for words in commands)
    *before, of_torch, last = commands
    assert of_torch[-1] == "torch==2.0" and "--no-deps" not in of_torch
    assert before[-1][-1].endswith("model.txt")  # torch has the last word on Triton
    assert last[-1] == str(flash)
    assert not any("torch==2.0" in words for words in gpu_check.installs("core", "python", wheels))


def test_gpu_check_reads_the_version_of_torch_from_the_lock() -> None:
    assert gpu_check.torch() in gpu_check.lock("model").read_text().split("\n")


@pytest.mark.slow
def test_gpu_check_builds_an_environment_whose_torch_finds_its_libraries(
    locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = locked / "index"
    wheel(offered, "torch", "2.0+cu1", "nvidia_cublas==13", "triton==3.7")
    for name, version in (("nvidia_cublas", "13"), ("triton", "3.7"), ("triton", "3.9")):
        wheel(offered, name, version)
    for name in ("hydra", "setuptools", "wheel", "ninja", "py_cpuinfo", "hjson"):
        wheel(offered, name, "1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered))
    wheels = locked / "wheels"
    gpu_check.collect(wheels, None, [])
    monkeypatch.delenv("PIP_FIND_LINKS")
    gpu_check.build(wheels)
    said = "import torch, nvidia_cublas, triton; print(torch.version, triton.version)"
    python = str(locked / "model/bin/python")
    done = subprocess.run([python, "-c", said], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2.0+cu1", "3.7"], done.stderr
    assert (locked / "core/installed").exists()
