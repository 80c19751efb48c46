"""Files of documents: which files a name stands for, and how text, JSON lines and parquet are read, packed or not.

A file or glob names what is read, whatever its ending: what is neither JSON nor parquet is text. Of a folder, files
with the endings below are read, in small letters or capitals, and the others are left out; that is said, and refused
where they are the larger part. No line, and no value of a header, makes a reader hold more than LINE_BYTES at once.
"""

import glob
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptjax.errors import BadInput
from gptjax.jobs.storage import is_address

TEXT = (".py", ".rst", ".md", ".txt")
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
PACKED_BEGIN = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # whatever the ending
ARCHIVES = {(0, b"PK\x03\x04"): "zip", (0, b"\xfd7zXZ\0"): "xz", (0, b"7z\xbc\xaf"): "7z", (257, b"ustar"): "tar"}
MEDIA = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".ico", ".mp3", ".wav", ".mp4", ".woff", ".woff2", ".ttf")

TEXT_BYTES = 1 << 16  # a longer text is cut, at a line's end where there is one, into documents of about this size
LINE_BYTES = 1 << 26  # of JSON; a longer line is refused
PARQUET_ROWS = 128  # read at a time
BOM = b"\xef\xbb\xbf"  # U+FEFF, with which editors on Windows begin a file


# ---- which files a name stands for


@dataclass(frozen=True)
class Files:
    """The files that a name stands for; of a folder also those that are left out."""

    name: str
    fields: tuple[str, ...]  # what every row of JSON must have
    read: tuple[Path, ...]
    left_out: tuple[Path, ...] = ()
    is_folder: bool = False

    def checked(self) -> "Files":
        """Leave out JSON of a folder that holds no documents; BadInput where more is left out of a folder than read."""
        if not self.is_folder:
            return self
        others = {path for path in self.read if _unpacked(path).endswith(".json") and not _has_rows(path, self.fields)}
        read = tuple(path for path in self.read if path not in others)
        found = Files(self.name, self.fields, read, tuple(sorted((*self.left_out, *others))), True)
        missing = {kind: (n, size) for kind, (n, size) in found.summary().items() if kind not in (*MEDIA, HIDDEN)}
        if sum(size for _, size in missing.values()) > sum(path.stat().st_size for path in read):
            endings = [kind for kind in missing if kind != NO_ENDING]
            raise BadInput(f"corpus {self.name!r} would leave out more than it reads ({describe(missing)}); name the "
                           f"files to read by a glob, as '{in_folder(self.name, endings)}', or by --ext")  # fmt: skip
        return found

    def summary(self) -> dict[str, tuple[int, int]]:
        """Count the files that are left out, and their bytes, by ending."""
        found: dict[str, tuple[int, int]] = {}
        for path in self.left_out:
            hidden = any(part.startswith(".") for part in path.relative_to(self.name).parts)
            kind = HIDDEN if hidden else _shown_ending(path)
            n, size = found.get(kind, (0, 0))
            found[kind] = n + 1, size + path.stat().st_size
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


HIDDEN, NO_ENDING = "hidden", "without ending"


def describe(kinds: dict[str, tuple[int, int]], most: int = 8) -> str:
    """Say in a few words what `summary` counted."""
    shown = [f"{kind} {n:,} files, {size:,} bytes" for kind, (n, size) in list(kinds.items())[:most]]
    return "; ".join(shown) + (f"; {len(kinds) - most} endings more" if len(kinds) > most else "")


def find(name: str, fields: tuple[str, ...] = ("text",), endings: tuple[str, ...] = (*TEXT, *JSON, PARQUET)) -> Files:
    """Find the files of a file's name, a folder or a glob, by path; of a folder those with one of the endings.

    A glob may hold {a,b} for several spellings. BadInput where nothing is found.
    """
    if is_address(name):
        raise BadInput(f"corpus {name!r} is an address, and a corpus is read from this machine's disk; copy it here")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"corpus {name!r} is not UTF-8, and names are kept as text; rename it") from None
    root = Path(name)
    if name and root.is_dir():
        within = sorted(path for path in root.rglob("*") if path.is_file())
        taken = {path: _unpacked(path).endswith(endings) for path in within}
        read, left_out = (tuple(path for path in within if taken[path] is wanted) for wanted in (True, False))
        found = Files(name, fields, read, left_out, True)
    elif root.is_file():
        found = Files(name, fields, (root,))
    else:
        named = {Path(path) for pattern in _spellings(name) for path in glob.iglob(pattern, recursive=True)}
        found = Files(name, fields, tuple(sorted(path for path in named if path.is_file())))
    if not found.read:
        left = f"; it holds {describe(found.summary())}" if found.left_out else ""
        raise BadInput(f"corpus {name!r} names no readable file{left}; give python, markov, hf:NAME, pairs:FILES, a "
                       f"file, a glob, or a folder of {' '.join(endings)}")  # fmt: skip
    return found


def in_folder(folder: str, endings: list[str]) -> str:
    """Return the glob of what a folder holds at any depth, with one of these endings if there are some."""
    some = endings[0] if len(endings) == 1 else f"{{{','.join(endings)}}}" if endings else ""
    return f"{glob.escape(folder)}/**/*{some}"


def _spellings(pattern: str) -> list[str]:
    """Write out the alternatives {a,b} of a glob, as a shell does."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    return [
        spelling
        for option in found[1].split(",")
        for spelling in _spellings(pattern[: found.start()] + option + pattern[found.end() :])
    ]


def _unpacked(path: Path) -> str:
    """Return a file's name in small letters, without the ending that says how it is packed."""
    name = path.name.lower()
    for packing in PACKED:
        name = name.removesuffix(packing)
    return name


def holds_json(path: Path) -> bool:
    """Say whether a file's name makes it JSON."""
    return _unpacked(path).endswith(JSON)


def _shown_ending(path: Path) -> str:
    packing = path.suffix if path.suffix.lower() in PACKED else ""
    return Path(path.name.removesuffix(packing)).suffix + packing or NO_ENDING


# ---- reading them


def read(files: Files, read_row: Callable[[dict[str, Any]], bytes]) -> Iterator[bytes]:
    """Yield the documents of files, those of JSON as `read_row` makes them of a row."""
    for path in files.read:
        try:
            if holds_json(path):
                yield from map(read_row, rows(path, files.fields))
            elif _unpacked(path).endswith(PARQUET):
                yield from _parquet(path)
            else:
                yield from _text(path)
        except BadInput:
            raise
        except (OSError, ValueError, MemoryError, pa.ArrowException) as error:  # of pyarrow: a damaged file
            reason = str(error).partition("\n")[0] or "it needs more memory than there is"
            raise BadInput(f"{path} cannot be read ({reason}); repair it or leave it out") from error


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for the bytes that it holds, unpacked where it is packed; BadInput for an archive."""
    with path.open("rb") as file:
        head = file.peek(4)
        packing = PACKED.get(path.suffix.lower())
        packing = packing or next((kind for begin, kind in PACKED_BEGIN.items() if head.startswith(begin)), None)
        stream = io.BufferedReader(pa.CompressedInputStream(file, packing)) if packing else file
        head = stream.peek(512)
        for (at, mark), kind in ARCHIVES.items():
            if head[at:].startswith(mark):
                raise BadInput(f"{path} is an archive ({kind}), and files are read from folders; unpack it")
        yield stream


def _text(path: Path) -> Iterator[bytes]:
    """Yield a text in parts that end with a line, or within a line longer than TEXT_BYTES between two characters."""
    with opened(path) as stream:
        text = bytearray()
        while line := stream.readline(TEXT_BYTES):
            text += line
            within = len(line) == TEXT_BYTES and not line.endswith(b"\n")
            if within or len(text) > TEXT_BYTES:
                end = _last_character(text) if within else len(text)
                yield bytes(text[:end])
                del text[:end]
        if text:
            yield bytes(text)


def _last_character(text: bytearray) -> int:
    """Return where UTF-8 text ends that may break off within a character; its length if it is not UTF-8."""
    for back in range(1, 4):
        lead = text[-back]
        if lead >= 0xC0:
            return len(text) - back if back < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4) else len(text)
        if lead < 0x80:
            break
    return len(text)


def rows(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON file; BadInput at the first that lacks one of the string fields."""
    for where, row in json_values(path):
        for name in fields:
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                raise BadInput(f"{where} has no string field {name!r}; give one to every line")
        yield row


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each value of a JSON file stands, in words, and the value.

    The file is JSON lines, which end with \\n and nothing else, blank ones skipped; or, where it is called .json and
    does not begin with a line that is an object, one object or a list. BadInput names the line that is neither.
    """
    if _unpacked(path).endswith(".json") and not _begins_with_an_object(path):
        with opened(path) as stream:
            whole = _parsed(stream.read(LINE_BYTES + 1), str(path), "write larger files as JSON lines")
        values = whole if isinstance(whole, list) else [whole]
        yield from ((f"{path} item {number}", value) for number, value in enumerate(values, 1))
        return
    with opened(path) as stream:
        for number in count(1):
            line = stream.readline(LINE_BYTES + 1)
            if not line:
                return
            if line.removeprefix(BOM).strip():
                where = f"{path} line {number}"
                yield where, _parsed(line.rstrip(), where, "write a document a line, and cut longer ones")


def _begins_with_an_object(path: Path) -> bool:
    with opened(path) as stream:
        lines: Iterable[bytes] = iter(lambda: stream.readline(LINE_BYTES + 1), b"")
        first = next((line for line in lines if line.removeprefix(BOM).strip()), b"")
    try:
        return isinstance(_parsed(first, "", ""), dict)
    except BadInput:
        return False


def _parsed(text: bytes, where: str, remedy: str) -> Any:
    if len(text) > LINE_BYTES:
        raise BadInput(f"{where} is longer than {LINE_BYTES:,} bytes, which are read at a time; {remedy}")
    try:
        return json.loads(text.removeprefix(BOM).decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); write it as UTF-8") from None
    except RecursionError:
        raise BadInput(f"{where} is nested too deeply to be read; write a flat object") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise BadInput(
            f"{where} is not JSON ({error.msg.removesuffix(' at')}, {at}); write one JSON object a line"
        ) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise BadInput(f"{where} is not JSON ({error}); write one JSON object a line") from None


def _has_rows(path: Path, fields: tuple[str, ...]) -> bool:
    try:
        return next(rows(path, fields), None) is not None
    except BadInput:
        return False


def _parquet(path: Path) -> Iterator[bytes]:
    with pq.ParquetFile(path) as table:
        schema = table.schema_arrow
        if schema.names.count("text") != 1:
            raise BadInput(f"{path} has columns {schema.names} and not one 'text'; rename the text column")
        kind = schema.field("text").type
        if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
            raise BadInput(f"{path} has a column 'text' of {kind}, which is no text; write it as strings")
        for batch in table.iter_batches(PARQUET_ROWS, columns=["text"]):
            yield from (text for text in batch.column(0).cast(pa.large_binary()).to_pylist() if text is not None)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        check(kind)
        for check in (types.is_string, types.is_large_string, types.is_string_view, types.is_binary,
                      types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary, types.is_null)
    )  # fmt: skip
