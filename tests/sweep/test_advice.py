"""What an advice says is what the rules and the table of devices give by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gptjax.devices import Device, devices
from gptjax.errors import BadInput
from gptjax.laws.table import Runs
from gptjax.sweep.advice import advise, describe, nearest_presets

TABLE = {"fast": Device("fast", "", 1000.0, 80.0, 3000.0, 900.0, 3.0, 0.5)}
HYPER = {
    "lr": {
        "status": "ok",
        "reasons": [],
        "coef": 2.0,
        "params_exponent": -0.5,
        "tokens_exponent": 0.0,
        "centre": {"params": 1e6, "tokens": 2e7},
        "covariance": [[0.01, 0, 0], [0, 0, 0], [0, 0, 0]],
        "ranges": {"params": [1e5, 1e7], "tokens": [2e6, 2e8]},
    },
    "batch_tokens": {"status": "refused", "reasons": ["no cell was trained at several batches"]},
}


def test_costs_are_flops_over_speed():
    """3.6e18 FLOPs at 4 x 1e15 x .5 a second: 1800 s, 2 device-hours, 6 USD."""
    (cost,) = advise(1e9, 6e8, 3.6e18, devices=TABLE, names=("fast",), count=4)["costs"]
    assert (cost["seconds"], cost["device_hours"], cost["usd"]) == (1800, 2, 6)
    (one,) = advise(1e9, 6e8, 3.6e18, devices=TABLE, names=("fast",), count=1)["costs"]
    assert one["seconds"] == 7200 and one["usd"] == 6  # more devices are faster, not dearer


def test_rules_by_hand():
    """N = 864M = 8 x 108M: Porian's rate halves and its batch is four times 160 sequences of 2048."""
    advice = advise(864e6, 1e10, 5e19, devices=TABLE, names=("fast",), non_embedding=800e6)
    rules = {rule["rule"]: rule for rule in advice["rules"]}
    assert rules["porian"]["lr"] == pytest.approx(0.0047 / 2)
    assert rules["porian"]["batch_tokens"] == pytest.approx(640 * 2048)
    assert rules["step-law"]["lr"] == pytest.approx(1.79 * 800e6**-0.713 * 1e10**0.307)
    assert rules["step-law"]["batch_tokens"] == pytest.approx(0.58 * 1e10**0.571)
    assert rules["deepseek"]["lr"] == pytest.approx(0.3118 * (6 * 800e6 * 1e10) ** -0.125)
    assert rules["deepseek"]["batch_tokens"] == pytest.approx(0.292 * (6 * 800e6 * 1e10) ** 0.3271)
    assert "800M without embeddings" in rules["step-law"]["put_in"] and "864M as given" in rules["porian"]["put_in"]


def test_without_a_count_the_nearest_shape_tells_the_share_of_embeddings():
    advice = advise(124.4e6, 2.5e9, 1.9e18, devices=TABLE, names=("fast",))
    step_law = next(rule for rule in advice["rules"] if rule["rule"] == "step-law")
    assert step_law["lr"] == pytest.approx(1.79 * 85.06e6**-0.713 * 2.5e9**0.307, rel=1e-3)  # GPT-2's layers hold 85M
    assert "share of gpt2" in step_law["put_in"]


@pytest.mark.parametrize(
    "params, name", [(124e6, "gpt2"), (1.558e9, "gpt2-xl"), (8.03e9, "llama3-8b"), (1e12, "llama3-405b")]
)
def test_the_nearest_shape_is_the_one_of_that_size(params, name):
    nearest = nearest_presets(params)
    assert nearest[0].name == name
    off = [abs(np.log(row.params / params)) for row in nearest]
    assert len(off) == 3 and off == sorted(off) and len({row.params for row in nearest}) == 3


def test_a_fitted_law_is_flagged_far_from_its_cells_and_a_refused_one_gives_nothing():
    near = advise(4e6, 8e7, 2e15, devices=TABLE, names=("fast",), hyper=HYPER)["rules"][0]
    assert near["rule"] == "fitted" and near["lr"] == pytest.approx(2.0 / 2e3) and not near["extrapolated"]
    assert near["lr_log_se"] == pytest.approx(0.1)
    assert near["batch_tokens"] is None and "several batches" in near["put_in"]
    assert not advise(9e7, 1.8e9, 1e18, devices=TABLE, names=("fast",), hyper=HYPER)["rules"][0]["extrapolated"]
    far = advise(4e8, 8e7, 2e17, devices=TABLE, names=("fast",), hyper=HYPER)["rules"][0]
    assert far["extrapolated"] and far["put_in"].count("EXTRAPOLATED, N 40x above the cells fitted") == 1
    low = advise(4e6, 1e5, 2e12, devices=TABLE, names=("fast",), hyper=HYPER)["rules"][0]
    assert low["extrapolated"] and "D 20x below" in low["put_in"]


def test_the_text_shows_every_number_and_the_object_is_strict_json():
    advice = advise(4e8, 8e9, 1.92e19, devices=devices(), hyper=HYPER)
    text = describe(json.loads(json.dumps(advice, allow_nan=False)))
    for said in ("EXTRAPOLATED", "h200", "on 8 devices", "1.00e-04 ± 11%"):
        assert said in text, said
    assert describe(advise(4e8, 8e9, 1.92e19, devices=devices(), names=("cpu-core",), count=1))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"names": ("h300",)}, "no device is named 'h300'; the table has fast"),
        ({"params": 0.0}, "params 0.0 must be"),
        ({"count": 0}, "count 0 must be"),
        ({"count": 10**30}, "give fewer"),
    ],
)
def test_mistakes_are_one_line(change, said):
    given = {"params": 1e9, "tokens": 2e10, "flops": 1e20, "devices": TABLE, "names": ("fast",)} | change
    with pytest.raises(BadInput, match=said) as error:
        advise(**given)
    assert "\n" not in str(error.value)


def test_a_sweeps_own_rates_are_gone_on_with():
    """Rates of .0085 (N / 14400)^-.3 and batches of 512 tokens give .00246 and 512 at N = 903 k."""
    n = np.repeat([14_400.0, 40_000.0, 459_000.0], 2)
    facts = {"lr": 0.0085 * (n / 14_400) ** -0.3, "steps": n}
    columns = {"run": tuple("abcdef"), "params": n, "tokens": 512 * n, "flops": 3072 * n**2, "loss": np.full(6, 3.0)}
    runs = Runs(**columns, loss_se=np.full(6, 0.01), seed=("0",) * 6, convention="", facts=facts)
    [own, *_] = advise(903e3, 1.8e7, 1e14, devices=TABLE, names=("fast",), runs=runs)["rules"]
    assert own["rule"] == "this sweep" and not own["extrapolated"] and own["batch_tokens"] == pytest.approx(512)
    assert own["lr"] == pytest.approx(0.0085 * (903 / 14.4) ** -0.3)
    [far, *_] = advise(903e6, 1.8e10, 1e20, devices=TABLE, names=("fast",), runs=runs)["rules"]
    assert far["extrapolated"] and "EXTRAPOLATED" in far["put_in"]
    odd = replace(runs, facts={"lr": np.array([1, 2, 1, 2, 1, 2.0]), "steps": n})
    rules = advise(903e3, 1.8e7, 1e14, devices=TABLE, names=("fast",), runs=odd)["rules"]
    assert "this sweep" not in {rule["rule"] for rule in rules}
