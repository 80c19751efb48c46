"""A sweep worked on by several machines: each run is done once, as if undisturbed, whoever is killed or stands still.

Machines are processes that say they are others. gs:// is a server of this machine (fake_gcs.py).
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fake_gcs
from gptjax.errors import BadInput
from gptjax.jobs import leases
from gptjax.run.checkpoint import damage, sealed_steps
from gptjax.run.loop import train
from gptjax.run.metrics import read_metrics
from gptjax.sweep.follow import status
from gptjax.sweep.plan import Plan
from helpers import environment, losses, needed, small, until, written

MACHINE = """
import sys
from gptjax.jobs import leases
leases.BEAT_SECONDS, leases.LEASE_SECONDS = 0.2, float(sys.argv[4])
leases.machine = lambda: sys.argv[3]
from gptjax.jobs.storage import folder
from gptjax.sweep.local import execute
from helpers import small
execute(small(sys.argv[1]), folder(sys.argv[2]))
"""


def machine(name: str, cache: str, where: str | Path, lease_seconds: float = 2.0, **env: str) -> subprocess.Popen:
    """Start a machine that works on the sweep."""
    command = [sys.executable, "-c", MACHINE, cache, str(where), name, str(lease_seconds)]
    return subprocess.Popen(command, env=environment(devices=1, **env), stderr=subprocess.PIPE, text=True)


def ends_well(process: subprocess.Popen) -> str:
    """Wait for a machine, and return what it said."""
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    return said


def steps(directory: Path, run: str) -> int:
    return max((line["step"] for line in read_metrics(directory / "runs" / run / "metrics.jsonl")), default=0)


def curve(directory: Path, run: str) -> list[tuple[int, float]]:
    lines = read_metrics(directory / "runs" / run / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def plan(cache) -> Plan:
    return small(cache)


@pytest.fixture(scope="module")
def quiet(cache, tmp_path_factory) -> Path:
    """Give the sweep as one machine does it, undisturbed."""
    directory = tmp_path_factory.mktemp("quiet")
    ends_well(machine("quiet", cache, directory))
    return directory


def check_as(quiet: Path, directory: Path, plan: Plan) -> None:
    """Check that each run has its one row, and that rows, curves and checkpoints are those of a quiet sweep."""
    assert sorted(written(directory)) == sorted(run.name for run in plan.runs)
    assert losses(directory) == losses(quiet)
    for run in plan.runs:
        assert curve(directory, run.name) == curve(quiet, run.name)
        saved = directory / "runs" / run.name / "checkpoints"
        assert sealed_steps(saved) and not [wrong for step in sealed_steps(saved) if (wrong := damage(saved, step))]


def test_a_machine_takes_over_from_one_that_was_killed(cache, plan, quiet, tmp_path):
    first = plan.runs[0].name
    a = machine("a", cache, tmp_path)
    until(lambda: steps(tmp_path, first) >= 60)
    b = machine("b", cache, tmp_path)
    a.kill()
    a.communicate()
    ends_well(b)
    check_as(quiet, tmp_path, plan)


def test_a_machine_that_stood_still_leaves_its_run_to_who_took_it_over(cache, plan, quiet, tmp_path):
    first = plan.runs[0].name
    a = machine("a", cache, tmp_path, 1e9)
    until(lambda: steps(tmp_path, first) >= 60)
    a.send_signal(signal.SIGSTOP)
    b = machine("b", cache, tmp_path)
    lease = tmp_path / "runs" / first / "lease"
    until(lambda: leases._newest(lease)[1]["machine"] == "b")
    a.send_signal(signal.SIGCONT)
    assert f"{first} was taken over by another process" in ends_well(a)
    ends_well(b)
    check_as(quiet, tmp_path, plan)


def test_a_machine_that_wakes_when_all_is_done_changes_nothing(cache, plan, quiet, tmp_path):
    first = plan.runs[0].name
    a = machine("a", cache, tmp_path)
    until(lambda: steps(tmp_path, first) >= 60)
    a.send_signal(signal.SIGSTOP)
    ends_well(machine("b", cache, tmp_path))
    before = written(tmp_path), contents(tmp_path)
    a.send_signal(signal.SIGCONT)
    assert f"{first} was taken over by another process" in ends_well(a)
    assert (written(tmp_path), contents(tmp_path)) == before
    check_as(quiet, tmp_path, plan)


def contents(directory: Path) -> dict[str, bytes]:
    """Read what counts of a sweep: not its leases, nor what Orbax wrote besides the sealed steps."""
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    counted = (path for path in files if path.parent.name in ("seals", "ledger") or len(path.parts) <= 3)
    return {str(path): (directory / path).read_bytes() for path in counted}


def test_a_sweep_goes_on_where_its_folder_was_copied(cache, plan, quiet, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    a = machine("a", cache, here)
    until(lambda: steps(here, plan.runs[0].name) >= 60)
    a.kill()
    a.communicate()
    shutil.move(here, there)
    assert "1 running" in status(there)
    ends_well(machine("b", cache, there))
    check_as(quiet, there, plan)


def test_a_run_held_on_another_machine_is_refused_and_one_given_up_there_is_taken(plan, tmp_path, monkeypatch):
    run = plan.runs[0]
    directory, quiet = tmp_path / run.name, train(run.config, tmp_path / "quiet")
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    with monkeypatch.context() as there:
        there.setattr(leases, "machine", lambda: "another")
        with leases.hold(directory / "lease") as lease:
            there.undo()
            with pytest.raises(BadInput, match="is being trained by another process"):
                train(run.config, directory)
            lease.over.set()  # it beats no more
            monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
            assert train(run.config, directory).loss == quiet.loss


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    needed("gcsfs", "gcs")
    server = fake_gcs.serve()
    yield fake_gcs.environment(server)
    server.shutdown()


def test_a_sweep_in_a_bucket_with_a_machine_killed(bucket, cache, plan, quiet, tmp_path):
    first, where = plan.runs[0].name, "gs://bucket/a sweep"
    prefix = "a sweep/"

    def there(path: str) -> bool:
        return ("bucket", prefix + path) in fake_gcs.objects

    a = machine("a", cache, where, **bucket)
    until(lambda: there(f"runs/{first}/checkpoints/seals/50.json"))
    a.kill()
    a.communicate()
    assert not there(f"ledger/{first}.json")
    ends_well(machine("b", cache, where, **bucket))
    for (_, name), (content, _) in fake_gcs.objects.copy().items():
        if name.startswith(prefix):
            path = tmp_path / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    check_as(quiet, tmp_path, plan)
    program = "import sys; from gptjax.cli import main; main(sys.argv[1:])"
    command, more = [sys.executable, "-c", program], {"env": os.environ | bucket, "capture_output": True, "text": True}
    assert f"{len(plan.runs)} done" in subprocess.run([*command, "status", where], **more).stdout
    assert "Traceback" not in subprocess.run([*command, "fit", where, "--bootstrap", "20"], **more).stderr
    assert there("runs.csv") and there("curves.csv")
