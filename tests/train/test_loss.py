"""The loss taken in parts is the loss, with its gradient, in less memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.batch import Batch
from gptjax.estimate.collectives import collectives
from gptjax.execution import Execution
from gptjax.kernels import loss
from gptjax.kernels.loss import head_parts
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.sharding import Layout, MeshConfig, Rules, use
from gptjax.train.loss import summed_loss
from gptjax.train.step import eval_step

TIED = GPTConfig(vocab_size=250, context=24, d_model=16, n_layers=1, n_heads=2, init_std=0.5)
PADDED = Execution(vocab_multiple=16)
CASES = {
    "tied": TIED,
    "head of its own": replace(TIED, tied=False, logit_cap=3.0),
    "bfloat16": replace(TIED, dtype="bfloat16"),
}


def batch_of(config: GPTConfig, rows: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    shape = (rows, config.context)
    tokens, targets = (jnp.asarray(rng.integers(config.vocab_size, size=shape), jnp.int32) for _ in range(2))
    segments = jnp.asarray(np.cumsum(rng.random(shape) < 0.2, axis=1), jnp.int32)
    return Batch(tokens, targets, jnp.asarray(rng.random(shape), jnp.float32), segments)


def found(config: GPTConfig, limit: float, monkeypatch, layout: Layout | None = None):
    """Compile loss and gradient with so many bytes of logits at once; return what they are, and the program."""
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", limit)
    model, batch = config.build(PADDED), batch_of(config)
    params = jax.jit(model.init)(jax.random.key(0))

    def mean(params):
        if layout is None:
            return summed_loss(model, params, batch, 1e-2)[:2]
        with use(layout):
            return summed_loss(model, params, batch, 1e-2)[:2]

    program = jax.jit(jax.value_and_grad(lambda p: jax.tree.map(lambda s: s / 7, mean(p)), has_aux=True))
    compiled = program.lower(params).compile()
    return compiled(params), compiled


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, tensor=4)], ids=["whole", "vocabulary split"])
def test_nats_and_their_gradient_are_those_of_optax(mesh):
    logits = 5 * jax.random.normal(jax.random.key(0), (2, 6, 32))
    targets = jax.random.randint(jax.random.key(1), (2, 6), 0, 32)
    weights = jax.random.uniform(jax.random.key(2), (2, 2, 6))

    def ours(logits):
        nats, log_z = loss.token_nats(logits, targets)
        return (nats * weights[0] + log_z**2 * weights[1]).sum()

    def theirs(logits):
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return (nats * weights[0] + jax.nn.logsumexp(logits, axis=-1) ** 2 * weights[1]).sum()

    def found(logits):
        if mesh is None:
            return jax.value_and_grad(ours)(logits)
        with use(Layout(make_mesh(mesh), Rules())):
            return jax.value_and_grad(ours)(logits)

    assert optax.tree.norm(optax.tree.sub(jax.jit(found)(logits), jax.value_and_grad(theirs)(logits))) < 1e-4


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_loss_in_parts_is_the_loss(config, monkeypatch):
    whole, _ = found(config, 1e9, monkeypatch)
    in_parts, program = found(config, 4 * 4 * 256 * 6, monkeypatch)  # six positions of four rows at once
    assert "while" in program.as_text()
    tolerance = 1e-2 if config.dtype == "bfloat16" else 1e-5
    assert optax.tree.norm(optax.tree.sub(in_parts, whole)) < tolerance * optax.tree.norm(whole[1])


@pytest.mark.parametrize("config", [TIED, CASES["head of its own"]], ids=["tied", "head of its own"])
def test_a_loss_in_parts_over_eight_devices_is_the_loss(config, monkeypatch):
    whole, _ = found(config, 1e9, monkeypatch)
    layout = Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), Rules())
    in_parts, program = found(config, 4 * 256 * 3, monkeypatch, layout)
    assert "while" in program.as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), in_parts, whole)


@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(data=1, fsdp=4)], ids=["data", "fsdp"])
def test_devices_exchange_the_head_as_often_for_six_parts_as_for_two(mesh, monkeypatch):
    layout = Layout(make_mesh(mesh, jax.devices()[:4]), Rules())

    def exchanged(parts: int) -> list[tuple[str, int]]:
        held = 4 * 256 * 24 // parts  # logits of a row in so many parts
        listed, _ = collectives(found(TIED, held, monkeypatch, layout)[1].as_text(), 4)
        return sorted((c.kind, c.runs) for c in listed if c.bytes >= 2 * PADDED.padded(TIED.vocab_size) * TIED.d_model)

    often = exchanged(6)
    assert often == exchanged(2) and all(runs == 1 for _, runs in often)


def evaluated(config: GPTConfig, limit: float, monkeypatch, layout: Layout | None = None):
    """Evaluate a batch with so many bytes of logits at once; return the nats of its sequences, and the program."""
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", limit)
    model, batches = config.build(PADDED), jax.tree.map(lambda a: a[None], batch_of(config))
    params = jax.jit(model.init)(jax.random.key(0))
    placed = params if layout is None else jax.device_put(params, layout.params(model.axes, params))

    def nats(params):
        if layout is None:
            return eval_step(params, batches, model=model)
        with use(layout):
            return eval_step(params, batches, model=model)

    compiled = jax.jit(nats).lower(placed).compile()
    return compiled(placed), compiled


@pytest.mark.parametrize("config", [TIED, CASES["head of its own"]], ids=["tied", "head of its own"])
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one device", "eight"])
def test_an_evaluation_in_parts_is_the_evaluation(config, mesh, monkeypatch):
    whole, _ = evaluated(config, 1e9, monkeypatch)
    layout = Layout(make_mesh(mesh), Rules()) if mesh else None
    in_parts, program = evaluated(config, 4 * 256 * 3, monkeypatch, layout)
    assert "while" in program.as_text()
    np.testing.assert_allclose(in_parts, whole, rtol=1e-5)


def test_an_evaluation_gathers_the_head_once_and_holds_a_part_of_the_logits(monkeypatch):
    layout = Layout(make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4]), Rules())
    _, program = evaluated(TIED, 4 * 256 * 4, monkeypatch, layout)  # six parts
    listed, _ = collectives(program.as_text(), 4)
    assert all(c.runs == 1 for c in listed if c.bytes >= 2 * PADDED.padded(TIED.vocab_size) * TIED.d_model)
    wide = replace(TIED, vocab_size=4096, context=64)
    whole, parts = (evaluated(wide, limit, monkeypatch)[1].memory_analysis() for limit in (1e9, 4 * 4 * 4096 * 4))
    logits = 4 * 4 * 64 * 4096
    assert parts.temp_size_in_bytes < 0.3 * logits < logits < whole.temp_size_in_bytes


def test_only_a_part_of_the_logits_is_held(monkeypatch):
    wide = replace(TIED, vocab_size=4096, context=64)
    whole, parts = (found(wide, limit, monkeypatch)[1].memory_analysis() for limit in (1e9, 4 * 4 * 4096 * 4))
    logits = 4 * 4 * 64 * 4096
    assert parts.temp_size_in_bytes < 0.6 * logits < logits < whole.temp_size_in_bytes


def test_parts_divide_the_positions():
    one = 4 * 8 * 50257  # bytes of a position of eight rows
    assert head_parts((8, 1024, 50257)) == next(
        n for n in (32, 64, 128, 256, 512) if 1024 * one <= n * loss.LOGITS_BYTES["cpu"]
    )
    assert head_parts((8, 7, 10**9)) == 7
    assert head_parts((1, 16, 16)) == 1
