"""The door: a family and an objective of this file are trained, swept, asked and written as gptjax's own are.

The family is a gated linear recurrence. Nothing of it stands in gptjax/.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gptjax.batch import Batch
from gptjax.config import EvalConfig, RunConfig, SaveConfig, from_json, to_json
from gptjax.data.loader import DataConfig, Source
from gptjax.data.objectives import OBJECTIVES, PrefixLM, Reading
from gptjax.errors import BadInput
from gptjax.estimate.footprint import footprint
from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.generate import generate
from gptjax.kernels import loss as loss_kernels
from gptjax.laws.checks import read_runs
from gptjax.mesh import make_mesh
from gptjax.models.cost import Cost, Widths, counted
from gptjax.models.families import FAMILIES
from gptjax.models.gpt import GPTConfig
from gptjax.models.model import Decoder, Hidden, Model, Scales
from gptjax.models.stack import run_stack
from gptjax.params import constant, functions_of, normal, param, stack
from gptjax.run.checks import check_shapes
from gptjax.run.export import export
from gptjax.run.loop import Preempted, train
from gptjax.run.metrics import read_metrics
from gptjax.run.weights import saved_model
from gptjax.sharding import Layout, MeshConfig, Rules, constrain
from gptjax.sweep.local import execute
from gptjax.sweep.loop import write_tables
from gptjax.sweep.plan import SweepConfig, make_plan
from gptjax.train.loss import summed_loss
from gptjax.train.optim import OptimConfig, decays
from helpers import batch_of

OPTIMIZED = True


@dataclass(frozen=True)
class RecurrenceConfig:
    """Layers of h_t = a_t h_{t-1} + (1 - a_t) u_t, whose gates a are drawn towards a quarter by a loss of their own."""

    vocab_size: int = 257
    context: int = 32
    d_model: int = 16
    n_layers: int = 2
    balance: float = 0.1
    dtype: Literal["float32"] = "float32"
    family: Literal["recurrence"] = "recurrence"

    @property
    def scales(self) -> Scales | None:
        return None

    def build(self, execution: Execution = DEFAULT_EXECUTION) -> Model:
        return built(self, execution)

    def cost(self, seq_len: int, execution: Execution = DEFAULT_EXECUTION) -> Cost:
        groups = {"table": "embedding", "layers": "recurrence", "readout": "head"}
        return counted(self, groups, Widths(self.n_layers, self.d_model, 2 * self.d_model), execution)

    def check(self, layout: Layout, execution: Execution) -> None:
        if layout.parts(layout.rules.seq) > 1:
            raise BadInput("a recurrence cannot split positions; use a mesh with context = 1")

    def unseen(self, other: "RecurrenceConfig") -> tuple[str, ...]:
        return ()


class Cell(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, c: RecurrenceConfig) -> None:
        self.balance = c.balance
        square = (c.d_model, c.d_model)
        self.gate = param(rngs, square, ("embed", "hidden"), normal(0.5))
        self.input = param(rngs, square, ("embed", "hidden"), normal(0.5))
        self.out = param(rngs, square, ("hidden", "embed"), normal(0.5))

    def parts(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.nn.sigmoid(x @ self.gate[...]), x @ self.input[...]

    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        a, u = self.parts(x_BTD)

        def then(one, other):
            return one[0] * other[0], other[0] * one[1] + other[1]

        _, h_BTD = jax.lax.associative_scan(then, (a, (1 - a) * u), axis=1)
        losses = {"gate_balance": self.balance * jnp.square(a - 0.25).mean()}
        return x_BTD + jnp.tanh(h_BTD) @ self.out[...], losses

    def step(self, x_BD: jax.Array, h_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, u = self.parts(x_BD)
        h_BD = a * h_BD + (1 - a) * u
        return x_BD + jnp.tanh(h_BD) @ self.out[...], h_BD


class Recurrence(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, c: RecurrenceConfig, execution: Execution) -> None:
        self.config, self.execution = c, execution
        rows = execution.padded(c.vocab_size)
        self.table = param(rngs, (rows, c.d_model), ("vocab", "embed"), normal(1.0))
        self.layers = stack(lambda r: Cell(r, c), c.n_layers, rngs)
        self.readout = nnx.Module()
        self.readout.kernel = param(rngs, (c.d_model, rows), ("embed", "vocab"), normal(0.2))
        self.readout.bias = param(rngs, (rows,), ("vocab",), constant(0.0))
        self.readout.scale = param(rngs, (c.d_model,), ("embed",), constant(1.0))

    def hidden(self, tokens_BT: jax.Array):
        x_BTD = constrain(self.table[...][tokens_BT], "batch", "stream", None)
        return run_stack(self.layers, x_BTD, execution=self.execution)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        head = self.readout
        logits = constrain((x_BTD * head.scale[...]) @ head.kernel[...] + head.bias[...], "batch", "seq", "vocab")
        return jnp.where(jnp.arange(logits.shape[-1]) < self.config.vocab_size, logits, -1e30)

    def step(self, token_B: jax.Array, h_LBD: jax.Array):
        from gptjax.models.stack import unstacked

        x_BD, held = self.table[...][token_B], []
        for layer, h_BD in zip(unstacked(self.layers, "step"), h_LBD, strict=True):
            x_BD, h_BD = layer(x_BD, h_BD)
            held.append(h_BD)
        return self.logits(x_BD[:, None])[:, 0], jnp.stack(held)


@lru_cache
def built(c: RecurrenceConfig, execution: Execution) -> Model:
    call, init, axes = functions_of(lambda rngs: Recurrence(rngs, c, execution))

    def stepper(params) -> Callable:
        return lambda token_B, h_LBD: call(params, token_B, h_LBD, method="step")

    def start(params, tokens_BT, first_B, room):
        step = stepper(params)
        zero = jnp.zeros((c.n_layers, len(tokens_BT), c.d_model))

        def read(h_LBD, column):
            token_B, t = column
            logits, new = step(token_B, h_LBD)
            return jnp.where((t >= first_B)[None, :, None], new, h_LBD), logits

        h_LBD, logits = jax.lax.scan(read, zero, (tokens_BT.T, jnp.arange(tokens_BT.shape[1])))
        return logits[-1], h_LBD

    return Model(
        c,
        execution,
        init,
        axes,
        axes,
        hidden=lambda params, batch: Hidden(*call(params, batch.inputs, method="hidden")),
        readout=lambda head, x: call(head, x, method="logits"),
        read_by=("readout",),
        reads=(),
        decoder=Decoder(start, stepper),
    )


@dataclass(frozen=True)
class EveryOther:
    """Predict a random half of the tokens, each from those before it."""

    kind: Literal["every other"] = "every other"
    share: float = 0.5

    own_ids, draws = 0, True

    def __call__(self, tokens, predicted, keys, vocab_size) -> Batch:
        chosen = jax.vmap(lambda key: jax.random.uniform(key, (tokens.shape[-1] - 1,)) < self.share)(keys)
        return Batch(tokens[..., :-1], tokens[..., 1:], (predicted[..., 1:] & chosen).astype(np.float32))


@pytest.fixture(autouse=True, scope="module")
def rows():
    """Add a row to each table, as a user's file would."""
    FAMILIES["recurrence"], OBJECTIVES["every other"] = RecurrenceConfig, EveryOther
    yield
    del FAMILIES["recurrence"], OBJECTIVES["every other"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return RunConfig(
        model=RecurrenceConfig(),
        data=DataConfig(
            sources=(Source("markov:states=4,documents=400,length=600"),),
            tokenizer="bytes",
            objective=EveryOther(),
            cache=str(tmp_path_factory.mktemp("cache")),
        ),
        execution=Execution(vocab_multiple=8),
        optim=OptimConfig(lr=2e-2, warmup=4, weight_decay=0.1),
        batch=8,
        steps=40,
        steps_per_call=4,
        log_every=4,
        evaluate=EvalConfig(sequences=32, batch=8, every=20),
        save=SaveConfig(every=20, keep=3),
        trackers=(),
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    train(config, directory)
    return directory


def weights(directory, step):
    return {name: np.asarray(a.read().result()) for name, a in saved_model(directory, step).arrays.items()}


def test_a_config_is_its_json(config):
    assert from_json(RunConfig, to_json(config)) == config
    with pytest.raises(BadInput, match="family = 'recurrent' is not one of gpt, recurrence"):
        from_json(RunConfig, {"model": {"family": "recurrent"}})


def test_it_learns_and_reports_its_own_loss_and_its_objective(config, whole):
    lines = [line for line in read_metrics(whole / "metrics.jsonl") if "train/loss" in line]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] - 0.5
    assert 0 < lines[-1]["train/gate_balance"] < 0.1
    result = train(config, whole)
    assert result.status == "done" and result.objective == "every other"
    assert result.params["recurrence"] == 2 * 3 * 16 * 16 and result.params["padding"] > 0


def test_stopped_and_resumed_it_is_the_run_bit_for_bit(config, whole, tmp_path, monkeypatch):
    stopped = []
    monkeypatch.setattr("gptjax.run.loop.hosts.preempted", lambda told: not stopped and stopped.append(1) is None)
    with pytest.raises(Preempted):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    train(config, tmp_path / "run")
    ours, theirs = weights(tmp_path / "run", 40), weights(whole, 40)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert train(config, tmp_path / "run").loss == train(config, whole).loss


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=4, pipeline=2)], ids=str)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_split_over_eight_devices_it_computes_what_one_does(config, mesh, remat):
    batch = batch_of(jax.random.randint(jax.random.key(1), (16, 32), 0, 257))

    def gradients(execution, layout=None):
        model = config.model.build(execution)
        params = jax.jit(model.init)(jax.random.key(0))

        def total(params):
            objective, _, own = summed_loss(model, params, batch, 0.0)
            return objective / batch.weights.size + own["gate_balance"]

        from gptjax.sharding import use

        if layout is None:
            return jax.jit(jax.value_and_grad(total))(params)
        with use(layout):
            return jax.jit(jax.value_and_grad(total))(jax.device_put(params, layout.params(model.axes, params)))

    padded = Execution(vocab_multiple=8)
    found = gradients(replace(padded, remat=remat, microbatches=2), Layout(make_mesh(mesh), Rules()))
    wanted = gradients(padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def test_every_weight_that_the_head_reads_has_its_gradient_however_many_parts(config, monkeypatch):
    model = config.model.build()
    params = jax.jit(model.init)(jax.random.key(0))
    batch = batch_of(jax.random.randint(jax.random.key(1), (4, 32), 0, 257))

    def gradient(limit):
        monkeypatch.setitem(loss_kernels.LOGITS_BYTES, "cpu", limit)
        return jax.jit(jax.grad(lambda p: summed_loss(model, p, batch, 1e-3)[0]))(params)

    whole, in_parts = gradient(2**30), gradient(4 * 4 * 257 * 4)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(in_parts["readout"]))
    assert optax.tree.norm(optax.tree.sub(whole, in_parts)) < 1e-4 * optax.tree.norm(whole)
    with pytest.raises(Exception, match="ShapeDtypeStruct"):
        replace(model, read_by=("readout.kernel",)).logits(params, batch)


def test_what_a_family_would_not_heed_is_refused(config):
    layout = Layout(make_mesh(MeshConfig()), Rules())
    for data, match in (
        (replace(config.data, separate_documents=True), "does not heed segments, which data.separate_documents needs"),
        (replace(config.data, objective=PrefixLM()), "does not heed prefix, which objective 'prefix' needs"),
    ):
        with pytest.raises(BadInput, match=match):
            check_shapes(replace(config, data=data), layout)
    FAMILIES["recurrence"] = GPTConfig
    try:
        with pytest.raises(BadInput, match="no row of FAMILIES says that 'recurrence' is RecurrenceConfig; add FAM"):
            check_shapes(config, layout)
    finally:
        FAMILIES["recurrence"] = RecurrenceConfig
    with pytest.raises(BadInput, match=r"must be a ModelConfig, and lacks .*build"):
        replace(config, model=MeshConfig())


def test_an_objective_of_other_shapes_is_refused():
    @dataclass(frozen=True)
    class Two:
        kind: str = "two"
        own_ids, draws = 0, False

        def __call__(self, tokens, predicted, keys, vocab_size) -> Batch:
            return Batch(tokens[..., :-2], tokens[..., 2:], predicted[..., 2:].astype(np.float32))

    with pytest.raises(BadInput, match=r"'two' makes inputs, targets and weights .* of windows"):
        Reading(Two(), 0, 9)(np.ones((2, 8), np.int32), np.zeros((2, 2), np.uint32), 0)


def test_matrices_decay_and_biases_do_not(config):
    axes = config.model.build().axes
    assert decays(axes["layers"]["gate"]) and decays(axes["table"]) and decays(axes["readout"]["kernel"])
    assert not decays(axes["readout"]["bias"]) and not decays(axes["readout"]["scale"])


def test_it_generates_what_its_logits_say(whole):
    saved = saved_model(whole)
    layout = Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1]), Rules())
    params, model = saved.read(layout), saved.model
    prompts = [np.array([256, 65, 66, 65]), np.array([256, 66])]
    from gptjax.generate import Sampling

    answers = generate(params, model, prompts, 6, Sampling(temperature=0.0))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            tokens.append(int(jnp.argmax(model.logits(params, batch_of(jnp.array([tokens])))[0, -1])))
        assert list(answer) == tokens[len(prompt) :]
    with pytest.raises(BadInput, match="family recurrence does not generate"):
        generate(params, replace(model, decoder=None), prompts, 6)


def test_it_is_estimated_and_exported(config, whole, tmp_path):
    held = footprint(config, 1)
    shapes = jax.eval_shape(config.model.build(config.execution).init, jax.random.key(0))
    assert (
        held.weights
        == sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
        == 4 * config.model.cost(32, config.execution).stored
    )
    assert held.activations > 0
    saved = saved_model(whole)
    export(saved, tmp_path / "weights")
    again = saved_model(tmp_path / "weights")
    assert again.config == saved.config and again.execution.padded(257) == 264
    for name, array in saved.arrays.items():
        np.testing.assert_array_equal(again.arrays[name].read().result(), array.read().result())


def test_it_is_swept_beside_a_gpt_as_an_arm(config, tmp_path):
    def shape(size):
        family, width = size
        if family == "recurrence":
            return replace(config.model, d_model=width)
        return GPTConfig(vocab_size=257, context=32, d_model=width, n_layers=1, n_heads=2)

    sweep = SweepConfig(
        base=replace(config, optim=OptimConfig(schedule="wsd", warmup=4)),
        sizes=tuple((family, width) for family in ("recurrence", "gpt") for width in (8, 16)),
        shape=shape,
        arm=lambda size: size[0],
        budgets=(6e8, 1.2e9),
        lr=0.01,
        batch_tokens=256,
        tokens_per_param=(0.5, 1000.0),
        min_steps=4,
    )
    plan = make_plan(sweep)
    execute(plan, tmp_path)
    write_tables(plan, tmp_path)
    runs = read_runs(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["status"] == "done"]
    assert {row["arm"] for row in cells} == {"recurrence", "gpt"} and len(cells) == len(runs) >= 6
    assert {row["objective"] for row in cells} == {"every other"}


FILE = """
from dataclasses import replace

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.models.families import FAMILIES
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import SweepConfig
from gptjax.train.optim import OptimConfig
from dataclasses import dataclass
from typing import Literal

@dataclass(frozen=True)
class MineConfig(GPTConfig):
    family: Literal["mine"] = "mine"

FAMILIES["mine"] = MineConfig

def sweep():
    data = DataConfig(sources=(Source("markov:states=4,documents=200,length=300"),), tokenizer="bytes", cache={cache!r})
    base = RunConfig(data=data, optim=OptimConfig(warmup=4), evaluate=EvalConfig(sequences=16, batch=8),
                     save=SaveConfig(every=10**9), trackers=())
    return SweepConfig(base=base, sizes=(8, 12), lr=0.01, batch_tokens=256, horizons=(6000,), min_steps=4,
                       tokens_per_param=(0.1, 1000),
                       shape=lambda d: MineConfig(vocab_size=257, context=32, d_model=d, n_layers=1, n_heads=1))
"""


def test_workers_of_a_sweep_know_the_families_of_its_file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE.format(cache=str(tmp_path / "cache")))
    code = f"""
from pathlib import Path
from gptjax.commands.arguments import load
from gptjax.sweep.local import execute
from gptjax.sweep.plan import SweepConfig, make_plan
if __name__ == "__main__":
    sweep = load({str(tmp_path / "mine.py")!r}, SweepConfig, "sweep")
    execute(make_plan(sweep), Path({str(tmp_path / "out")!r}), workers=2)
"""
    (tmp_path / "main.py").write_text(code)
    done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "ledger").glob("*.json"))]
    assert [row["status"] for row in rows] == ["done", "done"]
    config = json.loads((tmp_path / "out" / "runs" / rows[0]["run"] / "config.json").read_text())
    assert config["model"]["family"] == "mine"
