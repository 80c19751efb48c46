"""A whole sweep on hardware that is not at hand: every cell, its bytes, and the first that does not fit."""

from collections.abc import Iterator
from dataclasses import replace

from gptjax.config import RunConfig
from gptjax.errors import BadInput
from gptjax.estimate.compile import compile_step
from gptjax.estimate.estimate import gib, memory_of, verdict
from gptjax.estimate.footprint import Footprint, footprint
from gptjax.estimate.topology import Topology
from gptjax.sweep.plan import PlannedRun, SweepConfig, make_plan


def on_hardware(sweep: SweepConfig, topology: Topology) -> Iterator[str]:
    """Give a sweep's cells on a topology line by line: at once those that shapes rule out, then the compiled.

    Runs of one shape share a compile, and a shape that is smaller in state and in activations than one that fits is
    not compiled. Without a compiler only shapes are looked at, and a line says so.
    """
    runs = make_plan(sweep).runs
    room = memory_of(topology)
    shapes: dict[RunConfig, list[PlannedRun]] = {}
    for run in runs:
        shapes.setdefault(_shape(run.config), []).append(run)
    held: dict[RunConfig, Footprint] = {}
    said: dict[RunConfig, str] = {}
    for shape in shapes:
        try:
            held[shape] = footprint(shape, topology.chips, topology.platform)
        except BadInput as error:
            said[shape] = f"NO: {error}"
            continue
        if held[shape].state > room:
            said[shape] = f"NO: {verdict(topology, held[shape], None)[1]}"
    yield f"{len(runs)} runs of {len(shapes)} shapes on {topology.name}, {gib(room)} a chip"
    yield from _first(runs, said, "by shapes alone")
    if topology.uncompiled:
        yield f"not compiled: {topology.uncompiled}"
    else:
        _compile(topology, held, said)
        yield from _first(runs, said, "as compiled")
    width = max(len(run.name) for run in runs)
    for run in runs:
        shape = _shape(run.config)
        state = gib(held[shape].state) if shape in held else "?"
        yield f"{run.name:{width}}  {run.params:>15,}  {state:>12} of state  {said.get(shape, 'perhaps')}"


def _compile(topology: Topology, held: dict[RunConfig, Footprint], said: dict[RunConfig, str]) -> None:
    """Compile the open shapes from the largest down, and say of each whether it fits."""
    fitting: list[Footprint] = []
    for shape in sorted((s for s in held if s not in said), key=lambda s: -held[s].guess):
        own = held[shape]
        if any(own.state <= other.state and own.activations <= other.activations for other in fitting):
            said[shape] = "yes, smaller than one that fits"
            continue
        fits, why = verdict(topology, own, compile_step(shape, topology))
        said[shape] = f"{'yes' if fits else 'NO'}: {why}"
        if fits:
            fitting.append(own)


def _first(runs: tuple[PlannedRun, ...], said: dict[RunConfig, str], how: str) -> Iterator[str]:
    for run in runs:
        why = said.get(_shape(run.config), "")
        if why.startswith("NO"):
            yield f"the first that does not fit, {how}: {run.name}: {why.removeprefix('NO: ')}"
            return
    yield f"none is ruled out {how}"


def _shape(config: RunConfig) -> RunConfig:
    """Keep of a config what its compiled step depends on."""
    kept = ("model", "data", "batch", "accumulate", "z_loss", "tune", "execution", "mesh", "rules")
    blank = RunConfig(**{name: getattr(config, name) for name in kept})
    return replace(blank, optim=replace(blank.optim, name=config.optim.name, clip=config.optim.clip))
