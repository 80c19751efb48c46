"""Draw what a scaling law is: each function takes the rows and fit_all's object and returns a Figure.

How sure one can be of it is drawn in `plot_doubt`; colours, with a dark twin for each, stand in `style`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.interpolate import Akima1DInterpolator

from gptjax.laws.compare import Arms, optimal_losses
from gptjax.laws.drawing.style import (
    BY_BUDGET,
    BY_SIZE,
    BY_WIDTH,
    ENVELOPE,
    FAINT,
    HELD_OUT,
    INK,
    ISOFLOP,
    MINIMUM,
    MUTED,
    PALE,
    PAPER,
    STAR,
    Json,
    add_size_bar,
    draw_dots,
    label_counts,
    label_losses,
    look,
    make_panels,
    styled,
    warn,
)  # fmt: skip
from gptjax.laws.envelope import LATE
from gptjax.laws.law import Floats
from gptjax.laws.published import BESIROGLU_2024, HOFFMANN_2022
from gptjax.laws.record import Analysis, Band, FoundBudget
from gptjax.laws.table import Curve, Runs, short

COMPARED = ((HOFFMANN_2022, "Hoffmann et al. 2022", ":"), (BESIROGLU_2024, "Besiroglu et al. 2024", "--"))


def _spread(value: float, log_se: float | None) -> Floats:
    """Give the distances to one standard error below and above, as an error bar takes them."""
    factor = float(np.exp(log_se or 0.0))
    return np.array([[value * (1 - 1 / factor)], [value * (factor - 1)]], dtype=np.float64)


def _thin(curve: Curve, of: int) -> tuple[Floats, Floats, Floats]:
    """Average a training curve in bins of equal log tokens, fewer where it is one of many: tokens, FLOPs, loss."""
    bins = int(np.clip(8000 / of, 24, 240))
    if len(curve.tokens) <= bins:
        return curve.tokens, curve.flops, curve.loss
    edges = np.geomspace(curve.tokens.min(), curve.tokens.max(), bins)
    where = np.digitize(curve.tokens, edges)
    count = np.bincount(where)
    means = [
        np.bincount(where, column)[count > 0] / count[count > 0] for column in (curve.tokens, curve.flops, curve.loss)
    ]
    return means[0], means[1], means[2]


@styled
def loss_against_compute(runs: Runs, law: Analysis, curves: list[Curve], narrow: bool = False) -> Figure:
    """Draw every run and its training curve in the plane of compute and loss, with the frontier."""
    figure, (axes,) = make_panels(1, narrow, 4.0)
    norm = add_size_bar(figure, [axes], runs)
    for curve in curves:
        _, flops, loss = _thin(curve, len(curves))
        axes.plot(flops, loss, label=f"_{curve.run}", color=BY_SIZE(norm(curve.params)), linewidth=0.6, alpha=0.55)
    draw_dots(axes, runs.flops, runs.loss, runs, norm)
    fitted, fit, envelope = law.law(), law.parametric, law.envelope
    fitted = fitted if fit and fit.band else None
    if fitted and fit:
        c = np.geomspace(runs.flops.min() / 1.5, runs.flops.max() * 4, 80)
        best = [fitted.optimum(flops=float(each)).loss for each in c]
        label = "parametric law at its optimum" + ("" if fit.ok else f" ({fit.status})")
        dashes: Json = {"color": INK, "linestyle": (0, (4, 2))} if fit.ok else {"color": MUTED, **PALE}
        axes.plot(c, best, linewidth=1.2, label=label, zorder=4, **dashes)
    frontier = envelope.frontier if envelope else None
    if envelope and frontier and frontier.C:
        kind = "training curves" if envelope.method == "training curves" else "runs"
        label = f"envelope of the {kind}" + ("" if envelope.ok else ": no law")
        early = np.array(envelope.run_share) < LATE
        least = np.array(frontier.loss)
        line: Json = {"color": ENVELOPE, "linewidth": 1.4, "zorder": 4}
        axes.plot(frontier.C, np.where(early, np.nan, least), label=label, **line)
        if early.any():
            axes.plot(frontier.C, least, label="before the last 15 % of a run", **{**line, **PALE})
    axes.set_xscale("log")
    label_losses(axes)
    axes.set_xlabel("training FLOPs C")
    before, above = (30, 1.35) if curves else (6, 1.12)  # a curve begins far to the left of its run, and above it
    axes.set_xlim(runs.flops.min() / before, runs.flops.max() * 4)
    axes.set_ylim(runs.loss.min() * 0.94, runs.loss.max() * above)
    if fitted or (frontier and frontier.C):
        figure.legend(loc="outside lower center", ncols=1 if narrow else 3)
    return figure


@styled
def loss_by_arm(runs: Mapping[str, Runs], arms: Arms, narrow: bool = False) -> Figure:
    """Draw the runs of every arm in the plane of compute and loss, and the loss of each law at its optimum."""
    figure, (axes,) = make_panels(1, narrow, 4.0)
    for i, (name, law) in enumerate(arms.arms.items()):
        colour = BY_SIZE(i / max(1, len(arms.arms) - 1))
        rows = law.settings.rows(runs[name])
        axes.plot(rows.flops, rows.loss, "o", color=colour, markersize=3.5, alpha=0.6, label=f"_{name}, runs")
        if line := optimal_losses(law):
            sound = law.parametric is not None and law.parametric.ok
            label = f"{arms.by} {name}" + ("" if sound else ": no basis for a forecast")
            axes.plot(*line, color=colour, label=label, **({"linewidth": 1.6} if sound else PALE))
    axes.set_xscale("log")
    label_losses(axes)
    axes.set_xlabel("training FLOPs C")
    figure.legend(loc="outside lower center", ncols=1 if narrow else 3)
    return figure


@styled
def training_curves(runs: Runs, curves: list[Curve], narrow: bool = False) -> Figure:
    """Draw training loss against tokens seen, a line a run, coloured by size."""
    figure, (axes,) = make_panels(1, narrow, 3.6)
    norm = add_size_bar(figure, [axes], runs)
    for curve in sorted(curves, key=lambda curve: curve.params):
        tokens, _, loss = _thin(curve, len(curves))
        axes.plot(tokens, loss, label=f"_{curve.run}", color=BY_SIZE(norm(curve.params)), linewidth=0.9)
    axes.set_xscale("log")
    label_losses(axes)
    last = max(curve.tokens.max() for curve in curves)
    axes.set_xlim(runs.tokens.min() / 20, last * 1.2)
    axes.set_ylim(runs.loss.min() * 0.95, runs.loss.max() * 1.5)
    label_counts(axes.xaxis, runs.tokens.min() / 20, last)
    axes.set_xlabel("tokens seen D")
    return figure


@styled
def isoflop_parabolas(runs: Runs, law: Analysis, narrow: bool = False) -> Figure:
    """Draw loss against size at each budget, its parabola or Akima spline, and the minimum with its standard error."""
    figure, (axes,) = make_panels(1, narrow, 3.9)
    assert law.isoflop
    budgets = law.isoflop.budgets
    place = {name: i for i, name in enumerate(runs.run)}
    norm = LogNorm(budgets[0].C, budgets[-1].C * (1 + 1e-9))
    for budget in budgets:
        colour = BY_BUDGET(norm(budget.C))
        inside = [place[name] for name in budget.window]
        beyond = [place[name] for name in budget.runs if name not in budget.window]
        noise = np.nan_to_num(runs.loss_se[inside])
        text = f"{budget.C:.2g}".replace("e+", "e")
        name = f"_budget {text}"
        dots: Json = {"markersize": 4, "color": colour}
        axes.errorbar(
            runs.params[inside], runs.loss[inside], noise, fmt="o", elinewidth=0.8, label=f"{name}, fitted", **dots
        )
        axes.plot(
            runs.params[beyond], runs.loss[beyond], "o", markerfacecolor="none", label=f"{name}, not fitted", **dots
        )
        right = max((*inside, *beyond), key=lambda i: runs.params[i])
        text += "" if budget.N else " refused"
        end = (runs.params[right], runs.loss[right])
        axes.annotate(text, end, (5, 0), textcoords="offset points", color=colour, fontsize=7.5, va="center")
        if inside:
            n = np.geomspace(runs.params[inside].min(), runs.params[inside].max(), 80)
            line: Json = {"color": colour, "label": f"{name}, curve"}
            axes.plot(n, _slice(runs, budget, inside, n), **line, **({"linewidth": 1} if budget.N else PALE))
        if budget.N and budget.loss:
            ends = _spread(budget.N, budget.N_log_se)
            axes.errorbar(budget.N, budget.loss, xerr=ends, color=colour, label=f"{name}, minimum", **MINIMUM)
    axes.set_xscale("log")
    label_losses(axes)
    label_counts(axes.xaxis, runs.params.min(), runs.params.max())
    axes.set_xlim(runs.params.min() / 1.3, runs.params.max() * (2.2 if narrow else 1.7))
    axes.set_xlabel("parameters N")
    return figure


def _slice(runs: Runs, budget: FoundBudget, inside: list[int], params: Floats) -> Floats:
    """Give what was fitted through a budget: its parabola, or the Akima spline of log loss through its window."""
    if budget.curve:
        return np.polynomial.polynomial.polyval(np.log(params / budget.centre), np.array(budget.curve))
    inside = sorted(inside, key=lambda i: runs.params[i])
    spline = Akima1DInterpolator(np.log(runs.params[inside]), np.log(runs.loss[inside]))
    return np.exp(spline(np.log(params).clip(*spline.x[[0, -1]])))


@styled
def optimum_against_compute(runs: Runs, law: Analysis, prediction: Json | None, narrow: bool = False) -> Figure:
    """Draw N* and D* against compute by each approach, with 95 % bands, beside the published laws."""
    figure, panels = make_panels(2, narrow, 4.0)
    for axes, name in zip(panels, "ND", strict=True):
        for approach in (one.name for one in BY_WIDTH):
            fit = law.approaches[approach]
            line = look(approach, fit)
            band = fit.band or Band([], [], [], None, None)
            axes.plot(band.C, getattr(band, name), **line)
            if ends := getattr(band, f"{name}_interval"):
                low, high = np.transpose(ends)
                alpha = 0.16 if fit.ok else 0.07
                label = f"_{approach}, 95 % interval"
                axes.fill_between(band.C, low, high, color=line["color"], alpha=alpha, linewidth=0, label=label)
        for budget in law.isoflop.budgets if law.isoflop else ():
            if best := getattr(budget, name):
                spread = _spread(best, getattr(budget, f"{name}_log_se"))
                axes.errorbar(budget.C, best, yerr=spread, color=ISOFLOP, label="_isoFLOP minimum", **MINIMUM)
        c = np.geomspace(runs.flops.min(), 10 * runs.flops.max(), 2)
        for form, label, dashes in COMPARED:
            line_of = form.params_law(c) if name == "N" else form.tokens_law(c)
            axes.plot(c, line_of, color=MUTED, linewidth=1, linestyle=dashes, label=label, zorder=1)
        if prediction:
            held_out = prediction["params" if name == "N" else "tokens"]
            axes.plot(prediction["flops"], held_out, "*", label="held-out run", zorder=6, **STAR)
        axes.set_xscale("log")
        axes.set_yscale("log")
        label_counts(axes.yaxis, *axes.get_ylim())
        axes.set_xlabel("training FLOPs C")
        axes.set_ylabel(f"compute-optimal {'parameters N*' if name == 'N' else 'tokens D*'}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 if narrow else 3)
    return figure


@styled
def loss_contours(runs: Runs, law: Analysis, narrow: bool = False) -> Figure:
    """Draw the parametric loss in the plane of compute and size, the efficient frontier and the runs."""
    fitted, fit = law.law(), law.parametric
    assert fitted and fit
    figure, (axes,) = make_panels(1, narrow, 3.9)
    norm = add_size_bar(figure, [axes], runs)
    c = np.geomspace(runs.flops.min() / 2, runs.flops.max() * 6, 120)
    n = np.geomspace(runs.params.min() / 1.8, runs.params.max() * 1.8, 120)
    loss = fitted.loss(n[:, None], c / (6 * n[:, None]))
    levels = np.linspace(float(fitted.optimum(flops=float(c[-1])).loss), runs.loss.max() * 1.1, 15)
    lines = axes.contour(c, n, loss, levels, colors=MUTED, linewidths=0.7, alpha=0.8)
    axes.clabel(lines, list(levels[::2]), fmt="%.2f", fontsize=6.5, colors=MUTED)
    axes.plot(
        c,
        [fitted.optimum(flops=float(each)).params for each in c],
        **{**look("parametric", fit), "label": "efficient frontier"},
    )
    warn(axes, fit)
    draw_dots(axes, runs.flops, runs.params, runs, norm)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(n[0], n[-1])
    axes.grid(False)
    label_counts(axes.yaxis, n[0], n[-1])
    axes.set_xlabel("training FLOPs C = 6ND")
    axes.set_ylabel("parameters N")
    axes.legend(loc="upper left", frameon=True, facecolor=PAPER, edgecolor="none", framealpha=0.9)
    return figure


@styled
def residuals(runs: Runs, law: Analysis, narrow: bool = False) -> Figure:
    """Draw measured over predicted loss of the parametric fit, in per cent, against N, D and C."""
    figure, panels = make_panels(3, narrow, 2.7, share_y=True)
    norm = add_size_bar(figure, panels, runs)
    assert law.parametric
    off = -100 * np.array(law.parametric.errors)
    for axes, values, label in zip(
        panels, (runs.params, runs.tokens, runs.flops), ("parameters N", "tokens D", "training FLOPs C"), strict=True
    ):
        axes.axhspan(-2 * off.std(), 2 * off.std(), color=FAINT, alpha=0.5, linewidth=0, zorder=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        draw_dots(axes, values, off, runs, norm)
        axes.set_xscale("log")
        if values is not runs.flops:
            label_counts(axes.xaxis, 1, (values.max() / values.min()) ** (1.0 if narrow else 1.5))  # sparse
        axes.set_xlabel(label)
    for axes in panels if narrow else panels[:1]:
        axes.set_ylabel("measured above predicted (%)")
    warn(panels[0], law.parametric)
    return figure


@styled
def prediction_against_outcome(
    runs: Runs, law: Analysis, prediction: Json, score: Json | None, narrow: bool = False
) -> Figure:
    """Draw the held-out run beside the runs behind the law: measured over predicted loss against compute."""
    figure, (axes,) = make_panels(1, narrow, 3.2)
    norm = add_size_bar(figure, [axes], runs)
    assert law.parametric
    off = -100 * np.array(law.parametric.errors)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    draw_dots(axes, runs.flops, off, runs, norm)
    ends = prediction["loss_interval"] or [prediction["loss"]] * 2
    low, high = (100 * (end / prediction["loss"] - 1) for end in ends)
    label = "predicted, 95 % interval" if prediction["loss_interval"] else "predicted, no interval"
    bar: Json = {"fmt": "_", "color": HELD_OUT, "capsize": 4, "elinewidth": 1.5}
    axes.errorbar(prediction["flops"], 0, [[-low], [high]], label=label, **bar)
    if score:
        measured = 100 * (score["measured"] / prediction["loss"] - 1)
        axes.plot(prediction["flops"], measured, "*", label="measured", zorder=6, **STAR)
    axes.set_xscale("log")
    axes.set_xlim(runs.flops.min() / 2, prediction["flops"] * 2.5)
    axes.set_xlabel("training FLOPs C")
    axes.set_ylabel("measured above predicted (%)")
    axes.legend(loc="upper left")
    warn(axes, law.parametric)
    return figure


@styled
def loss_against_rate(hyper: Json, narrow: bool = False) -> Figure:
    """Draw loss against learning rate, a line for each (N, D), and the best rate or where the tried ones end."""
    figure, (axes,) = make_panels(1, narrow, 3.9)
    cells = hyper["lr"]["cells"]
    sizes = [cell["params"] for cell in cells]
    norm = LogNorm(min(sizes), max(sizes) * (1 + 1e-9))
    for cell in cells:
        colour = BY_SIZE(norm(cell["params"]))
        points = [point for point in cell["points"] if point["loss"] is not None]  # else it diverged
        x, loss, noise = (np.array([point[key] or 0.0 for point in points]) for key in ("x", "loss", "loss_se"))
        inside = np.array([point["inside"] for point in points])
        text = short(cell["params"]) + (f", D {short(cell['tokens'])}" if sizes.count(cell["params"]) > 1 else "")
        dots: Any = {"fmt": "o", "markersize": 4, "elinewidth": 0.8, "color": colour, "label": f"_{text}"}
        axes.errorbar(x[inside], loss[inside], noise[inside], **dots)
        hollow: Any = {"markersize": 4, "color": colour, "markerfacecolor": "none", "label": f"_{text}, not fitted"}
        axes.plot(x[~inside], loss[~inside], "o", **hollow)
        if cell["curve"]:
            rate = np.geomspace(x[inside].min(), x[inside].max(), 60)
            height = np.polynomial.polynomial.polyval(np.log(rate / cell["centre"]), cell["curve"])
            axes.plot(rate, height, color=colour, linewidth=1, label=f"_{text}, curve")
        else:
            axes.plot(x, loss, color=colour, linewidth=0.8, linestyle=(0, (4, 2)))
        if cell["optimum"]:
            spread = _spread(cell["optimum"], cell["log_se"])
            axes.errorbar(cell["optimum"], cell["loss"], xerr=spread, color=colour, label=f"_{text}, best", **MINIMUM)
        else:
            axes.plot(x[np.argmin(loss)], loss.min(), "D", markersize=6, color=colour, markerfacecolor="none")
        offset: Any = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (x[-1], loss[-1]), color=colour, fontsize=7.5, **offset)
    axes.set_xscale("log")
    label_losses(axes)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** (0.25 if narrow else 0.12))  # room for the names
    label_counts(axes.xaxis, low, high)
    least = [min(point["loss"] for point in cell["points"] if point["loss"] is not None) for cell in cells]
    axes.set_ylim(min(least) * 0.985, min(axes.get_ylim()[1], 1.2 * max(least)))  # a run that blew up is cut off
    axes.set_xlabel("peak learning rate")
    return figure
