"""Approach 3 of Hoffmann et al. 2022 (3.3 and D.2): a law of N and D by a robust fit of log loss, from many starts."""

from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.laws.fit import Choices, Estimator, Fit, Status
from gptjax.laws.forms import AnyLaw, Form
from gptjax.laws.law import Law, PowerLaw
from gptjax.laws.solver import solve
from gptjax.laws.table import Floats, Runs, short

MAX_EXPONENT = 2.0  # the largest start; a fit beyond it describes one or two rows
MOST_OUTSIDE = 4.0  # an optimum at a sampled budget farther outside the sampled sizes than this factor is no finding
TOGETHER = 0.9999  # correlation of log N and log D
BASINS = 20  # end points that are followed farther, best first
SAMPLE = 500  # rows on which all starts are tried when there are more


@dataclass(frozen=True, kw_only=True)
class Parametric(Fit):
    """The law; errors are log predicted - log measured, a row each; share_at_best is of the starts.

    `noise` is the standard deviation of one run's log loss about the law. `extra` are the values at which optima hold
    the columns of the law besides N and D: their medians over the rows.
    """

    approach = "parametric"

    form: Form
    extra: dict[str, float]
    law: AnyLaw | None
    theta: Floats
    estimator: Estimator
    delta: float
    objective: float
    starts: int
    share_at_best: float
    errors: Floats
    weights: Floats
    noise: float

    @property
    def plane(self) -> Law | None:
        """The law as one of N and D, with its further columns held; None where it reads but one column."""
        return self.law.held(self.extra) if isinstance(self.law, Law) else None


def parametric(
    runs: Runs,
    choices: Choices | None = None,
    *,
    form: Form | None = None,
    weights: Floats | None = None,
    starts: Floats | None = None,
) -> Parametric:
    """Fit a law from all its starts (for Chinchilla's the 4500 published), each followed for 90 steps, in float64.

    The form is that of the choices, unless given.

    Minimises the sum over rows of weight times Huber_delta(log predicted - log measured); "lad" is its limit for small
    delta and reports sum |error|, "lsq-log" its limit for large delta, "lsq" the same of raw loss. Rows of weight 0 are
    as if absent; `weights` multiply those that are chosen. Degenerate, and then no basis for a forecast: an exponent
    not in (0, 2], a term that vanishes, E not below the least loss, or an optimum for a sampled budget that lies far
    outside the sampled sizes.
    """
    choices = choices or Choices()
    form = form or choices.law_form
    extra = {name: float(np.median(runs.column(name))) for name in form.extra}
    weights = _weights(runs, choices) * (1.0 if weights is None else weights)
    kept = runs.take(np.flatnonzero(weights > 0))
    shortage = _shortage(kept, form)
    if shortage:
        return Parametric(
            status="refused", reasons=(shortage,), used=(), dropped=(), params_law=None, tokens_law=None, form=form,
            extra=extra, law=None, theta=np.full(form.starts.shape[1], np.nan), estimator=choices.loss,
            delta=choices.delta, objective=np.nan, starts=0, share_at_best=np.nan, errors=np.zeros(0), weights=weights,
            noise=np.nan,
        )  # fmt: skip
    starts = form.starts if starts is None else starts
    first, *rest = _deltas(choices)
    if len(runs) > SAMPLE:
        spaced = np.lexsort((runs.tokens, runs.params))[np.linspace(0, len(runs) - 1, SAMPLE).astype(int)]
        ends, values = _minimise(runs.take(spaced), form, starts, weights[spaced], first, choices)
    else:
        ends, values = _minimise(runs, form, starts, weights, first, choices)
    with np.errstate(divide="ignore"):  # of an exact fit
        _, best_of, count = np.unique(np.round(np.log(values), 6), return_index=True, return_counts=True)
    thetas, values, count = ends[best_of[:BASINS]], values[best_of[:BASINS]], count[:BASINS]
    for delta in [first, *rest] if len(runs) > SAMPLE else rest:
        thetas, values = _minimise(runs, form, thetas, weights, delta, choices)
    share = count[values <= values.min() * (1 + 1e-6)].sum() / len(starts)
    theta = thetas[values.argmin()]
    law = form.at(theta)
    errors = np.log(predicted(law, form, runs) / runs.loss)
    plane = law.held(extra) if isinstance(law, Law) else None
    optima = plane.power_laws(*span(kept)) if plane else None
    reasons, status = judge(law, optima, kept)
    return Parametric(
        status=status,
        reasons=reasons,
        used=kept.run,
        dropped=(),
        params_law=optima[0] if optima else None,
        tokens_law=optima[1] if optima else None,
        form=form,
        extra=extra,
        law=law,
        theta=theta,
        estimator=choices.loss,
        delta=choices.delta,
        objective=float(weights @ np.abs(errors)) if choices.loss == "lad" else float(values.min()),
        starts=len(starts),
        share_at_best=float(share),
        errors=errors,
        weights=weights,
        noise=float(np.sqrt(np.sum(errors[weights > 0] ** 2) / max(1, len(kept) - len(theta)))),
    )


def refit(
    runs: Runs,
    fit: Parametric,
    choices: Choices,
    *,
    weights: Floats | None = None,
    losses: Floats | None = None,
    starts: Floats | None = None,
    free: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Fit again under each row of weights or of losses (k, rows), starting at the fit; gives theta (k, ...) and values.

    `starts` (k, ...) replace the fit's theta, and a coefficient whose `free` is 0 keeps its start.
    """
    weights = fit.weights if weights is None else fit.weights * weights
    losses = runs.loss if losses is None else losses
    problems = max(len(table) for table in (weights, losses, starts) if table is not None and np.ndim(table) == 2)
    thetas = np.tile(fit.theta, (problems, 1)) if starts is None else starts
    values = np.zeros(problems)
    for delta in _deltas(choices):
        thetas, values = _minimise(runs, fit.form, thetas, weights, delta, choices, losses, free)
    return thetas, values


def judge(law: AnyLaw, optima: tuple[PowerLaw, PowerLaw] | None, runs: Runs) -> tuple[tuple[str, ...], Status]:
    """Say what makes a law degenerate over the rows it was fitted to, and what else to know of it."""
    faults, notes = [], []
    exponents = {"alpha": "sizes", "beta": "tokens", "exponent": "the sweep", "alpha_N": "sizes", "alpha_D": "tokens"}
    for name, what in exponents.items():
        value = getattr(law, name, 1.0)
        if not 0 < value <= MAX_EXPONENT:
            remedy = f"widen the range of {what} or drop unfinished runs"
            faults.append(f"{name} = {value:.3g} is outside (0, {MAX_EXPONENT:g}]; {remedy}")
    for name, what in (("A", "sizes"), ("B", "tokens")):
        if not 0 < getattr(law, name, 1.0) < np.inf:
            faults.append(f"{name} = {getattr(law, name):.3g}: the loss tells nothing of {what}; check the table")
    floor = getattr(law, "E", None)
    if floor is not None and floor > runs.loss.min():
        faults.append(f"E = {floor:.4g} is above the least loss {runs.loss.min():.4g}; add larger budgets")
    if isinstance(law, Law) and not faults and not optima:
        faults.append("the optimum is no number: sizes or tokens are too alike to tell a slope; widen their range")
    if optima and not faults:
        for c, side in ((runs.flops.min(), "smallest"), (runs.flops.max(), "largest")):
            best = float(optima[0](c))
            if not runs.params.min() / MOST_OUTSIDE <= best <= runs.params.max() * MOST_OUTSIDE:
                sizes = f"{short(runs.params.min())} to {short(runs.params.max())}"
                faults.append(
                    f"the optimum {short(best)} at the {side} budget lies more than {MOST_OUTSIDE:g}x outside the "
                    f"sizes {sizes}; add sizes near it"
                )
        if floor is not None and floor < 0.01 * runs.loss.min():
            notes.append(f"E = {floor:.2g} is near 0: these budgets do not determine the floor, and E is no entropy")
    return tuple(faults + notes), "degenerate" if faults else "ok"


def columns_read(runs: Runs, form: Form) -> Floats:
    """Give what a form reads of the rows, (columns, rows): the columns as they are, or their logarithms."""
    columns = np.array([runs.column(name) for name in form.columns])
    return columns if form.raw else np.log(columns)


def predicted(law: AnyLaw, form: Form, runs: Runs) -> Floats:
    """Give the loss that a law of this form predicts for each row."""
    with np.errstate(all="ignore"):  # of a term too steep to be a number
        return law.loss(*(runs.column(name) for name in form.columns))


def span(runs: Runs) -> tuple[float, float]:
    """Give the least and the largest FLOPs, between which a curved N*(C) is read as a power law."""
    return float(runs.flops.min()), float(runs.flops.max())


def optima_of(runs: Runs, fit: Parametric, theta: Floats) -> Floats:
    """Give (log k, a) of N* and D* under C = 6ND of each theta, (k, 2, 2), nan where there is no optimum."""
    return fit.form.optima(theta, span(runs), fit.extra)


def _weights(runs: Runs, choices: Choices) -> Floats:
    if choices.weights == "equal":
        return np.ones(len(runs))
    if np.isnan(runs.loss_se).any():
        raise BadInput("weights by noise need loss_se on every row; add the column or use --weights equal")
    weights = (1.0 if choices.loss == "lsq" else runs.loss**2) / runs.loss_se**2
    return weights / weights.mean()


def _deltas(choices: Choices) -> list[float]:
    """Give the deltas to pass through: the last is the wanted one, and each is a good start for the next."""
    if choices.loss == "lad":
        return [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    return [choices.delta] if choices.loss == "huber" else [1e3]


def _minimise(
    runs: Runs,
    form: Form,
    starts: Floats,
    weights: Floats,
    delta: float,
    choices: Choices,
    losses: Floats | None = None,
    free: Floats | None = None,
) -> tuple[Floats, Floats]:
    losses = runs.loss if losses is None else losses
    return solve(form, starts, columns_read(runs, form), losses, weights, delta, raw=choices.loss == "lsq", free=free)


def _shortage(runs: Runs, form: Form) -> str:
    unknown = len(form.names)
    if len(runs) < unknown + 1:
        return f"{len(runs)} rows cannot determine {unknown} coefficients; run at least {unknown + 1}"
    for name, what in (("params", "sizes"), ("tokens", "token counts"), ("flops", "budgets")):
        if name in form.columns and len(np.unique(getattr(runs, name))) < 3:
            found = len(np.unique(getattr(runs, name)))
            return f"{found} {what} cannot determine a power law with a floor; run at least 3"
    for name in form.extra:
        if len(np.unique(runs.column(name))) < 2:
            return f"column {name} has one value in all rows, and its term cannot be told; add runs with another"
    if np.ptp(runs.loss) == 0:
        return "all losses are equal and determine nothing; check the column loss"
    if {"params", "tokens"} <= set(form.columns):
        logs = np.log([runs.params, runs.tokens])
        if abs(np.asarray(np.corrcoef(logs))[0, 1]) > TOGETHER:
            together = "sizes and tokens vary together, as at one budget, and their terms cannot be told apart"
            return f"{together}; add a budget"
    return ""
