"""What to quote names the numbers of the approach it quotes, the reason for it, and all that speaks against it."""

import json
from copy import deepcopy

import numpy as np
import pytest

from gptjax.files import write_json
from gptjax.laws.analysis import fit_all
from gptjax.laws.drawing.page import say_sentence
from gptjax.laws.fit import Choices
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.quote import as_text, read_forecast
from gptjax.laws.quote import quote as quote_of
from gptjax.laws.record import Analysis
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import Runs

OPTIMIZED = True
PLANTED = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
SCORE = {"predicted": 2.4, "measured": 2.446, "params": 7e5, "tokens": 1e7, "inside": False}


@pytest.fixture(scope="module")
def runs() -> Runs:
    return simulate(PLANTED, *ladder(PLANTED, [1e11, 3e11, 1e12, 3e12], sizes=6), noise=0.004, seed=0)


@pytest.fixture(scope="module")
def law(runs) -> dict:
    return fit_all(runs, Choices(bootstrap=60), tables=False).to_json()


def quote(law: dict, forecast: dict | None = None) -> dict[str, str]:
    return quote_of(Analysis.from_json(law), forecast)


def changed(law: dict, **approaches: dict) -> dict:
    other = deepcopy(law)
    for name, values in approaches.items():
        other["approaches"][name] |= values
    return other


def test_the_first_sentence_holds_exponent_coefficient_interval_approach_and_extent(law):
    fit = law["approaches"]["isoflop"]
    said = quote(law)
    assert list(said) == ["law", "why", "against"] and said == law["quote"]
    coefficient = np.exp(np.quantile([draw[0] for draw in fit["draws"]["N"]], (0.025, 0.975)))
    for number in (f"{fit['N_coef']:.3g} C^{fit['a']:.3f}", "{:.3f} to {:.3f}".format(*fit["a_interval"]),
                   "{:.3g} to {:.3g}".format(*coefficient), f"{fit['D_coef']:.3g} C^{fit['b']:.3f}",
                   "isoFLOP minima", "24 runs", "1e11 to 3e12 FLOPs", law["convention"]):  # fmt: skip
        assert number in said["law"], number
    assert all("<" not in text and text.endswith(".") and "\n" not in text for text in said.values())


def test_the_first_sound_approach_is_quoted_and_the_better_ones_said_to_have_failed(law):
    none = {"status": "refused", "reasons": ["no budget has a minimum; add sizes"], "a": None}
    second = quote(changed(law, isoflop=none))
    assert "parametric fit of L = E" in second["law"]
    assert "isoFLOP approach was refused (no budget has a minimum; add sizes)" in second["why"]
    odd = {"status": "degenerate", "reasons": ["alpha = 3 is outside (0, 2]"]}
    third = quote(changed(law, isoflop=none, parametric=odd))
    assert "envelope of finished runs" in third["law"] and "is degenerate (alpha = 3" in third["why"]
    nothing = quote(changed(law, isoflop=none, parametric=odd, envelope=none))
    assert "refused or is degenerate" in nothing["law"] and "C^" not in nothing["law"]
    assert "No exponent" in nothing["against"]
    every = quote(changed(law, isoflop=none, parametric=none, envelope=none))
    assert "every approach refused." in every["law"]


def test_isoflop_minima_at_few_of_the_budgets_make_room_for_a_more_certain_fit(law):
    few = deepcopy(law)
    isoflop, parametric = (few["approaches"][name] for name in ("isoflop", "parametric"))
    isoflop["budgets"] += [{**isoflop["budgets"][0], "N": None}] * (len(isoflop["budgets"]) + 1)
    isoflop["a_interval"] = [parametric["a_interval"][0] - 0.1, parametric["a_interval"][1] + 0.1]
    said = quote(few)
    assert "from the parametric fit" in said["law"] and "uses 4 of 9 budgets and has the wider interval" in said["why"]
    isoflop["a_interval"] = [parametric["a"] - 1e-4, parametric["a"] + 1e-4]
    assert "isoFLOP minima" in quote(few)["law"]


def test_approaches_that_agree_speak_for_it_and_others_against(law):
    a = law["approaches"]["isoflop"]["a"]
    agreeing = quote(changed(law, parametric={"a": a}))
    assert f"parametric approach agrees, with an exponent of {a:.3f}" in agreeing["why"]
    far = quote(changed(law, parametric={"a": a + 0.3}))
    assert f"parametric approach gives an exponent of {a + 0.3:.3f}" in far["against"]


def test_a_forecast_is_told_by_its_miss_in_half_widths(law, tmp_path):
    said = {"loss": 2.4, "loss_interval": [2.37, 2.43]}
    missed = quote(law, SCORE | {"said": said})
    assert "a miss by 1.5 half-widths" in missed["against"]
    held = SCORE | {"said": said | {"loss_interval": [2.3, 2.5]}, "inside": True}
    assert "inside the interval" in quote(law, held)["why"]
    bare = SCORE | {"said": said | {"loss_interval": None}, "inside": None}
    assert "without an interval" in quote(law, bare)["against"]
    assert read_forecast(tmp_path) == {}
    write_json(tmp_path / "prediction.json", {"prediction": said})
    write_json(tmp_path / "prediction_score.json", {"score": SCORE})
    assert quote(law, read_forecast(tmp_path)) == missed


def test_other_forms_noise_coverage_and_choices_speak_up(law):
    known = changed(law)
    forms = [("chinchilla", 12.3), ("kaplan", 0.0), ("power law in tokens", None)]
    nothing = {"coefficients": None, "rmse": None, "rmse_beyond": None, "cut": 1e12}
    known["forms"] = [{**nothing, "form": form, "aicc": aicc, "status": "ok" if aicc is not None else "refused"}
                      for form, aicc in forms]  # fmt: skip
    known["coverage"] = {
        "isoflop": {"fitted": 100, "refused": 0, "truth": 0.5, "covered": 0.7, "covered_interval": [0.6, 0.79]}
    }
    known["choices"] = [
        {
            "status": "ok" if a else "refused",
            "a": a,
            "approach": "isoflop",
            "choice": "",
            "rows": 9,
            "reason": "",
            "a_interval": None,
            "N_beyond": None,
        }
        for a in (0.4, 0.6, None)
    ]
    known["evaluation"] = {"loss_se": 1.0, "between_runs": 1.0}
    against = quote(known)["against"]
    for words in ("'kaplan' fits the losses better", "AICc lower by 12.3", "only 70% of 100 simulated sweeps",
                  "from 0.400 to 0.600", "evaluation's standard error (1 nats)"):  # fmt: skip
        assert words in against, words


def test_where_nothing_speaks_against_it_that_is_all_that_is_claimed(law):
    a, ends = law["approaches"]["isoflop"]["a"], law["approaches"]["isoflop"]["a_interval"]
    sound = {"a": a, "a_interval": ends, "status": "ok", "reasons": []}
    said = quote(changed(law, parametric=sound, envelope={**sound, "edge_share": 0.0}))
    assert said["against"].startswith("Nothing that was checked") and "were not checked" in said["against"]


@pytest.mark.parametrize("approach", ["isoflop", "parametric", "envelope"])
def test_one_approach_alone_can_be_quoted(runs, approach):
    law = fit_all(runs, Choices(bootstrap=60), approaches=[approach], tables=False).to_json()
    json.dumps(law["quote"], allow_nan=False)
    assert "C^" in law["quote"]["law"]


def test_rates_are_quoted_where_they_were_swept(law):
    cell = {"params": 1e4, "tokens": 1e6, "optimum": 3e-3}
    nothing = {"status": "refused", "reasons": ["1 cell with an optimum"], "cells": [cell]}
    found = {**nothing, "status": "ok", "coef": 0.5, "params_exponent": -0.3, "params_exponent_se": 0.02,
             "tokens_exponent": 0.0, "tokens_exponent_se": None}  # fmt: skip
    assert "0.5 N^-0.300 (standard error 0.02)" in quote(law | {"hyper": {"lr": found}})["rates"]
    assert "0.003 at 10k parameters" in quote(law | {"hyper": {"lr": nothing}})["rates"]
    assert "No best learning rate" in quote(law | {"hyper": {"lr": {**nothing, "cells": []}}})["rates"]


def test_a_sentence_in_html_writes_powers_as_one_does_by_hand():
    said = say_sentence("N* = 6.1e-05 C^0.48 & N^-0.3 of 1e11 to 3e12 FLOPs as d64-1e12.")
    assert said == ("N* = 6.1 &times; 10<sup>&minus;5</sup> C<sup>0.48</sup> &amp; N<sup>&minus;0.3</sup> of "
                    "10<sup>11</sup> to 3 &times; 10<sup>12</sup> FLOPs as d64-1e12.")  # fmt: skip


def test_approaches_that_were_not_fitted_are_named(law):
    alone = deepcopy(law)
    alone["approaches"] = {"parametric": alone["approaches"]["parametric"]}
    assert quote(alone)["against"].endswith("The isoFLOP and envelope approaches were not fitted.")
    assert "not fitted" not in quote(law)["against"]


def test_a_terminal_is_given_lines_of_its_width(monkeypatch):
    said = {"law": "N* " * 60, "why": "because"}
    assert as_text(said) == "N* " * 60 + "\nbecause"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    lines = as_text(said).split("\n")
    assert lines[-1] == "because" and len(lines) == 4 and max(map(len, lines)) <= 80
