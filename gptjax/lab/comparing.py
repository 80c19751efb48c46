"""Ladders compared, from Python as from the shell: by how much compute the one beats the other."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.lab.fitted import FittedLaw
from gptjax.lab.laws import Table, read
from gptjax.lab.places import place_of, tables_of, writable
from gptjax.laws.checks import read_runs
from gptjax.laws.codec import Json
from gptjax.laws.frames import Frame
from gptjax.laws.ladders.comparable import Ladder
from gptjax.laws.ladders.compared import compare_ladders
from gptjax.laws.ladders.comparison import Comparison, LadderPair, RefusedPair, describe_comparison
from gptjax.laws.table import Runs
from gptjax.sweep.plan import Plan

if TYPE_CHECKING:
    from gptjax.laws.drawing.figures import ComparisonFigures


@dataclass(frozen=True)
class ComparedLadders:
    """What `gptjax.compare` gives: every later ladder against the first."""

    found: Comparison
    runs: Mapping[str, Runs] = field(repr=False)  # the rows of each ladder
    warnings: tuple[str, ...] = ()  # what is odd about the tables, and may yet be right

    @property
    def pairs(self) -> list[LadderPair]:
        """Each pair that was compared, with its multiplier, interval and verdict."""
        return self.found.pairs

    @property
    def refused(self) -> list[RefusedPair]:
        """Each pair that cannot be compared, with the reasons."""
        return self.found.refused

    @property
    def verdict(self) -> str:
        """The verdicts, a line a pair."""
        return "\n".join(pair.verdict for pair in self.pairs)

    @cached_property
    def plot(self) -> "ComparisonFigures":
        """The figure: `plot.multipliers()`."""
        from gptjax.laws.drawing.figures import ComparisonFigures

        return ComparisonFigures(self.found, self.runs)

    def table(self) -> Frame:
        """Give a row for each pair and compute: the multiplier and the difference of losses, with 95 % intervals."""
        rows = []
        for pair in self.pairs:
            along = pair.along
            for i, flops in enumerate(along.C):
                low, high = along.interval[i] or (None, None)
                d_low, d_high = along.loss_difference_interval[i] or (None, None)
                rows.append({
                    "a": pair.a, "b": pair.b, "flops": flops, "multiplier": along.multiplier[i], "low": low,
                    "high": high, "loss_difference": along.loss_difference[i], "difference_low": d_low,
                    "difference_high": d_high,
                })  # fmt: skip
        return Frame(rows)

    def to_json(self) -> Json:
        """Give the object that `save` writes."""
        return self.found.to_json()

    def save(self, path: str | Path) -> None:
        """Write the comparison, as `gptjax compare --json` does."""
        writable(Path(path))
        write_json(Path(path), self.to_json())

    def __str__(self) -> str:
        return describe_comparison(self.found)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        refused = "".join(
            f"<p>{escape(pair.a)} and {escape(pair.b)} are not compared: {escape('; '.join(pair.reasons))}</p>"
            for pair in self.refused
        )
        verdicts = "".join(f"<p>{escape(pair.verdict)}</p>" for pair in self.pairs)
        return f"<div>{verdicts}{refused}{self.table()._repr_html_()}</div>"


def compare(
    *ladders: Table,
    by: str | None = None,
    names: Sequence[str] = (),
    metric: str = "loss",
    convention: str = "",
    bootstrap: int = 0,
    seed: int = 0,
) -> ComparedLadders:
    """Compare ladders: the compute that each later one needs for the losses of the first, with its 95 % interval.

    Give two tables or more, each what `read` takes (or what `fit` gave), or one and the column `by` which its ladders
    differ. `names` are what the ladders are called; by default a file's or folder's name, or A, B, C. `metric` is loss
    (nats a token) or bits_per_byte, for texts cut into other tokens. `bootstrap` counts the draws (0: 1000).
    Raises BadInput where no pair can be compared; docs/laws.md says what is refused, and how a multiplier is found.
    """
    read_ones = ladders_of(ladders, by or "", names)
    found = compare_ladders(
        read_ones, metric=metric, convention=convention, bootstrap=bootstrap, seed=seed, by=by or ""
    )
    if not found.pairs:
        reasons = [reason for pair in found.refused for reason in pair.reasons]
        raise BadInput("nothing is compared: " + "; ".join(dict.fromkeys(reasons)))
    rows = {one.name: one.runs.counted(convention) for one in read_ones if one.name in found.ladders}
    return ComparedLadders(found, rows, tuple(dict.fromkeys(w for one in read_ones for w in one.runs.warnings)))


def ladders_of(tables: Sequence[Table], by: str = "", names: Sequence[str] = ()) -> list[Ladder]:
    """Read ladders from tables and sweeps, or from the values of a column of one; BadInput for too few or the same."""
    if not tables:
        raise BadInput("nothing is given to compare; give two tables or sweeps, or one and the column of its ladders")
    if by and len(tables) > 1:
        raise BadInput(f"--by {by} parts one table and {len(tables)} are given; give one, or leave --by out")
    places = [str(place_of(each)) if isinstance(each, str | os.PathLike) else "" for each in tables]
    for i, each in enumerate(tables):
        if any(
            each is other or _same_place(places[i], place) for other, place in zip(tables[:i], places, strict=False)
        ):
            raise BadInput(
                f"{places[i] or 'a table'} is given twice; a ladder compared with itself says nothing, give another"
            )
    found = [_ladder(each, chr(ord("A") + i % 26)) for i, each in enumerate(tables)]
    if by:
        (whole,) = found
        arms = whole.runs.arms(by)
        if len(arms) < 2:
            value = next(iter(arms))
            raise BadInput(f"column {by!r} has the one value {value!r}; give a column that tells ladders apart")
        return [replace(whole, name=value or f"no {by}", runs=runs) for value, runs in arms.items()]
    if len(found) == 1:
        column = "arm" if "arm" in found[0].runs.cells else "COLUMN"
        raise BadInput(
            f"{places[0] or 'this'} is one table; give another table or sweep, or part this one: --by {column}"
        )
    if names:
        if len(names) != len(found) or len(set(names)) < len(names):
            raise BadInput(f"{len(names)} names for {len(found)} ladders; give each one of its own")
        return [replace(one, name=name) for one, name in zip(found, names, strict=True)]
    if len({ladder.name for ladder in found}) < len(found):
        parents = [f"{Path(place).resolve().parent.name}/{one.name}" for one, place in zip(found, places, strict=True)]
        if len(set(parents)) < len(parents):
            parents = [place or one.name for one, place in zip(found, places, strict=True)]
        found = [replace(one, name=name) for one, name in zip(found, parents, strict=True)]
    return found


def _same_place(one: str, other: str) -> bool:
    return bool(one and other) and os.path.realpath(one) == os.path.realpath(other)


def _ladder(table: Table, letter: str) -> Ladder:
    """Read a table, or a sweep with what its facts.json and plan.json say of tokenizer, text and validation windows."""
    if isinstance(table, FittedLaw):
        if table.runs is None:
            raise BadInput(f"{table.name} was read without its rows; compare its table")
        return Ladder(letter if table.name == "law" else Path(table.name).stem, table.runs)
    if not isinstance(table, str | os.PathLike):
        return Ladder(letter, read(table))
    place = place_of(table)
    runs = read_runs(tables_of(place) / "runs.csv" if place.is_dir() else place)
    facts: Any = read_json(place / "facts.json") if (place / "facts.json").is_file() else {}
    name = place.resolve().name if place.is_dir() else place.stem
    known = {key: str(facts.get(key, "")) for key in ("tokenizer", "corpus")} if isinstance(facts, dict) else {}
    return Ladder(name, runs, **known, windows=_windows_of(place))


def _windows_of(place: Path) -> int | None:
    """Give the number of validation windows of a sweep's runs; None where it is not one number, or no sweep."""
    if not (place / "plan.json").is_file():
        return None
    counts = {run.config.evaluate.sequences for run in Plan.load(place / "plan.json").runs}
    return counts.pop() if len(counts) == 1 else None
