"""How far a sweep is, from its files alone: what `gptjax status` says, and what a running sweep shows of itself.

On a terminal a running sweep shows a line for the whole and one for each run in progress. Elsewhere it writes one line
for each run that ends, and nothing else.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gptjax.config import RunConfig, from_file, load_config
from gptjax.errors import BadInput
from gptjax.files import parse_json
from gptjax.jobs import hosts, leases
from gptjax.jobs.storage import is_remote
from gptjax.run.checkpoint import sealed_steps
from gptjax.run.result import Result
from gptjax.sweep.ledger import Ledger, Row
from gptjax.sweep.plan import Plan, PlannedRun

LOOK_SECONDS = 1.0
SPARE = 50  # looks take at most one part in so many of the time
TAIL_BYTES = 16384  # of metrics.jsonl, in which its last line is looked for
PRIOR = 0.1  # of a sweep's planned time: until more than this is done, the plan's speed counts more than the measured
MOST_SHOWN = 8  # runs in progress that have a line each


@dataclass(frozen=True)
class Progress:
    """How far a run is, by its metrics; before the first of them loss and seconds are None."""

    step: int = 0
    loss: float | None = None
    seconds_left: float | None = None

    def __str__(self) -> str:
        if self.loss is None or self.seconds_left is None:
            return "compiling"
        return f"loss {self.loss:.3f}, {duration(self.seconds_left)} left"


@dataclass(frozen=True)
class Look:
    """What one look at a sweep's files finds: the rows of the runs that ended, and how far the others are."""

    plan: Plan
    rows: dict[str, Row]
    running: dict[str, Progress]
    stopped: dict[str, Progress]  # runs that were begun and that nobody trains now

    @property
    def runs(self) -> int:
        """How many runs there are, with a held-out one that is yet to be planned."""
        return len(self.plan.runs) + (self.holdout_seconds > 0)

    @property
    def holdout_seconds(self) -> float:
        planned = any(run.role == "holdout" for run in self.plan.runs)
        return 0.0 if planned else self.plan.holdout_seconds

    @property
    def done(self) -> float:
        """Planned seconds of what has been trained, runs in progress by their share of steps."""
        seconds = 0.0
        for run in self.plan.runs:
            if run.name in self.rows:
                seconds += run.seconds
            elif run.name in self.running:
                first, last = run.config.first_step, run.config.steps
                seconds += run.seconds * max(0, self.running[run.name].step - first) / (last - first)
        return seconds

    @property
    def total(self) -> float:
        """Planned seconds of all runs."""
        return sum(run.seconds for run in self.plan.runs) + self.holdout_seconds

    @property
    def slowness(self) -> float:
        """Measured seconds of the finished runs over their planned ones."""
        done = [(self.rows[run.name]["seconds"], run.seconds) for run in self.plan.runs if self._is_done(run)]
        measured, planned = map(sum, zip(*done, strict=True)) if done else (0.0, 0.0)
        return measured / planned if planned else 1.0

    def _is_done(self, run: PlannedRun) -> bool:
        return run.name in self.rows and self.rows[run.name]["status"] == "done"


def look(plan: Plan, ledger: Ledger, directory: Path) -> Look:
    """Look once. A run in progress is one that has a directory, no row, and a process that holds it."""
    rows = ledger.rows()
    if is_remote(directory):
        begun = {run.name for run in plan.runs if run.name not in rows}
    else:
        begun = set(_folders(directory / "runs")) - rows.keys()
    running: dict[str, Progress] = {}
    stopped: dict[str, Progress] = {}
    for run in plan.runs:
        if run.name in begun:
            those = running if ledger.is_locked(run.name) else stopped
            those[run.name] = progress(directory / "runs" / run.name, run.config)
    return Look(plan, rows, running, stopped)


def progress(directory: Path, config: RunConfig) -> Progress:
    """Return how far a run is by the last metrics of its training."""
    line = _latest(directory / "metrics.jsonl")
    if line is None:
        return Progress(config.first_step)
    step, loss, rate = line
    return Progress(step, loss, (config.steps - step) * config.tokens_per_step / rate)


def _folders(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []


def _latest(path: Path) -> tuple[int, float, float] | None:
    """Return step, loss and tokens a second of the last whole line about training, None if there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if b'"train/loss"' in line and line[:1] == b"{":
            match parse_json(line, path):
                case {"step": int(step), "train/loss": float(loss), "perf/tokens_per_second": float(rate)} if rate > 0:
                    return step, loss, rate
            raise BadInput(f"{path} ends in a line that holds no metrics of a step; take that line out")
    return None


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            digits = 0 if seconds >= 10 * unit or name == "min" else 1
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds:.0f} s"


def status(directory: Path) -> str:
    """Say of each run of a sweep whether it is done, failed, running or pending; or the same of a single run."""
    if (directory / "plan.json").is_file():
        return _status_of_sweep(directory)
    if (directory / "config.json").is_file():
        return f"{directory.name}: {_status_of_run(directory)}"
    raise BadInput(f"{directory} has neither plan.json nor config.json; give the directory of a sweep or of a run")


def _status_of_sweep(directory: Path) -> str:
    seen = look(Plan.load(directory / "plan.json"), Ledger(directory), directory)
    width = max(len(name) for name in ("held-out run", *(run.name for run in seen.plan.runs))) + 2
    lines, counts = [], dict.fromkeys(("done", "failed", "running", "pending"), 0)

    def say(name: str, state: str, text: str = "") -> None:
        lines.append(f"{name:<{width}}{state:<9}{text}".rstrip())

    for run in seen.plan.runs:
        state, text = _state(run, seen)
        counts[state] += 1
        say(run.name, state, text)
    reported = (directory / "report.html").is_file()
    if seen.holdout_seconds and not (reported and not counts["pending"] + counts["running"]):
        counts["pending"] += 1
        say("held-out run", "pending", "planned once the law predicts it")
    elif seen.holdout_seconds:
        say("held-out run", "none", "the law forbids a forecast; the report says why")
    if not reported or counts["pending"] + counts["running"]:
        say("report", "pending", "" if counts["pending"] + counts["running"] else "run the same command again for it")
    else:
        say("report", "done", str(directory / "report.html"))
    total = f"runs: {', '.join(f'{n} {state}' for state, n in counts.items())}"
    if counts["running"]:
        left = seen.slowness * (seen.total - seen.done) / counts["running"]
        total += f"; about {duration(left)} left in all"
    return "\n".join([*lines, total])


def _state(run: PlannedRun, seen: Look) -> tuple[str, str]:
    row = seen.rows.get(run.name)
    if row:
        text = f"loss {row['loss']:.4f} in {row['seconds']:.0f} s" if row["status"] == "done" else row["reason"]
        return row["status"], text
    if run.name in seen.running:
        at = seen.running[run.name]
        return "running", f"step {at.step} of {run.config.steps}, {at}"
    at = seen.stopped.get(run.name, Progress())
    return "pending", f"stopped at step {at.step} of {run.config.steps}" if at.loss is not None else ""


def _status_of_run(directory: Path) -> str:
    config = load_config(directory / "config.json")
    if (directory / "result.json").is_file():
        result = from_file(Result, directory / "result.json")
        if result.loss is not None:
            return f"done, loss {result.loss:.4f} in {result.seconds:.0f} s"
        return f"failed: {result.reason}"
    at = progress(directory, config)
    where = f"step {at.step} of {config.steps}"
    if leases.is_held(directory / "lease"):
        return f"running, {where}, {at}"
    saved = next(iter(sealed_steps(directory / "checkpoints")), None)
    begin = "begins anew: nothing is saved" if saved is None else f"goes on from step {saved}"
    return f"stopped at {where}; the same gptjax train {begin}"


@contextmanager
def followed(plan: Plan, ledger: Ledger, directory: Path) -> Iterator[None]:
    """Show how far a sweep is for as long as the block runs; of the processes of one job, the first does."""
    if not hosts.is_first():
        yield
        return
    over = threading.Event()
    view = Bars() if sys.stderr.isatty() else Lines()
    before = look(plan, ledger, directory)
    view.begin(before.runs - len(before.rows))
    thread = threading.Thread(target=_follow, args=(plan, directory, before, view, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(plan: Plan, directory: Path, before: Look, view: "Bars | Lines", over: threading.Event) -> None:
    began, ledger, known = time.monotonic(), Ledger(directory), set(before.rows)
    pause = LOOK_SECONDS
    try:
        last = False
        while not last:
            last = over.wait(pause)
            begun = time.monotonic()
            try:
                seen = look(plan, ledger, directory)
            except (OSError, BadInput):
                continue  # the storage is away for a moment, or a file is damaged: whoever trains is told
            done = seen.done - before.done
            prior = PRIOR * seen.total
            speed = (done + prior) / (begun - began + prior / max(1, len(seen.running)))
            left = (seen.total - seen.done) / speed
            for name in [run.name for run in plan.runs if run.name in seen.rows and run.name not in known]:
                known.add(name)
                view.ended(f"run {len(known)} of {seen.runs}", seen.rows[name], left)
            view.show(seen, left)
            pause = max(LOOK_SECONDS, SPARE * (time.monotonic() - begun))
    finally:
        view.close()


class Lines:
    """A line at the beginning and one for each run that ends."""

    def begin(self, runs: int) -> None:
        print(f"{runs} runs to do; a line follows for each that ends", file=sys.stderr, flush=True)

    def ended(self, which: str, row: Row, left: float) -> None:
        if row["status"] == "done":
            text = f"done: {row['run']} loss {row['loss']:.3f}, {duration(row['seconds'])}"
        else:
            text = f"failed: {row['run']}: {row['reason']}"
        print(f"{which} {text}, about {duration(left)} left in all", file=sys.stderr, flush=True)

    def show(self, seen: Look, left: float) -> None:
        pass

    def close(self) -> None:
        pass


class Bars:
    """A bar for the whole sweep and below it one for each run in progress."""

    def __init__(self) -> None:
        self.whole = _bar()
        self.each: dict[str, tqdm] = {}

    def begin(self, runs: int) -> None:
        pass

    def ended(self, which: str, row: Row, left: float) -> None:
        if row["status"] != "done":
            tqdm.write(f"gptjax: {which} failed: {row['run']}: {row['reason']}", sys.stderr)

    def show(self, seen: Look, left: float) -> None:
        ended = sum(run.name in seen.rows for run in seen.plan.runs)
        name = f"run {min(ended + 1, seen.runs)} of {seen.runs}"
        _move(self.whole, name, seen.done / seen.total, f"about {duration(left)} left in all")
        for name in [name for name in self.each if name not in seen.running]:
            self.each.pop(name).close()
        for run in seen.plan.runs:
            if run.name in seen.running and (run.name in self.each or len(self.each) < MOST_SHOWN):
                at, steps = seen.running[run.name], run.config.steps
                if run.name not in self.each:
                    self.each[run.name] = _bar()
                _move(self.each[run.name], run.name, at.step / steps, f"step {at.step} of {steps}, {at}")

    def close(self) -> None:
        for bar in (*self.each.values(), self.whole):
            bar.close()


def _bar() -> "tqdm[Any]":
    return tqdm(total=1.0, leave=False, dynamic_ncols=True, bar_format="{desc} {percentage:3.0f}% {bar}")


def _move(bar: "tqdm[Any]", name: str, share: float, text: str) -> None:
    bar.n = min(share, 1.0)
    bar.set_description_str(f"{name:<18} {text:<42}")  # and draws it
