"""How often 95 % intervals of the compute multiplier hold a planted one, and how often equal exponents are doubted.

    python benchmarks/compare.py [--pairs 200] [--only TEXT] [--json FILE]

Each line simulates so many pairs of ladders. Ladder b needs .8 of a's compute: everywhere where both have the same
exponents, in the middle of the budgets where alpha is 5 % larger and beta 2.5 % smaller. `paired` losses of one cell
share 80 % of the variance of their noise, those of `own` noise none, and ladders `apart` share no cell. The lines of
Kaplan's form are of laws that the comparison does not fit.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from gptjax.files import plain, write_json
from gptjax.laws.forms import ChinchillaLaw, KaplanLaw
from gptjax.laws.ladders.comparable import Ladder
from gptjax.laws.ladders.compared import compare_ladders
from gptjax.laws.ladders.comparison import Comparison, Interval
from gptjax.laws.published import BESIROGLU_2024, KAPLAN_2020
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import Runs

MULTIPLIER, SHARED, BENT, DRAWS = 0.8, 0.8, 0.05, 400
SMALL = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)  # as of the quick sweep
LARGE = "6e18 to 3e21", BESIROGLU_2024, (6e18, 3e21)
LITTLE = "1e11 to 3e12", SMALL, (1e11, 3e12)
FORMLESS = "Kaplan's form", KAPLAN_2020, (1e17, 3e19)

COLUMNS = (
    *("law", "design", "noise", "cells", "exponents"),
    *("held", "at the ends", "width", "shared", "isoFLOP", "points", "p < .05", "form doubted"),
)


@dataclass(frozen=True)
class Line:
    """Pairs of one kind."""

    name: str
    law: ChinchillaLaw | KaplanLaw
    flops: tuple[float, float]
    budgets: int
    sizes: int
    noise: float
    sharing: str  # paired, own, apart
    bent: bool

    def __str__(self) -> str:
        exponents = "other exponents" if self.bent else "same exponents"
        return f"{self.name} | {self.budgets} x {self.sizes} | {self.noise:.1%} | {self.sharing} | {exponents}"


def lines() -> Iterator[Line]:
    for name, law, flops in (LARGE, LITTLE):
        for shape in ((5, 7), (3, 5)):
            for noise in (0.004, 0.01):
                for sharing in ("paired", "own"):
                    for bent in (False, True):
                        yield Line(name, law, flops, *shape, noise, sharing, bent)
        yield Line(name, law, flops, 5, 7, 0.01, "apart", False)
    name, law, flops = FORMLESS
    for sharing in ("paired", "own"):
        yield Line(name, law, flops, 5, 7, 0.004, sharing, False)


def cheaper(line: Line) -> Any:
    """Give the law of ladder b: N and D of a are worth 1 / sqrt(multiplier) as much; bent about the middle budget."""
    law, worth = line.law, math.sqrt(MULTIPLIER)
    if isinstance(law, KaplanLaw):
        return replace(law, N_c=law.N_c * worth, D_c=law.D_c * worth)
    found = replace(law, A=law.A * worth**law.alpha, B=law.B * worth**law.beta)
    if not line.bent:
        return found
    middle = found.optimum(flops=MULTIPLIER * math.sqrt(line.flops[0] * line.flops[1]))
    n, d = law.alpha * BENT, -law.beta * BENT / 2
    return replace(
        found, alpha=law.alpha + n, beta=law.beta + d, A=found.A * middle.params**n, B=found.B * middle.tokens**d
    )


def simulated(line: Line, seed: int) -> tuple[Runs, Runs]:
    """Draw both ladders."""
    budgets = np.geomspace(*line.flops, line.budgets)
    other, share = cheaper(line), SHARED if line.sharing == "paired" else 0.0
    n, d = ladder(line.law, budgets, sizes=line.sizes)
    own = ladder(other, 1.2 * budgets, sizes=line.sizes, shift=0.5) if line.sharing == "apart" else (n, d)
    exact = (simulate(law, *cells, noise=0, seed=0) for law, cells in ((line.law, (n, d)), (other, own)))
    both, *each = np.random.default_rng(seed).standard_normal((3, len(n)))
    noisy = [line.noise * (math.sqrt(share) * both + math.sqrt(1 - share) * one) for one in each]
    one, other_runs = (replace(runs, loss=runs.loss * np.exp(e)) for runs, e in zip(exact, noisy, strict=True))
    return one, other_runs


def held(interval: Interval | None, truth: float) -> bool | None:
    """Say whether an interval holds the truth; None where there is no interval."""
    if interval is None:
        return None
    low, high = (-math.inf if interval[0] is None else interval[0]), (math.inf if interval[1] is None else interval[1])
    return low <= truth <= high


def true_multiplier(line: Line, flops: float) -> float:
    return cheaper(line).optimum(loss=line.law.optimum(flops=flops).loss).flops / flops


def count(line: Line, pairs: int) -> dict[str, Any]:
    """Compare so many pairs and count what held the truth."""
    found: dict[str, list[Any]] = {}
    refused = 0
    for seed in range(pairs):
        a, b = simulated(line, seed)
        compared: Comparison = compare_ladders([Ladder("a", a), Ladder("b", b)], bootstrap=DRAWS, seed=seed)
        if not compared.pairs:
            refused += 1
            continue
        (pair,) = compared.pairs
        truth = true_multiplier(line, pair.at)
        ends = [held(pair.along.interval[i], true_multiplier(line, pair.along.C[i])) for i in (0, -1)]
        said = {name: held(way.interval, truth) for name, way in pair.ways.items()}
        said |= {
            "ends": np.mean([bool(end) for end in ends]),
            "shared": held(pair.exponents_differ.multiplier_interval, truth),
        }
        said |= {"found different": pair.exponents_differ.p < 0.05, "correlation": pair.paired.correlation}
        said["form doubted"] = any("the form is not theirs" in note for note in pair.notes)
        low, high = pair.multiplier_interval or (None, None)
        said["width"] = math.log(high / low) if low and high else math.inf
        said["log error"] = math.log(pair.multiplier / truth) if pair.multiplier else math.inf
        for name, value in said.items():
            found.setdefault(name, []).extend([] if value is None else [value])
    sure = binomtest(sum(found["parametric"]), len(found["parametric"])).proportion_ci(0.95)
    dropped = ("width", "log error")
    return {
        "line": str(line),
        "compared": pairs - refused,
        "refused": refused,
        "parametric_interval": [sure.low, sure.high],
        "width": float(np.median(found["width"])),
        "sd": float(np.std(found["log error"])),
        "bias": float(np.mean(found["log error"])),
        "isoflop_fitted": len(found["isoflop"]),
        **{name: float(np.mean(values)) for name, values in found.items() if values and name not in dropped},
    }


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--pairs", type=int, default=200)
    args.add_argument("--only", default="", help="lines that hold this, as '3 x 5 | 1.0%%'")
    args.add_argument("--json", type=Path)
    given = args.parse_args()
    print(f"| {' | '.join(COLUMNS)} |")
    table = []
    for line in lines():
        if given.only not in str(line):
            continue
        row = count(line, given.pairs)
        table.append(row)
        of = f" of {row['isoflop_fitted']}" if row["isoflop_fitted"] < row["compared"] else ""
        points = f"{row['points']:.1%}" if "points" in row else "none"
        shares = [f"{row[name]:.1%}" for name in ("parametric", "ends", "shared", "isoflop", "found different")]
        held_at, ends, shared, isoflop, different = shares
        cells = [held_at, ends, f"{row['width']:.2f}", shared, isoflop + of, points, different]
        cells.append(f"{row['form doubted']:.0%}")
        print(f"| {line} | {' | '.join(cells)} |", flush=True)
    if given.json:
        write_json(given.json, plain(table))


if __name__ == "__main__":
    main()
