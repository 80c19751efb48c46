"""Two ladders are compared: intervals hold planted multipliers, and what is not of one kind is refused."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from gptjax.cli import main
from gptjax.errors import BadInput
from gptjax.laws.drawing.plot_compare import multipliers
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.ladders.comparable import Ladder
from gptjax.laws.ladders.compared import compare_ladders
from gptjax.laws.ladders.comparison import Comparison, _describe_pair, describe_comparison, times_words
from gptjax.laws.ladders.exponents import share_exponents
from gptjax.laws.ladders.multiplier import Frontiers, JointNoise, joint_noise, log_multiplier, paired_cells, rung
from gptjax.laws.published import BESIROGLU_2024, KAPLAN_2020
from gptjax.laws.simulate import ladder, simulate
from gptjax.laws.table import Runs

A = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
TIMES = 0.8  # the compute that B needs: its N and D are worth 1 / sqrt(TIMES) as much
B = replace(A, A=A.A * TIMES ** (A.alpha / 2), B=A.B * TIMES ** (A.beta / 2))
BUDGETS = np.geomspace(1e11, 3e12, 5)
CELLS = ladder(A, BUDGETS)


def drawn(law, seed, noise=0.004, shared=None, cells=CELLS) -> Runs:
    """Draw a ladder; `shared` is noise that all ladders of it have in common, four fifths of the variance."""
    own = np.random.default_rng(seed).standard_normal(len(cells[0]))
    error = own if shared is None else math.sqrt(0.2) * own + math.sqrt(0.8) * shared
    exact = simulate(law, *cells, noise=0, seed=0)
    return replace(exact, loss=exact.loss * np.exp(noise * error))


def compared(a: Runs, b: Runs, **settings):
    (pair,) = compare_ladders([Ladder("a", a), Ladder("b", b)], bootstrap=300, **settings).pairs
    return pair


SHARED = np.random.default_rng(9).standard_normal(len(CELLS[0]))
PAIR = drawn(A, 1, shared=SHARED), drawn(B, 2, shared=SHARED)


@pytest.fixture(scope="module")
def paired():
    return compared(*PAIR)


def test_a_planted_multiplier_lies_within_every_interval(paired):
    low, high = paired.multiplier_interval
    assert low < TIMES < high and high / low < 1.1 and paired.multiplier == pytest.approx(TIMES, rel=0.03)
    for name, way in paired.ways.items():
        assert way.interval[0] < TIMES < way.interval[1], name
    assert paired.headline == "parametric" and paired.ways["points"].count == len(CELLS[0])
    assert all(one[0] < TIMES < one[1] for one in paired.along.interval)
    assert paired.claimed[0] < paired.at < paired.claimed[1] and len(paired.along.C) == len(paired.along.multiplier)


def test_noise_that_paired_cells_share_cancels(paired):
    """The interval of ladders that share four fifths of their noise is narrower by about the root of a fifth."""
    alone = compared(drawn(A, 1), drawn(B, 2))
    widths = [np.log(one.multiplier_interval[1] / one.multiplier_interval[0]) for one in (paired, alone)]
    assert paired.paired.correlation > 0.6 > abs(alone.paired.correlation)
    assert 0.25 < widths[0] / widths[1] < 0.75


def test_the_order_of_rows_and_the_unit_of_losses_change_nothing(paired):
    rng = np.random.default_rng(0)
    a, b = (runs.take(rng.permutation(len(runs))) for runs in PAIR)
    again = compared(replace(a, loss=a.loss * 0.6), replace(b, loss=b.loss * 0.6))
    assert again.multiplier == pytest.approx(paired.multiplier, rel=1e-5)
    assert again.claimed == pytest.approx(paired.claimed, rel=1e-4)
    assert again.paired.correlation == pytest.approx(paired.paired.correlation, abs=1e-4)
    assert again.exponents_differ.p == pytest.approx(paired.exponents_differ.p, abs=1e-3)


def test_the_other_way_round_is_the_reciprocal(paired):
    back = compared(*reversed(PAIR))
    at = np.interp(math.log(paired.at * paired.multiplier), np.log(back.along.C), np.log(back.along.multiplier))
    assert math.exp(at) == pytest.approx(1 / paired.multiplier, rel=1e-4)


def test_the_loss_difference_is_that_of_the_laws_at_equal_compute():
    pair = compared(drawn(A, 0, noise=1e-6), drawn(B, 1, noise=1e-6))
    for c, loss, difference in zip(pair.along.C, pair.along.loss, pair.along.loss_difference, strict=True):
        assert loss == pytest.approx(A.optimum(flops=c).loss, rel=1e-4)
        assert difference == pytest.approx(B.optimum(flops=c).loss - loss, abs=1e-4)
    assert pair.ways["isoflop"].multiplier == pytest.approx(TIMES, rel=0.01)
    assert pair.ways["points"].multiplier == pytest.approx(TIMES, rel=0.02)


def test_multipliers_of_laws_are_those_of_their_optima():
    laws = BESIROGLU_2024, ChinchillaLaw(A=300, B=1500, E=1.7, alpha=0.33, beta=0.35)
    fronts = [Frontiers.of(law.theta[None], 1.0) for law in laws]
    c = np.geomspace(1e19, 1e22, 4)
    found = np.exp(log_multiplier(*fronts, np.log(c)))[0]
    for flops, times in zip(c, found, strict=True):
        loss = laws[0].optimum(flops=flops).loss
        assert times == pytest.approx(laws[1].optimum(loss=loss).flops / flops, rel=1e-9)
    above = Frontiers.of(replace(laws[1], E=5.0).theta[None], 1.0)
    assert np.isinf(log_multiplier(fronts[0], above, np.log(c))).all()


def test_nothing_is_claimed_where_one_ladder_has_no_rows():
    """Only losses that both ladders reach within their own compute are compared."""
    small = drawn(A, 3, cells=ladder(A, BUDGETS[:4]))
    large = drawn(B, 4, cells=ladder(B, BUDGETS[1:]))
    pair = compared(small, large)
    least = A.optimum(loss=B.optimum(flops=BUDGETS[1]).loss).flops
    assert pair.claimed == pytest.approx((least, BUDGETS[3]), rel=0.05)
    inside = [BUDGETS[1] <= c for c in pair.along.C]
    assert [one is not None for one in pair.along.loss_difference] == pytest.approx(inside)
    assert "outside the rows: not claimed" in pair.verdict


@pytest.mark.parametrize("correlation", [0.0, 0.7, -0.5])
def test_drawn_noise_is_students_t_of_the_scatter(correlation):
    """By scipy's t: of a loss of either ladder, and of the difference of paired losses."""
    cells = (np.arange(3), np.arange(3)) if correlation else (np.zeros(0, int), np.zeros(0, int))
    noise = JointNoise((0.01, 0.02), (8, 8), correlation, cells)
    a, b = noise.draw(np.random.default_rng(0), 20_000, (3, 4))
    free = stats.t(8)
    assert stats.kstest(a[:, 1] / 0.01, free.cdf).pvalue > 1e-3
    assert stats.kstest(b[:, 3] / 0.02, free.cdf).pvalue > 1e-3
    spread = math.sqrt(0.01**2 + 0.02**2 - 2 * correlation * 0.01 * 0.02)
    if correlation:
        assert stats.kstest((a[:, 2] - b[:, 2]) / spread, free.cdf).pvalue > 1e-3
        assert np.corrcoef(a[:, 0], b[:, 0])[0, 1] == pytest.approx(correlation, abs=0.03)
    assert abs(np.corrcoef(a[:, 0], b[:, 3])[0, 1]) < 0.03


def test_cells_are_paired_by_size_tokens_and_seed():
    one, other = PAIR
    shuffled = other.take(np.arange(len(other))[::-1])
    left, right = paired_cells(one, shuffled)
    assert np.array_equal(one.params[left], shuffled.params[right]) and len(left) == len(one)
    assert len(paired_cells(one, replace(other, tokens=other.tokens * 1.05))[0]) == 0
    seeds = tuple("01"[i % 2] for i in range(len(one)))
    left, right = paired_cells(replace(one, seed=seeds), replace(other, seed=("0",) * len(one)))
    assert [seeds[i] for i in left] == ["0"] * len(left) and len(left) == seeds.count("0")


@pytest.mark.slow
def test_other_exponents_are_found_and_equal_ones_seldom_doubted():
    steeper = replace(B, alpha=0.44, A=B.A * A.optimum(flops=5e11).params ** 0.07)
    found = compared(PAIR[0], drawn(steeper, 2, shared=SHARED)).exponents_differ
    assert found.p < 1e-3 and found.freedom[0] == 2 and found.apart["b"].alpha > found.apart["a"].alpha
    rungs = []
    for seed in range(40):
        a, b = (rung(name, drawn(law, seed + 100 * i)) for i, (name, law) in enumerate((("a", A), ("b", B))))
        rungs.append(share_exponents(a, b, joint_noise(a, b)).p)
    assert sum(p < 0.05 for p in rungs) <= 6 and stats.kstest(rungs, "uniform").pvalue > 1e-3


def test_the_test_is_that_of_nested_least_squares():
    """Against scipy's general minimiser on the two laws at once, without the tricks of the fit."""
    from scipy.optimize import minimize

    a, b = rung("a", drawn(A, 5)), rung("b", drawn(B, 6))
    found = share_exponents(a, b, replace(joint_noise(a, b), correlation=0.0, sd=(0.004, 0.004)))

    def squares(theta):
        total = 0.0
        for one, (log_a, log_b, log_e, alpha, beta) in zip((a, b), (theta[:5], theta[5:]), strict=True):
            law = ChinchillaLaw(*np.exp([log_a, log_b, log_e]), alpha, beta)
            total += np.sum(np.log(law.loss(one.rows.params, one.rows.tokens) / one.rows.loss) ** 2)
        return total / 0.004**2

    apart = squares(np.concatenate([a.fit.theta, b.fit.theta]))
    shared = squares(found.theta)
    assert found.theta[3:5] == pytest.approx(found.theta[8:])
    assert found.F == pytest.approx((shared - apart) / 2 / (apart / 60), rel=1e-3)

    def together(theta):
        return squares(np.concatenate([theta, theta[3:5]]))

    scipys = minimize(together, found.theta[:8], method="Nelder-Mead", options={"maxfev": 4000})
    assert scipys.fun > shared - 1e-3


def test_one_law_of_another_scale_is_no_difference(paired):
    same = compared(PAIR[0], drawn(A, 7, shared=SHARED))
    low, high = same.multiplier_interval
    assert low < 1 < high and "no difference is shown" in same.verdict
    assert paired.verdict.startswith(f"b needs {paired.multiplier:.2f}x (") and "no difference" not in paired.verdict


def test_a_form_that_is_not_the_ladders_is_said():
    """Losses of Kaplan's form are missed by Chinchilla's law and not by parabolas, whose interval holds the truth."""
    law = KAPLAN_2020
    cheap = replace(law, N_c=law.N_c * TIMES**0.5, D_c=law.D_c * TIMES**0.5)
    cells = ladder(law, np.geomspace(1e17, 3e19, 5))
    pair = compared(drawn(law, 1, cells=cells), drawn(cheap, 2, cells=cells))
    low, high = pair.ways["isoflop"].interval
    assert low < TIMES < high and sum("the form is not theirs" in note for note in pair.notes) == 2
    assert not any("form" in note for note in compared(drawn(A, 1), drawn(B, 2)).notes)


def with_cells(runs: Runs, **cells: str) -> Runs:
    return replace(runs, cells={name: np.array([value] * len(runs)) for name, value in cells.items()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: (a, a), "hold the same runs, or one those of the other; give two"),
        (lambda a, b: (a, a.take(np.arange(0, 35, 2))), "hold the same runs, or one those of the other"),
        (lambda a, b: (a, replace(b, loss=b.loss + 4)), "share no loss: .* add budgets"),
        (lambda a, b: (a, replace(b, params=b.params[:1].repeat(len(b)))), "b has no law .*cannot"),
        (lambda a, b: (with_cells(a, objective="causal"), with_cells(b, objective="masked")), "objectives causal and"),
        (lambda a, b: (with_cells(a, data_digest="x"), with_cells(b, data_digest="y")), "other data .*the same store"),
        (lambda a, b: (with_cells(a, tokenizer="x"), with_cells(b, tokenizer="y")), "--metric bits_per_byte"),
        (lambda a, b: (replace(a, convention="N = layers, C = 6ND"), replace(b, convention="N = all, C = 6ND")),
         "count N and C alike"),
        (lambda a, b: (a, replace(b, flops=2 * b.flops, convention="mine")), "count N and C alike"),
    ],
)  # fmt: skip
def test_what_is_not_of_one_kind_is_refused_with_the_remedy(change, words):
    a, b = change(*PAIR)
    found = compare_ladders([Ladder("a", a), Ladder("b", b)], bootstrap=60)
    (refused,) = found.refused
    assert not found.pairs and (refused.a, refused.b) == ("a", "b")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError("; ".join(refused.reasons))


def test_other_windows_and_other_text_are_refused():
    a, b = PAIR
    found = compare_ladders([Ladder("a", a, windows=512), Ladder("b", b, windows=64)], bootstrap=60)
    assert "512 and 64 validation windows" in found.refused[0].reasons[0]
    two = [Ladder(name, replace(runs, facts={"bits_per_byte": runs.loss}), tokenizer=name, corpus=name)
           for name, runs in (("a", a), ("b", b))]  # fmt: skip
    assert "other text (a and b)" in compare_ladders(two, metric="bits_per_byte", bootstrap=60).refused[0].reasons[0]


def test_bits_per_byte_compares_ladders_of_other_tokenizers(paired):
    a, b = (replace(runs, facts={"bits_per_byte": runs.loss / 3}) for runs in PAIR)
    ladders = [Ladder("a", replace(a, loss=a.loss * 1.3), tokenizer="x"), Ladder("b", b, tokenizer="y")]
    (pair,) = compare_ladders(ladders, metric="bits_per_byte", bootstrap=60).pairs
    assert pair.multiplier == pytest.approx(paired.multiplier, rel=1e-4)
    assert any("other tokenizers" in note for note in pair.notes)
    missing = compare_ladders([ladders[0], Ladder("b", PAIR[1])], metric="bits_per_byte", bootstrap=60)
    assert "b: it has no column bits_per_byte" in missing.refused[0].reasons[0]


def test_what_is_not_known_is_said_and_not_refused():
    a, b = with_cells(PAIR[0], data_digest="x", tokenizer="t"), PAIR[1]
    assert any("taken for the other's: tokenizer of b, validation data" in note for note in compared(a, b).notes)
    assert not any("taken for" in note for note in compared(a, with_cells(b, data_digest="x", tokenizer="t")).notes)


def test_a_comparison_is_read_back_and_drawn():
    ladders = [Ladder("a", PAIR[0]), Ladder("b", PAIR[1]), Ladder("same", PAIR[0])]
    found = compare_ladders(ladders, bootstrap=60)
    assert [pair.b for pair in found.pairs] == ["b"] and [pair.b for pair in found.refused] == ["same"]
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Comparison.from_json(content) == found and set(content) == {"pairs", "refused", "ladders", "settings"}
    keys = {"a", "b", "multiplier", "multiplier_interval", "at", "along", "exponents_differ", "verdict"}
    assert keys <= set(content["pairs"][0]) and {"C", "multiplier", "interval"} <= set(content["pairs"][0]["along"])
    assert "a and same are not compared:\n  a and same hold the same runs" in describe_comparison(found)
    above, below = multipliers(found, {one.name: one.runs for one in ladders}).axes
    shown = {line.get_label() for axes in (above, below) for line in axes.lines}
    assert {"a, compute-optimal", "b, compute-optimal"} <= shown and any("b: 0.8" in str(label) for label in shown)
    with pytest.raises(BadInput, match="holds no pairs"):
        Comparison.from_json({"rows": 1})


@pytest.mark.parametrize(
    ("count", "settings", "words"),
    [(1, {}, "takes two or more"), (2, {"metric": "ppl"}, "use one of loss, bits_per_byte"),
     (2, {"bootstrap": 9}, "needs 40 draws"), (2, {"bootstrap": "9"}, "bootstrap '9' is not a whole number"),
     (2, {"seed": 1.5}, "not a whole"), (3, {}, "two ladders are named 'a'")],
)  # fmt: skip
def test_bad_settings_are_said(count, settings, words):
    ladders = [Ladder("a", PAIR[0]), Ladder("b", PAIR[1]), Ladder("a", PAIR[1])][:count]
    with pytest.raises(BadInput, match=words):
        compare_ladders(ladders, **settings)


def write(path, named: dict[str, Runs]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "params", "tokens", "loss", "arm"])
        for arm, runs in named.items():
            for i, row in enumerate(zip(runs.params, runs.tokens, runs.loss, strict=True)):
                writer.writerow([f"{arm}-{i}", *row, arm])
    return str(path)


def test_the_command_compares_tables_and_arms_and_refuses_in_a_line(tmp_path, capsys):
    a, b = (write(tmp_path / f"{name}.csv", {name: runs}) for name, runs in zip("ab", PAIR, strict=True))
    both = write(tmp_path / "both.csv", dict(zip("ab", PAIR, strict=True)))
    out, figure = tmp_path / "compare.json", tmp_path / "compare.png"
    main(["compare", a, b, "--bootstrap", "60", "--json", str(out), "--figure", str(figure)])
    said = capsys.readouterr().out
    assert said.startswith("b needs 0.") and "outside the rows: not claimed" in said.splitlines()[0]
    assert figure.read_bytes().startswith(b"\x89PNG")
    tables = Comparison.from_json(json.loads(out.read_text()))
    main(["compare", both, "--by", "arm", "--bootstrap", "60", "--json", str(out)])
    arms = Comparison.from_json(json.loads(out.read_text()))
    assert arms.settings.by == "arm" and arms.pairs[0].multiplier == tables.pairs[0].multiplier
    out.unlink()
    for wrong, words in (
        ([a, a], "given twice"),
        ([a], "give another table or sweep, or part this one: --by arm"),
        ([a, "--by", "arm"], "has the one value 'a'"),
        ([a, b, "--by", "arm"], "parts one table and 2 are given"),
        ([a, b, "--metric", "bits_per_byte"], "nothing is compared: a: it has no column bits_per_byte"),
        ([a, str(tmp_path / "none.csv")], "cannot be read"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *wrong, "--json", str(out)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and words in error and error.count("\n") == 1 and not out.exists()


def test_what_a_sweep_says_of_itself_is_read(tmp_path, capsys):
    for name, tokenizer, runs in (("one", "sentencepiece:512", PAIR[0]), ("two", "bytes", PAIR[1])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "runs.csv", {name: runs})
        (tmp_path / name / "facts.json").write_text(json.dumps({"tokenizer": tokenizer, "corpus": "text"}))
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "one"), str(tmp_path / "two")])
    error = capsys.readouterr().err
    assert "tokenizers sentencepiece:512 and bytes" in error and "--metric bits_per_byte" in error


@pytest.mark.parametrize(
    ("value", "interval", "words"),
    [(0.834, (0.79, 0.88), "0.83x (0.79 to 0.88)"), (37, (30.04, None), "37.0x (30.0 to any number)"),
     (3.7e7, (3.4e7, 4e7), "3.70e7x (3.40e7 to 4.00e7)"), (2e-7, (0.0, 3e-7), "2.00e-7x (0.00e0 to 3.00e-7)")],
)  # fmt: skip
def test_multipliers_of_any_size_are_short(value, interval, words):
    assert times_words(value, interval) == words


def test_a_long_name_keeps_its_table_in_columns():
    pair = replace(compared(*PAIR), a="a-ladder-of-a-long-name")
    lines = _describe_pair(pair, "nats a token").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("C of a-ladder-of-a-long-name "))
    column = lines[head].index("multiplier")
    for line in lines[head + 1 : head + 6]:
        assert line[column - 1] == " " and line[column].isdigit(), line


def test_the_seeds_of_a_table_are_its_ladders_too():
    half = len(PAIR[0]) // 2
    runs = replace(PAIR[0], seed=("0",) * half + ("1",) * (len(PAIR[0]) - half), cells={})
    parted = runs.arms("seed")
    assert list(parted) == ["0", "1"] and len(parted["0"]) == half
    with pytest.raises(BadInput, match="no column 'hue' to part runs by; it has"):
        runs.arms("hue")
