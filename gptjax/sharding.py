"""Which device holds what: a mesh, and rules from the axis names of arrays to the axes of that mesh.

Weights and activations name their dimensions ("embed", "heads", "batch", ...); `Rules` says which mesh axes split each
name. A new layout is `replace(Rules(), embed=("fsdp", "context"))` and nothing else.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.errors import BadInput
from gptjax.fields import check_values
from gptjax.params import Params, map_axes

Split = str | tuple[str, ...] | None


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

    batch: Split = ("data", "fsdp")  # sequences of a batch
    seq: Split = "context"  # positions of a sequence
    stream: Split = "context"  # positions of the residual stream; ("context", "tensor"): Korthikanti et al. 2022
    keys: Split = None  # positions of keys and values; None gathers them, "context" sends them round (models/ring.py)
    layers: Split = "pipeline"  # layers, in pipeline stages
    positions: Split = None  # rows of learned positions
    embed: Split = "fsdp"  # the width of the residual stream, in weights
    heads: Split = "tensor"  # attention heads
    kv_heads: Split = "tensor"  # heads of keys and values
    head: Split = None  # the width of a head
    mlp: Split = "tensor"  # the width inside the MLP
    vocab: Split = ("tensor", "pipeline")  # ids; without pipeline every stage computes the whole head
    lora: Split = None  # the rank of adapters

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
        splits = [getattr(self.rules, axis) if axis else None for axis in axes]
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
                    f"change the mesh or make {axis} a multiple of {parts}" + " (vocab_multiple)" * (axis == "vocab")
                )
        return NamedSharding(self.mesh, spec)

    def parts(self, split: Split) -> int:
        return math.prod(self.mesh.shape[name] for name in _names(split))

    def params(self, axes: Params, shapes: Params) -> Params:
        """Shardings of a tree of weights."""
        return map_axes(lambda a, s: self.sharding(a, s.shape), axes, shapes)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def platform(self) -> str:
        """What the mesh's devices are (cpu, gpu, tpu), which need not be where the program is compiled."""
        return self.mesh.devices.flat[0].platform


def _names(split: Split) -> tuple[str, ...]:
    return (split,) if isinstance(split, str) else split or ()


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices as a mesh with Auto axes, neighbours near; slices and nodes are split by the outermost axes."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    if devices[0].platform == "tpu":
        outer = outermost(tuple(sizes.values()), len({getattr(device, "slice_index", 0) for device in devices}))
        inner = [size // over for size, over in zip(sizes.values(), outer, strict=True)]
        if math.prod(outer) > 1:
            grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    else:  # in order of process: the devices of a node lie together
        grid = np.asarray(sorted(devices, key=lambda d: (d.process_index, d.id))).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def mesh_sizes(config: MeshConfig, n_devices: int) -> dict[str, int]:
    """Fill in the -1 of a mesh; BadInput where its axes cannot cover exactly so many devices."""
    sizes = asdict(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [name for name, size in sizes.items() if size == -1]
    if n_devices % known or (not free and known != n_devices):
        raise BadInput(f"mesh {sizes} does not cover {n_devices} devices; their product must be {n_devices}")
    return {name: n_devices // known if size == -1 else size for name, size in sizes.items()}


def outermost(sizes: Sequence[int], slices: int) -> list[int]:
    """Share slices out over the axes, the first taking as many as divide it."""
    taken = []
    for size in sizes:
        taken.append(math.gcd(size, slices))
        slices //= taken[-1]
    return taken


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


def platform() -> str:
    """Return what a function is being compiled for: the devices of the layout in use, else jax's default."""
    layout = current()
    return jax.default_backend() if layout is None else layout.platform
