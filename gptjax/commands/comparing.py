"""The verb compare: how much compute one ladder needs for the loss of another."""

import argparse
import sys
from pathlib import Path

from gptjax.commands.arguments import Verb, directory
from gptjax.jobs.process import use_compilation_cache


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
    from gptjax.files import write_file
    from gptjax.lab.comparing import compare

    settings = {"metric": args.metric, "convention": args.convention, "bootstrap": args.bootstrap, "seed": args.seed}
    found = compare(*args.tables, by=args.by, **settings)
    for warning in found.warnings:
        print(f"gptjax: {warning}", file=sys.stderr)
    if args.json:
        found.save(args.json)
    if args.figure:
        from gptjax.laws.drawing.drawn import to_png

        write_file(args.figure, to_png(found.plot.multipliers()))
    print(found)
