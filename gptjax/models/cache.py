"""What attention remembers of the tokens before, so that the next ones need not compute it again.

Shapes: L layers, B batch, S columns, G key/value heads, K head, T new tokens.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from gptjax.sharding import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values by column. Rows may begin later than column 0, so that prompts of all lengths end together."""

    keys_LBSGK: jax.Array
    values_LBSGK: jax.Array
    first_B: jax.Array  # the column of each row's first token
    filled: jax.Array  # columns that are

    def positions(self, T: int) -> jax.Array:
        """Return the positions of the next T tokens in their rows, (B, T)."""
        return jnp.maximum(self.filled + jnp.arange(T) - self.first_B[:, None], 0)

    def visible(self, T: int) -> jax.Array:
        """Say which columns the next T tokens see, (B, 1, T, S): none before their row, none after themselves."""
        column_S = jnp.arange(self.keys_LBSGK.shape[2])
        before_TS = column_S <= self.filled + jnp.arange(T)[:, None]
        return (before_TS & (column_S >= self.first_B[:, None, None]))[:, None]

    def put(self, layer: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array) -> "Cache":
        """Write a layer's keys and values of the next tokens; `filled` stays until all layers have."""
        at = (layer, 0, self.filled, 0, 0)
        keys = jax.lax.dynamic_update_slice(self.keys_LBSGK, k_BTGK[None], at)
        values = jax.lax.dynamic_update_slice(self.values_LBSGK, v_BTGK[None], at)
        return replace(self, keys_LBSGK=_placed(keys), values_LBSGK=_placed(values))

    def layer(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return a layer's keys and values, (B, S, G, K)."""
        return self.keys_LBSGK[layer], self.values_LBSGK[layer]


def _placed(x_LBSGK: jax.Array) -> jax.Array:
    return constrain(x_LBSGK, None, "batch", None, "kv_heads", None)


def empty_cache(shape_LBSGK: tuple[int, ...], dtype: str, first_B: jax.Array) -> Cache:
    """Return a cache for sequences that begin at these columns."""
    nothing = _placed(jnp.zeros(shape_LBSGK, dtype))
    return Cache(nothing, nothing, first_B, jnp.zeros((), jnp.int32))
