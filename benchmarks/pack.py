"""What it saves to train runs of one shape together: seconds a step and run, alone and 2, 4 and 8 in one program.

    python benchmarks/pack.py [--widths 16,32,64,128] [--json FILE]

The quick sweep's recipe: 512 tokens a step, 20 steps a call, on all devices. Programs take turns; the ratio is that of
one run alone over its share of a pack, above 1 a gain. sweep/pack.py makes the same comparison in every sweep.
"""

import argparse
import runpy
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.batch import Batch
from gptjax.files import write_json
from gptjax.jobs.process import keep_freed_memory
from gptjax.mesh import make_mesh
from gptjax.run.begin import programs_of
from gptjax.sharding import Layout
from gptjax.sweep.pack import compile_pack

QUICK = Path(__file__).parents[1] / "experiments" / "chinchilla" / "quick.py"
RUNS, TURNS = (2, 4, 8), 5


def measure(width: int) -> dict[str, Any]:
    """Return the milliseconds a step and run, each way, and what a pack of each size gains."""
    keep_freed_memory()
    sweep = runpy.run_path(str(QUICK))["sweep"]()
    config = replace(sweep.base, model=sweep.shape(width))
    S, model = config.steps_per_call, config.model
    programs = programs_of(config, Layout(make_mesh(config.mesh), config.rules))
    rng, shape = np.random.default_rng(0), (S, 512 // model.context, model.context)
    tokens = rng.integers(model.vocab_size, size=shape, dtype=np.int32)
    batch = jax.device_put(Batch(tokens, tokens, np.ones(shape, np.float32)), programs.batches)
    rates = np.full(S, 1e-4, np.float32)

    def group(n: int) -> Any:
        """Return a function that takes a call with n runs; their states stay on the device."""
        states = [programs.init(jax.random.key(i)) for i in range(n)]
        given = (batch,) * n, (rates,) * n
        program = compile_pack(programs, tuple(states), *given) if n > 1 else None

        def call() -> None:
            nonlocal states
            answers = program(tuple(states), *given) if program else [programs.train(states[0], batch, rates)]
            states = [state for state, _ in jax.block_until_ready(answers)]

        call()
        return call

    calls = {n: group(n) for n in (1, *RUNS)}
    seconds: dict[int, list[float]] = {n: [] for n in calls}
    for _ in range(TURNS):
        for n, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[n].append((time.perf_counter() - begun) / S / n)
    gains = {n: statistics.median(a / b for a, b in zip(seconds[1], seconds[n], strict=True)) for n in RUNS}
    return {"width": width, "ms": {n: [1e3 * s for s in times] for n, times in seconds.items()}, "gain": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", default="16,32,64,128")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [measure(int(width)) for width in args.widths.split(",")]
    print(f"{'width':>6}{'alone, ms':>26}" + "".join(f"{f'{n} runs':>26}" for n in RUNS))
    for row in rows:
        cells = [f"{statistics.median(row['ms'][1]):.2f} ({min(row['ms'][1]):.2f} to {max(row['ms'][1]):.2f})"]
        cells += [f"{statistics.median(row['ms'][n]):.2f}: {row['gain'][n]:.2f}x" for n in RUNS]
        print(f"{row['width']:>6}" + "".join(f"{cell:>26}" for cell in cells))
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
