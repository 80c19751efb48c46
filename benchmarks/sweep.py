"""How long a sweep takes: ours against the conventional way, each (N, D) a process with a cosine run of its own.

    python benchmarks/sweep.py [--full] [--seeds N] [--workers N] [--peaks 1,1.5] [--json FILE] [--figure FILE]

Both train the same cells on the same text, with as many processes at once, a core each: the quick sweep's recipe, at
three sizes and three budgets, or with --full at all of them. Ours begins with no compiled programs and keeps them from
then on; the conventional way compiles in every process. The data are tokenized before. What cosine runs reach is
compared with what the cooled-down branches reach, cell by cell: a run for each cell would be worth its cost only if it
reached less. With several peaks, multiples of the plan's, cosine runs are trained at each and a cell's best counts;
the time is that of the first. With several seeds each cell is trained as often; one worker may then pack them
(sweep/pack.py).
"""

import argparse
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

from gptjax.config import RunConfig, to_json
from gptjax.data.loader import open_stores
from gptjax.files import read_json, write_json
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.plan import PlannedRun, SweepConfig, make_plan

ROOT = Path(__file__).parents[1]
QUICK = ROOT / "experiments" / "chinchilla" / "quick.py"
SMALL_SIZES, SMALL_BUDGETS = (16, 32, 64), (1e11, 2.4e11, 5.5e11)
OURS = """
import sys
from pathlib import Path
from gptjax.jobs.process import use_compilation_cache
use_compilation_cache()
from gptjax.sweep.local import execute
from gptjax.sweep.plan import Plan
if __name__ == "__main__":
    execute(Plan.load(Path(sys.argv[1])), Path(sys.argv[2]), workers=int(sys.argv[3]), pack=int(sys.argv[4]))
"""
CONVENTIONAL = """
import sys
from pathlib import Path
from gptjax.config import load_config
from gptjax.run.loop import train
train(load_config(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def sweep_of(full: bool, seeds: int) -> SweepConfig:
    sweep: SweepConfig = runpy.run_path(str(QUICK))["sweep"]()
    if not full:
        sweep = replace(sweep, sizes=SMALL_SIZES, budgets=SMALL_BUDGETS, tokens_per_param=(2.0, 1000.0))
    return replace(sweep, holdout=0.0, holdout_sizes=(), seeds=tuple(range(seeds)))


def ours(sweep: SweepConfig, folder: Path, workers: int) -> tuple[float, dict[str, float]]:
    """Train the sweep with its own executor; return seconds and each cell's loss."""
    plan = make_plan(sweep)
    plan.save(folder / "the_plan.json")
    (folder / "ours.py").write_text(OURS)
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    command = [sys.executable, str(folder / "ours.py"), str(folder / "the_plan.json"), str(folder / "sweep")]
    start = time.perf_counter()
    subprocess.run([*command, str(workers), str(sweep.pack)], check=True, env=environment, cwd=ROOT)
    seconds = time.perf_counter() - start
    rows = Ledger(folder / "sweep").rows()
    return seconds, {run.name: rows[run.name]["loss"] for run in plan.runs if run.role == "cell"}


def alone(run: PlannedRun, peak: float) -> RunConfig:
    """Give a cell as a run of its own, whose rate falls along a cosine, from `peak` times the plan's."""
    optim = replace(run.config.optim, schedule="cosine", lr=peak * run.config.optim.lr)
    return replace(run.config, init_from=None, optim=optim)


def conventional(sweep: SweepConfig, folder: Path, peak: float) -> tuple[float, dict[str, float]]:
    """Train every cell in a process of its own, as many at once as the sweep has workers, each on its core."""
    folder.mkdir()
    runs = [run for run in make_plan(sweep).runs if run.role == "cell"]
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[: sweep.workers]:
        cores.put(core)
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}

    def train(run: PlannedRun) -> None:
        config, core = folder / f"{run.name}.json", cores.get()
        write_json(config, to_json(alone(run, peak)))
        command = [sys.executable, "-c", CONVENTIONAL, str(config), str(folder / run.name)]
        process = subprocess.Popen(command, env=environment, cwd=ROOT)
        os.sched_setaffinity(process.pid, {core})
        code = process.wait()
        cores.put(core)
        if code:
            raise SystemExit(f"{run.name} ended with exit code {code}")

    start = time.perf_counter()
    with ThreadPoolExecutor(sweep.workers) as pool:
        list(pool.map(train, sorted(runs, key=lambda run: -run.flops)))
    seconds = time.perf_counter() - start
    return seconds, {run.name: read_json(folder / run.name / "result.json")["loss"] for run in runs}


def draw(path: Path, sweep: SweepConfig, branch: dict[str, float], cosine: dict[str, float]) -> None:
    runs = {run.name: run for run in make_plan(sweep).runs}
    figure, axes = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    sizes = list(dict.fromkeys(runs[name].size for name in branch))
    for size, color in zip(sizes, plt.get_cmap("viridis")(np.linspace(0, 0.95, len(sizes))), strict=True):
        names = [name for name in branch if runs[name].size == size]
        tokens = [runs[name].tokens for name in names]
        axes.plot(tokens, [branch[name] for name in names], "o-", ms=4, color=color, label=size)
        axes.plot(tokens, [cosine[name] for name in names], "x--", ms=5, color=color)
    title = "cooled-down branches (solid) and cosine runs (dashed) of the same cells"
    axes.set(xscale="log", xlabel="tokens", ylabel="validation loss, nats a token")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(fontsize=8, loc="outside right upper", title="width")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, help="of ours; the conventional way has a process for every core")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--peaks", default="1", help="of cosine runs, over the plan's")
    args = parser.parse_args()
    peaks = [float(peak) for peak in args.peaks.split(",")]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sweep = sweep_of(args.full, args.seeds)
    open_stores(sweep.base.data)
    with tempfile.TemporaryDirectory() as folder:
        fast, branch = ours(sweep, Path(folder), args.workers or sweep.workers)
        tried = {peak: conventional(sweep, Path(folder) / f"cosine-{peak:g}", peak) for peak in peaks}
    slow = tried[peaks[0]][0]
    cosine = {name: min(losses[name] for _, losses in tried.values()) for name in branch}
    for peak, (_, losses) in tried.items():
        print(f"peak {peak:g}: {statistics.mean(losses[name] - cosine[name] for name in branch):.4f} above the best")
    for name, loss in branch.items():
        print(f"{name:24s} branch {loss:.4f}, cosine {cosine[name]:.4f}: {loss - cosine[name]:+.4f}")
    gaps = [loss - cosine[name] for name, loss in branch.items()]
    spread = f"{statistics.mean(gaps):+.4f} on average, from {min(gaps):+.4f} to {max(gaps):+.4f}"
    print(f"{len(gaps)} cells: branch less cosine {spread}")
    print(f"ours {fast:.0f} s, conventional {slow:.0f} s: {fast / slow:.2f}")
    if args.figure:
        draw(args.figure, sweep, branch, cosine)
    if args.json:
        write_json(args.json, {"seconds": [fast, slow], "branch": branch, "cosine": cosine, "peaks": peaks})


if __name__ == "__main__":
    main()
