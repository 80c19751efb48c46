"""The verb plan: a sweep for an allowance of FLOPs or minutes, or what to add to one; written as an experiment."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.commands.arguments import Verb, directory, load, tables_of, writable
from gptjax.commands.laws import form_of
from gptjax.commands.training import glob_of
from gptjax.errors import BadInput

if TYPE_CHECKING:
    from gptjax.laws.predict import Forecaster

LAW = "besiroglu-2024"
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
    check_asked(args)
    if args.form:
        form_of(args.form)
    if args.file or args.corpus:
        run_proposal(args)
    else:
        run_design(args)


def check_asked(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other, and a file to write that is there."""
    if args.file and args.corpus:
        raise BadInput(f"{args.file} has a corpus of its own and --corpus {args.corpus} is another; give one of them")
    if args.corpus and args.minutes is None:
        raise BadInput(f"--corpus {args.corpus} needs --minutes M, the time that its sweep may take")
    if not args.file and not args.corpus:
        new = ("minutes", "write", "ext", "tokenizer", "vocab", "context", "seeds", "workers", "flops_per_second")
        if given := [name for name in new if getattr(args, name)]:
            raise BadInput(f"--{given[0].replace('_', '-')} is of a sweep to run; give FILE or --corpus as well")
        if args.flops is None:
            raise BadInput("give what to spend: --flops X, or --minutes M with a sweep's FILE or --corpus DIR")
    else:
        of_design = [name for name in ("table", "runs", "cooldown") if getattr(args, name) is not None]
        if of_design:
            raise BadInput(f"--{of_design[0]} is of a plan without shapes; leave it out, or the file or corpus")
        of_text = [name for name in ("ext", "tokenizer", "vocab", "context", "flops_per_second") if getattr(args, name)]
        if args.file and of_text:
            raise BadInput(f"--{of_text[0].replace('_', '-')} is of --corpus; {args.file} sets its own")
    if args.write:
        writable(args.write)
        if args.write.exists():
            raise BadInput(f"{args.write} exists and would be lost; write another file")
        if args.write.suffix != ".py":
            raise BadInput(f"{args.write} must end in .py: an experiment is a Python file")


def run_proposal(args: argparse.Namespace) -> None:
    """Propose a sweep that can be run as it is, and write it down."""
    from gptjax.files import write_file, write_json
    from gptjax.sweep.as_python import experiment
    from gptjax.sweep.own_text import plan_own_text
    from gptjax.sweep.plan import SweepConfig
    from gptjax.sweep.propose import plan_sweep

    placed: dict[str, Any] = {"goal": args.goal, "target_flops": args.target, "noise": args.noise or 0.01}
    if args.law:
        forecaster = law_of(args)
        placed |= {"law": forecaster.law, "law_name": args.law, "noise": noise_of(args, forecaster)}
    if args.file:
        base = load(args.file, SweepConfig, "sweep")
        proposal = plan_sweep(
            base, of=args.file, flops=args.flops, minutes=args.minutes, seeds=args.seeds, workers=args.workers, **placed
        )
    else:
        proposal = plan_own_text(
            args.corpus if args.ext is None else glob_of(args.corpus, args.ext),
            args.minutes,
            flops=args.flops or math.inf,
            tokenizer=args.tokenizer,
            vocab=args.vocab,
            context=args.context,
            workers=args.workers,
            flops_per_second=args.flops_per_second,
            seeds=args.seeds,
            **placed,
        )
    if args.write:
        write_file(args.write, experiment(proposal, args.write))
    if args.json:
        write_json(args.json, proposal.to_json())
    print(proposal.describe())
    if args.write:
        print(f"{args.write}: written; gptjax sweep {args.write}")


def law_of(args: argparse.Namespace) -> "Forecaster":
    """Read the law that places cells, and say if it is a doubtful one."""
    from gptjax.laws.predict import read_forecaster

    forecaster = read_forecaster(args.law or LAW, force=True)
    if forecaster.forced:
        print(f"gptjax: {args.law} is {forecaster.forced}; the plan is as good as that law", file=sys.stderr)
    return forecaster


def noise_of(args: argparse.Namespace, forecaster: "Forecaster") -> float:
    return (forecaster.noise or 0.01) if args.noise is None else float(args.noise)


def run_design(args: argparse.Namespace) -> None:
    """Design a sweep of no shapes in particular, or what to add to one."""
    from gptjax.files import plain, write_json
    from gptjax.laws.checks import read_runs
    from gptjax.laws.design import describe_design, propose
    from gptjax.laws.extension import describe_extension, next_cells
    from gptjax.laws.predict import PUBLISHED, read_law

    forecaster = law_of(args)
    law, noise = forecaster.law, noise_of(args, forecaster)
    plan: Any
    if args.table:
        done = read_runs(tables_of(args.table) / "runs.csv" if args.table.is_dir() else args.table)
        if args.law and args.law not in PUBLISHED:
            done = done.counted(read_law(args.law).settings.convention)
        done = done.tuned()
        plan = next_cells(
            law, done.params, done.tokens, args.flops, noise=noise, goal=args.goal, target_flops=args.target
        )
        text = describe_extension(plan)
    else:
        runs = 36 if args.runs is None else args.runs
        settings: dict[str, Any] = {"target_flops": args.target, "cooldown": args.cooldown, "runs": runs}
        plan = propose(law, args.flops, noise=noise, goal=args.goal, **settings)
        text = describe_design(plan)
    if args.json:
        write_json(args.json, plain(plan))
    print(text)
