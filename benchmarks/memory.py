"""What a step needs of a device's memory: as `gptjax estimate` predicts it, as it was, and the largest batch that fits.

    python benchmarks/memory.py [--shapes 0,1] [--largest] [--limit GIB] [--seconds S] [--json FILE]

Each step is tried in a process of its own, because one that ran out of memory leaves a device in no state to measure.
On a GPU or TPU the peak is what jax's allocator saw; on a CPU it is the growth of the process, which is rougher. The
largest batch is found by doubling until a step fails and then halving the gap, down to an eighth of the batch.
`--limit` counts a step of more than so many GiB as one that failed, so that a CPU can rehearse the search.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers import Shape

ACCELERATOR_SHAPES = (Shape(50304, 768, 12, 1024, 12, 32), Shape(50304, 2048, 24, 2048, 16, 4))
CPU_SHAPES = (Shape(512, 64, 2, 128, 2, 64), Shape(2048, 256, 6, 256, 4, 8))
REMATS = ("none", "dots", "full")
STEPS = 3
TRY_SECONDS = 120  # one try, compiling included


def config_of(shape: Shape, remat: str, bfloat16: bool) -> Any:
    from gptjax.config import RunConfig
    from gptjax.execution import Execution
    from gptjax.models.gpt import GPTConfig

    model = GPTConfig(
        shape.vocab, shape.context, shape.d_model, shape.layers, shape.heads,
        dtype="bfloat16" if bfloat16 else "float32",
    )  # fmt: skip
    return RunConfig(model=model, execution=Execution(remat=remat), batch=shape.batch, steps=1000)


def take_steps(config: Any) -> dict[str, Any]:
    """Take a few steps on the first device of this process; return the peak of its memory and the seconds of one."""
    import jax
    import numpy as np

    from gptjax.batch import Batch
    from gptjax.mesh import make_mesh
    from gptjax.run.begin import programs_of
    from gptjax.sharding import Layout

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    programs = programs_of(config, Layout(make_mesh(config.mesh, jax.devices()[:1]), config.rules))
    state = programs.init(jax.random.key(0))
    shape = (1, config.batch, config.model.context)
    tokens = np.random.default_rng(0).integers(config.model.vocab_size, size=shape, dtype=np.int32)
    batch = jax.device_put(Batch(tokens, tokens, np.ones(shape, np.float32)), programs.batches)
    seconds = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        state, out = programs.train(state, batch, np.full(1, 1e-4, np.float32))
        jax.block_until_ready(out)
        seconds.append(time.perf_counter() - begun)
    found = jax.devices()[0].memory_stats()
    peak = found["peak_bytes_in_use"] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"peak": int(peak), "seconds": min(seconds)}


def attempt(shape: Shape, remat: str, bfloat16: bool, limit: float) -> dict[str, Any] | None:
    """Take the steps in another process; None if the memory did not suffice."""
    task = json.dumps([vars(shape), remat, bfloat16])
    command = [sys.executable, __file__, "--task", task]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_SECONDS)
    if done.returncode:
        if "RESOURCE_EXHAUSTED" in done.stderr or "out of memory" in done.stderr.lower():
            return None
        raise RuntimeError(f"{shape} failed:\n" + "\n".join(done.stderr.splitlines()[-12:]))
    found = json.loads(done.stdout.splitlines()[-1])
    return found if found["peak"] <= limit else None


def estimated(shape: Shape, remat: str, bfloat16: bool, topology: str) -> int | None:
    """Return the peak of one device's memory that `gptjax estimate` predicts; None if nothing compiles."""
    from gptjax.devices import devices
    from gptjax.estimate.estimate import estimate
    from gptjax.estimate.topology import parse

    found = estimate(config_of(shape, remat, bfloat16), parse(topology, devices()))
    return found["bytes"].get("peak")


def with_batch(shape: Shape, batch: int) -> Shape:
    return Shape(**{**vars(shape), "batch": batch})


def largest(shape: Shape, remat: str, bfloat16: bool, limit: float, until: float) -> dict[str, Any]:
    """Search for the largest batch that fits; `until` bounds the search, on the monotonic clock."""
    fits, fails, tried, low = 0, 0, {}, shape.batch
    batch = low
    while time.monotonic() < until and not (fails and fails - fits <= max(1, fits // 8)):
        found = attempt(with_batch(shape, batch), remat, bfloat16, limit)
        tried[batch] = found
        print(f"  {batch:6d} sequences: " + (f"{found['peak'] / 2**30:.2f} GiB" if found else "too many"), flush=True)
        fits, fails = (batch, fails) if found else (fits, batch)
        batch = (fits + fails) // 2 if fails else 2 * fits
        if not batch:
            break
    return {"batch": fits, "too_many": fails or None, "tried": tried}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default="0,1", help="their numbers, separated by commas")
    parser.add_argument("--topology", default="", help="what estimate compiles for (default: h200:1, or cpu-core:1)")
    parser.add_argument("--largest", action="store_true", help="also search for the largest batch of each shape")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="GIB")
    parser.add_argument("--seconds", type=float, default=600, help="bound on the search of each shape")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        shape, remat, bfloat16 = json.loads(args.task)
        print(json.dumps(take_steps(config_of(Shape(**shape), remat, bfloat16))))
        return
    gpu = Path("/proc/driver/nvidia").exists()
    topology = args.topology or ("h200:1" if gpu else "cpu-core:1")
    shapes, limit = (ACCELERATOR_SHAPES if gpu else CPU_SHAPES), args.limit * 2**30
    rows = []
    for shape in (shapes[int(i)] for i in args.shapes.split(",")):
        print("\n" + ", ".join(f"{name} {value}" for name, value in vars(shape).items()))
        row: dict[str, Any] = {"shape": vars(shape), "topology": topology, "remat": {}}
        for remat in REMATS:
            said, found = estimated(shape, remat, gpu, topology), attempt(shape, remat, gpu, float("inf"))
            row["remat"][remat] = {"estimated": said, "measured": found}
            pair = [f"{size / 2**30:.2f} GiB" if size else "unknown" for size in (said, found and found["peak"])]
            ratio = f"{said / found['peak']:.2f} of it" if said and found else ""
            print(f"  remat {remat:5s} estimated {pair[0]}, measured {pair[1]} {ratio}", flush=True)
        if args.largest:
            row["largest"] = largest(shape, "none", gpu, limit, time.monotonic() + args.seconds)
            print(f"  largest batch without remat: {row['largest']['batch']} sequences")
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
