"""What a run begins with: its compiled functions, its data, its calls of the device, and its first state."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax

from gptjax.config import RunConfig
from gptjax.data.loader import Loader
from gptjax.data.store import TokenStore
from gptjax.run.checkpoint import Checkpoints, restore
from gptjax.run.initial_weights import place_of, read_weights
from gptjax.sharding import Layout
from gptjax.train.optim import without_schedule
from gptjax.train.programs import Programs, make_programs
from gptjax.train.state import TrainState


def programs_of(config: RunConfig, layout: Layout) -> Programs:
    optim = without_schedule(config.optim)
    return make_programs(config.model, config.execution, optim, layout, config.z_loss, config.accumulate, config.tune)


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
    how = config.data.separate_documents, config.data.objective
    return Loader(stores, weights, config.batch, config.model.context, config.seed, *how)
