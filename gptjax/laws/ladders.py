"""Compare ladders: refuse what is not of one kind, fit each, and say what compute one needs for another's loss."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from gptjax.errors import BadInput
from gptjax.laws.comparison import (
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
    flops_words,
    times_words,
)
from gptjax.laws.exponents import SharedFit, share_exponents
from gptjax.laws.fit import MIN_DRAWS, Choices
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.law import Floats
from gptjax.laws.multiplier import (
    NEAR,
    Bootstrapped,
    Estimate,
    Frontiers,
    Rung,
    bootstrapped,
    by_isoflop,
    by_points,
    log_multiplier,
    percentiles,
    rung,
    shared_range,
)
from gptjax.laws.table import Runs
from gptjax.laws.uncertainty import LEVELS

POINTS_ALONG = 25
SAME_COUNT = 0.03  # in log: a C that is 6ND, whatever the table calls it
WIDE_RATIO = 1.1  # C over 6ND may vary by this factor before it is said that the law's optimum is of 6ND
NARROW = 2.0  # FLOPs from least to largest: a shorter range is said to be short
HEADLINE = "parametric"
WHY = (
    "it uses every row near the frontiers and compares optima, so its interval is the narrowest that held planted "
    "multipliers as often as it claims; isoFLOP minima assume no form and use fewer rows, and equal cells say nothing "
    "of what a ladder gains by its own best D/N"
)


@dataclass(frozen=True)
class Ladder:
    """The runs of one model or recipe at several sizes and budgets; what is not known of them is empty or None."""

    name: str
    runs: Runs
    tokenizer: str = ""  # else the table's column tokenizer
    corpus: str = ""
    windows: int | None = None  # validation windows

    def of(self, column: str) -> str:
        """Give the one value of a column in all rows, "" where it is not known; several are joined by commas."""
        return ", ".join(sorted({str(value) for value in self.runs.cells.get(column, ()) if value}))

    @property
    def reads_by(self) -> str:
        """The tokenizer."""
        return self.tokenizer or self.of("tokenizer")


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
    if 0 < bootstrap < MIN_DRAWS:
        raise BadInput(f"{bootstrap} draws give no interval: a 95 % interval needs {MIN_DRAWS} draws or more")
    choices = Choices(convention=convention, bootstrap=bootstrap, seed=seed)
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
            reasons = [*_unlike(a, b, metric)]
            if not reasons:
                both = fitted(a), fitted(b)
                reasons = [reason for one in both for reason in _no_law(one)]
                outcome = None if reasons else _pair(both, (a.runs, b.runs), draws, seed)
                if isinstance(outcome, str):
                    reasons = [outcome]
                elif outcome:
                    found = replace(outcome, notes=[*_unknown(a, b, metric, bool(by)), *outcome.notes])
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


def _unlike(a: Ladder, b: Ladder, metric: str) -> Iterator[str]:
    """Say why two ladders are not of one kind, with the remedy."""
    both = f"{a.name} and {b.name}"
    for one in (a, b):
        if "," in (mixed := one.of("objective")):
            yield f"{one.name} mixes the objectives {mixed}; take the rows of one, or part them: --by objective"
            return
    if differ := _both_known(a.of("objective"), b.of("objective")):
        yield f"{both} are of the objectives {differ}, whose losses are of different tasks; compare those of one"
    other_tokens = _both_known(a.reads_by, b.reads_by)
    if other_tokens and metric == "loss":
        rule = "a nat a token of each is of another length of text; compare with --metric bits_per_byte"
        yield f"{both} have the tokenizers {other_tokens}, and {rule}"
    if other_tokens and (differ := _both_known(a.corpus, b.corpus)):
        yield f"{both} are of other text ({differ}); train and evaluate both on the same corpus"
    differ = _both_known(a.of("data_digest"), b.of("data_digest"))
    if differ and not other_tokens:  # the digest is of tokens
        yield f"{both} were evaluated on other data (data_digest {differ}); evaluate both on the same store"
    if differ := _both_known(str(a.windows or ""), str(b.windows or "")):
        yield f"{both} were evaluated on {differ} validation windows; train them with the same evaluate.sequences"
    yield from _counted_otherwise(a, b)
    if _same_rows(a.runs, b.runs):
        yield f"{both} hold the same runs; give two ladders"
    spans = [(one.runs.loss.min(), one.runs.loss.max()) for one in (a, b)]
    if spans[0][0] > spans[1][1] or spans[1][0] > spans[0][1]:
        said = " and ".join(f"{low:.4g} to {high:.4g}" for low, high in spans)
        yield f"{both} share no loss: theirs are {said}; add budgets until they overlap"


def _both_known(one: str, other: str) -> str:
    """Give two values in words where both are known and differ."""
    return f"{one} and {other}" if one and other and one != other else ""


def _counted_otherwise(a: Ladder, b: Ladder) -> Iterator[str]:
    """Refuse N and C that count other things: in words, or C that is not 6ND under another name."""
    words = [one.runs.convention for one in (a, b)]
    differ = _both_known(*(_what_n_is(one.runs) for one in (a, b)))
    if differ or (words[0] != words[1] and not (_is_6nd(a.runs) and _is_6nd(b.runs))):
        common = [name for name in a.runs.conventions if name in b.runs.conventions]
        remedy = f"count both by --convention {' or '.join(common)}" if common else "count N and C alike in both tables"
        yield f"{a.name} has {words[0]!r} and {b.name} {words[1]!r}; {remedy}"


def _what_n_is(runs: Runs) -> str:
    """Say what N counts, "" where the table has it in column params and says no more."""
    said = runs.convention.rpartition(": ")[2].partition(", C")[0]
    return "" if said in ("N = column params", "simulated") else said


def _is_6nd(runs: Runs) -> bool:
    return bool(np.abs(np.log(runs.flops / (6 * runs.params * runs.tokens))).max() < SAME_COUNT)


def _same_rows(a: Runs, b: Runs) -> bool:
    if len(a) != len(b):
        return False
    rows = [np.array([one.params, one.tokens, one.loss]) for one in (a, b)]
    one, other = (table[:, np.lexsort(table)] for table in rows)
    return bool(np.array_equal(one, other))


def _unknown(a: Ladder, b: Ladder, metric: str, arms: bool) -> Iterator[str]:
    """Say what is not known of two ladders, and was taken for the same."""
    facts = {
        "tokenizer": (a.reads_by, b.reads_by),
        "validation data (data_digest)": (a.of("data_digest"), b.of("data_digest")),
        "objective": (a.of("objective"), b.of("objective")),
    }
    for one in (a, b):
        if "," in (arms_of := one.of("arm")):
            yield f"{one.name} mixes the arms {arms_of} in one law; --by arm compares them"
    of_one = [f"{name} of {(a if not values[0] else b).name}" for name, values in facts.items() if any(values)
              and not all(values)]  # fmt: skip
    of_none = [] if arms else [name for name, values in facts.items() if not any(values) and name != "objective"]
    if of_one:
        yield f"not known, and taken for the other's: {', '.join(of_one)}"
    if of_none:
        yield f"neither table says its {' or '.join(of_none)}; they are taken for the same"
    n = [_what_n_is(one.runs) for one in (a, b)]
    if n[0] != n[1]:
        yield f"one table says that {n[0] or n[1]}, and the other does not say; it is taken for the same"
    if metric == "bits_per_byte" and all(facts["tokenizer"]) and len(set(facts["tokenizer"])) > 1:
        yield "with other tokenizers, data digests cannot tell whether the validation text is the same; see that it is"


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
    test = share_exponents(a, b, found.noise)
    ways = {
        HEADLINE: _way(headline),
        "isoflop": _way(by_isoflop(*runs, found.noise.correlation, log_at, draws, seed)),
        "points": _way(by_points(a, b, found, log_at)),
    }
    along = _along(found, span, np.log(b.rows.flops))
    cells = PairedCells(len(found.noise.cells[0]), found.noise.correlation)
    claimed = float(np.exp(span[0])), float(np.exp(span[1]))
    quoted = ways[HEADLINE]
    pair = LadderPair(
        a.name, b.name, quoted.multiplier, quoted.interval, at, claimed, along, _tested(both, test, log_at), HEADLINE,
        WHY, ways, cells, "", [*_against(both, found, ways, claimed)],
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
    half = student.ppf(LEVELS[1], test.freedom) * math.sqrt(max(0.0, slope @ test.covariance @ slope))
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


def _summary(one: Rung, rows: int) -> ComparedLadder:
    assert isinstance(one.fit.law, ChinchillaLaw)
    log_c = np.linspace(np.log(one.rows.flops.min()), np.log(one.rows.flops.max()), POINTS_ALONG)
    loss = Frontiers.of(one.fit.theta[None], one.over_6nd).losses(log_c)[0]
    coefficients = {name: float(getattr(one.fit.law, name)) for name in one.fit.law.names}
    return ComparedLadder(rows, len(one.rows), coefficients, one.fit.noise, np.exp(log_c).tolist(), loss.tolist())


def verdict(pair: LadderPair) -> str:
    """Say a comparison in a line."""
    low, high = map(flops_words, pair.claimed)
    end = "outside the rows: not claimed"
    if pair.multiplier is None:
        return f"{pair.b} never has the loss that {pair.a} has at {flops_words(pair.at)} FLOPs, by its law; {end}"
    said = f"{pair.b} needs {times_words(pair.multiplier, pair.multiplier_interval)} the compute of {pair.a}"
    along = pair.along
    if pair.exponents_differ.p < 0.05 or not all(_holds(along.interval[i], pair.multiplier) for i in (0, -1)):
        ends = [f"{times_words(along.multiplier[i], along.interval[i])} at {c}" for i, c in ((0, low), (-1, high))]
        return f"{said} at {flops_words(pair.at)}, {' and '.join(ends)}; {end}"
    doubt = "no difference is shown; " if _holds(pair.multiplier_interval, 1.0) else ""
    return f"{said} between {low} and {high}; {doubt}{end}"


def _holds(interval: Interval | None, value: float) -> bool:
    """Say whether an interval has a value; one that is not known may have any."""
    low, high = interval or (None, None)
    return (low is None or low <= value) and (high is None or value <= high)
