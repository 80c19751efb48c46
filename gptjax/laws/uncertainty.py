"""Say how far each number of a fit could have come out otherwise: bootstrap, profile, deletion, subsampling."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from gptjax.laws.envelope import Envelope, envelope, refit_finished
from gptjax.laws.families import BY_EXPONENT, CHINCHILLA, slopes_at
from gptjax.laws.fit import MIN_DRAWS, Choices, Fit, Resample
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.isoflop import Isoflop, isoflop, refit_noise
from gptjax.laws.parametric import FEW, Parametric, columns, parametric, refit
from gptjax.laws.table import Floats, Runs

LEVELS = (0.025, 0.975)
SAME_SIZE = 0.01  # in log N, between neighbours
PROFILE_POINTS = 41
MAX_DELETIONS = 2000  # rows above which single rows are not left out in turn
TRUSTED_FREEDOM = 6  # degrees of freedom from which the scatter about the parabolas needs no other
WIDE = 1.0  # of the interval of an exponent: 0 to 1 is all that is possible where N* and D* grow with C

F = TypeVar("F", bound=Fit)


@dataclass(frozen=True)
class Noise:
    """The noise of one loss, in nats: its standard deviation, what it is taken from, and that's degrees of freedom.

    `source` is "parabolas" or "law" where it is the scatter about these, "evaluation" where that is less than the noise
    of the evaluation alone, and empty where the noise is unknown. `law` are the rows' losses without noise, as far as
    least squares of log loss tell them.
    """

    sd: float = math.nan
    source: Literal["parabolas", "law", "evaluation", ""] = ""
    freedom: float = math.inf
    law: ChinchillaLaw | None = None

    def draw(self, rng: np.random.Generator, draws: int, rows: int) -> Floats:
        """Draw the noise (draws, rows) of losses, each draw with another sd, as far as the scatter leaves it open."""
        sd = np.full((draws, 1), self.sd)
        if math.isfinite(self.freedom):
            sd *= np.sqrt(self.freedom / rng.chisquare(self.freedom, (draws, 1)))
        return sd * rng.standard_normal((draws, rows))


UNKNOWN = Noise()


def noise_of_one(runs: Runs, by_budget: Isoflop) -> Noise:
    """Find the noise of one loss: the scatter about the parabolas, or about the law where parabolas are too few.

    The noise of the evaluation alone is a floor, and no substitute: seed and data order move losses by more.
    """
    fit = parametric(runs, Choices(loss="lsq-log"), starts=CHINCHILLA.starts[FEW])
    law = fit.law if isinstance(fit.law, ChinchillaLaw) and fit.params_law else None
    freedom = len(fit.used) - len(fit.theta)
    if by_budget.freedom < TRUSTED_FREEDOM and fit.law and freedom > by_budget.freedom:
        scatter = Noise(fit.noise * float(runs.loss.mean()), "law", freedom, law)
    elif by_budget.freedom:
        scatter = Noise(by_budget.noise, "parabolas", by_budget.freedom, law)
    else:
        return UNKNOWN
    floor = runs.evaluation_noise
    return Noise(floor, "evaluation", math.inf, law) if scatter.sd <= floor else scatter


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
    for name, law, drawn in (("a", fit.params_law, draws.params), ("b", fit.tokens_law, draws.tokens)):
        ends = draws.interval(drawn[:, 1])
        if ends is None:
            continue
        said = f"{name} = {law.exponent:.3g} and its 95 % interval is {ends[0]:.3g} to {ends[1]:.3g}"
        about = draws.noise.law if math.isfinite(draws.bias) else None  # what these draws were made about
        of_law = getattr(about, name, law.exponent)
        if not ends[0] <= law.exponent <= ends[1]:
            faults.append(f"{said}: the estimate is an accident of these losses; {remedy}")
        elif not drawn[:, 1].min() <= of_law <= drawn[:, 1].max():
            what = f"of a law of {name} = {of_law:.3g}, by least squares, no noise drawn gives such an estimate"
            faults.append(f"{said}: {what}; {remedy}")
        elif not np.ptp(ends) < WIDE:
            faults.append(f"{said}: as wide as from 0 to 1, it says nothing; {remedy}")
    return replace(fit, status="degenerate", reasons=(*fit.reasons, *faults)) if faults else fit


def bootstrap(runs: Runs, fit: Fit, choices: Choices, *, noise: Noise = UNKNOWN) -> Draws:
    """Fit again to rows drawn with replacement, to whole sizes so drawn, or to losses with noise.

    IsoFLOP and envelope take noise where it is known, since they refuse a draw that happens to leave out the sizes
    around a minimum. The parametric fit draws what `choices.cluster` says, its noise being the scatter about the law,
    and starts each draw at its optimum. An envelope of training curves gives no draws: the noise of a frontier point is
    not that of a finished run.
    """
    asked = choices.draws(len(runs))
    if isinstance(fit, Parametric):
        about = Noise(fit.noise, "law", len(fit.used) - len(fit.theta))
        if fit.params_law is None:
            return Draws(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 5)), choices.cluster, about, asked)
        return _of_laws(bootstrap_theta(runs, fit, choices), choices.cluster, about, asked)
    rng = np.random.default_rng(choices.seed)
    by_noise = bool(noise.source) and (isinstance(fit, Isoflop) or noise.law is not None)
    resample: Resample = "noise" if by_noise else "params" if choices.cluster == "params" else "rows"
    bias = math.nan
    if isinstance(fit, Envelope) and fit.method == "training curves":
        asked = 0
    if fit.params_law is None or not asked:
        table = np.zeros((0, 2, 2))
    elif by_noise and isinstance(fit, Isoflop):
        table = np.stack(refit_noise(runs, fit, runs.loss + noise.draw(rng, asked, len(runs))), axis=1)
    elif by_noise:
        table, bias = _about_the_law(runs, fit, noise, asked, rng)
    else:
        drawn = [_again(runs.take(_resampled(runs, rng, resample)), fit) for _ in range(asked)]
        laws = [(new.params_law, new.tokens_law) for new in drawn]
        with np.errstate(divide="ignore"):  # the coefficient of a very steep draw may be 0
            table = np.array([[(np.log(n.coef), n.exponent), (np.log(d.coef), d.exponent)] for n, d in laws if n and d])
    table = table.reshape(-1, 2, 2)
    table = table[np.isfinite(table).all(axis=(1, 2))]
    return Draws(table[:, 0], table[:, 1], np.zeros((0, 5)), resample, noise, asked, bias)


def _about_the_law(runs: Runs, fit: Fit, noise: Noise, asked: int, rng: np.random.Generator) -> tuple[Floats, float]:
    """Draw the envelope's lines (draws, 2, 2) by what it misses of a known law's under the same noise, and a's bias.

    The least of several noisy losses is drawn to sizes with luck, and a frontier ends where the sizes end. Noise upon
    the measured losses would have both twice; about the law it shows them, and they are taken off (Davison and Hinkley
    1997, 5.2: the basic bootstrap). The law is only estimated, so each draw takes off the bias with an error of its
    own size.
    """
    assert noise.law and fit.params_law and fit.tokens_law
    losses = noise.law.loss(runs.params, runs.tokens) + noise.draw(rng, asked, len(runs))
    drawn = np.stack(refit_finished(runs, losses), axis=1)
    with np.errstate(divide="ignore"):  # the coefficient of a very steep law may be 0
        truth, found = (
            np.array([(np.log(law.coef), law.exponent) for law in laws])
            for laws in ((noise.law.params_law, noise.law.tokens_law), (fit.params_law, fit.tokens_law))
        )
    known = np.isfinite(drawn).all(axis=(1, 2))
    bias = drawn[known].mean(axis=0) - truth if known.any() else np.full((2, 2), np.nan)
    return found + truth - drawn + bias * rng.standard_normal((asked, 1, 1)), float(bias[0, 1])


def _again(runs: Runs, fit: Fit) -> Fit:
    """Apply the approach of a fit to other rows, with its own settings."""
    return isoflop(runs, interp=fit.interp, window=fit.window) if isinstance(fit, Isoflop) else envelope(runs)


def bootstrap_theta(runs: Runs, fit: Parametric, choices: Choices) -> Floats:
    """Give theta (draws, 5) of the parametric law for rows, sizes or noise so drawn."""
    asked = choices.draws(len(runs))
    if choices.cluster == "noise":
        rng = np.random.default_rng(choices.seed)
        predicted = runs.loss * np.exp(fit.errors)
        about = Noise(fit.noise, "law", len(fit.used) - len(fit.theta))
        losses = predicted * np.exp(about.draw(rng, asked, len(runs)))
        return refit(runs, fit, choices, losses=losses)[0]
    # numpy's older generator: with its seed 42 come the draws, and so the standard errors, of Besiroglu et al. 2024
    legacy = np.random.RandomState(choices.seed)
    counts = [np.bincount(_resampled(runs, legacy, choices.cluster), minlength=len(runs)) for _ in range(asked)]
    return refit(runs, fit, choices, weights=np.array(counts, dtype=np.float64))[0]


def _resampled(runs: Runs, rng: Any, resample: Resample) -> NDArray[np.int_]:
    """Draw positions of rows, or of all rows of as many sizes as there are."""
    if resample == "params":
        of_size = size_of(runs)
        count = of_size.max() + 1
        return np.concatenate([np.flatnonzero(of_size == size) for size in rng.choice(count, size=count)])
    return rng.choice(len(runs), size=len(runs))


def size_of(runs: Runs) -> NDArray[np.int_]:
    """Number the sizes, from the smallest, and give each row's; a size read off a figure differs a little by row."""
    order = np.argsort(runs.params, kind="stable")
    numbers = np.cumsum(np.append(0, np.diff(np.log(runs.params[order])) > SAME_SIZE))
    return numbers[np.argsort(order)]


def _of_laws(theta: Floats, resample: Resample, noise: Noise, asked: int) -> Draws:
    """Read the drawn coefficients as power laws of N* and D* under C = 6ND, without draws that have no optimum."""
    theta = theta[np.isfinite(theta).all(axis=1) & (theta[:, 3] > 0) & (theta[:, 4] > 0)]
    log_a, log_b, _, alpha, beta = theta.T
    total = alpha + beta
    log_g = (np.log(alpha / beta) + log_a - log_b) / total
    params = np.stack([log_g - beta / total * np.log(6), beta / total], axis=1)
    tokens = np.stack([-log_g - alpha / total * np.log(6), alpha / total], axis=1)
    return Draws(params, tokens, theta, resample, noise, asked)


def profile(runs: Runs, fit: Parametric, choices: Choices, draws: Draws) -> dict[str, Any]:
    """Profile E, alpha, beta and a: the least objective at each value of one, all else free, and its 95 % interval.

    The objective is no likelihood, and its rise S - S_min at the true value is chi-squared (one degree of freedom) only
    after scaling by V_pp / (2 M_pp), where M is the inverse of the mean curvature and V the sandwich covariance, which
    errors of unequal spread widen (Kent 1982). An end of the interval is None where the rise stays below the bar on the
    grid, which reaches three times as far as the middle 68 % of the draws do.
    """
    assert isinstance(fit.law, ChinchillaLaw)
    by_exponent = replace(fit, family=BY_EXPONENT, theta=np.array([*fit.theta[:3], fit.theta[3:].sum(), fit.law.a]))
    exponents = draws.theta[:, 4] / draws.theta[:, 3:].sum(axis=1)
    spread = {"E": draws.theta[:, 2], "alpha": draws.theta[:, 3], "beta": draws.theta[:, 4], "a": exponents}
    found = {}
    for name, drawn in spread.items():
        of = by_exponent if name == "a" else fit
        place = of.family.coefficients.index(name)
        bar = chi2.ppf(0.95, 1) * _scale(runs, of)[place] / 2
        low, high = np.quantile(drawn, (0.16, 0.84))
        values = of.theta[place] + 3 * (high - low) * np.linspace(-1, 1, PROFILE_POINTS)
        starts = np.tile(of.theta, (PROFILE_POINTS, 1))
        starts[:, place] = values
        free = np.ones(5)
        free[place] = 0
        _, least = refit(runs, of, choices, starts=starts, free=free)
        rise = np.maximum(least - least.min(), 0)
        values = np.exp(values) if name == "E" else values
        found[name] = {"values": values, "rise": rise / bar, "interval": _crossings(values, rise / bar)}
    return found


def _scale(runs: Runs, fit: Parametric) -> Floats:
    """Estimate V_pp / M_pp of each coefficient; for errors of one spread it is E[psi^2] / E[psi'], psi = Huber's slope.

    A row's curvature is its being within delta; the window in which that is counted is no narrower than the errors'
    density at 0 can be estimated in (Powell 1991), and counting row by row lets the spread differ between rows.
    """
    slope, error = slopes_at(fit.family, fit.theta, columns(runs, fit.family)), fit.errors
    if fit.estimator == "lsq":
        predicted = runs.loss * np.exp(fit.errors)
        slope, error = slope * predicted[:, None], predicted - runs.loss
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
        a = theta[:, 4] / theta[:, 3:].sum(axis=1)
        found[name] = {"left_out": runs.run if name == "row" else sizes, "a": a, "E": np.exp(theta[:, 2])}
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
    return {"a_interval_80": np.quantile(theta[:, 4] / theta[:, 3:].sum(axis=1), (0.1, 0.9)), "draws": draws}


def design_bias(runs: Runs, law: ChinchillaLaw, approach: str, choices: Choices) -> dict[str, float] | None:
    """Apply an approach to the parametric law's own noise-free losses at these rows: what it misses is its bias.

    Gives a's error and the ratio of N* at the largest budget; None where the approach refuses.
    """
    exact = replace(runs, loss=law.loss(runs.params, runs.tokens), loss_se=np.full(len(runs), np.nan), facts={})
    again: Fit = envelope(exact)
    if approach == "isoflop":
        again = isoflop(exact, interp=choices.interp, window=choices.window)
    if again.params_law is None:
        return None
    largest = runs.flops.max()
    ratio = float(again.params_law(largest) / law.params_law(largest))
    return {"a": again.params_law.exponent - law.a, "N_ratio_at_largest": ratio}
