"""The forms of a scaling law: what each says of the loss, where its optimum lies, and from where it is fitted.

A law is a value (law.py). A form is what is fitted: the laws of one class, as a vector theta. To add one, write a class
of `Law`, here or in a file of your own, and make a `Form` of it by `form_of`; a row in `FORMS` gives it a name on the
command line.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from gptjax.errors import BadInput
from gptjax.laws.law import MOST_LOG, Floats, Law, PowerLaw, law_at

FEW = 23  # every so manieth start is enough for the many fits of a table
MANY_STARTS = 100  # with fewer, all are tried in those fits too


@dataclass(frozen=True)
class ChinchillaLaw(Law):
    """L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, arXiv 2203.15556, Eq. 2); optima in closed form (Eq. 4)."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    logs = ("A", "B", "E")
    closed = True

    @property
    def a(self) -> float:
        """The exponent of N* in C."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """The exponent of D* in C."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def has_optimum(self) -> bool:
        """Say whether N* and D* are numbers: nearly flat slopes put them beyond what a float can hold."""
        if not min(self.alpha, self.beta, self.A, self.B) > 0 or not math.isfinite(self.A * self.B):
            return False
        log_g = math.log(self.alpha) + math.log(self.A) - math.log(self.beta) - math.log(self.B)
        if not abs(log_g) < MOST_LOG:  # G is a power of its exponential
            return False
        return abs(log_g / (self.alpha + self.beta)) < MOST_LOG

    @property
    def _G(self) -> float:
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    @property
    def params_law(self) -> PowerLaw:
        """N*(C)."""
        return PowerLaw(self._G * 6**-self.a, self.a)

    @property
    def tokens_law(self) -> PowerLaw:
        """D*(C)."""
        return PowerLaw(6**-self.b / self._G, self.b)

    def power_laws(self, low: float = 0, high: float = 0) -> tuple[PowerLaw, PowerLaw] | None:
        return (self.params_law, self.tokens_law) if self.has_optimum else None

    def at(self, theta: Floats) -> "ChinchillaLaw":
        return law_at(ChinchillaLaw, theta)

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        n, d = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        with np.errstate(over="ignore"):  # of a law that rises with size or tokens, which no fit calls ok
            return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def sensitivity(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        n, d = np.broadcast_arrays(*(np.atleast_1d(np.asarray(each, dtype=np.float64)) for each in (params, tokens)))
        of_n, of_d, loss = self.A * n**-self.alpha, self.B * d**-self.beta, self.loss(n, d)
        return np.stack([of_n, of_d, self.E + 0 * n, -of_n * np.log(n), -of_d * np.log(d)], axis=1) / loss[:, None]

    def tokens_to_reach(self, loss: float, params: float) -> float:
        left = loss - self.E - self.A * params**-self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else math.inf

    def _optimal_params(self, flops: float) -> float:
        return float(self.params_law(flops))

    def _optimal_flops(self, name: str, value: float) -> float:
        if name == "tokens":
            return 6 * (value * self._G) ** (1 / self.b)
        if name == "loss":
            if value <= self.E:
                raise BadInput(f"loss {value:g} is not above the law's floor E = {self.E:g}; ask for a higher loss")
            value = (self.A * (1 + self.alpha / self.beta) / (value - self.E)) ** (1 / self.alpha)
        return 6 * (value / self._G) ** (1 / self.a)


@dataclass(frozen=True)
class KaplanLaw(Law):
    """L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D (Kaplan et al. 2020, arXiv 2001.08361, Eq. 1.5).

    Within the brackets stands a Chinchilla law without a floor, so both have their optima at the same points.
    """

    N_c: float
    D_c: float
    alpha_N: float
    alpha_D: float

    closed = True

    @property
    def theta(self) -> Floats:
        ratio = self.alpha_N / self.alpha_D
        return np.array([ratio * np.log(self.N_c), np.log(self.D_c), ratio, self.alpha_D])

    def at(self, theta: Floats) -> "KaplanLaw":
        return _kaplan_at(theta)

    @property
    def inner(self) -> ChinchillaLaw:
        with np.errstate(all="ignore"):  # a fit that went astray has coefficients beyond all numbers
            ratio = np.float64(self.alpha_N) / self.alpha_D
            return ChinchillaLaw(float(np.float64(self.N_c) ** ratio), self.D_c, 0.0, float(ratio), 1.0)

    def power_laws(self, low: float = 0, high: float = 0) -> tuple[PowerLaw, PowerLaw] | None:
        return self.inner.power_laws()

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        n, d = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        return ((self.N_c / n) ** (self.alpha_N / self.alpha_D) + self.D_c / d) ** self.alpha_D  # no power overflows

    def tokens_to_reach(self, loss: float, params: float) -> float:
        return self.inner.tokens_to_reach(loss ** (1 / self.alpha_D), params)

    def _optimal_params(self, flops: float) -> float:
        return self.inner._optimal_params(flops)

    def _optimal_flops(self, name: str, value: float) -> float:
        return self.inner._optimal_flops(name, value ** (1 / self.alpha_D) if name == "loss" else value)


@dataclass(frozen=True)
class SaturatingLaw:
    """L = E + (scale/x)^exponent in one variable: N with ample data, D with ample size, or C at the optimum."""

    variable: Literal["params", "tokens", "flops"]
    scale: float
    exponent: float
    E: float = 0.0

    def loss(self, x: ArrayLike) -> Floats:
        return self.E + (self.scale / np.asarray(x, dtype=np.float64)) ** self.exponent


AnyLaw = Law | SaturatingLaw


@dataclass(frozen=True, eq=False)
class Form:
    """The laws of one form, as the solver fits them: a vector theta, its log loss in JAX, and where to start.

    `log_loss` takes theta (k,) and x (columns, rows): the columns as they are if `raw`, else their logarithms. Of logs,
    `terms` and `slopes` say how theta moves with their origin, so that the solver can work about the centre of the
    data: the law has terms exp(level - slope x), `terms` gives the place of each level in theta and its column, and
    `slopes` the slope of each term, of theta (..., k).
    """

    name: str
    names: tuple[str, ...]  # the coefficients of the laws
    columns: tuple[str, ...]  # of a table: params, tokens, flops, or any other that is numeric
    at: Callable[[Floats], AnyLaw]
    log_loss: Callable[[Array, Array], Array]
    starts: Floats
    terms: tuple[tuple[int, int], ...] = ()
    slopes: Callable[[Floats], Sequence[Floats | float]] = lambda theta: ()
    raw: bool = False
    lines: Callable[[Floats], Floats] | None = None  # N* and D* of many theta at once, by formula; see `optima`
    by_exponent: "Form | None" = None  # the same laws with a among the coefficients of theta, for a's profile
    logs: tuple[str, ...] = ()  # the coefficients that theta holds the logarithms of
    profiled: tuple[str, ...] = ()  # the coefficients whose profiles are drawn

    def as_name(self) -> str:
        """Say what stands for the form in JSON."""
        return self.name

    @property
    def few_starts(self) -> Floats:
        """The starts of the many fits of a table."""
        return self.starts[::FEW] if len(self.starts) > MANY_STARTS else self.starts

    @property
    def extra(self) -> tuple[str, ...]:
        """The columns besides N, D and C, which have no optimum: forecasts hold them at values given."""
        return tuple(name for name in self.columns if name not in ("params", "tokens", "flops"))

    def shift(self, theta: Floats, origin: Floats) -> Floats:
        """Give theta (..., k) for x counted from another origin; shift by -origin undoes it."""
        moved = theta.copy()
        for (level, variable), slope in zip(self.terms, self.slopes(theta), strict=True):
            moved[..., level] -= slope * origin[variable]
        return moved

    def coefficients(self, theta: Floats) -> dict[str, Floats]:
        """Give each coefficient of many theta (k, ...), by name."""
        laws = [self.at(each) for each in theta]
        return {name: np.array([getattr(law, name) for law in laws], dtype=np.float64) for name in self.names}

    def optima(self, theta: Floats, flops: tuple[float, float], extra: Mapping[str, float]) -> Floats:
        """Give (log k, a) of N* = k C^a, and of D*, of each theta (k, ...), as (k, 2, 2); nan where there is none."""
        if self.lines is not None:
            return self.lines(theta)
        found = np.full((len(theta), 2, 2), np.nan)
        for row, each in zip(found, theta, strict=True):
            law = self.at(each)
            laws = law.held(extra).power_laws(*flops) if isinstance(law, Law) and np.isfinite(each).all() else None
            if laws:
                with np.errstate(divide="ignore"):  # a coefficient may be too small for a float
                    row[:] = [(np.log(one.coef), one.exponent) for one in laws]
        return found


def form_of(law: type[Law], name: str, starts: Floats) -> Form:
    """Make a form of a class of laws whose `loss` uses nothing but operators, so that JAX can differentiate it.

    starts (s, k) are theta: the solver descends from each. `grid` makes them.
    """

    def log_loss(theta: Array, x: Array) -> Array:
        values = [jnp.exp(t) if one in law.logs else t for one, t in zip(names, theta, strict=True)]
        return jnp.log(law(*values).loss(*x))

    names = tuple(field.name for field in fields(law))  # type: ignore[arg-type]
    return Form(
        name, names, law.columns, lambda theta: law_at(law, theta), log_loss, starts, raw=True, logs=law.logs,
        profiled=names,
    )  # fmt: skip


def grid(*axes: ArrayLike) -> Floats:
    """Give every combination of the values of each axis, one a row."""
    return np.array(list(product(*map(np.asarray, axes))), dtype=np.float64)


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


def _kaplan_at(theta: Floats) -> KaplanLaw:
    n, d, ratio, alpha_d = map(float, theta)
    with np.errstate(over="ignore", divide="ignore"):  # a term too steep to be a number
        return KaplanLaw(float(np.exp(n / np.float64(ratio))), float(np.exp(d)), ratio * alpha_d, alpha_d)


def _saturating(theta: Array, x: Array) -> Array:
    level, e, exponent = theta
    return jnp.log(jnp.exp(level - exponent * x[0]) + jnp.exp(e))


def _chinchilla_lines(theta: Floats) -> Floats:
    """Read many theta as power laws of N* and D* under C = 6ND; log k is nan where a slope is not positive."""
    log_a, log_b, _, alpha, beta = theta.T
    total = alpha + beta
    with np.errstate(invalid="ignore", divide="ignore"):
        log_g = np.where((alpha > 0) & (beta > 0), (np.log(alpha / beta) + log_a - log_b) / total, np.nan)
        params = np.stack([log_g - beta / total * np.log(6), beta / total], axis=1)
        tokens = np.stack([-log_g - alpha / total * np.log(6), alpha / total], axis=1)
    return np.stack([params, tokens], axis=1)


LOG_LEVELS, LOG_E, EXPONENTS = np.linspace(0, 25, 6), np.linspace(-1, 1, 5), np.linspace(0, 2, 5)

IN_N_AND_D = ("params", "tokens")
BOTH_TERMS = ((0, 0), (1, 1))

BY_EXPONENT = Form(  # the same laws; theta holds alpha + beta and a = beta / (alpha + beta), for a's profile
    "chinchilla by exponent", ("A", "B", "E", "alpha + beta", "a"), IN_N_AND_D,
    lambda t: law_at(ChinchillaLaw, [*t[:3], t[3] * (1 - t[4]), t[3] * t[4]]), _by_exponent, np.zeros((0, 5)),
    BOTH_TERMS,
    lambda t: (t[..., 3] * (1 - t[..., 4]), t[..., 3] * t[..., 4]),
)  # fmt: skip
# The 4500 starts of Hoffmann et al. 2022, D.2, and their like for the other forms.
CHINCHILLA = Form(
    "chinchilla", ("A", "B", "E", "alpha", "beta"), IN_N_AND_D, lambda t: law_at(ChinchillaLaw, t), _chinchilla,
    grid(LOG_LEVELS, LOG_LEVELS, LOG_E, EXPONENTS, EXPONENTS), BOTH_TERMS, lambda t: (t[..., 3], t[..., 4]),
    lines=_chinchilla_lines, by_exponent=BY_EXPONENT, logs=("A", "B", "E"), profiled=("E", "alpha", "beta"),
)  # fmt: skip
TIED = Form(
    "chinchilla, alpha = beta", ("A", "B", "E", "alpha"), IN_N_AND_D, lambda t: law_at(ChinchillaLaw, [*t, t[3]]),
    _tied, grid(LOG_LEVELS, LOG_LEVELS, LOG_E, EXPONENTS), BOTH_TERMS, lambda t: (t[..., 3], t[..., 3]),
    logs=("A", "B", "E"), profiled=("E", "alpha"),
)  # fmt: skip
KAPLAN = Form(
    "kaplan", ("N_c", "D_c", "alpha_N", "alpha_D"), IN_N_AND_D, _kaplan_at, _kaplan,
    grid(LOG_LEVELS, np.linspace(10, 35, 6), (0.3, 0.6, 1.0, 1.6), (0.03, 0.1, 0.2, 0.4)), BOTH_TERMS,
    lambda t: (t[..., 2], 1.0),
)  # fmt: skip


def saturating(variable: str) -> Form:
    """Give the power law with a constant in one of params, tokens and flops."""

    def at(theta: Floats) -> SaturatingLaw:
        level, e, exponent = map(float, theta)
        with np.errstate(over="ignore", divide="ignore"):  # a slope of hardly anything has a scale beyond all numbers
            scale = float(np.exp(level / np.float64(exponent)))
        return SaturatingLaw(variable, scale, exponent, float(np.exp(e)))  # type: ignore

    return Form(
        f"power law in {variable}", ("scale", "E", "exponent"), (variable,), at, _saturating,
        grid(LOG_LEVELS, LOG_E, (0.05, 0.1, 0.3, 0.5, 1.0)), ((0, 0),), lambda t: (t[..., 2],),
    )  # fmt: skip


# Every form that the command line knows by name, in the order of the report's table of forms. Those of one column have
# no optimum and are only compared with the others.
FORMS: dict[str, Form] = {
    form.name: form
    for form in (CHINCHILLA, TIED, KAPLAN, saturating("flops"), saturating("params"), saturating("tokens"))
}


def slopes_at(form: Form, theta: Floats, x: Floats) -> Floats:
    """Give d log L / d theta of each row of x, (rows, k)."""
    with jax.enable_x64(True):
        return np.asarray(_slopes(form.log_loss, theta, x))


@partial(jax.jit, static_argnames="log_loss")
def _slopes(log_loss: Callable[[Array, Array], Array], theta: Array, x: Array) -> Array:
    return jax.jacfwd(log_loss)(theta, x)
