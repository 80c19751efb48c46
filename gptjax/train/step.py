"""Loss, gradient, update: one training step as mathematics, and its evaluation twin.

Shapes: B batch, T positions, V vocab, S steps of one call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from gptjax.data.objectives import Batch
from gptjax.hosts import meet_when_compiled
from gptjax.models.gpt import GPTConfig, gpt
from gptjax.params import Params, divide, join
from gptjax.sharding import Layout, use
from gptjax.train.loss import Apply, over_positions, summed_loss, token_nats
from gptjax.train.optim import OptimConfig, make_optimizer
from gptjax.train.state import TrainState, abstract_state, new_state
from gptjax.train.tune import EVERYTHING, TuneConfig, tuned

Metrics = dict[str, jax.Array]
# A GPU's library adds biases, residuals and GELU in the product itself, which Triton's products and merged ones do not.
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}}


def train_step(
    state: TrainState,
    batch: Batch,
    lr: jax.Array,
    *,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    z_loss: float = 0.0,
    accumulate: int = 1,
    trained: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """Take one step on the mean loss of the batch, whose rows may be taken in `accumulate` parts.

    Only weights that the tree `trained` has are moved; None moves all.
    """
    tokens = jnp.sum(batch.weights)
    moved, held = divide(state.params, state.params if trained is None else trained)

    def mean_loss(moved: Params, part: Batch) -> tuple[jax.Array, jax.Array]:
        objective, nats = summed_loss(join(moved, held), part, apply, z_loss)
        return objective / tokens, nats / tokens

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        (_, loss), grads = jax.value_and_grad(mean_loss, has_aux=True)(moved, part)
        return jax.tree.map(jnp.add, total, (loss, grads)), None

    if accumulate == 1:
        (_, loss), grads = jax.value_and_grad(mean_loss, has_aux=True)(moved, batch)
    else:  # every part takes rows from everywhere, so a batch split over devices stays split
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, moved))
        (loss, grads), _ = jax.lax.scan(add, zero, parts)
    with jax.named_scope("optimizer"):
        updates, opt = optimizer.update(grads, state.opt, moved)
        moved = jax.tree.map(lambda p, u: p + lr * u, moved, updates)
    return TrainState(state.step + 1, join(moved, held), opt), {"loss": loss, "grad_norm": optax.tree.norm(grads)}


def train_steps(state: TrainState, batches: Batch, lrs_S: jax.Array, **settings: Any) -> tuple[TrainState, Metrics]:
    """Take the steps of S stacked batches in one call, so that small models do not wait for the host."""
    return jax.lax.scan(lambda s, xs: train_step(s, *xs, **settings), state, (batches, lrs_S))


def eval_step(params: Params, batches: Batch, *, apply: Apply) -> jax.Array:
    """Return the nats of each sequence of S stacked batches, (S, B)."""

    def one(batch: Batch) -> jax.Array:
        x_BTD = apply(params, batch.inputs, batch.segments, method="hidden")
        targets_BT = jnp.asarray(batch.targets)
        nats_BT = over_positions(params, x_BTD, targets_BT, apply, lambda *part: token_nats(*part)[0])
        return jnp.sum(nats_BT * batch.weights, axis=-1)

    return jax.lax.map(one, batches)


@dataclass(frozen=True, eq=False)
class Programs:
    """The compiled functions of a run; `abstract` is the state they take and give, as shapes with shardings."""

    abstract: TrainState
    init: Callable[[jax.Array], TrainState]
    train: Callable[[TrainState, Batch, ArrayLike], tuple[TrainState, Metrics]]
    train_traced: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]  # to compile as a part of more
    train_shardings: Any  # of what training gives
    evaluate: Callable[[Params, Batch], jax.Array]
    batches: NamedSharding  # of stacked batches (S, B, T)

    def example(self, S: int, B: int, T: int, *, segments: bool) -> tuple[TrainState, Batch, jax.ShapeDtypeStruct]:
        """Return the arguments of a training call as shapes, to compile it with."""
        ids, weights = (
            jax.ShapeDtypeStruct((S, B, T), kind, sharding=self.batches) for kind in (jnp.int32, jnp.float32)
        )
        batch = Batch(ids, ids, weights, ids if segments else None)  # type: ignore[arg-type]
        return self.abstract, batch, jax.ShapeDtypeStruct((S,), jnp.float32)


@lru_cache(maxsize=32)
def make_programs(
    config: GPTConfig,
    optim: OptimConfig,
    layout: Layout,
    z_loss: float,
    accumulate: int,
    tune: TuneConfig = EVERYTHING,
) -> Programs:
    """Jit init, training and evaluation over a layout; runs that differ only in schedule or horizon share them."""
    model = tuned(gpt(config), tune)
    optimizer = make_optimizer(optim, model.trained, config)
    abstract = abstract_state(model, optimizer, layout)
    state = jax.tree.map(lambda s: s.sharding, abstract)
    trained = (state, layout.replicated)
    # A CPU runs new weights once, in milliseconds, and would compile them for longer than the training step.
    once = {"xla_backend_optimization_level": 1} if layout.platform == "cpu" else None

    def init(key: jax.Array) -> TrainState:
        return new_state(key, model, optimizer)

    def train(state: TrainState, batch: Batch, lrs: jax.Array) -> tuple[TrainState, Metrics]:
        with use(layout):
            settings = {"apply": model.apply, "optimizer": optimizer, "z_loss": z_loss, "accumulate": accumulate}
            return train_steps(state, batch, lrs, **settings, trained=model.trained)

    def evaluate(params: Params, batch: Batch) -> jax.Array:
        with use(layout):
            return eval_step(params, batch, apply=model.apply)

    return Programs(
        abstract,
        meet_when_compiled(jax.jit(init, out_shardings=state, compiler_options=once)),
        meet_when_compiled(
            jax.jit(train, donate_argnums=0, out_shardings=trained, compiler_options=OPTIONS.get(layout.platform))
        ),
        train,
        trained,
        meet_when_compiled(jax.jit(evaluate, out_shardings=layout.replicated)),
        layout.sharding((None, "batch", "seq")),
    )
