"""The log-likelihood of given tokens after a context, and whether greedy decoding would say them.

Shapes: B rows of a batch, T positions, D embed, V vocab.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gptjax.batch import Batch
from gptjax.errors import BadInput
from gptjax.kernels.choice import kernels_of
from gptjax.kernels.loss import token_nats
from gptjax.models.model import Model
from gptjax.params import Params
from gptjax.sharding import Layout, use
from gptjax.train.loss import read_positions

BATCH_TOKENS = 1 << 13
SHORTEST = 16  # tokens: sequences are padded to this length, to twice it, and so on


@dataclass(frozen=True)
class Request:
    """What is to be scored: token ids that follow others."""

    context: np.ndarray
    continuation: np.ndarray


@dataclass(frozen=True)
class Scores:
    """Of each request, (n,)."""

    log_p: np.ndarray  # sum over the continuation, in nats
    greedy: np.ndarray  # whether every token of it is the likeliest
    truncated: np.ndarray  # whether the left of the context was cut off, to fit


def score(params: Params, model: Model, requests: Sequence[Request], layout: Layout, *, progress: str = "") -> Scores:
    """Score continuations in batches of nearly one length; neither order nor company changes a score.

    As in lm-eval's HFLM, the last context + 1 tokens are kept and all but the last of them are read. BadInput where a
    context is empty, or a continuation is empty or longer than the model's context.
    """
    context = model.config.context
    for i, request in enumerate(requests):
        check_request(request, context, f"request {i}")
    kept = [np.append(r.context, r.continuation)[-(context + 1) :].astype(np.int32) for r in requests]
    log_p, greedy = np.zeros(len(kept)), np.zeros(len(kept), bool)
    with tqdm(total=len(kept), desc=progress, disable=None if progress else True, leave=False) as bar:
        waiting: tuple[list[int], tuple[jax.Array, jax.Array]] | None = None

        def take() -> None:
            if waiting is None:
                return
            rows, (nats_BT, said_BT) = waiting[0], (np.asarray(x) for x in waiting[1])
            for row, i in enumerate(rows):
                end = len(kept[i]) - 1
                these = slice(end - len(requests[i].continuation), end)
                log_p[i] = -nats_BT[row, these].sum(dtype=np.float64)
                greedy[i] = said_BT[row, these].all()
            bar.update(len(rows))

        for rows, inputs_BT, targets_BT in batches(kept, model, layout):
            weights_BT = np.ones(inputs_BT.shape, np.float32)
            read = begin_reading(params, Batch(inputs_BT, targets_BT, weights_BT), model, layout)
            take()  # of the batch before, while the device works on this one
            waiting = rows, read
        take()
    truncated = np.array([len(r.context) + len(r.continuation) > context + 1 for r in requests], bool)
    return Scores(log_p, greedy, truncated)


def check_request(request: Request, context: int, name: str) -> None:
    """Refuse what has no score; the name says whose it is."""
    n = len(request.continuation)
    if not len(request.context):
        raise BadInput(f"{name} has no token before its continuation; begin it with one, as bos")
    if not n:
        raise BadInput(f"{name}: the continuation adds no token to its context; begin it with a space, or lengthen it")
    if n > context:
        raise BadInput(f"{name}: a continuation of {n} tokens exceeds the context of {context}; shorten it")


def batches(
    sequences: Sequence[np.ndarray], model: Model, layout: Layout
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield which sequences a batch holds, its inputs and its targets, (B, T), padded on the right.

    Lengths are powers of two, so that few programs are compiled; rows are for every device and microbatch.
    """
    lengths: dict[int, list[int]] = {}
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        lengths.setdefault(padded_length(len(sequences[i]) - 1, model.config.context, layout), []).append(i)
    for T, members in lengths.items():
        size = rows_of(T, len(members), model, layout)
        for first in range(0, len(members), size):
            rows = members[first : first + size]
            windows = np.zeros((size, T + 1), np.int32)
            for row, i in enumerate(rows):
                windows[row, : len(sequences[i])] = sequences[i]
            yield rows, windows[:, :-1], windows[:, 1:]


def padded_length(n: int, context: int, layout: Layout) -> int:
    """Return the length that n inputs are padded to: a power of two that the mesh divides, or the whole context."""
    unit = lcm(layout.parts(layout.rules.seq), layout.parts(layout.rules.stream))
    power = max(SHORTEST, 1 << (n - 1).bit_length())
    return min(context, -(-power // unit) * unit)


def rows_of(T: int, n: int, model: Model, layout: Layout) -> int:
    """Return how many rows of T tokens a batch has, for n in all: a power of two times what the mesh splits them by."""
    unit = layout.parts(layout.rules.batch) * model.execution.in_flight(layout.parts(layout.rules.layers))
    wanted = min(n, max(1, BATCH_TOKENS // T))
    return unit << (-(-wanted // unit) - 1).bit_length()


def begin_reading(params: Params, batch: Batch, model: Model, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Begin to read a batch: -log p of each target in nats, and whether it is the likeliest token, (B, T)."""
    place = layout.sharding(("batch", "seq"))
    return _read(params, jax.tree.map(lambda x: jax.device_put(x, place), batch), model=model, layout=layout)


@partial(jax.jit, static_argnames=("model", "layout"))
def _read(params: Params, batch: Batch, *, model: Model, layout: Layout) -> tuple[jax.Array, jax.Array]:
    def read(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_nats(logits_BTV, targets_BT)[0], jnp.argmax(logits_BTV, axis=-1) == targets_BT

    with use(layout), kernels_of(model.execution):
        return read_positions(model, params, batch, read)
