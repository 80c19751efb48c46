"""Read and check the table of runs: CSV or parquet, one finished run a row, counted under one convention or another."""

import csv
import difflib
import io
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gptjax.errors import BadInput
from gptjax.files import read_text
from gptjax.laws.law import Floats
from gptjax.laws.published import HOFFMANN_2022

Strings = NDArray[np.str_]
Row = dict[str, str]

CONVENTIONS = {  # what N counts, and both in words; C is column flops_NAME, or 6 N D where the name says so
    "6n_total": ("total", "N = all parameters, C = 6 N D"),
    "6n_with_head": ("with_head", "N = parameters of layers and head, C = 6 N D"),
    "6n_non_embedding": ("non_embedding", "N = parameters of layers, C = 6 N D"),
    "6n_attention": ("with_head", "N = parameters of layers and head, C = 6 N D and attention"),
    "appendix_f": ("total", "N = all parameters, C = Hoffmann et al. 2022, App. F"),
    "table_a4": ("total", "N = all parameters, C = the layers of Hoffmann et al. 2022, App. F"),
}
TRANSFORMER = ("embedding", "positions", "attention", "mlp", "norm", "head")
NOT_OF_LAYERS = ("embedding", "positions", "head")  # groups of parameters; any others are the layers'
NO_GROUPS = ("padding", "total", "with_head", "non_embedding")  # what columns params_... are besides groups
RECIPE = ("lr", "batch", "b2")  # what a sweep over one cell varies; batch in sequences
PAIRED = "loss_se_paired"  # the part of loss_se that runs evaluated on the same windows do not share
FACTS = (*RECIPE, "steps", "epochs", "bits_per_byte", "budget")
NAMED = ("run", "seed", "status", "convention", "params", "tokens", "flops", "loss", "loss_se")
SAME_TOKENS = 0.01  # in log D: a batch rounds the tokens of its run
DONE = ("done", "finished", "completed", "complete", "succeeded", "success", "ok")  # what `status` calls a finished run

# What no run of a language model has. Beyond these a column is in another unit, or is another column.
MIN_LOSS, MAX_LOSS = 1e-4, 14.0  # nats: to guess among a million tokens costs ln(1e6) = 13.8
MIN_PARAMS, MAX_PARAMS, MIN_TOKENS, MAX_TOKENS = 100, 1e16, 100, 1e18
MIN_RATIO, MAX_RATIO = 3e-3, 1e6  # tokens a parameter
SHORT_RUN, SHORT_RATIO = 1e4, 0.1  # so few tokens are no run for a model that has ten parameters for each of them
MAX_OFF = 100  # times 6 N D
HIGH = 2.5  # times what a model of this N and D reaches on web text: if every loss is above, they are no nats
DRIFT = 1.5  # C / (6 N D) may vary by this factor, as attention and small terms make it
TINY = 1e4  # parameters: no language model is smaller


@dataclass(frozen=True)
class Dropped:
    """A row, or a group of rows, that a fit does not use, and why."""

    run: str  # its name
    reason: str  # why it is not used


@dataclass(frozen=True)
class Counted:
    """N and C of every run under one convention."""

    params: Floats
    flops: Floats


@dataclass(frozen=True)
class Runs:
    """Finished runs as columns of equal length; loss_se and facts are nan where they are unknown.

    params and flops follow `convention`, in words; `counts` holds them under each named convention that the table
    allows. `facts` are FACTS, what a run was trained with and what else it reached, and PAIRED. `cells` holds every
    other column as its text stands in the table.
    """

    run: tuple[str, ...]
    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    loss_se: Floats
    seed: tuple[str, ...]
    convention: str
    dropped: tuple[Dropped, ...] = ()
    warnings: tuple[str, ...] = ()  # what is odd about the table and yet may be right
    counts: Mapping[str, Counted] = field(default_factory=dict)
    facts: Mapping[str, Floats] = field(default_factory=dict)
    cells: Mapping[str, Strings] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run)

    @property
    def conventions(self) -> tuple[str, ...]:
        """The names that `counted` takes."""
        return tuple(self.counts)

    def counted(self, name: str) -> "Runs":
        """Give the same runs with N and C under a named convention ("" leaves them); BadInput names those at hand."""
        if not name:
            return self
        if name not in self.counts:
            rule = f"the table allows {', '.join(self.conventions) or 'none by name'}"
            remedy = f"add columns params_{CONVENTIONS[name][0]} and flops_{name}" if name in CONVENTIONS else "use one"
            raise BadInput(f"convention {name!r} is not at hand: {rule}; {remedy}")
        n = self.counts[name]
        return replace(self, params=n.params, flops=n.flops, convention=f"{name}: {CONVENTIONS[name][1]}")

    @property
    def evaluation_noise(self) -> float:
        """The standard error, of evaluation alone, that tells one loss from another: the median; nan if unknown.

        It is the paired one where the table has it. loss_se is larger where runs share their validation windows.
        """
        paired = self.fact(PAIRED)
        known = np.where(np.isnan(paired), self.loss_se, paired)
        return math.nan if np.isnan(known).all() else float(np.nanmedian(known))

    def fact(self, name: str) -> Floats:
        """Give one of FACTS as a column, nan where it is unknown."""
        return self.facts.get(name, np.full(len(self), np.nan))

    def column(self, name: str) -> Floats:
        """Give any numeric column of the table; BadInput where it is not there, or not a number in every row."""
        if name in ("params", "tokens", "flops"):
            return getattr(self, name)
        values = self.facts.get(name)
        if values is None and name not in self.cells:
            known = [fact for fact, column in self.facts.items() if not np.isnan(column).any()]
            others = ", ".join(["params", "tokens", "flops", *known, *self.cells])
            raise BadInput(f"the table has no column {name!r}, which the law reads; add it, or fit another form to "
                           f"{others}")  # fmt: skip
        if values is None:
            values = np.array([_value(text) for text in self.cells[name]], dtype=object)
        for run, value in zip(self.run, values, strict=True):
            if not isinstance(value, float) or not math.isfinite(value):
                raise BadInput(f"run {run!r} has {name} {value!s:.60}, which is not a number; fill it in, or leave the "
                               "run out")  # fmt: skip
        return values.astype(np.float64)

    def has(self, names: tuple[str, ...]) -> bool:
        """Say whether each is a column of the table that names a value in every row."""
        return all(
            bool((self.cells[name] != "").all()) if name in self.cells else not np.isnan(self.fact(name)).any()
            for name in names
        )

    def arms(self, name: str) -> "dict[str, Runs]":
        """Part the runs by the values of a column, in the order of their text; BadInput where it is not there."""
        values = self.cells.get(name)
        if values is None and name in self.facts and not np.isnan(self.facts[name]).all():
            values = np.array([f"{value:g}" for value in self.facts[name]])
        if values is None:
            raise BadInput(
                f"the table has no column {name!r} to part runs by; it has {', '.join(self.cells) or 'none'}"
            )
        return {str(value): self.take(np.flatnonzero(values == value)) for value in np.unique(values)}

    def take(self, index: NDArray[np.int_]) -> "Runs":
        """Select rows by position, a repeated position repeating its row."""
        columns = {name: getattr(self, name)[index] for name in ("params", "tokens", "flops", "loss", "loss_se")}
        counts = {name: Counted(n.params[index], n.flops[index]) for name, n in self.counts.items()}
        facts = {name: column[index] for name, column in self.facts.items()}
        cells = {name: column[index] for name, column in self.cells.items()}
        run, seed = (tuple(names[i] for i in index) for names in (self.run, self.seed))
        return replace(self, run=run, seed=seed, counts=counts, facts=facts, cells=cells, **columns)

    def tuned(self, apart: tuple[str, ...] = ()) -> "Runs":
        """Keep the least loss of each cell (N, D within 1 %, seed, budget) trained with several lr, batch or b2.

        Runs that differ in one of the columns `apart`, which a law reads, are never of one cell.
        """
        seed = np.unique(np.array(self.seed), return_inverse=True)[1]
        budget = np.nan_to_num(self.fact("budget"))
        keys = np.array([self.params, seed, budget, *map(self.column, apart), np.log(self.tokens)])
        order = np.lexsort(keys[::-1])
        steps = np.abs(np.diff(keys[:, order])) > np.array([[0]] * (len(keys) - 1) + [[SAME_TOKENS]])
        reasons: dict[int, str] = {}
        for cell in np.split(order, np.flatnonzero(steps.any(axis=0)) + 1):
            recipes = np.nan_to_num([self.fact(name)[cell] for name in RECIPE])
            if np.ptp(recipes, axis=1).any():
                best = cell[self.loss[cell].argmin()]
                what = f"its cell reaches {self.loss[best]:.4g} as {self.run[best]} at {self._recipe(best)}"
                reasons |= {i: f"loss {self.loss[i]:.4g} at {self._recipe(i)}; {what}" for i in cell if i != best}
        return self._without(reasons)

    def drop_highest_loss(self, count: int) -> "Runs":
        """Leave out the `count` highest losses (Besiroglu et al. 2024 leave out 5); BadInput unless rows remain."""
        if not 0 <= count < len(self):
            raise BadInput(f"{count} rows of {len(self)} cannot be left out; drop between 0 and {len(self) - 1}")
        highest = np.argsort(-self.loss, kind="stable")[:count]
        return self._without({i: f"loss {self.loss[i]:.4g} is one of the {count} highest, left out" for i in highest})

    def _recipe(self, i: int) -> str:
        known = {name: self.fact(name)[i] for name in RECIPE}
        return ", ".join(f"{name} {value:g}" for name, value in known.items() if not math.isnan(value))

    def _without(self, reasons: dict[int, str]) -> "Runs":
        kept = np.array([i for i in range(len(self)) if i not in reasons])
        dropped = (Dropped(self.run[i], reasons[i]) for i in sorted(reasons))
        return replace(self.take(kept), dropped=(*self.dropped, *dropped)) if reasons else self


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Read the header and the rows, each with its line number in the file, without judging any value.

    Leaves out what spreadsheets leave behind: blank lines, and columns without a name.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    lines = _csv_lines(path)
    header = lines[0][1] if lines else []
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and separator in header[0]:
            raise BadInput(f"{path} separates its columns by {name}; save it with commas, and decimals with points")
    named = [name for name in header if name]
    _refuse_twice(path, named)
    if len(lines) < 2:
        raise BadInput(f"{path} has no rows; it needs a header with params,tokens,loss and a line per run")
    rows = []
    for line, cells in lines[1:]:
        if len(cells) < len(header) or any(cells[len(header) :]):
            remedy = "mend the line" if len(cells) < len(header) else "mend it, quoting a cell that has a comma in it"
            raise BadInput(f"{path} line {line} has {len(cells)} cells and the header {len(header)}; {remedy}")
        rows.append((line, {name: cell for name, cell in zip(header, cells, strict=False) if name}))
    return named, rows


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Split a CSV file into the cells of each line that is not blank, with the number of its first line."""
    csv.field_size_limit(2**31 - 1)  # a note or a prompt may be long, and the file is in memory already
    text = read_text(path, "a CSV file of runs")
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    first = 1
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                lines.append((first, stripped))
            first = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(
            f"{path} line {first} is not CSV ({error}); close its quotes, and double those within a cell"
        ) from None
    if lines:
        header = lines[0][1]
        while not header[-1]:
            header.pop()
    return lines


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Read a parquet file as if it had been written as CSV: a null is a blank cell, and the first row is line 2."""
    try:
        table = pq.read_table(path)
        names, values = table.column_names, table.to_pylist()
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:  # not there, cut, not parquet, not UTF-8
        why = _cut(str(error) or type(error).__name__, 200)
        raise BadInput(f"{path} cannot be read ({why}); give a parquet or CSV file of runs") from None
    _refuse_twice(path, names)
    for name in {"params", "tokens", "flops", "loss"} & set(names):
        if pa.types.is_nested(kind := table.schema.field(name).type):
            raise BadInput(f"{path} column {name!r} holds {_cut(str(kind))}; it must hold a number in each row")
    if not table.num_rows:
        raise BadInput(f"{path} has no rows; it needs columns params, tokens, loss and a row per run")
    rows = [{name: "" if x is None else str(x).strip() for name, x in row.items()} for row in values]
    return names, list(enumerate(rows, 2))


def _near(name: str, header: list[str]) -> str:
    """Name the column that may be meant by one that is missing, or else those that there are."""
    by_lower = {column.lower(): column for column in header}
    if near := difflib.get_close_matches(name, by_lower, n=1):
        return f" and has {by_lower[near[0]]!r}"
    return f"; it has {_cut(','.join(header), 200)}"


def _refuse_twice(path: Path, names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{path} has column {_cut(twice[0])!r} {len(twice)} times; keep one")


def _cut(text: str, length: int = 60) -> str:
    """Shorten a text for an error's one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def read_runs(path: Path, convention: str = "") -> Runs:
    """Read runs from a CSV file, N and C under a named convention or, by default, as columns params and flops say.

    Needs tokens, loss and params, or what the convention counts; uses flops (else C = 6ND), run, seed, loss_se,
    status, convention and FACTS where present, and keeps other columns as `cells`. Drops, and lists, rows whose status
    is not one of DONE and exact duplicates. What is odd and yet may be right becomes a warning. Raises BadInput naming
    file, line, value and remedy.
    """
    header, rows = read_rows(path)
    needed = ("tokens", "loss") if convention else ("params", "tokens", "loss")
    if missing := [name for name in needed if name not in header]:
        raise BadInput(f"{path} has no column {missing[0]!r}{_near(missing[0], header)}: rename or add the column")
    dropped: list[Dropped] = []
    kept = _distinct(path, header, rows, dropped)
    if not kept:
        raise BadInput(f"{path} has no row to fit: all {len(rows)} were dropped, the first because its "
                       f"{dropped[0].reason}; a finished run has status {', '.join(DONE)}")  # fmt: skip

    def known(name: str) -> Floats:
        """Give an optional column, nan where a cell is blank or says nan."""
        blank = ("", "nan")
        return np.array(
            [math.nan if row.get(name, "").lower() in blank else _number(row, name, where) for where, row in kept]
        )

    tokens, loss = (np.array([_number(row, name, where) for where, row in kept]) for name in ("tokens", "loss"))
    counts = _counts(kept, tokens)
    if convention:
        params = flops = np.full(len(kept), np.nan)
    else:
        params = np.array([_number(row, "params", where) for where, row in kept])
        flops = (
            np.array([_number(row, "flops", where) for where, row in kept])
            if "flops" in header
            else 6 * params * tokens
        )
    declared = {row.get("convention", "") for _, row in kept}
    words = f"N = column params, C = {'column flops' if 'flops' in header else '6ND'}"
    runs = Runs(
        run=tuple(row.get("run") or where.removeprefix(f"{path} ") for where, row in kept),
        params=params,
        tokens=tokens,
        flops=flops,
        loss=loss,
        loss_se=known("loss_se"),
        seed=tuple(row.get("seed", "") for _, row in kept),
        convention=(declared.pop() if len(declared) == 1 else "") or words,
        dropped=tuple(dropped),
        counts=counts,
        facts={name: known(name) for name in (*FACTS, PAIRED)},
        cells={
            name: np.array([row.get(name, "") for _, row in kept])
            for name in header
            if name not in (*NAMED, *FACTS, PAIRED)
        },
    )
    runs = runs.counted(convention) if convention else runs
    places = [where for where, _ in kept]
    for where, *values in zip(places, runs.params, runs.tokens, runs.flops, runs.loss, strict=True):
        _judge(where, *values)
    _refuse_perplexities(path, runs)
    return replace(runs, warnings=_warnings(path, places, runs))


def _distinct(
    path: Path, header: list[str], rows: list[tuple[int, Row]], dropped: list[Dropped]
) -> list[tuple[str, Row]]:
    """Give the finished rows, each with its place in words, adding to `dropped` the others and exact duplicates."""
    facts = ("run", "seed", "params", "tokens", "flops", "loss", "loss_se", *FACTS)
    compared = [name for name in header if name in facts or name.startswith(("params_", "flops_"))]
    kept: list[tuple[str, Row]] = []
    first: dict[tuple[float | str, ...], int] = {}
    named: dict[str, tuple[int, Row]] = {}
    for line, row in rows:
        name = row.get("run") or f"line {line}"
        status = row.get("status", DONE[0])
        key = tuple(_value(row[column]) for column in compared)
        if status.lower() not in DONE:
            dropped.append(Dropped(name, f"status is {_cut(status)!r}"))
        elif key in first:
            dropped.append(Dropped(name, f"exact duplicate of line {first[key]}"))
        elif name in named:
            other, before = named[name]
            differs = next(column for column in compared if _value(row[column]) != _value(before[column]))
            raise BadInput(
                f"{path} lines {other} and {line} are both run {name!r} and differ in {differs} "
                f"({_cut(before[differs])} and {_cut(row[differs])}); delete one, or give each run its own name"
            )
        else:
            first[key] = line
            named[name] = line, row
            kept.append((f"{path} line {line}", row))
    return kept


def _has_all_groups(filled: set[str]) -> bool:
    """Say whether a row's parameters by group can be all that it has: of a transformer's, all six."""
    known = set(TRANSFORMER) if filled & {"attention", "mlp"} else {"embedding"}
    return known <= filled and bool(filled - set(NOT_OF_LAYERS))


def _counts(kept: list[tuple[str, Row]], tokens: Floats) -> dict[str, Counted]:
    """Count N and C under each convention whose columns are filled in every row (models/gpt_cost.py)."""

    def whole(name: str) -> Floats | None:
        if not all(row.get(name) for _, row in kept):
            return None
        return np.array([_number(row, name, where, zero=name.startswith("params_")) for where, row in kept])

    columns = {name for _, row in kept for name in row if name.startswith("params_")}
    groups = sorted(columns - {f"params_{name}" for name in NO_GROUPS})
    summed: dict[str, Floats] = {}
    if all(_has_all_groups({name.removeprefix("params_") for name in groups if row.get(name)}) for _, row in kept):
        held = {}
        for name in groups:  # a family that lacks a group leaves its cell empty
            held[name] = np.array([_number(r, name, where, zero=True) if r.get(name) else 0.0 for where, r in kept])
        outer = {name: held.get(f"params_{name}", np.zeros(len(kept))) for name in NOT_OF_LAYERS}
        total = np.sum(list(held.values()), axis=0)
        layers = total - sum(outer.values())
        head = np.where(outer["head"] > 0, outer["head"], outer["embedding"])  # 0 where tied
        summed = {"total": total, "with_head": layers + head, "non_embedding": layers}
    counts: dict[str, Counted] = {}
    for name, (what, _) in CONVENTIONS.items():
        n, c = whole(f"params_{what}"), whole(f"flops_{name}")
        n = summed.get(what) if n is None else n
        if c is None and n is not None and name == f"6n_{what}":
            c = 6 * n * tokens
        if n is not None and c is not None:
            counts[name] = Counted(n, c)
    return counts


def _judge(where: str, n: float, d: float, c: float, loss: float) -> None:
    """Refuse numbers that no run of a language model has: most likely their unit is another."""
    if loss > MAX_LOSS:
        raise BadInput(
            f"{where}: loss {loss:g} is above {MAX_LOSS:g} nats and looks like a perplexity; "
            f"write its logarithm, {math.log(loss):.4g}, or mark a run that diverged as failed"
        )
    if loss < MIN_LOSS:
        raise BadInput(f"{where}: loss {loss:g} is below {MIN_LOSS:g} nats a token; give the loss of text in nats")
    if not MIN_PARAMS <= n <= MAX_PARAMS:
        unit = "has another unit" if n > MAX_PARAMS else "looks like millions or billions"
        raise BadInput(
            f"{where}: params {n:g} is not from {MIN_PARAMS} to {MAX_PARAMS:g} and {unit}; write 1.5B as 1.5e9"
        )
    if d > MAX_TOKENS:
        raise BadInput(f"{where}: tokens {d:g} is above {MAX_TOKENS:g}; write a count of tokens, 140 billion as 140e9")
    if d < MIN_TOKENS or d < n * MIN_RATIO or (d < SHORT_RUN and d < n * SHORT_RATIO):
        unit, power = _likely_unit(d / n, 1)
        raise BadInput(f"{where}: tokens {d:g} for {n:g} parameters looks like {unit}; write {d:g}e{power} tokens")
    if d > n * MAX_RATIO:
        unit, power = _likely_unit(d / n, -1)
        raise BadInput(f"{where}: params {n:g} for {d:g} tokens looks like {unit}; write {n:g}e{power} parameters")
    off = c / (6 * n * d)
    if not 1 / MAX_OFF <= off <= MAX_OFF:
        raise BadInput(f"{where}: flops {c:g} is {off:.3g} times 6 N D = {6 * n * d:.3g}; write FLOPs of the run, "
                       "not of a token, PF-days (8.64e19 FLOPs each) or TFLOPs (1e12)")  # fmt: skip


def _likely_unit(ratio: float, sign: int) -> tuple[str, int]:
    """Name the unit in which tokens (1) or parameters (-1) come nearest to 20 tokens a parameter, and its power of 10.

    That is about what Hoffmann et al. 2022 found best.
    """
    units = (("billions", 9), ("millions", 6), ("thousands", 3))
    power = math.log10(max(ratio, sys.float_info.min) / 20)
    return min(units, key=lambda unit: abs(power + sign * unit[1]))


def _refuse_perplexities(path: Path, runs: Runs) -> None:
    """Refuse losses of which every one is far above what a model of its N and D reaches."""
    usual = HOFFMANN_2022.loss(runs.params, runs.tokens)
    best = int(np.argmin(runs.loss / usual))
    if runs.loss[best] > HIGH * usual[best]:
        raise BadInput(
            f"{path} looks like perplexities: its best loss, {runs.loss[best]:g} of run {runs.run[best]!r}, is above "
            f"{HIGH:g} times the {usual[best]:.3g} nats that {short(runs.params[best])} parameters reach on "
            f"{short(runs.tokens[best])} tokens of text; write logarithms, as {math.log(runs.loss[best]):.4g}"
        )


def _warnings(path: Path, places: list[str], runs: Runs) -> tuple[str, ...]:
    """Say what is odd about a table that may yet be right; BadInput where two rows cannot both be."""
    found = []
    declared = re.search("C = (.*)", runs.convention)
    if declared is None or declared[1].replace(" ", "") in ("6ND", "columnflops"):
        found += _drift(path, places, runs)
    if (runs.tokens < runs.params).all() and len(runs) > 1:
        found.append(f"{path}: every run has fewer tokens than parameters; see that the two columns are not swapped")
    if (runs.params < TINY).all() and len(runs) > 1:
        most = f"at most {runs.params.max():g}"
        found.append(f"{path}: params are {most}, fewer than a language model has; see that they are not in millions")
    return tuple(found)


def _drift(path: Path, places: list[str], runs: Runs) -> list[str]:
    """Warn of FLOPs that drift against 6 N D, and refuse those that differ for one size.

    The FLOPs of a token depend on the shape alone, so another convention shifts all rows of a size together.
    """
    off = runs.flops / (6 * runs.params * runs.tokens)
    for size in np.unique(runs.params):
        rows = np.flatnonzero(runs.params == size)
        low, high = rows[off[rows].argmin()], rows[off[rows].argmax()]
        if off[high] > DRIFT * off[low]:
            per_token = (f"{runs.flops[i] / runs.tokens[i]:.3g}" for i in (low, high))
            raise BadInput(
                f"{path} lines {' and '.join(places[i].rpartition(' ')[2] for i in (low, high))} have {size:g} "
                f"parameters and {' and '.join(per_token)} FLOPs a token, which cannot both be; mend tokens or flops"
            )
    low, high = int(off.argmin()), int(off.argmax())
    if off[high] <= DRIFT * off[low]:
        return []
    with np.errstate(invalid="ignore"):  # of a column that does not vary
        by = [np.corrcoef(np.log(column), np.log(off))[0, 1] for column in (runs.params, runs.tokens)]
    name = "params" if not abs(by[0]) < abs(by[1]) else "tokens"
    way = "rises" if by[name == "tokens"] > 0 else "falls"
    return [
        f"{path}: flops over 6 N D {way} with {name}, from {off[low]:.3g} (run {runs.run[low]!r}) to {off[high]:.3g} "
        f"(run {runs.run[high]!r}), so the fits that use C differ from those that use N and D; mend the column that is "
        "wrong, leave out flops for 6 N D, or count N and C alike (--convention)"
    ]


@dataclass(frozen=True)
class Curve:
    """The training loss of one run as it went."""

    run: str
    params: float
    tokens: Floats
    flops: Floats
    loss: Floats


def read_curves(path: Path) -> list[Curve]:
    """Read training curves from a CSV file of run, params, tokens, flops, loss, one line a point, in any order."""
    header, rows = read_rows(path)
    columns = ("params", "tokens", "flops", "loss")
    for name in ("run", *columns):
        if name not in header:
            raise BadInput(f"{path} has no column {name!r}{_near(name, header)}: rename or add the column")
    points: dict[str, list[list[float]]] = {}
    for line, row in rows:
        where = f"{path} line {line}"
        point = [_number(row, name, where) for name in columns]
        before = points.setdefault(row["run"], [])
        if before and before[0][0] != point[0]:
            raise BadInput(f"{where}: run {row['run']!r} has {point[0]:g} parameters and had {before[0][0]:g} before; "
                           "give each run its own name")  # fmt: skip
        before.append(point)
    tables = {run: np.array(sorted(values, key=lambda point: point[1])).T for run, values in points.items()}
    return [Curve(run, float(params[0]), *rest) for run, (params, *rest) in tables.items()]


def short(value: float) -> str:
    """Write a count for a reader: 13.4k, 1.2M, 3B; FLOPs and the like beyond 1e12 as 3e17."""
    if value >= 1e12:
        return f"{value:.3g}".replace("e+", "e")
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{float(f'{value / unit:.3g}'):g}{name}"
    return f"{value:.3g}"


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _number(row: Row, column: str, where: str, zero: bool = False) -> float:
    text = row[column]
    value = _value(text)
    if isinstance(value, str):
        remedy = "write it in plain digits or as 1.5e9" if text else "fill it in, or mark the row's status failed"
        raise BadInput(f"{where}: {column} {_cut(text)!r} is not a number; {remedy}")
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise BadInput(
            f"{where}: {column} {text} is not a finite positive number; mend the row or mark its status failed"
        )
    return value
