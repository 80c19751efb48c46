"""From budgets and sizes to runs: what each costs, what branches off what, and what rounding or limits removed."""

import itertools
import math
import numbers
import re
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gptjax.config import InitFrom, RunConfig, from_file, to_json
from gptjax.errors import BadInput
from gptjax.fields import INFINITE, check_values, wrong
from gptjax.files import write_json
from gptjax.fingerprint import fingerprint
from gptjax.models.cost import Cost
from gptjax.models.model import ModelConfig
from gptjax.sweep.rules import Rule, always, params_of, warmup_of_params
from gptjax.train.optim import cooldown_start

FILE_NAME = r"[^/.\x00-\x1f][^/\x00-\x1f]*"  # of a run: its directory and its row are named so
ROUNDING = 0.05  # a cell whose whole steps miss its budget by more than this share is removed


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold or a rule may give, and that in words."""

    words: str
    low: float
    high: float = math.inf  # not allowed itself
    open: bool = False  # low is not allowed either

    def __contains__(self, value: float) -> bool:
        return self.low <= value < self.high and not (self.open and value == self.low)


ABOVE_0 = Range("a finite number above 0", 0, open=True)
AT_LEAST_0 = Range("a finite number, 0 or more", 0)
AT_LEAST_1 = Range("at least 1", 1)
RULES = {
    "lr": ABOVE_0,
    "batch_tokens": ABOVE_0,
    "b2": Range("a number in [0, 1)", 0, 1),
    "warmup_tokens": AT_LEAST_0,
}
RANGES = {
    **dict.fromkeys(("budgets", "horizons", "lr_factors", "batch_factors"), ABOVE_0),
    "holdout": AT_LEAST_0,
    **dict.fromkeys(("min_steps", "workers", "pack"), AT_LEAST_1),
    "flops_per_second": ABOVE_0,
    **dict.fromkeys(("seconds_per_step", "seconds_per_run"), AT_LEAST_0),
}


def check_ranges(config: Any, path: str = "") -> None:
    """Refuse a number outside its field's range."""
    for name, allowed in RANGES.items():
        value = getattr(config, name, None)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and one not in allowed:
                raise BadInput(f"{path}{name} = {value!r} must be {allowed.words}; gptjax config names all fields")


@dataclass(frozen=True)
class Speed:
    """A machine's speed, for predicted seconds: arithmetic, and what each step and each run cost besides."""

    flops_per_second: float  # FLOPs a second, while a step computes
    seconds_per_step: float = 0.0  # seconds that each step takes besides
    seconds_per_run: float = 0.0  # seconds that each run takes besides, as to compile and to evaluate

    def __post_init__(self) -> None:
        check_values(self, "speed.")
        check_ranges(self, "speed.")

    def seconds(self, flops: float, steps: int) -> float:
        return flops / self.flops_per_second + steps * self.seconds_per_step + self.seconds_per_run


@dataclass(frozen=True)
class Repeat:
    """A cell that is trained again, with seeds of its own, where `gptjax plan` finds that this helps most."""

    size: Hashable
    budget: float
    times: int = 1  # besides the runs of the sweep's own seeds

    def __post_init__(self) -> None:
        check_values(self, "repeats: ")


@dataclass(frozen=True)
class SweepConfig:
    """A grid of budgets (or token horizons) x sizes around one base run; sizes are whatever `shape` turns into a model.

    With base.optim.schedule = "wsd", each size trains one trunk at a constant rate, and every budget is a cooldown
    branch of it; rules then see the largest D of their size. Otherwise each cell is a run of its own, and rules see its
    own D. A number in the place of a rule is that number always. Each cell is trained once for every factor of the
    rules' rate and every factor of their batch, a trunk likewise; the held-out run is trained at the rules' own.
    """

    base: RunConfig  # what all runs share; the sweep sets model, rate, b2, warmup, batch, steps and seed
    sizes: tuple[Hashable, ...]  # each a name or a number that `shape` turns into a model, as a width
    shape: Callable[[Any], ModelConfig]  # a function from a size to its model
    lr: Rule  # peak learning rate: a number, or a function of N (parameters) and D (tokens)
    batch_tokens: Rule  # tokens a step: a number, or a function of N and D
    budgets: tuple[float, ...] = ()  # training FLOPs of the cells, counted by `convention`
    horizons: tuple[float, ...] = ()  # instead of budgets: training tokens, the same for every size
    b2: Rule = always(0.95)  # Adam's second moment decay: a number, or a function of N and D
    warmup_tokens: Rule = warmup_of_params  # tokens of warmup, at most a tenth of the shortest run of a size
    lr_factors: tuple[float, ...] = (1.0,)  # train each cell at the rule's learning rate times each of these
    batch_factors: tuple[float, ...] = (1.0,)  # and at the rule's batch times each of these
    seeds: tuple[int, ...] = (0,)  # train each cell once for each seed
    repeats: tuple[Repeat, ...] = ()  # cells to train again, each with further seeds
    convention: str = "6n_total"  # how FLOPs are counted; gptjax/models/gpt_cost.py explains the conventions
    tokens_per_param: tuple[float, float] = (1.0, 1000.0)  # least and most D/N of a cell; others are removed
    min_steps: int = 50  # fewest steps of a cell; others are removed
    holdout: float = 0.0  # FLOPs of one larger run, predicted before it is trained; 0: there is none
    holdout_sizes: tuple[Hashable, ...] = ()  # sizes it may have: the nearest to the predicted optimum is trained
    speed: Speed = Speed(2e10)  # of the machine, for the predicted seconds
    workers: int = 1  # processes on this machine, each on its share of the cores
    pack: int = 8  # most runs of one shape that a process alone on its devices trains together; 1: each by itself
    title: str = ""  # of the report; empty: named after the corpus
    arm: Callable[[Any], str] | None = None  # a function from a size to the arm it belongs to; null: there is one arm

    def __post_init__(self) -> None:
        for name in RULES:
            rule = getattr(self, name)
            if isinstance(rule, numbers.Real):
                object.__setattr__(self, name, always(rule))  # type: ignore[arg-type]  # asked, it is checked
            elif not callable(rule):
                raise BadInput(f"{name} = {rule!r} is neither a number nor a rule(N, D); give one of the two")
        check_values(self, seeds=("seeds",))
        check_ranges(self)
        low, high = self.tokens_per_param
        if not 0 <= low < high:
            raise BadInput(
                f"tokens_per_param = {self.tokens_per_param} must be the least and the most; give two, as [1, 1000]"
            )
        if bool(self.budgets) == bool(self.horizons) or not self.sizes or not self.seeds:
            raise BadInput("a sweep needs budgets or horizons, not both, and at least one size and one seed")
        for name in ("lr_factors", "batch_factors"):
            if not getattr(self, name):
                raise BadInput(f"{name} = () must be one number or more, each above 0; 1 is the rule's own")
        for again in self.repeats:
            if again.size not in self.sizes or again.budget not in self.budgets or again.times < 1:
                raise BadInput(f"{again} must name one of the sweep's sizes, one of its budgets, and 1 time or more")
        if self.arm and self.holdout:
            raise BadInput("holdout: a sweep of several arms has a law for each and predicts no run; leave one out")
        if self.holdout and not self.holdout_sizes:
            raise BadInput("holdout needs holdout_sizes to choose its model from; give at least one size")


@dataclass(frozen=True)
class Trial:
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
    arm: str = ""  # which of several ladders a cell stands on

    def __post_init__(self) -> None:
        for name in (self.name, *([self.parent] if self.parent else [])):
            if not re.fullmatch(FILE_NAME, name):
                raise BadInput(f"run {name!r} would be written elsewhere: a name may not begin with a dot or hold /")
        trunk = self.config.init_from.run if self.config.init_from and self.config.first_step else None
        if trunk != self.parent:
            raise BadInput(f"run {self.name} begins at {trunk} and its parent is {self.parent}; plan the sweep anew")


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
    holdout_seconds: float = 0.0  # predicted, of a held-out run that joins `runs` once the law is known; 0: none will

    def save(self, path: Path) -> None:
        write_json(path, to_json(self))

    @staticmethod
    def load(path: Path) -> "Plan":
        return from_file(Plan, path)


def make_plan(sweep: SweepConfig) -> Plan:
    """Lay out every budget x size x batch x rate x seed as runs."""
    runs: list[PlannedRun] = []
    removed: list[Removed] = []
    for size in sweep.sizes:
        sized = Sized.of(sweep, size)
        for batch in sweep.batch_factors:
            steps = {}
            for budget in sized.budgets:
                steps[budget], reason = _steps(sweep, sized, budget, batch)
                if reason:
                    removed.append(Removed(size_label(size) + Trial(batch=batch).suffix, budget, reason))
                    del steps[budget]
            for lr, seed in itertools.product(sweep.lr_factors, sweep.seeds):
                runs += _runs_of_size(sweep, sized, seed, steps, Trial(lr, batch)) if steps else []
        runs += _repeats_of_size(sweep, sized)
    if not runs:
        raise BadInput(f"no cell is left: {removed[0].size} at {removed[0].budget:.3g} {removed[0].reason}")
    if twice := next((name for name, n in Counter(run.name for run in runs).items() if n > 1), None):
        raise BadInput(
            f"two cells are called {twice}; give budgets that differ in three digits, and each size and factor once"
        )
    plan = Plan(sweep.convention, tuple(runs), tuple(removed))
    if not sweep.holdout:
        return plan
    first = Sized.of(sweep, sweep.holdout_sizes[0])
    return replace(plan, holdout_seconds=holdout_run(sweep, first.params).seconds)


def holdout_run(sweep: SweepConfig, target_params: float) -> PlannedRun:
    """Plan the held-out run: of the candidates that its budget allows, the nearest in size to the predicted optimum."""
    sizes = [replace(Sized.of(sweep, size), horizon=sweep.holdout) for size in sweep.holdout_sizes]
    found = [(sized, *_steps(sweep, sized, sweep.holdout)) for sized in sizes]
    allowed = [(sized, steps) for sized, steps, reason in found if not reason]
    if not allowed:
        sized, _, reason = found[0]
        raise BadInput(f"no held-out run fits {short(sweep.holdout)} FLOPs: {size_label(sized.size)} {reason}")
    sized, steps = min(allowed, key=lambda one: abs(math.log(one[0].params / target_params)))
    config = _config(sweep, sized, sweep.seeds[0], steps, steps, sweep.holdout, Trial())
    name = f"{size_label(sized.size)}-holdout-{short(sweep.holdout)}"
    return _planned(sweep, name, "holdout", sized, sweep.holdout, config)


def size_label(size: Hashable) -> str:
    """Name a size: widths as d64, presets as they are, of several parts all joined by hyphens."""
    if isinstance(size, tuple):
        return "-".join(map(size_label, size))
    return f"d{size}" if isinstance(size, int) else str(size)


def short(flops: float) -> str:
    return f"{flops:.3g}".replace("e+", "e")


@dataclass(frozen=True)
class Sized:
    """A size of a sweep as a model, with what follows from it: worked out once, however many its cells."""

    size: Hashable
    model: ModelConfig
    cost: Cost
    flops_per_token: float  # under the sweep's convention
    budgets: tuple[float, ...]  # in order: the sweep's, or what its horizons cost
    horizon: float | None  # the budget whose D the rules see: the trunk's largest; None: each cell's own
    arm: str = ""

    @staticmethod
    def of(sweep: SweepConfig, size: Any) -> "Sized":
        """Ask `shape` for a size; BadInput names the size if it gives no model, or one that cannot be."""
        if not re.fullmatch(FILE_NAME, size_label(size)):
            raise BadInput(f"size {size!r} names files: it may not begin with a dot or hold / or line ends; rename it")
        model = _called(f"shape({size!r})", sweep.shape, size)
        if isinstance(model, type) or not isinstance(model, ModelConfig):
            raise BadInput(f"shape({size!r}) gives {model!r}; it must give a model's config, as GPTConfig")
        cost = model.cost(model.context)
        if not cost.total < INFINITE:
            raise BadInput(f"shape({size!r}) gives a model with more than {INFINITE:g} parameters; give a smaller size")
        if sweep.convention not in cost.flops:
            raise BadInput(f"convention {sweep.convention!r} is not one of {', '.join(cost.flops)}")
        per_token = cost.flops[sweep.convention]
        budgets = tuple(sorted(sweep.budgets or (tokens * per_token for tokens in sweep.horizons)))
        arm = _called(f"arm({size!r})", sweep.arm, size) if sweep.arm else ""
        if not isinstance(arm, str):
            raise BadInput(f"arm({size!r}) gives {arm!r}; it must give the name of an arm, as 'lstm'")
        sized = Sized(size, model, cost, per_token, budgets, None, arm)
        if sweep.base.optim.schedule != "wsd":
            return sized
        low, high = sweep.tokens_per_param
        return replace(sized, horizon=max((b for b in budgets if low <= sized.ratio(b) <= high), default=None))

    @property
    def params(self) -> int:
        return self.cost.total

    def ratio(self, budget: float) -> float:
        """Return the tokens per parameter that a budget buys."""
        return budget / self.flops_per_token / self.params

    def ask(self, sweep: SweepConfig, name: str, budget: float) -> float:
        """Ask a rule of the sweep for this size; BadInput says which rule gave what where if it is no such number."""
        rule: Rule = getattr(sweep, name)
        n, d = params_of(rule, self.cost), (self.horizon or budget) / self.flops_per_token
        where = f"at size {size_label(self.size)} (N = {n:,}, D = {d:.4g})"
        value = _called(f"{name} {where}", rule, n, d)
        if wrong(value, float) or value not in RULES[name]:
            raise BadInput(f"{name} gives {value!r} {where} and must give {RULES[name].words}; set another {name}")
        return value


def _called(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that the user wrote; whatever it raises is told in one line, with the line that raised it."""
    try:
        return function(*args)
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from None
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadInput(f"{what} fails with {said} ({Path(at.filename).name}:{at.lineno}); mend it there") from error


def _batch(sweep: SweepConfig, sized: Sized, budget: float, factor: float) -> int:
    """Return sequences a step: the rule's tokens, times a factor, in whole sequences."""
    return max(1, round(factor * sized.ask(sweep, "batch_tokens", budget) / sized.model.context))


def _cooldown(base: RunConfig, steps: int) -> int:
    """Return the steps of the cooldown, in whole calls."""
    call = base.steps_per_call
    return max(call, round(base.optim.cooldown * steps / call) * call)


def _steps(sweep: SweepConfig, sized: Sized, budget: float, batch_factor: float = 1.0) -> tuple[int, str]:
    """Return the steps of a cell, in whole calls, and the reason to remove it, if there is one."""
    ratio, (low, high) = sized.ratio(budget), sweep.tokens_per_param
    if not low <= ratio <= high:
        return 0, f"has {ratio:.3g} tokens per parameter, outside {low:g} to {high:g}"
    call = sweep.base.steps_per_call
    tokens_per_step = _batch(sweep, sized, budget, batch_factor) * sized.model.context
    exact = budget / sized.flops_per_token / tokens_per_step
    steps = round(exact / call) * call
    if steps < sweep.min_steps:
        return 0, f"has {exact:.0f} steps, below min_steps {sweep.min_steps}"
    if abs(steps / exact - 1) > ROUNDING:
        return 0, f"misses its budget by {steps / exact - 1:+.0%} in whole calls of {call} steps"
    if _cooldown(sweep.base, steps) >= steps:
        return 0, f"has {steps} steps, all of which one call of {call} cools down"
    return steps, ""


def _config(
    sweep: SweepConfig, sized: Sized, seed: int, steps: int, shortest: int, budget: float, factors: Trial
) -> RunConfig:
    """Fill the base run in for a cell; its warmup ends in the first tenth of the `shortest` run that shares it."""
    base, batch = sweep.base, _batch(sweep, sized, budget, factors.batch)
    warmup = round(sized.ask(sweep, "warmup_tokens", budget) / (batch * sized.model.context))
    optim = replace(
        base.optim,
        lr=factors.lr * sized.ask(sweep, "lr", budget),
        b2=sized.ask(sweep, "b2", budget),
        warmup=max(1, min(warmup, shortest // 10)),
        cooldown=_cooldown(base, steps) / steps,
    )
    return replace(base, model=sized.model, optim=optim, batch=batch, steps=steps, seed=seed)


def _runs_of_size(
    sweep: SweepConfig, sized: Sized, seed: int, steps: dict[float, int], factors: Trial
) -> list[PlannedRun]:
    suffix = factors.suffix + (f"-s{seed}" if seed != sweep.seeds[0] else "")
    branching = sweep.base.optim.schedule == "wsd"
    shortest = min(steps.values())
    configs = {b: _config(sweep, sized, seed, n, shortest if branching else n, b, factors) for b, n in steps.items()}
    runs, parent = [], None
    if branching:
        starts = tuple(branch_step(config) for config in configs.values())
        largest = max(configs)
        trunk = replace(
            configs[largest],
            optim=replace(configs[largest].optim, schedule="constant"),
            steps=max(starts),
            save=replace(sweep.base.save, at=starts),
        )
        branches = f"{zlib.crc32(repr(starts).encode()):08x}"[:4]  # a trunk with other branches is another trunk
        parent = f"{size_label(sized.size)}-trunk-{branches}{suffix}"
        runs.append(_planned(sweep, parent, "trunk", sized, largest, trunk))
        of = fingerprint(replace(trunk, steps=1))
        configs = {b: replace(c, init_from=InitFrom(parent, branch_step(c), of)) for b, c in configs.items()}
    for budget, config in configs.items():
        name = f"{size_label(sized.size)}-{short(budget)}{suffix}"
        runs.append(_planned(sweep, name, "cell", sized, budget, config, parent))
    return runs


def _repeats_of_size(sweep: SweepConfig, sized: Sized) -> list[PlannedRun]:
    """Train some cells of a size again, at the rules' own rate and batch, with seeds that no other run has."""
    again = Counter({r.budget: r.times for r in sweep.repeats if r.size == sized.size})
    fits = {budget: steps for budget in again if (steps := _steps(sweep, sized, budget)[0])}
    runs: list[PlannedRun] = []
    for i in range(max((again[budget] for budget in fits), default=0)):
        left = {budget: n for budget, n in fits.items() if again[budget] > i}
        runs += _runs_of_size(sweep, sized, max(sweep.seeds) + 1 + i, left, Trial())
    return runs


def branch_step(config: RunConfig) -> int:
    """Return the step at which a run with a cooldown leaves its trunk."""
    return cooldown_start(config.optim, config.steps)


def _planned(
    sweep: SweepConfig,
    name: str,
    role: Literal["cell", "trunk", "holdout"],
    sized: Sized,
    budget: float,
    config: RunConfig,
    parent: str | None = None,
) -> PlannedRun:
    tokens = config.steps * config.tokens_per_step
    own = config.steps - config.first_step
    paid = own * config.tokens_per_step * sized.flops_per_token
    return PlannedRun(
        name,
        role,
        size_label(sized.size),
        budget,
        sized.params,
        tokens,
        tokens * sized.flops_per_token if role != "trunk" else 0.0,
        paid,
        sweep.speed.seconds(paid, own),
        parent,
        config,
        sized.arm,
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
        run = holdout_run(sweep, Sized.of(sweep, sweep.holdout_sizes[0]).params)
        lines.append(f"then a held-out run of {short(run.flops)} FLOPs: about {run.seconds:,.0f} s")
    at = Counter(run.budget for run in plan.runs if run.role == "cell")
    lines += [f"budget {short(budget)}: {at[budget]} cells" for budget in sweep.budgets]
    return "\n".join([*lines, *(f"removed: {r.size} at {short(r.budget)} {r.reason}" for r in plan.removed)])
