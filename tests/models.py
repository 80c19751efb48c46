"""What tests ask of a model, in a line: a batch of bare tokens, and the logits of a config."""

import jax
import jax.numpy as jnp

from gptjax.batch import Batch
from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.models.model import ModelConfig
from gptjax.params import Params


def batch_of(tokens: jax.Array, segments: jax.Array | None = None, prefix: jax.Array | None = None) -> Batch:
    """Return a batch that reads these tokens; what it would predict of them is of no matter."""
    return Batch(tokens, tokens, jnp.ones(jnp.shape(tokens), jnp.float32), segments, prefix)


def logits_of(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array | None = None,
    execution: Execution = DEFAULT_EXECUTION,
) -> jax.Array:
    """Return the logits of all positions, (B, T, V)."""
    return config.build(execution).logits(params, batch_of(tokens, segments))
