"""The published laws as constants, and two further questions to a law: data that repeats, and a model to be served."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from gptjax.laws.forms import ChinchillaLaw, KaplanLaw
from gptjax.laws.law import Floats, Law


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

    @property
    def names(self) -> tuple[str, ...]:
        return self.base.names

    @property
    def theta(self) -> Floats:
        return self.base.theta

    def at(self, theta: Floats) -> "DataConstrainedLaw":
        return replace(self, base=self.base.at(theta))

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

# Kaplan et al. 2020, Table 2 (L(N, D)); N without embeddings.
KAPLAN_2020 = KaplanLaw(6.4e13, 1.8e13, 0.076, 0.103)

PUBLISHED: dict[str, Law] = {
    "hoffmann-2022": HOFFMANN_2022,
    "besiroglu-2024": BESIROGLU_2024,
    "muennighoff-2023": MUENNIGHOFF_2023,
    "kaplan-2020": KAPLAN_2020,
}
