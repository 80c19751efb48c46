"""A run on a tiny real model: resumed = uninterrupted, branch = whole, killed = nothing lost, damage noticed."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.config import EvalConfig, InitFrom, RunConfig, SaveConfig, to_json
from gptjax.data.corpora import markov_entropy
from gptjax.data.feed import prefetch
from gptjax.data.loader import DataConfig, Source, open_stores
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.run.begin import cut, make_loader
from gptjax.run.checkpoint import Checkpoints
from gptjax.run.loop import PREEMPTED, Preempted, train
from gptjax.run.metrics import read_metrics
from gptjax.run.trace import traced
from gptjax.sharding import Layout, MeshConfig
from gptjax.sweep.pack import compile_ahead
from gptjax.train.optim import OptimConfig, cooldown_start, without_schedule
from gptjax.train.programs import make_programs
from helpers import environment, until

OPTIMIZED = True
CORPUS = "markov:states=4,documents=200,length=600"


@pytest.fixture(scope="module")
def config(cache):
    return RunConfig(
        model=GPTConfig(vocab_size=257, context=32, d_model=16, n_layers=2, n_heads=2, init_std=0.0, bias=False),
        data=DataConfig(sources=(Source(CORPUS),), tokenizer="bytes", cache=cache),
        execution=Execution(vocab_multiple=8),
        optim=OptimConfig(lr=2e-2, warmup=4, schedule="wsd", weight_decay=0.0),
        batch=8,
        steps=40,
        steps_per_call=4,
        log_every=4,
        evaluate=EvalConfig(sequences=32, batch=8, every=20),
        save=SaveConfig(every=20, keep=3),
        trackers=(),
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The directory of a run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(config, directory)
    return directory


def weights(directory: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(directory.absolute() / "checkpoints" / str(step) / "default")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Compare weights, moments and metrics bit for bit, all but the clock."""
    ours, theirs = weights(a, step), weights(b, step)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)

    def lines(directory: Path) -> list[dict[str, float]]:
        rows = read_metrics(directory / "metrics.jsonl")
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]

    assert lines(a) == lines(b)


def test_the_loss_falls_to_the_entropy_and_not_below(config, tmp_path):
    longer = replace(config, steps=400, evaluate=replace(config.evaluate, sequences=128))
    result = train(longer, tmp_path / "run")
    entropy = markov_entropy(CORPUS)
    assert result.status == "done"
    assert entropy - 3 * result.loss_se < result.loss < entropy + 0.1
    assert result.bits_per_byte == pytest.approx(result.loss / np.log(2), rel=0.01)  # bytes are tokens, but for bos


def test_resumed_is_uninterrupted_bit_for_bit(config, whole, tmp_path, monkeypatch):
    save = Checkpoints.save

    def save_and_be_terminated(self, step, *values):
        save(self, step, *values)
        if step == 20:
            monkeypatch.undo()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("gptjax.run.loop.Checkpoints.save", save_and_be_terminated)
    with pytest.raises(Preempted) as stop:
        train(config, tmp_path / "twice")
    assert stop.value.code == PREEMPTED == 75
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN  # programs that are started inherit that one
    assert not (tmp_path / "twice" / "result.json").exists()
    train(config, tmp_path / "twice")
    assert_same_run(whole, tmp_path / "twice", 40)


def test_a_branch_is_the_whole_run_bit_for_bit(config, whole, tmp_path):
    start = cooldown_start(config.optim, config.steps)
    assert start == 32
    trunk = replace(config, steps=36, optim=replace(config.optim, schedule="constant"), save=SaveConfig(at=(start,)))
    train(trunk, tmp_path / "trunk")
    branch = train(replace(config, init_from=InitFrom("trunk", start)), tmp_path / "branch")
    ours, theirs = weights(tmp_path / "branch", 40), weights(whole, 40)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    result = train(config, whole)
    assert branch.loss == result.loss and branch.tokens == result.tokens
    assert branch.tokens_paid == (40 - start) * config.tokens_per_step


def few_steps(config: RunConfig, mesh: MeshConfig, devices: int, **settings):
    """Take three steps over a mesh of so many devices; return their losses and gradient norms."""
    layout = Layout(make_mesh(mesh, jax.devices()[:devices]), config.rules)
    optim, accumulate = without_schedule(config.optim), settings.get("accumulate", 1)
    programs = make_programs(config.model, config.execution, optim, layout, 0.0, accumulate)
    loader = make_loader(config, open_stores(config.data))
    (batches,) = prefetch(loader, [range(3)], programs.batches)
    _, metrics = programs.train(programs.init(jax.random.key(0)), batches, np.full(3, 1e-2, np.float32))
    return {name: np.asarray(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def one(config):
    return few_steps(config, MeshConfig(), 1)


MESHES = [MeshConfig(data=8), MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)]


@pytest.mark.parametrize("mesh", MESHES, ids=["data", "fsdp", "mixed"])
def test_eight_devices_train_as_one(config, one, mesh):
    many = few_steps(config, mesh, 8)
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=2e-5, err_msg=name)


def test_accumulation_changes_nothing_but_rounding(config, one):
    parts = few_steps(config, MeshConfig(), 1, accumulate=4)
    for name in one:
        np.testing.assert_allclose(parts[name], one[name], rtol=2e-5, err_msg=name)


def test_kill_9_loses_nothing_but_what_followed_the_last_checkpoint(config, tmp_path):
    constant, seldom = replace(config.optim, schedule="constant"), replace(config.evaluate, every=200)
    config = replace(config, steps=400, optim=constant, evaluate=seldom, save=SaveConfig(every=50))
    train(config, tmp_path / "whole")
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    program = (
        "import sys, pathlib\n"
        "from gptjax.config import load_config\n"
        "from gptjax.run.loop import train\n"
        "train(load_config(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "config.json"), str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment())
    seals = tmp_path / "killed" / "checkpoints" / "seals"
    try:
        until(lambda: list(seals.glob("[0-9]*.json")))
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    train(config, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed", 400)


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "unsealed"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(config, whole, tmp_path, harm, capsys):
    run = shutil.copytree(whole, tmp_path / "harmed")
    (run / "result.json").unlink()
    step = run / "checkpoints" / "40"
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if harm == "flip":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif harm == "truncate":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif harm == "empty":
        for path in sorted(step.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    else:
        (run / "checkpoints" / "seals" / "40.json").unlink()
    train(config, run)
    if harm != "unsealed":
        assert "taking an older one" in capsys.readouterr().err
    assert_same_run(whole, run, 40)


@given(
    every=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    at=st.lists(st.integers(0, 70), max_size=3),
    steps=st.integers(1, 60),
    data=st.data(),
)
def test_calls_cover_the_steps_end_where_something_is_due_and_are_those_of_the_whole_run(every, at, steps, data):
    save = SaveConfig(every=every[1], at=tuple(at))
    config = RunConfig(steps=steps, steps_per_call=every[0], save=save, evaluate=EvalConfig(every=every[2]),
                       optim=OptimConfig(warmup=0))  # fmt: skip
    calls = list(cut(config, 0))
    assert [step for call in calls for step in call] == list(range(steps))
    ends = {call.stop for call in calls}
    assert ends == {n for n in range(1, steps + 1) if n == steps or n in at or any(e and n % e == 0 for e in every)}
    first = data.draw(st.sampled_from([0, *ends]))
    assert list(cut(config, first)) == [call for call in calls if call.start >= first]


def test_a_run_of_any_length_is_cut_as_it_goes():
    longest = RunConfig(steps=2**31 - 1, save=SaveConfig(every=1), optim=OptimConfig(warmup=0))
    assert next(iter(cut(longest, 0))) == range(1)


INTERRUPT = """
import os, signal, sys, threading, time
from pathlib import Path
from gptjax.cli import main
from gptjax.run import loop
from gptjax.run.checkpoint import Checkpoints

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell may ignore it
save, pid = Checkpoints.save, os.getpid()
def save_and_signal(self, step, *values):
    save(self, step, *values)
    if step == 20:
        if sys.argv[3] == "INT":
            signal.raise_signal(signal.SIGINT)
        else:
            loop.hosts.preempted([])
            def storm():
                while True:
                    os.kill(pid, signal.SIGTERM)
                    time.sleep(0.002)
            os.kill(pid, signal.SIGTERM)
            threading.Thread(target=storm, daemon=True).start()
Checkpoints.save = save_and_signal
main(["train", sys.argv[1], "--dir", sys.argv[2]])
"""


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_who_is_told_to_stop_says_what_is_saved_whatever_else_comes(config, whole, tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    file = tmp_path / "experiment.py"
    file.write_text(f"import pathlib\nfrom gptjax.config import load_config\n"
                    f"def run(): return load_config(pathlib.Path({str(tmp_path / 'config.json')!r}))\n")  # fmt: skip
    command = [sys.executable, "-c", INTERRUPT, str(file), str(tmp_path / "run"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if name == "INT":
        assert done.returncode == 130, done.stderr
    else:
        assert done.returncode == PREEMPTED, done.stderr
    said = re.search(r"run was (\w+).*: step (\d+) of 40 is saved; run the same command again to go on\n$", done.stderr)
    assert said and said[1] == {"INT": "interrupted", "TERM": "stopped"}[name] and 20 < int(said[2]) < 40
    assert "Traceback" not in done.stderr
    train(config, tmp_path / "run")
    assert_same_run(whole, tmp_path / "run", 40)


def test_divergence_is_a_result_with_its_reason(config, tmp_path):
    wild = replace(config, optim=replace(config.optim, lr=1e6))
    result = train(wild, tmp_path / "run")
    assert result.status == "failed" and "loss" in result.reason and result.loss is None
    assert train(wild, tmp_path / "run") == result


def test_a_run_killed_between_its_last_checkpoint_and_its_result_is_finished(config, whole, tmp_path):
    first = train(config, whole)
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    again = train(config, tmp_path / "run")
    assert (again.loss, again.loss_se, again.evals) == (first.loss, first.loss_se, first.evals)


def test_a_finished_run_is_not_trained_again(config, tmp_path):
    first = train(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert train(config, tmp_path / "run") == first
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before


def test_bad_runs_are_refused_before_anything_is_written(config, tmp_path):
    bad = {
        "batch": replace(config, batch=6),
        "vocab_size": replace(config, model=replace(config.model, vocab_size=256)),
        "init_from": replace(config, init_from=InitFrom("nobody", 4)),
        "divisible": replace(config, mesh=MeshConfig(data=1, tensor=8)),
    }
    for words, run in bad.items():
        with pytest.raises(BadInput, match=words):
            train(run, tmp_path / "run")
        assert not (tmp_path / "run").exists(), words
    train(config, tmp_path / "other")
    with pytest.raises(BadInput, match="another config"):
        train(replace(config, seed=1), tmp_path / "other")


def test_tensorboard_gets_every_metric(config, tmp_path):
    train(replace(config, trackers=("tensorboard",)), tmp_path / "run")
    (events,) = (tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"eval/markov" in events.read_bytes()


def test_a_profiled_run_leaves_a_trace_and_is_the_same_run(config, whole, tmp_path):
    result = train(config, tmp_path / "profiled", profile=True)
    assert result.loss == train(config, whole).loss
    (trace,) = (tmp_path / "profiled" / "profile").glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("PjitFunction(train)" in event.get("name", "") for event in events)


@pytest.mark.parametrize(
    ("calls", "taken", "recorded"),
    [(10, 10, range(2, 7)), (4, 4, range(2, 4)), (1, 1, range(1)), (10, 4, range(2, 4))],
)
def test_calls_after_the_first_are_recorded_also_when_a_run_ends_early(calls, taken, recorded, monkeypatch, tmp_path):
    open_at: list[int] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: open_at.append(1))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: open_at.pop())
    batches = traced(iter(range(calls)), iter([range(1)] * calls), tmp_path)
    seen = [batch for _, batch in zip(range(taken), batches, strict=False) if open_at]
    batches.close()
    assert seen == list(recorded) and not open_at


def test_what_is_compiled_ahead_is_not_compiled_again(config, tmp_path, caplog):
    other = replace(config, z_loss=1e-3, steps=8, evaluate=EvalConfig(sequences=24, batch=8))  # programs of its own

    def compiled() -> set[str]:
        names = {record.getMessage().partition("jit(")[2].partition(")")[0] for record in caplog.records}
        caplog.clear()
        return names & {"train", "evaluate", "init"}

    with jax.log_compiles():
        compile_ahead(other)
        assert compiled() >= {"train", "evaluate"}
        train(other, tmp_path / "run")
        assert not compiled()
