"""What a run carries from step to step, as arrays and as shapes with shardings."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.models.model import Model
from gptjax.params import Params, divide
from gptjax.sharding import Layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The step reached, the weights, and the optimizer's moments of those that are trained."""

    step: jax.Array
    params: Params
    opt: optax.OptState


def new_state(key: jax.Array, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    params = model.init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(divide(params, model.trained)[0]))


def abstract_state(model: Model, optimizer: optax.GradientTransformation, layout: Layout) -> TrainState:
    """Return the state as shapes, dtypes and shardings: moments lie where their weights lie, the rest everywhere."""
    shapes = jax.eval_shape(lambda key: new_state(key, model, optimizer), jax.random.key(0))
    placed = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes.params,
        layout.params(model.axes, shapes.params),
    )

    def everywhere(s: jax.ShapeDtypeStruct) -> Any:
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=layout.replicated)

    weights = dict(jax.tree.leaves_with_path(placed))

    def like_its_weight(path: tuple[Any, ...], s: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Place a moment as its weight: its path ends with the weight's, as 1.mu.layers.mlp.up.kernel does."""
        weight = next((weights[path[i:]] for i in range(len(path)) if path[i:] in weights), None)
        if weight is None or s.shape != weight.shape:  # counts; Adafactor's row and column sums
            return everywhere(s)
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=weight.sharding)

    return TrainState(everywhere(shapes.step), placed, jax.tree.map_with_path(like_its_weight, shapes.opt))
