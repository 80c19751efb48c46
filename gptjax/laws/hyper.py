"""Learning-rate and batch laws: the best rate of each cell (one N, one D), found from several, and how it scales.

The best batch of a cell is where the loss, minimised over rates first, is least: rate and batch lie on a ridge, and a
batch compared at one rate would only say which batch that rate suits.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws.codec import Json
from gptjax.laws.fit import TRUSTED_FREEDOM
from gptjax.laws.table import Floats, Runs, short

SAME, SAME_RATE = 1.05, 1.01  # N, D and batches, and rates, within this factor are one
REACH = 4.0  # a curve sees what lies within this factor of the best, and at least its neighbours
MIN_TRIED = 3
CUBIC_FROM = 4  # rates that carry a cubic: loss rises faster above the best rate than below, which tilts a parabola
DIVERGED = 1.1  # times the least loss: a rate above the best with more has diverged, and no curve goes through it
VARIES = 1.5  # the factor over which N or D must vary to carry an exponent
COLLINEAR = 0.9  # r^2 of log N and log D from which they have no exponents of their own


@dataclass(frozen=True)
class Trials:
    """Runs as columns: loss is inf where a run diverged, loss_se and batch_tokens are nan where unknown."""

    params: Floats
    tokens: Floats
    lr: Floats
    batch_tokens: Floats
    loss: Floats
    loss_se: Floats


def trials(runs: Runs) -> Trials:
    """Take the runs whose learning rate the table tells; tokens a step are D over steps. BadInput where none does."""
    lr = runs.fact("lr")
    known = np.flatnonzero(lr > 0)
    if not len(known):
        raise BadInput("no run tells its learning rate; add a column lr, and steps for the batch")
    runs = runs.take(known)
    return Trials(runs.params, runs.tokens, lr[known], runs.tokens / runs.fact("steps"), runs.loss, runs.loss_se)


@dataclass(frozen=True)
class _Curve:
    """Loss against log x in one cell, x being rates or batches, and the optimum or the reason why there is none.

    Within the window loss = sum_i coef[i] log(x / centre)^i; covariance and chi2 are for rows of standard error sd.
    """

    params: float
    tokens: float
    batch_tokens: float
    name: str
    what: str  # "rate" or "batch"
    x: Floats
    loss: Floats
    sd: Floats
    inside: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    centre: float = np.nan
    coef: Floats = field(default_factory=lambda: np.zeros(0))
    covariance: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    chi2: float = 0.0
    optimum: float = np.nan
    log_se: float = np.nan
    least: float = np.nan  # the loss at the optimum; of a refused curve, the least mean of its rows
    least_se: float = np.nan
    reason: str = ""

    @property
    def plural(self) -> str:
        return {"rate": "rates", "batch": "batches"}[self.what]

    def say(self, x: float) -> str:
        return f"{x:.3g}" if self.what == "rate" else short(x)


def fit_hyper(trials: Trials) -> Json:
    """Fit the best learning rate, and the best batch in tokens, as power laws of N and D.

    Gives {"lr": law, "batch_tokens": law}. A law has status, reasons, coef, params_exponent, tokens_exponent and their
    standard errors (coef's of its logarithm), variables (those it is a law of), ranges, and cells: the optimum of each
    with log_se, its curve and points, or the reason of its refusal. A cell is refused, with what to add, when it has
    fewer than 3 rates, its least loss at an edge, or no clear curvature. With several batches its rate is the one at
    its best batch; with one, the law is of the best rate at the batches given.
    """
    sd = np.ones_like(trials.loss) if np.isnan(trials.loss_se).any() else trials.loss_se
    cells = _located([c for cell in _cells(trials, sd) for c in cell])
    by_cell: dict[tuple[float, float], list[_Curve]] = {}
    for curve in cells:
        by_cell.setdefault((curve.params, curve.tokens), []).append(curve)
    best = [min(curves, key=lambda c: c.least) for curves in by_cell.values()]
    several = [curves for curves in by_cell.values() if len(curves) > 1]
    profiles = _located([_profile(curves) for curves in several])
    ridges = {(p.params, p.tokens): (p, curves) for p, curves in zip(profiles, several, strict=True) if not p.reason}
    best = [_at_best_batch(c, *ridges[key]) if (key := (c.params, c.tokens)) in ridges else c for c in best]
    return {"lr": _law(best, "learning rates"), "batch_tokens": _law(profiles, "batches of several rates")}


def rate(hyper: Json, params: float, tokens: float) -> float:
    """Give the fitted best learning rate at (N, D); BadInput where the law was refused."""
    return evaluate(hyper["lr"], params, tokens)[0]


def batch_tokens(hyper: Json, params: float, tokens: float) -> float:
    """Give the fitted best batch in tokens at (N, D); BadInput where the law was refused."""
    return evaluate(hyper["batch_tokens"], params, tokens)[0]


def evaluate(law: Json, params: float, tokens: float) -> tuple[float, float]:
    """Give one law's value at (N, D) and the standard error of its logarithm (nan where the noise is unknown)."""
    if law["status"] != "ok":
        raise BadInput(f"this law was refused ({'; '.join(law['reasons'])}); use a published rule")
    z = np.array([1.0, *(np.log([params, tokens]) - np.log([law["centre"][n] for n in ("params", "tokens")]))])
    value = law["coef"] * params ** law["params_exponent"] * tokens ** law["tokens_exponent"]
    covariance = law["covariance"]
    return float(value), np.nan if covariance is None else float(np.sqrt(z @ np.array(covariance) @ z))


def _groups(values: Floats, within: float) -> list[NDArray[np.int_]]:
    """Split positions into groups whose values lie within a factor of their least."""
    order = np.argsort(values, kind="stable")
    starts = [0]
    for i in range(1, len(order)):
        if values[order[i]] > within * values[order[starts[-1]]]:
            starts.append(i)
    return np.split(order, starts[1:])


def _cells(trials: Trials, sd: Floats) -> list[list[_Curve]]:
    """Gather rows into curves of loss against rate: a list for each cell, of one for each batch with several rates."""
    cells = []
    batches = np.where(np.isnan(trials.batch_tokens), 1.0, trials.batch_tokens)
    for of_size in _groups(trials.params, SAME):
        n = float(trials.params[of_size].mean())
        horizons = _groups(trials.tokens[of_size], SAME)
        for horizon in horizons:
            rows = of_size[horizon]
            d = float(trials.tokens[rows].mean())
            name = f"N = {short(n)}" + (f", D = {short(d)}" if len(horizons) > 1 else "")
            slices = [rows[index] for index in _groups(batches[rows], SAME)]
            curves = []
            for index in slices:
                batch = float(trials.batch_tokens[index].mean())
                x = trials.lr[index].copy()
                for same in _groups(x, SAME_RATE):
                    x[same] = x[same].mean()
                suffix = f", batch {short(batch)}" if len(slices) > 1 else ""
                if len(np.unique(x)) > 1:
                    curves.append(_Curve(n, d, batch, name + suffix, "rate", x, trials.loss[index], sd[index]))
            cells.append(curves)
    return cells


def _profile(curves: list[_Curve]) -> _Curve:
    """Make the curve of loss, minimised over rates, against batch; refused where a refused batch might be the best."""
    found = [c for c in curves if not c.reason]
    x, loss, sd = np.array([(c.batch_tokens, c.least, c.least_se) for c in found]).reshape(-1, 3).T
    if not (sd > 0).all():
        sd = np.ones_like(sd)
    first = min(curves, key=lambda c: c.least)
    name = first.name.rpartition(", batch")[0]
    reason = f"{name}: its best batch {short(first.batch_tokens)} is refused: {first.reason}" if first.reason else ""
    return _Curve(first.params, first.tokens, np.nan, name, "batch", x, loss, sd, reason=reason)


def _at_best_batch(best: _Curve, profile: _Curve, curves: list[_Curve]) -> _Curve:
    """Move a cell's best rate to its best batch, straight in logs between the batches on either side."""
    found = sorted((c for c in curves if not c.reason), key=lambda c: c.batch_tokens)
    i = int(np.clip(np.searchsorted([c.batch_tokens for c in found], profile.optimum), 1, len(found) - 1))
    low, high = found[i - 1], found[i]
    step = np.log(high.batch_tokens / low.batch_tokens)
    share, slope = np.log(profile.optimum / low.batch_tokens) / step, np.log(high.optimum / low.optimum) / step
    errors = ((1 - share) * low.log_se, share * high.log_se, slope * profile.log_se)
    return replace(
        best,
        batch_tokens=profile.optimum,
        optimum=low.optimum * (high.optimum / low.optimum) ** share,
        log_se=float(np.sqrt(np.sum(np.square(errors)))),
        least=profile.least,
    )


def _located(curves: list[_Curve]) -> list[_Curve]:
    """Fit every curve, pool their scatter, and find each optimum."""
    curves = [c if c.reason else _fitted(c) for c in curves]
    scale = _scale([c for c in curves if not c.reason])
    return [c if c.reason else _optimum(c, scale) for c in curves]


def _tried(curve: _Curve) -> tuple[Floats, Floats]:
    """Give what was tried, in order, and the mean loss of each: inf for a rate at which a run diverged."""
    x = np.unique(curve.x)
    loss = np.array([curve.loss[curve.x == value].mean() for value in x])
    if curve.what == "rate":
        loss[(x > x[np.argmin(loss)]) & (loss > DIVERGED * loss.min())] = np.inf
    return x, loss


def _refusal(curve: _Curve) -> str:
    """Say why these points hold no optimum and what to add, or nothing."""
    x, loss = _tried(curve)
    kept = np.flatnonzero(np.isfinite(loss))
    what, say = curve.what, curve.say
    if not len(kept):
        return f"every {what} of {curve.name} diverged; add {say(x[0] / 4)}"
    least = kept[np.argmin(loss[kept])]
    below = x[0] ** 2 / x[1] if len(x) > 1 else x[0] / 2
    above = x[-1] ** 2 / x[-2] if len(x) > 1 else x[-1] * 2
    lost = np.flatnonzero(~np.isfinite(loss) & (x > x[least]))  # it bounds the optimum, and gives no point of a curve
    if len(lost):
        above = np.sqrt(x[lost[0]] * x[lost[0] - 1])
    if len(x) < MIN_TRIED:
        more = [below, above] if len(x) == 1 else [below if least == 0 else above]
        have = f"{len(x)} {what if len(x) == 1 else curve.plural}"
        return f"{curve.name} has {have} and an optimum needs {MIN_TRIED}; add {' and '.join(map(say, more))}"
    if least == kept[0]:
        return f"the best {what} {say(x[least])} of {curve.name} is the smallest tried; add {say(below)}"
    if least == kept[-1]:
        edge = "largest that did not diverge" if len(lost) else "largest tried"
        return f"the best {what} {say(x[least])} of {curve.name} is the {edge}; add {say(above)}"
    return ""


def _fitted(curve: _Curve) -> _Curve:
    """Fit a parabola, or with enough points a cubic, around the best, weighted by noise; or refuse."""
    x, loss = _tried(curve)
    curve = replace(curve, inside=np.zeros(len(curve.x), bool), least=float(np.min(loss, initial=np.inf)))
    if reason := _refusal(curve):
        return replace(curve, reason=reason)
    x, loss = x[np.isfinite(loss)], loss[np.isfinite(loss)]
    least = int(np.argmin(loss))
    near = np.abs(np.log(x / x[least])) < 1.01 * np.log(REACH)
    near[least - 1 : least + 2] = True
    inside = np.isin(curve.x, x[near])
    degree = 3 if curve.what == "rate" and near.sum() >= CUBIC_FROM else 2
    design = np.vander(np.log(curve.x[inside] / x[least]), degree + 1, increasing=True)
    sd, y = curve.sd[inside], curve.loss[inside]
    covariance = np.linalg.inv(design.T @ (design / sd[:, None] ** 2)).astype(np.float64)
    coef = covariance @ design.T @ (y / sd**2)
    chi2 = float(np.sum(((y - design @ coef) / sd) ** 2))
    return replace(curve, inside=inside, centre=float(x[least]), coef=coef, covariance=covariance, chi2=chi2, reason="")


def _scale(curves: list[_Curve]) -> float:
    """Pool the scatter over curves as a multiple of the rows' sd; nan where neither it nor their noise is known.

    loss_se is mostly the noise of validation tokens, which runs of one sweep share, so it yields to enough scatter.
    """
    freedom = sum(int(c.inside.sum()) - len(c.coef) for c in curves)
    known = not any((c.sd == 1).all() for c in curves)
    scale = float(np.sqrt(sum(c.chi2 for c in curves) / freedom)) if freedom > 0 else np.nan
    return scale if freedom >= TRUSTED_FREEDOM or not known else float(np.nanmax([1.0, scale]))


def _optimum(curve: _Curve, scale: float) -> _Curve:
    """Find the minimum within the window, with standard errors by the delta method, or refuse."""
    poly, covariance = Polynomial(curve.coef), scale**2 * curve.covariance
    u = np.log(curve.x[curve.inside] / curve.centre)
    roots = poly.deriv().roots()
    minima = [r.real for r in roots if abs(r.imag) < 1e-9 and poly.deriv(2)(r.real) > 0]
    low, high = (curve.say(x) for x in curve.centre * np.exp([u.min(), u.max()]) * [0.5, 2])
    farther = f"add {curve.plural} farther out, as {low} and {high}, or seeds"
    at = minima[0] if minima else 0.0
    powers = np.arange(len(curve.coef))
    slope = powers * float(at) ** np.maximum(powers - 1, 0)  # d poly' / d coef
    half = powers * (powers - 1) / 2 * float(at) ** np.maximum(powers - 2, 0)
    bend, bend_se = float(half @ curve.coef), float(np.sqrt(half @ covariance @ half))
    if not minima or bend <= 2 * np.nan_to_num(bend_se):
        what = f"loss is not clearly convex in the {curve.what} (curvature {bend:.2g}, standard error {bend_se:.2g})"
        return replace(curve, reason=f"{curve.name}: {what}; {farther}")
    if not u.min() <= at <= u.max():
        return replace(curve, reason=f"{curve.name}: the minimum lies beyond the {curve.plural} tried; {farther}")
    value = float(at) ** powers
    return replace(
        curve,
        optimum=float(curve.centre * np.exp(at)),
        log_se=float(np.sqrt(slope @ covariance @ slope)) / (2 * bend),
        least=float(poly(at)),
        least_se=float(np.sqrt(value @ covariance @ value)),
    )


def _law(curves: list[_Curve], tried: str) -> Json:
    """Regress the log optimum on log N and log D, weighted, and gather everything as JSON."""
    found = [c for c in curves if not c.reason]
    law: Json = {"status": "refused", "reasons": [c.reason for c in curves if c.reason], "coef": None}
    law |= dict.fromkeys(("params_exponent", "tokens_exponent", "coef_log_se", "params_exponent_se"))
    law |= dict.fromkeys(("tokens_exponent_se", "covariance", "centre"))
    law |= {"variables": [], "ranges": {}, "cells": [_json(c) for c in curves]}
    if not curves:
        law["reasons"] = [f"no cell of N and D was trained at several {tried}; train two sizes at {MIN_TRIED} or more"]
        return plain(law)
    x = np.log([(c.params, c.tokens) for c in found]).reshape(-1, 2)
    variables, note = _variables(x, first=0 if curves[0].what == "rate" else 1)
    law["reasons"] += [note] if note else []
    if not variables:
        return plain(law)
    y, se = np.log([c.optimum for c in found]), np.array([c.log_se for c in found])
    known = bool((se > 0).all())
    sd = se if known else np.ones_like(se)
    centre = sd**-2 @ x / np.sum(sd**-2)
    design = np.column_stack([np.ones(len(y)), (x - centre)[:, variables]])
    covariance = np.linalg.inv(design.T @ (design / sd[:, None] ** 2))
    coef = covariance @ design.T @ (y / sd**2)
    freedom = len(y) - len(coef)
    chi2 = np.sum(((y - design @ coef) / sd) ** 2) / freedom if freedom else np.nan
    covariance *= np.nanmax([1.0, chi2]) if known else chi2  # the cells' own scatter, when it is more than their errors
    places = [0, *(1 + v for v in variables)]
    full, whole = np.zeros(3), np.zeros((3, 3))
    full[places], whole[np.ix_(places, places)] = coef, covariance
    to_one = np.array([1.0, *-centre])  # from the centre, where the errors are least, to N = D = 1
    names = ("params", "tokens")
    spans = zip(names, np.exp(x.min(axis=0)), np.exp(x.max(axis=0)), strict=True)
    return plain(
        law
        | {
            "status": "ok",
            "coef": np.exp(to_one @ full),
            "params_exponent": full[1],
            "tokens_exponent": full[2],
            "coef_log_se": np.sqrt(to_one @ whole @ to_one),
            "params_exponent_se": np.sqrt(whole[1, 1]) if 0 in variables else None,
            "tokens_exponent_se": np.sqrt(whole[2, 2]) if 1 in variables else None,
            "variables": [names[v] for v in variables],
            "ranges": {name: [low, high] for name, low, high in spans},
            "centre": dict(zip(names, np.exp(centre), strict=True)),
            "covariance": whole if np.isfinite(whole).all() else None,
        }
    )


def _variables(x: Floats, first: int) -> tuple[list[int], str]:
    """Choose what the law is a law of, columns of log N and log D, and say what was left out and why.

    Where the cells carry only one exponent it is N's for a rate and D's for a batch, if that varies.
    """
    names = "ND"
    varies = [v for v in (0, 1) if len(x) and np.ptp(x[:, v]) > np.log(VARIES)]
    if len(x) < 2 or not varies:
        where = "" if len(x) < 2 else f", all of nearly the same N and D (within {VARIES:g}x)"
        count = f"{len(x)} cell{'s' * (len(x) != 1)}"
        return [], f"{count} with an optimum{where}, and a power law needs 2 that differ; mend those refused or add one"
    if len(varies) == 1:
        return varies, f"a law of {names[varies[0]]} alone: {names[1 - varies[0]]} hardly varies"
    if np.asarray(np.corrcoef(x.T))[0, 1] ** 2 > COLLINEAR:
        other, own = names[1 - first], names[first]
        slope = Polynomial.fit(x[:, first], x[:, 1 - first], 1).convert().coef[1]
        return [first], f"a law of {own} alone, along {other} ~ {own}^{slope:.2f}: the cells vary both together"
    if len(x) < 4:
        return [first], f"a law of {names[first]} alone: {len(x)} cells are too few for N and D, which need 4"
    return [0, 1], ""


def _json(curve: _Curve) -> Json:
    inside = curve.inside if len(curve.inside) else np.zeros(len(curve.x), bool)
    order = np.argsort(curve.x, kind="stable")
    columns = zip(curve.x[order], curve.loss[order], curve.sd[order], inside[order], strict=True)
    known = not (curve.sd == 1).all()
    return {
        "params": curve.params,
        "tokens": curve.tokens,
        "batch_tokens": curve.batch_tokens,
        "optimum": curve.optimum,
        "log_se": curve.log_se,
        "loss": curve.least,
        "centre": curve.centre,
        "curve": curve.coef,
        "points": [{"x": x, "loss": y, "loss_se": s if known else None, "inside": i} for x, y, s, i in columns],
        "reason": curve.reason,
    }
