"""What a layout must hold on each chip, from shapes alone: no compiler, no devices, in a fraction of a second."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
from jax.sharding import AbstractMesh

from gptjax.config import RunConfig
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.kernels.loss import LOGITS_BYTES
from gptjax.mesh import mesh_sizes
from gptjax.models.model import ModelConfig
from gptjax.params import divide
from gptjax.sharding import Layout, MeshConfig, Rules
from gptjax.train.adapters import TuneConfig, tuned
from gptjax.train.optim import OptimConfig, make_optimizer, without_schedule
from gptjax.train.state import TrainState, abstract_state


@dataclass(frozen=True)
class Footprint:
    """Bytes on one chip. Weights and moments stay; gradients are as large as the weights, if all are held at once."""

    weights: int
    moments: int
    gradients: int
    batch: int
    activations: int  # a rough guess, to order layouts by: what is saved for the backward pass, a layer, the logits

    @property
    def state(self) -> int:
        return self.weights + self.moments

    @property
    def guess(self) -> int:
        return self.state + self.gradients + self.batch + self.activations


def footprint(config: RunConfig, chips: int, platform: str = "") -> Footprint:
    """Count what a run keeps on each chip; BadInput where its mesh does not divide chips, shapes or batch.

    platform: "cuda" has fused attention, which keeps no scores.
    """
    sizes = mesh_sizes(config.mesh, chips)
    layout = Layout(AbstractMesh(tuple(sizes.values()), tuple(sizes)), config.rules)  # type: ignore[arg-type]
    check_batch(config, layout)
    padded = Execution(vocab_multiple=config.execution.vocab_multiple)
    state = _state(config.model, padded, without_schedule(config.optim), config.rules, config.tune)
    model = tuned(config.model.build(config.execution), config.tune)
    layout.params(model.axes, state.params)  # refuses what does not divide
    tokens = config.tokens_per_step // layout.parts(layout.rules.batch) // layout.parts(layout.rules.seq)
    weights = _on_a_chip(state.params, sizes)
    moments, activations = _on_a_chip(state.opt, sizes), _activations(config, sizes, platform)
    moved = (
        state.params if config.tune.lora_rank else divide(state.params, model.trained)[0]
    )  # A B has the size of its W
    return Footprint(weights, moments, _on_a_chip(moved, sizes), 12 * tokens, activations)


def check_batch(config: RunConfig, layout: Layout) -> None:
    """Refuse a batch that does not divide over the mesh, in parts and microbatches."""
    micro = config.execution.in_flight(layout.parts(layout.rules.layers))
    parts = layout.parts(layout.rules.batch) * config.accumulate * micro
    if config.batch % parts:
        near = max(1, round(config.batch / parts)) * parts
        raise BadInput(
            f"a batch of {config.batch} sequences is not divisible by {parts} (mesh, accumulate and microbatches); "
            f"use {near}, which is --batch-tokens {near * config.model.context}"
        )
    for split in (layout.rules.seq, layout.rules.stream, layout.rules.keys):
        if config.model.context % (parts := layout.parts(split)):
            raise BadInput(f"a context of {config.model.context} is not divisible by its {parts} mesh parts; use fewer")


def _activations(config: RunConfig, sizes: Mapping[str, int], platform: str) -> int:
    c, width, execution = config.model, 2 if config.model.dtype == "bfloat16" else 4, config.execution
    w = c.cost(c.context, execution).widths
    split = sizes["tensor"]
    rows = config.tokens_per_step / math.prod(sizes[axis] for axis in ("data", "fsdp", "context")) / config.accumulate
    stages = sizes["pipeline"]
    micro = execution.in_flight(stages)
    ticks = (micro + stages - 1) / micro
    fused = platform == "cuda" and width == 2 and execution.attention != "xla" and w.attention % (8 * w.heads or 1) == 0
    scores = 0 if fused and sizes["context"] == 1 else w.heads * c.context / split * (width + 4)
    # As counted in compiled steps of GPT-2 and GPT-3: an MLP keeps what goes into its activation and what comes out.
    whole = width * (4 * w.stream + (w.inner + w.activated) / split) + scores
    dots = width * (2 * w.stream + w.inner / split)
    saved = {"none": whole, "dots": dots, "full": width * w.stream}[execution.remat]
    logits = rows * 4 * execution.padded(c.vocab_size) / split / stages
    if sizes["context"] == 1:  # else the positions are not taken in parts
        logits = min(logits, LOGITS_BYTES[{"cuda": "gpu", "": "tpu"}.get(platform, platform)])
    return int(rows * (saved * w.layers / stages * ticks + whole / micro) + 3 * logits)


@lru_cache(maxsize=64)
def _state(model: ModelConfig, execution: Execution, optim: OptimConfig, rules: Rules, tune: TuneConfig) -> TrainState:
    """Return the state as shapes whose shardings name mesh axes; how long those are is not yet said."""
    sizes = mesh_sizes(MeshConfig(), 1)
    layout = Layout(AbstractMesh(tuple(sizes.values()), tuple(sizes)), rules)  # type: ignore[arg-type]
    built = tuned(model.build(execution), tune)
    return abstract_state(built, make_optimizer(optim, built.trained, model.scales), layout)


def _on_a_chip(tree: Any, sizes: Mapping[str, int]) -> int:
    """Count the bytes of a tree of shapes on one device of a mesh of these sizes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        axes = [a for split in leaf.sharding.spec for a in ((split,) if isinstance(split, str) else split or ())]
        total += leaf.size * leaf.dtype.itemsize // math.prod(sizes[axis] for axis in axes)
    return total
