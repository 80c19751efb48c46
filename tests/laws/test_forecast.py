"""Forecasts beyond the largest budget: right where a form is right and where not, coherent, honest of their past."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from gptjax.laws.analysis import fit_all
from gptjax.laws.fit import Choices
from gptjax.laws.forecast import DRIFT, Forecast, forecast
from gptjax.laws.forecaster import forecaster
from gptjax.laws.law import Floats
from gptjax.laws.parametric import parametric
from gptjax.laws.predict import predict
from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.record import Analysis
from gptjax.laws.simulate import simulate
from gptjax.laws.table import Runs
from helpers import ROOT

LAW = BESIROGLU_2024
POINTS = ROOT.parent / "shared" / "reference" / "chinchilla_figure4_points.csv"
OFF = np.log([0.25, 0.4, 0.63, 1, 1.6, 2.5, 4])  # of log N from N*, in each budget


def grid(budgets: Floats, noise: float = 0.004, seed: int = 0) -> Runs:
    c = np.repeat(budgets, len(OFF))
    best = np.array([LAW.optimum(flops=float(each)).params for each in c])
    n = best * np.exp(np.tile(OFF, len(budgets)))
    return simulate(LAW, n, c / (6 * n), noise=noise, seed=seed)


RUNS = grid(np.geomspace(1e19, 1e21, 5))
LARGEST = float(RUNS.flops.max())


def valley(q: float, share: float = 0.4, noise: float = 0.003) -> tuple[Runs, float]:
    """Plant losses whose floor is known and whose sides are as steep as asked; give them and the floor at 10x."""
    rng = np.random.default_rng(1)
    x = np.repeat(np.linspace(0, np.log(30), 5), len(OFF))
    u = np.tile(OFF, 5)

    def floor(x: Floats | float) -> Floats | float:
        return share + (1 - share) * np.exp(-0.1 * np.asarray(x))

    n = 1e8 * np.exp(0.5 * x + u)
    c = 1e18 * np.exp(x)
    loss = 3.0 * floor(x) * np.exp(q * u**2 + noise * rng.standard_normal(len(x)))
    rows = simulate(LAW, n, c / (6 * n), noise=0.0, seed=0)
    return replace(rows, loss=loss), float(3.0 * floor(np.log(300)))


@pytest.mark.parametrize("times", [3, 10, 30])
def test_a_planted_law_is_forecast_within_its_interval_and_two_per_cent(times):
    found = forecast(RUNS)
    said, truth = found.at(times * LARGEST), LAW.optimum(flops=times * LARGEST).loss
    low, high = said.interval()
    assert low < truth < high and abs(np.log(said.loss / truth)) < 0.02
    assert sum(floor.weight for floor in found.floors) == pytest.approx(1)


@pytest.mark.parametrize("q", [0.003, 0.06])
def test_how_steep_the_sides_are_does_not_tell_how_losses_level_off(q):
    rows, truth = valley(q)
    found = forecast(rows)
    error = abs(np.log(found.at(10 * float(rows.flops.max())).loss / truth))
    law = parametric(rows, Choices(loss="lsq-log")).plane
    assert law is not None
    by_form = abs(np.log(law.optimum(flops=10 * float(rows.flops.max())).loss / truth))
    assert error < 0.02 and error < by_form


def test_intervals_widen_with_distance_and_with_noise():
    def width(found: Forecast, times: float) -> float:
        low, high = found.at(times * LARGEST).interval()
        return float(np.log(high / low))

    quiet, noisy = forecast(RUNS), forecast(grid(np.geomspace(1e19, 1e21, 5), noise=0.012))
    assert width(quiet, 1) < width(quiet, 3) < width(quiet, 30) and width(quiet, 3) < width(noisy, 3)


def test_the_slope_of_the_floor_may_drift_beyond_the_rows_and_not_within():
    found = forecast(grid(np.geomspace(1e19, 1e21, 5), noise=0.0))
    only = replace(found, floors=[replace(max(found.floors, key=lambda one: one.weight), weight=1.0)])  # none disagrees
    slope = np.log(only.at(LARGEST / 1.05).loss / only.at(LARGEST).loss) / np.log(1.05)
    for times in (3, 10):
        within, beyond = (only.at(LARGEST * one, noisy=False).sd for one in (1, times))
        assert beyond > 0.9 * DRIFT * slope * np.log(times) > 3 * within


def test_a_forecast_within_the_table_has_not_seen_what_it_foretells():
    found = forecast(RUNS)
    early = RUNS.flops <= found.rolling[0].max_flops * 1.01
    changed = replace(RUNS, loss=np.where(early, RUNS.loss, RUNS.loss * 0.9))
    again = forecast(changed)
    assert len(found.rolling) >= 2 and all(one.times > 2.4 for one in found.rolling)
    assert again.rolling[0].predicted == pytest.approx(found.rolling[0].predicted, rel=1e-9)
    assert not again.rolling[0].inside and again.stretch > found.stretch == 1


def test_one_optimum_answers_whatever_is_asked():
    f = forecaster(fit_all(RUNS, Choices(bootstrap=60), tables=False))
    said = predict(f, flops=5e21)
    for name in ("params", "tokens", "loss"):
        other = predict(f, **{name: said[name]})
        for key in ("flops", "params", "tokens", "loss"):
            assert other[key] == pytest.approx(said[key], rel=1e-5), (name, key)
        assert other["optimum_from"] == said["optimum_from"]
    low, high = predict(f, loss=said["loss"])["flops_interval"]
    assert low < 5e21 < high
    assert sum(one["weight"] for one in said["forms"]) == pytest.approx(1)
    assert all(
        one["inside"] == (one["interval"][0] <= one["measured"] <= one["interval"][1]) for one in said["rolling"]
    )


def test_a_size_far_from_the_optimum_costs_what_the_law_says():
    f = forecaster(fit_all(RUNS, Choices(bootstrap=60), tables=False))
    best = predict(f, flops=3e21)
    losses = [predict(f, params=best["params"] * off, tokens=best["tokens"] / off)["loss"] for off in (1, 3, 10, 40)]
    truth = [float(LAW.loss(best["params"] * off, best["tokens"] / off)) for off in (1, 3, 10, 40)]
    assert losses == sorted(losses)
    assert np.log(losses) == pytest.approx(np.log(truth), abs=0.03)


def test_a_law_read_back_forecasts_the_same():
    law = fit_all(RUNS, Choices(bootstrap=60), tables=False)
    again = Analysis.from_json(json.loads(json.dumps(law.to_json())))
    asked = {"params": 3e9, "tokens": 2e11}
    assert predict(forecaster(again), **asked) == predict(forecaster(law), **asked)
    older = replace(law, forecast=None)  # as versions before had it
    assert predict(forecaster(older), **asked)["loss_from"] == "law"


def test_losses_that_begin_at_guessing_fall_faster_than_a_power_law_at_first():
    rows, _ = valley(0.03)

    def floor(flops: Floats | float) -> Floats:
        """Give losses of small models: 1.8 nats are constant, 6.2 are guessing among 500 tokens."""
        return 1.8 + 4.4 * (1 + np.asarray(flops) / (0.3 * rows.flops.min())) ** -0.4

    losses = floor(rows.flops) * rows.loss / valley(0.0, noise=0.0)[0].loss
    found = forecast(replace(rows, loss=losses))
    for times in (3, 10):
        said, truth = found.at(times * float(rows.flops.max())), float(floor(times * float(rows.flops.max())))
        low, high = said.interval()
        assert low < truth < high and abs(np.log(said.loss / truth)) < 0.03


def test_too_few_rows_or_too_little_compute_draw_no_floor():
    few = RUNS.take(np.arange(6))
    assert not forecast(few).ok and "at least" in forecast(few).reasons[0]
    one = RUNS.take(np.flatnonzero(RUNS.flops < 1.1e19))
    assert not forecast(one).ok


def test_sizes_on_one_side_of_the_optimum_are_fitted_by_the_form():
    larger = RUNS.take(np.flatnonzero(np.tile(OFF, 5) > 0.2))
    found = forecast(larger)
    said, truth = found.at(3 * LARGEST), LAW.optimum(flops=3 * LARGEST).loss
    assert found.shape == "chinchilla" and abs(np.log(said.loss / truth)) < 0.05
    low, high = said.interval()
    assert low < truth < high


@pytest.mark.skipif(not POINTS.is_file(), reason="needs the published points in ../shared")
@pytest.mark.parametrize("cut", [4e19, 1.4e20])
def test_published_points_beyond_a_cut_are_forecast(cut):
    with POINTS.open() as file:
        rows = [row for row in csv.DictReader(file) if row["dropped_by_besiroglu"] == "0"]
    n, d, c, loss = (np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "flops", "loss"))
    whole = replace(simulate(LAW, n, d, noise=0.0, seed=0), flops=c, loss=loss)
    found = forecast(whole.take(np.flatnonzero(c <= cut * 1.05)))
    for times in (4, 16):
        near = np.flatnonzero(np.abs(np.log(c / (times * cut))) < 0.3)
        if len(near) < 3:
            continue
        best = near[loss[near].argmin()]
        said = found.at(6 * n[best] * d[best], n[best])
        low, high = said.interval()
        assert low < loss[best] < high and abs(np.log(said.loss / loss[best])) < 0.025
