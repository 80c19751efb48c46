"""Batches as a function of (seed, step), the same for any number of processes: to resume is to know the step."""

import hashlib
import itertools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import jax
import numpy as np

from gptjax.batch import Batch
from gptjax.data.corpora import Split
from gptjax.data.objectives import CAUSAL, Objective, Reading, halves
from gptjax.data.pairs import in_rows
from gptjax.data.store import Changed, TokenStore, build_store, open_store
from gptjax.errors import BadInput
from gptjax.fields import check_values
from gptjax.fingerprint import gained, how
from gptjax.jobs.storage import is_address

HELD_OUT_SEED = 0  # of what an objective draws for validation: the same for every run
BLOCK = 1024  # sequences in which a mixture keeps its proportions exactly


@dataclass(frozen=True)
class Source:
    """A corpus by name or path, or a directory that `gptjax data` wrote, and its share of the sequences."""

    corpus: str = "python"
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_values(self, "data.sources: ")


@dataclass(frozen=True)
class DataConfig:
    """What is read: corpora in proportion, one tokenizer."""

    sources: tuple[Source, ...] = (Source(),)  # corpora, each with its share of the sequences
    tokenizer: str = "sentencepiece:512"  # sentencepiece:VOCABULARY, bytes, or a folder with one
    separate_documents: bool = False  # keep attention within a document
    objective: Objective = gained(CAUSAL)  # what is predicted: causal, prefix or masked, by name or with settings
    cache: str = how(".cache/gptjax")  # folder where token stores are kept

    def __post_init__(self) -> None:
        check_values(self, "data.")
        if not self.sources or any(not source.weight > 0 for source in self.sources):
            raise BadInput(f"data.sources {self.sources} needs one corpus or more, each with a weight above 0")
        if is_address(self.cache):
            raise BadInput(
                f"data.cache {self.cache!r} is an address, and tokens are kept on this machine; name a folder"
            )


def shuffled(index: np.ndarray, n: int, seed: Sequence[int], rounds: int = 4) -> np.ndarray:
    """Map indices in [0, n) to [0, n), one to one: a Feistel network on the bits, walked until it lands inside."""
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(list(seed)).generate_state(rounds, np.uint64)

    def permute(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:  # mixing constants of SplitMix64 (Steele et al. 2014)
            f = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            f = (f ^ (f >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((f >> np.uint64(32)) & mask)
        return (left << half) | right

    y = permute(np.asarray(index, np.uint64))
    while (outside := y >= n).any():
        y[outside] = permute(y[outside])
    return y.astype(np.int64)


@lru_cache(maxsize=64)  # a step reads few sequences of a block, and the next steps read the others
def _order(block: int, seed: int, counts: tuple[int, ...], n_windows: tuple[int, ...]) -> np.ndarray:
    """Return the source of each sequence of a block and which of the source's windows it is, (2, BLOCK)."""
    place = np.arange(BLOCK)
    if len(counts) > 1:
        place = shuffled(place, BLOCK, (seed, 1))
    ends = np.cumsum(counts)
    source = np.searchsorted(ends, place, side="right")
    window = np.empty(BLOCK, np.int64)
    for k, (count, n) in enumerate(zip(counts, n_windows, strict=True)):
        mine = source == k
        epoch, index = np.divmod(block * count + place[mine] - (ends[k] - count), n)
        for e in np.unique(epoch):
            of_epoch = epoch == e
            index[of_epoch] = shuffled(index[of_epoch], n, (seed, 2, k, int(e)))
        window[mine] = index
    return np.stack([source, window])


@dataclass(frozen=True)
class Loader:
    """Training batches of a mixture of token stores, or only some of their rows."""

    stores: tuple[TokenStore, ...]
    weights: tuple[float, ...]
    batch: int  # sequences
    seq_len: int
    seed: int
    separate_documents: bool = False
    objective: Objective = CAUSAL

    def __post_init__(self) -> None:
        for store, n in zip(self.stores, self.n_windows, strict=True):
            if n < 1:
                tokens = store.n_tokens("train")
                raise BadInput(f"corpus {store.manifest.corpus} has {tokens} tokens, fewer than one window")

    @cached_property
    def n_windows(self) -> tuple[int, ...]:
        """Windows of each source."""
        return tuple((store.n_tokens("train") - 1) // self.seq_len for store in self.stores)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Sequences of each source in a block: the weights rounded so that they sum to BLOCK."""
        share = np.asarray(self.weights) / sum(self.weights) * BLOCK
        counts = np.floor(share).astype(int)
        counts[np.argsort(counts - share, kind="stable")[: BLOCK - counts.sum()]] += 1
        if (counts == 0).any():
            raise BadInput(f"data weights {self.weights} leave a source under 1/{BLOCK} of the sequences; drop it")
        return tuple(counts.tolist())

    @cached_property
    def reading(self) -> Reading:
        return reading_of(self.stores[0], self.objective, self.separate_documents)

    def __call__(self, step: int, rows: np.ndarray) -> Batch:
        """Return these rows of the batch of a step, (rows, seq): the same whoever asks for them."""
        return jax.tree.map(lambda x: x[0], self.read(range(step, step + 1), rows))

    def sequences(self, steps: range, rows: np.ndarray) -> np.ndarray:
        """Return the source and the window of these rows of successive steps, (2, steps * rows)."""
        first, last = steps.start * self.batch // BLOCK, (steps.stop * self.batch - 1) // BLOCK
        orders = [_order(block, self.seed, self.counts, self.n_windows) for block in range(first, last + 1)]
        sequence = np.add.outer(np.arange(steps.start, steps.stop) * self.batch - first * BLOCK, rows).ravel()
        return np.concatenate(orders, axis=1)[:, sequence]

    def read(self, steps: range, rows: np.ndarray) -> Batch:
        """Return these rows of the batches of successive steps, (steps, rows, seq)."""
        source, window = self.sequences(steps, rows)
        if len(self.stores) == 1:
            windows = self.stores[0].windows("train", window * self.seq_len, self.seq_len + 1)
        else:
            windows = np.empty((len(source), self.seq_len + 1), np.int32)
            for k, store in enumerate(self.stores):
                mine = source == k
                windows[mine] = store.windows("train", window[mine] * self.seq_len, self.seq_len + 1)
        shape = len(steps), len(rows), self.seq_len + 1
        return self.reading(windows.reshape(shape), self.index(steps, rows), self.seed)

    def index(self, steps: range, rows: np.ndarray) -> np.ndarray:
        """Number these rows of successive steps in the order of the data, in halves, (steps, rows, 2)."""
        return halves(np.add.outer(np.arange(steps.start, steps.stop) * self.batch, rows))

    def epochs(self, steps: int) -> float:
        """Return how often the most repeated source is read in so many steps."""
        return max(steps * self.batch * count / BLOCK / n for count, n in zip(self.counts, self.n_windows, strict=True))


def reading_of(store: TokenStore, objective: Objective, separate_documents: bool) -> Reading:
    return Reading(objective, store.tokenizer.bos, store.tokenizer.vocab_size, separate_documents)


def validation_batches(
    store: TokenStore,
    sequences: int,
    batch: int,
    seq_len: int,
    separate_documents: bool,
    split: Split = "validation",
    objective: Objective = CAUSAL,
) -> Batch:
    """Return the same evenly spaced windows of a split for every run, stacked as (n, batch, seq)."""
    n = (store.n_tokens(split) - 1) // seq_len
    if n < batch:
        raise BadInput(
            f"the {split} split of {store.manifest.corpus} has {n} windows of {seq_len} tokens, "
            f"fewer than a batch of {batch}; use a larger corpus or a smaller eval batch"
        )
    sequences = min(sequences, n) // batch * batch
    starts = np.arange(sequences) * n // sequences * seq_len
    windows = store.windows(split, starts, seq_len + 1)
    flat = reading_of(store, objective, separate_documents)(windows, halves(np.arange(sequences)), HELD_OUT_SEED)
    return jax.tree.map(lambda x: x.reshape(-1, batch, seq_len), flat)


def _cached(corpus: str, spec: str, cache: Path) -> tuple[Path, TokenStore]:
    """Open the store of a corpus as it is now, or build it, beside the stores of what the corpus was before.

    Those stay, because a run that has begun on them may read them still.
    """
    key = f"{corpus} {spec}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[-48:] + "-" + hashlib.sha256(os.fsencode(key)).hexdigest()[:8]
    for version in itertools.count(1):
        directory = cache / "tokens" / (name if version == 1 else f"{name}-{version}")
        try:
            store = build_store(corpus, spec, directory)
        except Changed:
            continue
        for line in store.provenance.notes() if store.is_new and store.provenance else []:
            print(f"gptjax: {corpus}: {line}", file=sys.stderr)
        return directory, store
    raise AssertionError


def open_stores(config: DataConfig, context: int | None = None) -> tuple[TokenStore, ...]:
    """Open the token store of each source; all share the first's tokenizer.

    What the cache does not hold, and what has changed since it was tokenized, is tokenized into it.

    Pairs are laid out in rows of the context that is given.
    """
    stores: list[TokenStore] = []
    spec = config.tokenizer
    for source in config.sources:
        directory = Path(source.corpus)
        if (directory / "manifest.json").is_file():
            stores.append(open_store(directory))
        else:
            directory, store = _cached(source.corpus, spec, Path(config.cache))
            stores.append(store)
        spec = str(directory) if len(stores) == 1 else spec
    first = stores[0].tokenizer
    for source, store in zip(config.sources, stores, strict=True):
        if store.tokenizer.digest != first.digest:
            raise BadInput(
                f"{source.corpus} was tokenized otherwise than {config.sources[0].corpus}; "
                "name the corpus instead of its store, so that it is tokenized with the first one's tokenizer"
            )
    return tuple(in_rows(store, context) if context and store.manifest.is_pairs else store for store in stores)
