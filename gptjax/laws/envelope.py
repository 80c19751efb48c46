"""Approach 1 of Hoffmann et al. 2022 (3.1): at each compute, the size whose runs have the least loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptjax.laws.fit import Fit, regress
from gptjax.laws.law import Ints
from gptjax.laws.smoothed import Points, points_of
from gptjax.laws.table import Curve, Dropped, Floats, Runs, short

Method = Literal["finished runs", "training curves"]

GRID = 1500  # budgets on the frontier (Hoffmann et al., 3.1)
SMOOTHING = 10  # points of a training curve (Hoffmann et al., D.1)
DRAWS_AT_ONCE = 32  # draws whose curves are held at once
LATE = 0.85  # Hoffmann et al., footnote 4: all points of their frontier lie in the last 15 % of a run


@dataclass(frozen=True)
class Frontier:
    """Points in the plane of compute: the least loss on the grid, or the places where the best size changes."""

    flops: Floats
    params: Floats
    tokens: Floats
    loss: Floats


NOWHERE = Frontier(*np.zeros((4, 0)))


@dataclass(frozen=True, kw_only=True)
class Envelope(Fit):
    """The frontier, where the best size is the least or largest there, and how far through its run each point lies.

    From finished runs the changes of size are regressed and run_share is 1; from training curves the frontier is,
    without its edges and its points before the last 15 % of a run, and there are no changes.
    """

    approach = "envelope"

    method: Method
    frontier: Frontier
    changes: Frontier
    edge: NDArray[np.bool_]
    run_share: Floats


def envelope(runs: Runs, curves: Sequence[Curve] | None = None, *, unfinished: bool = False) -> Envelope:
    """Find the best size at each of 1500 budgets, then regress log N and log D on log C.

    From finished runs: the curve of a size goes straight in log C and log loss through them, so that every point on it
    stands for a schedule that ended there; a budget counts where the curves of two sizes reach it. The frontier is a
    staircase and ends within a step, which biases a line through all of it when sizes are few. So the line goes through
    its changes of size: there two sizes tie, and the optimum is taken at their geometric mean.

    Where sizes were chosen anew for each budget, most have one budget and no curve. Then the losses of each budget are
    smoothed over log N, and curves go through these, at sizes that all budgets share.

    From the training `curves` of these runs, as published: each curve is smoothed over 10 points, and the line goes
    through the run of least loss at each budget. A run before its end has not had its low learning rates, so points
    before the last 15 % of their run are refused and listed, unless `unfinished`. N and C follow the runs' convention.
    """
    return _of_finished(runs) if curves is None else _of_curves(runs, curves, unfinished)


def refit_finished(runs: Runs, losses: Floats) -> tuple[Floats, Floats]:
    """Fit again from finished runs to each draw of the losses (k, rows); `envelope` called k times gives the same.

    Gives (log k, a) of N* = k C^a and of D*, each (k, 2), nan where a draw is refused.
    """
    points = points_of(runs)
    parts = [_lines(_ladder(points, part)) for part in np.array_split(losses, 1 + len(losses) // DRAWS_AT_ONCE)]
    n, d = (np.concatenate(lines) for lines in zip(*parts, strict=True))
    return n, d


@dataclass(frozen=True)
class _Ladder:
    """The curves of sizes along C, in logs, at budgets that two of them reach; nan where a size has no runs."""

    sizes: Floats
    alone: list[Ints]  # the rows of sizes that have one budget only, and no curve
    log_c: Floats  # (budgets,)
    log_d: Floats  # (sizes, budgets)
    log_loss: Floats  # (draws, sizes, budgets)
    best: Ints  # (draws, budgets), the size of least loss

    def changes(self) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Give the draw and the budget of each change of the best size, and whether both sizes reach over it."""
        draw, at = np.nonzero(np.diff(self.best))
        reached = np.isfinite(self.log_d)
        return draw, at, reached[self.best[draw, at], at + 1] & reached[self.best[draw, at + 1], at]


def _ladder(points: Points, losses: Floats) -> _Ladder:
    log_c, columns = points.log_c, np.vstack([points.log_d[None], points.log_loss(losses)])  # (1 + draws, points)
    grid = np.linspace(log_c.min(), log_c.max(), GRID)
    sizes, size_of = np.unique(points.params, return_inverse=True)
    curves, alone = np.full((len(columns), len(sizes), GRID), np.nan), []
    for i in range(len(sizes)):
        rows = np.flatnonzero(size_of == i)
        rows = rows[np.argsort(log_c[rows], kind="stable")]
        start = np.flatnonzero(np.diff(log_c[rows], prepend=-np.inf))
        if len(start) < 2:
            alone.append(rows)
            continue
        x = log_c[rows[start]]
        y = np.add.reduceat(columns[:, rows], start, axis=1) / np.diff(start, append=len(rows))  # equal C: averaged
        inside = slice(np.searchsorted(grid, x[0]), np.searchsorted(grid, x[-1], side="right"))
        j = np.searchsorted(x, grid[inside], side="right").clip(1, len(x) - 1)
        t = (grid[inside] - x[j - 1]) / (x[j] - x[j - 1])
        curves[:, i, inside] = (1 - t) * y[:, j - 1] + t * y[:, j]
    reached = np.isfinite(curves[0])
    enough = reached.sum(axis=0) >= 2
    curves = curves[:, :, enough]
    best = np.where(reached[:, enough], curves[1:], np.inf).argmin(axis=1)
    return _Ladder(sizes, alone, grid[enough], curves[0], curves[1:], best)


def _lines(ladder: _Ladder) -> tuple[Floats, Floats]:
    """Regress the changes of size of each draw, as `regress` does."""
    draw, at, tie = ladder.changes()
    draw, at = draw[tie], at[tie]
    old, new = ladder.best[draw, at], ladder.best[draw, at + 1]

    def total(values: Floats) -> Floats:
        return np.bincount(draw, values, len(ladder.best)).astype(np.float64)

    with np.errstate(divide="ignore", invalid="ignore"):  # fewer than 2 changes: 0 / 0
        count = np.bincount(draw, minlength=len(ladder.best))
        x_mean = total(ladder.log_c[at]) / count
        x = ladder.log_c[at] - x_mean[draw]
        lines = []
        for y in (np.log(ladder.sizes)[old] + np.log(ladder.sizes)[new], ladder.log_d[old, at] + ladder.log_d[new, at]):
            slope = total(x * y / 2) / total(x**2)
            lines.append(np.stack([total(y / 2) / count - slope * x_mean, slope], axis=1))
    return lines[0], lines[1]


def _of_finished(runs: Runs) -> Envelope:
    points = points_of(runs)
    ladder = _ladder(points, runs.loss[None])
    sizes, grid, best = ladder.sizes, np.exp(ladder.log_c), ladder.best[0]
    tokens, column = np.exp(ladder.log_d), np.arange(len(grid))
    loss = np.exp(ladder.log_loss[0, best, column])
    frontier = Frontier(grid, sizes[best], tokens[best, column], loss)
    _, at, tie = ladder.changes()
    alone = "has runs at one budget only and makes no curve; add a budget"
    artefact = "the best size changes only because the runs of a size begin or end here"
    reasons: tuple[str, ...] = ()
    if points.parts:
        smoothed = "sizes were chosen anew for each budget, so curves go through losses smoothed over log N in each"
        reasons = (smoothed,)
        dropped = [Dropped(runs.run[i], "its budget has too few sizes to be smoothed") for i in points.unread]
    else:
        dropped = [Dropped(runs.run[i], f"size {short(runs.params[i])} {alone}") for rows in ladder.alone for i in rows]
    dropped += [Dropped(f"C = {_say(c)}", artefact) for c in grid[at[~tie]]]
    at = at[tie]
    old, new = best[at], best[at + 1]
    changes = Frontier(grid[at], np.sqrt(sizes[old] * sizes[new]), np.sqrt(tokens[old, at] * tokens[new, at]), loss[at])
    more = "add sizes on both sides of the optimum at more budgets"
    few = f"the best size changes {len(at)} times along the frontier and a power law needs 2; {more}"
    left_out = {drop.run for drop in dropped}
    return _regress(
        changes,
        reasons=reasons,
        refusal=few if len(at) < 2 else "",
        used=tuple(name for name in runs.run if name not in left_out),
        dropped=tuple(dropped),
        method="finished runs",
        frontier=frontier,
        changes=changes,
        edge=_edge(best, np.isfinite(ladder.log_d)),
        run_share=np.ones(len(grid)),
    )


def _of_curves(runs: Runs, curves: Sequence[Curve], unfinished: bool) -> Envelope:
    place = {name: i for i, name in enumerate(runs.run)}
    dropped = [Dropped(c.run, "its training curve belongs to no finished run") for c in curves if c.run not in place]
    curves = [curve for curve in curves if curve.run in place]
    rows = np.array([place[curve.run] for curve in curves], dtype=int)
    dropped += [Dropped(runs.run[i], "it has no training curve") for i in range(len(runs)) if i not in rows]
    if not curves:
        few = "no training curve belongs to a finished run; give curves whose runs stand in the table"
        none: dict[str, Any] = {"used": (), "edge": np.zeros(0, dtype=bool), "run_share": np.zeros(0)}
        none |= {"method": "training curves", "frontier": NOWHERE, "changes": NOWHERE}
        return _regress(NOWHERE, few, dropped=tuple(dropped), **none)
    ends, per_token = runs.flops[rows], runs.flops[rows] / runs.tokens[rows]
    grid = np.geomspace(ends.min(), ends.max(), GRID)  # below, every run is unfinished
    x = np.log(grid)
    loss = np.array(
        [
            np.interp(x, np.log(curve.tokens * rate), smooth(curve.loss), np.nan, np.nan)
            for curve, rate in zip(curves, per_token, strict=True)
        ]
    )
    reached = np.isfinite(loss)
    seen = reached.any(axis=0)
    grid, loss, reached = grid[seen], loss[:, seen], reached[:, seen]
    best = np.where(reached, loss, np.inf).argmin(axis=0)
    params, share = runs.params[rows][best], grid / ends[best]
    frontier = Frontier(grid, params, grid / per_token[best], loss[best, np.arange(len(grid))])
    sizes, size_of = np.unique(runs.params[rows], return_inverse=True)
    edge = _edge(size_of[best], np.array([reached[size_of == i].any(axis=0) for i in range(len(sizes))]))
    early = (share < LATE) & (not unfinished)
    kept = ~edge & ~early

    used = {curves[i].run for i in best[kept]}
    dropped += [Dropped(c.run, "none of the points regressed is its") for c in curves if c.run not in used]
    runs_along = np.split(np.arange(len(grid)), np.flatnonzero(np.diff(best) | np.diff(early)) + 1)
    for at in (at for at in runs_along if early[at].any()):
        span = f"{100 * share[at[0]]:.0f} to {100 * share[at[-1]]:.0f} % of run {curves[best[at[0]]].run}"
        dropped.append(
            Dropped(f"C = {_say(grid[at[0]])} to {_say(grid[at[-1]])}", f"{len(at)} points at {span}: early")
        )
    late = (
        f"{early.sum()} of {len(grid)} points of the frontier come before the last 15 % of their run and are left out"
    )
    left = len(np.unique(params[kept]))
    few = f"{left} sizes, between the least and largest, make up the frontier and a power law needs 2; add sizes"
    return _regress(
        Frontier(grid[kept], params[kept], frontier.tokens[kept], frontier.loss[kept]),
        refusal=few if left < 2 else "",
        reasons=(late + "; add runs that end there, or allow unfinished ones",) if early.any() else (),
        used=tuple(name for name in runs.run if name in used),
        dropped=tuple(dropped),
        method="training curves",
        frontier=frontier,
        changes=NOWHERE,
        edge=edge,
        run_share=share,
    )


def smooth(values: Floats) -> Floats:
    """Smooth a curve (points,) by a Gaussian over 10 points; it fits a line, so that the ends do not lag behind."""
    if len(values) < 2:
        return values
    j = np.arange(-(SMOOTHING // 2), SMOOTHING // 2 + 1)
    kernel = np.exp(-0.5 * (j / (SMOOTHING / 4)) ** 2)  # Hoffmann et al. give the window and no width: 2 sd a side
    s0, s1, s2 = (np.correlate(np.pad(np.ones(len(values)), -j[0]), kernel * j**p, "valid") for p in (0, 1, 2))
    t0, t1 = (np.correlate(np.pad(values, -j[0]), kernel * j**p, "valid") for p in (0, 1))
    return (s2 * t0 - s1 * t1) / (s2 * s0 - s1**2)


def _edge(best: Ints, reached: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say where the best size is the first or last that reaches the budget; reached is (sizes, budgets)."""
    return (best == reached.argmax(axis=0)) | (best == len(reached) - 1 - reached[::-1].argmax(axis=0))


def _regress(points: Frontier, refusal: str, *, reasons: tuple[str, ...] = (), **answer: Any) -> Envelope:
    """Regress log N and log D of the points on log C, unless there is a refusal."""
    params_law = tokens_law = None
    if not refusal:
        equal = np.zeros(len(points.flops))
        params_law, _ = regress(points.flops, points.params, equal)
        tokens_law, _ = regress(points.flops, points.tokens, equal)
    return Envelope(
        status="refused" if refusal else "ok",
        reasons=(*reasons, refusal) if refusal else reasons,
        params_law=params_law,
        tokens_law=tokens_law,
        **answer,
    )


def _say(flops: float) -> str:
    return f"{flops:.3g}".replace("e+", "e")
