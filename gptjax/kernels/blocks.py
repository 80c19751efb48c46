"""Attention as XLA's CPU backend runs it fastest: in blocks of positions, on all cores, with its gradient by hand.

A product over batch and heads runs on one core there, so each block of queries meets each block of keys in a product of
its own. Blocks of keys that the mask hides are left out.

Shapes: B batch, T positions, N heads, G key/value heads, R = N/G, K head; M positions of a block times R, S those of
another.
"""

import itertools
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.kernels.mask import CausalMask, FullMask, WindowMask
from gptjax.kernels.matmul import transposed

BLOCK, BLOCKS = 64, 4  # positions of a block at least, and blocks at most

Static = CausalMask | FullMask | WindowMask  # masks that say before a program runs which blocks they hide


def attend_in_blocks(
    q_BTNK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    mask: Static,
    scale: float,
    segments_BT: jax.Array | None,
) -> jax.Array:
    """Softmax attention of equally many queries and keys, within segments where given; returns (B, T, N, K)."""
    B, T, N, K = q_BTNK.shape
    q_BGRTK = (q_BTNK * scale).transpose(0, 2, 1, 3).reshape(B, k_BTGK.shape[2], -1, T, K)
    k_BGTK, v_BGTK = (x.transpose(0, 2, 1, 3) for x in (k_BTGK, v_BTGK))
    seen_BGRTK = _attend(mask, q_BGRTK, k_BGTK, v_BGTK, segments_BT)
    return seen_BGRTK.reshape(B, N, T, K).transpose(0, 2, 1, 3)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    mask: Static, q_BGRTK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, segments_BT: jax.Array | None
) -> jax.Array:
    return _forward(mask, q_BGRTK, k_BGTK, v_BGTK, segments_BT)[0]


def _forward(
    mask: Static, q_BGRTK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, segments_BT: jax.Array | None
) -> tuple[jax.Array, Any]:
    R = q_BGRTK.shape[2]
    blocks = _blocks(q_BGRTK.shape[3])
    q = _rows(q_BGRTK, blocks)
    k, v = ([x[:, :, block.start : block.stop] for block in blocks] for x in (k_BGTK, v_BGTK))
    seen, kept = [], []
    for i, queries in enumerate(blocks):
        met = _met(mask, queries, blocks)
        scores = [_scores(q[i], k[j], _visible(mask, queries, blocks[j], segments_BT, R)) for j in met]
        top_BGM1 = reduce(jnp.maximum, [s_BGMS.max(-1, keepdims=True) for s_BGMS in scores])
        weights = [jnp.exp(s_BGMS - top_BGM1) for s_BGMS in scores]
        total_BGM1 = reduce(add, [w_BGMS.sum(-1, keepdims=True) for w_BGMS in weights]).astype(v_BGTK.dtype)
        weights = [w_BGMS.astype(v_BGTK.dtype) for w_BGMS in weights]
        seen.append(reduce(add, [w_BGMS @ v[j] for w_BGMS, j in zip(weights, met, strict=True)]) / total_BGM1)
        kept.append((weights, total_BGM1))
    return _joined(seen, R), (q, k, v, seen, kept, R)


def _backward(mask: Static, kept: Any, g_BGRTK: jax.Array) -> tuple[Any, ...]:
    """With weights w of sum z and h = g / z: dv = w' h, ds = w (h v' - h . seen), dq = ds k, dk = ds' q."""
    q, k, v, seen, softmax, R = kept
    dq: list[jax.Array] = []
    dk: list[list[jax.Array]] = [[] for _ in k]
    dv: list[list[jax.Array]] = [[] for _ in v]
    blocks = _blocks(g_BGRTK.shape[3])
    for i, g_BGMK in enumerate(_rows(g_BGRTK, blocks)):
        weights, total_BGM1 = softmax[i]
        met = _met(mask, blocks[i], blocks)
        h_BGMK = g_BGMK / total_BGM1
        mean_BGM1 = (h_BGMK * seen[i]).astype(jnp.float32).sum(-1, keepdims=True)
        h_BGKM, q_BGKM = transposed(h_BGMK), transposed(q[i])
        ds = [(w * (_scores(h_BGMK, v[j]) - mean_BGM1)).astype(w.dtype) for w, j in zip(weights, met, strict=True)]
        dq.append(reduce(add, [ds_BGMS @ k[j] for ds_BGMS, j in zip(ds, met, strict=True)]))
        for w_BGMS, ds_BGMS, j in zip(weights, ds, met, strict=True):
            dk[j].append(q_BGKM @ ds_BGMS)
            dv[j].append(h_BGKM @ w_BGMS)
    dk_BGTK, dv_BGTK = (jnp.concatenate([reduce(add, x) for x in d], axis=-1).swapaxes(2, 3) for d in (dk, dv))
    return _joined(dq, R), dk_BGTK, dv_BGTK, None


_attend.defvjp(_forward, _backward)


def _blocks(T: int) -> list[range]:
    edges = itertools.pairwise([*range(0, T, max(BLOCK, -(-T // BLOCKS))), T])
    return [range(start, stop) for start, stop in edges]


def _met(mask: Static, queries: range, blocks: list[range]) -> list[int]:
    """Return the blocks of keys of which a block of queries sees any."""
    return [j for j, keys in enumerate(blocks) if not mask.none(queries, keys)]


def _rows(x_BGRTK: jax.Array, blocks: list[range]) -> list[jax.Array]:
    """Give the rows of each block of positions, (B, G, M, K)."""
    B, G, *_, K = x_BGRTK.shape
    return [x_BGRTK[:, :, :, block.start : block.stop].reshape(B, G, -1, K) for block in blocks]


def _joined(rows: list[jax.Array], R: int) -> jax.Array:
    """Put `_rows` together again."""
    B, G, _, K = rows[0].shape
    return jnp.concatenate([x_BGMK.reshape(B, G, R, -1, K) for x_BGMK in rows], axis=3)


def _scores(q_BGMK: jax.Array, k_BGSK: jax.Array, visible: jax.Array | None = None) -> jax.Array:
    s_BGMS = jnp.einsum("bgmk,bgsk->bgms", q_BGMK, k_BGSK, preferred_element_type=jnp.float32)
    return s_BGMS if visible is None else jnp.where(visible, s_BGMS, -1e30)


def _visible(mask: Static, queries: range, keys: range, segments_BT: jax.Array | None, R: int) -> jax.Array | None:
    """Say which keys of a block the rows of another may see; None is all."""
    at = jnp.arange(queries.start, queries.stop), jnp.arange(keys.start, keys.stop)
    shown = None if mask.every(queries, keys) else mask.visible(*at)
    if segments_BT is None:
        return None if shown is None else jnp.tile(shown, (R, 1))
    one, other = (segments_BT[:, block.start : block.stop] for block in (queries, keys))
    same_BTS = one[:, :, None] == other[:, None, :]
    visible_BTS = same_BTS if shown is None else same_BTS & shown
    return jnp.tile(visible_BTS, (1, R, 1))[:, None]
