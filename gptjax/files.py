"""Files that are whole or absent, whatever dies while they are written, and values as strict JSON."""

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.jobs import storage


def write_file(path: Path, content: str | bytes, *, replace: bool = True) -> None:
    """Write a file whole; with replace=False an existing file is BadInput and stays as it is."""
    data = content.encode() if isinstance(content, str) else content
    if replace:
        storage.write(path, data)
    elif not storage.create(path, data):
        raise BadInput(f"{path} exists and is not overwritten; move it away or choose another name")


def write_json(path: Path, value: Any, *, replace: bool = True) -> None:
    """Write strict JSON: a NaN is an error here and not in the reader."""
    write_file(path, json.dumps(value, indent=1, allow_nan=False) + "\n", replace=replace)


def read_text(path: Path, what: str) -> str:
    """Read UTF-8; BadInput, with the line, when the file is missing or is not UTF-8. `what` says what was wanted."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}); give {what}") from None
    if data[:2] == b"\x1f\x8b":
        raise BadInput(f"{path} is packed by gzip; unpack it")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:1000]:
        raise BadInput(f"{path} is not UTF-8 text (it looks like UTF-16 or binary); save it again as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path} line {line} is not UTF-8 ({error.reason}); save it again as UTF-8") from None


def read_json(path: Path, what: str = "a file that this program wrote") -> Any:
    """Read JSON; BadInput, with the line, when the file is missing or is not JSON. `what` says what was wanted."""
    return parse_json(read_text(path, what), path)


def parse_json(data: bytes | str, what: Path | str, line: int = 1) -> Any:
    """Read JSON that begins at a line of a file or another thing; BadInput names the line that is none."""
    try:
        return json.loads(data if isinstance(data, str) else data.decode())
    except json.JSONDecodeError as error:
        line, why = line + error.lineno - 1, error.msg
    except (ValueError, RecursionError) as error:  # no UTF-8, a number beyond Python's digits, too deep
        why = str(error)
    raise BadInput(f"{what}:{line} cannot be read as JSON ({why}); mend it, or write it again")


def plain(value: Any) -> Any:
    """Turn dataclasses, arrays and numbers into what strict JSON holds; a number that is not finite becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
