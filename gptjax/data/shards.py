"""Windows of a token array on a local disk, from the bytes of its shards (zarr3, codec sharding_indexed)."""

import os
from functools import lru_cache, partial
from pathlib import Path
from weakref import finalize

import numpy as np
import tensorstore as ts

OPEN_FILES = 256  # of a split: 4 Gi tokens; the others are opened anew
AT_ONCE = 64  # windows announced to the system before they are read: a disk then fetches them together
CHECKSUM_BYTES = 4  # crc32c, at the end of every chunk and of a shard's index


class ShardFiles:
    """The shards of an array as local files, for windows: 2 us each, where TensorStore takes 65.

    Only a window's own bytes are read, so its chunk's checksum is not compared: `verify` does.
    """

    def __init__(self, folder: Path, array: ts.TensorStore) -> None:
        self._dtype = array.dtype.numpy_dtype.newbyteorder("<")
        self._shard, self._chunk = shard_and_chunk(array)
        self._open = lru_cache(OPEN_FILES)(partial(_Shard, folder, array))

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return tokens[start : start + length] for every start, (n, length); OSError where a file is short."""
        parts = []
        for first in range(0, len(starts), AT_ONCE):
            spans = self._spans(starts[first : first + AT_ONCE].tolist(), length)
            if hasattr(os, "posix_fadvise"):  # not on macOS
                for file, offset, n_bytes in spans:
                    os.posix_fadvise(file.descriptor, offset, n_bytes, os.POSIX_FADV_WILLNEED)
            parts += [os.pread(file.descriptor, n_bytes, offset) for file, offset, n_bytes in spans]
        content = b"".join(parts)
        if len(content) != len(starts) * length * self._dtype.itemsize:
            raise OSError("a shard is shorter than when it was opened")
        return np.frombuffer(content, self._dtype).reshape(len(starts), length)

    def _spans(self, starts: list[int], length: int) -> list[tuple["_Shard", int, int]]:
        """Return where windows lie, chunk by chunk: file, offset, bytes."""
        shard_size, chunk_size, item = self._shard, self._chunk, self._dtype.itemsize
        spans = []
        for at in starts:
            end = at + length
            while at < end:
                shard, within = divmod(at, shard_size)
                chunk, within = divmod(within, chunk_size)
                n, file = min(end - at, chunk_size - within), self._open(shard)
                spans.append((file, file.offsets[chunk] + within * item, n * item))
                at += n
        return spans


class _Shard:
    """A shard's file, open until nobody holds this, and where the chunks begin in it."""

    def __init__(self, folder: Path, array: ts.TensorStore, number: int) -> None:
        shard, chunk = shard_and_chunk(array)
        self.descriptor = os.open(folder / "c" / str(number), os.O_RDONLY)
        finalize(self, os.close, self.descriptor)
        # At the file's end: (offset, bytes) of every chunk, and their checksum, which TensorStore compared on opening.
        size, index_bytes = os.fstat(self.descriptor).st_size, shard // chunk * 16
        index = os.pread(self.descriptor, index_bytes, size - CHECKSUM_BYTES - index_bytes)
        n_chunks = -(-min(array.size - number * shard, shard) // chunk)
        offsets, n_bytes = np.frombuffer(index, "<u8").reshape(-1, 2)[:n_chunks].T
        if (n_bytes != chunk * array.dtype.numpy_dtype.itemsize + CHECKSUM_BYTES).any():
            raise OSError(f"shard {number} lacks chunks")
        self.offsets = offsets.tolist()


def shard_and_chunk(array: ts.TensorStore) -> tuple[int, int]:
    """Return how many tokens they hold."""
    layout = array.chunk_layout
    return np.asarray(layout.write_chunk.shape).item(), np.asarray(layout.read_chunk.shape).item()
