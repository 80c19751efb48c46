"""Products with a weight, whose input and output may have several axes.

Shapes: X rows, I inputs, O outputs.
"""

from math import prod

import jax
import jax.numpy as jnp

from gptjax.kernels.choice import target
from gptjax.sharding import parts

_as_written = jax.lax.optimization_barrier  # else XLA makes a transpose part of the product before or after it


def matmul(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, n_in: int = 1) -> jax.Array:
    """Contract the last n_in axes of x with the first n_in of w, and add a bias of w's other axes."""
    where = target()
    if where in ("plain", "tpu"):
        return plain_matmul(x, w, bias, n_in)
    lead, outer = x.shape[:-n_in], w.shape[n_in:]
    x, w = x.reshape(*lead, -1), w.reshape(prod(w.shape[:n_in]), -1)
    if where == "cpu" and parts("seq") * parts("stream") == 1:
        y = _on_a_cpu(x.reshape(-1, x.shape[-1]), w).reshape(*lead, -1)
    else:  # on a GPU the library adds a bias of one axis in the product itself
        y = x @ w
    return (y if bias is None else y + bias.reshape(-1)).reshape(*lead, *outer)


def plain_matmul(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, n_in: int = 1) -> jax.Array:
    y = jnp.tensordot(x, w, n_in)
    return y if bias is None else y + bias


@jax.custom_vjp
def _on_a_cpu(x_XI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """Return x w, whose gradients are products that XLA's CPU backend hands to a library.

    It does so with a product of (m, k) by (k, n) or by (n, k). A gradient of a weight is one of (k, m) by (k, n), which
    it packs element by element, at up to half of the time. So that matrix is copied to (m, k) first.
    """
    return x_XI @ w_IO


def _gradients(kept: tuple[jax.Array, jax.Array], g_XO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_XI, w_IO = kept
    if x_XI.shape[1] <= g_XO.shape[1]:  # the narrower is copied
        dw_IO = _as_written(transposed(x_XI) @ g_XO)
    else:
        dw_IO = _as_written(transposed(g_XO) @ x_XI).T
    return g_XO @ w_IO.T, dw_IO


_on_a_cpu.defvjp(lambda x_XI, w_IO: (x_XI @ w_IO, (x_XI, w_IO)), _gradients)


def transposed(x: jax.Array) -> jax.Array:
    """Swap the last two axes in memory."""
    return _as_written(x.swapaxes(-1, -2))
