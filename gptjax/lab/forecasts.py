"""Forecasts of runs from a law: what `gptjax predict` and `law.predict` do, and what they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from gptjax.devices import devices as read_devices
from gptjax.errors import BadInput
from gptjax.files import write_json
from gptjax.lab.fitted import FittedLaw
from gptjax.lab.forms import form_of
from gptjax.lab.places import writable
from gptjax.laws import forecaster as forecasting
from gptjax.laws import predict as laws
from gptjax.laws.checks import read_runs
from gptjax.laws.codec import Json
from gptjax.laws.fit import Choices
from gptjax.laws.frames import Frame
from gptjax.laws.published import PUBLISHED
from gptjax.laws.record import Analysis, read_law
from gptjax.laws.registered import held_out_miss, register
from gptjax.laws.table import Runs
from gptjax.sweep import advice as advising

SERVED = "The run of this loss that costs least to train and to serve together, whatever its training costs"
BY_ITS_OWN = "What follows is by the parametric law, which has an optimum of its own at that budget"
CONSTRAINED = "The best run of this budget where tokens beyond the unique ones are repeated; below one epoch none are"


@dataclass(frozen=True)
class Prediction:
    """A forecast: each key of `prediction` is an attribute, as `said.loss_interval`; `dir` lists them.

    An interval is of 95 %, or None where it is unknown, and an end of None is unbounded.
    """

    prediction: Json  # the run, as the JSON of `gptjax predict` has it
    served: Json | None = None  # the run that is cheapest to train and to serve, where tokens to be served were given
    constrained: Json | None = None  # the best run of its budget where data repeats, where unique tokens were given
    advice: Json = field(
        default_factory=dict, repr=False
    )  # nearest published shapes, rates and batches, time and price
    doubt: str = ""  # by how much the run that the sweep held out missed its forecast
    by_its_own_law: Json | None = field(default=None, repr=False)  # the parametric optimum, where this is isoFLOP's

    def __getattr__(self, name: str) -> Any:
        said = self.__dict__.get("prediction", {})
        if name in said:
            return said[name]
        raise AttributeError(f"a prediction has no {name!r}; it has {', '.join(said)}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.prediction})

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.prediction["loss"]

    @property
    def params(self) -> float:
        """Parameters N, counted as `convention` says."""
        return self.prediction["params"]

    @property
    def tokens(self) -> float:
        """Training tokens D."""
        return self.prediction["tokens"]

    @property
    def flops(self) -> float:
        """Training FLOPs C."""
        return self.prediction["flops"]

    @property
    def loss_interval(self) -> list[float] | None:
        """The 95 % interval of the loss of one run."""
        return self.prediction["loss_interval"]

    def table(self) -> Frame:
        """Give a row for each number of each run: the quantity, its value, and the ends of its 95 % interval."""
        runs = {"prediction": self.prediction, "served": self.served, "constrained": self.constrained}
        return Frame([row for name, said in runs.items() if said for row in _rows(name, said)])

    def to_json(self) -> Json:
        """Give the object that `save` writes."""
        extra = {"served": self.served, "constrained": self.constrained}
        return {
            "prediction": self.prediction,
            **{name: said for name, said in extra.items() if said is not None},
            "advice": self.advice,
        }

    def save(self, path: str | Path) -> None:
        """Write the forecast and its advice, as `gptjax predict --json` does."""
        writable(Path(path))
        write_json(Path(path), self.to_json())

    def register(self, path: str | Path) -> None:
        """Write the forecast with its time and a hash, before its run is trained; BadInput where the file exists."""
        writable(Path(path))
        register(self.prediction, Path(path))

    def __str__(self) -> str:
        shown = [laws.describe(self.prediction)]
        if self.doubt:
            shown.append(f"doubt     {self.doubt}")
        if self.by_its_own_law is not None:
            own = laws.describe(self.by_its_own_law)
            shown.append(f"{BY_ITS_OWN}:\n{own}")
        for said, title in ((self.served, SERVED), (self.constrained, CONSTRAINED)):
            if said is not None and said is not self.prediction:
                shown.append(f"{title}:\n{laws.describe(said)}")
        return "\n\n".join(shown)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        more = ""
        if self.advice:
            advised = escape(advising.describe(self.advice))
            more = f"<details><summary>what to train</summary><pre>{advised}</pre></details>"
        return f"<div><pre>{escape(str(self))}</pre>{more}</div>"


def _rows(run: str, said: Json) -> list[dict[str, Any]]:
    """List the numbers of a run with their intervals."""
    rows = []
    for name, value in said.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "rows":
            low, high = said.get(f"{name}_interval") or (None, None)
            rows.append({"run": run, "quantity": name, "value": float(value), "low": low, "high": high})
    return rows


def predict(
    law: FittedLaw | Analysis | str | Path,
    *,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    unique_tokens: float | None = None,
    inference_tokens: float | None = None,
    at: Mapping[str, float] | None = None,
    form: str = "",
    force: bool = False,
    devices: str | Path | None = None,
    device: Sequence[str] | None = None,
    count: int = 8,
) -> Prediction:
    """Predict the best run of a budget, a size, a number of tokens or a loss, or the loss of a given (N, D).

    `law` is what `fit` gave, a law.json, a directory with one, or the name of a published law. Give one of `flops`
    (training FLOPs), `params`, `tokens` and `loss` (nats a token), or `params` and `tokens` together. `unique_tokens`
    lets data repeat beyond so many, `inference_tokens` adds the cost of serving so many, `at` holds further columns of
    the law at values, `form` is the file that makes its form, and `force` forecasts from a degenerate law too. The
    advice prices `count` of each `device` of the table `devices` (default: devices.csv).
    Raises BadInput for a law that may not forecast and for what no run can have; docs/laws.md gives the sources.
    """
    if form:
        Choices(form=form_of(form))
    source = source_of(law)
    forecaster = source.forecaster(force, dict(at or {}))
    asked = {"flops": flops, "params": params, "tokens": tokens, "loss": loss, "unique_tokens": unique_tokens}
    said = laws.predict(forecaster, **asked)
    served = constrained = None
    if inference_tokens is not None:
        served = laws.serve(forecaster, said["loss"], inference_tokens)
    exact = "unique_tokens" in said  # the run itself was given, and its loss allows for what is repeated
    if unique_tokens is not None:
        constrained = said if exact else laws.constrain(forecaster, said["flops"], unique_tokens)
    hyper = source.law.hyper if source.law else None
    advised = advising.advise(
        said["params"],
        said["tokens"],
        said["flops"],
        hyper=hyper,
        runs=source.runs() if hyper is None else None,
        devices=read_devices(None if devices is None else Path(devices)),
        names=device,
        count=count,
        non_embedding=said["params"] if said["convention"].startswith("6n_non_embedding") else None,
    )
    another = any(one is not None and one is not said for one in (served, constrained))
    own = laws.by_its_own_law(forecaster, said["flops"]) if another and said["optimum_from"] == "isoflop" else None
    return Prediction(said, served, constrained, advised, held_out_miss(source.home), own)


@dataclass(frozen=True)
class LawSource:
    """A law to forecast from, as it was named."""

    name: str
    law: Analysis | None  # None: a published law
    fitted: FittedLaw | None
    home: str  # where a held-out run may have been scored

    def forecaster(self, force: bool, held: dict[str, float]) -> forecasting.Forecaster:
        if self.law is None:
            return forecasting.read_forecaster(self.name, force, held)
        try:
            return forecasting.forecaster(self.law, force, self.name, held)
        except forecasting.NoForecast as refusal:
            raise forecasting.NoForecast(f"{self.name}: {refusal}") from None

    def runs(self) -> Runs | None:
        """Give the runs of the law's own sweep, where there is one."""
        if self.fitted is not None and self.fitted.runs is not None:
            return self.fitted.runs
        table = Path(self.home or self.name) / "runs.csv"
        return read_runs(table) if table.is_file() else None


def source_of(law: FittedLaw | Analysis | str | Path) -> LawSource:
    """Read what a law is given as: what `fit` gave, a law.json, a directory with one, or a published law's name."""
    if isinstance(law, FittedLaw):
        return LawSource(law.name, law.analysis, law, str(law.home or law.name))
    if isinstance(law, Analysis):
        return LawSource("law", law, None, "")
    if not isinstance(law, str | Path):
        raise BadInput(f"a value of type {type(law).__name__} is no law; give what fit gave, a law.json or a name")
    if str(law) in PUBLISHED:
        return LawSource(str(law), None, None, str(law))
    return LawSource(str(law), read_law(str(law)), None, str(law))
