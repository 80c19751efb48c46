"""Schedules against their formulas, and what axis names decide: decay, and Muon's matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.errors import BadInput
from gptjax.models.gpt import GPTConfig
from gptjax.train.optim import OptimConfig, cooldown_start, decays, learning_rates, make_optimizer, without_schedule
from helpers import logits_of

MODEL = GPTConfig(vocab_size=32, context=8, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1)


def test_cosine_is_optax_cosine():
    config = OptimConfig(lr=3e-3, warmup=10, floor=0.1)
    ours = learning_rates(config, 10, 100, 100)
    theirs = optax.cosine_decay_schedule(3e-3, 90, alpha=0.1)(np.arange(90))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(learning_rates(config, 0, 10, 100), 3e-3 * np.arange(1, 11) / 10, rtol=1e-6)


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
def test_wsd_is_constant_then_cools_to_zero(shape):
    config = OptimConfig(lr=1.0, schedule="wsd", warmup=5, cooldown=0.2, cooldown_shape=shape)
    rates = learning_rates(config, 0, 100, 100)
    assert cooldown_start(config, 100) == 80
    assert (rates[5:81] == 1).all() and (np.diff(rates[80:]) < 0).all()
    halfway = 1 - np.sqrt(0.5) if shape == "sqrt" else 0.5
    assert rates[90] == pytest.approx(halfway)


def test_a_branch_has_the_rates_of_the_whole_run():
    config = OptimConfig(lr=1.0, schedule="wsd", warmup=5)
    whole = learning_rates(config, 0, 200, 200)
    np.testing.assert_array_equal(whole[160:], learning_rates(config, 160, 200, 200))
    trunk = learning_rates(OptimConfig(lr=1.0, schedule="constant", warmup=5), 0, 160, 160)
    np.testing.assert_array_equal(whole[:160], trunk)


def test_matrices_decay_and_norms_and_biases_do_not():
    axes = MODEL.build().axes
    layer = axes["layers"]
    assert (
        decays(axes["embedding"])
        and decays(layer["mlp"]["up"]["kernel"])
        and decays(layer["attention"]["out"]["kernel"])
    )
    for part in (layer["attention_norm"]["scale"], layer["attention"]["query"]["bias"], layer["mlp"]["up"]["bias"]):
        assert not decays(part), part


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "lion"])
def test_every_optimizer_lowers_the_loss_and_decays_by_axes(name):
    model = MODEL.build()
    params = jax.jit(model.init)(jax.random.key(0))
    tx = make_optimizer(OptimConfig(name=name, weight_decay=0.5, clip=0.0), model.axes)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(lambda grads, p: tx.update(grads, tx.init(p), p))(zero, params)
    moved = jax.tree.map(lambda u: bool(jnp.abs(u).max() > 0), updates)
    assert moved["embedding"] and moved["layers"]["mlp"]["up"]["kernel"]
    assert not moved["layers"]["attention_norm"]["scale"]

    tokens = jax.random.randint(jax.random.key(1), (4, 8), 0, 32)

    def loss(p):
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(MODEL, p, tokens), tokens).mean()

    lr = 0.1 if name == "adafactor" else 3e-3

    @jax.jit
    def step(p, opt):
        value, grads = jax.value_and_grad(loss)(p)
        updates, opt = tx.update(grads, opt, p)
        return jax.tree.map(lambda w, u: w + lr * u, p, updates), opt, value

    opt, losses = tx.init(params), []
    for _ in range(30):
        params, opt, value = step(params, opt)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.3, losses


@pytest.mark.slow
def test_muon_takes_the_matrices_of_layers_only():
    model = MODEL.build()
    params = jax.jit(model.init)(jax.random.key(0))
    tx = make_optimizer(OptimConfig(name="muon", weight_decay=0.0, clip=0.0), model.axes)
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(2), p.shape), params)
    updates, _ = jax.jit(lambda grads, p: tx.update(grads, tx.init(p), p))(grads, params)
    up = updates["layers"]["mlp"]["up"]["kernel"][0]
    singular = jnp.linalg.svd(up, compute_uv=False)
    assert singular.max() / singular.min() < 2.5  # near orthogonal, as Newton-Schulz leaves it
    size = jnp.abs(updates["embedding"])  # Adam's first step has one size everywhere
    np.testing.assert_allclose(size, size[0, 0], rtol=1e-3)


def test_configs_that_differ_in_schedule_share_a_program():
    a = OptimConfig(lr=1e-3, schedule="wsd", warmup=7, cooldown=0.3)
    assert without_schedule(a) == without_schedule(OptimConfig())
    assert without_schedule(OptimConfig(b2=0.9)) != without_schedule(OptimConfig())


def test_bad_settings_are_refused():
    for settings in ({"lr": 0.0}, {"cooldown": 0.0}, {"b2": 1.0}, {"warmup": -1}):
        with pytest.raises(BadInput):
            OptimConfig(**settings)
