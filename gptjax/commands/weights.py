"""The verbs of weights: export."""

import argparse
from pathlib import Path

from gptjax.commands.given import Verb, existing, writable


def add(verb: Verb) -> None:
    export = verb("export", run_export, "write a run's weights as an Orbax checkpoint that needs no gptjax")
    export.add_argument("dir", type=Path, metavar="RUN", help="the directory of a run")
    export.add_argument("--to", required=True, type=Path, metavar="DIR", help="a new directory")
    export.add_argument("--step", type=int, help="default: the newest intact one")
    export.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"), help="default: %(default)s")


def run_export(args: argparse.Namespace) -> None:
    from gptjax.train.export import export

    writable(args.to)
    facts = export(existing(args.dir, "config.json", "a run"), args.to, args.step, args.dtype)
    print(f"step {facts['step']}, {facts['tokens']:,} tokens, {facts['dtype']}: {args.to}")
