"""Minimise a robust error of a law from many starts at once, in float64: Levenberg-Marquardt, vmapped."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from gptjax.laws.forms import Form
from gptjax.laws.law import Floats

PADDING = 32  # rows come in multiples, the rest of weight 0: tables of nearly one length share a program
CHUNK, CELLS = 50, 50_000  # problems, and problems x rows, solved side by side: they fit the cache, compiled once
STEPS, ROUNDS = 15, 6  # after each round of steps the finished problems leave; a good start needs two rounds


@partial(jax.jit, static_argnames=("log_loss", "raw"))
def _descend(log_loss, raw, thetas, x, losses, weights, free, delta):
    """Run Levenberg-Marquardt on each problem; the damping leads from a safe step to a Newton step.

    Inside delta a row is quadratic and gives Newton's matrix; for small delta nearly all rows are outside. The safe
    step comes from the quadratic that touches every row's error from above (iteratively reweighted least squares).
    A trial that overflows is not better, and so not taken.
    """
    eye = jnp.eye(thetas.shape[1])

    def evaluate(theta: Array, loss: Array) -> tuple[Array, Array]:
        """Give each row's error, predicted - measured of log or raw loss, and its slope (k, rows)."""
        predicted, slope = jax.vmap(lambda t: jax.jvp(lambda s: log_loss(s, x), (theta,), (t,)), out_axes=(None, 0))(
            eye
        )
        if raw:
            return jnp.exp(predicted) - loss, slope * jnp.exp(predicted)
        return predicted - jnp.log(loss), slope

    def descend(theta: Array, loss: Array, weights: Array) -> tuple[Array, Array, Array]:
        def huber(error: Array) -> Array:
            size = jnp.abs(error)
            return jnp.sum(weights * jnp.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)))

        def step(state):
            theta, value, here, damping, _, count = state
            error, slope = here
            slope = slope * free[:, None]
            size = jnp.abs(error)
            curvature = weights * ((size <= delta) + damping * delta / jnp.maximum(size, delta))
            matrix = (slope * curvature) @ slope.T
            ridge = 0.01 * damping * jnp.diag(jnp.diag(matrix)) + 1e-12 * delta * jnp.sum(weights) * eye
            trial = theta - jnp.linalg.solve(matrix + ridge, slope @ (weights * jnp.clip(error, -delta, delta)))
            there = evaluate(trial, loss)
            lower = huber(there[0])
            better = lower < value
            done = jnp.where(better, value - lower <= 1e-13 * value, damping > 1e9)
            damping = jnp.where(better, jnp.maximum(damping / 5, 1e-9), damping * 8)
            kept = jax.tree.map(
                lambda new, old: jnp.where(better, new, old), (trial, lower, there), (theta, value, here)
            )
            return *kept, damping, done, count + 1

        here = evaluate(theta, loss)
        state = (theta, huber(here[0]), here, jnp.ones(()), jnp.zeros((), bool), 0)
        theta, value, _, _, done, _ = lax.while_loop(lambda s: ~s[4] & (s[5] < STEPS), step, state)
        return theta, value, done

    return jax.vmap(descend)(thetas, losses, weights)


def solve(
    form: Form,
    starts: Floats,
    x: Floats,
    losses: Floats,
    weights: Floats,
    delta: float,
    *,
    raw: bool = False,
    free: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Minimise sum_i weights_i Huber_delta(error_i) from each start (p, k), for its losses and weights (p, rows).

    x (columns, rows) is what the form reads; losses and weights broadcast over the p problems. `raw` takes the error of
    the loss and not of its log; `free` (k,) is 0 for a coefficient that keeps its start. Gives the optima (p, k) and
    their values (p,). Works about the centre of x, where the problem is well conditioned, if the form says how theta
    moves there; leaves JAX's float64 switch as it was. Dividing by delta^2, as some codes do, would change nothing: the
    step and the stopping rule are relative.
    """
    centre = x.mean(axis=1) if form.terms else np.zeros(len(x))
    thetas = form.shift(starts, centre)
    shape, missing = (len(starts), x.shape[1]), -x.shape[1] % PADDING
    losses, weights = np.broadcast_to(losses, shape), np.broadcast_to(weights, shape)
    rows = np.concatenate([np.arange(x.shape[1]), np.zeros(missing, dtype=int)])
    x, losses, weights = x[:, rows], losses[:, rows], np.pad(weights, ((0, 0), (0, missing)))
    free = np.ones(starts.shape[1]) if free is None else free
    values = np.full(len(starts), np.inf)
    centred = x - centre[:, None]
    size = max(1, min(CHUNK, CELLS // x.shape[1]))

    def descend(chunk: NDArray[np.int_]) -> NDArray[np.int_]:
        """Take the steps of one round and give the problems that are not finished."""
        padded = np.resize(chunk, size)
        with jax.enable_x64(True):
            problems = (thetas[padded], centred, losses[padded], weights[padded])
            theta, value, done = map(np.asarray, _descend(form.log_loss, raw, *problems, free, delta))
        thetas[padded], values[padded] = theta, value
        return chunk[~done[: len(chunk)]]

    pending = np.arange(len(starts))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(ROUNDS):
            chunks = np.split(pending, range(size, len(pending), size))
            pending = np.concatenate([*pool.map(descend, chunks)])
            if not len(pending):
                break
    return form.shift(thetas, -centre), values
