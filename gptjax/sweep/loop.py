"""The whole loop on a page: plan, train, fit, predict, train what was predicted, score, report.

A sweep's directory: plan.json, ledger/, runs/, runs.csv, runs.parquet, curves.csv, facts.json, law.json,
prediction.json, prediction_score.json, figures/ and report.html.
"""

import csv
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from gptjax.data.loader import open_stores
from gptjax.errors import BadInput
from gptjax.files import read_json, write_file, write_json
from gptjax.jobs.hosts import agree, is_first
from gptjax.laws import compare
from gptjax.laws.analysis import fit_all
from gptjax.laws.checks import read_runs
from gptjax.laws.coverage import affordable
from gptjax.laws.drawing.drawn import to_png
from gptjax.laws.drawing.plot import loss_by_arm
from gptjax.laws.drawing.report import write_report
from gptjax.laws.forecaster import NoForecast, forecaster
from gptjax.laws.predict import predict
from gptjax.laws.quote import as_text
from gptjax.laws.registered import register, score
from gptjax.laws.table import Floats
from gptjax.run.initial_weights import with_resolved_origin
from gptjax.run.loop import PREEMPTED
from gptjax.run.metrics import read_metrics
from gptjax.run.validation import WINDOWS, paired_errors, read_shares
from gptjax.sweep.execute import Executor
from gptjax.sweep.ledger import Ledger, Row
from gptjax.sweep.plan import Plan, PlannedRun, SweepConfig, holdout_run, make_plan, short

PER_DECADE, FEWEST_BINS = 30, 20  # of a thinned training curve


def run_sweep(sweep: SweepConfig, directory: Path, execute: Executor) -> Path:
    """Run a sweep to its report, or to the comparison of its arms.

    Whatever an earlier call finished is kept, and only the rest is done. Where several processes are one job, all train
    and the first does everything else.
    """
    began = time.perf_counter()
    sweep = replace(sweep, base=with_resolved_origin(sweep.base, directory / "runs" / "RUN"))
    plan = make_plan(sweep)
    with told_if_interrupted(plan, directory):
        execute(plan, directory)
        agree(partial(write_tables, plan, directory))
        if sweep.holdout and (params := agree(partial(foresee, sweep, directory))):
            run = holdout_run(sweep, params)
            plan = replace(plan, runs=(*plan.runs, run))
            execute(plan, directory)
            agree(partial(score_holdout, run, directory))
            agree(partial(write_tables, plan, directory))
        agree(partial(publish, sweep, plan, directory, began))
    return directory / ("figures/arms.png" if sweep.arm else "report.html")


@contextmanager
def told_if_interrupted(plan: Plan, directory: Path) -> Iterator[None]:
    """Say on Ctrl-C or SIGTERM what is kept and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if is_first() and (isinstance(stop, KeyboardInterrupt) or stop.code == PREEMPTED):
            how = "interrupted" if isinstance(stop, KeyboardInterrupt) else "stopped by SIGTERM"
            kept = f"{len(Ledger(directory).rows())} of {len(plan.runs) + (plan.holdout_seconds > 0)} runs are finished"
            more = "runs in progress go on from their last checkpoint; run the same command again to go on"
            print(f"gptjax: {how}: {kept} and kept in {directory}; {more}", file=sys.stderr)
        raise


def foresee(sweep: SweepConfig, directory: Path) -> float | None:
    """Predict a larger run and write the prediction down; return its N, or None where the law forbids a forecast."""
    path = directory / "prediction.json"
    if not path.is_file():
        try:
            law = forecaster(fit_all(read_runs(directory / "runs.csv"), tables=False))
        except NoForecast as refusal:
            print(f"gptjax: no held-out run: {refusal}", file=sys.stderr)
            return None
        run = holdout_run(sweep, predict(law, flops=sweep.holdout)["params"])
        prediction = predict(law, flops=run.flops, params=run.params, tokens=run.tokens)
        with suppress(BadInput):  # another machine has written it meanwhile
            register(prediction, path)
    return read_json(path)["prediction"]["params"]


def score_holdout(run: PlannedRun, directory: Path) -> None:
    """Score the prediction, once, by the run that it was made for."""
    row = Ledger(directory).rows()[run.name]
    if row["status"] == "done" and not (directory / "prediction_score.json").is_file():
        score(directory / "prediction.json", row["loss"], run.params, run.tokens)


def publish(sweep: SweepConfig, plan: Plan, directory: Path, began: float) -> None:
    """Write the facts and the report, and say what to quote of it."""
    repeated = [row for row in Ledger(directory).rows().values() if row.get("epochs", 0) > 1]
    if repeated:
        most = max(repeated, key=lambda row: row["epochs"])
        times = (
            f"{len(repeated)} of {len(plan.runs)} runs read the data more than once, {most['run']} {most['epochs']:.1f}"
        )
        print(f"gptjax: {times} times over; a law of fresh data needs more of it", file=sys.stderr)
    manifests = [store.manifest for store in open_stores(sweep.base.data)]
    write_facts(sweep, plan, directory, manifests, time.perf_counter() - began)
    if sweep.arm:
        publish_arms(directory)
        return
    total = affordable(sum(run.role == "cell" for run in plan.runs))
    with tqdm(total=total, desc="coverage", unit="sweep", disable=None, leave=False) as bar:
        write_report(directory, done=bar.update)
    print(as_text(read_json(directory / "law.json")["quote"]))


def publish_arms(directory: Path) -> None:
    """Write a report for each arm, in arms/NAME/, and how the arms compare: law.json and figures/arms.png."""
    facts = read_json(directory / "facts.json")
    for name in ("runs.csv", "curves.csv"):
        with (directory / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for arm, own in by_arm(rows).items():
            place = directory / "arms" / arm
            place.mkdir(parents=True, exist_ok=True)
            write_file(place / name, to_csv(own))
            write_json(place / "facts.json", {**facts, "title": f"{facts['title']}: {arm}", "arm": arm})
    for place in sorted((directory / "arms").iterdir()):
        write_report(place)
    runs = read_runs(directory / "runs.csv")
    arms = compare.fit_arms(runs, "arm", tables=False)
    write_json(directory / "law.json", arms.to_json())
    (directory / "figures").mkdir(exist_ok=True)
    write_file(directory / "figures" / "arms.png", to_png(loss_by_arm(runs.arms("arm"), arms)))
    print("\n".join(map(compare.describe, arms.compared)))


def by_arm(rows: list[Row]) -> dict[str, list[Row]]:
    """Part the rows of a table by their arm; columns that none of an arm's rows fills are left out."""
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    for arm, own in arms.items():
        filled = {name for row in own for name, value in row.items() if value != ""}
        arms[arm] = [{name: value for name, value in row.items() if name in filled} for row in own]
    return arms


def write_tables(cells: Plan, directory: Path) -> None:
    """Write runs.csv and runs.parquet, a row for each cell with its raw facts, and curves.csv, the training curves.

    The curve of a branch begins with its trunk's, up to the step where it left it. So every curve is that of a whole
    run, and a trunk has none of its own.
    """
    rows = Ledger(directory).rows()
    paired = paired_by_run(list(rows.values()), directory / "runs")
    runs = [
        table_row(rows[run.name], run.params, cells.convention, paired.get(run.name))
        for run in cells.runs
        if run.name in rows
    ]
    write_file(directory / "runs.csv", to_csv(runs))
    write_file(directory / "runs.parquet", to_parquet(runs))
    lines: list[Row] = []
    trunks: dict[str, Floats] = {}
    for run in (run for run in cells.runs if run.name in rows):
        own = read_curve(directory / "runs" / run.name)
        if run.role == "trunk":
            trunks[run.name] = own
        elif len(own):
            left = run.config.first_step * run.config.tokens_per_step  # the tokens at which it left its trunk
            trunk = trunks.get(run.parent or "", own[:0])
            parts = [thin_curve(trunk[trunk[:, 0] <= left]), thin_curve(own, left)]
            same: Row = {"run": run.name, "params": run.params, **({"arm": run.arm} if run.arm else {})}
            per_token = run.flops / run.tokens
            for tokens, loss in np.concatenate(parts).tolist():
                lines.append({**same, "tokens": tokens, "flops": tokens * per_token, "loss": loss})
    if lines:
        write_file(directory / "curves.csv", to_csv(lines))


def read_curve(directory: Path) -> Floats:
    """Read a run's training curve, (lines, 2): tokens, and the mean loss since the line before."""
    lines = [line for line in read_metrics(directory / "metrics.jsonl") if "train/loss" in line]
    return np.array([(line["tokens"], line["train/loss"]) for line in lines]).reshape(-1, 2)


def thin_curve(points: Floats, start: float = 0.0) -> Floats:
    """Average a training curve that begins at `start` tokens in bins of equal log tokens; both are (points, 2).

    A bin's loss is the mean over its tokens, and it stands at its last. There are 30 bins in a decade, and more where a
    curve would have fewer than 20 in all: a cooldown is the last fifth of its run, and its end decides the law.
    """
    if not len(points):
        return points
    tokens, loss = points.T
    per_decade = max(PER_DECADE, FEWEST_BINS / max(np.log10(tokens[-1] / tokens[0]), 1e-9))
    first = np.flatnonzero(np.diff(np.floor(per_decade * np.log10(tokens)), prepend=-np.inf))
    seen = np.diff(tokens, prepend=start)
    mean = np.add.reduceat(seen * loss, first) / np.add.reduceat(seen, first)
    return np.stack([tokens[np.append(first[1:] - 1, len(tokens) - 1)], mean], axis=1)


def paired_by_run(rows: list[Row], runs: Path) -> dict[str, float]:
    """Return the paired error of each cell's loss: of those that were evaluated on the same windows, by what they left.

    A run has none where its file of windows is missing, as in sweeps of older versions, or where no other run shares
    its data and its number of windows.
    """
    together: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for row in rows:
        if row["role"] != "cell" or row["status"] != "done":
            continue
        if (shares := read_shares(runs / row["run"] / WINDOWS)) is not None:
            together.setdefault((row["data_digest"], len(shares)), {})[row["run"]] = shares
    errors = (dict(zip(found, paired_errors(np.stack([*found.values()])), strict=True)) for found in together.values())
    return {run: float(error) for group in errors for run, error in group.items() if error > 0}


def table_row(row: Row, params: int, convention: str, paired: float | None = None) -> Row:
    """Flatten a ledger row: N and C under the sweep's convention first, then every raw fact."""
    counted = row["role"] == "cell" or row["status"] == "failed"
    facts: Row = {"run": row["run"], "status": row["status"] if counted else row["role"]}
    if "tokens" not in row:
        return {**facts, "reason": row["reason"]}
    if convention not in row["flops_per_token"]:
        raise BadInput(f"the row of {row['run']} has no FLOPs by {convention}; delete it, and the run is trained again")
    facts |= {
        "params": params,
        "tokens": row["tokens"],
        "flops": row["tokens"] * row["flops_per_token"][convention],
        "loss": row["loss"],
        "loss_se": row["loss_se"],
        "loss_se_paired": paired,
        "bits_per_byte": row["bits_per_byte"],
    }
    keep = ("reason", "size", "budget", "seed", "steps", "batch", "lr", "b2", "epochs", "tokens_paid")
    facts |= {name: row[name] for name in keep}
    facts |= {name: row[name] for name in ("arm", "objective") if name in row}
    facts |= {f"params_{group}": n for group, n in row["params"].items()}
    facts |= {f"flops_{name}": f * row["tokens"] for name, f in row["flops_per_token"].items()}
    facts |= {name: row[name] for name in ("seconds", "device", "fingerprint", "data_digest")}
    return {**facts, "convention": "N = all parameters, C = " + ("6 N D" if convention == "6n_total" else convention)}


def columns_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def to_parquet(rows: list[Row]) -> bytes:
    columns = {name: [row.get(name) for row in rows] for name in columns_of(rows)}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def to_csv(rows: list[Row]) -> str:
    columns = columns_of(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def write_facts(sweep: SweepConfig, cells: Plan, directory: Path, manifests: list[Any], seconds: float) -> None:
    """Write what the report says of the sweep besides its rows; seconds add up over calls."""
    path = directory / "facts.json"
    before = read_json(path)["wall seconds"] if path.is_file() else 0.0
    rows = Ledger(directory).rows()
    done = [row for row in rows.values() if row["status"] == "done"]
    optim = sweep.base.optim
    paid, credited = (sum(getattr(run, name) for run in cells.runs) for name in ("flops_paid", "flops"))
    facts = {
        "title": sweep.title or f"A scaling law of {manifests[0].corpus} text",
        "corpus": ", ".join(manifest.corpus for manifest in manifests),
        "tokenizer": manifests[0].tokenizer,
        "training tokens available": sum(manifest.splits["train"].tokens for manifest in manifests),
        "bytes per token": round(manifests[0].splits["train"].bytes_per_token, 3),
        "data digest": done[0]["data_digest"] if done else "",
        "optimizer": f"{optim.name}, {optim.schedule} schedule, peak rate and batch by size",
        "cells": sum(run.role == "cell" for run in cells.runs),
        "failed": sum(row["status"] == "failed" for row in rows.values()),
        "FLOPs paid": f"{paid:.3g}",
        "FLOPs credited": f"{credited:.3g} (trunks shared by cooldown branches: {paid / credited:.0%} paid)",
        "device": done[0]["device"] if done else "",
        "wall seconds": round(before + seconds, 1),
        "not_run": [f"{r.size} at {short(r.budget)} FLOPs {r.reason}" for r in cells.removed],
    }
    write_json(path, facts)
