"""A proposed sweep as a value: what it may cost, what it does cost, and how it was derived."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws.law import Law
from gptjax.laws.planning.precision import Errors, Goal, standard_errors
from gptjax.laws.table import short
from gptjax.sweep.plan import Plan, PlannedRun, Speed, SweepConfig
from gptjax.sweep.plan import short as flops_of

if TYPE_CHECKING:
    from gptjax.sweep.own_text import OwnText

DELTA = 1e-3  # of the Huber fit that errors are expected of
KEPT = 0.1  # of the minutes: kept for what no estimate sees
LEAST_SIZES = 4  # of a budget: fewer give no minimum that can be checked
BESIDE = 1.2  # times N*, and so many times below it, there must be sizes


@dataclass(frozen=True)
class Derived:
    """A line of a derivation, and the paper or the measurement that its rule comes from."""

    text: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.source})" if self.source else self.text


@dataclass(frozen=True)
class Allowance:
    """What a sweep may cost, its held-out run and its report included, and the tokens that it may read."""

    flops: float = math.inf  # paid, under the sweep's convention
    seconds: float = math.inf
    tokens: float = math.inf  # of training text at hand, which no run may read twice
    before: float = 0.0  # seconds that pass before the first run, as to tokenize

    def __post_init__(self) -> None:
        if not self.flops > 0 or self.flops == math.inf == self.seconds:
            raise BadInput(f"{self.flops:g} FLOPs buy no sweep; give a number of FLOPs or of minutes above 0")
        if not self.seconds > 0:
            raise BadInput(f"{self.seconds / 60:g} minutes buy no sweep; give a number above 0")


@dataclass(frozen=True)
class Budgeting:
    """So many budgets, over so large a factor."""

    budgets: int
    span: float

    @property
    def apart(self) -> float:
        return float(self.span ** (1 / (self.budgets - 1)))


@dataclass(frozen=True)
class Priced:
    """A sweep with its plan and what it costs, in seconds of the clock and in FLOPs paid."""

    sweep: SweepConfig
    plan: Plan
    held_out: PlannedRun | None
    seconds_before: float
    seconds_of_runs: float
    seconds_of_held_out: float
    seconds_of_report: float

    @property
    def cells(self) -> list[PlannedRun]:
        return [run for run in self.plan.runs if run.role == "cell"]

    @property
    def seconds(self) -> float:
        return self.seconds_before + self.seconds_of_runs + self.seconds_of_held_out + self.seconds_of_report

    @property
    def flops(self) -> float:
        """FLOPs paid, under the sweep's convention."""
        return sum(run.flops_paid for run in self.plan.runs) + (self.held_out.flops_paid if self.held_out else 0.0)

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest run."""
        return max(run.tokens for run in (*self.cells, *([self.held_out] if self.held_out else [])))

    def within(self, allowance: Allowance) -> bool:
        enough = self.flops <= allowance.flops and self.most_tokens <= allowance.tokens
        return enough and self.seconds <= (1 - KEPT) * allowance.seconds

    def fault(self, law: Law) -> str:
        """Say which budget has too few sizes about its expected optimum, or nothing."""
        for budget in self.sweep.budgets:
            sizes = sorted({run.params for run in self.cells if run.budget == budget})
            best = law.optimum(flops=budget).params
            if len(sizes) < LEAST_SIZES or not sizes[0] < best / BESIDE < best * BESIDE < sizes[-1]:
                ends = f" from {short(sizes[0])} to {short(sizes[-1])} parameters" if sizes else ""
                return f"budget {flops_of(budget)}, best near {short(best)} parameters, has {len(sizes)} sizes{ends}"
        return ""

    def errors(self, law: Law, noise: float, target: float) -> Errors:
        """Expect the standard errors of a parametric fit to the cells."""
        n, d = ([getattr(run, name) for run in self.cells] for name in ("params", "tokens"))
        return standard_errors(law, n, d, noise=noise, target_flops=target, delta=DELTA)


@dataclass(frozen=True)
class Proposal:
    """A sweep that fits an allowance, what is expected of it, and how it was derived, line by line."""

    priced: Priced
    allowance: Allowance
    layout: Budgeting
    law: Law
    law_name: str
    noise: float
    goal: Goal
    target_flops: float
    errors: Errors
    workers: int
    alone: Speed  # of a run that has the machine for itself
    derivation: tuple[Derived, ...] = ()
    of: str = ""  # FILE[:NAME] of the base sweep, where it has one
    own: "OwnText | None" = None  # what the base sweep was made of, where it was made for a corpus

    @property
    def sweep(self) -> SweepConfig:
        return self.priced.sweep

    def describe(self) -> str:
        """Write the derivation line by line."""
        return "\n".join(map(str, self.derivation))

    def to_json(self) -> dict[str, Any]:
        """Give what is proposed as a JSON object: cells, costs, expected errors and derivation."""
        p, s = self.priced, self.sweep
        cells = [
            {"run": c.name, "size": c.size, "budget": c.budget, "params": c.params, "tokens": c.tokens,
             "flops": c.flops, "seed": c.config.seed, "batch": c.config.batch, "lr": c.config.optim.lr}
            for c in p.cells
        ]  # fmt: skip
        found = {
            "budgets": s.budgets,
            "sizes": [str(size) for size in s.sizes],
            "tokens_per_param": s.tokens_per_param,
            "seeds": s.seeds,
            "repeats": [{"size": str(r.size), "budget": r.budget, "times": r.times} for r in s.repeats],
            "cells": cells,
            "held_out": {"flops": s.holdout, "size": p.held_out.size, "tokens": p.held_out.tokens}
            if p.held_out
            else None,
            "paid": p.flops,
            "credited": sum(run.flops for run in p.cells),
            "most_tokens": p.most_tokens,
            "seconds": {
                "before": p.seconds_before,
                "runs": p.seconds_of_runs,
                "held_out": p.seconds_of_held_out,
                "report": p.seconds_of_report,
                "all": p.seconds,
            },
            "workers": self.workers,
            "law": self.law_name,
            "noise": self.noise,
            "goal": self.goal,
            "target_flops": self.target_flops,
            "errors": vars(self.errors),
            "derivation": [vars(line) for line in self.derivation],
        }
        return dict(plain(found))
