"""A run's weights, and nothing else of it, for whoever uses them."""

from dataclasses import dataclass
from pathlib import Path

import jax

from gptjax.config import RunConfig, load_config
from gptjax.errors import BadInput
from gptjax.models.gpt import gpt
from gptjax.params import Params
from gptjax.sharding import Layout
from gptjax.train.checkpoint import damage, newest_intact, restore


@dataclass(frozen=True)
class Weights:
    """The weights of a step, and the run that they are of."""

    config: RunConfig
    step: int
    params: Params


def chosen_step(run: Path, step: int | None) -> int:
    """Return the step asked for, or the newest intact one; BadInput if there is none."""
    saved = run / "checkpoints"
    if step is None:
        step = newest_intact(saved)
        if step is None:
            raise BadInput(f"{run} has no intact checkpoint; train it first")
    elif wrong := damage(saved, step):
        raise BadInput(f"checkpoint {saved / str(step)} {wrong}; leave out --step for the newest that is intact")
    return step


def read_weights(run: Path, step: int | None, layout: Layout) -> Weights:
    """Read the weights of a run's step (None: the newest) onto the devices of a layout."""
    config, step = load_config(run / "config.json"), chosen_step(run, step)
    model = gpt(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    placed = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        layout.params(model.axes, shapes),
    )
    return Weights(config, step, restore(run / "checkpoints", step, {"params": placed})["params"])
