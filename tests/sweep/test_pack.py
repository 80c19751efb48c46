"""Runs of one shape trained together give what each gives alone, and end, fail and stop as they would alone."""

import os
import signal
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from gptjax.config import EvalConfig, InitFrom, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.run.loop import Preempted, Run, train
from gptjax.run.metrics import read_metrics
from gptjax.run.signals import catch_sigterm
from gptjax.sharding import MeshConfig
from gptjax.sweep import pack
from gptjax.sweep.execute import begin, shape, work
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.pack import Known, train_together
from gptjax.sweep.plan import SweepConfig, make_plan
from gptjax.sweep.rules import always
from gptjax.train.optim import OptimConfig

FASTER, SLOWER = 0.1, 10.0  # of a packed call, against 1 of a run alone


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return RunConfig(
        model=GPTConfig(257, 32, 16, n_layers=2, n_heads=2, init_std=0.0, bias=False),
        execution=Execution(vocab_multiple=8),
        data=DataConfig((Source("markov:states=4,documents=200"),), "bytes", cache=str(tmp_path_factory.mktemp("c"))),
        optim=OptimConfig(lr=1e-2, warmup=4, schedule="wsd", weight_decay=0.1),
        batch=8,
        steps=40,
        steps_per_call=4,
        log_every=4,
        evaluate=EvalConfig(sequences=32, batch=8, every=20),
        save=SaveConfig(every=20),
        trackers=(),
    )


@pytest.fixture
def measured(monkeypatch):
    """Set what packed calls are taken to cost; returns the sizes of those that were made."""
    made: list[int] = []

    def set_to(seconds: float) -> list[int]:
        known: dict[object, Known] = {}

        def timed(self, n, call):
            made.append(n)
            return call()

        def fixed(shape):
            times = {n: [seconds, seconds] for n in range(2, 9)} | {1: [1.0, 1.0]}
            return known.setdefault(shape, Known(times))

        monkeypatch.setattr(Known, "timed", timed)
        monkeypatch.setattr(pack, "_known", fixed)
        return made

    return set_to


def three(config):
    """Return runs that differ in seed, in rate, and in horizon."""
    rate = replace(config, seed=1, optim=replace(config.optim, lr=3e-3))
    return {"first": config, "rate": rate, "short": replace(config, seed=2, steps=24)}


def one_by_one(runs, directory):
    """Train each by itself; return where that was, and the results."""
    return directory, [train(c, directory / name) for name, c in runs.items()]


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    return one_by_one(three(config), tmp_path_factory.mktemp("alone"))


def together(runs, directory):
    with catch_sigterm() as told, ExitStack() as stack:
        opened = [stack.enter_context(Run(c, directory / name, told)) for name, c in runs.items()]
        train_together(opened, lambda i: None)
        return [run.result for run in opened]


def losses(directory):
    lines = read_metrics(directory / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def assert_alike(one, other):
    ours, theirs = np.array(losses(one)), np.array(losses(other))
    np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], rtol=2e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_pack_gives_what_its_runs_give_alone(config, alone, tmp_path, measured, mesh):
    runs = three(replace(config, mesh=mesh))
    where, expected = alone if mesh == config.mesh else one_by_one(runs, tmp_path / "alone")
    made = measured(FASTER)
    packed = together(runs, tmp_path / "together")
    assert made == 10 * [3]  # the short run, ended after 6 calls of 4 steps, keeps its place
    for ours, theirs, (name, c) in zip(packed, expected, runs.items(), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=2e-5)
        assert (ours.steps, ours.tokens, ours.seed) == (theirs.steps, theirs.tokens, c.seed)
        assert_alike(tmp_path / "together" / name, where / name)
    assert len({r.loss for r in packed}) == 3


def test_where_a_pack_is_slower_each_runs_alone_bit_for_bit(config, alone, tmp_path, measured):
    runs, (where, expected) = three(config), alone
    made = measured(SLOWER)
    found = together(runs, tmp_path)
    assert set(made) == {1}
    for name in runs:
        assert losses(tmp_path / name) == losses(where / name)
    assert [r.loss for r in found] == [r.loss for r in expected]


def test_one_that_diverges_fails_and_leaves_the_others_alone(config, alone, tmp_path, measured):
    lost = replace(config, seed=3, optim=replace(config.optim, lr=1e6))
    made = measured(FASTER)
    good, bad = together({"first": config, "lost": lost}, tmp_path / "together")
    assert good.loss == pytest.approx(alone[1][0].loss, rel=2e-5)
    assert bad.status == "failed" and "training loss" in bad.reason and 2 in made


def test_a_stopped_pack_saves_every_run_and_goes_on(config, alone, tmp_path, measured, monkeypatch):
    runs = three(config)
    measured(FASTER)
    flush = pack.Pack.answer

    def answer_and_be_terminated(self, calls):
        answers = flush(self, calls)
        if calls[0].left == 28:
            os.kill(os.getpid(), signal.SIGTERM)
        return answers

    monkeypatch.setattr(pack.Pack, "answer", answer_and_be_terminated)
    with pytest.raises(Preempted):
        together(runs, tmp_path / "together")
    monkeypatch.setattr(pack.Pack, "answer", flush)
    for name in runs:
        assert not (tmp_path / "together" / name / "result.json").exists()
        assert losses(tmp_path / "together" / name)[-1][0] == 12
    together(runs, tmp_path / "together")
    for name in runs:
        assert_alike(tmp_path / "together" / name, alone[0] / name)


def test_an_error_in_one_stops_all_at_once(config, tmp_path, measured):
    measured(FASTER)
    other = replace(config, init_from=InitFrom("nowhere", 10))
    with pytest.raises(Exception, match="nowhere"):
        together({"first": config, "other": other}, tmp_path)
    assert not (tmp_path / "first" / "result.json").exists()
    assert train(config, tmp_path / "first").status == "done"  # its lease was given back


def test_the_choice_follows_the_clock(config, monkeypatch):
    known = Known()
    p = pack.Pack()
    call = pack.Asked(None, None, None, np.zeros(4), left=400)  # type: ignore[arg-type]
    pair = {0: call, 1: call}
    assert not p._is_worth_it(pair, known)  # nothing is known yet
    known.seconds[1] = [11.0, 1.0, 1.2]  # 10 to compile, 1 a call
    assert p._is_worth_it(pair, known)  # 200 seconds lie ahead
    assert not p._is_worth_it(pair | {1: replace(call, left=40)}, known)  # 20 seconds repay no compilation
    assert not p._is_worth_it({0: call}, known)
    known.seconds[2] = [30.0, 1.9]
    assert p._is_worth_it(pair, known)
    known.seconds[2] = [30.0, 2.1]
    assert not p._is_worth_it(pair, known)


def test_what_can_be_trained_together(config):
    assert len({shape(c) for c in three(config).values()}) == 1
    others = [
        replace(config, batch=16),
        replace(config, optim=replace(config.optim, b2=0.9)),
        replace(config, model=replace(config.model, d_model=32)),
        replace(config, steps_per_call=5),
    ]
    assert len({shape(c) for c in (config, *others)}) == 5


@pytest.fixture
def sweep(config):
    return SweepConfig(
        base=replace(config, evaluate=EvalConfig(sequences=32, batch=8), save=SaveConfig(every=10**9)),
        horizons=(6e3, 12e3),
        sizes=(8, 16),
        shape=lambda width: replace(config.model, d_model=width),
        lr=1e-2,
        batch_tokens=always(256),
        tokens_per_param=(0.01, 1e4),
        min_steps=8,
        seeds=(0, 1),
    )


def test_a_sweep_packs_seeds_and_branches(sweep, tmp_path, measured, monkeypatch):
    ahead: list[int] = []
    monkeypatch.setattr("gptjax.sweep.execute.compile_ahead", lambda c: ahead.append(c.model.d_model))
    plan = make_plan(sweep)
    begin(plan, tmp_path / "alone")
    work(plan, tmp_path / "alone")
    made = measured(FASTER)
    begin(plan, tmp_path / "together")
    work(plan, tmp_path / "together", pack=8, ahead=True)
    assert ahead and ahead[0] == 8  # while the costlier size trains
    assert set(made) == {2, 4}  # two trunks of a size, then their four branches
    alone, packed = Ledger(tmp_path / "alone").rows(), Ledger(tmp_path / "together").rows()
    assert alone.keys() == packed.keys()
    for name, row in packed.items():
        assert row["loss"] == pytest.approx(alone[name]["loss"], rel=1e-4), name


def test_models_that_fill_a_device_are_trained_one_after_the_other(sweep, tmp_path, measured, monkeypatch):
    plan = make_plan(replace(sweep, sizes=(8,), horizons=(6e3,), seeds=(0, 1)))
    largest = max(run.params for run in plan.runs)
    monkeypatch.setattr("gptjax.sweep.execute.PACKED_BYTES", 12 * largest)
    made = measured(FASTER)
    begin(plan, tmp_path)
    work(plan, tmp_path, pack=8)
    assert set(made) == {1}
