"""Rows of one training run are recognised where the evidence is good, and drawn together; odd rows are named."""

from dataclasses import replace

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.laws.approaches import BY_NAME, bootstrap
from gptjax.laws.checks import read_runs
from gptjax.laws.fit import Choices
from gptjax.laws.isoflop import isoflop
from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.rows import law_errors
from gptjax.laws.simulate import simulate
from gptjax.laws.uncertainty import noise_of_one, resampled
from helpers import PUBLISHED

SIZES, POINTS = 20, 15
SIZE, POINT = (index.ravel() for index in np.indices((SIZES, POINTS)))
N = np.geomspace(2e7, 2e9, SIZES)[SIZE]
D = N * np.geomspace(2, 60, POINTS)[POINT]
EXACT = BESIROGLU_2024.loss(N, D)
OWN = EXACT * np.exp(0.004 * np.random.default_rng(0).standard_normal(len(N)))
SHARED = 0.004 * np.random.default_rng(1).standard_normal(SIZES)[SIZE]
CURVES = EXACT * np.exp(SHARED + 0.0007 * np.random.default_rng(2).standard_normal(len(N)))

NAMES = {
    "shared": [f"r{i}" for i in SIZE],
    "steps": [f"r{i}/step{100 * j + 100}" for i, j in zip(SIZE, POINT, strict=True)],
    "numbers": [f"r{i}-{j}" for i, j in zip(SIZE, POINT, strict=True)],
    "own": [f"x{i * 7919 % 1000}" for i in range(len(N))],
}


def write(path, columns):
    lines = zip(*(map(str, column) for column in columns.values()), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(line) for line in lines)]) + "\n")
    return path


def read(tmp_path, loss, **more):
    columns = {"params": N.tolist(), "tokens": D.tolist(), "loss": loss.tolist(), **more}
    return read_runs(write(tmp_path / "t.csv", columns))


@pytest.mark.parametrize(
    ("loss", "more", "curves", "evidence"),
    [
        (OWN, {"run": NAMES["shared"]}, True, "by column run"),
        (OWN, {"run": NAMES["steps"]}, True, "by the steps in their names"),
        (OWN, {"step": POINT * 100 + 100}, True, "by column step"),
        (OWN, {"run": NAMES["own"], "step": POINT * 100 + 100}, False, ""),  # each row is named as a run
        (OWN, {"run": NAMES["numbers"]}, False, ""),
        (OWN, {"run": NAMES["own"]}, False, ""),
        (OWN, {}, False, ""),  # a grid with one size at many D
        (EXACT, {}, False, ""),
        (CURVES, {}, True, "by errors that rows of one size share"),
        (CURVES, {"run": NAMES["numbers"]}, True, "by the numbers in their names and errors"),
        (CURVES, {"run": [*"abcdefghij" * 30]}, None, ""),
        (EXACT * (N / 1e8) ** 0.01 * (D / N) ** 0.003, {}, False, ""),  # the law fits badly, alike for one size
    ],
)
def test_rows_of_one_run_are_recognised_where_the_evidence_is_good(tmp_path, loss, more, curves, evidence):
    if curves is None:
        with pytest.raises(BadInput, match=r"are both run '.' and differ in params"):
            read(tmp_path, loss, **more)
        return
    runs = read(tmp_path, loss, **more)
    said = [warning for warning in runs.warnings if "rows are of" in warning]
    assert (runs.curve is not None) == curves == bool(said)
    assert len(set(runs.run)) == len(runs)
    if curves:
        assert f"{len(N)} rows are of {SIZES} runs, {evidence}" in said[0]
        assert (np.unique(runs.curve, return_inverse=True)[1] >= 0).all()
        assert all(len(set(runs.curve[i == SIZE])) == 1 for i in range(SIZES)) and len(set(runs.curve)) == SIZES


def test_rows_of_runs_with_names_of_their_own_that_err_alike_are_told_of(tmp_path):
    runs = read(tmp_path, CURVES, run=[f"run {i * 37 % 997} of many" for i in range(len(N))])
    assert runs.curve is None and "rows of one size err alike" in runs.warnings[0]


@pytest.mark.parametrize(
    ("second", "fact"),
    [({"params": 2e6}, "params"), ({"loss": 2.9}, "loss"), ({"seed": 1, "tokens": 2e8}, "seed"), ({"lr": 2}, "lr")],
)
def test_rows_of_one_run_that_contradict_each_other_are_refused(tmp_path, second, fact):
    first = {"run": "a", "params": 1e6, "tokens": 1e8, "loss": 3.0, "seed": 0, "lr": 1}
    rows = [first, first | second]
    path = write(tmp_path / "t.csv", {name: [row[name] for row in rows] for name in first})
    with pytest.raises(BadInput, match=f"lines 2 and 3 are both run 'a' and differ in {fact}"):
        read_runs(path)
    rows[1] = first | {"tokens": 2e8, "loss": 2.9}
    runs = read_runs(write(path, {name: [row[name] for row in rows] for name in first}))
    assert runs.run == ("a@100000000.0", "a@200000000.0") and runs.curve.tolist() == [0, 0]


def test_copies_and_outliers_are_named_and_kept(tmp_path):
    loss = OWN.copy()
    loss[40] *= 1.2
    clean = read(tmp_path, OWN, run=NAMES["own"])
    assert clean.warnings == ()
    columns = {"run": NAMES["own"], "params": N.tolist(), "tokens": D.tolist(), "loss": loss.tolist()}
    for name, value in zip(columns, ("again", N[3], D[3], loss[3]), strict=True):
        columns[name] = [*columns[name], value]
    runs = read_runs(write(tmp_path / "t.csv", columns))
    assert len(runs) == len(N) + 1 and runs.dropped == ()
    copies, far = runs.warnings
    assert (
        f"1 row repeats the loss of another row of the same cell to six digits: 'again' that of '{runs.run[3]}'"
        in copies
    )
    assert f"1 row lies far from the law of the others, and no row is left out for it: '{runs.run[40]}' (+1" in far
    rounded = {"run": ["a", "b"], "params": [1e6] * 2, "tokens": [1e8] * 2, "loss": [3.12, 3.12], "seed": [0, 1]}
    assert read_runs(write(tmp_path / "t.csv", rounded)).warnings == ()  # chance, at two decimals


def test_the_law_of_most_is_no_matter_of_outliers():
    loss = EXACT.copy()
    loss[::20] *= 1.5
    runs = replace(simulate(BESIROGLU_2024, N, D, noise=0, seed=0), loss=loss)
    errors = law_errors(runs)
    assert np.abs(np.delete(errors, np.s_[::20])).max() < 0.002 and errors[::20] == pytest.approx(
        np.log(1.5), abs=0.002
    )


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published points are not beside this checkout")
def test_the_rows_that_besiroglu_et_al_left_out_are_the_outliers():
    runs = read_runs(PUBLISHED)
    highest = {runs.run[i] for i in np.argsort(-runs.loss)[:5]}
    (far,) = (warning for warning in runs.warnings if "far from the law" in warning)
    assert "5 rows lie far" in far and all(name in highest for name in far.split("'")[1::2]) and runs.curve is None


def test_the_bootstrap_draws_whole_runs_and_intervals_are_as_wide_as_they_must_be():
    runs = replace(simulate(BESIROGLU_2024, N, D, noise=0, seed=0), loss=CURVES)
    known = replace(runs, curve=SIZE)
    drawn = resampled(known, np.random.default_rng(0), "runs")
    assert len(drawn) == len(N) and all(count % POINTS == 0 for count in np.bincount(SIZE[drawn]))
    assert known.take(np.array([0, 299])).curve.tolist() == [0, SIZES - 1]
    widths = {}
    for name in ("parametric", "isoflop"):
        for of in (runs, known):
            fit = BY_NAME[name].fit(of, Choices(), None, True)
            draws = bootstrap(of, fit, Choices(bootstrap=100), noise=noise_of_one(of, isoflop(of)))
            ends = draws.interval(draws.params[:, 1])
            widths[name, of.curve is not None] = np.ptp(ends)
            if name == "parametric":
                assert draws.resample == ("runs" if of is known else "rows")
        assert widths[name, True] > 1.15 * widths[name, False]
    assert Choices(cluster="rows").resample(known) == "rows" and Choices(cluster="runs").resample(runs) == "rows"
    noise = noise_of_one(known, isoflop(known))
    assert noise.shared > 0.8
    draws = noise.draw(np.random.default_rng(0), 2000, len(N))
    assert np.corrcoef(draws[:, 0], draws[:, 1])[0, 1] == pytest.approx(noise.shared, abs=0.05)
    assert abs(np.corrcoef(draws[:, 0], draws[:, -1])[0, 1]) < 0.1
