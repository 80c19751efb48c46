"""From a directory with runs.csv to law.json, figures and one self-contained page, report.html."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gptjax.errors import BadInput
from gptjax.files import read_json, write_file, write_json
from gptjax.laws.analysis import fit_all
from gptjax.laws.approaches import BY_NAME, BY_TRUST
from gptjax.laws.checks import read_curves, read_runs
from gptjax.laws.codec import Json
from gptjax.laws.coverage import affordable
from gptjax.laws.drawing import plot, plot_doubt, plot_forecast
from gptjax.laws.drawing.methods import methods, say_resampling
from gptjax.laws.drawing.page import page, picture, say_flops, say_interval, say_percent, say_sentence, table
from gptjax.laws.envelope import LATE
from gptjax.laws.fit import Choices
from gptjax.laws.quote import quote, read_forecast
from gptjax.laws.reading import read_rows
from gptjax.laws.record import Analysis, Covered, EnvelopeFound, FittedForm, ParametricFound
from gptjax.laws.registered import failed_assumption, half_widths
from gptjax.laws.robustness import BEYOND, CHOICE_DRAWS, GAP
from gptjax.laws.table import Curve, Runs, short

SHOWN = 500  # rows of a table on the page; the rest stand in the files
COLUMNS = 12  # of a table on the page: of a wider one, those of LEADING
LEADING = (
    *("run", "status", "size", "seed", "params", "tokens", "flops"),
    *("loss", "loss_se", "bits_per_byte", "lr", "batch"),
)
CURVES = 300  # drawn of each figure; lines beyond cannot be told apart
TITLE = "A scaling law"

FORECASTS = (1, 3, 10, 30)  # times the largest budget, of which losses are listed
NOMINAL = 0.95  # share of simulated sweeps in which an interval should hold the truth


@dataclass(frozen=True)
class _Plate:
    """A figure of the report: its file's name, title, caption (HTML), and how to draw it, narrow or not."""

    name: str
    title: str
    caption: str
    draw: Callable[[bool], Figure]


def write_report(
    directory: Path,
    choices: Choices | None = None,
    sweeps: int | None = None,
    done: Callable[[], Any] = lambda: None,
    title: str = "",
) -> Path:
    """Fit the law of directory/runs.csv and write law.json, report.html and its figures; give the page's path.

    Each figure stands in figures/ as SVG, PDF and PNG, with the numbers it draws as CSV. The coverage of the intervals
    is counted on so many simulated `sweeps`, by default as many as `affordable` says; `done` is called after each.
    Without a `title`, that of facts.json is used.

    Also shows, where they stand beside it: curves.csv (run, params, tokens, flops, loss), facts.json (title,
    not_run and any flat facts), prediction.json and prediction_score.json. The envelope goes through the curves only
    if `choices.unfinished`; BadInput where there are none then. Every file is replaced whole or not at all.
    """
    choices = choices or Choices()
    runs = read_runs(directory / "runs.csv")
    curves = read_curves(directory / "curves.csv") if (directory / "curves.csv").exists() else []
    if choices.unfinished and not curves:
        raise BadInput(f"{directory} has no curves.csv, whose unfinished runs are to count; add it or leave them out")
    rows = choices.rows(runs)
    sweeps = affordable(len(rows)) if sweeps is None else sweeps
    law = fit_all(runs, choices, curves=curves if choices.unfinished else None, sweeps=sweeps, done=done)
    curves = _counted(curves, rows)
    facts, record = _optional(directory / "facts.json"), _optional(directory / "prediction.json")
    score = _optional(directory / "prediction_score.json").get("score")
    law = replace(law, quote=quote(law, read_forecast(directory)))
    title = title or str(facts.get("title", TITLE))

    (directory / "figures").mkdir(exist_ok=True)
    body = [f"<h1>{escape(title)}</h1>"]
    number = 0
    for part in (
        *_headline(law),
        *_optima(rows, law, record.get("prediction")),
        *_law(rows, law, curves),
        *_doubt(rows, law),
        *_choices(law),
        *_forecast(rows, law, record.get("prediction"), score),
        *_extrapolation(law),
        *_prediction(rows, law, record, score),
        *_rows(directory / "runs.csv", law),
        *methods(rows, law, facts),
    ):
        if isinstance(part, str):
            body.append(part)
            continue
        number += 1
        html, files = picture(part.draw, number, part.title, part.caption)
        for kind, content in files.items():
            write_file(directory / "figures" / f"{part.name}.{kind}", content)
        body.append(html)
    write_json(directory / "law.json", law.to_json())
    write_file(directory / "report.html", page(title, body))
    return directory / "report.html"


def _optional(path: Path) -> Json:
    return read_json(path) if path.exists() else {}


def _counted(curves: list[Curve], rows: Runs) -> list[Curve]:
    """Keep the curves of the rows fitted, with N and C as those rows count them."""
    place = {name: i for i, name in enumerate(rows.run)}
    kept = [(curve, place[curve.run]) for curve in curves if curve.run in place]
    return [
        replace(curve, params=float(rows.params[i]), flops=curve.tokens * rows.flops[i] / rows.tokens[i])
        for curve, i in kept
    ]


def _some(curves: list[Curve]) -> list[Curve]:
    """Pick the curves to draw, at random where there are too many: every k-th might be all of one budget."""
    if len(curves) <= CURVES:
        return curves
    picked = np.random.default_rng(0).choice(len(curves), CURVES, replace=False)
    return [curves[i] for i in np.sort(picked)]


def _headline(law: Analysis) -> Iterator[str]:
    """Say what to quote, each approach's exponents, and what was refused."""
    first, *others = map(say_sentence, law.quote.values())
    yield f'<p class="lead">{first}</p>'
    yield "".join(f"<p>{sentence}</p>" for sentence in others)
    table_rows = []
    for approach in BY_TRUST:
        fit = law.approaches[approach.name]
        both = ((fit.a, fit.a_interval), (fit.b, fit.b_interval))
        cells = ["none" if value is None else f"{value:.3f}  ({say_interval(ends)})" for value, ends in both]
        table_rows.append([approach.label, *cells, f"{len(fit.used)} of {law.rows}", fit.status])
    yield table(["approach", "a, in N* ∝ Cᵃ (95 %)", "b, in D* ∝ Cᵇ (95 %)", "rows used", "status"], table_rows)
    fits = [(approach.label, law.approaches[approach.name]) for approach in BY_TRUST]
    reasons = [f"<li>{label}: {escape(reason)}.</li>" for label, fit in fits for reason in fit.reasons]
    if reasons:
        yield f"<p>Refused, or to be read with care:</p><ul>{''.join(reasons)}</ul>"


def _optima(rows: Runs, law: Analysis, said: Json | None) -> Iterator[_Plate]:
    """Show the best size at each budget, and the power laws through these."""
    convention = f"Here {escape(law.convention)}."
    assert law.isoflop
    budgets = law.isoflop.budgets
    if any(budget.window for budget in budgets):
        through = (
            "An Akima spline of log loss in log <i>N</i> goes through the best run of each size (filled points)"
            if law.settings.interp == "akima"
            else "A parabola in log <i>N</i> goes through the filled points"
        )
        refused = sum(budget.N is None for budget in budgets)
        dashed = f" {refused} of {len(budgets)} budgets were refused; their lines are dashed." if refused else ""
        caption = (
            f"Each colour is a compute budget in FLOPs. {through}; open points were left out. The fit uses "
            f"{len(law.isoflop.used)} rows. Diamonds mark the minima, with one standard error.{dashed} "
            f"{convention}"
        )
        draw: Callable[..., Figure] = partial(plot.isoflop_parabolas, rows, law)
        yield _Plate("isoflop", "Loss against size at equal compute", caption, draw)
    if any(found.band for found in law.approaches.values()):
        caption = (
            "Lines are the fitted power laws with 95&#8239;% bootstrap bands, and diamonds are the isoFLOP minima. A "
            "degenerate fit is pale and dashed; a refused one has no line. The published laws were fitted to other "
            "text and to budgets above 10<sup>18</sup> FLOPs, so compare their slopes and not their levels. "
            f"{convention}"
        )
        draw = partial(plot.optimum_against_compute, rows, law, said)
        yield _Plate("optimum", "Compute-optimal size and tokens", caption, draw)


def _law(rows: Runs, law: Analysis, curves: list[Curve]) -> Iterator[_Plate | str]:
    """Show the runs, the fitted loss, what it leaves, and how other forms of it do."""
    fit, envelope = law.parametric, law.envelope
    assert fit and envelope
    yield "<h2>The law</h2>"
    drawn = _some(curves)
    of = f"{len(drawn)} of {len(curves)} runs, picked at random" if len(drawn) < len(curves) else f"{len(curves)} runs"
    lines = f" Thin lines are the training loss of {of}, averaged in bins of equal log tokens." if curves else ""
    caption = (
        f"Each point is the validation loss of one of the {len(rows)} finished runs.{lines} "
        f"{_envelope_words(envelope)} Here {escape(law.convention)}."
    )
    draw: Callable[..., Figure] = partial(plot.loss_against_compute, rows, law, drawn)
    yield _Plate("loss_compute", "Loss against compute", caption, draw)
    if fit.band:
        caption = (
            f"Contours of {_law_words(fit)} in nats, where <i>C</i> = 6<i>ND</i>. Points are "
            f"the {len(rows)} rows fitted; the line is the best size at each budget."
        )
        yield _Plate("contours", "The parametric law", caption, partial(plot.loss_contours, rows, law))
    if fit.errors:
        caption = "How far the measured loss of each row is above the predicted one; the band is two sd."
        yield _Plate("residuals", "What the law leaves", caption, partial(plot.residuals, rows, law))
    if curves:
        caption = f"The training loss of {of}, averaged in bins of equal log tokens; curves.csv holds them all."
        yield _Plate("training", "Training curves", caption, partial(plot.training_curves, rows, drawn))
    hyper = law.hyper
    if hyper and hyper["lr"]["cells"]:
        caption = (
            "Each colour is a cell: one size trained on one number of tokens. The curve goes through filled points. "
            "A filled diamond is the best rate, with one standard error; a hollow one is only the best of those tried, "
            "because no minimum lies between them."
        )
        yield _Plate("rates", "Loss against learning rate", caption, partial(plot.loss_against_rate, hyper))
    if law.forms:
        yield from _forms(law.forms)


def _law_words(fit: ParametricFound) -> str:
    """Write a fitted law in HTML."""
    known = {name: each.value or 0.0 for name, each in fit.coefficients.items()}
    if fit.form == "chinchilla":
        return (
            f"<i>L</i> = {known['E']:.3f} + {known['A']:.4g} / <i>N</i><sup>{known['alpha']:.3f}</sup> + "
            f"{known['B']:.4g} / <i>D</i><sup>{known['beta']:.3f}</sup>"
        )
    values = {**known, **{f"held {name}": value for name, value in fit.held.items()}}
    said = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
    return f"the form {escape(fit.form)} ({escape(said)})"


def _envelope_words(found: EnvelopeFound) -> str:
    """Say what the envelope goes through."""
    if found.method != "training curves":
        return "The envelope goes through finished runs only, in straight lines between budgets."
    if not found.run_share:
        return "No training curve reaches the envelope."
    low, middle, high = (say_percent(share) for share in np.quantile(found.run_share, (0, 0.5, 1)))
    return (
        f"The envelope goes through the training curves: its points lie {low} to {high} of the way through their runs, "
        f"half of them beyond {middle}. It is dashed before the last {say_percent(1 - LATE)} of a run: the learning "
        "rate was still high there, and a run that ended there would have a lower loss."
    )


def _forms(forms: list[FittedForm]) -> Iterator[str]:
    cells = []
    for entry in forms:
        known = entry.coefficients or {}
        text = ", ".join(f"{name} {value:.3g}" for name, value in known.items()).replace("e+", "e")
        numbers = [
            "none" if entry.aicc is None else f"{entry.aicc:.1f}",
            say_percent(entry.rmse, 2),
            say_percent(entry.rmse_beyond, 2),
        ]
        cells.append([entry.form, text or "none", *numbers, entry.status])
    header = ["form", "coefficients", "ΔAICc", "rms", "beyond", "status"]
    yield "<p>The same rows under other forms of the law:</p>"
    yield table(header, cells)
    yield (
        '<p class="note muted">Each form was fitted by least squares of log loss; rms is the root mean square of its '
        "errors. ΔAICc counts from the best form; it charges for every coefficient and takes the errors to be "
        f"independent. Beyond is the rms error on the rows above {say_flops(forms[0].cut)} FLOPs of the form fitted "
        "to the rows below. A power law of one variable can only do well where that variable limits the loss.</p>"
    )


def _doubt(rows: Runs, law: Analysis) -> Iterator[_Plate | str]:
    """Show how far the parametric law could have come out otherwise."""
    fit = law.parametric
    if not fit or not fit.profile or not fit.influence or fit.a_se is None:
        return
    yield "<h2>How sure it is</h2>"
    count = len(fit.theta_draws)
    caption = (
        f"{min(plot_doubt.CLOUD, count)} of {count} bootstrap draws ({say_resampling(fit)}). The curves enclose 68 and "
        "95&#8239;% of all draws, by a kernel density. The frame reaches "
        f"{plot_doubt.WIDEST:g} times as far as the middle 68&#8239;% of draws; published fits inside it are marked."
    )
    draw: Callable[..., Figure] = partial(plot_doubt.bootstrap_clouds, law)
    yield _Plate("bootstrap", "Bootstrap draws of the parametric law", caption, draw)
    caption = (
        "Each coefficient is held at a value while the others are fitted again. The curve shows how far the objective "
        "rises above its minimum; at 1 it ends the 95&#8239;% interval. The objective is not a likelihood, so this bar "
        "is scaled by the spread and curvature of the errors. An arrow marks an end beyond the values tried. The line "
        "below is the interval of the bootstrap."
    )
    yield _Plate("profile", "Profiles of the objective", caption, partial(plot_doubt.profiles, law))
    jackknife = " and ".join(f"{found.a_se:.4f} over {len(found.a)} {kind}s" for kind, found in fit.influence.items())
    caption = (
        "The exponent <i>a</i> of the parametric fit when one size, or one row, is left out; those that move it most "
        f"are named. The jackknife's standard error of <i>a</i> is {jackknife}; the bootstrap's is {fit.a_se:.4f}."
    )
    draw = partial(plot_doubt.influence_of_each, rows, law)
    yield _Plate("influence", "What a single size or row decides", caption, draw)
    if law.coverage:
        yield from _coverage(law.coverage)


def _coverage(counted: dict[str, Covered]) -> Iterator[str]:
    """Tabulate how often the intervals held the truth, and say which promise more than they keep."""
    sweeps = max(found.fitted + found.refused for found in counted.values())
    yield (
        f"<p>How good are the intervals? {sweeps} sweeps were simulated from the parametric law at exactly these sizes "
        "and tokens, with the noise of these runs, and fitted the same way. A 95&#8239;% interval should hold the "
        "planted exponent in 95&#8239;% of them.</p>"
    )
    lines: list[list[Any]] = []
    short_of: list[str] = []
    beyond: list[str] = []
    for approach in BY_TRUST:
        found, label = counted[approach.name], approach.label
        if found.covered is None or found.covered_interval is None:
            lines.append([label, found.fitted, "", "", "", ""])
            continue
        low, high = found.covered_interval
        share = f"{100 * found.covered:.0f} %  ({100 * low:.0f} to {100 * high:.0f})"
        lines.append([label, found.fitted, share, *(f"{value:.4f}" for value in (found.bias, found.rmse, found.width))])
        off = f"the {label} interval by {100 * abs(NOMINAL - found.covered):.0f} points"
        if high < NOMINAL:
            short_of.append(off)
        elif low > NOMINAL:
            beyond.append(off)
    header = ["approach", "fitted", "held a (95 %)", "mean error of a", "root mean square", "mean width"]
    yield table(header, lines)
    if short_of:
        yield f"<p>They hold a less often than they say: {'; '.join(short_of)}.</p>"
    if beyond:
        yield f"<p>They hold a more often than they say, and are wider than they need be: {'; '.join(beyond)}.</p>"


def _choices(law: Analysis) -> Iterator[_Plate | str]:
    """Show the exponent under each choice that one could have made."""
    entries = law.choices
    if not entries:
        return
    yield "<h2>Other choices</h2>"
    troubled = [e for e in entries if e.status != "ok"]
    sizes = [e.N_beyond for e in entries if e.status == "ok" and e.N_beyond]
    reach = f" At {BEYOND:g} times the largest budget the best size is {short(min(sizes))} to {short(max(sizes))} by " \
        "these fits." if sizes else ""  # fmt: skip
    words = (
        f" {len(troubled)} of {len(entries)} fits are refused or degenerate, and say so; the degenerate ones are pale "
        "and hollow."
        if troubled
        else ""
    )
    caption = (
        f"The exponent <i>a</i> with its 95&#8239;% interval ({CHOICE_DRAWS} draws) when one choice at a time is "
        f"changed. The band is the interval of the fit as chosen.{words}{reach}"
    )
    yield _Plate("choices", "The exponent under other choices", caption, partial(plot_doubt.choices_forest, law))
    if troubled:
        yield f"<details><summary>{len(troubled)} refused or degenerate, with reasons</summary>"
        cells = [[BY_NAME[e.approach].label, e.choice, e.status, e.reason] for e in troubled]
        yield table(["approach", "choice", "status", "reason"], cells) + "</details>"


def _forecast(rows: Runs, law: Analysis, said: Json | None, score: Json | None) -> Iterator[_Plate | str]:
    """Show the losses that are forecast beyond the rows, and how such forecasts did within them."""
    found = law.forecast
    if not found:
        return
    yield "<h2>Beyond the largest budget</h2>"
    if not found.ok:
        yield f"<p>No forecast: {escape('; '.join(found.reasons))}.</p>"
        return
    caption = (
        f"The loss of compute-optimal runs, averaged over {len(found.floors)} floors: constant parts <i>E</i> of the "
        f"loss, each weighed by how well it fits the {found.rows_near:.0f} rows near the floor, counted by weight. "
        "Thin lines are single floors, the darker the more weight. The band allows for the noise of one run."
    )
    draw: Callable[..., Figure] = partial(plot_forecast.losses_forecast, rows, found, said, score)
    yield _Plate("forecast", "The losses that are forecast", caption, draw)
    lines: list[list[Any]] = []
    for times in FORECASTS:
        flops = times * float(np.exp(found.top))
        each = found.at(flops)
        lines.append([f"{times:g} times the largest", _plain_flops(flops), f"{each.loss:.4f}",
                      say_interval(each.interval(), 4)])  # fmt: skip
    yield table(["budget", "C = 6ND", "loss forecast", "95 % of runs"], lines)
    if found.rolling:
        yield (
            "<p>Such forecasts within the table: fitted to less compute, each foretells the best run of the largest "
            f"budget. {_stretch_words(found.stretch)}</p>"
        )
        lines = [
            [f"{one.rows} rows up to {_plain_flops(one.max_flops)} FLOPs", f"{one.times:.2g}", f"{one.predicted:.4f}",
             say_interval(one.interval, 4), f"{one.measured:.4f}", "inside" if one.inside else "missed"]
            for one in found.rolling
        ]  # fmt: skip
        yield table(["fitted to", "times C", "forecast", "95 %", "measured", "verdict"], lines)


def _plain_flops(value: float) -> str:
    """Write FLOPs for a table's cell, which is text."""
    return f"{value:.3g}".replace("e+", "e")


def _stretch_words(stretch: float) -> str:
    if stretch <= 1:
        return "They missed by no more than they said, and the spread above is as it came out."
    return f"They missed by more than they said, and the spread above was widened {stretch:.2g} times."


def _extrapolation(law: Analysis) -> Iterator[_Plate | str]:
    """Show what a sweep with less compute would have said."""
    cuts = law.extrapolation
    if not cuts or all(e.rmse is None and e.isoflop_N_ratio is None for e in cuts):
        return
    yield "<h2>From less compute</h2>"
    fitted = " to ".join(dict.fromkeys(str(e.rows) for e in (cuts[0], cuts[-1])))
    scored = " to ".join(dict.fromkeys(str(e.rows_beyond) for e in (cuts[0], cuts[-1])))
    largest = law.ranges["C"][1]
    caption = (
        f"Left: the parametric law is fitted to the runs up to <i>C</i> ({fitted} rows) and predicts those beyond "
        f"{GAP:g}<i>C</i> ({scored} rows); shown is its error in per cent of loss. Right: <i>N</i>* at the largest "
        f"budget, {say_flops(largest)} FLOPs, as such a smaller sweep gives it, divided by what all rows give. Hollow "
        "points are degenerate fits, whose errors may lie outside the frame; crosses are refused fits."
    )
    draw = partial(plot_doubt.extrapolation_by_cut, law)
    yield _Plate("extrapolation", "What a smaller sweep would have said", caption, draw)


def _prediction(rows: Runs, law: Analysis, record: Json, score: Json | None) -> Iterator[_Plate | str]:
    """Show a registered prediction and what came of it."""
    if not record:
        return
    said = record["prediction"]
    ends, times = said["loss_interval"], said["times_largest_flops"]
    farther = f", {times:.2g} times the largest budget behind the law" if times else ""
    interval = f", with a 95&#8239;% interval of {ends[0]:.4f} to {ends[1]:.4f}" if ends else ", without an interval"
    text = (
        f"On {escape(record['registered'])}, before it was trained, a run of {short(said['params'])} parameters on "
        f"{short(said['tokens'])} tokens ({say_flops(said['flops'])} FLOPs{farther}) was predicted to reach a loss of "
        f"<b>{said['loss']:.4f}</b>{interval}. "
    )
    if score:
        error = f"{score['log_error']:+.4f}".replace("-", "&minus;")
        verdict = {True: ", inside the interval", False: ", outside the interval", None: ""}[score["inside"]]
        text += f"It reached <b>{score['measured']:.4f}</b>{verdict}; log predicted &minus; log measured is {error}."
    else:
        text += "It has not been scored yet."
    if score and score["inside"] is False:
        widths, why = half_widths(said, score["measured"]), failed_assumption(said, score["measured"])
        text += f" That is a miss by {widths:.1f} half-widths of the interval: {escape(why)}."
    yield "<h2>A prediction, and what came of it</h2>"
    yield f"<p>{text}</p>"
    yield f'<p class="note muted">sha256 {escape(record["sha256"])}</p>'
    if law.parametric and law.parametric.band:
        bar = "the interval written down before it was trained" if ends else "its prediction, which had no interval"
        caption = f"The held-out run and {bar}. Dots are the rows behind the law, as far as they lie off it."
        draw = partial(plot.prediction_against_outcome, rows, law, said, score)
        yield _Plate("prediction", "Prediction and outcome", caption, draw)


def _rows(path: Path, law: Analysis) -> Iterator[str]:
    header, rows = read_rows(path)
    shown = header if len(header) <= COLUMNS else [name for name in LEADING if name in header]
    cells = [[_cell(row[name]) for name in shown] for _, row in rows[:SHOWN]]
    yield "<h2>The rows behind the numbers</h2>"
    if len(rows) > SHOWN or len(shown) < len(header):
        yield (
            f"<p>{len(cells)} of {len(rows)} rows and {len(shown)} of {len(header)} columns; all stand in "
            f"{escape(path.name)}.</p>"
        )
    yield table(shown, cells, tall=True)
    dropped = [[item.run, "all", item.reason] for item in law.dropped]
    for approach in BY_TRUST:
        dropped += [[item.run, approach.label, item.reason] for item in law.approaches[approach.name].dropped]
    if dropped:
        rest = f"; the first {SHOWN}, all stand in law.json" if len(dropped) > SHOWN else ""
        yield f"<details><summary>{len(dropped)} exclusions, with reasons{rest}</summary>"
        yield table(["run", "left out of", "reason"], dropped[:SHOWN], tall=True) + "</details>"


def _cell(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text
