"""What models know, from Python: loss by position, perplexity, bits per byte, tasks."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptjax.config import EvalConfig
from gptjax.data.objectives import CAUSAL
from gptjax.errors import BadInput
from gptjax.eval.perplexity import measure, stores_for
from gptjax.eval.synthetic_tasks import FROM_TEXT, NAMES, make_task, validation_texts
from gptjax.eval.tasks import Task, check_task, evaluate_task, read_task
from gptjax.files import plain, write_json
from gptjax.lab.places import writable
from gptjax.lab.weights import Weights, saved_at
from gptjax.laws.frames import Frame
from gptjax.run.export import facts_of

Row = dict[str, Any]

EXAMPLES = 200
FACTS = ("model", "step", "params", "tokens", "flops")  # of a model, beside each of its scores
COLUMNS = (*FACTS, "on", "split", "shots", "n", "metric", "value", "se")


@dataclass(frozen=True)
class Made:
    """How tasks are made here."""

    examples: int | None = None  # of each task; None: 200 of what is made, all of a file
    seed: int = 0  # of tasks made and of shots drawn
    context_bytes: int = 96  # a question is at most so long
    source: str = "python"  # the corpus that some are made from


def make_tasks(names: Sequence[str], made: Made) -> list[Task]:
    """Make the tasks of these names; the corpus is read once, and only if one of them needs it."""
    texts = validation_texts(made.source) if set(names) & set(FROM_TEXT) else []
    examples = EXAMPLES if made.examples is None else made.examples
    return [make_task(name, examples, made.seed, made.context_bytes, texts) for name in names]


def read_tasks(asked: Sequence[str], made: Made) -> list[Task]:
    """Read and make the tasks that are asked for, in that order."""
    files = {name: read_task(Path(name)) for name in asked if name not in NAMES and Path(name).is_file()}
    if unknown := [name for name in asked if name not in NAMES and name not in files]:
        raise BadInput(f"task {unknown[0]!r} is neither a file nor one of {', '.join(NAMES)}; see gptjax tasks")
    names = [name for name in asked if name in NAMES]
    new = dict(zip(names, make_tasks(names, made), strict=True))
    return [files[name] if name in files else new[name] for name in asked]


@dataclass(frozen=True)
class Evaluated:
    """What models know: for each its facts, what it makes of corpora (`Perplexity`), and its scores of tasks."""

    models: list[Row]

    def numbers(self) -> Iterator[Row]:
        """Yield a row for each number of each model: COLUMNS."""
        for model in self.models:
            facts = {name: model[name] for name in FACTS}
            for on, split, shots, n, metric, estimate in _numbers(model):
                what = {"on": on, "split": split, "shots": shots, "n": n, "metric": metric}
                yield {**facts, **what, "value": estimate.value, "se": estimate.se}

    def table(self) -> Frame:
        """Give a row for each number of each model, with its standard error."""
        return Frame(list(self.numbers()))

    def to_csv(self) -> str:
        """Give a line for each number of each model."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.numbers())
        return text.getvalue()

    def to_json(self) -> Row:
        """Give all of it, with the loss at every position, as `gptjax eval --json` writes it."""
        return plain({"models": self.models})

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON."""
        writable(Path(path))
        write_json(Path(path), self.to_json())

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _numbers(model: Row) -> Iterator[tuple[str, str, int | None, int, str, Any]]:
    """Yield every score of a model: what on, split, shots, of how many, its name, and its estimate."""
    for p in model["corpora"]:
        for metric in ("loss", "perplexity", "bits_per_byte"):
            yield p.corpus, p.split, None, p.sequences, metric, getattr(p, metric)
        for b in p.bins:
            yield p.corpus, p.split, None, p.sequences, f"loss at {b.name}", b.loss
    for t in model["tasks"]:
        for metric, estimate in t.metrics.items():
            yield t.task, "", t.shots, t.examples, metric, estimate


def evaluate(
    models: Any,
    *,
    corpus: str | None = None,
    split: Literal["train", "validation"] = "validation",
    sequences: int | None = None,
    tasks: Sequence[str] = (),
    shots: Sequence[int] = (0,),
    examples: int | None = None,
    seed: int = 0,
    context_bytes: int = 96,
    source: str = "python",
    step: int | None = None,
) -> Evaluated:
    """Measure what models know: loss by position, perplexity and bits per byte of a corpus, and tasks.

    `models` is one or several, each what `load` gave or the directory of a run or of weights, at `step`. `corpus` is by
    default what a run was trained on; `sequences` are windows of it, 0 for none (default: as the run does, or 512).
    `tasks` are names of those made here, or JSONL files, each with so many `shots`. Raises BadInput for a task that a
    model cannot take and for what is not there.
    """
    if examples is not None and examples < 1:
        raise BadInput(f"examples {examples} must be at least 1")
    if sequences == 0 and not tasks:
        raise BadInput("sequences 0 leaves nothing to evaluate; give a task, or 2 sequences or more")
    if split not in ("train", "validation"):
        raise BadInput(f"split {split!r} is not known; use train or validation")
    several = models if isinstance(models, list | tuple) else [models]
    found = [model if isinstance(model, Weights) else Weights(saved_at(model, step)) for model in several]
    made = Made(examples, seed, context_bytes, source)
    given = read_tasks([tasks] if isinstance(tasks, str) else tasks, made)
    return Evaluated([_evaluate(model, given, shots, made, corpus, split, sequences) for model in found])


def _evaluate(
    weights: Weights,
    tasks: Sequence[Task],
    shots: Sequence[int],
    made: Made,
    corpus: str | None,
    split: Literal["train", "validation"],
    sequences: int | None,
) -> Row:
    """Evaluate a model on corpora and tasks; return its facts and its scores."""
    saved, name = weights.saved, str(weights.saved.directory)
    usual = saved.run.evaluate if saved.run else EvalConfig()
    sequences = usual.sequences if sequences is None else sequences
    stores = stores_for(saved, corpus) if sequences else ()
    drawn: dict[str, Any] = {"examples": made.examples or 0, "seed": made.seed}
    for task in tasks:
        for k in shots:
            check_task(task, k, saved.config, saved.tokenizer, **drawn)
    layout, params = weights.layout, weights.params
    corpora = [
        measure(
            params,
            saved.model,
            store,
            layout,
            split=split,
            sequences=sequences,
            batch=usual.batch if corpus is None else 1,
            separate_documents=bool(saved.run and saved.run.data.separate_documents),
            objective=saved.run.data.objective if saved.run else CAUSAL,
            progress=f"{name} on {store.manifest.corpus}",
        )
        for store in stores
    ]
    scores = [
        evaluate_task(task, k, params, saved.model, saved.tokenizer, layout, **drawn, progress=True)
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
