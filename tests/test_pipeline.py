"""The whole DAG by real dvc, Hydra and MLflow, with a model small enough to train in a minute.

The tests of this module share one project and run in order: each goes on from the last.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from stages import pipeline

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


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the tracked tree, committed, with experiment=quick as its default."""
    folder = tmp_path_factory.mktemp("project")
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
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def runs(project, kind):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("docent")
    return client.search_runs(
        [experiment.experiment_id], f"tags.`docent.kind` = '{kind}'", order_by=["start_time ASC"]
    )


def test_the_whole_dag_runs_and_ends_with_the_table_and_what_to_do_next(project):
    done = sh(project, sys.executable, "-m", "stages", "run")
    assert ran(done) == ["params", "site", *pipeline.STAGES]
    assert "\r" not in done.stderr
    for said in ("same_fact: ROUGE F1", "tuned_rag", "Time and cost per stage", "Next: "):
        assert said in done.stdout
    metrics = json.loads((project / "data/evaluate/metrics.json").read_text())
    assert set(metrics["tracks"]) == {"same_fact", "held_out"}
    for system in ("quote", "base", "base_rag", "tuned", "tuned_rag"):
        assert 0 <= metrics["tracks"]["same_fact"][system]["rougeL_f1"] <= 1
    for stage in pipeline.STAGES:
        manifest = json.loads((project / f"data/{stage}/manifest.json").read_text())
        assert manifest["stage"] == stage
        assert (project / f"data/{stage}/rejects.jsonl").exists()


def test_mlflow_has_a_parent_and_a_child_per_stage_with_params_metrics_and_inputs(project):
    [parent] = runs(project, "pipeline")
    children = runs(project, "stage")
    assert sorted(run.info.run_name for run in children) == sorted(pipeline.STAGES)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    [tune] = [run for run in children if run.info.run_name == "finetune"]
    assert tune.data.params["finetune.learning_rate"] == str(
        yaml.safe_load((project / "params.yaml").read_text())["finetune"]["learning_rate"]
    )
    assert "model.hidden_size" in tune.data.params
    assert len(tune.data.tags["docent.input.train"]) == 64
    assert {given.dataset.name for given in tune.inputs.dataset_inputs} >= {"train", "documents"}
    assert len(tune.data.tags["mlflow.source.git.commit"]) == 40
    assert "crawl.num_documents" in parent.data.metrics
    assert "evaluate.same_fact.tuned.rougeL_f1" in parent.data.metrics
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    assert len(client.get_metric_history(tune.info.run_id, "loss")) > 1


def test_nothing_in_the_outs_names_this_machine(project):
    for path in sorted((project / "data").rglob("*")):
        if (
            path.suffix in {".json", ".jsonl", ".yaml", ".csv", ".html"}
            and "site" not in path.parts
        ):
            text = path.read_text()
            assert str(project) not in text, path
            # 11434 is Ollama's port, which the manual names.
            assert not re.search(r"127\.0\.0\.1:(?!11434)\d{5}", text), path


def test_a_second_repro_runs_nothing(project):
    done = sh(project, "dvc", "repro")
    assert ran(done) == []
    assert "up to date" in done.stdout


def test_the_metrics_and_the_plots_are_there_for_dvc(project):
    shown = json.loads(sh(project, "dvc", "metrics", "show", "--json").stdout)
    assert "tuned" in json.dumps(shown)
    page = sh(project, "dvc", "plots", "show", "--json").stdout
    assert set(json.loads(page)["data"]) == {"training loss", "ROUGE-L by system"}


def test_the_report_the_answers_and_a_version_of_the_model_are_in_mlflow(project):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    [run] = [r for r in runs(project, "stage") if r.info.run_name == "evaluate"]
    assert {"report.html", "answers.json"} <= {
        f.path for f in client.list_artifacts(run.info.run_id)
    }
    assert "same_fact.tuned.rougeL_f1" in run.data.metrics
    [version] = client.search_model_versions("name = 'docent'")
    said = json.loads((project / "data/deploy/endpoint.json").read_text())
    assert version.tags["docent.digest"] == said["models"]["tuned"]["digest"]
    judged = json.loads((project / "data/evaluate/verdict.json").read_text())
    assert version.tags["docent.testset"] == judged["testset"]
    assert not judged["gate"]["passed"], "so few questions pass no gate"
    assert {"base", "tuned", "sentence"} == set(judged["forgetting"])


def test_the_champion_is_asked_the_same_questions_as_the_challenger(project, tmp_path):
    """A copy of the tuned model under another digest: it says what the tuned one says."""
    champion = tmp_path / "champion"
    shutil.copytree(project / "data/finetune/model", champion / "model")
    about = {"model": "docent", "version": "7", "digest": "another"}
    (champion / "champion.json").write_text(json.dumps(about))
    out = tmp_path / "out/evaluate"
    sh(
        project,
        *(sys.executable, "-m", "stages", "evaluate", "tracking=none"),
        *("evaluate.systems=[quote,tuned,tuned_rag]", "evaluate.perplexity=false"),
        *("--index", "data/index", "--test", "data/synthesize/test.jsonl"),
        *("--endpoint", "data/deploy/endpoint.json", "--champion", champion, "--out", out),
    )
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    said = {(row["system"], row["example_id"]): row["answer"] for row in rows}
    asked = {id for system, id in said if system == "champion"}
    assert len(asked) == len({id for _, id in said}) > 10
    assert all(said["champion", id] == said["tuned", id] for id in asked)
    with_passages = {id for system, id in said if system == "tuned_rag"}  # some are too long
    assert len(with_passages) > 10
    assert all(said["champion_rag", id] == said["tuned_rag", id] for id in with_passages)
    judged = json.loads((out / "verdict.json").read_text())
    assert "version 7 of the registered model docent" in judged["champion"]["sentence"]
    pairs = [(c["first"], c["second"]) for c in judged["tracks"]["same_fact"]["comparisons"]]
    assert {("tuned", "champion"), ("tuned_rag", "champion_rag")} <= set(pairs)


def test_a_changed_learning_rate_runs_finetune_and_what_follows_even_after_two_kills(project):
    edit(project, "conf/finetune/full.yaml", "learning_rate:", "learning_rate: 2.0e-3  #")
    with started_run(project) as first:
        wait_for(lambda: trainers(first))
        [dvc] = [p for p in first.children() if "dvc" in " ".join(p.cmdline())]
        [stage] = [p for p in dvc.children(recursive=True) if "finetune" in p.cmdline()]
        dvc.kill()
    assert running(stage), "the orphan that this test is about"

    with started_run(project) as second:
        wait_for(lambda: trainers(second))
        ours = second.children(recursive=True)
        writers = [p for p in processes(project) if p not in ours and p != second]
        assert not writers, "two writers"
        assert not running(stage)
        [stage] = [p for p in ours if "finetune" in p.cmdline()]
        stage.kill()

    done = sh(project, sys.executable, "-m", "stages", "run")
    assert ran(done) == ["finetune", "deploy", "evaluate"]
    assert not any(running(p) for p in ours)


@contextlib.contextmanager
def started_run(project):
    """A run in the background, which ends when something in it is killed."""
    with subprocess.Popen(
        [sys.executable, "-m", "stages", "run"],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        yield psutil.Process(child.pid)
        child.wait(timeout=60)


def processes(project):
    """Processes that work in the project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(project)) and running(process):
                found.append(process)
    return found


def trainers(run):
    """The processes under the run that train."""
    with contextlib.suppress(psutil.Error):
        below = run.children(recursive=True)
        return [p for p in below if any("axolotl" in word for word in p.cmdline())]
    return []


def running(process):
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(found, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if rows := found():
            return rows
        time.sleep(0.2)
    raise AssertionError("never seen")


def test_a_group_that_is_swapped_back_is_restored_from_the_run_cache(project):
    edit(project, "conf/config.yaml", "split: recursive", "split: markdown")
    assert ran(sh(project, "dvc", "repro", "index")) == ["params", "split", "index"]
    edit(project, "conf/config.yaml", "split: markdown", "split: recursive")
    done = sh(project, "dvc", "repro")
    assert ran(done) == ["params"]
    assert "Stage 'split' is cached" in done.stdout


def test_dvcs_own_composition_serves_an_experiment(project):
    done = sh(
        project, *("dvc", "exp", "run", "--temp", "-n", "stems", "-S", "evaluate.stemming=true")
    )
    assert "stems" in done.stdout
    shown = json.loads(sh(project, "dvc", "metrics", "diff", "HEAD", "stems", "--json").stdout)
    assert shown


def test_an_experiment_is_compared_with_the_workspace_question_by_question(project):
    done = sh(project, sys.executable, "-m", "stages", "compare", "stems", "--json")
    found = json.loads(done.stdout)
    assert {row["track"] for row in found} == {"same_fact", "held_out"}
    assert {"quote", "base", "tuned", "tuned_rag"} <= {row["system"] for row in found}
    done = sh(project, sys.executable, "-m", "stages", "compare", "nowhere", check=False)
    assert done.returncode == 1
    assert "nowhere: no evaluation of this revision is here" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_sweep_restores_what_did_not_change_and_nests_its_points(project):
    done = sh(project, sys.executable, "-m", "stages", "sweep", "--json", "-m", "answer.top_k=1,2")
    points = json.loads(done.stdout.splitlines()[-1])
    assert [point["overrides"] for point in points] == ["answer.top_k=1", "answer.top_k=2"]
    assert all("tuned" in point["metrics"] for point in points)
    [sweep] = runs(project, "sweep")
    nested = list(runs(project, "point"))
    assert {r.data.tags["mlflow.parentRunId"] for r in nested} == {sweep.info.run_id}
    for run in nested:
        stages = [
            r
            for r in runs(project, "stage")
            if r.data.tags["mlflow.parentRunId"] == run.info.run_id
        ]
        assert [r.info.run_name for r in stages] == ["evaluate"]
        assert "crawl.num_documents" in run.data.metrics
    assert sorted(r.data.params["answer.top_k"] for r in nested) == ["1", "2"]
    listed = sh(project, "dvc", "exp", "list", "--name-only").stdout.split()
    assert {point["experiment"] for point in points} <= set(listed)


def test_a_sweep_over_an_unknown_key_is_one_line(project):
    done = sh(
        project, sys.executable, "-m", "stages", "sweep", "-m", "answer.topk=1,2", check=False
    )
    assert done.returncode == 1
    assert "answer.topk: unknown key (did you mean top_k?)" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_site_is_one_line_and_the_last_good_outs_come_back(project):
    before = (project / "data/crawl/documents.jsonl").read_bytes()
    done = sh(
        project,
        *(sys.executable, "-m", "stages", "run", "source=web", "source.url=http://127.0.0.1:9/"),
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "http://127.0.0.1:9/" in done.stderr
    assert "`dvc checkout`" in done.stderr
    sh(project, "dvc", "checkout", "--force")
    assert (project / "data/crawl/documents.jsonl").read_bytes() == before


def test_an_empty_lock_file_of_a_killed_dvc_does_not_block_the_next_run(project):
    (project / ".dvc/tmp/rwlock").write_bytes(b"")
    done = sh(project, sys.executable, "-m", "stages", "run", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["tracks"]
