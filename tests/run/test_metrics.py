"""A line of training metrics holds the mean loss of all steps since the line before, however they were called."""

from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.config import RunConfig
from gptjax.run.metrics import Log
from gptjax.train.optim import OptimConfig

STEPS = 24


def lines(calls: list[range], saves: tuple[int, ...], log_every: int, first: int = 0) -> list[tuple[int, float]]:
    """Give (step, loss) of each line that a run of these calls writes; the loss of step s is s^2 / 100."""
    written: list[tuple[int, float]] = []
    writer = SimpleNamespace(
        path=SimpleNamespace(parent=SimpleNamespace(name="run")),
        seconds=0.0,
        write=lambda step, values: written.append((step, values["train/loss"])),
    )
    store = SimpleNamespace(manifest=SimpleNamespace(splits={"train": SimpleNamespace(bytes_per_token=1.0)}))
    config = RunConfig(optim=OptimConfig(warmup=0), steps=STEPS, log_every=log_every)
    with Log(config, store, writer, first, 0) as log:
        for steps in calls:
            losses = np.arange(steps.start + 1, steps.stop + 1) ** 2 / 100
            log(steps, {"loss": losses, "grad_norm": losses}, losses)
            if steps.stop in saves:
                log.flush(saving=True)
        log.flush()
    return written


@pytest.mark.parametrize("call", [1, 2, 3, 8])
@pytest.mark.parametrize("log_every", [1, 4, 7])
def test_every_line_is_the_mean_since_the_line_before(call, log_every):
    calls = [range(a, min(a + call, STEPS)) for a in range(0, STEPS, call)]
    found = lines(calls, (6, STEPS), log_every)
    before = 0
    for step, loss in found:
        assert loss == pytest.approx(np.mean(np.arange(before + 1, step + 1) ** 2 / 100))
        before = step
    assert before == STEPS
    assert {step for step, _ in found} >= set(range(log_every, STEPS + 1, log_every))


def test_a_run_resumed_at_a_saved_step_writes_the_same_lines():
    calls = [range(a, a + 2) for a in range(0, STEPS, 2)]
    whole = lines(calls, (6, STEPS), log_every=4)
    resumed = lines([call for call in calls if call.start >= 6], (STEPS,), log_every=4, first=6)
    assert [line for line in whole if line[0] > 6] == resumed
