"""The verbs that ask what models know: eval, tasks."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.commands.arguments import Verb, as_flags, writable
from gptjax.errors import BadInput
from gptjax.jobs.process import use_compilation_cache

if TYPE_CHECKING:
    from gptjax.lab.evaluation import Made

Row = dict[str, Any]

EXAMPLES = 200  # of each task that is made, unless another number is asked for
MADE = "identifier, bracket, docstring, copy, reverse, addition, lookup"


def add(verb: Verb) -> None:
    evaluate = verb("eval", run_eval, "what models know: loss by position, perplexity, bits per byte, tasks")
    evaluate.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="the directories of runs or of weights")
    evaluate.add_argument("--corpus", help="default: what a run was trained on")
    evaluate.add_argument("--split", choices=("train", "validation"), default="validation", help="default: %(default)s")
    evaluate.add_argument("--sequences", type=int, help="windows, 0 for none; default: as the run does, or 512")
    evaluate.add_argument("--task", action="append", default=[], metavar="NAME|FILE.jsonl", help="may be repeated")
    evaluate.add_argument("--shots", default="0", help="answered examples before each, as 0,1,5 (default: %(default)s)")
    with_making(evaluate)
    evaluate.add_argument("--step", type=int, help="default: the newest intact one")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write all, with the loss at every position")
    evaluate.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each number")

    tasks = verb("tasks", run_tasks, "write the tasks that are made here as JSONL, each with its YAML for lm-eval")
    tasks.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    with_making(tasks)


def with_making(sub: argparse.ArgumentParser) -> None:
    made = sub.add_argument_group(f"tasks made here: {MADE}").add_argument
    made("--examples", type=int, help=f"of each task; default: {EXAMPLES} of what is made, all of a file")
    made("--seed", type=int, default=0, help="of tasks made and of shots drawn (default: %(default)s)")
    made("--context-bytes", type=int, default=96, help="a question is at most so long (default: %(default)s)")
    made("--from", dest="source", default="python", metavar="CORPUS", help="default: %(default)s")


def made_of(args: argparse.Namespace) -> "Made":
    from gptjax.lab.evaluation import Made

    return Made(args.examples, args.seed, args.context_bytes, args.source)


def run_tasks(args: argparse.Namespace) -> None:
    from gptjax.eval.synthetic_tasks import NAMES
    from gptjax.eval.tasks import harness_task, to_jsonl
    from gptjax.files import write_file
    from gptjax.lab.evaluation import make_tasks
    from gptjax.run.export import written_aside

    writable(args.out)
    tasks = make_tasks(NAMES, made_of(args))
    with written_aside(args.out) as aside:
        for task in tasks:
            write_file(aside / f"{task.name}.jsonl", to_jsonl(task))
            described = harness_task(task, args.out / f"{task.name}.jsonl")
            write_file(aside / f"{task.name}.yaml", json.dumps(described, indent=1) + "\n")  # JSON is YAML
    for task in tasks:
        chance = "cloze" if task.chance is None else f"chance {task.chance:.3f}"
        print(f"{args.out / task.name}.jsonl: {len(task.rows)} rows, {chance}")


def run_eval(args: argparse.Namespace) -> None:
    use_compilation_cache()
    from gptjax.files import write_file
    from gptjax.lab.evaluation import evaluate

    with as_flags("examples", "sequences"):
        found = evaluate(
            args.models,
            corpus=args.corpus,
            split=args.split,
            sequences=args.sequences,
            tasks=args.task,
            shots=read_shots(args.shots),
            examples=args.examples,
            seed=args.seed,
            context_bytes=args.context_bytes,
            source=args.source,
            step=args.step,
        )
    if args.json:
        found.save(args.json)
    if args.csv:
        write_file(args.csv, found.to_csv())
    print("\n\n".join(tables(found.models)))


def read_shots(text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isdecimal() for count in counts):
        raise BadInput(f"--shots {text!r} is not numbers of 0 or more with commas between; write it as 0,1,5")
    return [int(count) for count in counts]


def tables(found: list[Row]) -> Iterator[str]:
    """Yield a table for each corpus, one by position, and one for each task and number of shots."""
    for c, first in enumerate(found[0]["corpora"]):
        each = [(model, model["corpora"][c]) for model in found if c < len(model["corpora"])]
        head = ["nats a token", "perplexity", "bits a byte"]
        rows = [[str(p.loss), str(p.perplexity), str(p.bits_per_byte)] for _, p in each]
        yield table(f"{first.corpus} {first.split}, {first.sequences} sequences", [m for m, _ in each], head, rows)
        head = list(dict.fromkeys(b.name for _, p in each for b in p.bins))
        by_name = [{b.name: f"{b.loss.value:.3f}" for b in p.bins} for _, p in each]
        noise = max(b.loss.se for _, p in each for b in p.bins)
        title = f"by position in the context: nats a token (standard error up to {noise:.3f})"
        yield table(title, [m for m, _ in each], head, [[names.get(name, "") for name in head] for names in by_name])
    for t, first in enumerate(found[0]["tasks"]):
        scores = [model["tasks"][t] for model in found]
        head = [name for name in first.metrics if name != "perplexity" or first.chance is None]
        rows = [[*(short(s.metrics[name]) for name in head), str(s.truncated), str(s.merged)] for s in scores]
        chance = "cloze" if first.chance is None else f"chance {first.chance:.3f}"
        title = f"{first.task}, {first.shots} shots, {first.examples} examples, {chance}"
        yield table(title, found, [*head, "truncated", "merged"], rows)


def short(estimate: Any) -> str:
    digits = 0 if estimate.value > 100 else 3
    return f"{estimate.value:.{digits}f} ± {estimate.se:.{digits}f}"


def table(title: str, models: list[Row], head: list[str], rows: list[list[str]]) -> str:
    """Lay out a row for each model under a title, its facts first."""

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    cells = [["model", "N", "D", "C", *head]]
    for model, row in zip(models, rows, strict=True):
        cells.append([model["model"], *(figure(model[fact]) for fact in ("params", "tokens", "flops")), *row])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )
    return "\n".join([title, *(line.rstrip() for line in lines)])
