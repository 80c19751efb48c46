"""Predict runs from a law: the best run of a budget, size, token count or loss, or the loss of one given run."""

import math
import re
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws.codec import Json
from gptjax.laws.forecast import LOG_FLOPS, Foretold
from gptjax.laws.forecaster import Forecaster, NoForecast
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.law import Floats, Law, Optimum
from gptjax.laws.published import DataConstrainedLaw, Served, serving_optimum
from gptjax.laws.uncertainty import LEVELS

SEARCHES = 100  # draws whose optimum is found by search, where it has no closed form
LIMITS = {"flops": (1e6, 1e40), "params": (10, 1e20), "tokens": (10, 1e25), "loss": (1e-3, 50)}
MOST_OFF = 10  # times 6 N D: what a run of small models may cost by another count of FLOPs
LEAST_SPAN = 10.0  # times the largest budget, up to which a forecast is taken for one of the rows
FAR_ERROR = 0.15  # of how far a law puts a loss above one nearer the optimum: the standard deviation of its error


def predict(
    f: Forecaster,
    *,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    unique_tokens: float | None = None,
) -> Json:
    """Predict the compute-optimal run of this C, N, D or loss, or the run of exactly these (N, D), C = 6ND or as given.

    Of a run of exactly these, `unique_tokens` says how many of its tokens differ, the others being repeated
    (Muennighoff et al. 2023, Eqs. 5 and 6); `constrain` answers for an optimum.
    Each number comes with a 95 % interval where there are draws: N, D and C from the law's doubt alone, the loss from
    that of the forecast (forecast.py) and the noise of one run. `forms` lists each floor that the loss was averaged
    over, and `rolling` how such forecasts did within the table. Where there is no forecast, as of a published law, the
    loss is the law's, its form taken for true.
    """
    asked = {"flops": flops, "params": params, "tokens": tokens, "loss": loss}
    given = {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise BadInput(f"{name} {value!r} is not one number; ask for each run by itself, as {name}=1e9")
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise BadInput(f"{name} {value:g} is not within {low:g} to {high:g}; give a run's {name}")
    exact = params is not None and tokens is not None and loss is None
    if exact and params and tokens:
        point = _as_given(params, tokens, flops)
    elif len(given) != 1:
        raise BadInput("give one of --flops, --params, --tokens and --loss, or --params and --tokens together")
    else:
        ((name, value),) = given.items()
        point = _of_loss(f, value) if name == "loss" else _of_one(f, name, value)
    n, d = point.params, point.tokens
    repeated = unique_tokens if exact else None
    said = _foretell(f, n, d, exact, repeated)
    drawn = point.drawn
    if drawn:
        with np.errstate(invalid="ignore"):  # of draws whose floor lies above the loss: both are infinite
            drawn["tokens_per_param"] = drawn["tokens"] / drawn["params"]
    numbers = {"flops": point.flops, "params": n, "tokens": d, "tokens_per_param": d / n, "loss": said.loss}
    result: Json = {}
    for name, value in numbers.items():
        result[name] = value
        result[f"{name}_interval"] = None if name in given else _interval(drawn.get(name, np.zeros(0)))
    result["loss_interval"] = said.interval
    if repeated is not None:
        result |= {"unique_tokens": repeated, "epochs": max(1.0, d / repeated)}
    if loss is not None:
        result["loss"] = loss
    if f.held:
        result["held"] = f.held
    rolling = f.forecast.rolling if f.forecast else []
    return plain(
        {
            **result,
            "optimum_from": point.source,
            "loss_from": said.source,
            "law": f.name,
            "convention": f.convention,
            "rows": f.rows,
            "times_largest_flops": point.flops / f.flops_span[1] if f.flops_span else None,
            "caution": _caution(f, point.flops),
            "forced": f.forced,
            "forms": said.forms,
            "rolling": [asdict(one) for one in rolling],
        }
    )


@dataclass(frozen=True)
class _Point:
    """A run: where it lies, what that was taken from, and draws of params, tokens and flops where there are."""

    params: float
    tokens: float
    flops: float
    source: str
    drawn: dict[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class _Said:
    """A loss with its interval, what it was taken from, and each floor that it was averaged over."""

    loss: float
    interval: list[float] | None
    source: str
    forms: list[Json] = field(default_factory=list)


def _caution(f: Forecaster, flops: float) -> str:
    """Say where a run lies farther beyond the rows than they reach themselves; "" where it does not."""
    if not f.flops_span:
        return ""
    least, most = f.flops_span
    times, span = flops / most, most / least
    if times <= max(span, LEAST_SPAN):
        return ""
    said = f"{times:.3g} times the largest budget, where the rows span {span:.3g}: "
    return said.replace("e+", "e") + "so far out the forecast is what is usual of other tables, not what these rows say"


def _as_given(params: float, tokens: float, flops: float | None) -> _Point:
    c = flops or 6 * params * tokens
    off = c / (6 * params * tokens)
    if not 1 / MOST_OFF <= off <= MOST_OFF:
        whole = 6 * params * tokens
        raise BadInput(f"flops {c:g} is {off:.3g} times 6 N D = {whole:.3g}; give the run's own, or leave it out")
    return _Point(params, tokens, c, "as given")


def _of_one(f: Forecaster, name: str, value: float) -> _Point:
    """Find the compute-optimal run of a C, N or D."""
    if f.optimum is None:
        best = f.law.optimum(**{name: value})
        return _Point(best.params, best.tokens, best.flops, f.source, _optima(f, **{name: value}))
    n_law, d_law = f.optimum
    try:
        n, d, c = _along((n_law.coef, n_law.exponent), (d_law.coef, d_law.exponent), name, value)
        if not all(0 < one < math.inf for one in (n, d, c)):
            raise OverflowError
    except (OverflowError, ZeroDivisionError):
        raise NoForecast(
            f"{f.name} has N* as C^{n_law.exponent:g} and D* as C^{d_law.exponent:g}, and no finite run of {name} "
            f"{value:g}; fit more rows"
        ) from None
    n_draws, d_draws = map(_columns, f.optimum_draws)
    drawn = dict(zip(("params", "tokens", "flops"), _along(n_draws, d_draws, name, value), strict=True))
    return _Point(n, d, c, f.source, drawn)


def _of_loss(f: Forecaster, loss: float) -> _Point:
    """Find the compute-optimal run of a loss: the C at which the forecast of N* is this, and N* and D* there."""
    if f.forecast is None:
        best = f.law.optimum(loss=loss)
        return _Point(best.params, best.tokens, best.flops, "parametric" if f.rows else f.source, _optima(f, loss=loss))
    flops, ends = f.forecast.flops_of(loss, partial(_best_size, f))
    if flops is None:
        limits = [math.exp(end) for end in LOG_FLOPS]
        highest, lowest = (f.forecast.at(c, _best_size(f, c)).loss for c in limits)
        raise BadInput(f"no compute-optimal run is forecast to have loss {loss:g}: from {limits[0]:g} to {limits[1]:g} "
                       f"FLOPs losses fall from {highest:.3g} to {lowest:.3g}; ask for one between them")  # fmt: skip
    along = _counted_along(f, flops)
    point = _of_one(f, "flops", along)
    if not point.drawn:
        return point
    n_draws, d_draws = map(_columns, f.optimum_draws)
    if not len(n_draws[0]):
        return replace(point, drawn={})
    spread = [math.log(end / flops) if end else side * math.inf for end, side in zip(ends, (-1, 1), strict=True)]
    normal = np.random.default_rng(0).standard_normal(len(n_draws[0])) / 1.96
    log_c = np.log(along) + np.where(normal < 0, -normal * spread[0], normal * spread[1])
    with np.errstate(all="ignore"):  # an unbounded end
        c = np.exp(log_c)
        n, d = (coef * c**exponent for coef, exponent in (n_draws, d_draws))
    return replace(point, drawn={"params": n, "tokens": d, "flops": c})


def _best_size(f: Forecaster, flops: float) -> float:
    """Give the N that is named for a C = 6ND, as far as the rows near the floor reach."""
    assert f.forecast
    if f.optimum is None:
        best = f.law.optimum(flops=flops).params
    else:
        try:
            best = float(f.optimum[0](_counted_along(f, flops)))
        except OverflowError:
            best = math.inf
    return f.forecast.within_reach(flops, min(max(best, 1e-300), 1e300))


def _require_law(f: Forecaster, what: str) -> None:
    """Raise NoForecast where the parametric law has to speak and is degenerate."""
    if f.unsound:
        raise NoForecast(
            f"the parametric fit is {f.unsound}, and {what} is forecast by it; --force forecasts all the same"
        )


def _counted_along(f: Forecaster, flops: float) -> float:
    """Turn 6 N* D* into the C of the optimum's own power laws, which may count it otherwise."""
    if f.optimum is None:
        return flops
    n_law, d_law = f.optimum
    product = n_law.exponent + d_law.exponent
    return math.exp((math.log(flops / 6) - math.log(n_law.coef) - math.log(d_law.coef)) / product)


def _foretell(f: Forecaster, params: float, tokens: float, exact: bool, unique: float | None) -> _Said:
    """Give the loss of a run of exactly (N, D), or of an optimum.

    Sizes farther from N* than those near the floor of the table are judged by the parametric law: it says by how much
    their loss lies above that of the farthest such size at the same C.
    """
    law = f.law if unique is None else _repeating(f, f.law, unique)
    if f.forecast is None:
        return _Said(float(law.loss(params, tokens)), _loss_interval(f, params, tokens, unique), "law")
    c = 6 * params * tokens
    edge = f.forecast.within_reach(c, params)
    far = exact and not math.isclose(edge, params, rel_tol=1e-9)
    said: Foretold = f.forecast.at(c, edge)
    shift = 0.0
    if far or unique is not None:
        _require_law(f, "a run so far from the optimum" if far else "a run that repeats data")
        shift = math.log(float(law.loss(params, tokens)) / float(f.law.loss(params, tokens)))
    if far:
        shift += max(0.0, math.log(float(f.law.loss(params, tokens)) / float(f.law.loss(edge, c / (6 * edge)))))
    if shift:
        said = said.shifted(shift, FAR_ERROR * abs(shift))
    low, high = said.interval()
    forms = [
        {"form": f.forecast.shape, "floor": one.E, "floor_share": one.share, "weight": one.weight, "loss": loss}
        for one, loss in zip(f.forecast.floors, said.losses.tolist(), strict=True)
    ]
    source = "forecast" + (" near the optimum, and the parametric law from there" if far else "")
    return _Said(said.loss, [low, high], source, forms)


def describe(said: Json) -> str:
    """Lay a prediction out for a terminal, a number and its interval a line."""
    names = {
        "inference_tokens": "served", "unique_tokens": "unique", "flops": "C", "params": "N", "tokens": "D",
        "tokens_per_param": "D/N", "training_flops": "training", "inference_flops": "inference", "saving": "saving",
        "epochs": "epochs", "loss": "loss",
    }  # fmt: skip
    units = {"N": "parameters", "D": "tokens", "loss": "nats a token", "served": "tokens", "unique": "tokens"}
    units |= dict.fromkeys(("C", "training", "inference"), "FLOPs") | {"saving": "of training and inference"}
    lines = []
    for key, label in names.items():
        if key not in said:
            continue
        digits = 4 if key in ("loss", "params", "tokens") else 3
        ends = said.get(f"{key}_interval")
        span = f"  [{', '.join('unbounded' if end is None else f'{end:.{digits}g}' for end in ends)}]" if ends else ""
        text = f"{said[key]:.{digits}g} {units.get(label, '')}{span}"
        lines.append(f"{label:<10}{re.sub(r'e[+]0?', 'e', text)}".rstrip())
    if said.get("times_largest_flops"):
        times = re.sub(r"e[+]0?", "e", f"{said['times_largest_flops']:.3g}")
        lines.append(f"{'beyond':<10}{times} times the largest budget of its {said['rows']} rows")
    if said.get("caution"):
        lines.append(f"{'CAUTION':<10}{said['caution']}")
    if "optimum_from" in said:
        lines.append(f"{'by':<10}{said['law']}: {said['optimum_from']}; {said['convention']}")
    for column, value in said.get("held", {}).items():
        lines.append(f"{'at':<10}{column} = {value:.4g}, which has no optimum and is held there")
    if said.get("forced"):
        lines.append(f"{'FORCED':<10}the fit is {said['forced']}")
    return "\n".join(lines)


def _columns(draws: Floats) -> tuple[Floats, Floats]:
    return np.exp(draws[:, 0]), draws[:, 1]


def _along(n_law: Any, d_law: Any, name: str, value: float) -> tuple[Any, Any, Any]:
    """Follow N* = k C^a and D* = k C^b from one of C, N, D to all three."""
    (n_coef, a), (d_coef, b) = n_law, d_law
    with np.errstate(all="ignore"):  # draws that have no finite run
        if name == "flops":
            c = value + 0 * a
        else:
            c = (value / n_coef) ** (1 / a) if name == "params" else (value / d_coef) ** (1 / b)
        return n_coef * c**a, d_coef * c**b, c


def _optima(f: Forecaster, **given: float) -> dict[str, Floats]:
    """Give N, D and C of each drawn law's optimum of one of C, N, D and loss; inf where it has none."""
    laws = f.laws if f.law.closed else f.laws[:SEARCHES]
    best = [_optimum(law, given) for law in laws]
    return {name: np.array([getattr(one, name) for one in best]) for name in ("params", "tokens", "flops")}


def _optimum(law: Law, given: dict[str, float]) -> Optimum:
    try:
        return law.optimum(**given)
    except (BadInput, OverflowError, ZeroDivisionError):  # no run of this law has that loss, or only one beyond floats
        return Optimum(math.inf, math.inf, math.inf, math.inf)


def _interval(drawn: Floats) -> list[float | None] | None:
    """Give the 95 % interval of draws; an end beyond all numbers is None."""
    if not len(drawn):
        return None
    ordered = np.sort(np.where(np.isnan(drawn), np.inf, drawn))
    ends = [float(ordered[round(level * (len(ordered) - 1))]) for level in LEVELS]
    return [end if math.isfinite(end) else None for end in ends]


def _loss_interval(f: Forecaster, params: float, tokens: float, unique: float | None) -> list[float] | None:
    """Spread the loss of one run at (N, D) by the drawn laws and by one run's noise about its law."""
    if not f.laws:
        return None
    laws = f.laws if unique is None else [_repeating(f, law, unique) for law in f.laws]
    drawn = np.array([float(law.loss(params, tokens)) for law in laws])
    drawn *= np.exp(f.noise * np.random.default_rng(0).standard_normal(len(laws)))
    return [float(end) for end in np.quantile(drawn, LEVELS)]


def serve(f: Forecaster, loss: float, inference_tokens: float) -> Json:
    """Give the run that reaches a loss at the least FLOPs of training and serving so many tokens together."""
    if not 0 < inference_tokens <= LIMITS["tokens"][1]:
        raise BadInput(f"inference-tokens {inference_tokens:g} must be above 0 and at most {LIMITS['tokens'][1]:g}")
    _require_law(f, "the run that is cheapest to serve")
    try:
        best = serving_optimum(f.law, loss, inference_tokens)
    except OverflowError:
        endless = f"by {f.name} loss {loss:g} takes more tokens than numbers hold"
        raise NoForecast(f"{endless}; ask for a higher loss") from None
    drawn = [_served(law, loss, inference_tokens) for law in f.laws[:SEARCHES]]
    result: Json = {"inference_tokens": inference_tokens, **asdict(best)}
    for name in ("params", "tokens"):
        values = [getattr(other, name) if other else math.inf for other in drawn]
        result[f"{name}_interval"] = _interval(np.array(values))
    return plain({**result, "tokens_per_param": best.tokens / best.params, "loss": loss, **_by_law(f)})


def constrain(f: Forecaster, flops: float, unique_tokens: float) -> Json:
    """Give the best run of a compute when only so many tokens are unique (Muennighoff et al. 2023)."""
    _require_law(f, "a run that repeats data")
    best = _repeating(f, f.law, unique_tokens).optimum(flops=flops)
    drawn = [_repeating(f, law, unique_tokens).optimum(flops=flops) for law in f.laws[:SEARCHES]]
    result: Json = {"unique_tokens": unique_tokens, **asdict(best), "epochs": best.tokens / unique_tokens}
    for name in ("params", "tokens", "loss"):
        result[f"{name}_interval"] = _interval(np.array([getattr(other, name) for other in drawn]))
    return plain({**result, "tokens_per_param": best.tokens / best.params, **_by_law(f)})


def by_its_own_law(f: Forecaster, flops: float) -> Json:
    """Give the optimum of a budget by the parametric law, also where the forecaster's own is from an isoFLOP fit."""
    best = f.law.optimum(flops=flops)
    return plain({**asdict(best), "tokens_per_param": best.tokens / best.params, **_by_law(f)})


def _repeating(f: Forecaster, law: Law, unique_tokens: float) -> DataConstrainedLaw:
    """Give a law when only so many tokens are unique; BadInput where it is none that repeated data is known for."""
    if not 0 < unique_tokens <= LIMITS["tokens"][1]:
        raise BadInput(f"unique-tokens {unique_tokens:g} must be above 0 and at most {LIMITS['tokens'][1]:g}")
    if not isinstance(law, ChinchillaLaw):
        raise BadInput(f"{f.name} is not a Chinchilla law, which repeated data needs; use another law")
    return DataConstrainedLaw(law, unique_tokens)


def _by_law(f: Forecaster) -> Json:
    """Say that an optimum is the law's own, also where a budget's comes from an isoFLOP fit."""
    return {"optimum_from": "parametric" if f.rows else f.source, "law": f.name, "convention": f.convention}


def _served(law: Law, loss: float, inference_tokens: float) -> Served | None:
    try:
        return serving_optimum(law, loss, inference_tokens)
    except (BadInput, OverflowError):  # the floor of this draw is above the loss, or as good as
        return None
