"""Whether two ladders share their exponents: both laws fitted together with and without the same alpha and beta."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import fdtr, fdtrc

from gptjax.laws.forms import CHINCHILLA
from gptjax.laws.ladders.multiplier import JointNoise, Rung
from gptjax.laws.law import Floats

APART = np.eye(10)  # theta of both, one after the other
TOGETHER = np.concatenate([np.eye(8)[[0, 1, 2, 6, 7]], np.eye(8)[[3, 4, 5, 6, 7]]])  # alpha and beta are of both

UNEQUAL = 0.01  # p of equal noise below which each ladder keeps its own


@dataclass(frozen=True)
class SharedFit:
    """Both laws with one alpha and one beta: theta (10,) of both, its covariance, and the F test against two of each.

    `F` compares the sums of squares, in units of the noise and its correlation, at 2 and `freedom` degrees of freedom:
    those of both ladders together, or of the differences of paired cells where their correlation was estimated too.
    """

    theta: Floats
    covariance: Floats
    F: float
    p: float
    freedom: int


def share_exponents(a: Rung, b: Rung, noise: JointNoise) -> SharedFit:
    """Fit both laws by generalised least squares of log loss, with the same exponents and without, and compare."""
    centre = np.array([np.log([one.rows.params, one.rows.tokens]).mean(axis=1) for one in (a, b)]).mean(axis=0)
    start = np.concatenate([CHINCHILLA.shift(one.fit.theta, centre) for one in (a, b)])
    errors = _Errors(a, b, noise, centre)
    apart = errors.least(APART, [start])
    guesses = [start[3:5], start[8:10], (start[3:5] + start[8:10]) / 2]
    levels = np.concatenate([start[:3], start[5:8]])
    together = errors.least(TOGETHER, [np.concatenate([levels, guess]) for guess in guesses])
    left = len(a.rows) + len(b.rows) - 10
    freedom = min(noise.freedom) if noise.correlation else left
    rise = max(0.0, together.cost - apart.cost)
    ratio = rise / 2 / (apart.cost / left) if apart.cost > 0 else math.inf
    covariance = np.linalg.pinv(together.jac.T @ together.jac) * 2 * together.cost / (left + 2)
    theta = TOGETHER @ together.x
    back = [CHINCHILLA.shift(part, -centre) for part in (theta[:5], theta[5:])]
    turn = np.eye(10)
    for i in (0, 5):
        turn[i, i + 3], turn[i + 1, i + 4] = centre
    wide = turn @ TOGETHER @ covariance @ TOGETHER.T @ turn.T
    return SharedFit(np.concatenate(back), wide, float(ratio), float(fdtrc(2, freedom, ratio)), freedom)


def _pooled(noise: JointNoise) -> tuple[float, float]:
    """Give the noise of each ladder for weights: one for both, unless they differ by more than chance allows.

    Weights that are told by few degrees of freedom would find differences of exponents too often.
    """
    (one, other), (free, others) = noise.sd, noise.freedom
    if not min(one, other) > 0:
        return noise.sd
    tail = fdtr(free, others, (one / other) ** 2)
    if 2 * min(tail, 1 - tail) < UNEQUAL:
        return noise.sd
    both = math.sqrt((free * one**2 + others * other**2) / (free + others))
    return both, both


class _Errors:
    """The errors of two laws in units of their noise, those of paired cells freed of what they share."""

    def __init__(self, a: Rung, b: Rung, noise: JointNoise, centre: Floats) -> None:
        self.x = [np.log([one.rows.params, one.rows.tokens]) - centre[:, None] for one in (a, b)]
        self.log_loss = [np.log(one.rows.loss) for one in (a, b)]
        self.sd = [max(sd, 1e-12) for sd in _pooled(noise)]
        self.rho, self.cells = noise.correlation, noise.cells

    def least(self, shape: Floats, starts: list[Floats]) -> Any:
        """Find the theta = shape @ free of least squares, from several starts of free."""
        found = [
            least_squares(lambda free: self.at(shape @ free)[0], start, lambda free: self.at(shape @ free)[1] @ shape,
                          method="lm", x_scale="jac", xtol=1e-12, ftol=1e-12, max_nfev=400)
            for start in starts
        ]  # fmt: skip
        return min(found, key=lambda one: one.cost)

    def at(self, theta: Floats) -> tuple[Floats, Floats]:
        """Give the errors (rows of both,) and their slopes in theta (rows, 10)."""
        errors, slopes = [], []
        for x, log_loss, sd, part in zip(self.x, self.log_loss, self.sd, (theta[:5], theta[5:]), strict=True):
            log_a, log_b, log_e, alpha, beta = part
            with np.errstate(all="ignore"):
                terms = np.stack([log_a - alpha * x[0], log_b - beta * x[1], np.full_like(x[0], log_e)])
                total = np.logaddexp.reduce(terms)
                share = np.exp(terms - total)
            errors.append(np.nan_to_num((total - log_loss) / sd, nan=1e6, posinf=1e6, neginf=-1e6))
            slope = np.concatenate([share, -share[:2] * x]).T / sd
            slopes.append(np.nan_to_num(slope))
        width = slopes[0].shape[1]
        wide = [np.pad(slopes[0], ((0, 0), (0, width))), np.pad(slopes[1], ((0, 0), (width, 0)))]
        if self.rho:
            left, right = self.cells
            scale = math.sqrt(1 - self.rho**2)
            errors[1][right] = (errors[1][right] - self.rho * errors[0][left]) / scale
            wide[1][right] = (wide[1][right] - self.rho * wide[0][left]) / scale
        return np.concatenate(errors), np.concatenate(wide)
