"""Which device holds what: a mesh, and rules from the axis names of arrays to the axes of that mesh.

Weights and activations name their dimensions ("embed", "heads", "batch", ...); `Rules` says which mesh axes split each
name. A new layout is `replace(Rules(), embed=("fsdp", "context"))` and nothing else.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.errors import BadInput
from gptjax.fields import check_values
from gptjax.params import Params, map_axes

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 means all that the others leave.

    The order is that of the links: the first axes talk least and cross slices or nodes where there are several.
    """

    data: int = -1  # copies of the weights, each with its share of the batch
    pipeline: int = 1  # stages of layers
    fsdp: int = 1  # shares of weights, gradients and moments, each with its share of the batch
    context: int = 1  # shares of the sequence
    tensor: int = 1  # shares of heads, MLP and vocabulary

    def __post_init__(self) -> None:
        check_values(self, "mesh.")
        sizes = asdict(self)
        if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise BadInput(f"mesh {sizes} must have sizes of 1 or more and at most one -1; data is -1 unless given")


@dataclass(frozen=True)
class Rules:
    """The mesh axes that split each named axis; None keeps it whole on every device."""

    batch: MeshAxes = ("data", "fsdp")  # sequences of a batch
    seq: MeshAxes = "context"  # positions of a sequence
    stream: MeshAxes = "context"  # positions of the residual stream; ("context", "tensor"): Korthikanti et al. 2022
    keys: MeshAxes = (
        None  # positions of keys and values; None gathers them, "context" sends them round (kernels/ring.py)
    )
    layers: MeshAxes = "pipeline"  # layers, in pipeline stages
    positions: MeshAxes = None  # rows of learned positions
    embed: MeshAxes = "fsdp"  # the width of the residual stream, in weights
    heads: MeshAxes = "tensor"  # attention heads
    kv_heads: MeshAxes = "tensor"  # heads of keys and values
    head: MeshAxes = None  # the width of a head
    mlp: MeshAxes = "tensor"  # the width inside the MLP
    hidden: MeshAxes = "tensor"  # any other width inside a layer, as of a recurrent state
    experts: MeshAxes = None  # experts of a layer
    vocab: MeshAxes = ("tensor", "pipeline")  # ids; the head runs outside the pipeline, so its stages share it
    lora: MeshAxes = None  # the rank of adapters

    def __post_init__(self) -> None:
        check_values(self, "rules.")


@dataclass(frozen=True)
class Layout:
    """A mesh and the rules that place arrays on it."""

    mesh: Mesh
    rules: Rules

    def __post_init__(self) -> None:
        for axis, split in asdict(self.rules).items():
            if unknown := [name for name in _names(split) if name not in self.mesh.shape]:
                known = ", ".join(self.mesh.shape)
                raise BadInput(f"rules.{axis} names a mesh axis {unknown[0]!r}; the axes are {known}")

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """Return what splits each axis; of an axis that a weight has twice, the first alone is split."""
        known = asdict(self.rules)
        if unknown := [axis for axis in axes if axis and axis not in known]:
            raise BadInput(f"no rule splits axis {unknown[0]!r}; name the axis as one of {', '.join(known)}")
        splits = [known[axis] if axis and axis not in axes[:i] else None for i, axis in enumerate(axes)]
        names = [name for split in splits for name in _names(split)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise BadInput(
                f"the rules split ({', '.join(filter(None, axes))}) twice by {twice[0]}; use it for one of them"
            )
        return PartitionSpec(*splits)

    def sharding(self, axes: Sequence[str | None], shape: tuple[int, ...] | None = None) -> NamedSharding:
        """Place an array with these axis names; with a shape, check that it divides."""
        spec = self.spec(axes)
        for axis, split, size in zip(axes, spec, shape or (), strict=bool(shape)):
            if split and size % (parts := self.parts(split)):
                raise BadInput(
                    f"axis {axis} of size {size} is not divisible by its {parts} mesh parts {split}; "
                    f"change the mesh or make {axis} a multiple of {parts}"
                    + " (execution.vocab_multiple)"
                    * (axis == "vocab")
                )
        return NamedSharding(self.mesh, spec)

    def parts(self, split: MeshAxes) -> int:
        return math.prod(self.mesh.shape[name] for name in _names(split))

    def params(self, axes: Params, shapes: Params) -> Params:
        """Shardings of a tree of weights."""
        return map_axes(lambda a, s: self.sharding(a, s.shape), axes, shapes)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices: cpu, gpu or tpu. In a dry run it is not that of this machine."""
        return self.mesh.devices.flat[0].platform


def _names(split: MeshAxes) -> tuple[str, ...]:
    return (split,) if isinstance(split, str) else split or ()


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def use(layout: Layout) -> Iterator[None]:
    """Make `constrain` and its neighbours answer for this layout while a function is traced."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def current() -> Layout | None:
    """Return the layout in use."""
    return _layout.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tell XLA how to split an activation; the identity where no layout is in use."""
    layout = current()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.sharding(axes))


def parts(axis: str) -> int:
    """Return in how many parts the layout in use splits an axis; 1 where there is none."""
    layout = current()
    return 1 if layout is None else layout.parts(getattr(layout.rules, axis))
