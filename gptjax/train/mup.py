"""Hyper-parameter transfer: what muP and CompleteP make of one learning rate, eps and decay at each weight.

The forward pass and the initialization have their part in the model's family; here is the optimizer's, from axis names.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from gptjax.errors import BadInput
from gptjax.models.model import Scales
from gptjax.params import Axes, Params, is_hidden, map_axes


@dataclass(frozen=True)
class Transfer:
    """What multiplies the optimizer's learning rate, eps and weight decay at one weight."""

    rate: float = 1.0
    eps: float = 1.0
    decay: float = 1.0


def factors(axes: Axes, scales: Scales, optimizer: str = "adamw") -> Transfer:
    """Return a weight's factors: Dey et al. 2025 (CompleteP), Table 1; with no depth to scale, muP's.

    An update of entries of size 1 that is aligned with its input adds over the fan-in, so a hidden matrix has rate
    1/m under Adam and Lion (Yang et al. 2022, Table 8). Muon's, of that size and orthogonal, has a norm of sqrt(m)
    only, so 1/sqrt(m) keeps it (Yang, Simon & Bernstein 2023, Condition 1). Decay makes up for width, so that rate
    times decay does not see it. Raises BadInput for an optimizer without a known rule.
    """
    if optimizer not in ("adamw", "lion", "muon"):
        raise BadInput(f"optim.name {optimizer!r} has no known rule of transfer; use adamw, lion or muon")
    m, m_L, alpha = scales.width, scales.depth, scales.alpha
    if axes[0] != "layers" and not is_hidden(axes):  # embeddings, positions, head, final norm
        return Transfer(eps=1 / m)
    width = 1 / m if axes[-1] == "lora" else 1.0  # of LoRA's A 1/m, of its B 1 (LoRA+, Hayou et al. 2024, Theorem 1)
    if is_hidden(axes):
        width = m**-0.5 if optimizer == "muon" else 1 / m
    if axes[0] != "layers":  # a matrix outside the layers does not grow with their number
        return Transfer(rate=width, eps=1 / m, decay=1 / width)
    return Transfer(rate=width * m_L ** (alpha - 1), eps=m_L**-alpha / m, decay=1 / width)


def transferred(
    tx: optax.GradientTransformation, decay: optax.GradientTransformation, axes: Params, scales: Scales, name: str
) -> optax.GradientTransformation:
    """Chain an optimizer and its decoupled decay, both at a rate of one, with each weight's factors."""
    each = map_axes(lambda a: factors(a, scales, name), axes)
    return optax.chain(
        scale_by(jax.tree.map(lambda f: 1 / f.eps, each)),  # Adam of g / f with eps is Adam of g with f eps
        tx,
        scale_by(jax.tree.map(lambda f: 1 / f.decay, each)),
        decay,
        scale_by(jax.tree.map(lambda f: f.rate * f.decay, each)),  # the update now has rate, the decay rate x decay
    )


def scale_by(factor: Params) -> optax.GradientTransformation:
    """Multiply each weight's update by its factor."""
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factor))
