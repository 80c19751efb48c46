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


def causal(windows: np.ndarray, bos: int, *, separate_documents: bool = False) -> Batch:
    """Predict each token from those before it; windows are (..., seq + 1) and documents begin with `bos`."""
    inputs, targets = windows[..., :-1], windows[..., 1:]
    segments = np.cumsum(inputs == bos, axis=-1, dtype=np.int32) if separate_documents else None
    return Batch(inputs, targets, np.ones(targets.shape, np.float32), segments)
