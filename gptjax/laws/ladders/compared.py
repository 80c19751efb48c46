"""Compare ladders: fit each, and say what compute one needs for another's loss, in three ways and a verdict."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import fdtrc, stdtrit

from gptjax.errors import BadInput
from gptjax.laws.fit import MIN_DRAWS, TRUSTED_FREEDOM, Choices
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.ladders.comparable import Ladder, unknown, unlike
from gptjax.laws.ladders.comparison import (
    UNITS,
    Along,
    ComparedLadder,
    Comparison,
    ComparisonSettings,
    Exponents,
    ExponentTest,
    Interval,
    LadderPair,
    PairedCells,
    RefusedPair,
    Way,
    times_words,
    verdict,
)
from gptjax.laws.ladders.evidence import Estimate, Parabolas, by_isoflop, by_points, parabolas
from gptjax.laws.ladders.exponents import SharedFit, share_exponents
from gptjax.laws.ladders.multiplier import (
    NEAR,
    Bootstrapped,
    Frontiers,
    Rung,
    bootstrapped,
    log_multiplier,
    paired_cells,
    percentiles,
    rung,
    shared_range,
)
from gptjax.laws.law import Floats
from gptjax.laws.table import Runs
from gptjax.laws.uncertainty import LEVELS

POINTS_ALONG = 25
WIDE_RATIO = 1.1  # C over 6ND may vary by this factor before it is said that the law's optimum is of 6ND
MISFIT, SURE = 1.3, 1e-3  # a law's scatter over that about parabolas, and the p of it, from which its form is doubted
NARROW = 2.0  # FLOPs from least to largest: a shorter range is said to be short
HEADLINE = "parametric"
WHY = (
    "it compares optima, uses every row near the frontiers, and its interval held planted multipliers as often as it "
    "claims; isoFLOP minima assume no form, use fewer rows and need a minimum at each budget; equal cells say "
    "nothing of what a ladder gains by its own best D/N"
)


def compare_ladders(
    ladders: Sequence[Ladder],
    *,
    metric: str = "loss",
    convention: str = "",
    bootstrap: int = 0,
    seed: int = 0,
    by: str = "",
) -> Comparison:
    """Compare every later ladder with the first: the compute that it needs for the same loss, with 95 % intervals.

    `metric` is loss (nats a token) or bits_per_byte, `convention` counts N and C by name, `bootstrap` is the number of
    draws (0: 1000), `by` the column that told the ladders apart, for the record. A pair that cannot be compared is
    listed in `refused`. BadInput where fewer than two ladders are given, two have one name, or a setting is not known.
    """
    if metric not in UNITS:
        raise BadInput(f"metric {metric!r} is not known; use one of {', '.join(UNITS)}")
    if len(ladders) < 2:
        given = f"the one ladder {ladders[0].name!r}" if ladders else "no ladder"
        raise BadInput(f"{given} is given; a comparison takes two or more")
    names = [ladder.name for ladder in ladders]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"two ladders are named {twice[0]!r}; give each its own name")
    choices = Choices(convention=convention, bootstrap=bootstrap, seed=seed)
    if 0 < bootstrap < MIN_DRAWS:
        raise BadInput(f"{bootstrap} draws give no interval: a 95 % interval needs {MIN_DRAWS} draws or more")
    draws = choices.draws(max(len(ladder.runs) for ladder in ladders))
    faults: dict[str, str] = {}
    counted: dict[str, Ladder] = {}
    for ladder in ladders:
        try:
            counted[ladder.name] = _counted(ladder, metric, choices)
        except BadInput as error:
            faults[ladder.name] = f"{ladder.name}: {error}"
    rungs: dict[str, Rung] = {}

    def fitted(ladder: Ladder) -> Rung:
        if ladder.name not in rungs:
            rungs[ladder.name] = rung(ladder.name, ladder.runs)
        return rungs[ladder.name]

    pairs, refused = [], []
    first, *others = names
    for name in others:
        reasons = [faults[one] for one in (first, name) if one in faults]
        found: LadderPair | None = None
        if not reasons:
            a, b = counted[first], counted[name]
            reasons = [*unlike(a, b, metric)]
            if not reasons:
                both = fitted(a), fitted(b)
                reasons = [reason for one in both for reason in _no_law(one)]
                outcome = None if reasons else _pair(both, (a.runs, b.runs), draws, seed)
                if isinstance(outcome, str):
                    reasons = [outcome]
                elif outcome:
                    found = replace(outcome, notes=[*unknown(a, b, metric, bool(by)), *outcome.notes])
        if found:
            pairs.append(found)
        else:
            refused.append(RefusedPair(first, name, reasons))
    compared = {one for pair in pairs for one in (pair.a, pair.b)}
    return Comparison(
        pairs,
        refused,
        {name: _summary(rungs[name], len(counted[name].runs)) for name in names if name in compared},
        ComparisonSettings(metric, by, convention, draws, seed),
    )


def _counted(ladder: Ladder, metric: str, choices: Choices) -> Ladder:
    """Give the ladder with the rows, counts and losses that are compared."""
    runs = ladder.runs
    if metric == "bits_per_byte":
        bits = runs.fact(metric)
        if np.isnan(bits).any():
            what = "no column bits_per_byte" if np.isnan(bits).all() else "rows without bits_per_byte"
            raise BadInput(f"it has {what}; add loss / ln 2 over the mean bytes of a token, or compare by loss")
        runs = replace(runs, loss=bits, loss_se=runs.loss_se * bits / runs.loss)
    return replace(ladder, runs=choices.rows(runs))


def _no_law(one: Rung) -> Iterator[str]:
    if one.fit.status != "ok":
        yield f"{one.name} has no law to compare: it is {one.fit.status} ({'; '.join(one.fit.reasons)})"


def _pair(both: tuple[Rung, Rung], runs: tuple[Runs, Runs], draws: int, seed: int) -> LadderPair | str:
    """Compare two ladders; a text says why that cannot be."""
    a, b = both
    found = bootstrapped(a, b, draws, seed)
    if found.failed > 0.5:
        return f"{found.failed:.0%} of the draws give no law of {a.name} or {b.name}; add budgets or repeated runs"
    span = shared_range(a, b, found)
    if span is None:
        return f"the frontiers of {a.name} and {b.name} share no loss within their rows; add budgets until they do"
    log_at = sum(span) / 2
    at = float(np.exp(log_at))
    point = np.array([log_at])
    headline = Estimate(
        float(log_multiplier(found.a, found.b, point)[0, 0]),
        _pair_of(percentiles(log_multiplier(found.drawn_a, found.drawn_b, point))[:, 0]),
        len(a.rows) + len(b.rows),
    )
    curves = parabolas(runs[0]), parabolas(runs[1])
    test = share_exponents(a, b, found.noise)
    ways = {
        HEADLINE: _way(headline),
        "isoflop": _way(by_isoflop(curves, paired_cells(*runs), log_at, draws, seed)),
        "points": _way(by_points(a, b, found, log_at)),
    }
    along = _along(found, span, np.log(b.rows.flops))
    cells = PairedCells(len(found.noise.cells[0]), found.noise.correlation)
    claimed = float(np.exp(span[0])), float(np.exp(span[1]))
    quoted = ways[HEADLINE]
    pair = LadderPair(
        a.name, b.name, quoted.multiplier, quoted.interval, at, claimed, along, _tested(both, test, log_at), HEADLINE,
        WHY, ways, cells, "", [*_against(both, found, ways, claimed), *_misfits(both, curves)],
    )  # fmt: skip
    return replace(pair, verdict=verdict(pair))


def _pair_of(ends: Floats) -> tuple[float, float]:
    return float(ends[0]), float(ends[1])


def _times(log_value: float) -> float | None:
    """Turn the log of a multiplier into it; None where it is no finite number."""
    with np.errstate(over="ignore"):
        value = float(np.exp(log_value))
    return value if math.isfinite(value) else None


def _interval(low: float, high: float) -> Interval | None:
    return None if math.isnan(low) or math.isnan(high) else (_times(low), _times(high))


def _way(one: Estimate) -> Way:
    if one.reason:
        return Way(None, None, one.count, one.reason)
    value, listed = _times(one.value), len(one.each[0]) > 0
    reason = "" if value is not None else "the other ladder never has this loss"
    c, each = ([float(x) for x in np.exp(logs)] if listed else None for logs in one.each)
    return Way(value, _interval(*one.ends), one.count, reason, c, each)


def _along(found: Bootstrapped, span: tuple[float, float], b_log_c: Floats) -> Along:
    log_c = np.linspace(*span, POINTS_ALONG)
    times = log_multiplier(found.a, found.b, log_c)[0]
    ends = percentiles(log_multiplier(found.drawn_a, found.drawn_b, log_c)).T
    loss = found.a.losses(log_c)[0]
    difference = found.b.losses(log_c)[0] - loss
    differences = percentiles(found.drawn_b.losses(log_c) - found.drawn_a.losses(log_c)).T
    inside = (log_c >= b_log_c.min() - 1e-9) & (log_c <= b_log_c.max() + 1e-9)
    return Along(
        np.exp(log_c).tolist(),
        [_times(value) for value in times],
        [_interval(*each) for each in ends],
        loss.tolist(),
        [float(value) if known else None for value, known in zip(difference, inside, strict=True)],
        [_pair_of(each) if known else None for each, known in zip(differences, inside, strict=True)],
    )


def _tested(both: tuple[Rung, Rung], test: SharedFit, log_at: float) -> ExponentTest:
    """Write the test down, with the multiplier under shared exponents and its interval by the delta method."""

    def multiplier(theta: Floats) -> float:
        a, b = (Frontiers.of(part[None], one.over_6nd) for part, one in zip((theta[:5], theta[5:]), both, strict=True))
        return float(log_multiplier(a, b, np.array([log_at]))[0, 0])

    value = multiplier(test.theta)
    step = 1e-5
    slope = np.array([(multiplier(test.theta + step * e) - multiplier(test.theta - step * e)) / (2 * step)
                      for e in np.eye(10)])  # fmt: skip
    half = stdtrit(test.freedom, LEVELS[1]) * math.sqrt(max(0.0, slope @ test.covariance @ slope))
    return ExponentTest(
        p=test.p,
        of="one alpha and one beta of L = E + A/N^alpha + B/D^beta for both",
        F=test.F,
        freedom=(2, test.freedom),
        apart={one.name: Exponents(float(one.fit.theta[3]), float(one.fit.theta[4])) for one in both},
        shared=Exponents(float(test.theta[3]), float(test.theta[4])),
        multiplier=_times(value),
        multiplier_interval=_interval(value - half, value + half) if math.isfinite(half) else None,
    )


def _against(
    both: tuple[Rung, Rung], found: Bootstrapped, ways: dict[str, Way], claimed: tuple[float, float]
) -> Iterator[str]:
    """Say what speaks against the headline."""
    for one in both:
        if one.far:
            rows = "1 row" if one.far == 1 else f"{one.far} rows"
            yield f"{rows} of {one.name} far above its frontier (predicted excess over {NEAR:.0%}): not in its law"
        off = one.rows.flops / (6 * one.rows.params * one.rows.tokens)
        if off.max() > WIDE_RATIO * off.min():
            yield (f"C over 6ND of {one.name} varies from {off.min():.2f} to {off.max():.2f}; its law takes the median "
                   "for all, so optima are those of 6ND")  # fmt: skip
        yield from (f"{one.name}: {reason}" for reason in one.fit.reasons)
    if found.failed > 0.05:
        yield f"{found.failed:.0%} of the draws give no law and are left out: the interval is too narrow"
    if claimed[1] < NARROW * claimed[0]:
        yield f"both reach the same losses over {claimed[1] / claimed[0]:.2g}x of compute only; add budgets"
    quoted = ways[HEADLINE].interval
    for name, way in ways.items():
        if name == HEADLINE or not quoted or not way.interval or None in (*quoted, *way.interval):
            continue
        (low, high), (least, most) = quoted, way.interval
        if least > high or most < low:  # type: ignore[operator]
            yield f"{name} says {times_words(way.multiplier, way.interval)}, beside the interval that is quoted"


def _misfits(both: tuple[Rung, Rung], curves: tuple[Parabolas, Parabolas]) -> Iterator[str]:
    """Say where a law misses losses by more than parabolas do: then its form is not theirs."""
    for one, curve in zip(both, curves, strict=True):
        free = curve.fit.freedom
        if free < TRUSTED_FREEDOM or not curve.noise > 0 or one.fit.noise < MISFIT * curve.noise:
            continue
        if fdtrc(one.freedom, free, (one.fit.noise / curve.noise) ** 2) < SURE:
            missed = f"the law misses losses of {one.name} by {one.fit.noise:.1%}, parabolas through its budgets by"
            yield f"{missed} {curve.noise:.1%}: the form is not theirs; trust isoflop, and not the ends of the range"


def _summary(one: Rung, rows: int) -> ComparedLadder:
    assert isinstance(one.fit.law, ChinchillaLaw)
    log_c = np.linspace(np.log(one.rows.flops.min()), np.log(one.rows.flops.max()), POINTS_ALONG)
    loss = Frontiers.of(one.fit.theta[None], one.over_6nd).losses(log_c)[0]
    coefficients = {name: float(getattr(one.fit.law, name)) for name in one.fit.law.names}
    return ComparedLadder(rows, len(one.rows), coefficients, one.fit.noise, np.exp(log_c).tolist(), loss.tolist())
