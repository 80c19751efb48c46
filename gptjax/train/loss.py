"""The weighted cross-entropy of a batch, without ever holding the logits of all its tokens where they are large.

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

from gptjax.data.objectives import Batch
from gptjax.params import Axes, Params
from gptjax.sharding import constrain, current, parts, platform, use

Apply = Callable[..., jax.Array]
Sums = tuple[jax.Array, jax.Array]
Read = Callable[..., Sums]
# Where float32 logits are larger, the head and its loss take the positions in parts. A CPU's cache holds about as much;
# a GPU has room for more, and larger products run faster.
LOGITS_BYTES = {"cpu": 2**23, "gpu": 2**31, "tpu": 2**28}
AXES = {"embedding": ("vocab", "embed"), "head": ("embed", "vocab")}  # of what the logits are read with


@jax.named_scope("loss")
def token_nats(logits_BTV: jax.Array, targets_BT: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return -log p(target) and log Z of each position, in nats."""
    return _nats(logits_BTV, jnp.asarray(targets_BT))


@jax.custom_vjp
def _nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _nats_forward(logits_BTV, targets_BT)[0]


def _nats_forward(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    if parts("vocab") == 1:
        target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1, mode="clip")[..., 0]
    else:  # a masked sum splits over the vocabulary; a gather does not
        target_BT = jnp.sum(jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0.0), axis=-1)
    return (log_z_BT - target_BT, log_z_BT), (logits_BTV, targets_BT, log_z_BT)


def _nats_gradients(kept: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    logits_BTV, targets_BT, log_z_BT = kept
    d_nats_BT, d_log_z_BT = cotangents
    p_BTV = jnp.exp(logits_BTV - log_z_BT[..., None])
    d_target_BTV = jnp.where(_is_target(logits_BTV, targets_BT), d_nats_BT[..., None], 0.0)
    return p_BTV * (d_nats_BT + d_log_z_BT)[..., None] - d_target_BTV, None


def _is_target(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]


_nats.defvjp(_nats_forward, _nats_gradients)


def summed_loss(params: Params, batch: Batch, apply: Apply, z_loss: float) -> Sums:
    """Return the weighted sum of (nats + z_loss log^2 Z, PaLM section 5), and of nats alone, which has no gradient."""
    x_BTD = apply(params, batch.inputs, batch.segments, method="hidden")
    name = "head" if "head" in params else "embedding"

    def read(head: Any, rest: Params, x_BTD: jax.Array, targets_BT: ArrayLike, weights_BT: ArrayLike) -> Sums:
        nats_BT, log_z_BT = token_nats(apply({**rest, name: head}, x_BTD, method="logits"), targets_BT)
        total = jnp.sum(nats_BT * weights_BT)
        objective = total + z_loss * jnp.sum(jnp.square(log_z_BT) * weights_BT)
        return objective, jax.lax.stop_gradient(total)

    rest = {key: value for key, value in params.items() if key != name}
    read_by = (x_BTD, batch.targets, batch.weights)
    n = head_parts(jax.eval_shape(lambda x: apply(params, x, method="logits"), x_BTD).shape)
    if n == 1:
        return read(params[name], rest, *read_by)
    return _summed(read, AXES[name], params[name], rest, *_cut(n, read_by))


def over_positions(
    params: Params, x_BTD: jax.Array, targets_BT: jax.Array, apply: Apply, read: Callable[[jax.Array, jax.Array], Any]
) -> Any:
    """Return a tree of (B, T) that `read` makes of logits (B, t, V) and targets (B, t), in the parts of the loss.

    Its gradient would keep every part's logits: training takes `summed_loss`.
    """
    n = head_parts(jax.eval_shape(lambda x: apply(params, x, method="logits"), x_BTD).shape)
    if n == 1:
        return read(apply(params, x_BTD, method="logits"), targets_BT)
    cut = _cut(n, (x_BTD, targets_BT))
    found = jax.lax.map(lambda part: read(apply(params, part[0], method="logits"), part[1]), cut)
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(targets_BT.shape), found)


def _cut(n: int, arrays_BT: Any) -> Any:
    """Cut positions in n parts: (B, T, ...) to (n, B, T / n, ...)."""
    return jax.tree.map(lambda a: a.reshape(a.shape[0], n, -1, *a.shape[2:]).swapaxes(0, 1), arrays_BT)


def head_parts(logits_BTV: tuple[int, ...]) -> int:
    """Return in how many parts to take the positions, a divisor of them; 1 where they are split over devices."""
    if parts("seq") * parts("stream") > 1:
        return 1
    held = 4 * math.prod(logits_BTV) / parts("batch") / parts("vocab")
    limit = LOGITS_BYTES.get(platform(), LOGITS_BYTES["tpu"])
    divisors = [n for n in range(1, logits_BTV[1] + 1) if logits_BTV[1] % n == 0]
    return next((n for n in divisors if held <= n * limit), divisors[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(read: Read, axes: Axes, head: Any, rest: Params, *cut: jax.Array) -> Sums:
    """Sum `read` over parts. Its gradient is taken with its value, so that no part's logits are kept or made twice."""
    sums = jax.lax.map(lambda part: read(head, rest, *part), cut)
    return sums[0].sum(), sums[1].sum()


def _value_and_gradients(read: Read, axes: Axes, head: Any, rest: Params, *cut: jax.Array) -> tuple[Sums, Any]:
    """Give every group of devices the whole head before its parts, and sum what the groups found after them.

    Left to the compiler, a part may gather the head and reduce its gradient: n times for one.
    """
    layout, groups = current(), parts("batch")
    if layout is None or groups == 1:
        return _over_parts(read, axes, head, rest, *cut)
    inside = replace(layout, rules=replace(layout.rules, batch=None, embed=None))
    by_group = [a.reshape(a.shape[0], groups, -1, *a.shape[2:]) for a in cut]
    by_group = [constrain(a, None, "batch", *(None,) * (a.ndim - 2)) for a in by_group]
    with use(inside):
        head = jax.tree.map(lambda w: constrain(w, *axes), head)
        each = jax.vmap(
            partial(_over_parts, read, axes),
            in_axes=(None, None, 1, 1, 1),
            out_axes=(0, (0, 1)),
            spmd_axis_name=layout.rules.batch,
        )
        sums, (d_head, dx) = each(head, rest, *by_group)
    d_head = jax.tree.map(lambda g: constrain(g.sum(0), *axes), d_head)
    return jax.tree.map(jnp.sum, sums), (d_head, dx.reshape(cut[0].shape))


def _over_parts(read: Read, axes: Axes, head: Any, rest: Params, *cut: jax.Array) -> tuple[Sums, Any]:
    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        def of(head: Any, x_BTD: jax.Array) -> Sums:
            return read(head, rest, x_BTD, *part[1:])

        sums, (d_head, dx_BTD) = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(head, part[0])
        d_head = jax.tree.map(lambda g: constrain(g, *axes), d_head)
        return jax.tree.map(jnp.add, total, (sums, d_head)), dx_BTD

    zero = jnp.zeros(())
    (sums, d_head), dx = jax.lax.scan(add, ((zero, zero), jax.tree.map(jnp.zeros_like, head)), cut)
    return sums, (d_head, dx)


def _scaled_gradients(read: Read, axes: Axes, gradients: Any, cotangents: Sums) -> tuple[Any, ...]:
    d_head, dx = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients)
    return d_head, None, dx, None, None


_summed.defvjp(_value_and_gradients, _scaled_gradients)
