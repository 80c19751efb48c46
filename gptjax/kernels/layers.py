"""What a machine makes of a stack of layers: looped over or unrolled, and how the stream lies in memory."""

from typing import Any

import jax
from jax.experimental.layout import Layout as MemoryLayout
from jax.experimental.layout import with_layout_constraint

from gptjax.execution import Execution
from gptjax.kernels.choice import target

UNROLLED = 24  # layers that compile in less than half a minute
SPLASH = "splash_attention"  # the name under which remat finds what a TPU's attention keeps for its backward pass


def scans(execution: Execution, n_layers: int) -> bool:
    """Say whether to compile one layer and loop over all, or to compile each.

    The latter takes longer to compile and runs faster: a loop copies what the backward pass needs into stacks, and out
    of them again.
    """
    return execution.scan if execution.scan is not None else target() != "gpu" or n_layers > UNROLLED


def rows_whole(x_BTD: jax.Array) -> jax.Array:
    """Have a GPU's compiler lay the features of a position side by side, as it does at a loop's ends.

    Left to itself it may lay rows of the batch there, and every norm then strides through memory.
    """
    return with_layout_constraint(x_BTD, MemoryLayout((0, 1, 2))) if target() == "gpu" else x_BTD


def kept_by_dots(primitive: Any, *args: Any, **settings: Any) -> bool:
    """Say whether an operation is a matmul with weights, or fused attention, whose scores are never kept."""
    if primitive.name.startswith("dot_product_attention_fwd"):  # cuDNN's
        return True
    if primitive.name == "name" and settings["name"] == SPLASH:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **settings)
