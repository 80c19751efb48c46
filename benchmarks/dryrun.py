"""Published shapes on pods nobody lent us: does a training step fit, what does it exchange, how fast can it be at most.

    python benchmarks/dryrun.py [--only WORDS] [--json FILE]

Needs the extra tpu (libtpu; Linux, x86-64) and no TPU. Each pair is compiled by the TPU compiler, one after the
other, a few minutes each on two cores; those whose state alone exceeds the memory, and those that the compiler refuses,
take seconds. Activations are bfloat16, state is float32.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from gptjax.config import RunConfig
from gptjax.devices import devices
from gptjax.estimate.estimate import Json, estimate
from gptjax.estimate.topology import parse
from gptjax.execution import Execution
from gptjax.files import plain, write_json
from gptjax.models.presets import preset
from gptjax.sharding import MeshConfig

PAIRS = (  # preset, topology, mesh, sequences a step, remat
    ("gpt2", "v5e:2x2", {"fsdp": 4}, 64, "full"),
    ("gpt2", "v6e:1x1", {}, 32, "full"),
    ("gpt2-xl", "v5e:4x4", {"fsdp": 16}, 128, "full"),
    ("gpt2-xl", "v5e:2x2", {"fsdp": 4}, 512, "none"),
    ("gpt3-1.3b", "v4:2x2x4", {"fsdp": 16}, 256, "full"),
    ("gpt3-6.7b", "v5e:8x8", {"fsdp": 32, "tensor": 2}, 512, "full"),
    ("llama2-7b", "v4:4x4x4", {"fsdp": 64}, 512, "full"),
    ("llama3-8b", "v6e:8x8", {"fsdp": 64}, 128, "full"),
    ("gpt3-13b", "2x v5e:16x16", {"data": 8, "fsdp": 64}, 1024, "full"),
    ("chinchilla-70b", "v5e:4x4", {"fsdp": 16}, 1536, "full"),
    ("chinchilla-70b", "v5p:8x8x8", {"data": 8, "fsdp": 64}, 1536, "full"),
    ("chinchilla-70b", "2x v6e:16x16", {"data": 2, "fsdp": 64, "tensor": 4}, 1536, "full"),
    ("gpt3-175b", "v5p:8x8x8", {"data": 4, "fsdp": 128}, 1536, "full"),
    ("gpt3-175b", "v4:8x8x8", {"fsdp": 128, "tensor": 4}, 1536, "full"),
    ("gpt3-175b", "v5e:16x16", {"fsdp": 64, "tensor": 4}, 1536, "full"),
)
HEADER = (
    "shape",
    "topology",
    "mesh",
    "fits",
    "GiB a chip",
    "of",
    "collectives GB",
    "s a step",
    "MFU",
    "serial",
    "compile s",
)


def pair(name: str, topology: str, mesh: dict[str, int], batch: int, remat: Literal["none", "full"]) -> Json:
    model, execution = replace(preset(name), dtype="bfloat16"), Execution(remat=remat, vocab_multiple=128)
    run = RunConfig(model=model, execution=execution, batch=batch, mesh=MeshConfig(**{"data": 1, **mesh}))
    return {"shape": name, **estimate(run, parse(topology, devices()))}


def row(e: Json) -> tuple[str, ...]:
    """Lay a pair out; the bounds on time are of the compiled program, and stand only where there is one."""
    held, mesh = e["bytes"], ", ".join(f"{axis}={n}" for axis, n in e["mesh"].items() if n > 1) or "one chip"
    size = held.get("peak") or held.get("refused") or held["weights"] + held["moments"]
    how = "yes" if e["fits"] else "NO: state alone" if e["compile_seconds"] is None else "NO: compiler"
    known = (e["shape"], e["topology"], mesh, how, f"{size / 2**30:,.1f}", f"{e['hbm'] / 2**30:.0f}")
    if not e["exchanges_compiled"]:
        return (*known, *("",) * 5)
    least, serial = (e["speeds"][how] for how in ("overlapped", "serial"))
    moved = sum(x["bytes"] for x in e["exchanges"]) / 1e9
    bounds = (f"{moved:,.1f}", f"{least['seconds']:.3g}", f"{least['mfu']:.0%}", f"{serial['mfu']:.0%}")
    return (*known, *bounds, f"{e['compile_seconds']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="pairs whose shape and topology contain this, as 'gpt2 v5e'")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    begun, found = time.perf_counter(), []
    widths = (15, 13, 28, 16, 10, 4, 14, 9, 5, 6, 9)
    print("  ".join(text.ljust(width) for text, width in zip(HEADER, widths, strict=True)))
    for one in PAIRS:
        if args.only not in f"{one[0]} {one[1]}":
            continue
        found.append(pair(*one))
        print("  ".join(text.ljust(width) for text, width in zip(row(found[-1]), widths, strict=True)), flush=True)
    print(
        f"GiB: the peak, what the compiler asked for, or the state; MFU: at most, all overlapped or ({HEADER[-2]}) none"
    )
    print(f"{time.perf_counter() - begun:.0f} s")
    if args.json:
        write_json(args.json, plain(found))


if __name__ == "__main__":
    main()
