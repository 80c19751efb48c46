"""Say what to quote of a law: a few plain sentences out of law.json, as one would put them in a paper.

The first approach in NAMES that gave a law is quoted, but an isoFLOP fit to a minority of the budgets makes room for a
parametric one that is more certain. What agrees with the quoted one is said as a reason for it, and what does not agree
is said against it.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.files import read_json
from gptjax.laws.table import short

Json = dict[str, Any]
NAMES = {"isoflop": "isoFLOP", "parametric": "parametric", "envelope": "envelope"}  # in the order of trust
SHORTFALL = 0.95  # an interval whose coverage is surely below this promises too much
DOMINATES = 0.9  # of the scatter of the runs: an evaluation error above this share explains all of it
FEW_BUDGETS = 2  # a line through so few points has no errors to be seen


def quote(law: Json, forecast: Json | None = None) -> dict[str, str]:
    """Give the sentences to quote by name: `law`, `why`, `against`, and `rates` where learning rates were swept.

    `law` is the object of `fit_all`; `forecast` is what `read_forecast` gives: a registered prediction with its score.
    """
    if quoted := _quoted(law):
        pro, contra = _evidence(law, quoted, forecast or {})
        unfitted = [label for name, label in NAMES.items() if name not in law["approaches"]]
        against = _against_words(contra, unfitted)
        said = {"law": _law_words(law, quoted), "why": _why_words(law, quoted, pro), "against": against}
    else:
        said = _no_law_words(law)
    return said | ({"rates": _rate_words(law["hyper"]["lr"])} if "hyper" in law else {})


def _quoted(law: Json) -> str | None:
    sound = [name for name in NAMES if law["approaches"].get(name, {}).get("status") == "ok"]
    if {"isoflop", "parametric"} <= set(sound):
        isoflop, parametric = (law["approaches"][name] for name in ("isoflop", "parametric"))
        widths = [ends[1] - ends[0] if (ends := fit["a_interval"]) else np.inf for fit in (isoflop, parametric)]
        if 2 * _budgets(isoflop) < len(isoflop["budgets"]) and widths[1] < widths[0]:
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
    return {"interval": record["prediction"]["loss_interval"], **scored["score"]}


def extent(law: Json) -> str:
    """Say over which runs a law was fitted."""
    (n_low, n_high), (c_low, c_high) = law["ranges"]["N"], law["ranges"]["C"]
    plural = "s" * (law["rows"] != 1)
    sizes = f"{law['rows']} run{plural} of {short(n_low)} to {short(n_high)} parameters"
    return f"{sizes} and {_say(c_low)} to {_say(c_high)} FLOPs"


def _law_words(law: Json, name: str) -> str:
    fit = law["approaches"][name]
    coefficient = _quantiles([draw[0] for draw in fit["draws"]["N"]]) if fit["a_interval"] else None
    intervals = (
        f"95 % interval of the exponent {_interval(fit['a_interval'])}"
        + (f", of the coefficient {_say(coefficient[0])} to {_say(coefficient[1])}" if coefficient else "")
        if fit["a_interval"]
        else "no interval of the exponent"
    )
    tokens = f" ({_interval(fit['b_interval'])})" if fit["b_interval"] else ""
    used = len(fit["used"])
    if name == "isoflop":
        how = f"isoFLOP minima at {_budgets(fit)} budgets"
    elif name == "parametric":
        how = "the parametric fit of L = E + A/N^alpha + B/D^beta"
    else:
        how = f"the envelope of {fit['method']}"
    rows = f"{used} of {extent(law)}" if used < law["rows"] else extent(law)
    return (
        f"N* = {_say(fit['N_coef'])} C^{fit['a']:.3f} parameters ({intervals}) and "
        f"D* = {_say(fit['D_coef'])} C^{fit['b']:.3f} tokens{tokens}, from {how} over {rows}; {law['convention']}."
    )


def _why_words(law: Json, name: str, reasons: list[str]) -> str:
    better = [other for other in NAMES if other in law["approaches"]]
    better = better[: better.index(name)]
    if better:
        chosen = " and ".join(f"the {NAMES[other]} approach {_verdict(law, other)}" for other in better)
    elif name == "isoflop":
        chosen = "it assumes no form of the loss: in each budget it uses, a minimum lies among the sizes tried"
    else:
        chosen = "no other approach was fitted"
    return f"The {NAMES[name]} approach is quoted because {chosen}{''.join(f'; {reason}' for reason in reasons)}."


def _against_words(reasons: list[str], unfitted: list[str]) -> str:
    were = "es were" if len(unfitted) > 1 else " was"
    missing = f" The {' and '.join(unfitted)} approach{were} not fitted." if unfitted else ""
    if reasons:
        return f"Against it: {'; '.join(reasons)}.{missing}"
    return f"Nothing that was checked speaks against it; other text, recipes and conventions were not checked.{missing}"


def _no_law_words(law: Json) -> dict[str, str]:
    found = law["approaches"]
    statuses = {fit["status"] for fit in found.values()}
    verdict = "every approach refused" if statuses == {"refused"} else "every approach refused or is degenerate"
    reasons = "; ".join(f"the {NAMES[name]} approach {_verdict(law, name)}" for name in NAMES if name in found)
    return {
        "law": f"No compute-optimal law follows from {extent(law)}: {verdict}.",
        "why": f"{reasons[:1].upper()}{reasons[1:]}.",
        "against": "No exponent and no coefficient of these runs should be quoted.",
    }


def _evidence(law: Json, name: str, forecast: Json) -> tuple[list[str], list[str]]:
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


def _other_approaches(law: Json, name: str) -> Iterator[tuple[bool, str]]:
    fit, order = law["approaches"][name], list(NAMES)
    for other in order:
        found = law["approaches"].get(other)
        if other == name or found is None:
            continue
        if found["status"] == "ok":
            agrees = _inside(found["a"], fit["a_interval"])
            words = "agrees, with an exponent of" if agrees else "gives an exponent of"
            interval = f" ({_interval(found['a_interval'])})" if found["a_interval"] else ""
            yield agrees, f"the {NAMES[other]} approach {words} {found['a']:.3f}{interval}"
        elif order.index(other) > order.index(name):  # of a better one, `why` speaks
            yield False, f"the {NAMES[other]} approach {_verdict(law, other)}"


def _own_weakness(law: Json, name: str) -> Iterator[tuple[bool, str]]:
    fit = law["approaches"][name]
    if name == "isoflop":
        kept = _budgets(fit)
        if kept < len(fit["budgets"]):
            yield False, f"{len(fit['budgets']) - kept} of {len(fit['budgets'])} budgets were refused"
        if kept <= FEW_BUDGETS:
            yield False, f"the line goes through {kept} budgets only"
    elif fit["reasons"]:
        yield False, "; ".join(fit["reasons"])
    if edge := fit.get("edge_share"):
        yield False, f"{edge:.0%} of the frontier lies at the least or largest size tried"
    bias, ends = fit.get("design_bias"), fit["a_interval"]
    if bias and ends and abs(bias["a"]) > (ends[1] - ends[0]) / 2:
        yield False, f"at these very rows the approach misses a known exponent by {bias['a']:+.3f}, without any noise"


def _other_forms(law: Json) -> Iterator[tuple[bool, str]]:
    known = {e["form"]: e["aicc"] for e in law.get("forms", ()) if e["aicc"] is not None and e["status"] == "ok"}
    if not known:
        return
    best, own = min(known, key=lambda form: known[form]), known.get("chinchilla")
    if own is None:
        yield False, f"of the forms of the loss {best!r} has the least AICc, and E + A/N^alpha + B/D^beta has no fit"
    elif own > known[best]:
        yield False, f"the form {best!r} fits the losses better than E + A/N^alpha + B/D^beta " \
                     f"(AICc lower by {own - known[best]:.1f})"  # fmt: skip


def _coverage(law: Json, name: str) -> Iterator[tuple[bool, str]]:
    found = law.get("coverage", {}).get(name)
    if found and found["fitted"]:
        holds = found["covered_interval"][1] >= SHORTFALL
        only = "" if holds else "only "
        counted = f"{found['covered']:.0%} of {found['fitted']} simulated sweeps"
        yield holds, f"the {NAMES[name]} intervals held the truth in {only}{counted}"


def _scored(forecast: Json) -> Iterator[tuple[bool, str]]:
    if not forecast:
        return
    said, got, ends = forecast["predicted"], forecast["measured"], forecast["interval"]
    told = f"a held-out run of {short(forecast['params'])} parameters reached {got:.4f} nats where {said:.4f}"
    if not ends:
        yield abs(got / said - 1) < 0.01, f"{told} were forecast, without an interval"
        return
    edge = ends[1] if got > said else ends[0]
    widths = abs(got - said) / abs(edge - said) if edge != said else float("inf")
    low, high = (f"{end:.4f}" for end in ends)
    held = bool(forecast["inside"])
    verdict = "inside the interval" if held else f"a miss by {widths:.1f} half-widths of the interval"
    yield held, f"{told} ({low} to {high}) were forecast, {verdict}"


def _evaluation(law: Json) -> Iterator[tuple[bool, str]]:
    """Compare the standard error of one evaluation with the scatter of the runs."""
    error = law.get("evaluation", {}).get("between_runs")
    fit = law["approaches"].get("isoflop") or law["approaches"].get("parametric")
    if not error or not fit or not fit["interval"]["noise"]:
        return
    scatter = fit["interval"]["noise"] * (1 if "budgets" in fit else float(np.mean(law["ranges"]["loss"])))
    if error >= DOMINATES * scatter:
        yield False, f"the evaluation's standard error ({error:.2g} nats) is as large as the scatter of the runs " \
                     f"({scatter:.2g} nats), and more validation sequences would lower it"  # fmt: skip


def _choices(law: Json, name: str) -> Iterator[tuple[bool, str]]:
    exponents = [e["a"] for e in law.get("choices", ()) if e["status"] == "ok"]
    if len(exponents) < 2:
        return
    low, high = min(exponents), max(exponents)
    ends = law["approaches"][name]["a_interval"]
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


def _verdict(law: Json, name: str) -> str:
    """Say how an approach ended that is not quoted, with its first reason."""
    fit = law["approaches"][name]
    if fit["status"] == "ok":
        return f"uses {_budgets(fit)} of {len(fit['budgets'])} budgets and has the wider interval"
    ended = "was refused" if fit["status"] == "refused" else f"is {fit['status']}"
    return f"{ended} ({fit['reasons'][0]})" if fit["reasons"] else ended


def _budgets(fit: Json) -> int:
    return sum(budget["N"] is not None for budget in fit["budgets"])


def _inside(value: float, interval: list[float] | None) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def _quantiles(logs: list[float | None]) -> tuple[float, float] | None:
    """Give the middle 95 % of what has these logarithms."""
    known = [value for value in logs if value is not None]
    if not known:
        return None
    low, high = np.exp(np.quantile(known, (0.025, 0.975)))
    return float(low), float(high)


def _interval(interval: list[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _say(value: float) -> str:
    return f"{value:.3g}".replace("e+", "e")
