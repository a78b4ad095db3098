"""What tests share: how properties are tried, the files' order, and one run of the whole DAG."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import filelock
import hypothesis
import pytest
from dag import copy_of_the_tree, sh


def pytest_configure(config):
    """No property has a time limit. `make test` tries the same examples each time, so that it is
    red for a change alone; `make test-slow` others."""
    seeded = config.option.markexpr == "not slow"
    hypothesis.settings.register_profile("docent", deadline=None, derandomize=seeded)
    hypothesis.settings.load_profile("docent")


@dataclass
class Ran:
    """The whole DAG has run in this folder, and has said this."""

    folder: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, worker_id):
    """One run for all workers: who comes second waits. Work in a copy of it."""
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    folder = shared / "whole-run"
    with filelock.FileLock(shared / "whole-run.lock"):
        if not (shared / "said").exists():
            folder.mkdir()
            done = sh(copy_of_the_tree(folder), sys.executable, "-m", "stages", "run")
            (shared / "warned").write_text(done.stderr)
            (shared / "said").write_text(done.stdout)
    return Ran(folder, (shared / "said").read_text(), (shared / "warned").read_text())


@pytest.fixture(scope="module")
def project(whole_run, tmp_path_factory):
    """A project of the module's own in which the whole DAG has run."""
    folder = tmp_path_factory.mktemp("project") / "project"
    shutil.copytree(whole_run.folder, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


FIRST = ("test_pipeline.py", "test_pipeline_data.py")
AFTER = "test_finetune.py"
"""By now the whole run is done, for which the module of the reruns would wait."""


def pytest_collection_modifyitems(items):
    """A worker takes file after file in this order: what runs longest comes first."""
    names = sorted({item.path.name for item in items})
    names.sort(key=lambda name: name not in FIRST)
    if {AFTER, "test_pipeline_reruns.py"} <= set(names):
        names.remove("test_pipeline_reruns.py")
        names.insert(names.index(AFTER) + 1, "test_pipeline_reruns.py")
    items.sort(key=lambda item: names.index(item.path.name))
