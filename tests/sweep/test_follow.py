"""What is said of a sweep while it runs: by `status`, on a terminal, in a log, and on Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from gptjax.config import to_json
from gptjax.errors import BadInput
from gptjax.files import write_json
from gptjax.jobs.leases import hold
from gptjax.run.result import Result
from gptjax.sweep.execute import Queue
from gptjax.sweep.follow import duration, followed, look, status
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.plan import make_plan
from helpers import environment, losses, tiny, wait_for_rows


@pytest.fixture
def sweep(cache):
    return replace(tiny(cache), sizes=(4, 8), holdout=3e9, holdout_sizes=(12,))


def row(run, seconds=2.0):
    cost = run.config.model.cost(run.config.model.context)
    facts = {"fingerprint": "f", "data_digest": "d", "seed": 0, "params": {**cost.params, "padding": cost.padding}}
    sizes = {"flops_per_token": {}, "tokens": run.tokens, "tokens_paid": run.tokens, "steps": run.config.steps}
    result = Result("done", "", **facts, **sizes, epochs=0.1, loss=1.25, loss_se=0.1, bits_per_byte=1.0, evals={},
                    seconds=seconds, device="cpu")  # fmt: skip
    rates = {"batch": run.config.batch, "lr": run.config.optim.lr, "b2": run.config.optim.b2}
    return {"run": run.name, "role": run.role, "size": run.size, "budget": run.budget, **rates, **asdict(result)}


def trained(directory, run, step):
    """Lay out a run in progress, as its process would."""
    folder = directory / "runs" / run.name
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_json(run.config))
    lines = [
        {"step": s, "tokens": s, "train/loss": 3.0 - 0.001 * s, "perf/tokens_per_second": 1e3}
        for s in range(5, step + 1, 5)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"step": step}]) + '{"st'
    )


def test_status_tells_done_running_stopped_and_what_is_yet_to_be_planned(sweep, tmp_path):
    plan = make_plan(sweep)
    plan.save(tmp_path / "plan.json")
    done, running, stopped = plan.runs[:3]
    Ledger(tmp_path).append(row(done))
    trained(tmp_path, running, 10)
    trained(tmp_path, stopped, 5)
    with hold(tmp_path / "runs" / running.name / "lease"):
        text = status(tmp_path)
        left = (running.config.steps - 10) * running.config.tokens_per_step / 1e3
        assert f"step 10 of {running.config.steps}, loss 2.990, {duration(left)} left" in text
        assert re.search(rf"{stopped.name} +pending +stopped at step 5 of {stopped.config.steps}", text)
        assert re.search(r"held-out run +pending", text) and re.search(r"report +pending", text)
        assert f"1 done, 0 failed, 1 running, {len(plan.runs) - 1} pending; about" in text
        assert "running, step 10 of" in status(tmp_path / "runs" / running.name)
    assert "0 running" in status(tmp_path) and "stopped at step 10" in status(tmp_path / "runs" / running.name)
    for run in plan.runs[1:]:
        Ledger(tmp_path).append(row(run))
    assert "1 pending" in status(tmp_path)  # the held-out run
    (tmp_path / "report.html").write_text("")
    text = status(tmp_path)
    assert re.search(r"held-out run +none", text) and re.search(r"report +done", text) and "0 pending" in text
    with pytest.raises(BadInput, match="neither plan"):
        status(tmp_path / "runs")


def test_without_a_terminal_each_run_that_ends_is_one_line(sweep, tmp_path, capsys):
    plan, ledger = make_plan(sweep), Ledger(tmp_path)
    first, second, failed = plan.runs[:3]
    ledger.append(row(first))
    with followed(plan, ledger, tmp_path):
        ledger.append(row(second, seconds=200))
        ledger.append({"run": failed.name, "role": failed.role, "status": "failed", "reason": "loss is nan"})
    out, err = capsys.readouterr()
    of = len(plan.runs) + 1
    assert out == "" and re.fullmatch(
        rf"{of - 1} runs to do; a line follows for each that ends\n"
        rf"run 2 of {of} done: {second.name} loss 1.250, 3 min, about .* left in all\n"
        rf"run 3 of {of} failed: {failed.name}: loss is nan, about .* left in all\n",
        err,
    )


def test_time_left_counts_the_held_out_run_and_what_is_half_done(sweep, tmp_path):
    plan, ledger = make_plan(sweep), Ledger(tmp_path)
    trunk = plan.runs[0]
    trained(tmp_path, trunk, trunk.config.steps // 10 * 5)
    with hold(tmp_path / "runs" / trunk.name / "lease"):
        seen = look(plan, ledger, tmp_path)
    assert seen.total == pytest.approx(sum(run.seconds for run in plan.runs) + plan.holdout_seconds)
    assert plan.holdout_seconds > 0 and 0.4 * trunk.seconds < seen.done <= 0.5 * trunk.seconds
    assert [duration(s) for s in (0.4, 119, 121, 7300, 9e4, 2e5)] == [
        "0 s",
        "119 s",
        "2 min",
        "2.0 h",
        "25 h",
        "2.3 days",
    ]


def test_a_run_is_looked_up_when_its_turn_comes(cache, tmp_path, monkeypatch):
    """All turns of n runs cost some n looks at the ledger, not n^2."""
    looks = Counter()
    has, rows = Ledger.has, Ledger.rows
    monkeypatch.setattr(Ledger, "has", lambda self, run: (looks.update(["has"]), has(self, run))[1])
    monkeypatch.setattr(Ledger, "rows", lambda self: (looks.update(["rows"]), rows(self))[1])

    def looks_for(n):
        plan = make_plan(replace(tiny(cache), budgets=tuple(np.geomspace(2e8, 8e8, n))))
        ledger = Ledger(tmp_path / str(n))
        queue, taken = Queue(plan, ledger, None), []
        looks.clear()
        while got := queue.take(lambda name: True, lambda run: 3):
            for run in got:
                ledger.append({"run": run.name})
            queue.ended([run.name for run in got])
            taken += [run.name for run in got]
        assert sorted(taken) == sorted(run.name for run in plan.runs) and not queue.ready and looks["rows"] == 0
        return looks["has"] / len(taken)

    assert looks_for(40) <= 1.2 * looks_for(10)


def test_branches_of_a_trunk_trained_here_come_before_the_next_trunk(cache, tmp_path):
    plan, ledger = make_plan(tiny(cache)), Ledger(tmp_path)
    queue, order = Queue(plan, ledger, None), []
    held = max((run for run in plan.runs if run.role == "trunk"), key=lambda run: run.params)
    while got := queue.take(lambda name: name != held.name, lambda run: 1):
        ledger.append({"run": got[0].name})
        queue.ended([got[0].name])
        order.append(got[0])
    assert [run.role for run in order].count("trunk") == 3
    for i, run in enumerate(order):
        if run.role == "trunk":
            branches = sum(other.parent == run.name for other in plan.runs)
            assert all(other.parent == run.name for other in order[i + 1 : i + 1 + branches])
    assert [turn.name for turn in queue.ready] == [held.name]
    ledger.append({"run": held.name})  # another process trained it
    assert all(queue.take(lambda name: True, lambda run: 1)[0].parent == held.name for _ in range(2))


PROGRAM = """
import pathlib, signal, sys
from functools import partial
from helpers import tiny
from dataclasses import replace
from gptjax.errors import exit_code_of
from gptjax.sweep.local import execute
from gptjax.sweep.loop import run_sweep
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell may ignore it
    sweep = replace(tiny(sys.argv[1]), sizes=(4, 8), workers=int(sys.argv[3]))
    try:
        run_sweep(sweep, pathlib.Path(sys.argv[2]), partial(execute, workers=sweep.workers))
    except KeyboardInterrupt as error:
        sys.exit(exit_code_of(error)[0])
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_says_what_is_kept_and_leaves_no_process(cache, tmp_path, workers):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), cache, str(tmp_path / "s"), str(workers)]
    process = subprocess.Popen(
        command, env=environment(devices=1), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_rows(tmp_path / "s", 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all of the group
    _, err = process.communicate(timeout=120)
    kept = len(losses(tmp_path / "s"))
    assert process.returncode == 130 and "Traceback" not in err
    assert f"interrupted: {kept} of {len(make_plan(replace(tiny(cache), sizes=(4, 8))).runs)} runs are finished" in err
    deadline = time.time() + 10
    while time.time() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a worker is left")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", '{"step": 5, "train/loss": 3.0, "perf/tokens_per_second": 0.0}\n'),
        ("metrics.jsonl", '{"step": "5", "train/loss": 3.0}\n'),
        ("metrics.jsonl", '{"step": 5, "train/loss": \n'),
        ("result.json", '{"status": "done"}'),
        ("result.json", "[]"),
    ],
)
def test_status_of_a_damaged_run_names_the_file(sweep, tmp_path, file, content):
    run = make_plan(sweep).runs[0]
    trained(tmp_path, run, 10)
    folder = tmp_path / "runs" / run.name
    (folder / file).write_text(content)
    with pytest.raises(BadInput, match=re.escape(str(folder / file))) as error:
        status(folder)
    assert "\n" not in str(error.value)
