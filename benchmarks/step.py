"""How long a training step takes: ours, PyTorch's eager and compiled, and Flax Linen's as NanoDO writes it.

    python benchmarks/step.py [--json FILE] [--turns N] [--names ours,torch]

Each alternative (peers.py) has a process of its own and waits there for its turn: A B C D A B C D. All start from our
weights, see the same batches, and must agree on the losses of the first steps. FLOPs are the analytic ones of a
training step, and the limit is what a matmul of the same machine reaches in the same turns. "kept" are alternatives
with the allocator's settings that we run with (gptjax/jobs/process.py), which they do not have on their own. "products"
are the matmuls of the step alone, by jax or torch; "plain kernels" our step with every fast kernel turned off
(gptjax/kernels).
"""

import argparse
import json
import multiprocessing as mp
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import BETAS, DECAY, EPS, LR, Shape, Step, linen_step, torch_step

CPU_SHAPES = (
    Shape(512, 64, 2, 128, 2, 16),
    Shape(2048, 128, 4, 256, 4, 16),
    Shape(2048, 256, 6, 256, 4, 16),
)
GPU_SHAPES = (Shape(50304, 768, 12, 1024, 12, 64), Shape(50304, 2048, 24, 2048, 16, 8))
LIMITS = ("matmul", "jax products", "torch products")
TURN, STEPS = 1.0, 3  # seconds of a turn, about, and its steps at least; as many have their losses compared
PAUSE = 0.5  # seconds between turns, in which threads that still wait for work from the last one go to sleep


def ours(shape: Shape, weights: Path | None, bfloat16: bool, kernels: Any = "fast") -> Step:
    import jax

    from gptjax.batch import Batch
    from gptjax.execution import Execution
    from gptjax.jobs.process import keep_freed_memory
    from gptjax.mesh import make_mesh
    from gptjax.models.gpt import GPTConfig
    from gptjax.sharding import Layout, MeshConfig, Rules
    from gptjax.train.optim import OptimConfig
    from gptjax.train.programs import make_programs

    keep_freed_memory()
    config = GPTConfig(
        shape.vocab, shape.context, shape.d_model, shape.layers, shape.heads,
        dtype="bfloat16" if bfloat16 else "float32",
    )  # fmt: skip
    execution = Execution(scan=None if bfloat16 else False, kernels=kernels)
    optim = OptimConfig(b1=BETAS[0], b2=BETAS[1], eps=EPS, weight_decay=DECAY, clip=1.0)
    programs = make_programs(config, execution, optim, Layout(make_mesh(MeshConfig()), Rules()), 0.0, 1)
    state = programs.init(jax.random.key(0))
    if weights:
        flat, _ = jax.tree.flatten_with_path(state.params)
        np.savez(weights, **{jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(w) for path, w in flat})
    rate = np.full(1, LR, np.float32)

    def step(tokens: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state
        batch = Batch(tokens[None], targets[None], np.ones((1, *tokens.shape), np.float32))
        state, out = programs.train(state, batch, rate)
        return float(np.asarray(out["loss"])[0])

    return step


def read_weights(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    with np.load(path) as file:
        for name in file.files:
            *rooms, last = name.split(".")
            room = tree
            for part in rooms:
                room = room.setdefault(part, {})
            room[last] = file[name]
    return tree


def matmul(n: int, bfloat16: bool) -> Callable[[], float]:
    """Give a function that says at how many FLOP/s a square matmul runs."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16 if bfloat16 else jnp.float32)  # ones run faster
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()

    def rate() -> float:
        product(x).block_until_ready()  # wakes threads and caches
        runs = 200 if bfloat16 else 16
        start = time.perf_counter()
        for _ in range(runs):
            y = product(x)
        y.block_until_ready()
        return runs * 2 * n**3 / (time.perf_counter() - start)

    return rate


def products(shape: Shape, by: str) -> Callable[[], float]:
    """Give a function that says how long the matmuls of a step take one by one, and nothing else of it.

    Each with its shapes: of every weight forward, and for the gradients of input and weight; of attention, causal, half
    the time of its six products of whole (T, T).
    """
    import jax
    import jax.numpy as jnp
    import torch

    d, tokens, heads = shape.d_model, shape.batch * shape.context, shape.batch * shape.heads
    T, K = shape.context, d // shape.heads
    weights = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)] * shape.layers + [(d, shape.vocab)]
    wanted: Counter[tuple[int, ...]] = Counter()
    for k, n in weights:
        wanted.update([(tokens, k, n), (tokens, n, k), (k, tokens, n)])
    half = {(heads, T, K, T): 3 * shape.layers / 2, (heads, T, T, K): 3 * shape.layers / 2}
    rng = np.random.default_rng(0)

    def function(sizes: tuple[int, ...]) -> Callable[[], Any]:
        *batch, m, k, n = sizes
        a, b = (rng.standard_normal((*batch, *ends), np.float32) for ends in ((m, k), (k, n)))
        if by == "torch":
            x, y = torch.from_numpy(a), torch.from_numpy(b)
            return lambda: x @ y
        x, y = jnp.asarray(a), jnp.asarray(b)
        multiply = jax.jit(jnp.matmul)
        return lambda: multiply(x, y).block_until_ready()

    times = {**wanted, **half}
    functions = {sizes: function(sizes) for sizes in times}

    def seconds() -> float:
        total = 0.0
        for sizes, call in functions.items():
            call()
            start = time.perf_counter()
            for _ in range(3):
                call()
            total += times[sizes] * (time.perf_counter() - start) / 3
        return total

    return seconds


def serve(name: str, shape: Shape, weights: Path, bfloat16: bool, pipe: Any) -> None:
    """Build one alternative; then take a turn whenever asked, and answer with seconds and losses."""
    if name in LIMITS:
        limit = matmul(8192 if bfloat16 else 1024, bfloat16) if name == "matmul" else products(shape, name.split()[0])
        pipe.send(("", [], 0))
        while pipe.recv():
            pipe.send((limit(), []))
        return
    if name == "ours":
        step = ours(shape, weights, bfloat16)
    elif name == "plain kernels":
        step = ours(shape, None, bfloat16, "plain")
    elif name.startswith("torch"):
        if name.endswith("kept"):
            from gptjax.jobs.process import keep_freed_memory

            keep_freed_memory()
        step = torch_step(shape, read_weights(weights), compiled="compile" in name, bfloat16=bfloat16)
    else:
        step = linen_step(shape, read_weights(weights))
    rng = np.random.default_rng(0)
    sizes = (STEPS, shape.batch, shape.context)
    tokens, targets = (rng.integers(shape.vocab, size=sizes).astype(np.int32) for _ in range(2))
    losses = [step(tokens[i], targets[i]) for i in range(STEPS)]
    pipe.send((version(name), losses, peak_bytes(name) if bfloat16 else 0))
    while pipe.recv():
        step(tokens[0], targets[0])  # wakes threads and caches
        start, done = time.perf_counter(), 0
        while done < STEPS or time.perf_counter() - start < TURN:
            step(tokens[done % STEPS], targets[done % STEPS])
            done += 1
        pipe.send(((time.perf_counter() - start) / done, []))


def version(name: str) -> str:
    if name.startswith("torch"):
        import torch

        return f"torch {torch.__version__}"
    import jax

    return f"jax {jax.__version__}"


def peak_bytes(name: str) -> int:
    """Return the most memory of the GPU that the steps so far have held; jax's includes what trying kernels took."""
    if name.startswith("torch"):
        import torch

        return torch.cuda.max_memory_allocated()
    import jax

    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]


def flops(shape: Shape) -> float:
    """Return the FLOPs of a step: 6 for each weight of a matmul and token, and half of the scores."""
    matrices = 12 * shape.layers * shape.d_model**2 + shape.vocab * shape.d_model
    attention = 6 * shape.layers * shape.context * shape.d_model  # causal: 12 with those of later positions
    return float((6 * matrices + attention) * shape.batch * shape.context)


def measure(shape: Shape, names: list[str], turns: int, bfloat16: bool) -> dict[str, Any]:
    context = mp.get_context("spawn")
    pipes, said = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for group in (["ours"], [name for name in names if name != "ours"]):  # ours writes the weights that others read
            for name in group:
                pipes[name], theirs = context.Pipe()
                work = (name, shape, Path(folder) / "weights.npz", bfloat16, theirs)
                context.Process(target=serve, args=work, daemon=True).start()
            said |= {name: pipes[name].recv() for name in group}
    first = np.asarray(said["ours"][1])
    for name in names:
        if name not in LIMITS:
            assert np.allclose(said[name][1], first, rtol=2e-2 if bfloat16 else 1e-4), (name, said[name][1], first)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            time.sleep(PAUSE)
            pipes[name].send(True)
            seconds[name].append(pipes[name].recv()[0])
    for pipe in pipes.values():
        pipe.send(False)
    rates = seconds.pop("matmul")
    return {
        "shape": vars(shape),
        "versions": {name: said[name][0] for name in seconds if name not in LIMITS},
        "peak_bytes": {name: said[name][2] for name in seconds if name not in LIMITS},
        "ms": {name: [round(1e3 * s, 3) for s in series] for name, series in seconds.items()},
        "matmul_gflops": [round(rate / 1e9, 1) for rate in rates],
        "gflop": flops(shape) / 1e9,
    }


def show(found: dict[str, Any]) -> None:
    shape, ours = found["shape"], found["ms"]["ours"]
    print("\n" + ", ".join(f"{name} {value}" for name, value in shape.items()))
    best = statistics.median(found["matmul_gflops"])
    for name, series in found["ms"].items():
        ms = statistics.median(series)
        ratio = statistics.median(theirs / mine for theirs, mine in zip(series, ours, strict=True))
        share = found["gflop"] / ms * 1e3 / best
        spread = f"({min(series):.1f} to {max(series):.1f})"
        held = f", {found['peak_bytes'][name] / 2**30:.1f} GiB" if found["peak_bytes"].get(name) else ""
        print(f"  {name:20s} {ms:9.1f} ms {spread:24s} {ratio:5.2f} of ours, {share:4.0%} of {best:.0f} GFLOP/s{held}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--names", default="", help="alternatives, separated by ;")
    parser.add_argument("--shapes", default="", help="their numbers, separated by commas")
    args = parser.parse_args()
    gpu = Path("/proc/driver/nvidia").exists()
    if gpu:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share it
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
    peers = ["torch", "torch.compile"] + ([] if gpu else ["torch, kept", "torch.compile, kept", "linen"])
    limits = ["matmul"] if gpu else [*LIMITS]
    names = [*limits, "ours"] + (args.names.split(";") if args.names else peers)
    shapes = GPU_SHAPES if gpu else CPU_SHAPES
    chosen = [shapes[int(i)] for i in args.shapes.split(",")] if args.shapes else shapes
    found = []
    for shape in chosen:
        found.append(measure(shape, names, args.turns, bfloat16=gpu))
        show(found[-1])
    for name in [name for name in found[0]["ms"] if name not in LIMITS]:
        ratios = [statistics.median(f["ms"][name]) / statistics.median(f["ms"]["ours"]) for f in found]
        print(f"{name:20s} geometric mean {statistics.geometric_mean(ratios):.2f} of ours")
    if args.json:
        about = {"machine": platform.machine(), "python": platform.python_version(), "cores": os.cpu_count()}
        args.json.write_text(json.dumps({"about": about, "shapes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
