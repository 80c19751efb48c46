"""A proposed sweep keeps its allowance, its sizes and its tokens, and what is written is what was proposed."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from gptjax.commands.arguments import load
from gptjax.config import to_json
from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws.planning.precision import standard_errors
from gptjax.sweep.as_python import experiment, literal, number
from gptjax.sweep.assumed_law import QUICK_LAW
from gptjax.sweep.own_text import OwnText, bytes_per_token, plan_own_text
from gptjax.sweep.plan import Repeat, Speed, SweepConfig, make_plan
from gptjax.sweep.proposal import Allowance
from gptjax.sweep.propose import plan_sweep, propose_sweep
from gptjax.sweep.speed import Timed, measure_speed, speed_of
from helpers import ROOT, call, installed, refused, tiny

QUICK = ROOT / "experiments" / "chinchilla" / "quick.py"
MINUTES = (3.0, 10.0)


@cache
def quick() -> SweepConfig:
    return load(str(QUICK), SweepConfig, "sweep")


@cache
def proposed(minutes=None, tokens=1e9, **settings):
    allowance = Allowance(seconds=60 * minutes, tokens=tokens) if minutes else Allowance(**settings.pop("allowance"))
    return replace(propose_sweep(quick(), allowance, **settings), of=str(QUICK))


@cache
def own() -> OwnText:
    return OwnText('a "text" of mine', "sentencepiece:512", 512, 64, 1024, Speed(5.5e10, 2.5e-3, 3.0), 2, True, True)


@pytest.mark.parametrize("minutes", MINUTES)
def test_a_proposal_keeps_its_minutes_and_brackets_every_optimum_with_sizes_of_the_file(minutes):
    p = proposed(minutes)
    s, priced = p.sweep, p.priced
    parts = priced.seconds_of_runs + priced.seconds_of_held_out + priced.seconds_of_report
    assert 0.6 * 60 * minutes < parts == priced.seconds <= 0.9 * 60 * minutes
    plan = make_plan(s)
    assert plan == priced.plan and priced.seconds_of_runs >= sum(run.seconds for run in plan.runs) / s.workers
    assert set(s.sizes) <= {*quick().sizes, *quick().holdout_sizes} and s.shape is quick().shape
    for budget in s.budgets:
        sizes = {run.params for run in plan.runs if run.role == "cell" and run.budget == budget}
        best = QUICK_LAW.optimum(flops=budget).params
        assert len(sizes) >= 4 and min(sizes) < best / 1.2 and max(sizes) > 1.2 * best
    assert s.holdout == pytest.approx(3 * s.budgets[-1], rel=0.03) and priced.held_out.budget == s.holdout
    assert json.loads(json.dumps(p.to_json(), allow_nan=False))["seconds"]["all"] == priced.seconds


def test_more_time_buys_more():
    few, many = (proposed(minutes) for minutes in MINUTES)
    assert many.sweep.budgets[-1] > 2 * few.sweep.budgets[-1]
    assert many.errors.a < few.errors.a


def test_the_quick_sweeps_minutes_buy_a_sweep_as_good():
    """The sweep that people designed here, with its held-out run and report, is not better than the one proposed."""
    plan, s = make_plan(quick()), quick()
    cells = [run for run in plan.runs if run.role == "cell"]
    seconds = sum(run.seconds for run in plan.runs) / 2 + plan.holdout_seconds + 32
    p = proposed(seconds / 60 / 0.9)
    n, d = ([getattr(run, name) for run in cells] for name in ("params", "tokens"))
    theirs = standard_errors(QUICK_LAW, n, d, noise=0.01, target_flops=9e12)
    ours = standard_errors(
        QUICK_LAW, *np.array([(c.params, c.tokens) for c in p.priced.cells]).T, noise=0.01, target_flops=9e12
    )
    assert ours.a < 1.05 * theirs.a and ours.loss < 1.3 * theirs.loss
    assert p.sweep.budgets[-1] > 0.7 * s.budgets[-1]


def test_no_run_repeats_the_tokens_at_hand():
    p = proposed(10.0, tokens=2e6)
    longest = max(run.tokens for run in (*p.priced.plan.runs, p.priced.held_out))
    assert 1e6 < longest <= 2e6 and p.sweep.budgets[-1] < proposed(10.0).sweep.budgets[-1]
    assert "so that no run repeats data" in p.describe() and p.priced.seconds < 0.9 * 600


def test_flops_pay_for_the_held_out_run_too():
    p = plan_sweep(quick(), flops=1.2e13)
    runs = sum(run.flops_paid for run in p.priced.plan.runs)
    assert 0.8 * 1.2e13 < runs + p.priced.held_out.flops_paid <= 1.2e13


def test_seeds_are_given_to_every_cell_or_to_those_that_tell_most():
    thrice = proposed(10.0, seeds=3)
    cells = [(run.size, run.budget) for run in thrice.priced.cells]
    assert {cells.count(cell) for cell in cells} == {3} and thrice.sweep.seeds == (0, 1, 2)
    p = proposed(10.0)
    assert p.sweep.repeats and "again where that lowers" in p.describe()
    again = sum(r.times for r in p.sweep.repeats)
    once = replace(p.sweep, repeats=())
    assert len(p.priced.cells) == again + sum(run.role == "cell" for run in make_plan(once).runs)
    for r in p.sweep.repeats:
        n = next(run.params for run in p.priced.cells if run.size == f"d{r.size}")
        assert 1 / 2 <= n / QUICK_LAW.optimum(flops=r.budget).params <= 2


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_a_repeat_is_the_cell_again_with_a_seed_of_its_own(cache, schedule):
    sweep = tiny(cache, schedule)
    budget, size = sweep.budgets[0], sweep.sizes[0]
    plain_runs = make_plan(sweep).runs
    more = make_plan(replace(sweep, repeats=(Repeat(size, budget, 2),))).runs
    new = [run for run in more if run.name not in {run.name for run in plain_runs}]
    cells = [run for run in new if run.role == "cell"]
    assert [run for run in more if run not in new] == list(plain_runs)
    (first,) = [run for run in plain_runs if run.role == "cell" and (run.size, run.budget) == (cells[0].size, budget)]
    assert [run.config.seed for run in cells] == [1, 2] and len(new) == (4 if schedule == "wsd" else 2)
    for run in cells:
        assert (run.size, run.budget, run.tokens, run.flops) == (first.size, first.budget, first.tokens, first.flops)
    with pytest.raises(BadInput, match="must name one of"):
        replace(sweep, repeats=(Repeat("none", budget),))


def test_the_least_sweep_named_is_one_that_can_be():
    with pytest.raises(BadInput, match="minutes are too few") as error:
        propose_sweep(quick(), Allowance(seconds=30))
    least = float(re.search(r"takes (\S+) with", str(error.value))[1])
    assert propose_sweep(quick(), Allowance(seconds=61 * least)).priced.seconds <= 61 * least
    with pytest.raises(BadInput, match="tokens of text are too few"):
        propose_sweep(quick(), Allowance(seconds=600, tokens=1e4))
    with pytest.raises(BadInput, match="FLOPs are too few"):
        plan_sweep(quick(), flops=1e9)
    with pytest.raises(BadInput, match="bracket no optimum"):
        propose_sweep(replace(quick(), sizes=(16,), holdout_sizes=(16,)), Allowance(seconds=600))


def same(found: SweepConfig, wanted: SweepConfig) -> bool:
    functions = {name: None for name in ("shape", "lr", "batch_tokens", "b2", "warmup_tokens")}
    left, right = ({**vars(sweep), **functions} for sweep in (found, wanted))
    return left == right and to_json(make_plan(found)) == to_json(make_plan(wanted))


@pytest.mark.parametrize("kind", ["file", "own"])
def test_the_written_experiment_is_the_proposal(tmp_path, kind):
    p = proposed(3.0) if kind == "file" else replace(propose_sweep(own().sweep(), Allowance(seconds=420)), own=own())
    path = tmp_path / "proposed.py"
    path.write_text(experiment(p, path))
    assert same(load(str(path), SweepConfig, "sweep"), p.sweep)
    text = path.read_text()
    assert all(len(line) <= 120 for line in text.splitlines()) and "gptjax sweep proposed.py" in text
    assert str(tmp_path) not in text
    if installed("ruff"):
        for check in (["check"], ["format", "--check"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *check, "--config", ROOT / "pyproject.toml", path], capture_output=True
            )
            assert not done.returncode, done.stdout


def test_values_are_written_as_they_are():
    for value in (1e11, 2.4e11, 0.0025, 150.0, 1 / 3, 5.5e10, 1e-7, 123456.0):
        assert eval(number(value)) == value and isinstance(eval(number(value)), float)
    assert literal(("a'b", 3, (1.0,))) == '("a\'b", 3, (1.0,))'
    with pytest.raises(BadInput, match="no short text"):
        literal(object())


def test_the_speed_of_a_machine_is_what_its_steps_were_made_of():
    planted = Speed(4e10, 3e-3, 0.0)
    flops = 5e7, 1.4e9
    found = speed_of(flops, [Timed(planted.seconds(c, 1), 0.4, 6.0) for c in flops])
    assert (found.flops_per_second, found.seconds_per_step) == pytest.approx((4e10, 3e-3))
    assert found.seconds_per_run >= 0.4 + 6 / 3
    noisy = speed_of(flops, [Timed(5e-3), Timed(4e-3)])  # the larger model came out faster: no speed is negative
    assert noisy.flops_per_second > 0 and noisy.seconds_per_step >= 0


@pytest.mark.slow
def test_this_machine_has_a_speed(cache):
    """Two processes at once and one alone, each timing a small and a large model."""
    plan = make_plan(tiny(cache, "cosine"))
    runs = sorted(plan.runs, key=lambda run: run.params)
    worker, alone = measure_speed([runs[0].config, runs[-1].config], workers=2)
    for speed in (worker, alone):
        assert 1e6 < speed.flops_per_second < 1e13 and 0 <= speed.seconds_per_step < 5
    assert worker.seconds_per_run > 0.5


def test_bytes_of_a_token_grow_with_the_vocabulary():
    assert [bytes_per_token(v) for v in (257, 512, 4096)] == pytest.approx([1.0, 1.8, 3.1])
    found = [bytes_per_token(v) for v in (100, 257, 300, 512, 1000, 8000, 50000)]
    assert found == sorted(found)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, length))) for length in rng.integers(2, 9, 400)]
    for i in range(300):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, 1500)))
    return folder


def test_own_text_is_planned_from_what_is_counted(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ("--corpus", corpus, "--tokenizer", "bytes", "--flops-per-second", 5e10, "--workers", 2)
    code, out, _ = call(capsys, "plan", *argv, "--minutes", 6, "--write", "mine.py", "--json", "mine.json")
    assert code == 0
    begins = ("tokens at hand", "speed", "compute in 6 minutes", "largest budget", "budgets", "sizes", "learning rate",
              "batch", "schedule", "seeds", "held-out run", "report", "in all", "expected")  # fmt: skip
    assert [line.partition(":")[0] for line in out.splitlines()][:3] == [
        "tokens at hand",
        "speed",
        "compute in 6 minutes on 2 worker(s)",
    ]
    assert all(line.startswith(begin) for line, begin in zip(out.splitlines(), begins, strict=False))
    found = json.loads((tmp_path / "mine.json").read_text())
    assert found["most_tokens"] <= int(found["derivation"][3]["text"].split()[-1].replace(",", ""))
    assert call(capsys, "sweep", "mine.py", "--dry-run")[0] == 0
    for words, more in {
        "exists and would be lost": ("--minutes", 6, "--write", "mine.py"),
        "minutes are too few": ("--minutes", 0.5, "--write", "new.py"),
        "must end in .py": ("--minutes", 6, "--write", "new.txt"),
        "is not a directory": ("--minutes", 6, "--write", "nowhere/new.py"),
        "give one of them": ("--minutes", 6, "--vocab", 300, "--write", "new.py"),
        "context of 4": ("--minutes", 6, "--context", 4, "--write", "new.py"),
        "seeds a cell": ("--minutes", 6, "--seeds", 0, "--write", "new.py"),
    }.items():
        assert words in refused(capsys, "plan", *argv, *more)
    assert not [path.name for path in tmp_path.glob("new*")]


def test_too_little_text_is_refused(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"{i} few words " * 40)
    with pytest.raises(BadInput, match="give more text"):
        plan_own_text(str(folder), 10, tokenizer="bytes", flops_per_second=5e10, cache=str(tmp_path / "cache"))


def test_arguments_that_contradict_each_other_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, argv in {
        "give one of them": (QUICK, "--corpus", "python", "--minutes", 3),
        "needs --minutes": ("--corpus", "python"),
        "give FILE or --corpus": ("--minutes", 3),
        "has no function 'sweep'": (ROOT / "experiments" / "tiny.py", "--minutes", 3),
        "sets its own": (QUICK, "--minutes", 3, "--vocab", 300),
        "without shapes": (QUICK, "--runs", 30),
        "several arms": (ROOT / "experiments" / "arms.py", "--minutes", 3),
        "buy no sweep": (QUICK, "--flops", -1),
    }.items():
        assert words in refused(capsys, "plan", *argv, "--write", "w.py")
    assert "give what to spend" in refused(capsys, "plan")
    assert not [*tmp_path.iterdir()]


def test_a_file_is_planned_from_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(
        capsys, "plan", f"{QUICK}:sweep", "--minutes", 3, "--seeds", 1, "--write", "w.py", "--json", "w.json"
    )
    assert code == 0 and "w.py: written" in out and (tmp_path / "w.json").is_file()
    again = load(str(tmp_path / "w.py"), SweepConfig, "sweep")
    assert same(again, proposed(3.0, seeds=1).sweep)
    assert plain(again.budgets) == json.loads((tmp_path / "w.json").read_text())["budgets"]
