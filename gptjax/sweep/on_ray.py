"""Run a sweep as Ray tasks, on a cluster or on this machine: a branch takes its trunk's future, a lost task is retried.

Every node imports gptjax from where this machine does, and shares the sweep's directory and the data's cache.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError

from gptjax.config import load_own, own_files
from gptjax.errors import BadInput
from gptjax.jobs.process import settle
from gptjax.jobs.storage import absolute
from gptjax.sweep.execute import POLL_SECONDS, begin, pending, work
from gptjax.sweep.follow import followed
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.plan import Plan


@dataclass(frozen=True)
class Resources:
    """Where the tasks run, what each asks for, and how often it may be lost."""

    address: str = ""  # of a cluster, as "auto" or host:port; empty: one on this machine, for this sweep alone
    cpus: int = 1
    gpus: float = 0.0
    custom: dict[str, float] = field(default_factory=dict)  # more of Ray's, as {"TPU": 4}
    retries: int = 3  # of a run whose worker died

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0 or self.retries < 0:
            given = f"cpus {self.cpus}, gpus {self.gpus} and retries {self.retries}"
            raise BadInput(f"{given} must be at least 1, 0 and 0")


def execute(plan: Plan, directory: Path, resources: Resources) -> None:
    """Have every run that the ledger lacks trained by a task; returns when all are done or failed.

    A task whose worker died goes on elsewhere from the run's newest checkpoint. Why a task was given up is printed,
    and the exit code is 1 (2 if it refused its input). The tasks end with this process.
    """
    directory = absolute(directory)
    ledger = Ledger(directory)
    todo = pending(plan, ledger)
    with _cluster(resources) if todo else nullcontext(), followed(plan, ledger, directory):
        begin(plan, directory)
        r = resources
        asking = ray.remote(num_cpus=r.cpus, num_gpus=r.gpus, resources=r.custom, max_retries=r.retries)
        train = asking(_train)
        tasks: dict[str, ray.ObjectRef] = {}
        for run in todo:  # a trunk comes before its branches
            trunk = [tasks[run.parent]] if run.parent in tasks else []
            tasks[run.name] = train.options(name=run.name).remote(directory, run.name, r.cpus, own_files(), *trunk)
        waiting = list(tasks.values())
        while waiting:
            waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)[1]
        code = max((_exit_code(name, task) for name, task in tasks.items()), default=0)
    if code:
        sys.exit(code)


@contextmanager
def _cluster(resources: Resources) -> Iterator[None]:
    """Connect to the cluster, or start one; BadInput if there is none, or none large enough here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray puts its own there, and leaves it
    try:
        if resources.address:
            ray.init(resources.address, logging_level=logging.ERROR)
        else:
            ray.init("local", logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"no Ray cluster at {resources.address!r} ({reason}); run ray start --head there") from None
    try:
        here = {} if resources.address else ray.cluster_resources()  # a cluster may grow when asked
        for name, asked in {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}.items():
            if here and asked > here.get(name, 0):
                raise BadInput(f"a run asks for {asked:g} {name}; this machine has {here.get(name, 0):g}: ask for less")
        if not resources.gpus and ray.cluster_resources().get("GPU"):
            print("gptjax: there are GPUs and a run asks for none; --resource gpus=1 gives it one", file=sys.stderr)
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _train(directory: Path, name: str, cpus: int, files: tuple[str, ...], trunk: None = None) -> None:
    """Train one run in a worker of Ray's, with no more threads than the cores that it was given."""
    os.environ.setdefault("PJRT_NPROC", str(cpus))  # XLA reads it when the first device is asked for
    settle()
    load_own(files)
    plan = Plan.load(directory / "plan.json")
    parent = next(run.parent for run in plan.runs if run.name == name)
    work(plan, directory, only={name, *([parent] if parent else [])})


def _exit_code(name: str, task: "ray.ObjectRef") -> int:
    """Say why a task failed, unless because its trunk did."""
    try:
        ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, BadInput):
            print(f"gptjax: {name}: {error.cause}", file=sys.stderr)
            return 2
        print(f"gptjax: {name}: {error}", file=sys.stderr)
    except RayError as error:
        print(f"gptjax: {name}: {error}", file=sys.stderr)
    else:
        return 0
    return 1
