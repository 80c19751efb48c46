"""Ladders, and whether two are of one kind: what is refused, with the remedy, and what is not known."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptjax.laws.table import Runs

SAME_COUNT = 0.03  # in log: a C that is 6ND, whatever the table calls it


@dataclass(frozen=True)
class Ladder:
    """The runs of one model or recipe at several sizes and budgets; what is not known of them is empty or None."""

    name: str
    runs: Runs
    tokenizer: str = ""  # else the table's column tokenizer
    corpus: str = ""
    windows: int | None = None  # validation windows

    def of(self, column: str) -> str:
        """Give the one value of a column in all rows, "" where it is not known; several are joined by commas."""
        return ", ".join(sorted({str(value) for value in self.runs.cells.get(column, ()) if value}))

    @property
    def reads_by(self) -> str:
        """The tokenizer."""
        return self.tokenizer or self.of("tokenizer")


def unlike(a: Ladder, b: Ladder, metric: str) -> Iterator[str]:
    """Say why two ladders are not of one kind, with the remedy."""
    both = f"{a.name} and {b.name}"
    for one in (a, b):
        if "," in (mixed := one.of("objective")):
            yield f"{one.name} mixes the objectives {mixed}; take the rows of one, or part them: --by objective"
            return
    if differ := _both_known(a.of("objective"), b.of("objective")):
        yield f"{both} are of the objectives {differ}, whose losses are of different tasks; compare those of one"
    other_tokens = _both_known(a.reads_by, b.reads_by)
    if other_tokens and metric == "loss":
        rule = "a nat a token of each is of another length of text; compare with --metric bits_per_byte"
        yield f"{both} have the tokenizers {other_tokens}, and {rule}"
    if other_tokens and (differ := _both_known(a.corpus, b.corpus)):
        yield f"{both} are of other text ({differ}); train and evaluate both on the same corpus"
    differ = _both_known(a.of("data_digest"), b.of("data_digest"))
    if differ and not other_tokens:  # the digest is of tokens
        remedy = "evaluate both on the same store"
        if metric != "loss" and not (a.reads_by and b.reads_by):
            remedy += ", or name each tokenizer in a column tokenizer if the text is the same"
        yield f"{both} were evaluated on other data (data_digest {differ}); {remedy}"
    if differ := _both_known(str(a.windows or ""), str(b.windows or "")):
        yield f"{both} were evaluated on {differ} validation windows; train them with the same evaluate.sequences"
    yield from _counted_otherwise(a, b)
    if _same_rows(a.runs, b.runs):
        yield f"{both} hold the same runs, or one those of the other; give two ladders"
    spans = [(one.runs.loss.min(), one.runs.loss.max()) for one in (a, b)]
    if spans[0][0] > spans[1][1] or spans[1][0] > spans[0][1]:
        said = " and ".join(f"{low:.4g} to {high:.4g}" for low, high in spans)
        yield f"{both} share no loss: theirs are {said}; add budgets until they overlap"


def _both_known(one: str, other: str) -> str:
    """Give two values in words where both are known and differ."""
    return f"{one} and {other}" if one and other and one != other else ""


def _counted_otherwise(a: Ladder, b: Ladder) -> Iterator[str]:
    """Refuse N and C that count other things: in words, or C that is not 6ND under another name."""
    words = [one.runs.convention for one in (a, b)]
    differ = _both_known(*(_what_n_is(one.runs) for one in (a, b)))
    if differ or (words[0] != words[1] and not (_is_6nd(a.runs) and _is_6nd(b.runs))):
        common = [name for name in a.runs.conventions if name in b.runs.conventions]
        remedy = f"count both by --convention {' or '.join(common)}" if common else "count N and C alike in both tables"
        yield f"{a.name} has {words[0]!r} and {b.name} {words[1]!r}; {remedy}"


def _what_n_is(runs: Runs) -> str:
    """Say what N counts, "" where the table has it in column params and says no more."""
    said = runs.convention.rpartition(": ")[2].partition(", C")[0]
    return "" if said in ("N = column params", "simulated") else said


def _is_6nd(runs: Runs) -> bool:
    return bool(np.abs(np.log(runs.flops / (6 * runs.params * runs.tokens))).max() < SAME_COUNT)


def _same_rows(a: Runs, b: Runs) -> bool:
    """Say whether all runs of one ladder are runs of the other: the same N, D and loss."""
    one, other = (set(zip(runs.params, runs.tokens, runs.loss, strict=True)) for runs in (a, b))
    return one <= other or other <= one


def unknown(a: Ladder, b: Ladder, metric: str, arms: bool) -> Iterator[str]:
    """Say what is not known of two ladders, and was taken for the same."""
    facts = {
        "tokenizer": (a.reads_by, b.reads_by),
        "validation data (data_digest)": (a.of("data_digest"), b.of("data_digest")),
        "objective": (a.of("objective"), b.of("objective")),
    }
    for one in (a, b):
        if "," in (arms_of := one.of("arm")):
            yield f"{one.name} mixes the arms {arms_of} in one law; --by arm compares them"
    of_one = [f"{name} of {(a if not values[0] else b).name}" for name, values in facts.items() if any(values)
              and not all(values)]  # fmt: skip
    of_none = [] if arms else [name for name, values in facts.items() if not any(values) and name != "objective"]
    if of_one:
        yield f"not known, and taken for the other's: {', '.join(of_one)}"
    if of_none:
        yield f"neither table says its {' or '.join(of_none)}; they are taken for the same"
    n = [_what_n_is(one.runs) for one in (a, b)]
    if n[0] != n[1]:
        yield f"one table says that {n[0] or n[1]}, and the other does not say; it is taken for the same"
    if metric == "bits_per_byte" and all(facts["tokenizer"]) and len(set(facts["tokenizer"])) > 1:
        yield "with other tokenizers, data digests cannot tell whether the validation text is the same; see that it is"
