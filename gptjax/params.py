"""How Flax stores weights, and the only file that knows: modules in, pure functions over nested dicts out.

A module declares each weight with `param`, naming every dimension; `stack` makes n layers of one kind with a leading
"layers" axis; `functions_of` turns a module into functions. Nothing else in gptjax touches nnx state.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

Axes = tuple[str, ...]
Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]
Params = dict[str, Any]


def normal(std: float) -> Init:
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


def constant(value: float) -> Init:
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, init: Init) -> nnx.Param:
    """Declare a float32 weight whose dimensions are named by `axes`."""
    if len(shape) != len(axes):
        raise TypeError(f"a weight of shape {shape} needs {len(shape)} axis names, not {axes}")
    return nnx.Param(init(rngs.params(), shape), axes=axes)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def stack(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
    """Make n layers as one module whose weights have a leading "layers" axis of length n."""
    graph, state = jax.vmap(lambda key: nnx.split(make(nnx.Rngs(key))))(jax.random.split(rngs.params(), n))
    state = jax.tree.map(lambda v: v.replace(v.get_value(), axes=("layers", *v.axes)), state, is_leaf=_is_variable)
    return nnx.merge(graph, state)


def layer_of(layers: nnx.Module, method: str = "__call__") -> tuple[Callable[..., Any], Any]:
    """Return one of stacked layers as a function of (its weights, *inputs), and the weights of all."""
    graph, state = nnx.split(layers)
    return lambda weights, *inputs: getattr(nnx.merge(graph, weights), method)(*inputs), state


def functions_of(
    make: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[..., Any], Callable[[jax.Array], Params], Params]:
    """Turn a module's constructor into pure functions, without allocating its weights.

    Returns `call(params, *inputs, method=...)`, `init(key) -> params`, and the axis names of all weights. A method may
    be called with those weights alone that it reads.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    axes = nnx.to_pure_dict(jax.tree.map(lambda v: v.axes, state, is_leaf=_is_variable))
    # Shapes stand in for weights that a call is not given. They are no arrays, so a method that reads one fails.
    shapes = nnx.to_pure_dict(state)

    def call(params: Params, *inputs: Any, method: str = "__call__") -> Any:
        return getattr(nnx.merge(graph, nnx.State(united(shapes, params))), method)(*inputs)

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key))))

    return call, init, axes


def map_axes(f: Callable[..., Any], axes: Params, *trees: Params) -> Params:
    """Apply f(axes, *leaves) to each weight."""
    return jax.tree.map(f, axes, *trees, is_leaf=lambda a: isinstance(a, tuple))


BATCH_LIKE = ("layers", "experts")  # axes along which a weight is many weights of one kind
WIDTHS = ("embed", "heads", "kv_heads", "head", "mlp", "hidden")  # axes that widen with the model


def sides(axes: Axes) -> tuple[tuple[int, ...], ...]:
    """Return the axes of each side of a weight by their places: a matrix has two, its input and its output.

    ("layers", "embed", "heads", "head") gives ((1,), (2, 3)): layers and experts are on neither side, and the width of
    a head is on the side of its heads.
    """
    found: list[tuple[int, ...]] = []
    for i, axis in enumerate(axes):
        if axis == "head" and i and axes[i - 1] in ("heads", "kv_heads"):
            found[-1] = (*found[-1], i)
        elif axis not in BATCH_LIKE:
            found.append((i,))
    return tuple(found)


def is_hidden(axes: Axes) -> bool:
    """Say whether a weight is a matrix both of whose sides widen with the model."""
    return len(sides(axes)) == 2 and all(axis in BATCH_LIKE + WIDTHS for axis in axes)


def named(params: Params) -> dict[str, Any]:
    """Return weights by the names of their path joined with dots."""
    return flatten_dict(params, sep=".")


def nested(weights: Mapping[str, Any]) -> Params:
    """Return as nested dicts what `named` has named."""
    return unflatten_dict(dict(weights), sep=".")


def divide(params: Params, some: Params) -> tuple[Params, Params]:
    """Divide a tree of weights into those that the tree `some` has, and the rest."""
    weights, names = named(params), named(some).keys()
    inside = {name: weight for name, weight in weights.items() if name in names}
    return nested(inside), nested({name: weight for name, weight in weights.items() if name not in names})


def united(one: Params, other: Params) -> Params:
    """Unite what `divide` has parted; where both have a weight, it is the other's."""
    return nested(named(one) | named(other))
