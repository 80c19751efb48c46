"""Design a sweep before paying for it: the cells (N, D), repeats and next runs that make a law's fit most certain.

A fit's standard errors follow from where its runs lie and from the law, so a law assumed beforehand says which runs
shrink them most. Such a design is locally optimal (Chernoff 1953), as good as the law assumed. A free optimum puts all
runs on a few corners, where no fit can notice a wrong form; so a grid that brackets each budget's optimum always stays,
and only its repeats, or runs added later, are placed by c-optimality (Pukelsheim 1993).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptjax.errors import BadInput
from gptjax.laws.law import Floats, Law
from gptjax.laws.planning.precision import (
    Errors,
    Goal,
    assumed,
    check_question,
    effective_noise,
    gradient,
    slopes,
    standard_error,
    standard_errors,
    triangle,
)
from gptjax.laws.simulate import ladder
from gptjax.laws.table import short

TOKENS_PER_PARAM = (1.0, 1000.0)  # beyond these no run is proposed
LEAST_PARAMS = 1e3
LEAST_BUDGETS, LEAST_SIZES = 3, 4  # fewer show neither a bent power law nor a parabola that does not fit
SHIFTS = (0.0, 0.25, 0.5, 0.75)  # of the ladder of sizes, in rungs: the best is proposed


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
    check_question(law, goal=goal, noise=noise, delta=delta, flops=flops, target_flops=target_flops)
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
    of_goal, sd = gradient(law, goal, target), effective_noise(noise, delta)
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
            return standard_error(triangle(slopes(self.law, *self.cells(self.top(flops, seeds))), seeds, sd), of_goal)

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


def describe_design(plan: Design) -> str:
    """Draw a design as a table, with what it costs and promises, and the lines of its SweepConfig."""
    flops = [cell.flops for cell in plan.cells]
    table = [("budget", "N", "N/N*", "D", "D/N", "seeds")]
    for cell in plan.cells:
        best = f"{cell.params / plan.law.optimum(flops=cell.flops).params:.2f}"
        counts = short(cell.flops), short(cell.params), best, short(cell.tokens), f"{cell.tokens / cell.params:.3g}"
        table.append((*counts, str(cell.seeds)))
    window = (float(f"{plan.tokens_per_param[0] * 0.99:.3g}"), float(f"{plan.tokens_per_param[1] * 1.01:.3g}"))
    more = sum(window[0] <= c / (6 * n * n) <= window[1] for c in plan.budgets for n in plan.sizes) - len(plan.cells)
    return "\n".join([
        *aligned(table),
        "",
        f"{len(plan.cells)} cells, {plan.runs} runs; FLOPs paid {plan.paid:.3g} of {plan.allowance:.3g}, credited "
        f"{plan.credited:.3g} ({plan.paid / plan.credited:.0%})",
        f"expected standard errors, {assumed(plan.law, min(flops), max(flops), plan.noise, plan.delta)}:",
        f"  {plan.errors.at(f'at {short(plan.target_flops)} FLOPs')}",
        "",
        f"budgets=({', '.join(f'{c:.3g}' for c in plan.budgets)})",
        f"sizes=({', '.join(f'{n:_.0f}' for n in plan.sizes)})  # parameters",
        f"tokens_per_param=({window[0]:g}, {window[1]:g})",
        *([f"(a full grid of these lines has {more} more cells, at its edges)"] if more else []),
    ])  # fmt: skip


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Draw rows of cells as lines, each column to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def _floor(value: float) -> float:
    """Round down to three digits."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(np.floor(value / unit) * unit)
