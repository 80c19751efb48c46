"""Which keys a query sees: masks as values, which answer for pairs of positions and for whole blocks of them.

`none` and `every` are known without arrays, so that a kernel can leave out blocks of which nothing is visible and the
masking of those of which all is; their ranges are of consecutive positions.

Shapes: B batch, T queries, S keys.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.errors import BadInput


@dataclass(frozen=True)
class CausalMask:
    """A query sees itself and all positions before it."""

    def sees(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Say of each pair of positions whether it is visible; the two arrays are broadcast to one shape."""
        return key <= query

    def visible(self, queries_T: jax.Array, keys_S: jax.Array) -> jax.Array:
        """Say which keys each query sees, (T, S)."""
        return self.sees(queries_T[:, None], keys_S[None, :])

    def none(self, queries: range, keys: range) -> bool:
        """Say whether no query sees any of the keys."""
        return _empty(queries, keys) or queries[-1] < keys[0]

    def every(self, queries: range, keys: range) -> bool:
        """Say whether every query sees all of the keys."""
        return _empty(queries, keys) or keys[-1] <= queries[0]


@dataclass(frozen=True)
class FullMask:
    """A query sees all positions."""

    def sees(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.ones(jnp.broadcast_shapes(query.shape, key.shape), bool)

    def visible(self, queries_T: jax.Array, keys_S: jax.Array) -> jax.Array:
        return self.sees(queries_T[:, None], keys_S[None, :])

    def none(self, queries: range, keys: range) -> bool:
        return _empty(queries, keys)

    def every(self, queries: range, keys: range) -> bool:
        return True


@dataclass(frozen=True)
class WindowMask:
    """A query sees itself and the size - 1 positions before it (Child et al. 2019; Beltagy et al. 2020)."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadInput(f"a window of {self.size} positions hides all of them; use a size of 1 or more")

    def sees(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return (key <= query) & (query - self.size < key)

    def visible(self, queries_T: jax.Array, keys_S: jax.Array) -> jax.Array:
        return self.sees(queries_T[:, None], keys_S[None, :])

    def none(self, queries: range, keys: range) -> bool:
        return _empty(queries, keys) or queries[-1] < keys[0] or keys[-1] <= queries[0] - self.size

    def every(self, queries: range, keys: range) -> bool:
        return _empty(queries, keys) or (keys[-1] <= queries[0] and queries[-1] - self.size < keys[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PrefixMask:
    """A query sees itself, all positions before it, and of those after it the ones that are only read.

    So a prefix is seen whole by all of its row (Raffel et al. 2020, section 3.2.1).
    """

    read_BS: jax.Array  # whether a position is read, and not predicted

    def visible(self, queries_T: jax.Array, keys_S: jax.Array) -> jax.Array:
        """Say which keys each query of each row sees, (B, T, S)."""
        return CausalMask().visible(queries_T, keys_S) | self.read_BS[:, None, keys_S]

    def none(self, queries: range, keys: range) -> bool:
        return _empty(queries, keys)  # any key may be one that is read

    def every(self, queries: range, keys: range) -> bool:
        return CausalMask().every(queries, keys)


Mask = CausalMask | FullMask | WindowMask | PrefixMask


def _empty(queries: range, keys: range) -> bool:
    return not queries or not keys
