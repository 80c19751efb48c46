"""Sweeps drawn from a known law: for planning, for self-tests, and to count how often an interval covers the truth."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from gptjax.errors import BadInput
from gptjax.laws.law import Law
from gptjax.laws.table import Floats, Runs


def ladder(
    law: Law, budgets: ArrayLike, *, sizes: int = 7, bracket: float = 4.0, shift: float = 0.0
) -> tuple[Floats, Floats]:
    """Lay an isoFLOP grid: at each budget, `sizes` consecutive rungs of one geometric ladder of N, the nearest to N*.

    They reach from about N*/bracket to N* bracket, to half a rung, and budgets share sizes, so that a size can train
    one trunk for several. `shift` moves the ladder, in rungs. Gives (params, tokens), budget by budget, with 6ND = C.
    BadInput for fewer than 2 sizes, a bracket not above 1 or a budget not above 0.
    """
    c = np.atleast_1d(np.asarray(budgets, dtype=np.float64))
    if sizes < 2 or not bracket > 1 or not (np.isfinite(c) & (c > 0)).all():
        raise BadInput(f"{sizes} sizes within {bracket:g}x of budgets {c}: give 2 or more, a factor above 1, FLOPs")
    step = 2 * np.log(bracket) / (sizes - 1)
    best = np.log([law.optimum(flops=float(budget)).params for budget in c])
    middle = (best.max() + best.min()) / 2 - (0 if sizes % 2 else step / 2) + shift * step
    lowest = np.round((best - middle) / step - (sizes - 1) / 2)
    params = np.exp(middle + step * (lowest[:, None] + np.arange(sizes)))
    return params.ravel(), (c[:, None] / (6 * params)).ravel()


def losses(
    law: Law,
    params: ArrayLike,
    tokens: ArrayLike,
    *,
    noise: float,
    seed: int,
    draws: int = 1,
    growth: float = 0.0,
    extra: Mapping[str, Floats] | None = None,
) -> Floats:
    """Draw the losses (draws, rows) of a law under log-normal noise.

    noise is the standard deviation of the log loss of one run, .003 to .02 in practice; with `growth` it is that of the
    least loss, and grows as loss^growth. `extra` holds the columns that the law reads besides N and D.
    """
    if not noise >= 0:
        raise BadInput(f"noise {noise:g} is a standard deviation of log loss; give 0 or more, as 0.01")
    known = {"params": params, "tokens": tokens, **(extra or {})}
    exact = np.atleast_1d(law.loss(*(known[name] for name in law.columns)))
    sd = noise * (exact / exact.min()) ** growth
    return exact * np.exp(sd * np.random.default_rng(seed).standard_normal((draws, len(exact))))


def simulate(
    law: Law,
    params: ArrayLike,
    tokens: ArrayLike,
    *,
    noise: float,
    seed: int,
    loss_se: float | None = None,
    growth: float = 0.0,
    extra: Mapping[str, Floats] | None = None,
) -> Runs:
    """Draw one sweep as a table of runs; loss_se, in nats, fills its column, and None leaves it unknown."""
    n, d = (np.atleast_1d(np.asarray(values, dtype=np.float64)) for values in (params, tokens))
    (loss,) = losses(law, n, d, noise=noise, seed=seed, growth=growth, extra=extra)
    return Runs(
        run=tuple(f"{i}-{size:.4g}" for i, size in enumerate(n)),
        params=n,
        tokens=d,
        flops=6 * n * d,
        loss=loss,
        loss_se=np.full(len(n), np.nan if loss_se is None else loss_se),
        seed=("",) * len(n),
        convention="simulated, C = 6ND",
        facts=dict(extra or {}),
    )
