"""The verb compare: how much compute one ladder needs for the loss of another."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gptjax.commands.arguments import Verb, directory, tables_of
from gptjax.errors import BadInput
from gptjax.jobs.process import use_compilation_cache

if TYPE_CHECKING:
    from gptjax.laws.comparable import Ladder


def add(verb: Verb) -> None:
    compare = verb("compare", run_compare, "compare ladders: the compute that each needs for the loss of the first")
    compare.add_argument("tables", nargs="+", type=directory, metavar="TABLE|DIR", help="CSV or parquet, or a sweep")
    compare.add_argument("--by", default="", metavar="COLUMN", help="one table: its ladders are this column's values")
    compare.add_argument("--metric", default="loss", help="loss, or bits_per_byte (for other tokenizers)")
    compare.add_argument("--convention", default="", metavar="NAME", help="of N and C (default: the tables' own)")
    compare.add_argument("--bootstrap", type=int, default=0, metavar="N", help="draws (default: 1000)")
    compare.add_argument("--seed", type=int, default=0, metavar="S")
    compare.add_argument("--figure", type=Path, metavar="FILE", help="draw frontiers and multiplier (.png)")
    compare.add_argument("--json", type=Path, metavar="FILE")


def run_compare(args: argparse.Namespace) -> None:
    use_compilation_cache()
    from gptjax.files import write_file, write_json
    from gptjax.laws.comparison import describe_comparison
    from gptjax.laws.ladders import compare_ladders

    ladders = ladders_of(args.tables, args.by)
    settings = {"metric": args.metric, "convention": args.convention, "bootstrap": args.bootstrap, "seed": args.seed}
    found = compare_ladders(ladders, **settings, by=args.by)
    if not found.pairs:
        reasons = [reason for pair in found.refused for reason in pair.reasons]
        raise BadInput("nothing is compared: " + "; ".join(dict.fromkeys(reasons)))
    if args.json:
        write_json(args.json, found.to_json())
    if args.figure:
        from gptjax.laws.drawn import to_png
        from gptjax.laws.plot_compare import multipliers

        rows = {ladder.name: ladder.runs.counted(args.convention) for ladder in ladders if ladder.name in found.ladders}
        write_file(args.figure, to_png(multipliers(found, rows)))
    print(describe_comparison(found))


def ladders_of(places: list[Path], by: str = "") -> "list[Ladder]":
    """Read ladders from tables and sweeps, or from the values of a column of one; BadInput for too few or the same."""
    from dataclasses import replace

    if by and len(places) > 1:
        raise BadInput(f"--by {by} parts one table and {len(places)} are given; give one, or leave --by out")
    for i, place in enumerate(places):
        if any(os.path.realpath(place) == os.path.realpath(other) for other in places[:i]):
            raise BadInput(f"{place} is given twice; a ladder compared with itself says nothing, give another")
    read = [read_ladder(place) for place in places]
    if by:
        (whole,) = read
        arms = whole.runs.arms(by)
        if len(arms) < 2:
            value = next(iter(arms))
            raise BadInput(f"column {by!r} has the one value {value!r}; give a column that tells ladders apart")
        return [replace(whole, name=value or f"no {by}", runs=runs) for value, runs in arms.items()]
    if len(read) == 1:
        column = "arm" if "arm" in read[0].runs.cells else "COLUMN"
        raise BadInput(f"{places[0]} is one table; give another table or sweep, or part this one: --by {column}")
    names = [ladder.name for ladder in read]
    if len(set(names)) < len(names):
        read = [replace(one, name=str(place)) for one, place in zip(read, places, strict=True)]
    return read


def read_ladder(place: Path) -> "Ladder":
    """Read a table, or a sweep with what its facts.json and plan.json say of tokenizer, text and validation windows."""
    from gptjax.files import read_json
    from gptjax.laws.checks import read_runs
    from gptjax.laws.comparable import Ladder

    table = tables_of(place) / "runs.csv" if place.is_dir() else place
    runs = read_runs(table)
    for warning in runs.warnings:
        print(f"gptjax: {warning}", file=sys.stderr)
    facts = read_json(place / "facts.json") if (place / "facts.json").is_file() else {}
    name = place.resolve().name if place.is_dir() else place.stem
    known = {key: str(facts.get(key, "")) for key in ("tokenizer", "corpus")} if isinstance(facts, dict) else {}
    return Ladder(name, runs, **known, windows=windows_of(place))


def windows_of(place: Path) -> int | None:
    """Give the number of validation windows of a sweep's runs; None where it is not one number, or no sweep."""
    if not (place / "plan.json").is_file():
        return None
    from gptjax.sweep.plan import Plan

    counts = {run.config.evaluate.sequences for run in Plan.load(place / "plan.json").runs}
    return counts.pop() if len(counts) == 1 else None
