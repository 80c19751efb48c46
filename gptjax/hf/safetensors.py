"""The safetensors format, written and read a tensor at a time: neither a model nor a file is ever held whole.

A file is the length of its header (8 bytes, little-endian), a JSON header, and the tensors' bytes one after the other.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.files import read_json, write_json

DTYPES: dict[str, np.dtype] = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": jnp.dtype("bfloat16")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


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
    """A tensor in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        return np.fromfile(self.path, self.dtype, math.prod(self.shape), offset=self.offset).reshape(self.shape)


def open_tensors(folder: Path) -> dict[str, Incoming]:
    """Read what tensors a folder of safetensors holds; BadInput where a file is missing, truncated or contradictory."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise BadInput(f"{folder} has neither {SINGLE} nor {INDEX}; save the model as safetensors")
        return _open_file(folder / SINGLE)
    where = read_json(index)["weight_map"]
    found: dict[str, Incoming] = {}
    for name in sorted(set(where.values())):
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name} is missing and {INDEX} names it; copy all files of the model")
        found |= _open_file(folder / name)
    if absent := sorted(where.keys() - found.keys()):
        raise BadInput(f"{folder / where[absent[0]]} has no tensor {absent[0]} and {INDEX} says so; copy it again")
    return found


def _open_file(path: Path) -> dict[str, Incoming]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise BadInput(f"{path} of {size} bytes is truncated: its header alone has {length}; copy it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            fields = {name: (t["dtype"], tuple(t["shape"]), *t["data_offsets"]) for name, t in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} has no safetensors header ({error!r}); save the model as safetensors") from None
    tensors = {}
    for name, (code, shape, start, end) in fields.items():
        if code not in DTYPES:
            raise BadInput(f"{path}: {name} is of type {code}, not of {', '.join(DTYPES)}; cast it first")
        if end - start != math.prod(shape) * DTYPES[code].itemsize:
            raise BadInput(f"{path}: {name} of shape {shape} and type {code} has {end - start} bytes; save it again")
        if 8 + length + end > size:
            raise BadInput(
                f"{path} of {size} bytes is truncated: {name} ends at byte {8 + length + end}; copy it again"
            )
        tensors[name] = Incoming(path, DTYPES[code], shape, 8 + length + start)
    return tensors
