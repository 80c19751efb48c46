"""Train one run: from a config and a directory to a result, in order, on a page.

A run's directory: config.json, env.json, lease/, metrics.jsonl, checkpoints/, tensorboard/, profile/ if asked for, and,
once it is done, windows.npy (the error of its loss by validation window) and result.json.
"""

import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.batch import Batch
from gptjax.config import RunConfig, from_json, to_json
from gptjax.data.feed import prefetch
from gptjax.data.loader import open_stores
from gptjax.files import plain, write_json
from gptjax.jobs import hosts
from gptjax.jobs.hosts import PREEMPTED
from gptjax.jobs.leases import Lease, confirm, confirm_alone
from gptjax.mesh import make_mesh
from gptjax.run.begin import cut, due, make_loader, programs_of, start
from gptjax.run.checkpoint import Checkpoints, sealed_steps
from gptjax.run.checks import check_origins, check_shapes, claim
from gptjax.run.initial_weights import with_resolved_origin
from gptjax.run.metrics import Diverged, Log, MetricsWriter
from gptjax.run.result import Result, data_digest, read_result, summarize
from gptjax.run.signals import catch_sigterm, interrupted_gently
from gptjax.run.trace import traced
from gptjax.run.validation import WINDOWS, Evaluation, Validation, begin_evaluation, write_shares
from gptjax.sharding import Layout
from gptjax.train.optim import learning_rates
from gptjax.train.programs import Programs
from gptjax.train.state import TrainState
from gptjax.train.step import Metrics


class Preempted(SystemExit):
    """SIGTERM came; everything done so far is saved."""


def train(config: RunConfig, directory: Path, *, profile: bool = False) -> Result:
    """Train a run in its directory, or go on where it stopped; a finished run is returned as it is.

    Raises BadInput for what the config cannot be; Preempted (exit code 75) after SIGTERM and KeyboardInterrupt after
    Ctrl-C, once the step is saved; and Lost (75) when this process stood still and another took the run over. A run
    that diverges is a result too: status "failed", with the reason. `profile` records a few calls in profile/. Where
    several processes are one job (hosts.py), all call this, and the first alone writes.
    """
    try:
        with catch_sigterm() as told, interrupted_gently(), Run(config, directory, told, profile=profile) as run:
            while run.result is None:
                call = run.next_call()
                state, metrics = run.programs.train(run.state, call.batch, call.rates)
                run.took(call, state, metrics)
            return run.result
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{directory} was interrupted: {_saved(config, directory)}") from None
    except Preempted:
        if hosts.is_first():
            print(f"gptjax: {directory} was stopped by SIGTERM: {_saved(config, directory)}", file=sys.stderr)
        raise


@dataclass(frozen=True)
class Call:
    """Steps that the device takes in one call: their stacked batches and their learning rates."""

    steps: range
    batch: Batch
    rates: np.ndarray


class Run:
    """A run on its way. Whoever owns it asks for the next call, takes it on the device, and says what came of it.

    So one run, or several that share a device (sweep/pack.py), go the same way: log, evaluate, save, stop, end.
    """

    result: Result | None = None  # once the run is finished
    programs: Programs
    state: TrainState  # after the last call

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        told: list[int],
        *,
        bar: bool = True,
        lease: Lease | None = None,
        profile: bool = False,
    ) -> None:
        """`told` lists the signals to stop that came (`catch_sigterm`); with `bar` a terminal shows progress.

        `lease` is the directory's, if the caller has it.
        """
        self.config, self.directory, self.told = with_resolved_origin(config, directory), directory, told
        self.bar, self.lease, self.profile = bar, lease, profile

    def __enter__(self) -> "Run":
        """Check, open and claim all that the run needs; a finished one needs nothing."""
        self.opened = ExitStack()
        finished = hosts.agree(lambda: plain(read_result(self.directory, self.config)))
        if finished:
            self.result = from_json(Result, finished)
            return self
        with self.opened:
            self._open()
            self.opened = self.opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)

    def _open(self) -> None:
        config, directory, enter = self.config, self.directory, self.opened.enter_context
        layout = Layout(make_mesh(config.mesh), config.rules)
        check_shapes(config, layout)
        self.stores = open_stores(config.data, config.model.context)
        shared = replace(config, trackers=(), data=replace(config.data, cache=""))  # what all processes must agree on
        hosts.check_same([to_json(shared), data_digest(self.stores), jax.__version__], "config, data or jax")
        check_origins(config, directory, self.stores)
        self.loader, self.programs = make_loader(config, self.stores), programs_of(config, layout)
        self.validation = tuple(Validation.of(store, config, self.programs) for store in self.stores)
        self.lease = enter(claim(directory, config, self.stores, self.lease))
        still_ours = partial(confirm_alone, self.lease, directory)
        self.checkpoints = enter(Checkpoints(directory / "checkpoints", config.save, still_ours))
        self.state, first = start(config, directory, self.checkpoints, self.programs)
        self.metrics = enter(closing(MetricsWriter(directory, first, config)))
        self.log = enter(Log(config, self.stores[0], self.metrics, first, self.bar))
        self.step = first
        self.evaluation: Evaluation | None = None  # of the last call's end, if it was due there
        self.calls = cut(config, first)
        batches = enter(closing(prefetch(self.loader, cut(config, first), self.programs.batches)))
        if self.profile:  # closed with the run, so that a trace ends with it
            batches = enter(closing(traced(batches, cut(config, first), directory / "profile")))
        self.batches = batches
        if first == config.steps:  # the process before died between its last save and the result
            self._finish()

    def next_call(self) -> Call:
        steps = next(self.calls)
        rates = learning_rates(self.config.optim, steps.start, steps.stop, self.config.steps)
        return Call(steps, next(self.batches), rates)

    def took(self, call: Call, state: TrainState, metrics: Metrics) -> None:
        """Go on from what a call gave: log the call before, and evaluate, save, stop or finish where that is due.

        The host reads metrics a call late, and so never waits for the call that it has just started.
        """
        config, self.state, self.step, self.evaluation = self.config, state, call.steps.stop, None
        try:
            self.log(call.steps, metrics, call.rates)
            if due(self.step, config.evaluate.every) or self.step == config.steps:
                self.evaluation = begin_evaluation(self.validation, self.programs, state)
                self.log.evaluated(self.step, self.evaluation)
            stop = hosts.preempted(self.told) and self.step < config.steps
            if due(self.step, config.save.every) or self.step in (*config.save.at, config.steps) or stop:
                self._save()
            if stop:
                self.checkpoints.wait()
                raise Preempted(PREEMPTED)
            if self.step == config.steps:
                self._finish()
        except Diverged as error:
            self._record(str(error))

    def _save(self) -> None:
        confirm(self.lease, self.directory)
        self.log.flush(saving=True)  # no step is saved whose metrics are not
        self.metrics.flush()
        loss = self.evaluation.loss(self.loader.weights) if self.evaluation else None
        self.checkpoints.save(self.step, self.state, loss)

    def _finish(self) -> None:
        self.log.flush()
        self.evaluation = self.evaluation or begin_evaluation(self.validation, self.programs, self.state)
        self._record("")

    def _record(self, failure: str) -> None:
        """Write the result; a failure is why there is no loss, at the last step whose loss was read."""
        if failure:
            self.step, self.evaluation = self.log.step, None
        self.checkpoints.wait()
        confirm(self.lease, self.directory)
        self.metrics.flush()
        evals = self.evaluation.values if self.evaluation else {}
        result = summarize(self.config, self.stores, self.loader, self.step, evals, failure, self.log.seconds)
        shares = self.evaluation.shares(self.loader.weights) if self.evaluation else None
        hosts.agree(partial(record, result, shares, self.directory))
        self.result = result


def _saved(config: RunConfig, directory: Path) -> str:
    """Say what of a run is saved and how to go on."""
    step = next(iter(sealed_steps(directory / "checkpoints")), None)
    if step is None:
        return "nothing of it is saved yet; run the same command again to begin anew"
    return f"step {step} of {config.steps} is saved; run the same command again to go on"


def record(result: Result, shares: np.ndarray | None, directory: Path) -> None:
    """Write what a run gave, and last the file that says that it is finished."""
    if shares is not None:
        write_shares(directory / WINDOWS, shares)
    write_json(directory / "result.json", plain(result))
