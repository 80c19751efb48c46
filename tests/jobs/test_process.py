"""A process of our own keeps freed memory; a library call sets nothing for the process, nor does a plain one."""

import subprocess
import sys

import pytest

from helpers import environment

PROGRAM = """
import resource
from gptjax.jobs.process import keep_freed_memory
kept = {kept} and keep_freed_memory()

def touch():
    block = bytearray(64 * 2**20)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def faults(kept: bool) -> tuple[str, float]:
    command = [sys.executable, "-c", PROGRAM.format(kept=kept)]
    said, number = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return said, float(number)


def test_memory_taken_again_faults_no_pages():
    said, number = faults(kept=True)
    if said == "False":
        pytest.skip("needs glibc")
    assert number < 10 < 1000 < faults(kept=False)[1]


CALL = """
import logging, os, sys, tempfile
from pathlib import Path
from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.jobs import process
from gptjax.models.gpt import GPTConfig
from gptjax.run.export import export
from gptjax.run.loop import train
from gptjax.run.weights import saved_model
from gptjax.train.optim import OptimConfig

process.use_compilation_cache() if {settled} else None
process.settle() if {settled} else None
before = logging.getLogger("absl").level, sys.unraisablehook, dict(os.environ)
with tempfile.TemporaryDirectory() as place:
    data = DataConfig((Source("markov:states=4,documents=200"),), "bytes", cache=place + "/cache")
    train(RunConfig(model=GPTConfig(257, 16, 8, n_layers=1, n_heads=1), data=data, batch=8, steps=2,
                    optim=OptimConfig(warmup=1), evaluate=EvalConfig(sequences=8, batch=8), trackers=()),
          Path(place) / "run")
    export(saved_model(Path(place) / "run"), Path(place) / "weights")
assert before == (logging.getLogger("absl").level, sys.unraisablehook, dict(os.environ))
print(process.keep_freed_memory.cache_info().currsize, sys.unraisablehook is sys.__unraisablehook__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settled", "asked", "expected"), [(False, "1", "0 True"), (True, "1", "1 False"), (True, "0", "0 True")]
)
def test_only_commands_set_what_holds_for_the_whole_process(settled, asked, expected):
    env = environment(devices=1, GPTJAX_SETTLE=asked)
    done = subprocess.run([sys.executable, "-c", CALL.format(settled=settled)], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == expected, done.stderr
