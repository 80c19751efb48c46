"""What `gptjax.fit` gives: a law with its rows, its figures and its forecasts; or a law for each arm of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.lab.places import writable
from gptjax.laws import compare
from gptjax.laws.checks import read_curves, read_runs
from gptjax.laws.codec import Json
from gptjax.laws.drawing.results import law_html, summary
from gptjax.laws.frames import Frame
from gptjax.laws.quote import as_text
from gptjax.laws.record import Analysis, EnvelopeFound, Found, IsoflopFound, ParametricFound, read_law
from gptjax.laws.table import Curve, Runs

if TYPE_CHECKING:
    from gptjax.lab.forecasts import Prediction
    from gptjax.laws.drawing.figures import ArmFigures, Figures


@dataclass(frozen=True)
class FittedLaw:
    """A fitted law. `analysis` is all of it, typed (docs/law.json.md lists its keys); the rest is for convenience."""

    analysis: Analysis
    runs: Runs | None = field(repr=False)  # the table; None where the law was read from a file that has no rows
    name: str = "law"  # what forecasts call it
    home: Path | None = None  # the directory of its sweep
    curves: Sequence[Curve] = field(default=(), repr=False)  # training curves; else the sweep's are drawn

    @property
    def approaches(self) -> dict[str, Found]:
        """What each approach gives: `law.approaches["isoflop"].a`."""
        return self.analysis.approaches

    @property
    def isoflop(self) -> IsoflopFound | None:
        """The isoFLOP fit; None where it was not asked for."""
        return self.analysis.isoflop

    @property
    def parametric(self) -> ParametricFound | None:
        """The parametric fit; None where it was not asked for."""
        return self.analysis.parametric

    @property
    def envelope(self) -> EnvelopeFound | None:
        """The envelope fit; None where it was not asked for."""
        return self.analysis.envelope

    @property
    def quote(self) -> dict[str, str]:
        """What to quote of the law, why this, and what speaks against it."""
        return self.analysis.quote

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the table, and may yet be right."""
        return self.runs.warnings if self.runs else ()

    @cached_property
    def plot(self) -> "Figures":
        """The figures of the report by name, each a matplotlib Figure: `law.plot.isoflop()`; `dir(law.plot)`."""
        from gptjax.laws.drawing.figures import Figures

        said, score = (_optional(self.home, name) for name in ("prediction.json", "prediction_score.json"))
        curves = self.curves or _curves_beside(self.home)
        return Figures(self.analysis, self.runs, curves, said.get("prediction"), score.get("score"))

    def predict(self, **asked: Any) -> "Prediction":
        """Predict the best run of a budget, size, number of tokens or loss; takes what `gptjax.predict` takes."""
        from gptjax.lab.forecasts import predict

        return predict(self, **asked)

    def table(self) -> Frame:
        """Give a row for each approach: status, exponents with 95 % intervals, coefficients, rows used."""
        return Frame(summary(self.analysis))

    def to_json(self) -> Json:
        """Give the object of law.json."""
        return self.analysis.to_json()

    def save(self, path: str | Path) -> None:
        """Write law.json, as `gptjax fit --json` does; `gptjax.read_law` reads it back."""
        writable(Path(path))
        write_json(Path(path), self.to_json())

    def __str__(self) -> str:
        return as_text(self.quote)

    def __repr__(self) -> str:  # all of the analysis would fill pages
        return f"{self}\n{self.table()!r}"

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(warning)}</p>" for warning in self.warnings)
        return law_html(self.analysis) + said


def _optional(home: Path | None, name: str) -> Json:
    return read_json(home / name) if home and (home / name).is_file() else {}


def _curves_beside(home: Path | None) -> list[Curve]:
    """Read the training curves of a sweep's directory; none where it has no such file."""
    return read_curves(home / "curves.csv") if home and (home / "curves.csv").is_file() else []


def read_fitted(source: str | Path) -> FittedLaw:
    """Read a law from law.json, or from a directory that has one, and then with its rows.

    Raises BadInput for what holds no law, or the laws of several arms.
    """
    path = Path(source)
    home = path if path.is_dir() else None
    law = read_law(str(source))
    runs = read_runs(path / "runs.csv") if home and (path / "runs.csv").is_file() else None
    return FittedLaw(law, runs, str(source), home)


@dataclass(frozen=True)
class FittedArms:
    """The laws of a table's arms, each by the value of a column, and how they compare."""

    found: compare.Arms
    runs: Mapping[str, Runs] = field(repr=False)

    @property
    def by(self) -> str:
        """The column that tells the arms apart."""
        return self.found.by

    @cached_property
    def arms(self) -> dict[str, FittedLaw]:
        """The law of each arm."""
        return {name: FittedLaw(law, self.runs.get(name), name) for name, law in self.found.arms.items()}

    @property
    def compared(self) -> list[compare.Compared]:
        """How much compute each other arm needs for the loss of the best one."""
        return self.found.compared

    @property
    def plot(self) -> "ArmFigures":
        """The figure of the arms: `plot.arms()`."""
        from gptjax.laws.drawing.figures import ArmFigures

        return ArmFigures(self.found, self.runs)

    def __getitem__(self, arm: str) -> FittedLaw:
        if arm not in self.arms:
            raise BadInput(f"there is no arm {arm!r}; there are {', '.join(self.arms)}")
        return self.arms[arm]

    def table(self) -> Frame:
        """Give a row for each approach of each arm."""
        return Frame([{self.by: name, **row} for name, law in self.found.arms.items() for row in summary(law)])

    def to_json(self) -> Json:
        """Give the object that `save` writes."""
        return self.found.to_json()

    def save(self, path: str | Path) -> None:
        """Write the laws and their comparison, as `gptjax fit --by COLUMN --json` does."""
        writable(Path(path))
        write_json(Path(path), self.to_json())

    def __str__(self) -> str:
        return "\n".join(map(compare.describe, self.compared))

    def __repr__(self) -> str:
        return f"{self}\n{self.table()!r}"

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(compare.describe(one))}</p>" for one in self.compared)
        return f"<div>{said}{self.table()._repr_html_()}</div>"
