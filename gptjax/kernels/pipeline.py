"""Stages of layers on different devices that work on different microbatches at once.

Shapes: B batch, T positions, D embed, P stages, M microbatches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.errors import BadInput
from gptjax.sharding import Layout


def pipeline(
    stage: Callable[..., tuple[jax.Array, Any]],
    weights: Any,
    x_BTD: jax.Array,
    args: tuple[Any, ...],
    layout: Layout,
    microbatches: int,
) -> tuple[jax.Array, Any]:
    """Run GPipe's schedule (Huang et al. 2019, section 2.2) as one SPMD program (Xu et al. 2021, section 3.3).

    Every tick all stages work at once, each on the microbatch that the one before it held a tick ago: a buffer with a
    leading axis of stages, split over the devices, is shifted by one. P - 1 of the M + P - 1 ticks fill and drain it.
    Losses are summed over stages and averaged over microbatches.
    """
    stages, rows = layout.parts(layout.rules.layers), x_BTD.shape[0]
    if rows % microbatches:
        raise BadInput(f"a batch of {rows} rows is not divisible by {microbatches} microbatches; use a divisor")

    def split(x: jax.Array) -> jax.Array:  # every microbatch takes rows from everywhere: what is split stays split
        cut = x.reshape(rows // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return jnp.concatenate([cut, jnp.zeros((stages - 1, *cut.shape[1:]), x.dtype)])

    weights = jax.tree.map(lambda w: w.reshape(stages, w.shape[0] // stages, *w.shape[1:]), weights)
    inputs = jax.tree.map(split, (x_BTD, *args))
    held = jax.tree.map(lambda x: jnp.zeros((stages, *x.shape[1:]), x.dtype), inputs)
    work = jax.vmap(stage, spmd_axis_name=layout.rules.layers)

    def tick(held: Any, entering: Any) -> tuple[Any, Any]:
        x, *args = jax.tree.map(lambda h, e: jnp.roll(h, 1, axis=0).at[0].set(e), held, entering)
        x, losses = work(weights, x, *args)
        return (x, *args), (x[-1], losses)

    out, losses = jax.lax.scan(tick, held, inputs)[1]
    entered = jnp.arange(microbatches + stages - 1)[:, None] - jnp.arange(stages)  # the microbatch in a stage at a tick
    real = (entered >= 0) & (entered < microbatches)
    losses = jax.tree.map(lambda loss: jnp.sum(jnp.where(real, loss, 0.0)) / microbatches, losses)
    return out[stages - 1 :].swapaxes(0, 1).reshape(x_BTD.shape), losses
