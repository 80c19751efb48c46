"""Gather the fits of all approaches, with their doubts and alternatives, as one JSON object: law.json."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws import robustness
from gptjax.laws.coverage import coverage
from gptjax.laws.envelope import Envelope, Frontier, envelope
from gptjax.laws.fit import APPROACHES, Approach, Choices, Fit
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.hyper import fit_hyper, trials
from gptjax.laws.isoflop import Budget, Isoflop, isoflop
from gptjax.laws.parametric import Parametric, parametric
from gptjax.laws.quote import quote
from gptjax.laws.table import Curve, Floats, Runs
from gptjax.laws.uncertainty import Draws, bootstrap, design_bias, influence, judged, noise_of_one, profile, subsample

BAND = 60  # budgets at which the bands of N*(C) and D*(C) are given, from the least to 10x the largest
SAME_FLOPS = 0.03  # in log: a table whose C is 6ND, as the parametric law's optimum has it
LARGE = 1_000  # rows above which the tables of choices, forms and cuts, some fifty fits more, are left out

Json = dict[str, Any]


def fit_all(
    runs: Runs,
    choices: Choices | None = None,
    *,
    approaches: Sequence[Approach] = APPROACHES,
    curves: Sequence[Curve] | None = None,
    tables: bool = True,
    sweeps: int = 0,
    done: Callable[[], Any] = lambda: None,
) -> Json:
    """Fit by each approach and give the JSON object of `gptjax fit`; docs/laws.md documents its keys.

    Intervals resample as `choices.cluster` says for the parametric fit; isoFLOP and envelope redraw the noise of one
    loss, the scatter about the parabolas or else the law, and resample like the parametric where neither is known. A
    fit whose interval says next to nothing is degenerate.
    `tables` adds the tables of choices, forms and compute cuts, and `sweeps` the coverage of the intervals, counted on
    so many sweeps that are simulated from the fitted law at these rows; `done` is called after each.
    """
    choices = choices or Choices()
    rows = choices.rows(runs)
    by_budget = isoflop(rows, interp=choices.interp, window=choices.window, seed=choices.seed)
    noise = noise_of_one(rows, by_budget)
    fits: dict[Approach, Fit] = {}
    for approach in approaches:
        fits[approach] = by_budget
        if approach == "envelope":
            fits[approach] = envelope(rows, curves, unfinished=choices.unfinished)
        elif approach == "parametric":
            fits[approach] = parametric(rows, choices)
    truth = fits.get("parametric")
    under_6nd = bool(np.abs(np.log(rows.flops / (6 * rows.params * rows.tokens))).max() < SAME_FLOPS)
    found: Json = {}
    for approach, fit in fits.items():
        draws = bootstrap(rows, fit, choices, noise=noise)
        fit = judged(fit, draws)
        found[approach] = {**_common(fit, draws, rows), **_particular(rows, fit, draws, choices)}
        exact = under_6nd and not (isinstance(fit, Envelope) and fit.method == "training curves")
        if approach != "parametric" and exact and isinstance(truth, Parametric) and truth.status == "ok":
            assert isinstance(truth.law, ChinchillaLaw)
            found[approach]["design_bias"] = design_bias(rows, truth.law, approach, choices)
    ratio = rows.tokens / rows.params
    ranges = {"N": rows.params, "D": rows.tokens, "D/N": ratio, "C": rows.flops, "loss": rows.loss}
    law: Json = {
        "rows": len(rows),
        "convention": rows.convention,
        "dropped": rows.dropped,
        "ranges": {name: [values.min(), values.max()] for name, values in ranges.items()},
        "settings": {**asdict(choices), "bootstrap": choices.draws(len(rows))},
        "evaluation": {"loss_se": np.median(rows.loss_se), "between_runs": rows.evaluation_noise},
        "approaches": found,
    }
    if (
        len(runs.tuned()) < len(runs) and (runs.fact("lr") > 0).any()
    ):  # some cells were trained at several rates or batches
        law["hyper"] = fit_hyper(trials(runs.counted(choices.convention)))
    if tables and len(rows) <= LARGE:
        law["choices"] = robustness.choices_table(runs, choices, approaches)
        law["forms"] = robustness.forms_table(rows, choices)
        law["extrapolation"] = robustness.extrapolation(rows, choices)
    if sweeps and under_6nd and isinstance(truth, Parametric) and truth.status == "ok":
        assert isinstance(truth.law, ChinchillaLaw)
        law["coverage"] = coverage(
            truth.law,
            rows.params,
            rows.tokens,
            noise=noise.sd / float(rows.loss.mean()) if noise.source else truth.noise,
            sweeps=sweeps,
            choices=choices,
            approaches=approaches,
        )
    law = plain(law)
    return law | {"quote": quote(law)}


def require_law(law: Json) -> None:
    """Raise BadInput, with every reason, when no approach gave a law and no learning rates were compared either."""
    found = law["approaches"]
    rates = law.get("hyper", {}).get("lr", {}).get("cells")
    if not rates and all(fit["a"] is None for fit in found.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, fit in found.items() for reason in fit["reasons"])
        raise BadInput(f"no approach gives a law of these {law['rows']} rows: {reasons}")


def _common(fit: Fit, draws: Draws, runs: Runs) -> Json:
    n_law, d_law = fit.params_law, fit.tokens_law
    band: Json | None = None
    if n_law and d_law:
        c = np.geomspace(runs.flops.min(), 10 * runs.flops.max(), BAND)
        band = {"C": c, "N": n_law(c), "D": d_law(c)}
        for name, drawn in (("N", draws.params), ("D", draws.tokens)):
            spread = draws.interval(np.exp(drawn[:, :1] + drawn[:, 1:] * np.log(c)))
            band[f"{name}_interval"] = None if spread is None else spread.T
    interval: Json = {"resample": draws.resample, "draws": draws.asked, "failed_share": draws.failed_share}
    interval |= {"noise": draws.noise.sd, "noise_from": draws.noise.source, "bias": draws.bias}
    return {
        "status": fit.status,
        "reasons": fit.reasons,
        "a": n_law and n_law.exponent,
        "a_interval": draws.interval(draws.params[:, 1]),
        "b": d_law and d_law.exponent,
        "b_interval": draws.interval(draws.tokens[:, 1]),
        "N_coef": n_law and n_law.coef,
        "D_coef": d_law and d_law.coef,
        "band": band,
        "interval": interval,
        "draws": {"N": draws.params, "D": draws.tokens},
        "used": fit.used,
        "dropped": fit.dropped,
    }


def _particular(runs: Runs, fit: Fit, draws: Draws, choices: Choices) -> Json:
    if isinstance(fit, Isoflop):
        return {"a_se": fit.params_exponent_se, "budgets": [_budget(b) for b in fit.budgets]}
    if isinstance(fit, Envelope):
        edge_share = fit.edge.mean() if len(fit.edge) else None
        lines = {"frontier": _columns(fit.frontier, step=10), "changes": _columns(fit.changes)}
        return {"method": fit.method, "edge_share": edge_share, "run_share": fit.run_share[::10], **lines}
    assert isinstance(fit, Parametric)
    law = asdict(fit.law) if fit.law else dict.fromkeys(("A", "B", "E", "alpha", "beta"))
    columns = np.concatenate([np.exp(draws.theta[:, :3]), draws.theta[:, 3:]], axis=1)
    drawn = dict(zip(law, columns.T, strict=True))
    doubt: Json = {f"{name}_interval": draws.interval(column) for name, column in drawn.items()}
    with np.errstate(over="ignore"):  # of draws whose A or B is hardly a number
        doubt |= {f"{name}_se": column.std() if draws.enough else None for name, column in drawn.items()}
    doubt |= {"a_se": draws.params[:, 1].std() if draws.enough else None, "theta_draws": draws.theta}
    for name in ("profile", "influence", "subsample"):
        doubt[name] = None
    if draws.enough:
        doubt["profile"] = profile(runs, fit, choices, draws)
        doubt["influence"] = influence(runs, fit, choices)
        doubt["subsample"] = subsample(runs, fit, choices)
    names = ("estimator", "delta", "objective", "starts", "share_at_best", "errors", "noise")
    return {**law, **doubt, **{name: getattr(fit, name) for name in names}}


def _columns(points: Frontier, step: int = 1) -> dict[str, Floats]:
    named = {"C": points.flops, "N": points.params, "D": points.tokens, "loss": points.loss}
    return {name: column[::step] for name, column in named.items()}


def _budget(budget: Budget) -> Json:
    m = budget.minimum
    found = (m.params, m.params_se, m.tokens, m.tokens_se, m.loss, m.loss_se) if m else (None,) * 6
    return {
        "C": budget.flops,
        "runs": budget.runs,
        "window": budget.window,
        "centre": budget.centre,
        "curve": budget.curve,
        **dict(zip(("N", "N_log_se", "D", "D_log_se", "loss", "loss_se"), found, strict=True)),
        "reason": budget.reason,
    }
