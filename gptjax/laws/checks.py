"""Make runs and curves of rows of text, and refuse what no run of a language model can have."""

import difflib
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gptjax.errors import BadInput
from gptjax.laws.law import Floats
from gptjax.laws.published import HOFFMANN_2022
from gptjax.laws.reading import Row, cut, read_rows
from gptjax.laws.rows import curves_of, said_of_rows
from gptjax.laws.table import CONVENTIONS, FACTS, PAIRED, Counted, Curve, Dropped, Runs, short, value_of

TRANSFORMER = ("embedding", "positions", "attention", "mlp", "norm", "head")
NOT_OF_LAYERS = ("embedding", "positions", "head")  # groups of parameters; any others are the layers'
NO_GROUPS = ("padding", "total", "with_head", "non_embedding")  # what columns params_... are besides groups
NAMED = ("run", "seed", "status", "convention", "params", "tokens", "flops", "loss", "loss_se")
# what the rows of one run differ in along its curve, besides flops_NAME
ALONG = ("tokens", "flops", "loss", "loss_se", PAIRED, "steps", "epochs", "bits_per_byte", "budget")
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


def read_runs(path: Path, convention: str = "") -> Runs:
    """Read runs from a CSV or parquet file: see `runs_of`."""
    return runs_of(str(path), *read_rows(path), convention)


def runs_of(
    path: str, header: list[str], rows: Sequence[tuple[object, Row]], convention: str = "", unit: str = "line"
) -> Runs:
    """Make runs of rows, N and C under a named convention or, by default, as columns params and flops say.

    A row comes with its place: the number of its `unit`, a line of a file or a row of a frame.

    Needs tokens, loss and params, or what the convention counts; uses flops (else C = 6ND), run, seed, loss_se,
    status, convention and FACTS where present, and keeps other columns as `cells`. Rows of one run at several D are
    points of its curve, and are named by their D too. Drops, and lists, rows whose status
    is not one of DONE and exact duplicates. What is odd and yet may be right becomes a warning. Raises BadInput naming
    file, line, value and remedy.
    """
    needed = ("tokens", "loss") if convention else ("params", "tokens", "loss")
    if missing := [name for name in needed if name not in header]:
        raise BadInput(f"{path} has no column {missing[0]!r}{_near(missing[0], header)}: rename or add the column")
    dropped: list[Dropped] = []
    kept = _distinct(path, unit, header, rows, dropped)
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
    names = [row.get("run", "") for _, row in kept]
    count = Counter(names)
    declared = {row.get("convention", "") for _, row in kept}
    words = f"N = column params, C = {'column flops' if 'flops' in header else '6ND'}"
    runs = Runs(
        run=tuple(
            (name if count[name] == 1 else f"{name}@{row['tokens']}") if name else where.removeprefix(f"{path} ")
            for name, (where, row) in zip(names, kept, strict=True)
        ),
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
    curve, evidence = curves_of(runs, names)
    runs = replace(runs, curve=curve)
    said = said_of_rows(path, runs, evidence, named=any(names))
    return replace(runs, warnings=(*_warnings(path, unit, places, runs), *said))


def _near(name: str, header: list[str]) -> str:
    """Name the column that may be meant by one that is missing, or else those that there are."""
    by_lower = {column.lower(): column for column in header}
    if near := difflib.get_close_matches(name, by_lower, n=1):
        return f" and has {by_lower[near[0]]!r}"
    return f"; it has {cut(','.join(header), 200)}"


def _distinct(
    path: str, unit: str, header: list[str], rows: Sequence[tuple[object, Row]], dropped: list[Dropped]
) -> list[tuple[str, Row]]:
    """Give the finished rows, each with its place in words, adding to `dropped` the others and exact duplicates."""
    facts = ("run", "seed", "params", "tokens", "flops", "loss", "loss_se", *FACTS)
    compared = [name for name in header if name in facts or name.startswith(("params_", "flops_"))]
    kept: list[tuple[str, Row]] = []
    first: dict[tuple[float | str, ...], object] = {}
    named: dict[str, list[tuple[object, Row]]] = {}
    for line, row in rows:
        name = row.get("run") or f"{unit} {line}"
        status = row.get("status", DONE[0])
        key = tuple(value_of(row[column]) for column in compared)
        if status.lower() not in DONE:
            dropped.append(Dropped(name, f"status is {cut(status)!r}"))
        elif key in first:
            dropped.append(Dropped(name, f"exact duplicate of {unit} {first[key]}"))
        elif name in named and (clash := _clash(named[name], row, compared)):
            differs, other, before = clash
            raise BadInput(
                f"{path} {unit}s {other} and {line} are both run {name!r} and differ in {differs} "
                f"({cut(before[differs])} and {cut(row[differs])}); delete one, or give each run its own name"
            )
        else:
            first[key] = line
            named.setdefault(name, []).append((line, row))
            kept.append((f"{path} {unit} {line}", row))
    return kept


def _clash(of_run: list[tuple[object, Row]], row: Row, compared: list[str]) -> tuple[str, object, Row] | None:
    """Find where a row contradicts those of its run: it may be another point of their curve, at another D."""
    for line, before in of_run:
        differ = [column for column in compared if value_of(row[column]) != value_of(before[column])]
        fixed = [column for column in differ if column not in ALONG and not column.startswith("flops_")]
        if fixed or "tokens" not in differ:
            return (fixed or differ)[0], line, before
    return None


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


def _refuse_perplexities(path: str, runs: Runs) -> None:
    """Refuse losses of which every one is far above what a model of its N and D reaches."""
    usual = HOFFMANN_2022.loss(runs.params, runs.tokens)
    best = int(np.argmin(runs.loss / usual))
    if runs.loss[best] > HIGH * usual[best]:
        raise BadInput(
            f"{path} looks like perplexities: its best loss, {runs.loss[best]:g} of run {runs.run[best]!r}, is above "
            f"{HIGH:g} times the {usual[best]:.3g} nats that {short(runs.params[best])} parameters reach on "
            f"{short(runs.tokens[best])} tokens of text; write logarithms, as {math.log(runs.loss[best]):.4g}"
        )


def _warnings(path: str, unit: str, places: list[str], runs: Runs) -> tuple[str, ...]:
    """Say what is odd about a table that may yet be right; BadInput where two rows cannot both be."""
    found = []
    declared = re.search("C = (.*)", runs.convention)
    if declared is None or declared[1].replace(" ", "") in ("6ND", "columnflops"):
        found += _drift(path, unit, places, runs)
    if (runs.tokens < runs.params).all() and len(runs) > 1:
        found.append(f"{path}: every run has fewer tokens than parameters; see that the two columns are not swapped")
    if (runs.params < TINY).all() and len(runs) > 1:
        most = f"at most {runs.params.max():g}"
        found.append(f"{path}: params are {most}, fewer than a language model has; see that they are not in millions")
    return tuple(found)


def _drift(path: str, unit: str, places: list[str], runs: Runs) -> list[str]:
    """Warn of FLOPs that drift against 6 N D, and refuse those that differ for one size.

    The FLOPs of a token depend on the shape alone, so another convention shifts all rows of a size together.
    """
    off = runs.flops / (6 * runs.params * runs.tokens)
    for size in np.unique(runs.params):
        rows = np.flatnonzero(runs.params == size)
        low, high = rows[off[rows].argmin()], rows[off[rows].argmax()]
        if off[high] > DRIFT * off[low]:
            per_token = (f"{runs.flops[i] / runs.tokens[i]:.3g}" for i in (low, high))
            which = " and ".join(places[i].removeprefix(f"{path} {unit} ") for i in (low, high))
            raise BadInput(
                f"{path} {unit}s {which} have {size:g} parameters and "
                f"{' and '.join(per_token)} FLOPs a token, which cannot both be; mend tokens or flops"
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


def _number(row: Row, column: str, where: str, zero: bool = False) -> float:
    text = row[column]
    value = value_of(text)
    if isinstance(value, str):
        remedy = "write it in plain digits or as 1.5e9" if text else "fill it in, or mark the row's status failed"
        raise BadInput(f"{where}: {column} {cut(text)!r} is not a number; {remedy}")
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise BadInput(
            f"{where}: {column} {text} is not a finite positive number; mend the row or mark its status failed"
        )
    return value
