"""The DAG again: after a kill, a change, an experiment, a sweep, a failure.

The tests of this module share one project and run in order: each goes on from the last.
"""

import contextlib
import json
import subprocess
import sys
import time

import psutil
from dag import edit, ran, runs, sh


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


def test_an_unreachable_site_is_one_line_and_no_out_is_touched(project):
    before = (project / "data/crawl/documents.jsonl").read_bytes()
    site = ("source=web", "source.url=http://127.0.0.1:9/", "source.allow_hosts=[127.0.0.1]")
    done = sh(project, sys.executable, "-m", "stages", "run", *site, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "http://127.0.0.1:9/" in done.stderr
    assert "refuses the connection" in done.stderr
    assert (project / "data/crawl/documents.jsonl").read_bytes() == before


def test_a_failed_stage_is_one_line_and_its_last_good_outs_come_back(project):
    before = (project / "data/crawl/documents.jsonl").read_bytes()
    done = sh(
        project, *(sys.executable, "-m", "stages", "run", "crawl.min_chars=9999999"), check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "crawl.min_chars" in done.stderr
    assert "`dvc checkout`" in done.stderr
    sh(project, "dvc", "checkout", "--force")
    assert (project / "data/crawl/documents.jsonl").read_bytes() == before


def test_an_empty_lock_file_of_a_killed_dvc_does_not_block_the_next_run(project):
    (project / ".dvc/tmp/rwlock").write_bytes(b"")
    done = sh(project, sys.executable, "-m", "stages", "run", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["tracks"]
