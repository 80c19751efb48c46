"""The verb plan: a sweep, or what to add to one, for an allowance."""

import argparse
import sys
from pathlib import Path
from typing import Any

from gptjax.commands.arguments import Verb, directory, tables_of
from gptjax.commands.laws import form_of


def add(verb: Verb) -> None:
    plan = verb("plan", run_plan, "propose a sweep, and the next cells, for an allowance of FLOPs")
    plan.add_argument("--flops", required=True, type=float, metavar="X", help="FLOPs to spend")
    plan.add_argument("--law", default="besiroglu-2024", help="law.json or a published law (default: %(default)s)")
    plan.add_argument("--form", default="", metavar="FILE[:NAME]", help="the file that makes the form of the law")
    plan.add_argument("--table", type=directory, metavar="TABLE|DIR", help="runs already done: propose what to add")
    plan.add_argument("--target", type=float, metavar="C", help="FLOPs at which the loss matters most")
    plan.add_argument("--goal", default="a", help="what to know best: a, loss or params at the target (default: a)")
    plan.add_argument("--runs", type=int, default=36, metavar="K", help="runs of a new sweep (default: %(default)s)")
    plan.add_argument("--cooldown", type=float, metavar="SHARE", help="branch off one trunk a size, cooled so long")
    plan.add_argument("--noise", type=float, help="sd of one run's log loss (default: the law's, else .01)")
    plan.add_argument("--json", type=Path, metavar="FILE")


def run_plan(args: argparse.Namespace) -> None:
    if args.form:
        form_of(args.form)
    from gptjax.files import plain, write_json
    from gptjax.laws.checks import read_runs
    from gptjax.laws.design import describe_design, propose
    from gptjax.laws.extension import describe_extension, next_cells
    from gptjax.laws.predict import PUBLISHED, read_forecaster, read_law

    forecaster = read_forecaster(args.law, force=True)
    if forecaster.forced:
        print(f"gptjax: {args.law} is {forecaster.forced}; the plan is as good as that law", file=sys.stderr)
    law, noise = forecaster.law, (forecaster.noise or 0.01) if args.noise is None else args.noise
    goal: Any = args.goal
    plan: Any
    if args.table:
        done = read_runs(tables_of(args.table) / "runs.csv" if args.table.is_dir() else args.table)
        if args.law not in PUBLISHED:
            done = done.counted(read_law(args.law).settings.convention)
        done = done.tuned()
        plan = next_cells(law, done.params, done.tokens, args.flops, noise=noise, goal=goal, target_flops=args.target)
        text = describe_extension(plan)
    else:
        settings = {"target_flops": args.target, "cooldown": args.cooldown, "runs": args.runs}
        plan = propose(law, args.flops, noise=noise, goal=goal, **settings)
        text = describe_design(plan)
    if args.json:
        write_json(args.json, plain(plan))
    print(text)
