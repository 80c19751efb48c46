"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019) over the last axis.

Shapes: D is what is normalized over, after any others.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.kernels.choice import target

_as_they_are = jax.lax.optimization_barrier  # else XLA computes a row's mean and scale again wherever they are used


def normalize(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, centre: bool, eps: float) -> jax.Array:
    """Return x over its root mean square, times the scale, in float32 until it is cast as x is.

    centre: take the mean off first, as LayerNorm does.
    """
    return (plain_norm if target() == "plain" else _lean)(x, scale_D, bias_D, centre, eps)


def plain_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, centre: bool, eps: float) -> jax.Array:
    y = x.astype(jnp.float32)
    if centre:
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps) * scale_D
    return (y if bias_D is None else y + bias_D).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _lean(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, centre: bool, eps: float) -> jax.Array:
    """Do as `plain_norm` does; for the backward pass keep the input and two numbers a row, and no float32 copies."""
    return _forward(x, scale_D, bias_D, centre, eps)[0]


def _forward(
    x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, centre: bool, eps: float
) -> tuple[jax.Array, Any]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True) if centre else None
    if mean is not None:
        y = y - mean
    inverse = jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y * inverse * scale_D
    return (y if bias_D is None else y + bias_D).astype(x.dtype), (x, mean, inverse, scale_D, bias_D)


def _gradients(centre: bool, eps: float, kept: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, mean, inverse = _as_they_are(kept[:3])
    scale_D, bias_D = kept[3:]
    g, y = dy.astype(jnp.float32), x.astype(jnp.float32)
    y = (y if mean is None else y - mean) * inverse
    along = _as_they_are((g * scale_D * y).mean(-1, keepdims=True))
    dx = g * scale_D - y * along
    if centre:
        dx = dx - _as_they_are((g * scale_D).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return (inverse * dx).astype(x.dtype), (g * y).sum(rows), None if bias_D is None else g.sum(rows)


_lean.defvjp(_forward, _gradients)
