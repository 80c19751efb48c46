"""Say how far each number of a fit could have come out otherwise: bootstrap, profile, deletion, subsampling."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from gptjax.laws.fit import MIN_DRAWS, TRUSTED_FREEDOM, Choices, Fit, Resample
from gptjax.laws.forms import CHINCHILLA, Form, slopes_at
from gptjax.laws.isoflop import Isoflop
from gptjax.laws.law import Ints, PowerLaw
from gptjax.laws.parametric import Parametric, columns_read, optima_of, parametric, predicted, refit
from gptjax.laws.table import Floats, Runs

LEVELS = (0.025, 0.975)
SAME_SIZE = 0.01  # in log N, between neighbours
PROFILE_POINTS = 41
MAX_DELETIONS = 2000  # rows above which single rows are not left out in turn
SAYS_NOTHING = 1.0  # of the interval of an exponent: 0 to 1 is all that is possible where N* and D* grow with C

F = TypeVar("F", bound=Fit)


@dataclass(frozen=True)
class Noise:
    """The noise of one loss, in nats: its standard deviation, what it is taken from, and that's degrees of freedom.

    `source` is "parabolas" or "law" where it is the scatter about these, "evaluation" where that is less than the noise
    of the evaluation alone, and empty where the noise is unknown. `losses` are the rows' without noise, as far as
    least squares of log loss tell them, and `law` the N* and D* of these. `curve` numbers the run of each row where
    several rows are of one, and `shared` is the share of the variance that these have in common.
    """

    sd: float = math.nan
    source: Literal["parabolas", "law", "evaluation", ""] = ""
    freedom: float = math.inf
    law: tuple[PowerLaw, PowerLaw] | None = None
    losses: Floats = field(default_factory=lambda: np.zeros(0))
    curve: Ints | None = None
    shared: float = 0.0

    def draw(self, rng: np.random.Generator, draws: int, rows: int) -> Floats:
        """Draw the noise (draws, rows) of losses, each draw with another sd, as far as the scatter leaves it open."""
        sd = np.full((draws, 1), self.sd)
        if math.isfinite(self.freedom):
            sd *= np.sqrt(self.freedom / rng.chisquare(self.freedom, (draws, 1)))
        own = rng.standard_normal((draws, rows))
        if self.curve is None:
            return sd * own
        runs = rng.standard_normal((draws, int(self.curve.max()) + 1))[:, self.curve]
        return sd * (math.sqrt(self.shared) * runs + math.sqrt(1 - self.shared) * own)


UNKNOWN = Noise()


def noise_of_one(runs: Runs, by_budget: Isoflop, form: Form = CHINCHILLA) -> Noise:
    """Find the noise of one loss: the scatter about the parabolas, or about the law where parabolas are too few.

    The noise of the evaluation alone is a floor, and no substitute: seed and data order move losses by more.
    """
    fit = parametric(runs, Choices(loss="lsq-log", form=form), starts=form.few_starts)
    exact: dict[str, Any] = {}
    if fit.law and fit.params_law and fit.tokens_law:
        exact = {"law": (fit.params_law, fit.tokens_law), "losses": predicted(fit.law, form, runs)}
        if runs.curve is not None:
            exact |= {"curve": runs.curve, "shared": _shared(fit.errors, runs.curve)}
    freedom = len(fit.used) - len(fit.theta)
    if by_budget.freedom < TRUSTED_FREEDOM and fit.law and freedom > by_budget.freedom:
        scatter = Noise(fit.noise * float(runs.loss.mean()), "law", freedom, **exact)
    elif by_budget.freedom:
        scatter = Noise(by_budget.noise, "parabolas", by_budget.freedom, **exact)
    else:
        return UNKNOWN
    floor = runs.evaluation_noise
    return Noise(floor, "evaluation", math.inf, **exact) if scatter.sd <= floor else scatter


def _shared(errors: Floats, curve: Ints) -> float:
    """Estimate the share of the errors' variance that rows of one run have in common (one-way analysis of variance)."""
    _, of_run, count = np.unique(curve, return_inverse=True, return_counts=True)
    rows, runs = len(errors), len(count)
    if not 1 < runs < rows:
        return 0.0
    mean = np.bincount(of_run, errors) / count
    within = float(((errors - mean[of_run]) ** 2).sum() / (rows - runs))
    between = float((count * (mean - errors.mean()) ** 2).sum() / (runs - 1))
    each = (rows - (count**2).sum() / rows) / (runs - 1)  # rows of a run, on average
    common = max(0.0, (between - within) / each)
    return common / (common + within) if common + within > 0 else 0.0


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws that gave a law: columns log k, a of N* = k C^a and the same of D*; theta where parametric.

    `bias` is that of a which they were corrected for, nan where they were not.
    """

    params: Floats
    tokens: Floats
    theta: Floats
    resample: Resample
    noise: Noise
    asked: int
    bias: float = math.nan

    @property
    def failed_share(self) -> float:
        """The share of draws in which the approach refused or gave no law."""
        return 1 - len(self.params) / self.asked if self.asked else 0.0

    @property
    def enough(self) -> bool:
        """Whether there are the draws that an interval needs, and at least half of them gave a law."""
        return len(self.params) >= MIN_DRAWS and self.failed_share <= 0.5

    def interval(self, values: Floats) -> Floats | None:
        """Give the 95 % percentile interval, or None when there are too few draws."""
        return np.quantile(values, LEVELS, axis=0) if self.enough else None


def judged(fit: F, draws: Draws) -> F:
    """Take a fit for degenerate where its draws say that its exponents tell next to nothing, with the reason."""
    if fit.status != "ok" or not (draws.asked and fit.params_law and fit.tokens_law):
        return fit
    remedy = "add budgets, sizes on both sides of the optimum, or repeated runs"
    if draws.asked < MIN_DRAWS:
        note = f"--bootstrap {draws.asked} gives no interval: a 95 % interval needs {MIN_DRAWS} draws or more"
        return replace(fit, reasons=(*fit.reasons, note))
    faults = []
    if not draws.enough:
        faults.append(f"{draws.failed_share:.0%} of {draws.asked} draws of the bootstrap give no law; {remedy}")
    about = draws.noise.law if math.isfinite(draws.bias) else None  # what these draws were made about
    of_laws = [law.exponent for law in about or (fit.params_law, fit.tokens_law)]
    both = (("a", fit.params_law, draws.params), ("b", fit.tokens_law, draws.tokens))
    for (name, law, drawn), of_law in zip(both, of_laws, strict=True):
        ends = draws.interval(drawn[:, 1])
        if ends is None:
            continue
        said = f"{name} = {law.exponent:.3g} and its 95 % interval is {ends[0]:.3g} to {ends[1]:.3g}"
        if not ends[0] <= law.exponent <= ends[1]:
            faults.append(f"{said}: the estimate is an accident of these losses; {remedy}")
        elif not drawn[:, 1].min() <= of_law <= drawn[:, 1].max():
            what = f"of a law of {name} = {of_law:.3g}, by least squares, no noise drawn gives such an estimate"
            faults.append(f"{said}: {what}; {remedy}")
        elif not np.ptp(ends) < SAYS_NOTHING:
            faults.append(f"{said}: as wide as from 0 to 1, it says nothing; {remedy}")
    return replace(fit, status="degenerate", reasons=(*fit.reasons, *faults)) if faults else fit


def bootstrap_theta(runs: Runs, fit: Parametric, choices: Choices) -> Floats:
    """Give theta (draws, k) of the parametric law for rows, sizes or noise so drawn."""
    asked = choices.draws(len(runs))
    if choices.cluster == "noise":
        rng = np.random.default_rng(choices.seed)
        exact = runs.loss * np.exp(fit.errors)
        about = Noise(fit.noise, "law", len(fit.used) - len(fit.theta))
        losses = exact * np.exp(about.draw(rng, asked, len(runs)))
        return refit(runs, fit, choices, losses=losses)[0]
    # numpy's older generator: with its seed 42 come the draws, and so the standard errors, of Besiroglu et al. 2024
    legacy, resample = np.random.RandomState(choices.seed), choices.resample(runs)
    counts = [np.bincount(resampled(runs, legacy, resample), minlength=len(runs)) for _ in range(asked)]
    return refit(runs, fit, choices, weights=np.array(counts, dtype=np.float64))[0]


def resampled(runs: Runs, rng: Any, resample: Resample) -> NDArray[np.int_]:
    """Draw positions of rows, or of all rows of as many sizes or runs as there are."""
    if resample in ("params", "runs"):
        of_one = size_of(runs) if resample == "params" or runs.curve is None else runs.curve
        _, of_one, count = np.unique(of_one, return_inverse=True, return_counts=True)
        rows_of = np.split(np.argsort(of_one, kind="stable"), np.cumsum(count)[:-1])
        return np.concatenate([rows_of[i] for i in rng.choice(len(count), size=len(count))])
    return rng.choice(len(runs), size=len(runs))


def size_of(runs: Runs) -> NDArray[np.int_]:
    """Number the sizes, from the smallest, and give each row's; a size read off a figure differs a little by row."""
    order = np.argsort(runs.params, kind="stable")
    numbers = np.cumsum(np.append(0, np.diff(np.log(runs.params[order])) > SAME_SIZE))
    return numbers[np.argsort(order)]


def profile(runs: Runs, fit: Parametric, choices: Choices, draws: Draws) -> dict[str, Any]:
    """Profile coefficients: the least objective at each value of one, all else free, and its 95 % interval.

    The objective is no likelihood, and its rise S - S_min at the true value is chi-squared (one degree of freedom) only
    after scaling by V_pp / (2 M_pp), where M is the inverse of the mean curvature and V the sandwich covariance, which
    errors of unequal spread widen (Kent 1982). An end of the interval is None where the rise stays below the bar on the
    grid, which reaches three times as far as the middle 68 % of the draws do.
    """
    form, found = fit.form, {}
    for name in form.profiled:
        found[name] = _profile_of(runs, fit, choices, form.names.index(name), draws.theta)
    if by := form.by_exponent:  # a is no coefficient of theta, and is one of the same laws written otherwise
        a = draws.params[:, 1]
        theta = np.array([*fit.theta[:3], fit.theta[3:].sum(), fit.theta[4] / fit.theta[3:].sum()])
        place = by.names.index("a")
        drawn = np.tile(theta, (len(a), 1))
        drawn[:, place] = a
        found["a"] = _profile_of(runs, replace(fit, form=by, theta=theta), choices, place, drawn)
    return found


def _profile_of(runs: Runs, fit: Parametric, choices: Choices, place: int, draws: Floats) -> dict[str, Any]:
    """Profile one coefficient of theta over the range that its draws suggest."""
    bar = chdtri(1, 0.05) * _scale(runs, fit)[place] / 2
    low, high = np.quantile(draws[:, place], (0.16, 0.84))
    values = fit.theta[place] + 3 * (high - low) * np.linspace(-1, 1, PROFILE_POINTS)
    starts = np.tile(fit.theta, (PROFILE_POINTS, 1))
    starts[:, place] = values
    free = np.ones(len(fit.theta))
    free[place] = 0
    _, least = refit(runs, fit, choices, starts=starts, free=free)
    rise = np.maximum(least - least.min(), 0)
    values = np.exp(values) if fit.form.names[place] in fit.form.logs else values
    return {"values": values, "rise": rise / bar, "interval": _crossings(values, rise / bar)}


def _scale(runs: Runs, fit: Parametric) -> Floats:
    """Estimate V_pp / M_pp of each coefficient; for errors of one spread it is E[psi^2] / E[psi'], psi = Huber's slope.

    A row's curvature is its being within delta; the window in which that is counted is no narrower than the errors'
    density at 0 can be estimated in (Powell 1991), and counting row by row lets the spread differ between rows.
    """
    slope, error = slopes_at(fit.form, fit.theta, columns_read(runs, fit.form)), fit.errors
    if fit.estimator == "lsq":
        exact = runs.loss * np.exp(fit.errors)
        slope, error = slope * exact[:, None], exact - runs.loss
    delta = {"huber": fit.delta, "lad": 1e-8}.get(fit.estimator, 1e3)
    window = max(delta, 1.06 * error.std() * len(error) ** -0.2)
    bend = fit.weights * (np.abs(error) <= window) * delta / window
    inverse = np.linalg.pinv((slope * bend[:, None]).T @ slope)
    pull = slope * (fit.weights * np.clip(error, -delta, delta))[:, None]
    spent = len(error) / max(1, len(error) - len(fit.theta))  # the fit's own degrees of freedom
    return spent * np.diag(inverse @ pull.T @ pull @ inverse) / np.diag(inverse)


def _crossings(values: Floats, rise: Floats) -> list[float | None]:
    """Find where a curve of least value 0 crosses 1 on either side, between grid points."""
    least = int(rise.argmin())
    left = np.flatnonzero(rise[:least] >= 1)
    right = np.flatnonzero(rise[least:] >= 1)
    ends: list[float | None] = [None, None]
    if len(left):
        i = left[-1]
        ends[0] = float(np.interp(1, [rise[i + 1], rise[i]], [values[i + 1], values[i]]))
    if len(right):
        i = least + right[0]
        ends[1] = float(np.interp(1, [rise[i - 1], rise[i]], [values[i - 1], values[i]]))
    return ends


def influence(runs: Runs, fit: Parametric, choices: Choices) -> dict[str, Any]:
    """Leave out each row, and all rows of each size, in turn: what a and E become, and the jackknife's error of a.

    The jackknife errs upward where single rows have much leverage.
    """
    of_size = size_of(runs)
    sizes = [float(runs.params[of_size == size].mean()) for size in range(of_size.max() + 1)]
    groups = {"size": np.eye(len(sizes))[of_size].T}
    if len(runs) <= MAX_DELETIONS:
        groups["row"] = np.eye(len(runs))
    found: dict[str, Any] = {}
    for name, left_out in groups.items():
        theta, _ = refit(runs, fit, choices, weights=1 - left_out)
        a = optima_of(runs, fit, theta)[:, 0, 1]
        floors = fit.form.coefficients(theta).get("E", np.full(len(theta), np.nan))
        found[name] = {"left_out": runs.run if name == "row" else sizes, "a": a, "E": floors}
        found[name]["a_se"] = float(np.sqrt((len(a) - 1) * np.mean((a - a.mean()) ** 2)))
    return found


def subsample(runs: Runs, fit: Parametric, choices: Choices, draws: int = 100) -> dict[str, Any]:
    """Give the 80 % interval of a over subsamples of 80 % of the rows, as Hoffmann et al. 2022 (Table 2) did.

    For comparison with theirs only: subsamples share most rows, so it is about half as wide as it claims to be.
    """
    rng = np.random.default_rng(choices.seed)
    weights = np.zeros((draws, len(runs)))
    for row in weights:
        row[rng.choice(len(runs), size=round(0.8 * len(runs)), replace=False)] = 1
    theta, _ = refit(runs, fit, choices, weights=weights)
    return {"a_interval_80": np.nanquantile(optima_of(runs, fit, theta)[:, 0, 1], (0.1, 0.9)), "draws": draws}
