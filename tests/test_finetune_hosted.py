"""Tuning at a provider: one job, however often we are killed, and its model served and judged."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from billing import ANSWER, Act, Server, serving
from test_finetune import ROOT, Workspace, example, model_config, one_line, section, tuning_config
from test_finetune_checkpoints import STAGE

from stages import deploy
from stages.answer import endpoint
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.records import Message
from stages.evaluate import report
from stages.finetune import hosted
from stages.llm import tuning

FAST: dict[str, Any] = {"poll_s": 0.01, "backoff_s": 0.001, "max_attempts": 5, "timeout_s": 5}
KEY = {"OPENAI_API_KEY": "sk-secret"}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)
    yield Workspace(tmp_path)


def at(server: Server | str, **values: Any) -> Any:
    address = server if isinstance(server, str) else server.address
    return tuning_config(
        launcher=section("finetune/launcher/openai", **FAST | {"base_url": address} | values)
    )


def read(path: str) -> Any:
    return json.loads(Path("data/finetune", path).read_text())


def test_a_provider_tunes_and_its_model_is_named(workspace: Workspace) -> None:
    with serving() as server:
        metrics = workspace.run(at(server, num_epochs=2), model_config())
        (job,) = server.trainings
    assert read("hosted.json") == {
        "base": "gpt-4.1-mini-2025-04-14",
        "tuned": "ft:gpt-4.1-mini-2025-04-14:docent:ftjob-1",
        "job": "ftjob-1",
        "base_url": server.address,
        "trained_tokens": job.tokens,
    }
    assert metrics == {
        "num_examples": 8,
        "num_steps": 16,
        "train_loss": pytest.approx((4 / 15 + 4 / 16) / 2),
        "validation_loss": 0.5,
    }
    assert len(Path("data/finetune/curve.csv").read_text().splitlines()) == 17
    assert job.method["supervised"]["hyperparameters"] == {
        "n_epochs": 2,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    written = [json.loads(line) for line in server.files[job.file].splitlines()]
    assert [row["messages"][0]["content"] for row in written] == [
        f"What is setting {n}?" for n in range(8)
    ]
    everything = [p for p in Path().rglob("*") if p.is_file()]
    assert not any(b"sk-secret" in path.read_bytes() for path in everything)


def test_running_again_pays_nothing_and_other_examples_are_another_job(
    workspace: Workspace,
) -> None:
    with serving() as server:
        first = workspace.run(at(server), model_config())
        again = workspace.run(at(server), model_config())
        assert first == again
        assert len(server.trainings) == 1
        workspace.give(train=[example(n) for n in range(9)])
        workspace.run(at(server), model_config())
        assert len(server.trainings) == 2
        workspace.run(at(server, num_epochs=1), model_config())
        assert len(server.trainings) == 3


def requests_of_a_run(workspace: Workspace) -> list[str]:
    """Method and path of each request that a run makes, without numbers."""
    made: list[str] = []

    def desk(number: int, asked: str) -> Act:
        made.append(kind(asked))
        return ANSWER

    with serving(desk=desk) as server:
        workspace.run(at(server, num_epochs=1), model_config())
    return made


def kind(asked: str) -> str:
    return re.sub(r"(ftjob|file)-\d+|\?.*", "", asked)


BEGIN = "POST /v1/fine_tuning/jobs"
ONE_OF_EACH_THAT_PAYS = [("POST /v1/files", 1), (BEGIN, 1)]


def killed_at_each_step(
    workspace: Workspace, left: list[tuple[str, int]], plant: str = "", **settings: Any
) -> None:
    """The stage is killed while the answer to each of these requests, the nth of its kind, is on
    its way: done, and not heard of. In the end there is one job, and one model."""
    counts: Counter[str] = Counter()

    def desk(number: int, asked: str) -> Act:
        counts[kind(asked)] += 1
        each = (kind(asked), counts[kind(asked)])
        if each not in left:
            return ANSWER
        left.remove(each)
        return Act("half")

    with serving(desk=desk, **settings) as server:
        cfg = at(server, num_epochs=1, timeout_s=60)
        params = {"finetune": cfg.model_dump(), "model": model_config().model_dump()}
        store.write_json(workspace.folder / "params.json", params)
        command = [sys.executable, "-c", STAGE.replace("PLANT", plant), "killed"]
        while True:
            counts.clear()
            stage = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            while stage.poll() is None:
                if not server.seen.empty() and server.seen.get().startswith("half"):
                    stage.kill()
                time.sleep(0.005)
            said, errors = stage.communicate()
            if stage.returncode == 0:
                break
            assert stage.returncode < 0, errors[-500:]
        # What later runs need not do again, such as sending a file, was not killed in them.
        assert all(nth > 1 for _, nth in left)
        assert len(server.trainings) == 1
    told = store.read_json(workspace.folder / "killed/hosted.json")
    assert told["job"] == "ftjob-1"
    assert json.loads(said.splitlines()[-1])["num_steps"] == 8


def test_a_kill_never_pays_a_second_job(workspace: Workspace) -> None:
    killed_at_each_step(workspace, list(ONE_OF_EACH_THAT_PAYS))


@pytest.mark.slow
@pytest.mark.parametrize("keeps_marks", [True, False])
def test_nor_does_a_kill_at_any_request_whatever_the_endpoint_keeps(
    workspace: Workspace, keeps_marks: bool
) -> None:
    made = requests_of_a_run(workspace)
    kinds = [(name, nth) for name in dict.fromkeys(made) for nth in (1, 2)]
    left = [each for each in kinds if made.count(each[0]) >= each[1]]
    assert len(left) >= 6
    killed_at_each_step(workspace, left, keeps_marks=keeps_marks)


def test_a_planted_loss_of_the_marks_is_found(workspace: Workspace) -> None:
    forgetful = "from stages.llm.tuning import Tuning; Tuning._found = lambda *_: None"
    with pytest.raises(AssertionError):
        killed_at_each_step(workspace, [(BEGIN, 1)], forgetful)


FAULTS = {
    "429": Act("refuse", 429, (("Retry-After", "0"),)),
    "500": Act("refuse", 500),
    "no JSON": Act("cut"),
    "nothing": Act("hang up"),
}


def each_request_fails_once(workspace: Workspace, faults: list[str], numbers: range) -> None:
    for number, fault in itertools.product(numbers, faults):
        workspace.give(train=[example(n) for n in range(10 + number)])
        shutil.rmtree(".cache/hosted", ignore_errors=True)

        def desk(asked: int, _: str, at: int = number, fault: Act = FAULTS[fault]) -> Act:
            return fault if asked == at else ANSWER

        with serving(desk=desk) as server:
            workspace.run(at(server, num_epochs=1), model_config())
            assert len(server.trainings) == 1, (number, fault)


def test_the_request_that_pays_may_fail_and_one_job_is_paid(workspace: Workspace) -> None:
    made = requests_of_a_run(workspace)
    number = made.index(BEGIN) + 1
    each_request_fails_once(workspace, list(FAULTS), range(number, number + 1))


@pytest.mark.slow
def test_each_request_may_fail_in_any_way_and_one_job_is_paid(workspace: Workspace) -> None:
    made = requests_of_a_run(workspace)
    each_request_fails_once(workspace, list(FAULTS), range(1, len(made) + 1))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "finetune.launcher: 401"),
        (400, "finetune.launcher: 400"),
        (404, "finetune.launcher: 404"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_section(
    workspace: Workspace, status: int, said: str
) -> None:
    with serving(desk=lambda *_: Act("refuse", status)) as server:
        assert one_line(workspace, at(server), model_config()).startswith(said)


def test_a_job_that_fails_says_why_and_the_next_run_begins_a_new_one(workspace: Workspace) -> None:
    with serving(tuning_ends_as=lambda n: "failed" if n == 1 else "succeeded") as server:
        said = one_line(workspace, at(server), model_config())
        assert "job ftjob-1 failed: line 3 is not right" in said
        assert not Path("data/finetune/hosted.json").exists()
        workspace.run(at(server), model_config())
        assert read("hosted.json")["job"] == "ftjob-2"


def test_a_job_can_be_cancelled_and_is_not_taken_for_done(workspace: Workspace) -> None:
    with serving(looks=10_000) as server:
        params = {"finetune": at(server).model_dump(), "model": model_config().model_dump()}
        store.write_json(workspace.folder / "params.json", params)
        command = [sys.executable, "-c", STAGE.replace("PLANT", ""), "out"]
        with subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as stage:
            while not list(Path(".cache/hosted").glob("*/notes.json")) or not server.trainings:
                assert stage.poll() is None
                time.sleep(0.02)
            time.sleep(0.2)
            assert hosted.cancel(at(server).launcher) == ["ftjob-1"]
            errors = stage.communicate(timeout=30)[1]
        assert "job ftjob-1 cancelled" in errors
        assert hosted.cancel(at(server).launcher) == []


def begun(server: Server, name: str) -> None:
    """A job that goes on at the server, begun by a run that was interrupted."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    store.write_text(Path(f"{name}.jsonl"), json.dumps(chat) + "\n")
    order = tuning.Order(name, "gpt", Path(f"{name}.jsonl"), None, {"n_epochs": 1}, 0, None)
    notes = store.cache("hosted", name, "notes.json")
    client = tuning.Tuning(at(server).launcher, "sk-secret", notes, hosted.SECTION, interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.train(order, lambda event: None)
    client.close()


def test_a_job_that_is_gone_keeps_no_other_from_being_cancelled(workspace: Workspace) -> None:
    elsewhere = {"job": "ftjob-1", "base_url": "http://127.0.0.1:9/v1"}
    paid = {"job": "ftjob-80", "succeeded": True}
    for name, noted in (("a", paid), ("b", elsewhere), ("c", {"job": "ftjob-90"})):
        store.write_json(store.cache("hosted", name, "notes.json"), noted)
    with serving(looks=10_000) as server:
        begun(server, "d")
        with pytest.raises(PipelineError, match="job ftjob-90 is not at this address") as caught:
            hosted.cancel(at(server).launcher)
        assert str(caught.value).endswith("; cancelled: ftjob-1") and "80" not in str(caught.value)
        assert [job.cancelled for job in server.trainings] == [True]


def test_a_job_whose_number_was_never_noted_is_cancelled_too(workspace: Workspace) -> None:
    with serving(looks=10_000) as server:
        begun(server, "d")
        notes = store.cache("hosted", "d", "notes.json")
        noted = store.read_json(notes)
        store.write_json(notes, {key: noted[key] for key in noted if key != "job"})
        assert hosted.cancel(at(server).launcher) == ["ftjob-1"]


def test_nothing_is_sent_that_may_cost_more_than_the_cap(workspace: Workspace) -> None:
    with serving() as server:
        cfg = at(server, max_cost_usd=0.001, price_usd_per_mtok=25.0)
        said = one_line(workspace, cfg, model_config())
        assert said.startswith("finetune.launcher.max_cost_usd: 0.001")
        assert server.heads == []
    with pytest.raises(PipelineError, match="num_epochs and price_usd_per_mtok"):
        at("http://127.0.0.1:9/v1", max_cost_usd=5.0, num_epochs=None)


def test_a_recipe_that_is_no_lesson_by_example_is_refused(workspace: Workspace) -> None:
    cfg = at("http://127.0.0.1:9/v1").model_copy(update={"kind": "dpo"})
    assert "finetune.kind: 'dpo'" in one_line(workspace, cfg, model_config())


def test_a_missing_key_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    said = one_line(workspace, at("http://127.0.0.1:9/v1"), model_config())
    assert said.startswith("finetune.launcher.api_key_env")


# --- its model, deployed -------------------------------------------------------------------------


def deployment(address: str, **values: Any) -> Any:
    settings = section("teacher/openai", base_url=address, max_tokens=64, **values)
    return config.load(
        {"deploy": {"kind": "hosted", "settings": settings}}, "deploy", deploy.Config
    )


def test_the_tuned_model_is_deployed_asked_and_kept_where_it_is(workspace: Workspace) -> None:
    with serving(text=lambda asked: f"Said to {asked}") as server:
        workspace.run(at(server), model_config())
        cfg = deployment(server.address)
        deploy.run(cfg, model_config(), Path("data/finetune"), Path("data/deploy"))
        manifest = Path("data/deploy/endpoint.json")
        said = store.read_json(manifest)
        assert said["engine"] == "hosted"
        assert said["models"]["tuned"]["id"] == "ft:gpt-4.1-mini-2025-04-14:docent:ftjob-1"
        assert "sk-secret" not in manifest.read_text()
        assert endpoint.identity(said, "base") != endpoint.identity(said, "tuned")
        assert report.describe(model_config(), said) == (
            f"Base: gpt-4.1-mini-2025-04-14 at {server.address}, where it was tuned too."
        )
        with endpoint.start(manifest) as models:
            question = [Message(role="user", content="alpha?")]
            answer = models.complete("tuned", question, max_tokens=8)
            assert answer.text == "Said to alpha?"
            assert answer.cost_usd > 0 and not answer.cached
            assert models.complete("tuned", question, max_tokens=8).text == answer.text
        assert server.bodies[-1]["model"].startswith("ft:")
        paid = len(server.bill)
        with endpoint.start(manifest) as models:
            assert models.complete("tuned", question, max_tokens=8).cached
        assert len(server.bill) == paid
    with pytest.raises(PipelineError, match="hosted by"):
        endpoint.up(manifest)


def test_a_hosted_model_wants_the_hosted_deployment_and_no_other_does(
    workspace: Workspace,
) -> None:
    Path("data/finetune").mkdir(parents=True)
    with pytest.raises(PipelineError, match=r"'hosted'.*of our own: take deploy=embedded"):
        deploy.run(
            deployment("http://127.0.0.1:9/v1"),
            model_config(),
            Path("data/finetune"),
            Path("data/deploy"),
        )
    about = {"base": "b", "tuned": "t", "job": "j", "base_url": "http://127.0.0.1:9/v1"}
    store.write_json(Path("data/finetune/hosted.json"), about)
    embedded = config.load(
        {"deploy": section("deploy/embedded", max_total_tokens=512)}, "deploy", deploy.Config
    )
    with pytest.raises(PipelineError, match=r"tuned by a provider: take deploy=hosted"):
        deploy.run(embedded, model_config(), Path("data/finetune"), Path("data/deploy"))
    with pytest.raises(PipelineError, match=r"deploy.settings.base_url.*was tuned at"):
        deploy.run(
            deployment("http://127.0.0.1:8/v1"),
            model_config(),
            Path("data/finetune"),
            Path("data/deploy"),
        )


def test_a_wrong_setting_of_a_hosted_deployment_is_named() -> None:
    with pytest.raises(PipelineError, match=r"deploy.settings.*timeout"):
        deployment("http://127.0.0.1:9/v1", timeout=3)
