"""Fit by every approach and gather what follows, with its doubts and alternatives, as one typed value: law.json."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws import robustness
from gptjax.laws.approaches import BY_NAME, bootstrap, design_bias
from gptjax.laws.codec import read
from gptjax.laws.coverage import coverage
from gptjax.laws.envelope import Envelope
from gptjax.laws.fit import Choices, Fit
from gptjax.laws.forecast import forecast
from gptjax.laws.hyper import fit_hyper, trials
from gptjax.laws.isoflop import Isoflop, isoflop
from gptjax.laws.law import Law
from gptjax.laws.parametric import Parametric
from gptjax.laws.quote import quote
from gptjax.laws.record import Analysis, Covered, Evaluation, Found
from gptjax.laws.table import Curve, Runs
from gptjax.laws.uncertainty import Draws, Noise, judged, noise_of_one

OBJECTIVE = "objective"  # the column that says what a run predicts
BAND = 60  # budgets at which the bands of N*(C) and D*(C) are given, from the least to 10x the largest
SAME_FLOPS = 0.03  # in log: a table whose C is 6ND, as the parametric law's optimum has it
MOST_REASONS = 4  # of one approach in a line
LARGE = 1_000  # rows above which the tables of choices, forms and cuts, some fifty fits more, are left out


def fit_all(
    runs: Runs,
    choices: Choices | None = None,
    *,
    approaches: Sequence[str] = tuple(BY_NAME),
    curves: Sequence[Curve] | None = None,
    tables: bool = True,
    sweeps: int = 0,
    done: Callable[[], Any] = lambda: None,
) -> Analysis:
    """Fit by each approach, named, and give what `gptjax fit` gives; docs/law.json.md lists it.

    Intervals resample as `choices.cluster` says for the parametric fit; isoFLOP and envelope redraw the noise of one
    loss, the scatter about the parabolas or else the law, and resample like the parametric where neither is known. A
    fit whose interval says next to nothing is degenerate.
    `tables` adds the tables of choices, forms and compute cuts, and `sweeps` the coverage of the intervals, counted on
    so many sweeps that are simulated from the fitted law at these rows; `done` is called after each.
    """
    choices = choices or Choices()
    _refuse_mixed(runs)
    rows = choices.rows(runs)
    fits = {name: BY_NAME[name].fit(rows, choices, curves, False) for name in approaches}
    by_budget = fits.get("isoflop") or isoflop(rows, interp=choices.interp, window=choices.window, seed=choices.seed)
    assert isinstance(by_budget, Isoflop)
    noise = noise_of_one(rows, by_budget, choices.law_form)
    law = fits.get("parametric")
    truth = law if isinstance(law, Parametric) and law.status == "ok" and _under_6nd(rows) else None
    ratio = rows.tokens / rows.params
    ranges = {"N": rows.params, "D": rows.tokens, "D/N": ratio, "C": rows.flops, "loss": rows.loss}
    some = tables and len(rows) <= LARGE
    found = Analysis(
        rows=len(rows),
        convention=rows.convention,
        dropped=list(rows.dropped),
        ranges={name: (float(values.min()), float(values.max())) for name, values in ranges.items()},
        settings=replace(choices, bootstrap=choices.draws(len(rows))),
        evaluation=Evaluation(plain(float(np.median(rows.loss_se))), plain(rows.evaluation_noise)),
        approaches={name: _found(rows, fit, choices, noise, truth) for name, fit in fits.items()},
        hyper=_hyper(runs, choices),
        choices=robustness.choices_table(runs, choices, approaches) if some else None,
        forms=robustness.forms_table(rows, choices) if some else None,
        extrapolation=robustness.extrapolation(rows, choices) if some else None,
        forecast=None if choices.law_form.extra else forecast(rows),
        coverage=_coverage(rows, truth, noise, sweeps, choices, approaches, done) if sweeps and truth else None,
    )
    return replace(found, quote=quote(found))


def require_law(law: Analysis) -> None:
    """Raise BadInput, with the reasons, when no approach gave a law and no learning rates were compared either."""
    rates = (law.hyper or {}).get("lr", {}).get("cells")
    if not rates and all(fit.a is None for fit in law.approaches.values()):
        reasons = "; ".join(f"{name}: {_first(fit.reasons)}" for name, fit in law.approaches.items())
        raise BadInput(f"no approach gives a law of these {law.rows} rows: {reasons}")


def _first(reasons: list[str]) -> str:
    """Join the first reasons of a refusal, and its last, which sums them up; a table of many budgets has dozens."""
    if len(reasons) <= MOST_REASONS:
        return "; ".join(reasons)
    kept = [*reasons[: MOST_REASONS - 1], reasons[-1]]
    return f"{'; '.join(kept)} (and {len(reasons) - len(kept)} reasons like these)"


def _refuse_mixed(runs: Runs) -> None:
    """Refuse a table whose losses are of several objectives: they are not of one task, and no law goes through them."""
    kinds = sorted(set(runs.cells.get(OBJECTIVE, ())))
    if len(kinds) > 1:
        named = ", ".join(repr(str(kind)) for kind in kinds[:3]) + (" and others" if len(kinds) > 3 else "")
        raise BadInput(f"column {OBJECTIVE!r} has {named}, whose losses are of different tasks and make no law "
                       f"together; fit each apart: --by {OBJECTIVE}")  # fmt: skip


def _under_6nd(rows: Runs) -> bool:
    return bool(np.abs(np.log(rows.flops / (6 * rows.params * rows.tokens))).max() < SAME_FLOPS)


def _hyper(runs: Runs, choices: Choices) -> dict[str, Any] | None:
    """Fit the laws of learning rate and batch where some cells were trained at several rates or batches."""
    if len(runs.tuned()) < len(runs) and (runs.fact("lr") > 0).any():
        return fit_hyper(trials(runs.counted(choices.convention)))
    return None


def _found(runs: Runs, fit: Fit, choices: Choices, noise: Noise, truth: Parametric | None) -> Found:
    """Doubt a fit and write it down."""
    approach = BY_NAME[fit.approach]
    draws = bootstrap(runs, fit, choices, noise=noise)
    fit = judged(fit, draws)
    bias = None
    exact = not (isinstance(fit, Envelope) and fit.method == "training curves")
    if truth and truth.plane and fit.approach != truth.approach and exact:
        bias = design_bias(runs, truth.plane, fit.approach, choices)
    own = approach.found(runs, fit, draws, choices)
    return read(approach.part, plain({**_common(fit, draws, runs), **own, "design_bias": bias}), fit.approach)


def _common(fit: Fit, draws: Draws, runs: Runs) -> dict[str, Any]:
    n_law, d_law = fit.params_law, fit.tokens_law
    band: dict[str, Any] | None = None
    if n_law and d_law:
        c = np.geomspace(runs.flops.min(), 10 * runs.flops.max(), BAND)
        band = {"C": c, "N": n_law(c), "D": d_law(c)}
        for name, drawn in (("N", draws.params), ("D", draws.tokens)):
            with np.errstate(over="ignore"):  # a draw of a degenerate law may leave the floats
                spread = draws.interval(np.exp(drawn[:, :1] + drawn[:, 1:] * np.log(c)))
            band[f"{name}_interval"] = None if spread is None else spread.T
    interval: dict[str, Any] = {"resample": draws.resample, "draws": draws.asked, "failed_share": draws.failed_share}
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


def _coverage(
    rows: Runs,
    truth: Parametric,
    noise: Noise,
    sweeps: int,
    choices: Choices,
    approaches: Sequence[str],
    done: Callable[[], Any],
) -> dict[str, Covered]:
    assert isinstance(truth.law, Law)
    return coverage(
        truth.law,
        rows.params,
        rows.tokens,
        noise=noise.sd / float(rows.loss.mean()) if noise.source else truth.noise,
        sweeps=sweeps,
        choices=choices,
        approaches=approaches,
        extra={name: rows.column(name) for name in truth.extra},
        done=done,
    )
