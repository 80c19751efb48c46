"""The envelope goes through finished runs, or as published through training curves, and lists what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from gptjax.laws.envelope import LATE, envelope, refit_finished, smooth
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.simulate import simulate
from gptjax.laws.smoothed import points_of
from gptjax.laws.table import Curve, Runs

PLANTED = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
LADDER = 6e3 * 1.45 ** np.arange(14)


def table(n, d, noise=0.0):
    loss = PLANTED.loss(n, d) + noise * np.random.default_rng(0).standard_normal(len(n))
    names = tuple(f"{i}" for i in range(len(n)))
    return Runs(names, n, d, 6 * n * d, loss, np.full(len(n), np.nan), ("0",) * len(n), "N, C = 6ND")


def sweep(noise=0.0):
    """Make a sweep of one ladder of sizes that see 4 to 400 tokens a parameter."""
    n, c = (grid.ravel() for grid in np.meshgrid(LADDER, 1e11 * 3.0 ** np.arange(5)))
    kept = (4 <= c / (6 * n**2)) & (c / (6 * n**2) <= 400)
    return table(n[kept], c[kept] / (6 * n[kept]), noise)


def training(runs, penalty=0.0, points=300):
    """Make the training curves: the law itself, and a penalty before the last 15 % of a run for its high rates."""
    curves = []
    for name, n, d in zip(runs.run, runs.params, runs.tokens, strict=True):
        t = np.geomspace(d / 100, d, points)
        curves.append(Curve(name, n, t, 6 * n * t, PLANTED.loss(n, t) + penalty * np.clip((1 - t / d) / 0.15, 0, 1)))
    return curves


def test_finished_runs_give_the_planted_exponents_and_curves_do_too():
    runs = sweep()
    finished = envelope(runs)
    assert finished.method == "finished runs" and (finished.run_share == 1).all()
    published = envelope(runs, training(runs), unfinished=True)
    assert published.method == "training curves" and published.changes.flops.size == 0
    for fit, chord in ((finished, 1e-2), (published, 1e-3)):
        assert fit.status == "ok" and fit.params_law and fit.tokens_law
        assert fit.params_law.exponent == pytest.approx(PLANTED.a, abs=0.03)
        assert fit.tokens_law.exponent == pytest.approx(PLANTED.b, abs=0.03)
        assert (np.diff(fit.frontier.params) >= 0).all() and len(fit.frontier.flops) == len(fit.edge)
        at = fit.frontier
        assert at.loss == pytest.approx(PLANTED.loss(at.params, at.tokens), rel=chord)


def test_points_before_the_last_part_of_their_run_are_refused_and_listed():
    runs = sweep()
    curves = training(runs)  # the law's own curves: an early run is as good as a finished one, and often the best
    fit, whole = envelope(runs, curves), envelope(runs, curves, unfinished=True)
    early = fit.run_share < LATE
    assert 0 < early.sum() < len(early) and f"{early.sum()} of 1500 points" in fit.reasons[0] and whole.reasons == ()
    listed = [drop for drop in fit.dropped if drop.run.startswith("C = ")]
    assert sum(int(drop.reason.split()[0]) for drop in listed) == early.sum()
    np.testing.assert_array_equal(fit.run_share, whole.run_share)
    for name in fit.used:
        own = fit.frontier.params == runs.params[runs.run.index(name)]
        assert (own & ~early & ~fit.edge).any()
    assert {*fit.used, *(drop.run for drop in fit.dropped)} >= set(runs.run)

    dense = table(*(x.ravel() for x in np.meshgrid(LADDER[2:10], 2e5 * 1.1 ** np.arange(60))))
    decayed = envelope(dense, training(dense, penalty=0.2, points=2000))  # as in Hoffmann et al.: only ends are low
    assert (decayed.run_share >= LATE).all() and decayed.reasons == ()


@pytest.mark.parametrize("unfinished", [False, True])
def test_the_regression_leaves_out_edges_and_early_points(unfinished):
    runs = sweep()
    runs = runs.take(np.flatnonzero(runs.params >= LADDER[3]))  # at the least compute the smallest is best
    fit = envelope(runs, training(runs), unfinished=unfinished)
    early = (fit.run_share < LATE) & (not unfinished)
    kept = ~fit.edge & ~early
    assert (fit.edge & ~early).any()
    x, y = np.log(fit.frontier.flops[kept]), np.log(fit.frontier.params[kept])
    assert fit.params_law and fit.params_law.exponent == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-9)


def test_an_edge_is_the_first_or_last_size_that_reaches_a_budget():
    runs = sweep()
    runs = runs.take(
        np.flatnonzero((runs.flops < 5e11) | (runs.params >= LADDER[7]))
    )  # then the least is not the first
    longest = np.flatnonzero(runs.params == LADDER[8])[-1]
    runs = replace(runs, flops=np.where(np.arange(len(runs)) == longest, 1e15, runs.flops))  # alone beyond the others
    for fit, first in ((envelope(runs), 1.0), (envelope(runs, training(runs)), 0.01)):
        ranges = {n: runs.flops[runs.params == n] for n in np.unique(runs.params)}
        by_hand = []
        for c, n in zip(fit.frontier.flops, fit.frontier.params, strict=True):
            reach = [
                size for size, at in ranges.items() if first * at.min() <= c * (1 + 1e-9) and c <= at.max() * (1 + 1e-9)
            ]
            by_hand.append(n in (reach[0], reach[-1]))
            assert fit.method == "training curves" or len(reach) >= 2
        np.testing.assert_array_equal(fit.edge, by_hand)


def test_curves_follow_the_convention_of_the_runs_and_need_finished_runs():
    runs = sweep()
    curves = training(runs)
    fit = envelope(runs, curves)
    other = envelope(replace(runs, params=runs.params / 2, flops=runs.flops / 4), curves)
    assert other.frontier.params == pytest.approx(fit.frontier.params / 2)
    assert other.frontier.flops == pytest.approx(fit.frontier.flops / 4)
    assert other.frontier.tokens == pytest.approx(fit.frontier.tokens)

    fewer = envelope(runs.take(np.arange(1, len(runs))), curves[:-1])
    reasons = {drop.run: drop.reason for drop in fewer.dropped}
    assert reasons[runs.run[0]] == "its training curve belongs to no finished run"
    assert reasons[runs.run[-1]] == "it has no training curve"
    nothing = envelope(runs, [])
    assert nothing.status == "refused" and "no training curve" in nothing.reasons[0]
    assert len(nothing.dropped) == len(runs)
    one = np.flatnonzero(runs.params == runs.params[0])
    assert "a power law needs 2" in envelope(runs.take(one), curves).reasons[-1]


def test_smoothing_keeps_a_line_to_its_ends_and_takes_noise_away():
    line = 3 - 0.01 * np.arange(200)
    assert smooth(line) == pytest.approx(line, abs=1e-12)
    noise = np.random.default_rng(0).standard_normal(200)
    assert (smooth(line + noise) - line)[10:-10].std() < 0.5 * noise.std()
    for points in (1, 2, 3):
        assert smooth(line[:points]) == pytest.approx(line[:points])


def test_refitting_draws_together_equals_fitting_each():
    runs = sweep(noise=0.005)
    first = np.flatnonzero(runs.flops < 2e11)
    half = np.random.default_rng(3).permutation(len(runs))[: len(runs) // 2]
    artefacts = [drop for drop in envelope(runs.take(half)).dropped if "begin or end" in drop.reason]
    assert artefacts  # changes of size that are not ties
    for rows in (np.arange(len(runs)), np.append(first, first[-1] + 5), half):
        some = runs.take(rows)
        losses = some.loss + 0.02 * np.random.default_rng(1).standard_normal((50, len(some)))
        n, d = refit_finished(some, losses)
        for i, loss in enumerate(losses):
            fit = envelope(replace(some, loss=loss))
            for lines, law in ((n, fit.params_law), (d, fit.tokens_law)):
                expected = [np.log(law.coef), law.exponent] if law else [np.nan] * 2
                assert lines[i] == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert [lines.shape for lines in refit_finished(runs, np.zeros((0, len(runs))))] == [(0, 2), (0, 2)]


def test_one_size_makes_no_envelope_and_a_size_of_one_run_no_curve():
    runs = sweep()
    one = envelope(runs.take(np.flatnonzero(runs.params == runs.params[len(runs) // 2])))
    assert one.status == "refused" and one.params_law is None and "changes 0 times" in one.reasons[0]
    alone = np.flatnonzero(runs.params == runs.params[20])[1:]
    fit = envelope(runs.take(np.setdiff1d(np.arange(len(runs)), alone)))
    assert any("one budget only and makes no curve; add a budget" in drop.reason for drop in fit.dropped)


@pytest.mark.parametrize(("budgets", "sizes", "bracket"), [(50, 100, 10), (10, 12, 4), (5, 40, 10)])
def test_sizes_chosen_anew_for_each_budget_make_an_envelope(budgets, sizes, bracket):
    c = np.geomspace(1e11, 1e15, budgets)
    n = (PLANTED.params_law(c)[:, None] * np.geomspace(1 / bracket, bracket, sizes)).ravel()
    runs = table(n, np.repeat(c, sizes) / (6 * n), noise=0.003)
    fit = envelope(runs)
    assert fit.status == "ok" and fit.used == runs.run and "smoothed over log N" in fit.reasons[0]
    assert fit.params_law.exponent == pytest.approx(PLANTED.a, abs=0.03)
    if budgets == 50:  # between budgets far apart a curve is a chord
        assert fit.frontier.loss == pytest.approx(PLANTED.loss(fit.frontier.params, fit.frontier.tokens), abs=0.01)
    losses = runs.loss + 0.003 * np.random.default_rng(1).standard_normal((3, len(runs)))
    for line, loss in zip(refit_finished(runs, losses)[0], losses, strict=True):
        law = envelope(replace(runs, loss=loss)).params_law
        assert line == pytest.approx([np.log(law.coef), law.exponent], rel=1e-9)


def test_smoothing_a_budget_keeps_a_parabola_and_lists_budgets_of_few_sizes():
    c = np.repeat([1e11, 1e12, 1e13], 7)
    n = 1e4 * 1.5 ** np.tile(np.arange(7), 3) * np.repeat([1, 1.1, 1.25], 7)
    runs = table(n, c / (6 * n))
    points = points_of(runs)
    parabola = np.exp(1 + 0.03 * np.log(n / 4e4) ** 2)
    assert points.log_loss(parabola[None])[0] == pytest.approx(1 + 0.03 * np.log(points.params / 4e4) ** 2)
    assert points.log_d + np.log(6 * points.params) == pytest.approx(points.log_c)
    fewer = envelope(runs.take(np.r_[0:7, 7:14, 15:17]))
    assert [drop.run for drop in fewer.dropped if "too few sizes" in drop.reason] == ["15", "16"]


def test_runs_of_one_ratio_are_refused_and_no_error_of_ours():
    """Tables of D = 20 N have many sizes, one budget each, and no budget that spans sizes."""
    law = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
    params = 10 ** np.random.default_rng(30).uniform(4, 7, 53)
    fit = envelope(simulate(law, params, 20 * params, noise=0.002, seed=0))
    assert fit.status == "refused" and fit.reasons
