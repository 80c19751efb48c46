"""What a layout must hold on each chip, from shapes alone: no compiler, no devices, in a fraction of a second."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
from jax.sharding import AbstractMesh

from gptjax.config import RunConfig
from gptjax.errors import BadInput
from gptjax.models.gpt import GPTConfig, gpt
from gptjax.params import divide
from gptjax.sharding import Layout, MeshConfig, Rules, mesh_sizes
from gptjax.train.loss import LOGITS_BYTES
from gptjax.train.optim import OptimConfig, make_optimizer, without_schedule
from gptjax.train.state import TrainState, abstract_state
from gptjax.train.tune import TuneConfig, tuned


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
    plain = replace(config.model, remat="none", microbatches=0)
    state = _state(plain, without_schedule(config.optim), config.rules, config.tune)
    model = tuned(gpt(config.model), config.tune)
    layout.params(model.axes, state.params)  # refuses what does not divide
    tokens = config.tokens_per_step // layout.parts(layout.rules.batch) // layout.parts(layout.rules.seq)
    weights = _on_a_chip(state.params, sizes)
    moments, activations = _on_a_chip(state.opt, sizes), _activations(config, sizes, platform)
    moved = state.params if config.tune.lora_rank else divide(state.params, model.trained)[0]  # A B is made, as its W
    return Footprint(weights, moments, _on_a_chip(moved, sizes), 12 * tokens, activations)


def check_batch(config: RunConfig, layout: Layout) -> None:
    """Refuse a batch that does not divide over the mesh, in parts and microbatches."""
    micro = microbatches(config, layout.parts(layout.rules.layers))
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


def microbatches(config: RunConfig, stages: int) -> int:
    """Return the parts of a batch that are in flight through so many pipeline stages."""
    return (config.model.microbatches or 2 * stages) if stages > 1 else 1


def _activations(config: RunConfig, sizes: Mapping[str, int], platform: str) -> int:
    c, width = config.model, 2 if config.model.dtype == "bfloat16" else 4
    split = sizes["tensor"]
    rows = config.tokens_per_step / math.prod(sizes[axis] for axis in ("data", "fsdp", "context")) / config.accumulate
    stages = sizes["pipeline"]
    micro = microbatches(config, stages)
    ticks = (micro + stages - 1) / micro
    heads, mlp = (2 * c.n_heads + 2 * c.kv_heads) * c.head_size / split, c.mlp_size / split
    fused = platform == "cuda" and width == 2 and c.attention != "xla" and c.head_size % 8 == 0
    scores = 0 if fused and sizes["context"] == 1 else c.n_heads * c.context / split * (width + 4)
    # As counted in compiled steps of GPT-2 and GPT-3: an MLP keeps what goes into its activation and what comes out.
    into = (2 if c.gated else 1) * mlp
    whole = width * (4 * c.d_model + heads + into + mlp) + scores
    dots = width * (2 * c.d_model + heads + into)
    saved = {"none": whole, "dots": dots, "full": width * c.d_model}[c.remat]
    logits = rows * 4 * c.padded_vocab / split / stages
    if sizes["context"] == 1:  # else the positions are not taken in parts
        logits = min(logits, LOGITS_BYTES[{"cuda": "gpu", "": "tpu"}.get(platform, platform)])
    return int(rows * (saved * c.n_layers / stages * ticks + whole / micro) + 3 * logits)


@lru_cache(maxsize=64)
def _state(model: GPTConfig, optim: OptimConfig, rules: Rules, tune: TuneConfig) -> TrainState:
    """Return the state as shapes whose shardings name mesh axes; how long those are is not yet said."""
    sizes = mesh_sizes(MeshConfig(), 1)
    layout = Layout(AbstractMesh(tuple(sizes.values()), tuple(sizes)), rules)  # type: ignore[arg-type]
    built = tuned(gpt(model), tune)
    return abstract_state(built, make_optimizer(optim, built.trained, model), layout)


def _on_a_chip(tree: Any, sizes: Mapping[str, int]) -> int:
    """Count the bytes of a tree of shapes on one device of a mesh of these sizes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        axes = [a for split in leaf.sharding.spec for a in ((split,) if isinstance(split, str) else split or ())]
        total += leaf.size * leaf.dtype.itemsize // math.prod(sizes[axis] for axis in axes)
    return total
