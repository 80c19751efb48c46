"""The figure of a forecast: the loss of the compute-optimal run along C, beyond the rows, with its band."""

import numpy as np
from matplotlib.figure import Figure

from gptjax.laws.codec import Json
from gptjax.laws.drawing.style import (
    INK,
    MUTED,
    PARAMETRIC,
    STAR,
    add_size_bar,
    draw_dots,
    label_losses,
    make_panels,
    styled,
)
from gptjax.laws.forecast import Forecast
from gptjax.laws.table import Runs

BEYOND = 30  # times the largest budget, as far as the band is drawn
POINTS = 60
SHOWN = 0.02  # weight from which one floor's line is drawn


@styled
def losses_forecast(
    runs: Runs, found: Forecast, said: Json | None = None, score: Json | None = None, narrow: bool = False
) -> Figure:
    """Draw the rows, the forecast of the compute-optimal loss with its 95 % band, and each floor of some weight.

    `said` and `score` are a registered prediction and what its run reached.
    """
    figure, (axes,) = make_panels(1, narrow, 4.0)
    norm = add_size_bar(figure, [axes], runs)
    flops = 6 * runs.params * runs.tokens
    draw_dots(axes, flops, runs.loss, runs, norm)
    c = np.geomspace(flops.min(), BEYOND * flops.max(), POINTS)
    forecasts = [found.at(float(each)) for each in c]
    for i, floor in enumerate(found.floors):
        if floor.weight >= SHOWN:
            alpha = 0.15 + 0.85 * min(1.0, 4 * floor.weight)
            axes.plot(c, [each.losses[i] for each in forecasts], color=MUTED, linewidth=0.7, alpha=alpha, zorder=1)
    bands = np.array([each.interval() for each in forecasts])
    axes.fill_between(c, *bands.T, color=PARAMETRIC, alpha=0.18, linewidth=0, label="95 % of runs at the optimum")
    axes.plot(c, [each.loss for each in forecasts], color=INK, linewidth=1.3, label="forecast at the optimum")
    axes.axvline(np.exp(found.top), color=MUTED, linewidth=0.8, linestyle=":", label="largest budget")
    if score and said:
        axes.plot(6 * said["params"] * said["tokens"], score["measured"], "*", label="held-out run", zorder=6, **STAR)
    axes.set_xscale("log")
    label_losses(axes)
    axes.set_xlabel("training FLOPs C = 6ND")
    axes.set_ylim(0.97 * bands[-1, 0], 1.05 * np.quantile(runs.loss, 0.98))
    figure.legend(loc="outside lower center", ncols=1 if narrow else 4)
    return figure
