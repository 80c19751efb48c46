"""From budgets and sizes to runs: what each costs, what branches off what, and what rounding or limits removed."""

import itertools
import math
import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gptjax.config import InitFrom, RunConfig, from_json, to_json
from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.models.count import count, flops_per_token
from gptjax.models.gpt import GPTConfig
from gptjax.question import check_values, fingerprint
from gptjax.sweep.rules import Rule, always, warmup_of_params
from gptjax.train.optim import cooldown_start

ROUNDING = 0.05  # a cell whose whole steps miss its budget by more than this share is removed


@dataclass(frozen=True)
class Speed:
    """A machine's speed, for predicted seconds: arithmetic, and what each step and each run cost besides."""

    flops_per_second: float
    seconds_per_step: float = 0.0
    seconds_per_run: float = 0.0

    def seconds(self, flops: float, steps: int) -> float:
        return flops / self.flops_per_second + steps * self.seconds_per_step + self.seconds_per_run


@dataclass(frozen=True)
class SweepConfig:
    """A grid of budgets (or token horizons) x sizes around one base run; sizes are whatever `shape` turns into a model.

    With base.optim.schedule = "wsd", each size trains one trunk at a constant rate, and every budget is a cooldown
    branch of it; rules then see the largest D of their size. Otherwise each cell is a run of its own, and rules see its
    own D. A number in the place of a rule is that number always. Each cell is trained once for every factor of the
    rules' rate and every factor of their batch, a trunk likewise; the held-out run is trained at the rules' own.
    """

    base: RunConfig
    sizes: tuple[Hashable, ...]
    shape: Callable[[Any], GPTConfig]
    lr: Rule
    batch_tokens: Rule
    budgets: tuple[float, ...] = ()  # training FLOPs under `convention`
    horizons: tuple[float, ...] = ()  # or tokens: the same for every size
    b2: Rule = always(0.95)
    warmup_tokens: Rule = warmup_of_params  # a tenth of the shortest run of a size at most
    lr_factors: tuple[float, ...] = (1.0,)
    batch_factors: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)
    convention: str = "6n_total"  # of FLOPs; see models/count.py
    tokens_per_param: tuple[float, float] = (1.0, 1000.0)  # cells outside are removed
    min_steps: int = 50
    holdout: float = 0.0  # FLOPs of one run predicted before it is trained; 0: none
    holdout_sizes: tuple[Hashable, ...] = ()  # candidates: the nearest to the predicted optimum is trained
    speed: Speed = Speed(2e10)
    workers: int = 1  # processes on this machine, each on its share of the cores
    pack: int = 8  # runs of one shape that a process alone on its devices may train together; 1: none

    def __post_init__(self) -> None:
        check_values(self, unchecked=("seeds", "tokens_per_param"))  # a run checks its seed; a limit may be infinite
        for name in ("lr", "batch_tokens", "b2", "warmup_tokens"):
            rule = getattr(self, name)
            if isinstance(rule, int | float):
                object.__setattr__(self, name, always(rule))
            elif not callable(rule):
                raise BadInput(f"{name} = {rule!r} is neither a number nor a rule(N, D); give one of the two")
        if bool(self.budgets) == bool(self.horizons) or not self.sizes or not self.seeds:
            raise BadInput("a sweep needs budgets or horizons, not both, and at least one size and one seed")
        for name in ("lr_factors", "batch_factors"):
            if not getattr(self, name) or any(not factor > 0 for factor in getattr(self, name)):
                raise BadInput(
                    f"{name} {getattr(self, name)} must be one number or more, each above 0; 1 is the rule's own"
                )
        if any(not x > 0 for x in (*self.budgets, *self.horizons, *([self.holdout] if self.holdout else []))):
            given = f"budgets {self.budgets}, horizons {self.horizons} and holdout {self.holdout}"
            raise BadInput(f"{given} are FLOPs, tokens and FLOPs, and must be above 0")
        for name in ("workers", "pack"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} = {getattr(self, name)} must be at least 1")
        if self.holdout and not self.holdout_sizes:
            raise BadInput("holdout needs holdout_sizes to choose its model from; give at least one size")


@dataclass(frozen=True)
class Factors:
    """What multiplies the rules' rate and batch in one trial of a cell."""

    lr: float = 1.0
    batch: float = 1.0

    @property
    def suffix(self) -> str:
        """Name what differs from the rules, as -lr2-b0.5."""
        named = (("lr", self.lr), ("b", self.batch))
        return "".join(f"-{name}{factor:g}" for name, factor in named if factor != 1)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; a cell is a point of the law, a trunk only feeds its branches."""

    name: str
    role: Literal["cell", "trunk", "holdout"]
    size: str
    budget: float
    params: int
    tokens: int
    flops: float  # credited: as if trained alone from the start
    flops_paid: float
    seconds: float  # predicted
    parent: str | None
    config: RunConfig


@dataclass(frozen=True)
class Removed:
    """A cell that will not run, and why."""

    size: str
    budget: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """All runs, parents before their branches, and the cells that were removed."""

    convention: str
    runs: tuple[PlannedRun, ...]
    removed: tuple[Removed, ...]

    def save(self, path: Path) -> None:
        write_json(path, to_json(self))

    @staticmethod
    def load(path: Path) -> "Plan":
        return from_json(Plan, read_json(path))


def make_plan(sweep: SweepConfig) -> Plan:
    """Lay out every budget x size x batch x rate x seed as runs."""
    runs: list[PlannedRun] = []
    removed: list[Removed] = []
    for size, batch in itertools.product(sweep.sizes, sweep.batch_factors):
        steps = {}
        for budget in _budgets(sweep, size):
            steps[budget], reason = _steps(sweep, size, budget, _horizon(sweep, size, budget), batch)
            if reason:
                removed.append(Removed(label(size) + Factors(batch=batch).suffix, budget, reason))
                del steps[budget]
        for lr, seed in itertools.product(sweep.lr_factors, sweep.seeds):
            runs += _runs_of_size(sweep, size, seed, steps, Factors(lr, batch)) if steps else []
    if not runs:
        raise BadInput(f"no cell is left: {removed[0].size} at {removed[0].budget:.3g} {removed[0].reason}")
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(
            f"two cells are called {twice}; give budgets that differ in three digits, and each size and factor once"
        )
    if sweep.holdout:
        holdout_run(sweep, _params(sweep, sweep.holdout_sizes[0]))
    return Plan(sweep.convention, tuple(runs), tuple(removed))


def holdout_run(sweep: SweepConfig, target_params: float) -> PlannedRun:
    """Plan the held-out run: of the candidates that its budget allows, the nearest in size to the predicted optimum."""
    found = {size: _steps(sweep, size, sweep.holdout, sweep.holdout) for size in sweep.holdout_sizes}
    allowed = {size: steps for size, (steps, reason) in found.items() if not reason}
    if not allowed:
        size, (_, reason) = next(iter(found.items()))
        raise BadInput(f"no held-out run fits {short(sweep.holdout)} FLOPs: {label(size)} {reason}")
    size = min(allowed, key=lambda s: abs(math.log(_params(sweep, s) / target_params)))
    config = _config(sweep, size, sweep.seeds[0], allowed[size], sweep.holdout)
    name = f"{label(size)}-holdout-{short(sweep.holdout)}"
    return _planned(sweep, name, "holdout", size, sweep.holdout, config)


def label(size: Hashable) -> str:
    """Name a size: widths as d64, presets as they are."""
    return f"d{size}" if isinstance(size, int) else str(size)


def short(flops: float) -> str:
    return f"{flops:.3g}".replace("e+", "e")


def _params(sweep: SweepConfig, size: Any) -> int:
    return count(sweep.shape(size)).total


def _flops_per_token(sweep: SweepConfig, size: Any) -> float:
    conventions = flops_per_token(sweep.shape(size), sweep.shape(size).context)
    if sweep.convention not in conventions:
        raise BadInput(f"convention {sweep.convention!r} is not one of {', '.join(conventions)}")
    return conventions[sweep.convention]


def _budgets(sweep: SweepConfig, size: Any) -> list[float]:
    """Return the budgets of a size in order: the sweep's, or what its horizons cost."""
    return sorted(sweep.budgets or (tokens * _flops_per_token(sweep, size) for tokens in sweep.horizons))


def _ratio(sweep: SweepConfig, size: Any, budget: float) -> float:
    """Return the tokens per parameter that a budget buys."""
    return budget / _flops_per_token(sweep, size) / _params(sweep, size)


def _horizon(sweep: SweepConfig, size: Any, budget: float) -> float:
    """Return the budget whose D the rules see: a cell's own, or its trunk's largest."""
    if sweep.base.optim.schedule != "wsd":
        return budget
    low, high = sweep.tokens_per_param
    return max((b for b in _budgets(sweep, size) if low <= _ratio(sweep, size, b) <= high), default=budget)


def _batch(sweep: SweepConfig, size: Any, horizon: float, factor: float = 1.0) -> int:
    """Return sequences a step: the rule's tokens, times a factor, in whole sequences."""
    n, context = _params(sweep, size), sweep.shape(size).context
    return max(1, round(factor * sweep.batch_tokens(n, horizon / _flops_per_token(sweep, size)) / context))


def _cooldown(base: RunConfig, steps: int) -> int:
    """Return the steps of the cooldown, in whole calls."""
    call = base.steps_per_call
    return max(call, round(base.optim.cooldown * steps / call) * call)


def _steps(sweep: SweepConfig, size: Any, budget: float, horizon: float, batch_factor: float = 1.0) -> tuple[int, str]:
    """Return the steps of a cell, in whole calls, and the reason to remove it, if there is one."""
    ratio, (low, high) = _ratio(sweep, size, budget), sweep.tokens_per_param
    if not low <= ratio <= high:
        return 0, f"has {ratio:.3g} tokens per parameter, outside {low:g} to {high:g}"
    call = sweep.base.steps_per_call
    tokens_per_step = _batch(sweep, size, horizon, batch_factor) * sweep.shape(size).context
    exact = budget / _flops_per_token(sweep, size) / tokens_per_step
    steps = round(exact / call) * call
    if steps < sweep.min_steps:
        return 0, f"has {exact:.0f} steps, below min_steps {sweep.min_steps}"
    if abs(steps / exact - 1) > ROUNDING:
        return 0, f"misses its budget by {steps / exact - 1:+.0%} in whole calls of {call} steps"
    if _cooldown(sweep.base, steps) >= steps:
        return 0, f"has {steps} steps, all of which one call of {call} cools down"
    return steps, ""


def _config(
    sweep: SweepConfig, size: Any, seed: int, steps: int, horizon: float, factors: Factors = Factors()
) -> RunConfig:
    """Fill the base run in for a size."""
    base, model, n = sweep.base, sweep.shape(size), _params(sweep, size)
    d, batch = horizon / _flops_per_token(sweep, size), _batch(sweep, size, horizon, factors.batch)
    warmup = round(sweep.warmup_tokens(n, d) / (batch * model.context))
    optim = replace(
        base.optim,
        lr=factors.lr * sweep.lr(n, d),
        b2=sweep.b2(n, d),
        warmup=max(1, min(warmup, steps // 10)),
        cooldown=_cooldown(base, steps) / steps,
    )
    return replace(base, model=model, optim=optim, batch=batch, steps=steps, seed=seed)


def _runs_of_size(
    sweep: SweepConfig, size: Any, seed: int, steps: dict[float, int], factors: Factors
) -> list[PlannedRun]:
    suffix = factors.suffix + (f"-s{seed}" if seed != sweep.seeds[0] else "")
    configs = {b: _config(sweep, size, seed, n, _horizon(sweep, size, b), factors) for b, n in steps.items()}
    runs, parent = [], None
    if sweep.base.optim.schedule == "wsd":
        warmup = min(config.optim.warmup for config in configs.values())
        configs = {b: replace(c, optim=replace(c.optim, warmup=warmup)) for b, c in configs.items()}
        starts = tuple(branch_step(config) for config in configs.values())
        largest = max(configs)
        trunk = replace(
            configs[largest],
            optim=replace(configs[largest].optim, schedule="constant"),
            steps=max(starts),
            save=replace(sweep.base.save, at=starts),
        )
        branches = f"{zlib.crc32(repr(starts).encode()):08x}"[:4]  # a trunk with other branches is another trunk
        parent = f"{label(size)}-trunk-{branches}{suffix}"
        runs.append(_planned(sweep, parent, "trunk", size, largest, trunk))
        of = fingerprint(replace(trunk, steps=1))
        configs = {b: replace(c, init_from=InitFrom(parent, branch_step(c), of)) for b, c in configs.items()}
    for budget, config in configs.items():
        runs.append(_planned(sweep, f"{label(size)}-{short(budget)}{suffix}", "cell", size, budget, config, parent))
    return runs


def branch_step(config: RunConfig) -> int:
    """Return the step at which a run with a cooldown leaves its trunk."""
    return cooldown_start(config.optim, config.steps)


def _planned(
    sweep: SweepConfig,
    name: str,
    role: Literal["cell", "trunk", "holdout"],
    size: Any,
    budget: float,
    config: RunConfig,
    parent: str | None = None,
) -> PlannedRun:
    tokens = config.steps * config.tokens_per_step
    own = config.steps - config.first_step
    per_token = _flops_per_token(sweep, size)
    paid = own * config.tokens_per_step * per_token
    return PlannedRun(
        name,
        role,
        label(size),
        budget,
        _params(sweep, size),
        tokens,
        tokens * per_token if role != "trunk" else 0.0,
        paid,
        sweep.speed.seconds(paid, own),
        parent,
        config,
    )


COLUMNS = ("run", "N", "D", "D/N", "steps", "batch", "lr", "FLOPs", "off", "seconds")


def describe(sweep: SweepConfig, workers: int) -> str:
    """Draw the plan as a table: each run (own/all steps of a branch), what was removed and why, and the totals."""
    plan = make_plan(sweep)
    table = [COLUMNS]
    for run in plan.runs:
        c = run.config
        own = f"{c.steps - c.first_step}/{c.steps}" if c.first_step else f"{c.steps}"
        off = f"{run.flops / run.budget - 1:+.1%}" if run.role == "cell" else ""
        sizes = (run.name, f"{run.params:,}", f"{run.tokens:,}", f"{run.tokens / run.params:.1f}")
        table.append((*sizes, own, f"{c.batch}", f"{c.optim.lr:.2e}", short(run.flops_paid), off, f"{run.seconds:.0f}"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    paid, credited = (sum(getattr(run, what) for run in plan.runs) for what in ("flops_paid", "flops"))
    cells = sum(run.role == "cell" for run in plan.runs)
    seconds = sum(run.seconds for run in plan.runs) / workers
    lines += [
        "",
        f"{cells} cells; {plan.convention} FLOPs: paid {paid:.3g}, credited {credited:.3g} ({paid / credited:.0%})",
        f"predicted time: {seconds:,.0f} s with {workers} worker(s)",
    ]
    if sweep.holdout:
        run = holdout_run(sweep, _params(sweep, sweep.holdout_sizes[0]))
        lines.append(f"then a held-out run of {short(run.flops)} FLOPs: about {run.seconds:,.0f} s")
    for budget in sweep.budgets:
        n = sum(run.role == "cell" and run.budget == budget for run in plan.runs)
        lines.append(f"budget {short(budget)}: {n} cells")
    return "\n".join([*lines, *(f"removed: {r.size} at {short(r.budget)} {r.reason}" for r in plan.removed)])
