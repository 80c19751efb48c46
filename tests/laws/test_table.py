"""A table is read under any convention its columns allow, in any order, and what cannot be so is said in a line."""

import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.errors import BadInput
from gptjax.files import write_json
from gptjax.laws.analysis import fit_all, require_law
from gptjax.laws.checks import read_curves, read_runs
from gptjax.laws.drawing.report import write_report
from gptjax.laws.envelope import envelope
from gptjax.laws.fit import Choices
from gptjax.laws.forecaster import read_forecaster
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.isoflop import isoflop
from gptjax.laws.parametric import parametric
from gptjax.laws.predict import predict
from gptjax.laws.table import CONVENTIONS, Runs
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.loop import table_row, to_csv, to_parquet

OPTIMIZED = True
TIED = GPTConfig(vocab_size=61, context=16, d_model=24, n_layers=3, n_heads=4, tied=True)
N_OF = {
    "6n_total": "total",
    "6n_with_head": "with_head",
    "6n_non_embedding": "non_embedding",
    "6n_attention": "with_head",
    "appendix_f": "total",
    "table_a4": "total",
}
UNTIED = GPTConfig(vocab_size=61, context=16, d_model=32, n_layers=2, n_heads=4, tied=False, positions="rope")


def ledger_row(name, config, **facts):
    """Make the row that a sweep records of a finished run of this shape."""
    row = {"run": name, "status": "done", "role": "cell", "reason": "", "size": "d", "budget": 1e12, "seed": 0}
    row |= {"steps": 1000, "batch": 64, "lr": 0.01, "b2": 0.95, "epochs": 0.5, "tokens": 1_024_000, "tokens_paid": 1e6}
    row |= {"loss": 3.0, "loss_se": 0.01, "bits_per_byte": 1.5, "seconds": 1.0, "device": "cpu", "fingerprint": "f"}
    cost = config.cost(config.context)
    row |= {"params": {**cost.params, "padding": cost.padding}, "flops_per_token": dict(cost.flops)}
    return {**row, "data_digest": "d", **facts}


@pytest.fixture
def sweep_table(tmp_path):
    """A table of two shapes as a sweep writes it, with a failed run."""
    rows = [ledger_row(*named) for named in (("tied", TIED), ("untied", UNTIED))]
    failed = {"run": "lost", "status": "failed", "role": "cell", "reason": "diverged"}
    sizes = (TIED.cost(16).total, UNTIED.cost(16).total, 0)
    path = tmp_path / "runs.csv"
    table = [table_row(row, n, "6n_total") for row, n in zip([*rows, failed], sizes, strict=True)]
    path.write_text(to_csv(table))
    return path


def write(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


def equal(a: Runs, b: Runs):
    for name in (field.name for field in fields(Runs) if field.name not in ("counts", "facts", "cells", "dropped")):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert a.conventions == b.conventions and a.facts.keys() == b.facts.keys()
    for name in a.conventions:
        np.testing.assert_array_equal(asdict(a.counts[name])["params"], asdict(b.counts[name])["params"])
        np.testing.assert_array_equal(asdict(a.counts[name])["flops"], asdict(b.counts[name])["flops"])
    for name in a.facts:
        np.testing.assert_array_equal(a.fact(name), b.fact(name))
    assert a.cells.keys() == b.cells.keys()
    for name in a.cells:
        np.testing.assert_array_equal(a.cells[name], b.cells[name])


def test_conventions_are_those_of_the_models_and_count_what_a_sweep_recorded(sweep_table):
    assert list(CONVENTIONS) == list(TIED.cost(16).flops) == list(N_OF)
    runs = read_runs(sweep_table)
    assert runs.run == ("tied", "untied") and runs.conventions == tuple(CONVENTIONS)
    for name, what in N_OF.items():
        for i, cost in enumerate((TIED.cost(16), UNTIED.cost(16))):
            counted = runs.counted(name)
            assert counted.params[i] == getattr(cost, what), name
            assert counted.flops[i] == pytest.approx(cost.flops[name] * runs.tokens[i], rel=1e-9), name
            assert name in counted.convention
        equal(read_runs(sweep_table, name), runs.counted(name))
    equal(runs.counted(""), runs)


def test_n_comes_from_its_own_column_or_the_groups_and_c_from_its_own_or_6nd(tmp_path):
    own = read_runs(write(tmp_path, "params_non_embedding,tokens,loss\n2e6,1e8,3\n"), "6n_non_embedding")
    assert own.params[0] == 2e6 and own.flops[0] == 12e14 and own.conventions == ("6n_non_embedding",)
    groups = (
        "params,tokens,loss,params_embedding,params_positions,params_attention,params_mlp,params_norm,params_head\n"
    )
    runs = read_runs(write(tmp_path, groups + "7e3,1e8,3,1000,0,2000,4000,100,0\n"))
    assert runs.conventions == ("6n_total", "6n_with_head", "6n_non_embedding")  # attention's FLOPs are in no column
    assert [runs.counts[name].params[0] for name in runs.conventions] == [7100, 7100, 6100]
    with pytest.raises(BadInput, match="allows 6n_total, 6n_with_head, 6n_non_embedding; add columns params_total and"):
        runs.counted("appendix_f")
    with pytest.raises(BadInput, match="'chinchilla' is not at hand"):
        runs.counted("chinchilla")
    with pytest.raises(BadInput, match="allows none by name; add columns params_total and flops_6n_total"):
        read_runs(write(tmp_path, "params,tokens,loss\n2e6,1e8,3\n"), "6n_total")


def test_taking_rows_takes_every_column_of_them(sweep_table):
    runs = read_runs(sweep_table)
    header, first, second, *_ = sweep_table.read_text().splitlines()
    sweep_table.write_text("\n".join([header, second, first]))
    equal(runs.take(np.array([1, 0])), read_runs(sweep_table))
    assert runs.take(np.array([1, 1, 1])).counted("table_a4").flops.tolist() == 3 * [runs.counts["table_a4"].flops[1]]


def test_facts_are_columns_and_unknown_where_blank(sweep_table, tmp_path):
    runs = read_runs(sweep_table)
    assert runs.fact("lr").tolist() == [0.01, 0.01] and (runs.tokens / runs.fact("steps")).tolist() == [1024, 1024]
    blank = read_runs(write(tmp_path, "params,tokens,loss,lr\n2e6,1e8,3,\n2e6,2e8,3,0.1\n"))
    assert np.isnan(blank.fact("lr")).tolist() == [True, False] and np.isnan(blank.fact("batch")).all()


def test_of_each_cell_the_best_recipe_is_kept(tmp_path):
    path = write(
        tmp_path,
        "run,params,tokens,loss,seed,lr,batch\n"
        "a,1e6,1e8,3.1,0,0.01,8\n"
        "b,1e6,1e8,3.0,0,0.02,8\n"
        "c,1e6,1.001e8,3.2,0,0.02,16\n"  # the same cell, its tokens rounded to another batch
        "d,1e6,1e8,3.3,1,0.01,8\n"  # another seed
        "e,1e6,2e8,2.9,0,0.01,8\n"  # other tokens
        "f,2e6,1e8,2.8,0,0.01,8\ng,2e6,1e8,2.7,0,0.01,8\n",  # repeated, and nothing tuned
    )
    runs = read_runs(path)
    assert len(runs) == 7
    tuned = runs.tuned()
    assert tuned.run == ("b", "d", "e", "f", "g")
    assert [(drop.run, drop.reason.split(";")[0]) for drop in tuned.dropped] == [
        ("a", "loss 3.1 at lr 0.01, batch 8"),
        ("c", "loss 3.2 at lr 0.02, batch 16"),
    ]
    assert "reaches 3 as b at lr 0.02, batch 8" in tuned.dropped[0].reason
    assert tuned.tuned() is tuned


def test_the_highest_losses_are_left_out_and_listed(tmp_path):
    runs = read_runs(write(tmp_path, "run,params,tokens,loss\na,1e6,1e8,3\nb,2e6,1e8,5\nc,3e6,1e8,2\nd,4e6,1e8,4\n"))
    fewer = runs.drop_highest_loss(2)
    assert fewer.run == ("a", "c") and [drop.run for drop in fewer.dropped] == ["b", "d"]
    assert "loss 5 is one of the 2 highest" in fewer.dropped[0].reason and runs.drop_highest_loss(0) is runs
    for count_ in (-1, 4):
        with pytest.raises(BadInput, match="drop between 0 and 3"):
            runs.drop_highest_loss(count_)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("params,tokens\n1e6,1e8\n", "no column 'loss'"),
        ("params,tokens,loss\n", "no rows"),
        ("", "no rows"),
        ("params,tokens,loss\n1e6,1e8,\n", "line 2: loss '' is not a number"),
        ("params,tokens,loss\n1e6,1e8,3\n1e6,2e8,nan\n", "line 3: loss nan is not a finite positive"),
        ("params,tokens,loss\n1e6,inf,3\n", "tokens inf is not a finite positive"),
        ("params,tokens,loss\n1e6,-1,3\n", "tokens -1 is not a finite positive"),
        ("params,tokens,loss\n0,1e8,3\n", "params 0 is not a finite positive"),
        ("params,tokens,loss,lr\n1e6,1e8,3,0\n", "lr 0 is not a finite positive"),
        ("params,tokens,loss\n1e6,1e8,85.3\n", "looks like a perplexity; write its logarithm, 4.446"),
        ("params,tokens,loss\n7,140,2\n", "params 7 is not from 100 to 1e+16 and looks like millions or billions"),
        ("params,tokens,loss\n1e17,1e8,3\n", "params 1e+17 is not from"),
        ("params,tokens,loss\n7e9,140,2\n", "looks like billions; write 140e9 tokens"),
        (
            "params,tokens,loss\n7e9,140e9,2\n7e9,140000,2\n",
            "line 3: tokens 140000 for 7e+09 parameters looks like mill",
        ),
        ("params,tokens,loss\n1e6,0.02,3\n", "looks like billions; write 0.02e9 tokens"),
        ("params,tokens,loss\n1e4,15,3\n", "tokens 15 for 10000 parameters looks like"),
        ("params,tokens,loss\n1e6,1e19,3\n", "tokens 1e+19 is above 1e+18"),
        ("params,tokens,flops,loss\n1e9,2e10,1.39,2\n", "is 1.16e-20 times 6 N D = 1.2e+20; write FLOPs"),
        ("params,tokens,flops,loss\n1e9,2e10,1e23,2\n", "is 833 times 6 N D"),
        ("params,tokens,loss,status\n1e6,1e8,3,failed\n", "no row to fit"),
        (
            "run,params,tokens,loss\nx,1e6,1e8,3\ny,1e6,1e8,4\nx,1e6,1e8,5\n",
            "lines 2 and 4 are both run 'x' and differ",
        ),
        ("params,tokens,loss\n1e6,1e8,\xff\n", "not UTF-8"),
        ("params,tokens,loss\n1e6,1e8,3,1\n", "line 2 has 4 cells and the header 3; mend it, quoting"),
        ("params,tokens,loss\n1e6,1e8,3\n1e6\n", "line 3 has 1 cells and the header 3; mend the line"),
        ("params;tokens;loss\n1e6;1e8;3,1\n", "by semicolons; save it with commas"),
        ("params\ttokens\tloss\n1e6\t1e8\t3\n", "by tabs"),
        ("params,tokens,loss,loss\n1e6,1e8,3,4\n", "column 'loss' 2 times"),
    ],
)
def test_bad_tables_get_one_line_that_teaches(tmp_path, table, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(table.encode("latin-1"))
    with pytest.raises(BadInput) as error:
        read_runs(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_failed_and_repeated_rows_are_dropped_and_listed(tmp_path):
    path = write(
        tmp_path,
        "run,params,tokens,loss,status,note\nx,1e6,1e8,3,done,\ny,2e6,1e8,,failed,\nx,1000000,1e8,3.0,done,b\n",
    )
    runs = read_runs(path)
    assert runs.run == ("x",) and runs.flops[0] == 6e14 and "6ND" in runs.convention
    assert [(drop.run, drop.reason) for drop in runs.dropped] == [
        ("y", "status is 'failed'"),
        ("x", "exact duplicate of line 2"),
    ]


def test_curves_are_read_in_order_and_belong_to_one_size(tmp_path):
    header = "run,params,tokens,flops,loss\n"
    curves = read_curves(write(tmp_path, header + "a,1e6,2e8,12e14,3\nb,2e6,1e8,12e14,3\na,1e6,1e8,6e14,4\n"))
    assert [curve.run for curve in curves] == ["a", "b"] and curves[0].tokens.tolist() == [1e8, 2e8]
    assert curves[0].loss.tolist() == [4, 3] and curves[0].params == 1e6
    with pytest.raises(BadInput, match="run 'a' has 2e\\+06 parameters and had 1e\\+06 before"):
        read_curves(write(tmp_path, header + "a,1e6,2e8,12e14,3\na,2e6,1e8,12e14,3\n"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_rows_changes_no_fit(tmp_path, seed):
    law = ChinchillaLaw(A=45, B=330, E=1.75, alpha=0.37, beta=0.42)
    n, c = (grid.ravel() for grid in np.meshgrid(6e3 * 1.6 ** np.arange(10), 1e11 * 3.0 ** np.arange(4)))
    d = c / (6 * n)
    rng = np.random.default_rng(seed)
    loss = law.loss(n, d) + 0.003 * rng.standard_normal(len(n))
    lines = [f"{i},{n[i]:.17g},{d[i]:.17g},{loss[i]:.17g}" for i in range(len(n))]

    def numbers(lines):
        runs = read_runs(write(tmp_path, "\n".join(["run,params,tokens,loss", *lines])))
        flat = [isoflop(runs), isoflop(runs, interp="akima"), envelope(runs), parametric(runs)]
        assert all(fit.params_law and fit.tokens_law for fit in flat)
        return [x for fit in flat for law in (fit.params_law, fit.tokens_law) for x in (np.log(law.coef), law.exponent)]

    assert numbers(list(rng.permutation(lines))) == pytest.approx(numbers(lines), rel=1e-6)


def test_a_table_is_the_same_as_csv_and_as_parquet(tmp_path):
    rows = [table_row(ledger_row(f"r{i}", TIED, loss=3.0 - i / 7), 1000 + i, "6n_total") for i in range(3)]
    failed = {"run": "x", "status": "failed", "role": "cell", "reason": "diverged"}
    rows.append(table_row(failed, 1000, "6n_total"))
    (tmp_path / "runs.csv").write_text(to_csv(rows))
    (tmp_path / "runs.parquet").write_bytes(to_parquet(rows))
    csv, parquet = (read_runs(tmp_path / f"runs.{kind}", "6n_with_head") for kind in ("csv", "parquet"))
    assert csv.run == parquet.run == ("r0", "r1", "r2") and csv.dropped == parquet.dropped
    for name in ("params", "tokens", "flops", "loss", "loss_se"):
        np.testing.assert_allclose(getattr(parquet, name), getattr(csv, name), rtol=1e-9)
    (tmp_path / "bad.parquet").write_text("params,tokens,loss\n")
    for name in ("bad.parquet", "absent.parquet"):
        with pytest.raises(BadInput, match=name):
            read_runs(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1e8, 2e9, 30.0), (2e8, 4e9, 25.0)], "looks like a perplexity"),
        ([(1e8, 2e9, 12.0), (2e8, 4e9, 11.0)], "looks like perplexities"),
        ([(400.0, 2e10, 3.0), (800.0, 4e10, 2.9)], "looks like millions"),
        ([(1e8, 2e9, 3.0), (2e8, 4e9, -2.0)], "finite positive"),
    ],
)
def test_columns_in_other_units_are_refused(tmp_path, rows, words):
    lines = "".join(f"{n:g},{d:g},{loss:g}\n" for n, d, loss in rows)
    with pytest.raises(BadInput, match=words) as error:
        read_runs(write(tmp_path, "params,tokens,loss\n" + lines))
    assert "\n" not in str(error.value)


def test_flops_that_drift_against_tokens_are_told_and_a_constant_factor_is_not(tmp_path):
    def table(factor):
        lines = (f"{n:g},{20 * n:g},{120 * n * n * factor(n):g},{1.7 + 400 / n**0.34:g}\n" for n in (1e8, 4e8, 16e8))
        return read_runs(write(tmp_path, "params,tokens,flops,loss\n" + "".join(lines)))

    assert table(lambda n: 1.3).warnings == ()
    (warning,) = table(lambda n: (n / 1e8) ** 0.5).warnings
    assert "flops over 6 N D rises" in warning and "from 1 " in warning and "to 4 " in warning


def test_what_a_spreadsheet_leaves_is_read_past(tmp_path):
    text = "params,tokens,loss,,\r\n1e8,2e9,3.1,,\r\n,,,,\r\n2e8,4e9,2.9,,\r\n,,,,\r\n"
    assert len(read_runs(write(tmp_path, text))) == 2
    long = f'params,tokens,loss,note\n1e8,2e9,3.1,"{"x" * 200_000}"\n2e8,4e9,2.9,\n'
    assert len(read_runs(write(tmp_path, long))) == 2
    words = "params,tokens,loss,status\n1e8,2e9,3.1,finished\n2e8,4e9,2.9,Completed\n3e8,4e9,2.9,crashed\n"
    runs = read_runs(write(tmp_path, words))
    assert len(runs) == 2 and "crashed" in runs.dropped[0].reason


SIZES = st.sampled_from([1e6, 1.0000001e6, 3e6, 1e8, 1e10])
ROWS = st.lists(st.tuples(SIZES, SIZES, st.sampled_from([2.0, 2.0000001, 3.0, 5.5])), min_size=1, max_size=9)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_any_small_table_gives_a_law_or_a_line(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_text("params,tokens,loss\n" + "".join(f"{n},{20 * d},{loss}\n" for n, d, loss in rows))
        try:
            law = fit_all(read_runs(path), Choices(bootstrap=40))
            write_json(Path(folder, "law.json"), law.to_json())
            require_law(law)
            predict(read_forecaster(folder, force=True), flops=1e20)
        except BadInput as error:
            assert "\n" not in str(error)


def test_a_rate_sweep_of_few_cells_is_fitted_without_a_law_of_size():
    n, lr = np.repeat([1e8, 2e8, 4e8], 4), np.tile([1e-3, 2e-3, 4e-3, 8e-3], 3)
    loss = 3 + 1e8 / n + 0.1 * np.log(lr / 2.5e-3) ** 2
    table = "params,tokens,loss,lr\n" + "".join(f"{a},4e9,{b},{c}\n" for a, b, c in zip(n, loss, lr, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "runs.csv").write_text(table)
        law = fit_all(read_runs(Path(folder, "runs.csv")))
        require_law(law)  # the rates are what it tells
        assert len(law.hyper["lr"]["cells"]) == 3
        assert "learning rate" in write_report(Path(folder), sweeps=0).read_text()


def test_a_parquet_file_whose_names_or_values_are_not_utf8_is_refused_in_one_line(tmp_path):
    path = tmp_path / "runs.parquet"
    for sound, damaged in ((b"loss", b"lo\xf3s"), (b"note", b"no\xf3e")):
        columns = {"params": [1e6], "tokens": [2e7], "loss": [3.0], "name": ["note"]}
        pq.write_table(pa.table(columns), path, compression="none", write_statistics=False, use_dictionary=False)
        path.write_bytes(path.read_bytes().replace(sound, damaged))
        with pytest.raises(BadInput, match=r"runs\.parquet cannot be read \(.*; give a parquet or CSV") as error:
            read_runs(path)
        assert "\n" not in str(error.value)


def test_groups_of_any_family_are_counted_and_a_transformer_lacks_none(tmp_path):
    """Arms of two families: a cell that a family has no use for is empty."""
    header = (
        "arm,params,tokens,loss,params_embedding,params_positions,params_attention,params_mlp,params_norm,params_head"
    )
    rows = [f"gpt,{n},{40 * n},3.{i},1000,0,{n - 2000},900,100,0," for i, n in enumerate((9000, 20000, 40000))]
    rows += [f"lstm,{n},{40 * n},3.{i + 3},1000,,,,,500,{n - 1500}" for i, n in enumerate((9000, 20000, 40000))]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header + ",params_recurrent", *rows]) + "\n")
    runs = read_runs(path)
    np.testing.assert_array_equal(runs.counted("6n_total").params, [9000, 20000, 40000] * 2)
    np.testing.assert_array_equal(runs.counted("6n_non_embedding").params, [8000, 19000, 39000, 7500, 18500, 38500])
    path.write_text("\n".join([header, *(row.replace(",900,", ",,").removesuffix(",") for row in rows[:3])]) + "\n")
    assert "6n_with_head" not in read_runs(path).counts
