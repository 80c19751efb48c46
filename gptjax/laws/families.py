"""What the solver fits: each family of laws as a vector theta, its log loss in JAX, and where to start.

x holds log N and log D, or the log of one of N, D and C, about any origin: `shift` moves theta with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from gptjax.laws.forms import ChinchillaLaw, KaplanLaw, SaturatingLaw

Floats = NDArray[np.float64]
AnyLaw = ChinchillaLaw | KaplanLaw | SaturatingLaw


@dataclass(frozen=True, eq=False)
class Family:
    """A family of laws with terms exp(level - slope x): `terms` names the level's place and the variable of each.

    `slopes` gives the slope of each term, of theta (..., k).
    """

    name: str
    coefficients: tuple[str, ...]
    variables: tuple[str, ...]  # columns of Runs
    terms: tuple[tuple[int, int], ...]
    slopes: Callable[[Floats], Sequence[Floats | float]]
    log_loss: Callable[[Array, Array], Array]
    law: Callable[[Floats], AnyLaw]
    starts: Floats

    def shift(self, theta: Floats, origin: Floats) -> Floats:
        """Give theta (..., k) for x counted from another origin; shift by -origin undoes it."""
        moved = theta.copy()
        for (level, variable), slope in zip(self.terms, self.slopes(theta), strict=True):
            moved[..., level] -= slope * origin[variable]
        return moved


def _chinchilla(theta: Array, x: Array) -> Array:
    a, b, e, alpha, beta = theta
    return jnp.log(jnp.exp(a - alpha * x[0]) + jnp.exp(b - beta * x[1]) + jnp.exp(e))


def _by_exponent(theta: Array, x: Array) -> Array:
    a, b, e, total, exponent = theta
    return _chinchilla(jnp.stack([a, b, e, total * (1 - exponent), total * exponent]), x)


def _tied(theta: Array, x: Array) -> Array:
    return _chinchilla(jnp.append(theta, theta[3]), x)


def _kaplan(theta: Array, x: Array) -> Array:
    n, d, ratio, alpha_d = theta
    return alpha_d * jnp.log(jnp.exp(n - ratio * x[0]) + jnp.exp(d - x[1]))


def _saturating(theta: Array, x: Array) -> Array:
    level, e, exponent = theta
    return jnp.log(jnp.exp(level - exponent * x[0]) + jnp.exp(e))


def _law(theta: ArrayLike) -> ChinchillaLaw:
    theta = np.asarray(theta, dtype=np.float64)
    with np.errstate(over="ignore"):  # a term too steep to be a number
        return ChinchillaLaw(*map(float, (*np.exp(theta[:3]), *theta[3:])))


def _kaplan_law(theta: Floats) -> KaplanLaw:
    n, d, ratio, alpha_d = map(float, theta)
    return KaplanLaw(float(np.exp(n / ratio)), float(np.exp(d)), ratio * alpha_d, alpha_d)


def _grid(*axes: ArrayLike) -> Floats:
    return np.array(list(product(*map(np.asarray, axes))), dtype=np.float64)


LEVELS, LOG_E, EXPONENTS = np.linspace(0, 25, 6), np.linspace(-1, 1, 5), np.linspace(0, 2, 5)

IN_N_AND_D = ("params", "tokens"), ((0, 0), (1, 1))

# The 4500 starts of Hoffmann et al. 2022, D.2, and their like for the other families.
CHINCHILLA = Family(
    "chinchilla", ("A", "B", "E", "alpha", "beta"), *IN_N_AND_D, lambda t: (t[..., 3], t[..., 4]), _chinchilla, _law,
    _grid(LEVELS, LEVELS, LOG_E, EXPONENTS, EXPONENTS),
)  # fmt: skip
BY_EXPONENT = Family(  # the same laws; theta holds alpha + beta and a = beta / (alpha + beta), for a's profile
    "chinchilla by exponent", ("A", "B", "E", "alpha + beta", "a"), *IN_N_AND_D,
    lambda t: (t[..., 3] * (1 - t[..., 4]), t[..., 3] * t[..., 4]), _by_exponent,
    lambda t: _law([*t[:3], t[3] * (1 - t[4]), t[3] * t[4]]), np.zeros((0, 5)),
)  # fmt: skip
TIED = Family(
    "chinchilla, alpha = beta", ("A", "B", "E", "alpha"), *IN_N_AND_D, lambda t: (t[..., 3], t[..., 3]), _tied,
    lambda t: _law([*t, t[3]]), _grid(LEVELS, LEVELS, LOG_E, EXPONENTS),
)  # fmt: skip
KAPLAN = Family(
    "kaplan", ("N_c", "D_c", "alpha_N", "alpha_D"), *IN_N_AND_D, lambda t: (t[..., 2], 1.0), _kaplan, _kaplan_law,
    _grid(LEVELS, np.linspace(10, 35, 6), (0.3, 0.6, 1.0, 1.6), (0.03, 0.1, 0.2, 0.4)),
)  # fmt: skip


def saturating(variable: str) -> Family:
    """Give the power law with a constant in one of params, tokens and flops."""

    def law(theta: Floats) -> SaturatingLaw:
        level, e, exponent = map(float, theta)
        return SaturatingLaw(variable, float(np.exp(level / exponent)), exponent, float(np.exp(e)))  # type: ignore

    return Family(
        f"power law in {variable}", ("scale", "E", "exponent"), (variable,), ((0, 0),), lambda t: (t[..., 2],),
        _saturating, law, _grid(LEVELS, LOG_E, (0.05, 0.1, 0.3, 0.5, 1.0)),
    )  # fmt: skip


def slopes_at(family: Family, theta: Floats, x: Floats) -> Floats:
    """Give d log L / d theta of each row of x, (rows, k)."""
    with jax.enable_x64(True):
        return np.asarray(jax.jacfwd(family.log_loss)(jnp.asarray(theta), jnp.asarray(x)))


def sensitivity(law: ChinchillaLaw, params: ArrayLike, tokens: ArrayLike) -> Floats:
    """Give d log L / d (log A, log B, log E, alpha, beta) at each (N, D), (rows, 5), in closed form."""
    n, d = np.broadcast_arrays(*(np.atleast_1d(np.asarray(values, dtype=np.float64)) for values in (params, tokens)))
    of_n, of_d, loss = law.A * n**-law.alpha, law.B * d**-law.beta, law.loss(n, d)
    return np.stack([of_n, of_d, law.E + 0 * n, -of_n * np.log(n), -of_d * np.log(d)], axis=1) / loss[:, None]


def theta_of(law: ChinchillaLaw) -> Floats:
    """Give (log A, log B, log E, alpha, beta)."""
    return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
