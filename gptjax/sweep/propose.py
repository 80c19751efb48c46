"""From an allowance to a sweep: budgets, sizes that can be built, seeds, a held-out run, and what each of them costs.

Budgets stand in a geometric row, the largest as high as the allowance and the tokens at hand let it be, and sizes
bracket the optimum that a law expects of each. What is left free (sizes a budget, cells repeated) is tried, priced as
the sweep will be planned, and the choice with the least expected standard error is proposed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.laws.law import Law
from gptjax.laws.planning.precision import Errors, Goal, gradient, slopes
from gptjax.laws.table import short
from gptjax.sweep.assumed_law import QUICK_LAW, QUICK_NAME, law_by_scale
from gptjax.sweep.derivation import derivation
from gptjax.sweep.plan import Repeat, Sized, Speed, SweepConfig, holdout_run, make_plan, size_label
from gptjax.sweep.plan import short as flops_of
from gptjax.sweep.proposal import BESIDE, KEPT, Allowance, Budgeting, Derived, Priced, Proposal

LAYOUTS = (
    Budgeting(5, 30.0),
    Budgeting(4, 30.0),
    Budgeting(4, 20.0),
    Budgeting(3, 12.0),
)  # the first that can be is taken
SIZES = (7, 6, 5)  # of a budget
REPEATS = (0, 4, 8)  # of cells
MOST_TIMES, NEAR_REPEAT = 3, 2.0  # that one cell is repeated; how many times off N* it may be
HOLDOUT = 3.0  # times the largest budget, where a sweep does not say
NEAR_HOLDOUT = 1.6  # a held-out run may have a size within this factor of the expected optimum
BRACKET, LEAST_BRACKET = 4.0, 2.0  # sizes reach so many times to either side of N*
LEAST_RATIO = 1.3  # tokens a parameter: the bracket is narrower where it would reach below

FIT_SECONDS = 6.0  # of the fit before the held-out run, with what is imported for it
REPORT_SECONDS, REPORT_SECONDS_PER_CELL = 15.0, 0.3  # fits, draws, simulated sweeps: some 16 s of processor in all
LEAST_TOP, MOST_TOP = 1e7, 1e28  # of the largest budget
EXACT = 1.02  # the largest budget is found to this factor
WIDER = 4.0  # times: where other choices of a layout are looked for


def propose_sweep(
    base: SweepConfig,
    allowance: Allowance,
    *,
    law: Law | None = None,
    law_name: str = "",
    noise: float = 0.01,
    goal: Goal = "a",
    target_flops: float | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    alone: Speed | None = None,
    derived: Sequence[Derived] = (),
) -> Proposal:
    """Propose the sweep that an allowance buys, with the shapes, rules, corpus and convention of a base sweep.

    Sizes are among `base.sizes` and `base.holdout_sizes`; a held-out run is planned where the base has one, as many
    times above the largest budget. `law` places the cells; by default it is the quick sweep's below 1e15 FLOPs and that
    of Besiroglu et al. 2024 above. `seeds` trains every cell so many times; None repeats those few cells that lower the
    standard error of `goal` (at `target_flops`, by default the held-out run's) most, where that beats larger budgets.
    `alone` is the speed of a run that has the machine for itself (default: the base's speed), and `derived` are lines
    that the derivation begins with. BadInput says what the least sweep takes, where the allowance buys none.
    """
    if seeds is not None and seeds < 1:
        raise BadInput(f"{seeds} seeds a cell train nothing; give 1 or more")
    if workers is not None and workers < 1:
        raise BadInput(f"{workers} workers train nothing; give 1 or more")
    if base.arm:
        raise BadInput("a sweep of several arms has a law for each; plan a sweep of one of them")
    search = Search(
        base=base,
        law=law or law_by_scale(base, allowance, workers or base.workers),
        seeds=tuple(range(seeds)) if seeds else base.seeds,
        repeats=(0,) if seeds or len(base.seeds) > 1 else REPEATS,
        workers=workers or base.workers,
        alone=alone or base.speed,
        allowance=allowance,
        noise=noise,
        goal=goal,
        target_flops=target_flops,
    )
    for layout in LAYOUTS:
        if found := [*search.sound(layout)]:
            priced, errors = min(found, key=lambda each: float(getattr(each[1], goal)))
            proposal = Proposal(
                priced=priced,
                allowance=allowance,
                layout=layout,
                law=search.law,
                law_name=law_name or (QUICK_NAME if search.law is QUICK_LAW else "Besiroglu et al. 2024"),
                noise=noise,
                goal=goal,
                target_flops=search.target(priced),
                errors=errors,
                workers=search.workers,
                alone=search.alone,
            )
            return replace(proposal, derivation=(*derived, *derivation(proposal)))
    raise BadInput(search.refusal())


def plan_sweep(
    base: SweepConfig, *, of: str = "", flops: float | None = None, minutes: float | None = None, **settings: Any
) -> Proposal:
    """Propose a sweep of a base sweep's shapes within FLOPs, or minutes by its `speed`, or what itself would pay.

    `of` names the file that makes the base, FILE[:NAME]; `settings` are those of `propose_sweep`.
    """
    if flops is None and minutes is None:
        plan = make_plan(base)
        flops = sum(run.flops_paid for run in plan.runs) + base.holdout
    limits = {"flops": math.inf if flops is None else flops, "seconds": math.inf if minutes is None else 60 * minutes}
    return replace(propose_sweep(base, Allowance(**limits), **settings), of=of)


@dataclass(frozen=True)
class Search:
    """What is proposed from, and the search for the largest sweep of a layout that the allowance buys."""

    base: SweepConfig
    law: Law
    seeds: tuple[int, ...]
    repeats: tuple[int, ...]
    workers: int
    alone: Speed
    allowance: Allowance
    noise: float
    goal: Goal
    target_flops: float | None

    @cached_property
    def params(self) -> dict[Any, int]:
        """N of each size that can be had, the least first."""
        sizes = dict.fromkeys((*self.base.sizes, *self.base.holdout_sizes))
        counted = {size: Sized.of(self.base, size).params for size in sizes}
        return dict(sorted(counted.items(), key=lambda item: item[1]))

    @cached_property
    def holdout(self) -> float:
        """Give how many times above the largest budget the held-out run is; 0: there is none."""
        if not self.base.holdout:
            return 0.0
        return self.base.holdout / max(self.base.budgets) if self.base.budgets else HOLDOUT

    def target(self, priced: Priced) -> float:
        return self.target_flops or priced.sweep.holdout or 10 * priced.sweep.budgets[-1]

    def sound(self, layout: Budgeting) -> Iterator[tuple[Priced, Errors]]:
        """Yield the largest sweep of each number of sizes and of repeats that is sound, with its expected errors."""
        near = None
        for sizes in SIZES:
            for repeats in self.repeats:
                priced = self.largest(layout, sizes, repeats, near)
                if priced is None:
                    break
                near = near or priced.sweep.budgets[-1]
                yield priced, priced.errors(self.law, self.noise, self.target(priced))

    def largest(self, layout: Budgeting, sizes: int, repeats: int, near: float | None) -> Priced | None:
        """Find the largest sound sweep of a layout that the allowance buys, by halving; None if it buys none."""
        low, high = (near / WIDER, near * WIDER) if near else (LEAST_TOP, MOST_TOP)
        best = None
        while high / low > EXACT:
            top = math.sqrt(low * high)
            priced = self.tried(layout, sizes, top, repeats)
            enough = priced is None or priced.within(self.allowance)
            if priced and enough and not priced.fault(self.law):
                best, low = priced, top
            elif enough and self.law.optimum(flops=top).params * BESIDE < max(self.params.values()):
                low = top  # too small for a sound sweep
            else:
                high = top
        return best

    def tried(self, layout: Budgeting, sizes: int, top: float, repeats: int) -> Priced | None:
        """Lay a sweep out and price it; None where none of its cells can be."""
        try:
            return self.lay(layout, sizes, top, repeats)
        except BadInput:
            return None

    def lay(self, layout: Budgeting, sizes: int, top: float, repeats: int = 0) -> Priced:
        """Lay a sweep out below a largest budget, with so many cells repeated where that helps most, and price it."""
        budgets = tuple(rounded(top * factor) for factor in np.geomspace(1 / layout.span, 1, layout.budgets))
        best = [self.law.optimum(flops=budget) for budget in budgets]
        ratios = [one.tokens / one.params for one in best]
        bracket = bracket_of(min(ratios))
        step = bracket ** (2 / (sizes - 1))
        low, high = best[0].params / bracket, best[-1].params * bracket
        rungs = np.geomspace(low, high, 1 + max(1, round(math.log(high / low) / math.log(step))))
        sweep = replace(
            self.base,
            budgets=budgets,
            horizons=(),
            sizes=tuple(dict.fromkeys(self.nearest(n) for n in rungs)),
            tokens_per_param=(max(1.0, rounded(min(ratios) / bracket**2, 2)), rounded(max(ratios) * bracket**2, 2)),
            seeds=self.seeds,
            repeats=(),
            workers=self.workers,
            **self.held_out(budgets[-1]),
        )
        priced = self.price(sweep)
        return self.price(replace(sweep, repeats=self.best_repeats(priced, repeats))) if repeats else priced

    def nearest(self, params: float) -> Any:
        return min(self.params, key=lambda size: abs(math.log(self.params[size] / params)))

    def held_out(self, top: float) -> dict[str, Any]:
        """Give the fields of the held-out run: sizes near what the law expects to be best."""
        if not self.holdout:
            return {"holdout": 0.0, "holdout_sizes": ()}
        flops = rounded(self.holdout * top, 2)
        best = self.law.optimum(flops=flops).params
        least, most = min(self.params.values()), max(self.params.values())
        if not least / NEAR_HOLDOUT <= best <= most * NEAR_HOLDOUT:
            raise BadInput(f"a held-out run of {flops_of(flops)} FLOPs is best near {short(best)} parameters, and "
                           f"sizes reach from {short(least)} to {short(most)}; give more of them")  # fmt: skip
        near = [size for size, n in self.params.items() if 1 / NEAR_HOLDOUT <= n / best <= NEAR_HOLDOUT]
        return {"holdout": flops, "holdout_sizes": tuple(near or [self.nearest(best)])}

    def price(self, sweep: SweepConfig) -> Priced:
        """Plan a sweep, and say what it takes."""
        plan = make_plan(sweep)
        held_out = holdout_run(sweep, self.law.optimum(flops=sweep.holdout).params) if sweep.holdout else None
        chains: dict[str, float] = {}  # seconds of a trunk and a branch of it: no worker shortens them
        for run in plan.runs:
            chains[run.name] = run.seconds + (chains.get(run.parent, 0.0) if run.parent else 0.0)
        spread = sum(run.seconds for run in plan.runs) / self.workers
        cells = sum(run.role == "cell" for run in plan.runs)
        return Priced(
            sweep=sweep,
            plan=plan,
            held_out=held_out,
            seconds_before=self.allowance.before,
            seconds_of_runs=max(spread, *chains.values()),
            seconds_of_held_out=FIT_SECONDS + self.alone.seconds(held_out.flops_paid, held_out.config.steps)
            if held_out
            else 0.0,
            seconds_of_report=REPORT_SECONDS + REPORT_SECONDS_PER_CELL * cells,
        )

    def best_repeats(self, priced: Priced, count: int) -> tuple[Repeat, ...]:
        """Choose the cells to repeat one by one, each the one that lowers the goal's variance most for its seconds.

        They are near N*: a minimum reads those as well as a formula does, and a wrong form hurts them less.
        """
        cells = priced.cells
        n, d = (np.array([getattr(run, name) for run in cells], float) for name in ("params", "tokens"))
        rows, of_goal = slopes(self.law, n, d), gradient(self.law, self.goal, self.target(priced))
        seconds = np.array([self.base.speed.seconds(run.flops, run.config.steps) for run in cells])
        inverse = np.linalg.pinv(rows.T @ rows)
        times = np.zeros(len(cells), int)
        best = np.array([self.law.optimum(flops=run.budget).params for run in cells])
        near = np.abs(np.log(n / best)) <= math.log(NEAR_REPEAT)
        for _ in range(count):
            reach = rows @ inverse
            gain = (reach @ of_goal) ** 2 / (1 + np.sum(reach * rows, axis=1)) / seconds  # Sherman and Morrison
            pick = int(np.argmax(np.where(near & (times < MOST_TIMES), gain, -1)))
            inverse = inverse - np.outer(reach[pick], reach[pick]) / (1 + reach[pick] @ rows[pick])
            times[pick] += 1
        sizes = {size_label(size): size for size in priced.sweep.sizes}
        return tuple(Repeat(sizes[run.size], run.budget, int(k)) for run, k in zip(cells, times, strict=True) if k)

    def refusal(self) -> str:
        """Say which of the allowances is too small and what the least sweep takes."""
        last, sizes = LAYOUTS[-1], SIZES[-1]
        fault = "no size can be trained"
        for top in np.geomspace(LEAST_TOP, MOST_TOP, 121):
            priced = self.tried(last, sizes, float(top), 0)
            fault = priced.fault(self.law) if priced else fault
            if priced and not fault:
                break
        else:
            return f"the sizes at hand bracket no optimum ({fault}); give the sweep more sizes on both sides"
        minutes = priced.seconds / (1 - KEPT) / 60
        least = f"{last.budgets} budgets up to {flops_of(priced.sweep.budgets[-1])} FLOPs"
        if priced.most_tokens > self.allowance.tokens:
            return (f"{self.allowance.tokens:,.0f} tokens of text are too few: of the least sweep ({least}) a run "
                    f"reads {priced.most_tokens:,} and would repeat them; give more text")  # fmt: skip
        if priced.seconds > (1 - KEPT) * self.allowance.seconds:
            return (f"{self.allowance.seconds / 60:g} minutes are too few: the least sweep ({least}) takes "
                    f"{math.ceil(10 * minutes) / 10:g} with {self.workers} worker(s); allow that many")  # fmt: skip
        return (f"{flops_of(self.allowance.flops)} FLOPs are too few: the least sweep ({least}) takes "
                f"{flops_of(priced.flops)} with its held-out run; allow that many")  # fmt: skip


def bracket_of(tokens_per_param: float) -> float:
    """Give how many times to either side of N* sizes reach, where the least budget has so many tokens a parameter."""
    return min(BRACKET, max(LEAST_BRACKET, math.sqrt(tokens_per_param / LEAST_RATIO)))


def rounded(value: float, digits: int = 3) -> float:
    """Round to so many digits, so that what is written is what was planned."""
    return float(f"{value:.{digits}g}")
