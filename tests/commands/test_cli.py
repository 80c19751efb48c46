"""The command line as other tools call it: verbs, exit codes, JSON keys, and one line for each mistake."""

import json
import re
from dataclasses import asdict

import pytest

from gptjax.run.result import Result
from helpers import ROOT, RUN, call, refused

TABLE = "run,params,tokens,loss\n" + "".join(
    f"r{i}{j},{n:.0f},{c / 6 / n:.0f},{1.7 + 400 / n**0.34 + 410 / (c / 6 / n) ** 0.28:.6f}\n"
    for i, c in enumerate((1e18, 1e19, 1e20, 1e21))
    for j, n in enumerate((c / 120) ** 0.5 * 2.0**k for k in (-2, -1, 0, 1, 2))
)


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(f"CACHE = {str(tmp_path / 'cache')!r}\n{RUN}")
    return path


@pytest.mark.slow
def test_fit_writes_the_promised_keys(capsys, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    code, out, _ = call(capsys, "fit", tmp_path / "t.csv", "--json", tmp_path / "law.json")
    fits, _, said = out.partition("\n\n")
    assert code == 0 and sum(not line.startswith(" ") for line in fits.splitlines()) == 3
    assert "N* =" in said
    law = json.loads((tmp_path / "law.json").read_text())
    assert set(law["approaches"]) == {"envelope", "isoflop", "parametric"}
    for found in law["approaches"].values():
        assert {"a", "b", "a_interval", "b_interval", "used", "dropped", "status"} <= set(found)
    assert {"A", "B", "E", "alpha", "beta"} <= set(law["approaches"]["parametric"]) and law["convention"]
    assert law["approaches"]["parametric"]["alpha"] == pytest.approx(0.34, abs=0.01)
    code, out, _ = call(capsys, "fit", tmp_path / "t.csv", "--approach", "isoflop")
    assert code == 0 and out.startswith("isoflop: ok")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run,params,tokens\na,1,2\n", "loss"),
        ("params,tokens,loss\n1e6,1e8,-3\n", "loss"),
        ("params,tokens,loss\n1e6,many,3\n", "many"),
        ("params,tokens,loss\n1e6,1e8,nan\n", "nan"),
        ("", "no rows"),
    ],
)
def test_bad_tables_are_one_line(capsys, tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    line = refused(capsys, "fit", tmp_path / "t.csv", "--json", tmp_path / "law.json")
    assert words in line and not (tmp_path / "law.json").exists()


@pytest.mark.parametrize(
    ("keep", "words"),
    [(lambda i: i % 5 == 0 and i < 10, "add"), (lambda i: i < 5, "add a budget"), (lambda i: i % 5 < 3, "of 4 sizes")],
    ids=["two rows", "one budget", "three sizes a budget"],
)
def test_rows_that_give_no_law_are_one_line(capsys, tmp_path, keep, words):
    header, *rows = TABLE.splitlines()
    (tmp_path / "t.csv").write_text("\n".join([header, *(row for i, row in enumerate(rows) if keep(i))]))
    approach = () if words == "add a budget" else ("--approach", "isoflop")
    line = refused(capsys, "fit", tmp_path / "t.csv", *approach, "--json", tmp_path / "law.json")
    assert words in line and not (tmp_path / "law.json").exists()


@pytest.mark.slow
def test_a_law_is_fitted_as_chosen_predicts_and_is_scored(capsys, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    law = tmp_path / "law.json"
    chosen = ["--loss", "lsq-log", "--interp", "akima", "--bootstrap", 40, "--cluster", "params", "--seed", 3]
    chosen += ["--drop-highest-loss", 1]
    assert call(capsys, "fit", tmp_path / "t.csv", *chosen, "--json", law)[0] == 0
    settings = json.loads(law.read_text())["settings"]
    assert (settings["loss"], settings["interp"], settings["bootstrap"], settings["seed"]) == (
        "lsq-log",
        "akima",
        40,
        3,
    )
    for wrong in (["--loss", "l7"], ["--convention", "6n_total"], ["--delta", "0"], ["--drop-highest-loss", "30"],
                  ["--seed", "5000000000"], ["--delta", "inf"], ["--coverage", "-5"]):  # fmt: skip
        assert wrong[1] in refused(capsys, "fit", tmp_path / "t.csv", *wrong)

    said, written = tmp_path / "said.json", tmp_path / "prediction.json"
    extras = ("--inference-tokens", 1e12, "--unique-tokens", 1e10, "--json", said, "--register", written)
    code, out, _ = call(capsys, "predict", law, "--params", 3e9, "--tokens", 6e10, *extras)
    assert code == 0 and "nearest shapes" in out and "porian" in out and "h200" in out and "served" in out
    record = json.loads(said.read_text())
    assert set(record) == {"prediction", "served", "constrained", "advice"}
    assert record["prediction"]["loss_interval"][0] < record["prediction"]["loss"]
    run = tmp_path / "run"
    run.mkdir()
    groups = dict.fromkeys(("embedding", "positions", "attention", "norm", "head"), 0)
    groups |= {"mlp": 3_000_000_000, "padding": 999}
    result = Result("done", "", "f", "d", 0, groups, {}, 60_000_000_000, 1, 1, 1.0, 2.4, 0.01, 0.9, {}, 1.0, "cpu")
    (run / "result.json").write_text(json.dumps(asdict(result)))
    code, out, _ = call(capsys, "score", written, run)
    assert code == 0 and "measured 2.4000" in out
    written.write_text(written.read_text().replace("3000000000", "3000000001"))
    assert "altered" in refused(capsys, "score", written, run)
    (run / "result.json").write_text("[]")
    refused(capsys, "score", written, run)
    extras = ("--register", tmp_path / "new.json", "--json", tmp_path / "nowhere" / "x.json")
    assert "not a directory" in refused(capsys, "predict", law, "--flops", 1e21, *extras)
    assert not (tmp_path / "new.json").exists()
    for mistake in (["--flops", 5], ["--loss", 1e300], ["--flops", 1e21, "--inference-tokens", "inf"]):
        refused(capsys, "predict", law, *mistake)
    for content in ('{"approaches": []}', '{"approaches": {"parametric": {"status": "ok"}}}', "7"):
        (tmp_path / "bad.json").write_text(content)
        refused(capsys, "predict", tmp_path / "bad.json", "--flops", 1e21)

    assert "give one" in refused(capsys, "predict", law)
    assert "besiroglu-2024" in refused(capsys, "predict", "nothing", "--flops", 1e21)
    assert call(capsys, "predict", "hoffmann-2022", "--loss", 2.0)[0] == 0


def test_a_sweep_is_planned_anew_or_from_what_is_done(capsys, tmp_path):
    code, out, _ = call(capsys, "plan", "--flops", 1e21, "--cooldown", 0.2, "--json", tmp_path / "plan.json")
    assert code == 0 and "budgets=(" in out and "expected standard errors" in out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["paid"] <= 1e21 and plan["paid"] < plan["credited"]
    (tmp_path / "t.csv").write_text(TABLE)
    code, out, _ = call(capsys, "plan", "--flops", 1e21, "--table", tmp_path / "t.csv", "--goal", "loss")
    assert code == 0 and "after" in out
    for wrong in (
        ("--flops", 1e6),
        ("--flops", -1),
        ("--flops", 1e21, "--goal", "b"),
        ("--flops", 1e21, "--noise", -1),
    ):
        refused(capsys, "plan", *wrong)
    assert call(capsys, "plan", "--flops", 1e21, "--law", "kaplan-2020")[0] == 0


@pytest.mark.slow
def test_train_runs_and_overrides(capsys, run_file, tmp_path):
    code, out, _ = call(
        capsys, "train", run_file, "--dir", tmp_path / "r", "--set", "steps=8", "--set", "optim.warmup=2"
    )
    assert code == 0 and "nats a token" in out and "bits a byte" in out
    assert json.loads((tmp_path / "r" / "result.json").read_text())["steps"] == 8


@pytest.mark.slow
def test_generate_continues_a_prompt(capsys, run_file, tmp_path):
    run = tmp_path / "r"
    call(capsys, "train", run_file, "--dir", run)
    code, out, _ = call(capsys, "generate", run, "abc", "--tokens", 6, "--temperature", 0)
    assert code == 0 and out.startswith("abc") and len(out) > 4
    assert call(capsys, "generate", run, "abc", "--tokens", 6, "--temperature", 0)[1] == out
    code, several, _ = call(capsys, "generate", run, "abc", "--count", 3, "--seed", 5, "--top-k", 20)
    assert code == 0 and several.count("---- ") == 3
    refusals = {
        "config.json": ["generate", tmp_path],
        "fills the context of 16": ["generate", run, "a" * 16],
        "temperature -1.0": ["generate", run, "--temperature", -1],
        "--count 0": ["generate", run, "--count", 0],
        "checkpoints/5": ["generate", run, "--step", 5],
    }
    for words, argv in refusals.items():
        assert words in refused(capsys, *argv)


def test_bad_commands_are_one_line(capsys, run_file, tmp_path):
    there = tmp_path / "r"
    refusals = {
        "nofile.py": ["train", tmp_path / "nofile.py", "--dir", there],
        "no function 'sweep'": ["sweep", run_file],
        "it must return a RunConfig": ["train", f"{run_file}:other", "--dir", there],
        "must be a whole number": ["train", run_file, "--dir", there, "--set", "steps=1.5"],
        "did you mean optim": ["train", run_file, "--dir", there, "--set", "optimm.lr=1"],
        "is not divisible": ["train", run_file, "--dir", there, "--set", "batch=9"],
        "invalid choice": ["fly"],
        "required": ["train", run_file],
        "plan.json": ["status", tmp_path],
        "runs.csv": ["report", tmp_path],
        "no-such-corpus": ["data", "no-such-corpus", "--out", there],
        "at least 1": ["sweep", ROOT / "experiments/chinchilla/quick.py", "--workers", 0],
    }
    for words, argv in refusals.items():
        assert words in refused(capsys, *argv)
        assert not there.exists(), words


def test_a_sweep_takes_numbers_for_rules_and_lists_for_sizes(capsys):
    quick = ROOT / "experiments/chinchilla/quick.py"
    overrides = ("--set", "lr=1e-3", "--set", "sizes=[16,24,32,40,48,64,80]", "--set", "base.steps_per_call=10")
    code, out, _ = call(capsys, "sweep", quick, "--dry-run", *overrides)
    assert code == 0 and "1.00e-03" in out and "d128" not in out
    assert "neither a number nor a rule" in refused(capsys, "sweep", quick, "--dry-run", "--set", "lr=fast")
    assert "convention '7n'" in refused(capsys, "sweep", quick, "--dry-run", "--set", "convention=7n")


def test_an_unwritable_place_is_one_line(capsys, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    line = refused(capsys, "fit", tmp_path / "t.csv", "--approach", "isoflop", "--json", "/proc/none/law.json")
    assert "/proc/none" in line


def test_data_reports_the_store(capsys, tmp_path):
    code, out, _ = call(capsys, "data", "markov:documents=50", "--out", tmp_path / "s", "--tokenizer", "bytes")
    assert code == 0 and "bytes a token" in out and "digest" in out


def test_presets_lists_every_family(capsys):
    code, out, _ = call(capsys, "presets")
    assert code == 0
    for name in ("gpt1", "gpt2-xl", "gpt3-175b", "chinchilla-70b", "gopher-280b", "llama3-405b"):
        assert f"\n{name} " in "\n" + out


@pytest.mark.parametrize("name", ["quick", "h200", "paper"])
def test_experiments_dry_run(capsys, name):
    code, out, _ = call(capsys, "sweep", ROOT / f"experiments/chinchilla/{name}.py", "--dry-run")
    assert code == 0 and "predicted time" in out


def test_a_list_that_is_none_or_too_short_is_told_in_words(capsys):
    quick = ROOT / "experiments" / "chinchilla" / "quick.py"
    for odd, words in {
        "tokens_per_param=[5]": "a list of 2 numbers, in brackets as 'tokens_per_param=[1, 2]'",
        "budgets=1e11": "expected a list of numbers",
        "sizes=16,32": "sizes = '16,32' must be a list of numbers or names",
        "seeds=[0,1.5]": "[1]: expected int, got 1.5; seeds must be a list of whole numbers",
        "wrokers=2": "did you mean workers? gptjax config explains all fields",
    }.items():
        assert words in refused(capsys, "sweep", quick, "--dry-run", "--set", odd)


def test_no_verb_writes_onto_what_it_reads_or_into_nowhere(capsys, tmp_path):
    table, law = tmp_path / "t.csv", tmp_path / "law.json"
    table.write_text(TABLE)
    (tmp_path / "link.csv").symlink_to(table)
    assert "is read too" in refused(capsys, "fit", table, "--json", table)
    assert "is read too" in refused(capsys, "fit", table, "--json", tmp_path / "link.csv")
    assert "is read too" in refused(capsys, "fit", table, "--json", tmp_path / "." / "t.csv")
    assert "is not a directory" in refused(capsys, "fit", table, "--json", tmp_path / "none" / "x.json")
    assert "is a directory" in refused(capsys, "fit", table, "--json", tmp_path)
    assert table.read_text() == TABLE
    both = ("--register", law, "--json", law)
    assert "writes" in refused(capsys, "predict", "besiroglu-2024", "--flops", 1e21, *both) and not law.exists()
    (tmp_path / "runs.csv").write_text(TABLE)
    assert "is read too" in refused(capsys, "fit", tmp_path, "--json", tmp_path / "runs.csv")


@pytest.mark.parametrize(
    "argv",
    [("data", "markov", "--out", "gs://b/c"), ("export", "m", "s3://b/c"), ("import", "gs://b/c", "d"),
     ("fit", "t.csv", "--json", "gs://b/c"), ("inspect", "gs://b/c"), ("tasks", "gs://b/c"),
     ("predict", "besiroglu-2024", "--flops", "1e21", "--register", "gs://b/c")],
)  # fmt: skip
def test_a_bucket_where_a_path_of_this_machine_is_needed_is_a_line(capsys, argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "object storage" in refused(capsys, *argv) and not list(tmp_path.iterdir())


def test_what_a_sweep_sets_for_its_runs_is_set_on_the_sweep(capsys):
    for path, instead in (("base.optim.lr=1", "lr"), ("base.model.d_model=8", "sizes"), ("base.steps=9", "budgets")):
        said = refused(capsys, "sweep", ROOT / "experiments/chinchilla/quick.py", "--dry-run", "--set", path)
        assert f"--set {path.partition('=')[0]}: a sweep sets" in said and f"set {instead}" in said


def test_a_corpus_is_named_by_its_name_alone(capsys):
    code, out, _ = call(capsys, "config", "--set", 'data.sources=["docs", {"corpus": "python", "weight": 2}]')
    assert code == 0 and "(Source(corpus='docs', weight=1.0), Source(corpus='python', weight=2.0))" in out


def test_the_version_is_said(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0 and re.fullmatch(r"gptjax \S+, jax \S+\n", out)
