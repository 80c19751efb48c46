"""Approach 2 of Hoffmann et al. 2022 (3.2): the minimum of loss over log N at each budget, and a line through these.

Losses come as draws (k, rows), one draw for a fit and many for a bootstrap, and one code serves both.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from gptjax.errors import BadInput
from gptjax.laws.fit import Fit, regress
from gptjax.laws.law import Ints
from gptjax.laws.table import Dropped, Floats, Runs, short

Interp = Literal["parabola", "akima"]

BUDGET_GAP, BUDGET_SPREAD = 0.18, 0.4  # in log C: a gap begins a new budget; a wider budget is not a slice
CROWD_WIDTH, CROWD_SIZES = 0.2, 6  # among scattered runs so many sizes within 10 % of one C make a budget
MIN_SIZES = 4
AKIMA_DRAWS = 1000  # of the noise, for the standard error of an Akima minimum (Porian et al. 2024)
OK, SMALLEST, LARGEST, FLAT, OUTSIDE, LOST, STATIC = range(7)  # what became of a budget


@dataclass(frozen=True)
class Minimum:
    """The least loss of one budget; standard errors are of log N, log D and L."""

    params: float
    tokens: float
    loss: float
    params_se: float
    tokens_se: float
    loss_se: float


@dataclass(frozen=True)
class Budget:
    """Runs of nearly equal FLOPs and their parabola: loss = sum_i curve[i] log(N / centre)^i within the window.

    Under Akima there is no parabola (`curve` is empty) and the window is the best run of each size.
    """

    flops: float
    runs: tuple[str, ...]
    window: tuple[str, ...] = ()
    centre: float = np.nan
    curve: tuple[float, ...] = ()
    minimum: Minimum | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Isoflop(Fit):
    """The budgets, how their minima were found, and the noise of one loss.

    That is the scatter about the parabolas, pooled over budgets, which has `freedom` degrees of freedom, and at least
    the noise of the evaluation.
    """

    approach = "isoflop"

    interp: Interp
    window: int
    budgets: tuple[Budget, ...]
    params_exponent_se: float
    tokens_exponent_se: float
    noise: float
    freedom: int


def isoflop(runs: Runs, *, interp: Interp = "parabola", window: int = 3, seed: int = 0) -> Isoflop:
    """Find the best size at each budget, then regress log N* and log D* on log C.

    "parabola" fits loss over log N, least squares, to the least mean loss and `window` sizes on either side. "akima"
    interpolates log loss over log N through the best run of each size (Porian et al. 2024, arXiv 2406.19146); its
    standard errors come from 1000 draws (`seed`) of one loss's noise, that of log N* at least a third of the gap
    between sizes, as theirs. Runs of nearly equal C make a budget; where C is scattered, its fullest windows do. A
    budget is refused, with what to run next, when it has fewer than 4 sizes, its least loss at the smallest or largest
    size (under Akima, also in half of the draws), or no clear upward curvature.

    A law is not a parabola. On noise-free geometric grids centred on the optimum the exponent is exact and N* biased
    (Hoffmann's law: 2.7 % too large on 15 sizes within 8x, 7.7 % within 32x); a lopsided grid, or one whose centre
    drifts with the budget, biases the exponent too (arXiv 2603.22339). Akima has less of this bias and more variance.
    """
    if interp not in get_args(Interp):
        raise BadInput(f"interp {interp!r} is not known; use {' or '.join(get_args(Interp))}")
    if window < 2:
        raise BadInput(f"a window of {window} sizes on either side is too few for a parabola; use 2 or more")
    slices = _slices(runs)
    parabolas = _parabolas(runs, slices, runs.loss[None], window)
    noise = float(parabolas.noise[0])
    found = _splines_with_errors(runs, slices, noise, seed) if interp == "akima" else parabolas
    budgets = tuple(_budget(runs, part, found, window, j) for j, part in enumerate(slices))

    minima = [(b.flops, b.minimum) for b in budgets if b.minimum]
    reasons = tuple(b.reason for b in budgets if b.reason)
    params_law = tokens_law = None
    params_se = tokens_se = np.nan
    if len(minima) < 2:
        remedy = "mend those refused or add a budget"
        found_some = f"{len(minima)} budget{'s have' if len(minima) != 1 else ' has'} an optimum"
        reasons += (f"{found_some} and a power law needs 2; {remedy}",)
    else:
        c = np.array([flops for flops, _ in minima])
        params_law, params_se = regress(c, *np.array([(m.params, m.params_se) for _, m in minima]).T)
        tokens_law, tokens_se = regress(c, *np.array([(m.tokens, m.tokens_se) for _, m in minima]).T)
    used = {name for b in budgets if b.minimum for name in b.window}
    beyond = f"outside the {2 * window + 1} sizes around the least loss"
    if interp == "akima":
        beyond = "another run of its size and budget has less loss"
    return Isoflop(
        status="ok" if params_law else "refused",
        reasons=reasons,
        used=tuple(name for name in runs.run if name in used),
        dropped=tuple(Dropped(name, b.reason or beyond) for b in budgets for name in b.runs if name not in used),
        params_law=params_law,
        tokens_law=tokens_law,
        interp=interp,
        window=window,
        budgets=budgets,
        params_exponent_se=params_se,
        tokens_exponent_se=tokens_se,
        noise=noise,
        freedom=int(parabolas.freedom[0]),
    )


def refit_noise(runs: Runs, fit: Isoflop, losses: Floats) -> tuple[Floats, Floats]:
    """Fit again to each draw of the losses (k, rows): (log k, a) of N* = k C^a and of D*, each (k, 2), nan if refused.

    The parabola equals `isoflop` called k times. Akima keeps the fit's standard errors as weights, as Porian et al. do.
    """
    slices = _slices(runs)
    if fit.interp == "parabola":
        found: _Found = _parabolas(runs, slices, losses, fit.window)
    else:
        errors = [(b.minimum.params_se, b.minimum.tokens_se) if b.minimum else (np.nan, np.nan) for b in fit.budgets]
        n_se, d_se = np.broadcast_to(np.array(errors).T[:, None], (2, len(losses), len(slices)))
        found = replace(_splines(runs, slices, losses), n_se=n_se, d_se=d_se)
    ok = (found.state == OK) & ~np.isnan(found.n_se)
    log_c = np.log([part.flops for part in slices])
    return _lines(log_c, found.n, found.n_se, ok), _lines(log_c, found.d, found.d_se, ok)


def _lines(log_c: Floats, y: Floats, se: Floats, ok: NDArray[np.bool_]) -> Floats:
    """Regress as `regress` does, a row of y (k, budgets) at a time, through the budgets that are ok."""
    exact = ((se <= 0) & ok).any(axis=1, keepdims=True)  # no noise: equal weights
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(ok, np.where(exact, 1.0, se**-2.0), 0.0)
        weight /= weight.sum(axis=1, keepdims=True)
        y = np.where(ok, y, 0.0)
        x_mean, y_mean = weight @ log_c, (weight * y).sum(axis=1)
        x = log_c - x_mean[:, None]
        slope = (weight * x * y).sum(axis=1) / (weight * x**2).sum(axis=1)
    lines = np.stack([y_mean - slope * x_mean, slope], axis=1)
    return np.where(ok.sum(axis=1, keepdims=True) >= 2, lines, np.nan)


@dataclass(frozen=True)
class _Slice:
    """The runs of one budget, by size and then loss, and what of them does not depend on the losses."""

    rows: Ints
    flops: float
    sizes: Floats
    starts: Ints  # where in rows each size begins
    spread: float

    @property
    def state(self) -> int:
        return STATIC if len(self.sizes) < MIN_SIZES or np.log(self.spread) > BUDGET_SPREAD else OK

    def mean(self, columns: Floats) -> Floats:
        """Average (k, rows) over the rows of each size."""
        return np.add.reduceat(columns, self.starts, axis=-1) / np.diff(self.starts, append=len(self.rows))


def _slices(runs: Runs) -> list[_Slice]:
    log_c = np.log(runs.flops)
    order = np.argsort(log_c, kind="stable")
    groups: list[Ints] = []
    for rows in np.split(order, np.flatnonzero(np.diff(log_c[order]) > BUDGET_GAP) + 1):
        groups += [rows] if np.ptp(log_c[rows]) <= BUDGET_SPREAD else _crowds(rows, log_c, runs.params)
    slices = []
    for rows in sorted(groups, key=lambda rows: log_c[rows].mean()):
        rows = rows[np.lexsort((runs.loss[rows], runs.params[rows]))]  # an order that the table's does not change
        n, c = runs.params[rows], log_c[rows]
        starts = np.flatnonzero(np.append(True, n[1:] > n[:-1]))
        slices.append(_Slice(rows, float(np.exp(c.mean())), n[starts], starts, float(np.exp(c.max() - c.min()))))
    return slices


def _crowds(rows: Ints, log_c: Floats, params: Floats) -> list[Ints]:
    """Find budgets among scattered runs, ordered by C: the fullest windows in turn; the runs between them come last."""
    crowds, left = [], rows
    while len(left):
        ends = np.searchsorted(log_c[left], log_c[left] + CROWD_WIDTH, side="right")
        sizes = _distinct(params[left], ends)
        first = int(sizes.argmax())
        if sizes[first] < CROWD_SIZES:
            break
        fullest = left[first : ends[first]]
        crowds.append(fullest)
        left = np.setdiff1d(left, fullest, assume_unique=True)
        left = left[np.argsort(log_c[left], kind="stable")]
    return [*crowds, left] if len(left) else crowds


def _distinct(values: Floats, ends: Ints) -> Ints:
    """Count the different values among values[i : ends[i]] for each i, where `ends` do not fall.

    A value is counted at its first place in a window: place j is one for all i from after the place before it that has
    the same value, or from the first window that reaches j, up to j.
    """
    place = np.arange(len(values))
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    before = np.full(len(values), -1)
    before[order[1:][same]] = order[:-1][same]
    begin = np.maximum(before + 1, np.searchsorted(ends, place, side="right"))
    n = len(values) + 1
    return np.cumsum(np.bincount(begin, minlength=n) - np.bincount(place + 1, minlength=n))[:-1]


@dataclass(frozen=True)
class _Found:
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
class _Parabolas(_Found):
    """Parabolas (draws, budgets, 3) in log N from the least size, and the noise (draws,) of one loss about them.

    `freedom` (draws,) counts the losses beyond those that the parabolas take.
    """

    curve: Floats
    bend_se: Floats
    noise: Floats
    freedom: Floats


def _edges(least: Ints, part: _Slice) -> Ints:
    return np.where(least == 0, SMALLEST, np.where(least == len(part.sizes) - 1, LARGEST, OK))


def _near(part: _Slice, least: int, window: int) -> slice:
    """Give the rows of the sizes around one."""
    ends = np.append(part.starts, len(part.rows))
    return slice(ends[max(0, least - window)], ends[min(len(part.sizes), least + window + 1)])


def _parabolas(runs: Runs, slices: list[_Slice], losses: Floats, window: int) -> _Parabolas:
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
        if part.state != OK:
            continue
        y, log_n, log_d = losses[:, part.rows], np.log(part.sizes), np.log(runs.tokens[part.rows])
        x = np.log(runs.params[part.rows])
        least[:, j] = part.mean(y).argmin(axis=1)
        state[:, j] = _edges(least[:, j], part)
        for i in set(least[state[:, j] == OK, j].tolist()):
            at, near = np.flatnonzero(least[:, j] == i), _near(part, i, window)
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
        return _Parabolas(
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


def _splines(runs: Runs, slices: list[_Slice], losses: Floats) -> _Found:
    """Find the minimum of the Akima spline of each budget of each draw, without standard errors."""
    shape = len(losses), len(slices)
    state, least = np.full(shape, STATIC), np.zeros(shape, dtype=int)
    n, d, loss = np.full((3, *shape), np.nan)
    for j, part in enumerate(slices):
        if part.state != OK:
            continue
        best = np.minimum.reduceat(losses[:, part.rows], part.starts, axis=1)
        least[:, j] = best.argmin(axis=1)
        state[:, j] = _edges(least[:, j], part)
        x, log_d = np.log(part.sizes), part.mean(np.log(runs.tokens[part.rows]))
        n[:, j], log_loss = _spline_minimum(x, np.log(np.maximum(best, 1e-9)))  # a draw may fall below 0
        d[:, j] = np.interp(n[:, j], x, log_d)
        loss[:, j] = np.exp(log_loss)
    return _Found(state, least, n, d, loss, *np.full((3, *shape), np.nan))


def _spline_minimum(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Find where the Akima spline through x (s,) and each row of y (k, s) is least, in closed form, and its value."""
    c3, c2, c1, c0 = Akima1DInterpolator(x, y.T).c  # each (s - 1, k): a cubic in h = x - x_i on each interval
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -c1 / (c2 + np.sqrt(c2**2 - 3 * c3 * c1))  # where the slope is 0 and rises
    h = np.where((h > 0) & (h < np.diff(x)[:, None]), h, 0)
    value = c0 + h * (c1 + h * (c2 + h * c3))
    i, k = value.argmin(axis=0), np.arange(len(y))
    return x[i] + h[i, k], value[i, k]


def _splines_with_errors(runs: Runs, slices: list[_Slice], noise: float, seed: int) -> _Found:
    """Find the Akima minima, with errors from draws of the noise of one loss."""
    found = _splines(runs, slices, runs.loss[None])
    order = np.concatenate([part.rows for part in slices])
    sd = np.nan_to_num(np.fmax(noise, runs.evaluation_noise))
    losses = np.empty((AKIMA_DRAWS, len(runs)))
    losses[:, order] = runs.loss[order] + sd * np.random.default_rng(seed).standard_normal(losses.shape)
    drawn = _splines(runs, slices, losses)
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


def _budget(runs: Runs, part: _Slice, found: _Found, window: int, j: int) -> Budget:
    """Report on a budget of the first draw: its window, its minimum, or why it has none and what to add."""
    budget = Budget(part.flops, _names(runs, part.rows))
    state, least = found.state[0, j], int(found.least[0, j])
    if state in (STATIC, SMALLEST, LARGEST):
        return replace(budget, reason=_reason(part, found, j, part.sizes))
    rows = part.rows[_near(part, least, window)] if isinstance(found, _Parabolas) else part.rows[part.starts]
    budget = replace(budget, window=_names(runs, rows), reason=_reason(part, found, j, runs.params[rows]))
    if isinstance(found, _Parabolas):
        budget = replace(budget, centre=float(part.sizes[least]), curve=tuple(found.curve[0, j].tolist()))
    if state != OK:
        return budget
    n, d, *rest = (
        float(column[0, j]) for column in (found.n, found.d, found.loss, found.n_se, found.d_se, found.loss_se)
    )
    return replace(budget, minimum=Minimum(math.exp(n), math.exp(d), *rest))


def _names(runs: Runs, rows: Ints) -> tuple[str, ...]:
    return tuple(runs.run[i] for i in rows)


def _reason(part: _Slice, found: _Found, j: int, sizes: Floats) -> str:
    """Say why this budget of the first draw has no minimum, and what to add; sizes are those that were fitted."""
    state = found.state[0, j]
    if state == OK:
        return ""
    smallest, largest = float(sizes[0]), float(sizes[-1])
    smaller, larger = short(smallest / 2), short(largest * 2)
    name = f"budget {part.flops:.3g}".replace("e+", "e")
    if state == STATIC and np.log(part.spread) > BUDGET_SPREAD:
        return (
            f"{name}: its runs spread over {short(part.spread)}x in FLOPs; an isoFLOP budget needs runs of equal FLOPs"
        )
    if state == STATIC:
        wanted = f"add {MIN_SIZES - len(sizes)}, as near {smaller} or {larger}"
        return f"{name}: of {MIN_SIZES} sizes that a minimum needs it has {len(sizes)}; {wanted}"
    if state == SMALLEST:
        return f"{name}: the least loss is at the smallest size {short(smallest)}; add a size near {smaller}"
    if state == LARGEST:
        return f"{name}: the least loss is at the largest size {short(largest)}; add a size near {larger}"
    if isinstance(found, _Parabolas) and state == FLAT:
        bend, se = found.curve[0, j, 2], found.bend_se[0, j]
        what = f"curvature {bend:.2g} is not clearly above 0 (standard error {se:.2g})"
        return f"{name}: {what}; add sizes farther out, near {smaller} and {larger}"
    if state == OUTSIDE:
        params = math.exp(found.n[0, j])
        where = smaller if params < smallest else larger
        return f"{name}: the minimum {short(params)} lies outside the sizes; add one near {where}"
    what = "in half or more of the draws of the noise the least loss is at the smallest or largest size"
    return f"{name}: {what}; add sizes farther out, near {smaller} and {larger}"
