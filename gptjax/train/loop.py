"""Train one run: from a config and a directory to a result, in order, on a page.

A run's directory: config.json, env.json, lease/, metrics.jsonl, checkpoints/, tensorboard/, profile/ if asked for, and,
once it is done, windows.npy (the error of its loss by validation window) and result.json.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from gptjax import hosts
from gptjax.allocator import keep_freed_memory
from gptjax.config import RunConfig, from_json, to_json
from gptjax.data.feed import prefetch
from gptjax.data.loader import Loader, open_stores
from gptjax.data.store import TokenStore
from gptjax.errors import BadInput
from gptjax.files import plain, write_json
from gptjax.hosts import PREEMPTED
from gptjax.leases import Lease, confirm, confirm_alone
from gptjax.sharding import Layout, make_mesh
from gptjax.train.checkpoint import Checkpoints, restore, sealed_steps
from gptjax.train.checks import check_origins, check_shapes, claim
from gptjax.train.metrics import Diverged, Log, MetricsWriter
from gptjax.train.optim import learning_rates, without_schedule
from gptjax.train.origin import identified, place_of, read_weights
from gptjax.train.pack import Call, Run, advance
from gptjax.train.profile import traced
from gptjax.train.result import Result, data_digest, read_result, summarize
from gptjax.train.signals import catch_sigterm, interrupted_gently
from gptjax.train.state import TrainState
from gptjax.train.step import Programs, make_programs
from gptjax.train.validation import WINDOWS, Evaluation, Validation, evaluate, write_shares


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
        with catch_sigterm() as preempted, interrupted_gently():
            return advance([training(config, directory, preempted, profile=profile)])[0]
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{directory} was interrupted: {_saved(config, directory)}") from None
    except Preempted:
        if hosts.is_first():
            print(f"gptjax: {directory} was stopped by SIGTERM: {_saved(config, directory)}", file=sys.stderr)
        raise


def _saved(config: RunConfig, directory: Path) -> str:
    """Say what of a run is saved and how to go on."""
    step = next(iter(sealed_steps(directory / "checkpoints")), None)
    if step is None:
        return "nothing of it is saved yet; run the same command again to begin anew"
    return f"step {step} of {config.steps} is saved; run the same command again to go on"


def training(
    config: RunConfig,
    directory: Path,
    preempted: list[int],
    *,
    bar: bool = True,
    lease: Lease | None = None,
    profile: bool = False,
) -> Run[Result]:
    """Train as `train` does, but ask for each call of the device, so that others may have their turns or share it.

    `preempted` is what `catch_sigterm` gave; with `bar` a terminal shows progress; `lease` is that of the directory,
    if the caller has taken it.
    """
    config = identified(config, directory)
    if finished := hosts.agree(lambda: plain(read_result(directory, config))):
        return from_json(Result, finished)
    with ExitStack() as stack:
        layout = Layout(make_mesh(config.mesh), config.rules)
        if layout.platform == "cpu":
            keep_freed_memory()
        check_shapes(config, layout)
        stores = open_stores(config.data, config.model.context)
        alike = replace(config, trackers=(), data=replace(config.data, cache=""))  # in all that they compute together
        hosts.check_same([to_json(alike), data_digest(stores), jax.__version__], "config, data or jax")
        check_origins(config, directory, stores)
        loader = make_loader(config, stores)
        programs = programs_of(config, layout)
        validation = tuple(Validation.of(store, config, programs) for store in stores)
        mine = stack.enter_context(claim(directory, config, stores, lease)), directory
        saving = Checkpoints(directory / "checkpoints", config.save, partial(confirm_alone, *mine))
        checkpoints = stack.enter_context(saving)
        state, first = start(config, directory, checkpoints, programs)
        metrics = stack.enter_context(closing(MetricsWriter(directory, first, config)))
        log = stack.enter_context(Log(config, stores[0], metrics, first, bar))
        batches = prefetch(loader, cut(config, first), programs.batches)
        if profile:
            batches = traced(batches, cut(config, first), directory / "profile")
        step, reason = first, ""
        evaluation: Evaluation | None = None
        try:
            for steps, batch in zip(cut(config, first), batches, strict=True):
                rates = learning_rates(config.optim, steps.start, steps.stop, config.steps)
                state, outputs = yield Call(programs, state, batch, rates, config.steps - steps.stop)
                log(steps, outputs, rates)  # reads the call before: the host never waits for this one
                step, evaluation = steps.stop, None
                if due(step, config.evaluate.every) or step == config.steps:
                    evaluation = evaluate(validation, programs, state)
                    log.evaluated(step, evaluation)
                stop = hosts.preempted(preempted) and step < config.steps
                if due(step, config.save.every) or step in config.save.at or step == config.steps or stop:
                    confirm(*mine)
                    log.flush(saving=True)  # no step is saved whose metrics are not
                    metrics.flush()
                    checkpoints.save(step, state, evaluation.loss(loader.weights) if evaluation else None)
                if stop:
                    checkpoints.wait()
                    raise Preempted(PREEMPTED)
            log.flush()
            evaluation = evaluation or evaluate(validation, programs, state)  # it died between last save and result
        except Diverged as error:
            step, reason, evaluation = log.step, str(error), None
        checkpoints.wait()
        confirm(*mine)
        metrics.flush()
        evals = evaluation.values if evaluation else {}
        result = summarize(config, stores, loader, step, evals, reason, log.seconds)
        shares = evaluation.shares(loader.weights) if evaluation else None
        hosts.agree(partial(record, result, shares, directory))
    return result


def record(result: Result, shares: np.ndarray | None, directory: Path) -> None:
    """Write what a run gave, and last the file that says that it is finished."""
    if shares is not None:
        write_shares(directory / WINDOWS, shares)
    write_json(directory / "result.json", plain(result))


def programs_of(config: RunConfig, layout: Layout) -> Programs:
    optim = without_schedule(config.optim)
    return make_programs(config.model, optim, layout, config.z_loss, config.accumulate, config.tune)


def compile_ahead(config: RunConfig) -> None:
    """Compile what a run will call, so that it finds it compiled when it begins; a run that cannot be compiles nothing.

    Its validation may turn out to have fewer windows than asked for; then that program alone is compiled again.
    """
    with suppress(BadInput):
        programs, T, e = (
            programs_of(config, Layout(make_mesh(config.mesh), config.rules)),
            config.model.context,
            config.evaluate,
        )
        segments = config.data.separate_documents
        state, batch, rates = programs.example(config.steps_per_call, config.batch, T, segments=segments)
        _, windows, _ = programs.example(e.sequences // e.batch, e.batch, T, segments=segments)
        programs.train.lower(state, batch, rates).compile()  # type: ignore[attr-defined]
        programs.evaluate.lower(state.params, windows).compile()  # type: ignore[attr-defined]
        if config.first_step == 0:
            programs.init.lower(jax.random.key(config.seed)).compile()  # type: ignore[attr-defined]


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def cut(config: RunConfig, first: int) -> Iterator[range]:
    """Cut the remaining steps into calls that end wherever something is due; the cuts do not depend on `first`."""
    everies = [n for n in (config.steps_per_call, config.evaluate.every, config.save.every) if n]
    while first < config.steps:
        next_due = [(first // every + 1) * every for every in everies]
        stop = min(config.steps, *next_due, *(step for step in config.save.at if step > first))
        yield range(first, stop)
        first = stop


def start(config: RunConfig, directory: Path, checkpoints: Checkpoints, programs: Programs) -> tuple[TrainState, int]:
    """Return the state to go on from and its step: our newest checkpoint, another run's, or a new one.

    A new state has new weights, or those of an origin, and adapters that change nothing yet.
    """
    if found := checkpoints.restore(programs.abstract):
        return found
    if config.init_from and config.init_from.what == "state":
        step = config.init_from.step
        return restore(place_of(config.init_from, directory) / "checkpoints", step, programs.abstract), step
    state = programs.init(jax.random.key(config.seed))
    if config.init_from:
        state = replace(state, params=read_weights(config, directory, state.params))
    return state, 0


def make_loader(config: RunConfig, stores: tuple[TokenStore, ...]) -> Loader:
    weights = tuple(source.weight for source in config.data.sources)
    return Loader(stores, weights, config.batch, config.model.context, config.seed, config.data.separate_documents)
