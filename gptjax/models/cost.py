"""What a model costs, as each family's config says it: parameters, FLOPs, and widths for estimates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import jax

from gptjax.execution import Execution
from gptjax.params import named

if TYPE_CHECKING:
    from gptjax.models.model import ModelConfig


@dataclass(frozen=True)
class Widths:
    """Numbers that a layer holds for each position, for estimates of memory and time."""

    layers: int
    stream: int  # of the residual stream
    inner: int  # of the layer's other products: queries, keys, values, and what goes into the MLP's activation
    activated: int = 0  # of what comes out of that activation
    keys: int = 0  # of keys and values together
    heads: int = 0  # scores of attention for each pair of positions; 0: no attention
    attention: int = 0  # of the queries
    unrepeated: int = 0  # parameters of a layer whose product the backward pass never needs again


@dataclass(frozen=True)
class Cost:
    """What a model costs, from its config alone. FLOPs are of training, forward and backward, for a token."""

    params: Mapping[str, int]  # parameters by group; "embedding", "positions" and "head" are not the layers'
    flops: Mapping[str, float]  # by convention
    useful: float  # FLOPs that an MFU counts
    widths: Widths
    padding: int = 0  # rows of the embedding and head that no token uses: stored, and in no group

    @property
    def total(self) -> int:
        return params_by(self.params)["total"]

    @property
    def non_embedding(self) -> int:
        return params_by(self.params)["non_embedding"]

    @property
    def with_head(self) -> int:
        return params_by(self.params)["with_head"]

    @property
    def stored(self) -> int:
        """Parameters in memory."""
        return self.total + self.padding


def params_by(groups: Mapping[str, int]) -> dict[str, int]:
    """Return N by each way to count it, from parameters by group (padding is none of them).

    total: all. non_embedding: without vocabulary and positions (Kaplan et al. 2020, section 2.1). with_head: what
    multiplies activations, the layers and the head, which may be the embedding.
    """
    total = sum(n for group, n in groups.items() if group != "padding")
    layers = total - sum(groups.get(group, 0) for group in ("embedding", "positions", "head"))
    head = groups.get("head") or groups.get("embedding", 0)
    return {"total": total, "non_embedding": layers, "with_head": layers + head}


def counted(
    config: "ModelConfig", groups: Mapping[str, str], widths: Widths, execution: Execution, *, more: float = 0.0
) -> Cost:
    """Count a model from its tree of weights, so that none is forgotten.

    `groups` gives the group of each weight by the beginning of its name, the first that fits. Rows of a
    vocabulary beyond the config's are padding. Conventions are six FLOPs for each parameter (Kaplan et al. 2020, Eq.
    2.2); `more` are the useful FLOPs of a token beside those of its weights.
    """
    model = config.build(execution)
    axes, params, padding = named(model.axes), dict.fromkeys(groups.values(), 0), 0
    for name, leaf in named(jax.eval_shape(model.init, jax.random.key(0))).items():
        group = next((g for first, g in groups.items() if name == first or name.startswith(first + ".")), None)
        if group is None:
            raise RuntimeError(f"{name} is in no group of parameters; give its family's groups a row")
        true = [config.vocab_size if a == "vocab" else n for a, n in zip(axes[name], leaf.shape, strict=True)]
        params[group] += prod(true)
        padding += leaf.size - prod(true)
    cost = Cost(params, {}, 0.0, widths, padding)
    flops = {f"6n_{kind}": 6.0 * getattr(cost, kind) for kind in ("total", "with_head", "non_embedding")}
    return replace(cost, flops=flops, useful=flops["6n_with_head"] + more)
