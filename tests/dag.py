"""A project of its own for a test, and what real dvc, Hydra and MLflow do in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sh(project, *command, check=True, **more):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@example.org",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@example.org",
    }
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, **more
    )
    if check and done.returncode:
        raise AssertionError(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def ran(done):
    """The stages that dvc ran."""
    return re.findall(r"Running stage '(\w+)'", done.stdout)


def edit(project, path, old, new):
    file = project / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def copy_of_the_tree(folder):
    """The tracked tree, committed, with experiment=quick as its default."""
    listed = sh(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv-model").symlink_to(ROOT / ".venv-model")
    edit(folder, "conf/config.yaml", "experiment: null", "experiment: quick")
    (folder / "dvc.lock").unlink(missing_ok=True)
    sh(folder, "git", "init", "-q")
    sh(folder, sys.executable, "-m", "stages", "params")
    sh(folder, "git", "add", "-A")
    sh(folder, "git", "commit", "-qm", "start")
    return folder


def runs(project, kind):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("docent")
    return client.search_runs(
        [experiment.experiment_id], f"tags.`docent.kind` = '{kind}'", order_by=["start_time ASC"]
    )
