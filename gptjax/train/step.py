"""Loss, gradient, update: one training step as mathematics, and its evaluation twin.

Shapes: B batch, T positions, V vocab, S steps of one call.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.batch import Batch
from gptjax.kernels.loss import token_nats
from gptjax.models.model import Model
from gptjax.params import Params, divide, united
from gptjax.train.loss import read_positions, summed_loss
from gptjax.train.state import TrainState

Metrics = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: Batch,
    lr: jax.Array,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    z_loss: float = 0.0,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """Take one step on the mean loss of the batch, whose rows may be taken in `accumulate` parts.

    What the step reports: the nats of a token, the norm of the gradient, and the model's own losses by name.
    """
    tokens = jnp.maximum(jnp.sum(batch.weights), 1.0)  # an objective may have chosen none
    moved, held = divide(state.params, model.trained)

    def objective(moved: Params, part: Batch) -> tuple[jax.Array, Metrics]:
        nats_and_z, nats, own = summed_loss(model, united(moved, held), part, z_loss)
        own = {name: loss / accumulate for name, loss in own.items()}
        return sum(own.values(), nats_and_z / tokens), {"loss": nats / tokens, **own}

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        (_, losses), grads = jax.value_and_grad(objective, has_aux=True)(moved, part)
        return jax.tree.map(jnp.add, total, (losses, grads)), None

    if accumulate == 1:
        (_, losses), grads = jax.value_and_grad(objective, has_aux=True)(moved, batch)
    else:  # of 8 rows in 2 parts, the first takes rows 0, 2, 4 and 6: so a batch split over devices stays split
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        one = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape), jax.eval_shape(objective, moved, one)[1])
        (losses, grads), _ = jax.lax.scan(add, (zero, jax.tree.map(jnp.zeros_like, moved)), parts)
    with jax.named_scope("optimizer"):
        updates, opt = optimizer.update(grads, state.opt, moved)
        moved = jax.tree.map(lambda p, u: p + lr * u, moved, updates)
    return TrainState(state.step + 1, united(moved, held), opt), {**losses, "grad_norm": optax.tree.norm(grads)}


def train_steps(state: TrainState, batches: Batch, lrs_S: jax.Array, **settings: Any) -> tuple[TrainState, Metrics]:
    """Take the steps of S stacked batches in one call, so that small models do not wait for the host."""
    return jax.lax.scan(lambda s, xs: train_step(s, *xs, **settings), state, (batches, lrs_S))


def eval_step(params: Params, batches: Batch, *, model: Model) -> jax.Array:
    """Return the nats of each sequence of S stacked batches, (S, B)."""

    def one(batch: Batch) -> jax.Array:
        nats_BT = read_positions(model, params, batch, lambda *part: token_nats(*part)[0])
        return jnp.sum(nats_BT * batch.weights, axis=-1)

    return jax.lax.map(one, batches)
