"""The loss of a batch: weighted cross-entropy, z-loss, and what a model adds of its own.

Shapes: B batch, T positions, D embed, V vocab.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.batch import Batch
from gptjax.kernels.loss import head_parts, map_over_positions, sum_over_positions, token_nats
from gptjax.models.model import Model
from gptjax.params import Params


def summed_loss(
    model: Model, params: Params, batch: Batch, z_loss: float
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Return the weighted sum of (nats + z_loss log^2 Z, PaLM section 5), that of nats alone, and the model's own.

    The sum of nats has no gradient. The model's own losses are means: they are added to a mean loss as they are.
    """
    hidden = model.hidden(params, batch)

    def read(head: Params, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> tuple[Any, Any]:
        nats_BT, log_z_BT = token_nats(model.readout(head, x_BTD), targets_BT)
        total = jnp.sum(nats_BT * weights_BT)
        return total + z_loss * jnp.sum(jnp.square(log_z_BT) * weights_BT), jax.lax.stop_gradient(total)

    head, arrays = model.head(params), (hidden.x, batch.targets, batch.weights)
    n = _parts(model, head, hidden.x)
    objective, nats = sum_over_positions(read, head, model.head(model.axes), n, *arrays)
    return objective, nats, hidden.losses


def read_positions(model: Model, params: Params, batch: Batch, read: Callable[[jax.Array, jax.Array], Any]) -> Any:
    """Return a tree of (B, T) that `read` makes of logits (B, t, V) and targets (B, t), in the parts of the loss."""
    x_BTD, head = model.hidden(params, batch).x, model.head(params)
    n = _parts(model, head, x_BTD)
    return map_over_positions(
        lambda x, targets: read(model.readout(head, x), targets), n, x_BTD, jnp.asarray(batch.targets)
    )


def _parts(model: Model, head: Params, x_BTD: jax.Array) -> int:
    return head_parts(jax.eval_shape(model.readout, head, x_BTD).shape)
