"""Layouts tried: meshes that divide the chips, by predicted time; the best are compiled until enough of them fit."""

import itertools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from gptjax.config import RunConfig
from gptjax.errors import BadInput
from gptjax.estimate.compile import compile_step
from gptjax.estimate.estimate import Json, account, memory_of
from gptjax.estimate.footprint import Footprint, footprint
from gptjax.estimate.roofline import expected_exchanges, roofline
from gptjax.estimate.topology import Topology
from gptjax.mesh import mesh_sizes
from gptjax.sharding import MeshConfig

MOST_TENSOR = 16  # beyond it, the links of no torus keep up
LONG = 8192  # context from which it is worth splitting
SLACK = 1.3  # of the guess of memory, to leave out what is far too large


@dataclass(frozen=True)
class LayoutCandidate:
    """A layout that divides, the bytes it holds and the seconds that its step takes at least, by its design."""

    config: RunConfig
    held: Footprint
    seconds: float


def search(
    config: RunConfig, topology: Topology, *, fitting: int = 3, most: int = 8, tokens: float = 0.0
) -> list[Json]:
    """Estimate the layouts of least predicted time until so many fit or so many were compiled; best of all first.

    BadInput where no layout divides, or where none can hold its state.
    """
    if topology.uncompiled:
        raise BadInput(f"a search compiles what it finds, and {topology.uncompiled}")
    order = candidates(config, topology)[:most]
    workers = max(1, (os.cpu_count() or 2) // 2)
    found: list[Json] = []
    with ThreadPoolExecutor(workers) as pool:
        for some in (order[i : i + workers] for i in range(0, len(order), workers)):
            steps = pool.map(lambda c: compile_step(c.config, topology), some)
            found += [account(c.config, topology, c.held, s, tokens) for c, s in zip(some, steps, strict=True)]
            if sum(e["fits"] is True for e in found) >= fitting:
                break
    return sorted(found, key=lambda e: (not e["fits"], e["speeds"]["serial"]["seconds"]))


def candidates(config: RunConfig, topology: Topology) -> list[LayoutCandidate]:
    """List the layouts whose state fits, the fastest by design first; those that memory probably refuses come last."""
    room = memory_of(topology)
    found, last, least = [], "no mesh divides the chips", math.inf
    for layout in layouts(config, topology):
        try:
            held = footprint(layout, topology.chips, topology.platform)
        except BadInput as error:
            last = str(error)
            continue
        if held.state > room:
            least = min(least, held.state)
            last = f"weights and moments are {least / 2**30:,.1f} GiB a chip at best; take more chips"
            continue
        sizes = mesh_sizes(layout.mesh, topology.chips)
        line = roofline(layout, topology, sizes, held, expected_exchanges(layout, sizes, topology))
        found.append(LayoutCandidate(layout, held, line.serial))
    if not found:
        raise BadInput(f"no layout of {topology.name} is possible: {last}")
    likely = [c for c in found if c.held.guess <= SLACK * room]
    return sorted(likely or found, key=lambda c: (c.held.guess > room, c.seconds))


def layouts(config: RunConfig, topology: Topology) -> Iterator[RunConfig]:
    """Give every mesh of powers of two for tensor, context and stages, the rest shared between data and fsdp."""
    model, chips = config.model, topology.chips
    contexts = [1, 2, 4, 8] if model.context >= LONG else [1]
    n_layers = model.cost(model.context).widths.layers
    stages = [p for p in (1, 2, 4, 8) if n_layers % p == 0]
    for tensor, context, pipeline in itertools.product((1, 2, 4, 8, MOST_TENSOR), contexts, stages):
        if chips % (tensor * context * pipeline):
            continue
        rest = chips // (tensor * context * pipeline)
        slices = topology.slices if topology.platform == "tpu" else 1  # nodes of GPUs may share weights between them
        for data in {d for d in (1, topology.slices, 2, 4, 8, rest) if rest % d == 0 and d % slices == 0}:
            mesh = MeshConfig(data=data, fsdp=rest // data, tensor=tensor, context=context, pipeline=pipeline)
            for remat in ("none", "dots", "full"):
                yield replace(config, mesh=mesh, execution=replace(config.execution, remat=remat))


def describe(found: list[Json]) -> str:
    """Rank estimates in a table."""
    header = ["layout", "remat", "fits", "GiB a chip", "s a step, bound", "MFU at most", "serial", "collectives GB"]
    rows = []
    for e in found:
        mesh = ", ".join(f"{axis}={size}" for axis, size in e["mesh"].items() if size > 1) or "one chip"
        b, s = e["bytes"], e["speeds"]
        size = b.get("peak") or b.get("refused") or b["weights"] + b["moments"]
        speeds = [f"{s['overlapped']['seconds']:.4g}", f"{s['overlapped']['mfu']:.0%}", f"{s['serial']['mfu']:.0%}"]
        moved = sum(x["bytes"] for x in e["exchanges"]) / 1e9
        rows.append([mesh, e["remat"], "yes" if e["fits"] else "NO", f"{size / 2**30:.1f}", *speeds, f"{moved:,.1f}"])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) for row in [header, *rows])
