"""What all executors share: what is pending, how far it is, and `work`, which takes runs one at a time, each once.

An executor is a function of a plan and a directory that returns when every run of the plan is done or failed: of
local.py processes of this machine, of slurm.py jobs, of ray.py tasks.
"""

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gptjax import storage
from gptjax.data.loader import open_stores
from gptjax.errors import BadInput
from gptjax.hosts import agree, is_first, preempted
from gptjax.leases import Lease, Lost, confirm
from gptjax.question import fingerprint
from gptjax.sweep.ledger import Ledger, Row
from gptjax.sweep.plan import Plan, PlannedRun
from gptjax.train.checkpoint import damage
from gptjax.train.loop import PREEMPTED, Preempted, catch_sigterm, train
from gptjax.train.metrics import read_metrics

Executor = Callable[[Plan, Path], None]
POLL_SECONDS = 0.5


def begin(plan: Plan, directory: Path) -> Ledger:
    """Write the plan where workers read it, with its data tokenized; names that stand for other runs are BadInput."""

    def write() -> None:
        rows = Ledger(directory).rows()
        for run in plan.runs:
            if run.name in rows and rows[run.name]["fingerprint"] != fingerprint(run.config):
                raise BadInput(f"{directory} holds {run.name} of another config; use a new --dir")
        for data in {run.config.data for run in plan.runs}:
            open_stores(data)
        directory.mkdir(parents=True, exist_ok=True)
        plan.save(directory / "plan.json")

    agree(write)
    return Ledger(directory)


def pending(plan: Plan, ledger: Ledger) -> list[PlannedRun]:
    """Return the runs without a row in the ledger, except trunks that nothing pending needs."""
    rows = ledger.rows()
    missing = [run for run in plan.runs if run.name not in rows]
    needed = {run.parent for run in missing}
    return [run for run in missing if run.role != "trunk" or run.name in needed]


def status(directory: Path) -> str:
    """Say of each run whether it is done, failed, running or pending, with its loss or how far it is."""
    plan, ledger = Plan.load(directory / "plan.json"), Ledger(directory)
    rows = ledger.rows()
    lines, counts = [], dict.fromkeys(("done", "failed", "running", "pending"), 0)
    for run in plan.runs:
        row = rows.get(run.name)
        state = row["status"] if row else "running" if ledger.is_locked(run.name) else "pending"
        metrics = [] if row else read_metrics(directory / "runs" / run.name / "metrics.jsonl")
        text = f"step {metrics[-1]['step']} of {run.config.steps}" if metrics else ""
        if row:
            text = f"loss {row['loss']:.4f} in {row['seconds']:.0f} s" if state == "done" else row["reason"]
        counts[state] += 1
        lines.append(f"{run.name:<24}{state:<9}{text}")
    return "\n".join([*lines, ", ".join(f"{n} {state}" for state, n in counts.items())])


def work(plan: Plan, directory: Path, only: Collection[str] | None = None, position: int = 0) -> None:
    """Take pending runs one at a time until none is left: branches of trunks trained here first, then the costliest.

    With `only`, runs of other names are left alone. A run that another worker holds is waited for, and taken over when
    that one is gone; one that another took over while this process stood still is left to it. All processes of one job
    call this together; the first decides for all.
    """
    ledger = Ledger(directory)
    runs = {run.name: run for run in plan.runs}
    mine: set[str] = set()
    lease: Lease | None = None
    costs = {run.name: sum(r.seconds for r in plan.runs if run.name in (r.name, r.parent)) for run in plan.runs}

    def take(held: ExitStack) -> str | None:
        """Lock a run that is ready and return its name, "" if others hold them all, None if nothing is left to do."""
        nonlocal lease
        todo = [run for run in pending(plan, ledger) if only is None or run.name in only]
        rows = ledger.rows()
        ready = [run for run in todo if run.parent is None or run.parent in rows]
        for run in sorted(ready, key=lambda run: (run.parent not in mine, -costs[run.name])):
            lease = held.enter_context(ledger.try_lock(run.name))
            if lease and run.name not in ledger.rows():
                return run.name
            held.close()
        if todo:
            time.sleep(POLL_SECONDS)
        return "" if todo else None

    with catch_sigterm() as terminated:
        while True:
            with ExitStack() as held, suppress(Lost):
                name = agree(partial(take, held))
                if name is None:
                    return
                if name:
                    finish(runs[name], ledger, directory, position, lease)
                    mine.add(name)
            if preempted(terminated):
                raise Preempted(PREEMPTED)


def finish(run: PlannedRun, ledger: Ledger, directory: Path, position: int, lease: Lease | None) -> None:
    """Train a run and write its row; the first process of the job holds its lease."""
    c = run.config
    facts = {"run": run.name, "role": run.role, "size": run.size, "budget": run.budget, "fingerprint": fingerprint(c)}
    if c.init_from and damage(directory / "runs" / c.init_from.run / "checkpoints", c.init_from.step):
        agree(partial(give_up, c.init_from.run, facts, ledger))
        return
    result = train(c, directory / "runs" / run.name, position=position, lease=lease)
    confirm(lease, directory / "runs" / run.name)
    if is_first():
        ledger.append({**facts, "batch": c.batch, "lr": c.optim.lr, "b2": c.optim.b2, **asdict(result)})


def give_up(trunk: str, facts: Row, ledger: Ledger) -> None:
    """Fail a branch that has no checkpoint to begin with if its trunk failed; else have that one trained anew."""
    with ledger.try_lock(trunk) as mine:
        row = ledger.rows().get(trunk)
        if row and row["status"] == "failed":
            ledger.append({**facts, "status": "failed", "reason": f"its trunk failed: {row['reason']}"})
        elif row and mine:
            for name in ("result.json", "checkpoints"):
                storage.remove(ledger.runs / trunk / name)
            ledger.forget(trunk)
