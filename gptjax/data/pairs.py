"""Prompts and answers in rows of a context: no example is cut, and what is predicted is the answers alone.

A store of pairs holds examples one after the other: bos, the prompt, the answer.
"""

from bisect import bisect_left, insort
from dataclasses import replace
from hashlib import sha256

import numpy as np
import tensorstore as ts

from gptjax.data.corpora import Split
from gptjax.data.store import SPLITS, TokenStore
from gptjax.errors import BadInput


def in_rows(store: TokenStore, context: int) -> TokenStore:
    """Lay a store of pairs out so that its windows of context + 1 tokens, context apart, each hold whole examples.

    The rows are held in memory. Their digest depends on the context. BadInput where an example exceeds it.
    """
    arrays, splits = {}, {}
    for split in SPLITS:
        rows = lay_out(store.held(split), store.tokenizer.bos, store.tokenizer.vocab_size, context, _name(store, split))
        arrays[split] = ts.array(rows)
        splits[split] = replace(store.manifest.splits[split], tokens=len(rows), sha256=sha256(rows.data).hexdigest())
    return TokenStore(store.manifest.corpus, replace(store.manifest, splits=splits), store.tokenizer, arrays)


def _name(store: TokenStore, split: Split) -> str:
    return f"{split} split of {store.manifest.corpus}"


def lay_out(tokens: np.ndarray, bos: int, vocab_size: int, context: int, what: str) -> np.ndarray:
    """Return rows of `context` tokens, one after the other, and a last bos, so that every row's end has a successor.

    The bos that follows an answer is predicted, which teaches to stop, be it padding or the beginning of what comes
    next; any other is only read. Padding is bos.
    """
    starts = np.flatnonzero(tokens == bos)
    lengths = np.diff(starts, append=len(tokens))
    if (long := lengths[lengths > context]).size:
        raise BadInput(
            f"{what}: {long.size} of {lengths.size} examples exceed the context of {context}, the longest with "
            f"{long.max()} tokens; leave them out, or set model.context to {long.max()}"
        )
    placed, n_rows = pack(lengths.tolist(), context)
    rows = np.full(n_rows * context + 1, bos + vocab_size, tokens.dtype)
    rows[np.arange(len(tokens)) + np.repeat(placed - starts, lengths)] = tokens
    rows[placed] = bos + vocab_size
    rows[placed + lengths] = bos
    return rows


def pack(lengths: list[int], size: int) -> tuple[np.ndarray, int]:
    """Put each length in turn where it leaves the least room (best fit); return where each begins, and the rows used.

    Row r takes the places r * size to (r + 1) * size - 1.
    """
    free: list[tuple[int, int]] = []  # room and row, of rows that have some, in order
    placed, n_rows = [], 0
    for length in lengths:
        i = bisect_left(free, (length, 0))
        if i < len(free):
            room, row = free.pop(i)
        else:
            room, row, n_rows = size, n_rows, n_rows + 1
        placed.append((row + 1) * size - room)
        if room > length:
            insort(free, (room - length, row))
    return np.array(placed, np.int64), n_rows
