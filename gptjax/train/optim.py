"""Optimizers and learning-rate schedules.

The optimizer works at a learning rate of one; the step multiplies its update by the scheduled rate. So one compiled
program serves every schedule, horizon and peak, and a cooldown branch needs no compilation of its own.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from gptjax.errors import BadInput
from gptjax.fields import check_values
from gptjax.models.model import Scales
from gptjax.params import Axes, Params, is_hidden, map_axes, sides
from gptjax.train.mup import transferred


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule; counts are in steps, fractions are of the run's steps."""

    name: Literal["adamw", "muon", "adafactor", "lion"] = "adamw"  # the optimizer
    lr: float = 3e-4  # peak learning rate
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # of the rate; wsd: warmup, stable, decay
    warmup: int = 100  # steps in which the rate rises to its peak
    floor: float = 0.1  # cosine ends at this share of the peak (Hoffmann et al. 2022, section 3)
    cooldown: float = 0.2  # wsd: the last share of the run, in which the rate falls (Hägele et al. 2024)
    cooldown_shape: Literal["sqrt", "linear"] = "sqrt"  # wsd: how the rate falls, as 1 - sqrt or in a line
    b1: float = 0.9  # decay of the first moment (AdamW, Lion); Muon has muon_momentum
    b2: float = 0.95  # decay of the second moment (AdamW) or of the momentum (Lion)
    eps: float = 1e-8  # added to the root of the second moment
    muon_momentum: float = 0.95  # Muon's momentum
    weight_decay: float = 0.1  # times the learning rate, on weights that contract the embedding
    clip: float = 1.0  # largest global norm of the gradient; 0: none

    def __post_init__(self) -> None:
        check_values(self, "optim.")
        if not self.lr > 0:
            raise BadInput(f"optim.lr = {self.lr} must be above 0")
        if self.warmup < 0 or not 0 <= self.floor <= 1 or not 0 < self.cooldown <= 1:
            raise BadInput(
                f"optim.warmup {self.warmup}, floor {self.floor}, cooldown {self.cooldown}: "
                "warmup counts steps, floor lies in [0, 1], cooldown in (0, 1]"
            )
        if self.clip < 0 or not self.eps > 0 or self.weight_decay < 0:
            raise BadInput(
                f"optim.clip {self.clip} and weight_decay {self.weight_decay} must not be negative, "
                f"and eps {self.eps} must be above 0"
            )
        for name in ("b1", "b2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"optim.{name} = {getattr(self, name)} must lie in [0, 1)")


def cooldown_start(config: OptimConfig, steps: int) -> int:
    """Return the first step of the cooldown: where a branch leaves its trunk."""
    return steps - max(1, round(config.cooldown * steps)) if config.schedule == "wsd" else steps


def learning_rates(config: OptimConfig, first: int, last: int, steps: int) -> np.ndarray:
    """Return the rates of steps first..last-1 of a run of so many steps, float32.

    cosine: Loshchilov & Hutter 2017, Eq. 5, to `floor`; wsd: Hägele et al. 2024 with 1 - sqrt or linear.
    """
    n = np.arange(first, last, dtype=np.float64)
    rate = np.minimum(1.0, (n + 1) / max(config.warmup, 1))
    if config.schedule == "cosine":
        done = np.clip((n - config.warmup) / max(steps - config.warmup, 1), 0, 1)
        rate *= config.floor + (1 - config.floor) * (1 + np.cos(np.pi * done)) / 2
    if config.schedule == "wsd":
        start = cooldown_start(config, steps)
        done = np.clip((n - start) / (steps - start), 0, 1)
        rate *= 1 - (np.sqrt(done) if config.cooldown_shape == "sqrt" else done)
    return (config.lr * rate).astype(np.float32)


def without_schedule(config: OptimConfig) -> OptimConfig:
    """Reset what only the schedule reads, so that configs which share a program are equal."""
    schedule = ("lr", "schedule", "warmup", "floor", "cooldown", "cooldown_shape")
    return replace(config, **{name: getattr(OptimConfig, name) for name in schedule})


def decays(axes: Axes) -> bool:
    """Say whether a weight decays: matrices, tables and adapters; not norms and biases."""
    return len(sides(axes)) == 2


def _muon_matrix(axes: Axes) -> MuonDimensionNumbers | None:
    """Give the matrix that Muon orthogonalises, each layer's and each expert's; None leaves the weight to AdamW."""
    return MuonDimensionNumbers(*sides(axes)) if is_hidden(axes) else None


def make_optimizer(config: OptimConfig, axes: Params, scales: Scales | None = None) -> optax.GradientTransformation:
    """Build the optimizer at a learning rate of one; `axes` decides what decays and what Muon takes.

    Decay is decoupled (Loshchilov & Hutter 2019): weight_decay times the learning rate, whatever the optimizer. With
    `scales`, each weight has its share of rate, eps and decay (train/mup.py). Raises BadInput where the optimizer has
    no rule for that.
    """
    c = config
    if c.name == "adamw":
        tx = optax.adam(1.0, c.b1, c.b2, c.eps)
    elif c.name == "lion":
        tx = optax.lion(1.0, c.b1, c.b2, weight_decay=0.0)
    elif c.name == "adafactor":  # its rate is relative to the size of each weight
        tx = optax.adafactor(1.0)
    elif c.name == "muon":  # updates of Adam's size, so that one rate serves both kinds of weight (Liu et al. 2025)
        matrices = map_axes(_muon_matrix, axes)
        tx = optax.contrib.muon(
            1.0,
            beta=c.muon_momentum,
            adam_b1=c.b1,
            adam_b2=c.b2,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        )
    else:
        raise RuntimeError(f"make_optimizer has no branch for {c.name!r}")
    # At a rate of one, what comes out is added to the weights: so decay, which takes off a share of them, is negative.
    decay = optax.add_decayed_weights(-c.weight_decay, map_axes(decays, axes))
    clip = optax.clip_by_global_norm(c.clip) if c.clip else optax.identity()
    if scales:
        return optax.chain(clip, transferred(tx, decay, axes, scales, c.name))
    return optax.chain(clip, tx, decay)
