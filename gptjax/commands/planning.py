"""The verb plan: a sweep for an allowance of FLOPs or minutes, or what to add to one; written as an experiment."""

import argparse
import sys
from pathlib import Path

from gptjax.commands.arguments import Verb, directory
from gptjax.commands.training import glob_of
from gptjax.errors import BadInput

LAW = "besiroglu-2024"
ASKED = (
    "flops", "minutes", "tokenizer", "vocab", "context", "seeds", "workers", "flops_per_second", "law", "form", "goal",
    "target", "noise", "table", "runs", "cooldown",
)  # fmt: skip
FILE = "a sweep's Python file, as `gptjax sweep` takes: propose one of its shapes, by its rules"


def add(verb: Verb) -> None:
    plan = verb("plan", run_plan, "propose a sweep, and the next cells, for an allowance of FLOPs or minutes")
    plan.add_argument("file", nargs="?", metavar="FILE[:NAME]", help=FILE)
    plan.add_argument("--flops", type=float, metavar="X", help="FLOPs to spend (with FILE: its own, if not given)")
    plan.add_argument("--minutes", type=float, metavar="M", help="with FILE or --corpus: minutes, the report included")
    plan.add_argument("--write", type=Path, metavar="FILE.py", help="write the proposed sweep as an experiment")
    plan.add_argument("--json", type=Path, metavar="FILE")

    law = plan.add_argument_group("what places the cells").add_argument
    law("--law", help=f"law.json or a published law (default: {LAW}; with FILE or --corpus by scale)")
    law("--form", default="", metavar="FILE[:NAME]", help="the file that makes the form of the law")
    law("--goal", default="a", help="what to know best: a, loss or params at the target (default: a)")
    law("--target", type=float, metavar="C", help="FLOPs at which the loss matters most")
    law("--noise", type=float, help="sd of one run's log loss (default: the law's, else .01)")
    law("--table", type=directory, metavar="TABLE|DIR", help="runs already done: propose what to add")
    law("--runs", type=int, metavar="K", help="runs of a new sweep that is of no FILE (default: 36)")
    law("--cooldown", type=float, metavar="SHARE", help="of no FILE: branch off one trunk a size, cooled so long")

    own = plan.add_argument_group("a sweep of a FILE, or of your own text").add_argument
    own("--corpus", metavar="DIR", help="any corpus that `gptjax data` reads, or what it wrote")
    own("--ext", metavar="ENDING,...", help="read the files of the corpus folder with these endings, as pm,pl")
    own("--tokenizer", default="", help="bytes, sentencepiece:VOCABULARY or a folder (default: by --vocab)")
    own("--vocab", type=int, metavar="V", help="pieces of the tokenizer (default: 512 on a CPU, else 4096)")
    own("--context", type=int, metavar="T", help="tokens a model sees (default: 64 on a CPU, else 512)")
    own("--seeds", type=int, metavar="K", help="train every cell so often (default: repeat where that helps most)")
    own("--workers", type=int, help="processes on this machine (default: the file's, or one a core)")
    own("--flops-per-second", type=float, metavar="F", help="speed of one of them (default: measured)")


def run_plan(args: argparse.Namespace) -> None:
    from gptjax.lab.planning import plan

    check_asked(args)
    asked = {name: getattr(args, name) for name in ASKED}
    found = plan(args.file, **asked, corpus=corpus_of(args))
    if found.doubt:
        print(f"gptjax: {found.doubt}", file=sys.stderr)
    if args.write:
        found.write(args.write)
    if args.json:
        found.save(args.json)
    print(found)
    if args.write:
        print(f"{args.write}: written; gptjax sweep {args.write}")


def corpus_of(args: argparse.Namespace) -> str | None:
    return args.corpus if args.ext is None else glob_of(args.corpus, args.ext)


def check_asked(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other, and a file to write that is there."""
    from gptjax.lab.planning import check_allowed, check_new

    if not args.file and not args.corpus:
        new = ("minutes", "write", "ext", "tokenizer", "vocab", "context", "seeds", "workers", "flops_per_second")
        if given := [name for name in new if getattr(args, name)]:
            raise BadInput(f"--{given[0].replace('_', '-')} is of a sweep to run; give FILE or --corpus as well")
    else:
        of_design = [name for name in ("table", "runs", "cooldown") if getattr(args, name) is not None]
        if of_design:
            raise BadInput(f"--{of_design[0]} is of a plan without shapes; leave it out, or the file or corpus")
        of_text = [name for name in ("ext", "tokenizer", "vocab", "context", "flops_per_second") if getattr(args, name)]
        if args.file and not args.corpus and of_text:
            raise BadInput(f"--{of_text[0].replace('_', '-')} is of --corpus; {args.file} sets its own")
    check_allowed(args.file, args.corpus, args.minutes, args.flops)
    if args.write:
        check_new(args.write)
