"""A sweep of tiny real runs: the plan adds up, nothing runs twice, and whatever is killed loses nothing finished."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.config import RunConfig
from gptjax.errors import BadInput
from gptjax.fingerprint import fingerprint
from gptjax.laws.checks import read_runs
from gptjax.laws.drawing.report import write_report
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.table import PAIRED
from gptjax.run.loop import train
from gptjax.run.result import Result
from gptjax.run.validation import WINDOWS
from gptjax.sweep.execute import pending
from gptjax.sweep.follow import status
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.local import execute
from gptjax.sweep.loop import read_curve, run_sweep, write_tables
from gptjax.sweep.plan import make_plan
from gptjax.sweep.rules import always
from helpers import environment, losses, tiny, wait_for_rows, written

BUDGETS = (2e8, 4e8, 8e8)


@pytest.fixture(scope="module")
def sweep(cache):
    return tiny(cache)


@pytest.fixture(scope="module")
def quiet(cache, tmp_path_factory):
    """The directory of a sweep that nothing disturbed."""
    directory = tmp_path_factory.mktemp("quiet")
    assert start(cache, directory).wait(300) == 0
    return directory


def test_a_sweep_runs_once_and_again_does_only_what_is_pending(sweep, quiet):
    made = make_plan(sweep)
    assert not pending(made, Ledger(quiet))
    before = written(quiet)
    execute(made, quiet)
    assert written(quiet) == before
    wider = make_plan(replace(sweep, sizes=(*sweep.sizes, 16)))
    new = {run.name for run in pending(wider, Ledger(quiet))}
    assert new and all(name.startswith("d16-") for name in new)
    write_tables(made, quiet)
    with (quiet / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(made.runs)
    for row in rows:
        assert float(row["flops"]) == pytest.approx(6 * float(row["params"]) * float(row["tokens"]))
        assert row["flops"] == row["flops_6n_total"] and float(row["params"]) > 0
    assert "0 pending" in status(quiet)


def curves_of(directory: Path) -> dict[str, np.ndarray]:
    """Read curves.csv: of each run the columns tokens, flops and loss."""
    found: dict[str, list[list[float]]] = {}
    with (directory / "curves.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["run"], []).append([float(row[name]) for name in ("tokens", "flops", "loss")])
    return {name: np.array(points) for name, points in found.items()}


def test_the_curve_of_a_branch_begins_with_its_trunks(sweep, quiet):
    made = make_plan(sweep)
    write_tables(made, quiet)
    found = curves_of(quiet)
    assert set(found) == {run.name for run in made.runs if run.role == "cell"}  # a trunk has no curve of its own
    lines = {run.name: read_curve(quiet / "runs" / run.name) for run in made.runs}
    for run in (run for run in made.runs if run.role == "cell"):
        tokens, flops, loss = found[run.name].T
        branch = run.config.first_step * run.config.tokens_per_step
        assert (np.diff(tokens) > 0).all() and tokens[-1] == run.tokens and flops[-1] == pytest.approx(run.flops)
        assert tokens[0] <= 2 * sweep.base.log_every * run.config.tokens_per_step and branch in tokens
        whole = np.concatenate([lines[run.parent][lines[run.parent][:, 0] <= branch], lines[run.name]])
        mean = np.average(whole[:, 1], weights=np.diff(whole[:, 0], prepend=0))
        assert np.average(loss, weights=np.diff(tokens, prepend=0)) == pytest.approx(mean)  # no step is lost


def test_a_branch_whose_trunk_failed_has_no_curve(sweep, tmp_path):
    made = make_plan(replace(sweep, sizes=(4,), budgets=BUDGETS[:1]))
    trunk, _ = made.runs
    ledger = Ledger(tmp_path)
    for run in made.runs:
        ledger.append({"run": run.name, "role": run.role, "status": "failed", "reason": "training loss nan at step 15"})
    lines = [json.dumps({"step": s, "tokens": s * trunk.config.tokens_per_step, "train/loss": 5.0}) for s in (5, 10)]
    (tmp_path / "runs" / trunk.name).mkdir(parents=True)
    (tmp_path / "runs" / trunk.name / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    write_tables(made, tmp_path)
    assert not (tmp_path / "curves.csv").exists()


def test_a_row_has_the_part_of_its_error_that_its_sweep_does_not_share(sweep, quiet, tmp_path):
    made, copy = make_plan(sweep), tmp_path / "copy"
    shutil.copytree(quiet, copy)

    def paired() -> list[float]:
        write_tables(made, copy)
        runs = read_runs(copy / "runs.csv")
        for name, loss_se in zip(runs.run, runs.loss_se, strict=True):
            if (path := copy / "runs" / name / WINDOWS).is_file():
                own = np.load(path)
                assert own.sum() == pytest.approx(0, abs=1e-5)
                assert np.linalg.norm(own) == pytest.approx(loss_se * np.sqrt(63 / 64), rel=1e-4)
                assert runs.fact(PAIRED)[runs.run.index(name)] < 0.9 * loss_se
        return runs.fact(PAIRED).tolist()

    assert np.isfinite(paired()).all()
    for path in copy.glob(f"runs/*/{WINDOWS}"):  # as in a sweep of an older version
        path.unlink()
    assert np.isnan(paired()).all()


def test_another_config_under_a_known_name_is_refused(sweep, tmp_path):
    small = replace(sweep, sizes=(4,), budgets=BUDGETS[:1])
    execute(make_plan(small), tmp_path)
    plan_before = (tmp_path / "plan.json").read_text()
    with pytest.raises(BadInput, match="another config"):
        execute(make_plan(replace(small, lr=1e-3)), tmp_path)
    assert (tmp_path / "plan.json").read_text() == plan_before
    more = make_plan(replace(small, budgets=BUDGETS[:2]))
    execute(more, tmp_path)
    assert not pending(more, Ledger(tmp_path))


def test_a_branch_whose_checkpoint_is_damaged_has_its_trunk_trained_anew(sweep, tmp_path):
    small = make_plan(replace(sweep, sizes=(4,), budgets=BUDGETS[:1]))
    execute(small, tmp_path)
    trunk, cell = small.runs
    first = losses(tmp_path)
    ledger = Ledger(tmp_path)
    ledger.forget(cell.name)
    shutil.rmtree(tmp_path / "runs" / cell.name)
    largest = max((tmp_path / "runs" / trunk.name / "checkpoints").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    execute(small, tmp_path)
    assert losses(tmp_path) == first


def test_what_a_worker_cannot_write_is_told_in_a_line(sweep, tmp_path, capfd):
    plan = make_plan(replace(sweep, sizes=(4, 6), budgets=BUDGETS[:1]))
    (tmp_path / "runs").mkdir()
    for run in plan.runs:
        (tmp_path / "runs" / run.name).write_text("where its directory is to be")
    with pytest.raises(SystemExit) as stop:
        execute(plan, tmp_path, workers=2)
    begin, said = capfd.readouterr().err.split("\n", 1)
    assert stop.value.code == 2 and "Traceback" not in said and begin.startswith("4 runs to do")
    assert all(line.startswith("gptjax: ") and "runs" in line for line in said.splitlines()), said


def test_finished_cells_are_not_planned_away(sweep, quiet):
    before = written(quiet), (quiet / "plan.json").read_bytes()
    less = make_plan(replace(sweep, sizes=sweep.sizes[1:]))
    with pytest.raises(BadInput, match=r"3 finished cells that this one lacks, as d4-.*; keep its sizes and budgets"):
        execute(less, quiet)
    assert before == (written(quiet), (quiet / "plan.json").read_bytes())


def test_a_run_and_a_sweep_have_a_directory_each(sweep, quiet, tmp_path):
    run = make_plan(sweep).runs[0].config
    with pytest.raises(BadInput, match="holds a sweep; give the run a new --dir"):
        train(run, quiet)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="holds a run; give the sweep a new --dir"):
        execute(make_plan(sweep), tmp_path)


def test_a_failed_trunk_fails_its_branches_and_stays_out_of_the_fit(sweep, tmp_path):
    wild = replace(
        sweep, sizes=(4,), lr=always(1e9), base=replace(sweep.base, optim=replace(sweep.base.optim, clip=0.0))
    )
    execute(make_plan(wild), tmp_path)
    rows = Ledger(tmp_path).rows().values()
    assert {row["status"] for row in rows} == {"failed"}
    assert all(row["reason"] for row in rows)
    assert any("its trunk" in row["reason"] for row in rows) and any("training loss" in row["reason"] for row in rows)
    write_tables(make_plan(wild), tmp_path)
    assert "failed" in (tmp_path / "runs.csv").read_text()


PROGRAM = """
import sys, pathlib
from helpers import tiny
from gptjax.sweep.local import execute
from gptjax.sweep.plan import make_plan
execute(make_plan(tiny(sys.argv[1])), pathlib.Path(sys.argv[2]))
"""


def start(cache: str, directory: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, cache, str(directory)], env=environment(devices=1))


def test_two_executors_and_kill_9_give_every_row_once(sweep, cache, quiet, tmp_path):
    first, second = start(cache, tmp_path / "rough"), start(cache, tmp_path / "rough")
    wait_for_rows(tmp_path / "rough", 3)
    first.kill()
    wait_for_rows(tmp_path / "rough", 6)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) in (0, 75)
    assert start(cache, tmp_path / "rough").wait(300) == 0
    assert len(written(tmp_path / "rough")) == len(make_plan(sweep).runs)
    assert losses(tmp_path / "rough") == losses(quiet)


def test_a_sweep_without_a_law_is_reported_and_not_forecast(sweep, quiet, tmp_path, capsys):
    """Every size learns this source alike, so that no law can be fitted; two workers train the largest."""
    tmp_path = shutil.copytree(quiet, tmp_path / "wider")
    wider = replace(sweep, sizes=(*sweep.sizes, 16), holdout=2.5e9, holdout_sizes=(8, 12, 16, 20))
    page = run_sweep(wider, tmp_path, partial(execute, workers=2))
    assert page.stat().st_size > 10_000
    assert (tmp_path / "law.json").is_file() and list((tmp_path / "figures").glob("*.png"))
    said = capsys.readouterr()
    assert "no held-out run: the parametric fit is degenerate" in said.err
    assert all(sentence in said.out for sentence in json.loads((tmp_path / "law.json").read_text())["quote"].values())
    assert not (tmp_path / "prediction.json").exists()


def test_the_whole_loop_predicts_before_it_trains(cache, tmp_path, monkeypatch):
    law, noise = ChinchillaLaw(A=40.0, B=60.0, E=1.3, alpha=0.33, beta=0.31), np.random.default_rng(0)
    order = []

    @contextmanager
    def planted(config: RunConfig, directory: Path, *_: object, **__: object):
        """Stand in for a run that is finished as soon as it is opened."""
        cost, tokens = config.model.cost(config.model.context), config.steps * config.tokens_per_step
        loss = float(law.loss(cost.total, tokens) * np.exp(0.003 * noise.standard_normal()))
        order.append((directory.name, (tmp_path / "prediction.json").exists()))
        facts = {
            "fingerprint": fingerprint(config),
            "data_digest": "none",
            "seed": 0,
            "params": {**cost.params, "padding": cost.padding},
        }
        per_token = dict(cost.flops)
        lengths = {"tokens": tokens, "tokens_paid": tokens, "steps": config.steps, "epochs": 0.1}
        losses = {"loss": loss, "loss_se": 0.003, "bits_per_byte": loss, "evals": {}}
        about = {"flops_per_token": per_token, "seconds": 1.0, "device": "none"}
        yield SimpleNamespace(result=Result("done", "", **facts, **lengths, **losses, **about))

    monkeypatch.setattr("gptjax.sweep.execute.Run", planted)
    monkeypatch.setattr("gptjax.sweep.execute.compile_ahead", lambda _: None)
    monkeypatch.setattr("gptjax.sweep.loop.write_report", partial(write_report, sweeps=4))
    cosine = replace(tiny(cache, "cosine"), sizes=(4, 6, 8, 12, 16, 24, 32), budgets=(4e8, 1.6e9, 6.4e9, 2.56e10))
    wide = replace(cosine, tokens_per_param=(1.0, 400.0), holdout=8e10, holdout_sizes=(16, 24, 32, 48))
    page = run_sweep(replace(wide, title="Planted & tiny"), tmp_path, execute)
    assert "<h1>Planted &amp; tiny</h1>" in page.read_text()
    assert [name for name, predicted in order if predicted] == [order[-1][0]] and "holdout" in order[-1][0]
    score = json.loads((tmp_path / "prediction_score.json").read_text())["score"]
    assert abs(score["log_error"]) < 0.03 and "before it was trained" in page.read_text()
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert rows[-1]["status"] == "holdout"
    before = (tmp_path / "prediction.json").read_text()
    n = len(order)
    run_sweep(wide, tmp_path, execute)
    assert (tmp_path / "prediction.json").read_text() == before and len(order) == n
