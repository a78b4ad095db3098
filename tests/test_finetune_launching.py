"""Where a training runs: the same training here, in a container, on a cluster, on two machines."""

import getpass
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_finetune import (
    PYTHON,
    ROOT,
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
from test_finetune_checkpoints import Training, the_stage

from stages import finetune
from stages.__main__ import main
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.finetune import launching
from stages.finetune.launching import job as jobs
from stages.finetune.launching.job import Job

__all__ = ["workspace"]


def option(kind: str, **values: Any) -> dict[str, Any]:
    return section(f"finetune/launcher/{kind}", **values)


def launcher(kind: str, **values: Any) -> Any:
    return config.load({"launcher": option(kind, **values)}, "launcher", launching.Config)


def a_job(folder: Path, **values: Any) -> Job:
    (folder / "out").mkdir(exist_ok=True)
    wanted: dict[str, Any] = {
        "module": "axolotl.cli.train",
        "arguments": ("axolotl.yaml", f"--output_dir={folder}/work/model"),
        "folder": folder / "out",
        "work": folder / "work",
        "name": "tune",
        "log": folder / "tune.log",
        "python": sys.executable,
        "num_processes": 1,
    }
    return Job(**wanted | values)


# --- what a job is given -------------------------------------------------------------------------


def test_only_a_hub_model_may_ask_the_network(tmp_path: Path) -> None:
    assert jobs.variables(a_job(tmp_path))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in jobs.variables(a_job(tmp_path, offline=False))


def test_the_processes_share_the_cores(tmp_path: Path) -> None:
    cores = jobs.available_cores()
    assert jobs.variables(a_job(tmp_path))["OMP_NUM_THREADS"] == str(cores)
    many = a_job(tmp_path, num_processes=10 * cores)
    assert jobs.variables(many)["OMP_NUM_THREADS"] == "1"
    assert jobs.variables(a_job(tmp_path, num_processes=4), 1, 32)["OMP_NUM_THREADS"] == "8"


def test_several_machines_need_a_place_to_meet() -> None:
    with pytest.raises(PipelineError, match=r"rendezvous as address:port beside num_nodes 2"):
        launcher("local", num_nodes=2)
    assert launcher("local", num_nodes=2, rendezvous="10.0.0.1:29500").num_nodes == 2


@pytest.mark.parametrize("num_processes", [1, 4])
def test_torchrun_starts_only_where_there_are_several_processes(
    tmp_path: Path, num_processes: int
) -> None:
    said = launching.render(launcher("local"), a_job(tmp_path, num_processes=num_processes))
    assert ("torch.distributed.run" in said) == (num_processes > 1)
    assert ("export WORLD_SIZE=1\n" in said) == (num_processes == 1)


def test_each_machine_is_told_its_number_and_where_the_first_is(tmp_path: Path) -> None:
    cfg = launcher("local", num_nodes=3, rendezvous="10.0.0.1:29500")
    job = a_job(tmp_path, num_processes=2)
    here = launching.render(cfg, job)
    assert "--nnodes 3 --node_rank 0 --master_addr 10.0.0.1 --master_port 29500" in here
    assert f"sh {job.work}/node.sh 1" in here
    other = launching.local.node_script(cfg, job, [sys.executable])
    assert '--node_rank "$1" --master_addr 10.0.0.1' in other
    alone = launching.render(cfg, a_job(tmp_path, is_distributed=False))
    assert "torch.distributed.run" not in alone


def test_a_printed_command_runs_as_it_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    script = folder / "show.py"
    script.write_text("import json, os, sys; print(json.dumps([os.getcwd(), sys.argv]))")
    job = a_job(folder, module="show", arguments=("axolotl.yaml", "--x=a b$HOME'"))
    said = launching.render(launcher("local"), job).replace(
        "export PYTHONPATH=", f"export PYTHONPATH={jobs.shell([str(folder)])}:"
    )
    done = subprocess.run(["sh", "-c", said], capture_output=True, text=True, check=True)
    where, words = json.loads(done.stdout)
    assert where == str(job.folder)
    assert words[1:] == ["axolotl.yaml", "--x=a b$HOME'"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("local", "-m axolotl.cli.train axolotl.yaml"),
        ("docker", "docker run --rm --init"),
        ("slurm", "#SBATCH --nodes=1"),
        ("bundle", "sha256sum --check"),
        ("openai", "curl https://api.openai.com/v1/fine_tuning/jobs"),
    ],
)
def test_each_launcher_prints_its_command_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, said: str
) -> None:
    monkeypatch.chdir(ROOT)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it runs something")

    monkeypatch.setattr(subprocess, "run", never)
    monkeypatch.setattr(psutil, "Popen", never)
    words = ["run", "--dry-run", f"finetune/launcher={kind}", "finetune.device=cpu"]
    assert main([*words, "finetune=lora"]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert ("merge_lora" in printed) == (kind != "openai")
    first, _, then = printed.partition("tune/model")
    assert ("models/base/KEY/work/base" in first) == bool(then) == (kind != "openai")


def test_a_printed_training_goes_on_from_the_adapter_that_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace.folder / "earlier"
    folder.mkdir()
    cfg = tuning_config("lora", python=sys.executable, device="cpu", init_adapter="earlier")
    said = finetune.commands(cfg, local_model(Path("m")), Path("data/finetune"))
    assert f"--lora_model_dir={folder}" in said


# --- a container ---------------------------------------------------------------------------------

DOCKER = """#!{python}
# Stands in for the engine: of the container only what is mounted and given is there.
import json, os, subprocess, sys
words = sys.argv[1:]
if words[0] == "rm":
    open({log!r}, "a").write("rm " + words[-1] + "\\n")
    sys.exit(0)
assert words[0] == "run"
flags, given = ("--rm", "--init"), dict(volumes=[], env=dict())
at = 1
while words[at].startswith("--"):
    name = words[at]
    if name in flags or "=" in name:
        at += 1
        continue
    value = words[at + 1]
    at += 2
    if name == "--volume":
        given["volumes"].append(value)
    elif name == "--env":
        key, is_set, text = value.partition("=")
        given["env"][key] = text if is_set else os.environ[key]
    else:
        given[name] = value
image, python, *command = words[at:]
given |= dict(image=image, python=python, command=command)
open({log!r}, "a").write(json.dumps(given) + "\\n")
if image == "none":
    print("docker: Error response from daemon: pull access denied", file=sys.stderr)
    sys.exit(125)
places = [v.split(":") for v in given["volumes"]]
# Names that the command is to find in the container must be mounted at the path that it says.
for word in [given["--workdir"], *(w.partition("=")[2] for w in command if w.startswith("--"))]:
    if word.startswith("/"):
        assert any(word == inside or word.startswith(inside + "/") for _, inside in places), word
for outside, inside in places:
    assert outside == inside and os.path.isdir(outside), outside
environment = dict(given["env"], PATH=os.environ["PATH"])
os.chdir(given["--workdir"])
os.execvpe({inner!r}, [*{words!r}, *command], environment)
"""


class Engine:
    """A `docker` on the PATH that runs the inner command with a Python of ours."""

    def __init__(self, folder: Path, python: list[str], patch: pytest.MonkeyPatch) -> None:
        self.log = folder / "docker.log"
        (folder / "bin").mkdir()
        program = folder / "bin/docker"
        program.write_text(
            DOCKER.format(
                python=sys.executable, log=str(self.log), inner=python[0], words=python
            ).replace("dict(volumes=[], env=dict())", "{'volumes': [], 'env': {}}")
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")

    @property
    def said(self) -> list[Any]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) if line.startswith("{") else line for line in lines]


def test_a_container_gets_the_project_at_its_own_path_and_no_secret(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    script = workspace.trainer().split()[1]
    engine = Engine(workspace.folder, [sys.executable, script], monkeypatch)
    cfg = tuning_config(launcher=option("docker", environment={"NCCL_DEBUG": "INFO"}))
    elsewhere = workspace.folder.parent / f"{workspace.folder.name}-base"
    metrics = workspace.run(cfg, local_model(elsewhere))
    assert metrics["num_steps"] == 4
    assert Path("data/finetune/model/model.safetensors").exists()
    asked, removed, given, ended = engine.said
    assert asked["command"][0].endswith("probe.py")
    assert removed.startswith("rm docent-tune-") and removed == ended
    assert given["image"] == "axolotlai/axolotl:0.19.0"
    assert given["--gpus"] == "all"
    assert given["--user"] == f"{os.getuid()}:{os.getgid()}"
    assert given["env"]["NCCL_DEBUG"] == "INFO"
    assert "sk-secret" not in engine.log.read_text()
    mounted = {Path(volume.split(":")[0]) for volume in given["volumes"]}
    assert {workspace.folder, elsewhere} <= mounted
    assert not any(one != two and one.is_relative_to(two) for one in mounted for two in mounted)


def test_a_container_that_does_not_start_names_the_keys(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    Engine(workspace.folder, [sys.executable], monkeypatch)
    cfg = tuning_config(launcher=option("docker", image="none"))
    said = one_line(workspace, cfg, local_model(Path("m")))
    assert said.startswith("finetune.launcher: docker: the container did not start")
    assert "pull access denied" in said


def test_a_machine_without_docker_or_slurm_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(workspace.folder))
    for kind in ("docker", "slurm"):
        cfg = tuning_config(python=sys.executable, launcher=option(kind))
        said = one_line(workspace, cfg, local_model(Path("m")))
        assert said.startswith(f"finetune.launcher: {kind}: no `")


def test_what_was_launched_is_removed_also_when_the_stage_is_killed(workspace: Workspace) -> None:
    mark = workspace.folder / "removed"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from stages.finetune.launching import processes\n"
        f"with processes.guarded(['touch', {str(mark)!r}], Path('guard.log')):\n"
        "    print('in', flush=True); time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for how in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        ) as stage:
            assert stage.stdout
            assert stage.stdout.readline() == "in\n"
            assert not mark.exists()
            stage.send_signal(how)
        wait_until(mark.exists)
        mark.unlink()


def wait_until(holds: Any, seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)


# --- a cluster -----------------------------------------------------------------------------------


def test_the_batch_script_asks_for_what_is_set_and_passes_no_secret(tmp_path: Path) -> None:
    cfg = launcher(
        "slurm",
        num_nodes=4,
        partition="gpu",
        gpus_per_node=8,
        time_limit="12:00:00",
        setup=["module load cuda"],
        options=["--constraint=a100"],
    )
    script = launching.render(cfg, a_job(tmp_path, num_processes=8))
    head = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    for option in ("nodes=4", "partition=gpu", "gpus-per-node=8", "time=12:00:00", "no-requeue"):
        assert f"#SBATCH --{option}" in head
    assert "#SBATCH --constraint=a100" in head
    assert "#SBATCH --export=HOME,USER,PATH,LANG,HF_HOME" in head
    assert "account" not in script
    assert "--nnodes 4" in script and "module load cuda" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm of one node, this machine, with its controller; its commands are on the PATH."""
    programs = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
    search = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [name for name in programs if not shutil.which(name, path=search)]:
        pytest.skip(f"no {missing[0]}: Debian's slurm-wlm has it")
    if os.getuid() != 0:
        pytest.skip("slurmd runs as root")
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname()
    (folder / "slurm.conf").write_text(
        f"""ClusterName=docent
SlurmctldHost={host}(127.0.0.1)
SlurmUser={getpass.getuser()}
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
MinJobAge=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        munge = [f"--key-file={key}", f"--socket={folder}/munge.socket"]
        munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log"]
        munge += [f"--seed-file={folder}/munge.seed", "--force", "--foreground"]
        daemons = []

        def daemon(program: str, *arguments: str) -> None:
            found = shutil.which(program, path=search)
            assert found
            with (folder / f"{program}.out").open("wb") as log:
                daemons.append(subprocess.Popen([found, *arguments], stdout=log, stderr=log))

        daemon("munged", *munge)
        wait_until((folder / "munge.socket").exists)
        daemon("slurmctld", "-D", "-i")
        daemon("slurmd", "-D", "-N", host)

        def is_idle() -> bool:
            asked = ["sinfo", "--noheader", "--format=%T"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            return done.stdout.strip() == "idle"

        try:
            wait_until(is_idle, 60)
            yield folder
        finally:
            subprocess.run(["scancel", "--user", getpass.getuser()], check=False)
            for process in reversed(daemons):
                process.terminate()
                process.wait(30)


def states() -> list[str]:
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%T"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.slow
def test_a_job_of_a_real_slurm_ends_as_the_trainer_does(
    workspace: Workspace, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    slurm = option("slurm", poll_s=0.2)

    def cfg(before: str = "", after: str = "") -> Any:
        return tuning_config(python=workspace.trainer(before, after), launcher=slurm)

    seen = workspace.folder / "seen"
    metrics = workspace.run(
        cfg(f"open({str(seen)!r}, 'w').write(json.dumps(dict(os.environ)))"), local_model(Path("m"))
    )
    assert metrics["num_steps"] == 4
    given = json.loads(seen.read_text())
    assert "OPENAI_API_KEY" not in given and "SLURM_JOB_ID" in given
    assert given["WORLD_SIZE"] == "1"
    said = one_line(workspace, cfg("raise ValueError('too much')"), local_model(Path("m")))
    assert "ValueError: too much" in said
    killed = one_line(workspace, cfg("os.kill(os.getpid(), 9)"), local_model(Path("m")))
    assert "signal 9" in killed
    refused = tuning_config(
        python=workspace.trainer(), launcher=option("slurm", partition="nowhere", poll_s=0.2)
    )
    said = one_line(workspace, refused, local_model(Path("m")))
    assert said.startswith("finetune.launcher: slurm: sbatch refused") and "partition" in said
    late = tuning_config(
        python=workspace.trainer("time.sleep(600)"),
        launcher=option("slurm", poll_s=0.2, time_limit="00:01:00"),
    )
    said = one_line(workspace, late, local_model(Path("m")))
    assert "ended as TIMEOUT: raise finetune.launcher.time_limit" in said
    wait_until(lambda: states() == [])


@pytest.mark.slow
def test_a_killed_stage_takes_its_job_along_and_a_job_left_behind_is_not_run_beside(
    workspace: Workspace, cluster: Path
) -> None:
    mark = workspace.folder / "running"
    command = workspace.trainer(f"open({str(mark)!r}, 'a').write('x'); time.sleep(600)")
    training = Training(
        workspace.folder,
        tuning_config(python=command, launcher=option("slurm", poll_s=0.2)),
        local_model(Path("m")),
    )
    stage = training.start("out")
    wait_until(mark.exists, 60)
    os.kill(stage.pid, signal.SIGKILL)
    stage.communicate()
    wait_until(lambda: states() in ([], ["COMPLETING"]), 60)

    # The guard dies too: the job is left behind, and the next run ends it first.
    mark.unlink()
    stage = training.start("out")
    wait_until(mark.exists, 60)
    guards = [p for p in psutil.process_iter(["cmdline"]) if "scancel" in (p.info["cmdline"] or [])]
    assert guards
    for process in (*guards, psutil.Process(stage.pid)):
        process.kill()
    stage.communicate()
    time.sleep(1)
    assert states() == ["RUNNING"]
    assert training.work
    left = next(training.work.glob("tune/*.job")).read_text()
    workspace.trainer()  # under the same name: it ends at once
    training.finish("out")
    done = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", left], capture_output=True, text=True, check=True
    )
    assert "JobState=CANCELLED" in done.stdout


# --- real trainings ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with a small base, really pretrained and tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("launched"))
        patch.delenv("DVC_ROOT", raising=False)
        workspace = Workspace(Path.cwd())
        workspace.give(train=[example(n) for n in range(40)])
        workspace.run(tuning_config(**REAL, save_steps=None), model_config(**SMALL), "made")
        workspace.metrics = workspace.run(tuning_config(**REAL), base_of("made"), "here")
        yield workspace


REAL: dict[str, Any] = {
    "python": PYTHON,
    "device": "cpu",  # as a container or a cluster without GPUs is taken to be
    "num_epochs": 3,
    "micro_batch_size": 4,
}


def base_of(out: str) -> Any:
    return model_config("local", path=f"{out}/base", context_tokens=128)


def weights(trained: Workspace, out: str) -> str:
    return store.digest(trained.folder / out / "model/model.safetensors")


@pytest.mark.slow
def test_a_container_trains_what_is_trained_here(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = Engine(tmp_path, [PYTHON], monkeypatch)
    cfg = tuning_config(**REAL, launcher=option("docker"))
    assert trained.run(cfg, base_of("made"), "contained") == trained.metrics
    assert weights(trained, "contained") == weights(trained, "here")
    given = [said for said in engine.said if isinstance(said, dict)][-1]
    assert given["command"][:2] == ["-m", "axolotl.cli.train"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_slurm_trains_what_is_trained_here_and_goes_on_after_a_kill(
    trained: Workspace, cluster: Path
) -> None:
    cfg = tuning_config(**REAL, save_steps=5, launcher=option("slurm", poll_s=0.5))
    training = Training(trained.folder, cfg, base_of("made"))
    training.kill(the_stage, 8)
    wait_until(lambda: states() == [], 60)
    metrics = training.finish("killed")
    assert metrics["train_loss"] == pytest.approx(trained.metrics["train_loss"], abs=1e-6)
    assert weights(trained, "killed") == weights(trained, "here")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_machines_that_meet_over_the_network_train_as_two_processes_do(
    trained: Workspace,
) -> None:
    two = {"zero": "zero2", "learning_rate": 0.001}
    one = trained.run(tuning_config(**REAL, **two, num_processes=2), base_of("made"), "one")
    meet = option("local", num_nodes=2, rendezvous=f"127.0.0.1:{free_port()}")
    training = Training(
        trained.folder, tuning_config(**REAL, **two, launcher=meet), base_of("made")
    )
    stage = training.start("two")
    wait_until(lambda: training.work and (training.work / "tune/node.sh").exists(), 60)
    assert training.work
    join = ["sh", str(training.work / "tune/node.sh"), "1"]
    other = subprocess.run(join, capture_output=True, text=True, check=False)
    said, errors = stage.communicate(timeout=300)
    assert stage.returncode == 0, errors[-500:]
    assert other.returncode == 0, other.stderr[-500:]
    metrics = json.loads(said.splitlines()[-1])
    assert metrics["train_loss"] == pytest.approx(one["train_loss"], abs=1e-6)
    assert weights(trained, "two") == weights(trained, "one")
