"""The laws, from Python as from the shell: read a table, fit it, report, compare ladders, plan the next sweep."""

from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from tqdm import tqdm

from gptjax.errors import BadInput
from gptjax.files import read_json
from gptjax.lab.fitted import FittedArms, FittedLaw
from gptjax.lab.forms import form_of
from gptjax.lab.places import existing, place_of, tables_of
from gptjax.laws import compare as comparing
from gptjax.laws.analysis import fit_all, require_law
from gptjax.laws.approaches import BY_NAME
from gptjax.laws.checks import read_curves, read_runs
from gptjax.laws.codec import Json
from gptjax.laws.fit import Choices, Estimator, Resample, is_whole
from gptjax.laws.forms import Form
from gptjax.laws.frames import runs_of_frame
from gptjax.laws.quote import quote, read_forecast
from gptjax.laws.registered import score as score_prediction
from gptjax.laws.table import Curve, Runs

Table = Any  # Runs, a path, or a data frame: see `read`


class Chosen(TypedDict, total=False):
    """What an analyst may choose, by keyword: the fields of `laws.fit.Choices`, which says what each does."""

    convention: str
    form: str | Form
    drop_highest_loss: int
    loss: Estimator
    delta: float
    weights: Literal["equal", "noise"]
    interp: Literal["parabola", "akima"]
    window: int
    unfinished: bool
    bootstrap: int
    cluster: Resample
    seed: int


def choices_of(chosen: Chosen) -> Choices:
    """Make choices of keywords; BadInput names the one that is not known, and the nearest that is."""
    known = [each.name for each in fields(Choices)]
    for name in chosen:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the choices are {', '.join(known)}"
            raise BadInput(f"{name} is no choice of a fit; {hint}")
    given: dict[str, Any] = dict(chosen)
    if isinstance(form := given.get("form"), str):
        given["form"] = form_of(form)
    return Choices(**given)


def read(table: Table) -> Runs:
    """Read runs: a CSV or parquet file, a sweep's directory, a data frame, or a dict of columns.

    A frame is anything with __arrow_c_stream__ or __dataframe__, as of pandas, polars and pyarrow. It needs columns
    params, tokens and loss (nats a token) and a row per finished run; docs/laws.md lists what else is used. Raises
    BadInput naming file and line, or the frame's row, the value, and the remedy.
    """
    if isinstance(table, Runs):
        return table
    if isinstance(table, str | PathLike):
        place = place_of(table)
        return read_runs(tables_of(place) / "runs.csv" if place.is_dir() else place)
    return runs_of_frame(table)


def _sweep_of(table: Table) -> Path | None:
    """Give the sweep's directory that a table names, if it names one."""
    if isinstance(table, str | PathLike) and (place := place_of(table)).is_dir():
        return place
    return None


@overload
def fit(
    table: Table,
    *,
    approaches: str | Sequence[str] = ...,
    curves: str | Path | Sequence[Curve] | None = ...,
    tables: bool = ...,
    coverage: int = ...,
    by: None = ...,
    sweep: Path | None = ...,
    **chosen: Unpack[Chosen],
) -> FittedLaw: ...


@overload
def fit(
    table: Table,
    *,
    approaches: str | Sequence[str] = ...,
    curves: str | Path | Sequence[Curve] | None = ...,
    tables: bool = ...,
    coverage: int = ...,
    by: str,
    sweep: Path | None = ...,
    **chosen: Unpack[Chosen],
) -> FittedArms: ...


def fit(
    table: Table,
    *,
    approaches: str | Sequence[str] = "all",
    curves: str | Path | Sequence[Curve] | None = None,
    tables: bool = True,
    coverage: int = 0,
    by: str | None = None,
    sweep: Path | None = None,
    **chosen: Unpack[Chosen],
) -> FittedLaw | FittedArms:
    """Fit the law of a table by three approaches, with 95 % intervals, as `gptjax fit` does.

    `table` is what `read` takes. `approaches` are names out of envelope, isoflop and parametric. `curves` are training
    curves for the envelope. `tables` adds the exponent under other choices, other forms of the law and cuts of compute,
    which take most of the time; without it the law is the same and less is known against it. `coverage` counts, over so
    many simulated sweeps, how often the intervals hold the truth. With `by`, the rows of each value of that column are
    fitted apart, and compared. `sweep` is the directory whose held-out run is quoted, by default the table's. Every
    other keyword is a field of `laws.fit.Choices`, as convention="6n_non_embedding" or loss="lsq-log".
    Raises BadInput where no approach gives a law, with what to add.
    """
    known = (*BY_NAME, "all")
    names = (approaches,) if isinstance(approaches, str) else tuple(approaches)
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"approach {unknown[0]!r} is not known; use one of {', '.join(BY_NAME)} or all")
    names = tuple(BY_NAME) if "all" in names or not names else names
    if not is_whole(coverage) or coverage < 0:
        raise BadInput(f"coverage {coverage} counts sweeps; give 0 or more")
    choices = choices_of(chosen)
    home = sweep or _sweep_of(table)
    read_of = read_curves(Path(curves)) if isinstance(curves, str | Path) else curves
    runs = read(table)
    if by is not None:
        if read_of:
            raise BadInput("curves are of one table's runs; fit arms without them")
        arms = comparing.fit_arms(runs, by, choices, approaches=names, tables=tables, sweeps=coverage)
        return FittedArms(arms, runs.arms(by))
    with tqdm(total=coverage, desc="coverage", unit="sweep", disable=None, leave=False) as bar:
        law = fit_all(runs, choices, approaches=names, curves=read_of, tables=tables, sweeps=coverage, done=bar.update)
    require_law(law)
    if home is not None:
        law = replace(law, quote=quote(law, read_forecast(home)))
    name = str(table) if isinstance(table, str | PathLike) else "law"
    return FittedLaw(law, runs, name, home, read_of or ())


def report(sweep: str | Path, *, coverage: int | None = None, title: str = "", **chosen: Unpack[Chosen]) -> Path:
    """Fit and draw a sweep's directory anew: law.json, figures/ and report.html, whose path is returned.

    `coverage` counts simulated sweeps (default: as many as the table's size affords). BadInput for a sweep of several
    arms, whose reports stand in arms/NAME.
    """
    from gptjax.laws.drawing.report import write_report  # and with it matplotlib, which a fit does without

    place = place_of(sweep)
    if coverage is not None and coverage < 0:
        raise BadInput(f"coverage {coverage} counts sweeps; give 0 or more")
    if (place / "arms").is_dir():
        raise BadInput(f"{place} holds a sweep of several arms; give the folder of one, as {place}/arms/NAME")
    with tqdm(total=coverage, desc="coverage", unit="sweep", disable=None, leave=False) as bar:
        return write_report(tables_of(place), choices_of(chosen), coverage, bar.update, title)


def score(prediction: str | Path, run: str | Path) -> Json:
    """Compare a registered prediction with its finished run, as `gptjax score` does; give what came of it.

    Writes PREDICTION_score.json beside the prediction. Raises BadInput where the file was altered since, or where the
    run is not the one predicted.
    """
    from gptjax.config import from_json
    from gptjax.laws.table import CONVENTIONS
    from gptjax.models.cost import params_by
    from gptjax.run.result import Result

    place = existing(place_of(run), "result.json", "a finished run")
    result = from_json(Result, read_json(place / "result.json"))
    if result.loss is None:
        raise BadInput(f"{place} failed ({result.reason}) and has no loss to score; train it again")
    said = read_json(Path(prediction))
    convention = str(said.get("prediction", {}).get("convention", "")) if isinstance(said, dict) else ""
    counted = CONVENTIONS.get(convention.partition(":")[0], ("total", ""))[0]
    return score_prediction(Path(prediction), result.loss, params_by(result.params)[counted], result.tokens)
