"""Draw how sure one can be of a scaling law: each function takes fit_all's object and returns a Figure."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.stats import gaussian_kde

from gptjax.laws.approaches import BY_NAME
from gptjax.laws.drawing.plot import COMPARED
from gptjax.laws.drawing.style import (
    BY_SIZE,
    BY_WIDTH,
    DOTS,
    HELD_OUT,
    INK,
    MUTED,
    NARROW,
    PALE,
    PAPER,
    PARAMETRIC,
    WIDE,
    Json,
    add_size_bar,
    label_counts,
    look,
    make_panels,
    styled,
    warn,
)
from gptjax.laws.law import Floats
from gptjax.laws.record import Analysis, Choice, Ends, ParametricFound
from gptjax.laws.table import Runs, short

WIDEST = 4.0  # times the middle 68 % of the draws, on either side, is as far as a cloud is shown
CLOUD = 400  # draws shown of a cloud; its contours count all
SYMBOLS = {"E": "E (nats per token)", "alpha": "α", "beta": "β", "a": "a, in N* ∝ Cᵃ"}  # noqa: RUF001
FAR = 100.0  # a ratio of N* farther off than this factor is drawn at the edge


def _numbers(values: Any) -> Floats:
    return np.array(values, dtype=np.float64)  # None becomes nan


def _estimate(fit: ParametricFound, name: str) -> tuple[float, Ends | None]:
    """Give a coefficient, or the exponent a, with its interval."""
    if name == "a":
        return fit.a or 0.0, fit.a_interval
    return fit.coefficients[name].value or 0.0, fit.coefficients[name].interval


@styled
def bootstrap_clouds(law: Analysis, narrow: bool = False) -> Figure:
    """Draw bootstrap draws of (alpha, beta) and (a, E), the regions of 68 and 95 % of them, and published fits."""
    fit = law.parametric
    assert fit
    figure, panels = make_panels(2, narrow, 3.7)
    form, theta = law.settings.law_form, _numbers(fit.theta_draws)
    known = {**form.coefficients(theta), "a": form.optima(theta, law.ranges["C"], fit.held)[:, 0, 1]}
    pairs = (
        (("alpha", "beta") if {"alpha", "beta"} <= set(known) else form.names[:2]),
        ("a", "E" if "E" in known else form.names[-1]),
    )
    clouds = {pair: (known[pair[0]], known[pair[1]]) for pair in pairs}
    for axes, (names, drawn) in zip(panels, clouds.items(), strict=True):
        some = slice(None, None, -(-len(theta) // CLOUD))
        dots: Any = {"markersize": 2.5, "color": PARAMETRIC, "alpha": 0.5, "zorder": 1, "label": "_draws"}
        axes.plot(drawn[0][some], drawn[1][some], ".", **dots)
        axes.plot([], [], ".", color=PARAMETRIC, label="bootstrap draws")
        limits = []
        estimate = [_estimate(fit, name)[0] for name in names]
        for values, at in zip(drawn, estimate, strict=True):
            low, middle, high = np.quantile(values, (0.16, 0.5, 0.84))
            low, high = (middle + WIDEST * (end - middle) for end in (low, high))  # a few far draws hide no others
            low, high = min(max(low, values.min()), at), max(min(high, values.max()), at)
            room = 0.06 * (high - low) or 1e-3 * abs(at)
            limits.append((low - room, high + room))
        _regions(axes, drawn, limits)
        axes.plot(*estimate, "D", color=PARAMETRIC, markeredgecolor=INK, markersize=6, label="estimate")
        for (other, label, _), marker in zip(COMPARED, "so", strict=True):
            point = [getattr(other, name, np.nan) for name in names]
            if all(low < value < high for value, (low, high) in zip(point, limits, strict=True)):
                ring: Any = {"markerfacecolor": "none", "markeredgecolor": HELD_OUT, "markeredgewidth": 1.6}
                axes.plot(*point, marker, markersize=11, label=label, **ring)
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(SYMBOLS.get(names[0], names[0]))
        axes.set_ylabel(SYMBOLS.get(names[1], names[1]))
    warn(panels[0], fit)
    entries = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=2 if narrow else 3, labelspacing=0.9
    )
    return figure


def _regions(axes: Axes, drawn: tuple[Floats, Floats], limits: list[tuple[float, float]]) -> None:
    """Draw the regions of highest density that hold 68 and 95 % of all draws; none where draws lie on a line."""
    points = np.stack(drawn)
    centre, scale = (values[:, None] for values in (np.median(points, axis=1), np.diff(limits)[:, 0] / 6))
    inside = points[:, (np.abs(points - centre) < 6 * scale).all(axis=0)]  # else a few far draws set the bandwidth
    try:
        density = gaussian_kde((inside - centre) / scale)
    except (np.linalg.LinAlgError, ValueError):
        return
    x, y = (np.linspace(*ends, 70) for ends in limits)
    height = density((np.stack([grid.ravel() for grid in np.meshgrid(x, y)]) - centre) / scale).reshape(70, 70)
    low, high = np.quantile(density((points - centre) / scale), (0.05, 0.32))
    if 0 < low < high < height.max():
        axes.contour(x, y, height, [low, high], colors=[PARAMETRIC], linewidths=[0.9, 1.7])
        for share, width in ((68, 1.7), (95, 0.9)):
            axes.plot([], [], color=PARAMETRIC, linewidth=width, label=f"{share} % of them")


@styled
def profiles(law: Analysis, narrow: bool = False) -> Figure:
    """Draw how much worse the best fit is at each value of a coefficient and of a, beside the bootstrap's interval."""
    fit = law.parametric
    assert fit and fit.profile
    lines = -(-len(fit.profile) // 2)
    figure = Figure(figsize=(NARROW, 2.1 * lines) if narrow else (WIDE, 2.2 * lines))
    panels = list(figure.subplots(lines, 2, sharey=True, squeeze=False).flat)
    for axes in panels[len(fit.profile) :]:
        axes.remove()
    panels = panels[: len(fit.profile)]
    for axes, (name, found) in zip(panels, fit.profile.items(), strict=True):
        estimate, bootstrapped = _estimate(fit, name)
        values, rise = _numbers(found.values), _numbers(found.rise)
        line = look("parametric", fit)
        axes.plot(values, rise, **{**line, "label": "rise of the objective at its best"})
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), label="95 %")
        axes.axvline(estimate, color=MUTED, linewidth=0.8, linestyle=":", label="estimate")
        low, high = (
            end if end is not None else edge
            for end, edge in zip(found.interval, (values.min(), values.max()), strict=True)
        )
        axes.plot([low, high], [1, 1], color=PARAMETRIC, linewidth=3, solid_capstyle="butt", label="profile interval")
        if bootstrapped:
            caps: Any = {"marker": "|", "markersize": 7, "color": HELD_OUT, "linewidth": 1.6}
            axes.plot(bootstrapped, [-0.45] * 2, label="bootstrap interval", **caps)
        for end, edge, marker in zip(found.interval, (values.min(), values.max()), "<>", strict=True):
            if end is None:  # the interval is open
                axes.plot(edge, 1, marker, color=PARAMETRIC, markersize=6)
        axes.set_ylim(-0.9, 4)
        axes.set_yticks([0, 1, 2, 3, 4])
        near = values[rise <= 4.5] if (rise <= 4.5).sum() > 4 else values
        shown = [*near, *(bootstrapped or ())]
        margin = 0.02 * (max(shown) - min(shown))
        axes.set_xlim(min(shown) - margin, max(shown) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 5))
        axes.set_xlabel(SYMBOLS.get(name, name))
    for axes in panels[::2]:
        axes.set_ylabel("rise over its 95 % bar")
    warn(panels[0], fit)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 if narrow else 3)
    return figure


@styled
def choices_forest(law: Analysis, narrow: bool = False) -> Figure:
    """Draw the exponent a and its 95 % interval under each choice, by approach; a choice that gave none says so."""
    entries = law.choices or []
    groups = {one.name: [e for e in entries if e.approach == one.name] for one in BY_WIDTH}
    groups = {name: group for name, group in groups.items() if group}
    lines = len(entries) + len(groups) + 0.7 * (len(groups) - 1)
    figure = Figure(figsize=(NARROW if narrow else WIDE, 0.75 + 0.185 * lines))
    axes = figure.subplots()
    low, high = _span(entries)
    names: dict[float, str] = {}
    y = 0.0
    for approach, group in groups.items():
        colour, label = BY_NAME[approach].colour, BY_NAME[approach].label
        chosen = next(e for e in group if e.choice == "as chosen")
        heading: Any = {"color": colour, "weight": "bold", "fontsize": 8, "va": "center"}
        axes.annotate(label, (0, y), (4, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points", **heading)
        if chosen.a_interval and chosen.status == "ok":
            ends = np.clip(chosen.a_interval, low, high)
            shade: Any = {"color": colour, "alpha": 0.13, "linewidth": 0, "label": f"_{approach}: as chosen, band"}
            axes.fill_betweenx([y - 0.5 - len(group), y - 0.5], *ends, **shade)
        for entry in group:
            y -= 1
            names[y] = entry.choice
            _forest_line(axes, entry, y, colour, (low, high), narrow)
        y -= 1.7
    axes.set_ylim(y + 1.0, 0.8)
    axes.set_xlim(low, high)
    axes.set_yticks(list(names), [_abridge(name, 30 if narrow else 40) for name in names.values()])
    axes.tick_params(axis="y", length=0, labelsize=6.3 if narrow else 7.5)
    for tick, name in zip(axes.get_yticklabels(), names.values(), strict=True):
        tick.set_fontweight("bold" if name == "as chosen" else "normal")
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
    axes.set_xlabel(SYMBOLS["a"])
    return figure


def _forest_line(axes: Axes, entry: Choice, y: float, colour: str, limits: tuple[float, float], narrow: bool) -> None:
    """Draw one choice: point, interval and number; a pale hollow one where degenerate, a word where refused."""
    small: Any = {"fontsize": 6.3 if narrow else 7, "va": "center", "annotation_clip": False}
    beside: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", **small}
    a, sound = entry.a, entry.status == "ok"
    name = f"_{entry.approach}: {entry.choice}"
    word = "" if sound else entry.status
    if a is None:
        axes.annotate(word, (1, y), (5, 0), color=MUTED, style="italic", **beside)
        return
    bold = entry.choice == "as chosen"
    line: Json = {"color": colour, "linewidth": 2.2 if bold else 1.2} if sound else {"color": colour, **PALE}
    if entry.a_interval:
        ends = _numbers(entry.a_interval)
        axes.plot(ends, [y, y], solid_capstyle="butt", label=f"{name}, 95 % interval", **line)
        for end, edge, marker in zip(ends, limits, "<>", strict=True):
            if not limits[0] <= end <= limits[1]:
                axes.plot(edge, y, marker, color=colour, markersize=4, clip_on=False, alpha=line.get("alpha"))
    if limits[0] <= a <= limits[1]:
        fill = colour if sound else PAPER
        size = 6.5 if bold else 4.5
        axes.plot(a, y, "D" if bold else "o", markersize=size, color=colour, markerfacecolor=fill, label=name,
                  markeredgecolor=INK if bold and sound else colour, markeredgewidth=0.8, zorder=4)  # fmt: skip
    interval = "" if narrow or not entry.a_interval else " ({:.3f} to {:.3f})".format(*entry.a_interval)
    weight = "bold" if bold and sound else "normal"
    text = f"{a:.3f}{interval}" + (f" {word}" if word else "")
    axes.annotate(text, (1, y), (5, 0), color=INK if sound else MUTED, weight=weight, **beside)


def _abridge(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _span(entries: list[Choice]) -> tuple[float, float]:
    """Choose the range of a: all sound estimates, and about as much around them as a typical interval takes."""
    sound = [e for e in entries if e.a is not None and e.status == "ok"]
    shown = sound or [e for e in entries if e.a is not None]
    if not shown:
        return 0.0, 1.0
    a = [e.a for e in shown if e.a is not None]
    ends = _numbers([e.a_interval or [e.a] * 2 for e in shown])
    reach = 3 * np.median(ends[:, 1] - ends[:, 0])
    low, high = max(ends[:, 0].min(), min(a) - reach), min(ends[:, 1].max(), max(a) + reach)
    room = 0.04 * (high - low) or 0.01
    return float(low - room), float(high + room)


@styled
def extrapolation_by_cut(law: Analysis, narrow: bool = False) -> Figure:
    """Draw what the law of the runs up to a compute says of those beyond: errors of log loss, and N* at the largest."""
    table, fit = law.extrapolation or [], law.parametric
    figure, (errors, ratio) = make_panels(2, narrow, 3.4)
    cut = _numbers([e.max_flops for e in table])
    sound = np.array([e.status == "ok" for e in table])
    kinds = (("rmse", "rms error", "-", PARAMETRIC), ("bias", "bias (above 0: too high)", "--", INK))
    for name, label, dashes, colour in kinds:
        _series(errors, cut, 100 * _numbers([getattr(e, name) for e in table]), sound, colour, label, dashes)
    errors.axhline(0, color=MUTED, linewidth=0.8)
    noise = 100 * ((fit and fit.noise) or 0)
    errors.axhline(noise, color=MUTED, linewidth=1, linestyle=":", label="scatter about the law of all rows")
    shown = 100 * np.abs(_numbers([[e.rmse, e.bias] for e in table if e.status == "ok"] or [[1, 1]]))
    top = 1.15 * max(np.nanmax(shown, initial=0.1), noise)  # a degenerate law may be beyond all bounds
    low, high = errors.get_ylim()
    errors.set_ylim(max(low, -top), min(high, top))
    errors.set_ylabel("error of log loss (%)")

    ratio.axhline(1, color=MUTED, linewidth=0.8)
    known = {name: _numbers([getattr(e, f"{name}_N_ratio") for e in table]) for name in ("isoflop", "parametric")}
    far = np.nanmax(np.abs(np.log(np.stack([*known.values()]))), initial=np.log(2.2))
    far = min(far, np.log(FAR))
    ratio.set_yscale("log")
    ratio.set_ylim(*np.exp(np.array([-1.2, 1.2]) * far))
    for height, (approach, found) in zip((-1.1, -1), known.items(), strict=True):
        colour, label = BY_NAME[approach].colour, BY_NAME[approach].label
        _series(ratio, cut, found, sound | (approach == "isoflop"), colour, f"N* by {label}", "-")
        refused = np.isnan(found)
        if refused.any():
            at = np.full(refused.sum(), np.exp(height * far))
            ratio.plot(cut[refused], at, "x", color=colour, markersize=5, label=f"{label}: refused")
        for beyond, edge, marker in ((found > FAR, 1.1, "^"), (found < 1 / FAR, -1.1, "v")):
            if beyond.any():
                ratio.plot(cut[beyond], np.full(beyond.sum(), np.exp(edge * far)), marker, color=colour)
    ratio.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if far < np.log(12) else (1,), numticks=12))
    ratio.yaxis.set_minor_locator(NullLocator())
    ratio.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ratio.set_ylabel("N* over that of all rows")
    for axes in (errors, ratio):
        room = max(1.1 * (cut.max() / cut.min()) ** 0.06, (12 * cut.min() / cut.max()) ** 0.5)  # a decade or more
        axes.set_xlim(cut.min() / room, cut.max() * room)
        axes.set_xscale("log")
        axes.set_xticks(cut, [f"{c:.2g}".replace("e+", "e") for c in cut])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("largest C fitted (FLOPs)")
    entries: Json = {}
    for axes in (errors, ratio):
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    place: Json = {"loc": "outside lower center", "ncols": 1 if narrow else 3, "handlelength": 2.8}
    figure.legend(entries.values(), entries.keys(), **place)
    return figure


def _series(axes: Axes, x: Floats, y: Floats, sound: Any, colour: str, label: str, dashes: str) -> None:
    """Draw a line of points, hollow and apart from the line where the fit was degenerate."""
    dots: Any = {"marker": "o", "markersize": 4, "color": colour}
    if np.isfinite(y[sound]).any():
        axes.plot(x, np.where(sound, y, np.nan), linestyle=dashes, linewidth=1.3, label=label, **dots)
    off = ~sound & np.isfinite(y)
    if off.any():
        hollow: Any = {**dots, "markerfacecolor": "none", "alpha": 0.6}
        axes.plot(x[off], y[off], linestyle="none", label="degenerate fit", **hollow)


@styled
def influence_of_each(runs: Runs, law: Analysis, narrow: bool = False) -> Figure:
    """Draw what a becomes without each size, and without each row, beside the estimate and its interval."""
    fit = law.parametric
    assert fit and fit.influence and fit.a is not None
    kinds = [kind for kind in ("size", "row") if kind in fit.influence]
    figure, panels = make_panels(len(kinds), narrow, 3.2, share_y=True)
    norm = add_size_bar(figure, panels, runs)
    interval = fit.a_interval
    off = {kind: _numbers(fit.influence[kind].a) - fit.a for kind in kinds}
    reach = 1.4 * max(np.abs(values).max() for values in off.values())
    if interval:
        reach = min(reach, 3 * (interval[1] - interval[0]))  # a deletion may lose the law
    reach = reach or 0.01
    for axes, kind in zip(panels, kinds, strict=True):
        left_out = fit.influence[kind].left_out
        sizes = _numbers(left_out) if kind == "size" else runs.params
        x = sizes if kind == "size" else runs.flops
        if interval:
            label = f"95 % interval, {interval[0]:.3f} to {interval[1]:.3f}"
            axes.axhspan(*interval, color=PARAMETRIC, alpha=0.12, linewidth=0, zorder=0, label=label)
        axes.axhline(fit.a, color=PARAMETRIC, linewidth=1.2, label="estimate")
        many = len(x) > DOTS
        edges: Any = {"edgecolors": "none" if many else PAPER, "linewidths": 0.5, "rasterized": many}
        dots: Any = {"c": sizes, "cmap": BY_SIZE, "norm": norm, "s": 4 if many else 20, "label": f"_without one {kind}"}
        axes.scatter(x, fit.a + off[kind], zorder=3, **dots, **edges)
        axes.set_xscale("log")
        axes.set_ylim(fit.a - reach, fit.a + reach)
        if kind == "size":
            label_counts(axes.xaxis, x.min(), x.max())
        axes.set_xlabel("parameters N of a size left out" if kind == "size" else "training FLOPs C of a row left out")
        names = [short(size) for size in left_out] if kind == "size" else [_abridge(name, 18) for name in left_out]
        _name_farthest(axes, x, off[kind], fit.a, reach, names)
    for axes in panels if narrow else panels[:1]:
        axes.set_ylabel("a without it")
    warn(panels[0], fit)
    handles = [*panels[0].get_legend_handles_labels()[0]]
    handles.append(
        Line2D([], [], marker="o", linestyle="none", color=MUTED, markersize=4, label="a without one size or row")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=1 if narrow else 3)
    return figure


def _name_farthest(axes: Axes, x: Floats, off: Floats, a: float, reach: float, names: list[str]) -> None:
    """Name up to three points farthest from a whose names would not lie over each other."""
    along = np.log(x / x.min()) / np.log(x.max() / x.min()) if x.max() > x.min() else np.full(len(x), 0.5)
    named: list[int] = []
    for i in np.argsort(-np.abs(off))[:12]:
        apart = all(abs(off[i] - off[j]) > 0.16 * reach for j in named)
        if len(named) < 3 and apart and abs(off[i]) < reach:
            named.append(int(i))
            side: Any = {"xytext": (-6, 0), "ha": "right"} if along[i] > 0.5 else {"xytext": (6, 0), "ha": "left"}
            axes.annotate(names[i], (x[i], a + off[i]), textcoords="offset points", va="center", fontsize=7, **side)
