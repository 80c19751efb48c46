"""The isoFLOP fit is exact where theory says so, biased by what theory says, and refuses what rows cannot carry."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.errors import BadInput
from gptjax.laws.budgets import count_distinct, slices_of
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.isoflop import isoflop, refit_noise
from gptjax.laws.minima import REACHES
from gptjax.laws.published import BESIROGLU_2024, HOFFMANN_2022
from gptjax.laws.simulate import simulate
from gptjax.laws.table import Runs

PLANTED = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
BUDGETS = (1e11, 3e11, 1e12, 3e12)


def grid(law, sizes, budgets, loss_se=np.nan):
    """Make noise-free runs at sizes (budgets, sizes) and C = 6ND."""
    c = np.repeat(budgets, np.shape(sizes)[1])
    n = np.ravel(sizes)
    d = c / (6 * n)
    names = tuple(f"{i}" for i in range(len(n)))
    return Runs(names, n, d, c, law.loss(n, d), np.full(len(n), loss_se), ("0",) * len(n), "N, C = 6ND")


def ladder(noise=0.0, seed=0, loss_se=np.nan):
    """Make a sweep of one ladder of sizes that see 4 to 400 tokens a parameter, every cell twice, with noise."""
    n, c = (np.repeat(x.ravel(), 2) for x in np.meshgrid(np.round(6e3 * 1.45 ** np.arange(16)), BUDGETS))
    kept = (4 <= c / (6 * n**2)) & (c / (6 * n**2) <= 400)
    n, d = n[kept], np.round(c[kept] / (6 * n[kept]))
    loss = PLANTED.loss(n, d) + noise * np.random.default_rng(seed).standard_normal(len(n))
    names = tuple(f"{i}" for i in range(len(n)))
    return Runs(names, n, d, 6 * n * d, loss, np.full(len(n), loss_se), ("0",) * len(n), "N, C = 6ND")


@pytest.mark.parametrize("law", [HOFFMANN_2022, PLANTED])
@pytest.mark.parametrize(
    ("interp", "window", "error"), [("parabola", 3, 1e-12), ("parabola", 5, 1e-12), ("akima", 3, 1e-5)]
)
def test_the_exponent_is_exact_on_noise_free_geometric_grids_centred_on_the_optimum(law, interp, window, error):
    c = 1e18 * 4.0 ** np.arange(4)
    sizes = law.params_law(c)[:, None] * 2.0 ** np.arange(-5, 6)
    fit = isoflop(grid(law, sizes, c), interp=interp, window=window)  # akima: of log loss, which does not quite scale
    assert fit.params_law and fit.params_law.exponent == pytest.approx(law.a, abs=error)
    assert fit.tokens_law and fit.tokens_law.exponent == pytest.approx(law.b, abs=error)
    off_centre = isoflop(grid(law, sizes * np.geomspace(1 / 3, 3, 4)[:, None], c), window=5)
    assert off_centre.params_law and abs(off_centre.params_law.exponent - law.a) > 5e-4  # centres drift with C


@pytest.mark.parametrize(("times", "bias"), [(8, 0.0270), (32, 0.0768)])
def test_n_is_biased_on_wide_grids_as_theory_says(times, bias):
    c = np.array([1e18, 1e20])
    best = HOFFMANN_2022.params_law(c)
    runs = grid(HOFFMANN_2022, best[:, None] * np.geomspace(1 / times, times, 15), c)
    fit = isoflop(runs, window=7)
    assert fit.params_law and fit.tokens_law
    assert fit.params_law(c) / best - 1 == pytest.approx(bias, abs=5e-5)
    assert fit.params_law(c) * fit.tokens_law(c) == pytest.approx(c / 6, rel=1e-9)
    assert abs(isoflop(runs).params_law(c) / best - 1).max() < bias / 2  # the default window is narrower
    spline = isoflop(runs, interp="akima")
    assert abs(spline.params_law(c) / best - 1).max() < bias / 10


def test_akima_goes_through_the_points_and_its_error_is_at_least_a_third_of_a_gap():
    c = np.array([1e18, 1e20])
    sizes = HOFFMANN_2022.params_law(c)[:, None] * 2.0 ** np.arange(-3, 4)
    runs = grid(HOFFMANN_2022, sizes, c)
    fit = isoflop(runs, interp="akima")
    assert fit.budgets[0].curve == () and fit.interp == "akima"
    for budget in fit.budgets:
        assert budget.minimum and budget.minimum.params_se == pytest.approx(np.log(2) / 3)
        assert budget.minimum.loss <= runs.loss[[runs.run.index(name) for name in budget.window]].min() + 1e-12
    noisy = isoflop(replace(runs, loss_se=np.full(14, 0.05)), interp="akima")
    assert all(b.minimum is None or b.minimum.params_se > np.log(2) / 3 for b in noisy.budgets)
    assert isoflop(replace(runs, loss_se=np.full(14, 0.05)), interp="akima") == noisy

    twice = [*range(14), *range(14)]
    doubled = replace(runs.take(np.array(twice)), run=tuple(map(str, range(28))))
    worse = replace(doubled, loss=doubled.loss + np.repeat([0, 0.01], 14))
    again = isoflop(worse, interp="akima")
    assert again.used == fit.used and "another run of its size" in again.dropped[0].reason
    assert again.params_law.coef == pytest.approx(fit.params_law.coef, rel=1e-9)


def test_akima_refuses_when_noise_moves_the_minimum_to_an_edge():
    c = np.array([1e18, 1e20])
    runs = grid(HOFFMANN_2022, HOFFMANN_2022.params_law(c)[:, None] * 2.0 ** np.arange(-2, 3), c, loss_se=0.5)
    assert isoflop(runs, interp="akima").status == "ok"  # noise alone would choose one of the 3 inner sizes in 60 %
    edges = np.flatnonzero(np.arange(10) % 5 % 4 == 0)
    often = runs.take(np.concatenate([np.arange(10), *3 * [edges]]))  # the best of four is at an edge more often
    often = replace(often, run=tuple(map(str, range(22))))
    lost = isoflop(often, interp="akima")
    assert lost.status == "refused" and lost.used == () and len(lost.dropped) == 22
    assert all("half or more of the draws" in budget.reason for budget in lost.budgets)


@pytest.mark.parametrize("interp", ["parabola", "akima"])
@pytest.mark.parametrize("loss_se", [np.nan, 0.004])
@pytest.mark.parametrize("noise", [0.004, 0.1])
def test_refitting_draws_together_equals_fitting_each(interp, loss_se, noise):
    runs = ladder(noise=0.004, loss_se=loss_se)
    fit = isoflop(runs, interp=interp, window=2)
    losses = runs.loss + noise * np.random.default_rng(1).standard_normal((40, len(runs)))
    together = refit_noise(runs, fit, losses)
    refused = 0
    for i, loss in enumerate(losses):
        alone = isoflop(replace(runs, loss=loss), interp=interp, window=2)
        minima = [(b.flops, b.minimum, of.minimum) for b, of in zip(alone.budgets, fit.budgets, strict=True)]
        for lines, name in zip(together, ("params", "tokens"), strict=True):
            law = getattr(alone, f"{name}_law")
            expected = [np.log(law.coef), law.exponent] if law else [np.nan] * 2
            if interp == "akima":  # weighted by the errors of the fit and not of the draw
                points = np.array(
                    [
                        (np.log(c), np.log(getattr(m, name)), 1 / getattr(of, f"{name}_se"))
                        for c, m, of in minima
                        if m and of
                    ]
                )
                lost = any("draws" in b.reason for b in alone.budgets)
                if lost or len(points) < 2:
                    continue
                x, y, w = points.T
                expected = np.polyfit(x, y, 1, w=w)[::-1]
            assert lines[i] == pytest.approx(expected, rel=1e-6, nan_ok=True)
        refused += alone.status == "refused"
    assert np.isnan(together[0]).any(axis=1).sum() == refused or interp == "akima"
    assert (refused > 0) == (noise == 0.1) or interp == "akima"
    assert [lines.shape for lines in refit_noise(runs, fit, losses[:0])] == [(0, 2), (0, 2)]


def test_a_budget_without_an_optimum_is_refused_and_says_what_to_add():
    runs = ladder()
    first = runs.flops < 2e11
    optimum = PLANTED.optimum(flops=1e11).params

    left_out = isoflop(runs.take(np.flatnonzero(~first | (runs.params > 0.9 * optimum))))
    assert "least loss is at the smallest size 18.3k; add a size near 9.15k" in left_out.reasons[0]
    assert left_out.status == "ok" and len(left_out.dropped) == 8

    three = np.flatnonzero(first)[2:8]
    few = isoflop(runs.take(np.concatenate([three, np.flatnonzero(~first)])))
    assert "of 4 sizes that a minimum needs it has 3; add 1" in few.reasons[0]

    bent = isoflop(replace(runs, loss=np.where(first, 8 - runs.loss, runs.loss)))
    assert re.search(r"add a size near|add sizes farther out", bent.reasons[0])
    assert bent.budgets[0].minimum is None

    alone = isoflop(runs.take(np.flatnonzero(first)))
    assert alone.status == "refused" and alone.params_law is None and "power law needs 2" in alone.reasons[-1]

    u = np.log(runs.params / runs.params[first].min())
    outside = np.where(first, 3 + 0.2 * u + 0.1 * u**2, runs.loss)
    outside[np.flatnonzero(first)[:2]] = outside[np.flatnonzero(first)[2]] + 1e-3  # the least loss is not at the edge
    beyond = isoflop(replace(runs, loss=outside), window=6)
    assert re.search(r"the minimum .* lies outside the sizes; add one near", beyond.reasons[0]), beyond.reasons


@pytest.mark.parametrize("interp", ["parabola", "akima"])
def test_the_order_of_the_rows_changes_nothing(interp):
    runs = ladder(noise=0.01, loss_se=0.05)
    order = np.random.default_rng(0).permutation(len(runs))
    a, b = (isoflop(rows, interp=interp) for rows in (runs, runs.take(order)))
    for one, other in zip(a.budgets, b.budgets, strict=True):
        assert one.reason == other.reason and {*one.window} == {*other.window}
        if one.minimum and other.minimum:
            assert [*vars(one.minimum).values()] == pytest.approx([*vars(other.minimum).values()], rel=1e-9)


def test_standard_errors_are_the_spread_of_draws():
    runs = ladder(loss_se=0.004)
    fit = isoflop(runs)  # without scatter: loss_se alone
    lines, _ = refit_noise(runs, fit, runs.loss + 0.004 * np.random.default_rng(0).standard_normal((500, len(runs))))
    assert fit.params_exponent_se == pytest.approx(lines[:, 1].std(), rel=0.15)
    scattered = isoflop(ladder(noise=0.004))
    assert scattered.noise == pytest.approx(0.004, rel=0.3)
    assert scattered.params_exponent_se == pytest.approx(lines[:, 1].std(), rel=0.5)


def test_a_minimum_lost_in_noise_is_refused():
    noise = 0.05 * np.random.default_rng(3).standard_normal(len(ladder()))
    assert all(budget.minimum is None for budget in isoflop(replace(ladder(), loss=3 + noise)).budgets)


def test_what_the_parabola_cannot_see_is_bad_input():
    for window in (-1, 1):
        with pytest.raises(BadInput, match=f"a window of {window} sizes"):
            isoflop(ladder(), window=window)
    with pytest.raises(BadInput, match="'cubic' is not known; use parabola or akima"):
        isoflop(ladder(), interp="cubic")


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 0.3)), min_size=1, max_size=40))
def test_different_sizes_in_windows_are_counted_as_one_counts_them(rows):
    values = np.array([size for size, _ in rows], float)
    at = np.sort([c for _, c in rows])
    ends = np.searchsorted(at, at + 0.1, side="right")
    assert [len(set(values[i:end])) for i, end in enumerate(ends)] == count_distinct(values, ends).tolist()


def dense(budgets, sizes, bracket, noise=0.004, decades=4, seed=0):
    """Make a sweep with many sizes within so many times the optimum of each budget, other sizes at each."""
    c = 1e18 * np.geomspace(1, 10.0**decades, budgets)
    n = (BESIROGLU_2024.params_law(c)[:, None] * np.geomspace(1 / bracket, bracket, sizes)).ravel()
    return simulate(BESIROGLU_2024, n, np.repeat(c, sizes) / (6 * n), noise=noise, seed=seed)


@pytest.mark.parametrize(
    ("budgets", "sizes", "bracket", "decades", "error"),
    [
        (50, 100, 10, 4, 0.004),
        (50, 100, 10, 2, 0.008),
        (10, 12, 4, 4, 0.02),
        (10, 12, 10, 4, 0.02),
        (5, 40, 10, 4, 0.02),
    ],
)
def test_dense_grids_are_used_well(budgets, sizes, bracket, decades, error):
    runs = dense(budgets, sizes, bracket, decades=decades)
    fit = isoflop(runs)
    assert len(fit.budgets) == budgets and all(b.minimum for b in fit.budgets)
    assert len(fit.used) > len(runs) / 2
    assert abs(fit.params_law.exponent - BESIROGLU_2024.a) < error
    assert 2 * fit.params_exponent_se < error
    assert not isoflop(runs, window=3).params_exponent_se < 1.15 * fit.params_exponent_se  # it may be refused


def test_budgets_that_touch_are_told_apart_and_scattered_runs_are_not():
    runs = dense(40, 8, 4, decades=2)
    rng = np.random.default_rng(0)
    jitter = np.exp(rng.uniform(-0.01, 0.01, len(runs)))
    apart = slices_of(replace(runs, flops=runs.flops * jitter))
    assert [len(part.rows) for part in apart] == [8] * 40
    scattered = slices_of(replace(runs, flops=np.exp(rng.uniform(np.log(1e18), np.log(1e20), len(runs)))))
    assert max(part.spread for part in scattered if part.sound) <= np.exp(0.2) + 1e-9


def test_noise_widens_the_window_of_dense_budgets_and_bias_narrows_it():
    reaches = [isoflop(dense(6, 24, 12, noise=noise)).window.reach for noise in (0, 0.001, 0.004, 0.02)]
    assert reaches[0] == reaches[1] == REACHES[0] and reaches[-1] == REACHES[-1] and sorted(reaches) == reaches
    sparse = ladder(noise=0.004)
    by_default, by_count = isoflop(sparse), isoflop(sparse, window=3)
    assert by_default.params_law == by_count.params_law and by_default.used == by_count.used


def test_refitting_draws_of_dense_budgets_equals_fitting_each():
    runs = dense(4, 20, 6)
    fit = isoflop(runs)
    losses = runs.loss * np.exp(0.004 * np.random.default_rng(1).standard_normal((20, len(runs))))
    together, _ = refit_noise(runs, fit, losses)
    alike = 0
    for loss, line in zip(losses, together, strict=True):
        alone = isoflop(replace(runs, loss=loss))
        if alone.window == fit.window:
            alike += 1
            assert line == pytest.approx([np.log(alone.params_law.coef), alone.params_law.exponent], rel=1e-9)
    assert alike > 2
