"""Compare arms of an experiment, as an LSTM with a GPT: a law for each, and the compute each needs for one loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.laws.analysis import fit_all
from gptjax.laws.approaches import BY_NAME
from gptjax.laws.codec import Json, read, written
from gptjax.laws.fit import Choices
from gptjax.laws.forecaster import Forecaster, NoForecast, forecaster
from gptjax.laws.law import Floats, Law
from gptjax.laws.predict import SEARCHES
from gptjax.laws.record import Analysis, Ends
from gptjax.laws.table import Runs
from gptjax.laws.uncertainty import LEVELS

POINTS = 5  # budgets at which two arms are compared, over the compute that both were trained with


@dataclass(frozen=True)
class Compared:
    """How much compute one arm needs for the loss of another, both compute-optimal."""

    arm: str  # the arm that needs more
    baseline: str  # the arm that reaches its losses with the least compute, in the middle of the range
    flops: float | None  # compute of the baseline in the middle of what both were trained with; null where no law is ok
    ratio: float | None  # compute of the arm over it, for the same loss
    interval: tuple[float, float | None] | None  # 95 %; an end of null is unbounded
    ends: Ends | None  # the least and the largest compute of the baseline that was compared
    ratios: list[float | None]  # the ratio at 5 budgets from the least to the largest; null where it has no such loss
    reason: str  # why there is no ratio


@dataclass(frozen=True)
class Arms:
    """The fits of one table by the values of a column: what `gptjax fit --by COLUMN --json FILE` writes."""

    by: str  # the column
    arms: dict[str, Analysis]  # the fit of the rows of each value
    compared: list[Compared]  # every other arm with the baseline

    def to_json(self) -> Json:
        """Give the object that is written."""
        return written(self)

    @staticmethod
    def from_json(value: Any, where: str = "arms") -> "Arms":
        """Read what was written."""
        if not isinstance(value, dict) or not isinstance(value.get("arms"), dict):
            raise BadInput(f"{where} holds no arms; make it with gptjax fit TABLE --by COLUMN --json FILE")
        arms = {name: Analysis.from_json(law, f"{where}: arms.{name}") for name, law in value["arms"].items()}
        return Arms(
            str(value.get("by", "")), arms, read(list[Compared], value.get("compared", []), f"{where}: compared")
        )


def fit_arms(
    runs: Runs,
    by: str,
    choices: Choices | None = None,
    *,
    approaches: Sequence[str] = tuple(BY_NAME),
    tables: bool = True,
    sweeps: int = 0,
    done: Callable[[], Any] = lambda: None,
) -> Arms:
    """Fit the runs of each value of a column apart, and compare the arms. BadInput for a column of one value."""
    parts = runs.arms(by)
    if len(parts) < 2:
        raise BadInput(f"column {by!r} has the one value {next(iter(parts))!r}; give a column that tells arms apart")
    fits = {
        name: fit_all(part, choices, approaches=approaches, tables=tables, sweeps=sweeps, done=done)
        for name, part in parts.items()
    }
    return Arms(by, fits, compare(fits))


def compare(arms: dict[str, Analysis]) -> list[Compared]:
    """Compare every arm with the one whose loss is least in the middle of the compute that all were trained with."""
    able: dict[str, Forecaster] = {}
    refused: dict[str, str] = {}
    for name, law in arms.items():
        try:
            able[name] = forecaster(law, name=name)
        except NoForecast as refusal:
            refused[name] = str(refusal)
    ends = max(law.ranges["C"][0] for law in arms.values()), min(law.ranges["C"][1] for law in arms.values())
    middle = float(np.sqrt(ends[0] * ends[1]))
    best = min(able, key=lambda name: able[name].law.optimum(flops=middle).loss) if able else next(iter(arms))
    if ends[0] >= ends[1]:
        refused = dict.fromkeys(arms, "no compute was trained with in every arm; add budgets that all share")
    found = []
    for name in arms:
        if reason := refused.get(name) or (refused.get(best, "") if name != best else ""):
            found.append(Compared(name, best, None, None, None, None, [], reason))
        elif name != best:
            found.append(_compared(able[name], able[best], ends))
    return found


def _compared(arm: Forecaster, baseline: Forecaster, ends: Ends) -> Compared:
    middle = float(np.sqrt(ends[0] * ends[1]))
    budgets = np.geomspace(*ends, POINTS)
    ratios = [_ratio(arm.law, baseline.law, float(c)) for c in budgets]
    pairs = list(
        zip(arm.laws, baseline.laws, strict=False)
    )  # two fits share no rows: any pairing of their draws will do
    pairs = pairs if arm.law.closed and baseline.law.closed else pairs[:SEARCHES]
    drawn = np.sort([_ratio(one, other, middle) for one, other in pairs])
    low, high = (float(drawn[round(level * (len(drawn) - 1))]) for level in LEVELS) if len(drawn) else (np.nan, np.nan)
    interval = (low, high if np.isfinite(high) else None) if np.isfinite(low) else None
    ratio = _ratio(arm.law, baseline.law, middle)
    known = ratio if np.isfinite(ratio) else None
    reason = "" if known else f"{arm.name} never reaches the loss that {baseline.name} has at {middle:.3g} FLOPs"
    listed = [each if np.isfinite(each) else None for each in ratios]
    return Compared(arm.name, baseline.name, middle, known, interval, ends, listed, reason)


def _ratio(arm: Law, baseline: Law, flops: float) -> float:
    """Give the compute that an arm needs for the baseline's loss at a budget, over that budget; inf where none does."""
    try:
        return arm.optimum(loss=baseline.optimum(flops=flops).loss).flops / flops
    except (BadInput, OverflowError, ZeroDivisionError):  # the loss lies below the arm's floor, or beyond all floats
        return float("inf")


def describe(compared: Compared) -> str:
    """Say a comparison in a sentence."""
    if compared.ratio is None or compared.ends is None:
        return f"{compared.arm} and {compared.baseline} are not compared: {compared.reason}."
    interval = ""
    if compared.interval:
        low, high = compared.interval
        interval = f" ({low:.2g} to {'more than can be told' if high is None else f'{high:.2g}'})"
    low, high = compared.ends
    at = f"{low:.2g} to {high:.2g}".replace("e+", "e")
    along = " to ".join("no finite number" if end is None else f"{end:.2g}x" for end in compared.ratios[:: POINTS - 1])
    return (
        f"{compared.arm} needs {compared.ratio:.2g}x{interval} the compute of {compared.baseline} for the same loss, "
        f"at {compared.flops:.2g} FLOPs of {compared.baseline}; from {at} FLOPs it is {along}.".replace("e+", "e")
    )


def optimal_losses(law: Analysis, points: int = 80) -> tuple[Floats, Floats] | None:
    """Give compute and the loss of its optimum along the rows of an arm; None where it has no law."""
    fitted, fit = law.law(), law.parametric
    if fitted is None or fit is None or fit.band is None:
        return None
    c = np.geomspace(law.ranges["C"][0] / 1.5, law.ranges["C"][1] * 4, points)
    return c, np.array([fitted.optimum(flops=float(each)).loss for each in c])
