"""Say what to quote of a law: a few plain sentences, as one would put them in a paper.

The most trusted approach that gave a law is quoted, but an isoFLOP fit to a minority of the budgets makes room for a
parametric one that is more certain. What agrees with the quoted one is said as a reason for it, and what does not agree
is said against it.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptjax.files import read_json
from gptjax.laws.approaches import BY_NAME, BY_TRUST
from gptjax.laws.codec import Json
from gptjax.laws.record import Analysis, Ends, IsoflopFound
from gptjax.laws.registered import failed_assumption, half_widths
from gptjax.laws.table import short
from gptjax.laws.words import form_words

SHORTFALL = 0.95  # an interval whose coverage is surely below this promises too much
DOMINATES = 0.9  # of the scatter of the runs: an evaluation error above this share explains all of it


def quote(law: Analysis, forecast: Json | None = None) -> dict[str, str]:
    """Give the sentences to quote by name: `law`, `why`, `against`, and `rates` where learning rates were swept.

    `forecast` is what `read_forecast` gives: a registered prediction with its score.
    """
    if quoted := _quoted(law):
        pro, contra = _evidence(law, quoted, forecast or {})
        unfitted = [one.label for one in BY_TRUST if one.name not in law.approaches]
        against = _against_words(contra, unfitted)
        said = {"law": _law_words(law, quoted), "why": _why_words(law, quoted, pro), "against": against}
    else:
        said = _no_law_words(law)
    return said | ({"rates": _rate_words(law.hyper["lr"])} if law.hyper else {})


def _quoted(law: Analysis) -> str | None:
    sound = [one.name for one in BY_TRUST if one.name in law.approaches and law.approaches[one.name].ok]
    isoflop, parametric = law.isoflop, law.parametric
    if isoflop and parametric and isoflop.ok and parametric.ok:
        widths = [ends[1] - ends[0] if (ends := fit.a_interval) else np.inf for fit in (isoflop, parametric)]
        if 2 * isoflop.budgets_kept < len(isoflop.budgets) and widths[1] < widths[0]:
            return "parametric"
    return sound[0] if sound else None


def as_text(said: dict[str, str]) -> str:
    """Lay the sentences out for standard output: in lines of its width if it is a terminal, else a line each."""
    if not sys.stdout.isatty():
        return "\n".join(said.values())
    width = shutil.get_terminal_size().columns
    return "\n".join(textwrap.fill(sentence, width, break_on_hyphens=False) for sentence in said.values())


def read_forecast(directory: Path) -> Json:
    """Read the prediction registered in a sweep's directory and its score; an empty object where there is no score."""
    paths = [directory / name for name in ("prediction.json", "prediction_score.json")]
    if not all(path.is_file() for path in paths):
        return {}
    record, scored = map(read_json, paths)
    return {"said": record["prediction"], **scored["score"]}


def extent(law: Analysis) -> str:
    """Say over which runs a law was fitted."""
    (n_low, n_high), (c_low, c_high) = law.ranges["N"], law.ranges["C"]
    plural = "s" * (law.rows != 1)
    sizes = f"{law.rows} run{plural} of {short(n_low)} to {short(n_high)} parameters"
    return f"{sizes} and {_say(c_low)} to {_say(c_high)} FLOPs"


def _law_words(law: Analysis, name: str) -> str:
    fit = law.approaches[name]
    coefficient = _quantiles([draw[0] for draw in fit.draws.N]) if fit.a_interval else None
    intervals = (
        f"95 % interval of the exponent {_interval(fit.a_interval)}"
        + (f", of the coefficient {_say(coefficient[0])} to {_say(coefficient[1])}" if coefficient else "")
        if fit.a_interval
        else "no interval of the exponent"
    )
    tokens = f" ({_interval(fit.b_interval)})" if fit.b_interval else ""
    used, how = len(fit.used), BY_NAME[name].how(fit)
    rows = f"{used} of {extent(law)}" if used < law.rows else extent(law)
    return (
        f"N* = {_say(fit.N_coef or 0)} C^{fit.a:.3f} parameters ({intervals}) and "
        f"D* = {_say(fit.D_coef or 0)} C^{fit.b:.3f} tokens{tokens}, from {how} over {rows}; {law.convention}."
    )


def _why_words(law: Analysis, name: str, reasons: list[str]) -> str:
    own = BY_NAME[name]
    better = [other for other in BY_TRUST if other.name in law.approaches and other.trust < own.trust]
    chosen = " and ".join(f"the {other.label} approach {_verdict(law, other.name)}" for other in better)
    chosen = chosen or own.merit or "no other approach was fitted"
    return f"The {own.label} approach is quoted because {chosen}{''.join(f'; {reason}' for reason in reasons)}."


def _against_words(reasons: list[str], unfitted: list[str]) -> str:
    were = "es were" if len(unfitted) > 1 else " was"
    missing = f" The {' and '.join(unfitted)} approach{were} not fitted." if unfitted else ""
    if reasons:
        return f"Against it: {'; '.join(reasons)}.{missing}"
    return f"Nothing that was checked speaks against it; other text, recipes and conventions were not checked.{missing}"


def _no_law_words(law: Analysis) -> dict[str, str]:
    found = law.approaches
    statuses = {fit.status for fit in found.values()}
    verdict = "every approach refused" if statuses == {"refused"} else "every approach refused or is degenerate"
    reasons = "; ".join(f"the {one.label} approach {_verdict(law, one.name)}" for one in BY_TRUST if one.name in found)
    return {
        "law": f"No compute-optimal law follows from {extent(law)}: {verdict}.",
        "why": f"{reasons[:1].upper()}{reasons[1:]}.",
        "against": "No exponent and no coefficient of these runs should be quoted.",
    }


def _evidence(law: Analysis, name: str, forecast: Json) -> tuple[list[str], list[str]]:
    """Sort all that was found beside the quoted fit into what speaks for it and what speaks against it."""
    pro: list[str] = []
    contra: list[str] = []
    for holds, reason in (
        *_other_approaches(law, name),
        *_own_weakness(law, name),
        *_other_forms(law),
        *_coverage(law, name),
        *_scored(forecast),
        *_evaluation(law),
        *_choices(law, name),
    ):
        (pro if holds else contra).append(reason)
    return pro, contra


def _other_approaches(law: Analysis, name: str) -> Iterator[tuple[bool, str]]:
    fit = law.approaches[name]
    for other in BY_TRUST:
        found = law.approaches.get(other.name)
        if other.name == name or found is None:
            continue
        if found.ok and found.a is not None:
            agrees = _inside(found.a, fit.a_interval)
            words = "agrees, with an exponent of" if agrees else "gives an exponent of"
            interval = f" ({_interval(found.a_interval)})" if found.a_interval else ""
            yield agrees, f"the {other.label} approach {words} {found.a:.3f}{interval}"
        elif other.trust > BY_NAME[name].trust:  # of a better one, `why` speaks
            yield False, f"the {other.label} approach {_verdict(law, other.name)}"


def _own_weakness(law: Analysis, name: str) -> Iterator[tuple[bool, str]]:
    fit = law.approaches[name]
    for reason in BY_NAME[name].against(fit):
        yield False, reason
    bias, ends = fit.design_bias, fit.a_interval
    if bias and ends and abs(bias.a) > (ends[1] - ends[0]) / 2:
        yield False, f"at these very rows the approach misses a known exponent by {bias.a:+.3f}, without any noise"


def _other_forms(law: Analysis) -> Iterator[tuple[bool, str]]:
    known = {e.form: e.aicc for e in law.forms or () if e.aicc is not None and e.status == "ok"}
    if not known:
        return
    name = law.settings.law_form.name
    words = form_words(law.parametric) if law.parametric else f"the form {name!r}"
    words = words.removeprefix("L = ")
    best, own = min(known, key=lambda form: known[form]), known.get(name)
    if own is None:
        yield False, f"of the forms of the loss {best!r} has the least AICc, and {words} has no fit"
    elif own > known[best]:
        yield False, f"the form {best!r} fits the losses better than {words} (AICc lower by {own - known[best]:.1f})"


def _coverage(law: Analysis, name: str) -> Iterator[tuple[bool, str]]:
    found = (law.coverage or {}).get(name)
    if found and found.covered_interval:
        holds = found.covered_interval[1] >= SHORTFALL
        only = "" if holds else "only "
        counted = f"{found.covered:.0%} of {found.fitted} simulated sweeps"
        yield holds, f"the {BY_NAME[name].label} intervals held the truth in {only}{counted}"


def _scored(forecast: Json) -> Iterator[tuple[bool, str]]:
    if not forecast:
        return
    predicted, got, ends = forecast["predicted"], forecast["measured"], forecast["said"]["loss_interval"]
    told = f"a held-out run of {short(forecast['params'])} parameters reached {got:.4f} nats where {predicted:.4f}"
    if not ends:
        yield abs(got / predicted - 1) < 0.01, f"{told} were forecast, without an interval"
        return
    low, high = (f"{end:.4f}" for end in ends)
    held = bool(forecast["inside"])
    verdict = "inside the interval"
    if not held:
        widths = half_widths(forecast["said"], got)
        verdict = f"a miss by {widths:.1f} half-widths of the interval ({failed_assumption(forecast['said'], got)})"
    yield held, f"{told} ({low} to {high}) were forecast, {verdict}"


def _evaluation(law: Analysis) -> Iterator[tuple[bool, str]]:
    """Compare the standard error of one evaluation with the scatter of the runs."""
    error = law.evaluation.between_runs
    fit = law.isoflop or law.parametric
    if not error or not fit or not fit.interval.noise:
        return
    scatter = fit.interval.noise * (1 if fit is law.isoflop else float(np.mean(law.ranges["loss"])))
    if error >= DOMINATES * scatter:
        yield False, f"the evaluation's standard error ({error:.2g} nats) is as large as the scatter of the runs " \
                     f"({scatter:.2g} nats), and more validation sequences would lower it"  # fmt: skip


def _choices(law: Analysis, name: str) -> Iterator[tuple[bool, str]]:
    exponents = [e.a for e in law.choices or () if e.status == "ok" and e.a is not None]
    if len(exponents) < 2:
        return
    low, high = min(exponents), max(exponents)
    ends = law.approaches[name].a_interval
    agree = _inside(low, ends) and _inside(high, ends)
    yield agree, f"{len(exponents)} fits under other reasonable choices give exponents from {low:.3f} to {high:.3f}"


def _rate_words(lr: Json) -> str:
    if lr["status"] == "ok":
        factors = []
        for variable, key in (("N", "params_exponent"), ("D", "tokens_exponent")):
            if lr[key]:
                error = f" (standard error {lr[f'{key}_se']:.2g})" if lr[f"{key}_se"] else ""
                factors.append(f"{variable}^{lr[key]:.3f}{error}")
        cells = sum(cell["optimum"] is not None for cell in lr["cells"])
        return f"The best peak learning rate is {_say(lr['coef'])} {' '.join(factors)}, from {cells} cells of N and D."
    best = [
        f"{_say(cell['optimum'])} at {short(cell['params'])} parameters and {short(cell['tokens'])} tokens"
        for cell in lr["cells"]
        if cell["optimum"] is not None
    ]
    reason = f" ({lr['reasons'][0]})" if lr["reasons"] else ""
    if not best:
        return f"No best learning rate was found{reason}."
    more = f" and {len(best) - 3} more" if len(best) > 3 else ""
    return f"The best peak learning rate is {', '.join(best[:3])}{more}; these make no law{reason}."


def _verdict(law: Analysis, name: str) -> str:
    """Say how an approach ended that is not quoted, with its first reason."""
    fit = law.approaches[name]
    if isinstance(fit, IsoflopFound) and fit.ok:
        return f"uses {fit.budgets_kept} of {len(fit.budgets)} budgets and has the wider interval"
    ended = "was refused" if fit.status == "refused" else f"is {fit.status}"
    return f"{ended} ({fit.reasons[0]})" if fit.reasons else ended


def _inside(value: float, interval: Ends | None) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def _quantiles(logs: list[float]) -> tuple[float, float] | None:
    """Give the middle 95 % of what has these logarithms."""
    known = [value for value in logs if not np.isnan(value)]
    if not known:
        return None
    low, high = np.exp(np.quantile(known, (0.025, 0.975)))
    return float(low), float(high)


def _interval(interval: Ends) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _say(value: float) -> str:
    return f"{value:.3g}".replace("e+", "e")
