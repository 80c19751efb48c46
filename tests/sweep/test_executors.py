"""Sweeps on real clusters, of this machine: whatever is killed or preempted, each run is done once, and as locally."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gptjax.cli import main
from gptjax.sharding import MeshConfig
from gptjax.sweep import local
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.plan import Plan, make_plan
from helpers import TESTS, environment, forest, installed, losses, needed, tiny, until

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")


@pytest.fixture(scope="module")
def plan(cache) -> Plan:
    return forest(cache)


@pytest.fixture(scope="module")
def quiet(plan, tmp_path_factory) -> dict[str, float]:
    """Give the losses of the local executor, undisturbed."""
    directory = tmp_path_factory.mktemp("local")
    local.execute(plan, directory)
    return losses(directory)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[None]:
    if not installed("submitit") or not all(map(shutil.which, DAEMONS)):
        pytest.skip(f"needs submitit, and {', '.join(DAEMONS)} on this machine (Debian: slurm-wlm munge)")
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can start SLURM's daemons, and only on Linux")
    directory = tmp_path_factory.mktemp("slurm")
    subprocess.run([TESTS / "slurm_up.sh", directory, "4"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(directory / "slurm.conf"))
        yield
        subprocess.run(["scancel", "--me"], check=True)  # of tests that failed; and steps outlive their daemons
        until(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True).stdout)
    for file in directory.glob("*.pid"):
        os.kill(int(file.read_text()), signal.SIGTERM)


def steps(directory: Path, run: str) -> int:
    """Count the lines of metrics that a run has written."""
    path = directory / "runs" / run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def check_each_once(plan: Plan, directory: Path, quiet: dict[str, float]) -> None:
    assert losses(directory) == quiet and quiet.keys() == {run.name for run in plan.runs}


def jobs(directory: Path) -> dict[str, str]:
    path = directory / "slurm" / "jobs.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def processes_of(job: str) -> list[int]:
    """Find the Python processes of a job that is no array."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if b"python" in command.split(b"\0")[0] and f"\0SLURM_JOB_ID={job}\0".encode() in environment:
            found.append(int(path.name))
    return found


def is_worker(process: Path, run: str) -> bool:
    """Say whether a process is the worker of Ray's that trains a run: Ray names it after its task."""
    try:
        return (process / "cmdline").read_bytes().startswith(f"ray::{run}".encode())
    except OSError:
        return False


SUBMIT = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell may ignore it
from helpers import forest
from gptjax.sweep.slurm import Resources, execute
execute(forest(sys.argv[1]), pathlib.Path(sys.argv[2]), Resources(poll_seconds=0.2))
"""


def test_slurm_with_a_job_killed_and_the_waiting_command_interrupted(slurm, plan, cache, quiet, tmp_path):
    from gptjax.sweep.slurm import Resources, execute

    trunk = plan.runs[0].name
    command = [sys.executable, "-c", SUBMIT, cache, str(tmp_path)]
    first = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    until(lambda: len(jobs(tmp_path)) == len(plan.runs))
    first.send_signal(signal.SIGINT)
    assert "the jobs go on" in first.communicate(timeout=30)[1]
    before = jobs(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(execute, plan, tmp_path, Resources(poll_seconds=0.2))
        until(lambda: steps(tmp_path, trunk) > 10, waiting)
        for process in processes_of(before[trunk]):
            os.kill(process, signal.SIGKILL)
        waiting.result(120)
    check_each_once(plan, tmp_path, quiet)
    changed = {run for run, job in jobs(tmp_path).items() if job != before[run]}
    assert changed == {trunk, *(run.name for run in plan.runs if run.parent == trunk)}


def test_ray_with_a_worker_killed(plan, quiet, tmp_path):
    needed("ray", "ray")
    from gptjax.sweep.on_ray import Resources, execute

    trunk = plan.runs[0].name
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(execute, plan, tmp_path, Resources())
        until(lambda: steps(tmp_path, trunk) > 10, waiting)
        workers = [int(p.name) for p in Path("/proc").glob("[0-9]*") if is_worker(p, trunk)]
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGKILL)
        waiting.result(120)
    check_each_once(plan, tmp_path, quiet)


def test_slurm_preempts_a_run_that_goes_on_in_the_same_job(slurm, cache, tmp_path):
    """By the signal that comes before a time limit, then by a requeue of SLURM's own."""
    from gptjax.sweep.slurm import Resources, execute

    plan = make_plan(replace(tiny(cache, "cosine"), sizes=(4,), budgets=(8e8,)))
    local.execute(plan, tmp_path / "local")
    directory, run = tmp_path / "slurm", plan.runs[0].name
    seals = directory / "runs" / run / "checkpoints" / "seals"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(execute, plan, directory, Resources(poll_seconds=0.2))
        for saved, command in enumerate((["scancel", "--signal=USR2"], ["scontrol", "requeue"])):
            before = steps(directory, run)
            until(lambda before=before: steps(directory, run) > before + 5, waiting)
            subprocess.run([*command, jobs(directory)[run]], check=True)
            until(lambda saved=saved: len(list(seals.glob("*.json"))) > saved, waiting)
        waiting.result(90)
    check_each_once(plan, directory, losses(tmp_path / "local"))
    assert len(list((directory / "slurm").glob("*_submission.sh"))) == 1


def test_slurm_says_why_a_job_was_given_up(slurm, cache, tmp_path, capsys):
    """One run finds no place for its directory, and is tried again; one has a mesh that its node refuses."""
    from gptjax.sweep.slurm import Resources, execute

    plan = make_plan(replace(tiny(cache, "cosine"), sizes=(4, 6, 8), budgets=(2e8,)))
    blocked, good, bad = plan.runs
    bad = replace(bad, config=replace(bad.config, mesh=MeshConfig(tensor=3)))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / blocked.name).touch()
    with pytest.raises(SystemExit) as ended:
        execute(replace(plan, runs=(blocked, good, bad)), tmp_path, Resources(poll_seconds=0.2, resubmissions=1))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count(f"{blocked.name}: job") == 2 and said.count("Error: ") == 2
    assert said.count("submitted again, 1 of 1") == 1 and said.count("given up") == 1
    refusals = [line for line in said.splitlines() if line.startswith(f"gptjax: {bad.name}: ")]
    assert len(refusals) == 1 and "devices" in refusals[0]
    assert Ledger(tmp_path).rows().keys() == {good.name}


def test_executors_refuse_what_is_not_theirs(tmp_path, capsys, monkeypatch):
    for package in ("ray", "submitit"):
        needed(package, "test")
    file = tmp_path / "sweep.py"
    file.write_text("from helpers import tiny\n\ndef sweep():\n    return tiny('cache')\n")
    for options, message in (
        (["slurm", "--workers", "2"], "--workers 2 is for --executor local"),
        (["local", "--resource", "minutes=5"], "--resource minutes=5 is for --executor slurm or ray"),
        (["slurm", "--resource", "minute=5"], "--resource minute: no field 'minute'; did you mean minutes?"),
        (["slurm", "--resource", "minutes=0"], "minutes = 0 must be above 0"),
        (["slurm", "--resource", "minutes=2"], "notice_seconds 120 must be less than minutes = 2"),
        (["ray", "--resource", "cpus=0"], "must be at least 1, 0 and 0"),
        (["ray", "--resource", "gpus=64"], "a run asks for 64 GPU; this machine has 0"),
        (["slurm"], "sbatch is not on this machine"),
        (["ray"], "executor ray needs ray; make install EXTRAS=test,ray"),
    ):
        with monkeypatch.context() as patch:
            if "this machine" in message and "sbatch" in message:
                patch.setenv("PATH", str(tmp_path))
            if "needs" in message:
                patch.setattr("importlib.util.find_spec", lambda name: None)
            with pytest.raises(SystemExit) as ended:
                main(["sweep", str(file), "--dir", str(tmp_path / "out"), "--executor", *options])
        assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not Ledger(tmp_path / "out").rows()
