"""Train one run: from a config and a directory to a result, in order, on a page.

A run's directory: config.json, env.json, lease/, metrics.jsonl, checkpoints/, tensorboard/, profile/ if asked for, and
result.json once it is done.
"""

import itertools
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax import hosts
from gptjax.allocator import keep_freed_memory
from gptjax.config import RunConfig, from_json, to_json
from gptjax.data.loader import Loader, open_stores, prefetch
from gptjax.data.store import TokenStore
from gptjax.files import plain, write_json
from gptjax.hosts import PREEMPTED
from gptjax.leases import Lease, confirm, confirm_alone
from gptjax.sharding import Layout, make_mesh
from gptjax.train.checkpoint import Checkpoints, restore
from gptjax.train.checks import check_origins, check_shapes, claim
from gptjax.train.metrics import Diverged, Log, MetricsWriter
from gptjax.train.optim import learning_rates, without_schedule
from gptjax.train.profile import traced
from gptjax.train.result import Evals, Result, data_digest, read_result, summarize
from gptjax.train.state import TrainState
from gptjax.train.step import Programs, make_programs
from gptjax.train.validation import Validation, evaluate


class Preempted(SystemExit):
    """SIGTERM came; everything done so far is saved."""


def train(
    config: RunConfig, directory: Path, *, position: int = 0, lease: Lease | None = None, profile: bool = False
) -> Result:
    """Train a run in its directory, or go on where it stopped; a finished run is returned as it is.

    Raises BadInput for what the config cannot be, Preempted (exit code 75) after SIGTERM, and Lost (75) when this
    process stood still and another took the run over. `position` is the line of its progress bar; `lease` that of the
    directory, if the caller has taken it; `profile` records a few calls in profile/. A run that diverges is a result
    too: status "failed", with the reason. Where several processes are one job (hosts.py), all call this, and the first
    alone writes.
    """
    if finished := hosts.agree(lambda: plain(read_result(directory, config))):
        return from_json(Result, finished)
    with ExitStack() as stack:
        preempted = stack.enter_context(catch_sigterm())
        layout = Layout(make_mesh(config.mesh), config.rules)
        if layout.platform == "cpu":
            keep_freed_memory()
        check_shapes(config, layout)
        stores = open_stores(config.data)
        alike = replace(config, trackers=(), data=replace(config.data, cache=""))  # in all that they compute together
        hosts.check_same([to_json(alike), data_digest(stores), jax.__version__], "config, data or jax")
        check_origins(config, directory, stores)
        loader = make_loader(config, stores)
        settings = (without_schedule(config.optim), layout, config.z_loss, config.accumulate)
        programs = make_programs(config.model, *settings)
        validation = [Validation.of(store, config, programs) for store in stores]
        mine = stack.enter_context(claim(directory, config, stores, lease)), directory
        saving = Checkpoints(directory / "checkpoints", config.save, partial(confirm_alone, *mine))
        checkpoints = stack.enter_context(saving)
        state, first = start(config, directory, checkpoints, programs)
        metrics = stack.enter_context(closing(MetricsWriter(directory, first, config)))
        log = stack.enter_context(Log(config, stores[0], metrics, first, position))
        calls = cut(config, first)
        batches = prefetch(loader, calls, programs.batches)
        if profile:
            batches = traced(batches, len(calls), directory / "profile")
        step, reason = first, ""
        evals: Evals = {}
        try:
            for steps, batch in zip(calls, batches, strict=True):
                rates = learning_rates(config.optim, steps.start, steps.stop, config.steps)
                state, outputs = programs.train(state, batch, rates)
                log(steps, outputs, rates)  # reads the call before: the host never waits for this one
                step, loss = steps.stop, None
                if due(step, config.evaluate.every) or step == config.steps:
                    evals = evaluate(validation, programs, state)
                    loss = float(np.average([values["loss"] for values in evals.values()], weights=loader.weights))
                    log.evals(step, evals)
                stop = hosts.preempted(preempted) and step < config.steps
                if due(step, config.save.every) or step in config.save.at or step == config.steps or stop:
                    confirm(*mine)
                    log.flush()  # no step is saved whose metrics are not
                    metrics.flush()
                    checkpoints.save(step, state, loss)
                if stop:
                    checkpoints.wait()
                    raise Preempted(PREEMPTED)
            log.flush()
            evals = evals or evaluate(validation, programs, state)  # it died between its last save and its result
        except Diverged as error:
            step, reason, evals = log.step, str(error), {}
        checkpoints.wait()
        confirm(*mine)
        metrics.flush()
        result = summarize(config, stores, loader, step, evals, reason, log.seconds)
        hosts.agree(lambda: write_json(directory / "result.json", plain(result)))
    return result


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def cut(config: RunConfig, first: int) -> list[range]:
    """Cut the remaining steps into calls that end wherever something is due; the cuts do not depend on `first`."""
    ends = {config.steps, *config.save.at}
    for every in (config.steps_per_call, config.evaluate.every, config.save.every):
        ends.update(range(every, config.steps, every) if every else ())
    edges = [first, *sorted(end for end in ends if first < end <= config.steps)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def start(config: RunConfig, directory: Path, checkpoints: Checkpoints, programs: Programs) -> tuple[TrainState, int]:
    """Return the state to go on from and its step: our newest checkpoint, another run's, or new weights."""
    if found := checkpoints.restore(programs.abstract):
        return found
    if config.init_from is None:
        return programs.init(jax.random.key(config.seed)), 0
    origin, step = directory.parent / config.init_from.run / "checkpoints", config.init_from.step
    return restore(origin, step, programs.abstract), step


def make_loader(config: RunConfig, stores: tuple[TokenStore, ...]) -> Loader:
    weights = tuple(source.weight for source in config.data.sources)
    return Loader(stores, weights, config.batch, config.model.context, config.seed, config.data.separate_documents)


@contextmanager
def catch_sigterm() -> Iterator[list[int]]:
    """Collect SIGTERM in a list, for a loop to look at between steps; a collector around this one hears it too."""
    received: list[int] = []
    if hosts.several():  # jax's own handler tells all of them; see hosts.preempted
        yield received
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
