"""Predict runs from a law alone, write a prediction down before its run is trained, and score it afterwards."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import plain, read_json, write_json
from gptjax.laws.codec import Json
from gptjax.laws.fit import MIN_DRAWS
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.law import Floats, Law, Optimum, PowerLaw
from gptjax.laws.published import PUBLISHED, DataConstrainedLaw, Served, serving_optimum
from gptjax.laws.record import Analysis, Found, read_law
from gptjax.laws.uncertainty import LEVELS

SEARCHES = 100  # draws whose optimum is found by search, where it has no closed form
LIMITS = {"flops": (1e6, 1e40), "params": (10, 1e20), "tokens": (10, 1e25), "loss": (1e-3, 50)}
MOST_OFF = 10  # times 6 N D: what a run of small models may cost by another count of FLOPs
SAME_RUN = 0.01  # a run within this share of the predicted N and D is the run predicted


class NoForecast(BadInput):
    """The rows gave no law that may forecast."""


@dataclass(frozen=True)
class Forecaster:
    """A law that may forecast; drawn laws, and draws (k, 2) of log k, a of N* and D*, tell its doubt.

    N* and D* of a budget come from `optimum` where it is there (an isoFLOP fit, or a law whose optima are power laws),
    else from the law. A published law has no draws and no rows. `noise` is the standard deviation of one run's log loss
    about the law. `held` are the values of the columns that the law reads besides N and D.
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
    largest_flops: float | None
    forced: str  # why it would have been refused
    held: dict[str, float] = field(default_factory=dict)


def read_forecaster(source: str, force: bool = False, held: Mapping[str, float] | None = None) -> Forecaster:
    """Read a law: the name of a published one, the JSON of `gptjax fit`, or a directory with law.json."""
    if source in PUBLISHED:
        none = np.zeros((0, 2))
        return Forecaster(
            source, PUBLISHED[source], (), 0.0, None, (none, none), "published law",
            "N without embeddings; L(N, D) under C = 6ND, whose N* is not their C^0.73 (of L(N, S))"
            if source.startswith("kaplan") else "N and C as published", 0, None, "",
        )  # fmt: skip
    try:
        return forecaster(read_law(source), force, source, held)
    except NoForecast as refusal:
        raise NoForecast(f"{source}: {refusal}") from None


def forecaster(
    law: Analysis, force: bool = False, name: str = "law", held: Mapping[str, float] | None = None
) -> Forecaster:
    """Make a forecaster of a fit. NoForecast when its law is refused or, unless forced, degenerate.

    `held` gives values for the columns that the law reads besides N and D; the others keep their medians of the fit.
    """
    fitted = law.parametric
    if fitted is None:
        raise NoForecast("the parametric fit is not fitted (it was not asked for) and forecasts no loss")
    trouble = "" if fitted.ok else f"{fitted.status} ({'; '.join(fitted.reasons)})"
    if trouble and not (force and fitted.a):
        remedy = "; --force forecasts all the same" if fitted.a else ""
        raise NoForecast(f"the parametric fit is {trouble} and forecasts no loss{remedy}")
    form = law.settings.law_form
    best: Found = law.isoflop if law.isoflop and law.isoflop.ok else fitted
    source = "parametric" if best is fitted else "isoflop"
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
    return Forecaster(
        name=name,
        law=own,
        laws=tuple(each.held(values) for each in drawn if isinstance(each, Law)),
        noise=fitted.noise or 0.0,
        optimum=optimum,
        optimum_draws=(n_draws, d_draws) if len(n_draws) >= enough else (n_draws[:0], d_draws[:0]),
        source=source,
        convention=law.convention,
        rows=law.rows,
        largest_flops=law.ranges["C"][1],
        forced=trouble,
        held=values,
    )


def _held(fitted: dict[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Give the values at which a forecast holds the further columns of a law: those given, else those of the fit."""
    if strange := sorted(set(given) - set(fitted)):
        reads = f"reads {', '.join(fitted)} besides N and D" if fitted else "reads N and D alone"
        raise BadInput(f"the law {reads}; {strange[0]} cannot be given")
    return {**fitted, **given}


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
    Each number comes with a 95 % interval where the law has draws: N, D and C from the law's doubt alone, the loss
    from that and the noise of one run. The form is taken for true, so far from the rows the interval is too narrow.
    """
    asked = {"flops": flops, "params": params, "tokens": tokens, "loss": loss}
    given = {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise BadInput(f"{name} {value:g} is not within {low:g} to {high:g}; give a run's {name}")
    drawn: dict[str, Floats] = {}
    source = f.source
    exact = params is not None and tokens is not None and loss is None
    if exact and params and tokens:
        source, n, d, c = "as given", params, tokens, flops or 6 * params * tokens
        off = c / (6 * n * d)
        if not 1 / MOST_OFF <= off <= MOST_OFF:
            raise BadInput(
                f"flops {c:g} is {off:.3g} times 6 N D = {6 * n * d:.3g}; give the run's own, or leave it out"
            )
    elif len(given) != 1:
        raise BadInput("give one of --flops, --params, --tokens and --loss, or --params and --tokens together")
    elif loss is not None or f.optimum is None:
        source = "parametric" if f.rows else f.source
        best = f.law.optimum(**given)
        n, d, c = best.params, best.tokens, best.flops
        drawn = _optima(f, **given)
    else:
        ((name, value),) = given.items()
        n_law, d_law = f.optimum
        try:
            n, d, c = _along((n_law.coef, n_law.exponent), (d_law.coef, d_law.exponent), name, value)
        except (OverflowError, ZeroDivisionError):
            raise NoForecast(
                f"{f.name} has N* as C^{n_law.exponent:g} and D* as C^{d_law.exponent:g}, and no finite run of {name} "
                f"{value:g}; fit more rows"
            ) from None
        n_draws, d_draws = map(_columns, f.optimum_draws)
        drawn = dict(zip(("params", "tokens", "flops"), _along(n_draws, d_draws, name, value), strict=True))
    repeated = unique_tokens if exact else None
    law = f.law if repeated is None else _repeating(f, f.law, repeated)
    point = {"flops": c, "params": n, "tokens": d, "tokens_per_param": d / n, "loss": float(law.loss(n, d))}
    if drawn:
        with np.errstate(invalid="ignore"):  # of draws whose floor lies above the loss: both are infinite
            drawn["tokens_per_param"] = drawn["tokens"] / drawn["params"]
    result: Json = {}
    for name, value in point.items():
        result[name] = value
        result[f"{name}_interval"] = None if name in given else _interval(drawn.get(name, np.zeros(0)))
    result["loss_interval"] = _loss_interval(f, n, d, repeated)
    if repeated is not None:
        result |= {"unique_tokens": repeated, "epochs": max(1.0, d / repeated)}
    if loss is not None:
        result["loss"] = loss
    if f.held:
        result["held"] = f.held
    return plain(
        {
            **result,
            "optimum_from": source,
            "law": f.name,
            "convention": f.convention,
            "rows": f.rows,
            "times_largest_flops": c / f.largest_flops if f.largest_flops else None,
            "forced": f.forced,
        }
    )


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
        lines.append(
            f"{'beyond':<10}{said['times_largest_flops']:.3g} times the largest budget of its {said['rows']} rows"
        )
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
    ordered = np.sort(np.nan_to_num(drawn, nan=np.inf))
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
    best = serving_optimum(f.law, loss, inference_tokens)
    drawn = [_served(law, loss, inference_tokens) for law in f.laws[:SEARCHES]]
    result: Json = {"inference_tokens": inference_tokens, **asdict(best)}
    for name in ("params", "tokens"):
        values = [getattr(other, name) if other else math.inf for other in drawn]
        result[f"{name}_interval"] = _interval(np.array(values))
    return plain({**result, "tokens_per_param": best.tokens / best.params, "loss": loss, **_by_law(f)})


def constrain(f: Forecaster, flops: float, unique_tokens: float) -> Json:
    """Give the best run of a compute when only so many tokens are unique (Muennighoff et al. 2023)."""
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


def held_out_miss(source: str) -> str:
    """Say by how much the run that a sweep held out missed its forecast; "" if it did not, or if there is none."""
    path = Path(source) / "prediction_score.json"
    scored = read_json(path).get("score", {}) if path.is_file() else {}
    if scored.get("inside") is not False:
        return ""
    side = "over" if scored["predicted"] > scored["measured"] else "under"
    return (
        f"a held-out run of this sweep reached {scored['measured']:.4f} where {scored['predicted']:.4f} were forecast, "
        f"outside the interval: beyond its runs this law {side}estimates losses"
    )


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
    except BadInput:  # the floor of this draw is above the loss
        return None


def register(prediction: Json, path: Path) -> None:
    """Write a prediction with the UTC time and a sha256 over both; an existing file is BadInput and stays."""
    content = {"prediction": prediction, "registered": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(path, {**content, "sha256": _digest(content)}, replace=False)


def score(path: Path, measured_loss: float, params: float, tokens: float) -> Json:
    """Compare a registered prediction with what its run gave; write <stem>_score.json beside it and return it.

    BadInput when the file was altered since, or when the run trained is not the run predicted.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise BadInput(f"{path} is not a registered prediction; write one with gptjax predict LAW --register FILE")
    content: Json = {name: record.get(name) for name in ("prediction", "registered")}
    if record.get("sha256") != _digest(content):
        raise BadInput(f"{path} does not match its sha256: it was altered after it was registered; predict a new run")
    prediction: Json = content["prediction"]
    for name, value in (("params", params), ("tokens", tokens)):
        if abs(value / prediction[name] - 1) > SAME_RUN:
            raise BadInput(
                f"{path} predicts {name} {prediction[name]:g} and the run has {value:g}; score the run predicted"
            )
    ends = prediction["loss_interval"]
    result = {
        "sha256": record["sha256"],
        "scored": datetime.now(UTC).isoformat(timespec="seconds"),
        "predicted": prediction["loss"],
        "measured": measured_loss,
        "params": params,
        "tokens": tokens,
        "log_error": float(np.log(prediction["loss"] / measured_loss)),
        "inside": None if ends is None else bool(ends[0] <= measured_loss <= ends[1]),
    }
    write_json(path.with_name(f"{path.stem}_score.json"), {"score": result})
    return result


def _digest(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
