"""The door of Python: what `import gptjax` offers, that it is what the verbs do, and that data frames are tables."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

import gptjax
from gptjax.errors import BadInput
from gptjax.generate import Sampling
from gptjax.laws.fit import Choices
from gptjax.laws.frames import Frame
from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.table import Runs
from gptjax.models.gpt import GPTConfig
from helpers import PADDED, call, environment, logits_of, needed, refused, saved_run, tiny

OPTIMIZED = True
OFFERED = (
    *("fit", "compare", "predict", "plan", "read", "train", "sweep", "load", "generate", "evaluate", "export"),
    *("read_law", "report", "score"),
)


def rows(budgets=(1e18, 1e19, 1e20, 1e21)) -> dict[str, np.ndarray]:
    """Give a sweep simulated from a published law: a dict of columns."""
    rng = np.random.default_rng(0)
    c = np.repeat(budgets, 7)
    n = np.round(np.sqrt(c / 120) * 2.0 ** np.tile(np.linspace(-2, 2, 7), len(budgets)))
    d = np.round(c / 6 / n)
    loss = BESIROGLU_2024.loss(n, d) * np.exp(0.003 * rng.standard_normal(len(n)))
    return {"params": n, "tokens": d, "loss": loss}


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    return rows()


@pytest.fixture(scope="module")
def law(table):
    return gptjax.fit(table, bootstrap=60)


def as_csv(table, path):
    lines = [",".join(table), *(",".join(str(x) for x in line) for line in zip(*table.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


# ---- the import


def test_the_import_is_cheap_and_lists_what_it_offers():
    code = (
        "import sys, gptjax; heavy = {'jax', 'numpy', 'scipy', 'matplotlib', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy; assert set(gptjax.__all__) <= set(dir(gptjax));"
        "from gptjax import *; assert callable(fit) and issubclass(BadInput, ValueError)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    assert set(OFFERED) | {"BadInput"} == set(gptjax.__all__)
    assert gptjax.BadInput is BadInput
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = gptjax.fitt


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_offered_is_documented(name):
    offered = getattr(gptjax, name)
    assert callable(offered) and len(inspect.getdoc(offered) or "") > 80
    assert inspect.signature(offered).parameters


@pytest.mark.parametrize("first", ["import gptjax.train.step, gptjax.sweep.plan, gptjax.generate", "pass"])
def test_rooms_that_are_verbs_stay_rooms(first):
    code = f"""
{first}
import inspect, gptjax
for name in ("train", "sweep", "generate"):
    assert callable(getattr(gptjax, name)) and "config" in str(inspect.signature(gptjax.train))
from gptjax.generate import Sampling
import gptjax.train.step as step, gptjax.sweep.plan
assert step.__name__ == "gptjax.train.step" and gptjax.sweep.plan.SweepConfig and gptjax.generate.Sampling is Sampling
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    assert Sampling is gptjax.generate.Sampling


# ---- frames


def kinds(table):
    """Yield the same table as every kind of frame."""
    yield "lists", {name: column.tolist() for name, column in table.items()}
    yield "pyarrow", pa.table(table)
    pandas, polars = needed("pandas", "test"), needed("polars", "test")
    yield "pandas", pandas.DataFrame(table)
    yield "polars", polars.DataFrame(table)
    yield "series", {name: polars.Series(column) for name, column in table.items()}
    yield "interchange", OldFrame(pa.table(table))


class OldFrame:
    """A frame that has the older protocol alone."""

    def __init__(self, frame):
        self.frame = frame

    def __dataframe__(self, **settings):
        return self.frame.__dataframe__(**settings)


def same(a: Runs, b: Runs) -> None:
    for field in fields(Runs):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "counts":
            assert {k: (v.params.tolist(), v.flops.tolist()) for k, v in one.items()} == {
                k: (v.params.tolist(), v.flops.tolist()) for k, v in other.items()
            }
        elif field.name in ("facts", "cells"):
            assert set(one) == set(other)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
        else:
            np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_frames_of_every_kind_give_equal_runs_and_lose_no_digit(table):
    full = {
        **table,
        "run": [f"r{i}" for i in range(28)],
        "seed": [0] * 28,
        "loss_se": [0.01, None] * 14,
        "lr": [1e-3] * 28,
        "arm": ["a", "b"] * 14,
    }
    full = {name: np.array(column, dtype=float if name == "loss_se" else None) for name, column in full.items()}
    read = gptjax.read(full)
    assert (read.loss == table["loss"]).all() and (read.params == table["params"]).all()
    assert np.isnan(read.loss_se[1]) and read.loss_se[0] == 0.01 and set(read.cells["arm"]) == {"a", "b"}
    for _, frame in kinds(full):
        same(read, gptjax.read(frame))
    assert gptjax.read(read) is read


def test_a_file_gives_the_runs_of_a_frame_and_a_frame_those_of_a_file(table, tmp_path):
    named = {"run": np.array([f"r{i}" for i in range(28)]), **table}
    frame, file = gptjax.read(named), gptjax.read(as_csv(named, tmp_path / "t.csv"))
    same(frame, file)
    assert len(gptjax.read(str(tmp_path / "t.csv"))) == 28


def test_errors_name_the_row_as_the_frame_does(table):
    pandas = needed("pandas", "test")
    loss = table["loss"].copy()
    loss[3] = -1
    with pytest.raises(BadInput, match=r"the frame row 3: loss -1\.0 is not a finite positive"):
        gptjax.read(table | {"loss": loss})
    labelled = pandas.DataFrame(table | {"loss": loss}, index=[f"cell {i}" for i in range(28)])
    with pytest.raises(BadInput, match="the frame row cell 3: loss"):
        gptjax.read(labelled)
    twice = table | {"run": np.array(["same"] * 28)}
    with pytest.raises(BadInput, match="rows 0 and 1 are both run 'same'"):
        gptjax.read(twice)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ([True, False, True], "holds bool and must hold a number"),
        (["3.1", "low", "2.9"], "row 1: loss 'low' is not a number"),
        ([[3.0], [2.0], [1.0]], "holds list"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "holds struct"),
        ([3.0, None, 2.9], "row 1: loss '' is not a number"),
        ([3.0, "x", 2.9], "cannot be read"),
        ([3.0, 2.9], "of equal length"),
        (np.ones((3, 2)), "cannot be read"),
        (3.0, "is one value and no column"),
        (np.array([1, 2, 3], complex), "cannot be read"),
        (np.array(["2020-01-01"] * 3, "M8[s]"), "must hold a number"),
        ([20.0, 21.0, 22.0], "looks like a perplexity"),
    ],
)
def test_wrong_types_are_refused_in_one_line(loss, words):
    with pytest.raises(BadInput, match=words) as refusal:
        gptjax.read({"params": [1e6, 2e6, 3e6], "tokens": [1e8, 2e8, 3e8], "loss": loss})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("nothing", [7, None, ["a"], {}, object(), ""])
def test_what_is_no_table_is_refused_in_one_line(nothing):
    with pytest.raises(BadInput) as refusal:
        gptjax.read(nothing)
    assert "\n" not in str(refusal.value)


def test_a_result_goes_into_any_frame(law, tmp_path):
    pandas, polars = needed("pandas", "test"), needed("polars", "test")
    frame = law.table()
    assert isinstance(frame, Frame) and len(frame) == 3 and frame["approach"][0] == "isoflop"
    assert polars.DataFrame(frame).to_dicts() == frame.to_dicts() == pa.table(frame).to_pylist()
    assert frame.to_pandas().equals(pandas.DataFrame(frame.to_dicts()))
    frame.save(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().startswith('"approach","status","a"')
    with pytest.raises(BadInput, match="no column 'c'"):
        frame["c"]
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(BadInput, match="cannot be written"):
            frame.save(tmp_path / "none" / name)


# ---- laws


def test_the_choices_are_those_of_the_verb(table):
    from gptjax.lab.laws import Chosen

    assert set(Chosen.__annotations__) == {field.name for field in fields(Choices)}
    for wrong, words in (
        ({"lossy": 1}, "did you mean loss"),
        ({"loss": "l7"}, "'l7' is not known"),
        ({"approaches": "best"}, "approach 'best'"),
        ({"coverage": -1}, "coverage -1"),
        ({"by": "arm"}, "no column 'arm'"),
    ):
        with pytest.raises(BadInput, match=words):
            gptjax.fit(table, **wrong)


@pytest.mark.slow
def test_fit_and_predict_write_what_their_verbs_write(capsys, table, tmp_path):
    csv = as_csv(table, tmp_path / "t.csv")
    choices = ("--bootstrap", 60, "--drop-highest-loss", 1)
    assert call(capsys, "fit", csv, *choices, "--json", tmp_path / "shell.json")[0] == 0
    law = gptjax.fit(csv, bootstrap=60, drop_highest_loss=1)
    law.save(tmp_path / "python.json")
    assert (tmp_path / "python.json").read_bytes() == (tmp_path / "shell.json").read_bytes()
    back = gptjax.read_law(tmp_path / "python.json")
    assert back.to_json() == law.to_json()

    asked = {"flops": 1e22, "inference_tokens": 1e12, "unique_tokens": 1e10, "count": 4}
    flags = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]
    code, out, _ = call(capsys, "predict", tmp_path / "python.json", *flags, "--json", tmp_path / "p.json")
    said = gptjax.predict(str(tmp_path / "python.json"), **asked)
    said.save(tmp_path / "q.json")
    assert (
        code == 0
        and out.startswith(str(said))
        and (tmp_path / "p.json").read_bytes() == (tmp_path / "q.json").read_bytes()
    )
    by_law = law.predict(**asked)
    assert by_law.loss == said.loss and by_law.loss_interval == said.loss_interval
    assert gptjax.predict(law.analysis, flops=1e22).params == gptjax.predict(law, flops=1e22).params
    with pytest.raises(BadInput, match="is not a directory"):
        law.save(tmp_path / "none" / "law.json")


@pytest.mark.slow
def test_arms_are_fitted_and_compared_as_by_their_verb(capsys, table, tmp_path):
    both = {name: np.concatenate([column, column]) for name, column in table.items()}
    both["loss"][28:] *= 1.02
    both["arm"] = np.array(["plain"] * 28 + ["worse"] * 28)
    csv = as_csv(both, tmp_path / "t.csv")
    flags = ("--by", "arm", "--bootstrap", 60, "--json", tmp_path / "shell.json")
    code, out, _ = call(capsys, "fit", csv, *flags)
    arms = gptjax.fit(both, by="arm", bootstrap=60)
    assert code == 0 and str(arms) in out and arms.to_json()["compared"][0]["arm"] == "worse"
    shell = json.loads((tmp_path / "shell.json").read_text())
    assert shell["compared"] == json.loads(json.dumps(arms.to_json()))["compared"]
    assert isinstance(arms.plot.arms(), Figure) and arms["plain"].isoflop and len(arms.table()) == 6
    assert well_formed(arms._repr_html_())


def test_a_prediction_has_its_keys_as_attributes():
    said = gptjax.predict("besiroglu-2024", flops=1e21)
    for name, value in said.prediction.items():
        assert getattr(said, name) == value and name in dir(said)
    assert said.loss == pytest.approx(BESIROGLU_2024.optimum(flops=1e21).loss)
    assert said.table().to_dicts()[0] == {
        "run": "prediction",
        "quantity": "flops",
        "value": 1e21,
        "low": None,
        "high": None,
    }
    with pytest.raises(AttributeError, match="no 'lost'"):
        _ = said.lost
    for wrong in (
        {},
        {"flops": 5},
        {"flops": "1e21"},
        {"flops": [1e20, 1e21]},
        {"flops": 1e21, "form": "nowhere"},
        {"flops": 1e21, "loss": 2.0},
        {"flops": 1e21, "device": ["abacus"]},
    ):
        with pytest.raises(BadInput) as refusal:
            gptjax.predict("besiroglu-2024", **wrong)
        assert "\n" not in str(refusal.value)
    with pytest.raises(BadInput, match="no published law"):
        gptjax.predict("nobody-2024", flops=1e21)
    with pytest.raises(BadInput, match="is no law"):
        gptjax.predict(3.0, flops=1e21)


def test_a_law_shows_its_figures_by_name(law):
    undrawable = {"prediction", "rates", "training"}  # there is no held-out run, no sweep of rates, no curve
    for name in dir(law.plot):
        if name in undrawable:
            with pytest.raises(BadInput, match="cannot be drawn"):
                getattr(law.plot, name)()
        else:
            figure = getattr(law.plot, name)()
            assert isinstance(figure, Figure) and figure.axes, name
    png, size = law.plot.isoflop()._repr_png_()
    assert png.startswith(b"\x89PNG") and size["width"] > 300
    alone = type(law)(law.analysis, None)
    assert isinstance(alone.plot.bootstrap(), Figure)
    with pytest.raises(BadInput, match="without its rows"):
        alone.plot.isoflop()
    assert {"isoflop", "optimum", "contours", "profile", "forecast"} <= set(dir(law.plot))


class Tags(HTMLParser):
    """Count what opens and closes, and keep the text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def well_formed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert not tags.open
    return tags


def test_html_is_well_formed_and_escapes_names(table, law):
    assert "isoFLOP" in well_formed(law._repr_html_()).text
    assert "nats a token" in well_formed(law.predict(flops=1e22)._repr_html_()).text
    evil = "<script>alert(1)</script>"
    named = gptjax.fit(table | {"convention": np.array([evil] * 28)}, approaches="isoflop", tables=False, bootstrap=40)
    tags = well_formed(named._repr_html_())
    assert "script" not in tags.seen and evil in tags.text
    tags = well_formed(Frame([{evil: evil}])._repr_html_())
    assert "script" not in tags.seen and tags.text == evil * 2


def test_ladders_are_compared_and_refused_alone(table):
    worse = table | {"loss": table["loss"] * 1.02}
    found = gptjax.compare(table, worse, bootstrap=60)
    assert [(one.a, one.b) for one in found.pairs] == [("A", "B")] and found.pairs[0].multiplier > 1.1
    with pytest.raises(BadInput, match="one table"):
        gptjax.compare(table)
    with pytest.raises(BadInput, match="given twice"):
        gptjax.compare("a.csv", "a.csv")


def test_a_plan_takes_the_law_that_fit_gave(law, tmp_path):
    law.save(tmp_path / "law.json")
    plans = [gptjax.plan(1e22, law=one, runs=20) for one in (law, law.analysis, tmp_path / "law.json")]
    assert len({str(one) for one in plans}) == 1 and "budget" in str(plans[0])
    for wrong in ({"law": 3}, {"noise": "low"}, {"flops": "1e22"}, {"flops": True}):
        with pytest.raises(BadInput) as refusal:
            gptjax.plan(**{"flops": 1e22} | wrong)
        assert "\n" not in str(refusal.value)


def test_a_sweep_is_planned_as_by_its_verb(capsys, tmp_path):

    assert call(capsys, "plan", "--flops", 1e21, "--json", tmp_path / "plan.json")[0] == 0
    assert gptjax.plan(flops=1e21).to_json() == json.loads((tmp_path / "plan.json").read_text())


# ---- models


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Save random weights as a run; give its directory, its config and its weights."""
    directory = tmp_path_factory.mktemp("run") / "r"
    config = GPTConfig(vocab_size=257, context=32, d_model=16, n_layers=2, n_heads=2)
    params = saved_run(directory, config, silent=range(128, 257))
    return directory, config, params


def test_logits_are_those_of_the_model(run):
    directory, config, params = run
    model = gptjax.load(directory)
    ids = np.random.default_rng(0).integers(0, 257, (3, 11))
    logits = model.logits(ids)
    assert logits.shape == (3, 11, 257) and logits.dtype == np.float32 and isinstance(logits, np.ndarray)
    ours = np.asarray(logits_of(config, params, ids, execution=PADDED))[..., :257]
    np.testing.assert_allclose(logits, ours, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.logits(ids[0].tolist())[0], logits[0], rtol=1e-4, atol=1e-4)
    assert model.config == config and model.tokenizer.vocab_size == 257 and model.step == 5
    at_step = gptjax.load(directory / "checkpoints" / "5")
    np.testing.assert_array_equal(at_step.logits(ids), logits)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[0.5]], "no token ids"),
        ([], "no token ids"),
        (np.zeros((1, 2, 3), int), "no token ids"),
        ([[257]], "the model has 257"),
        ([[-1]], "the model has 257"),
        (np.zeros((1, 33), int), "context of 32"),
    ],
)
def test_ids_that_are_none_are_one_line(run, ids, words):
    with pytest.raises(BadInput, match=words) as refusal:
        gptjax.load(run[0]).logits(ids)
    assert "\n" not in str(refusal.value)


def test_a_decoder_has_no_context_beside_its_ids(run):
    with pytest.raises(BadInput, match="family gpt reads no context"):
        gptjax.load(run[0]).logits([[1, 2]], context=[[1, 2]])


def test_what_is_generated_is_what_the_verb_prints(capsys, run):
    model = gptjax.load(run[0])
    for asked in ({"temperature": 0.0}, {"seed": 3, "top_k": 20}, {"seed": 4, "temperature": 0.7, "top_p": 0.9}):
        flags = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]
        text = model.generate("abc", tokens=8, **asked)
        assert call(capsys, "generate", run[0], "abc", "--tokens", 8, *flags)[1] == text + "\n"
        assert (
            "".join(model.stream("abc", tokens=8, **asked))
            == text
            == gptjax.generate(run[0], b"abc", tokens=8, **asked)
        )
    several = model.generate("abc", count=3, tokens=4)
    assert len(several) == 3 and all(text.startswith("abc") for text in several)
    for wrong in ({"count": 0}, {"temperature": -1.0}, {"tokens": 0}, {"seed": -1}):
        with pytest.raises(BadInput):
            model.generate("abc", **wrong)


def test_a_model_is_evaluated_and_exported_as_by_the_verbs(capsys, run, tmp_path):
    asked = {"corpus": "markov:documents=50,length=200", "sequences": 8}
    flags = ("--corpus", asked["corpus"], "--sequences", 8, "--json", tmp_path / "shell.json")
    assert call(capsys, "eval", run[0], *flags, "--csv", tmp_path / "shell.csv")[0] == 0
    found = gptjax.load(run[0]).evaluate(**asked)
    found.save(tmp_path / "python.json")
    assert (tmp_path / "python.json").read_bytes() == (tmp_path / "shell.json").read_bytes()
    assert found.to_csv() == (tmp_path / "shell.csv").read_text()
    assert found.table()["metric"][0] == "loss" and well_formed(found._repr_html_())
    for wrong in ({"sequences": 0}, {"examples": 0}, {"split": "test"}, {"tasks": ["nothing"]}):
        with pytest.raises(BadInput):
            gptjax.evaluate(run[0], **wrong)

    written = gptjax.export(run[0], tmp_path / "w", format="orbax")
    assert written.facts["step"] == 5
    ids = [[1, 2, 3]]
    np.testing.assert_array_equal(gptjax.load(tmp_path / "w").logits(ids), gptjax.load(run[0]).logits(ids))
    for wrong in ({"format": "onnx"}, {"dtype": "int4"}, {"format": "orbax"}):
        with pytest.raises(BadInput):
            gptjax.export(run[0], tmp_path / "w", **wrong)
    assert "exists" in refused(capsys, "export", run[0], tmp_path / "w", "--format", "orbax")


# ---- training


def test_overrides_set_fields_as_set_does(tmp_path):
    from gptjax.config import RunConfig
    from gptjax.lab.training import changed
    from gptjax.train.optim import OptimConfig

    config = changed(RunConfig(), {"steps": 7, "optim.warmup": 2, "optim.lr": 3e-4, "trackers": []})
    assert (config.steps, config.optim.lr, config.trackers) == (7, 3e-4, ())
    assert changed(RunConfig(), {"optim": OptimConfig(lr=1.0)}).optim.lr == 1.0
    for wrong, words in (
        ({"stepps": 3}, "did you mean steps"),
        ({"steps": 1.5}, "whole number"),
        ({"optimm": OptimConfig()}, "optimm"),
    ):
        with pytest.raises(BadInput, match=words) as refusal:
            gptjax.train(RunConfig(), tmp_path / "r", **wrong)
        assert "--set" not in str(refusal.value) and not (tmp_path / "r").exists()
    with pytest.raises(BadInput, match="is not a RunConfig"):
        gptjax.train(3, tmp_path / "r")


@pytest.mark.slow
def test_a_run_is_trained_and_a_sweep_refused_without_a_trace_on_the_process(cache, tmp_path):
    import os
    import signal

    before = dict(os.environ), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.unraisablehook
    sweep = tiny(cache)
    result = gptjax.train(sweep.base, tmp_path / "r", model=sweep.shape(4), steps=6, **{"optim.warmup": 2})
    assert result.status == "done" and result.steps == 6 and gptjax.load(tmp_path / "r").step == 6
    for wrong, words in (
        ({"base.steps": 4}, "set budgets"),
        ({"executor": "abacus"}, "executor 'abacus'"),
        ({"workers": 0}, "at least 1"),
        ({"resources": {"minutes": 3}}, "is for executor slurm or ray"),
        ({"executor": "ray", "workers": 2}, "is for executor local"),
    ):
        with pytest.raises(BadInput, match=words):
            gptjax.sweep(sweep, tmp_path / "s", **wrong)
    assert before == (dict(os.environ), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT),
                      sys.unraisablehook)  # fmt: skip
