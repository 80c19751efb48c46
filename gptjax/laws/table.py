"""The table of runs: one finished run a row, its N and C under one convention or another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gptjax.errors import BadInput
from gptjax.laws.law import Floats, Ints

Strings = NDArray[np.str_]

CONVENTIONS = {  # what N counts, and both in words; C is column flops_NAME, or 6 N D where the name says so
    "6n_total": ("total", "N = all parameters, C = 6 N D"),
    "6n_with_head": ("with_head", "N = parameters of layers and head, C = 6 N D"),
    "6n_non_embedding": ("non_embedding", "N = parameters of layers, C = 6 N D"),
    "6n_attention": ("with_head", "N = parameters of layers and head, C = 6 N D and attention"),
    "appendix_f": ("total", "N = all parameters, C = Hoffmann et al. 2022, App. F"),
    "table_a4": ("total", "N = all parameters, C = the layers of Hoffmann et al. 2022, App. F"),
}
RECIPE = ("lr", "batch", "b2")  # what a sweep over one cell varies; batch in sequences
PAIRED = "loss_se_paired"  # the part of loss_se that runs evaluated on the same windows do not share
FACTS = (*RECIPE, "steps", "epochs", "bits_per_byte", "budget")
SAME_TOKENS = 0.01  # in log D: a batch rounds the tokens of its run


@dataclass(frozen=True)
class Dropped:
    """A row, or a group of rows, that a fit does not use, and why."""

    run: str  # its name
    reason: str  # why it is not used


@dataclass(frozen=True)
class Counted:
    """N and C of every run under one convention."""

    params: Floats
    flops: Floats


@dataclass(frozen=True)
class Runs:
    """Finished runs as columns of equal length; loss_se and facts are nan where they are unknown.

    params and flops follow `convention`, in words; `counts` holds them under each named convention that the table
    allows. `facts` are FACTS, what a run was trained with and what else it reached, and PAIRED. `cells` holds every
    other column as its text stands in the table. `curve` numbers the training run that a row is of, where several rows
    are of one; None where each row is its own.
    """

    run: tuple[str, ...]
    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    loss_se: Floats
    seed: tuple[str, ...]
    convention: str
    dropped: tuple[Dropped, ...] = ()
    warnings: tuple[str, ...] = ()  # what is odd about the table and yet may be right
    counts: Mapping[str, Counted] = field(default_factory=dict)
    facts: Mapping[str, Floats] = field(default_factory=dict)
    cells: Mapping[str, Strings] = field(default_factory=dict)
    curve: Ints | None = None

    def __len__(self) -> int:
        return len(self.run)

    @property
    def conventions(self) -> tuple[str, ...]:
        """The names that `counted` takes."""
        return tuple(self.counts)

    def counted(self, name: str) -> "Runs":
        """Give the same runs with N and C under a named convention ("" leaves them); BadInput names those at hand."""
        if not name:
            return self
        if name not in self.counts:
            rule = f"the table allows {', '.join(self.conventions) or 'none by name'}"
            remedy = f"add columns params_{CONVENTIONS[name][0]} and flops_{name}" if name in CONVENTIONS else "use one"
            raise BadInput(f"convention {name!r} is not at hand: {rule}; {remedy}")
        n = self.counts[name]
        return replace(self, params=n.params, flops=n.flops, convention=f"{name}: {CONVENTIONS[name][1]}")

    @property
    def evaluation_noise(self) -> float:
        """The standard error, of evaluation alone, that tells one loss from another: the median; nan if unknown.

        It is the paired one where the table has it. loss_se is larger where runs share their validation windows.
        """
        paired = self.fact(PAIRED)
        known = np.where(np.isnan(paired), self.loss_se, paired)
        return math.nan if np.isnan(known).all() else float(np.nanmedian(known))

    def fact(self, name: str) -> Floats:
        """Give one of FACTS as a column, nan where it is unknown."""
        return self.facts.get(name, np.full(len(self), np.nan))

    def column(self, name: str) -> Floats:
        """Give any numeric column of the table; BadInput where it is not there, or not a number in every row."""
        if name in ("params", "tokens", "flops"):
            return getattr(self, name)
        values = self.facts.get(name)
        if values is None and name not in self.cells:
            known = [fact for fact, column in self.facts.items() if not np.isnan(column).any()]
            others = ", ".join(["params", "tokens", "flops", *known, *self.cells])
            raise BadInput(f"the table has no column {name!r}, which the law reads; add it, or fit another form to "
                           f"{others}")  # fmt: skip
        if values is None:
            values = np.array([value_of(text) for text in self.cells[name]], dtype=object)
        for run, value in zip(self.run, values, strict=True):
            if not isinstance(value, float) or not math.isfinite(value):
                raise BadInput(f"run {run!r} has {name} {value!s:.60}, which is not a number; fill it in, or leave the "
                               "run out")  # fmt: skip
        return values.astype(np.float64)

    def has(self, names: tuple[str, ...]) -> bool:
        """Say whether each is a column of the table that names a value in every row."""
        return all(
            bool((self.cells[name] != "").all()) if name in self.cells else not np.isnan(self.fact(name)).any()
            for name in names
        )

    def arms(self, name: str) -> "dict[str, Runs]":
        """Part the runs by the values of a column, in the order of their text; BadInput where it is not there."""
        values = self.cells.get(name)
        if values is None and name in self.facts and not np.isnan(self.facts[name]).all():
            values = np.array([f"{value:g}" for value in self.facts[name]])
        if values is None and name == "seed" and any(self.seed):
            values = np.array(self.seed)
        if values is None:
            known = [*self.cells, *(fact for fact, column in self.facts.items() if not np.isnan(column).all())]
            raise BadInput(f"the table has no column {name!r} to part runs by; it has {', '.join(known) or 'none'}")
        return {str(value): self.take(np.flatnonzero(values == value)) for value in np.unique(values)}

    def take(self, index: NDArray[np.int_]) -> "Runs":
        """Select rows by position, a repeated position repeating its row."""
        columns = {name: getattr(self, name)[index] for name in ("params", "tokens", "flops", "loss", "loss_se")}
        counts = {name: Counted(n.params[index], n.flops[index]) for name, n in self.counts.items()}
        facts = {name: column[index] for name, column in self.facts.items()}
        cells = {name: column[index] for name, column in self.cells.items()}
        run, seed = (tuple(names[i] for i in index) for names in (self.run, self.seed))
        curve = None if self.curve is None else self.curve[index]
        return replace(self, run=run, seed=seed, counts=counts, facts=facts, cells=cells, curve=curve, **columns)

    def tuned(self, apart: tuple[str, ...] = ()) -> "Runs":
        """Keep the least loss of each cell (N, D within 1 %, seed, budget) trained with several lr, batch or b2.

        Runs that differ in one of the columns `apart`, which a law reads, are never of one cell.
        """
        recipes = np.nan_to_num([self.fact(name) for name in RECIPE])
        if not np.ptp(recipes, axis=1).any():
            return self
        seed = np.unique(np.array(self.seed), return_inverse=True)[1]
        budget = np.nan_to_num(self.fact("budget"))
        keys = np.array([self.params, seed, budget, *map(self.column, apart), np.log(self.tokens)])
        order = np.lexsort(keys[::-1])
        steps = np.abs(np.diff(keys[:, order])) > np.array([[0]] * (len(keys) - 1) + [[SAME_TOKENS]])
        reasons: dict[int, str] = {}
        for cell in np.split(order, np.flatnonzero(steps.any(axis=0)) + 1):
            if np.ptp(recipes[:, cell], axis=1).any():
                best = cell[self.loss[cell].argmin()]
                what = f"its cell reaches {self.loss[best]:.4g} as {self.run[best]} at {self._recipe(best)}"
                reasons |= {i: f"loss {self.loss[i]:.4g} at {self._recipe(i)}; {what}" for i in cell if i != best}
        return self._without(reasons)

    def drop_highest_loss(self, count: int) -> "Runs":
        """Leave out the `count` highest losses (Besiroglu et al. 2024 leave out 5); BadInput unless rows remain."""
        if not 0 <= count < len(self):
            raise BadInput(f"{count} rows of {len(self)} cannot be left out; drop between 0 and {len(self) - 1}")
        highest = np.argsort(-self.loss, kind="stable")[:count]
        return self._without({i: f"loss {self.loss[i]:.4g} is one of the {count} highest, left out" for i in highest})

    def _recipe(self, i: int) -> str:
        known = {name: self.fact(name)[i] for name in RECIPE}
        return ", ".join(f"{name} {value:g}" for name, value in known.items() if not math.isnan(value))

    def _without(self, reasons: dict[int, str]) -> "Runs":
        kept = np.array([i for i in range(len(self)) if i not in reasons])
        dropped = (Dropped(self.run[i], reasons[i]) for i in sorted(reasons))
        return replace(self.take(kept), dropped=(*self.dropped, *dropped)) if reasons else self


@dataclass(frozen=True)
class Curve:
    """The training loss of one run as it went."""

    run: str
    params: float
    tokens: Floats
    flops: Floats
    loss: Floats


def short(value: float) -> str:
    """Write a count for a reader: 13.4k, 1.2M, 3B; FLOPs and the like beyond 1e12 as 3e17."""
    if value >= 1e12:
        return f"{value:.3g}".replace("e+", "e")
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{float(f'{value / unit:.3g}'):g}{name}"
    return f"{value:.3g}"


def value_of(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
