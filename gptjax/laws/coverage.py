"""How often the intervals hold what they claim: fit sweeps drawn from a known law and count."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws.approaches import BY_NAME, bootstrap
from gptjax.laws.codec import read
from gptjax.laws.fit import Choices
from gptjax.laws.isoflop import isoflop
from gptjax.laws.law import Law
from gptjax.laws.record import Covered
from gptjax.laws.simulate import simulate
from gptjax.laws.table import Floats
from gptjax.laws.uncertainty import judged, noise_of_one

COVERAGE_DRAWS = 200
MOST_SWEEPS, FEWEST_SWEEPS = 100, 20
MOST_ROWS = 5_000  # that a report simulates in all, some seconds of work


def affordable(rows: int) -> int:
    """Return how many sweeps of so many rows a report simulates; none where so few would say nothing."""
    sweeps = min(MOST_SWEEPS, MOST_ROWS // max(1, rows))
    return sweeps if sweeps >= FEWEST_SWEEPS else 0


def coverage(
    law: Law,
    params: ArrayLike,
    tokens: ArrayLike,
    *,
    noise: float,
    loss_se: Floats | None = None,
    sweeps: int = 200,
    choices: Choices | None = None,
    approaches: Sequence[str] = tuple(BY_NAME),
    seed: int = 0,
    extra: Mapping[str, Floats] | None = None,
    done: Callable[[], Any] = lambda: None,
) -> dict[str, Covered]:
    """Simulate sweeps of these (N, D) with noise of log loss, fit each, and count the 95 % intervals that hold a.

    Gives for each approach: `fitted` sweeps, those `refused` or degenerate, the `covered` share of the fitted with its
    own exact 95 % interval, the mean error of a (bias), its root mean square, and the mean width of the interval.
    `done` is called after each sweep. `extra` holds the columns that the law reads besides N and D.
    """
    choices = replace(choices or Choices(), bootstrap=COVERAGE_DRAWS)
    flops = 6 * np.asarray(params, dtype=np.float64) * np.asarray(tokens, dtype=np.float64)
    middles = {name: float(np.median(column)) for name, column in (extra or {}).items()}
    laws = law.held(middles).power_laws(float(flops.min()), float(flops.max()))
    if laws is None:
        raise BadInput("the law has no optimum within these runs, and so no exponent for an interval to hold")
    truth = laws[0].exponent
    errors: dict[str, list[float]] = {name: [] for name in approaches}
    held: dict[str, list[bool]] = {name: [] for name in approaches}
    widths: dict[str, list[float]] = {name: [] for name in approaches}
    for number in range(sweeps):
        runs = simulate(law, params, tokens, noise=noise, seed=seed + number, extra=extra)
        runs = runs if loss_se is None else replace(runs, loss_se=loss_se)
        by_budget = isoflop(runs, interp=choices.interp, window=choices.window)
        of_one = noise_of_one(runs, by_budget, choices.law_form)
        for name in approaches:
            fit = BY_NAME[name].fit(runs, choices, None, True)
            if fit.params_law is None or fit.status != "ok":
                continue
            draws = bootstrap(runs, fit, replace(choices, seed=sweeps + number), noise=of_one)
            ends = draws.interval(draws.params[:, 1])
            if ends is None or judged(fit, draws).status != "ok":
                continue
            errors[name].append(fit.params_law.exponent - truth)
            held[name].append(bool(ends[0] <= truth <= ends[1]))
            widths[name].append(float(ends[1] - ends[0]))
        done()
    found = {}
    for name in approaches:
        fitted, error = len(held[name]), np.array(errors[name])
        entry: dict[str, Any] = {"fitted": fitted, "refused": sweeps - fitted, "truth": truth}
        if fitted:
            from scipy.stats import binomtest  # slow to import, and not needed by a fit

            sure = binomtest(sum(held[name]), fitted).proportion_ci(0.95)
            entry |= {"covered": float(np.mean(held[name])), "covered_interval": [sure.low, sure.high]}
            entry |= {"bias": error.mean(), "rmse": np.sqrt(np.mean(error**2)), "width": np.mean(widths[name])}
        found[name] = read(Covered, plain(entry), f"coverage.{name}")
    return found


def describe(found: dict[str, Covered]) -> str:
    """Lay the counts out as a table."""
    lines = [f"{'approach':<12}{'fitted':>8}{'refused':>9}{'covered':>9}{'(95 %)':>16}"]
    lines[0] += f"{'bias of a':>11}{'rmse':>8}{'width':>8}"
    for name, entry in found.items():
        line = f"{name:<12}{entry.fitted:>8}{entry.refused:>9}"
        if entry.covered_interval:
            low, high = entry.covered_interval
            line += f"{entry.covered:>9.1%}{f'{low:.1%} to {high:.1%}':>16}"
            line += f"{entry.bias:>+11.4f}{entry.rmse:>8.4f}{entry.width:>8.4f}"
        lines.append(line)
    return "\n".join(lines)
