"""An interval is as wide as what is unknown, holds its own estimate, and otherwise its fit is not ok."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from gptjax.laws.analysis import fit_all
from gptjax.laws.approaches import bootstrap
from gptjax.laws.envelope import envelope
from gptjax.laws.fit import MIN_DRAWS, Choices
from gptjax.laws.forecaster import forecaster
from gptjax.laws.isoflop import isoflop
from gptjax.laws.law import PowerLaw
from gptjax.laws.predict import predict
from gptjax.laws.published import BESIROGLU_2024 as LAW
from gptjax.laws.record import Analysis
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import PAIRED, Runs
from gptjax.laws.uncertainty import SAYS_NOTHING, Draws, Noise, judged, noise_of_one
from gptjax.run.validation import paired_errors

GRID = ladder(LAW, np.geomspace(6e18, 3e21, 5))


def horizons(noise: float, seed: int = 0, **columns: float) -> Runs:
    """Simulate runs whose budgets all differ, so that only the law tells their scatter."""
    sizes = LAW.params_law(1e20) * 1.6 ** (np.arange(8) - 3.5)
    n, ratio = (grid.ravel() for grid in np.meshgrid(sizes, 20 * 3.0 ** np.arange(-2, 3)))
    return simulate(LAW, n, n * ratio, noise=noise, seed=seed, **columns)


def width(law: Analysis, approach: str) -> float:
    return float(np.ptp(law.approaches[approach].a_interval))


@pytest.mark.parametrize("interp", ["parabola", "akima"])
def test_a_small_error_of_the_evaluation_makes_no_interval_narrower(interp):
    both, chosen = ("envelope", "isoflop"), Choices(bootstrap=200, interp=interp)
    for runs in (horizons(0.01), simulate(LAW, *GRID, noise=0.004, seed=1)):
        bare, given, large = (
            fit_all(replace(runs, loss_se=np.full(len(runs), se)), chosen, approaches=both, tables=False)
            for se in (math.nan, 1e-4, 0.05)
        )
        for approach in both:
            if bare.approaches[approach].a is None:
                continue
            assert width(given, approach) == pytest.approx(width(bare, approach), rel=1e-6)
            assert bare.approaches[approach].interval.noise_from in ("law", "parabolas")
            assert large.approaches[approach].interval.noise_from == "evaluation"


def test_the_envelopes_intervals_hold_the_truth_where_budgets_are_scattered():
    held = []
    for seed in range(24):
        runs = horizons(0.006, seed, loss_se=0.004)
        fit = envelope(runs)
        draws = bootstrap(runs, fit, Choices(bootstrap=200, seed=seed), noise=noise_of_one(runs, isoflop(runs)))
        if judged(fit, draws).status == "ok":
            low, high = draws.interval(draws.params[:, 1])
            held.append(low <= LAW.a <= high)
    assert len(held) >= 16 and np.mean(held) >= 0.85


def test_no_fit_is_ok_whose_interval_excludes_its_estimate_or_says_nothing():
    statuses = set()
    for seed in range(2):
        few = ladder(LAW, (6e18, 1e20, 3e21), sizes=5)
        for runs in (horizons(0.03, seed), simulate(LAW, *few, noise=0.02, seed=seed)):
            for found in fit_all(runs, Choices(bootstrap=60, seed=seed), tables=False).approaches.values():
                statuses.add(found.status)
                if not found.ok:
                    assert found.reasons
                    continue
                for name in "ab":
                    low, high = getattr(found, f"{name}_interval")
                    assert low <= getattr(found, name) <= high < low + SAYS_NOTHING
    assert statuses == {"ok", "degenerate", "refused"}


@pytest.mark.parametrize("letter", [0, 1])
def test_the_draws_judge_their_fit(letter):
    runs = simulate(LAW, *GRID, noise=0.002, seed=0)
    fit = isoflop(runs)
    assert fit.params_law and fit.tokens_law
    spread = np.linspace(-0.1, 0.1, 200)

    def drawn(offset=0.0, scale=1.0, kept=200) -> str:
        table = [np.full((200, 2), law.exponent) + spread[:, None] for law in (fit.params_law, fit.tokens_law)]
        table[letter] = np.median(table[letter]) + scale * (table[letter] - np.median(table[letter])) + offset
        n, d = (each[:kept] for each in table)
        new = judged(fit, Draws(n, d, np.zeros((0, 5)), "noise", Noise(), 200))
        assert new.params_law == fit.params_law and (new.status == "ok" or new.reasons)
        return new.status

    assert drawn() == "ok"
    assert drawn(offset=0.2) == drawn(offset=-0.2) == "degenerate"
    assert drawn(scale=8.0) == drawn(scale=math.nan) == "degenerate"
    assert drawn(kept=90) == "degenerate"  # most draws gave no law


def test_an_estimate_that_no_noise_gives_is_an_accident():
    runs = simulate(LAW, *GRID, noise=0.004, seed=0)
    fit, noise = envelope(runs), noise_of_one(runs, isoflop(runs))
    odd = replace(fit, params_law=PowerLaw(1e-140, 8.0), tokens_law=PowerLaw(1e150, -7.0))
    for each, status in ((fit, "ok"), (odd, "degenerate")):
        assert judged(each, bootstrap(runs, each, Choices(bootstrap=100), noise=noise)).status == status


def test_a_few_draws_make_no_interval_and_no_prediction_has_one():
    runs = simulate(LAW, *GRID, noise=0.004, seed=0)
    for draws in (1, MIN_DRAWS - 1, MIN_DRAWS):
        law = fit_all(runs, Choices(bootstrap=draws), tables=False)
        for found in law.approaches.values():
            assert (found.a_interval is None) == (found.b_interval is None) == (draws < MIN_DRAWS)
            assert any(f"--bootstrap {draws} gives no interval" in reason for reason in found.reasons) == (
                draws < MIN_DRAWS
            )
        assert (predict(forecaster(law), flops=1e22)["params_interval"] is None) == (draws < MIN_DRAWS)


def test_noise_of_few_degrees_of_freedom_is_drawn_as_student_has_it():
    rng = np.random.default_rng(0)
    for freedom in (2, 6, math.inf):
        drawn = Noise(0.01, "parabolas", freedom).draw(rng, 40_000, 1).ravel()
        assert np.quantile(np.abs(drawn), 0.95) == pytest.approx(0.01 * t.ppf(0.975, min(freedom, 1e6)), rel=0.04)


def shares(windows: int, rng: np.random.Generator, runs: int = 30) -> np.ndarray:
    """Draw the errors of windows: hard ones are hard for every run, the more the worse it is; .1 nats are its own."""
    level = np.linspace(0.8, 1.2, runs)[:, None]
    return (level * 0.5 * rng.standard_normal(windows) + 0.1 * rng.standard_normal((runs, windows))) / windows


def test_the_paired_error_is_the_runs_own():
    rng = np.random.default_rng(0)
    assert paired_errors(shares(2000, rng)) == pytest.approx(np.full(30, 0.1 / math.sqrt(2000)), rel=0.1)
    own = 0.1 * rng.standard_normal((30, 2000)) / 2000  # nothing is shared
    assert paired_errors(own) == pytest.approx(np.linalg.norm(own, axis=1), rel=0.05)
    assert np.isnan(paired_errors(own[:1])).all()
    assert paired_errors(np.repeat(own[:1], 3, axis=0)) == pytest.approx(0, abs=1e-9)


def test_fewer_windows_widen_no_interval_of_runs_that_share_them():
    sizes = {}
    for windows in (2048, 512):
        rng = np.random.default_rng(0)
        runs = simulate(LAW, *GRID, noise=0.004, seed=3)
        each = shares(windows, rng, len(runs))
        loss_se = np.linalg.norm(each, axis=1)
        runs = replace(runs, loss=runs.loss + each.sum(axis=1), loss_se=loss_se)
        for name, facts in (("alone", {}), (PAIRED, {PAIRED: paired_errors(each)})):
            law = fit_all(replace(runs, facts=facts), Choices(bootstrap=200), approaches=["isoflop"], tables=False)
            sizes[windows, name] = width(law, "isoflop")
    assert sizes[512, "alone"] > 1.7 * sizes[512, PAIRED]  # the shared part is none of the noise between runs
    assert sizes[512, PAIRED] < 1.25 * sizes[2048, PAIRED]
