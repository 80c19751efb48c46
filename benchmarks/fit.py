"""How long a law takes to fit: our solver against the usual procedure, scipy's L-BFGS-B with finite differences.

    python benchmarks/fit.py [--json FILE]

The task is that of Besiroglu et al. 2024 (arXiv 2404.10102): 240 rows, all 4500 starts of Hoffmann et al. 2022, and
4000 bootstrap refits. The usual procedure takes too long to run whole, so it runs on a sample of the starts and refits,
in turns with ours, and is scaled up; the share of its starts that end near the optimum shows what stopping early costs.
Then a table of 100,000 rows.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import scipy
from scipy.optimize import minimize

from gptjax.files import write_json
from gptjax.laws.fit import Choices
from gptjax.laws.parametric import Parametric, parametric
from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.simulate import simulate
from gptjax.laws.table import Runs
from gptjax.laws.uncertainty import bootstrap_theta

DELTA, STARTS, REFITS, TURNS = 1e-3, 60, 20, 3


def points(rows: int) -> Runs:
    """Simulate runs over the ranges of the published ones, with a tenth of the errors three times as large."""
    rng = np.random.default_rng(0)
    flops, ratio = 10 ** rng.uniform(18.7, 21.5, rows), 10 ** rng.uniform(-0.3, 2.3, rows)
    params = np.sqrt(flops / (6 * ratio))
    runs = simulate(BESIROGLU_2024, params, flops / (6 * params), noise=0.005, seed=1)
    worse = np.where(rng.random(rows) < 0.1, 3.0, 1.0)
    exact = BESIROGLU_2024.loss(runs.params, runs.tokens)
    return Runs(**{**vars(runs), "loss": exact * (runs.loss / exact) ** worse})


def usual(runs: Runs, start: np.ndarray) -> tuple[float, np.ndarray]:
    """Fit as the published notebooks do: the sum of Huber losses, L-BFGS-B from one start, its own tolerances."""
    n, d, loss = np.log([runs.params, runs.tokens, runs.loss])

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        size = np.abs(np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e) - loss)
        return float(np.sum(np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))))

    found = minimize(objective, start, method="L-BFGS-B")
    return float(found.fun), found.x


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--json", type=Path)
    out = args.parse_args().json
    runs, choices = points(240), Choices(bootstrap=4000)
    fit = parametric(runs, choices)
    cold = seconds(lambda: (jax.clear_caches(), parametric(runs, choices)))
    bootstrap_theta(runs, fit, choices)
    rng = np.random.default_rng(0)
    starts = fit.form.starts[rng.choice(len(fit.form.starts), STARTS, replace=False)]
    ours: dict[str, list[float]] = {"grid": [], "bootstrap": []}
    theirs: dict[str, list[float]] = {"grid": [], "bootstrap": []}
    ends: list[float] = []
    for _ in range(TURNS):
        ours["grid"].append(seconds(lambda: parametric(runs, choices)))
        theirs["grid"].append(seconds(lambda: ends.extend(usual(runs, s)[0] for s in starts)) * 4500 / STARTS)
        ours["bootstrap"].append(seconds(lambda: bootstrap_theta(runs, fit, choices)))
        drawn = [runs.take(rng.integers(240, size=240)) for _ in range(REFITS)]
        theirs["bootstrap"].append(seconds(lambda d=drawn: [usual(r, fit.theta) for r in d]) * 4000 / REFITS)  # type: ignore[misc]
    large = points(100_000)
    parametric(large, choices)
    found: list[Parametric] = []
    whole = seconds(lambda: found.append(parametric(large, choices)))
    drawn_large = seconds(lambda: bootstrap_theta(large, found[0], Choices()))
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "versions": f"jax {jax.__version__}, scipy {scipy.__version__}, numpy {np.__version__}",
        "ours": {name: statistics.median(times) for name, times in ours.items()} | {"first grid, compiling": cold},
        "spread": {name: [min(times), max(times)] for name, times in ours.items()},
        "usual, scaled up": {name: statistics.median(times) for name, times in theirs.items()},
        "usual: share of starts within 1 % of the optimum": float(np.mean(np.array(ends) < 1.01 * fit.objective)),
        "ours: share of starts at the optimum": fit.share_at_best,
        "100,000 rows": {"grid": whole, f"{Choices().draws(100_000)} refits": drawn_large},
    }
    result["ratio"] = {name: result["usual, scaled up"][name] / result["ours"][name] for name in ours}  # type: ignore[index]
    both = sum(result["ours"][name] for name in ours)  # type: ignore[index]
    print(json.dumps(result, indent=1))
    print(f"4500 starts and 4000 refits: {both:.2f} s")
    if out:
        write_json(out, result)


if __name__ == "__main__":
    main()
