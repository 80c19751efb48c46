"""How cost grows: with parameters, context, devices, steps and cells, and what of a sweep is not training.

    python benchmarks/growth.py [--quick] [--only cells] [--sweep DIR] [--json FILE] [--figure docs/growth.png]

Seconds a token should follow FLOPs a token as models widen and contexts lengthen, stay where they are as steps go by,
and as more (simulated) devices share the same cores. All of a sweep that is not training (plan, taking the runs,
status, tables, report) should take time in proportion to its cells: there nothing is trained, and losses are drawn from
a law. With --sweep, the share of a finished sweep's wall time that is not its training calls: every run's tokens over
the median rate of its own calls, against workers x wall seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, StrMethodFormatter

from gptjax.batch import Batch
from gptjax.commands.arguments import load
from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.files import read_json, write_json
from gptjax.fingerprint import fingerprint
from gptjax.jobs.process import keep_freed_memory
from gptjax.laws.drawing.report import write_report
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.run.begin import programs_of
from gptjax.run.loop import train
from gptjax.run.metrics import read_metrics
from gptjax.run.result import Result
from gptjax.sharding import Layout, MeshConfig
from gptjax.sweep.execute import Queue
from gptjax.sweep.follow import status
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.loop import write_tables
from gptjax.sweep.plan import Plan, PlannedRun, SweepConfig, make_plan
from gptjax.train.optim import OptimConfig

MODEL = GPTConfig(vocab_size=512, context=128, d_model=128, n_layers=4, n_heads=4, bias=False)
EXECUTION = Execution(scan=False)
CELLS = (100, 1_000, 12_000)
WIDTHS, CONTEXTS, DEVICES = (32, 64, 128, 256, 512), (64, 128, 256, 512, 1024, 2048), (1, 2, 4, 8)
TOKENS, STEPS, TURNS = 4096, 2, 5  # a step, a call, and calls
RUN_STEPS, LINES = 4000, 40


def seconds_per_token(model: GPTConfig, devices: int = 1) -> float:
    """Return the median over a few calls of training at so many tokens a step."""
    mesh = MeshConfig(data=1, fsdp=devices)
    config = RunConfig(model=model, execution=EXECUTION, batch=TOKENS // model.context, mesh=mesh)
    programs = programs_of(config, Layout(make_mesh(config.mesh), config.rules))
    state = programs.init(jax.random.key(0))
    shape = (STEPS, config.batch, model.context)
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=shape, dtype=np.int32)
    batch = jax.device_put(Batch(tokens, tokens, np.ones(shape, np.float32)), programs.batches)
    rates, seconds = np.full(STEPS, 1e-4, np.float32), []
    for _ in range(1 + TURNS):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(programs.train(state, batch, rates))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:]) / STEPS / TOKENS


def against_flops(models: dict[int, GPTConfig]) -> Iterator[dict[str, float]]:
    """Measure models by what is varied, beside the FLOPs of a token with causal attention."""
    flops = {x: model.cost(model.context).useful for x, model in models.items()}
    for x, model in models.items():
        yield {"x": x, "seconds": seconds_per_token(model), "flops": flops[x]}


def over_devices(numbers: tuple[int, ...]) -> Iterator[dict[str, float]]:
    """Measure each number of simulated devices in a process of its own, data-parallel, with weights in parts."""
    for n in numbers:
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n}", "PJRT_NPROC": str(max(4 * n, 4))}
        command = [sys.executable, __file__, "--devices", str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | flags)
        yield {"x": n, "seconds": float(done.stdout.split()[-1])}


def over_steps(steps: int) -> Iterator[dict[str, float]]:
    """Yield seconds a token along one run, from its own metrics."""
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            model=replace(MODEL, d_model=32, n_layers=2, context=64),
            execution=EXECUTION,
            data=DataConfig((Source("markov:states=8,documents=4000"),), "bytes", cache=folder),
            optim=OptimConfig(schedule="constant", warmup=10),
            batch=8,
            steps=steps,
            steps_per_call=20,
            log_every=20,
            evaluate=EvalConfig(sequences=64, batch=16, every=1000),
            save=SaveConfig(every=1000),
            trackers=(),
        )
        train(config, Path(folder) / "run")
        lines = [line for line in read_metrics(Path(folder) / "run" / "metrics.jsonl") if "train/loss" in line]
    points = np.array([[line["step"], 1 / line["perf/tokens_per_second"]] for line in lines])
    groups = np.array_split(points, min(LINES, len(points)))
    yield from ({"x": float(group[-1, 0]), "seconds": float(np.median(group[:, 1]))} for group in groups)


def over_cells(numbers: tuple[int, ...]) -> Iterator[dict[str, float]]:
    """Measure, for sweeps of about so many cells, the seconds of all that is not training, by phase."""
    base = load("experiments/chinchilla/quick.py", SweepConfig, "sweep")
    for n in numbers:
        budgets = tuple(np.geomspace(1e11, 3e14, max(4, round(n**0.5))))
        sizes = tuple(range(16, 16 + 4 * -(-n // len(budgets)), 4))
        sweep = replace(base, sizes=sizes, budgets=budgets, tokens_per_param=(1e-4, 1e9), min_steps=1, holdout=0.0)
        with tempfile.TemporaryDirectory() as folder:
            seconds = phases(sweep, Path(folder))
        yield {"x": seconds.pop("cells"), "seconds": sum(seconds.values()), **seconds}


def phases(sweep: SweepConfig, directory: Path) -> dict[str, float]:
    """Take a sweep from plan to report with losses drawn from a law; return the seconds of each phase."""
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    with phase("plan"):
        plan = make_plan(sweep)
    with phase("save and load"):
        plan.save(directory / "plan.json")
        plan = Plan.load(directory / "plan.json")
    noise, ledger = np.random.default_rng(0), Ledger(directory)
    rows = {run.name: simulated(run, noise) for run in plan.runs}
    for run in plan.runs:
        write_curve(directory / "runs" / run.name, run)
    with phase("take"):
        queue = Queue(plan, ledger, None)
        while taken := queue.take(lambda name: True, lambda run: 1):
            ledger.append(rows[taken[0].name])
            queue.ended([taken[0].name])
    with phase("status"):
        status(directory)
    with phase("tables"):
        write_tables(plan, directory)
    with phase("report"):
        write_report(directory)
    return seconds | {"cells": float(sum(run.role == "cell" for run in plan.runs))}


def simulated(run: PlannedRun, noise: np.random.Generator) -> dict[str, Any]:
    """Return the row of a run as it would stand in the ledger, its loss from a law with a noise of 0.3 %."""
    cost = run.config.model.cost(run.config.model.context)
    loss = (1.3 + 63 / run.params**0.406 + 45 / run.tokens**0.266) * float(np.exp(0.003 * noise.standard_normal()))
    result = Result(
        status="done", reason="", fingerprint=fingerprint(run.config), data_digest="none", seed=0,
        params={**cost.params, "padding": cost.padding}, flops_per_token=dict(cost.flops), tokens=run.tokens,
        tokens_paid=run.tokens, steps=run.config.steps, epochs=0.1, loss=loss, loss_se=0.003, bits_per_byte=loss,
        evals={}, seconds=run.seconds, device="none",
    )  # fmt: skip
    facts = {"run": run.name, "role": run.role, "size": run.size, "budget": run.budget}
    return {**facts, "batch": run.config.batch, "lr": run.config.optim.lr, "b2": run.config.optim.b2, **asdict(result)}


def write_curve(directory: Path, run: PlannedRun, lines: int = 20) -> None:
    """Write the metrics of a run that was never trained."""
    directory.mkdir(parents=True)
    at = np.linspace(run.config.first_step, run.config.steps, lines + 1)[1:]
    curve = [{"step": int(step), "tokens": int(step) * run.config.tokens_per_step, "train/loss": 3.0} for step in at]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))


def overhead(directory: Path) -> dict[str, float]:
    """Say what of a sweep's wall time, on all its workers, was not training calls."""
    rows = Ledger(directory).rows()
    calls = 0.0
    for name, row in rows.items():
        lines = read_metrics(directory / "runs" / name / "metrics.jsonl")
        rates = [line["perf/tokens_per_second"] for line in lines if "perf/tokens_per_second" in line]
        calls += row["tokens_paid"] / statistics.median(rates)
    runs = sum(row["seconds"] for row in rows.values())
    wall = read_json(directory / "facts.json")["wall seconds"]
    return {"calls": calls, "runs": runs, "wall": wall, "of runs": 1 - calls / runs}


def draw(path: Path, found: dict[str, Any]) -> None:
    panels = [("params", "width", True), ("context", "context", True), ("devices", "simulated devices", False),
              ("steps", "steps of one run", False)]  # fmt: skip
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), constrained_layout=True)
    for ax, (name, label, flops) in zip(axes, panels, strict=True):
        x, seconds = ([row[key] for row in found[name]] for key in ("x", "seconds"))
        ax.plot(x, 1e6 * np.array(seconds), "o-", ms=3, label="measured")
        if flops:
            rate = max(row["flops"] / row["seconds"] for row in found[name])
            ax.plot(x, [1e6 * row["flops"] / rate for row in found[name]], "--", label=f"at {rate / 1e9:.0f} GFLOP/s")
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(x, [f"{at:g}" for at in x])
            ax.minorticks_off()
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.legend(fontsize=8)
        else:
            ax.set_ylim(0, 1.4e6 * max(seconds))
        ax.set(xlabel=label, ylabel="microseconds a token" if ax is axes[0] else "")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweep", type=Path, help="a finished sweep's folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("params", "context", "devices", "steps", "cells"), help="measure this alone")
    parser.add_argument("--quick", action="store_true", help="two points of each and a short run: does it work?")
    args = parser.parse_args()
    keep_freed_memory()
    if args.devices:
        print(seconds_per_token(MODEL, args.devices))
        return
    points, run_steps = (2, RUN_STEPS // 10) if args.quick else (None, RUN_STEPS)
    parts: dict[str, Iterator[dict[str, float]]] = {
        "params": against_flops({d: replace(MODEL, d_model=d) for d in WIDTHS[:points]}),
        "context": against_flops({T: replace(MODEL, context=T) for T in CONTEXTS[:points]}),
        "devices": over_devices(DEVICES[:points]),
        "steps": over_steps(run_steps),
        "cells": over_cells(CELLS[:points]),
    }
    found: dict[str, Any] = {}
    for name, rows in parts.items():
        for row in rows if args.only in (None, name) else ():
            if name == "cells":
                each = ", ".join(f"{what} {s:.2f} s" for what, s in row.items() if what not in ("x", "seconds"))
                print(
                    f"{name:>8} {row['x']:>6.0f}: {1e3 * row['seconds'] / row['x']:.1f} ms a cell ({each})", flush=True
                )
                found.setdefault(name, []).append(row)
                continue
            rate = f", {row['flops'] / row['seconds'] / 1e9:.0f} GFLOP/s" if "flops" in row else ""
            print(f"{name:>8} {row['x']:>6.0f}: {1e6 * row['seconds']:.1f} us a token{rate}", flush=True)
            found.setdefault(name, []).append(row)
    if quarters := [row["seconds"] for row in found.get("steps", [])]:
        n = -(-len(quarters) // 4)
        drift = statistics.median(quarters[-n:]) / statistics.median(quarters[:n])
        print(f"last quarter of {run_steps} steps over the first: {drift:.2f}")
    if args.sweep:
        found["sweep"] = overhead(args.sweep)
        print(json.dumps(found["sweep"]))
    if args.json:
        write_json(args.json, found)
    if args.figure:
        draw(args.figure, found)


if __name__ == "__main__":
    main()
