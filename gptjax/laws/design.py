"""Design a sweep before paying for it: the cells (N, D), repeats and next runs that make a law's fit most certain.

A fit's standard errors follow from where its runs lie and from the law, so a law assumed beforehand says which runs
shrink them most. Such a design is locally optimal (Chernoff 1953), as good as the law assumed. A free optimum puts all
runs on a few corners, where no fit can notice a wrong form; so a grid that brackets each budget's optimum always stays,
and only its repeats, or runs added later, are placed by c-optimality (Pukelsheim 1993).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from gptjax.errors import BadInput
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.law import Floats, HeldLaw, Law
from gptjax.laws.simulate import ladder
from gptjax.laws.table import short

Goal = Literal["a", "params", "loss"]
TOKENS_PER_PARAM = (1.0, 1000.0)  # beyond these no run is proposed
LEAST_PARAMS = 1e3
LEAST_BUDGETS, LEAST_SIZES = 3, 4  # fewer show neither a bent power law nor a parabola that does not fit
SHIFTS = (0.0, 0.25, 0.5, 0.75)  # of the ladder of sizes, in rungs: the best is proposed
SLOPE_STEP, NEAR = 1e-3, 3.0  # of theta, and of C, for slopes by differences
TOLD = 1e-6  # of the largest singular value: a direction of theta with a smaller one is not told
CANDIDATES = 25  # candidates for a next run, along C and along D/N


@dataclass(frozen=True)
class Errors:
    """Standard errors: of the exponent a, and of log N* and of log L at the optimum of a target's FLOPs."""

    a: float
    params: float
    loss: float


@dataclass(frozen=True)
class Cell:
    """A point of the sweep, trained once for each seed; flops are 6ND, of one of them."""

    params: float
    tokens: float
    flops: float
    seeds: int


@dataclass(frozen=True)
class Design:
    """A sweep and what is expected of it; paid is below credited where a size's runs share a trunk."""

    law: Law
    goal: Goal
    noise: float
    delta: float
    allowance: float
    target_flops: float
    budgets: tuple[float, ...]
    sizes: tuple[float, ...]
    tokens_per_param: tuple[float, float]  # of the cells
    cells: tuple[Cell, ...]
    runs: int
    paid: float
    credited: float
    errors: Errors


@dataclass(frozen=True)
class Candidate:
    """A run to train next, and the standard error of the goal after it and those before it."""

    params: float
    tokens: float
    flops: float
    goal_se: float


@dataclass(frozen=True)
class Extension:
    """Runs to add to a sweep, in the order chosen, and what is known before and after them."""

    law: Law
    goal: Goal
    noise: float
    delta: float
    allowance: float
    target_flops: float
    cells: tuple[Candidate, ...]
    paid: float
    before: Errors
    after: Errors


def standard_errors(
    law: Law,
    params: ArrayLike,
    tokens: ArrayLike,
    *,
    noise: float,
    target_flops: float,
    seeds: ArrayLike = 1.0,
    delta: float = 1e-3,
) -> Errors:
    """Predict the standard errors of a parametric fit to runs at these (N, D), each repeated `seeds` times.

    First order in the noise, the standard deviation of one run's log loss, taken for normal and equal everywhere;
    benchmarks/design.py compares them with simulated fits. delta is the fit's, np.inf for least squares. BadInput for
    runs that do not determine the five coefficients.
    """
    n, d = _columns(params, tokens)
    root = _root(law, n, d, np.broadcast_to(seeds, n.shape), _effective(noise, delta))
    return Errors(**{goal: _se(root, gradient(law, goal, target_flops)) for goal in get_args(Goal)})


def gradient(law: Law, goal: Goal, target_flops: float) -> Floats:
    """Give the slope, in theta, of a, or of log N* or log L at a target's optimum.

    There the loss does not change with N along C = 6ND, so its slope is that of the loss at fixed (N, D).
    """
    if goal == "loss":
        best = law.optimum(flops=target_flops)
        return _slopes(law, best.params, best.tokens)[0]
    if not isinstance(law, ChinchillaLaw):
        return _slope_by_differences(law, goal, target_flops)
    total = law.alpha + law.beta
    of_a = np.array([0, 0, 0, -law.beta, law.alpha]) / total**2
    if goal == "a":
        return of_a
    log_c = np.log(target_flops / 6)
    log_g = np.log(law.optimum(flops=target_flops).params) - law.a * log_c
    of_g = np.array([1, -1, 0, 1 / law.alpha - log_g, -1 / law.beta - log_g]) / total
    return of_g + of_a * log_c


def _slope_by_differences(law: Law, goal: Goal, target_flops: float) -> Floats:
    """Give the slope of a, the local exponent of N* in C, or of log N* at a target, where they have no formula."""

    def value(theta: Floats) -> float:
        moved = law.at(theta)
        near = [math.log(moved.optimum(flops=target_flops * factor).params) for factor in (1 / NEAR, 1, NEAR)]
        return (near[2] - near[0]) / (2 * math.log(NEAR)) if goal == "a" else near[1]

    theta, known = law.theta, _told_apart(law)
    moves = SLOPE_STEP * np.maximum(1, np.abs(theta)) * np.eye(len(theta))
    return np.array([(value(theta + move) - value(theta - move)) / (2 * move.max()) for move in moves]) @ known


def _slopes(law: Law, params: ArrayLike, tokens: ArrayLike) -> Floats:
    """Give d log L / d theta at each (N, D), along the directions of theta that runs of N and D can tell."""
    slopes = law.sensitivity(params, tokens)
    return slopes @ _told_apart(law) if isinstance(law, HeldLaw) else slopes


def _told_apart(law: Law) -> Floats:
    """Give the directions of theta, as columns, that runs of other N and D can tell while further columns are held.

    A term in such a column cannot be told from the floor, and neither goal needs to.
    """
    if not isinstance(law, HeldLaw):
        return np.eye(len(law.theta))
    n, ratio = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e4, 1e11, 8), np.geomspace(1, 1000, 6)))
    slopes = law.sensitivity(n, n * ratio)
    scale = np.maximum(np.linalg.norm(slopes, axis=0), 1e-300)
    _, sizes, directions = np.linalg.svd(slopes / scale)
    return (directions[: len(sizes)][sizes > TOLD * sizes[0]] / scale).T


def huber_inflation(cutoff: float) -> float:
    """Give the variance of a Huber fit over that of least squares, when delta is `cutoff` standard deviations of noise.

    For normal noise (Huber 1964): pi/2 towards 0, which is least absolute deviation, and 1 for a wide delta.
    """
    k = float(np.clip(cutoff, 1e-4, 40))
    inside = 2 * ndtr(k) - 1
    squares = inside - 2 * k * np.exp(-(k**2) / 2) / np.sqrt(2 * np.pi) + 2 * k**2 * ndtr(-k)
    return float(squares / inside**2)


def flops_paid(params: Floats, tokens: Floats, seeds: Floats, retrained: float) -> float:
    """Give the FLOPs of cells when a size trains its longest horizon whole, and of the others the share `retrained`.

    That is the cooldown's share where runs branch off one trunk a size and seed (Hagele et al. 2024, arXiv 2405.18392),
    and 1 where each is trained alone.
    """
    total = 0.0
    for seed in range(int(seeds.max())):
        for n in np.unique(params[seeds > seed]):
            d = tokens[(params == n) & (seeds > seed)]
            total += 6 * n * (d.max() + retrained * (d.sum() - d.max()))
    return float(total)


def propose(
    law: Law,
    flops: float,
    *,
    noise: float = 0.01,
    goal: Goal = "a",
    target_flops: float | None = None,
    budgets: int = 4,
    sizes: int = 5,
    span: float = 30.0,
    bracket: float = 4.0,
    runs: int = 36,
    most_seeds: int = 6,
    cooldown: float | None = None,
    delta: float = 1e-3,
) -> Design:
    """Propose the sweep of at most so many runs and FLOPs that leaves the least standard error of the goal.

    A grid of budgets, over `span` in C, and sizes, within `bracket` of each N* to half a rung, is trained once; the
    other runs repeat the cells that lower the error most, the largest budget shrinking to pay for them, and so also
    measure the noise. `cooldown` is the share of a run that a WSD schedule cools down, where runs of a size branch off
    one trunk a seed (their noise is taken for independent); None trains each alone. The target is the whole allowance
    as one run, unless given. BadInput, with the least allowance that works, when too few cells lie within 1 to 1000
    tokens a parameter and above 1000 parameters.
    """
    _check(law, goal=goal, noise=noise, delta=delta, flops=flops, target_flops=target_flops)
    if budgets < LEAST_BUDGETS or sizes < LEAST_SIZES:
        least = f"{LEAST_BUDGETS} budgets x {LEAST_SIZES} sizes"
        raise BadInput(f"{budgets} budgets x {sizes} sizes cannot show a law to be wrong; use at least {least}")
    if runs < budgets * sizes:
        raise BadInput(f"{runs} runs do not fill {budgets} budgets x {sizes} sizes; allow more")
    if not (span > 1 and bracket > 1 and most_seeds >= 1 and (cooldown is None or 0 < cooldown <= 1)):
        given = f"span {span:g}, bracket {bracket:g}, most_seeds {most_seeds}, cooldown {cooldown}"
        raise BadInput(f"{given}: give factors above 1, at least 1 seed, and a cooldown in (0, 1]")
    target = target_flops or flops
    relative = np.geomspace(1 / span, 1, budgets)
    grids = [_Grid(law, relative, sizes, bracket, shift, cooldown or 1.0, runs - budgets * sizes) for shift in SHIFTS]
    possible = [grid for grid in grids if not grid.fault(flops)]
    if not possible:
        remedy = f"{_remedy(grids, flops)}, or take more sizes or a narrower bracket"
        raise BadInput(f"{short(flops)} FLOPs: {grids[0].fault(flops)}; {remedy}")
    of_goal, sd = gradient(law, goal, target), _effective(noise, delta)
    filled = [(grid, *grid.fill(flops, runs, most_seeds, of_goal, sd)) for grid in possible]
    grid, seeds, _ = min(filled, key=lambda found: found[2])
    return _design(grid, seeds, flops, goal, target, noise, delta)


@dataclass(frozen=True, eq=False)
class _Grid:
    """The layout before its scale is known: budgets relative to the largest, whose FLOPs set everything."""

    law: Law
    relative: Floats
    sizes: int
    bracket: float
    shift: float
    retrained: float
    repeats: int

    def cells(self, top: float) -> tuple[Floats, Floats]:
        return ladder(self.law, top * self.relative, sizes=self.sizes, bracket=self.bracket, shift=self.shift)

    def top(self, flops: float, seeds: Floats) -> float:
        """Give the largest budget that spends these FLOPs: the cost of a layout is in proportion to it."""
        return flops * flops / flops_paid(*self.cells(flops), seeds, self.retrained)

    def inside(self, flops: float) -> Floats:
        """Say (1 or 0) which cells keep the limits, from the grid trained once to all repeats at its largest budget."""
        low, high = TOKENS_PER_PARAM
        kept = np.ones(len(self.relative) * self.sizes)
        once = self.top(flops, kept)
        for top in (once, flops / (flops / once + self.repeats)):
            params, tokens = self.cells(top)
            kept *= (params >= LEAST_PARAMS) & (low <= tokens / params) & (tokens / params <= high)
        return kept

    def fault(self, flops: float) -> str:
        """Say which budget has too few cells that may run about its optimum, or nothing."""
        top = self.top(flops, np.ones(len(self.relative) * self.sizes))
        rows = zip(top * self.relative, self.cells(top)[0].reshape(-1, self.sizes), strict=True)
        for (budget, n), inside in zip(rows, self.inside(flops).reshape(-1, self.sizes) > 0, strict=True):
            best = self.law.optimum(flops=float(budget))
            if inside.sum() < LEAST_SIZES or not n[inside].min() < best.params < n[inside].max():
                ratio = f"{best.tokens / best.params:.3g} tokens a parameter"
                return (
                    f"budget {short(budget)}, whose optimum is {short(best.params)} parameters at {ratio}, has "
                    f"{inside.sum()} of {self.sizes} sizes within the limits ({TOKENS_PER_PARAM[0]:g} to "
                    f"{TOKENS_PER_PARAM[1]:g}, {LEAST_PARAMS:g} parameters)"
                )
        return ""

    def fill(self, flops: float, runs: int, most_seeds: int, of_goal: Floats, sd: float) -> tuple[Floats, float]:
        """Give the seeds of each cell, repeats added one by one where they help most, and the goal's standard error."""

        def se(seeds: Floats) -> float:
            return _se(_triangle(_slopes(self.law, *self.cells(self.top(flops, seeds))), seeds, sd), of_goal)

        seeds = self.inside(flops)
        while seeds.sum() < runs:
            open_cells = np.flatnonzero((seeds > 0) & (seeds < most_seeds))
            if not len(open_cells):
                break
            seeds = min((seeds + np.eye(len(seeds))[cell] for cell in open_cells), key=se)
        return seeds, se(seeds)


def _remedy(grids: Sequence[_Grid], flops: float) -> str:
    """Name the least allowance that works, if a larger one does."""

    def works(allowance: float) -> bool:
        return any(not grid.fault(allowance) for grid in grids)

    doubled = (flops * 2.0**k for k in range(1, 140) if flops * 2.0**k < 1e40)
    high = next((allowance for allowance in doubled if works(allowance)), None)
    if high is None:
        return "allow less"
    low = high / 2
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if works(middle) else (middle, high)
    return f"the least that works is about {short(high)} FLOPs"


def _design(grid: _Grid, seeds: Floats, flops: float, goal: Goal, target: float, noise: float, delta: float) -> Design:
    """Round budgets down and sizes to three digits, so that what is printed is what was planned."""
    top = grid.top(flops, seeds)
    budgets = [float(f"{_floor(c):.2e}") for c in top * grid.relative]
    params = np.array([float(f"{n:.2e}") for n in grid.cells(top)[0]])
    tokens = np.repeat(budgets, grid.sizes) / (6 * params)
    kept = seeds > 0
    params, tokens, seeds = params[kept], tokens[kept], seeds[kept]
    errors = standard_errors(grid.law, params, tokens, noise=noise, target_flops=target, seeds=seeds, delta=delta)
    rows = zip(params, tokens, seeds, strict=True)
    cells = tuple(Cell(float(n), float(d), float(6 * n * d), int(s)) for n, d, s in rows)
    ratio = tokens / params
    return Design(
        law=grid.law,
        goal=goal,
        noise=noise,
        delta=delta,
        allowance=flops,
        target_flops=target,
        budgets=tuple(budgets),
        sizes=tuple(map(float, np.unique(params))),
        tokens_per_param=(float(ratio.min()), float(ratio.max())),
        cells=cells,
        runs=int(seeds.sum()),
        paid=flops_paid(params, tokens, seeds, grid.retrained),
        credited=flops_paid(params, tokens, seeds, 1.0),
        errors=errors,
    )


def next_cells(
    law: Law,
    params: ArrayLike,
    tokens: ArrayLike,
    allowance: float,
    *,
    noise: float = 0.01,
    goal: Goal = "a",
    target_flops: float | None = None,
    count: int = 8,
    tokens_per_param: tuple[float, float] | None = None,
    delta: float = 1e-3,
) -> Extension:
    """Choose the runs, at most `count`, to train after those at (params, tokens) so that the goal is known best.

    Candidates lie on a grid: C from the least run so far to what is left of the allowance, D/N over what was sampled
    within 1 to 1000, unless given. They are taken one by one, the error updated after each, in several ways of spending
    (most gain per FLOP, or most gain within an equal share of what is left, for each number of runs), of which the best
    is given. They serve the parametric fit; an isoFLOP budget may be left lopsided. The target is 10 times the largest
    run, unless given. BadInput for runs that do not determine the law, or an allowance below the cheapest of them.
    """
    _check(law, goal=goal, noise=noise, delta=delta, flops=allowance, target_flops=target_flops)
    n, d = _columns(params, tokens)
    c = 6 * n * d
    if allowance < c.min():
        raise BadInput(f"{short(allowance)} FLOPs buy no run: the cheapest so far took {short(c.min())}; allow that")
    if count < 1:
        raise BadInput(f"count {count} asks for no run; ask for at least 1")
    target = target_flops or 10 * float(c.max())
    sd = _effective(noise, delta)
    inverse = np.linalg.inv(_root(law, n, d, np.ones(len(n)), sd))
    least, most = TOKENS_PER_PARAM
    low, high = tokens_per_param or (max(least, float((d / n).min())), min(most, float((d / n).max())))
    axes = np.geomspace(c.min(), allowance, CANDIDATES), np.geomspace(low, high, CANDIDATES)
    flops, ratio = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    sizes = np.sqrt(flops / (6 * ratio))
    further = _slopes(law, sizes, ratio * sizes) / sd
    of_goal = gradient(law, goal, target)
    ways: list[tuple[int, bool]] = [(count, True), *((k, False) for k in range(1, count + 1))]
    found = [_greedy(inverse @ inverse.T, further, flops, of_goal, allowance, k, per_flop) for k, per_flop in ways]
    picks, ses = min(found, key=lambda way: way[1][-1])
    cells = [
        Candidate(*map(float, values))
        for values in zip(sizes[picks], (ratio * sizes)[picks], flops[picks], ses, strict=True)
    ]
    before, after = (
        standard_errors(law, np.append(n, sizes[more]), np.append(d, (ratio * sizes)[more]), noise=noise,
                        target_flops=target, delta=delta)
        for more in ([], picks)
    )  # fmt: skip
    paid = float(flops[picks].sum())
    return Extension(law, goal, noise, delta, allowance, target, tuple(cells), paid, before, after)


def _greedy(
    covariance: Floats, further: Floats, flops: Floats, of_goal: Floats, allowance: float, count: int, per_flop: bool
) -> tuple[list[int], list[float]]:
    """Pick candidates one by one and give the goal's standard error after each (Sherman and Morrison's update).

    One more run with slope g, in units of the noise, lowers the variance c' V c by (c' V g)^2 / (1 + g' V g).
    """
    picks: list[int] = []
    ses: list[float] = []
    for left in range(count, 0, -1):
        within = flops <= (allowance if per_flop else allowance / left) * (1 + 1e-9)
        if not within.any():
            continue
        reach = further @ covariance
        gain = (reach @ of_goal) ** 2 / (1 + np.sum(reach * further, axis=1))
        pick = int(np.argmax(np.where(within, gain / flops if per_flop else gain, -1)))
        covariance = covariance - np.outer(reach[pick], reach[pick]) / (1 + reach[pick] @ further[pick])
        allowance -= flops[pick]
        picks.append(pick)
        ses.append(float(np.sqrt(of_goal @ covariance @ of_goal)))
    return picks, ses


def describe(plan: Design | Extension) -> str:
    """Draw a design, with the lines of its SweepConfig, or an extension as a table, with what it costs and promises."""
    flops = [cell.flops for cell in plan.cells]
    laws = plan.law.power_laws(min(flops), max(flops))
    a = f"a = {laws[0].exponent:.3f}" if laws else "no optimum"
    estimator = f"Huber, delta {plan.delta:g}" if np.isfinite(plan.delta) else "least squares"
    assumed = f"if the law holds ({a}) and a run's log loss has noise {plan.noise:.3g} ({estimator})"
    target = f"at {short(plan.target_flops)} FLOPs"
    if isinstance(plan, Extension):
        name = {"a": "a", "params": "log N*", "loss": "log loss"}[plan.goal]
        table: list[tuple[str, ...]] = [("N", "D", "D/N", "FLOPs", f"{name} +-")]
        for run in plan.cells:
            ratio = f"{run.tokens / run.params:.3g}"
            table.append((short(run.params), short(run.tokens), ratio, short(run.flops), f"{run.goal_se:.4f}"))
        return "\n".join([
            *_table(table),
            "",
            f"{len(plan.cells)} runs in order of gain; FLOPs paid {plan.paid:.3g} of {plan.allowance:.3g}",
            f"expected standard errors, {assumed}:",
            f"  now    {_promise(plan.before, target)}",
            f"  after  {_promise(plan.after, target)}",
        ])  # fmt: skip
    table = [("budget", "N", "N/N*", "D", "D/N", "seeds")]
    for cell in plan.cells:
        best = f"{cell.params / plan.law.optimum(flops=cell.flops).params:.2f}"
        counts = short(cell.flops), short(cell.params), best, short(cell.tokens), f"{cell.tokens / cell.params:.3g}"
        table.append((*counts, str(cell.seeds)))
    window = (float(f"{plan.tokens_per_param[0] * 0.99:.3g}"), float(f"{plan.tokens_per_param[1] * 1.01:.3g}"))
    more = sum(window[0] <= c / (6 * n * n) <= window[1] for c in plan.budgets for n in plan.sizes) - len(plan.cells)
    return "\n".join([
        *_table(table),
        "",
        f"{len(plan.cells)} cells, {plan.runs} runs; FLOPs paid {plan.paid:.3g} of {plan.allowance:.3g}, credited "
        f"{plan.credited:.3g} ({plan.paid / plan.credited:.0%})",
        f"expected standard errors, {assumed}:",
        f"  {_promise(plan.errors, target)}",
        "",
        f"budgets=({', '.join(f'{c:.3g}' for c in plan.budgets)})",
        f"sizes=({', '.join(f'{n:_.0f}' for n in plan.sizes)})  # parameters",
        f"tokens_per_param=({window[0]:g}, {window[1]:g})",
        *([f"(a full grid of these lines has {more} more cells, at its edges)"] if more else []),
    ])  # fmt: skip


def _promise(errors: Errors, target: str) -> str:
    return f"a +- {errors.a:.3f}; {target} log N* +- {errors.params:.3f}, log loss +- {errors.loss:.4f}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def _columns(*values: ArrayLike) -> list[Floats]:
    return [np.atleast_1d(np.asarray(column, dtype=np.float64)) for column in values]


def _check(law: Law, *, goal: Goal, noise: float, delta: float, flops: float, target_flops: float | None) -> None:
    if goal not in get_args(Goal):
        raise BadInput(f"goal {goal!r} is not known; use one of {', '.join(get_args(Goal))}")
    if isinstance(law, ChinchillaLaw) and not min(vars(law).values()) > 0:
        raise BadInput(f"{law} is nothing to plan around; A, B, E, alpha and beta must be above 0")
    for name, value in (("noise", noise), ("delta", delta), ("allowance", flops), ("target_flops", target_flops)):
        if value is not None and not (value > 0 and (np.isfinite(value) or name == "delta")):
            raise BadInput(f"{name} {value:g} must be a number above 0; give one")


def _effective(noise: float, delta: float) -> float:
    """Give the noise under which least squares would be as uncertain as the Huber fit is."""
    return noise * huber_inflation(delta / noise) ** 0.5


def _root(law: Law, params: Floats, tokens: Floats, seeds: Floats, sd: float) -> Floats:
    """Give the triangular root R of the information R'R, or refuse runs that leave a direction unknown."""
    root = _triangle(_slopes(law, params, tokens), seeds, sd)
    scaled = root / np.maximum(np.linalg.norm(root, axis=0), 1e-300)
    if len(root) < root.shape[1] or np.linalg.cond(scaled) > 1e9:
        raise BadInput(
            f"{len(params)} runs at {len(np.unique(params))} sizes do not determine the law's {root.shape[1]} "
            "coefficients; vary N and D apart, as in a sweep of 3 budgets x 4 sizes"
        )
    return root


def _triangle(rows: Floats, seeds: Floats, sd: float) -> Floats:
    return np.asarray(np.linalg.qr(rows * (np.sqrt(seeds) / sd)[:, None], mode="r"))


def _se(root: Floats, of_goal: Floats) -> float:
    return float(np.linalg.norm(np.linalg.solve(root.T, of_goal)))


def _floor(value: float) -> float:
    """Round down to three digits."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.floor(value / unit) * unit)
