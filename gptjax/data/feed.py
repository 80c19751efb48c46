"""Batches on their way to the devices: prepared ahead by a thread, or cut there from tokens that stay on them."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.batch import Batch
from gptjax.data.loader import Loader
from gptjax.data.objectives import Reading
from gptjax.data.store import TokenStore

READ_TOKENS = (
    2**15
)  # small calls are read together until they hold this many tokens: alone, a call costs more than them


def prefetch(loader: Loader, calls: Iterable[range], sharding: NamedSharding) -> Generator[Batch, None, None]:
    """Yield the stacked, placed batches of each call's steps, which follow each other, prepared ahead by a thread."""
    prepare = Resident(loader, sharding) if may_reside(loader, sharding) else partial(_send, loader, sharding)
    groups = _together(calls, READ_TOKENS // (loader.batch * loader.seq_len))
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(prepare, group) for group in islice(groups, 2))
        while pending:
            batches = pending.popleft().result()
            pending.extend(pool.submit(prepare, group) for group in islice(groups, 1))
            yield from batches


def _together(calls: Iterable[range], steps: int) -> Iterator[list[range]]:
    """Yield successive calls of so many steps together, at least one."""
    group: list[range] = []
    for call in calls:
        if group and call.stop - group[0].start > steps:
            yield group
            group = []
        group.append(call)
    if group:
        yield group


def _send(loader: Loader, sharding: NamedSharding, calls: Sequence[range]) -> list[Batch]:
    first, stop = calls[0].start, calls[-1].stop
    whole: list[Batch] = []  # of all calls: each asks for the same rows

    def read(steps: range, rows: np.ndarray) -> Batch:
        if not whole:
            whole.append(loader.read(range(first, stop), rows))
        return jax.tree.map(lambda x: x[steps.start - first : steps.stop - first], whole[0])

    return [spread(partial(read, steps), (len(steps), loader.batch, loader.seq_len), sharding) for steps in calls]


def spread(read: Callable[[np.ndarray], Batch], shape: tuple[int, ...], sharding: NamedSharding) -> Batch:
    """Make global arrays (S, B, T) from what `read` returns of rows of B, (S, rows, T).

    A process asks only for the rows that its own devices hold.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(read(np.arange(shape[1])), sharding)
    indices = sharding.addressable_devices_indices_map(shape).values()
    held = [np.arange(shape[1])[index[1]] for index in indices if index]
    rows = np.unique(np.concatenate(held))

    def place(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, stop, _ = index[1].indices(shape[1])
            return x[index[0], np.searchsorted(rows, first) : np.searchsorted(rows, stop), index[2]]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, read(rows))


def may_reside(loader: Loader, sharding: NamedSharding) -> bool:
    """Say whether tokens belong on the devices: accelerators of this process alone, and stores small enough to hold."""
    accelerators = sharding.is_fully_addressable and sharding.mesh.devices.flat[0].platform != "cpu"
    return accelerators and all(store.holds("train") for store in loader.stores)


class Resident:
    """Batches as `Loader.read` gives them, cut on the devices: only where the windows begin is sent."""

    def __init__(self, loader: Loader, sharding: NamedSharding) -> None:
        self.loader, self.sharding = loader, sharding
        self.tokens = _placed(loader.stores, NamedSharding(sharding.mesh, PartitionSpec()))
        self.first = np.cumsum([0, *(store.n_tokens("train") for store in loader.stores[:-1])])

    def __call__(self, calls: Sequence[range]) -> list[Batch]:
        """Return the batches of each call's steps, (S, B, T)."""
        return [self._of(steps) for steps in calls]

    def _of(self, steps: range) -> Batch:
        source, window = self.loader.sequences(steps, np.arange(self.loader.batch))
        starts_SB = (self.first[source] + window * self.loader.seq_len).reshape(len(steps), -1).astype(np.int32)
        index = self.loader.index(steps, np.arange(self.loader.batch))
        key = jax.random.key(self.loader.seed)
        return _cut(self.tokens, starts_SB, index, key, self.loader.reading, self.loader.seq_len, self.sharding)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _cut(
    tokens: jax.Array,
    starts_SB: jax.Array,
    index_SB2: jax.Array,
    key: jax.Array,
    reading: Reading,
    seq_len: int,
    sharding: NamedSharding,
) -> Batch:
    windows = tokens[starts_SB[..., None] + jnp.arange(seq_len + 1)].astype(jnp.int32)
    batch = reading(windows, index_SB2, key)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), batch)


_resident: WeakValueDictionary[Any, jax.Array] = WeakValueDictionary()  # runs that train together share them


def _placed(stores: tuple[TokenStore, ...], everywhere: NamedSharding) -> jax.Array:
    """Return the training tokens of all stores, one after the other, on every device."""
    key = tuple(store.digest for store in stores), everywhere
    if (tokens := _resident.get(key)) is None:
        tokens = jax.device_put(np.concatenate([store.held("train") for store in stores]), everywhere)
        _resident[key] = tokens
    return tokens
