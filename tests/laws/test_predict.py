"""A law alone predicts runs with intervals, says when it should not, and its predictions can be held against it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.files import write_json
from gptjax.laws.analysis import fit_all
from gptjax.laws.fit import Choices
from gptjax.laws.forecast import forecast
from gptjax.laws.forecaster import NoForecast, forecaster, read_forecaster
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.predict import constrain, describe, predict, serve
from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.record import Analysis
from gptjax.laws.registered import held_out_miss, register, score
from gptjax.laws.simulate import ladder, simulate

OPTIMIZED = True
LAW = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
RUNS = simulate(LAW, *ladder(LAW, (1e11, 3e11, 1e12, 3e12)), noise=0.003, seed=0)


@pytest.fixture(scope="module")
def law() -> dict:
    return fit_all(RUNS, Choices(bootstrap=200), tables=False).to_json()


@pytest.mark.slow
def test_each_question_finds_the_planted_optimum_within_its_interval(law):
    best, f = LAW.optimum(flops=1e13), forecaster(Analysis.from_json(law))
    for name in ("flops", "params", "tokens", "loss"):
        said = predict(f, **{name: getattr(best, name)})
        assert said[name] == pytest.approx(getattr(best, name), rel=1e-12)
        for other in {"flops", "params", "tokens"} - {name}:
            low, high = said[f"{other}_interval"]
            assert low < getattr(best, other) < high, (name, other)
            assert said[other] == pytest.approx(getattr(best, other), rel=0.5)
        assert said["optimum_from"] == "isoflop"  # one optimum, whatever is asked
        assert said["loss_interval"][0] < LAW.loss(said["params"], said["tokens"]) < said["loss_interval"][1]
    exact = predict(f, params=200_000, tokens=8_000_000)
    assert exact["flops"] == 9.6e12 and exact["optimum_from"] == "as given" and exact["params_interval"] is None
    assert "nats a token" in describe(exact) and f"{exact['loss']:.4g}" in describe(exact)


def test_what_cannot_be_asked_is_one_line(law):
    f = forecaster(Analysis.from_json(law))
    for asked in (
        {},
        {"flops": 1e13, "loss": 2.0},
        {"flops": -1.0},
        {"params": math.nan},
        {"loss": 1.0},
        {"loss": 1e9},
    ):
        with pytest.raises(BadInput) as error:
            predict(f, **asked)
        assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="besiroglu-2024"):
        read_forecaster("no-such-law")
    with pytest.raises(BadInput, match="not a Chinchilla law"):
        constrain(read_forecaster("kaplan-2020"), 1e20, 1e9)


def test_a_published_law_predicts_without_intervals():
    said = predict(read_forecaster("besiroglu-2024"), flops=5.88e23)
    best = BESIROGLU_2024.optimum(flops=5.88e23)
    assert said["params"] == best.params and said["params_interval"] is None and said["times_largest_flops"] is None
    assert 15 < said["tokens_per_param"] < 21  # Besiroglu et al.: about 20 at Chinchilla's compute


def test_a_degenerate_law_forecasts_only_when_forced(law):
    rising = replace(RUNS, loss=3 * RUNS.params**0.05)
    bad = fit_all(rising, Choices(bootstrap=20), approaches=["parametric"], tables=False)
    assert bad.parametric and bad.parametric.status == "degenerate"
    with pytest.raises(NoForecast, match="degenerate"):
        forecaster(bad)
    outside = json.loads(json.dumps(law))
    outside["approaches"]["parametric"] |= {"status": "degenerate", "reasons": ["E is above the least loss"]}
    beside = forecaster(Analysis.from_json(outside))  # isoFLOP gives the optimum and the floor the loss
    assert predict(beside, flops=1e13)["optimum_from"] == "isoflop" and not beside.forced
    with pytest.raises(NoForecast, match=r"E is above the least loss.*cheapest to serve.*--force"):
        serve(beside, 3.0, 1e9)
    outside["approaches"]["isoflop"]["status"] = "degenerate"
    with pytest.raises(NoForecast, match="--force"):
        forecaster(Analysis.from_json(outside))
    said = predict(forecaster(Analysis.from_json(outside), force=True), flops=1e13)
    assert "E is above the least loss" in said["forced"] and "FORCED" in describe(said)


def test_serving_wants_a_smaller_model_and_scarce_data_costs_loss(law):
    f = forecaster(Analysis.from_json(law))
    said = predict(f, flops=1e13)
    served = serve(f, said["loss"], 1e9)
    assert served["params"] < said["params"] and served["params_interval"][0] < served["params"]
    assert served["training_flops"] > said["flops"] * 0.99 and 0 < served["saving"] < 1
    scarce = constrain(f, 1e13, 1e5)
    plenty = constrain(f, 1e13, 1e15)
    assert scarce["loss"] > plenty["loss"] and scarce["epochs"] > 1 > plenty["epochs"]
    assert plenty["params"] == pytest.approx(f.law.optimum(flops=1e13).params, rel=1e-4)
    for extra in (served, scarce):
        assert "D" in describe(extra)
    with pytest.raises(BadInput, match="above 0"):
        serve(f, said["loss"], -1)


def test_a_prediction_is_written_once_scored_and_tamper_evident(tmp_path, law):
    f = forecaster(Analysis.from_json(law))
    said, path = predict(f, params=200_000, tokens=8_000_000), tmp_path / "prediction.json"
    register(said, path)
    with pytest.raises(BadInput, match="not overwritten"):
        register(said, path)
    result = score(path, said["loss"] * math.exp(0.01), 200_000, 8_000_100)
    assert result["log_error"] == pytest.approx(-0.01) and result["inside"] in (True, False)
    assert json.loads((tmp_path / "prediction_score.json").read_text())["score"] == result
    with pytest.raises(BadInput, match="score the run predicted"):
        score(path, 3.0, 210_000, 8_000_000)
    record = json.loads(path.read_text())
    record["prediction"]["loss"] += 1e-6
    write_json(path, record)
    with pytest.raises(BadInput, match="sha256"):
        score(path, 3.0, 200_000, 8_000_000)
    bare = tmp_path / "bare.json"
    register(predict(read_forecaster("besiroglu-2024"), params=1e9, tokens=2e10), bare)
    assert score(bare, 2.5, 1e9, 2e10)["inside"] is None


def test_the_loss_interval_widens_with_distance(law):
    f = forecaster(Analysis.from_json(law))
    spans = [np.diff(np.log(predict(f, flops=c)["loss_interval"]))[0] for c in (1e12, 1e14, 1e16)]
    assert spans[0] < spans[1] < spans[2]


@pytest.mark.parametrize(
    ("params", "tokens", "loss"), [(8.67e9, 178e9, 2.2269634075087867), (6.34e9, 242e9, 2.2256440889984477)]
)
def test_a_run_on_repeated_data_is_answered_as_its_authors_compute_it(params, tokens, loss):
    """The numbers are what the code published with Muennighoff et al. 2023 gives."""
    said = predict(read_forecaster("muennighoff-2023"), params=params, tokens=tokens, unique_tokens=25e9)
    assert said["loss"] == pytest.approx(loss, rel=1e-6) and said["epochs"] == pytest.approx(tokens / 25e9)
    fresh = predict(read_forecaster("muennighoff-2023"), params=params, tokens=tokens)
    assert fresh["loss"] < said["loss"] and "epochs" not in fresh


def test_flops_that_are_not_those_of_the_run_are_refused():
    published = read_forecaster("besiroglu-2024")
    with pytest.raises(BadInput, match=r"8\.33e\+04 times 6 N D"):
        predict(published, params=1e9, tokens=2e10, flops=1e25)
    assert predict(published, params=1e9, tokens=2e10, flops=1.5e20)["flops"] == 1.5e20


def test_a_degenerate_law_says_so_and_how_to_use_it_all_the_same(tmp_path):
    law = fit_all(RUNS, tables=False).to_json()
    fitted = law["approaches"]["parametric"]
    fitted |= {"status": "degenerate", "reasons": ["E is near 0"]}
    law["approaches"]["isoflop"]["status"] = "degenerate"
    write_json(tmp_path / "law.json", law)
    with pytest.raises(NoForecast, match=r"degenerate \(E is near 0\).*--force"):
        read_forecaster(str(tmp_path))
    assert read_forecaster(str(tmp_path), force=True).forced


def test_a_held_out_run_that_missed_is_said_with_the_next_prediction(tmp_path):
    path = tmp_path / "prediction_score.json"
    for inside, said in ((True, ""), (None, ""), (False, "overestimates")):
        write_json(path, {"score": {"predicted": 3.132, "measured": 2.963, "inside": inside}})
        assert said in held_out_miss(str(tmp_path)) and bool(held_out_miss(str(tmp_path))) == bool(said)
    path.unlink()
    assert held_out_miss(str(tmp_path)) == held_out_miss("besiroglu-2024") == ""


def test_the_compute_of_a_loss_lies_between_the_ends_at_which_its_band_holds_it(law):
    f = forecaster(Analysis.from_json(law))
    assert f.forecast
    floor = f.forecast

    def size(flops: float) -> float:
        return math.exp(floor.log_optimum(flops))

    for flops in (1e12, 1e13, 3e13):
        at = floor.at(flops, size(flops), noisy=False)
        found, (low, high) = floor.flops_of(at.loss, size)
        assert found == pytest.approx(flops, rel=1e-6) and low and high and low < flops < high
        assert floor.at(low, size(low), noisy=False).interval()[0] == pytest.approx(at.loss, rel=1e-6)
        assert floor.at(high, size(high), noisy=False).interval()[1] == pytest.approx(at.loss, rel=1e-6)
    far = predict(f, loss=predict(f, flops=1e20)["loss"])  # the band never leaves it
    assert far["flops_interval"][1] is None and far["params_interval"][1] is None
    assert "unbounded" in describe(far) and "e308" not in describe(far)


@pytest.mark.parametrize("rows", [9, 30])
@pytest.mark.parametrize("kind", ["scattered", "rising", "alike", "repeated"])
def test_a_table_that_says_little_gives_a_forecast_within_its_interval_or_none(kind, rows):
    """A descent that left the losses above 0 once had the weight to forecast e^-277, and noise left no row to reach."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        params, tokens = 10 ** rng.uniform(4, 7, rows), 10 ** rng.uniform(6, 9, rows)
        loss = {"rising": 2 * params**0.05, "alike": np.full(rows, 2.5)}.get(kind, LAW.loss(params, tokens))
        if kind == "repeated":
            params, tokens, loss = (np.tile(column, 3) for column in (params, tokens, loss))
        noisy = np.exp(0.05 * rng.standard_normal(len(params)))
        found = forecast(replace(simulate(LAW, params, tokens, noise=0, seed=0), loss=loss * noisy))
        for flops in (1e8, 1e14, 1e16, 1e40) if found.ok else ():
            said = found.at(flops)
            low, high = said.interval()
            assert low <= said.loss <= high, (kind, seed, flops)
        assert found.ok or found.reasons


def test_forecasts_within_the_table_are_made_from_rows_that_differ():
    found = forecast(RUNS)  # budgets 1e11, 3e11, 1e12 and 3e12: no row lies between 3e12 / 5 and 3e12 / 2.5
    assert found.ok and found.rolling
    assert len({one.rows for one in found.rolling}) == len(found.rolling)
    assert all(one.times > 1 and one.measured == RUNS.loss[RUNS.run.index(one.run)] for one in found.rolling)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(floors=[]),
        lambda found: found.update(shape="hill"),
        lambda found: found["floors"][0].update(theta=[1.0]),
        lambda found: found["floors"][0].update(covariance=[[1.0]]),
        lambda found: found["floors"][0].update(E=None),
        lambda found: found["floors"][0].update(weight=2.0),
    ],
)
def test_a_forecast_that_was_altered_is_one_line(tmp_path, law, change):
    changed = json.loads(json.dumps(law))
    change(changed["forecast"])
    write_json(tmp_path / "law.json", changed)
    with pytest.raises(BadInput) as refusal:
        read_forecaster(str(tmp_path / "law.json"))
    assert "\n" not in str(refusal.value)


def test_a_law_of_before_forecasts_still_predicts(law):
    old = {key: value for key, value in law.items() if key != "forecast"}
    said = predict(forecaster(Analysis.from_json(old)), flops=1e13)
    assert said["forms"] == said["rolling"] == [] and said["loss_from"] == "law" and said["loss_interval"]


def test_an_optimum_beyond_all_numbers_is_one_line():
    steep = ChinchillaLaw(A=1e-60, B=330, E=1.75, alpha=0.02, beta=0.42)
    with pytest.raises(BadInput, match="beyond all numbers"):
        steep.optimum(tokens=1e5)


def test_forecasts_do_not_jump_where_the_law_takes_over(law):
    """A run a little farther from the optimum than the rows once had a lower loss than one a little nearer."""
    f = forecaster(Analysis.from_json(law))
    assert f.forecast
    for c in (1e12, 3e12, 3e13):
        middle = f.forecast.log_optimum(c)
        for side in (-1, 1):
            edge = [math.exp(middle + side * f.forecast.reach * share) for share in (0.999, 1.001, 1.3)]
            near, far, farther = (predict(f, params=n, tokens=c / (6 * n)) for n in edge)
            assert near["loss_from"] == "forecast" and far["loss_from"].startswith("forecast near the optimum, and")
            assert far["loss"] == pytest.approx(near["loss"], rel=1e-3) and farther["loss"] > far["loss"]
            spans = [np.diff(np.log(said["loss_interval"]))[0] for said in (near, far, farther)]
            assert spans[1] == pytest.approx(spans[0], rel=0.02) and spans[2] >= spans[1]


@pytest.mark.parametrize("exponent", [0.0005, -0.001, 0.999])
def test_optima_that_hardly_move_give_one_line_or_finite_runs(law, exponent):
    bent = json.loads(json.dumps(law))
    found = bent["approaches"]["isoflop"]
    found |= {"a": exponent, "b": 1 - exponent, "N_coef": 1e5, "D_coef": 1 / 6e5}
    for lines, slope in (("N", exponent), ("D", 1 - exponent)):
        found["draws"][lines] = [[each[0], slope] for each in found["draws"][lines]]
    f = forecaster(Analysis.from_json(bent))
    for asked in ({"params": 10}, {"params": 1e20}, {"tokens": 1e25}, {"loss": 5.0}, {"flops": 1e40}):
        try:
            said = predict(f, **asked)
        except BadInput as refusal:
            assert "\n" not in str(refusal)
        else:
            assert all(0 < said[name] < math.inf for name in ("flops", "params", "tokens", "loss")), asked


def test_a_loss_that_takes_endless_tokens_is_one_line(law):
    flat = replace(forecaster(Analysis.from_json(law)), law=replace(LAW, beta=0.002, B=1e3), laws=())
    with pytest.raises(BadInput, match=r"ask for (a higher|another) loss"):
        serve(flat, 2.0, 1e9)
