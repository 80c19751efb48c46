"""Validation: the same windows for every run, in nats per token with a standard error, and in bits per byte."""

import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from gptjax.batch import Batch
from gptjax.config import RunConfig
from gptjax.data.feed import spread
from gptjax.data.loader import validation_batches
from gptjax.data.store import TokenStore
from gptjax.errors import BadInput
from gptjax.files import write_file
from gptjax.jobs import storage
from gptjax.run.result import Evals
from gptjax.train.programs import Programs
from gptjax.train.state import TrainState

WINDOWS = "windows.npy"  # in a finished run's directory: Evaluation.shares of its last evaluation


@dataclass(frozen=True)
class Validation:
    """The fixed validation windows of one corpus, on the device."""

    corpus: str
    batches: Batch
    predicted: np.ndarray  # tokens of each sequence
    bytes: int  # of what is predicted

    @classmethod
    def of(cls, store: TokenStore, config: RunConfig, programs: Programs) -> "Validation":
        e, T = config.evaluate, config.model.context
        separate, objective = config.data.separate_documents, config.data.objective
        batches = validation_batches(store, e.sequences, e.batch, T, separate, objective=objective)
        predicted = np.asarray(batches.weights, np.float64).sum(-1).ravel()
        n_bytes = int((store.tokenizer.token_bytes[batches.targets] * batches.weights).sum(dtype=np.float64))
        placed = spread(
            lambda rows: jax.tree.map(lambda x: x[:, rows], batches), batches.inputs.shape, programs.batches
        )
        return cls(store.manifest.corpus, placed, predicted, n_bytes)

    def read(self, nats: jax.Array) -> dict[str, float]:
        """Return nats per predicted token with its standard error over sequences, and bits per byte."""
        sums, shares = np.asarray(nats, np.float64).ravel(), self.shares(nats)
        n = len(shares)
        se = np.linalg.norm(shares) * math.sqrt(n / (n - 1)) if n > 1 else math.nan
        bits = sums.sum() / self.bytes / math.log(2)
        return {"loss": float(sums.sum() / self.predicted.sum()), "loss_se": float(se), "bits_per_byte": float(bits)}

    def shares(self, nats: jax.Array) -> np.ndarray:
        """Return what each sequence adds to the error of the loss, to first order (Cochran 1977, Eq. 2.46)."""
        sums = np.asarray(nats, np.float64).ravel()
        loss = sums.sum() / self.predicted.sum()
        return (sums - loss * self.predicted) / self.predicted.sum()


@dataclass(frozen=True)
class Evaluation:
    """The losses of a step, which the device may still be working on: training need not wait for them."""

    validation: tuple[Validation, ...]
    nats: tuple[jax.Array, ...]  # of each sequence, by corpus

    @cached_property
    def values(self) -> Evals:
        """Wait, and return the losses of each corpus, by the last part of its name, numbered where two are alike."""
        names = [Path(v.corpus).name for v in self.validation]
        unique = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
        return {name: v.read(nats) for name, v, nats in zip(unique, self.validation, self.nats, strict=True)}

    def loss(self, weights: tuple[float, ...]) -> float:
        """Return the loss of the mixture, in nats per token."""
        return float(np.average([values["loss"] for values in self.values.values()], weights=weights))

    def shares(self, weights: tuple[float, ...]) -> np.ndarray:
        """Return what each window of each corpus adds to the error of the mixture's loss, in nats per token.

        The shares of a corpus add up to 0, and the root of the sum of their squares is the loss's standard error.
        """
        of_each = zip(self.validation, self.nats, np.asarray(weights) / sum(weights), strict=True)
        return np.concatenate([weight * v.shares(nats) for v, nats, weight in of_each]).astype(np.float32)


def write_shares(path: Path, shares: np.ndarray) -> None:
    """Keep the shares of a run's last evaluation."""
    content = io.BytesIO()
    np.save(content, shares)
    write_file(path, content.getvalue())


def read_shares(path: Path) -> np.ndarray | None:
    """Read what `write_shares` wrote, None if there is none; BadInput if the file is anything else."""
    if (data := storage.read(path)) is None:
        return None
    content = io.BytesIO(data)
    try:
        np.lib.format.read_magic(content)
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
        shares = np.frombuffer(data, np.float32, offset=content.tell())
        sound = dtype == np.float32 and shape == shares.shape and np.isfinite(shares).all()
    except ValueError:
        sound = False
    if not sound:
        raise BadInput(f"{path} is not what gptjax wrote there; delete it, and the loss has no paired error")
    return shares


def paired_errors(shares: np.ndarray) -> np.ndarray:
    """Return the standard error of each run's loss as far as it is the run's own: (runs, windows) give (runs,).

    Runs that are evaluated on the same windows share most of their error: a window that is hard for one model is hard
    for all, in proportion to a factor of the model. What is left after the mean of all runs, times each run's factor,
    is taken away is what makes the difference of two losses uncertain. One run alone has no such error: NaN.
    """
    shares = np.asarray(shares, np.float64)
    n = len(shares)
    if n < 2:
        return np.full(n, np.nan)
    common = shares.mean(axis=0)
    factors = shares @ common / max(common @ common, np.finfo(float).tiny)
    return np.linalg.norm(shares - factors[:, None] * common, axis=1) * math.sqrt(n / (n - 1))


def begin_evaluation(validation: tuple[Validation, ...], programs: Programs, state: TrainState) -> Evaluation:
    """Begin to evaluate a state."""
    return Evaluation(validation, tuple(programs.evaluate(state.params, v.batches) for v in validation))
