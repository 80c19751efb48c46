"""The compiled functions of a run: new weights, training, evaluation, laid out over a mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from gptjax.batch import Batch
from gptjax.data.loader import DataConfig
from gptjax.data.objectives import Reading
from gptjax.execution import Execution
from gptjax.jobs.hosts import meet_when_compiled
from gptjax.kernels.choice import kernels_of
from gptjax.models.model import ModelConfig
from gptjax.params import Params
from gptjax.sharding import Layout, use
from gptjax.train.adapters import EVERYTHING, TuneConfig, tuned
from gptjax.train.compiler import options
from gptjax.train.optim import OptimConfig, make_optimizer
from gptjax.train.state import TrainState, abstract_state, new_state
from gptjax.train.step import Metrics, eval_step, train_steps


@dataclass(frozen=True, eq=False)
class Programs:
    """The compiled functions of a run; `abstract` is the state they take and give, as shapes with shardings."""

    abstract: TrainState
    init: Any  # jitted, key -> state
    train: Any  # jitted, (state, stacked batches, rates) -> (state, metrics); the state is donated
    train_traced: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]  # to compile as a part of more
    train_shardings: Any  # of what training gives
    evaluate: Any  # jitted, (params, stacked batches) -> nats of each sequence
    batches: NamedSharding  # of stacked batches (S, B, T)

    def example(self, S: int, B: int, T: int, data: DataConfig) -> tuple[TrainState, Batch, jax.ShapeDtypeStruct]:
        """Return the arguments of a training call as shapes, to compile it with."""
        reading = Reading(data.objective, 0, 1, data.separate_documents)
        windows, index = jax.ShapeDtypeStruct((S, B, T + 1), jnp.int32), jax.ShapeDtypeStruct((S, B, 2), jnp.uint32)
        shapes = jax.eval_shape(lambda w, i: reading(w, i, 0), windows, index)
        batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=self.batches), shapes)
        return self.abstract, batch, jax.ShapeDtypeStruct((S,), jnp.float32)


@lru_cache(maxsize=32)
def make_programs(
    config: ModelConfig,
    execution: Execution,
    optim: OptimConfig,
    layout: Layout,
    z_loss: float,
    accumulate: int,
    tune: TuneConfig = EVERYTHING,
) -> Programs:
    """Jit init, training and evaluation over a layout; runs that differ only in schedule or horizon share them."""
    model = tuned(config.build(execution), tune)
    optimizer = make_optimizer(optim, model.trained, config.scales)
    abstract = abstract_state(model, optimizer, layout)
    state = jax.tree.map(lambda s: s.sharding, abstract)
    trained = (state, layout.replicated)

    def init(key: jax.Array) -> TrainState:
        return new_state(key, model, optimizer)

    def train(state: TrainState, batch: Batch, lrs: jax.Array) -> tuple[TrainState, Metrics]:
        settings = {"model": model, "optimizer": optimizer, "z_loss": z_loss, "accumulate": accumulate}
        with use(layout), kernels_of(execution):
            return train_steps(state, batch, lrs, **settings)

    def evaluate(params: Params, batch: Batch) -> jax.Array:
        with use(layout), kernels_of(execution):
            return eval_step(params, batch, model=model)

    def jitted(f: Callable[..., Any], kind: str, out: Any, **settings: Any) -> Any:
        told = options(layout.platform, kind)
        return meet_when_compiled(jax.jit(f, out_shardings=out, compiler_options=told, **settings))

    return Programs(
        abstract,
        jitted(init, "init", state),
        jitted(train, "train", trained, donate_argnums=0),
        train,
        trained,
        jitted(evaluate, "evaluate", layout.replicated),
        layout.sharding((None, "batch", "seq")),
    )
