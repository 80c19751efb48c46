"""A figure as files: SVG, PDF and PNG, the same bytes every time, and the numbers that it draws as CSV."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from gptjax.laws.drawing.style import STYLE

PAPER_RECT = '<rect width="100%" height="100%" fill="#ffffff"/>'
DPI = 200  # dots an inch of a file
HEADER = ("panel", "series", "kind", "x", "y", "colour")


def to_svg(figure: Figure, title: str) -> str:
    """Draw a figure as SVG without a background."""
    with mpl.rc_context(STYLE):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    return file.getvalue()


def to_files(figure: Figure, title: str, svg: str) -> dict[str, str | bytes]:
    """Give what stands beside a page, by ending: the figure on white as svg, pdf and png, and its numbers as csv.

    `svg` is what `to_svg` gave of it, so that it need not be drawn again.
    """
    start = svg.index(">", svg.index("<svg")) + 1
    files: dict[str, str | bytes] = {"svg": svg[:start] + PAPER_RECT + svg[start:], "csv": to_csv(figure)}
    return files | {"pdf": _on_white(figure, "pdf", {"CreationDate": None, "Title": title}), "png": to_png(figure)}


def to_png(figure: Figure, dpi: int = DPI) -> bytes:
    """Draw a figure as PNG on white."""
    return _on_white(figure, "png", {}, dpi)


def _on_white(figure: Figure, kind: str, metadata: dict[str, Any], dpi: int = DPI) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format=kind, dpi=dpi, facecolor="white", metadata=metadata)
    return file.getvalue()


def to_csv(figure: Figure) -> str:
    """Write every point that a figure draws: its panel, series and kind, x and y, and the size that colours it.

    A line of reference has no x, or no y; an interval, a region and a contour are given by the points of their outline.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    y_label = ""
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            continue
        y_label = axes.get_ylabel() or y_label  # panels side by side may share a label
        panel = f"{y_label} against {axes.get_xlabel()}" if y_label else axes.get_xlabel()
        writer.writerows([panel, *row] for row in _drawn(axes))
    return text.getvalue()


def _drawn(axes: Axes) -> Iterator[tuple[str, ...]]:
    """Give series, kind, x, y and colour of each point in a panel."""
    bars = {part: bar for bar in axes.containers for part in bar.get_children()}  # error bars hold their own name

    def name(artist: Any) -> str:
        label = str(bars.get(artist, artist).get_label())
        return "" if re.fullmatch(r"_(child\d+|nolegend_|Container\d*)|None", label) else label.lstrip("_")

    for line in axes.lines:
        along, up = line.get_transform().contains_branch_seperately(axes.transData)
        marks = line.get_linestyle() in ("None", "none")
        x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data())
        if not (along and up):  # a line of reference, across the panel
            x, y = x[:1], y[:1]
        for point in zip(x, y, strict=True):
            yield (name(line), "points" if marks else "line", _say(point[0], along), _say(point[1], up), "")
    for artist in axes.collections:
        if isinstance(artist, PathCollection):
            colours = artist.get_array()
            for i, (px, py) in enumerate(np.ma.getdata(artist.get_offsets())):
                yield (name(artist), "points", _say(px), _say(py), "" if colours is None else _say(colours[i]))
            continue
        kind = "interval" if isinstance(artist, LineCollection) else "region"
        levels = getattr(artist, "levels", None)  # of contours
        for i, path in enumerate(artist.get_paths()):
            series, what = (name(artist), kind) if levels is None else (f"level {levels[i]:.4g}", "contour")
            for px, py in np.asarray(path.vertices):
                yield (series, what, _say(px), _say(py), "")


def _say(value: float, known: bool = True) -> str:
    return f"{value:.10g}" if known and np.isfinite(value) else ""
