"""Two ways to the compute multiplier beside the laws: the minima of budgets, and cells that both ladders have."""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import stdtrit

from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.isoflop import Isoflop, Minimum, isoflop
from gptjax.laws.ladders.multiplier import FEWEST_PAIRED, Bootstrapped, Rung, percentiles
from gptjax.laws.law import Floats, Ints
from gptjax.laws.table import Runs
from gptjax.laws.uncertainty import LEVELS

SAME_BUDGET = 0.05  # in log C
GRID = 200  # points on which an interpolated frontier is turned about


@dataclass(frozen=True)
class Estimate:
    """The log of a multiplier at one C with its interval, and what it rests on; `reason` says why there is none."""

    value: float = math.nan
    ends: tuple[float, float] = (math.nan, math.nan)
    count: int = 0
    reason: str = ""
    each: tuple[Floats, Floats] = field(default_factory=lambda: (np.zeros(0), np.zeros(0)))


def by_points(a: Rung, b: Rung, found: Bootstrapped, log_at: float) -> Estimate:
    """Turn the loss differences of cells that both have into compute, by the slope of the laws at each cell.

    The slope is that of log loss as N and D grow together, which on the frontier is the frontier's own. The cells are
    regressed on log C, weighted by the square of the slope, since noise of a loss is divided by it; the interval is
    Student's t. `each` holds log C and the log multiplier of every cell. Noise that two runs of a cell share cancels.
    What one ladder gains by another ratio of D to N is not in it.
    """
    left, right = found.noise.cells
    if len(left) < 3:
        return Estimate(count=len(left), reason=f"{len(left)} cells (N, D) are in both; it takes 3")
    log_c = np.log(a.rows.flops[left])
    slope = (_steepness(a, left) + _steepness(b, right)) / 2
    y = np.log(b.over_6nd / a.over_6nd) + np.log(b.rows.loss[right] / a.rows.loss[left]) / slope
    x = log_c - log_at
    design = np.stack([np.ones_like(x), x], axis=1)[:, : 1 + (np.ptp(x) > SAME_BUDGET and len(x) > 3)]
    weighted = design * slope[:, None]
    inverse = np.linalg.pinv(weighted.T @ weighted)
    line = inverse @ weighted.T @ (y * slope)
    freedom = len(x) - design.shape[1]
    variance = np.sum(((y - design @ line) * slope) ** 2) / freedom
    half = stdtrit(freedom, LEVELS[1]) * math.sqrt(variance * inverse[0, 0])
    return Estimate(float(line[0]), (line[0] - half, line[0] + half), len(left), "", (log_c, y))


def _steepness(one: Rung, rows: Ints) -> Floats:
    """Give -d log L / d log C of the law at rows, N and D growing alike."""
    law = one.fit.law
    assert isinstance(law, ChinchillaLaw)
    n, d = one.rows.params[rows], one.rows.tokens[rows]
    return (law.alpha * law.A * n**-law.alpha + law.beta * law.B * d**-law.beta) / (2 * law.loss(n, d))


@dataclass(frozen=True)
class Parabolas:
    """The isoFLOP fit of a ladder, and the errors of log loss about its parabolas: nan outside their windows."""

    fit: Isoflop
    errors: Floats

    @property
    def noise(self) -> float:
        """The standard deviation of one log loss about the parabolas; nan where no loss is to spare."""
        known = self.errors[~np.isnan(self.errors)]
        return math.sqrt(np.sum(known**2) / self.fit.freedom) if self.fit.freedom else math.nan


def parabolas(runs: Runs) -> Parabolas:
    """Fit the parabolas of a ladder's budgets."""
    fit = isoflop(runs)
    place = {name: i for i, name in enumerate(runs.run)}
    errors = np.full(len(runs), np.nan)
    for budget in fit.budgets:
        if budget.curve:
            rows = [place[name] for name in budget.window]
            curve = np.polynomial.polynomial.polyval(np.log(runs.params[rows] / budget.centre), np.array(budget.curve))
            errors[rows] = np.log(curve / runs.loss[rows])
    return Parabolas(fit, errors)


def _shared(a: Parabolas, b: Parabolas, cells: tuple[Ints, Ints]) -> float:
    """Estimate the correlation of noise in paired cells about parabolas, which unlike laws miss nothing in common."""
    one, other = a.errors[cells[0]], b.errors[cells[1]]
    known = ~np.isnan(one + other)
    if known.sum() < FEWEST_PAIRED:
        return 0.0
    one, other = one[known], other[known]
    return float(one @ other / math.sqrt((one @ one) * (other @ other)))


def by_isoflop(
    both: tuple[Parabolas, Parabolas], cells: tuple[Ints, Ints], log_at: float, draws: int, seed: int
) -> Estimate:
    """Compare the least losses of budgets, joined by monotone curves in log C and log L; no form is assumed.

    The draws move each minimum by its standard error, those of one budget together where paired cells share noise;
    `cells` are the positions of these in the rows of both.
    """
    fits = [one.fit for one in both]
    correlation = _shared(*both, cells)
    minima = [[(np.log(one.flops), one.minimum) for one in fit.budgets if one.minimum] for fit in fits]
    if min(map(len, minima)) < 2:
        counts = " and ".join(str(len(each)) for each in minima)
        return Estimate(reason=f"{counts} budgets have a minimum among their sizes; it takes 2 in each ladder")
    rng = np.random.default_rng(seed)
    white = [rng.standard_normal((draws, len(each))) for each in minima]
    places = [np.array([log_c for log_c, _ in each]) for each in minima]
    near = np.abs(places[0][:, None] - places[1][None])
    for j in np.flatnonzero(near.min(axis=0) < SAME_BUDGET):
        shared = white[0][:, near[:, j].argmin()]
        white[1][:, j] = correlation * shared + math.sqrt(1 - correlation**2) * white[1][:, j]
    tables = [_moved(each, scatter, fit.freedom, rng) for each, scatter, fit in zip(minima, white, fits, strict=True)]
    drawn = _turned(places, tables[0], tables[1], log_at)
    value, rest = float(drawn[0]), drawn[1:]
    if math.isnan(value):
        return Estimate(reason="the budgets that have a minimum do not reach one loss at this compute in both ladders")
    ends = percentiles(rest[:, None])[:, 0] if np.isnan(rest).mean() <= 0.5 else np.array([np.nan, np.nan])
    return Estimate(value, (float(ends[0]), float(ends[1])), sum(map(len, minima)))


def _moved(minima: list[tuple[float, Minimum]], white: Floats, freedom: int, rng: np.random.Generator) -> Floats:
    """Give the log losses of minima, (1 + draws, budgets): as found first, then moved by their errors."""
    log_loss = np.log([one.loss for _, one in minima])
    se = np.nan_to_num([one.loss_se / one.loss for _, one in minima])
    scale = np.sqrt(freedom / rng.chisquare(freedom, (len(white), 1))) if freedom else 1.0
    return np.concatenate([log_loss[None], log_loss + se * scale * white])


def _turned(places: list[Floats], a: Floats, b: Floats, log_at: float) -> Floats:
    """Give the log multiplier (draws,) at one log C between frontiers of log losses (draws, budgets) at their log C.

    It is nan where the loss of a, or its compute, is not within the budgets.
    """
    if not places[0][0] <= log_at <= places[0][-1]:
        return np.full(len(a), np.nan)
    grid = np.linspace(places[1][0], places[1][-1], GRID)
    lines = np.minimum.accumulate(PchipInterpolator(places[1], b, axis=1)(grid), axis=1)
    wanted = PchipInterpolator(places[0], a, axis=1)(log_at)
    log_c = np.array([np.interp(-one, -line, grid) for one, line in zip(wanted, lines, strict=True)])
    return np.where((lines[:, -1] <= wanted) & (wanted <= lines[:, 0]), log_c - log_at, np.nan)
