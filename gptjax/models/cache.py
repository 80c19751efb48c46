"""What attention remembers of the tokens before, so that the next ones need not compute it again.

Shapes: B batch, S columns, G key/value heads, K head, T new tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.sharding import constrain

Held = tuple[jax.Array, jax.Array]  # a layer's keys and values, (B, G, S, K): in the order in which matmuls read them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values by column. Rows may begin later than column 0, so that prompts of all lengths end together."""

    layers: tuple[Held, ...]  # arrays for each layer and not one for all: XLA updates them in place
    first_B: jax.Array  # the column of each row's first token
    filled: jax.Array  # how many columns are written

    def positions(self, T: int) -> jax.Array:
        """Return the positions of the next T tokens in their rows, (B, T)."""
        return jnp.maximum(self.filled + jnp.arange(T) - self.first_B[:, None], 0)

    def visible(self, T: int) -> jax.Array:
        """Say which columns the next T tokens see, (B, T, S): none before their row, none after themselves."""
        column_S = jnp.arange(self.layers[0][0].shape[2])
        before_TS = column_S <= self.filled + jnp.arange(T)[:, None]
        return before_TS & (column_S >= self.first_B[:, None, None])

    def put(self, layer: int, k_BTGK: jax.Array, v_BTGK: jax.Array) -> Held:
        """Write a layer's keys and values of the next tokens; `filled` stays until all layers have."""
        at = (0, 0, self.filled, 0)
        new = (x.swapaxes(1, 2) for x in (k_BTGK, v_BTGK))
        k, v = (jax.lax.dynamic_update_slice(old, x, at) for old, x in zip(self.layers[layer], new, strict=True))
        return _placed(k), _placed(v)


def _placed(x_BGSK: jax.Array) -> jax.Array:
    return constrain(x_BGSK, "batch", "kv_heads", None, None)


def empty_cache(n_layers: int, shape_BGSK: tuple[int, ...], dtype: str, first_B: jax.Array) -> Cache:
    """Return a cache for sequences that begin at these columns."""
    nothing = _placed(jnp.zeros(shape_BGSK, dtype))
    return Cache(((nothing, nothing),) * n_layers, first_B, jnp.zeros((), jnp.int32))
