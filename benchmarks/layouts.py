"""What each layout costs: its collectives, counted in the compiled step, and its memory on a chip.

    python benchmarks/layouts.py [--topology v5e:2x4] [--json FILE]

One model, one batch, one optimizer on eight chips that need not be there: the step is compiled by the TPU compiler (the
extra tpu) or, with --topology cpu-core:8, by that of simulated CPU devices. Ratios are to eight copies (data=8).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from gptjax.commands.arguments import writable
from gptjax.config import RunConfig
from gptjax.devices import devices
from gptjax.estimate.estimate import Json, estimate
from gptjax.estimate.topology import parse
from gptjax.execution import Execution
from gptjax.files import plain, write_json
from gptjax.models.presets import preset
from gptjax.sharding import MeshConfig, Rules

MODEL = replace(preset("gpt2"), context=2048, dtype="bfloat16")
EXECUTION = Execution(remat="full", vocab_multiple=128)
SEQUENCE = Rules(stream=("context", "tensor"))
LAYOUTS = (  # what it is called, mesh, rules
    ("copies", MeshConfig(data=8), Rules()),
    ("fsdp", MeshConfig(data=1, fsdp=8), Rules()),
    ("data x fsdp", MeshConfig(data=2, fsdp=4), Rules()),
    ("fsdp x tensor", MeshConfig(data=1, fsdp=4, tensor=2), Rules()),
    ("fsdp x tensor, sequence split", MeshConfig(data=1, fsdp=4, tensor=2), SEQUENCE),
    ("fsdp x context, keys gathered", MeshConfig(data=1, fsdp=2, context=4), Rules()),
    ("fsdp x context, ring", MeshConfig(data=1, fsdp=2, context=4), Rules(keys="context")),
    ("fsdp x pipeline", MeshConfig(data=1, fsdp=2, pipeline=4), Rules()),
    ("fsdp x pipeline x tensor", MeshConfig(data=1, fsdp=2, pipeline=2, tensor=2), Rules()),
)
HEADER = ("layout", "state GiB", "rest GiB", "peak", "collectives GB", "of which", "compile s")


def row(name: str, e: Json, base: Json) -> tuple[str, ...]:
    held, kinds = e["bytes"], {}
    for x in e["exchanges"]:
        kinds[x["kind"]] = kinds.get(x["kind"], 0) + x["bytes"]
    if "peak" not in held:
        return (name, "", "", e["why"], "", "", "")
    state, peak = held["weights"] + held["moments"], held["peak"]
    parts = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(kinds.items(), key=lambda k: -k[1]))
    times = f"{peak / base['bytes']['peak']:.2f}x" if "peak" in base["bytes"] else ""
    sizes = (f"{state / 2**30:.2f}", f"{(peak - state) / 2**30:.2f}", times)
    return (name, *sizes, f"{sum(kinds.values()) / 1e9:.2f}", parts, f"{e['compile_seconds']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--batch", type=int, default=64, help="sequences a step")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.json:
        writable(args.json)
    topology = parse(args.topology, devices())
    print(f"gpt2, {args.batch} sequences of {MODEL.context} a step, {topology.name}")
    print(" | ".join(HEADER))
    found: dict[str, Json] = {}
    for name, mesh, rules in LAYOUTS:
        config = RunConfig(model=MODEL, execution=EXECUTION, batch=args.batch, mesh=mesh, rules=rules)
        found[name] = estimate(config, topology)
        print(" | ".join(row(name, found[name], found["copies"])), flush=True)
    if args.json:
        write_json(args.json, plain(found))


if __name__ == "__main__":
    main()
