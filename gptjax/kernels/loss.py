"""The cross-entropy of tokens, without ever holding the logits of a whole batch where they are large.

A batch's logits can be gigabytes. So positions are taken in n parts: a part's logits are made, used for the loss and
for its gradient, and freed.

Shapes: B batch, T positions, D embed, V vocab, n parts of the positions, G groups of devices with rows of their own.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gptjax.kernels.choice import target
from gptjax.params import Params, map_axes
from gptjax.sharding import constrain, current, parts, use

Sums = tuple[jax.Array, jax.Array]
Read = Callable[..., Sums]
# Where float32 logits are larger, positions are taken in parts. A CPU's cache holds about as much; a GPU has room for
# more, and larger products run faster.
LOGITS_BYTES = {"cpu": 2**23, "gpu": 2**31, "tpu": 2**28}


@jax.named_scope("loss")
def token_nats(logits_BTV: jax.Array, targets_BT: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return -log p(target) and log Z of each position, in nats."""
    return (plain_nats if target() == "plain" else _nats)(logits_BTV, jnp.asarray(targets_BT))


def plain_nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    if parts("vocab") == 1:
        target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1, mode="clip")[..., 0]
    else:  # a masked sum splits over the vocabulary; a gather does not
        target_BT = jnp.sum(jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0.0), axis=-1)
    return log_z_BT - target_BT, log_z_BT


@jax.custom_vjp
def _nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Do as `plain_nats` does; the backward pass makes probabilities of the logits and keeps none."""
    return plain_nats(logits_BTV, targets_BT)


def _nats_forward(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
    nats_BT, log_z_BT = plain_nats(logits_BTV, targets_BT)
    return (nats_BT, log_z_BT), (logits_BTV, targets_BT, log_z_BT)


def _nats_gradients(kept: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    logits_BTV, targets_BT, log_z_BT = kept
    d_nats_BT, d_log_z_BT = cotangents
    p_BTV = jnp.exp(logits_BTV - log_z_BT[..., None])
    d_target_BTV = jnp.where(_is_target(logits_BTV, targets_BT), d_nats_BT[..., None], 0.0)
    return p_BTV * (d_nats_BT + d_log_z_BT)[..., None] - d_target_BTV, None


def _is_target(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]


_nats.defvjp(_nats_forward, _nats_gradients)


def head_parts(logits_BTV: tuple[int, ...]) -> int:
    """Return in how many parts to take the positions, a divisor of them; 1 where they are split over devices."""
    where = target()
    if where == "plain" or parts("seq") * parts("stream") > 1:
        return 1
    held = 4 * math.prod(logits_BTV) / parts("batch") / parts("vocab")
    limit = LOGITS_BYTES.get(where, LOGITS_BYTES["tpu"])
    divisors = [n for n in range(1, logits_BTV[1] + 1) if logits_BTV[1] % n == 0]
    return next((n for n in divisors if held <= n * limit), divisors[-1])


def map_over_positions(read: Callable[..., Any], n: int, *arrays_BT: jax.Array) -> Any:
    """Return the tree of (B, T) that `read` makes of arrays (B, t, ...), called on n parts of the positions.

    Its gradient would keep every part's logits: training takes `sum_over_positions`.
    """
    if n == 1:
        return read(*arrays_BT)
    found = jax.lax.map(lambda part: read(*part), _cut(n, arrays_BT))
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(arrays_BT[0].shape[:2]), found)


def sum_over_positions(read: Read, head: Params, axes: Params, n: int, *arrays_BT: Any) -> Sums:
    """Return the two sums that `read` makes of the weights `head` and arrays (B, t, ...), over n parts of positions.

    The first sum has gradients, of all weights of `head` and of the first array, the second none. `axes` names the
    weights' dimensions.
    """
    return read(head, *arrays_BT) if n == 1 else _summed(read, axes, head, *_cut(n, arrays_BT))


def _cut(n: int, arrays_BT: Any) -> Any:
    """Cut positions in n parts: (B, T, ...) to (n, B, T / n, ...)."""
    return jax.tree.map(lambda a: a.reshape(a.shape[0], n, -1, *a.shape[2:]).swapaxes(0, 1), arrays_BT)


def _placed(axes: Params, weights: Params) -> Params:
    return map_axes(lambda names, w: constrain(w, *names), axes, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(read: Read, axes: Params, head: Params, *cut: jax.Array) -> Sums:
    """Sum `read` over parts. Its gradient is taken with its value, so that no part's logits are kept or made twice."""
    sums = jax.lax.map(lambda part: read(head, *part), cut)
    return sums[0].sum(), sums[1].sum()


def _value_and_gradients(read: Read, axes: Params, head: Params, *cut: jax.Array) -> tuple[Sums, Any]:
    """Give every group of devices the whole head before its parts, and add up what the groups found after them.

    Left to the compiler, each part may gather the head and reduce its gradient: n times instead of once.
    """
    layout, groups = current(), parts("batch")
    if layout is None or groups == 1:
        return _over_parts(read, axes, head, *cut)
    inside = replace(layout, rules=replace(layout.rules, batch=None, embed=None))
    by_group = [a.reshape(a.shape[0], groups, -1, *a.shape[2:]) for a in cut]
    by_group = [constrain(a, None, "batch", *(None,) * (a.ndim - 2)) for a in by_group]
    with use(inside):
        each = jax.vmap(
            partial(_over_parts, read, axes),
            in_axes=(None, *(1,) * len(cut)),
            out_axes=(0, (0, 1)),
            spmd_axis_name=layout.rules.batch,
        )
        sums, (d_head, dx) = each(_placed(axes, head), *by_group)
    d_head = _placed(axes, jax.tree.map(lambda g: g.sum(0), d_head))
    return jax.tree.map(jnp.sum, sums), (d_head, dx.reshape(cut[0].shape))


def _over_parts(read: Read, axes: Params, head: Params, *cut: jax.Array) -> tuple[Sums, Any]:
    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        sums, (d_head, dx_BTD) = jax.value_and_grad(read, argnums=(0, 1), has_aux=True)(head, *part)
        return jax.tree.map(jnp.add, total, (sums, _placed(axes, d_head))), dx_BTD

    zero = jnp.zeros(())
    (sums, d_head), dx = jax.lax.scan(add, ((zero, zero), jax.tree.map(jnp.zeros_like, head)), cut)
    return sums, (d_head, dx)


def _scaled_gradients(read: Read, axes: Params, gradients: Any, cotangents: Sums) -> tuple[Any, ...]:
    d_head, dx = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients)
    return d_head, dx, None, None


_summed.defvjp(_value_and_gradients, _scaled_gradients)
