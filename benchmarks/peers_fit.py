"""A law's fit from a cold process, against `chinchilla` from PyPI and a plain scipy script, on the same tables.

    pip install chinchilla      # optional: without it, that peer is left out
    python benchmarks/peers_fit.py [--turns 3] [--draws 20] [--full] [--only TEXT] [--json FILE]

Every run is a process of its own, timed from its start to its end by wall clock and by the user CPU time of it and its
children: `gptjax fit TABLE --approach parametric --bootstrap 1` for one fit, and `gptjax fit TABLE`, which does more
than that (three approaches, profiles, deletions, a forecast), for 1000 draws; the first with an empty cache of compiled
programs, the others with what that left there. The peers fit alone. They take too long to run whole, so they start from
72 of the 4500 points of Hoffmann et al. 2022 (`--full`: from all), draw 20 times, and are scaled up to what we do;
their times from 72 points alone stand beside that. chinchilla's figure of each fit is switched off, and its loss, by
default asymmetric, is log-Huber over delta^2: its BFGS stops where the gradient is below 1e-5, and a mean of log-Huber
is flatter than that everywhere. scipy's L-BFGS-B runs upon the sum as it is, as usual, and over delta^2 too. The
objective is the sum of log-Huber, by one function, at the coefficients that each returns.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

DELTA, DRAWS, STARTS = 1e-3, 1000, 4500
AXES = {  # Hoffmann et al. 2022, D.2
    "e": np.linspace(-1, 1, 5),
    "a": np.linspace(0, 25, 6),
    "b": np.linspace(0, 25, 6),
    "alpha": np.linspace(0, 2, 5),
    "beta": np.linspace(0, 2, 5),
}
FIGURE_4 = Path(__file__).parents[2] / "shared" / "reference" / "chinchilla_figure4_points.csv"  # not of the repository
ENV = os.environ | {"MPLBACKEND": "Agg"}
OURS, FIRST = "gptjax", "gptjax, nothing compiled"
PEERS = ("chinchilla", "scipy", "scipy over delta^2")
Coefficients = dict[str, float]


def log_huber(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    size = np.abs(np.log(predicted) - np.log(measured))
    return np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))


def objective(table: np.ndarray, law: Coefficients) -> float:
    """Judge every contestant alike: the sum over rows (params, tokens, loss) of log-Huber."""
    n, d, loss = table
    return float(log_huber(loss, law["E"] + law["A"] * n ** -law["alpha"] + law["B"] * d ** -law["beta"]).sum())


def axes(full: bool) -> dict[str, np.ndarray]:
    return AXES if full else {name: axis[1::2] for name, axis in AXES.items()}


def by_scipy(table: np.ndarray, grid: dict[str, np.ndarray], draws: int, scale: float) -> dict[str, Any]:
    """Fit as the published notebooks do: L-BFGS-B with finite differences from each start; draws start at the fit."""
    from itertools import product

    from scipy.optimize import minimize

    def fit(table: np.ndarray, start: np.ndarray) -> Any:
        n, d, loss = np.log(table)

        def value(theta: np.ndarray) -> float:
            e, a, b, alpha, beta = theta
            size = np.abs(np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e) - loss)
            return float(np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum() / scale)

        return minimize(value, start, method="L-BFGS-B")

    def one() -> np.ndarray:
        with np.errstate(all="ignore"):
            return min((fit(table, np.array(start)) for start in product(*grid.values())), key=lambda f: f.fun).x

    theta, spent = spend(one)
    rng = np.random.default_rng(0)
    rows = table.shape[1]
    _, drawing = spend(lambda: [fit(table[:, rng.integers(rows, size=rows)], theta) for _ in range(draws)])
    e, a, b, alpha, beta = map(float, theta)
    law = {"E": np.exp(e), "A": np.exp(a), "B": np.exp(b), "alpha": alpha, "beta": beta}
    return {"law": law, "grid": spent, "draws": drawing}


def by_chinchilla(table: np.ndarray, grid: dict[str, np.ndarray], draws: int) -> dict[str, Any]:
    """Fit by chinchilla's own class, its table read from its CSV file; draws start at the fit, as scipy's do."""
    import pandas as pd
    from chinchilla import Chinchilla

    n, d, loss = table
    frame = pd.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": loss})
    with TemporaryDirectory() as place:
        frame.to_csv(Path(place) / "df.csv", index=False)

        def fit(rows: Any, grid: dict[str, Any], parallel: bool) -> Coefficients:
            made = Chinchilla(place, param_grid=grid, loss_fn=lambda y, p: log_huber(y, p) / DELTA**2, log_level=40)
            made.visualizer.optim = lambda *args, **settings: None
            if rows is not None:
                made.database.df = frame.iloc[rows]
            made.fit(parallel=parallel)
            return made.params

        law, spent = spend(lambda: fit(None, {name: list(axis) for name, axis in grid.items()}, True))
        start = {name.lower(): [float(np.log(law[name]))] for name in ("E", "A", "B")}
        start |= {name: [law[name]] for name in ("alpha", "beta")}
        rng = np.random.default_rng(0)
        _, drawing = spend(lambda: [fit(rng.integers(len(n), size=len(n)), start, False) for _ in range(draws)])
    return {"law": law, "grid": spent, "draws": drawing}


def cpu() -> float:
    return sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def spend(work: Callable[[], Any]) -> tuple[Any, list[float]]:
    """Do some work; give its result and the wall and user seconds that it took."""
    begin, used = time.perf_counter(), cpu()
    result = work()
    return result, [time.perf_counter() - begin, cpu() - used]


def play(name: str, file: Path, full: bool, draws: int) -> None:
    """Be a peer: read the table, fit, draw, and print what came of it."""
    table, grid = np.loadtxt(file, delimiter=",", skiprows=1, unpack=True), axes(full)
    if name == "chinchilla":
        found = by_chinchilla(table, grid, draws)
    else:
        found = by_scipy(table, grid, draws, 1.0 if name == "scipy" else DELTA**2)
    print(json.dumps(found))


def run(command: list[str], env: dict[str, str] = ENV) -> tuple[list[float], str]:
    """Run a process; give its wall and user seconds, those of its children with them, and what it printed."""
    done, spent = spend(lambda: subprocess.run(command, env=env, capture_output=True, text=True, check=False))
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return spent, done.stdout


def tables(folder: Path) -> dict[str, Path]:
    """Write the tables: isoFLOP grids of Besiroglu's law with noise of .5 %, a tenth of the errors times 3."""
    from gptjax.laws.published import BESIROGLU_2024
    from gptjax.laws.simulate import ladder, simulate

    found = {}
    for name, budgets, sizes, seed in (("250 rows", 10, 25, 1), ("250 others", 10, 25, 2), ("5000 rows", 50, 100, 1)):
        n, d = ladder(BESIROGLU_2024, np.geomspace(6e18, 3e21, budgets), sizes=sizes, bracket=8)
        runs = simulate(BESIROGLU_2024, n, d, noise=0.005, seed=seed)
        exact = BESIROGLU_2024.loss(runs.params, runs.tokens)
        worse = np.where(np.random.default_rng(seed).random(len(n)) < 0.1, 3.0, 1.0)
        found[name] = write(folder / f"{name}.csv", [runs.params, runs.tokens, exact * (runs.loss / exact) ** worse])
    if FIGURE_4.is_file():
        with FIGURE_4.open() as lines:
            names = next(lines).strip().split(",")
        rows = np.loadtxt(FIGURE_4, delimiter=",", skiprows=1)
        rows = rows[rows[:, names.index("dropped_by_besiroglu")] == 0]
        columns = [rows[:, names.index(name)] for name in ("params", "tokens", "loss")]
        found[f"Figure 4, {len(rows)} rows"] = write(folder / "figure4.csv", columns)
    return found


def write(path: Path, columns: list[np.ndarray]) -> Path:
    np.savetxt(path, np.transpose(columns), delimiter=",", header="params,tokens,loss", comments="", fmt="%.17g")
    return path


def our_law(file: Path) -> Coefficients:
    """Fit once more, for the coefficients, of which a terminal shows four digits."""
    out = file.with_suffix(".json")
    run([*FIT, str(file), "--approach", "parametric", "--bootstrap", "1", "--json", str(out)])
    found = json.loads(out.read_text())["approaches"]["parametric"]["coefficients"]
    return {name: one["value"] for name, one in found.items()}


FIT = [sys.executable, "-m", "gptjax.cli", "fit"]
ONE = ("--approach", "parametric", "--bootstrap", "1")
Times = dict[str, list[list[float]]]


def turn_of_ours(file: Path, times: Times) -> None:
    """Run both commands, each with no compiled program at hand, and with those that it left."""
    for task, settings in (("fit", ONE), ("draws", ())):
        with TemporaryDirectory() as cache:
            env = ENV | {"JAX_COMPILATION_CACHE_DIR": cache}
            for name in (FIRST, OURS):
                times.setdefault(f"{name}: {task}", []).append(run([*FIT, str(file), *settings], env)[0])


def turn_of(peer: str, file: Path, full: bool, draws: int, times: Times) -> Coefficients:
    """Run a peer, which fits and draws; its times without and with the draws, as run and scaled up."""
    starts = int(np.prod([len(axis) for axis in axes(full).values()]))
    words = ["--peer", peer, str(file), "--draws", str(draws), *(["--full"] if full else [])]
    spent, said = run([sys.executable, __file__, *words])
    found = json.loads(said)
    whole, grid, drawing = (np.array(each) for each in (spent, found["grid"], found["draws"]))
    fit, more, drawn = whole - drawing, (STARTS / starts - 1) * grid, drawing * DRAWS / draws
    lines = {f"{peer}: fit": fit + more, f"{peer}: draws": fit + more + drawn}
    if starts < STARTS:
        lines |= {f"{peer} from {starts}: fit": fit, f"{peer} from {starts}: draws": fit + drawn}
    for line, seconds in lines.items():
        times.setdefault(line, []).append(seconds.tolist())
    return found["law"]


def contest(name: str, file: Path, peers: list[str], turns: int, full: bool, draws: int) -> dict[str, Any]:
    """Run all contestants on a table in turns; give medians, spreads, objectives, and times over ours."""
    times: Times = {}
    laws = {OURS: our_law(file)}
    for _ in range(turns):
        turn_of_ours(file, times)
        laws |= {peer: turn_of(peer, file, full, draws, times) for peer in peers}
    table = np.loadtxt(file, delimiter=",", skiprows=1, unpack=True)
    reached = {who: objective(table, law) for who, law in laws.items()}
    medians = {line: [statistics.median(column) for column in zip(*each, strict=True)] for line, each in times.items()}
    result: dict[str, Any] = {
        "objective": reached,
        "above ours": {w: v / reached[OURS] - 1 for w, v in reached.items()},
    }
    result["seconds"] = {line: dict(zip(("wall", "user"), middle, strict=True)) for line, middle in medians.items()}
    spreads = {line: [[min(c), max(c)] for c in zip(*each, strict=True)] for line, each in times.items()}
    result["spread"] = {line: dict(zip(("wall", "user"), spread, strict=True)) for line, spread in spreads.items()}
    over = {
        line: [t / o for t, o in zip(middle, medians[f"{OURS}: {line.rpartition(': ')[2]}"], strict=True)]
        for line, middle in medians.items()
    }
    result["over ours"] = {line: dict(zip(("wall", "user"), both, strict=True)) for line, both in over.items()}
    beaten = [f"{line} by {kind}" for line, both in over.items() for kind, r in zip(("wall", "user"), both, strict=True)
              if r < 1 and not line.startswith(OURS)]  # fmt: skip
    lower = [who for who, value in reached.items() if value < reached[OURS] * (1 - 1e-9)]
    result["faster than ours"], result["lower than ours"] = beaten, lower
    show(name, result)
    return result


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}")
    for who, value in result["objective"].items():
        print(f"  {who:<48} objective {value:.9g} ({result['above ours'][who]:+.2e} of ours)")
    for line, spent in result["seconds"].items():
        over = result["over ours"][line]
        print(f"  {line:<48} wall {spent['wall']:8.2f} s ({over['wall']:6.3g} of ours)  user {spent['user']:8.2f} s "
              f"({over['user']:6.3g})")  # fmt: skip
    for what in ("faster than ours", "lower than ours"):
        print(f"  {what}: {', '.join(result[what]) or 'none'}", flush=True)


def comparison(one: Path, other: Path, turns: int) -> dict[str, Any]:
    """Time `gptjax compare` of two tables, which no peer does."""
    times: Times = {}
    for _ in range(turns):
        with TemporaryDirectory() as cache:
            for name in (FIRST, OURS):
                command = [sys.executable, "-m", "gptjax.cli", "compare", str(one), str(other)]
                times.setdefault(name, []).append(run(command, ENV | {"JAX_COMPILATION_CACHE_DIR": cache})[0])
    seconds = {}
    print("\ncompare, 250 rows with 250")
    for name, each in times.items():
        wall, user = (statistics.median(column) for column in zip(*each, strict=True))
        seconds[name] = {"wall": wall, "user": user}
        print(f"  {name:<48} wall {wall:8.2f} s  user {user:8.2f} s")
    return seconds


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs=2, metavar=("NAME", "TABLE"), help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--draws", type=int, default=20, help="of the peers, scaled up to 1000 (default: 20)")
    parser.add_argument("--full", action="store_true", help="the peers start from all 4500 points: hours")
    parser.add_argument("--only", default="", metavar="TEXT", help="tables with this in their name")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.peer:
        return play(args.peer[0], Path(args.peer[1]), args.full, args.draws)
    peers = [peer for peer in PEERS if peer != "chinchilla" or find_spec("chinchilla")]
    if len(peers) < len(PEERS):
        print("chinchilla is not installed and left out: pip install chinchilla")
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version_of(name) for name in ("jax", "scipy", "numpy", "chinchilla")},
    }
    print(result["machine"], *(f"{name} {number}" for name, number in result["versions"].items()))
    with TemporaryDirectory() as folder:
        files = tables(Path(folder))
        other = files.pop("250 others")
        for name, file in files.items():
            if args.only in name:
                result[name] = contest(name, file, peers, args.turns, args.full, args.draws)
        if args.only in "compare":
            result["compare"] = comparison(files["250 rows"], other, args.turns)
    if args.json:
        from gptjax.files import write_json

        write_json(args.json, result)


if __name__ == "__main__":
    main()
