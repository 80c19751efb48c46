"""How often a nominal 95 % interval of a holds the truth, on sweeps simulated from a planted law.

    python benchmarks/coverage.py [--sweeps 200] [--only DESIGN] [--claims nothing] [--json FILE]

For each design of runs, at three levels of noise: what a table says of the noise of its losses is nothing, a quarter of
the truth, or twice the truth. Then what the number of validation windows does to an isoFLOP interval: all runs share
the windows, and the table has `loss_se` alone or `loss_se_paired` too.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.files import plain, write_json
from gptjax.laws.approaches import BY_NAME, bootstrap
from gptjax.laws.codec import written
from gptjax.laws.coverage import coverage
from gptjax.laws.fit import Choices
from gptjax.laws.isoflop import isoflop
from gptjax.laws.published import BESIROGLU_2024 as LAW
from gptjax.laws.record import Covered
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import PAIRED, Floats
from gptjax.laws.uncertainty import noise_of_one
from gptjax.run.validation import paired_errors

NOISES = (0.004, 0.01, 0.02)  # of log loss
CLAIMS = {"nothing": None, "a quarter": 0.25, "twice": 2.0}  # of the truth, in column loss_se
SHARED, OWN, SEEDS = 0.5, 0.1, 0.004  # sd of a window's loss in nats, of the run's own part, and of log loss by seed


def horizons() -> tuple[Floats, Floats]:
    """Lay out sizes that are each trained for five numbers of tokens a parameter: no two runs have one budget."""
    sizes = LAW.params_law(1e20) * 1.6 ** (np.arange(8) - 3.5)
    n, ratio = (grid.ravel() for grid in np.meshgrid(sizes, 20 * 3.0 ** np.arange(-2, 3)))
    return n, n * ratio


def once() -> tuple[Floats, Floats]:
    """Lay out sizes chosen anew for each budget, so that none has two runs and an envelope has no curves."""
    c = np.geomspace(6e18, 3e21, 5)
    n = LAW.params_law(c)[:, None] * 1.5 ** np.arange(-3, 4)
    return n.ravel(), (c[:, None] / (6 * n)).ravel()


def anew(budgets: int, sizes: int, bracket: float) -> tuple[Floats, Floats]:
    """Lay out many sizes within so many times the optimum of each budget, other sizes at each."""
    c = np.geomspace(1e18, 1e22, budgets)
    n = LAW.params_law(c)[:, None] * np.geomspace(1 / bracket, bracket, sizes)
    return n.ravel(), (c[:, None] / (6 * n)).ravel()


def scattered() -> tuple[Floats, Floats]:
    """Lay out 240 runs at random in log C, and in log N within 6x of the optimum."""
    rng = np.random.default_rng(0)
    c = np.exp(rng.uniform(np.log(6e18), np.log(3e21), 240))
    n = LAW.params_law(c) * np.exp(rng.uniform(-np.log(6), np.log(6), 240))
    return n, c / (6 * n)


def checkpoints() -> tuple[Floats, Floats]:
    """Lay out 20 sizes, each with 20 losses along its one training run."""
    n = np.repeat(LAW.params_law(1e20) * np.geomspace(1 / 30, 30, 20), 20)
    return n, n * np.tile(np.geomspace(2, 200, 20), 20)


DESIGNS = {
    "grid of 7 sizes, 5 budgets": partial(ladder, LAW, np.geomspace(6e18, 3e21, 5)),
    "grid of 4 sizes, 6 budgets": partial(ladder, LAW, np.geomspace(6e18, 3e21, 6), sizes=4),
    "grid of 5 sizes, 3 budgets": partial(ladder, LAW, np.geomspace(6e18, 3e21, 3), sizes=5),
    "8 sizes, 5 horizons": horizons,
    "each size once": once,
    "dense: 10 budgets x 12 sizes within 4x": partial(anew, 10, 12, 4.0),
    "dense: 10 budgets x 12 sizes within 10x": partial(anew, 10, 12, 10.0),
    "dense: 5 budgets x 40 sizes within 10x": partial(anew, 5, 40, 10.0),
    "dense: 240 scattered runs": scattered,
    "large: 50 budgets x 100 sizes within 10x": partial(anew, 50, 100, 10.0),
}


def cover(sweeps: int, only: str, noises: list[float], claims: str, approaches: list[str]) -> list[dict[str, Any]]:
    """Count coverage for each design, noise and claim."""
    table = []
    for name, design in DESIGNS.items():
        for noise in noises if only in name else ():
            n, d = design()
            for claim, factor in CLAIMS.items():
                if claims not in claim:
                    continue
                said = None if factor is None else factor * noise * LAW.loss(n, d)
                unread = () if said is None else ("parametric",)  # its fit does not read loss_se
                asked = [approach for approach in approaches if approach not in unread]
                found = coverage(LAW, n, d, noise=noise, loss_se=said, sweeps=sweeps, approaches=asked)
                table.append({"design": name, "noise": noise, "loss_se says": claim, "approaches": written(found)})
                cells = [_say(found[approach]) if approach in found else "" for approach in BY_NAME]
                print(f"| {name} | {noise:.1%} | {claim} | {' | '.join(cells)} |", flush=True)
    return table


def _say(entry: Covered | dict[str, Any]) -> str:
    fitted, covered, width = (
        (entry[key] if isinstance(entry, dict) else getattr(entry, key)) for key in ("fitted", "covered", "width")
    )
    return f"{covered:.1%} of {fitted}, {width:.4f}" if fitted else "none"


def windows(sweeps: int) -> list[dict[str, Any]]:
    """Evaluate sweeps on so many shared windows, and give the coverage and mean width of isoFLOP's interval of a."""
    n, d = DESIGNS["grid of 7 sizes, 5 budgets"]()
    table = []
    for count in (2048, 512, 128):
        for column in ("loss_se", PAIRED):
            held, widths, errors = [], [], []
            for seed in range(sweeps):
                rng = np.random.default_rng(seed)
                runs = simulate(LAW, n, d, noise=SEEDS, seed=seed)
                level = runs.loss[:, None] / runs.loss.mean()  # a hard window costs a bad model more
                each = level * (SHARED * rng.standard_normal(count)) + OWN * rng.standard_normal((len(n), count))
                shares = (each - each.mean(axis=1, keepdims=True)) / count
                se = np.linalg.norm(shares, axis=1) * np.sqrt(count / (count - 1))
                paired = paired_errors(shares) if column == PAIRED else np.full(len(n), np.nan)
                runs = replace(runs, loss=runs.loss + each.mean(axis=1), loss_se=se, facts={PAIRED: paired})
                errors.append(runs.evaluation_noise)
                fit = isoflop(runs)
                draws = bootstrap(runs, fit, Choices(bootstrap=200, seed=seed), noise=noise_of_one(runs, fit))
                ends = draws.interval(draws.params[:, 1])
                if ends is not None:
                    held.append(bool(ends[0] <= LAW.a <= ends[1]))
                    widths.append(float(np.ptp(ends)))
            line = {"windows": count, "column": column, "error": np.mean(errors), "fitted": len(held)}
            line |= {"covered": np.mean(held) if held else None, "width": np.mean(widths) if held else None}
            table.append(line)
            print(f"| {count} | {column} | {np.mean(errors):.4f} | {_say(line)} |", flush=True)
    return table


def curves(sweeps: int) -> list[dict[str, Any]]:
    """Give losses of one run a common error and a small one of their own, and draw rows or whole runs."""
    n, d = checkpoints()
    curve = np.repeat(np.arange(20), 20)
    table = []
    for name in BY_NAME:
        for known in (False, True):
            held, widths = [], []
            for seed in range(sweeps):
                rng = np.random.default_rng(seed)
                error = SEEDS * rng.standard_normal(20)[curve] + 0.25 * SEEDS * rng.standard_normal(len(n))
                runs = simulate(LAW, n, d, noise=0, seed=0)
                runs = replace(runs, loss=runs.loss * np.exp(error), curve=curve if known else None)
                choices = Choices(bootstrap=200, seed=seed)
                fit = BY_NAME[name].fit(runs, choices, None, True)
                draws = bootstrap(runs, fit, choices, noise=noise_of_one(runs, isoflop(runs)))
                ends = draws.interval(draws.params[:, 1])
                if fit.status == "ok" and ends is not None:
                    held.append(bool(ends[0] <= LAW.a <= ends[1]))
                    widths.append(float(np.ptp(ends)))
            line = {"approach": name, "runs known": known, "fitted": len(held)}
            line |= {"covered": np.mean(held) if held else None, "width": np.mean(widths) if held else None}
            table.append(line)
            print(f"| checkpoints | {name} | {'runs' if known else 'rows'} | {_say(line)} |", flush=True)
    return table


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--sweeps", type=int, default=200)
    args.add_argument("--only", default="", help="designs whose name holds this, or windows")
    args.add_argument("--noises", nargs="+", type=float, default=NOISES, help="of log loss")
    args.add_argument("--claims", default="", help="claims that hold this: nothing, a quarter or twice")
    args.add_argument("--approaches", nargs="+", choices=list(BY_NAME), default=list(BY_NAME))
    args.add_argument("--json", type=Path)
    given = args.parse_args()
    print("covered of those fitted, mean width:")
    result = {"coverage": cover(given.sweeps, given.only, given.noises, given.claims, given.approaches)}
    if given.only in ("", "windows"):
        result["windows"] = windows(given.sweeps)
    if given.only in ("", "checkpoints"):
        result["checkpoints"] = curves(given.sweeps)
    if given.json:
        write_json(given.json, plain(result))


if __name__ == "__main__":
    main()
