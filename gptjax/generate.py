"""Continue prompts: read them, then decode in one compiled loop until every row has stopped.

Shapes: B batch, T prompt, V vocab. Prompts are padded on the left, so that all end together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.errors import BadInput
from gptjax.kernels.choice import kernels_of
from gptjax.mesh import make_mesh
from gptjax.models.model import Decoder, Model, State
from gptjax.params import Params
from gptjax.sharding import Layout, MeshConfig, Rules, use

COLDEST = 1e-6  # a temperature: logits divided by less leave the range of float32
STRONGEST = 1000.0  # a repetition penalty
ROUNDED = 64  # room for tokens is rounded up to this, so that prompts of nearly one length share a compiled program


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn, in this order: penalty, temperature, the k likeliest, the likeliest of mass p."""

    temperature: float = 1.0  # 0: the likeliest token, always
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # the fewest tokens whose probabilities add up to this (Holtzman et al. 2020)
    repetition_penalty: float = 1.0  # of what is in prompt or answer already (Keskar et al. 2019)

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise BadInput(f"temperature {self.temperature} must be 0, or from {COLDEST} up; 0 takes the likeliest")
        if self.top_k < 0:
            raise BadInput(f"top_k {self.top_k} must be 0 or more; 0 leaves all tokens")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p {self.top_p} must lie in (0, 1]; 1 leaves all tokens")
        if not 1 / STRONGEST <= self.repetition_penalty <= STRONGEST:
            raise BadInput(
                f"repetition_penalty {self.repetition_penalty} must lie in [{1 / STRONGEST}, {STRONGEST}]; 1 is none"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """Where a batch has got to."""

    state: State  # the model's own: what it keeps of the tokens that it has read
    token_B: jax.Array  # drawn, and not yet read
    done_B: jax.Array  # whether a row has stopped
    seen_BV: jax.Array  # whether a token is in a row
    keys_B: jax.Array  # of the rows' randomness: what a row draws does not depend on the others
    drawn: jax.Array  # tokens of each row so far


def generate(
    params: Params,
    model: Model,
    prompts: Sequence[np.ndarray],
    new_tokens: int,
    sampling: Sampling = Sampling(),
    *,
    stop: Sequence[int] = (),
    seed: int = 0,
    layout: Layout | None = None,
) -> list[np.ndarray]:
    """Return what follows each prompt: up to `new_tokens` ids, the last of them a stop token where one was drawn.

    Raises BadInput where a prompt is empty, holds an unknown id, or leaves no room for the answer in the context.
    """
    parts = list(stream(params, model, prompts, new_tokens, sampling, stop=stop, seed=seed, layout=layout))
    return [np.concatenate([part[row] for part in parts]) for row in range(len(prompts))]


def stream(
    params: Params,
    model: Model,
    prompts: Sequence[np.ndarray],
    new_tokens: int,
    sampling: Sampling = Sampling(),
    *,
    stop: Sequence[int] = (),
    seed: int = 0,
    layout: Layout | None = None,
    every: int = 0,
) -> Iterator[list[np.ndarray]]:
    """Yield, as `generate` returns it in the end, what each row has got in every so many steps (0: all at once)."""
    check_prompts(model, prompts, new_tokens)
    check_seed(seed)
    layout = layout or Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1]), Rules())
    n_rows, parts = len(prompts), layout.parts(layout.rules.batch)
    prompts = [*prompts, *[prompts[0]] * (-n_rows % parts)]  # rows for every device
    T = max(map(len, prompts))
    first_B = np.array([T - len(prompt) for prompt in prompts], np.int32)
    tokens_BT = np.stack([np.pad(prompt, (T - len(prompt), 0)) for prompt in prompts]).astype(np.int32)
    room = min(-(-(T + new_tokens) // ROUNDED) * ROUNDED, model.config.context)
    stops = np.zeros(model.execution.padded(model.config.vocab_size), bool)
    stops[list(stop)] = True
    settings = {"model": model, "sampling": sampling, "layout": layout}
    state = _begin(params, tokens_BT, first_B, jax.random.key(seed), room=room, **settings)
    left = new_tokens
    finished = np.zeros(n_rows, bool)
    while left > 0:
        steps = min(every or new_tokens, left)
        state, answer_BT = _continue(params, state, stops, steps=steps, **settings)
        ids = np.asarray(answer_BT)
        rows = []
        for i in range(n_rows):
            hits = np.flatnonzero(stops[ids[i]])
            end = 0 if finished[i] else (hits[0] + 1 if len(hits) else steps)
            finished[i] |= len(hits) > 0
            rows.append(ids[i, :end])
        yield rows
        left -= steps
        if finished.all():
            return


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise BadInput(f"seed {seed} must lie between 0 and {2**32 - 1}; others would repeat one of those")


def decoder_of(model: Model) -> Decoder:
    """Return how a model decodes; BadInput for a family that does not."""
    if model.decoder is None:
        raise BadInput(f"a model of family {model.config.family} does not generate text; take one of another family")
    return model.decoder


def check_prompts(model: Model, prompts: Sequence[np.ndarray], new_tokens: int) -> None:
    """Refuse prompts that cannot be continued by so many tokens, and models that continue none."""
    decoder_of(model)
    config = model.config
    if new_tokens < 1:
        raise BadInput(f"{new_tokens} new tokens are asked for; ask for 1 or more")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise BadInput(f"prompt {i} has no token; begin it with one, as bos")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise BadInput(f"prompt {i} has ids from {min(prompt)} to {max(prompt)}, and the model {config.vocab_size}")
        if len(prompt) + new_tokens > config.context:
            raise BadInput(
                f"prompt {i} of {len(prompt)} tokens and {new_tokens} new ones exceed the context of {config.context}; "
                "shorten the prompt or ask for fewer"
            )


@partial(jax.jit, static_argnames=("room", "model", "sampling", "layout"))
def _begin(
    params: Params,
    tokens_BT: jax.Array,
    first_B: jax.Array,
    key: jax.Array,
    *,
    room: int,
    model: Model,
    sampling: Sampling,
    layout: Layout,
) -> Decoding:
    """Read the prompts, and draw the token after each."""
    B, T = tokens_BT.shape
    with use(layout), kernels_of(model.execution):
        logits_BV, state = decoder_of(model).start(params, tokens_BT, first_B, room)
    real_BT = jnp.arange(T) >= first_B[:, None]
    rows_B = jnp.arange(B)
    seen_BV = jnp.zeros(logits_BV.shape, bool).at[rows_B[:, None], tokens_BT].max(real_BT)
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows_B)
    token_B = draw_tokens(logits_BV, seen_BV, keys_B, 0, sampling)
    return Decoding(state, token_B, jnp.zeros(B, bool), seen_BV, keys_B, jnp.zeros((), jnp.int32))


@partial(jax.jit, static_argnames=("steps", "model", "sampling", "layout"), donate_argnums=1)
def _continue(
    params: Params,
    state: Decoding,
    stops_V: jax.Array,
    *,
    steps: int,
    model: Model,
    sampling: Sampling,
    layout: Layout,
) -> tuple[Decoding, jax.Array]:
    """Decode up to so many tokens a row, fewer if all stop; return them, (B, steps), and the state after them."""
    rows_B = jnp.arange(len(state.token_B))

    def going(carry: tuple[jax.Array, Decoding, jax.Array]) -> jax.Array:
        i, state, _ = carry
        return (i < steps) & ~state.done_B.all()

    def step(carry: tuple[jax.Array, Decoding, jax.Array]) -> tuple[jax.Array, Decoding, jax.Array]:
        i, s, answer_BT = carry
        answer_BT = answer_BT.at[:, i].set(s.token_B)
        seen_BV = s.seen_BV.at[rows_B, s.token_B].set(True)
        logits_BV, read = advance(s.token_B, s.state)
        token_B = draw_tokens(logits_BV, seen_BV, s.keys_B, s.drawn + 1, sampling)
        return i + 1, Decoding(read, token_B, s.done_B | stops_V[s.token_B], seen_BV, s.keys_B, s.drawn + 1), answer_BT

    with use(layout), kernels_of(model.execution):
        advance = decoder_of(model).stepper(params)
        nothing = jnp.zeros((len(rows_B), steps), jnp.int32)
        _, state, answer_BT = jax.lax.while_loop(going, step, (jnp.zeros((), jnp.int32), state, nothing))
    return state, answer_BT


def draw_tokens(
    logits_BV: jax.Array, seen_BV: jax.Array, keys_B: jax.Array, n: jax.Array | int, s: Sampling
) -> jax.Array:
    """Draw the n-th token of each row."""
    logits_BV = allowed(logits_BV, seen_BV, s)
    if s.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, n))(keys_B)
    return jax.vmap(jax.random.categorical)(keys, logits_BV).astype(jnp.int32)


def allowed(logits_BV: jax.Array, seen_BV: jax.Array, s: Sampling) -> jax.Array:
    """Return the logits to draw from: -inf for what is cut off. The order is that of transformers' `generate`."""
    if s.repetition_penalty != 1:
        lower = jnp.where(logits_BV > 0, logits_BV / s.repetition_penalty, logits_BV * s.repetition_penalty)
        logits_BV = jnp.where(seen_BV, lower, logits_BV)
    if s.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / s.temperature
    if s.top_k:
        least = jax.lax.top_k(logits_BV, min(s.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
    if s.top_p < 1:
        ordered = jnp.sort(logits_BV, axis=-1, descending=True)
        p = jax.nn.softmax(ordered, axis=-1)
        kept = jnp.cumsum(p, axis=-1) - p < s.top_p  # the first is always among them
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
    return logits_BV
