"""How certain a fit will be, from where its runs lie: expected standard errors, before any run is trained.

First order in the noise, errors follow from the slopes of log loss in the law's coefficients at each (N, D), and so
from a law assumed beforehand (locally optimal design; Chernoff 1953).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from gptjax.errors import BadInput
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.law import Floats, HeldLaw, Law

Goal = Literal["a", "params", "loss"]
SLOPE_STEP, NEAR = 1e-3, 3.0  # of theta, and of C, for slopes by differences
TOLD = 1e-6  # of the largest singular value: a direction of theta with a smaller one is not told


@dataclass(frozen=True)
class Errors:
    """Standard errors: of the exponent a, and of log N* and of log L at the optimum of a target's FLOPs."""

    a: float
    params: float
    loss: float

    def at(self, target: str) -> str:
        return f"a +- {self.a:.3f}; {target} log N* +- {self.params:.3f}, log loss +- {self.loss:.4f}"


def assumed(law: Law, least: float, most: float, noise: float, delta: float) -> str:
    """Say what expected errors rest on: the law between two budgets, the noise, and how it is fitted."""
    laws = law.power_laws(least, most)
    a = f"a = {laws[0].exponent:.3f}" if laws else "no optimum"
    estimator = f"Huber, delta {delta:g}" if np.isfinite(delta) else "least squares"
    return f"if the law holds ({a}) and a run's log loss has noise {noise:.3g} ({estimator})"


def standard_errors(
    law: Law,
    params: ArrayLike,
    tokens: ArrayLike,
    *,
    noise: float,
    target_flops: float,
    seeds: ArrayLike = 1.0,
    delta: float = 1e-3,
) -> Errors:
    """Predict the standard errors of a parametric fit to runs at these (N, D), each repeated `seeds` times.

    First order in the noise, the standard deviation of one run's log loss, taken for normal and equal everywhere;
    benchmarks/design.py compares them with simulated fits. delta is the fit's, np.inf for least squares. BadInput for
    runs that do not determine the five coefficients.
    """
    n, d = as_columns(params, tokens)
    root = information_root(law, n, d, np.broadcast_to(seeds, n.shape), effective_noise(noise, delta))
    return Errors(**{goal: standard_error(root, gradient(law, goal, target_flops)) for goal in get_args(Goal)})


def gradient(law: Law, goal: Goal, target_flops: float) -> Floats:
    """Give the slope, in theta, of a, or of log N* or log L at a target's optimum.

    There the loss does not change with N along C = 6ND, so its slope is that of the loss at fixed (N, D).
    """
    if goal == "loss":
        best = law.optimum(flops=target_flops)
        return slopes(law, best.params, best.tokens)[0]
    if not isinstance(law, ChinchillaLaw):
        return _slope_by_differences(law, goal, target_flops)
    total = law.alpha + law.beta
    of_a = np.array([0, 0, 0, -law.beta, law.alpha]) / total**2
    if goal == "a":
        return of_a
    log_c = np.log(target_flops / 6)
    log_g = np.log(law.optimum(flops=target_flops).params) - law.a * log_c
    of_g = np.array([1, -1, 0, 1 / law.alpha - log_g, -1 / law.beta - log_g]) / total
    return of_g + of_a * log_c


def _slope_by_differences(law: Law, goal: Goal, target_flops: float) -> Floats:
    """Give the slope of a, the local exponent of N* in C, or of log N* at a target, where they have no formula."""

    def value(theta: Floats) -> float:
        moved = law.at(theta)
        near = [math.log(moved.optimum(flops=target_flops * factor).params) for factor in (1 / NEAR, 1, NEAR)]
        return (near[2] - near[0]) / (2 * math.log(NEAR)) if goal == "a" else near[1]

    theta, known = law.theta, _told_apart(law)
    moves = SLOPE_STEP * np.maximum(1, np.abs(theta)) * np.eye(len(theta))
    return np.array([(value(theta + move) - value(theta - move)) / (2 * move.max()) for move in moves]) @ known


def slopes(law: Law, params: ArrayLike, tokens: ArrayLike) -> Floats:
    """Give d log L / d theta at each (N, D), along the directions of theta that runs of N and D can tell."""
    slopes = law.sensitivity(params, tokens)
    return slopes @ _told_apart(law) if isinstance(law, HeldLaw) else slopes


def _told_apart(law: Law) -> Floats:
    """Give the directions of theta, as columns, that runs of other N and D can tell while further columns are held.

    A term in such a column cannot be told from the floor, and neither goal needs to.
    """
    if not isinstance(law, HeldLaw):
        return np.eye(len(law.theta))
    n, ratio = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e4, 1e11, 8), np.geomspace(1, 1000, 6)))
    slopes = law.sensitivity(n, n * ratio)
    scale = np.maximum(np.linalg.norm(slopes, axis=0), 1e-300)
    _, sizes, directions = np.linalg.svd(slopes / scale)
    return (directions[: len(sizes)][sizes > TOLD * sizes[0]] / scale).T


def huber_inflation(cutoff: float) -> float:
    """Give the variance of a Huber fit over that of least squares, when delta is `cutoff` standard deviations of noise.

    For normal noise (Huber 1964): pi/2 towards 0, which is least absolute deviation, and 1 for a wide delta.
    """
    k = float(np.clip(cutoff, 1e-4, 40))
    inside = 2 * ndtr(k) - 1
    squares = inside - 2 * k * np.exp(-(k**2) / 2) / np.sqrt(2 * np.pi) + 2 * k**2 * ndtr(-k)
    return float(squares / inside**2)


def as_columns(*values: ArrayLike) -> list[Floats]:
    return [np.atleast_1d(np.asarray(column, dtype=np.float64)) for column in values]


def check_question(
    law: Law, *, goal: Goal, noise: float, delta: float, flops: float, target_flops: float | None
) -> None:
    if goal not in get_args(Goal):
        raise BadInput(f"goal {goal!r} is not known; use one of {', '.join(get_args(Goal))}")
    if isinstance(law, ChinchillaLaw) and not min(vars(law).values()) > 0:
        raise BadInput(f"{law} is nothing to plan around; A, B, E, alpha and beta must be above 0")
    for name, value in (("noise", noise), ("delta", delta), ("allowance", flops), ("target_flops", target_flops)):
        if value is not None and not (value > 0 and (np.isfinite(value) or name == "delta")):
            raise BadInput(f"{name} {value:g} must be a number above 0; give one")


def effective_noise(noise: float, delta: float) -> float:
    """Give the noise under which least squares would be as uncertain as the Huber fit is."""
    return noise * huber_inflation(delta / noise) ** 0.5


def information_root(law: Law, params: Floats, tokens: Floats, seeds: Floats, sd: float) -> Floats:
    """Give the triangular root R of the information R'R, or refuse runs that leave a direction unknown."""
    root = triangle(slopes(law, params, tokens), seeds, sd)
    scaled = root / np.maximum(np.linalg.norm(root, axis=0), 1e-300)
    if len(root) < root.shape[1] or np.linalg.cond(scaled) > 1e9:
        raise BadInput(
            f"{len(params)} runs at {len(np.unique(params))} sizes do not determine the law's {root.shape[1]} "
            "coefficients; vary N and D apart, as in a sweep of 3 budgets x 4 sizes"
        )
    return root


def triangle(rows: Floats, seeds: Floats, sd: float) -> Floats:
    return np.asarray(np.linalg.qr(rows * (np.sqrt(seeds) / sd)[:, None], mode="r"))


def standard_error(root: Floats, of_goal: Floats) -> float:
    return float(np.linalg.norm(np.linalg.solve(root.T, of_goal)))
