"""The look of the figures: a small palette with a dark twin for each colour, panels, and axes that read as counts."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from gptjax.laws.approaches import APPROACHES, BY_NAME
from gptjax.laws.codec import Json
from gptjax.laws.law import Floats
from gptjax.laws.record import Found
from gptjax.laws.table import Runs, short

WIDE, NARROW = 7.2, 3.7  # inches: the page's column, and a phone's

INK, MUTED, FAINT, PAPER, HELD_OUT = "#1f2328", "#6a7077", "#dfe2e6", "#ffffff", "#b5123f"
TWINS = dict(
    zip((INK, MUTED, FAINT, PAPER, HELD_OUT), ("#e7e9ec", "#9ba1a8", "#353a40", "#14161a", "#ff6f91"), strict=True)
)
TWINS |= {approach.colour: approach.dark for approach in APPROACHES}
ISOFLOP, ENVELOPE, PARAMETRIC = (BY_NAME[name].colour for name in ("isoflop", "envelope", "parametric"))
BY_WIDTH = sorted(APPROACHES, key=lambda approach: -approach.width)  # the widest first, so that all lines show


def _colours(name: str, light: tuple[float, float], dark: tuple[float, float]) -> ListedColormap:
    """Cut a colormap to the part that shows on paper, and enter its twin on a dark page."""
    cmap = mpl.colormaps[name]
    pages = [[to_hex(cmap(x)) for x in np.linspace(*ends, 48)] for ends in (light, dark)]
    TWINS.update(zip(*pages, strict=True))
    return ListedColormap(pages[0])


BY_SIZE = _colours("viridis", (0.0, 0.88), (0.25, 1.0))
BY_BUDGET = _colours("plasma", (0.02, 0.78), (0.42, 0.97))

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "gptjax",
    "pdf.fonttype": 42,  # TrueType, which publishers ask for and editors can change
    "figure.constrained_layout.use": True,
}
MINIMUM: Any = {
    "fmt": "D",
    "markersize": 5,
    "markeredgecolor": INK,
    "markeredgewidth": 0.8,
    "elinewidth": 1.2,
    "zorder": 5,
}
STAR: Any = {"markersize": 12, "color": HELD_OUT, "markeredgecolor": PAPER, "markeredgewidth": 0.6}
PALE: Any = {"linestyle": (0, (1.5, 1.5)), "alpha": 0.55}  # of a fit that is no finding
DOTS = 1000  # above which points are drawn as a picture, for the page's size
styled = mpl.rc_context(STYLE)


def make_panels(count: int, narrow: bool, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Make panels side by side, or one above another on a narrow page."""
    shape = (count, 1) if narrow else (1, count)
    figure = Figure(figsize=(NARROW, 2.75 * count) if narrow else (WIDE, height))
    return figure, list(figure.subplots(*shape, squeeze=False, sharey=share_y).flat)


def label_counts(axis: Any, low: float, high: float) -> None:
    """Label a logarithmic axis of sizes or tokens as 20k, 50k, 100k, sparser over a longer range."""
    decades = np.log10(high / low)
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3.2 else (1,), numticks=12)
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def label_losses(axes: Axes) -> None:
    """Label a logarithmic axis of losses with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("loss (nats per token)")


def add_size_bar(figure: Figure, axes: list[Axes], runs: Runs) -> LogNorm:
    """Draw the colour bar of sizes and give its norm."""
    norm = LogNorm(runs.params.min(), runs.params.max() * (1 + 1e-9))
    bar = figure.colorbar(ScalarMappable(norm, BY_SIZE), ax=axes, pad=0.015, aspect=28, fraction=0.05)
    label_counts(bar.ax.yaxis, runs.params.min(), runs.params.max())
    bar.set_label("parameters N")
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set_edgecolor("face")  # else the page shows through the seams
    return norm


def draw_dots(axes: Axes, x: Floats, y: Floats, runs: Runs, norm: LogNorm) -> None:
    """Draw the rows as points coloured by size."""
    many = len(runs) > DOTS
    axes.scatter(
        x, y, c=runs.params, cmap=BY_SIZE, norm=norm, s=4 if many else 20, edgecolors="none" if many else PAPER,
        linewidths=0.5, zorder=3, rasterized=many, label="_runs",
    )  # fmt: skip


def look(approach: str, fit: Found) -> Json:
    """Say how to draw an approach's line; one that is no finding is dashed and pale and says so in its label."""
    drawn = BY_NAME[approach]
    if fit.ok:
        return {"color": drawn.colour, "linewidth": drawn.width, "label": drawn.label}
    return {"color": drawn.colour, "linewidth": 1.4, "label": f"{drawn.label} ({fit.status})", **PALE}


def warn(axes: Axes, fit: Found) -> None:
    """Write over a panel that the fit it shows is no finding."""
    if not fit.ok:
        axes.set_title(f"{fit.status} fit: no basis for a forecast", color=HELD_OUT)
