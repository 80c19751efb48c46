"""Read and check the table of runs: CSV or parquet, one finished run a row, counted under one convention or another."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gptjax.errors import BadInput

Floats = NDArray[np.float64]
Row = dict[str, str]

CONVENTIONS = {  # what N counts, and both in words; C is column flops_NAME, or 6 N D where the name says so
    "6n_total": ("total", "N = all parameters, C = 6 N D"),
    "6n_with_head": ("with_head", "N = parameters of layers and head, C = 6 N D"),
    "6n_non_embedding": ("non_embedding", "N = parameters of layers, C = 6 N D"),
    "6n_attention": ("with_head", "N = parameters of layers and head, C = 6 N D and attention"),
    "appendix_f": ("total", "N = all parameters, C = Hoffmann et al. 2022, App. F"),
    "table_a4": ("total", "N = all parameters, C = the layers of Hoffmann et al. 2022, App. F"),
}
GROUPS = ("embedding", "positions", "attention", "mlp", "norm", "head")
RECIPE = ("lr", "batch", "b2")  # what a sweep over one cell varies; batch in sequences
PAIRED = "loss_se_paired"  # the part of loss_se that runs evaluated on the same windows do not share
FACTS = (*RECIPE, "steps", "epochs", "bits_per_byte", "budget")
SAME_TOKENS = 0.01  # in log D: a batch rounds the tokens of its run
MAX_LOSS, MIN_PARAMS, MAX_PARAMS, MIN_TOKENS, MAX_TOKENS = 50, 100, 1e16, 100, 1e18
MAX_OFF = 100  # times 6 N D


@dataclass(frozen=True)
class Dropped:
    """A row, or a group of rows, that a fit does not use, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class Counted:
    """N and C of every run under one convention."""

    params: Floats
    flops: Floats


@dataclass(frozen=True)
class Runs:
    """Finished runs as columns of equal length; loss_se and facts are nan where they are unknown.

    params and flops follow `convention`, in words; `counts` holds them under each named convention that the table
    allows. `facts` are FACTS, what a run was trained with and what else it reached, and PAIRED.
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
    counts: Mapping[str, Counted] = field(default_factory=dict)
    facts: Mapping[str, Floats] = field(default_factory=dict)

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

    def take(self, index: NDArray[np.int_]) -> "Runs":
        """Select rows by position, a repeated position repeating its row."""
        columns = {name: getattr(self, name)[index] for name in ("params", "tokens", "flops", "loss", "loss_se")}
        counts = {name: Counted(n.params[index], n.flops[index]) for name, n in self.counts.items()}
        facts = {name: column[index] for name, column in self.facts.items()}
        run, seed = (tuple(names[i] for i in index) for names in (self.run, self.seed))
        return replace(self, run=run, seed=seed, counts=counts, facts=facts, **columns)

    def tuned(self) -> "Runs":
        """Keep the least loss of each cell (N, D within 1 %, seed, budget) trained with several lr, batch or b2."""
        seed = np.unique(np.array(self.seed), return_inverse=True)[1]
        keys = np.array([self.params, seed, np.nan_to_num(self.fact("budget")), np.log(self.tokens)])
        order = np.lexsort(keys[::-1])
        steps = np.abs(np.diff(keys[:, order])) > np.array([[0], [0], [0], [SAME_TOKENS]])
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
    """Read the header and the rows, each with its line number in the file, without judging any value."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), skipinitialspace=True)
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); give a CSV file of runs") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is not UTF-8 CSV ({error}); save it again as UTF-8") from None
    header = lines[0][1] if lines else []
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise BadInput(f"{path} separates its columns by {name}; save it with commas, and decimals with points")
    if twice := [name for name in header if header.count(name) > 1]:
        raise BadInput(f"{path} has column {twice[0]!r} {len(twice)} times; keep one")
    if len(lines) < 2:
        raise BadInput(f"{path} has no rows; it needs a header with params,tokens,loss and a line per run")
    for line, cells in lines:
        if len(cells) != len(header):
            remedy = "mend the line" if len(cells) < len(header) else "mend it, quoting a cell that has a comma in it"
            raise BadInput(f"{path} line {line} has {len(cells)} cells and the header {len(header)}; {remedy}")
    return header, [(line, dict(zip(header, cells, strict=True))) for line, cells in lines[1:]]


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Read a parquet file as if it had been written as CSV: a null is a blank cell, and the first row is line 2."""
    try:
        table = pq.read_table(path)
    except OSError as error:  # a file that is not there, or not parquet (pyarrow's ArrowInvalid is a ValueError too)
        raise BadInput(f"{path} cannot be read ({error}); give a parquet or CSV file of runs") from None
    except ValueError as error:
        raise BadInput(f"{path} is not parquet ({error}); write it again") from None
    if not table.num_rows:
        raise BadInput(f"{path} has no rows; it needs columns params, tokens, loss and a row per run")
    rows = [{name: "" if x is None else str(x) for name, x in row.items()} for row in table.to_pylist()]
    return table.column_names, list(enumerate(rows, 2))


def read_runs(path: Path, convention: str = "") -> Runs:
    """Read runs from a CSV file, N and C under a named convention or, by default, as columns params and flops say.

    Needs tokens, loss and params, or what the convention counts; uses flops (else C = 6ND), run, seed, loss_se,
    status, convention and FACTS where present, and ignores other columns. Drops, and lists, rows whose status is not
    "done" and exact duplicates. Raises BadInput naming file, line, value and remedy.
    """
    header, rows = read_rows(path)
    needed = ("tokens", "loss") if convention else ("params", "tokens", "loss")
    if missing := [name for name in needed if name not in header]:
        raise BadInput(f"{path} has no column {missing[0]!r}; it has {','.join(header)}: rename or add the column")
    dropped: list[Dropped] = []
    kept = _distinct(path, header, rows, dropped)
    if not kept:
        raise BadInput(f"{path} has no row to fit: all {len(rows)} were dropped, the first because its "
                       f"{dropped[0].reason}; finish the runs first")  # fmt: skip

    def known(name: str) -> Floats:
        """Give an optional column, nan where a cell is blank."""
        return np.array([_number(row, name, where) if row.get(name) else math.nan for where, row in kept])

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
    )
    runs = runs.counted(convention) if convention else runs
    for (where, _), *values in zip(kept, runs.params, runs.tokens, runs.flops, runs.loss, strict=True):
        _judge(where, *values)
    return runs


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
        status = row.get("status", "done")
        key = tuple(_value(row[column]) for column in compared)
        if status != "done":
            dropped.append(Dropped(name, f"status is {status!r}"))
        elif key in first:
            dropped.append(Dropped(name, f"exact duplicate of line {first[key]}"))
        elif name in named:
            other, before = named[name]
            differs = next(column for column in compared if _value(row[column]) != _value(before[column]))
            raise BadInput(
                f"{path} lines {other} and {line} are both run {name!r} and differ in {differs} ({before[differs]} and "
                f"{row[differs]}); delete one, or give each run its own name"
            )
        else:
            first[key] = line
            named[name] = line, row
            kept.append((f"{path} line {line}", row))
    return kept


def _counts(kept: list[tuple[str, Row]], tokens: Floats) -> dict[str, Counted]:
    """Count N and C under each convention whose columns are filled in every row; see `models/count.py`."""

    def whole(name: str) -> Floats | None:
        if not all(row.get(name) for _, row in kept):
            return None
        return np.array([_number(row, name, where, zero=name in groups) for where, row in kept])

    groups = [f"params_{group}" for group in GROUPS]
    columns = [whole(name) for name in groups]
    summed: dict[str, Floats] = {}
    if all(column is not None for column in columns):
        embedding, positions, attention, mlp, norm, head = (column for column in columns if column is not None)
        layers = attention + mlp + norm
        summed = {
            "total": embedding + positions + layers + head,
            "with_head": layers + np.where(head > 0, head, embedding),  # 0 where tied
            "non_embedding": layers,
        }
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
        raise BadInput(f"{where}: loss {loss:g} is above {MAX_LOSS} nats and looks like a perplexity; "
                       f"write its logarithm, {math.log(loss):.4g}")  # fmt: skip
    if not MIN_PARAMS <= n <= MAX_PARAMS:
        unit = "has another unit" if n > MAX_PARAMS else "looks like millions or billions"
        raise BadInput(
            f"{where}: params {n:g} is not from {MIN_PARAMS} to {MAX_PARAMS:g} and {unit}; write 1.5B as 1.5e9"
        )
    if d > MAX_TOKENS:
        raise BadInput(f"{where}: tokens {d:g} is above {MAX_TOKENS:g}; write a count of tokens, 140 billion as 140e9")
    if d < MIN_TOKENS or (d < 1e6 and d < n * 1e-3):
        unit, power = min((("billions", 9), ("millions", 6)), key=lambda u: abs(math.log(d * 10 ** u[1] / n / 20)))
        raise BadInput(f"{where}: tokens {d:g} for {n:g} parameters looks like {unit}; write {d:g}e{power} tokens")
    off = c / (6 * n * d)
    if not 1 / MAX_OFF <= off <= MAX_OFF:
        raise BadInput(f"{where}: flops {c:g} is {off:.3g} times 6 N D = {6 * n * d:.3g}; "
                       "write FLOPs of the whole run, not PF-days (8.64e19 FLOPs each) or TFLOPs (1e12)")  # fmt: skip


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
            raise BadInput(f"{path} has no column {name!r}; it has {','.join(header)}: rename or add the column")
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
        raise BadInput(f"{where}: {column} {text!r} is not a number; write it in plain digits or as 1.5e9")
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise BadInput(
            f"{where}: {column} {text} is not a finite positive number; mend the row or mark its status failed"
        )
    return value
