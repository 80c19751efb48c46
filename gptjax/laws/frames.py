"""Data frames to runs, and results to data frames, by Arrow's protocols alone: pandas and polars are not required."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gptjax.errors import BadInput
from gptjax.laws.checks import runs_of
from gptjax.laws.reading import cut
from gptjax.laws.table import FACTS, PAIRED, Runs

NUMBERS = ("params", "tokens", "flops", "loss", "loss_se", *FACTS, PAIRED)  # columns that hold a number in each row
STREAM, ARRAY, INTERCHANGE = "__arrow_c_stream__", "__arrow_c_array__", "__dataframe__"
INDEX = "__index_level_"  # how pandas names an index without a name among its columns
KINDS = "a pandas, polars or pyarrow frame, a dict of columns, or the path of a CSV or parquet file or of a sweep"
SHOWN = 30  # rows of a frame that are printed


def runs_of_frame(frame: Any, name: str = "the frame") -> Runs:
    """Make runs of a data frame by the checks of files (`checks.runs_of`), which name the frame's row and not a line.

    Takes what has __arrow_c_stream__ or __dataframe__, as pandas, polars and pyarrow have, and a mapping from names to
    columns. A row is named by its label where the frame has an `index`, else by its place from 0. A missing value (a
    null, a NaN) is a blank cell; numbers keep all their digits. Raises BadInput for values that nest, for booleans and
    dates where a number belongs, and for what is no frame.
    """
    table = _table(frame, name)
    header = [column for column in table.column_names if not column.startswith(INDEX)]
    if twice := [column for column in header if header.count(column) > 1]:
        raise BadInput(f"{name} has column {cut(twice[0])!r} {len(twice)} times; keep one")
    if not table.num_rows:
        raise BadInput(f"{name} has no rows; it needs columns params, tokens, loss and a row per run")
    columns = [_texts(table.column(column), column, name) for column in header]
    rows = [dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return runs_of(name, header, list(zip(_labels(frame, len(rows)), rows, strict=True)), unit="row")


def _table(frame: Any, name: str) -> pa.Table:
    """Read a frame as Arrow's table; BadInput for what is none."""
    if isinstance(frame, pa.Table):
        return frame
    try:
        if isinstance(frame, Mapping):
            return pa.table({str(key): _column(values) for key, values in frame.items()})
        if hasattr(frame, STREAM):
            return pa.table(frame)
        if hasattr(frame, INTERCHANGE):
            from pyarrow.interchange import from_dataframe  # with all of Arrow's functions, which take a while

            return from_dataframe(frame)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        why = cut("; ".join(map(str, error.args)) or type(error).__name__, 200)
        raise BadInput(f"{name} cannot be read ({why}); give columns of equal length, each of one type") from None
    raise BadInput(f"a value of type {type(frame).__name__} is no table of runs; give {KINDS}")


def _column(values: Any) -> Any:
    """Read a column of a mapping: what Arrow knows, an array of any library, or a list."""
    if hasattr(values, STREAM):
        return pa.chunked_array(values)
    if hasattr(values, ARRAY):
        return pa.array(values)
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise ValueError(f"{cut(repr(values), 40)} is one value and no column")
    return pa.array(np.asarray(values) if hasattr(values, "__array__") else list(values))


def _texts(column: pa.ChunkedArray, name: str, frame: str) -> list[str]:
    """Write the cells of a column as a file would hold them."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind):
        raise BadInput(f"{frame} column {name!r} holds {cut(str(kind))}; give one value a row, or leave the column out")
    is_number = name in NUMBERS or name.startswith(("params_", "flops_"))
    if is_number and (pa.types.is_boolean(kind) or pa.types.is_temporal(kind)):
        raise BadInput(f"{frame} column {name!r} holds {kind} and must hold a number in each row")
    return ["" if _is_missing(value) else str(value).strip() for value in column.to_pylist()]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _labels(frame: Any, rows: int) -> Sequence[object]:
    """Give what a frame calls its rows: the labels of its index if it has one, else places from 0."""
    index: Any = getattr(frame, "index", None)
    if isinstance(frame, Mapping) or callable(index) or not hasattr(index, "__len__") or len(index) != rows:
        return range(rows)
    return list(index)


class Frame:
    """A small table of results, which pandas, polars and pyarrow take as it is, and which prints as a table.

    `pandas.DataFrame.from_arrow(frame)`, `polars.DataFrame(frame)` and `pyarrow.table(frame)` copy it by Arrow's stream
    protocol; `frame["a"]` is a column as a NumPy array. None stands for what is not known.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Lay out rows, each a mapping from columns to values; a column is there if one row has it."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        self.arrow = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.arrow.column_names

    def __len__(self) -> int:
        return self.arrow.num_rows

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.columns:
            raise BadInput(f"the table has no column {column!r}; it has {', '.join(self.columns)}")
        return self.arrow.column(column).to_numpy()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.arrow.__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> Any:
        """Give it as a pandas DataFrame; pandas must be installed."""
        return self.arrow.to_pandas()

    def to_dicts(self) -> list[dict[str, Any]]:
        """Give it as a list of rows."""
        return self.arrow.to_pylist()

    def save(self, path: str | Path) -> None:
        """Write it as CSV or, to a name that ends in .parquet, as parquet; BadInput where the path takes no file."""
        from pyarrow import csv, parquet

        write = parquet.write_table if Path(path).suffix == ".parquet" else csv.write_csv
        try:
            write(self.arrow, str(path))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else error
            raise BadInput(f"{path} cannot be written ({why}); choose a file in a directory that is there") from None

    def _shown(self) -> tuple[list[list[str]], str]:
        """Give the cells that are printed, and what says that there are more."""
        rows = [[_shown(value) for value in row.values()] for row in self.arrow.slice(0, SHOWN).to_pylist()]
        return rows, f"{SHOWN} of {len(self)} rows" if len(self) > SHOWN else ""

    def __repr__(self) -> str:
        rows, more = self._shown()
        lines = [self.columns, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([*text, more] if more else text)

    def _repr_html_(self) -> str:
        rows, more = self._shown()
        return as_html(self.columns, rows) + (f"<p>{more}</p>" if more else "")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return re.sub("e[+]0?", "e", f"{value:.4g}") if isinstance(value, float) else str(value)


def as_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out texts as a plain HTML table."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
