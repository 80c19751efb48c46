"""How often the intervals hold what they claim: fit sweeps drawn from a known law and count."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from gptjax.laws.envelope import envelope
from gptjax.laws.families import CHINCHILLA
from gptjax.laws.fit import APPROACHES, Approach, Choices, Fit
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.isoflop import isoflop
from gptjax.laws.parametric import FEW, parametric
from gptjax.laws.simulate import simulate
from gptjax.laws.table import Floats
from gptjax.laws.uncertainty import bootstrap, judged, noise_of_one

Json = dict[str, Any]
DRAWS = 200
MOST_SWEEPS, FEWEST_SWEEPS = 100, 20
MOST_ROWS = 5_000  # that a report simulates in all, some seconds of work


def affordable(rows: int) -> int:
    """Return how many sweeps of so many rows a report simulates; none where so few would say nothing."""
    sweeps = min(MOST_SWEEPS, MOST_ROWS // max(1, rows))
    return sweeps if sweeps >= FEWEST_SWEEPS else 0


def coverage(
    law: ChinchillaLaw,
    params: ArrayLike,
    tokens: ArrayLike,
    *,
    noise: float,
    loss_se: Floats | None = None,
    sweeps: int = 200,
    choices: Choices | None = None,
    approaches: Sequence[Approach] = APPROACHES,
    seed: int = 0,
    done: Callable[[], Any] = lambda: None,
) -> Json:
    """Simulate sweeps of these (N, D) with noise of log loss, fit each, and count the 95 % intervals that hold a.

    Gives for each approach: `fitted` sweeps, those `refused` or degenerate, the `covered` share of the fitted with its
    own exact 95 % interval, the mean error of a (bias), its root mean square, and the mean width of the interval.
    `done` is called after each sweep.
    """
    choices = replace(choices or Choices(), bootstrap=DRAWS)
    errors: dict[str, list[float]] = {name: [] for name in approaches}
    held: dict[str, list[bool]] = {name: [] for name in approaches}
    widths: dict[str, list[float]] = {name: [] for name in approaches}
    for number in range(sweeps):
        runs = simulate(law, params, tokens, noise=noise, seed=seed + number)
        runs = runs if loss_se is None else replace(runs, loss_se=loss_se)
        by_budget = isoflop(runs, interp=choices.interp, window=choices.window)
        of_one = noise_of_one(runs, by_budget)
        for name in approaches:
            fit: Fit = by_budget
            if name == "envelope":
                fit = envelope(runs)
            elif name == "parametric":
                fit = parametric(runs, choices, starts=CHINCHILLA.starts[FEW])
            if fit.params_law is None or fit.status != "ok":
                continue
            draws = bootstrap(runs, fit, replace(choices, seed=sweeps + number), noise=of_one)
            ends = draws.interval(draws.params[:, 1])
            if ends is None or judged(fit, draws).status != "ok":
                continue
            errors[name].append(fit.params_law.exponent - law.a)
            held[name].append(bool(ends[0] <= law.a <= ends[1]))
            widths[name].append(float(ends[1] - ends[0]))
        done()
    found: Json = {}
    for name in approaches:
        fitted, error = len(held[name]), np.array(errors[name])
        entry: Json = {"fitted": fitted, "refused": sweeps - fitted, "truth": law.a}
        if fitted:
            sure = binomtest(sum(held[name]), fitted).proportion_ci(0.95)
            entry |= {"covered": float(np.mean(held[name])), "covered_interval": [sure.low, sure.high]}
            entry |= {"bias": error.mean(), "rmse": np.sqrt(np.mean(error**2)), "width": np.mean(widths[name])}
        found[name] = entry
    return found


def describe(found: Json) -> str:
    """Lay the counts out as a table."""
    lines = [f"{'approach':<12}{'fitted':>8}{'refused':>9}{'covered':>9}{'(95 %)':>16}"]
    lines[0] += f"{'bias of a':>11}{'rmse':>8}{'width':>8}"
    for name, entry in found.items():
        line = f"{name:<12}{entry['fitted']:>8}{entry['refused']:>9}"
        if entry["fitted"]:
            low, high = entry["covered_interval"]
            line += f"{entry['covered']:>9.1%}{f'{low:.1%} to {high:.1%}':>16}"
            line += f"{entry['bias']:>+11.4f}{entry['rmse']:>8.4f}{entry['width']:>8.4f}"
        lines.append(line)
    return "\n".join(lines)
