"""What a run gave, in raw facts: result.json, from which a row of the table of runs is made."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gptjax.config import RunConfig, differs, from_file
from gptjax.data.loader import Loader
from gptjax.data.objectives import objective_label
from gptjax.data.store import TokenStore
from gptjax.errors import BadInput
from gptjax.fingerprint import fingerprint

Evals = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Result:
    """What a run gave: raw facts, from which a table row is made. Losses are nats a token of the validation split."""

    status: str  # done | failed
    reason: str
    fingerprint: str
    data_digest: str
    seed: int
    params: dict[str, int]  # by group
    flops_per_token: dict[str, float]  # training, by convention
    tokens: int  # seen by the weights, a trunk's included
    tokens_paid: int  # trained here
    steps: int
    epochs: float
    loss: float | None  # None where the run failed
    loss_se: float | None  # over validation sequences
    bits_per_byte: float | None
    evals: Evals  # by corpus
    seconds: float
    device: str
    objective: str = "causal"


def read_result(directory: Path, config: RunConfig) -> Result | None:
    """Return the result in a directory if it is this config's."""
    path = directory / "result.json"
    if not path.is_file():
        return None
    result = from_file(Result, path)
    if result.fingerprint != fingerprint(config):
        raise BadInput(f"{directory} holds the result of another config{differs(directory, config)}; use a new --dir")
    return result


def device_name() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def data_digest(stores: tuple[TokenStore, ...]) -> str:
    return "+".join(store.digest[:16] for store in stores)


def summarize(
    config: RunConfig,
    stores: tuple[TokenStore, ...],
    loader: Loader,
    step: int,
    evals: Evals,
    reason: str,
    seconds: float,
) -> Result:
    """Gather what the run gave by `step`; losses of a mixture are weighted as its sources are. A reason: it failed."""
    cost = config.model.cost(config.model.context, config.execution)
    share = np.asarray(loader.weights) / sum(loader.weights)

    def each(key: str) -> np.ndarray:
        return np.array([values[key] for values in evals.values()])

    return Result(
        status="failed" if reason else "done",
        reason=reason,
        fingerprint=fingerprint(config),
        data_digest=data_digest(stores),
        seed=config.seed,
        params={**cost.params, "padding": cost.padding},
        flops_per_token=dict(cost.flops),
        tokens=step * config.tokens_per_step,
        tokens_paid=(step - config.first_step) * config.tokens_per_step,
        steps=step,
        epochs=loader.epochs(step),
        loss=None if reason else float(share @ each("loss")),
        loss_se=None if reason else float(np.linalg.norm(share * each("loss_se"))),
        bits_per_byte=None if reason else float(share @ each("bits_per_byte")),
        evals=evals,
        seconds=seconds,
        device=device_name(),
        objective=objective_label(config.data.objective),
    )
