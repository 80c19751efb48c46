"""Which device stands where in a mesh, so that what talks most lies nearest."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gptjax.errors import BadInput
from gptjax.sharding import MeshConfig


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
