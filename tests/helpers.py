"""What several test files use; a test file imports no other. Programs that tests start import this too.

pyproject.toml puts this folder on the path of imports, and `environment` does for other processes.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gptjax.batch import Batch
from gptjax.cli import main
from gptjax.config import EvalConfig, RunConfig, SaveConfig, to_json
from gptjax.data.loader import DataConfig, Source
from gptjax.data.tokenizer import ByteTokenizer
from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.files import write_json
from gptjax.models.gpt import GPTConfig
from gptjax.models.model import ModelConfig
from gptjax.params import Params
from gptjax.run.checkpoint import Checkpoints
from gptjax.sharding import MeshConfig
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.plan import Plan, SweepConfig, make_plan
from gptjax.sweep.rules import always, power
from gptjax.train.optim import OptimConfig

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PUBLISHED = ROOT.parent / "shared" / "reference" / "chinchilla_figure4_points.csv"  # not part of the repository


# ---- what this machine has


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def missing(extra: str) -> str:
    """Return why a test is skipped without an extra of pyproject.toml; the summary of a test run counts by these."""
    return f"needs the extra {extra} (make install EXTRAS=test,{extra})"


def needed(package: str, extra: str) -> Any:
    """Import a package, or skip what asks for it."""
    return pytest.importorskip(package, reason=missing(extra))


CUDA = pytest.mark.skipif(not any(map(installed, ("jax_cuda12_plugin", "jax_cuda13_plugin"))), reason=missing("cuda12"))
LIBTPU = pytest.mark.skipif(not installed("libtpu"), reason=missing("tpu"))


# ---- models


def batch_of(tokens: jax.Array, segments: jax.Array | None = None, prefix: jax.Array | None = None) -> Batch:
    """Return a batch that reads these tokens; what it would predict of them is of no matter."""
    return Batch(tokens, tokens, jnp.ones(jnp.shape(tokens), jnp.float32), segments, prefix)


def logits_of(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array | None = None,
    execution: Execution = DEFAULT_EXECUTION,
) -> jax.Array:
    """Return the logits of all positions, (B, T, V)."""
    return config.build(execution).logits(params, batch_of(tokens, segments))


def noisy(params: Params, seed: int = 1) -> Params:
    """Move every weight off special values."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.2 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moved)


PADDED = Execution(vocab_multiple=8)
MESH = MeshConfig(data=4, fsdp=2)


def saved_run(directory: Path, config: GPTConfig, mesh: MeshConfig = MESH, silent: tuple[int, ...] = ()) -> Params:
    """Save random weights as a run of the byte tokenizer; ids that are silent are never the likeliest."""
    params = noisy(config.build(PADDED).init(jax.random.key(0)))
    params["embedding"] = params["embedding"].at[jnp.array(silent, int)].set(0.0)
    with Checkpoints(directory / "checkpoints", SaveConfig()) as checkpoints:
        checkpoints.save(5, {"params": params})
    write_json(directory / "config.json", to_json(RunConfig(model=config, mesh=mesh, execution=PADDED)))
    ByteTokenizer().save(directory)
    return params


# ---- the command line


RUN = """
from gptjax.config import EvalConfig, RunConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.models.gpt import GPTConfig
from gptjax.train.optim import OptimConfig

def run():
    return RunConfig(
        model=GPTConfig(vocab_size=257, context=16, d_model=8, n_layers=1, n_heads=1),
        data=DataConfig(sources=(Source("markov:documents=50,length=200"),), tokenizer="bytes", cache=CACHE),
        batch=8, steps=12, optim=OptimConfig(warmup=2), evaluate=EvalConfig(sequences=8, batch=8), trackers=(),
    )

def other():
    return 7
"""


def call(capsys, *argv: object) -> tuple[int, str, str]:
    """Call the command line in this process; return its exit code, and what it said and complained of."""
    code = 0
    try:
        main([str(a) for a in argv])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *argv: object) -> str:
    """Return the one line with which the command refuses."""
    code, out, err = call(capsys, *argv)
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("gptjax: "), (code, out, err)
    return err


# ---- corpora


SOURCE = "".join(
    f"""
def {verb}_{noun}(first, second):
    \"\"\"{verb.title()} the {noun} of two numbers or of more.\"\"\"
    table = {{"first": first, "second": second}}
    result = [first, second, first + second]
    return combined(result, table, first + second)
"""
    for verb, noun in (("give", "sum"), ("find", "largest"), ("keep", "product"), ("name", "least"), ("drop", "mean"))
)


def write_corpus(path: Path) -> Path:
    """Write Python documents, so many that some fall into the validation split."""
    path.write_text("".join(json.dumps({"text": f"{SOURCE}\n# {i}\n"}) + "\n" for i in range(600)))
    return path


# ---- sweeps


def shape(width: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=257, context=16, d_model=width, n_layers=1, n_heads=1, init_std=0.0, bias=False, norm="rmsnorm"
    )


def tiny(cache: str, schedule: str = "wsd") -> SweepConfig:
    return SweepConfig(
        base=RunConfig(
            data=DataConfig(
                sources=(Source("markov:states=4,documents=200,length=600"),), tokenizer="bytes", cache=cache
            ),
            optim=OptimConfig(schedule=schedule, weight_decay=0.0),
            steps_per_call=5,
            evaluate=EvalConfig(sequences=64, batch=8),
            save=SaveConfig(every=10**9),
            trackers=(),
            log_every=5,
            mesh=MeshConfig(),
        ),
        budgets=(2e8, 4e8, 8e8),
        sizes=(4, 6, 8, 12),
        shape=shape,
        lr=power(2e-2, 3e3, -0.3),
        batch_tokens=always(128),
        tokens_per_param=(0.5, 100.0),
        min_steps=10,
    )


def small(cache: str) -> Plan:
    """Plan a trunk with two branches and a run that stands alone, of one shape, with a checkpoint every 50 steps."""
    wsd, cosine = (tiny(cache, schedule) for schedule in ("wsd", "cosine"))
    save = SaveConfig(every=50)
    tree = make_plan(replace(wsd, base=replace(wsd.base, save=save), sizes=(4,), budgets=(2e8, 4e8)))
    alone = make_plan(replace(cosine, base=replace(cosine.base, save=save), sizes=(4,), budgets=(1e8,)))
    return replace(tree, runs=(*tree.runs, *alone.runs))


def forest(cache: str) -> Plan:
    """Plan a trunk with two branches, and two runs that stand alone."""
    wsd, cosine = (tiny(cache, schedule) for schedule in ("wsd", "cosine"))
    base = replace(wsd.base, save=SaveConfig(every=100))
    tree = make_plan(replace(wsd, base=base, sizes=(4,), budgets=(2e8, 4e8)))
    alone = make_plan(replace(cosine, sizes=(6, 8), budgets=(2e8,)))
    return replace(tree, runs=(*tree.runs, *alone.runs))


def written(directory: Path) -> dict[str, int]:
    """Return when each row of the ledger was written, in ns."""
    return {path.stem: path.stat().st_mtime_ns for path in (directory / "ledger").iterdir()}


def losses(directory: Path) -> dict[str, float]:
    return {name: row["loss"] for name, row in Ledger(directory).rows().items()}


# ---- other processes


def environment(devices: int = 8, **more: str) -> dict[str, str]:
    """Return the environment of a process that imports this file and this checkout's gptjax."""
    simulated = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": str(4 * devices),  # fewer threads than devices can deadlock their collectives
    }
    return os.environ | simulated | more | {"PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"}


def until(found: Callable[[], object], waiting: Future | None = None, seconds: float = 120.0) -> None:
    """Wait for something to be found, unless the executor that should bring it has ended."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "waited in vain"
        assert waiting is None or not waiting.done(), waiting.exception()
        time.sleep(0.01)


def wait_for_rows(directory: Path, n: int) -> None:
    until(lambda: len(Ledger(directory).rows()) >= n)
