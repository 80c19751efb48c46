"""A plan is a value that adds up: what it costs, removes, refuses, and what its rules are asked."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.loop import thin_curve
from gptjax.sweep.plan import Plan, Speed, describe, holdout_run, make_plan
from gptjax.sweep.rules import always, of_layers, step_law_lr
from helpers import shape, tiny

BUDGETS = (2e8, 4e8, 8e8)


@pytest.fixture(scope="module")
def sweep(cache):
    return tiny(cache)


def test_the_plan_is_a_tree_whose_costs_add_up(sweep):
    made = make_plan(sweep)
    names = [run.name for run in made.runs]
    assert len(set(names)) == len(names)
    by_name = {run.name: run for run in made.runs}
    for run in made.runs:
        c = run.config
        if run.role == "trunk":
            assert c.optim.schedule == "constant" and c.steps == max(c.save.at)
            continue
        trunk = by_name[run.parent]
        assert names.index(run.parent) < names.index(run.name)
        assert c.init_from.step in trunk.config.save.at and c.init_from.step % c.steps_per_call == 0
        assert replace(c.optim, schedule="constant", cooldown=0.2) == replace(trunk.config.optim, cooldown=0.2)
        assert run.flops == pytest.approx(run.budget, rel=0.05)
        assert run.flops_paid == pytest.approx(run.flops * (1 - c.init_from.step / c.steps))
        assert c.steps - c.init_from.step == pytest.approx(0.2 * c.steps, abs=c.steps_per_call)
    cells = len([run for run in made.runs if run.role == "cell"])
    assert cells + len(made.removed) == len(sweep.budgets) * len(sweep.sizes)
    paid, credited = (sum(getattr(run, what) for run in made.runs) for what in ("flops_paid", "flops"))
    assert paid < credited
    text = describe(sweep, 1)
    assert all(run.name in text for run in made.runs) and f"{cells} cells" in text


def test_cosine_cells_stand_alone_and_seeds_multiply_them(cache):
    cosine = replace(tiny(cache, "cosine"), seeds=(0, 1))
    made = make_plan(cosine)
    assert {run.role for run in made.runs} == {"cell"} and all(run.parent is None for run in made.runs)
    assert len(made.runs) == 2 * len([run for run in make_plan(replace(cosine, seeds=(0,))).runs])


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_factors_multiply_the_rules_rate_and_batch(cache, schedule):
    plain = replace(tiny(cache, schedule), sizes=(8,), holdout=3e9, holdout_sizes=(8,))
    tried = replace(plain, lr_factors=(0.5, 1.0, 2.0), batch_factors=(1.0, 0.5), seeds=(0, 1))
    made, one = make_plan(tried), {run.name: run for run in make_plan(plain).runs}
    runs = {run.name: run for run in made.runs}
    assert len(runs) == 3 * 2 * 2 * len(one)
    of_batch = {factor: make_plan(replace(plain, batch_tokens=always(128 * factor))) for factor in (1.0, 0.5)}
    for batch, lr, seed in itertools.product((1.0, 0.5), (0.5, 1.0, 2.0), (0, 1)):
        suffix = "".join((f"-lr{lr:g}" * (lr != 1), f"-b{batch:g}" * (batch != 1), f"-s{seed}" * (seed != 0)))
        for alone in of_batch[batch].runs:
            c, expected = runs[alone.name + suffix].config, alone.config
            if expected.init_from:
                assert runs[c.init_from.run].config.optim.lr == c.optim.lr
                assert runs[c.init_from.run].config.batch == c.batch
            expected = replace(expected, seed=seed, optim=replace(expected.optim, lr=lr * expected.optim.lr))
            assert replace(c, init_from=None) == replace(expected, init_from=None)
    assert holdout_run(tried, 5e3) == holdout_run(plain, 5e3)
    text = describe(tried, 1)
    assert all(name in text for name in runs) and "budget 2e08: 12 cells" in text


def test_cells_removed_at_one_batch_only_are_said(sweep):
    made = make_plan(replace(sweep, sizes=(8,), min_steps=100, batch_factors=(1.0, 8.0)))
    assert {removed.size for removed in made.removed if removed.budget == max(BUDGETS)} == {"d8-b8"}
    for bad in ({"lr_factors": ()}, {"batch_factors": (1.0, 0.0)}):
        with pytest.raises(BadInput, match="above 0"):
            replace(sweep, **bad)


def test_what_limits_and_rounding_remove_is_said(sweep):
    made = make_plan(replace(sweep, tokens_per_param=(3.0, 30.0), min_steps=30))
    reasons = " ".join(removed.reason for removed in made.removed)
    assert "tokens per parameter, outside 3 to 30" in reasons
    coarse = make_plan(replace(sweep, base=replace(sweep.base, steps_per_call=40)))
    assert "misses its budget" in " ".join(removed.reason for removed in coarse.removed)


def test_a_plan_is_a_value(sweep, tmp_path):
    made = make_plan(sweep)
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made


def test_bad_sweeps_are_refused(sweep):
    with pytest.raises(BadInput, match="budgets or horizons, not both"):
        replace(sweep, budgets=())
    with pytest.raises(BadInput, match="holdout_sizes"):
        replace(sweep, holdout=1e10)
    with pytest.raises(BadInput, match="no cell is left"):
        make_plan(replace(sweep, min_steps=10**9))
    with pytest.raises(BadInput, match="convention 'mine'"):
        make_plan(replace(sweep, convention="mine"))


ODD = {
    "budgets": [math.inf, -1.0, math.nan],
    "horizons": [math.inf],
    "seeds": [-1, 2**63, 1.5],
    "lr_factors": [0.0, math.nan],
    "batch_factors": [True],
}


WRONG = [
    *(pytest.param({name: (value,)}, name, id=f"{name}={value}") for name, values in ODD.items() for value in values),
    *(pytest.param({name: value}, name, id=f"{name}{i}")
      for name in ("lr", "batch_tokens", "b2", "warmup_tokens")
      for i, value in enumerate(
          (math.nan, math.inf, -1, True, "fast", lambda n, d: None, lambda n, d: math.nan, lambda n: n))),
    *(pytest.param({"shape": value}, "shape", id=f"shape{i}")
      for i, value in enumerate((3, lambda size: None, lambda size: size // 0))),
    *(pytest.param({"sizes": value}, "size", id=f"sizes={value}")
      for value in ("16,32", 16, ([16],), ("../x",))),
    pytest.param({"sizes": ("a",)}, "shape('a')", id="sizes=a"),
    *(pytest.param({name: value}, name, id=f"{name}={value}")
      for name in ("min_steps", "workers", "pack") for value in (0, 1.5, True)),
    *(pytest.param({"tokens_per_param": value}, "tokens_per_param", id=f"{value}")
      for value in ((5,), (9, 5), (1, "2"))),
    pytest.param({"holdout": math.nan}, "holdout", id="holdout"),
    pytest.param({"batch_tokens": 0}, "batch_tokens", id="no batch"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "name"), WRONG)
def test_an_odd_value_of_any_field_is_one_line_that_names_it(sweep, change, name):
    with pytest.raises(BadInput) as refusal:
        make_plan(replace(sweep, **({"budgets": ()} if "horizons" in change else {}) | change))
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_rule_is_refused_with_its_size_and_its_value(sweep):
    with pytest.raises(
        BadInput, match=r"lr gives -0.5 at size d8 \(N = [\d,]+, D = .*must give a finite number above 0"
    ):
        make_plan(replace(sweep, lr=lambda n, d: 0.01 if n < 2900 else -0.5))
    with pytest.raises(BadInput, match=r"lr at size d4.*fails with KeyError: 'd4' \(test_plan.py:\d+\)"):
        make_plan(replace(sweep, lr=lambda n, d: {}["d4"]))
    for bad in ({"flops_per_second": 0.0}, {"flops_per_second": math.inf}, {"seconds_per_run": -1.0}):
        with pytest.raises(BadInput, match=next(iter(bad))):
            Speed(**{"flops_per_second": 1e9} | bad)


def test_a_rule_is_given_the_n_that_its_paper_counts(sweep):
    seen = []

    @of_layers
    def rule(n, d):
        seen.append(n)
        return 1e-3

    cell = make_plan(replace(sweep, sizes=(8,), lr=rule, b2=lambda n, d: seen.append(n) or 0.9)).runs[-1]
    counted = cell.config.model.cost(cell.config.model.context)
    assert set(seen) == {counted.non_embedding, counted.total} and counted.non_embedding < counted.total
    with_step_law = make_plan(replace(sweep, sizes=(8,), budgets=BUDGETS[:1], lr=step_law_lr)).runs[-1]
    tokens = BUDGETS[0] / 6 / counted.total
    assert with_step_law.config.optim.lr == pytest.approx(step_law_lr(counted.non_embedding, tokens))


def test_a_plans_cost_grows_with_its_cells_alone(sweep):
    """Each size is asked of `shape` once, and each cell of a rule a fixed number of times."""
    asked = Counter()

    def counting(name, function):
        return lambda *args: (asked.update([name]), function(*args))[1]

    def asked_for(n):
        asked.clear()
        budgets = tuple(np.geomspace(2e8, 8e8, n))
        cells = len(
            make_plan(replace(sweep, budgets=budgets, shape=counting("shape", shape), lr=counting("lr", sweep.lr))).runs
        )
        return asked["shape"], asked["lr"] / cells

    (shapes, one), (more_shapes, other) = asked_for(10), asked_for(40)
    assert shapes == more_shapes == len(sweep.sizes) and other <= 1.2 * one


def test_the_held_out_run_takes_the_nearest_size(sweep):
    run = holdout_run(replace(sweep, holdout=3e9, holdout_sizes=(8, 16, 24)), target_params=5e3)
    assert run.size == "d16" and run.flops == pytest.approx(3e9, rel=0.05) and run.config.init_from is None


def test_a_row_is_written_once_and_a_run_held_by_one(tmp_path):
    ledger = Ledger(tmp_path)
    first, second = ({"run": "a", "role": "cell", "status": "failed", "reason": why} for why in ("nan", "inf"))
    assert ledger.append(first)
    assert not ledger.append(second)
    assert ledger.rows() == Ledger(tmp_path).rows() == {"a": first}
    ledger.forget("a")
    assert ledger.rows() == {} and ledger.append(second)
    assert ledger.rows() == {"a": second}
    with ledger.try_lock("a") as first, ledger.try_lock("a") as second, ledger.try_lock("b") as other:
        assert first and not second and other and ledger.is_locked("a")
    assert not ledger.is_locked("a") and not ledger.is_locked("c") and not (tmp_path / "runs" / "c").exists()


def test_a_thinned_curve_keeps_its_end_and_its_mean():
    tokens = np.arange(1, 20_001) * 512.0
    points = np.stack([tokens, 2 + tokens**-0.3], axis=1)
    for start, kept in ((0, points), (tokens[15_999], points[16_000:])):
        thin = thin_curve(kept, start)
        assert 20 <= len(thin) < 200 and thin[-1, 0] == tokens[-1]
        assert np.average(thin[:, 1], weights=np.diff(thin[:, 0], prepend=start)) == pytest.approx(kept[:, 1].mean())
    assert len(thin_curve(points[:0])) == 0 and len(thin_curve(points[:1])) == 1


def test_rules_see_their_own_horizon(cache):
    seen = []

    def lr(n, d):
        seen.append(round(6 * n * d, -6))
        return 1e-2

    made = make_plan(replace(tiny(cache, "cosine"), sizes=(8,), lr=lr))
    assert sorted(set(seen)) == list(BUDGETS) and len(made.runs) == 3
    seen.clear()
    make_plan(replace(tiny(cache), sizes=(8,), lr=lr))
    assert set(seen) == {max(BUDGETS)}


def test_one_warmup_serves_a_trunk_and_its_branches_and_ends_before_the_first(sweep):
    made = make_plan(replace(sweep, warmup_tokens=1e9))
    for trunk in (run for run in made.runs if run.role == "trunk"):
        branches = [run.config for run in made.runs if run.parent == trunk.name]
        assert {c.optim.warmup for c in branches} == {trunk.config.optim.warmup}
        assert trunk.config.optim.warmup <= min(c.init_from.step for c in branches) / 7


def test_a_row_of_before_results_told_their_objective_is_one_of_causal_prediction(tmp_path):
    """A ledger of an older version lacks fields that results have gained; any other that lacks is refused."""
    lengths = {"tokens": 10, "tokens_paid": 10, "steps": 1, "epochs": 0.1}
    losses = {"loss": 3.0, "loss_se": 0.1, "bits_per_byte": 4.0, "evals": {}}
    counts = {"params": {"embedding": 9}, "flops_per_token": {"6n_total": 54.0}}
    about = {"fingerprint": "f", "data_digest": "d", "seed": 0, "seconds": 1.0, "device": "none"}
    place = {"run": "one", "role": "cell", "size": "d8", "budget": 1e9, "batch": 1, "lr": 0.1, "b2": 0.9}
    row = {"status": "done", "reason": "", **lengths, **losses, **counts, **about, **place}
    Ledger(tmp_path).append(row)
    assert Ledger(tmp_path).rows()["one"]["objective"] == "causal"
    Ledger(tmp_path).append({**row, "run": "two"} | {"device": None})
    with pytest.raises(BadInput, match="delete it, and that run is trained again"):
        Ledger(tmp_path).rows()
