"""Budgets: which runs have nearly equal FLOPs, where budgets stand apart, touch, or are crowds of scattered runs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptjax.laws.law import Ints
from gptjax.laws.table import Floats, Runs

BUDGET_GAP, BUDGET_SPREAD = 0.18, 0.4  # in log C: a gap begins a new budget; a wider budget is not a slice
CROWD_WIDTH, CROWD_SIZES = 0.2, 6  # among scattered runs so many sizes within 10 % of one C make a budget
CLOSEST_GAP = 0.005  # in log C, between budgets that touch; the tokens of a run are rounded by less
STANDS_APART = 2.0  # budgets that touch have gaps between them of so many times their own spread
MIN_SIZES = 4  # of a budget that a minimum can be found in


@dataclass(frozen=True)
class Slice:
    """The runs of one budget, by size and then loss, and what of them does not depend on the losses."""

    rows: Ints
    flops: float
    sizes: Floats
    starts: Ints  # where in rows each size begins
    spread: float

    @property
    def sound(self) -> bool:
        """Whether a minimum may be sought: it has enough sizes, and runs of nearly equal FLOPs."""
        return len(self.sizes) >= MIN_SIZES and bool(np.log(self.spread) <= BUDGET_SPREAD)

    def mean(self, columns: Floats) -> Floats:
        """Average (k, rows) over the rows of each size."""
        return np.add.reduceat(columns, self.starts, axis=-1) / np.diff(self.starts, append=len(self.rows))


def slices_of(runs: Runs) -> list[Slice]:
    """Part the runs into budgets, by rising FLOPs.

    A gap of more than .18 in log C begins a new budget. Where that leaves one wider than .4, budgets touch or C is
    scattered: they touch if a narrower gap parts the runs into slices each of which is far narrower than the gaps
    between them; else the fullest windows of C are the budgets.
    """
    log_c = np.log(runs.flops)
    order = np.argsort(log_c, kind="stable")
    groups: list[Ints] = []
    for rows in _parted(order, log_c, BUDGET_GAP):
        groups += [rows] if np.ptp(log_c[rows]) <= BUDGET_SPREAD else _touching(rows, log_c, runs.params)
    slices = []
    for rows in sorted(groups, key=lambda rows: log_c[rows].mean()):
        rows = rows[np.lexsort((runs.loss[rows], runs.params[rows]))]  # an order that the table's does not change
        n, c = runs.params[rows], log_c[rows]
        starts = np.flatnonzero(np.append(True, n[1:] > n[:-1]))
        slices.append(Slice(rows, float(np.exp(c.mean())), n[starts], starts, float(np.exp(c.max() - c.min()))))
    return slices


def _parted(rows: Ints, log_c: Floats, gap: float) -> list[Ints]:
    """Part rows, ordered by C, at each gap wider than this."""
    return np.split(rows, np.flatnonzero(np.diff(log_c[rows]) > gap) + 1)


def _touching(rows: Ints, log_c: Floats, params: Floats) -> list[Ints]:
    """Part rows, ordered by C, into budgets that stand closer than a gap, or else into crowds."""
    for parts in _partings(rows, log_c):
        low, high = (np.array([log_c[part[end]] for part in parts]) for end in (0, -1))
        between = low[1:] - high[:-1]
        full = [part for part in parts if len(np.unique(params[part])) >= MIN_SIZES]
        if STANDS_APART * (high - low).max() <= between.min() and 2 * sum(map(len, full)) >= len(rows):
            return parts
    return _crowds(rows, log_c, params)


def _partings(rows: Ints, log_c: Floats) -> Iterator[list[Ints]]:
    """Part the rows by ever narrower gaps, as long as there are budgets to be found in the parts."""
    gaps = np.diff(log_c[rows])
    count = 1
    for gap in np.geomspace(BUDGET_GAP, CLOSEST_GAP, 25):
        more = 1 + int((gaps > gap).sum())
        if more * MIN_SIZES > 2 * len(rows):  # most parts would be too small
            return
        if more > count:
            count = more
            yield _parted(rows, log_c, gap)


def _crowds(rows: Ints, log_c: Floats, params: Floats) -> list[Ints]:
    """Find budgets among scattered runs, ordered by C: the fullest windows in turn; the runs between them come last."""
    crowds, left = [], rows
    while len(left):
        ends = np.searchsorted(log_c[left], log_c[left] + CROWD_WIDTH, side="right")
        sizes = count_distinct(params[left], ends)
        first = int(sizes.argmax())
        if sizes[first] < CROWD_SIZES:
            break
        fullest = left[first : ends[first]]
        crowds.append(fullest)
        left = np.setdiff1d(left, fullest, assume_unique=True)
        left = left[np.argsort(log_c[left], kind="stable")]
    return [*crowds, left] if len(left) else crowds


def count_distinct(values: Floats, ends: Ints) -> Ints:
    """Count the different values among values[i : ends[i]] for each i, where `ends` do not fall.

    A value is counted at its first place in a window: place j is one for all i from after the place before it that has
    the same value, or from the first window that reaches j, up to j.
    """
    place = np.arange(len(values))
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    before = np.full(len(values), -1)
    before[order[1:][same]] = order[:-1][same]
    begin = np.maximum(before + 1, np.searchsorted(ends, place, side="right"))
    n = len(values) + 1
    return np.cumsum(np.bincount(begin, minlength=n) - np.bincount(place + 1, minlength=n))[:-1]
