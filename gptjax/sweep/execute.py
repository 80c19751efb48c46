"""What all executors share: what is pending, how far it is, and `work`, which takes the runs, each once.

An executor is a function of a plan and a directory that returns when every run of the plan is done or failed: of
local.py processes of this machine, of slurm.py jobs, of ray.py tasks.
"""

import time
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gptjax import storage
from gptjax.config import RunConfig, differs
from gptjax.data.loader import open_stores
from gptjax.errors import BadInput
from gptjax.hosts import agree, is_first, preempted
from gptjax.leases import Lease, Lost, confirm
from gptjax.question import fingerprint
from gptjax.sweep.ledger import Ledger, Row
from gptjax.sweep.plan import Plan, PlannedRun
from gptjax.train.checkpoint import damage
from gptjax.train.loop import PREEMPTED, Preempted, catch_sigterm, compile_ahead, training
from gptjax.train.metrics import read_metrics
from gptjax.train.optim import without_schedule
from gptjax.train.pack import Run, advance

Executor = Callable[[Plan, Path], None]
POLL_SECONDS = 0.5
STATE_BYTES = 12  # for each parameter: a weight and two moments
PACKED_BYTES = 2**30  # of state: larger models fill a device alone, and several may not fit it


def begin(plan: Plan, directory: Path) -> Ledger:
    """Write the plan where workers read it, with its data tokenized; names that stand for other runs are BadInput."""

    def write() -> None:
        rows = Ledger(directory).rows()
        for run in plan.runs:
            if run.name in rows and rows[run.name]["fingerprint"] != fingerprint(run.config):
                other = differs(directory / "runs" / run.name, run.config)
                raise BadInput(f"{directory} holds {run.name} of another config{other}; use a new --dir")
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


def work(
    plan: Plan,
    directory: Path,
    only: Collection[str] | None = None,
    position: int = 0,
    pack: int = 1,
    ahead: bool = False,
) -> None:
    """Take pending runs until none is left: branches of trunks trained here first, then the costliest.

    They are taken one at a time, or up to `pack` small ones of one shape (train/pack.py). With `ahead`, what comes
    next is compiled meanwhile. With `only`, runs of other names are left alone. A run that another worker holds is
    waited for, and taken over when that one is gone; one that another took over while this process stood still is left
    to it. All processes of one job call this together; the first decides for all.
    """
    ledger = Ledger(directory)
    runs = {run.name: run for run in plan.runs}
    mine: set[str] = set()
    leases: dict[str, Lease | None] = {}
    costs = {run.name: sum(r.seconds for r in plan.runs if run.name in (r.name, r.parent)) for run in plan.runs}

    def todo() -> list[PlannedRun]:
        """Return the pending runs in the order in which to take them."""
        left = [run for run in pending(plan, ledger) if only is None or run.name in only]
        return sorted(left, key=lambda run: (run.parent not in mine, -costs[run.name]))

    def take(held: ExitStack) -> list[str] | None:
        """Lock runs that are ready and return their names, [] if others hold them all, None if nothing is left."""
        left, rows = todo(), ledger.rows()
        taken: list[PlannedRun] = []
        for run in (run for run in left if run.parent is None or run.parent in rows):
            if taken and shape(run.config) != shape(taken[0].config):
                continue
            with ExitStack() as attempt:
                leases[run.name] = attempt.enter_context(ledger.try_lock(run.name))
                if leases[run.name] and run.name not in ledger.rows():
                    taken.append(run)
                    held.push(attempt.pop_all())
            if taken and len(taken) >= min(pack, PACKED_BYTES // (STATE_BYTES * taken[0].params)):
                break
        if left and not taken:
            time.sleep(POLL_SECONDS)
        return [run.name for run in taken] if left else None

    def compile_next(names: list[str]) -> None:
        now = {shape(runs[name].config) for name in names}
        for run in [run for run in todo() if shape(run.config) not in now][:1]:
            compiler.submit(compile_ahead, run.config)

    with catch_sigterm() as terminated, ThreadPoolExecutor(1) as compiler:
        while True:
            with ExitStack() as held:
                names = agree(partial(take, held))
                if names is None:
                    return
                if ahead and names:
                    compile_next(names)
                advance(
                    [
                        finish(runs[name], ledger, directory, terminated, position + i, leases.get(name))
                        for i, name in enumerate(names)
                    ]
                )
                mine.update(names)
            if preempted(terminated):
                raise Preempted(PREEMPTED)


def shape(config: RunConfig) -> Hashable:
    """What runs have in common that one compiled call may train: all but seed, schedule, horizon and beginning."""
    ways = (config.accumulate, config.steps_per_call, config.mesh, config.rules)
    return config.model, config.tune, without_schedule(config.optim), config.z_loss, config.batch, config.data, *ways


def finish(
    run: PlannedRun, ledger: Ledger, directory: Path, terminated: list[int], position: int, lease: Lease | None
) -> Run[None]:
    """Train a run and write its row; the first process of the job holds its lease."""
    c = run.config
    facts = {"run": run.name, "role": run.role, "size": run.size, "budget": run.budget, "fingerprint": fingerprint(c)}
    branch = c.init_from if c.first_step else None
    if branch and damage(directory / "runs" / branch.run / "checkpoints", branch.step):
        agree(partial(give_up, branch.run, facts, ledger))
        return
    with suppress(Lost):
        result = yield from training(c, directory / "runs" / run.name, terminated, position=position, lease=lease)
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
