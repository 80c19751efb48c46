"""What a fit gives, typed: law.json is this, and docs/law.json.md is made of the comments here.

`gptjax keys` writes that page. N is parameters, D tokens, C FLOPs, N* and D* the compute-optimal ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import read_json
from gptjax.laws.codec import OMITTED, Json, read, written
from gptjax.laws.fit import Choices, Resample, Status
from gptjax.laws.forecast import Forecast
from gptjax.laws.forms import CHINCHILLA
from gptjax.laws.law import Law
from gptjax.laws.published import PUBLISHED
from gptjax.laws.table import Dropped

Ends = tuple[float, float]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Band:
    """N* and D* along C, with 95 % intervals."""

    C: list[float]  # 60 budgets, from the least to 10 times the largest
    N: list[float]  # N* at each budget
    D: list[float]  # D* at each budget
    N_interval: list[Ends] | None  # 95 % interval of each N*; null where there are too few draws
    D_interval: list[Ends] | None  # 95 % interval of each D*; null likewise


@dataclass(frozen=True)
class Resampling:
    """How an interval was made."""

    resample: Resample  # what each draw changed: rows, whole runs, whole sizes, or noise upon the losses
    draws: int  # how many were asked for; 0 where the approach allows none
    failed_share: float  # share of the draws that gave no law
    noise: float | None  # standard deviation of the noise of one loss, in nats (parametric: of log loss)
    noise_from: str  # what it was taken from: parabolas, law, evaluation; empty where unknown
    bias: float | None  # bias of a that was taken off the draws; null where none was


@dataclass(frozen=True)
class Lines:
    """Power laws, one a draw."""

    N: list[Pair]  # log coefficient and exponent of N*
    D: list[Pair]  # log coefficient and exponent of D*


@dataclass(frozen=True)
class DesignBias:
    """What an approach misses at these rows on the parametric law's own losses, without noise."""

    a: float  # error of a
    N_ratio_at_largest: float  # its N* at the largest budget over the true one


@dataclass(frozen=True, kw_only=True)
class Found:
    """What every approach gives."""

    status: Status  # ok, refused, or degenerate: a law that says nothing, and is no basis for a forecast
    reasons: list[str]  # why, with what to add
    a: float | None  # exponent of N* in C
    a_interval: (
        Ends | None
    )  # 95 % interval of a; null where over half of the draws gave no law, or there were fewer than 40
    b: float | None  # exponent of D* in C
    b_interval: Ends | None  # 95 % interval of b; null likewise
    N_coef: float | None  # coefficient: N* = N_coef C^a
    D_coef: float | None  # coefficient: D* = D_coef C^b
    band: Band | None  # N* and D* along C; null where there is no law
    interval: Resampling  # how the intervals were made
    draws: Lines  # N* and D* of each draw that gave a law
    used: list[str]  # runs that carry the fit
    dropped: list[Dropped]  # runs left out of it, and why
    design_bias: DesignBias | None = None  # what the approach misses at these rows; null where no parametric law is ok

    @property
    def budgets_kept(self) -> int:
        """The budgets that have a minimum; 0 but for isoFLOP."""
        return 0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class FoundBudget:
    """One isoFLOP budget."""

    C: float  # mean FLOPs, in logs, of its runs
    runs: list[str]  # all its runs
    window: list[str]  # those that the curve goes through
    centre: float  # N about which the curve is written
    curve: list[float]  # loss = sum_i curve[i] log(N / centre)^i; empty under Akima
    N: float | None  # N of the minimum; null where the budget was refused
    N_log_se: float | None  # standard error of log N
    D: float | None  # D of the minimum
    D_log_se: float | None  # standard error of log D
    loss: float | None  # the least loss
    loss_se: float | None  # its standard error
    reason: str  # why it has no minimum, and what to add


@dataclass(frozen=True, kw_only=True)
class IsoflopFound(Found):
    """Approach 2: the minimum of loss over N at each budget."""

    a_se: float | None  # standard error of a by the regression
    budgets: list[FoundBudget]  # every budget, from the least

    @property
    def budgets_kept(self) -> int:
        return sum(budget.N is not None for budget in self.budgets)


@dataclass(frozen=True)
class Points:
    """Points in the plane of compute."""

    C: list[float]  # FLOPs
    N: list[float]  # parameters
    D: list[float]  # tokens
    loss: list[float]  # nats a token


@dataclass(frozen=True, kw_only=True)
class EnvelopeFound(Found):
    """Approach 1: the least loss at each compute."""

    method: str  # finished runs, or training curves
    edge_share: float | None  # share of the frontier where the best size is the least or the largest tried
    run_share: list[float]  # how far through its run each point of the frontier lies
    frontier: Points  # the least loss along C, every tenth point
    changes: Points  # where the best size changes; empty from training curves


@dataclass(frozen=True)
class Coefficient:
    """One coefficient of a law."""

    value: float | None  # the estimate; null where the fit was refused
    se: float | None  # standard deviation over the draws
    interval: Ends | None  # the middle 95 % of the draws


@dataclass(frozen=True)
class Profile:
    """The least objective at each value of one coefficient, all others free."""

    values: list[float]  # values at which the coefficient is held
    rise: list[float]  # how far the objective rises above its minimum; 1 ends the 95 % interval
    interval: tuple[
        float | None, float | None
    ]  # the ends of that interval; null where the rise stays below 1 on that side


@dataclass(frozen=True)
class Influence:
    """What the fit becomes without one size, or one row."""

    left_out: list[Any]  # what is left out: the N of a size, or the name of a run
    a: list[float]  # the exponent a without each
    E: list[float]  # the floor E without each
    a_se: float  # the jackknife's standard error of a; too wide where single rows have much leverage


@dataclass(frozen=True)
class Subsample:
    """Fits to 80 % of the rows, for comparison with Hoffmann et al. 2022, Table 2, only."""

    a_interval_80: Ends  # 80 % interval of a: half as wide as it claims
    draws: int  # how many subsamples


@dataclass(frozen=True, kw_only=True)
class ParametricFound(Found):
    """Approach 3: a law of the loss. Its coefficients also stand as keys NAME, NAME_se and NAME_interval."""

    form: str  # name of the form of the law
    columns: list[str]  # the columns of the table that the law reads
    held: dict[str, float]  # each column of the law besides N and D, and its median, at which optima hold it
    coefficients: dict[str, Coefficient]  # each coefficient of the law, in the order of the form
    theta: list[float] | None  # the coefficients as they are fitted: logarithms of those that are positive
    theta_draws: list[list[float]]  # theta of each draw
    a_se: float | None  # standard deviation of a over the draws
    profile: dict[str, Profile] | None  # a profile of each coefficient, and of a where the form allows
    influence: dict[str, Influence] | None  # the fit without each size (key `size`) and without each row (key `row`)
    subsample: Subsample | None  # fits to 80 % of the rows
    estimator: str  # how errors are weighed: huber, lad, lsq-log or lsq, as in settings.loss
    delta: float  # where the Huber loss turns from squares to absolute errors
    objective: float | None  # the least sum of weighed errors; null where the fit was refused
    starts: int  # how many starts the fit was sought from
    share_at_best: float | None  # share of the starts that reached the least sum
    errors: list[float]  # log predicted - log measured, a row each
    noise: float | None  # standard deviation of one run's log loss about the law

    def beside(self) -> Json:
        """Give the coefficients by name, as law.json has had them from the first version on."""
        own = {f.name for f in fields(self)}
        found: Json = {}
        for name, each in self.coefficients.items():
            found |= {name: each.value, f"{name}_se": each.se, f"{name}_interval": each.interval}
        return {key: value for key, value in found.items() if key not in own}

    @staticmethod
    def upgraded(value: Json) -> Json:
        """Read what was written before there were other forms than Chinchilla's."""
        if "coefficients" in value:
            return value
        names = CHINCHILLA.names
        found = {n: {"value": value.get(n), "se": value.get(f"{n}_se"), "interval": value.get(f"{n}_interval")}
                 for n in names}  # fmt: skip
        known = [value.get(n) for n in names]
        theta = [float(np.log(x)) if n in CHINCHILLA.logs else x for n, x in zip(names, known, strict=True)
                 if isinstance(x, int | float) and (x > 0 or n not in CHINCHILLA.logs)]  # fmt: skip
        return {**value, "form": CHINCHILLA.name, "columns": [*CHINCHILLA.columns], "held": {}, "coefficients": found,
                "theta": theta if len(theta) == len(names) else None}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One approach under one choice that could have been made."""

    approach: str  # the approach
    choice: str  # what was chosen otherwise
    rows: int  # how many rows carry the fit
    status: Status  # as in approaches.NAME
    reason: str  # why it is not ok
    a: float | None  # exponent of N*
    a_interval: Ends | None  # its 95 % interval, of 200 draws
    N_beyond: float | None  # N* at 10 times the largest budget, where N and C count as chosen


@dataclass(frozen=True)
class FittedForm:
    """One form of the law, by least squares of log loss."""

    form: str  # its name
    status: Status  # as in approaches.NAME
    coefficients: dict[str, float] | None  # null where it was refused
    aicc: float | None  # Akaike's criterion, corrected for few rows, above that of the best form
    rmse: float | None  # root mean square of log predicted - log measured
    cut: float  # the FLOPs that part the rows for rmse_beyond
    rmse_beyond: float | None = None  # the same of the rows beyond the cut, by the form fitted to those below


@dataclass(frozen=True)
class Cut:
    """The law of the runs up to a compute, scored on those beyond 3 times it."""

    max_flops: float  # the compute up to which runs are fitted
    rows: int  # how many those are
    rows_beyond: int  # how many runs lie beyond 3 times that compute
    status: Status  # of the parametric fit
    reason: str  # why it is not ok
    rmse: float | None  # root mean square of log predicted - log measured of the runs beyond
    bias: float | None  # mean of log predicted - log measured of the runs beyond
    isoflop_a: float | None  # a by isoFLOP
    parametric_a: float | None  # a by the parametric fit
    isoflop_N_ratio: float | None  # N* at the largest budget over that of all rows, by isoFLOP
    parametric_N_ratio: float | None  # the same ratio by the parametric fit


@dataclass(frozen=True)
class Covered:
    """How often an approach's 95 % interval of a held the truth, over simulated sweeps."""

    fitted: int  # sweeps whose fit was ok
    refused: int  # sweeps whose fit was not
    truth: float  # the planted a
    covered: float | None = field(default=None, metadata=OMITTED)  # share of the fitted whose interval held it
    covered_interval: Ends | None = field(default=None, metadata=OMITTED)  # exact 95 % interval of that share
    bias: float | None = field(default=None, metadata=OMITTED)  # mean error of a
    rmse: float | None = field(default=None, metadata=OMITTED)  # root mean square error of a
    width: float | None = field(default=None, metadata=OMITTED)  # mean width of the interval


@dataclass(frozen=True)
class Evaluation:
    """The noise of the evaluation: medians over the rows, in nats."""

    loss_se: float | None  # standard error of a loss
    between_runs: float | None  # the part that runs evaluated on the same windows do not share


PARTS: Mapping[str, type[Found]] = {
    "envelope": EnvelopeFound,
    "isoflop": IsoflopFound,
    "parametric": ParametricFound,
}


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that `gptjax fit` gives."""

    rows: int  # rows fitted
    convention: str  # what N and C count
    dropped: list[Dropped]  # rows of the table left out before any fit, and why
    ranges: dict[str, Ends]  # least and largest N, D, D/N, C and loss
    settings: Choices  # every choice, the seed included
    evaluation: Evaluation  # the noise of the evaluation
    approaches: dict[str, Found]  # what each approach gives: envelope, isoflop, parametric
    hyper: dict[str, Any] | None = field(default=None, metadata=OMITTED)  # laws of learning rate and batch; see laws.md
    choices: list[Choice] | None = field(default=None, metadata=OMITTED)  # the exponent under other choices
    forms: list[FittedForm] | None = field(default=None, metadata=OMITTED)  # other forms of the law on the same rows
    extrapolation: list[Cut] | None = field(default=None, metadata=OMITTED)  # what less compute would have said
    coverage: dict[str, Covered] | None = field(default=None, metadata=OMITTED)  # by approach, where it was counted
    forecast: Forecast | None = field(default=None, metadata=OMITTED)  # what losses beyond the rows are forecast by
    quote: dict[str, str] = field(default_factory=dict)  # what to quote, why it, what speaks against it

    def to_json(self) -> Json:
        """Give the object of law.json."""
        return written(self)

    @staticmethod
    def from_json(value: Any, where: str = "law") -> "Analysis":
        """Read the object of law.json; BadInput names the key that is missing or not what it must be."""
        if isinstance(value, dict) and isinstance(value.get("arms"), dict):
            arms = ", ".join(value["arms"])
            raise BadInput(f"{where} holds the laws of several arms ({arms}); fit the rows of the one that is meant")
        if not isinstance(value, dict) or not isinstance(value.get("approaches"), dict):
            raise BadInput(f"{where} is not a law; make one with gptjax fit TABLE --json FILE")
        found = {name: read(PARTS.get(name, Found), part, f"{where}: approaches.{name}")
                 for name, part in value["approaches"].items()}  # fmt: skip
        return replace(read(Analysis, {**value, "approaches": {}}, f"{where}:"), approaches=found)

    @property
    def isoflop(self) -> IsoflopFound | None:
        found = self.approaches.get("isoflop")
        return found if isinstance(found, IsoflopFound) else None

    @property
    def envelope(self) -> EnvelopeFound | None:
        found = self.approaches.get("envelope")
        return found if isinstance(found, EnvelopeFound) else None

    def law(self, held: Mapping[str, float] | None = None) -> Law | None:
        """Give the parametric law as one of N and D, its further columns held as given or as fitted; None: no law."""
        fit = self.parametric
        if fit is None or fit.theta is None:
            return None
        law = self.settings.law_form.at(np.array(fit.theta))
        return law.held(fit.held if held is None else held) if isinstance(law, Law) else None

    @property
    def parametric(self) -> ParametricFound | None:
        found = self.approaches.get("parametric")
        return found if isinstance(found, ParametricFound) else None


def read_law(source: str) -> Analysis:
    """Read a law from its file, or from law.json in a directory."""
    path = Path(source) / "law.json" if Path(source).is_dir() else Path(source)
    if not path.is_file():
        known = ", ".join(PUBLISHED)
        raise BadInput(f"{source} is no sweep that has a law, no law's JSON, and no published law; those are {known}")
    return Analysis.from_json(read_json(path), str(path))
