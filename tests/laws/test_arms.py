"""Arms of one table are fitted apart and compared; losses of different objectives are never fitted together."""

import csv
import json

import numpy as np
import pytest

from gptjax.cli import main
from gptjax.errors import BadInput
from gptjax.laws.analysis import fit_all
from gptjax.laws.checks import read_runs
from gptjax.laws.compare import Arms, describe, fit_arms
from gptjax.laws.fit import Choices
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.simulate import ladder, simulate

GPT = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
FACTOR = 3.0  # of compute: an arm that learns like GPT with a third of the parameters' and the tokens' worth
LSTM = ChinchillaLaw(A=45 * FACTOR**0.185, B=330 * FACTOR**0.21, E=1.75, alpha=0.37, beta=0.42)
BUDGETS = (1e11, 3e11, 1e12, 3e12)
CHOSEN = Choices(bootstrap=60)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("arms") / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "params", "tokens", "loss", "arm", "objective"])
        for arm, law, objective in (("gpt", GPT, "causal"), ("lstm", LSTM, "masked")):
            runs = simulate(law, *ladder(law, BUDGETS), noise=0.003, seed=len(arm))
            for i, row in enumerate(zip(runs.params, runs.tokens, runs.loss, strict=True)):
                writer.writerow([f"{arm}-{i}", *row, arm, objective])
    return path


@pytest.fixture(scope="module")
def arms(table) -> Arms:
    return fit_arms(read_runs(table), "arm", CHOSEN, tables=False)


def test_the_compute_of_equal_loss_is_found_within_its_interval(arms):
    (found,) = arms.compared
    assert (found.arm, found.baseline) == ("lstm", "gpt") and set(arms.arms) == {"gpt", "lstm"}
    low, high = found.interval
    assert low < FACTOR < high and high / low < 2 and found.ratio == pytest.approx(FACTOR, rel=0.25)
    assert len(found.ratios) == 5 and found.ends == pytest.approx((1e11, 3e12), rel=0.01)
    said = describe(found)
    assert f"lstm needs {found.ratio:.2g}x ({low:.2g} to {high:.2g}) the compute of gpt for the same loss" in said


def test_arms_are_the_fits_of_their_rows_alone_and_are_read_back(arms, table):
    runs = read_runs(table)
    alone = fit_all(runs.take(np.flatnonzero(runs.cells["arm"] == "gpt")), CHOSEN, tables=False)
    assert arms.arms["gpt"].to_json() == alone.to_json()
    content = json.loads(json.dumps(arms.to_json(), allow_nan=False))
    assert Arms.from_json(content).to_json() == content


def test_an_arm_without_a_law_is_said_to_have_none(table):
    runs = read_runs(table)
    kept = np.flatnonzero((runs.cells["arm"] == "gpt") | (np.arange(len(runs)) % 9 == 0))
    arms = fit_arms(runs.take(kept), "arm", CHOSEN, tables=False)
    (found,) = arms.compared
    assert found.ratio is None and "not compared" in describe(found) and "refused" in describe(found)


def test_losses_of_several_objectives_are_refused_with_the_remedy(table):
    with pytest.raises(BadInput, match=r"column 'objective' has 'causal', 'masked'.*--by objective"):
        fit_all(read_runs(table), CHOSEN)
    with pytest.raises(BadInput, match="no column 'family' to part runs by; it has arm, objective"):
        fit_arms(read_runs(table), "family", CHOSEN)


def test_the_command_fits_draws_and_compares_arms(table, tmp_path, capsys):
    law, figure = tmp_path / "law.json", tmp_path / "arms.png"
    chosen = ["--bootstrap", "50", "--approach", "parametric"]
    main(["fit", str(table), "--by", "arm", *chosen, "--json", str(law), "--figure", str(figure)])
    said = capsys.readouterr().out
    assert said.startswith("arm gpt\n") and "\n\narm lstm\n" in said and "the compute of gpt for the same loss" in said
    assert set(json.loads(law.read_text())["arms"]) == {"gpt", "lstm"} and figure.read_bytes().startswith(b"\x89PNG")
    for wrong, words in (
        (["predict", str(law), "--flops", "1e13"], "laws of several arms (gpt, lstm)"),
        (["fit", str(table), "--figure", str(figure)], "--by COLUMN"),
        (["fit", str(table)], "--by objective"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert words in capsys.readouterr().err
