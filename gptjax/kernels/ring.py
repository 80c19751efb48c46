"""Ring attention (Liu et al. 2023): positions stay split over devices, and keys and values travel round them.

Shapes: B batch, T positions of one device, N heads, G key/value heads, K head; all are what one device holds.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax.kernels.mask import CausalMask, FullMask, WindowMask
from gptjax.sharding import Layout

FAR = -1e30


def ring_attend(
    q_BTNK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    mask: CausalMask | FullMask | WindowMask,
    scale: float,
    segments_BT: jax.Array | None,
    layout: Layout,
) -> jax.Array:
    """Softmax attention over all positions, (B, T, N, K), of arrays whose positions are split by `keys`.

    No device holds more than one block of scores: each block is a step of the running softmax (Milakov & Gimelshein
    2018), computed anew in the backward pass.
    """
    queries = layout.spec(("batch", "seq", "heads", None))
    keys = layout.spec(("batch", "keys", "kv_heads", None))
    segments = layout.spec(("batch", "seq")) if segments_BT is not None else PartitionSpec()
    around = partial(_around, mask=mask, scale=scale, axis=layout.rules.keys, size=layout.parts(layout.rules.keys))
    inputs = (queries, keys, keys, segments)
    spread = jax.shard_map(around, mesh=layout.mesh, in_specs=inputs, out_specs=queries, check_vma=False)
    return spread(q_BTNK, k_BTGK, v_BTGK, segments_BT)


def _around(q_BTNK, k_BTGK, v_BTGK, segments_BT, *, mask, scale: float, axis, size: int) -> jax.Array:
    B, T, N, K = q_BTNK.shape
    q_BTGRK = q_BTNK.reshape(B, T, k_BTGK.shape[2], -1, K) * scale
    mine = jax.lax.axis_index(axis)
    here_T = jnp.arange(T)

    def attend(running, block, source):
        """Add the block of positions that came from device `source` to the running softmax."""
        out, total, highest = running
        k, v, segments = block
        scores = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k, preferred_element_type=jnp.float32)
        visible = mask.visible(mine * T + here_T, source * T + here_T)
        if segments is not None:
            visible = visible & (segments_BT[:, None, None, :, None] == segments[:, None, None, None, :])
        scores = jnp.where(visible, scores, FAR)
        new = jnp.maximum(highest, scores.max(-1))
        weights = jnp.where(visible, jnp.exp(scores - new[..., None]), 0.0)
        keep = jnp.exp(highest - new)
        seen = jnp.einsum("BGRTS,BSGK->BGRTK", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out * keep[..., None] + seen, total * keep + weights.sum(-1), new

    @jax.checkpoint
    def turn(carried, i):
        running, block = carried
        block = jax.lax.ppermute(block, axis, [(j, (j + 1) % size) for j in range(size)])
        return (attend(running, block, (mine - i) % size), block), None

    shape = (B, k_BTGK.shape[2], N // k_BTGK.shape[2], T)
    zero = (jnp.zeros((*shape, K)), jnp.zeros(shape), jnp.full(shape, FAR))
    block = (k_BTGK, v_BTGK, segments_BT)
    running = jax.checkpoint(attend)(zero, block, mine)
    (running, _), _ = jax.lax.scan(turn, (running, block), jnp.arange(1, size))
    out, total, _ = running
    out_BTNK = (out / total[..., None]).transpose(0, 3, 1, 2, 4).reshape(B, T, N, K)
    return out_BTNK.astype(q_BTNK.dtype)
