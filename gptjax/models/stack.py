"""Send activations through stacked layers: one after the other, or in stages that work on microbatches at once.

Shapes: B batch, T positions, D embed, L layers, P stages, M microbatches.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from gptjax.errors import BadInput
from gptjax.params import layer_of
from gptjax.sharding import current, parts, platform

UNROLLED = 24  # layers that compile in less than half a minute


def run_stack(
    layers: nnx.Module, x_BTD: jax.Array, *args: Any, scan: bool | None, remat: str, microbatches: int = 0
) -> jax.Array:
    """Return x after all layers; `args` (B, ...) go to each of them.

    scan: compile one layer and loop over it. Else all are compiled, which takes longer and runs faster: a loop copies
    what the backward pass needs into stacks, and out again. None: a loop, but for up to UNROLLED layers on a GPU.
    remat: "none" keeps every activation, "dots" keeps matmul outputs, "full" keeps only each layer's input.
    microbatches: where the layout splits "layers", the parts of the batch in its stages; 0 is two for each stage.
    """
    layer, weights = layer_of(layers)
    if scan is None:
        scan = platform() != "gpu" or jax.tree.leaves(weights)[0].shape[0] > UNROLLED
    if remat != "none":
        layer = jax.checkpoint(layer, policy=_kept_by_dots if remat == "dots" else None, prevent_cse=not scan)

    def through(weights: Any, x: jax.Array, *args: Any) -> jax.Array:
        if scan:
            return jax.lax.scan(lambda x, w: (layer(w, x, *args), None), x, weights)[0]
        x = _rows_whole(x)
        for one in _each(weights):
            x = _rows_whole(layer(one, x, *args))
        return x

    stages = parts("layers")
    if stages == 1:
        return through(weights, x_BTD, *args)
    return pipeline(through, weights, x_BTD, args, stages, microbatches or 2 * stages)


def _kept_by_dots(primitive: Any, *args: Any, **settings: Any) -> bool:
    """Say whether an operation is a matmul with weights, or fused attention, whose scores are never kept."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name.startswith("dot_product_attention_fwd") or dots(primitive, *args, **settings)


def _rows_whole(x_BTD: jax.Array) -> jax.Array:
    """Have a GPU's compiler lay the features of a position side by side, as it does at a loop's ends.

    Left to itself it may lay rows of the batch there, and every norm then strides through memory.
    """
    return with_layout_constraint(x_BTD, Layout((0, 1, 2))) if platform() == "gpu" else x_BTD


def unstacked(layers: nnx.Module, method: str) -> list[Callable[..., Any]]:
    """Return a method of each layer as a function, its weights taken out of the stack."""
    layer, weights = layer_of(layers, method)
    return [partial(layer, one) for one in _each(weights)]


def _each(weights: Any) -> list[Any]:
    leaves, tree = jax.tree.flatten(weights)
    return [jax.tree.unflatten(tree, one) for one in zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True)]


def pipeline(
    stage: Callable[..., jax.Array],
    weights: Any,
    x_BTD: jax.Array,
    args: tuple[Any, ...],
    stages: int,
    microbatches: int,
) -> jax.Array:
    """Run GPipe's schedule (Huang et al. 2019, section 2.2) as one SPMD program (Xu et al. 2021, section 3.3).

    Every tick all stages work at once, each on the microbatch that the one before it held a tick ago: a buffer with a
    leading axis of stages, split over the devices, is shifted by one. P - 1 of the M + P - 1 ticks fill and drain it.
    """
    layout, rows = current(), x_BTD.shape[0]
    assert layout is not None
    if rows % microbatches:
        raise BadInput(f"a batch of {rows} rows is not divisible by {microbatches} microbatches; use a divisor")

    def split(x: jax.Array) -> jax.Array:  # every microbatch takes rows from everywhere: what is split stays split
        cut = x.reshape(rows // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return jnp.concatenate([cut, jnp.zeros((stages - 1, *cut.shape[1:]), x.dtype)])

    weights = jax.tree.map(lambda w: w.reshape(stages, w.shape[0] // stages, *w.shape[1:]), weights)
    inputs = jax.tree.map(split, (x_BTD, *args))
    held = jax.tree.map(lambda x: jnp.zeros((stages, *x.shape[1:]), x.dtype), inputs)
    work = jax.vmap(stage, spmd_axis_name=layout.rules.layers)

    def tick(held: Any, entering: Any) -> tuple[Any, jax.Array]:
        x, *args = jax.tree.map(lambda h, e: jnp.roll(h, 1, axis=0).at[0].set(e), held, entering)
        x = work(weights, x, *args)
        return (x, *args), x[-1]

    out = jax.lax.scan(tick, held, inputs)[1][stages - 1 :]
    return out.swapaxes(0, 1).reshape(x_BTD.shape)
