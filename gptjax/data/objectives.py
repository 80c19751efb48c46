"""What a model is asked to predict: objectives as values, and the one way from windows of tokens to a `Batch`.

Shapes: N rows, T positions of a window, which has T + 1 tokens.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.batch import Array, Batch
from gptjax.errors import BadInput
from gptjax.fields import check_values


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass whose field `kind` is its tag in JSON, and a row of `OBJECTIVES`."""

    @property
    def kind(self) -> str: ...

    @property
    def own_ids(self) -> int:
        """How many ids it needs above the tokenizer's, as one for a mask."""

    @property
    def draws(self) -> bool:
        """Whether it is random: then it is given a key for each row, else None."""

    def __call__(self, tokens: Array, predicted: Array, keys: jax.Array | None, vocab_size: int) -> Batch:
        """Make a batch (..., T) without segments of windows (..., T + 1), and of which of their tokens count.

        The objective's own ids begin at `vocab_size`. One that draws is given jax's arrays of N rows. Another is given
        numpy's or jax's, and asks them for functions: `tokens.__array_namespace__()`.
        """


@dataclass(frozen=True)
class Causal:
    """Predict each token from those before it (Radford et al. 2018, Eq. 1)."""

    kind: Literal["causal"] = "causal"  # the objective

    own_ids, draws = 0, False

    def __post_init__(self) -> None:
        check_values(self, "data.objective.")

    def __call__(self, tokens: Array, predicted: Array, keys: jax.Array | None, vocab_size: int) -> Batch:
        return Batch(tokens[..., :-1], tokens[..., 1:], predicted[..., 1:].astype(np.float32))


@dataclass(frozen=True)
class PrefixLM:
    """Predict each token after a prefix of random length, which all positions see whole (Raffel et al. 2020, 3.2.1)."""

    kind: Literal["prefix"] = "prefix"  # the objective

    own_ids, draws = 0, True

    def __post_init__(self) -> None:
        check_values(self, "data.objective.")

    def __call__(self, tokens: Array, predicted: Array, keys: jax.Array | None, vocab_size: int) -> Batch:
        T = tokens.shape[-1] - 1
        length_N = jax.vmap(lambda key: jax.random.randint(key, (), 1, max(T, 2)))(keys)
        place_T = jnp.arange(T)
        after_NT = place_T >= length_N[:, None] - 1  # the last of the prefix predicts the first that is not seen
        weights = (predicted[..., 1:] & after_NT).astype(np.float32)
        return Batch(tokens[..., :-1], tokens[..., 1:], weights, prefix=place_T < length_N[:, None])


@dataclass(frozen=True)
class Masked:
    """Predict tokens that are hidden, from both sides where the model looks to both (Devlin et al. 2019, 3.1)."""

    kind: Literal["masked"] = "masked"  # the objective
    rate: float = 0.15  # share of tokens that are predicted
    keep: float = 0.1  # share of those that stay as they are
    swap: float = 0.1  # share of those that become a random token; the others become the mask

    own_ids, draws = 1, True

    def __post_init__(self) -> None:
        check_values(self, "data.objective.")
        if not 0 < self.rate < 1 or min(self.keep, self.swap) < 0 or self.keep + self.swap > 1:
            raise BadInput(
                f"data.objective: rate {self.rate} must lie in (0, 1), keep {self.keep} and swap {self.swap} must be 0 "
                "or more and together at most 1"
            )

    def __call__(self, tokens: Array, predicted: Array, keys: jax.Array | None, vocab_size: int) -> Batch:
        row = partial(self._row, vocab_size=vocab_size)
        return jax.vmap(row)(*map(jnp.asarray, (tokens[..., :-1], predicted[..., :-1], keys)))

    def _row(self, tokens_T: jax.Array, predicted_T: jax.Array, key: jax.Array, vocab_size: int) -> Batch:
        which, how, swapped = jax.random.split(key, 3)
        chosen_T = predicted_T & (jax.random.uniform(which, tokens_T.shape) < self.rate)
        share_T = jax.random.uniform(how, tokens_T.shape)
        random_T = jax.random.randint(swapped, tokens_T.shape, 0, vocab_size)
        hidden_T = jnp.where(share_T < self.keep + self.swap, random_T, vocab_size)
        hidden_T = jnp.where(share_T < self.keep, tokens_T, hidden_T)
        inputs_T = jnp.where(chosen_T, hidden_T, tokens_T).astype(tokens_T.dtype)
        return Batch(inputs_T, tokens_T, chosen_T.astype(np.float32))


CAUSAL = Causal()
OBJECTIVES: dict[str, type[Objective]] = {"causal": Causal, "prefix": PrefixLM, "masked": Masked}


def objective_label(objective: Objective) -> str:
    """Name an objective for tables: its kind, and what of it is not at its default."""
    changed = [f for f in fields(objective) if getattr(objective, f.name) != f.default]  # type: ignore[arg-type]
    settings = ", ".join(f"{f.name}={getattr(objective, f.name)}" for f in changed)
    return objective.kind + (f" ({settings})" if settings else "")


@dataclass(frozen=True)
class Reading:
    """How windows of a store become batches: the objective, and what the store's ids mean."""

    objective: Objective
    bos: int  # begins documents
    vocab_size: int  # of the tokenizer
    separate_documents: bool = False

    def __call__(self, windows: Array, index: Array, seed: int | jax.Array) -> Batch:
        """Make a batch (..., T) of windows (..., T + 1).

        `index` (..., 2) are the `halves` of each window's number in the order of the data. With the seed it decides
        what is drawn for the window: the same whoever makes the batch, on whatever device. The
        seed may be given as jax's key of it, so that a program compiled for one seed serves all.
        """
        if not self.objective.draws:
            return self._batch(windows, None)
        key = jax.random.key(seed) if isinstance(seed, int) else seed
        if isinstance(windows, np.ndarray):  # on this process's own CPU, so that no other process is waited for
            try:
                here = jax.local_devices(backend="cpu")[0]
            except RuntimeError:  # jax was told to know accelerators alone
                here = jax.local_devices()[0]
            with jax.default_device(here):
                return jax.tree.map(np.asarray, _drawn(windows, index, self, key))
        return _drawn(windows, index, self, key)

    def _batch(self, windows: Array, keys: jax.Array | None) -> Batch:
        """A token that is read and not predicted, as those of a prompt, stands as its id plus `vocab_size`."""
        read_only = windows >= self.vocab_size
        tokens = windows - self.vocab_size * read_only.astype(np.int32)
        batch = self.objective(tokens, ~read_only, keys, self.vocab_size)
        if not batch.inputs.shape == batch.targets.shape == batch.weights.shape == tokens[..., :-1].shape:
            shapes = ", ".join(str(x.shape) for x in (batch.inputs, batch.targets, batch.weights))
            raise BadInput(
                f"objective {self.objective.kind!r} makes inputs, targets and weights {shapes} of windows "
                f"{tokens.shape}; each must be one shorter than the windows"
            )
        if not self.separate_documents:
            return batch
        xp = windows.__array_namespace__()
        segments = xp.cumsum(tokens[..., :-1] == self.bos, axis=-1, dtype=xp.int32)
        return Batch(batch.inputs, batch.targets, batch.weights, segments, batch.prefix)


def halves(index: np.ndarray) -> np.ndarray:
    """Cut whole numbers of 64 bits in two of 32, (..., 2): jax has no wider ones."""
    return np.stack([index >> 32, index & (2**32 - 1)], axis=-1).astype(np.uint32)


@partial(jax.jit, static_argnames="reading")
def _drawn(windows: Array, index: Array, reading: Reading, key: jax.Array) -> Batch:
    rows = windows.reshape(-1, windows.shape[-1])
    keys = jax.vmap(lambda h: jax.random.fold_in(jax.random.fold_in(key, h[0]), h[1]))(index.reshape(-1, 2))
    batch = reading._batch(jnp.asarray(rows), keys)
    return jax.tree.map(lambda x: x.reshape(*windows.shape[:-1], x.shape[-1]), batch)
