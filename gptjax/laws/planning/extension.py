"""Which runs to add to a sweep that exists, so that its law is known better: sequential c-optimal design.

The candidates that lower the goal's standard error most are taken one by one (Pukelsheim 1993).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gptjax.errors import BadInput
from gptjax.laws.law import Floats, Law
from gptjax.laws.planning.design import TOKENS_PER_PARAM, aligned
from gptjax.laws.planning.precision import (
    Errors,
    Goal,
    as_columns,
    assumed,
    check_question,
    effective_noise,
    gradient,
    information_root,
    slopes,
    standard_errors,
)
from gptjax.laws.table import short

CANDIDATES = 25  # candidates for a next run, along C and along D/N


@dataclass(frozen=True)
class Candidate:
    """A run to train next, and the standard error of the goal after it and those before it."""

    params: float
    tokens: float
    flops: float
    goal_se: float


@dataclass(frozen=True)
class Extension:
    """Runs to add to a sweep, in the order chosen, and what is known before and after them."""

    law: Law
    goal: Goal
    noise: float
    delta: float
    allowance: float
    target_flops: float
    cells: tuple[Candidate, ...]
    paid: float
    before: Errors
    after: Errors


def next_cells(
    law: Law,
    params: ArrayLike,
    tokens: ArrayLike,
    allowance: float,
    *,
    noise: float = 0.01,
    goal: Goal = "a",
    target_flops: float | None = None,
    count: int = 8,
    tokens_per_param: tuple[float, float] | None = None,
    delta: float = 1e-3,
) -> Extension:
    """Choose the runs, at most `count`, to train after those at (params, tokens) so that the goal is known best.

    Candidates lie on a grid: C from the least run so far to what is left of the allowance, D/N over what was sampled
    within 1 to 1000, unless given. They are taken one by one, the error updated after each, in several ways of spending
    (most gain per FLOP, or most gain within an equal share of what is left, for each number of runs), of which the best
    is given. They serve the parametric fit; an isoFLOP budget may be left lopsided. The target is 10 times the largest
    run, unless given. BadInput for runs that do not determine the law, or an allowance below the cheapest of them.
    """
    check_question(law, goal=goal, noise=noise, delta=delta, flops=allowance, target_flops=target_flops)
    n, d = as_columns(params, tokens)
    c = 6 * n * d
    if allowance < c.min():
        raise BadInput(f"{short(allowance)} FLOPs buy no run: the cheapest so far took {short(c.min())}; allow that")
    if count < 1:
        raise BadInput(f"count {count} asks for no run; ask for at least 1")
    target = target_flops or 10 * float(c.max())
    sd = effective_noise(noise, delta)
    inverse = np.linalg.inv(information_root(law, n, d, np.ones(len(n)), sd))
    least, most = TOKENS_PER_PARAM
    low, high = tokens_per_param or (max(least, float((d / n).min())), min(most, float((d / n).max())))
    axes = np.geomspace(c.min(), allowance, CANDIDATES), np.geomspace(low, high, CANDIDATES)
    flops, ratio = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    sizes = np.sqrt(flops / (6 * ratio))
    further = slopes(law, sizes, ratio * sizes) / sd
    of_goal = gradient(law, goal, target)
    ways: list[tuple[int, bool]] = [(count, True), *((k, False) for k in range(1, count + 1))]
    found = [_greedy(inverse @ inverse.T, further, flops, of_goal, allowance, k, per_flop) for k, per_flop in ways]
    picks, ses = min(found, key=lambda way: way[1][-1])
    cells = [
        Candidate(*map(float, values))
        for values in zip(sizes[picks], (ratio * sizes)[picks], flops[picks], ses, strict=True)
    ]
    before, after = (
        standard_errors(law, np.append(n, sizes[more]), np.append(d, (ratio * sizes)[more]), noise=noise,
                        target_flops=target, delta=delta)
        for more in ([], picks)
    )  # fmt: skip
    paid = float(flops[picks].sum())
    return Extension(law, goal, noise, delta, allowance, target, tuple(cells), paid, before, after)


def _greedy(
    covariance: Floats, further: Floats, flops: Floats, of_goal: Floats, allowance: float, count: int, per_flop: bool
) -> tuple[list[int], list[float]]:
    """Pick candidates one by one and give the goal's standard error after each (Sherman and Morrison's update).

    One more run with slope g, in units of the noise, lowers the variance c' V c by (c' V g)^2 / (1 + g' V g).
    """
    picks: list[int] = []
    ses: list[float] = []
    for left in range(count, 0, -1):
        within = flops <= (allowance if per_flop else allowance / left) * (1 + 1e-9)
        if not within.any():
            continue
        reach = further @ covariance
        gain = (reach @ of_goal) ** 2 / (1 + np.sum(reach * further, axis=1))
        pick = int(np.argmax(np.where(within, gain / flops if per_flop else gain, -1)))
        covariance = covariance - np.outer(reach[pick], reach[pick]) / (1 + reach[pick] @ further[pick])
        allowance -= flops[pick]
        picks.append(pick)
        ses.append(float(np.sqrt(of_goal @ covariance @ of_goal)))
    return picks, ses


def describe_extension(plan: Extension) -> str:
    """Draw an extension as a table, with what it costs and promises."""
    flops = [cell.flops for cell in plan.cells]
    name = {"a": "a", "params": "log N*", "loss": "log loss"}[plan.goal]
    table: list[tuple[str, ...]] = [("N", "D", "D/N", "FLOPs", f"{name} +-")]
    for run in plan.cells:
        ratio = f"{run.tokens / run.params:.3g}"
        table.append((short(run.params), short(run.tokens), ratio, short(run.flops), f"{run.goal_se:.4f}"))
    target = f"at {short(plan.target_flops)} FLOPs"
    return "\n".join([
        *aligned(table),
        "",
        f"{len(plan.cells)} runs in order of gain; FLOPs paid {plan.paid:.3g} of {plan.allowance:.3g}",
        f"expected standard errors, {assumed(plan.law, min(flops), max(flops), plan.noise, plan.delta)}:",
        f"  now    {plan.before.at(target)}",
        f"  after  {plan.after.at(target)}",
    ])  # fmt: skip
