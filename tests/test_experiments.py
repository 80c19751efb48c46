"""The shipped experiments: every size traces from a seed to updated weights, without memory."""

import hashlib
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from gptjax.batch import Batch
from gptjax.commands.arguments import load
from gptjax.config import RunConfig
from gptjax.estimate.footprint import footprint
from gptjax.fingerprint import fingerprint
from gptjax.sweep.plan import SweepConfig, make_plan
from gptjax.train.optim import make_optimizer
from gptjax.train.state import new_state
from gptjax.train.step import train_step
from helpers import ROOT

FOLDER = ROOT / "experiments" / "chinchilla"


@pytest.mark.parametrize("name", ["quick", "h200", "paper"])
def test_every_size_traces_a_step(name):
    runs = {run.size: run.config for run in make_plan(load(str(FOLDER / f"{name}.py"), SweepConfig, "sweep")).runs}
    for config in runs.values():
        model = config.model.build(config.execution)
        optimizer = make_optimizer(config.optim, model.axes)
        tokens = jax.ShapeDtypeStruct((2, config.model.context), np.int32)
        batch = Batch(tokens, tokens, jax.ShapeDtypeStruct(tokens.shape, np.float32))

        def step(key, batch, model=model, optimizer=optimizer):
            state = new_state(key, model, optimizer)
            return train_step(state, batch, 1e-3, model=model, optimizer=optimizer)

        state, metrics = jax.eval_shape(step, jax.random.key(0), batch)
        assert metrics["loss"].shape == () and state.step.shape == ()


def test_the_papers_sizes_divide_over_its_mesh():
    runs = {run.size: run.config for run in make_plan(load(str(FOLDER / "paper.py"), SweepConfig, "sweep")).runs}
    for size, config in runs.items():
        assert footprint(config, 256).state > 0, size


def test_the_quick_sweep_is_as_wide_as_a_law_needs():
    sweep = load(str(FOLDER / "quick.py"), SweepConfig, "sweep")
    assert len(sweep.budgets) >= 4 and max(sweep.budgets) / min(sweep.budgets) >= 30
    assert sweep.holdout >= 3 * max(sweep.budgets)
    cells = [run for run in make_plan(sweep).runs if run.role == "cell"]
    for budget in sweep.budgets:
        assert sum(run.budget == budget for run in cells) >= 5


def test_the_rates_of_mup_are_tried_at_the_same_tokens_and_both_ways_alike():
    standard, mup = (make_plan(load(str(FOLDER.parent / "mup.py"), SweepConfig, name)) for name in ("standard", "mup"))
    assert len(standard.runs) == 28 and not standard.removed
    assert len({run.tokens for run in standard.runs}) == 1 and len({run.size for run in standard.runs}) == 4
    for one, other in zip(standard.runs, mup.runs, strict=True):
        m = other.config.model
        assert one.config == replace(other.config, model=replace(m, mup_width=0))
        assert m.width_ratio == m.d_model / 64


RUNS = {
    "tiny.py:run": "e7e4736ec79890c4",
    "pods.py:chinchilla_70b": "aaa373644f5de51d",
    "pods.py:gpt3_175b": "5b2fe5fbb1c39da1",
    "pods.py:gpt3_13b": "04f2e76072ed2cbe",
    "pods.py:llama3_8b": "8f9c9a1152a3825e",
}
SWEEPS = {
    "chinchilla/quick.py:sweep": "c3cbb7a123ad8975",
    "chinchilla/h200.py:sweep": "4cda2854e4f275c0",
    "chinchilla/paper.py:sweep": "9252874b3eab0fc9",
    "mup.py:standard": "cb1ff7ce4364d632",
    "mup.py:mup": "d9491bdae3a91054",
}


@pytest.mark.parametrize("target", RUNS)
def test_a_runs_fingerprint_stays(target):
    """What was trained yesterday is found again today: these move only if an experiment asks something else."""
    assert fingerprint(load(str(FOLDER.parent / target), RunConfig, "run")) == RUNS[target]


@pytest.mark.parametrize("target", SWEEPS)
def test_a_sweeps_plan_stays(target):
    """A changed name, fingerprint or cost would make every finished run of the sweep another sweep's."""
    plan = make_plan(load(str(FOLDER.parent / target), SweepConfig, "sweep"))
    rows = [[r.name, r.role, r.parent, r.tokens, r.flops, r.seconds, fingerprint(r.config)] for r in plan.runs]
    assert (
        hashlib.sha256(json.dumps([rows, [r.reason for r in plan.removed]]).encode()).hexdigest()[:16] == SWEEPS[target]
    )
