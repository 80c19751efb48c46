"""Send activations through stacked layers: one after the other, or in stages that work on microbatches at once.

Shapes: B batch, T positions, D embed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.execution import Execution
from gptjax.kernels.layers import kept_by_dots, rows_whole, scans
from gptjax.kernels.pipeline import pipeline
from gptjax.params import layer_of
from gptjax.sharding import current, parts

Losses = dict[str, jax.Array]


def run_stack(layers: nnx.Module, x_BTD: jax.Array, *args: Any, execution: Execution) -> tuple[jax.Array, Losses]:
    """Return x after all layers, and the sums of what they add to the loss, by name.

    A layer takes x and `args` (B, ...), and returns x and its losses. What it keeps for the backward pass is, by
    `execution.remat`: "none" all, "dots" the outputs of matmuls, "full" only what goes in.
    """
    layer, weights = layer_of(layers)
    looped = scans(execution, jax.tree.leaves(weights)[0].shape[0])
    if execution.remat != "none":
        policy = kept_by_dots if execution.remat == "dots" else None
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=not looped)

    def through(weights: Any, x: jax.Array, *args: Any) -> tuple[jax.Array, Losses]:
        if looped:
            x, losses = jax.lax.scan(lambda x, w: layer(w, x, *args), x, weights)
            return x, jax.tree.map(jnp.sum, losses)
        x, each = rows_whole(x), []
        for one in _each(weights):
            x, losses = layer(one, x, *args)
            x = rows_whole(x)
            each.append(losses)
        return x, jax.tree.map(lambda *losses: sum(losses), *each)

    stages, layout = parts("layers"), current()
    if layout is None or stages == 1:
        return through(weights, x_BTD, *args)
    return pipeline(through, weights, x_BTD, args, layout, execution.in_flight(stages))


def unstacked(layers: nnx.Module, method: str) -> list[Callable[..., Any]]:
    """Return a method of each layer as a function, its weights taken out of the stack."""
    layer, weights = layer_of(layers, method)
    return [partial(layer, one) for one in _each(weights)]


def _each(weights: Any) -> list[Any]:
    leaves, tree = jax.tree.flatten(weights)
    return [jax.tree.unflatten(tree, one) for one in zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True)]
