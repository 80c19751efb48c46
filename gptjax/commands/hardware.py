"""The verb for hardware that is not at hand: estimate."""

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gptjax.commands.arguments import Verb, load
from gptjax.errors import BadInput


def add(verb: Verb) -> None:
    sub = verb("estimate", run_estimate, "compile a run's step for hardware you do not have: memory, links, time, cost")
    sub.add_argument(
        "what", metavar="PRESET|FILE[:NAME]", help="a published shape, or a function that returns a RunConfig"
    )
    sub.add_argument("--topology", required=True, help="v5p:8x8x8, 2x v5e:16x16, h200:8, ...")
    sub.add_argument("--mesh", metavar="AXIS=N,...", help="default: a file's own; a preset's is fsdp over a slice")
    sub.add_argument("--batch-tokens", type=float, metavar="N", help="tokens a step (default: a file's own, or 2^19)")
    sub.add_argument("--context", type=int, metavar="T", help="tokens of a window (default: the model's)")
    sub.add_argument("--remat", choices=("none", "dots", "full"), help="default: a file's own; a preset's is full")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override, as accumulate=4")
    sub.add_argument("--tokens", type=float, metavar="N", help="of the run (default: 20 a parameter)")
    sub.add_argument("--devices", type=Path, metavar="FILE", help="your own table in the place of devices.csv")
    sub.add_argument("--search", action="store_true", help="try layouts, and rank those that fit")
    sub.add_argument("--json", type=Path, metavar="FILE")


def run_estimate(args: argparse.Namespace) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only counts; jax reads it when it is imported
    from gptjax.devices import devices
    from gptjax.estimate import estimate, search
    from gptjax.estimate.topology import parse
    from gptjax.files import plain, write_json

    topology = parse(args.topology, devices(args.devices))
    if args.search and (args.mesh or args.remat):
        raise BadInput("--search tries meshes and remat itself; leave out --mesh and --remat, or --search")
    for name in ("batch_tokens", "tokens"):
        given = getattr(args, name)
        if given is not None and not 0 < given < float("inf"):
            raise BadInput(f"--{name.replace('_', '-')} {given} must be a finite number above 0")
    config = _config(args, topology.slices)
    if args.search:
        found: Any = search.search(config, topology, tokens=args.tokens or 0.0)
        print(search.describe(found))
    else:
        found = estimate.estimate(config, topology, args.tokens or 0.0)
        print(estimate.describe(found))
    if args.json:
        write_json(args.json, plain(found))


def _config(args: argparse.Namespace, slices: int) -> Any:
    """Build the run that is asked about: a preset in bfloat16, or a file's, with what the command line says of it."""
    from gptjax.config import RunConfig, override
    from gptjax.models.presets import preset

    if ":" in args.what or args.what.endswith(".py") or Path(args.what).is_file():
        config = load(args.what, RunConfig, "run")
    else:
        from gptjax.execution import Execution
        from gptjax.sharding import MeshConfig

        shape, mesh = replace(preset(args.what), dtype="bfloat16"), MeshConfig(data=slices, fsdp=-1)
        execution = Execution(remat="full", vocab_multiple=128)
        config = RunConfig(model=shape, execution=execution, batch=max(1, 2**19 // shape.context), mesh=mesh)
    model = config.model
    if args.context is not None:
        model = replace(model, context=args.context)
    execution = replace(config.execution, remat=args.remat or config.execution.remat)
    tokens = args.batch_tokens or config.tokens_per_step
    batch = max(1, round(tokens / model.context))
    config = replace(config, model=model, execution=execution, batch=batch, mesh=_mesh(args.mesh, config.mesh))
    return override(config, args.set)


def _mesh(text: str | None, default: Any) -> Any:
    """Read fsdp=16,tensor=4 as a mesh whose other axes are 1."""
    if text is None:
        return default
    axes = [field.name for field in fields(default)]
    sizes = dict.fromkeys(axes, 1)
    for part in text.split(","):
        axis, equals, size = part.strip().partition("=")
        if axis not in axes or not equals or not size.lstrip("-").isdigit():
            raise BadInput(f"--mesh {part!r} is not AXIS=N with an axis of {', '.join(axes)}; write fsdp=16,tensor=4")
        sizes[axis] = int(size)
    return type(default)(**sizes)


def dry_topology(text: str, dry_run: bool) -> Any:
    """Read the topology that a sweep's dry run is asked about; call it before jax is imported."""
    if not dry_run:
        raise BadInput(f"--topology {text} is for hardware you do not have; add --dry-run")
    os.environ["JAX_PLATFORMS"] = "cpu"
    from gptjax.devices import devices
    from gptjax.estimate.topology import parse

    return parse(text, devices())


def print_on_hardware(sweep: Any, topology: Any) -> None:
    """Print what of a sweep fits a topology, each line as soon as it is known."""
    from gptjax.estimate.plan import on_hardware

    print()
    for line in on_hardware(sweep, topology):
        print(line, flush=True)
