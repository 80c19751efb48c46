"""The figures of a law by the names that a report's files have: `Figures` is `law.plot` of what `gptjax.fit` gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from gptjax.errors import BadInput
from gptjax.laws.approaches import BY_NAME
from gptjax.laws.codec import Json
from gptjax.laws.compare import Arms
from gptjax.laws.drawing import plot, plot_doubt, plot_forecast, report
from gptjax.laws.drawing.drawn import to_png
from gptjax.laws.drawing.plot_compare import multipliers
from gptjax.laws.ladders.comparison import Comparison
from gptjax.laws.record import Analysis, ParametricFound
from gptjax.laws.table import Curve, Runs

NO_TABLES = "the law has no table of {}: fit it with tables=True, of at most 1,000 rows"


class ShownFigure(Figure):
    """A figure that a notebook shows by itself, without pyplot: on white, as wide as the page of a report."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return to_png(self, SHOWN_DPI), {"width": round(self.get_figwidth() * 100)}


SHOWN_DPI = 80


def shown(figure: Figure) -> Figure:
    """Give a figure the means to show itself in a notebook."""
    figure.__class__ = ShownFigure  # it stays the object that was drawn, and is a Figure as before
    return figure


@dataclass(frozen=True)
class Figures:
    """The figures of a law, each a matplotlib Figure; `dir` lists them. BadInput says what one lacks to be drawn.

    `narrow` draws for a column or a phone. A law read from law.json alone has no rows, which most of them draw.
    """

    law: Analysis
    runs: Runs | None  # of the table, as it was read
    curves: Sequence[Curve] = ()
    registered: Json | None = None  # the prediction of a sweep's held-out run
    score: Json | None = None  # and what came of it

    def __dir__(self) -> list[str]:
        return sorted(name for name, value in vars(type(self)).items() if name[0] != "_" and callable(value))

    def isoflop(self, narrow: bool = False) -> Figure:
        """Draw loss against size at each budget, with the minimum of each."""
        rows = self._rows()
        _need(bool(self.law.isoflop and any(b.window for b in self.law.isoflop.budgets)), "no isoFLOP budget is fitted")
        return shown(plot.isoflop_parabolas(rows, self.law, narrow))

    def forecast(self, narrow: bool = False) -> Figure:
        """Draw the losses that are forecast along C, the floors they are averaged over, and the rows."""
        rows, found = self._rows(), self.law.forecast
        _need(bool(found and found.ok), "; ".join(found.reasons) if found else "the law has no forecast; fit it anew")
        assert found is not None
        return shown(plot_forecast.losses_forecast(rows, found, self.registered, self.score, narrow))

    def optimum(self, narrow: bool = False) -> Figure:
        """Draw N* and D* against compute by each approach, with 95 % bands."""
        rows = self._rows()
        _need(set(self.law.approaches) == set(BY_NAME), "not every approach was fitted; fit all")
        return shown(plot.optimum_against_compute(rows, self.law, self.registered, narrow))

    def loss_compute(self, narrow: bool = False) -> Figure:
        """Draw every run in the plane of compute and loss, with the frontier, and training curves where there are."""
        return shown(plot.loss_against_compute(self._rows(), self.law, self._curves(), narrow))

    def contours(self, narrow: bool = False) -> Figure:
        """Draw the parametric loss in the plane of compute and size, the efficient frontier and the runs."""
        rows = self._rows()
        _need(bool(self._parametric().band), "the parametric fit gave no law")
        return shown(plot.loss_contours(rows, self.law, narrow))

    def residuals(self, narrow: bool = False) -> Figure:
        """Draw measured over predicted loss of the parametric fit against N, D and C."""
        rows = self._rows()
        _need(bool(self._parametric().errors), "the parametric fit gave no law")
        return shown(plot.residuals(rows, self.law, narrow))

    def training(self, narrow: bool = False) -> Figure:
        """Draw training loss against tokens seen, a line a run."""
        rows, curves = self._rows(), self._curves()
        _need(bool(curves), "there are no training curves; fit a sweep's directory, or give curves=FILE")
        return shown(plot.training_curves(rows, curves, narrow))

    def rates(self, narrow: bool = False) -> Figure:
        """Draw loss against learning rate, a line for each cell that was trained at several."""
        _need(bool(self.law.hyper and self.law.hyper["lr"]["cells"]), "no cell was trained at several learning rates")
        return shown(plot.loss_against_rate(self.law.hyper, narrow))  # type: ignore[arg-type]  # needed above

    def bootstrap(self, narrow: bool = False) -> Figure:
        """Draw the bootstrap draws of the parametric law's coefficients."""
        _need(bool(self._parametric().theta_draws), "the parametric fit has no draws")
        return shown(plot_doubt.bootstrap_clouds(self.law, narrow))

    def profile(self, narrow: bool = False) -> Figure:
        """Draw how much worse the best fit is at each value of a coefficient."""
        _need(bool(self._parametric().profile), "the parametric fit has no profiles")
        return shown(plot_doubt.profiles(self.law, narrow))

    def influence(self, narrow: bool = False) -> Figure:
        """Draw what a becomes without each size, and without each row."""
        rows, fit = self._rows(), self._parametric()
        _need(bool(fit.influence) and fit.a is not None, "the parametric fit has no influence of rows")
        return shown(plot_doubt.influence_of_each(rows, self.law, narrow))

    def choices(self, narrow: bool = False) -> Figure:
        """Draw the exponent under other choices that could have been made."""
        _need(bool(self.law.choices), NO_TABLES.format("choices"))
        return shown(plot_doubt.choices_forest(self.law, narrow))

    def extrapolation(self, narrow: bool = False) -> Figure:
        """Draw what a sweep with less compute would have said."""
        cuts = self.law.extrapolation or []
        _need(any(c.rmse is not None or c.isoflop_N_ratio for c in cuts), NO_TABLES.format("cuts that gave a law"))
        return shown(plot_doubt.extrapolation_by_cut(self.law, narrow))

    def prediction(self, narrow: bool = False) -> Figure:
        """Draw the held-out run of a sweep beside the runs behind the law."""
        rows = self._rows()
        _need(self.registered is not None, "no prediction is registered beside the table")
        _need(bool(self._parametric().band), "the parametric fit gave no law")
        return shown(plot.prediction_against_outcome(rows, self.law, self.registered, self.score, narrow))  # type: ignore[arg-type]

    def _rows(self) -> Runs:
        """Give the rows that were fitted."""
        _need(self.runs is not None, "the law was read without its rows; fit the table, or read the sweep's directory")
        assert self.runs is not None
        return self.law.settings.rows(self.runs)

    def _curves(self) -> list[Curve]:
        counted = report._counted(list(self.curves), self._rows())
        return report._some(counted)  # those that the report draws

    def _parametric(self) -> ParametricFound:
        _need(self.law.parametric is not None, "the parametric approach was not fitted; fit all")
        assert self.law.parametric is not None
        return self.law.parametric


def _need(there: bool, else_why: str) -> None:
    if not there:
        raise BadInput(f"this figure cannot be drawn: {else_why}")


@dataclass(frozen=True)
class ArmFigures:
    """The figure of several arms; `dir` lists it."""

    found: Arms
    runs: Mapping[str, Runs]

    def __dir__(self) -> list[str]:
        return ["arms"]

    def arms(self, narrow: bool = False) -> Figure:
        """Draw the runs of every arm in the plane of compute and loss, and the loss of each law at its optimum."""
        return shown(plot.loss_by_arm(self.runs, self.found, narrow))


@dataclass(frozen=True)
class ComparisonFigures:
    """The figure of a comparison; `dir` lists it."""

    found: Comparison
    runs: Mapping[str, Runs]

    def __dir__(self) -> list[str]:
        return ["multipliers"]

    def multipliers(self, narrow: bool = False) -> Figure:
        """Draw the frontiers, and below them the multiplier along compute with its 95 % band."""
        return shown(multipliers(self.found, self.runs, narrow))
