"""The compute multiplier of one ladder against another: the frontiers of their laws, and the noise that both share.

The multiplier at C is the compute that ladder b needs for the loss that ladder a reaches with C, both compute-optimal,
over C: below 1, b is cheaper. All of it is in logs until the end.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptjax.laws.fit import MIN_DRAWS, Choices
from gptjax.laws.forms import CHINCHILLA, ChinchillaLaw
from gptjax.laws.law import Floats, Ints
from gptjax.laws.parametric import Parametric, parametric, refit
from gptjax.laws.table import Runs
from gptjax.laws.uncertainty import LEVELS

LEAST_SQUARES = Choices(loss="lsq-log")
NEAR = 0.1  # in log loss above the frontier: rows farther above it say little of it, and lean on the form
FEWEST_NEAR = 12  # rows that are kept whatever their excess: fewer leave too little to tell the noise by
SELECTIONS = 4  # at most so many times are rows chosen by the law fitted to those chosen before
SAME_CELL = 0.01  # in log N and log D
FEWEST_PAIRED = 8  # cells; of fewer, no correlation can be told
MOST_CORRELATED = 0.999


@dataclass(frozen=True)
class Rung:
    """One ladder as it is compared: rows near its frontier, the law of these by least squares, C over 6ND.

    `far` counts the rows left out because their loss lies far above the frontier.
    """

    name: str
    rows: Runs
    fit: Parametric
    over_6nd: float
    far: int

    @property
    def freedom(self) -> int:
        return len(self.rows) - len(self.fit.theta)

    @property
    def exact(self) -> Floats:
        """The losses that the law gives at the rows."""
        return self.rows.loss * np.exp(self.fit.errors)


def rung(name: str, rows: Runs) -> Rung:
    """Fit the law of a ladder to its rows near the frontier, found by the law itself in a few rounds."""
    over = float(np.exp(np.median(np.log(rows.flops / (6 * rows.params * rows.tokens)))))
    near = np.arange(len(rows))
    fit = parametric(rows, LEAST_SQUARES, starts=CHINCHILLA.few_starts)
    for _ in range(SELECTIONS):
        if fit.status != "ok" or not isinstance(fit.law, ChinchillaLaw):
            break
        line = Frontiers.of(fit.theta[None], 1.0)
        best = line.losses(np.log(6 * rows.params * rows.tokens))[0]
        excess = np.log(fit.law.loss(rows.params, rows.tokens) / best)
        found = np.flatnonzero(excess <= max(NEAR, np.sort(excess)[min(FEWEST_NEAR, len(rows)) - 1]))
        if np.array_equal(found, near):
            break
        again = parametric(rows.take(found), LEAST_SQUARES, starts=CHINCHILLA.few_starts)
        if again.status != "ok":
            break
        near, fit = found, again
    return Rung(name, rows.take(near), fit, over, len(rows) - len(near))


@dataclass(frozen=True)
class Frontiers:
    """L*(C) = E + exp(level - slope log C) of many theta, (draws,) each; nan where a theta has no optimum."""

    E: Floats
    level: Floats
    slope: Floats

    @staticmethod
    def of(theta: Floats, over_6nd: float) -> "Frontiers":
        """Read the frontier off each theta (draws, 5) of Chinchilla's form, where C is so many times 6ND."""
        log_a, log_b, log_e, alpha, beta = theta.T
        assert CHINCHILLA.lines is not None
        lines = CHINCHILLA.lines(theta)
        with np.errstate(all="ignore"):  # of draws that went astray
            slope = alpha * beta / (alpha + beta)
            level = np.logaddexp(log_a - alpha * lines[:, 0, 0], log_b - beta * lines[:, 1, 0])
            return Frontiers(np.exp(log_e), level + slope * math.log(over_6nd), slope)

    def losses(self, log_c: Floats) -> Floats:
        """Give the losses (draws, points) at each log C."""
        with np.errstate(all="ignore"):
            return self.E[:, None] + np.exp(self.level[:, None] - self.slope[:, None] * log_c)

    def log_flops(self, losses: Floats) -> Floats:
        """Give the log C (draws, points) at which each frontier has each loss; inf where that is at or below E."""
        with np.errstate(all="ignore"):
            above = losses - self.E[:, None]
            log_c = (self.level[:, None] - np.log(np.maximum(above, 0))) / self.slope[:, None]
        return np.where(above > 0, log_c, np.where(np.isnan(above), np.nan, np.inf))


def log_multiplier(a: Frontiers, b: Frontiers, log_c: Floats) -> Floats:
    """Give the log of the multiplier (draws, points) at each log C of a."""
    return b.log_flops(a.losses(log_c)) - log_c


def paired_cells(a: Runs, b: Runs) -> tuple[Ints, Ints]:
    """Give the positions in both tables of cells (N, D, seed) that both have, each row at most once.

    Where one of the tables has no seeds, those of the other are not compared.
    """
    seeded = all(any(one.seed) for one in (a, b))
    taken = np.zeros(len(b), dtype=bool)
    pairs = []
    n, d = np.log(b.params), np.log(b.tokens)
    seeds = np.array(b.seed)
    for i in range(len(a)):
        same = (np.abs(n - math.log(a.params[i])) < SAME_CELL) & (np.abs(d - math.log(a.tokens[i])) < SAME_CELL)
        same &= ~taken & ((seeds == a.seed[i]) if seeded else True)
        if same.any():
            j = int(same.argmax())
            taken[j] = True
            pairs.append((i, j))
    left, right = np.array(pairs, dtype=int).reshape(-1, 2).T
    return left, right


@dataclass(frozen=True)
class JointNoise:
    """The noise of one log loss of each ladder: standard deviations, and the correlation of paired cells.

    `cells` are the positions of the paired cells in the rows of both; of fewer than FEWEST_PAIRED the correlation is 0.
    """

    sd: tuple[float, float]
    freedom: tuple[int, int]
    correlation: float
    cells: tuple[Ints, Ints]

    def draw(self, rng: np.random.Generator, draws: int, rows: tuple[int, int]) -> tuple[Floats, Floats]:
        """Draw the noise (draws, rows) of both ladders, each draw with another covariance, as the scatter leaves open.

        Of paired ladders the covariance follows an inverse Wishart law, so that any difference of losses is Student's
        t with the degrees of freedom of its scatter; of others each has its own chi-squared, as of Behrens and Fisher.
        """
        white = [rng.standard_normal((draws, count)) for count in rows]
        if not self.correlation:
            scaled = (sd * np.sqrt(free / rng.chisquare(free, (draws, 1)))
                      for sd, free in zip(self.sd, self.freedom, strict=True))  # fmt: skip
            one, other = (s * w for s, w in zip(scaled, white, strict=True))
            return one, other
        free = min(self.freedom)
        root = np.linalg.cholesky(
            np.diag(self.sd) @ np.array([[1, self.correlation], [self.correlation, 1]]) @ np.diag(self.sd)
        )
        # W of Wishart(free + 1, I) by Bartlett's factors, and its inverse: free W^-1 has t_free marginals
        lower = np.zeros((draws, 2, 2))
        lower[:, 0, 0] = np.sqrt(rng.chisquare(free + 1, draws))
        lower[:, 1, 1] = np.sqrt(rng.chisquare(free, draws))
        lower[:, 1, 0] = rng.standard_normal(draws)
        mixing = root @ np.linalg.inv(lower).transpose(0, 2, 1) * math.sqrt(free)  # covariance = mixing mixing^T
        covariance = mixing @ mixing.transpose(0, 2, 1)
        one, other = (np.sqrt(covariance[:, i, i])[:, None] * white[i] for i in (0, 1))
        left, right = self.cells
        factor = np.linalg.cholesky(covariance)
        one[:, left] = factor[:, 0, 0, None] * white[0][:, left]
        other[:, right] = factor[:, 1, 0, None] * white[0][:, left] + factor[:, 1, 1, None] * white[1][:, right]
        return one, other


def joint_noise(a: Rung, b: Rung) -> JointNoise:
    """Estimate the noise of both ladders and, from the residuals of paired cells, how far they share it.

    A fit takes a part of the noise away, and of two fits not the same part: the sum of products of residuals expects
    the covariance times the trace of M_a P M_b P^T, M being what a fit leaves and P the pairing.
    """
    cells = paired_cells(a.rows, b.rows)
    sd = a.fit.noise, b.fit.noise
    freedom = a.freedom, b.freedom
    if len(cells[0]) < FEWEST_PAIRED or not min(sd) > 0:
        return JointNoise(sd, freedom, 0.0, cells)
    bases = [_basis(one) for one in (a, b)]
    left, right = (basis[index] for basis, index in zip(bases, cells, strict=True))
    # trace(M_a P M_b P^T) with M = I - Q Q^T: the pairs, less what each fit takes of them, plus what both take
    trace = len(cells[0]) - np.sum(left**2) - np.sum(right**2) + np.sum((left.T @ right) ** 2)
    if trace < 1:
        return JointNoise(sd, freedom, 0.0, cells)
    shared = a.fit.errors[cells[0]] @ b.fit.errors[cells[1]] / trace
    bound = MOST_CORRELATED
    return JointNoise(sd, freedom, float(np.clip(shared / (sd[0] * sd[1]), -bound, bound)), cells)


def _basis(one: Rung) -> Floats:
    """Give an orthonormal basis (rows, k) of what the law can follow at its rows."""
    assert isinstance(one.fit.law, ChinchillaLaw)
    slopes = one.fit.law.sensitivity(one.rows.params, one.rows.tokens)
    basis, size, _ = np.linalg.svd(slopes / np.linalg.norm(slopes, axis=0), full_matrices=False)
    return basis[:, size > 1e-9 * size[0]]


@dataclass(frozen=True)
class Bootstrapped:
    """The frontiers of two ladders, as fitted and of each joint draw; `failed` is the share of draws without a law."""

    a: Frontiers
    b: Frontiers
    drawn_a: Frontiers
    drawn_b: Frontiers
    noise: JointNoise
    failed: float


def bootstrapped(a: Rung, b: Rung, draws: int, seed: int) -> Bootstrapped:
    """Redraw the noise of both ladders about their laws, jointly, and fit again by least squares of log loss."""
    noise = joint_noise(a, b)
    both = noise.draw(np.random.default_rng(seed), draws, (len(a.rows), len(b.rows)))
    found = []
    for one, drawn in zip((a, b), both, strict=True):
        theta = refit(one.rows, one.fit, LEAST_SQUARES, losses=one.exact * np.exp(drawn))[0]
        found.append(Frontiers.of(theta, one.over_6nd))
    bad = np.isnan(found[0].level + found[1].level)
    kept = [replace(each, E=each.E[~bad], level=each.level[~bad], slope=each.slope[~bad]) for each in found]
    own = [Frontiers.of(one.fit.theta[None], one.over_6nd) for one in (a, b)]
    return Bootstrapped(own[0], own[1], kept[0], kept[1], noise, float(bad.mean()))


def percentiles(drawn: Floats) -> Floats:
    """Give the ends (2, points) of the middle 95 % of draws (draws, points); nan of too few, inf where unbounded."""
    known = drawn[~np.isnan(drawn).any(axis=1)]
    if len(known) < MIN_DRAWS:
        return np.full((2, drawn.shape[1]), np.nan)
    ordered = np.sort(known, axis=0)
    return np.array([ordered[round(level * (len(ordered) - 1))] for level in LEVELS])


def shared_range(a: Rung, b: Rung, found: Bootstrapped) -> tuple[float, float] | None:
    """Give the log C of ladder a, least and largest, whose losses both ladders reach within their own compute."""
    span: list[NDArray[np.float64]] = [np.log([one.rows.flops.min(), one.rows.flops.max()]) for one in (a, b)]
    highest, lowest = np.array([f.losses(ends)[0] for f, ends in zip((found.a, found.b), span, strict=True)]).T
    top, bottom = highest.min(), lowest.max()
    if not top > bottom:
        return None
    low, high = found.a.log_flops(np.array([top, bottom]))[0]
    return float(low), float(high)
