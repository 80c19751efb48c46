"""Forecast losses beyond the largest budget, averaged over every plausible floor by how well each fits the rows.

What is not known of a loss beyond the rows is, above all, how much of it is a constant: the floor E. A forecast here is
the average over E, from none to nine tenths of the least loss; its interval is as wide as the floors that fit disagree,
and as the slope of a floor is known to drift. The same forecasts are made from less
compute within the table, and scored there: `rolling`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit

from gptjax.errors import BadInput
from gptjax.laws.law import Floats, PowerLaw
from gptjax.laws.published import PUBLISHED
from gptjax.laws.table import Runs, short
from gptjax.laws.uncertainty import LEVELS
from gptjax.laws.valley import CHINCHILLA_SHAPE, FEWEST, SHAPES, VALLEY, Fitted, fit_shape, nearness

SHARES = 1 - np.geomspace(1, 0.1, 11)  # E over the least loss
FALLS_SD = 0.6  # of the prior of log(1 - share): about a published law's at the largest budget, within LIKELY
LIKELY = (0.5, 0.8)
TRUST = 0.6  # power of the likelihood: rows share seeds, rates and shapes, and are not as many as they seem
LEAST_NOISE = 0.0015  # of log loss: no table is cleaner
DRIFT = 0.1  # relative sd of a floor's slope for each e-fold of compute beyond the rows; chosen: experiments/LOG.md
CUTS = (2.5, 5.0, 10.0)  # rolling forecasts are made from rows up to the largest budget over each
BELIEVED = 2.0  # rolling forecasts' worth of trust that the spread is right before they are looked at
LEAST_SIDE = 0.15  # of the weights of rows, on either side of the optimum
SAME_BUDGET = 1.1  # C within this factor
LOG_FLOPS = (math.log(1e3), math.log(1e40))  # where the budget of a loss is sought
STRIDE = math.log(2)  # of log C, in the search for the ends of its interval
WEIGHTS_OFF = 1e-6  # how far the weights of floors may add up to other than 1
LEVEL = 1.96  # standard deviations of a normal on either side of which 2.5 % lie


@dataclass(frozen=True)
class Floor:
    """A shape with one floor; laws/valley.py says what its coefficients mean."""

    share: float  # E over the least loss of the rows near the floor
    weight: float  # of this floor in the forecast; all add up to 1
    E: float  # the constant part of the loss, in nats
    theta: list[float]  # k, g, m, a, log q and h of a valley; log A, log B, log alpha and log beta of chinchilla
    covariance: list[list[float]]  # of theta
    noise: float  # standard deviation of one run's log loss about the shape


@dataclass(frozen=True)
class Rolling:
    """A forecast of the table's own best run at its largest budget, made from less compute."""

    max_flops: float  # the rows up to this C were fitted
    rows: int  # how many these are
    times: float  # C of the run over that
    run: str  # its name
    predicted: float  # forecast of its loss, in nats a token
    interval: tuple[float, float]  # 95 % interval of the forecast
    measured: float  # its loss
    log_error: float  # log predicted - log measured
    inside: bool  # whether the interval holds the loss


@dataclass(frozen=True)
class Forecast:
    """What forecasts losses: shapes with one floor each, and how their forecasts did within the table."""

    status: str  # ok, or refused: the rows draw no floor
    reasons: list[str]  # why, with what to add
    shape: str = ""  # what was fitted: valley; chinchilla where the sizes do not lie about the optimum
    rows_near: float = 0.0  # rows near the floor, each counted by its weight
    log_params: float = 0.0  # log N about which theta is written
    log_flops: float = 0.0  # log C about which theta is written; C = 6ND
    top: float = 0.0  # log of the largest C of the rows
    reach: float = 0.0  # log of N over N* of the rows near the floor that are farthest from it
    freedom: float = 1.0  # degrees of freedom of the noise
    stretch: float = 1.0  # by how much the spread was widened, because rolling forecasts missed by more than it
    floors: list[Floor] = field(default_factory=list)  # from the least to the largest
    rolling: list[Rolling] = field(default_factory=list)  # forecasts made within the table, from the largest cut

    def __post_init__(self) -> None:
        if self.status != "ok":
            return
        count = len(SHAPES[self.shape].names) if self.shape in SHAPES else 0
        whole = all(
            np.shape(one.theta) == (count,) and np.shape(one.covariance) == (count, count)
            and np.isfinite([*one.theta, one.weight, one.E, one.noise]).all() for one in self.floors
        )  # fmt: skip
        if not (count and self.floors and whole and abs(sum(one.weight for one in self.floors) - 1) < WEIGHTS_OFF):
            raise BadInput("the forecast is ok and its floors are not those of a known shape; fit the law anew")

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def at(self, flops: float, params: float | None = None, *, noisy: bool = True) -> "Foretold":
        """Forecast the loss of a run of this C = 6ND and N, or of the compute-optimal one where N is None.

        The interval allows for the noise of one run, unless that is asked for without (`noisy`).
        """
        fitted = self._fitted
        x = np.array([math.log(flops)])
        value, slopes = fitted.log_loss(None if params is None else np.log([params]), x)
        covariance, weights = fitted.information, np.array([one.weight for one in self.floors])
        own = np.maximum(0, np.einsum("vi,vij,vj->v", slopes[:, 0], covariance, slopes[:, 0]))
        drift = DRIFT * fitted.slope(self.top) * max(0.0, float(x[0]) - self.top)
        mean = float(weights @ value[:, 0])
        apart = self.stretch * (value[:, 0] - mean)  # how the floors disagree
        noise = fitted.squares if noisy else 0.0
        few = stdtrit(max(2.0, self.freedom), 0.975) / LEVEL  # the noise is known from few rows
        spread = few * np.sqrt((own + drift**2) * self.stretch**2 + noise)
        return Foretold(mean, mean + apart, spread, weights, np.exp(value[:, 0]))

    def log_optimum(self, flops: float) -> float:
        """Give log N* of a C = 6ND, averaged over the floors."""
        return float(np.array([one.weight for one in self.floors]) @ self._fitted.log_optimum(np.log([flops]))[:, 0])

    def power_laws(self) -> tuple[PowerLaw, PowerLaw]:
        """Give N* = k C^a and D* of C = 6ND, averaged over the floors."""
        low, high = self.top - 1.0, self.top
        a = self.log_optimum(math.exp(high)) - self.log_optimum(math.exp(low))
        log_k = self.log_optimum(math.exp(high)) - a * high
        return PowerLaw(math.exp(log_k), a), PowerLaw(math.exp(-math.log(6) - log_k), 1 - a)

    def optimum_draws(self, draws: int) -> tuple[Floats, Floats]:
        """Draw log k and a of N* and of D* (draws, 2), of the doubt of each floor and of which it is."""
        rng, fitted = np.random.default_rng(0), self._fitted
        which = rng.choice(len(self.floors), draws, p=[one.weight for one in self.floors])
        normal = rng.standard_normal((draws, fitted.theta.shape[1]))
        roots = np.linalg.cholesky(fitted.information + 1e-12 * np.eye(fitted.theta.shape[1]))
        theta = fitted.theta[which] + np.einsum("dij,dj->di", roots[which], normal)
        ends = np.array([self.top - 1.0, self.top])
        log_n = fitted.shape.optimum(theta.T[:, :, None], ends - self.log_flops) + self.log_params
        a = log_n[:, 1] - log_n[:, 0]
        log_k = log_n[:, 1] - a * ends[1]
        return np.stack([log_k, a], axis=1), np.stack([-math.log(6) - log_k, 1 - a], axis=1)

    def flops_of(self, loss: float, params_at: Callable[[float], float]) -> tuple[float | None, list[float | None]]:
        """Give the C = 6ND at which the loss of the size `params_at` C is this, and its 95 % interval; None: none is.

        The interval is of the C about it at which the band of losses, without the noise of a run, holds this loss. The
        band may come to hold it again much farther off, where it is as wide as to say nothing.
        """

        def above(x: float, level: float | None = None) -> float:
            said = self.at(math.exp(x), params_at(math.exp(x)), noisy=False)
            return (said.log_loss if level is None else said.quantile(level)) - math.log(loss)

        if not above(LOG_FLOPS[0]) > 0 > above(LOG_FLOPS[1]):
            return None, [None, None]
        best = brentq(above, *LOG_FLOPS, xtol=1e-9)
        ends: list[float | None] = []
        for level, limit in zip(LEVELS, LOG_FLOPS, strict=True):
            path = [best + math.copysign(i * STRIDE, limit - best) for i in range(int(abs(limit - best) / STRIDE) + 1)]
            out = (i for i, x in enumerate(path) if above(x, level) * (limit - best) < 0)
            first = next(out, None)
            ends.append(math.exp(brentq(above, path[first - 1], path[first], (level,), 1e-9)) if first else None)
        return math.exp(best), ends

    def within_reach(self, flops: float, params: float) -> float:
        """Give the size nearest to this that the rows near the floor reach at this C."""
        middle = self.log_optimum(flops)
        return math.exp(min(max(math.log(params), middle - self.reach), middle + self.reach))

    @property
    def _fitted(self) -> Fitted:
        """The floors as fitted: `squares` holds the variance of a run, `information` the covariance of theta."""
        columns = ("E", "theta", "noise", "covariance")
        E, theta, noise, covariance = (np.array([getattr(one, name) for one in self.floors]) for name in columns)
        return Fitted(SHAPES[self.shape], E, theta, noise**2, covariance, (self.log_params, self.log_flops))


@dataclass(frozen=True)
class Foretold:
    """The forecast of one loss: a mixture of normals in log loss, one for each floor."""

    log_loss: float
    means: Floats
    spread: Floats
    weights: Floats
    losses: Floats  # of each floor

    @property
    def loss(self) -> float:
        return math.exp(self.log_loss)

    @property
    def sd(self) -> float:
        """The standard deviation of the log loss."""
        return float(np.sqrt(self.weights @ ((self.means - self.log_loss) ** 2 + self.spread**2)))

    def shifted(self, by: float, sd: float) -> "Foretold":
        """Give the forecast of a log loss that lies higher by so much, with an error of its own."""
        spread = np.sqrt(self.spread**2 + sd**2)
        return Foretold(self.log_loss + by, self.means + by, spread, self.weights, self.losses * math.exp(by))

    def interval(self) -> tuple[float, float]:
        """Give the 95 % interval of the loss."""
        with np.errstate(over="ignore"):  # an end beyond all numbers is infinite
            low, high = (float(np.exp(self.quantile(level))) for level in LEVELS)
        return low, high

    def quantile(self, level: float) -> float:
        """Give the log loss below which the forecast puts this share."""
        ends = (self.means - 9 * self.spread).min(), (self.means + 9 * self.spread).max()
        return brentq(lambda y: float(self.weights @ ndtr((y - self.means) / self.spread)) - level, *ends, xtol=1e-9)


def forecast(runs: Runs) -> Forecast:
    """Fit shapes to the rows near the floor, and to those of them at less compute; refuse where they draw no floor."""
    n, x, y = np.log(runs.params), np.log(6 * runs.params * runs.tokens), np.log(runs.loss)
    whole = _fit(n, x, y)
    if not whole.ok:
        return whole
    top = np.flatnonzero(x > x.max() - math.log(SAME_BUDGET))
    best = top[y[top].argmin()]
    rolling, misses = [], []
    for early in {mask.tobytes(): mask for mask in (x <= x[best] - math.log(cut) + 1e-9 for cut in CUTS)}.values():
        part = _fit(n[early], x[early], y[early])
        if part.ok:
            said = part.at(math.exp(x[best]), float(runs.params[best]))
            low, high = said.interval()
            measured = float(runs.loss[best])
            rolling.append(
                Rolling(
                    math.exp(x[early].max()), int(early.sum()), math.exp(x[best] - x[early].max()), runs.run[best],
                    said.loss, (low, high), measured, said.log_loss - math.log(measured), low <= measured <= high,
                )
            )  # fmt: skip
            misses.append((said.log_loss - math.log(measured)) / said.sd)
    stretch = math.sqrt((BELIEVED + sum(miss**2 for miss in misses)) / (BELIEVED + len(misses)))
    return Forecast(**{**vars(whole), "stretch": max(1.0, stretch), "rolling": rolling})


def _fit(n: Floats, x: Floats, y: Floats) -> Forecast:
    if refused := _shortage(n, x):
        return Forecast("refused", [refused])
    shape = VALLEY
    weights = nearness(shape, n, x, y)
    E = SHARES * math.exp(y.min())
    fitted = fit_shape(shape, n, x, y, np.tile(weights, (len(E), 1)), E)
    if not _bracketed(fitted, n, x, weights):
        shape = CHINCHILLA_SHAPE
        weights = nearness(shape, n, x, y)
        fitted = fit_shape(shape, n, x, y, np.tile(weights, (len(E), 1)), E)
    shares, rows = E / math.exp(y.min()), float(weights.sum())
    freedom = max(1.0, rows**2 / float(weights @ weights) - fitted.theta.shape[1])
    noise = np.sqrt(fitted.squares / freedom + LEAST_NOISE**2)
    likely = float(np.clip(_share(math.exp(x.max())), *LIKELY))
    score = -0.5 * (np.log((1 - shares) / (1 - likely)) / FALLS_SD) ** 2 - TRUST * freedom * np.log(noise)
    weight = np.exp(score - score.max())
    weight /= weight.sum()
    covariance = np.linalg.pinv(fitted.information, hermitian=True) * (noise**2)[:, None, None]
    floors = [
        Floor(float(shares[i]), float(weight[i]), float(E[i]), fitted.theta[i].tolist(), covariance[i].tolist(),
              float(noise[i]))
        for i in range(len(E))
    ]  # fmt: skip
    middle = weight @ fitted.log_optimum(x)
    reach = float(np.abs(n - middle)[weights >= min(math.exp(-1), weights.max())].max())
    return Forecast("ok", [], shape.name, rows, *fitted.centre, float(x.max()), reach, freedom, 1.0, floors)


def _bracketed(fitted: Fitted, n: Floats, x: Floats, weights: Floats) -> bool:
    """Say whether the rows near the floor lie on both sides of it, as most valleys have it."""
    u = n - fitted.log_optimum(x)
    sides = [(weights * (sign * u > 0)).sum(axis=1) / weights.sum() for sign in (-1, 1)]
    return bool(np.median(np.minimum(*sides)) > LEAST_SIDE)


def _shortage(n: Floats, x: Floats) -> str:
    if len(n) < FEWEST:
        return f"{len(n)} rows draw no floor of losses; run at least {FEWEST}"
    if len(np.unique(np.round(n, 2))) < 3 or np.ptp(x) < math.log(3):
        return (
            f"{len(np.unique(n))} sizes over {short(math.exp(np.ptp(x)))}x of compute draw no floor of losses; run 3 "
            "sizes or more over at least 3x"
        )
    return ""


def _share(flops: float) -> float:
    """Give the share that the constant has of the compute-optimal loss by the law of Besiroglu et al. 2024."""
    law = PUBLISHED["besiroglu-2024"]
    return law.E / law.optimum(flops=flops).loss  # type: ignore[attr-defined]
