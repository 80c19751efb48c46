"""What any scaling law is: coefficients, a loss of N, D and further columns, and the compute-optimal run, by search.

N is parameters, D tokens, C = 6 N D FLOPs, losses in nats a token.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from gptjax.errors import BadInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int_]
LOG_FLOPS = (math.log(1e3), math.log(1e45))  # where numerical optima are sought
MOST_LOG = 600.0  # in log: a float ends at 709
STEP = 1e-5  # of theta, for slopes by differences
AT_END = 1e-3  # in log N: an optimum so near an end of the search is none

L = TypeVar("L", bound="Law")


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
    """A loss that falls with N and D; what is optimal under C = 6ND follows, here by search.

    A class of laws is a frozen dataclass whose fields are the coefficients. `columns` names what its `loss` reads, in
    order: params, tokens and any other numeric columns of a table. `logs` names the coefficients that are positive:
    theta, the vector that is fitted, holds their logarithms.
    """

    columns: ClassVar[tuple[str, ...]] = ("params", "tokens")
    logs: ClassVar[tuple[str, ...]] = ()
    closed: ClassVar[bool] = False  # whether N* and D* are power laws of C, known by a formula

    @abstractmethod
    def loss(self, *columns: Any, **named: Any) -> Any:
        """Give the loss of what the columns say, elementwise."""

    @property
    def names(self) -> tuple[str, ...]:
        """The coefficients, in the order of theta."""
        return tuple(field.name for field in fields(self))  # type: ignore[arg-type]

    @property
    def theta(self) -> Floats:
        """The coefficients as they are fitted: logarithms of those in `logs`."""
        return np.array([np.log(getattr(self, n)) if n in self.logs else getattr(self, n) for n in self.names])

    def at(self, theta: Floats) -> "Law":
        """Give the law of the same form at another theta."""
        return law_at(type(self), theta)

    def held(self, extra: Mapping[str, float]) -> "Law":
        """Give the law of N and D alone, with any further columns held at these values."""
        return HeldLaw(self, tuple(extra.items())) if extra else self

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
        try:
            flops = value if name == "flops" else self._optimal_flops(name, value)
            n = self._optimal_params(flops)
        except (OverflowError, ZeroDivisionError):
            flops = n = math.inf
        if not (n > 0 and math.isfinite(n) and math.isfinite(flops)):
            raise BadInput(f"the law's optimum of {name} {value:g} is beyond all numbers; ask for another {name}")
        d = flops / (6 * n)
        return Optimum(n, d, flops, float(self.loss(n, d)))

    def power_laws(self, low: float, high: float) -> tuple[PowerLaw, PowerLaw] | None:
        """Give N*(C) and D*(C) as power laws, here through the optima of two budgets; None where there are none."""
        high = max(high, 2 * low)
        with np.errstate(all="ignore"):  # a fit that went astray has losses that are no numbers
            sizes = [self._optimal_params(c) for c in (low, high)]
        if not all(AT_END < math.log(n) < math.log(c / 6) - AT_END for n, c in zip(sizes, (low, high), strict=True)):
            return None
        a = math.log(sizes[1] / sizes[0]) / math.log(high / low)
        log_k = math.log(sizes[0]) - a * math.log(low)
        if abs(log_k) > MOST_LOG:
            return None
        return PowerLaw(math.exp(log_k), a), PowerLaw(math.exp(-log_k) / 6, 1 - a)

    def sensitivity(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        """Give d log L / d theta at each (N, D), (rows, k), here by differences."""
        n, d = np.broadcast_arrays(*(np.atleast_1d(np.asarray(each, dtype=np.float64)) for each in (params, tokens)))
        theta = self.theta
        moves = STEP * np.maximum(1, np.abs(theta)) * np.eye(len(theta))
        above, below = ([np.log(self.at(theta + s * move).loss(n, d)) for move in moves] for s in (1, -1))
        return np.stack([(u - v) / (2 * m.max()) for u, v, m in zip(above, below, moves, strict=True)], axis=1)

    def tokens_to_reach(self, loss: float, params: float) -> float:
        """Give the D at which a model of N parameters reaches a loss; inf where it never does."""

        def above(log_d: float) -> float:
            return float(self.loss(params, math.exp(log_d))) - loss

        return math.inf if above(200) > 0 else math.exp(brentq(above, -50, 200, xtol=1e-13))

    def _optimal_params(self, flops: float) -> float:
        def loss(log_n: float) -> float:
            n = np.float64(math.exp(log_n))  # of numpy, in which a term too steep is inf and no error
            return float(self.loss(n, flops / (6 * n)))

        return math.exp(minimize_scalar(loss, bounds=(0, math.log(flops / 6)), options={"xatol": 1e-10}).x)

    def _optimal_flops(self, name: str, value: float) -> float:
        def above(log_c: float) -> float:
            return math.log(getattr(self.optimum(flops=math.exp(log_c)), name) / value)

        ends = [above(end) for end in LOG_FLOPS]
        if ends[0] * ends[1] > 0:
            raise BadInput(f"no compute-optimal run has {name} {value:g} under this law; the law's floor may be above")
        return math.exp(brentq(above, *LOG_FLOPS, xtol=1e-12))


@dataclass(frozen=True)
class HeldLaw(Law):
    """A law of N, D and further columns, as a law of N and D: the further columns keep the values given."""

    base: Law
    extra: tuple[tuple[str, float], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.base.names

    @property
    def theta(self) -> Floats:
        return self.base.theta

    def at(self, theta: Floats) -> "HeldLaw":
        return replace(self, base=self.base.at(theta))

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        n, d = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        known = {"params": n, "tokens": d, "flops": 6 * n * d, **dict(self.extra)}
        return self.base.loss(*(known[name] for name in self.base.columns))


def law_at(law: type[L], theta: ArrayLike) -> L:
    """Make a law of a class from theta, the vector that is fitted."""
    theta = np.asarray(theta, dtype=np.float64)
    with np.errstate(over="ignore"):  # a term too steep to be a number
        values = [np.exp(t) if f.name in law.logs else t for f, t in zip(fields(law), theta, strict=True)]  # type: ignore
    return law(*map(float, values))
