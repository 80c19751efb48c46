"""A law that may forecast: its optima, its losses, the draws that tell its doubt, or why it may not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gptjax.errors import BadInput
from gptjax.laws.fit import MIN_DRAWS
from gptjax.laws.forecast import Forecast
from gptjax.laws.law import Floats, Law, PowerLaw
from gptjax.laws.published import PUBLISHED
from gptjax.laws.record import Analysis, Found, read_law

MIXED = 1000  # draws of N* and D* where the forecast gives them


class NoForecast(BadInput):
    """The rows gave no law that may forecast."""


@dataclass(frozen=True)
class Forecaster:
    """A law that may forecast; drawn laws, and draws (k, 2) of log k, a of N* and D*, tell its doubt.

    N* and D* of a budget come from `optimum` where it is there (an isoFLOP fit, the floor of the forecast, or a law
    whose optima are power laws), else from the law. Losses come from `forecast` where it is there, else from the law.
    A published law has no draws and no rows. `noise` is the standard deviation of one run's log loss about the law.
    `held` are the values of the columns that the law reads besides N and D.
    """

    name: str
    law: Law
    laws: tuple[Law, ...]
    noise: float
    optimum: tuple[PowerLaw, PowerLaw] | None
    optimum_draws: tuple[Floats, Floats]
    source: str
    convention: str
    rows: int
    flops_span: tuple[float, float] | None  # least and largest C of the rows
    forced: str  # why it would have been refused
    unsound: str = ""  # why its law may not speak beside the forecast, which is sound
    held: dict[str, float] = field(default_factory=dict)
    forecast: Forecast | None = None


def read_forecaster(source: str, force: bool = False, held: Mapping[str, float] | None = None) -> Forecaster:
    """Read a law: the name of a published one, the JSON of `gptjax fit`, or a directory with law.json."""
    if source in PUBLISHED:
        return published_forecaster(source)
    try:
        return forecaster(read_law(source), force, source, held)
    except NoForecast as refusal:
        raise NoForecast(f"{source}: {refusal}") from None


def published_forecaster(name: str) -> Forecaster:
    """Make a forecaster of a published law."""
    none = np.zeros((0, 2))
    return Forecaster(
        name, PUBLISHED[name], (), 0.0, None, (none, none), "published law",
        "N without embeddings; L(N, D) under C = 6ND, whose N* is not their C^0.73 (of L(N, S))"
        if name.startswith("kaplan") else "N and C as published", 0, None, "",
    )  # fmt: skip


def forecaster(
    law: Analysis, force: bool = False, name: str = "law", held: Mapping[str, float] | None = None
) -> Forecaster:
    """Make a forecaster of a fit. NoForecast when its parametric law is refused or, unless forced, degenerate.

    A degenerate law does not matter where the isoFLOP fit gives the optima and the forecast the losses.

    `held` gives values for the columns that the law reads besides N and D; the others keep their medians of the fit.
    """
    fitted = law.parametric
    if fitted is None:
        raise NoForecast("the parametric fit is not fitted (it was not asked for) and forecasts no loss")
    trouble = "" if fitted.ok else f"{fitted.status} ({'; '.join(fitted.reasons)})"
    sound = bool(fitted.a and law.isoflop and law.isoflop.ok and law.forecast and law.forecast.ok)
    if trouble and not sound and not (force and fitted.a):
        remedy = "; --force forecasts all the same" if fitted.a else ""
        raise NoForecast(f"the parametric fit is {trouble} and forecasts no loss{remedy}")
    form = law.settings.law_form
    best: Found = law.isoflop if law.isoflop and law.isoflop.ok else fitted
    source = "parametric" if best is fitted else "isoflop"
    forecast = law.forecast if law.forecast and law.forecast.ok else None
    values = _held(fitted.held, held or {})
    enough = max(MIN_DRAWS, law.settings.bootstrap / 2)  # fewer draws that gave a law are no sample of its doubt
    n_draws, d_draws = (np.array(lines, float).reshape(-1, 2) for lines in (best.draws.N, best.draws.D))
    drawn = [form.at(np.array(each)) for each in fitted.theta_draws] if len(fitted.theta_draws) >= enough else []
    own = law.law(values)
    if own is None:
        raise BadInput(f"{name} has no coefficients of its parametric law; fit it anew")
    optimum = None
    if (source == "isoflop" or own.closed) and None not in (best.N_coef, best.a, best.D_coef, best.b):
        optimum = PowerLaw(best.N_coef, best.a), PowerLaw(best.D_coef, best.b)  # type: ignore[arg-type]
    draws = (n_draws, d_draws) if len(n_draws) >= enough else (n_draws[:0], d_draws[:0])
    if source == "parametric" and forecast and forecast.shape == "valley":  # the floor is seen, and its N* with it
        source, optimum, draws = "forecast", forecast.power_laws(), forecast.optimum_draws(MIXED)
    return Forecaster(
        name=name,
        law=own,
        laws=tuple(each.held(values) for each in drawn if isinstance(each, Law)),
        noise=fitted.noise or 0.0,
        optimum=optimum,
        optimum_draws=draws,
        source=source,
        convention=law.convention,
        rows=law.rows,
        flops_span=law.ranges["C"],
        forced="" if sound and not force else trouble,
        unsound=trouble if sound and not force else "",
        held=values,
        forecast=forecast,
    )


def _held(fitted: dict[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Give the values at which a forecast holds the further columns of a law: those given, else those of the fit."""
    if strange := sorted(set(given) - set(fitted)):
        reads = f"reads {', '.join(fitted)} besides N and D" if fitted else "reads N and D alone"
        raise BadInput(f"the law {reads}; {strange[0]} cannot be given")
    return {**fitted, **given}
