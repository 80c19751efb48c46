"""The minimum of loss over log N in each budget, by a parabola or an Akima spline.

Losses come as draws (k, rows), one draw for a fit and many for a bootstrap, and one code serves both.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from gptjax.laws.budgets import Slice
from gptjax.laws.law import Ints
from gptjax.laws.table import Floats, Runs

SIDE = 3  # sizes either side of the least loss that a parabola sees at least, and all it sees of sparse budgets
REACHES = tuple(np.log([4.0, 5.0, 6.3, 8.0, 10.0]).tolist())  # in log N either side, of which noise chooses
SKEW = 0.01  # of a law whose alpha and beta differ by .1, a parabola within +-h in log N misses log N* by .01 h^2
SMOOTHED = 8  # of a dense budget the least loss is sought in means over a quarter of its sizes, an eighth either side
AKIMA_DRAWS = 1000  # of the noise, for the standard error of an Akima minimum (Porian et al. 2024)
OK, SMALLEST, LARGEST, FLAT, OUTSIDE, LOST, STATIC = range(7)  # what became of a budget


@dataclass(frozen=True)
class Minima:
    """What each draw of the losses (first axis) says of each budget (second); n and d are logs, as their errors."""

    state: Ints
    least: Ints  # the position among the sizes of the least loss
    n: Floats
    d: Floats
    loss: Floats
    n_se: Floats
    d_se: Floats
    loss_se: Floats


@dataclass(frozen=True)
class Parabolas(Minima):
    """Parabolas (draws, budgets, 3) in log N from the least size, and the noise (draws,) of one loss about them.

    `freedom` (draws,) counts the losses beyond those that the parabolas take.
    """

    curve: Floats
    bend_se: Floats
    noise: Floats
    freedom: Floats


def _edges(least: Ints, part: Slice) -> Ints:
    return np.where(least == 0, SMALLEST, np.where(least == len(part.sizes) - 1, LARGEST, OK))


@dataclass(frozen=True)
class SizeWindow:
    """Which sizes a parabola sees: `count` on either side of the least loss, or by default those within `reach`.

    By default (count 0) a sparse budget, of up to 7 sizes, is seen 3 either side. A dense one is seen within `reach` in
    log N, and 3 either side at least.
    """

    count: int = 0
    reach: float = REACHES[0]

    def __str__(self) -> str:
        """Say in words which sizes are seen."""
        if self.count:
            return f"the {2 * self.count + 1} sizes around the least loss"
        return f"the sizes within {math.exp(self.reach):.2g}x of the least loss, or {SIDE} on either side of it"

    def by_reach(self, part: Slice) -> bool:
        """Say whether the sizes of this budget are chosen by their range."""
        return not self.count and len(part.sizes) > 2 * SIDE + 1

    def ends(self, part: Slice, least: int) -> tuple[int, int]:
        """Give the first size seen, and the first beyond."""
        side = self.count or SIDE
        first, last = max(0, least - side), min(len(part.sizes), least + side + 1)
        if self.by_reach(part):
            log_n = np.log(part.sizes)
            within = np.searchsorted(log_n, log_n[least] + (self.reach + 1e-9) * np.array([-1, 1]))
            first, last = min(first, int(within[0])), max(last, int(within[1]))
        return first, last

    def near(self, part: Slice, least: int) -> slice:
        """Give the rows of the budget, by size, that a parabola sees."""
        ends = np.append(part.starts, len(part.rows))
        first, last = self.ends(part, least)
        return slice(int(ends[first]), int(ends[last]))

    def least(self, part: Slice, losses: Floats) -> Ints:
        """Find the size of least loss in each draw (k, rows of the budget); of dense budgets, the least local mean."""
        mean = part.mean(losses)
        if self.by_reach(part):
            count = mean.shape[1]
            place = np.arange(count)
            side = np.minimum(count // SMOOTHED, np.minimum(place, count - 1 - place))
            total = np.cumsum(np.pad(mean, ((0, 0), (1, 0))), axis=1)
            mean = (total[:, place + side + 1] - total[:, place - side]) / (2 * side + 1)
        return mean.argmin(axis=1)


def chosen_window(runs: Runs, slices: list[Slice], count: int) -> SizeWindow:
    """Choose how far parabolas reach in dense budgets: as far as the noise of a minimum exceeds what the form misses.

    A wide parabola has less noise and more bias, since a law is none. All budgets have one reach, so that the bias is
    alike in all: it moves N* and not the exponent.
    """
    chosen = SizeWindow(count)
    if any(chosen.by_reach(part) for part in slices):
        for reach in REACHES[1:]:
            found = parabolas(runs, slices, runs.loss[None], SizeWindow(reach=reach))
            errors = found.n_se[found.state == OK]
            if not len(errors) or not np.median(errors) > SKEW * reach**2:
                break
            chosen = SizeWindow(reach=reach)
    return chosen


def parabolas(runs: Runs, slices: list[Slice], losses: Floats, window: SizeWindow) -> Parabolas:
    """Fit a parabola to each budget of each draw; errors by the delta method from the scatter pooled over budgets.

    The noise of the evaluation, where known, is a floor: that of seed and data order comes on top and shows in the
    scatter. Since it is the smaller part, all losses have one weight.
    """
    shape = len(losses), len(slices)
    state, least = np.full(shape, STATIC), np.zeros(shape, dtype=int)
    centre, low, high = np.full((3, *shape), np.nan)
    curve, tokens = np.full((2, *shape, 3), np.nan)
    covariance = np.full((*shape, 3, 3), np.nan)
    squares, freedom = np.zeros((2, len(losses)))
    for j, part in enumerate(slices):
        if not part.sound:
            continue
        y, log_n, log_d = losses[:, part.rows], np.log(part.sizes), np.log(runs.tokens[part.rows])
        x = np.log(runs.params[part.rows])
        least[:, j] = window.least(part, y)
        state[:, j] = _edges(least[:, j], part)
        for i in set(least[state[:, j] == OK, j].tolist()):
            at, near = np.flatnonzero(least[:, j] == i), window.near(part, i)
            design = np.vander(x[near] - log_n[i], 3, increasing=True)
            inverse = np.linalg.inv(design.T @ design)
            solve = inverse @ design.T
            curve[at, j] = y[at, near] @ solve.T
            tokens[at, j] = solve @ log_d[near]
            covariance[at, j] = inverse
            centre[at, j], low[at, j], high[at, j] = log_n[i], x[near][0] - log_n[i], x[near][-1] - log_n[i]
            squares[at] += ((y[at, near] - curve[at, j] @ design.T) ** 2).sum(axis=1)
            freedom[at] += near.stop - near.start - 3
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.maximum(np.sqrt(squares / freedom), np.nan_to_num(runs.evaluation_noise))
        bend, bend_se = curve[..., 2], noise[:, None] * np.sqrt(covariance[..., 2, 2])
        u = -curve[..., 1] / (2 * bend)
        by_curve = np.stack([np.zeros_like(u), -1 / (2 * bend), -u / bend], axis=-1)  # d u / d curve
        powers = np.stack([np.ones_like(u), u, u**2], axis=-1)
        n_se, loss_se = (
            noise[:, None] * np.sqrt(np.einsum("kbi,kbij,kbj->kb", g, covariance, g)) for g in (by_curve, powers)
        )
        state = np.where((state == OK) & ~(bend > 2 * bend_se), FLAT, state)
        state = np.where((state == OK) & ((u < low) | (u > high)), OUTSIDE, state)
        return Parabolas(
            state=state,
            least=least,
            n=centre + u,
            d=(tokens * powers).sum(axis=-1),
            loss=(curve * powers).sum(axis=-1),
            n_se=n_se,
            d_se=np.abs(tokens[..., 1] + 2 * tokens[..., 2] * u) * n_se,
            loss_se=loss_se,
            curve=curve,
            bend_se=bend_se,
            noise=noise,
            freedom=freedom,
        )


def splines(runs: Runs, slices: list[Slice], losses: Floats) -> Minima:
    """Find the minimum of the Akima spline of each budget of each draw, without standard errors."""
    shape = len(losses), len(slices)
    state, least = np.full(shape, STATIC), np.zeros(shape, dtype=int)
    n, d, loss = np.full((3, *shape), np.nan)
    for j, part in enumerate(slices):
        if not part.sound:
            continue
        best = np.minimum.reduceat(losses[:, part.rows], part.starts, axis=1)
        least[:, j] = best.argmin(axis=1)
        state[:, j] = _edges(least[:, j], part)
        x, log_d = np.log(part.sizes), part.mean(np.log(runs.tokens[part.rows]))
        n[:, j], log_loss = _spline_minimum(x, np.log(np.maximum(best, 1e-9)))  # a draw may fall below 0
        d[:, j] = np.interp(n[:, j], x, log_d)
        loss[:, j] = np.exp(log_loss)
    return Minima(state, least, n, d, loss, *np.full((3, *shape), np.nan))


def _spline_minimum(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Find where the Akima spline through x (s,) and each row of y (k, s) is least, in closed form, and its value."""
    c3, c2, c1, c0 = Akima1DInterpolator(x, y.T).c  # each (s - 1, k): a cubic in h = x - x_i on each interval
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -c1 / (c2 + np.sqrt(c2**2 - 3 * c3 * c1))  # where the slope is 0 and rises
    h = np.where((h > 0) & (h < np.diff(x)[:, None]), h, 0)
    value = c0 + h * (c1 + h * (c2 + h * c3))
    i, k = value.argmin(axis=0), np.arange(len(y))
    return x[i] + h[i, k], value[i, k]


def splines_with_errors(runs: Runs, slices: list[Slice], noise: float, seed: int) -> Minima:
    """Find the Akima minima, with errors from draws of the noise of one loss."""
    found = splines(runs, slices, runs.loss[None])
    order = np.concatenate([part.rows for part in slices])
    sd = np.nan_to_num(np.fmax(noise, runs.evaluation_noise))
    losses = np.empty((AKIMA_DRAWS, len(runs)))
    losses[:, order] = runs.loss[order] + sd * np.random.default_rng(seed).standard_normal(losses.shape)
    drawn = splines(runs, slices, losses)
    state, errors = found.state.copy(), np.full((3, *found.state.shape), np.nan)
    for j, part in enumerate(slices):
        sound = drawn.state[:, j] == OK
        if state[0, j] == OK and 2 * sound.sum() <= AKIMA_DRAWS:
            state[0, j] = LOST
        if state[0, j] == OK:
            x, log_d = np.log(part.sizes), part.mean(np.log(runs.tokens[part.rows]))
            i = min(int(np.searchsorted(x, found.n[0, j], side="right")), len(x) - 1)
            gap = x[i] - x[i - 1]
            n_se = max(drawn.n[sound, j].std(), gap / 3)  # Porian et al. 2024 (min_std_factor in their code)
            errors[:, 0, j] = n_se, abs(log_d[i] - log_d[i - 1]) / gap * n_se, drawn.loss[sound, j].std()
    n_se, d_se, loss_se = errors
    return replace(found, state=state, n_se=n_se, d_se=d_se, loss_se=loss_se)
