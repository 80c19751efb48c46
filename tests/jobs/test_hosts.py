"""Several real processes train one run: the same curve whatever their number, killed and restarted on another."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.jobs.hosts import PREEMPTED, job_settings
from gptjax.run.metrics import read_metrics

RUN = """
from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.data.objectives import Masked
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.sharding import MeshConfig
from gptjax.train.optim import OptimConfig

def run():
    return RunConfig(
        model=GPTConfig(vocab_size=257, context=32, d_model=16, n_layers=2, n_heads=2, init_std=0.0),
        execution=Execution(vocab_multiple=8),
        data=DataConfig((Source("markov:states=4,documents=200,length=600"),), tokenizer="bytes", cache=CACHE),
        optim=OptimConfig(lr=2e-2, warmup=4), batch=8, steps=STEPS, steps_per_call=4, log_every=4,
        evaluate=EvalConfig(sequences=32, batch=8, every=12), save=SaveConfig(every=12), trackers=(),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    )
"""
DEVICES = 8
JOBS: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def leave_nothing_running():
    yield
    for process in JOBS:
        process.kill()


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


class Job:
    """`gptjax train` in so many processes, with eight devices in all."""

    def __init__(self, file: Path, directory: Path, processes: int, *, own: dict[int, list[str]] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        devices = DEVICES // processes
        env = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PJRT_NPROC": str(4 * devices),
            "GPTJAX_COORDINATOR": address,
            "GPTJAX_PROCESSES": str(processes),
            "GPTJAX_SILENT_SECONDS": "10",
        }
        start = [sys.executable, "-m", "gptjax.cli", "train", str(file), "--dir", str(directory)]
        self.directory = directory
        self.processes = [
            subprocess.Popen(
                [*start, *(own or {}).get(i, [])],
                env=env | {"GPTJAX_PROCESS": str(i)},
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]
        JOBS.extend(self.processes)

    def until(self, step: int) -> None:
        """Wait for the metrics of a step."""
        until(lambda: any(line["step"] >= step for line in read_metrics(self.directory / "metrics.jsonl")))

    def end(self) -> list[tuple[int, str]]:
        """Wait for all; return each one's exit code and errors, without what gloo and XLA say."""
        ends = []
        for process in self.processes:
            _, errors = process.communicate(timeout=300)
            ours = "\n".join(line for line in errors.splitlines() if line.startswith("gptjax: "))
            ends.append((process.returncode, ours))
        return ends


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    path = folder / "run.py"
    path.write_text(RUN.replace("CACHE", repr(str(folder / "cache"))).replace("STEPS", "28"))
    (folder / "long.py").write_text(path.read_text().replace("steps=28", "steps=4000"))
    return path


def curve(directory: Path) -> dict[tuple[int, str], float]:
    lines = read_metrics(directory / "metrics.jsonl")
    return {(line["step"], k): v for line in lines for k, v in line.items() if "loss" in k}


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory):
    """The curve of one process with eight devices."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    assert Job(file, directory, 1).end() == [(0, "")]
    return curve(directory)


def assert_same_curve(ours, theirs):
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-5)


@pytest.mark.parametrize("service", ["", "public"])
def test_two_processes_give_the_curve_of_one(service, file, tmp_path, alone, monkeypatch):
    """Over jax's own key-value store, and by public functions of jax alone."""
    monkeypatch.setenv("GPTJAX_JOBS", service)
    ends = Job(file, tmp_path / "run", 2).end()
    assert ends == [(0, "gptjax: 2 processes with [4, 4] devices"), (0, "")]
    assert_same_curve(curve(tmp_path / "run"), alone)


def test_what_is_drawn_is_the_same_in_any_number_of_processes(file, tmp_path):
    """Each draws the masks of its own rows, and all draw those of a process that has every row."""
    text = file.read_text().replace("vocab_size=257", "vocab_size=258").replace("steps=28", "steps=12")
    masked = file.with_name("masked.py")
    masked.write_text(text.replace('tokenizer="bytes"', 'tokenizer="bytes", objective=Masked()'))
    for processes in (1, 2):
        assert [code for code, _ in Job(masked, tmp_path / str(processes), processes).end()] == [0] * processes
    assert_same_curve(curve(tmp_path / "2"), curve(tmp_path / "1"))


def test_one_of_four_is_killed_and_two_continue_the_curve(file, tmp_path, alone):
    job = Job(file, tmp_path / "run", 4)
    job.until(16)
    until(lambda: (tmp_path / "run" / "checkpoints" / "seals" / "12.json").is_file())
    job.processes[2].kill()
    ends = job.end()
    before = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["step"] <= 12]
    assert ends[2][0] == -signal.SIGKILL
    for code, errors in ends[:2] + ends[3:]:
        assert code == PREEMPTED
        assert "gptjax: process 2 stopped: not heard of for 10 s; run the same command again" in errors
    assert [code for code, _ in Job(file, tmp_path / "run", 2).end()] == [0, 0]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[: len(before)] == before  # it went on, and began not anew
    assert_same_curve(curve(tmp_path / "run"), alone)


def test_the_death_of_the_first_is_a_line_too(file, tmp_path):
    job = Job(file.with_name("long.py"), tmp_path / "run", 2)
    job.until(8)
    job.processes[0].kill()
    code, errors = job.end()[1]
    assert code == PREEMPTED
    assert "process 0 stopped: it is gone, and with it the job's coordinator; run the same command again" in errors


def test_what_one_refuses_stops_all_with_its_line(file, tmp_path):
    ends = Job(file, tmp_path / "run", 2, own={1: ["--set", "seed=1"]}).end()
    assert [code for code, _ in ends] == [2, 2]
    assert (
        "gptjax: config, data or jax of process 1 is not that of process 0; give all processes the same" in ends[0][1]
    )
    assert not (tmp_path / "run").exists()


def test_a_notice_to_one_saves_all_at_the_same_step(file, tmp_path):
    job = Job(file.with_name("long.py"), tmp_path / "run", 2)
    job.until(8)
    job.processes[1].send_signal(signal.SIGTERM)
    assert [code for code, _ in job.end()] == [PREEMPTED, PREEMPTED]
    saved = max(int(path.stem) for path in (tmp_path / "run" / "checkpoints" / "seals").glob("*.json"))
    assert saved == read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] < 4000


def test_a_job_is_found_in_the_environment():
    nothing = ("", 0, -1)
    assert job_settings(nothing, {}) is None
    assert job_settings(nothing, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    slurm = {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    who = {"num_processes": 4, "process_id": 3}
    assert job_settings(nothing, slurm | gpus) == {**who, "local_device_ids": [4, 5, 6, 7]}
    assert job_settings(nothing, slurm | {"CUDA_VISIBLE_DEVICES": "5"}) == {**who, "local_device_ids": [0]}
    alone = slurm | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}
    assert job_settings(nothing, alone | gpus) == {**who, "local_device_ids": list(range(8))}
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert job_settings(nothing, mpi) == {"num_processes": 2, "process_id": 1}
    assert job_settings(("auto", 0, -1), {}) == {}
    for given in (("host:1", 2, -1), ("host:1", 2, 2), ("host", 2, 0), ("", 2, 0)):
        with pytest.raises(BadInput, match="are given together"):
            job_settings(given, {})
    with pytest.raises(BadInput, match="'x' in the environment is not a whole number"):
        job_settings(nothing, {"SLURM_STEP_NUM_TASKS": "x"})
