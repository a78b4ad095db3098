"""The data side of the DAG by real dvc and Hydra: what goes wrong before a run, and all that needs
no model. The tests share one project and run in order.
"""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from dag import ROOT, copy_of_the_tree, edit, ran, sh

from stages import pipeline
from stages.core.errors import PipelineError


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which nothing has run."""
    folder = copy_of_the_tree(tmp_path_factory.mktemp("data"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# --- before anything runs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "split=recusive",
            "split=recusive: no such option (did you mean recursive?): expected one",
        ),
        (
            "split.methd=x",
            "split.methd: unknown key (did you mean method?): expected one of method",
        ),
        ("split.method=x", "conf: split.method: 'x': expected 'recursive', 'markdown' or 'code'"),
        ("finetune.learning_rate=fast", "conf: finetune.learning_rate: 'fast': input should be"),
        ("spilt=recursive", "spilt: unknown key (did you mean split?)"),
        ("experiment=nope", "experiment=nope: no such option: expected one of blog_qa, codebase,"),
    ],
)
def test_an_unknown_option_key_or_value_is_one_line_that_lists_the_right_ones(
    project, override, said
):
    done = sh(project, sys.executable, "-m", "stages", "run", override, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "Running stage" not in done.stdout


def test_a_yaml_option_that_is_malformed_is_one_line(project):
    file = project / "conf/split/recursive.yaml"
    before = file.read_text()
    file.write_text("method: [\n")
    done = sh(project, sys.executable, "-m", "stages", "run", check=False)
    file.write_text(before)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not YAML" in done.stderr
    assert "recursive.yaml" in done.stderr


def test_a_stage_without_its_input_says_who_makes_it(project):
    done = sh(
        project,
        *(sys.executable, "-m", "stages", "split"),
        *("--documents", "nowhere.jsonl", "--out", "data/split"),
        check=False,
    )
    assert done.returncode == 1
    assert "--documents: nowhere.jsonl: no such file" in done.stderr


# --- the run -----------------------------------------------------------------------------------


# --- the data ---------------------------------------------------------------------------------


def test_the_data_is_made_without_any_model(project):
    made = ran(sh(project, "dvc", "repro", "index", "synthesize"))
    assert made == ["params", "site", "crawl", "split", "index", "synthesize"]


def test_another_folder_with_an_empty_cache_and_hash_seed_gives_the_same_bytes(
    project, tmp_path, monkeypatch
):
    other = tmp_path / "elsewhere"
    sh(project, "git", "clone", "-q", ".", str(other))
    edit(other, "conf/config.yaml", "tracking: mlflow", "tracking: none")
    monkeypatch.setenv("PYTHONHASHSEED", "4242")
    sh(other, "dvc", "repro", "index", "synthesize")
    for stage in ("site", "crawl", "split", "index", "synthesize"):
        made = [
            {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in (folder / "data" / stage).rglob("*")
                if path.is_file()
            }
            for folder in (project, other)
        ]
        assert made[0], stage
        assert made[0] == made[1], stage


def test_the_plan_says_that_a_rerun_calls_nobody_and_another_teacher_everybody(project):
    verb = (sys.executable, "-m", "stages", "plan", "--json")
    done = json.loads(sh(project, *verb).stdout)
    assert (done["calls"], done["cost_usd"]) == (0, 0)
    other = json.loads(sh(project, *verb, "teacher=openai").stdout)
    assert other["calls"] > done["cached"] > 100
    assert 0 < other["cost_usd"] < other["worst_usd"]


def test_paid_replies_and_reviews_go_out_and_come_back(project, tmp_path):
    stages = (sys.executable, "-m", "stages")
    sh(project, *stages, "ledger", "export", tmp_path / "calls.jsonl")
    assert (
        "0 new calls" in sh(project, *stages, "ledger", "import", tmp_path / "calls.jsonl").stdout
    )
    sheet = tmp_path / "sheet.csv"
    assert "examples" in sh(project, *stages, "review", "export", sheet).stdout
    assert '"decision"' in sheet.read_text(encoding="utf-8-sig").partition("\n")[0]
    assert "0 decisions are new" in sh(project, *stages, "review", "import", sheet).stdout
    broken = sh(project, *stages, "review", "import", project / "dvc.yaml", check=False)
    assert broken.returncode == 1
    assert broken.stderr.count("\n") == 1


def test_a_frozen_test_set_is_committed_and_leaves_the_training_alone(project):
    files = [project / f"data/synthesize/{part}.jsonl" for part in ("train", "test")]
    before = [path.read_bytes() for path in files]
    done = sh(project, sys.executable, "-m", "stages", "freeze")
    assert "questions are the test set from now on" in done.stdout
    assert done.stdout.rstrip().endswith("committed")
    assert "data/inputs/testset.jsonl" in sh(project, "git", "show", "--stat", "HEAD").stdout
    assert "committed before" in sh(project, sys.executable, "-m", "stages", "freeze").stdout
    assert ran(sh(project, "dvc", "repro", "synthesize")) == ["synthesize"]
    assert [path.read_bytes() for path in files] == before


# --- the parts ---------------------------------------------------------------------------------


def test_settings_that_do_not_fit_are_refused_before_dvc_is_asked(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    with pytest.raises(PipelineError, match="seed"):
        pipeline.run(["finetune.seed=none"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
