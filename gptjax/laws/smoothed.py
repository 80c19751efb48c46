"""What the curves of sizes go through: the rows, or sizes that all budgets share, read off smoothed budgets."""

from dataclasses import dataclass

import numpy as np

from gptjax.laws.budgets import slices_of
from gptjax.laws.law import Ints
from gptjax.laws.table import Floats, Runs

JOIN_STEP, JOIN_SD = 0.2, 0.6  # in log N, at least: between sizes read off smoothed budgets, and of the smoothing


@dataclass(frozen=True)
class Points:
    """What the curves of sizes go through, and how the losses there come from those of the rows.

    They are the rows themselves (`parts` is empty), or sizes read off the budgets: a part is the rows of a budget and
    the weights (points, rows) of their log losses.
    """

    params: Floats
    log_c: Floats
    log_d: Floats
    parts: tuple[tuple[Ints, Floats], ...] = ()
    unread: tuple[int, ...] = ()  # where budgets are smoothed, the rows of those that have too few sizes

    def log_loss(self, losses: Floats) -> Floats:
        """Give the log loss (k, points) of each draw (k, rows)."""
        logs = np.log(losses)
        return np.hstack([logs[:, rows] @ weights.T for rows, weights in self.parts]) if self.parts else logs


def points_of(runs: Runs) -> Points:
    """Take the rows, or where most are of sizes that have one budget, sizes read off the smoothed budgets."""
    log_n, log_c, log_d = np.log([runs.params, runs.flops, runs.tokens])
    cells = np.unique(np.stack([runs.params, runs.flops], axis=1), axis=0)
    _, size_of, budgets = np.unique(cells[:, 0], return_inverse=True, return_counts=True)
    slices = [part for part in slices_of(runs) if part.sound]
    if 2 * (budgets[size_of] > 1).sum() >= len(cells) or len(slices) < 2:
        return Points(runs.params, log_c, log_d)
    gap = float(np.median(np.concatenate([np.diff(np.log(part.sizes)) for part in slices])))
    step, sd = max(gap, JOIN_STEP), max(gap, JOIN_SD)
    at, parts = [], []
    for part in slices:
        x = log_n[part.rows]
        inside = step * np.arange(np.ceil(x[0] / step), np.floor(x[-1] / step) + 1)
        parts.append((part.rows, np.array([_local_weights(x - middle, sd) for middle in inside]).reshape(-1, len(x))))
        at.append(np.stack([np.exp(inside), *(parts[-1][1] @ column[part.rows] for column in (log_c, log_d))]))
    unread = np.setdiff1d(np.arange(len(runs)), np.concatenate([part.rows for part in slices]))
    params, along_c, along_d = np.hstack(at)
    if not len(params):  # as where D/N is one number: no budget spans a step
        return Points(runs.params, log_c, log_d)
    return Points(params, along_c, along_d, tuple(parts), tuple(unread.tolist()))


def _local_weights(x: Floats, sd: float) -> Floats:
    """Give the weights by which values at x (points,) make the value at 0 of a parabola, fitted by nearness to 0."""
    design = np.vander(x, 3, increasing=True)
    near = np.exp(-0.5 * (x / sd) ** 2)
    return np.linalg.pinv(design * near[:, None])[0] * near
