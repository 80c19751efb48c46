"""The same rows under other choices, other forms of the law and less compute: what else one could have reported."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gptjax.files import plain
from gptjax.laws.approaches import BY_NAME, bootstrap
from gptjax.laws.budgets import BUDGET_GAP
from gptjax.laws.codec import Json, read
from gptjax.laws.fit import Choices, Fit
from gptjax.laws.forms import FORMS
from gptjax.laws.isoflop import isoflop
from gptjax.laws.parametric import parametric
from gptjax.laws.record import Choice, Cut, FittedForm
from gptjax.laws.table import Runs
from gptjax.laws.uncertainty import Noise, judged, noise_of_one

LOWEST = "without the lowest budget"
CHOICE_DRAWS = 200  # of the intervals of a table of choices
BEYOND = 10.0  # N* is compared at this multiple of the largest budget
GAP = 3.0  # a law of the runs up to C is scored on runs beyond this multiple of C (two budgets apart or more)
CUTS = 6


def choices_table(runs: Runs, choices: Choices, approaches: Sequence[str]) -> list[Choice]:
    """Fit a, and N* beyond the largest budget, under each reasonable choice in turn, all else as chosen.

    `runs` are as read: conventions and exclusions are among the choices. Choices that the table does not allow are
    left out; a law that is refused or degenerate stands with its reason.
    """
    table = []
    for label, of, varied in _variations(runs, choices):
        for approach in of:
            if approach not in approaches:
                continue
            rows = varied.rows(runs)
            if label == LOWEST:
                rows = rows.take(np.flatnonzero(rows.flops > 1.2 * rows.flops.min()))
            if not len(rows) or (not BY_NAME[approach].reads_flops and _same_sizes(runs, choices, varied)):
                continue
            fit = _fit(approach, rows, varied)
            entry: Json = {"approach": approach, "choice": label, "rows": len(fit.used)}
            entry |= {"a": None, "a_interval": None, "N_beyond": None}
            if (law := fit.params_law) and fit.tokens_law:
                draws = bootstrap(rows, fit, replace(varied, bootstrap=CHOICE_DRAWS), noise=_noise(rows, varied))
                fit = judged(fit, draws)
                entry["a"] = law.exponent
                entry["a_interval"] = draws.interval(draws.params[:, 1])
                if varied.convention == choices.convention:  # elsewhere N and C are other numbers
                    entry["N_beyond"] = float(law(BEYOND * runs.counted(choices.convention).flops.max()))
            entry |= {"status": fit.status, "reason": "; ".join(fit.reasons)}
            table.append(read(Choice, plain(entry), "choices"))
    return table


def _same_sizes(runs: Runs, choices: Choices, varied: Choices) -> bool:
    """Say whether another convention changes C alone, which the parametric fit (its optimum is under 6ND) ignores."""
    names = [choices.convention, *runs.conventions]
    earlier = names[: names.index(varied.convention)]
    n = runs.counted(varied.convention).params
    return any(np.allclose(n, runs.counted(name).params, rtol=1e-9) for name in earlier)


def _variations(runs: Runs, choices: Choices) -> Iterator[tuple[str, tuple[str, ...], Choices]]:
    """List what may be chosen otherwise: its label, the approaches it concerns, and the choices."""
    every = tuple(BY_NAME)
    yield "as chosen", every, choices
    for name in runs.conventions:
        if name != choices.convention:
            yield f"convention {name}", every, replace(choices, convention=name)
    cells = len(replace(choices, drop_highest_loss=0).rows(runs))  # several rows of a rate sweep are one cell
    for count in (0, 1, 3, 5, 10, 20):
        if count != choices.drop_highest_loss and count <= cells // 8:
            left_out = {0: "no row left out", 1: "highest loss left out"}.get(count, f"{count} highest losses left out")
            yield left_out, ("parametric",), replace(choices, drop_highest_loss=count)
    if runs.flops.max() > 1.2 * runs.flops.min():
        yield LOWEST, every, choices
    for delta in (1e-4, 1e-3, 1e-2):
        if (choices.loss, choices.delta) != ("huber", delta):
            yield f"Huber, delta {delta:g}", ("parametric",), replace(choices, loss="huber", delta=delta)
    named = {"lad": "least absolute errors", "lsq-log": "least squares of log loss", "lsq": "least squares of loss"}
    for loss, label in named.items():
        if loss != choices.loss:
            yield label, ("parametric",), replace(choices, loss=loss)  # type: ignore[arg-type]
    if choices.weights == "equal" and not np.isnan(runs.loss_se).any():
        yield "weights by evaluation noise", ("parametric",), replace(choices, weights="noise")
    for window in (2, 3, 5):
        if window != choices.window and choices.interp == "parabola":
            yield f"parabola, {window} sizes either side", ("isoflop",), replace(choices, window=window)
    if choices.interp == "parabola":
        yield "Akima interpolation", ("isoflop",), replace(choices, interp="akima")


def _fit(approach: str, runs: Runs, choices: Choices) -> Fit:
    return BY_NAME[approach].fit(runs, choices, None, True)


def _noise(runs: Runs, choices: Choices) -> Noise:
    return noise_of_one(runs, isoflop(runs, window=choices.window), choices.law_form)


def forms_table(runs: Runs, choices: Choices) -> list[FittedForm]:
    """Fit each form by least squares of log loss and compare: AICc, scatter, and what it predicts beyond a cut.

    AICc (Hurvich & Tsai 1989) counts the variance among the parameters. A power law of one variable is fitted to all
    rows too: only where that variable limits the loss can it do well. A form whose columns the table
    lacks is left out.
    """
    squares = replace(choices, loss="lsq-log", weights="equal")
    cut = np.quantile(runs.flops, 0.6)
    table = []
    for form in {**FORMS, choices.law_form.name: choices.law_form}.values():
        if not runs.has(form.extra):
            continue
        fit = parametric(runs, squares, form=form, starts=form.few_starts)
        entry: Json = {"form": form.name, "status": fit.status, "coefficients": None, "aicc": None, "rmse": None}
        entry["rmse_beyond"] = None
        if fit.law:
            n, k = len(runs), len(fit.theta) + 1
            square = float(np.mean(fit.errors**2))
            entry["coefficients"] = {name: getattr(fit.law, name) for name in form.names}
            entry["aicc"] = n * np.log(square) + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else None
            entry["rmse"] = np.sqrt(square)
            early = parametric(
                runs, squares, form=form, starts=form.few_starts, weights=(runs.flops <= cut).astype(np.float64)
            )
            beyond = runs.flops > cut
            entry["rmse_beyond"] = float(np.sqrt(np.mean(early.errors[beyond] ** 2))) if early.law else None
        table.append(entry)
    best = min((e["aicc"] for e in table if e["aicc"] is not None), default=0.0)
    above = [{**e, "aicc": None if e["aicc"] is None else e["aicc"] - best, "cut": float(cut)} for e in table]
    return [read(FittedForm, plain(entry), "forms") for entry in above]


def extrapolation(runs: Runs, choices: Choices) -> list[Cut]:
    """Score the law by compute cut: fit the runs up to C, predict those beyond 3 C.

    Each entry gives rmse and bias of log loss (predicted - measured), a by each approach, and N* at the largest budget
    over that of the law of all rows: how wrong a smaller sweep would have been.
    """
    whole = {name: _fit(name, runs, choices) for name in ("isoflop", "parametric")}
    largest = runs.flops.max()
    table = []
    for cut in compute_cuts(runs):
        early, beyond = runs.flops <= cut * (1 + 1e-9), runs.flops > GAP * cut
        fit = parametric(runs, choices, weights=early.astype(np.float64), starts=choices.law_form.few_starts)
        entry: Json = {"max_flops": cut, "rows": int(early.sum()), "rows_beyond": int(beyond.sum())}
        entry |= {"status": fit.status, "reason": "; ".join(fit.reasons)}
        errors = fit.errors[beyond] if fit.law else np.full(1, np.nan)
        entry |= {"rmse": float(np.sqrt(np.mean(errors**2))), "bias": float(errors.mean())}
        for name, law in (("isoflop", _fit("isoflop", runs.take(np.flatnonzero(early)), choices)), ("parametric", fit)):
            final = whole[name].params_law
            entry[f"{name}_a"] = law.params_law and law.params_law.exponent
            known = law.params_law and final
            entry[f"{name}_N_ratio"] = float(law.params_law(largest) / final(largest)) if known else None  # type: ignore
        table.append(read(Cut, plain(entry), "extrapolation"))
    return table


def compute_cuts(runs: Runs) -> list[float]:
    """Choose up to 6 budgets that leave enough runs on both sides: 10 or more to fit, 3 or more to score."""
    flops = np.sort(runs.flops)
    groups = np.split(flops, np.flatnonzero(np.diff(np.log(flops)) > BUDGET_GAP) + 1)
    scattered = max(map(len, groups)) > len(flops) / 3
    ends = flops if scattered else [group[-1] for group in groups]
    allowed = [float(c) for c in ends if (flops <= c).sum() >= 10 and (flops > GAP * c).sum() >= 3]
    if len(allowed) <= CUTS:
        return allowed
    wanted = np.geomspace(allowed[0], allowed[-1], CUTS)
    return sorted({min(allowed, key=lambda c: abs(np.log(c / w))) for w in wanted})
