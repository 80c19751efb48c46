"""The Methods section of a report: what the (Mis)Fitting checklist asks (arXiv 2502.18969), out of the fit's JSON."""

from collections.abc import Iterator
from html import escape
from typing import Any

from gptjax.laws.envelope import LATE
from gptjax.laws.page import say_flops, say_interval, say_percent, table
from gptjax.laws.quote import NAMES
from gptjax.laws.table import Runs, short

Json = dict[str, Any]
ESTIMATORS = {
    "huber": "the least sum of Huber errors of log loss (&delta; = {delta:g})",
    "lad": "the least sum of absolute errors of log loss",
    "lsq-log": "least squares of log loss",
    "lsq": "least squares of loss",
}
RESAMPLED = {"rows": "rows drawn with replacement", "params": "whole sizes drawn with replacement"}


def say_resampling(fit: Json) -> str:
    """Say what a bootstrap drew."""
    interval = fit["interval"]
    of = "log loss" if "estimator" in fit else "loss"
    noise = f"noise of sd {interval['noise'] or 0:.3g}"
    if interval.get("bias") is not None:
        return f"{noise} added to losses of a least-squares law, and what the approach misses of that law taken off"
    return RESAMPLED.get(interval["resample"], f"{noise} added to every {of}")


def methods(rows: Runs, law: Json, facts: Json) -> Iterator[str]:
    """Say how, in the order of the (Mis)Fitting checklist (arXiv 2502.18969)."""
    yield "<h2>Methods</h2>"
    for name, text in (
        ("Data", _data_words(rows, law)),
        ("Training", _training_words(facts)),
        ("isoFLOP", _isoflop_words(law)),
        ("Parametric", _parametric_words(law)),
        ("Envelope", _regression_words(law["approaches"]["envelope"])),
        ("Intervals", _interval_words(law)),
        ("Bias of the design", _bias_words(law)),
    ):
        if text:
            yield f"<p><b>{name}.</b> {text}</p>"
    if not_run := facts.get("not_run"):
        items = "".join(f"<li>{escape(cell)}</li>" for cell in not_run)
        yield f"<details><summary>{len(not_run)} cells were planned out</summary><ul>{items}</ul></details>"
    flat = [[name, str(value)] for name, value in facts.items() if name not in ("title", "not_run")]
    if flat:
        yield table(["fact", "value"], flat)


def _data_words(rows: Runs, law: Json) -> str:
    settings = law["settings"]
    write: Json = {"C": say_flops, "loss": "{:.4g}".format}
    span = "; ".join(
        f"<i>{name}</i> {write.get(name, short)(low)} to {write.get(name, short)(high)}"
        for name, (low, high) in law["ranges"].items()
    )
    highest = settings["drop_highest_loss"]
    chosen = f", among them the {highest} highest losses, by choice" if highest else ""
    named = f" (convention {escape(settings['convention'])}, by choice)" if settings["convention"] else ""
    seeds = len(set(rows.seed) - {""})
    listed = f"{chosen}, listed above with their reasons" if law["dropped"] else ""
    return (
        f"{escape(law['convention'])}{named}. {law['rows']} finished runs, each by its last checkpoint ({span}); rows "
        f"of the table dropped before any fit: {len(law['dropped'])}{listed}. Where a cell was trained at several "
        "learning rates or batches, its best run stands for it. "
        + (f"{seeds} seed{'s' * (seeds > 1)}." if seeds else "The table names no seeds.")
    )


def _training_words(facts: Json) -> str:
    wanted = ("corpus", "tokenizer", "optimizer")
    known = "; ".join(f"{name}: {escape(str(facts[name]))}" for name in wanted if facts.get(name))
    missing = [name for name in wanted if not facts.get(name)]
    if not missing:
        return f"{known}."
    unsaid = f"Not recorded beside the table: {', '.join(missing)}"
    if "optimizer" in missing:
        unsaid += "; so neither whether schedules ended with their runs nor whether rates were tuned by size"
    return f"{known}. {unsaid}." if known else f"{unsaid}."


def _isoflop_words(law: Json) -> str:
    settings = law["settings"]
    if settings["interp"] == "akima":
        how = (
            "The minimum of an Akima spline of log loss in log <i>N</i> through the best run of each size, with errors "
            "from 1000 draws of one loss's noise (Porian et al. 2024); a budget is refused with fewer than four sizes, "
            "or its least loss at an end there or in half of the draws"
        )
    else:
        how = (
            "Least squares of loss on log <i>N</i>, quadratic, over the size of least loss and "
            f"{settings['window']} on either side; a budget is refused with fewer than four sizes, its least loss at "
            "an end, or no clear curvature"
        )
    return f"{how}; then weighted regression of log <i>N</i>* and log <i>D</i>* on log <i>C</i>."


def _parametric_words(law: Json) -> str:
    fit, settings = law["approaches"]["parametric"], law["settings"]
    weighed = "unweighted" if settings["weights"] == "equal" else "weighted by 1/se² of each loss's evaluation noise"
    text = (
        "<i>L</i> = <i>E</i> + <i>A</i>/<i>N</i><sup>&alpha;</sup> + <i>B</i>/<i>D</i><sup>&beta;</sup>, by "
        f"{ESTIMATORS[fit['estimator']].format(delta=fit['delta'])}, {weighed}; Levenberg&ndash;Marquardt in float64 "
        "until a step gains less than 1e-13 of the sum"
    )
    if fit["objective"] is None:
        return f"{text}. These rows were refused."
    text += f", from {fit['starts']} starts, of which {say_percent(fit['share_at_best'])} reached the best"
    text += f" ({fit['objective']:.6g})"
    if fit["noise"] is not None:
        text += f". One run scatters about the law by {say_percent(fit['noise'], 2)} of its loss"
    return f"{text}. At small compute <i>E</i> is a coefficient of the fit and not an entropy of text."


def _regression_words(found: Json) -> str:
    edges = (
        "Where the best size is the smallest or largest that reaches the budget: "
        f"{say_percent(found['edge_share'])} of the frontier."
    )
    if found["method"] == "training curves":
        return (
            "Each training curve smoothed over 10 points; the run of least loss at each of 1500 budgets; and a line "
            f"through these, without edges; points before the last {say_percent(1 - LATE)} of a run count, by choice. "
            + edges
        )
    return (
        "The loss of each size, straight in logs along <i>C</i> through its finished runs; the best size at 1500 "
        "budgets; and a line through the places where the best size changes, at the geometric mean of the two. " + edges
    )


def _interval_words(law: Json) -> str:
    settings, fit = law["settings"], law["approaches"]["parametric"]
    drawn = []
    for name, label in NAMES.items():
        found = law["approaches"][name]
        if found["band"]:
            lost = found["interval"]["failed_share"]
            refused = f" ({say_percent(lost, 1)} of draws gave no law)" if lost else ""
            drawn.append(f"{say_resampling(found)} for the {label} fit{refused}")
    text = f"95&#8239;% percentiles of {settings['bootstrap']} bootstrap draws, seed {settings['seed']}"
    text += f": {'; '.join(drawn)}. " if drawn else ". "
    if fit["profile"]:
        text += (
            "The profile's bar is the 95&#8239;% point of &chi;² with one degree of freedom, scaled by the sandwich "
            "covariance over the curvature (Kent 1982). "
        )
    if fit["subsample"]:
        found = fit["subsample"]
        text += (
            f"For comparison with Hoffmann et al. 2022, Table 2, only: over {found['draws']} subsamples of 80&#8239;% "
            f"of the rows the 80&#8239;% interval of <i>a</i> is {say_interval(found['a_interval_80'])}; subsamples "
            "share most rows, so it is about half as wide as it claims to be. "
        )
    level, between = (law["evaluation"][name] for name in ("loss_se", "between_runs"))
    if level and between and between < level:
        text += (
            "Losses and <i>E</i> are of these validation windows. As losses of the text they stand for they have a "
            f"standard error of {level:.2g} nats, which all runs share but for {between:.2g} nats of a run's own. "
        )
    return text + "None of these covers what another recipe, convention or choice of rows would change."


def _bias_words(law: Json) -> str:
    """Say what isoFLOP and envelope miss on noise-free losses of the parametric law at these rows."""
    said = []
    for name in ("isoflop", "envelope"):
        bias = law["approaches"][name].get("design_bias")
        if bias:
            off = f"{bias['a']:+.4f}".replace("-", "&minus;")
            said.append(f"the {NAMES[name]} approach finds <i>a</i> {off} off and <i>N</i>* at the largest budget "
                        f"{bias['N_ratio_at_largest']:.3g} times the truth")  # fmt: skip
    if not said:
        return ""
    return f"On noise-free losses of the parametric law at these very rows, {'; '.join(said)}. Estimates keep it."
