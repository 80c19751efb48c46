"""The verbs that ask what models know: eval, tasks."""

import argparse
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.commands.arguments import Verb, writable
from gptjax.errors import BadInput
from gptjax.jobs.process import use_compilation_cache

if TYPE_CHECKING:
    from gptjax.eval.tasks import Task

Row = dict[str, Any]

EXAMPLES = 200
MADE = "identifier, bracket, docstring, copy, reverse, addition, lookup"
FACTS = ("model", "step", "params", "tokens", "flops")  # of a model, beside each of its scores


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


def make_tasks(names: list[str], args: argparse.Namespace) -> "list[Task]":
    """Make the tasks of these names; the corpus is read once, and only if one of them needs it."""
    from gptjax.eval.synthetic_tasks import FROM_TEXT, make_task, validation_texts

    texts = validation_texts(args.source) if set(names) & set(FROM_TEXT) else []
    examples = EXAMPLES if args.examples is None else args.examples
    return [make_task(name, examples, args.seed, args.context_bytes, texts) for name in names]


def run_tasks(args: argparse.Namespace) -> None:
    from gptjax.eval.synthetic_tasks import NAMES
    from gptjax.eval.tasks import harness_task, to_jsonl
    from gptjax.files import write_file
    from gptjax.run.export import written_aside

    writable(args.out)
    tasks = make_tasks(list(NAMES), args)
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
    from gptjax.eval.tasks import Task
    from gptjax.files import plain, write_file, write_json
    from gptjax.run.weights import saved_model

    shots = read_shots(args.shots)
    if args.examples is not None and args.examples < 1:
        raise BadInput(f"--examples {args.examples} must be at least 1")
    if args.sequences == 0 and not args.task:
        raise BadInput("--sequences 0 leaves nothing to evaluate; give a --task, or 2 sequences or more")
    models = [saved_model(directory, args.step) for directory in args.models]
    tasks: list[Task] = read_tasks(args)
    found = [evaluate_model(saved, tasks, shots, args) for saved in models]
    if args.json:
        write_json(args.json, plain({"models": found}))
    if args.csv:
        write_file(args.csv, to_csv(found))
    print("\n\n".join(tables(found)))


def read_shots(text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isdecimal() for count in counts):
        raise BadInput(f"--shots {text!r} is not numbers of 0 or more with commas between; write it as 0,1,5")
    return [int(count) for count in counts]


def read_tasks(args: argparse.Namespace) -> "list[Task]":
    """Read and make the tasks that are asked for, in that order."""
    from gptjax.eval.synthetic_tasks import NAMES
    from gptjax.eval.tasks import read_task

    files = {name: read_task(Path(name)) for name in args.task if name not in NAMES and Path(name).is_file()}
    if unknown := [name for name in args.task if name not in NAMES and name not in files]:
        raise BadInput(f"task {unknown[0]!r} is neither a file nor one of {', '.join(NAMES)}; see gptjax tasks")
    names = [name for name in args.task if name in NAMES]
    made = dict(zip(names, make_tasks(names, args), strict=True))
    return [files[name] if name in files else made[name] for name in args.task]


def evaluate_model(saved: Any, tasks: "list[Task]", shots: list[int], args: argparse.Namespace) -> Row:
    """Evaluate a model on corpora and tasks; return its facts and its scores."""
    from gptjax.config import EvalConfig
    from gptjax.data.objectives import CAUSAL
    from gptjax.eval.perplexity import measure, stores_for
    from gptjax.eval.tasks import check_task, evaluate_task
    from gptjax.run.export import facts_of

    name = str(saved.directory)
    usual = saved.run.evaluate if saved.run else EvalConfig()
    sequences = usual.sequences if args.sequences is None else args.sequences
    stores = stores_for(saved, args.corpus) if sequences else ()
    for task in tasks:
        for k in shots:
            check_task(task, k, saved.config, saved.tokenizer, examples=args.examples or 0, seed=args.seed)
    layout = saved.layout()
    params = saved.read(layout)
    own = args.corpus is None
    corpora = [
        measure(
            params,
            saved.model,
            store,
            layout,
            split=args.split,
            sequences=sequences,
            batch=usual.batch if own else 1,
            separate_documents=bool(saved.run and saved.run.data.separate_documents),
            objective=saved.run.data.objective if saved.run else CAUSAL,
            progress=f"{name} on {store.manifest.corpus}",
        )
        for store in stores
    ]
    scores = [
        evaluate_task(
            task,
            k,
            params,
            saved.model,
            saved.tokenizer,
            layout,
            examples=args.examples or 0,
            seed=args.seed,
            progress=True,
        )
        for task in tasks
        for k in shots
    ]
    facts, cost = facts_of(saved), saved.config.cost(saved.config.context)
    tokens = facts.get("tokens")
    return {
        "model": name,
        "step": facts.get("step"),
        "params": cost.total,
        "tokens": tokens,
        "flops": None if tokens is None else tokens * cost.flops["6n_total"],  # 6 N D of all parameters
        "context": saved.config.context,
        "corpora": corpora,
        "tasks": scores,
    }


def numbers(model: Row) -> Iterator[tuple[str, str, int | None, int, str, Any]]:
    """Yield every score of a model: what on, split, shots, of how many, its name, and its estimate."""
    for p in model["corpora"]:
        for metric in ("loss", "perplexity", "bits_per_byte"):
            yield p.corpus, p.split, None, p.sequences, metric, getattr(p, metric)
        for b in p.bins:
            yield p.corpus, p.split, None, p.sequences, f"loss at {b.name}", b.loss
    for t in model["tasks"]:
        for metric, estimate in t.metrics.items():
            yield t.task, "", t.shots, t.examples, metric, estimate


def to_csv(found: list[Row]) -> str:
    """Return a line for each number of each model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FACTS, "on", "split", "shots", "n", "metric", "value", "se"])
    for model in found:
        for *what, estimate in numbers(model):
            writer.writerow([*(model[fact] for fact in FACTS), *what, estimate.value, estimate.se])
    return text.getvalue()


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
