"""The shapes of a scaling law, what each says is optimal, and the published laws as constants.

N parameters, D tokens, C = 6 N D FLOPs, losses in nats a token. A law is a value: `loss(N, D)` and `optimum`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from gptjax.errors import BadInput

Floats = NDArray[np.float64]
LOG_FLOPS = (math.log(1e3), math.log(1e45))  # where numerical optima are sought
MOST_LOG = 600.0  # in log: a float ends at 709


@dataclass(frozen=True)
class Optimum:
    """A compute-optimal point: N, D, C = 6ND and the loss there."""

    params: float
    tokens: float
    flops: float
    loss: float


@dataclass(frozen=True)
class PowerLaw:
    """y = coef * x^exponent."""

    coef: float
    exponent: float

    def __call__(self, x: ArrayLike) -> Floats:
        return self.coef * np.asarray(x, dtype=np.float64) ** self.exponent


class Law(ABC):
    """A loss of N and D that falls in both; what is optimal under C = 6ND follows, here by search."""

    @abstractmethod
    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        """Give the loss of a model of N parameters after D tokens, elementwise."""

    def optimum(
        self,
        *,
        flops: float | None = None,
        params: float | None = None,
        tokens: float | None = None,
        loss: float | None = None,
    ) -> Optimum:
        """Give the compute-optimal point that has this C, N, D or loss; exactly one is given.

        BadInput for a quantity that is not positive, or that no compute-optimal point has.
        """
        given = {"flops": flops, "params": params, "tokens": tokens, "loss": loss}
        known = {name: value for name, value in given.items() if value is not None}
        if len(known) != 1:
            raise BadInput(f"{len(known)} of flops, params, tokens and loss are given; give exactly one")
        ((name, value),) = known.items()
        if not (value > 0 and math.isfinite(value)):
            raise BadInput(f"{name} {value:g} is not a finite positive number; give one")
        flops = value if name == "flops" else self._optimal_flops(name, value)
        n = self._optimal_params(flops)
        d = flops / (6 * n)
        return Optimum(n, d, flops, float(self.loss(n, d)))

    def tokens_to_reach(self, loss: float, params: float) -> float:
        """Give the D at which a model of N parameters reaches a loss; inf where it never does."""

        def above(log_d: float) -> float:
            return float(self.loss(params, math.exp(log_d))) - loss

        return math.inf if above(200) > 0 else math.exp(brentq(above, -50, 200, xtol=1e-13))

    def _optimal_params(self, flops: float) -> float:
        def loss(log_n: float) -> float:
            return float(self.loss(math.exp(log_n), flops / (6 * math.exp(log_n))))

        return math.exp(minimize_scalar(loss, bounds=(0, math.log(flops / 6)), options={"xatol": 1e-10}).x)

    def _optimal_flops(self, name: str, value: float) -> float:
        def above(log_c: float) -> float:
            return math.log(getattr(self.optimum(flops=math.exp(log_c)), name) / value)

        ends = [above(end) for end in LOG_FLOPS]
        if ends[0] * ends[1] > 0:
            raise BadInput(f"no compute-optimal run has {name} {value:g} under this law; the law's floor may be above")
        return math.exp(brentq(above, *LOG_FLOPS, xtol=1e-12))


@dataclass(frozen=True)
class ChinchillaLaw(Law):
    """L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, arXiv 2203.15556, Eq. 2); optima in closed form (Eq. 4)."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float

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

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        n, d = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        with np.errstate(over="ignore"):  # of a law that rises with size or tokens, which no fit calls ok
            return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

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

    @property
    def inner(self) -> ChinchillaLaw:
        ratio = self.alpha_N / self.alpha_D
        return ChinchillaLaw(self.N_c**ratio, self.D_c, 0.0, ratio, 1.0)

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
class DataConstrainedLaw(Law):
    """A Chinchilla law when only so many tokens are unique and the rest repeat them.

    Repetition, and parameters beyond what the unique tokens call for, are worth ever less: D' = U (1 + R* (1 -
    exp(-R/R*))) with R = D/U - 1, and N' likewise (Muennighoff et al. 2023, arXiv 2305.16264, Eqs. 5 and 6).
    """

    base: ChinchillaLaw
    unique_tokens: float
    tokens_half_life: float = 15.387756  # R_D*, in repetitions; both fitted by the authors on C4
    params_half_life: float = 5.309743  # R_N*

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        enough = self.base.optimum(tokens=self.unique_tokens).params
        n = _worth(np.asarray(params, dtype=np.float64), enough, self.params_half_life)
        d = _worth(np.asarray(tokens, dtype=np.float64), self.unique_tokens, self.tokens_half_life)
        return self.base.loss(n, d)


def _worth(amount: Floats, unique: float, half_life: float) -> Floats:
    """Give what an amount is worth when its part beyond `unique` counts ever less."""
    repeats = np.maximum(amount / unique - 1, 0)
    return np.minimum(amount, unique) - unique * half_life * np.expm1(-repeats / half_life)


@dataclass(frozen=True)
class SaturatingLaw:
    """L = E + (scale/x)^exponent in one variable: N with ample data, D with ample size, or C at the optimum."""

    variable: Literal["params", "tokens", "flops"]
    scale: float
    exponent: float
    E: float = 0.0

    def loss(self, x: ArrayLike) -> Floats:
        return self.E + (self.scale / np.asarray(x, dtype=np.float64)) ** self.exponent

    def needed(self, loss: float) -> float:
        """Give the x that reaches a loss; BadInput at or below the floor."""
        if loss <= self.E:
            raise BadInput(f"loss {loss:g} is not above the law's floor E = {self.E:g}; ask for a higher loss")
        return self.scale / (loss - self.E) ** (1 / self.exponent)


@dataclass(frozen=True)
class Served:
    """A run that reaches a loss at the least FLOPs of training and inference together."""

    params: float
    tokens: float
    training_flops: float
    inference_flops: float
    saving: float  # share of what the compute-optimal run of this loss would cost in all


def serving_optimum(law: Law, loss: float, inference_tokens: float) -> Served:
    """Minimise 6 N D + 2 N D_inference over runs that reach a loss (Sardana et al. 2024, arXiv 2401.00448, Eq. 2).

    Demand only ever makes the best model smaller, so N is sought below the compute-optimal one. BadInput for a loss
    that no size reaches.
    """
    alone = law.optimum(loss=loss)

    def flops(n: float) -> float:
        return 6 * n * law.tokens_to_reach(loss, n) + 2 * n * inference_tokens

    sizes = [float(share * alone.params) for share in np.geomspace(1e-6, 1, 400)]
    near = min(range(400), key=lambda i: flops(sizes[i]))
    bounds = (sizes[max(near - 1, 0)], sizes[min(near + 1, 399)])
    found = minimize_scalar(flops, bounds=bounds, options={"xatol": 1e-10 * alone.params}).x
    n = min((float(found), alone.params), key=flops)
    d = law.tokens_to_reach(loss, n)
    total = alone.flops + 2 * alone.params * inference_tokens
    return Served(n, d, 6 * n * d, 2 * n * inference_tokens, 1 - flops(n) / total)


# Hoffmann et al. 2022, App. D.3; the digits are those of the arXiv TeX source (printed rounded as 406.4, 410.7, 1.69).
HOFFMANN_2022 = ChinchillaLaw(math.exp(6.0073404), math.exp(6.0179186), math.exp(0.5267228), 0.33917084, 0.2849083)

# Besiroglu et al. 2024, arXiv 2404.10102: the same points read off Figure 4 and fitted again.
BESIROGLU_2024 = ChinchillaLaw(482.01, 2085.43, 1.8172, 0.3478, 0.3658)

# Muennighoff et al. 2023, arXiv 2305.16264: one epoch on C4, alpha = beta assumed.
MUENNIGHOFF_2023 = ChinchillaLaw(math.exp(6.255414), math.exp(7.3049974), math.exp(0.6254804), 0.3526596, 0.3526596)

# Kaplan et al. 2020, Table 2 (L(N, D)) and Eqs. 1.1 to 1.3; N without embeddings, C in FLOPs (3.1e8 PF-days).
KAPLAN_2020 = KaplanLaw(6.4e13, 1.8e13, 0.076, 0.103)
KAPLAN_2020_PARAMS = SaturatingLaw("params", 8.8e13, 0.076)
KAPLAN_2020_TOKENS = SaturatingLaw("tokens", 5.4e13, 0.095)
KAPLAN_2020_FLOPS = SaturatingLaw("flops", 3.1e8 * 8.64e19, 0.050)

PUBLISHED: dict[str, Law] = {
    "hoffmann-2022": HOFFMANN_2022,
    "besiroglu-2024": BESIROGLU_2024,
    "muennighoff-2023": MUENNIGHOFF_2023,
    "kaplan-2020": KAPLAN_2020,
}
