"""The same arithmetic as XLA's CPU backend runs it fastest: products and causal attention, with gradients by hand.

XLA hands a product of (m, k) by (k, n), or by (n, k), to a library. One of (k, m) by (k, n), as every gradient of a
weight is, it packs element by element, which costs up to half of its time; so such a matrix is copied to (m, k) first.
A product over batch and heads runs on one core: attention has several for both.

Shapes: B batch, T positions, N heads, G key/value heads, R = N/G, K head; M positions of a block times R, S those of
another; I inputs and O outputs of a product of X rows.
"""

import itertools
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp

BLOCK, BLOCKS = 64, 4  # positions of a block at least, and blocks at most

_as_written = jax.lax.optimization_barrier  # else XLA makes a transpose part of the product before or after it


def _transposed(x: jax.Array) -> jax.Array:
    """Swap the last two axes in memory."""
    return _as_written(x.swapaxes(-1, -2))


@jax.custom_vjp
def multiply(x_XI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """Return x w."""
    return x_XI @ w_IO


def _multiply_gradients(kept: tuple[jax.Array, jax.Array], g_XO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_XI, w_IO = kept
    if x_XI.shape[1] <= g_XO.shape[1]:  # the narrower is copied
        dw_IO = _as_written(_transposed(x_XI) @ g_XO)
    else:
        dw_IO = _as_written(_transposed(g_XO) @ x_XI).T
    return g_XO @ w_IO.T, dw_IO


multiply.defvjp(lambda x_XI, w_IO: (x_XI @ w_IO, (x_XI, w_IO)), _multiply_gradients)


def attend_in_blocks(
    q_BTNK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, segments_BT: jax.Array | None, scale: float
) -> jax.Array:
    """Causal softmax attention, within segments where given, without blocks of later keys; returns (B, T, N, K)."""
    B, T, N, K = q_BTNK.shape
    q_BGRTK = (q_BTNK * scale).transpose(0, 2, 1, 3).reshape(B, k_BTGK.shape[2], -1, T, K)
    k_BGTK, v_BGTK = (x.transpose(0, 2, 1, 3) for x in (k_BTGK, v_BTGK))
    seen_BGRTK = _attend(q_BGRTK, k_BGTK, v_BGTK, segments_BT)
    return seen_BGRTK.reshape(B, N, T, K).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _attend(q_BGRTK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    return _forward(q_BGRTK, k_BGTK, v_BGTK, segments_BT)[0]


def _forward(
    q_BGRTK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, segments_BT: jax.Array | None
) -> tuple[jax.Array, Any]:
    R = q_BGRTK.shape[2]
    blocks = _blocks(q_BGRTK.shape[3])
    q = _rows(q_BGRTK, blocks)
    k, v = ([x[:, :, start:end] for start, end in blocks] for x in (k_BGTK, v_BGTK))
    seen, kept = [], []
    for i, queries in enumerate(blocks):
        scores = [_scores(q[i], k[j], _visible(queries, blocks[j], segments_BT, R)) for j in range(i + 1)]
        top_BGM1 = reduce(jnp.maximum, [s_BGMS.max(-1, keepdims=True) for s_BGMS in scores])
        weights = [jnp.exp(s_BGMS - top_BGM1) for s_BGMS in scores]
        total_BGM1 = reduce(add, [w_BGMS.sum(-1, keepdims=True) for w_BGMS in weights]).astype(v_BGTK.dtype)
        weights = [w_BGMS.astype(v_BGTK.dtype) for w_BGMS in weights]
        seen.append(reduce(add, [w_BGMS @ v_BGSK for w_BGMS, v_BGSK in zip(weights, v, strict=False)]) / total_BGM1)
        kept.append((weights, total_BGM1))
    return _joined(seen, R), (q, k, v, seen, kept, R)


def _backward(kept: Any, g_BGRTK: jax.Array) -> tuple[Any, ...]:
    """With weights w of sum z and h = g / z: dv = w' h, ds = w (h v' - h . seen), dq = ds k, dk = ds' q."""
    q, k, v, seen, softmax, R = kept
    dq: list[jax.Array] = []
    dk: list[list[jax.Array]] = [[] for _ in k]
    dv: list[list[jax.Array]] = [[] for _ in v]
    for i, g_BGMK in enumerate(_rows(g_BGRTK, _blocks(g_BGRTK.shape[3]))):
        weights, total_BGM1 = softmax[i]
        h_BGMK = g_BGMK / total_BGM1
        mean_BGM1 = (h_BGMK * seen[i]).astype(jnp.float32).sum(-1, keepdims=True)
        h_BGKM, q_BGKM = _transposed(h_BGMK), _transposed(q[i])
        ds = [
            (w * (_scores(h_BGMK, v_BGSK) - mean_BGM1)).astype(w.dtype) for w, v_BGSK in zip(weights, v, strict=False)
        ]
        dq.append(reduce(add, [ds_BGMS @ k_BGSK for ds_BGMS, k_BGSK in zip(ds, k, strict=False)]))
        for j, w_BGMS in enumerate(weights):
            dk[j].append(q_BGKM @ ds[j])
            dv[j].append(h_BGKM @ w_BGMS)
    dk_BGTK, dv_BGTK = (jnp.concatenate([reduce(add, x) for x in d], axis=-1).swapaxes(2, 3) for d in (dk, dv))
    return _joined(dq, R), dk_BGTK, dv_BGTK, None


_attend.defvjp(_forward, _backward)


def _blocks(T: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise([*range(0, T, max(BLOCK, -(-T // BLOCKS))), T]))


def _rows(x_BGRTK: jax.Array, blocks: list[tuple[int, int]]) -> list[jax.Array]:
    """Give the rows of each block of positions, (B, G, M, K)."""
    B, G, *_, K = x_BGRTK.shape
    return [x_BGRTK[:, :, :, start:end].reshape(B, G, -1, K) for start, end in blocks]


def _joined(rows: list[jax.Array], R: int) -> jax.Array:
    """Put `_rows` together again."""
    B, G, _, K = rows[0].shape
    return jnp.concatenate([x_BGMK.reshape(B, G, R, -1, K) for x_BGMK in rows], axis=3)


def _scores(q_BGMK: jax.Array, k_BGSK: jax.Array, visible: jax.Array | None = None) -> jax.Array:
    s_BGMS = jnp.einsum("bgmk,bgsk->bgms", q_BGMK, k_BGSK, preferred_element_type=jnp.float32)
    return s_BGMS if visible is None else jnp.where(visible, s_BGMS, -1e30)


def _visible(
    queries: tuple[int, int], keys: tuple[int, int], segments_BT: jax.Array | None, R: int
) -> jax.Array | None:
    """Say which keys of a block the rows of another may see; None is all."""
    causal = jnp.arange(*keys) <= jnp.arange(*queries)[:, None] if keys == queries else None
    if segments_BT is None:
        return None if causal is None else jnp.tile(causal, (R, 1))
    same_BTS = segments_BT[:, slice(*queries), None] == segments_BT[:, None, slice(*keys)]
    visible_BTS = same_BTS if causal is None else same_BTS & causal
    return jnp.tile(visible_BTS, (1, R, 1))[:, None]
