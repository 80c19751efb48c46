"""From a table alone, a planted law comes back, the published fits come back, and what cannot be known is refused."""

import json
import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.laws.analysis import fit_all, require_law
from gptjax.laws.approaches import BY_NAME
from gptjax.laws.checks import read_runs
from gptjax.laws.envelope import envelope
from gptjax.laws.fit import Choices
from gptjax.laws.forms import CHINCHILLA, KAPLAN, TIED, ChinchillaLaw, SaturatingLaw, saturating
from gptjax.laws.parametric import parametric
from gptjax.laws.published import KAPLAN_2020
from gptjax.laws.record import Analysis
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import Runs
from helpers import PUBLISHED

OPTIMIZED = True
PLANTED = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
GRID = ladder(PLANTED, (1e11, 3e11, 1e12, 3e12))


def planted(noise: float, seed: int = 0) -> Runs:
    return simulate(PLANTED, *GRID, noise=noise, seed=seed, loss_se=noise * 3 or None)


@pytest.fixture(scope="module")
def runs() -> Runs:
    return planted(noise=0.002)


@pytest.fixture(scope="module")
def law(runs: Runs) -> dict:
    return fit_all(runs, Choices(bootstrap=200), tables=False).to_json()


def test_each_approach_recovers_the_planted_law_within_its_interval(law):
    for name in BY_NAME:
        fit = law["approaches"][name]
        assert fit["status"] == "ok", fit["reasons"]
        for exponent, truth in (("a", PLANTED.a), ("b", PLANTED.b)):
            low, high = fit[f"{exponent}_interval"]
            assert low < truth < high and high - low < 0.25, (name, exponent, low, high)
    fit = law["approaches"]["parametric"]
    for name in ("E", "alpha", "beta"):
        assert fit[name] == pytest.approx(getattr(PLANTED, name), rel=0.1)


@pytest.mark.parametrize("loss", ["huber", "lad", "lsq-log", "lsq"])
def test_parametric_is_exact_without_noise_and_leaves_jax_in_float32(loss):
    fit = parametric(planted(noise=0), Choices(loss=loss))
    assert fit.law is not None
    found = [fit.law.A, fit.law.B, fit.law.E, fit.law.alpha, fit.law.beta]
    assert found == pytest.approx([45, 330, 1.75, 0.37, 0.42], rel=1e-5 if loss == "lad" else 1e-8)
    assert jnp.ones(1, dtype=float).dtype == jnp.float32


def test_other_forms_are_recovered_from_their_own_losses():
    n, d = GRID
    tied = ChinchillaLaw(400, 900, 1.7, 0.35, 0.35)
    by_c = SaturatingLaw("flops", 1e14, 0.2, 1.5)
    for form, law, values in (
        (TIED, tied, (n, d)),
        (KAPLAN, KAPLAN_2020, (n, d)),
        (saturating("flops"), by_c, (6 * n * d,)),
    ):
        exact = replace(planted(noise=0), loss=law.loss(*values))
        fit = parametric(exact, Choices(loss="lsq-log"), form=form)
        found = [getattr(fit.law, name) for name in form.names]
        assert found == pytest.approx([getattr(law, name) for name in form.names], rel=1e-5), form.name


def test_weights_are_what_they_say(runs):
    """Weight 0 is absence, weight 2 is twice the row, and noise weighs by the inverse square."""
    few = {"starts": CHINCHILLA.few_starts}
    weights = np.ones(len(runs))
    weights[3], weights[5] = 0, 2
    rows = np.append(np.delete(np.arange(len(runs)), 3), 5)
    by_weight, by_rows = parametric(runs, weights=weights, **few), parametric(runs.take(rows), **few)
    assert by_weight.theta == pytest.approx(by_rows.theta, rel=1e-5) and runs.run[3] not in by_weight.used
    noisy = replace(runs, loss_se=np.where(np.arange(len(runs)) == 7, 1e3, 0.005) * runs.loss)
    without = parametric(runs.take(np.delete(np.arange(len(runs)), 7)), Choices(loss="lsq-log"), **few)
    assert parametric(noisy, Choices(loss="lsq-log", weights="noise"), **few).theta == pytest.approx(
        without.theta, rel=1e-4
    )
    with pytest.raises(BadInput, match="loss_se on every row"):
        parametric(replace(runs, loss_se=np.full(len(runs), np.nan)), Choices(weights="noise"))


def test_what_cannot_be_known_is_refused_or_degenerate():
    runs = planted(noise=0)
    one_size = runs.take(np.flatnonzero(runs.params == runs.params[3]))
    assert envelope(one_size).status == "refused" and parametric(one_size).status == "refused"
    assert "5 coefficients" in parametric(runs.take(np.arange(4))).reasons[0]
    whole = fit_all(one_size, Choices(bootstrap=10))
    assert {fit.status for fit in whole.approaches.values()} == {"refused"}
    with pytest.raises(BadInput, match="no approach gives a law of these"):
        require_law(whole)
    line = np.geomspace(1e4, 1e7, 40)  # dozens of budgets of one size
    with pytest.raises(BadInput, match=r"reasons like these\)") as refusal:
        one_ratio = simulate(PLANTED, line, 20 * line, noise=0.01, seed=0)
        require_law(fit_all(one_ratio, Choices(bootstrap=10), tables=False))
    assert len(str(refusal.value)) < 1000 and "budgets have an optimum and a power law needs 2" in str(refusal.value)
    one_budget = runs.take(np.flatnonzero(np.isclose(runs.flops, runs.flops[0])))
    assert len(one_budget) == 7 and "add a budget" in parametric(one_budget).reasons[0]
    rising = parametric(replace(runs, loss=3 * runs.params**0.05))
    assert rising.status == "degenerate" and "alpha" in rising.reasons[0]
    high = parametric(replace(runs, loss=np.where(runs.loss == runs.loss.min(), 0.5, runs.loss)))
    assert high.status == "degenerate" and re.search("E = .* is above the least loss", high.reasons[0])
    small = np.flatnonzero(runs.params < 0.06 * PLANTED.params_law(3e12))
    n = np.geomspace(500, 2000, 6)
    far = simulate(PLANTED, np.repeat(n, 5), np.tile(np.geomspace(1e7, 1e9, 5), 6), noise=0, seed=0)
    assert len(small) and "lies more than 4x outside the sizes" in parametric(far).reasons[0]


def test_a_large_table_is_searched_on_a_sample_and_fitted_whole():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log(1e4), np.log(1e6), 3000)), np.exp(rng.uniform(np.log(1e6), np.log(1e8), 3000))
    fit = parametric(simulate(PLANTED, n, d, noise=0, seed=0))
    assert fit.law is not None and len(fit.used) == 3000
    assert [fit.law.E, fit.law.alpha, fit.law.beta] == pytest.approx([1.75, 0.37, 0.42], rel=1e-7)


def test_choices_that_cannot_be_are_one_line():
    for wrong in ({"loss": "l7"}, {"delta": 0.0}, {"cluster": "x"}, {"drop_highest_loss": -1}, {"interp": "cubic"}):
        with pytest.raises(BadInput) as error:
            Choices(**wrong)
        assert "\n" not in str(error.value)


def test_the_json_is_strict_and_names_every_row_used_or_dropped(law, runs):
    assert json.loads(json.dumps(law, allow_nan=False)) == law
    for fit in law["approaches"].values():
        assert {*fit["used"], *(drop["run"] for drop in fit["dropped"])} >= set(runs.run)
    assert Analysis.from_json(law).to_json() == law
    assert fit_all(runs, Choices(bootstrap=200), tables=False).to_json() == law  # the same seed, the same intervals
    dropped = fit_all(runs, Choices(bootstrap=10, drop_highest_loss=2), approaches=["isoflop"], tables=False)
    assert dropped.rows == len(runs) - 2 and "highest" in dropped.dropped[0].reason


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published points are not beside this checkout")
def test_published_points_give_the_published_optimum():
    every = read_runs(PUBLISHED)
    kept = every.drop_highest_loss(5)
    fit = parametric(kept)
    assert (len(every), len(kept)) == (245, 240) and fit.objective <= 1.0182741e-3 and fit.law is not None
    assert fit.law.A == pytest.approx(477.826, rel=1e-3) and fit.law.B == pytest.approx(2143.42, rel=2e-3)
    assert [fit.law.E, fit.law.alpha, fit.law.beta] == pytest.approx([1.817218, 0.3473105, 0.3671724], rel=1e-4)
    lad = parametric(kept, Choices(loss="lad")).law
    assert lad is not None
    found = [lad.A, lad.B, lad.E, lad.alpha, lad.beta]
    assert found == pytest.approx([482.006, 2085.43, 1.81686, 0.347813, 0.365854], rel=1e-4)
    everything = parametric(every).law
    assert everything is not None and everything.a == pytest.approx(0.5646, abs=1e-4)
    assert parametric(kept, Choices(loss="lsq-log")).law.a == pytest.approx(0.530, abs=1e-3)
    assert parametric(kept, Choices(loss="lsq")).law.a == pytest.approx(0.545, abs=1e-3)
