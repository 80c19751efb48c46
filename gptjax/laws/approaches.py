"""The approaches to a scaling law, each an object: how it fits, how its fit is doubted, drawn and put in words.

To add one, write what it does and put a row into `APPROACHES`; nothing else asks for an approach by its name, but for
what is said of one alone (the isoFLOP figure, the contours of the parametric law).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gptjax.laws import words
from gptjax.laws.codec import Json
from gptjax.laws.envelope import Envelope, Frontier, envelope, refit_finished
from gptjax.laws.fit import Choices, Fit, Resample
from gptjax.laws.isoflop import Budget, Isoflop, isoflop, refit_noise
from gptjax.laws.law import Floats, Law
from gptjax.laws.parametric import Parametric, optima_of, parametric, refit, span
from gptjax.laws.record import Analysis, EnvelopeFound, Found, IsoflopFound, ParametricFound
from gptjax.laws.table import Curve, Runs
from gptjax.laws.uncertainty import (
    UNKNOWN,
    Draws,
    Noise,
    bootstrap_theta,
    influence,
    profile,
    resampled,
    subsample,
)

Curves = Sequence[Curve] | None


@dataclass(frozen=True, eq=False)
class Approach:
    """One way from runs to N*(C) and D*(C)."""

    name: str
    label: str  # in a sentence
    title: str  # of its paragraph under Methods
    trust: int  # which is quoted, of those that are ok: the lowest
    colour: str
    dark: str  # the colour on a dark page
    width: float  # of its line: the widest is drawn first, so that lines that agree all show
    reads_flops: bool  # whether its fit changes when C alone is counted otherwise
    fit: Callable[[Runs, Choices, Curves, bool], Fit]  # curves for the envelope; quick: good enough for a table of many
    refit: Callable[[Runs, Any, Choices, Floats], Floats]  # to losses (k, rows): log k, a of N* and D*, (k, 2, 2)
    bootstrap: Callable[[Runs, Any, Choices, Noise], Draws]
    part: type[Found]  # what law.json holds of it
    found: Callable[[Runs, Any, Draws, Choices], Json]  # the keys of that which other approaches do not have
    how: Callable[[Found], str]  # what N* and D* come from, as a sentence has it
    against: Callable[[Found], Iterator[str]]  # what speaks against it, where it is quoted
    methods: Callable[[Analysis], str]  # how it was done, in HTML
    merit: str = ""  # why it is quoted where no better one was fitted


def _fit_isoflop(runs: Runs, choices: Choices, curves: Curves, quick: bool) -> Fit:
    # the seed draws the errors of Akima minima; tables of many fits have always had the same draws for all
    return isoflop(runs, interp=choices.interp, window=choices.window, seed=0 if quick else choices.seed)


def _fit_envelope(runs: Runs, choices: Choices, curves: Curves, quick: bool) -> Fit:
    return envelope(runs, curves, unfinished=choices.unfinished)


def _fit_parametric(runs: Runs, choices: Choices, curves: Curves, quick: bool) -> Fit:
    return parametric(runs, choices, starts=choices.law_form.few_starts if quick else None)


def _refit_isoflop(runs: Runs, fit: Isoflop, choices: Choices, losses: Floats) -> Floats:
    return np.stack(refit_noise(runs, fit, losses), axis=1)


def _refit_envelope(runs: Runs, fit: Envelope, choices: Choices, losses: Floats) -> Floats:
    return np.stack(refit_finished(runs, losses), axis=1)


def _refit_parametric(runs: Runs, fit: Parametric, choices: Choices, losses: Floats) -> Floats:
    return optima_of(runs, fit, refit(runs, fit, choices, losses=losses)[0])


def _redraw_isoflop(runs: Runs, fit: Isoflop, choices: Choices, noise: Noise) -> Draws:
    """Add noise to the measured losses where it is known: rows drawn with replacement would leave holes at minima."""
    if not noise.source:
        return _of_rows(runs, fit, choices, noise)
    asked, rng = choices.draws(len(runs)), np.random.default_rng(choices.seed)
    if fit.params_law is None:
        return _draws(np.zeros((0, 2, 2)), "noise", noise, asked)
    return _draws(
        _refit_isoflop(runs, fit, choices, runs.loss + noise.draw(rng, asked, len(runs))), "noise", noise, asked
    )


def _redraw_envelope(runs: Runs, fit: Envelope, choices: Choices, noise: Noise) -> Draws:
    """Draw what the envelope misses of a known law's optima under the same noise, and a's bias.

    The least of several noisy losses is drawn to sizes with luck, and a frontier ends where the sizes end. Noise upon
    the measured losses would have both twice; about the law it shows them, and they are taken off (Davison and Hinkley
    1997, 5.2: the basic bootstrap). The law is only estimated, so each draw takes off the bias with an error of its
    own size. An envelope of training curves gives no draws: the noise of a frontier point is not that of a finished
    run.
    """
    if not noise.source or noise.law is None:
        return _of_rows(runs, fit, choices, noise)
    asked = 0 if fit.method == "training curves" else choices.draws(len(runs))
    if fit.params_law is None or fit.tokens_law is None or not asked:
        return _draws(np.zeros((0, 2, 2)), "noise", noise, asked)
    rng = np.random.default_rng(choices.seed)
    drawn = _refit_envelope(runs, fit, choices, noise.losses + noise.draw(rng, asked, len(runs)))
    with np.errstate(divide="ignore"):  # the coefficient of a very steep law may be 0
        truth, found = (
            np.array([(np.log(law.coef), law.exponent) for law in laws])
            for laws in (noise.law, (fit.params_law, fit.tokens_law))
        )
    known = np.isfinite(drawn).all(axis=(1, 2))
    bias = drawn[known].mean(axis=0) - truth if known.any() else np.full((2, 2), np.nan)
    table = found + truth - drawn + bias * rng.standard_normal((asked, 1, 1))
    return _draws(table, "noise", noise, asked, float(bias[0, 1]))


def _redraw_parametric(runs: Runs, fit: Parametric, choices: Choices, noise: Noise) -> Draws:
    """Draw rows, sizes or noise about the law, as `choices.cluster` says; each draw starts at the fit's optimum."""
    asked, about = choices.draws(len(runs)), Noise(fit.noise, "law", len(fit.used) - len(fit.theta))
    if fit.params_law is None:
        none = np.zeros((0, len(fit.theta)))
        return Draws(np.zeros((0, 2)), np.zeros((0, 2)), none, choices.resample(runs), about, asked)
    theta = bootstrap_theta(runs, fit, choices)
    lines = optima_of(runs, fit, theta)
    known = np.isfinite(theta).all(axis=1) & np.isfinite(lines).all(axis=(1, 2))
    return Draws(lines[known, 0], lines[known, 1], theta[known], choices.resample(runs), about, asked)


def _of_rows(runs: Runs, fit: Fit, choices: Choices, noise: Noise) -> Draws:
    """Apply an approach again to rows, or to whole sizes, drawn with replacement."""
    asked_for = choices.resample(runs)
    resample: Resample = "rows" if asked_for == "noise" else asked_for
    asked = 0 if isinstance(fit, Envelope) and fit.method == "training curves" else choices.draws(len(runs))
    table = np.zeros((0, 2, 2))
    if fit.params_law is not None and asked:
        rng, again = np.random.default_rng(choices.seed), BY_NAME[fit.approach].fit
        drawn = [again(runs.take(resampled(runs, rng, resample)), choices, None, True) for _ in range(asked)]
        laws = [(new.params_law, new.tokens_law) for new in drawn]
        with np.errstate(divide="ignore"):  # the coefficient of a very steep draw may be 0
            table = np.array([[(np.log(n.coef), n.exponent), (np.log(d.coef), d.exponent)] for n, d in laws if n and d])
    return _draws(table, resample, noise, asked)


def _draws(table: Floats, resample: Any, noise: Noise, asked: int, bias: float = math.nan) -> Draws:
    table = table.reshape(-1, 2, 2)
    table = table[np.isfinite(table).all(axis=(1, 2))]
    return Draws(table[:, 0], table[:, 1], np.zeros((0, 0)), resample, noise, asked, bias)


def _found_isoflop(runs: Runs, fit: Isoflop, draws: Draws, choices: Choices) -> Json:
    return {"a_se": fit.params_exponent_se, "budgets": [_budget(budget) for budget in fit.budgets]}


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


def _found_envelope(runs: Runs, fit: Envelope, draws: Draws, choices: Choices) -> Json:
    edge_share = fit.edge.mean() if len(fit.edge) else None
    lines = {"frontier": _points(fit.frontier, step=10), "changes": _points(fit.changes)}
    return {"method": fit.method, "edge_share": edge_share, "run_share": fit.run_share[::10], **lines}


def _points(points: Frontier, step: int = 1) -> dict[str, Floats]:
    named = {"C": points.flops, "N": points.params, "D": points.tokens, "loss": points.loss}
    return {name: column[::step] for name, column in named.items()}


def _found_parametric(runs: Runs, fit: Parametric, draws: Draws, choices: Choices) -> Json:
    drawn = fit.form.coefficients(draws.theta)
    with np.errstate(over="ignore", invalid="ignore"):  # of draws whose A or B is hardly a number
        coefficients = {
            name: {
                "value": getattr(fit.law, name) if fit.law else None,
                "se": drawn[name].std() if draws.enough else None,
                "interval": draws.interval(drawn[name]),
            }
            for name in fit.form.names
        }
    doubt: Json = {"a_se": draws.params[:, 1].std() if draws.enough else None, "theta_draws": draws.theta}
    doubt |= dict.fromkeys(("profile", "influence", "subsample"))
    if draws.enough:
        doubt["profile"] = profile(runs, fit, choices, draws)
        doubt["influence"] = influence(runs, fit, choices)
        doubt["subsample"] = subsample(runs, fit, choices)
    form = {"form": fit.form.name, "columns": fit.form.columns, "held": fit.extra, "coefficients": coefficients}
    names = ("estimator", "delta", "objective", "starts", "share_at_best", "errors", "noise")
    theta = fit.theta if fit.law else None
    return {**form, "theta": theta, **doubt, **{name: getattr(fit, name) for name in names}}


APPROACHES = (
    Approach(
        "envelope", "envelope", "Envelope", trust=3, colour="#c25a0a", dark="#ffa066", width=1.4, reads_flops=True,
        fit=_fit_envelope, refit=_refit_envelope, bootstrap=_redraw_envelope, part=EnvelopeFound, found=_found_envelope,
        how=words.envelope_how, against=words.envelope_against, methods=words.envelope_methods,
    ),
    Approach(
        "isoflop", "isoFLOP", "isoFLOP", trust=1, colour="#1767b5", dark="#6db3ff", width=3.0, reads_flops=True,
        fit=_fit_isoflop, refit=_refit_isoflop, bootstrap=_redraw_isoflop, part=IsoflopFound, found=_found_isoflop,
        how=words.isoflop_how, against=words.isoflop_against, methods=words.isoflop_methods,
        merit="it assumes no form of the loss: in each budget it uses, a minimum lies among the sizes tried",
    ),
    Approach(
        "parametric", "parametric", "Parametric", trust=2, colour="#177a56", dark="#5fd1a5", width=1.4,
        reads_flops=False, fit=_fit_parametric, refit=_refit_parametric, bootstrap=_redraw_parametric,
        part=ParametricFound, found=_found_parametric, how=words.parametric_how, against=words.reasons_against,
        methods=words.parametric_methods,
    ),
)  # fmt: skip
BY_NAME = {approach.name: approach for approach in APPROACHES}
BY_TRUST = tuple(sorted(APPROACHES, key=lambda approach: approach.trust))


def bootstrap(runs: Runs, fit: Fit, choices: Choices, *, noise: Noise = UNKNOWN) -> Draws:
    """Fit again to rows drawn with replacement, to whole sizes so drawn, or to losses with noise, as the approach does.

    IsoFLOP and envelope take noise where it is known, since they refuse a draw that happens to leave out the sizes
    around a minimum.
    """
    return BY_NAME[fit.approach].bootstrap(runs, fit, choices, noise)


def design_bias(runs: Runs, law: Law, approach: str, choices: Choices) -> dict[str, float] | None:
    """Apply an approach to the parametric law's own noise-free losses at these rows: what it misses is its bias.

    Gives a's error and the ratio of N* at the largest budget; None where the approach refuses.
    """
    truth = law.power_laws(*span(runs))
    exact = replace(runs, loss=law.loss(runs.params, runs.tokens), loss_se=np.full(len(runs), np.nan), facts={})
    again = BY_NAME[approach].fit(exact, choices, None, True)
    if again.params_law is None or truth is None:
        return None
    largest = runs.flops.max()
    ratio = float(again.params_law(largest) / truth[0](largest))
    return {"a": again.params_law.exponent - truth[0].exponent, "N_ratio_at_largest": ratio}
