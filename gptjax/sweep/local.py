"""Run a sweep on this machine, with as many processes as asked, each on its share of the CPU's cores."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import jax

from gptjax.config import from_json, load_own, own_files, to_json
from gptjax.errors import BadInput, exit_code_of
from gptjax.jobs.hosts import PREEMPTED, agree, several
from gptjax.jobs.process import settle
from gptjax.mesh import make_mesh
from gptjax.run.checks import check_shapes
from gptjax.run.signals import catch_sigterm, interrupted_gently
from gptjax.sharding import Layout
from gptjax.sweep.execute import POLL_SECONDS, begin, pending, work
from gptjax.sweep.follow import followed
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.plan import Plan


def execute(plan: Plan, directory: Path, workers: int = 1, pack: int = 1) -> None:
    """Train every run of the plan that the ledger lacks; returns when all are done or failed.

    A run that another process holds is left to it and waited for. Several workers share out the CPU's cores; an
    accelerator has one, and so has a job of several processes. A worker alone on its devices may train up to `pack`
    runs of one shape together, and on an accelerator compiles meanwhile what comes next. SIGTERM saves what is in
    progress and exits with 75.
    """
    for run in plan.runs:
        check_shapes(run.config, Layout(make_mesh(run.config.mesh), run.config.rules))
    ledger = begin(plan, directory)
    left = agree(lambda: len(pending(plan, ledger)))
    if not left:
        return
    workers = min(workers, left)  # a single run, as the held-out one, gets all cores
    with followed(plan, ledger, directory), interrupted_gently():
        if workers > 1 and not several() and jax.default_backend() == "cpu":
            _share(plan, directory, workers)
        else:
            alone = not several()
            ahead = alone and jax.default_backend() != "cpu"  # on a CPU, compiling takes cores from training
            work(plan, directory, pack=pack if alone else 1, ahead=ahead)


def _share(plan: Plan, directory: Path, workers: int) -> None:
    """Have several processes do the work; exits as they do if any of it is left."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    spawn = multiprocessing.get_context("spawn")
    told = to_json(plan), own_files(), directory
    processes = [spawn.Process(target=_worker, args=(*told, cores[i::workers])) for i in range(workers)]
    with catch_sigterm() as terminated:
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a terminal's Ctrl-C is for the parent
        try:
            for process in processes:
                process.start()
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
        try:
            while alive := [process for process in processes if process.is_alive()]:
                multiprocessing.connection.wait([process.sentinel for process in alive], POLL_SECONDS)
                for process in alive if terminated else ():
                    process.terminate()
        finally:
            for process in processes:
                process.kill()
    if terminated:
        sys.exit(PREEMPTED)
    if pending(plan, Ledger(directory)):
        codes = {process.exitcode for process in processes}
        sys.exit(next((code for code in (2, PREEMPTED) if code in codes), 1))


def _worker(plan: dict[str, Any], files: tuple[str, ...], directory: Path, cores: list[int]) -> None:
    """Be one process of several: on its own cores, and gone when its parent is.

    It gets the plan as JSON and loads the user's own families anew: their classes are of a file and of no package.
    """
    if cores:
        os.sched_setaffinity(0, cores)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    try:
        settle()
        load_own(files)
        work(from_json(Plan, plan), directory)
    except (BadInput, OSError) as error:
        code, line = exit_code_of(error) or (1, str(error))
        print(f"gptjax: {line}", file=sys.stderr)
        sys.exit(code)
