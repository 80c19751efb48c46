"""A proposed sweep in lines: each rule with the number that it gave, and the paper or measurement behind it."""

import math
from collections.abc import Iterator

from gptjax.laws.table import short
from gptjax.sweep.follow import duration
from gptjax.sweep.plan import short as flops_of
from gptjax.sweep.proposal import KEPT, Derived, Proposal
from gptjax.sweep.rules import Rule

ISOFLOP = "budgets and sizes about each optimum: Hoffmann et al. 2022, section 3.2"
REPEATED = "c-optimal design: Pukelsheim 1993"
TRUNK = "a trunk a size, and a cooldown of {:.0%} for each budget: Hägele et al. 2024"


def derivation(proposal: Proposal) -> Iterator[Derived]:
    """Yield the lines of what a proposal chose, from its largest budget to what is expected of it."""
    p, s, allowance = proposal.priced, proposal.sweep, proposal.allowance
    yield largest_budget(proposal)
    apart = f"a factor {proposal.layout.apart:.2g} apart, over {proposal.layout.span:g}x"
    yield Derived(f"budgets: {len(s.budgets)}, {apart}: {', '.join(map(flops_of, s.budgets))} FLOPs", ISOFLOP)
    first, last = (proposal.law.optimum(flops=budget).params for budget in (s.budgets[0], s.budgets[-1]))
    n = [run.params for run in p.cells]
    near = f"about N* = {short(first)} to {short(last)}"
    sizes = f"sizes: {len(s.sizes)} of {short(min(n))} to {short(max(n))} parameters, {near}"
    yield Derived(f"{sizes}; {len(p.cells)} cells, D/N from {reach(proposal)}", f"law: {proposal.law_name}")
    yield Derived(f"learning rate: {over(proposal, s.lr, '{:.2g}')}", source(s.lr))
    yield Derived(f"batch: {over(proposal, s.batch_tokens, '{:,.0f}')} tokens", source(s.batch_tokens))
    if s.base.optim.name != "adamw":
        yield Derived(f"{s.base.optim.name}: the rules of rate were tuned for AdamW and no rule of the literature "
                      "transfers unchanged; set lr_factors=(1.0, 2.0, 4.0) on the smallest sizes first",
                      "docs/laws.md, Hyper-parameters")  # fmt: skip
    if s.base.optim.schedule == "wsd":
        yield Derived(f"schedule: {TRUNK.format(s.base.optim.cooldown)}")
    yield seeds(proposal)
    if p.held_out:
        times = s.holdout / s.budgets[-1]
        run = f"{flops_of(s.holdout)} FLOPs, {short(p.held_out.params)} parameters on {short(p.held_out.tokens)} tokens"
        yield Derived(f"held-out run at {times:.2g}x: {run}: {duration(p.seconds_of_held_out)}, its forecast included")
    yield Derived(
        f"report: {duration(p.seconds_of_report)}", "fits, draws and simulated sweeps: a guess from one report"
    )
    runs = f"of runs on {proposal.workers} worker{'s' * (proposal.workers > 1)}"
    parts = {"to tokenize": p.seconds_before, runs: p.seconds_of_runs, "held-out": p.seconds_of_held_out,
             "report": p.seconds_of_report}  # fmt: skip
    sums = " + ".join(f"{seconds / 60:.1f} {name}" for name, seconds in parts.items() if seconds)
    within = ""
    if math.isfinite(allowance.seconds):
        within = f" of {allowance.seconds / 60:g}, of which {KEPT:.0%} are kept for what no estimate sees"
    paid = f"FLOPs paid {p.flops:.3g}" + (f" of {flops_of(allowance.flops)}" if math.isfinite(allowance.flops) else "")
    yield Derived(f"in all: {sums} = {p.seconds / 60:.1f} minutes{within}; {paid}")
    promise = proposal.errors.at(f"at {flops_of(proposal.target_flops)} FLOPs")
    yield Derived(f"expected standard errors, if the law holds and a run's log loss has noise {proposal.noise:.3g}: "
                  f"{promise}")  # fmt: skip


def largest_budget(proposal: Proposal) -> Derived:
    """Say how high the largest budget is, and whether compute or text sets it."""
    p, allowance = proposal.priced, proposal.allowance
    top = f"largest budget: {flops_of(p.sweep.budgets[-1])} FLOPs"
    longest = f"its longest run reads {p.most_tokens:,} tokens"
    if not math.isfinite(allowance.tokens):
        return Derived(f"{top}: {longest}, which the corpus should hold (gptjax data counts it)")
    text_binds = p.most_tokens > 0.9 * allowance.tokens
    why = "so that no run repeats data" if text_binds else "by what can be paid for; no run repeats data"
    beyond = "repeats are worth ever less: Muennighoff et al. 2023"
    return Derived(f"{top}, {why}: {longest} of {allowance.tokens:,.0f}", beyond)


def seeds(proposal: Proposal) -> Derived:
    """Say how many seeds a cell has, and which cells are repeated."""
    s = proposal.sweep
    each = f"seeds: {len(s.seeds)} a cell"
    if not s.repeats:
        return Derived(each)
    again = ", ".join(f"{r.size} at {flops_of(r.budget)}" + f" {r.times} times" * (r.times > 1) for r in s.repeats)
    goal = {"a": "a", "params": "log N*", "loss": "log loss"}[proposal.goal]
    return Derived(f"{each}, and again where that lowers the error of {goal} most: {again}", REPEATED)


def reach(proposal: Proposal) -> str:
    ratios = [run.tokens / run.params for run in proposal.priced.cells]
    return f"{min(ratios):.2g} to {max(ratios):.3g}"


def over(proposal: Proposal, rule: Rule, form: str) -> str:
    """Say what a rule gives the cells, from the smallest to the largest model."""
    cells = sorted(proposal.priced.cells, key=lambda run: run.params)
    field = "lr" if rule is proposal.sweep.lr else "batch"
    values = []
    for run in (cells[0], cells[-1]):
        values.append(run.config.optim.lr if field == "lr" else run.config.tokens_per_step)
    first, last = (form.format(value) for value in values)
    return first if first == last else f"{first} at the smallest size to {last} at the largest"


def source(rule: Rule) -> str:
    """Say where a rule comes from, if it says so itself."""
    return str(getattr(rule, "source", "the file's own rule"))
