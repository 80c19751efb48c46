"""Approach 2 of Hoffmann et al. 2022 (3.2): the minimum of loss over log N at each budget, and a line through these.

Losses come as draws (k, rows), one draw for a fit and many for a bootstrap, and one code serves both.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gptjax.errors import BadInput
from gptjax.laws.budgets import BUDGET_SPREAD, MIN_SIZES, Slice, slices_of
from gptjax.laws.fit import Fit, regress
from gptjax.laws.law import Ints
from gptjax.laws.minima import (
    FLAT,
    LARGEST,
    OK,
    OUTSIDE,
    SMALLEST,
    STATIC,
    Minima,
    Parabolas,
    SizeWindow,
    chosen_window,
    parabolas,
    splines,
    splines_with_errors,
)
from gptjax.laws.table import Dropped, Floats, Runs, short

Interp = Literal["parabola", "akima"]


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
    window: SizeWindow
    budgets: tuple[Budget, ...]
    params_exponent_se: float
    tokens_exponent_se: float
    noise: float
    freedom: int


def isoflop(runs: Runs, *, interp: Interp = "parabola", window: int = 0, seed: int = 0) -> Isoflop:
    """Find the best size at each budget, then regress log N* and log D* on log C.

    "parabola" fits loss over log N, least squares, to the least mean loss and `window` sizes on either side; with 0,
    to 3 on either side where a budget has up to 7 sizes, else to those in a range of log N that the noise decides
    (`chosen_window`). "akima" interpolates log loss over log N through the best run of each size (Porian et al. 2024,
    arXiv 2406.19146); its standard errors come from 1000 draws (`seed`) of one loss's noise, that of log N* at least a
    third of the gap between sizes, as theirs. Runs of nearly equal C make a budget; where C is scattered, its fullest
    windows do. A budget is refused, with what to run next, when it has fewer than 4 sizes, its least loss at the
    smallest or largest size (under Akima, also in half of the draws), or no clear upward curvature.

    A law is not a parabola. On noise-free geometric grids centred on the optimum the exponent is exact and N* biased
    (Hoffmann's law: 2.7 % too large on 15 sizes within 8x, 7.7 % within 32x); a lopsided grid, or one whose centre
    drifts with the budget, biases the exponent too (arXiv 2603.22339). Akima has less of this bias and more variance.
    """
    if interp not in get_args(Interp):
        raise BadInput(f"interp {interp!r} is not known; use {' or '.join(get_args(Interp))}")
    if window < 2 and window != 0:
        few = f"a window of {window} sizes on either side is too few for a parabola"
        raise BadInput(f"{few}; use 2 or more, or 0 to have it chosen")
    slices = slices_of(runs)
    seen = chosen_window(runs, slices, window)
    fitted = parabolas(runs, slices, runs.loss[None], seen)
    noise = float(fitted.noise[0])
    found = splines_with_errors(runs, slices, noise, seed) if interp == "akima" else fitted
    budgets = tuple(_budget(runs, part, found, seen, j) for j, part in enumerate(slices))

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
    beyond = f"outside {seen}"
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
        window=seen,
        budgets=budgets,
        params_exponent_se=params_se,
        tokens_exponent_se=tokens_se,
        noise=noise,
        freedom=int(fitted.freedom[0]),
    )


def refit_noise(runs: Runs, fit: Isoflop, losses: Floats) -> tuple[Floats, Floats]:
    """Fit again to each draw of the losses (k, rows): (log k, a) of N* = k C^a and of D*, each (k, 2), nan if refused.

    The parabola equals `isoflop` called k times, with the window of the fit. Akima keeps the fit's standard errors as
    weights, as Porian et al. do.
    """
    slices = slices_of(runs)
    if fit.interp == "parabola":
        found: Minima = parabolas(runs, slices, losses, fit.window)
    else:
        errors = [(b.minimum.params_se, b.minimum.tokens_se) if b.minimum else (np.nan, np.nan) for b in fit.budgets]
        n_se, d_se = np.broadcast_to(np.array(errors).T[:, None], (2, len(losses), len(slices)))
        found = replace(splines(runs, slices, losses), n_se=n_se, d_se=d_se)
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


def _budget(runs: Runs, part: Slice, found: Minima, window: SizeWindow, j: int) -> Budget:
    """Report on a budget of the first draw: its window, its minimum, or why it has none and what to add."""
    budget = Budget(part.flops, _names(runs, part.rows))
    state, least = found.state[0, j], int(found.least[0, j])
    if state in (STATIC, SMALLEST, LARGEST):
        return replace(budget, reason=_reason(part, found, j, part.sizes))
    rows = part.rows[window.near(part, least)] if isinstance(found, Parabolas) else part.rows[part.starts]
    budget = replace(budget, window=_names(runs, rows), reason=_reason(part, found, j, runs.params[rows]))
    if isinstance(found, Parabolas):
        budget = replace(budget, centre=float(part.sizes[least]), curve=tuple(found.curve[0, j].tolist()))
    if state != OK:
        return budget
    n, d, *rest = (
        float(column[0, j]) for column in (found.n, found.d, found.loss, found.n_se, found.d_se, found.loss_se)
    )
    return replace(budget, minimum=Minimum(math.exp(n), math.exp(d), *rest))


def _names(runs: Runs, rows: Ints) -> tuple[str, ...]:
    return tuple(runs.run[i] for i in rows)


def _reason(part: Slice, found: Minima, j: int, sizes: Floats) -> str:
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
    if isinstance(found, Parabolas) and state == FLAT:
        bend, se = found.curve[0, j, 2], found.bend_se[0, j]
        what = f"curvature {bend:.2g} is not clearly above 0 (standard error {se:.2g})"
        return f"{name}: {what}; add sizes farther out, near {smaller} and {larger}"
    if state == OUTSIDE:
        params = math.exp(found.n[0, j])
        where = smaller if params < smallest else larger
        return f"{name}: the minimum {short(params)} lies outside the sizes; add one near {where}"
    what = "in half or more of the draws of the noise the least loss is at the smallest or largest size"
    return f"{name}: {what}; add sizes farther out, near {smaller} and {larger}"
