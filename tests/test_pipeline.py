"""The whole DAG by real dvc, Hydra and MLflow, with a model small enough to train in a minute.

The tests of this module share one project and run in order: each goes on from the last.
"""

import json
import re
import shutil
import sys

import yaml
from dag import ran, runs, sh

from stages import pipeline


def test_the_whole_dag_runs_and_ends_with_the_table_and_what_to_do_next(whole_run, project):
    done = whole_run
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
    figures = ("loss", "eval_loss", "learning_rate", "tokens_per_s", "memory_gb", "tokens")
    told = {name: client.get_metric_history(tune.info.run_id, name) for name in figures}
    assert all(told.values()), {name: len(rows) for name, rows in told.items()}
    assert len(told["loss"]) > 1
    rows = client.get_metric_history(tune.info.run_id, "base_loss")  # at 0 the stage's own metric
    losses = [row.value for row in sorted(rows, key=lambda row: row.step) if row.step]
    assert losses[-1] < 0.9 * losses[0], "the base learns nothing"


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
    assert set(json.loads(page)["data"]) == {
        *("training loss", "learning rate", "ROUGE-L by system")
    }


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
