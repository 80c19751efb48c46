"""Draw a comparison of ladders: the frontiers of all above, the compute multiplier with its band below."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from gptjax.laws.drawing.style import BY_SIZE, MINIMUM, MUTED, NARROW, WIDE, label_losses, styled
from gptjax.laws.ladders.comparison import UNITS, Comparison, LadderPair, flops_words, times_words
from gptjax.laws.table import Runs

EVIDENCE = {"isoflop": ("D", "isoFLOP minima", 0.97), "points": ("s", "cells that both have", 1.03)}  # marker, shift


@styled
def multipliers(found: Comparison, runs: Mapping[str, Runs], narrow: bool = False) -> Figure:
    """Draw the runs and the frontier of each compared ladder, and below it each pair's multiplier with its 95 % band.

    `runs` are the ladders' by name, for the points; one that is not there has none.
    """
    figure = Figure(figsize=(NARROW, 5.5) if narrow else (WIDE, 5.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    names = list(found.ladders)
    colours = {name: BY_SIZE(i / max(1, len(names) - 1) * 0.8) for i, name in enumerate(names)}
    bits = found.settings.metric == "bits_per_byte"
    for name, ladder in found.ladders.items():
        if name in runs:
            losses = runs[name].fact("bits_per_byte") if bits else runs[name].loss
            dots: Any = {"color": colours[name], "markersize": 3.2, "alpha": 0.45, "label": f"_{name}, runs"}
            above.plot(runs[name].flops, losses, "o", **dots)
        above.plot(ladder.C, ladder.loss, color=colours[name], linewidth=1.6, label=f"{name}, compute-optimal")
    label_losses(above)
    above.set_ylabel(f"loss ({UNITS[found.settings.metric].replace('a ', 'per ')})")
    above.legend(loc="upper right")
    for pair in found.pairs:
        _draw_pair(below, pair, colours[pair.b])
    _label_multipliers(below, found)
    below.axhline(1, color=MUTED, linewidth=0.8, zorder=1)
    below.set_xscale("log")
    first = found.pairs[0].a if found.pairs else ""
    below.set_xlabel(f"training FLOPs C (below: of {first})")
    below.set_ylabel(f"compute for the loss of\n{first}, over its compute")
    handles, labels = below.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=1 if narrow else 3)
    return figure


def _draw_pair(axes: Axes, pair: LadderPair, colour: Any) -> None:
    """Draw a pair's multiplier along C, its band, and the other ways to it at one C."""
    along = pair.along
    c = np.array(along.C)
    line = np.array([np.nan if one is None else one for one in along.multiplier])
    ends = [(np.nan, np.nan) if one is None else one for one in along.interval]
    low, high = (np.array([np.nan if end is None else end for end in side], dtype=float)
                 for side in zip(*ends, strict=True))  # fmt: skip
    if not np.isnan(line).all():
        high = np.where(np.isnan(high), 10 * np.nanmax(line), high)  # unbounded: beyond the panel
    low = np.where(np.isnan(low), 0, low)
    said = f"{times_words(pair.multiplier, pair.multiplier_interval)} at {flops_words(pair.at)}"
    axes.fill_between(c, low, high, color=colour, alpha=0.18, linewidth=0, label=f"_{pair.b}, 95 %")
    axes.plot(c, line, color=colour, linewidth=1.6, label=f"{pair.b}: {said}")
    for name, (marker, label, shift) in EVIDENCE.items():
        way = pair.ways.get(name)
        if way is None or way.multiplier is None:
            continue
        known = way.interval if way.interval and None not in way.interval else (way.multiplier, way.multiplier)
        spread = np.array([[way.multiplier - known[0]], [known[1] - way.multiplier]])  # type: ignore[operator]
        style = {**MINIMUM, "fmt": marker, "markersize": 4.5}
        axes.errorbar(pair.at * shift, way.multiplier, spread, color=colour, label=label, **style)


def _label_multipliers(axes: Axes, found: Comparison) -> None:
    """Scale the axis of multipliers to lines and bands, in logs, without letting an open band set it."""
    values = [1.0]
    for pair in found.pairs:
        values += [one for one in pair.along.multiplier if one]
        intervals = [*pair.along.interval, *(way.interval for way in pair.ways.values())]
        values += [end for one in intervals if one for end in one if end]
    middle = [one for pair in found.pairs for one in pair.along.multiplier if one] or [1.0]
    low, high = max(min(values), min(*middle, 1.0) / 4), min(max(values), max(*middle, 1.0) * 4)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.08, high * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
