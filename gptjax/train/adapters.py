"""What training moves: all weights, all but frozen ones, or adapters of low rank beside frozen ones (LoRA).

Shapes: L layers, r rank. A kernel of a layer is (L, *in, *out), its adapters A (L, *in, r) and B (L, r, *out).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from gptjax.batch import Batch
from gptjax.errors import BadInput
from gptjax.fields import check_values
from gptjax.models.model import Hidden, Model
from gptjax.params import Axes, Params, divide, is_hidden, named, nested, normal, sides, united

A, B, KERNEL = "lora_a", "lora_b", "kernel"  # last in the names of what lies side by side


@dataclass(frozen=True)
class TuneConfig:
    """What of the weights is trained; by default all.

    Weights are named by the parts of their path, some of them or all, each as it is or as a pattern: "embedding",
    "layers.mlp", "attention.*.bias".
    """

    frozen: tuple[str, ...] = ()  # weights that are not trained, by their path
    lora_rank: int = 0  # rank of the adapters, which alone are trained; 0: no adapters
    lora_alpha: float = 16.0  # adapters count times alpha / rank
    lora_targets: tuple[str, ...] = ("attention",)  # matrices of layers that get adapters

    def __post_init__(self) -> None:
        check_values(self, "tune.")
        if self.lora_rank < 0 or not self.lora_alpha > 0:
            raise BadInput(
                f"tune.lora_rank {self.lora_rank} must be 0 or more, and tune.lora_alpha {self.lora_alpha} above 0"
            )
        if self.lora_rank and self.frozen:
            raise BadInput(f"tune.frozen {self.frozen} says what LoRA freezes anyway; leave it out, or lora_rank")

    @property
    def lora_scale(self) -> float:
        return self.lora_alpha / self.lora_rank


EVERYTHING = TuneConfig()


def tuned(model: Model, tune: TuneConfig) -> Model:
    """Return the model with what is trained of it; BadInput for a pattern that names no weight, or all of them."""
    if tune.lora_rank:
        return adapted(model, tune)
    frozen = chosen("tune.frozen", tune.frozen, named(model.axes))
    _, trained = divide(model.axes, nested(frozen))
    if not trained:
        raise BadInput(f"tune.frozen {tune.frozen} leaves nothing to train; freeze less")
    return replace(model, trained=trained)


def chosen(what: str, patterns: Iterable[str], axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Return the weights that any of the patterns names, in order; BadInput for a pattern that names none."""
    found: set[str] = set()
    for pattern in patterns:
        hits = [name for name in axes if _names(pattern, name)]
        if not hits:
            raise BadInput(f"{what}: {pattern!r} names none of {', '.join(sorted(axes))}")
        found.update(hits)
    return {name: axes[name] for name in sorted(found)}


def _names(pattern: str, name: str) -> bool:
    """Say whether the pattern's parts stand one after the other anywhere in a name."""
    wanted, parts = pattern.split("."), name.split(".")
    starts = range(len(parts) - len(wanted) + 1)
    return any(all(map(fnmatchcase, parts[start:], wanted)) for start in starts)


def adapted(model: Model, tune: TuneConfig) -> Model:
    """Return a model that applies W + alpha/r A B in the place of each targeted W, and trains A and B alone.

    A is normal with the variance of 1/in, B zero, so that it begins as the model itself (Hu et al. 2021, section 4.1;
    A and B are written here as x A B). The weights are those of the model with lora_a and lora_b beside each kernel.
    """
    matrices = {name: axes for name, axes in named(model.axes).items() if axes[0] == "layers" and is_hidden(axes)}
    targets = chosen("tune.lora_targets", tune.lora_targets, matrices)
    if not targets:
        raise BadInput("tune.lora_rank needs tune.lora_targets to adapt; give one, as attention")
    adapters: dict[str, Axes] = {}
    for name, axes in targets.items():
        n_in = _inputs(axes)
        adapters[_beside(name, A)] = (*axes[:n_in], "lora")
        adapters[_beside(name, B)] = ("layers", "lora", *axes[n_in:])

    def init(key: jax.Array) -> Params:
        weights = named(model.init(key))
        for name, key_A in zip(targets, jax.random.split(jax.random.fold_in(key, 1), len(targets)), strict=True):
            shape, n_in = weights[name].shape, _inputs(targets[name])
            a = normal(1 / sqrt(prod(shape[1:n_in])))(key_A, (*shape[:n_in], tune.lora_rank))
            weights[_beside(name, A)] = a
            weights[_beside(name, B)] = jnp.zeros((shape[0], tune.lora_rank, *shape[n_in:]), jnp.float32)
        return nested(weights)

    def hidden(params: Params, batch: Batch) -> Hidden:
        return model.hidden(merged(params, tune), batch)

    every = united(model.axes, nested(adapters))
    return replace(model, init=init, axes=every, trained=nested(adapters), hidden=hidden, decoder=None, observe=None)


def merged(params: Params, tune: TuneConfig) -> Params:
    """Return the weights of the plain model: W + alpha/r A B where there are adapters (Hu et al. 2021, Eq. 3)."""
    weights = named(params)
    for name, (a, b) in _take_adapters(weights).items():
        product = jax.vmap(partial(jnp.tensordot, axes=1))(a, b)
        weights[name] = weights[name] + tune.lora_scale * product
    return nested(weights)


def merged_arrays(arrays: Mapping[str, ts.TensorStore], tune: TuneConfig) -> dict[str, ts.TensorStore]:
    """Return what `merged` does of arrays on disk, to be read a few chunks at a time."""
    weights = dict(arrays)
    for name, adapters in _take_adapters(weights).items():
        weights[name] = _merged_array(weights[name], *adapters, tune.lora_scale)
    return weights


def _merged_array(w: ts.TensorStore, a: ts.TensorStore, b: ts.TensorStore, scale: float) -> ts.TensorStore:
    """Return a view of W + scale A B in the chunks of W; of A and B it reads what a chunk needs."""
    n_in = a.ndim - 1

    def read(domain: ts.IndexDomain, chunk: np.ndarray, _: Any) -> None:
        here = tuple(slice(*edge) for edge in zip(domain.inclusive_min, domain.exclusive_max, strict=True))
        parts = w[here].read(), a[here[:n_in]].read(), b[(here[0], slice(None), *here[n_in:])].read()
        w_part, a_part, b_part = (part.result() for part in parts)
        layers, rank = a_part.shape[0], a_part.shape[-1]
        product = a_part.reshape(layers, -1, rank) @ b_part.reshape(layers, rank, -1)
        chunk[...] = w_part + np.float32(scale) * product.reshape(w_part.shape)

    return ts.virtual_chunked(
        read,
        dtype=w.dtype,
        domain=w.domain,
        chunk_layout=ts.ChunkLayout(read_chunk_shape=w.chunk_layout.read_chunk.shape),
        # Threads of its own: it waits for reads, which need the others.
        context=ts.Context({"data_copy_concurrency": {"limit": 2}}),
    )


def _take_adapters(weights: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Take the adapters out of named weights; return them by the kernels that they belong to."""
    firsts = [name for name in weights if name.rpartition(".")[2] == A]
    return {_beside(name, KERNEL): (weights.pop(name), weights.pop(_beside(name, B))) for name in firsts}


def _beside(name: str, last: str) -> str:
    return f"{name.rpartition('.')[0]}.{last}"


def _inputs(axes: Axes) -> int:
    """Return how many of a kernel's axes are the layers and its inputs."""
    return sides(axes)[1][0]
