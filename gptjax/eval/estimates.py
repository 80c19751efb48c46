"""A mean, or a ratio of means, with its standard error."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error; nan where one sample gives none."""

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.se:.4f}"

    def exp(self) -> "Estimate":
        """Return e to the value, with the error to first order (the delta method)."""
        value = math.exp(min(self.value, 700.0))
        return Estimate(value, value * self.se)


def mean(samples: np.ndarray) -> Estimate:
    """Estimate the mean of independent samples, (n,)."""
    x = np.asarray(samples, np.float64)
    return Estimate(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan)


def ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """Estimate sum(above) / sum(below) of independent pairs, (n,) each (Cochran 1977, section 2.11); nan of nothing."""
    if not below.any():
        return Estimate(math.nan, math.nan)
    value = float(above.sum() / below.sum())
    spread = mean(above - value * below)
    return Estimate(value, spread.se / float(below.mean()))
