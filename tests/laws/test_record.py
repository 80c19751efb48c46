"""law.json is what its types say: read and written alike, refused with the key that is wrong, documented from them."""

import copy
import json
import re
from dataclasses import fields

import numpy as np
import pytest

from gptjax.cli import main
from gptjax.errors import BadInput
from gptjax.files import write_json
from gptjax.laws import forecaster
from gptjax.laws.analysis import fit_all
from gptjax.laws.fit import Choices
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.record import Analysis, ParametricFound, read_law
from gptjax.laws.simulate import ladder, simulate
from helpers import ROOT

LAW = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
RUNS = simulate(LAW, *ladder(LAW, (1e11, 3e11, 1e12, 3e12)), noise=0.004, seed=0)


@pytest.fixture(scope="module")
def content() -> dict:
    return fit_all(RUNS, Choices(bootstrap=60), sweeps=3).to_json()


@pytest.mark.slow
def test_what_is_written_is_read_back(content):
    again = json.loads(json.dumps(content, allow_nan=False))
    assert Analysis.from_json(again).to_json() == content
    few = fit_all(
        RUNS.take(np.arange(5)), Choices(bootstrap=60)
    ).to_json()  # refused everywhere: what is unknown is null
    assert Analysis.from_json(json.loads(json.dumps(few, allow_nan=False))).to_json() == few


@pytest.mark.slow
def test_coefficients_stand_beside_the_other_keys_as_they_always_have(content):
    fit = content["approaches"]["parametric"]
    for name, each in fit["coefficients"].items():
        assert (fit[name], fit[f"{name}_se"], fit[f"{name}_interval"]) == (each["value"], each["se"], each["interval"])
    own = {f.name for f in fields(ParametricFound)}
    assert not own & set(fit["coefficients"])


def test_a_law_of_the_first_edition_is_read(content):
    """It had no forms but one, and no keys for them."""
    old = copy.deepcopy(content)
    del old["settings"]["form"]
    for name in ("form", "columns", "held", "coefficients", "theta"):
        del old["approaches"]["parametric"][name]
    found, new = Analysis.from_json(old), Analysis.from_json(content)
    assert found.parametric.coefficients == new.parametric.coefficients
    assert found.parametric.theta == pytest.approx(new.parametric.theta)
    assert found.law().optimum(flops=1e13).params == pytest.approx(new.law().optimum(flops=1e13).params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda law: law["approaches"]["parametric"].pop("noise"), "approaches.parametric has no key 'noise'"),
        (
            lambda law: law["approaches"]["isoflop"]["draws"].update(N=3),
            "isoflop.draws.N is 3 and must be a list",
        ),
        (lambda law: law.update(rows="many"), "law.json: rows is 'many' and must be of type int"),
        (lambda law: law["approaches"]["envelope"].update(status="fine"), "status is 'fine' and must be one of 'ok'"),
        (lambda law: law["ranges"].update(C=[1.0]), "ranges.C has 1 items and must have 2"),
        (lambda law: law["settings"].update(loss="l7"), "settings.loss is 'l7' and must be one of"),
        (lambda law: law["approaches"].update(parametric=[]), "approaches.parametric is [] and must be an object"),
        (lambda law: law.pop("approaches"), "is not a law; make one with gptjax fit"),
    ],
)
def test_a_file_that_is_no_law_is_refused_with_what_is_wrong_in_it(content, tmp_path, change, said):
    wrong = copy.deepcopy(content)
    change(wrong)
    write_json(tmp_path / "law.json", wrong)
    with pytest.raises(BadInput) as error:
        read_law(str(tmp_path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_bug_of_ours_is_not_told_as_a_mistake_of_the_users(content, tmp_path, monkeypatch):
    write_json(tmp_path / "law.json", content)
    monkeypatch.setattr(forecaster, "PowerLaw", lambda *_: {}["a bug"])
    with pytest.raises(KeyError):
        forecaster.read_forecaster(str(tmp_path))


def test_the_page_of_keys_is_of_today_and_lists_every_key(content, capsys):
    main(["keys"])
    page = capsys.readouterr().out
    assert page == (ROOT / "docs" / "law.json.md").read_text(), "gptjax keys > docs/law.json.md writes it"
    listed = set(re.findall(r"^\| `(\w+)` ", page, re.MULTILINE))
    assert not [
        line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")
    ]  # each is explained
    beside = {f"{name}{end}" for name in ("A", "B", "E", "alpha", "beta") for end in ("", "_se", "_interval")}
    assert set(content) | set(content["approaches"]["parametric"]) | set(content["choices"][0]) <= listed | beside
