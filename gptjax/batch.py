"""A batch, as objectives make it and models read it."""

from dataclasses import dataclass

import jax
import numpy as np

Array = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Token ids in, token ids to predict, and the weight of each prediction, all (..., batch, seq).

    `segments` numbers the document of each input, int32; None where attention may cross documents. `prefix` marks
    inputs that all positions of their row may see, before them too; None where there are none.
    """

    inputs: Array  # int32
    targets: Array  # int32
    weights: Array  # float32; 0 where nothing is predicted
    segments: Array | None = None
    prefix: Array | None = None
