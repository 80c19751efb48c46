"""The Methods section of a report: what the (Mis)Fitting checklist asks (arXiv 2502.18969), out of the fit's JSON."""

from collections.abc import Iterator
from html import escape

from gptjax.laws.approaches import BY_TRUST
from gptjax.laws.codec import Json
from gptjax.laws.drawing.page import say_flops, say_interval, say_percent, table
from gptjax.laws.record import Analysis, Found, ParametricFound
from gptjax.laws.table import Runs, short

RESAMPLED = {
    "rows": "rows drawn with replacement",
    "runs": "whole runs drawn with replacement",
    "params": "whole sizes drawn with replacement",
}


def say_resampling(fit: Found) -> str:
    """Say what a bootstrap drew."""
    interval = fit.interval
    of = "log loss" if isinstance(fit, ParametricFound) else "loss"
    noise = f"noise of sd {interval.noise or 0:.3g}"
    if interval.bias is not None:
        return f"{noise} added to losses of a least-squares law, and what the approach misses of that law taken off"
    return RESAMPLED.get(interval.resample, f"{noise} added to every {of}")


def methods(rows: Runs, law: Analysis, facts: Json) -> Iterator[str]:
    """Say how, in the order of the (Mis)Fitting checklist (arXiv 2502.18969)."""
    yield "<h2>Methods</h2>"
    for name, text in (
        ("Data", _data_words(rows, law)),
        ("Training", _training_words(facts)),
        *((approach.title, approach.methods(law)) for approach in BY_TRUST),
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


def _data_words(rows: Runs, law: Analysis) -> str:
    settings = law.settings
    write: Json = {"C": say_flops, "loss": "{:.4g}".format}
    span = "; ".join(
        f"<i>{name}</i> {write.get(name, short)(low)} to {write.get(name, short)(high)}"
        for name, (low, high) in law.ranges.items()
    )
    highest = settings.drop_highest_loss
    chosen = f", among them the {highest} highest losses, by choice" if highest else ""
    named = f" (convention {escape(settings.convention)}, by choice)" if settings.convention else ""
    seeds = len(set(rows.seed) - {""})
    listed = f"{chosen}, listed above with their reasons" if law.dropped else ""
    return (
        f"{escape(law.convention)}{named}. {law.rows} finished runs, each by its last checkpoint ({span}); rows "
        f"of the table dropped before any fit: {len(law.dropped)}{listed}. Where a cell was trained at several "
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


def _interval_words(law: Analysis) -> str:
    settings, fit = law.settings, law.parametric
    drawn = []
    for approach in BY_TRUST:
        found = law.approaches[approach.name]
        if found.band:
            lost = found.interval.failed_share
            refused = f" ({say_percent(lost, 1)} of draws gave no law)" if lost else ""
            drawn.append(f"{say_resampling(found)} for the {approach.label} fit{refused}")
    text = f"95&#8239;% percentiles of {settings.bootstrap} bootstrap draws, seed {settings.seed}"
    text += f": {'; '.join(drawn)}. " if drawn else ". "
    if fit and fit.profile:
        text += (
            "The profile's bar is the 95&#8239;% point of &chi;² with one degree of freedom, scaled by the sandwich "
            "covariance over the curvature (Kent 1982). "
        )
    if fit and fit.subsample:
        said = fit.subsample
        text += (
            f"For comparison with Hoffmann et al. 2022, Table 2, only: over {said.draws} subsamples of 80&#8239;% "
            f"of the rows the 80&#8239;% interval of <i>a</i> is {say_interval(said.a_interval_80)}; subsamples "
            "share most rows, so it is about half as wide as it claims to be. "
        )
    level, between = law.evaluation.loss_se, law.evaluation.between_runs
    if level and between and between < level:
        text += (
            "Losses and <i>E</i> are of these validation windows. As losses of the text they stand for they have a "
            f"standard error of {level:.2g} nats, which all runs share but for {between:.2g} nats of a run's own. "
        )
    return text + "None of these covers what another recipe, convention or choice of rows would change."


def _bias_words(law: Analysis) -> str:
    """Say what the other approaches miss on noise-free losses of the parametric law at these rows."""
    said = []
    for approach in BY_TRUST:
        bias = law.approaches[approach.name].design_bias
        if bias:
            off = f"{bias.a:+.4f}".replace("-", "&minus;")
            said.append(f"the {approach.label} approach finds <i>a</i> {off} off and <i>N</i>* at the largest budget "
                        f"{bias.N_ratio_at_largest:.3g} times the truth")  # fmt: skip
    if not said:
        return ""
    return f"On noise-free losses of the parametric law at these very rows, {'; '.join(said)}. Estimates keep it."
