"""Compile the real training step for devices that are not here, in a process of its own, and read what came out.

The process is needed: jax must be told before it starts, and the TPU compiler may abort the process that holds it.
"""

import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from gptjax.config import RunConfig, from_json, to_json
from gptjax.errors import BadInput
from gptjax.estimate.collectives import Collective, axes_of, collectives
from gptjax.estimate.topology import Topology


@dataclass(frozen=True)
class Exchange:
    """The collectives of one kind over the same mesh axes in one step, as one chip sees them."""

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int  # of the whole arrays that are gathered, reduced or sent on
    devices: int  # in a group
    slices: int  # that a group spans
    dimensions: int  # of the torus, along which a group extends within a slice


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step on one chip; bytes."""

    seconds: float  # to trace and compile
    arguments: int = 0
    outputs: int = 0  # beyond the donated arguments
    temporaries: int = 0
    code: int = 0
    peak: int = 0
    exchanges: tuple[Exchange, ...] = ()
    unknown_loops: int = 0  # whose trip count the program does not tell: counted once
    refusal: str = ""  # of the compiler, where the program exceeds the memory


def compile_step(config: RunConfig, topology: Topology) -> Compiled:
    """Compile a run's training step for a topology in another process.

    BadInput where the config and the hardware do not fit together, or where a signal ends the compiler, whose fault
    that is; RuntimeError, with its last words, for a fault of ours.
    """
    if topology.uncompiled:
        raise BadInput(topology.uncompiled)
    task = json.dumps({"config": to_json(config), "topology": to_json(topology)})
    command = [sys.executable, "-m", "gptjax.estimate.compile"]
    done = subprocess.run(command, input=task, capture_output=True, text=True, env=topology.environment)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = "it may have run out of this machine's memory" if name == "SIGKILL" else "a fault of its own"
        raise BadInput(
            f"the compiler for {topology.name} died with {name}, {why}; try another mesh or remat, or another version"
        )
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-12:])
        raise RuntimeError(f"the compiler for {topology.name} died with {done.returncode}:\n{last}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "mistake" in answer:
        raise BadInput(answer["mistake"])
    return from_json(Compiled, answer)


def compiled_here(config: RunConfig, topology: Topology) -> Compiled:
    """Compile in this process, which `topology.environment` has prepared."""
    import jax

    from gptjax.mesh import make_mesh
    from gptjax.run.begin import programs_of
    from gptjax.sharding import Layout

    devices = topology.devices()
    layout = Layout(make_mesh(config.mesh, devices), config.rules)
    programs = programs_of(config, layout)
    shapes = programs.example(1, config.batch, config.model.context, config.data)
    begun = time.perf_counter()
    try:
        step = programs.train.lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(time.perf_counter() - begun, **_refusal(str(error)))
    seconds = time.perf_counter() - begun
    memory = step.memory_analysis()
    places = [_place(device, topology) for device in layout.mesh.devices.flat]
    found, unknown = collectives(step.as_text(), topology.chips)
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries, code = memory.temp_size_in_bytes, memory.generated_code_size_in_bytes
    peak = arguments + outputs + temporaries + code
    exchanges = tuple(_exchanges(found, dict(layout.mesh.shape), places))
    return Compiled(seconds, arguments, outputs, temporaries, code, peak, exchanges, unknown)


def _refusal(text: str) -> dict[str, Any]:
    """Read the TPU compiler's refusal, "... HLO temporaries (39.77G) exceeds available HBM (15.75G)"."""
    first = text.strip().splitlines()[0]
    needed = re.search(r"(?:\(|Used )([\d.]+)([KMGT])(?:\) exceeds| of )", first)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return {"refusal": first, "peak": int(float(needed[1]) * scale[needed[2]]) if needed else 0}


def _place(device: Any, topology: Topology) -> tuple[int, tuple[int, ...]]:
    """Return the slice or node of a device, and its coordinates there."""
    if topology.platform == "tpu":
        return getattr(device, "slice_index", 0), tuple(device.coords[: len(topology.shape)])
    node, at = divmod(device.id, math.prod(topology.shape))
    return node, (at,)


def _exchanges(
    found: list[Collective], mesh: dict[str, int], places: list[tuple[int, tuple[int, ...]]]
) -> list[Exchange]:
    """Put together the collectives of one kind over the same devices' axes."""
    together: dict[tuple[str, tuple[str, ...]], Exchange] = {}
    per_slice: dict[int, list[int]] = {}
    for i, (place, _) in enumerate(places):
        per_slice.setdefault(place, []).append(i)
    apart = axes_of(tuple(zip(*per_slice.values(), strict=True)), mesh) if len(per_slice) > 1 else ()
    for c in found:
        groups = [[places[i] for i in group] for group in c.groups]
        slices = max((len({place for place, _ in group}) for group in groups), default=1)
        extents = [
            sum(len(set(values)) > 1 for values in zip(*(at for _, at in group), strict=True)) for group in groups
        ]
        key = (c.kind, axes_of(c.groups, mesh) if c.slices == 1 else apart)
        one = Exchange(*key, 0, 0, max(c.devices, c.slices), max(slices, c.slices), max(extents, default=0))
        before = together.get(key, one)
        together[key] = replace(before, count=before.count + c.runs, bytes=before.bytes + c.runs * c.bytes)
    return sorted(together.values(), key=lambda e: -e.bytes)


def main() -> None:
    task = json.load(sys.stdin)
    try:
        answer = compiled_here(from_json(RunConfig, task["config"]), from_json(Topology, task["topology"]))
        print(json.dumps(to_json(answer)))
    except BadInput as error:
        print(json.dumps({"mistake": str(error)}))


if __name__ == "__main__":
    main()
