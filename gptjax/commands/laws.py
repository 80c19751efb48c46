"""The verbs of laws: fit, report, predict, score, keys, selftest."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.commands.arguments import Verb, directory, existing, load, tables_of
from gptjax.errors import BadInput
from gptjax.jobs.process import use_compilation_cache

if TYPE_CHECKING:
    from gptjax.laws.record import Analysis, Found
    from gptjax.laws.table import Runs


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


def choices_of(args: argparse.Namespace) -> Any:
    from gptjax.laws.fit import Choices

    if args.coverage is not None and args.coverage < 0:
        raise BadInput(f"--coverage {args.coverage} counts sweeps; give 0 or more")

    given = {field.name: getattr(args, field.name) for field in fields(Choices)}
    return Choices(**given | {"form": form_of(args.form)})


def run_fit(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from gptjax.files import write_json
    from gptjax.laws.analysis import fit_all, require_law
    from gptjax.laws.approaches import BY_NAME
    from gptjax.laws.checks import read_curves, read_runs
    from gptjax.laws.quote import quote, read_forecast

    table = tables_of(args.table) / "runs.csv" if args.table.is_dir() else args.table
    if args.approach not in (*BY_NAME, "all"):
        raise BadInput(f"--approach {args.approach!r} is not known; use one of {', '.join(BY_NAME)} or all")
    approaches = tuple(BY_NAME) if args.approach == "all" else (args.approach,)
    curves = read_curves(args.curves) if args.curves else None
    settings = {"approaches": approaches, "curves": curves, "tables": bool(args.json), "sweeps": args.coverage}
    runs = read_runs(table)
    for warning in runs.warnings:
        print(f"gptjax: {warning}", file=sys.stderr)
    if args.figure and not args.by:
        raise BadInput("--figure draws arms; name the column that tells them apart: --by COLUMN")
    if args.by:
        return run_arms(args, runs, settings)
    if "arm" in runs.cells and len(arms := runs.arms("arm")) > 1:
        print(f"gptjax: one law for the arms {', '.join(arms)} together; --by arm fits each", file=sys.stderr)
    with tqdm(total=args.coverage, desc="coverage", unit="sweep", disable=None, leave=False) as bar:
        law = fit_all(runs, choices_of(args), **settings, done=bar.update)
    require_law(law)
    if args.table.is_dir():
        law = replace(law, quote=quote(law, read_forecast(args.table)))
    if args.json:
        write_json(args.json, law.to_json())
    print(describe_law(law))


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


def run_arms(args: argparse.Namespace, runs: "Runs", settings: dict[str, Any]) -> None:
    """Fit each value of a column apart, and say how the arms compare."""
    from gptjax.files import write_file, write_json
    from gptjax.laws import compare, plot
    from gptjax.laws.drawn import to_png

    if settings.pop("curves"):
        raise BadInput("--curves are of one table's runs; fit arms without them")
    arms = compare.fit_arms(runs, args.by, choices_of(args), **settings)
    if args.json:
        write_json(args.json, arms.to_json())
    if args.figure:
        write_file(args.figure, to_png(plot.loss_by_arm(runs.arms(args.by), arms)))
    blocks = [f"{args.by} {name}\n{describe_law(law)}" for name, law in arms.arms.items()]
    print("\n\n".join([*blocks, "\n".join(map(compare.describe, arms.compared))]))


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


def form_of(text: str) -> str:
    """Give the name of a form; a form that a Python file makes gets its row in the table of forms."""
    from gptjax.laws.forms import FORMS, Form

    if ":" not in text and not text.endswith(".py"):
        return text
    form = load(text, Form, "form")
    FORMS[form.name] = form
    return form.name


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
    from tqdm import tqdm

    from gptjax.files import read_json
    from gptjax.laws.quote import as_text
    from gptjax.laws.report import write_report

    if (args.dir / "arms").is_dir():
        raise BadInput(f"{args.dir} holds a sweep of several arms; give the folder of one, as {args.dir}/arms/NAME")
    with tqdm(total=args.coverage, desc="coverage", unit="sweep", disable=None, leave=False) as bar:
        path = write_report(tables_of(args.dir), choices_of(args), args.coverage, bar.update, args.title)
    print(f"{as_text(read_json(path.with_name('law.json'))['quote'])}\n{path}")


SERVED = "The run of this loss that costs least to train and to serve together, whatever its training costs"
CONSTRAINED = "The best run of this budget where tokens beyond the unique ones are repeated; below one epoch none are"


def run_predict(args: argparse.Namespace) -> None:
    if args.form:
        form_of(args.form)
    from gptjax.devices import devices
    from gptjax.files import write_json
    from gptjax.laws import predict as laws
    from gptjax.laws.checks import read_runs
    from gptjax.laws.registered import held_out_miss, register
    from gptjax.sweep import advice

    forecaster = laws.read_forecaster(args.law, args.force, held_of(args.at))
    asked = {name: getattr(args, name) for name in ("flops", "params", "tokens", "loss", "unique_tokens")}
    said = laws.predict(forecaster, **asked)
    extra = {}
    if args.inference_tokens is not None:
        extra["served"] = laws.serve(forecaster, said["loss"], args.inference_tokens)
    exact = "unique_tokens" in said  # the run itself was given, and its loss allows for what is repeated
    if args.unique_tokens is not None:
        extra["constrained"] = said if exact else laws.constrain(forecaster, said["flops"], args.unique_tokens)
    hyper = None if args.law in laws.PUBLISHED else laws.read_law(args.law).hyper
    layers_only = said["params"] if said["convention"].startswith("6n_non_embedding") else None
    advised = advice.advise(
        said["params"],
        said["tokens"],
        said["flops"],
        hyper=hyper,
        runs=read_runs(table) if hyper is None and (table := Path(args.law) / "runs.csv").is_file() else None,
        devices=devices(args.devices),
        names=args.device,
        count=args.count,
        non_embedding=layers_only,
    )
    if args.register:
        register(said, args.register)
    if args.json:
        write_json(args.json, {"prediction": said, **extra, "advice": advised})
    shown = [laws.describe(said)]
    if doubt := held_out_miss(args.law):
        shown.append(f"doubt     {doubt}")
    if any(other is not said for other in extra.values()) and said["optimum_from"] == "isoflop":
        own = laws.describe(laws.by_its_own_law(forecaster, said["flops"]))
        shown.append(f"What follows is by the parametric law, which has an optimum of its own at that budget:\n{own}")
    for name, title in (("served", SERVED), ("constrained", CONSTRAINED)):
        if name in extra and extra[name] is not said:
            shown.append(f"{title}:\n{laws.describe(extra[name])}")
    print("\n\n".join([*shown, advice.describe(advised)]))


def run_score(args: argparse.Namespace) -> None:
    from gptjax.config import from_json
    from gptjax.files import read_json, write_json
    from gptjax.laws.registered import score
    from gptjax.laws.table import CONVENTIONS
    from gptjax.models.cost import params_by
    from gptjax.run.result import Result

    existing(args.dir, "result.json", "a finished run")
    result = from_json(Result, read_json(args.dir / "result.json"))
    if result.loss is None:
        raise BadInput(f"{args.dir} failed ({result.reason}) and has no loss to score; train it again")
    said = read_json(args.prediction)
    convention = str(said.get("prediction", {}).get("convention", "")) if isinstance(said, dict) else ""
    counted = CONVENTIONS.get(convention.partition(":")[0], ("total", ""))[0]
    found = score(args.prediction, result.loss, params_by(result.params)[counted], result.tokens)
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
