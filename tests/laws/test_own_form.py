"""A form of the law that stands in this file alone is the headline: fitted, doubted, forecast, drawn and planned with.

Its loss reads a third column of the table, as a law with an annealing term does. Nothing in gptjax/ knows it.
"""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from gptjax.cli import main
from gptjax.errors import BadInput
from gptjax.laws.analysis import fit_all
from gptjax.laws.checks import read_runs
from gptjax.laws.drawing.report import write_report
from gptjax.laws.fit import Choices
from gptjax.laws.forecaster import forecaster, read_forecaster
from gptjax.laws.forms import FORMS, form_of, grid
from gptjax.laws.law import Law
from gptjax.laws.parametric import parametric
from gptjax.laws.planning.design import propose
from gptjax.laws.planning.extension import next_cells
from gptjax.laws.planning.precision import standard_errors
from gptjax.laws.predict import describe, predict
from gptjax.laws.record import Analysis
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import Runs
from helpers import ROOT

OPTIMIZED = True


@dataclass(frozen=True)
class AnnealedLaw(Law):
    """L = E + A/N^alpha + B/D^beta - K S: a lower loss the more annealing S a run had (after arXiv 2408.11029)."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    K: float

    columns: ClassVar = ("params", "tokens", "annealing")
    logs: ClassVar = ("A", "B", "E", "K")

    def loss(self, params, tokens, annealing):
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta - self.K * annealing


STARTS = grid((3, 6), (3, 6), (0.3,), (0.3, 0.5), (0.3, 0.5), (-3, -1))
ANNEALED = form_of(AnnealedLaw, "annealed", STARTS)
PLANTED = AnnealedLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42, K=0.2)
OF_N_AND_D = PLANTED.held({"annealing": 0.5})
N, D = ladder(OF_N_AND_D, (1e11, 3e11, 1e12, 3e12))
S = np.tile([0.0, 1.0, 0.5, 0.5], 7)
CHOSEN = Choices(form=ANNEALED, bootstrap=80)


def planted(noise: float = 0.003, seed: int = 0) -> Runs:
    return simulate(PLANTED, N, D, noise=noise, seed=seed, extra={"annealing": S})


@pytest.fixture
def known(monkeypatch):
    """Give the form a row in the table of forms."""
    monkeypatch.setitem(FORMS, "annealed", ANNEALED)


@pytest.fixture(scope="module")
def law() -> Analysis:
    return fit_all(planted(), CHOSEN, approaches=["parametric"], tables=False)


def test_a_form_of_ones_own_is_exact_without_noise():
    fit = parametric(planted(noise=0), CHOSEN)
    assert fit.status == "ok" and fit.extra == {"annealing": 0.5}
    assert [getattr(fit.law, name) for name in fit.form.names] == pytest.approx([*vars(PLANTED).values()], rel=1e-5)
    truth = OF_N_AND_D.optimum(flops=1e12)
    assert fit.plane.optimum(flops=1e12).params == pytest.approx(truth.params, rel=1e-4)
    ignored = parametric(planted(noise=0), Choices())
    assert ignored.noise > 0.02 > fit.noise  # without its column, what annealing does is taken for noise


def test_its_coefficients_and_exponents_have_intervals_that_hold_the_truth(law):
    fit = law.parametric
    assert fit.ok, fit.reasons
    low, high = fit.a_interval
    a = 0.42 / 0.79  # K S is the same for every N and D, and leaves the optimum where it was
    assert low < a < high < low + 0.25 and fit.a == pytest.approx(a, abs=0.05)
    for name in ("E", "alpha", "beta", "K"):
        ends = fit.coefficients[name].interval
        assert ends[0] < getattr(PLANTED, name) < ends[1], name
        profiled = fit.profile[name].interval
        assert profiled[0] < fit.coefficients[name].value < profiled[1], name
    assert len(fit.influence["row"].a) == len(N)


def test_what_is_written_of_it_is_read_back(known, law):
    content = law.to_json()
    assert content["settings"]["form"] == content["approaches"]["parametric"]["form"] == "annealed"
    assert Analysis.from_json(json.loads(json.dumps(content, allow_nan=False))).to_json() == content
    content["settings"]["form"] = "cubic"
    with pytest.raises(BadInput, match="the file that makes it"):
        Analysis.from_json(content)


def test_it_forecasts_where_its_further_column_is_held(known, law):
    f = forecaster(law)
    truth = OF_N_AND_D.optimum(flops=1e13)
    said = predict(f, flops=1e13)
    assert said["held"] == {"annealing": 0.5} and "annealing = 0.5" in describe(said)
    for name in ("params", "tokens"):
        assert said[f"{name}_interval"][0] < getattr(truth, name) < said[f"{name}_interval"][1]
    assert said["loss_interval"][0] < truth.loss < said["loss_interval"][1]
    more = predict(forecaster(law, held={"annealing": 1.0}), flops=1e13)
    assert said["loss"] - more["loss"] == pytest.approx(0.5 * f.law.base.K) and more["params"] == said["params"]
    asked = predict(f, loss=truth.loss)
    assert asked["flops_interval"][0] < 1e13 < asked["flops_interval"][1]
    with pytest.raises(BadInput, match="cannot be given"):
        forecaster(law, held={"batch": 1.0})


def test_a_sweep_is_planned_with_it():
    plan = propose(OF_N_AND_D, 1e14, noise=0.01, runs=24)
    assert plan.runs <= 24 and plan.errors.a > 0
    alike = standard_errors(OF_N_AND_D, N, D, noise=0.01, target_flops=1e13)
    twice = standard_errors(OF_N_AND_D, np.tile(N, 4), np.tile(D, 4), noise=0.01, target_flops=1e13)
    for name in ("a", "params", "loss"):
        assert getattr(twice, name) == pytest.approx(getattr(alike, name) / 2, rel=1e-2)
    more = next_cells(OF_N_AND_D, N, D, 1e13, noise=0.01)
    assert more.cells and more.after.a < more.before.a


def write(path: Path, runs: Runs) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "params", "tokens", "loss", "annealing", "note"])
        writer.writerows(zip(runs.run, runs.params, runs.tokens, runs.loss, S, ["x"] * len(S), strict=True))


def test_its_column_is_read_from_a_table_and_one_that_is_missing_is_named(tmp_path):
    write(tmp_path / "runs.csv", planted())
    runs = read_runs(tmp_path / "runs.csv")
    assert parametric(runs, CHOSEN).theta == pytest.approx(parametric(planted(), CHOSEN).theta, rel=1e-6)
    with pytest.raises(BadInput, match=r"no column 'annealing'.*note"):
        parametric(replace(runs, cells={"note": runs.cells["note"]}), CHOSEN)
    with pytest.raises(BadInput, match="annealing , which is not a number"):
        parametric(replace(runs, cells={"annealing": np.array([""] * len(runs))}), CHOSEN)
    same = replace(runs, cells={"annealing": np.array(["1"] * len(runs))})
    assert "one value in all rows" in parametric(same, CHOSEN).reasons[0]


def test_the_report_draws_it_and_the_command_line_forecasts_with_it(tmp_path, known, capsys):
    write(tmp_path / "runs.csv", planted())
    write_report(tmp_path, CHOSEN, sweeps=3)
    law = json.loads((tmp_path / "law.json").read_text())
    assert "annealed" in [entry["form"] for entry in law["forms"]] and law["coverage"]["parametric"]["fitted"] >= 2
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert {"contours", "residuals", "bootstrap", "profile", "influence", "loss_compute"} <= drawn
    page = (tmp_path / "report.html").read_text()
    assert "annealed" in page and "A/N^alpha" not in law["quote"]["law"]
    main(["predict", str(tmp_path), "--flops", "1e13", "--at", "annealing=1"])
    assert "annealing = 1," in capsys.readouterr().out
    main(["plan", "--flops", "1e13", "--law", str(tmp_path), "--table", str(tmp_path)])
    assert "after" in capsys.readouterr().out
    assert read_forecaster(str(tmp_path)).held == {"annealing": 0.5}


def test_the_file_of_the_documentation_is_fitted_from_the_command_line(tmp_path, capsys):
    before = dict(FORMS)
    page = (ROOT / "docs" / "laws.md").read_text()
    (tmp_path / "own.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    write(tmp_path / "runs.csv", planted())
    law, form = tmp_path / "law.json", str(tmp_path / "own.py")
    main(["fit", str(tmp_path / "runs.csv"), "--form", form, "--bootstrap", "50", "--json", str(law)])
    assert "K 0." in capsys.readouterr().out and json.loads(law.read_text())["settings"]["form"] == "annealed"
    FORMS.clear()
    FORMS.update(before)
    with pytest.raises(SystemExit):
        main(["predict", str(law), "--flops", "1e13"])
    assert "form 'annealed' is not known" in capsys.readouterr().err
    main(["predict", str(law), "--form", form, "--flops", "1e13"])
    assert "annealing = 0.5" in capsys.readouterr().out
    FORMS.clear()
    FORMS.update(before)


def test_a_form_that_is_not_known_or_has_no_optimum_is_one_line():
    with pytest.raises(BadInput, match="form 'cubic' is not known; use one of 'chinchilla',"):
        Choices(form="cubic")
    with pytest.raises(BadInput, match="no optimum of N and D"):
        Choices(form="power law in flops")


def test_a_column_of_the_recipe_that_a_form_reads_makes_cells_of_its_own():
    runs = simulate(PLANTED, np.repeat(N, 2), np.repeat(D, 2), noise=0, seed=0,
                    extra={"annealing": np.zeros(2 * len(N)), "batch": np.tile([8.0, 16.0], len(N))})  # fmt: skip
    assert len(runs.tuned()) == len(N) and len(runs.tuned(("batch",))) == 2 * len(N)


def test_a_draw_that_went_astray_has_no_optimum_and_raises_nothing():
    rng = np.random.default_rng(0)
    wild = np.concatenate([rng.normal(0, 10.0**k, (40, 6)) for k in range(5)])
    found = ANNEALED.optima(np.vstack([PLANTED.theta, wild]), (1e11, 3e12), {"annealing": 0.5})
    assert np.isnan(found).any() and found[0, :, 1] == pytest.approx([0.42 / 0.79, 0.37 / 0.79], abs=1e-6)
