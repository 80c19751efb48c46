"""A planted law of rate and batch comes back within its errors, and an edge is refused with what to add."""

import json
import math

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.laws.drawing.plot import loss_against_rate
from gptjax.laws.hyper import Trials, batch_tokens, evaluate, fit_hyper, rate, trials
from gptjax.laws.table import Runs

GRID = tuple((n, ratio * n) for n in (1e5, 4e5, 1.6e6) for ratio in (10, 40))
RATES = 2.0 ** np.arange(-3, 4)


def best_batch(d):
    return 20 * d**0.4


def best_rate(n, d, batch):
    return 0.02 * (n / 1e6) ** -0.4 * (d / 1e7) ** 0.15 * (batch / best_batch(d)) ** 0.5


def simulate(cells=GRID, rates=RATES, batches=(), noise=0.002, seed=0, tilt=0.2, known=True) -> Trials:
    """Train each cell at rates on one grid around .006, steeper above the best rate than below, at its best batch."""
    rng = np.random.default_rng(seed)
    rows = []
    for n, d in cells:
        for batch in batches or (best_batch(d),):
            best = best_rate(n, d, batch)
            for lr in 0.006 * 2.0 ** np.round(np.log2(best / 0.006)) * rates:
                u, v = np.log(lr / best), np.log(batch / best_batch(d))
                loss = 3 + 0.1 * np.log(1e7 / n) + 0.03 * (u**2 + tilt * u**3) + 0.02 * v**2
                rows.append((n, d, lr, batch, loss + noise * rng.standard_normal(), noise if known else np.nan))
    return Trials(*np.array(rows).T)


def test_a_planted_rate_law_comes_back_within_its_standard_errors():
    z = []
    for seed in range(20):
        law = fit_hyper(simulate(seed=seed))["lr"]
        assert law["status"] == "ok" and law["variables"] == ["params", "tokens"] and not law["reasons"]
        value, log_se = evaluate(law, 1e6, 1e7)
        z.append(
            [
                (law["params_exponent"] + 0.4) / law["params_exponent_se"],
                (law["tokens_exponent"] - 0.15) / law["tokens_exponent_se"],
                np.log(value / 0.02) / log_se,
            ]
        )
    rms, bias = np.sqrt(np.mean(np.square(z), axis=0)), np.mean(z, axis=0)
    assert (rms > 0.5).all() and (rms < 1.5).all() and (np.abs(bias) < 0.7).all()


def test_without_noise_given_the_scatter_tells_it():
    given, not_given = (fit_hyper(simulate(known=known))["lr"] for known in (True, False))
    assert not_given["params_exponent_se"] == pytest.approx(given["params_exponent_se"])
    loud = fit_hyper(simulate(noise=0.006, known=False))["lr"]
    assert 2 < loud["params_exponent_se"] / not_given["params_exponent_se"] < 5


def test_the_best_batch_is_where_the_loss_minimised_over_rates_is_least():
    """Along the ridge the best rate grows with the batch; both laws are those of the ridge's lowest point."""
    hyper = fit_hyper(simulate(batches=tuple(4e3 * 2.0 ** np.arange(8)), noise=0.001))
    lr, batch = hyper["lr"], hyper["batch_tokens"]
    assert batch["status"] == lr["status"] == "ok"
    assert abs(batch["tokens_exponent"] - 0.4) < 3 * batch["tokens_exponent_se"] < 0.2
    assert abs(batch["params_exponent"]) < 3 * batch["params_exponent_se"]
    assert abs(lr["params_exponent"] + 0.4) < 3 * lr["params_exponent_se"] < 0.15
    assert batch_tokens(hyper, 1e6, 1e7) == pytest.approx(best_batch(1e7), rel=0.1)
    assert rate(hyper, 1e6, 1e7) == pytest.approx(0.02, rel=0.1)
    for cell in lr["cells"]:
        assert cell["optimum"] == pytest.approx(
            best_rate(cell["params"], cell["tokens"], cell["batch_tokens"]), rel=0.2
        )


def one_cell(rates, losses, n=459e3) -> dict:
    rows = [(n, 20 * n, lr, 8192, loss, 0.001) for lr, loss in zip(rates, losses, strict=True)]
    (cell,) = fit_hyper(Trials(*np.array(rows).T))["lr"]["cells"]
    return cell


@pytest.mark.parametrize(
    "rates, losses, said",
    [
        ((0.003, 0.006, 0.012), (3.3, 3.2, 3.1), "the best rate 0.012 of N = 459k is the largest tried; add 0.024"),
        ((0.003, 0.006, 0.012), (3.1, 3.2, 3.3), "the best rate 0.003 of N = 459k is the smallest tried; add 0.0015"),
        ((0.003, 0.006), (3.2, 3.1), "N = 459k has 2 rates and an optimum needs 3; add 0.012"),
        ((0.003, 0.006), (3.1, 3.2), "N = 459k has 2 rates and an optimum needs 3; add 0.0015"),
        (
            (0.003, 0.006, 0.012),
            (3.2, 3.1, math.inf),
            "0.006 of N = 459k is the largest that did not diverge; add 0.00849",
        ),
        ((0.003, 0.006, 0.012), (3.2, 3.1, 7.0), "0.006 of N = 459k is the largest that did not diverge; add 0.00849"),
        ((0.003, 0.006, 0.012), (3.1, 3.0999, 3.1), "N = 459k: loss is not clearly convex in the rate"),
    ],
)
def test_a_cell_without_an_optimum_is_refused_and_told_what_to_add(rates, losses, said):
    cell = one_cell(rates, losses)
    assert said in cell["reason"] and cell["optimum"] is None


def test_seeds_and_rounded_tokens_share_a_cell_and_single_rates_make_none():
    t = simulate(cells=GRID[:1], noise=0.001)
    jitter = Trials(
        t.params, t.tokens * (1 + 0.02 * (np.arange(len(t.lr)) % 2)), t.lr, t.batch_tokens, t.loss, t.loss_se
    )
    assert len(fit_hyper(jitter)["lr"]["cells"]) == 1
    law = fit_hyper(simulate(rates=np.ones(1)))["lr"]
    assert law["cells"] == [] and "no cell" in law["reasons"][0]


@pytest.mark.parametrize(
    "cells, variables, said",
    [
        ([(1e5, 1e7), (2e5, 1.2e7), (4e5, 1e7), (1.6e6, 1.2e7)], ["params"], "N alone: D hardly varies"),
        ([(1e6, d) for d in (1e6, 4e6, 16e6)], ["tokens"], "D alone: N hardly varies"),
        ([(n, 20 * n) for n in (1e5, 2e5, 4e5, 8e5)], ["params"], "N alone, along D ~ N^1.00"),
        ([(1e5, 1e6), (4e5, 1e6), (1e5, 1e7)], ["params"], "3 cells are too few for N and D"),
    ],
)
def test_the_law_falls_back_to_the_variable_that_varies(cells, variables, said):
    law = fit_hyper(simulate(cells=cells))["lr"]
    assert law["status"] == "ok" and law["variables"] == variables
    assert any(said in reason for reason in law["reasons"])
    other = "tokens" if variables == ["params"] else "params"
    assert law[f"{other}_exponent"] == 0 and law[f"{other}_exponent_se"] is None


def test_one_cell_is_no_law():
    hyper = fit_hyper(simulate(cells=GRID[:1]))
    assert hyper["lr"]["status"] == "refused" and hyper["lr"]["cells"][0]["optimum"]
    with pytest.raises(BadInput, match="power law needs 2"):
        rate(hyper, 1e6, 1e7)
    with pytest.raises(BadInput, match="batches"):
        batch_tokens(hyper, 1e6, 1e7)


def test_a_table_of_runs_gives_trials_with_tokens_a_step():
    t = simulate(cells=GRID[:1])
    steps = np.round(t.tokens / t.batch_tokens)
    columns = {"run": tuple(map(str, range(len(t.lr)))), "seed": ("0",) * len(t.lr), "convention": "N, C = 6ND"}
    of = {
        "params": t.params,
        "tokens": t.tokens,
        "flops": 6 * t.params * t.tokens,
        "loss": t.loss,
        "loss_se": t.loss_se,
    }
    unknown = np.where(np.arange(len(t.lr)) == 0, np.nan, t.lr)
    got = trials(Runs(**columns, **of, facts={"lr": unknown, "steps": steps}))
    assert len(got.lr) == len(t.lr) - 1 and got.batch_tokens == pytest.approx(t.batch_tokens[1:], rel=0.01)
    with pytest.raises(BadInput, match="add a column lr"):
        trials(Runs(**columns, **of))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_figure_shows_every_cell_and_is_of_strict_json(narrow):
    t = simulate(cells=[(n, 20 * n) for n in (1e5, 4e5, 1.6e6)])
    cut = np.flatnonzero((t.params < 1e6) | (t.lr < 0.011))
    blown = np.where((t.params < 2e5) & (t.lr > 0.2), np.inf, t.loss)
    hyper = fit_hyper(Trials(*(x[cut] for x in (t.params, t.tokens, t.lr, t.batch_tokens, blown, t.loss_se))))
    assert sum(bool(cell["reason"]) for cell in hyper["lr"]["cells"]) == 1
    (axes,) = loss_against_rate(json.loads(json.dumps(hyper, allow_nan=False)), narrow).axes
    assert {text.get_text() for text in axes.texts} == {"100k", "400k", "1.6M"}
