"""What a run reports on its way: metrics.jsonl without gaps or repeats, trackers, a progress bar."""

import io
import json
import math
import os
import sys
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from gptjax.config import RunConfig, to_json
from gptjax.data.store import TokenStore
from gptjax.devices import device_of, devices
from gptjax.errors import BadInput
from gptjax.files import parse_json, write_file
from gptjax.fingerprint import fingerprint
from gptjax.jobs import hosts
from gptjax.jobs.storage import is_remote, naming
from gptjax.run.result import Evals
from gptjax.run.validation import Evaluation

FLUSH_SECONDS = 60.0  # in which TensorBoard may not yet see what was written


@cache
def peak_flops() -> float:
    """Return the peak of all devices together, or nan where it is not known."""
    device = device_of(jax.devices()[0].device_kind, devices())
    return device.peak_flops_per_s * jax.device_count() if device else math.nan


class MetricsWriter:
    """Append metrics by step to metrics.jsonl and to the trackers; begin after `step`, dropping what lay beyond it.

    Of several processes the first writes. Object storage has no append: there the file is written anew by `flush`.
    """

    def __init__(self, directory: Path, step: int, config: RunConfig) -> None:
        self.path = directory / "metrics.jsonl"
        self.seconds, self.wandb = 0.0, None
        self.tensorboard: TensorBoard | None = None
        self.file: io.TextIOBase | None = None
        if not hosts.is_first():
            return
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        self.seconds = max((line.get("perf/seconds", 0.0) for line in kept), default=0.0)  # spent before
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if is_remote(directory):
            self.file = io.StringIO(text)
            self.file.seek(0, os.SEEK_END)
        else:
            write_file(self.path, text)
            self.file = self.path.open("a", buffering=1)
        if "tensorboard" in config.trackers and is_remote(directory):
            print(f"gptjax: tensorboardX cannot write to {directory}; metrics.jsonl has it all", file=sys.stderr)
        elif "tensorboard" in config.trackers:
            self.tensorboard = TensorBoard(directory / "tensorboard", step + 1)
        if "wandb" in config.trackers:
            import wandb

            run = {"name": directory.name, "id": f"{directory.name}-{fingerprint(config)}", "resume": "allow"}
            local = {} if is_remote(directory) else {"dir": directory}
            self.wandb = wandb.init(project="gptjax", config=to_json(config), **run, **local)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.file is None:
            return
        with naming(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        if self.tensorboard:
            self.tensorboard.write(step, values)
        if self.wandb:
            self.wandb.log(values, step=step)

    def flush(self) -> None:
        """Let others read what was written; what a failing process has not flushed comes after its last checkpoint."""
        if isinstance(self.file, io.StringIO):
            write_file(self.path, self.file.getvalue())

    def close(self) -> None:
        if self.file:
            with naming(self.path):
                self.file.close()
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


class TensorBoard:
    """Write scalars for TensorBoard in the thread that asks, so that a full disk is heard of.

    tensorboardX's own SummaryWriter writes in a thread; when that dies, the run waits for it for ever.
    """

    def __init__(self, directory: Path, first: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self.event, self.scalar, self.directory, self.flushed = Event, scalar, directory, time.monotonic()
        directory.mkdir(exist_ok=True)
        with naming(directory):
            self.events = EventsWriter(str(directory / "events"))
            begin = SessionLog(status=SessionLog.START)  # what lies at later steps was lost with a killed run
            self.events.write_event(Event(wall_time=time.time(), step=first, session_log=begin))

    def write(self, step: int, values: dict[str, float]) -> None:
        with naming(self.directory):
            for name, value in values.items():
                event = self.event(wall_time=time.time(), step=step, summary=self.scalar(name, value))
                self.events.write_event(event)
            if time.monotonic() - self.flushed > FLUSH_SECONDS:
                self.flushed = time.monotonic()
                self.events.flush()

    def close(self) -> None:
        with naming(self.directory):
            self.events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a last line cut short by a crash is left out. BadInput for others like it."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    found = [parse_json(line, path, i) for i, line in enumerate(lines, 1)]
    for i, line in enumerate(found, 1):
        numbers = isinstance(line, dict) and all(type(value) in (int, float) for value in line.values())
        if not numbers or type(line.get("step")) is not int:
            raise BadInput(f"{path}:{i} holds no metrics of a step; mend that line, or take it out")
    return found


class Diverged(Exception):
    """The loss left the numbers, or rose to twice that of guessing."""


class Log:
    """Metrics a call late, the progress bar, and the watch on divergence.

    A line of training metrics is written at every multiple of `log_every` and at every step that is saved. Its loss is
    the mean over all steps since the line before; the model's own losses likewise. A resumed run begins
    at a saved step, so it needs no earlier losses.
    """

    def __init__(self, config: RunConfig, store: TokenStore, metrics: MetricsWriter, first: int, bar: bool) -> None:
        self.config, self.metrics = config, metrics
        self.bytes_per_token = store.manifest.splits["train"].bytes_per_token
        self.flops_per_step = config.tokens_per_step * config.model.cost(config.model.context).useful
        self.began = self.mark = time.perf_counter()
        self.pending: tuple[range, Any, np.ndarray] | None = None
        self.evaluation: tuple[int, Evaluation] | None = None  # of the pending call's last step
        self.uniform = math.log(config.model.vocab_size)
        self.step = first  # the last whose loss was read
        self.unwritten: dict[str, list[float]] = defaultdict(list)  # by name, the losses since the last line
        self.latest = (math.nan, math.nan, math.nan)  # gradient norm, rate and steps a second of the last step read
        self.bar = tqdm(
            desc=metrics.path.parent.name,
            total=config.steps,
            initial=first,
            postfix="compiling",
            disable=None if bar and hosts.is_first() else True,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% {bar} step {n_fmt} of {total_fmt}{postfix}",
        )

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    @property
    def seconds(self) -> float:
        return self.metrics.seconds + time.perf_counter() - self.began

    def __call__(self, steps: range, outputs: Any, rates: np.ndarray) -> None:
        self.flush()
        self.pending = (steps, outputs, rates)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Take an evaluation of the step that the pending call reached."""
        self.evaluation = step, evaluation

    def flush(self, saving: bool = False) -> None:
        """Read the pending call and its evaluation, and write their lines; Diverged if a loss is lost.

        With `saving`, the last step read gets a line too, so that no loss is missing from the lines of a saved step.
        """
        pending, self.pending = self.pending, None
        evaluation, self.evaluation = self.evaluation, None
        if pending:
            self._read(*pending)
        if saving and self.unwritten:
            self._write_line()
        if evaluation:
            self._write_evals(evaluation[0], evaluation[1].values)

    def _read(self, steps: range, outputs: Any, rates: np.ndarray) -> None:
        """Take a call's losses in, and write a line at every multiple of `log_every`."""
        read = {name: np.asarray(values, np.float64) for name, values in outputs.items()}
        norms, losses = read.pop("grad_norm"), read["loss"]
        now = time.perf_counter()
        per_second, self.mark = len(steps) / max(now - self.mark, 1e-9), now
        for i, step in enumerate(range(steps.start + 1, steps.stop + 1)):
            if not math.isfinite(losses[i]) or losses[i] > 2 * self.uniform:
                raise Diverged(f"training loss {losses[i]:.4g} at step {step}")
            self.step = step
            for name, values in read.items():
                self.unwritten[name].append(values[i])
            self.latest = norms[i], float(rates[i]), per_second
            if step % self.config.log_every == 0:
                self._write_line()
        self.bar.update(steps.stop - self.bar.n)

    def _write_line(self) -> None:
        """Write a line for the last step read: the mean loss since the line before, the rest as of this step."""
        step, means = self.step, {name: float(np.mean(values)) for name, values in self.unwritten.items()}
        loss = means.pop("loss")
        self.unwritten.clear()
        norm, rate, per_second = self.latest
        tokens_per_second = per_second * self.config.tokens_per_step
        values = {
            "tokens": step * self.config.tokens_per_step,
            "train/loss": loss,
            "train/bits_per_byte": loss / self.bytes_per_token / math.log(2),
            **{f"train/{name}": value for name, value in means.items()},
            "train/grad_norm": norm,
            "train/lr": rate,
            "perf/tokens_per_second": tokens_per_second,
            "perf/seconds": self.seconds,
        }
        mfu = per_second * self.flops_per_step / peak_flops()
        if math.isfinite(mfu):
            values["perf/mfu"] = mfu
        self.metrics.write(step, values)
        left = (self.config.steps - step) / per_second
        shown = f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s, {left:,.0f} s left"
        self.bar.set_postfix_str(shown, refresh=False)

    def _write_evals(self, step: int, evals: Evals) -> None:
        named = {f"eval/{name}/{key}": value for name, values in evals.items() for key, value in values.items()}
        self.metrics.write(step, named)
        for name, values in evals.items():
            if not math.isfinite(values["loss"]):
                raise Diverged(f"validation loss on {name} is {values['loss']} at step {step}")
