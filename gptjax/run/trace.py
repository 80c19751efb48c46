"""Record what a few calls of a run do on the device, as a trace that TensorBoard and Perfetto open."""

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")
SKIPPED, RECORDED = 2, 5  # calls: the first ones compile and fill caches


def traced(batches: Iterator[T], calls: Iterable[range], directory: Path) -> Generator[T, None, None]:
    """Pass on the batches of calls, and record some of the calls between them into a directory.

    Of a run too short to skip any, its last call is recorded, compilation and all.
    """
    n = sum(1 for _ in islice(calls, SKIPPED + RECORDED))
    first = min(SKIPPED, n - 1)
    last = min(first + RECORDED, n) - 1
    recording = False
    try:
        for i, batch in enumerate(batches):
            if i == first:
                jax.profiler.start_trace(directory, create_perfetto_trace=True)
                recording = True
            yield batch
            if i == last:
                recording = False
                jax.profiler.stop_trace()
    finally:
        if recording:
            jax.profiler.stop_trace()
