"""Validation: the same windows for every run, in nats per token with a standard error, and in bits per byte."""

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gptjax.config import RunConfig
from gptjax.data.loader import spread, validation_batches
from gptjax.data.objectives import Batch
from gptjax.data.store import TokenStore
from gptjax.train.result import Evals
from gptjax.train.state import TrainState
from gptjax.train.step import Programs


@dataclass(frozen=True)
class Validation:
    """The fixed validation windows of one corpus, on the device."""

    corpus: str
    batches: Batch
    tokens_per_sequence: int
    bytes: int

    @classmethod
    def of(cls, store: TokenStore, config: RunConfig, programs: Programs) -> "Validation":
        e, T = config.evaluate, config.model.context
        batches = validation_batches(store, e.sequences, e.batch, T, config.data.separate_documents)
        n_bytes = int(store.tokenizer.token_bytes[batches.targets].sum())
        placed = spread(
            lambda rows: jax.tree.map(lambda x: x[:, rows], batches), batches.inputs.shape, programs.batches
        )
        return cls(store.manifest.corpus, placed, T, n_bytes)

    def __call__(self, programs: Programs, state: TrainState) -> dict[str, float]:
        """Return nats per token with its standard error over sequences, and bits per byte."""
        nats = np.asarray(programs.evaluate(state.params, self.batches), np.float64).ravel()
        means = nats / self.tokens_per_sequence
        se = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        bits = nats.sum() / self.bytes / math.log(2)
        return {"loss": float(means.mean()), "loss_se": float(se), "bits_per_byte": float(bits)}


def evaluate(validation: list[Validation], programs: Programs, state: TrainState) -> Evals:
    """Return the losses of each corpus, by the last part of its name, numbered where two are alike."""
    names = [Path(v.corpus).name for v in validation]
    unique = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
    return {name: v(programs, state) for name, v in zip(unique, validation, strict=True)}
