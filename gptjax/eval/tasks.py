"""Tasks by log-likelihood: multiple choice and cloze, with any number of examples before the question.

A task is a JSONL file. Of each line, {"context": text, "choices": [text, ...], "answer": index} is multiple choice and
{"context": text, "answer": text} is cloze. A choice follows its context as it is, so most begin with a space.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.data.text_files import json_values
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import BadInput
from gptjax.eval.estimates import Estimate, mean
from gptjax.eval.score import Request, check_request, score
from gptjax.models.model import Model, ModelConfig
from gptjax.params import Params
from gptjax.sharding import Layout

BETWEEN = "\n\n"  # examples: Brown et al. 2020, section 2.4, and lm-eval's fewshot_delimiter


@dataclass(frozen=True)
class TaskRow:
    """A question: what stands before the answer, and the answer among its choices, which is alone if it is cloze."""

    context: str
    choices: tuple[str, ...]
    answer: int
    where: str = field(default="", compare=False)  # file and line, for messages

    @property
    def text(self) -> str:
        return self.context + self.choices[self.answer]


@dataclass(frozen=True)
class Task:
    """Questions of one kind."""

    name: str
    rows: tuple[TaskRow, ...]

    @property
    def is_cloze(self) -> bool:
        return len(self.rows[0].choices) == 1

    @property
    def chance(self) -> float | None:
        """How often a guess among the choices is right."""
        return None if self.is_cloze else float(np.mean([1 / len(row.choices) for row in self.rows]))


@dataclass(frozen=True)
class TaskScore:
    """What a model makes of a task; standard errors are over examples.

    metrics: `acc` takes the choice of largest log p, `acc_bytes` of largest log p a byte (lm-eval's acc_norm, but for
    characters of several bytes), `acc_tokens` a token (Brown et al. 2020, section 2.4); `nats` is -log p of the right
    answer, `perplexity` e to its mean, and `exact` how often greedy decoding says it.
    """

    task: str
    shots: int
    examples: int
    chance: float | None
    truncated: int  # examples whose context was cut off on the left for one choice or more
    merged: int  # examples where a token spans the end of the context, so that the scored tokens are not the text
    metrics: dict[str, Estimate]


def read_task(path: Path) -> Task:
    """Read a JSONL file; BadInput names the line that is not a question, what it should be, and what it is."""
    rows = tuple(_read_row(where, value) for where, value in json_values(path))
    if not rows:
        raise BadInput(f"{path} has no rows; give one JSON object a line")
    kinds = [len(row.choices) == 1 for row in rows]
    if len(set(kinds)) > 1:
        odd = rows[kinds.index(not kinds[0])]
        raise BadInput(f"{odd.where} is {_kind(not kinds[0])}; expected {_kind(kinds[0])}, as before it")
    return Task(path.stem, rows)


def _kind(cloze: bool) -> str:
    return "cloze" if cloze else "multiple choice"


def _read_row(where: str, row: Any) -> TaskRow:
    keys = sorted(row) if isinstance(row, dict) else type(row).__name__
    if keys not in (["answer", "context"], ["answer", "choices", "context"]):
        raise BadInput(f"{where}: expected the keys context, answer and, for multiple choice, choices; found {keys}")
    if not isinstance(row["context"], str):
        raise BadInput(f"{where}: expected a text as context, found {row['context']!r}")
    answer = row["answer"]
    if "choices" not in row:
        if not isinstance(answer, str) or not answer:
            raise BadInput(f"{where}: expected a text that is not empty as answer, found {answer!r}")
        return TaskRow(row["context"], (answer,), 0, where)
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise BadInput(f"{where}: expected two choices or more, texts that are not empty, found {choices!r}")
    if len(set(choices)) < len(choices):
        raise BadInput(f"{where}: expected choices that differ, found {choices!r}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise BadInput(f"{where}: expected the index of a choice, 0 to {len(choices) - 1}, as answer, found {answer!r}")
    return TaskRow(row["context"], tuple(choices), answer, where)


def to_jsonl(task: Task) -> str:
    """Return what `read_task` reads."""
    rows = (
        {"context": row.context, "answer": row.choices[0]}
        if task.is_cloze
        else {"context": row.context, "choices": row.choices, "answer": row.answer}
        for row in task.rows
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def harness_task(task: Task, data: Path) -> dict[str, Any]:
    """Describe a task whose rows are in a file to lm-eval, so that its prompts and scores are ours."""
    metrics = ["acc", "perplexity"] if task.is_cloze else ["acc", "acc_norm", "acc_bytes"]
    given = [
        {
            "metric": metric,
            "aggregation": metric if metric == "perplexity" else "mean",
            "higher_is_better": metric != "perplexity",
        }
        for metric in metrics
    ]
    return {
        "task": f"gptjax_{task.name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "loglikelihood" if task.is_cloze else "multiple_choice",
        "doc_to_text": "context",
        "doc_to_target": "answer",
        **({} if task.is_cloze else {"doc_to_choice": "choices"}),
        "target_delimiter": "",
        "fewshot_delimiter": BETWEEN,
        "metric_list": given,  # a num_fewshot here could not be overridden
    }


# ---- prompts


def prompts(task: Task, shots: int, seed: int, examples: int = 0) -> list[str]:
    """Return what stands before the answer of each of the first rows (0: of all).

    The examples of a row are drawn from the others by lm-eval's sampler, so that a seed gives the harness's prompts.
    """
    rows = task.rows[: examples or None]
    if shots < 0:
        raise BadInput(f"{shots} shots are asked for; ask for 0 or more")
    if shots >= len(task.rows):
        raise BadInput(f"task {task.name} has {len(task.rows)} rows, too few for {shots} shots; write more")
    rng = random.Random(seed)
    return [join(_drawn(task, row, shots, rng), row) for row in rows]


def _drawn(task: Task, row: TaskRow, shots: int, rng: random.Random) -> list[TaskRow]:
    """Draw rows that are not this one, nor equal to it."""
    if not shots:
        return []
    drawn = [other for other in rng.sample(task.rows, shots + 1) if other != row][:shots]
    if len(drawn) < shots:
        others = [other for other in task.rows if other != row]
        if len(others) < shots:
            raise BadInput(f"{row.where}: {len(others)} rows differ from it, too few for {shots} shots; write more")
        drawn = rng.sample(others, shots)
    return drawn


def join(examples: Iterable[TaskRow], row: TaskRow) -> str:
    """Return the answered examples and the question, with blank lines between."""
    return "".join(example.text + BETWEEN for example in examples) + row.context


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> tuple[list[Request], np.ndarray]:
    """Turn contexts and their continuations into requests, and say in which a token spans the border between them.

    As lm-eval's `_encode_pair` with bos: white space at the end of a context goes to the continuation, both are
    tokenized as one text, and the continuation is what follows as many tokens as the context alone has.
    """
    moved = []
    for context, continuation in pairs:
        stripped = context.rstrip()
        moved.append((stripped, context[len(stripped) :] + continuation))
    texts = list(dict.fromkeys(text for before, after in moved for text in (before, before + after)))
    encoded = tokenizer.encode_many([text.encode("utf-8", "surrogatepass") for text in texts])
    led = {text: np.append(np.int32(tokenizer.bos), ids) for text, ids in zip(texts, encoded, strict=True)}
    requests, merged = [], []
    for before, after in moved:
        first, whole = led[before], led[before + after]
        requests.append(Request(first, whole[len(first) :]))
        merged.append(not np.array_equal(whole[: len(first)], first))
    return requests, np.array(merged, bool)


# ---- scores


def check_task(
    task: Task, shots: int, config: ModelConfig, tokenizer: Tokenizer, *, examples: int = 0, seed: int = 0
) -> tuple[tuple[TaskRow, ...], list[Request], np.ndarray]:
    """Return rows, requests and what `encode_pairs` says of them; BadInput where a model cannot score one."""
    rows = task.rows[: examples or None]
    contexts = prompts(task, shots, seed, examples)
    pairs = [(context, choice) for context, row in zip(contexts, rows, strict=True) for choice in row.choices]
    requests, merged = encode_pairs(tokenizer, pairs)
    names = [f"{row.where or task.name}: {choice!r}" for row in rows for choice in row.choices]
    for name, request in zip(names, requests, strict=True):
        check_request(request, config.context, name)
    return rows, requests, merged


def evaluate_task(
    task: Task,
    shots: int,
    params: Params,
    model: Model,
    tokenizer: Tokenizer,
    layout: Layout,
    *,
    examples: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> TaskScore:
    """Score the first rows of a task (0: all), each after so many other rows."""
    rows, requests, merged = check_task(task, shots, model.config, tokenizer, examples=examples, seed=seed)
    scores = score(params, model, requests, layout, progress=f"{task.name}, {shots} shots" if progress else "")

    ends = np.cumsum([len(row.choices) for row in rows])
    right = ends - [len(row.choices) for row in rows] + [row.answer for row in rows]
    metrics: dict[str, Estimate] = {}
    if not task.is_cloze:
        n_bytes = np.array([len(choice.encode("utf-8", "surrogatepass")) for row in rows for choice in row.choices])
        n_tokens = np.array([len(request.continuation) for request in requests])
        for metric, per in (("acc", 1), ("acc_bytes", n_bytes), ("acc_tokens", n_tokens)):
            chosen = [int(np.argmax(part)) for part in np.split(scores.log_p / per, ends[:-1])]
            metrics[metric] = mean(np.array(chosen) == [row.answer for row in rows])
    metrics["exact"] = mean(scores.greedy[right])
    metrics["nats"] = mean(-scores.log_p[right])
    metrics["perplexity"] = metrics["nats"].exp()

    def touched(flags: np.ndarray) -> int:
        return sum(bool(part.any()) for part in np.split(flags, ends[:-1]))

    return TaskScore(
        task.name, shots, len(rows), Task(task.name, rows).chance, touched(scores.truncated), touched(merged), metrics
    )
