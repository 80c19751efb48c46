"""The losses near the compute-optimal line, as a shape with a floor along C and sides along N, fitted for a given E.

With x = log C, C = 6ND, and n = log N, the `valley` is

    log L = log(E + exp(k - g x)) + q u^2,    u = n - m - a x.

The first term is the loss at the optimum of each budget, a power law on a constant E; m + a x is log N*(C); q says how
much a wrong size costs. Every smooth law looks so near its optimum. Chinchilla's form also ties q to g and E: by it,
the cost of a wrong size tells how much of the loss is constant. Measured losses do not keep to that, and forecasts that
believe it err (docs/laws.md). A valley leaves q free, and its E is told by the losses along C alone.

Where the sizes do not lie about the optimum there is no floor to see, and `chinchilla` is fitted instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptjax.laws.law import Floats

WIDTH = 0.06  # of log loss above the floor: a row so far off weighs 1/e
PRIOR_NOISE = 0.004  # what is thought of theta beforehand weighs as one loss with this noise
STEPS, FARTHEST = 60, 2.0  # of the descent, and the most that a coefficient moves in one
OUTLIER = 0.03  # of log loss: a row that lies so far above the shape is judged by its own loss
FEWEST = 8  # rows near the floor
SLOPE = 0.06  # - d log L / d log C at which a descent begins: less than any E < 0 turns into losses below 0
LEAST = 1e-9  # of a loss, where a trial of the descent goes astray


@dataclass(frozen=True)
class Shape:
    """What log L is of log N and log C, for theta and E: all counted from the centre of the rows."""

    name: str
    names: tuple[str, ...]  # of the coefficients theta
    prior: Floats  # theta as thought beforehand, and its standard deviation: infinite where nothing is
    prior_sd: Floats
    begin: Callable[[Floats, Floats], Floats]  # the first theta (v, k), of the mean loss above E (v,) and of the mean
    value: Callable[..., tuple[Floats, list[Floats]]]  # log L and its slopes in theta; theta, E, n, x, top
    optimum: Callable[[Floats, Floats], Floats]  # log N* (v, rows) of theta (k, v, 1) and x


def _valley(theta: Floats, E: Floats, n: Floats, x: Floats, top: Floats) -> tuple[Floats, list[Floats]]:
    """Give log L and its slopes. A floor that falls faster than a power law (E < 0) does so within the rows only.

    Losses of very small models fall so at first, and none does for long: above the largest C it is a line in logs.
    """
    k, g, m, a, log_q = theta
    beyond = np.where(E < 0, np.maximum(0, x - top), 0)
    power = np.exp(np.clip(k - g * (x - beyond), -50, 50))
    floor = np.maximum(E + power, LEAST)
    share, u, q = power / floor, n - m - a * x, np.exp(np.clip(log_q, -20, 5))
    slopes = [share, -share * x, -2 * q * u, -2 * q * u * x, q * u**2]
    return np.log(floor) - g * share * beyond + q * u**2, slopes


def _chinchilla(theta: Floats, E: Floats, n: Floats, x: Floats, top: Floats) -> tuple[Floats, list[Floats]]:
    a, b, log_alpha, log_beta = theta
    alpha, beta, d = np.exp(log_alpha), np.exp(log_beta), x - n
    of_n, of_d = (np.exp(np.clip(one, -50, 50)) for one in (a - alpha * n, b - beta * d))
    loss = np.maximum(E + of_n + of_d, LEAST)
    return np.log(loss), [of_n / loss, of_d / loss, -of_n / loss * alpha * n, -of_d / loss * beta * d]


def _chinchilla_optimum(theta: Floats, x: Floats) -> Floats:
    a, b, log_alpha, log_beta = theta
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    return (log_alpha + a - log_beta - b + beta * x) / (alpha + beta)


VALLEY = Shape(
    "valley", ("k", "g", "m", "a", "log_q"), np.array([0, 0, 0, 0.5, np.log(0.03)]),
    np.array([np.inf, np.inf, np.inf, 0.2, 1.0]),
    lambda above, mean: np.stack(
        [np.log(above), SLOPE * mean / above, *(0 * above + one for one in (0, 0.5, np.log(0.03)))], axis=1
    ),
    _valley, lambda theta, x: theta[2] + theta[3] * x,
)  # fmt: skip
CHINCHILLA_SHAPE = Shape(
    "chinchilla", ("log_A", "log_B", "log_alpha", "log_beta"), np.array([0, 0, np.log(0.35), np.log(0.35)]),
    np.array([np.inf, np.inf, 0.7, 0.7]),
    lambda above, mean: np.stack([*[np.log(above / 2)] * 2, *[0 * above + np.log(0.35)] * 2], axis=1),
    _chinchilla, _chinchilla_optimum,
)  # fmt: skip
SHAPES = {shape.name: shape for shape in (VALLEY, CHINCHILLA_SHAPE)}


@dataclass(frozen=True)
class Fitted:
    """A shape fitted to one table, once for each E and weighting, (v, ...); theta (v, k) is written about `centre`.

    `squares` are the weighted sums of squared errors of log loss, `information` the matrices whose inverse, times the
    variance of one log loss, is the covariance of theta. `top` is the log of the largest C that was fitted.
    """

    shape: Shape
    E: Floats
    theta: Floats
    squares: Floats
    information: Floats
    centre: tuple[float, float]
    top: Floats

    def log_loss(self, log_params: Floats | None, log_flops: Floats) -> tuple[Floats, Floats]:
        """Give log L (v, rows) and its slopes in theta (v, rows, k); at the optimum of each C where N is None."""
        x = log_flops - self.centre[1]
        theta = self.theta.T[:, :, None]
        n = self.shape.optimum(theta, x) if log_params is None else log_params - self.centre[0]
        return _stacked(self.shape.value(theta, self.E[:, None], n, x, self.top[:, None] - self.centre[1]))

    def log_optimum(self, log_flops: Floats) -> Floats:
        """Give log N* (v, rows) of each C."""
        return self.shape.optimum(self.theta.T[:, :, None], log_flops - self.centre[1]) + self.centre[0]

    def slope(self, log_flops: float) -> Floats:
        """Give - d log L / d log C of each floor (v,)."""
        low, high = (self.log_loss(None, np.array([log_flops + step]))[0][:, 0] for step in (-0.02, 0.0))
        return (low - high) / 0.02


def _stacked(found: tuple[Floats, list[Floats]]) -> tuple[Floats, Floats]:
    value, slopes = found
    return value, np.stack([np.broadcast_to(one, value.shape) for one in slopes], axis=-1)


def fit_shape(
    shape: Shape, log_params: Floats, log_flops: Floats, log_loss: Floats, weights: Floats, E: Floats
) -> Fitted:
    """Fit a shape for each E (v,) with its weights (v, rows) by least squares of log loss, by Levenberg-Marquardt."""
    total = weights.sum(axis=0)
    centre = float(np.average(log_params, weights=total)), float(np.average(log_flops, weights=total))
    n, x = log_params - centre[0], log_flops - centre[1]
    top = np.where(weights > 0, x, -np.inf).max(axis=1)
    mean = np.exp((weights @ log_loss) / weights.sum(axis=1))
    theta = shape.begin(mean - E, mean)
    pull = (PRIOR_NOISE / shape.prior_sd) ** 2

    def evaluate(theta: Floats) -> tuple[Floats, Floats, Floats]:
        value, slopes = _stacked(shape.value(theta.T[:, :, None], E[:, None], n, x, top[:, None]))
        error = value - log_loss
        return error, slopes, (weights * error**2).sum(axis=1) + ((theta - shape.prior) ** 2 * pull).sum(axis=1)

    def normal() -> tuple[Floats, Floats]:
        weighted = slopes * weights[..., None]
        matrix = np.einsum("vri,vrj->vij", weighted, slopes) + np.diag(pull)
        return matrix, np.einsum("vri,vr->vi", weighted, error) + (theta - shape.prior) * pull

    damping, eye = np.full(len(E), 1e-2), np.eye(theta.shape[1])
    error, slopes, cost = evaluate(theta)
    for _ in range(STEPS):
        matrix, gradient = normal()
        ridge = damping[:, None] * np.einsum("vii->vi", matrix) + 1e-12
        step = np.linalg.solve(matrix + ridge[:, :, None] * eye, gradient[..., None])[..., 0]
        trial = theta - np.clip(step, -FARTHEST, FARTHEST)
        there = evaluate(trial)
        better = there[2] < cost
        finished = (better & (cost - there[2] <= 1e-10 * cost)) | (damping > 1e8)
        theta = np.where(better[:, None], trial, theta)
        error = np.where(better[:, None], there[0], error)
        slopes = np.where(better[:, None, None], there[1], slopes)
        cost = np.where(better, there[2], cost)
        damping = np.clip(np.where(better, damping / 5, damping * 6), 1e-9, 1e9)
        if finished.all():
            break
    return Fitted(shape, E, theta, (weights * error**2).sum(axis=1), normal()[0], centre, top + centre[1])


def nearness(shape: Shape, log_params: Floats, log_flops: Floats, log_loss: Floats) -> Floats:
    """Weigh rows by how near the floor they are: exp(-(excess / WIDTH)^2), excess being log loss above the floor.

    A row far above the floor says little of it, and much of how the shape fails far from the optimum. The floor is at
    first the least loss that any row of no more C has, and then that of the shape fitted with these weights. The excess
    is that of the shape at the row's N and C, since rows chosen by their own losses would be those with luck. The width
    doubles until there are rows enough.
    """
    order = np.argsort(log_flops, kind="stable")
    records = np.flatnonzero(log_loss[order] <= np.minimum.accumulate(log_loss[order]))
    floor = np.interp(log_flops, log_flops[order][records], log_loss[order][records])
    weights = _weights(log_loss - floor, 2 * WIDTH)
    middle = np.array([0.4 * np.exp(log_loss.min())])
    for _ in range(3):
        fitted = fit_shape(shape, log_params, log_flops, log_loss, weights[None], middle)
        floor, value = (fitted.log_loss(at, log_flops)[0][0] for at in (None, log_params))
        width = WIDTH
        excess = np.maximum(value, log_loss - OUTLIER) - floor
        weights = _weights(excess, width)
        while weights.sum() < min(FEWEST, len(log_loss) - 1) and width < 10:
            width *= 2
            weights = _weights(excess, width)
    return weights


def _weights(excess: Floats, width: float) -> Floats:
    return np.exp(-((np.maximum(0, excess) / width) ** 2))
