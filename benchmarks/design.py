"""Does a designed sweep know more? Sweeps simulated at equal FLOPs and equal runs, fitted, and compared with the truth.

    python benchmarks/design.py [--json FILE]

One CPU core, under two minutes. A uniform isoFLOP grid (5 budgets over 30x, 7 sizes within 4x or 3x of N*) against
`propose` for the exponent a, and for the loss at 10 times the largest uniform budget, each planned with the true law
and with a wrong one; then a grid repeated whole against `next_cells` for the same FLOPs.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.files import plain, write_json
from gptjax.laws.fit import Choices
from gptjax.laws.forms import CHINCHILLA, ChinchillaLaw
from gptjax.laws.isoflop import isoflop
from gptjax.laws.parametric import parametric, refit
from gptjax.laws.planning.design import propose
from gptjax.laws.planning.extension import next_cells
from gptjax.laws.planning.precision import Goal, standard_errors
from gptjax.laws.published import BESIROGLU_2024, HOFFMANN_2022
from gptjax.laws.simulate import ladder, losses, simulate
from gptjax.laws.table import Floats

QUICK = ChinchillaLaw(214, 108, 1.70, 0.539, 0.349)  # experiments/README.md: a CPU sweep at 1e11 to 3e12 FLOPs
CASES = (  # the truth, a law that one might have planned with instead, FLOPs, sizes within this factor of N*
    ("besiroglu", BESIROGLU_2024, HOFFMANN_2022, 1e21, 4.0),
    ("hoffmann", HOFFMANN_2022, BESIROGLU_2024, 1e21, 4.0),
    ("quick", QUICK, ChinchillaLaw(100, 150, 1.6, 0.46, 0.38), 4e13, 3.0),  # 4 would go below a token a parameter
)
BUDGETS, SIZES, SPAN, NOISE = 5, 7, 30.0, 0.01
RUNS = BUDGETS * SIZES
DRAWS, ISOFLOP_DRAWS, PLANS = 400, 60, 4
STARTS = CHINCHILLA.starts[::9]


@dataclass(frozen=True)
class Score:
    """Errors about the truth: root mean squares; isoFLOP's of a where it gave one."""

    case: str
    sweep: str
    planned_with: str
    runs: int
    flops: float
    a: float
    a_predicted: float
    a_median: float
    log_loss: float
    log_loss_predicted: float
    degenerate: float
    isoflop_a: float
    isoflop_refused: float


def uniform(law: ChinchillaLaw, flops: float, bracket: float) -> tuple[Floats, Floats]:
    relative = np.geomspace(1 / SPAN, 1, BUDGETS)
    return ladder(law, flops * relative / (SIZES * relative.sum()), sizes=SIZES, bracket=bracket)


def designed(law: ChinchillaLaw, flops: float, bracket: float, goal: Goal, target: float) -> tuple[Floats, Floats]:
    plan = propose(law, flops, noise=NOISE, goal=goal, target_flops=target, span=SPAN, bracket=bracket, runs=RUNS)
    table = np.array([(cell.params, cell.tokens) for cell in plan.cells for _ in range(cell.seeds)])
    return table[:, 0], table[:, 1]


def fitted(truth: ChinchillaLaw, params: Floats, tokens: Floats, seed: int, draws: int, growth: float = 0.0) -> Floats:
    """Fit simulated sweeps; the better of a fit from the truth and one from the global fit of a first sweep."""
    first = simulate(truth, params, tokens, noise=NOISE, seed=seed, growth=growth)
    drawn = losses(truth, params, tokens, noise=NOISE, seed=seed + 1, draws=draws, growth=growth)
    everywhere = parametric(first, starts=STARTS)
    thetas, values = zip(
        *(
            refit(first, everywhere, Choices(), losses=drawn, starts=np.tile(start, (draws, 1)))
            for start in (truth.theta, everywhere.theta)
        ),
        strict=True,
    )
    return np.where((values[0] <= values[1])[:, None], *thetas)


def score(
    case: str,
    sweep: str,
    planned_with: str,
    truth: ChinchillaLaw,
    plans: list[tuple[Floats, Floats]],
    target: float,
    growth: float = 0.0,
) -> Score:
    """Simulate and fit each plan an equal number of times, and compare with the truth."""
    rows = [fitted(truth, n, d, 1000 * i, DRAWS // len(plans), growth) for i, (n, d) in enumerate(plans)]
    theta = np.concatenate(rows)
    sane = ((theta[:, 3:] > 0) & (theta[:, 3:] <= 2)).all(axis=1)
    laws = [CHINCHILLA.at(row) for row in theta[sane]]
    of_a = np.array([law.a - truth.a for law in laws])
    best = truth.optimum(flops=target)
    of_loss = np.array([np.log(law.loss(best.params, best.tokens) / best.loss) for law in laws])
    by_budget = [
        isoflop(simulate(truth, *plans[i % len(plans)], noise=NOISE, seed=i, growth=growth)).params_law
        for i in range(ISOFLOP_DRAWS)
    ]
    found = np.array([law.exponent - truth.a for law in by_budget if law])
    expected = [standard_errors(truth, n, d, noise=NOISE, target_flops=target) for n, d in plans]
    flops = float(np.mean([np.sum(6 * n * d) for n, d in plans]))
    return Score(
        case, sweep, planned_with, len(plans[0][0]), flops, rms(of_a), rms(np.array([e.a for e in expected])),
        float(np.median(np.abs(of_a))), rms(of_loss), rms(np.array([e.loss for e in expected])),
        1 - float(sane.mean()), rms(found), 1 - len(found) / ISOFLOP_DRAWS,
    )  # fmt: skip


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else np.nan


def first_sweeps(case: str, truth: ChinchillaLaw, wrong: ChinchillaLaw, flops: float, bracket: float) -> list[Score]:
    found = []
    for name, law in (("truth", truth), ("wrong law", wrong)):
        n, d = uniform(law, flops, bracket)
        target = 10 * float((6 * n * d).max())
        sweeps = {"uniform": (n, d)}
        for goal in ("a", "loss"):
            sweeps[f"for {goal}"] = designed(law, flops, bracket, goal, target)
        found += [score(case, sweep, name, truth, [cells], target) for sweep, cells in sweeps.items()]
        if name == "truth":  # noise that a design did not expect: about three times larger at the highest loss
            found += [score(case, sweep, "noise grows", truth, [cells], target, 3.0) for sweep, cells in sweeps.items()]
    return found


def next_sweeps(case: str, truth: ChinchillaLaw, flops: float, bracket: float) -> list[Score]:
    """Spend the FLOPs of a uniform grid once more, planned with what a fit to simulated sweeps of it says."""
    n, d = uniform(truth, flops / 2, bracket)
    target = 10 * float((6 * n * d).max())
    found = [score(case, "grid twice", "-", truth, [(np.tile(n, 2), np.tile(d, 2))], target)]
    laws = [CHINCHILLA.at(theta) for theta in fitted(truth, n, d, 7, PLANS)]
    for goal in ("a", "loss"):
        plans = []
        for law in laws:
            cells = next_cells(law, n, d, flops / 2, noise=NOISE, goal=goal, target_flops=target, count=RUNS).cells
            more = np.array([(cell.params, cell.tokens) for cell in cells])
            plans.append((np.append(n, more[:, 0]), np.append(d, more[:, 1])))
        found.append(score(case, f"next for {goal}", "fit to grid", truth, plans, target))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    begun = time.perf_counter()
    found: list[Score] = []
    for case, truth, wrong, flops, bracket in CASES:
        found += first_sweeps(case, truth, wrong, flops, bracket) + next_sweeps(case, truth, flops, bracket)
    print(f"{RUNS} runs a sweep, noise {NOISE:g}, {DRAWS} simulated sweeps a line; RMSE, predicted in brackets")
    print(f"{'law':10}{'sweep':14}{'planned with':12}{'runs':>5}{'FLOPs':>10}{'a':>15}{'ratio':>7}{'log loss':>18}"
          f"{'ratio':>7}{'degenerate':>11}{'isoFLOP a':>11}{'refused':>8}")  # fmt: skip
    for line in found:
        if line.sweep in ("uniform", "grid twice"):
            base = line
        print(f"{line.case:10}{line.sweep:14}{line.planned_with:12}{line.runs:5}{line.flops:10.3g}"
              f"{line.a:8.4f} ({line.a_predicted:.3f}){line.a / base.a:6.2f}"
              f"{line.log_loss:10.4f} ({line.log_loss_predicted:.4f}){line.log_loss / base.log_loss:6.2f}"
              f"{line.degenerate:11.1%}{line.isoflop_a:11.4f}{line.isoflop_refused:8.0%}")  # fmt: skip
    seconds = time.perf_counter() - begun
    print(f"{seconds:.0f} s")
    if path:
        write_json(path, plain({"seconds": seconds, "noise": NOISE, "draws": DRAWS, "scores": found}))


if __name__ == "__main__":
    main()
