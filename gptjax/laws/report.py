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
from gptjax.laws import plot, plot_doubt
from gptjax.laws.analysis import fit_all
from gptjax.laws.envelope import LATE
from gptjax.laws.fit import Choices
from gptjax.laws.methods import NAMES, methods, say_resampling
from gptjax.laws.page import page, picture, png, say_flops, say_interval, say_percent, table
from gptjax.laws.robustness import BEYOND, DRAWS, GAP
from gptjax.laws.table import Curve, Runs, read_curves, read_rows, read_runs, short

Json = dict[str, Any]
SHOWN = 500  # rows of a table on the page; the rest stand in the files


SWEEPS, NOMINAL = 100, 0.95  # simulated to count the coverage of the intervals


@dataclass(frozen=True)
class _Plate:
    """A figure of the report: its file's name, title, caption (HTML), and how to draw it, narrow or not."""

    name: str
    title: str
    caption: str
    draw: Callable[[bool], Figure]


def write_report(
    directory: Path, choices: Choices | None = None, sweeps: int = SWEEPS, done: Callable[[], Any] = lambda: None
) -> Path:
    """Fit the law of directory/runs.csv and write law.json, figures/*.png and report.html; give the page's path.

    The coverage of the intervals is counted on so many simulated `sweeps`; `done` is called after each.

    Also shows, where they stand beside it: curves.csv (run, params, tokens, flops, loss), facts.json (title,
    not_run and any flat facts), prediction.json and prediction_score.json. The envelope goes through the curves only
    if `choices.unfinished`; BadInput where there are none then. Every file is replaced whole or not at all.
    """
    choices = choices or Choices()
    runs = read_runs(directory / "runs.csv")
    curves = read_curves(directory / "curves.csv") if (directory / "curves.csv").exists() else []
    if choices.unfinished and not curves:
        raise BadInput(f"{directory} has no curves.csv, whose unfinished runs are to count; add it or leave them out")
    law = fit_all(runs, choices, curves=curves if choices.unfinished else None, sweeps=sweeps, done=done)
    rows = choices.rows(runs)
    curves = _counted(curves, rows)
    facts, record = _optional(directory / "facts.json"), _optional(directory / "prediction.json")
    score = _optional(directory / "prediction_score.json").get("score")
    title = str(facts.get("title", "A scaling law"))

    (directory / "figures").mkdir(exist_ok=True)
    body = [f"<h1>{escape(title)}</h1>"]
    number = 0
    for part in (
        *_headline(rows, law),
        *_optima(rows, law, record.get("prediction")),
        *_law(rows, law, curves),
        *_doubt(rows, law),
        *_choices(law),
        *_extrapolation(law),
        *_prediction(rows, law, record, score),
        *_rows(directory / "runs.csv", law),
        *methods(rows, law, facts),
    ):
        if isinstance(part, str):
            body.append(part)
            continue
        number += 1
        html, figure = picture(part.draw, number, part.title, part.caption)
        write_file(directory / "figures" / f"{part.name}.png", png(figure))
        body.append(html)
    write_json(directory / "law.json", law)
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


def _power(letter: str, coef: float, exponent: float) -> str:
    mantissa, _, power = f"{coef:.3g}".partition("e")
    factor = f"{mantissa} &times; 10<sup>{int(power)}</sup>".replace("-", "&minus;") if power else mantissa
    return f"<i>{letter}</i>* = {factor} <i>C</i><sup>&thinsp;{exponent:.3f}</sup>"


def _headline(rows: Runs, law: Json) -> Iterator[str]:
    """Say the law in numbers, each approach's exponents, and what was refused."""
    approaches = law["approaches"]
    sound = [name for name in NAMES if approaches[name]["status"] == "ok"]
    what = (
        f"{law['rows']} runs, {short(rows.params.min())} to {short(rows.params.max())} parameters and "
        f"{say_flops(rows.flops.min())} to {say_flops(rows.flops.max())} FLOPs"
    )
    if sound:
        fit = approaches[sound[0]]
        lead = (
            f"Over {what}, the best model of a compute budget <i>C</i> has {_power('N', fit['N_coef'], fit['a'])} "
            f"parameters (95&#8239;% interval of the exponent {say_interval(fit['a_interval'])}) and sees "
            f"{_power('D', fit['D_coef'], fit['b'])} tokens, by the {NAMES[sound[0]]} approach."
        )
    else:
        status = {fit["status"] for fit in approaches.values()}
        verdict = "every approach refused" if status == {"refused"} else "every approach refused or is degenerate"
        lead = f"{what[0].upper()}{what[1:]} do not determine a law: {verdict}."
    table_rows = []
    for name, label in NAMES.items():
        fit = approaches[name]
        known = fit["a"] is not None
        cells = [f"{fit[key]:.3f}  ({say_interval(fit[f'{key}_interval'])})" if known else "none" for key in ("a", "b")]
        table_rows.append([label, *cells, f"{len(fit['used'])} of {law['rows']}", fit["status"]])
    yield f'<p class="lead">{lead}</p>'
    other = [e["a"] for e in law.get("choices", ()) if e["status"] == "ok"]
    if len(other) > 3:
        yield (
            f"<p>{len(other)} fits of these runs, by every approach and under other reasonable choices, give exponents "
            f"from {min(other):.3f} to {max(other):.3f}.</p>"
        )
    yield table(["approach", "a, in N* ∝ Cᵃ (95 %)", "b, in D* ∝ Cᵇ (95 %)", "rows used", "status"], table_rows)
    reasons = [f"<li>{NAMES[name]}: {escape(reason)}.</li>" for name in NAMES for reason in approaches[name]["reasons"]]
    if reasons:
        yield f"<p>Refused, or to be read with care:</p><ul>{''.join(reasons)}</ul>"


def _optima(rows: Runs, law: Json, said: Json | None) -> Iterator[_Plate]:
    """Show the best size at each budget, and the power laws through these."""
    approaches, settings = law["approaches"], law["settings"]
    convention = f"Here {escape(law['convention'])}."
    budgets = approaches["isoflop"]["budgets"]
    if any(budget["window"] for budget in budgets):
        through = (
            "An Akima spline of log loss in log <i>N</i> per budget, through the best run of each size (filled)"
            if settings["interp"] == "akima"
            else "A parabola in log <i>N</i> per budget, through the filled points"
        )
        refused = sum(budget["N"] is None for budget in budgets)
        dashed = f" Budgets refused: {refused} of {len(budgets)}; a dashed line has no minimum." if refused else ""
        caption = (
            f"{through}; open points are not fitted ({len(approaches['isoflop']['used'])} rows carry the law). "
            f"Diamonds are the minima, with one standard error.{dashed} {convention}"
        )
        draw: Callable[..., Figure] = partial(plot.isoflop_parabolas, rows, law)
        yield _Plate("isoflop", "Loss against size at equal compute", caption, draw)
    if any(approaches[name]["band"] for name in NAMES):
        caption = (
            "Lines are the fitted power laws with 95&#8239;% bootstrap bands, points the isoFLOP minima; a fit that is "
            "no finding is pale and dashed, and one that was refused has no line. The published laws were fitted to "
            "other text and to budgets above 10<sup>18</sup> FLOPs: compare their slope and not their level. "
            f"{convention}"
        )
        draw = partial(plot.optimum_against_compute, rows, law, said)
        yield _Plate("optimum", "Compute-optimal size and tokens", caption, draw)


def _law(rows: Runs, law: Json, curves: list[Curve]) -> Iterator[_Plate | str]:
    """Show the runs, the fitted loss, what it leaves, and how other forms of it do."""
    fit, envelope = law["approaches"]["parametric"], law["approaches"]["envelope"]
    yield "<h2>The law</h2>"
    lines = "; thin lines are training loss, averaged in bins of equal log tokens" if curves else ""
    caption = (
        f"Each point is one of the {len(rows)} finished runs{lines}. {_envelope_words(envelope)} "
        f"Here {escape(law['convention'])}."
    )
    draw: Callable[..., Figure] = partial(plot.loss_against_compute, rows, law, curves)
    yield _Plate("loss_compute", "Loss against compute", caption, draw)
    if fit["band"]:
        caption = (
            f"Contours of <i>L</i> = {fit['E']:.3f} + {fit['A']:.4g} / <i>N</i><sup>{fit['alpha']:.3f}</sup> + "
            f"{fit['B']:.4g} / <i>D</i><sup>{fit['beta']:.3f}</sup> in nats, under <i>C</i> = 6<i>ND</i>; points are "
            f"the {len(rows)} rows fitted."
        )
        yield _Plate("contours", "The parametric law", caption, partial(plot.loss_contours, rows, law))
    if fit["errors"]:
        caption = "Measured above predicted loss of each row, by size, tokens and compute; the band is two sd."
        yield _Plate("residuals", "What the law leaves", caption, partial(plot.residuals, rows, law))
    if curves:
        caption = f"Training loss of {len(curves)} runs, averaged in bins of equal log tokens."
        yield _Plate("training", "Training curves", caption, partial(plot.training_curves, rows, curves))
    hyper = law.get("hyper")
    if hyper and hyper["lr"]["cells"]:
        caption = (
            "Loss against peak learning rate in each cell of size and tokens; filled points carry the curve, diamonds "
            "the best rate with one standard error. Hollow diamonds are the best of those tried where no optimum is "
            "bracketed."
        )
        yield _Plate("rates", "Loss against learning rate", caption, partial(plot.loss_against_rate, hyper))
    if law.get("forms"):
        yield from _forms(law["forms"])


def _envelope_words(found: Json) -> str:
    """Say what the envelope goes through."""
    if found["method"] != "training curves":
        return "The envelope goes through finished runs only, straight between budgets."
    if not found["run_share"]:
        return "No training curve reaches the envelope."
    low, middle, high = (say_percent(share) for share in np.quantile(found["run_share"], (0, 0.5, 1)))
    return (
        f"The envelope goes through the training curves: its points lie {low} to {high} of the way through their runs, "
        f"half of them beyond {middle}. Before the last {say_percent(1 - LATE)} of a run it is dashed: there a "
        "schedule had not ended, and a run that had ended there would have less loss."
    )


def _forms(forms: list[Json]) -> Iterator[str]:
    cells = []
    for entry in forms:
        known = entry["coefficients"] or {}
        text = ", ".join(f"{name} {value:.3g}" for name, value in known.items()).replace("e+", "e")
        numbers = [
            "none" if entry["aicc"] is None else f"{entry['aicc']:.1f}",
            say_percent(entry["rmse"], 2),
            say_percent(entry.get("rmse_beyond"), 2),
        ]
        cells.append([entry["form"], text or "none", *numbers, entry["status"]])
    header = ["form", "coefficients", "ΔAICc", "rms", "beyond", "status"]
    yield "<p>The same rows under other forms of the law:</p>"
    yield table(header, cells)
    yield (
        '<p class="note muted">Each by least squares of log loss; rms is of its errors. ΔAICc, above the best form, '
        "charges for coefficients and takes errors to be independent. Beyond: the form fitted to the rows up to "
        f"{say_flops(forms[0]['cut'])} FLOPs, on those above. A power law of one variable can only do well where that "
        "variable limits the loss.</p>"
    )


def _doubt(rows: Runs, law: Json) -> Iterator[_Plate | str]:
    """Show how far the parametric law could have come out otherwise."""
    fit = law["approaches"]["parametric"]
    if not fit["profile"]:
        return
    yield "<h2>How sure it is</h2>"
    count = len(fit["theta_draws"])
    caption = (
        f"{min(plot_doubt.CLOUD, count)} of {count} bootstrap draws ({say_resampling(fit)}); the curves hold 68 and "
        "95&#8239;% of all draws, by a kernel density. Published fits are marked where they fall inside the frame, "
        f"which ends {plot_doubt.WIDEST:g} times as far out as the middle 68&#8239;% of the draws."
    )
    draw: Callable[..., Figure] = partial(plot_doubt.bootstrap_clouds, law)
    yield _Plate("bootstrap", "Bootstrap draws of the parametric law", caption, draw)
    caption = (
        "The least objective at each value, all else free, above its minimum, as a multiple of the rise that ends a "
        "95&#8239;% interval. The objective is no likelihood, so that rise is scaled by the errors' spread and "
        "curvature; an arrow marks an interval that the grid does not close. Below, the bootstrap's interval."
    )
    yield _Plate("profile", "Profiles of the objective", caption, partial(plot_doubt.profiles, law))
    jackknife = " and ".join(
        f"{found['a_se']:.4f} over {len(found['a'])} {kind}s" for kind, found in fit["influence"].items()
    )
    caption = (
        "The exponent <i>a</i> of the parametric fit without each size and without each row, the farthest named. "
        f"Jackknife standard error of <i>a</i>: {jackknife}; the bootstrap's is {fit['a_se']:.4f}."
    )
    draw = partial(plot_doubt.influence, rows, law)
    yield _Plate("influence", "What a single size or row decides", caption, draw)
    if counted := law.get("coverage"):
        yield from _coverage(counted)


def _coverage(counted: Json) -> Iterator[str]:
    """Tabulate how often the intervals held the truth, and say which promise more than they keep."""
    sweeps = max(found["fitted"] + found["refused"] for found in counted.values())
    yield (
        f"<p>How good are the intervals? {sweeps} sweeps were simulated from the parametric law at exactly these sizes "
        "and tokens, with the noise of these runs, and fitted the same way. A 95&#8239;% interval should hold the "
        "planted exponent in 95&#8239;% of them.</p>"
    )
    lines: list[list[Any]] = []
    short_of: list[str] = []
    beyond: list[str] = []
    for name, label in NAMES.items():
        found = counted[name]
        if not found["fitted"]:
            lines.append([label, found["fitted"], "", "", "", ""])
            continue
        low, high = found["covered_interval"]
        share = f"{100 * found['covered']:.0f} %  ({100 * low:.0f} to {100 * high:.0f})"
        lines.append([label, found["fitted"], share, *(f"{found[key]:.4f}" for key in ("bias", "rmse", "width"))])
        off = f"the {label} interval by {100 * abs(NOMINAL - found['covered']):.0f} points"
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


def _choices(law: Json) -> Iterator[_Plate | str]:
    """Show the exponent under each choice that one could have made."""
    entries = law.get("choices")
    if not entries:
        return
    yield "<h2>Other choices</h2>"
    troubled = [e for e in entries if e["status"] != "ok"]
    sizes = [e["N_beyond"] for e in entries if e["status"] == "ok" and e["N_beyond"]]
    reach = f" At {BEYOND:g} times the largest budget the best size is {short(min(sizes))} to {short(max(sizes))} by " \
        "these fits." if sizes else ""  # fmt: skip
    words = (
        f" {len(troubled)} of {len(entries)} fits are refused, with that word only, or degenerate, pale, hollow and "
        "named so."
        if troubled
        else ""
    )
    caption = (
        f"The exponent <i>a</i> with its 95&#8239;% interval ({DRAWS} draws) under each choice in turn, all else as "
        f"chosen; the band is the interval as chosen.{words}{reach}"
    )
    yield _Plate("choices", "The exponent under other choices", caption, partial(plot_doubt.choices_forest, law))
    if troubled:
        yield f"<details><summary>{len(troubled)} refused or degenerate, with reasons</summary>"
        cells = [[NAMES[e["approach"]], e["choice"], e["status"], e["reason"]] for e in troubled]
        yield table(["approach", "choice", "status", "reason"], cells) + "</details>"


def _extrapolation(law: Json) -> Iterator[_Plate | str]:
    """Show what a sweep with less compute would have said."""
    cuts = law.get("extrapolation")
    if not cuts or all(e["rmse"] is None and e["isoflop_N_ratio"] is None for e in cuts):
        return
    yield "<h2>From less compute</h2>"
    fitted = " to ".join(dict.fromkeys(str(e["rows"]) for e in (cuts[0], cuts[-1])))
    scored = " to ".join(dict.fromkeys(str(e["rows_beyond"]) for e in (cuts[0], cuts[-1])))
    largest = law["ranges"]["C"][1]
    caption = (
        f"Left: the parametric law of the runs up to <i>C</i> (of {fitted} rows) against runs beyond {GAP:g}<i>C</i> "
        f"({scored} rows), in per cent of loss. Right: <i>N</i>* at the largest budget, {say_flops(largest)} FLOPs, by "
        "such a smaller sweep over what all rows give by the same approach, on a logarithmic axis. Hollow points are "
        "degenerate fits, whose errors may lie beyond the frame; crosses are refused ones."
    )
    draw = partial(plot_doubt.extrapolation_by_cut, law)
    yield _Plate("extrapolation", "What a smaller sweep would have said", caption, draw)


def _prediction(rows: Runs, law: Json, record: Json, score: Json | None) -> Iterator[_Plate | str]:
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
    yield "<h2>A prediction, and what came of it</h2>"
    yield f"<p>{text}</p>"
    yield f'<p class="note muted">sha256 {escape(record["sha256"])}</p>'
    if law["approaches"]["parametric"]["band"]:
        bar = "the interval written down before it was trained" if ends else "what was predicted, without an interval"
        caption = f"The held-out run and {bar}; dots are the rows about the parametric law."
        draw = partial(plot.prediction_against_outcome, rows, law, said, score)
        yield _Plate("prediction", "Prediction and outcome", caption, draw)


def _rows(path: Path, law: Json) -> Iterator[str]:
    header, rows = read_rows(path)
    cells = [[_cell(row[name]) for name in header] for _, row in rows[:SHOWN]]
    yield "<h2>The rows behind the numbers</h2>"
    if len(rows) > SHOWN:
        yield f"<p>The first {SHOWN} of {len(rows)} rows; all stand in {escape(path.name)}.</p>"
    yield table(header, cells, tall=True)
    dropped = [[item["run"], "all", item["reason"]] for item in law["dropped"]]
    for name, label in NAMES.items():
        dropped += [[item["run"], label, item["reason"]] for item in law["approaches"][name]["dropped"]]
    if dropped:
        rest = f"; the first {SHOWN}, all stand in law.json" if len(dropped) > SHOWN else ""
        yield f"<details><summary>{len(dropped)} exclusions, with reasons{rest}</summary>"
        yield table(["run", "left out of", "reason"], dropped[:SHOWN], tall=True) + "</details>"


def _cell(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text
