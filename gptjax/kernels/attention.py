"""Softmax attention: the plain_attention form, and who computes it where.

Shapes: B batch, T target positions, S source positions, N heads, G key/value heads, K head.
"""

import jax
import jax.numpy as jnp

from gptjax.errors import BadInput
from gptjax.execution import Kernel
from gptjax.kernels.blocks import attend_in_blocks
from gptjax.kernels.choice import target
from gptjax.kernels.mask import CausalMask, FullMask, Mask, PrefixMask, WindowMask
from gptjax.kernels.ring import ring_attend
from gptjax.sharding import current, parts


def attend(
    q_BTNK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    scale: float,
    segments: tuple[jax.Array, jax.Array] | None = None,
    kernel: Kernel = "auto",
) -> jax.Array:
    """Return softmax(scale q k^T) v over the keys that each query sees (Vaswani et al. 2017, Eq. 1), (B, T, N, K).

    A query sees what the mask lets it see and, where `segments` (B, T) and (B, S) are given, its own segment alone.
    kernel: "cudnn" is a GPU's fused one, for 16 bits; "auto" takes that or a TPU's where they fit, and else "xla".
    """
    where, layout = target(), current()
    of_itself = q_BTNK.shape[1] == k_BSGK.shape[1] and (segments is None or segments[0] is segments[1])
    own = None if segments is None else segments[0]
    if layout is not None and parts("keys") > 1:
        if isinstance(mask, PrefixMask) or not of_itself:
            raise BadInput("rules.keys: ring attention knows no prefix and no other sequence; leave rules.keys null")
        return ring_attend(q_BTNK, k_BSGK, v_BSGK, mask, scale, own, layout)
    if where == "plain":
        return plain_attention(q_BTNK, k_BSGK, v_BSGK, mask, scale, segments)
    split = parts("seq") > 1
    if kernel == "auto" and where == "tpu" and of_itself:
        from gptjax.kernels import splash  # it takes a second to import

        if splash.fits(q_BTNK.shape, k_BSGK.shape, q_BTNK.dtype, mask, layout):
            return splash.splash_attend(q_BTNK, k_BSGK, v_BSGK, mask, scale, own, layout)
    if kernel == "auto":
        fused = where == "gpu" and q_BTNK.dtype == jnp.bfloat16 and q_BTNK.shape[-1] % 8 == 0 and not split
        kernel = "cudnn" if fused else "xla"
    if where == "cpu" and kernel == "xla" and not split and of_itself and not isinstance(mask, PrefixMask):
        return attend_in_blocks(q_BTNK, k_BSGK, v_BSGK, mask, scale, own)
    return jax.nn.dot_product_attention(
        q_BTNK,
        k_BSGK,
        v_BSGK,
        mask=_visible(mask, q_BTNK.shape[1], k_BSGK.shape[1], segments),
        is_causal=isinstance(mask, CausalMask),
        local_window_size=(mask.size - 1, 0) if isinstance(mask, WindowMask) else None,
        scale=scale,
        implementation=kernel,
    )


def plain_attention(
    q_BTNK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    scale: float,
    segments: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    B, T, N, K = q_BTNK.shape
    q_BTGRK = q_BTNK.reshape(B, T, k_BSGK.shape[2], -1, K)
    scores = scale * jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32)
    visible_TS = mask.visible(jnp.arange(T), jnp.arange(k_BSGK.shape[1]))
    visible_BTS = jnp.broadcast_to(visible_TS, (B, *visible_TS.shape[-2:]))
    if segments is not None:
        visible_BTS = visible_BTS & (segments[0][:, :, None] == segments[1][:, None, :])
    weights = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], scores, -1e30)).astype(v_BSGK.dtype)
    return jnp.einsum("BGRTS,BSGK->BTGRK", weights, v_BSGK).reshape(B, T, N, K)


def _visible(mask: Mask, T: int, S: int, segments: tuple[jax.Array, jax.Array] | None) -> jax.Array | None:
    """Return what XLA and cuDNN are to be told by an array, (B or 1, 1, T, S); None is nothing.

    Causal, full and window masks they know by name; of any other mask, and of segments, they are told each pair.
    """
    known = isinstance(mask, CausalMask | FullMask | WindowMask)
    visible = None if known else mask.visible(jnp.arange(T), jnp.arange(S)).reshape(-1, 1, T, S)
    if segments is None:
        return visible
    same = (segments[0][:, :, None] == segments[1][:, None, :])[:, None]
    return same if visible is None else same & visible
