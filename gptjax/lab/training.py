"""Runs and sweeps from Python: what `gptjax train` and `gptjax sweep` do, without what they set for their process."""

import csv
import importlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gptjax.config import RunConfig, override
from gptjax.errors import BadInput
from gptjax.files import read_json
from gptjax.lab.fitted import FittedArms, FittedLaw, read_fitted
from gptjax.lab.places import Named, existing, load, place_of
from gptjax.laws.checks import read_runs
from gptjax.laws.codec import Json
from gptjax.laws.compare import Arms
from gptjax.laws.frames import Frame
from gptjax.laws.table import value_of
from gptjax.run.loop import train as train_run
from gptjax.run.result import Result
from gptjax.sweep.execute import Executor
from gptjax.sweep.loop import run_sweep
from gptjax.sweep.plan import SweepConfig

if TYPE_CHECKING:
    from gptjax.laws.drawing.figures import ArmFigures, Figures

# Besides this machine's own: a module with `execute(plan, directory, resources)` and `Resources`, and what it needs.
EXECUTORS = {"slurm": ("gptjax.sweep.slurm", "submitit"), "ray": ("gptjax.sweep.on_ray", "ray")}
INSTEAD = {  # of a field of the base run that the sweep sets for each of its runs
    "base.optim.lr": "lr",
    "base.optim.b2": "b2",
    "base.optim.warmup": "warmup_tokens",
    "base.seed": "seeds",
    "base.batch": "batch_tokens",
    "base.steps": "budgets",
    "base.model": "sizes, or shape in the file",
}
C = TypeVar("C", RunConfig, SweepConfig)


def train(config: RunConfig | Named, directory: Named, *, profile: bool = False, **overrides: Any) -> Result:
    """Train a run in its directory, or go on where it stopped; a finished run is returned as it is.

    `config` is a RunConfig, or "FILE.py[:FUNCTION]" that returns one. Overrides set fields: steps=200, or
    **{"optim.lr": 3e-4} for one that lies deeper. `profile` records a few calls in profile/. A run that diverges is a
    result too, of status "failed". Raises BadInput for what the config cannot be, Preempted after SIGTERM and
    KeyboardInterrupt after Ctrl-C, once the last step is saved.
    """
    run = config if isinstance(config, RunConfig) else load(_text(config, "a RunConfig"), RunConfig, "run")
    return train_run(changed(run, overrides), place_of(directory), profile=profile)


def sweep(
    config: SweepConfig | Named,
    directory: Named,
    *,
    executor: str = "local",
    workers: int | None = None,
    resources: Mapping[str, Any] | Sequence[str] = (),
    **overrides: Any,
) -> "FinishedSweep":
    """Plan, train, fit, predict, score and report a sweep; called again, it does what is pending.

    `config` is a SweepConfig, or "FILE.py[:FUNCTION]" that returns one; overrides set its fields, as holdout=0 or
    **{"base.log_every": 5}. `executor` is local (with `workers` processes, by default the sweep's), slurm or ray (with
    `resources` for each run, as {"minutes": 120}). Raises BadInput for what the sweep cannot be. Several workers are
    new processes that import the script: call this under `if __name__ == "__main__":` there, or in a notebook.
    """
    planned = config if isinstance(config, SweepConfig) else load(_text(config, "a SweepConfig"), SweepConfig, "sweep")
    refuse_what_a_sweep_sets(overrides)
    planned = changed(planned, overrides)
    asked = [f"{name}={value}" for name, value in resources.items()] if isinstance(resources, Mapping) else resources
    execute = executor_of(executor, planned, workers, asked)
    place = place_of(directory)
    return FinishedSweep(place, run_sweep(planned, place, execute))


def _text(named: Any, wanted: str) -> str:
    if not isinstance(named, str | PathLike):
        raise BadInput(f"a value of type {type(named).__name__} is not {wanted}; give one, or a Python file with one")
    return str(named)


def changed(config: C, overrides: Mapping[str, Any]) -> C:
    """Set fields of a config: values that JSON can hold by a dotted path, others, as configs and functions, whole."""
    whole, assigned = {}, []
    for name, value in overrides.items():
        try:
            assigned.append(f"{name}={json.dumps(value)}")
        except TypeError:
            whole[name] = value
    if unknown := sorted(set(whole) - {each.name for each in fields(config)}):
        raise BadInput(f"{unknown[0]}: a value of type {type(whole[unknown[0]]).__name__} sets a field of the config "
                       "itself, and it has none of this name; set one, or give a number or a text")  # fmt: skip
    try:
        return override(replace(config, **whole), assigned)
    except BadInput as error:
        raise BadInput(str(error).replace("--set ", "")) from None


def refuse_what_a_sweep_sets(overrides: Iterable[str], flag: str = "") -> None:
    """Refuse fields of the base run that the sweep sets for each of its runs; `flag` is what the user wrote before."""
    for path in overrides:
        for name, remedy in INSTEAD.items():
            if path == name or path.startswith(f"{name}."):
                raise BadInput(f"{flag}{path}: a sweep sets {name} for each of its runs; set {remedy}")


def executor_of(name: str, sweep: SweepConfig, workers: int | None = None, resources: Sequence[str] = ()) -> Executor:
    """Give an executor by name, with what its runs ask for; BadInput where its package is missing."""
    if name not in ("local", *EXECUTORS):
        raise BadInput(f"executor {name!r} is not known; use local, {' or '.join(EXECUTORS)}")
    if workers is not None and workers < 1:
        raise BadInput(f"workers {workers} must be at least 1")
    if name == "local":
        from gptjax.sweep.local import execute

        if resources:
            raise BadInput(f"resource {resources[0]} is for executor slurm or ray; local takes workers")
        return partial(execute, workers=sweep.workers if workers is None else workers, pack=sweep.pack)
    if workers is not None:
        raise BadInput(f"workers {workers} is for executor local; {name} takes resources")
    module, package = EXECUTORS[name]
    if importlib.util.find_spec(package) is None:
        raise BadInput(f"executor {name} needs {package}; make install EXTRAS=test,{name}")
    engine = importlib.import_module(module)
    try:
        asked = override(engine.Resources(), list(resources))
    except BadInput as error:
        raise BadInput(str(error).replace("--set", "resource")) from None
    return partial(engine.execute, resources=asked)


@dataclass(frozen=True)
class FinishedSweep:
    """A sweep and where it stands; everything is in its directory already, so there is nothing to save."""

    directory: Path
    report: Path  # report.html, or the figure of the arms

    @property
    def law(self) -> FittedLaw:
        """The law of its report; BadInput where it has several arms."""
        return read_fitted(self.directory)

    @property
    def arms(self) -> FittedArms:
        """The laws of its arms; BadInput where it has one ladder alone."""
        found = Arms.from_json(read_json(self.directory / "law.json"), str(self.directory / "law.json"))
        return FittedArms(found, read_runs(self.directory / "runs.csv").arms(found.by))

    @property
    def plot(self) -> "Figures | ArmFigures":
        """The figures of its law, or of its arms."""
        return self.arms.plot if self._has_arms else self.law.plot

    @property
    def prediction(self) -> Json:
        """The forecast of its held-out run, as it was registered; empty where there is none."""
        return self._optional("prediction.json").get("prediction", {})

    @property
    def score(self) -> Json:
        """What came of the forecast; empty where there is none."""
        return self._optional("prediction_score.json").get("score", {})

    def table(self) -> Frame:
        """Give the table of runs: a row for each with its raw facts, as runs.csv has them."""
        with existing(self.directory, "runs.csv").joinpath("runs.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        texts = {name for row in rows for name, cell in row.items() if isinstance(value_of(cell or "0"), str)}
        return Frame([{n: (c if n in texts else value_of(c)) if c else None for n, c in row.items()} for row in rows])

    @property
    def _has_arms(self) -> bool:
        return (self.directory / "arms").is_dir()

    def _optional(self, name: str) -> Json:
        return read_json(self.directory / name) if (self.directory / name).is_file() else {}

    def _repr_html_(self) -> str:
        shown = (self.arms if self._has_arms else self.law)._repr_html_()
        said = ""
        if self.score:
            verdict = {None: "", True: ", inside its interval", False: ", outside its interval"}[self.score["inside"]]
            said = (
                f"<p>Its held-out run was predicted to reach {self.score['predicted']:.4f} nats a token and reached "
                f"{self.score['measured']:.4f}{verdict}.</p>"
            )
        return f"<div>{shown}{said}<p>{escape(self.report.name)} is in the sweep's directory.</p></div>"
