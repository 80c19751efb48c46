"""What a comparison of ladders is, typed: what `gptjax compare --json FILE` writes, and its words for a terminal.

N is parameters, D tokens, C FLOPs. The multiplier is the compute that b needs for a's loss over a's compute, both
compute-optimal: below 1, b is cheaper. An end of an interval that is null is unbounded.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from gptjax.errors import BadInput
from gptjax.laws.codec import OMITTED, Json, read, written

Interval = tuple[float | None, float | None]
Metric = str  # "loss" or "bits_per_byte"


@dataclass(frozen=True)
class Along:
    """The comparison along the compute of a, over what both ladders' rows reach."""

    C: list[float]  # FLOPs of a
    multiplier: list[float | None]  # compute of b for a's loss, over C; null where b never has that loss
    interval: list[Interval | None]  # its 95 % interval
    loss: list[float]  # a's loss at C, compute-optimal
    loss_difference: list[float | None]  # b's loss less a's, both at C; null where C is not within b's compute
    loss_difference_interval: list[Interval | None]  # its 95 % interval


@dataclass(frozen=True)
class Way:
    """One way to the multiplier at the same C."""

    multiplier: float | None  # null where the tables do not allow this way
    interval: Interval | None  # its 95 % interval
    count: int  # how many rows, minima of budgets, or cells it rests on
    reason: str  # why there is no multiplier, and what it would take
    C: list[float] | None = field(default=None, metadata=OMITTED)  # points only: compute of each cell that both have
    each: list[float] | None = field(default=None, metadata=OMITTED)  # points only: the multiplier of each


@dataclass(frozen=True)
class Exponents:
    """Slopes of the law of a ladder."""

    alpha: float  # of N
    beta: float  # of D


@dataclass(frozen=True)
class ExponentTest:
    """Whether the exponents of two ladders differ, and both laws with the same ones."""

    p: float  # of the F test that one alpha and one beta serve both ladders
    of: str  # what was tested
    F: float  # rise of the sum of squares by sharing, over the noise
    freedom: tuple[int, int]  # degrees of freedom of F
    apart: dict[str, Exponents]  # of each ladder, as fitted apart
    shared: Exponents  # of both, as fitted together
    multiplier: float | None  # by the laws with shared exponents
    multiplier_interval: Interval | None  # its 95 % interval; it takes equal exponents for true


@dataclass(frozen=True)
class PairedCells:
    """The cells (N, D, seed) that both ladders have, near both frontiers."""

    cells: int  # how many
    correlation: float  # of the noise of their log losses; 0 where cells are fewer than 8


@dataclass(frozen=True)
class LadderPair:
    """Ladder b against ladder a."""

    a: str  # the ladder that b is compared with
    b: str  # the other
    multiplier: float | None  # compute of b for a's loss over a's compute, at `at`; null where b never has that loss
    multiplier_interval: Interval | None  # its 95 % interval
    at: float  # FLOPs of a: the middle, in logs, of what is claimed
    claimed: tuple[float, float]  # FLOPs of a whose losses both ladders reach within their own compute
    along: Along  # the same along C
    exponents_differ: ExponentTest  # whether the multiplier is one number
    headline: str  # which of the ways `multiplier` is
    why: str  # why that one
    ways: dict[str, Way]  # parametric, isoflop, points
    paired: PairedCells  # what noise both share
    verdict: str  # one line
    notes: list[str]  # what is not known, and what speaks against it


@dataclass(frozen=True)
class RefusedPair:
    """Two ladders that cannot be compared."""

    a: str  # the first ladder
    b: str  # the other
    reasons: list[str]  # why, with the remedy


@dataclass(frozen=True)
class ComparedLadder:
    """One ladder as it was compared."""

    rows: int  # runs, the best of each cell
    near: int  # those near the frontier, that its law is fitted to
    coefficients: dict[str, float]  # of L = E + A/N^alpha + B/D^beta
    noise: float  # standard deviation of one log loss about the law
    C: list[float]  # FLOPs, from the least to the largest of its rows
    loss: list[float]  # the law's loss at each, compute-optimal


@dataclass(frozen=True)
class ComparisonSettings:
    """How ladders were compared."""

    metric: str  # loss, in nats a token, or bits_per_byte
    by: str  # the column whose values are the ladders; empty where each is a table
    convention: str  # of N and C; empty: the tables' own
    bootstrap: int  # draws of the noise
    seed: int


@dataclass(frozen=True)
class Comparison:
    """Ladders compared with the first of them: what `gptjax compare --json FILE` writes."""

    pairs: list[LadderPair]  # every later ladder with the first
    refused: list[RefusedPair]  # the pairs that cannot be compared
    ladders: dict[str, ComparedLadder]  # each ladder of a pair
    settings: ComparisonSettings

    def to_json(self) -> Json:
        """Give the object that is written."""
        return written(self)

    @staticmethod
    def from_json(value: Any, where: str = "comparison") -> "Comparison":
        """Read what was written; BadInput names the key that is missing or not what it must be."""
        if not isinstance(value, dict) or not isinstance(value.get("pairs"), list):
            raise BadInput(f"{where} holds no pairs; make it with gptjax compare A B --json FILE")
        return read(Comparison, value, f"{where}:")


UNITS = {"loss": "nats a token", "bits_per_byte": "bits a byte"}
SAYS = {  # what a way to the multiplier rests on, for a terminal
    "parametric": "laws of {count} rows near the frontiers",
    "isoflop": "{count} minima of budgets, no form assumed",
    "points": "{count} cells (N, D) that both have",
}


def flops_words(value: float) -> str:
    """Write FLOPs with two digits: 1.5e11."""
    return f"{value:.2g}".replace("e+", "e")


def times_words(value: float | None, interval: Interval | None = None) -> str:
    """Write a multiplier and its interval: 0.83x (0.79 to 0.88)."""
    if value is None:
        return "never"
    said = f"{_digits(value, value)}x"
    if interval is None:
        return f"{said} (no interval)"
    low, high = ("any number" if end is None else _digits(end, value) for end in interval)
    return f"{said} ({low} to {high})"


def _digits(value: float, of: float) -> str:
    """Write a number with the digits that another one has, and large or tiny ones by their power of ten."""
    if not 0.01 <= value < 1e5:
        return re.sub(r"e([+-])0?", lambda found: "e" + found[1].strip("+"), f"{value:.2e}")
    return f"{value:.{2 if of < 10 else 1 if of < 100 else 0}f}"


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


def describe_comparison(found: Comparison) -> str:
    """Lay a comparison out for a terminal: for each pair a verdict, a table along C, and what stands beside it."""
    blocks = [_describe_pair(pair, UNITS[found.settings.metric]) for pair in found.pairs]
    blocks += [f"{pair.a} and {pair.b} are not compared:\n" + "\n".join(f"  {reason}" for reason in pair.reasons)
               for pair in found.refused]  # fmt: skip
    return "\n\n".join(blocks)


def _describe_pair(pair: LadderPair, unit: str) -> str:
    wide = max(14, len(pair.a) + 7)
    lines = [
        pair.verdict,
        "",
        f"{'C of ' + pair.a:<{wide}}{'multiplier':<28}loss of {pair.b} less that of {pair.a}, {unit}",
    ]
    along = pair.along
    count = len(along.C)
    for i in sorted({0, count // 4, count // 2, 3 * count // 4, count - 1}):
        difference, ends = along.loss_difference[i], along.loss_difference_interval[i]
        said = "outside its compute" if difference is None else f"{difference:+.4f}"
        said += f" ({ends[0]:+.4f} to {ends[1]:+.4f})" if ends and None not in ends else ""
        times = times_words(along.multiplier[i], along.interval[i])
        lines.append(f"{flops_words(along.C[i]):<{wide}}{times:<28}{said}")
    lines += ["", f"at C = {flops_words(pair.at)}, by"]
    for name, way in pair.ways.items():
        said = f"none: {way.reason}" if way.reason else times_words(way.multiplier, way.interval)
        rests = "" if way.reason else SAYS[name].format(count=way.count)
        lines.append(f"  {name:<12}{said:<28}{rests}" + (" [quoted]" if name == pair.headline else ""))
    test = pair.exponents_differ
    shared = f"alpha = {test.shared.alpha:.3g}, beta = {test.shared.beta:.3g}"
    said = "differ" if test.p < 0.05 else "are not shown to differ"
    lines.append(f"exponents {said}: p = {test.p:.2g} of {test.of}; shared: {shared}, "
                 f"{times_words(test.multiplier, test.multiplier_interval)}")  # fmt: skip
    if pair.paired.cells:
        lines.append(f"noise: {pair.paired.cells} paired cells, correlation {pair.paired.correlation:.2f}")
    return "\n".join([line.rstrip() for line in lines] + [f"note: {note}" for note in pair.notes])
