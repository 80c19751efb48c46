"""The verbs of laws: fit, report, predict, score, keys, selftest."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.commands.arguments import Verb, as_flags, directory
from gptjax.errors import BadInput
from gptjax.jobs.process import use_compilation_cache
from gptjax.lab.forms import form_of as form_of

if TYPE_CHECKING:
    from gptjax.lab.fitted import FittedArms
    from gptjax.laws.record import Analysis, Found

SLOW = 0.05  # seconds; a fit compiles a handful of small programs, which take longer than to run them


def add(verb: Verb) -> None:
    fit = verb("fit", run_fit, "fit the law to a table of runs")
    fit.add_argument("table", type=directory, metavar="TABLE|DIR", help="CSV or parquet, or a sweep")
    fit.add_argument("--approach", default="all", metavar="NAME", help="envelope, isoflop, parametric or all")
    fit.add_argument("--coverage", type=int, default=0, metavar="N", help="sweeps simulated to test the intervals")
    fit.add_argument("--by", default="", metavar="COLUMN", help="fit the rows of each value apart, and compare them")
    fit.add_argument("--figure", type=Path, metavar="FILE", help="with --by: draw loss against compute by arm (.png)")
    fit.add_argument("--curves", type=Path, metavar="FILE", help="training curves for the envelope, as in curves.csv")
    with_choices(fit)
    fit.add_argument("--json", type=Path, metavar="FILE")

    report = verb("report", run_report, "fit, draw and write report.html anew")
    report.add_argument("dir", type=directory)
    report.add_argument("--title", default="", metavar="TEXT", help="title of the page (default: the sweep's)")
    report.add_argument(
        "--coverage",
        type=int,
        metavar="N",
        help="sweeps simulated to test the intervals (default: 100, fewer the larger the table, none above 250 rows)",
    )
    with_choices(report)

    predict = verb("predict", run_predict, "predict the best run of a budget, size, token count or loss")
    predict.add_argument("law", metavar="LAW", help="law.json, a directory with one, or a published law's name")
    for name, unit in (("flops", "FLOPs"), ("params", "parameters"), ("tokens", "tokens"), ("loss", "nats a token")):
        predict.add_argument(f"--{name}", type=float, metavar="X", help=f"the run's {unit}")
    predict.add_argument("--form", default="", metavar="FILE[:NAME]", help="the file that makes the form of the law")
    predict.add_argument(
        "--at", action="append", default=[], metavar="COLUMN=X", help="hold another column that the law reads at X"
    )
    predict.add_argument("--inference-tokens", type=float, metavar="X", help="tokens to be served: add their FLOPs")
    predict.add_argument("--unique-tokens", type=float, metavar="X", help="repeat the data beyond so many tokens")
    predict.add_argument("--devices", type=Path, metavar="FILE", help="your own table in the place of devices.csv")
    predict.add_argument("--device", action="append", metavar="NAME", help="cost on this device only; may be repeated")
    predict.add_argument("--count", type=int, default=8, help="devices to share the work (default: 8)")
    predict.add_argument("--force", action="store_true", help="forecast from a degenerate law too")
    predict.add_argument("--register", type=Path, metavar="FILE", help="write the prediction down, dated and hashed")
    predict.add_argument("--json", type=Path, metavar="FILE")

    score = verb("score", run_score, "compare a registered prediction with its run")
    score.add_argument("prediction", type=Path, metavar="FILE")
    score.add_argument("dir", type=directory, metavar="RUN", help="the directory of the finished run")
    score.add_argument("--json", type=Path, metavar="FILE")

    verb("keys", run_keys, "list every key of law.json, as docs/law.json.md does")

    test = verb("selftest", run_selftest, "recover planted laws and a known entropy")
    test.add_argument("--sweeps", type=int, default=50, help="simulated sweeps per law (default: %(default)s)")
    test.add_argument("--steps", type=int, default=400, help="steps of the Markov run (default: %(default)s)")
    test.add_argument("--json", type=Path, metavar="FILE")


def run_keys(args: argparse.Namespace) -> None:
    from gptjax.commands.listing import keys_as_markdown

    print(keys_as_markdown(), end="")


def with_choices(sub: argparse.ArgumentParser) -> None:
    choice = sub.add_argument_group("choices").add_argument
    choice("--convention", default="", metavar="NAME", help="of N and C, as 6n_non_embedding (default: the table's)")
    choice("--form", default="chinchilla", metavar="NAME", help="of the parametric law, or FILE[:NAME] that makes one")
    choice("--drop-highest-loss", type=int, default=0, metavar="K", help="leave out the K highest losses")
    choice("--loss", default="huber", help="huber, lad, lsq-log or lsq: how the parametric fit weighs errors")
    choice("--delta", type=float, default=1e-3, help="of huber (default: %(default)s)")
    choice("--weights", default="equal", help="equal, or noise: 1 / loss_se^2")
    choice("--interp", default="parabola", help="parabola or akima, through an isoFLOP budget")
    choice(
        "--window",
        type=int,
        default=0,
        metavar="K",
        help="sizes on either side that a parabola sees (default: by range and noise)",
    )
    choice("--unfinished", action="store_true", help="count training curves before their schedule ended")
    choice("--bootstrap", type=int, default=0, metavar="N", help="draws (default: 1000)")
    choice("--cluster", default="auto", help="what the parametric bootstrap draws: rows, runs, params or noise")
    choice("--seed", type=int, default=0, metavar="S")


def chosen_of(args: argparse.Namespace) -> dict[str, Any]:
    """Give what was chosen, by the names of the fields of Choices."""
    from gptjax.laws.fit import Choices

    return {field.name: getattr(args, field.name) for field in fields(Choices)}


def run_fit(args: argparse.Namespace) -> None:
    use_compilation_cache(SLOW)
    from gptjax.lab import laws

    if args.figure and not args.by:
        raise BadInput("--figure draws arms; name the column that tells them apart: --by COLUMN")
    runs = laws.read(args.table)
    for warning in runs.warnings:
        print(f"gptjax: {warning}", file=sys.stderr)
    settings = {"approaches": args.approach, "curves": args.curves, "tables": bool(args.json)}
    settings |= {"coverage": args.coverage, **chosen_of(args)}
    if args.by:
        with as_flags("approach", "coverage", "curves"):
            found = laws.fit(runs, by=args.by, **settings)
        return run_arms(args, found)
    if "arm" in runs.cells and len(arms := runs.arms("arm")) > 1:
        print(f"gptjax: one law for the arms {', '.join(arms)} together; --by arm fits each", file=sys.stderr)
    with as_flags("approach", "coverage"):
        law = laws.fit(runs, sweep=args.table if args.table.is_dir() else None, **settings)
    if args.json:
        law.save(args.json)
    print(describe_law(law.analysis))


def describe_law(law: "Analysis") -> str:
    """Lay a fit out for a terminal: a line for each approach, and what to quote."""
    from gptjax.laws import coverage
    from gptjax.laws.quote import as_text

    lines = []
    for name, found in law.approaches.items():
        lines += [f"{name}: {found.status}; {describe_fit(found)}", *(f"  {reason}" for reason in found.reasons)]
    if law.coverage:
        lines.append(coverage.describe(law.coverage))
    return "\n".join([*lines, "", as_text(law.quote)])


def run_arms(args: argparse.Namespace, found: "FittedArms") -> None:
    """Say how the arms of a table compare, each with its law."""
    from gptjax.files import write_file
    from gptjax.laws.drawing.drawn import to_png

    if args.json:
        found.save(args.json)
    if args.figure:
        write_file(args.figure, to_png(found.plot.arms()))
    blocks = [f"{found.by} {name}\n{describe_law(law.analysis)}" for name, law in found.arms.items()]
    print("\n\n".join([*blocks, str(found)]))


def describe_fit(found: "Found") -> str:
    """Say a fit in a line: exponents with 95 % intervals and the coefficients of the parametric law."""
    from gptjax.laws.record import ParametricFound

    if found.a is None:
        return "no law"
    known = {"a": (found.a, found.a_interval), "b": (found.b, found.b_interval)}
    further = ""
    if isinstance(found, ParametricFound):
        known |= {name: (each.value, each.interval) for name, each in found.coefficients.items()}
        further = "".join(f", at {name} = {value:.4g}" for name, value in found.held.items())
    text = ", ".join(
        f"{name} {value:.4g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else "")
        for name, (value, ends) in known.items()
    )
    return f"{text}{further}; {len(found.used)} points used, {len(found.dropped)} dropped"


def held_of(texts: list[str]) -> dict[str, float]:
    """Read the values at which a forecast holds columns."""
    held = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            held[name] = float(value)
        except ValueError:
            raise BadInput(f"--at {text} is not COLUMN=X with a number X; give one, as annealing=0.5") from None
    return held


def run_report(args: argparse.Namespace) -> None:
    use_compilation_cache(SLOW)
    from gptjax.files import read_json
    from gptjax.lab import laws
    from gptjax.laws.quote import as_text

    with as_flags("coverage"):
        path = laws.report(args.dir, coverage=args.coverage, title=args.title, **chosen_of(args))
    print(f"{as_text(read_json(path.with_name('law.json'))['quote'])}\n{path}")


ASKED = ("flops", "params", "tokens", "loss", "unique_tokens", "inference_tokens", "form", "force", "devices", "device",
         "count")  # what `lab.forecasts.predict` takes under the names of the flags  # fmt: skip


def run_predict(args: argparse.Namespace) -> None:
    from gptjax.lab.forecasts import predict
    from gptjax.sweep import advice

    said = predict(args.law, at=held_of(args.at), **{name: getattr(args, name) for name in ASKED})
    if args.register:
        said.register(args.register)
    if args.json:
        said.save(args.json)
    print(f"{said}\n\n{advice.describe(said.advice)}")


def run_score(args: argparse.Namespace) -> None:
    from gptjax.files import write_json
    from gptjax.lab import laws

    found = laws.score(args.prediction, args.dir)
    if args.json:
        write_json(args.json, found)
    verdict = {None: "no interval was given", True: "inside the interval", False: "outside the interval"}
    print(f"predicted {found['predicted']:.4f}, measured {found['measured']:.4f}, log error "
          f"{found['log_error']:+.4f}: {verdict[found['inside']]}")  # fmt: skip


def run_selftest(args: argparse.Namespace) -> None:
    if args.sweeps < 1 or args.steps < 100:
        raise BadInput(f"--sweeps {args.sweeps} must be at least 1 and --steps {args.steps} at least 100")
    use_compilation_cache()
    from gptjax.files import write_json
    from gptjax.laws.codec import written
    from gptjax.selftest import describe, selftest

    result = selftest(args.sweeps, args.steps)
    if args.json:
        write_json(args.json, written(result))
    print(describe(result))
    if not result["markov"].get("sound"):
        sys.exit(1)
