"""What a checkpoint costs the host in memory, to restore and to export: ours against Orbax as it comes.

    python benchmarks/checkpoint.py [--array MIB] [--arrays N] [--json FILE]

A model of N float32 arrays of one size, as the stacked weights of a transformer's layers are, on one CPU device. Each
line is a process of its own. To restore is to hold the model, here in the host's own memory: what counts is the peak
over the model's bytes. To export, to bfloat16, is not: there it is the peak over what the process held before.
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


def abstract(array: int, arrays: int):
    """Return a model of so many arrays of so many bytes, as shapes."""
    import jax

    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    of = jax.ShapeDtypeStruct((array // 4096, 1024), "float32", sharding=one)
    return {"params": {f"w{i}": of for i in range(arrays)}}


def write(run: Path, array: int, arrays: int) -> None:
    """Save one model by Orbax (step 0 of `plain`) and by us (step 0 of `checkpoints`)."""
    import jax
    import orbax.checkpoint as ocp

    from gptjax.config import RunConfig, SaveConfig, to_json
    from gptjax.files import write_json
    from gptjax.run.checkpoint import Checkpoints

    state = jax.tree.map(lambda of: jax.random.normal(jax.random.key(0), of.shape), abstract(array, arrays))
    with ocp.CheckpointManager(run / "plain") as manager:
        manager.save(0, args=ocp.args.StandardSave(state))
    with Checkpoints(run / "checkpoints", SaveConfig()) as checkpoints:
        checkpoints.save(0, state)
    write_json(run / "config.json", to_json(RunConfig()))


def plain_restore(run: Path, array: int, arrays: int) -> object:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        return reader.restore(run / "plain" / "0" / "default", abstract(array, arrays))


def our_restore(run: Path, array: int, arrays: int) -> object:
    from gptjax.run.checkpoint import restore

    return restore(run / "checkpoints", 0, abstract(array, arrays))


def plain_export(run: Path, array: int, arrays: int) -> None:
    import jax
    import orbax.checkpoint as ocp

    state = plain_restore(run, array, arrays)
    with ocp.StandardCheckpointer() as writer:
        writer.save(run / "plain_export", jax.tree.map(lambda x: x.astype("bfloat16"), state))


def our_export(run: Path, array: int, arrays: int) -> None:
    from gptjax.run.checkpoint import open_arrays
    from gptjax.run.export import stored, write_params

    write_params(stored(open_arrays(run / "checkpoints" / "0" / "default"), "bfloat16"), run / "our_export")


def measure(work: Callable, run: Path, array: int, arrays: int, out: multiprocessing.Queue) -> None:
    """Put the peak over what this process held before, in bytes, and the seconds."""
    import jax

    import gptjax.run.export  # noqa: F401  what is imported is not what is measured

    jax.device_put(0.0).block_until_ready()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = memory("VmRSS"), time.perf_counter()
    kept = work(run, array, arrays)
    jax.block_until_ready(kept)
    out.put((memory("VmHWM") - before, time.perf_counter() - began))


def table(array: int, arrays: int) -> list[dict]:
    """Return a row for each way."""
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        writer = spawn.Process(target=write, args=(run, array, arrays))
        writer.start()
        writer.join()
        for work in (plain_restore, our_restore, plain_export, our_export):
            out = spawn.Queue()
            process = spawn.Process(target=measure, args=(work, run, array, arrays, out))
            process.start()
            peak, seconds = out.get(timeout=600)
            process.join()
            own = arrays * array if "restore" in work.__name__ else 0
            sizes = {"model": arrays * array, "array": array, "peak": peak, "over": peak - own}
            rows.append({"way": work.__name__, **sizes, "seconds": seconds})
    return rows


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--array", type=int, default=256, metavar="MIB")
    args.add_argument("--arrays", type=int, default=8)
    args.add_argument("--json", type=Path)
    given = args.parse_args()
    rows = table(given.array * MIB, given.arrays)
    print(f"{'MiB':<16}{'model':>8}{'array':>8}{'peak':>8}{'over':>8}{'over, arrays':>14}{'seconds':>9}")
    for row in rows:
        sizes = "".join(f"{row[key] / MIB:>8.0f}" for key in ("model", "array", "peak", "over"))
        print(f"{row['way']:<16}{sizes}{row['over'] / row['array']:>14.2f}{row['seconds']:>9.1f}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
