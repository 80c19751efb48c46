"""What an analyst chooses, what every approach to a scaling law answers, and the regression that two of them share."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np

from gptjax.errors import BadInput
from gptjax.laws.forms import FORMS, Form
from gptjax.laws.law import PowerLaw
from gptjax.laws.table import Dropped, Floats, Runs

Status = Literal["ok", "refused", "degenerate"]
Estimator = Literal["huber", "lad", "lsq-log", "lsq"]
Resample = Literal["rows", "runs", "params", "noise"]
MIN_DRAWS = 40  # the ends of a 95 % interval are the least and the greatest of so many
TRUSTED_FREEDOM = 6  # degrees of freedom from which a scatter about curves is believed over any other measure of noise
MAX_CELLS = 20_000_000  # draws x rows of a bootstrap whose size is left to us


def is_whole(value: object) -> bool:
    """Say whether a value is a whole number, and not a truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclass(frozen=True)
class Choices:
    """What an analyst chooses; the defaults are the report's. `gptjax fit` has an option for each."""

    convention: str = ""  # of N and C, as 6n_non_embedding; empty: the table's columns params and flops
    form: str | Form = "chinchilla"  # of the parametric law: one of FORMS by name, or a form of your own
    drop_highest_loss: int = 0
    loss: Estimator = "huber"  # huber and lad of log loss, least squares of log or raw loss
    delta: float = 1e-3  # of huber
    weights: Literal["equal", "noise"] = "equal"  # noise: 1 / loss_se^2
    interp: Literal["parabola", "akima"] = "parabola"
    window: int = 0  # sizes on either side of the least loss that a parabola sees; 0: by their range and the noise
    unfinished: bool = False  # let training curves count where their schedule had not ended
    bootstrap: int = 0  # draws; 0: 1000, fewer above 20,000 rows
    # what the parametric bootstrap draws: rows, whole runs, whole sizes, or noise about the law; auto: rows, or whole
    # runs where several rows are of one
    cluster: Literal["auto", "rows", "runs", "params", "noise"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise BadInput(f"{name} {getattr(self, name)!r} is not known; use one of {', '.join(get_args(kind))}")
            if kind is int and not is_whole(getattr(self, name)):
                raise BadInput(f"{name} {getattr(self, name)!r} is not a whole number; give one")
        if isinstance(self.form, str) and self.form not in FORMS:
            known = ", ".join(map(repr, FORMS))
            raise BadInput(f"form {self.form!r} is not known; use one of {known}, or give the file that makes it")
        if not {"params", "tokens"} <= set(self.law_form.columns):
            reads = f"form {self.law_form.name!r} reads {', '.join(self.law_form.columns)}"
            raise BadInput(f"{reads} and has no optimum of N and D; use one that reads both")
        if not 0 < self.delta < 1e3:
            raise BadInput(f"delta {self.delta:g} must lie between 0 and 1000; Hoffmann et al. used 1e-3")
        if self.seed >= 2**32:
            raise BadInput(f"seed {self.seed} must be below 2^32")
        if self.drop_highest_loss < 0 or self.bootstrap < 0 or self.seed < 0:
            counts = f"drop-highest-loss {self.drop_highest_loss}, bootstrap {self.bootstrap}, seed {self.seed}"
            raise BadInput(f"{counts}: none may be negative")

    @property
    def law_form(self) -> Form:
        """The form of the parametric law."""
        return FORMS[self.form] if isinstance(self.form, str) else self.form

    def draws(self, rows: int) -> int:
        """Give the number of bootstrap draws for a table of so many rows."""
        return self.bootstrap or max(100, min(1000, MAX_CELLS // rows))

    def resample(self, runs: Runs) -> Resample:
        """Say what the parametric bootstrap draws of these rows."""
        if self.cluster == "auto" or (self.cluster == "runs" and runs.curve is None):
            return "rows" if runs.curve is None else "runs"
        return self.cluster

    def rows(self, runs: Runs) -> Runs:
        """Give the rows that are fitted: the best of each cell, counted as chosen, without the highest losses."""
        return runs.counted(self.convention).tuned(self.law_form.extra).drop_highest_loss(self.drop_highest_loss)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What every approach answers: N*(C) and D*(C) as power laws, or None and the reasons."""

    approach: ClassVar[str]  # its name

    status: Status
    reasons: tuple[str, ...]
    used: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    params_law: PowerLaw | None
    tokens_law: PowerLaw | None


def regress(c: Floats, y: Floats, se: Floats) -> tuple[PowerLaw, float]:
    """Regress log y on log C with weights 1/se^2 (equal when there is no noise); give the law and its exponent's se."""
    sd = se if (se > 0).all() else np.ones_like(se)
    x = np.log(c)
    weight = sd**-2 / np.sum(sd**-2)
    x_mean, y_mean = weight @ x, weight @ np.log(y)
    spread = weight @ (x - x_mean) ** 2
    exponent = weight @ ((x - x_mean) * np.log(y)) / spread
    misfit = np.log(y) - y_mean - exponent * (x - x_mean)
    variance = 1 / np.sum(sd**-2) / spread
    if len(c) > 2:  # the budgets' own scatter, when it is more than their errors explain
        chi2 = np.sum((misfit / sd) ** 2) / (len(c) - 2)
        variance *= max(1.0, chi2) if (se > 0).all() else chi2
    with np.errstate(over="ignore"):  # of a law too steep for its coefficient to be a number
        coef = float(np.exp(y_mean - exponent * x_mean))
    return PowerLaw(coef, float(exponent)), float(np.sqrt(variance))
