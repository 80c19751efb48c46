"""The safetensors format, written and read a tensor at a time: neither a model nor a file is ever held whole.

A file is the length of its header (8 bytes, little-endian), a JSON header, and the tensors' bytes one after the other.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.files import parse_json, read_json, write_json

DTYPES: dict[str, np.dtype] = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": jnp.dtype("bfloat16")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes: what the safetensors library reads


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: `blocks` yields its values in order, some rows at a time."""

    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]


def write_tensors(folder: Path, tensors: Sequence[Outgoing], dtype: np.dtype, shard_bytes: int) -> None:
    """Write tensors into files of at most so many bytes, and an index if there are several."""
    shards: list[list[Outgoing]] = [[]]
    held = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * dtype.itemsize
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += size
    if len(shards) == 1:
        _write_file(folder / SINGLE, tensors, dtype)
        return
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, dtype)
    total = sum(math.prod(tensor.shape) for tensor in tensors) * dtype.itemsize
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_file(path: Path, tensors: Iterable[Outgoing], dtype: np.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + math.prod(tensor.shape) * dtype.itemsize
        header[tensor.name] = {"dtype": CODES[dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors:
            for block in tensor.blocks():
                file.write(np.ascontiguousarray(block, dtype).view(np.uint8).data)
        if file.tell() != 8 + len(head) + end:
            raise RuntimeError(f"{path} got {file.tell()} bytes where its header says {8 + len(head) + end}")


@dataclass(frozen=True)
class Incoming:
    """A tensor in a file. Its type may be any of the format: masks are of types that no weight of ours has."""

    name: str
    path: Path
    code: str
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers; BadInput where no weight of ours can be of it."""
        if self.code not in DTYPES:
            known = ", ".join(DTYPES)
            raise BadInput(f"{self.path}: {self.name} is of type {self.code}, not of {known}; cast it first")
        return DTYPES[self.code]

    def read(self) -> np.ndarray:
        return np.fromfile(self.path, self.dtype, math.prod(self.shape), offset=self.offset).reshape(self.shape)


def open_tensors(folder: Path) -> dict[str, Incoming]:
    """Read which tensors a folder of safetensors holds; the one file counts where an index lies beside it.

    BadInput where a file is missing, truncated or contradictory, or where the index names one elsewhere.
    """
    if (folder / SINGLE).is_file():
        return _open_file(folder / SINGLE)
    index = folder / INDEX
    if not index.is_file():
        raise BadInput(f"{folder} has neither {SINGLE} nor {INDEX}; save the model as safetensors")
    where = _weight_map(index)
    found: dict[str, Incoming] = {}
    for name in sorted(set(where.values())):
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name} is missing and {INDEX} names it; copy all files of the model")
        held = _open_file(folder / name)
        if twice := sorted(found.keys() & held.keys()):
            raise BadInput(f"{folder / name} and {found[twice[0]].path.name} both hold {twice[0]}; keep one of them")
        found |= held
    if absent := sorted(where.keys() - found.keys()):
        raise BadInput(f"{folder / where[absent[0]]} has no tensor {absent[0]} and {INDEX} says so; copy it again")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Read in which file each tensor is; BadInput unless all of them lie beside the index."""
    content = read_json(index)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not where:
        raise BadInput(f"{index} has no weight_map that names a file for each tensor; copy it again")
    for tensor, name in where.items():
        if not isinstance(name, str) or name != Path(name).name:
            raise BadInput(f"{index}: {tensor} is in {name!r}, and a file beside the index is needed; save it again")
    return where


def _open_file(path: Path) -> dict[str, Incoming]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise BadInput(f"{path} of {size} bytes is truncated: its header alone has {length}; copy it again")
        if length > LONGEST_HEADER:
            raise BadInput(f"{path} has a header of {length} bytes, {LONGEST_HEADER} at most are read; save it again")
        header = parse_json(file.read(length), f"the header of {path}")
    if not isinstance(header, dict):
        raise BadInput(f"{path} has no safetensors header; save the model as safetensors")
    header.pop("__metadata__", None)
    placed = []
    for name, fields in header.items():
        code, shape, start, end = _fields(path, name, fields)
        if code in DTYPES and end - start != math.prod(shape) * DTYPES[code].itemsize:
            raise BadInput(f"{path}: {name} of shape {shape} and type {code} has {end - start} bytes; save it again")
        if 8 + length + end > size:
            raise BadInput(
                f"{path} of {size} bytes is truncated: {name} ends at byte {8 + length + end}; copy it again"
            )
        placed.append((start, end, Incoming(name, path, code, shape, 8 + length + start)))
    spans = sorted((start, end, tensor.name) for start, end, tensor in placed if start < end)
    for (_, end, before), (start, _, after) in pairwise(spans):
        if start < end:
            raise BadInput(f"{path}: {before} and {after} overlap in the file; save the model again")
    return {tensor.name: tensor for _, _, tensor in placed}


def _fields(path: Path, name: str, fields: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return type, shape, first and last byte of a tensor; BadInput where the header gives none such."""
    match fields:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [start, end]}:
            if all(type(n) is int and n >= 0 for n in (*shape, start, end)) and start <= end:
                return code, tuple(shape), start, end
    raise BadInput(f"{path}: the header gives no type, shape and place for {name}; save the model again")
