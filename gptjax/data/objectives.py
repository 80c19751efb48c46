"""Objectives: how windows of tokens become the one `Batch` that every loss reads."""

from dataclasses import dataclass

import jax
import numpy as np

Array = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Token ids in, token ids to predict, the weight of each prediction, and the document each input belongs to.

    All are (..., batch, seq): int32, int32, float32, and int32 or None where attention may cross documents.
    """

    inputs: Array
    targets: Array
    weights: Array
    segments: Array | None = None


def causal(windows: Array, bos: int, vocab_size: int, *, separate_documents: bool = False) -> Batch:
    """Predict each token from those before it; windows are (..., seq + 1), documents begin with `bos`.

    A token that is read and not predicted, as those of a prompt, stands as its id plus the tokenizer's `vocab_size`.
    """
    xp = windows.__array_namespace__()
    read_only = windows >= vocab_size
    tokens = windows - vocab_size * read_only.astype(xp.int32)
    inputs, targets = tokens[..., :-1], tokens[..., 1:]
    segments = xp.cumsum(inputs == bos, axis=-1, dtype=xp.int32) if separate_documents else None
    return Batch(inputs, targets, (~read_only[..., 1:]).astype(xp.float32), segments)
