"""What it costs the host to take a model to transformers and back, against transformers itself on the same model.

    python benchmarks/interop.py [--layers N] [--width D] [--json FILE]

A LLaMA of float32 weights, by default 1.4 GiB, in a run's checkpoint. Each line is a process of its own: seconds, and
the most memory that it held over what it held before, as a share of the model and of its largest array. transformers
reads the exported folder and saves it again, which is what a converter built on it does at least.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MIB = 2**20


def memory(kind: str) -> int:
    """Return what this process holds (VmRSS), or the most it held (VmHWM), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def llama(layers: int, width: int):
    from dataclasses import replace

    from gptjax.models.presets import preset

    return replace(preset("llama-7b"), n_layers=layers, d_model=width, n_heads=width // 64, d_mlp=width * 11 // 4)


def write(folder: Path, layers: int, width: int) -> None:
    """Save a run with random weights."""
    import jax

    from gptjax.config import RunConfig, SaveConfig, to_json
    from gptjax.data.tokenizer import ByteTokenizer
    from gptjax.files import write_json
    from gptjax.run.checkpoint import Checkpoints

    config = llama(layers, width)
    with Checkpoints(folder / "run" / "checkpoints", SaveConfig()) as checkpoints:
        checkpoints.save(0, {"params": config.build().init(jax.random.key(0))})
    write_json(folder / "run" / "config.json", to_json(RunConfig(model=config)))
    ByteTokenizer().save(folder / "run")


def export_hf(folder: Path) -> None:
    from gptjax.hf.export import export_hf
    from gptjax.run.weights import saved_model

    export_hf(saved_model(folder / "run"), folder / "hf", verified=False)


def import_hf(folder: Path) -> None:
    from gptjax.hf.load import import_hf

    import_hf(folder / "hf", folder / "weights")


def export_orbax(folder: Path) -> None:
    from gptjax.run.export import export
    from gptjax.run.weights import saved_model

    export(saved_model(folder / "weights"), folder / "orbax", "bfloat16")


def by_transformers(folder: Path) -> None:
    import transformers

    transformers.AutoModelForCausalLM.from_pretrained(folder / "hf").save_pretrained(folder / "again")


def measure(work: Callable, folder: Path, out: multiprocessing.Queue) -> None:
    """Put the peak over what this process held before, in bytes, and the seconds."""
    import jax

    from gptjax.hf.architectures import architecture_of, tensors_of  # what is imported is not what is measured

    if work is by_transformers:
        import transformers.models.llama.modeling_llama  # noqa: F401
    tensors_of(llama(1, 64), architecture_of(llama(1, 64)))
    jax.device_put(0.0).block_until_ready()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = memory("VmRSS"), time.perf_counter()
    work(folder)
    out.put((memory("VmHWM") - before, time.perf_counter() - began))


def table(layers: int, width: int) -> list[dict]:
    """Return a row for each way."""
    import jax

    spawn = multiprocessing.get_context("spawn")
    sizes = [4 * s.size for s in jax.tree.leaves(jax.eval_shape(llama(layers, width).build().init, jax.random.key(0)))]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        writer = spawn.Process(target=write, args=(Path(name), layers, width))
        writer.start()
        writer.join()
        for work in (export_hf, import_hf, export_orbax, by_transformers):
            out = spawn.Queue()
            process = spawn.Process(target=measure, args=(work, Path(name), out))
            process.start()
            peak, seconds = out.get(timeout=600)
            process.join()
            rows.append(
                {"way": work.__name__, "model": sum(sizes), "array": max(sizes), "peak": peak, "seconds": seconds}
            )
    return rows


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--layers", type=int, default=24)
    args.add_argument("--width", type=int, default=1024)
    args.add_argument("--json", type=Path)
    given = args.parse_args()
    rows = table(given.layers, given.width)
    print(f"{'MiB':<18}{'model':>8}{'array':>8}{'peak':>8}{'of model':>10}{'of array':>10}{'seconds':>9}")
    for row in rows:
        sizes = "".join(f"{row[key] / MIB:>8.0f}" for key in ("model", "array", "peak"))
        shares = "".join(f"{row['peak'] / row[key]:>10.2f}" for key in ("model", "array"))
        print(f"{row['way']:<18}{sizes}{shares}{row['seconds']:>9.1f}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
