"""Read tables from files: the header and the cells of each row, as text, before any value is judged."""

import csv
import io
from pathlib import Path

import pyarrow as pa

from gptjax.errors import BadInput
from gptjax.files import read_text

Row = dict[str, str]


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
    from pyarrow.parquet import read_table

    try:
        table = read_table(path)
        names, values = table.column_names, table.to_pylist()
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:  # not there, cut, not parquet, not UTF-8
        why = cut(str(error) or type(error).__name__, 200)
        raise BadInput(f"{path} cannot be read ({why}); give a parquet or CSV file of runs") from None
    _refuse_twice(path, names)
    for name in {"params", "tokens", "flops", "loss"} & set(names):
        if pa.types.is_nested(kind := table.schema.field(name).type):
            raise BadInput(f"{path} column {name!r} holds {cut(str(kind))}; it must hold a number in each row")
    if not table.num_rows:
        raise BadInput(f"{path} has no rows; it needs columns params, tokens, loss and a row per run")
    rows = [{name: "" if x is None else str(x).strip() for name, x in row.items()} for row in values]
    return names, list(enumerate(rows, 2))


def _refuse_twice(path: Path, names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{path} has column {cut(twice[0])!r} {len(twice)} times; keep one")


def cut(text: str, length: int = 60) -> str:
    """Shorten a text for an error's one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
