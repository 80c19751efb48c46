"""What all executors share: what is pending, and `work`, which takes the runs, each once.

An executor is a function of a plan and a directory that returns when every run of the plan is done or failed: of
local.py processes of this machine, of slurm.py jobs, of ray.py tasks.
"""

import itertools
import time
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gptjax.config import RunConfig, differs
from gptjax.data.loader import open_stores
from gptjax.errors import BadInput
from gptjax.fingerprint import fingerprint
from gptjax.jobs import storage
from gptjax.jobs.hosts import agree, is_first, preempted
from gptjax.jobs.leases import Lease, Lost, confirm
from gptjax.run.checkpoint import damage
from gptjax.run.loop import PREEMPTED, Preempted, Run
from gptjax.run.signals import catch_sigterm
from gptjax.sweep.ledger import Ledger, Row
from gptjax.sweep.pack import compile_ahead, train_together
from gptjax.sweep.plan import Plan, PlannedRun
from gptjax.train.optim import without_schedule

Executor = Callable[[Plan, Path], None]
POLL_SECONDS = 0.5
STATE_BYTES = 12  # for each parameter: a weight and two moments
PACKED_BYTES = 2**30  # of state: larger models fill a device alone, and several may not fit it


def begin(plan: Plan, directory: Path) -> Ledger:
    """Write the plan where workers read it, with its data tokenized; names that stand for other runs are BadInput."""

    def write() -> None:
        if (directory / "config.json").is_file():
            raise BadInput(f"{directory} holds a run; give the sweep a new --dir")
        rows = Ledger(directory).rows()
        if (directory / "plan.json").is_file():
            refuse_loss(Plan.load(directory / "plan.json"), plan, rows.keys(), directory)
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


def refuse_loss(before: Plan, now: Plan, finished: Collection[str], directory: Path) -> None:
    """Refuse a plan that leaves out finished cells of the plan before; cells may be added."""
    kept = {run.name for run in now.runs}
    lost = [run.name for run in before.runs if run.role == "cell" and run.name in finished and run.name not in kept]
    if lost:
        raise BadInput(
            f"{directory} holds a sweep with {len(lost)} finished cells that this one lacks, as {lost[0]}; "
            "keep its sizes and budgets, to which you may add, or use a new --dir"
        )


def pending(plan: Plan, ledger: Ledger) -> list[PlannedRun]:
    """Return the runs without a row in the ledger, except trunks that nothing pending needs."""
    rows = ledger.rows()
    missing = [run for run in plan.runs if run.name not in rows]
    needed = {run.parent for run in missing}
    return [run for run in missing if run.role != "trunk" or run.name in needed]


class Queue:
    """The runs that are left to a process, in the order in which it takes them.

    Branches of trunks that it trained itself come first, then the costliest. The ledger is listed once; from then on a
    run is looked up when its turn comes, so that all turns of n runs take some n looks. A branch is ready when its
    trunk has a row, and a trunk is left out once nothing needs it. With `only`, runs of other names are not taken.
    """

    def __init__(self, plan: Plan, ledger: Ledger, only: Collection[str] | None) -> None:
        self.ledger, rows = ledger, ledger.rows()
        self.runs = {run.name: run for run in plan.runs}
        self.mine: set[str] = set()  # trained here
        self.chosen = set(self.runs if only is None else only)
        self.branches: dict[str, list[str]] = defaultdict(list)  # those without a row, by their trunk
        cost: dict[str, float] = defaultdict(float)
        for run in plan.runs:
            for name in {run.name, run.parent or run.name}:
                cost[name] += run.seconds
            if run.parent and run.name not in rows:
                self.branches[run.parent].append(run.name)
        self.rank = {name: i for i, name in enumerate(sorted(self.runs, key=lambda name: -cost[name]))}
        left = [run for run in plan.runs if run.name in self.chosen and run.name not in rows]
        kinds: dict[Hashable, int] = {}
        self.kind = {run.name: kinds.setdefault(shape(run.config), len(kinds)) for run in plan.runs}
        self.turns: dict[str, Turn] = {}  # of the runs that are ready
        self.ready: list[Turn] = []  # the same, in order
        self.alike: dict[int, list[Turn]] = defaultdict(list)  # the same, by the shape of their runs
        self.waiting: dict[str, list[str]] = defaultdict(list)  # branches, by the trunk that has no row yet
        for run in left:
            self._add(run, run.parent is None or run.parent in rows)

    def take(self, lock: Callable[[str], bool], most: Callable[[PlannedRun], int]) -> list[PlannedRun]:
        """Lock the first run that can be had, and of its shape as many more as `most` allows."""
        first = next(self._had(self.ready, lock, set()), None)
        if first is None:
            return []
        more = self._had(self.alike[self.kind[first.name]], lock, {first.name})
        return [first, *itertools.islice(more, max(1, most(first)) - 1)]

    def ended(self, names: Collection[str]) -> None:
        """Take note of runs that this process has trained: what waited for them is ready."""
        self.mine.update(names)
        for turn in [self.turns[name] for name in names if name in self.turns]:
            self._is_ready(turn)

    def next_besides(self, names: Collection[str]) -> PlannedRun | None:
        """Return the first run of another shape than these."""
        now = {self.kind[name] for name in names}
        return next((self.runs[turn.name] for turn in self.ready if self.kind[turn.name] not in now), None)

    def _had(self, turns: "list[Turn]", lock: Callable[[str], bool], tried: set[str]) -> Iterator[PlannedRun]:
        """Yield in order the runs that are ready and could be locked; what becomes ready meanwhile is among them."""
        while turn := next((turn for turn in turns if turn.name not in tried), None):
            tried.add(turn.name)
            if self._is_ready(turn) and lock(turn.name):
                yield self.runs[turn.name]

    def _is_ready(self, turn: "Turn") -> bool:
        """Look a run up; one that has a row, or a trunk that nothing needs, is left out, and its branches are ready."""
        run = self.runs[turn.name]
        if self.ledger.has(run.name) or (run.role == "trunk" and not self._is_needed(run.name)):
            self._leave_out(turn)
            for branch in self.waiting.pop(run.name, []):
                self._add(self.runs[branch], True)
            return False
        if run.parent is None or self.ledger.has(run.parent):
            return True
        if run.parent in self.chosen:  # its trunk was found damaged, and must be trained anew
            self._leave_out(turn)
            self._add(run, False)
            if run.parent not in self.turns:
                self._add(self.runs[run.parent], True)
        return False

    def _is_needed(self, trunk: str) -> bool:
        left = self.branches[trunk]
        while left and self.ledger.has(left[-1]):
            left.pop()
        return bool(left)

    def _add(self, run: PlannedRun, ready: bool) -> None:
        if run.parent in self.chosen and not ready:
            self.waiting[run.parent].append(run.name)
            return
        turn = self.turns[run.name] = Turn(run.parent not in self.mine, self.rank[run.name], run.name)
        for turns in (self.ready, self.alike[self.kind[run.name]]):
            insort(turns, turn)

    def _leave_out(self, turn: "Turn") -> None:
        del self.turns[turn.name]
        for turns in (self.ready, self.alike[self.kind[turn.name]]):
            del turns[bisect_left(turns, turn)]


class Turn(NamedTuple):
    """When a run's turn comes, among others."""

    strange: bool  # its trunk was not trained here
    rank: int  # by cost
    name: str


def work(
    plan: Plan,
    directory: Path,
    only: Collection[str] | None = None,
    pack: int = 1,
    ahead: bool = False,
) -> None:
    """Take pending runs until none is left: branches of trunks trained here first, then the costliest.

    They are taken one at a time, or up to `pack` small ones of one shape (sweep/pack.py). With `ahead`, what comes
    next is compiled meanwhile. With `only`, runs of other names are left alone. A run that another worker holds is
    waited for, and taken over when that one is gone; one that another took over while this process stood still is left
    to it. All processes of one job call this together; the first decides for all.
    """
    ledger = Ledger(directory)
    runs = {run.name: run for run in plan.runs}
    for name in only or ():
        if (trunk := runs[name].parent) and trunk not in (only or ()) and not ledger.has(trunk):
            raise RuntimeError(f"{name} branches off {trunk}, which has no row: let it be trained too, or first")
    queue = Queue(plan, ledger, only)
    leases: dict[str, Lease | None] = {}

    def take(held: ExitStack) -> list[str] | None:
        """Lock runs that are ready and return their names, [] if others hold them all, None if nothing is left."""

        def lock(name: str) -> bool:
            with ExitStack() as attempt:
                leases[name] = attempt.enter_context(ledger.try_lock(name))
                if leases[name] and not ledger.has(name):
                    held.push(attempt.pop_all())
                    return True
            return False

        taken = queue.take(lock, lambda run: min(pack, PACKED_BYTES // (STATE_BYTES * run.params)))
        if queue.ready and not taken:
            time.sleep(POLL_SECONDS)
        return [run.name for run in taken] if queue.ready else None

    compiling: Future[None] | None = None
    with catch_sigterm() as terminated, ThreadPoolExecutor(1) as compiler:
        while True:
            if compiling and compiling.done():
                compiling.result()  # an error in it is a bug of ours, and is raised
            with ExitStack() as held:
                names = agree(partial(take, held))
                if names is None:
                    return
                if ahead and names and (coming := queue.next_besides(names)):
                    compiling = compiler.submit(compile_ahead, coming.config)
                finish([runs[name] for name in names], ledger, directory, terminated, leases)
                queue.ended(names)
            if preempted(terminated):
                raise Preempted(PREEMPTED)


def shape(config: RunConfig) -> Hashable:
    """What runs have in common that one compiled call may train: all but seed, schedule, horizon and beginning."""
    ways = (config.execution, config.accumulate, config.steps_per_call, config.mesh, config.rules)
    return config.model, config.tune, without_schedule(config.optim), config.z_loss, config.batch, config.data, *ways


def finish(
    planned: list[PlannedRun], ledger: Ledger, directory: Path, terminated: list[int], leases: dict[str, Lease | None]
) -> None:
    """Train runs and write their rows; the first process of the job holds their leases."""
    places = directory / "runs"
    with ExitStack() as opened:
        ready: list[PlannedRun] = []
        runs: list[Run] = []
        for run in planned:
            if _lacks_its_trunk(run, ledger, directory):
                continue
            opened.enter_context(suppress(Lost))  # a run that another process has taken over is left to it
            with suppress(Lost):
                place, lease = places / run.name, leases.get(run.name)
                runs.append(opened.enter_context(Run(run.config, place, terminated, bar=False, lease=lease)))
                ready.append(run)

        def write_row(i: int) -> None:
            run, result, c = ready[i], runs[i].result, ready[i].config
            assert result is not None
            confirm(leases.get(run.name), places / run.name)
            if is_first():
                ledger.append({**_facts(run), "batch": c.batch, "lr": c.optim.lr, "b2": c.optim.b2, **asdict(result)})

        train_together(runs, write_row)


def _facts(run: PlannedRun) -> Row:
    """Return what a run's row says of its place in the sweep."""
    arm = {"arm": run.arm} if run.arm else {}
    place = {"run": run.name, "role": run.role, "size": run.size, "budget": run.budget}
    return {**place, "fingerprint": fingerprint(run.config), **arm}


def _lacks_its_trunk(run: PlannedRun, ledger: Ledger, directory: Path) -> bool:
    """Say whether a branch has no checkpoint to begin with; then it fails, or its trunk is trained anew."""
    branch = run.config.init_from if run.config.first_step else None
    if not branch or not damage(directory / "runs" / branch.run / "checkpoints", branch.step):
        return False
    agree(partial(give_up, branch.run, _facts(run), ledger))
    return True


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
