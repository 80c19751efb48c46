"""Transfer of hyper-parameters: nothing changes at the base size, and above it activations move as at the base."""

from dataclasses import replace
from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import RunConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.errors import BadInput
from gptjax.models.gpt import GPTConfig
from gptjax.params import map_axes
from gptjax.run.coord_check import coord_check, draw
from gptjax.train.mup import Transfer, factors
from gptjax.train.optim import OptimConfig, make_optimizer
from helpers import batch_of, logits_of

BASE = GPTConfig(vocab_size=64, context=16, d_model=16, n_layers=2, n_heads=2)
LLAMA = replace(BASE, norm="rmsnorm", bias=False, positions="rope", tied=False, gated=True, init_std=0.0)
WIDE = replace(BASE, d_model=64, n_layers=8, mup_width=16, mup_depth=2)
TOKENS = jax.random.randint(jax.random.key(1), (4, 12), 0, 64)
FULLY = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}  # as outside of tests


def init(config):
    return jax.jit(config.build().init)(jax.random.key(0))


def logits(config, params):
    return jax.jit(partial(logits_of, config))(params, TOKENS)


def trained(config):
    """Return the weights and the logits after a step."""
    model = config.build()
    tx = make_optimizer(OptimConfig(weight_decay=0.1), model.axes, config.scales)

    def loss(params):
        log_p = jax.nn.log_softmax(logits_of(config, params, TOKENS[:, :-1]))
        return -jnp.take_along_axis(log_p, TOKENS[:, 1:, None], axis=-1).mean()

    @partial(jax.jit, compiler_options=FULLY)
    def run(params):
        updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
        params = jax.tree.map(lambda w, u: w + 0.01 * u, params, updates)
        return params, logits_of(config, params, TOKENS)

    return run(init(config))


@pytest.mark.parametrize("config", [BASE, LLAMA], ids=["gpt2", "llama"])
def test_at_the_base_size_it_is_the_standard_parametrization_bit_for_bit(config):
    there = replace(config, mup_width=config.d_model, mup_depth=config.n_layers)
    jax.tree.map(np.testing.assert_array_equal, trained(config), trained(there))


def test_where_it_is_off_the_optimizer_is_as_it_was():
    model = BASE.build()
    params = jax.eval_shape(model.init, jax.random.key(0))
    plain, off = (make_optimizer(OptimConfig(), model.axes, *given) for given in ((), (BASE.scales,)))
    assert jax.eval_shape(plain.init, params) == jax.eval_shape(off.init, params)


@pytest.mark.parametrize("init_std", [0.02, 0.0])
def test_initial_sizes_of_weights(init_std):
    """Embeddings and head keep the base's; variances of hidden matrices fall as 1/m; depth changes none."""

    def stds(config):
        return jax.jit(lambda key: jax.tree.map(jnp.std, config.build().init(key)))(jax.random.key(0))

    big = replace(BASE, d_model=64, mup_width=64, init_std=init_std, tied=False)
    base = stds(big)
    wide = stds(replace(big, d_model=256, n_layers=6, mup_depth=2))
    for name in ("embedding", "positions", "head"):
        np.testing.assert_allclose(*(jax.tree.leaves(tree[name])[0] for tree in (wide, base)), rtol=0.05)
    for part, name in [("attention", "query"), ("attention", "out"), ("mlp", "up"), ("mlp", "down")]:
        ratio = wide["layers"][part][name]["kernel"] / base["layers"][part][name]["kernel"]
        assert ratio == pytest.approx(1 / sqrt(4), rel=0.05), name


def test_scores_of_wider_heads_are_scaled_by_their_width_and_of_more_heads_as_before():
    assert replace(BASE, mup_width=16).attention_scale == BASE.attention_scale == 1 / sqrt(8)
    assert replace(BASE, d_model=64, mup_width=16).attention_scale == pytest.approx(sqrt(8) / 32)
    more = replace(BASE, d_model=64, n_heads=8, d_head=8, mup_width=16)
    assert more.attention_scale == BASE.attention_scale


def test_logits_and_branches_are_scaled_down():
    params = init(WIDE)
    plain = replace(WIDE, mup_depth=0)
    unscaled = replace(plain, mup_width=0, d_head=32)  # whose scores are scaled otherwise: silence them
    silent = jax.tree.map(lambda w: w, params)
    silent["layers"]["attention"]["query"] = jax.tree.map(jnp.zeros_like, params["layers"]["attention"]["query"])
    ratio = logits(unscaled, silent) / logits(plain, silent)
    np.testing.assert_allclose(ratio, 4, rtol=1e-4)
    branches = dict(silent["layers"])
    for part, name in (("attention", "out"), ("mlp", "down")):
        smaller = jax.tree.map(lambda w: w / 4, branches[part][name])
        branches[part] = {**branches[part], name: smaller}
    by_hand = logits(plain, {**silent, "layers": branches})
    np.testing.assert_allclose(logits(WIDE, silent), by_hand, rtol=1e-4, atol=1e-6)
    assert replace(WIDE, depth_alpha=0.5).branch_scale == 1 / 2


def test_every_weight_has_the_factors_of_the_table():
    """CompleteP's Table 1 at m = 4, m_L = 4, alpha = 1/2."""
    config = replace(WIDE, depth_alpha=0.5, tied=False, qk_norm=True)
    of = map_axes(lambda axes: factors(axes, config.scales), config.build().axes)
    outside = Transfer(1, 1 / 4, 1)
    hidden, vector = Transfer(1 / 4 / 2, 1 / 4 / 2, 4), Transfer(1 / 2, 1 / 4 / 2, 1)
    assert of["embedding"] == of["positions"] == of["head"]["kernel"] == outside
    assert set(of["final_norm"].values()) == {outside}
    for part in (of["layers"]["attention"], of["layers"]["mlp"]):
        for name, weights in part.items():
            for kind, found in weights.items():
                assert found == (hidden if kind == "kernel" else vector), (name, kind)
    assert {*of["layers"]["attention_norm"].values(), *of["layers"]["mlp_norm"].values()} == {vector}
    assert factors(("layers", "embed", "mlp"), WIDE.scales, "lion").rate == 1 / 4
    assert factors(("layers", "embed", "mlp"), WIDE.scales, "muon") == Transfer(1 / 2, 1 / 16, 2)


def test_two_updates_are_adams_by_hand_with_each_groups_rate_eps_and_decay():
    config = replace(WIDE, depth_alpha=0.5)
    model, eps, wd, b1, b2 = config.build(), 1e-2, 0.3, 0.9, 0.95
    tx = make_optimizer(OptimConfig(eps=eps, weight_decay=wd, b1=b1, b2=b2, clip=0.0), model.axes, config.scales)
    params, update = init(config), jax.jit(tx.update)
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda p: 0.01 * rng.standard_normal(p.shape), params) for _ in range(2)]
    opt = tx.init(params)
    for gradient in gradients:
        updates, opt = update(gradient, opt, params)
    layer, up = updates["layers"]["mlp"]["up"], ("layers", "mlp", "up")
    cases = [  # the update, its path, rate, eps, decay x rate
        (updates["embedding"], ("embedding",), 1, eps / 4, wd),
        (layer["kernel"], (*up, "kernel"), 1 / 8, eps / 8, wd * 4 / 8),
        (layer["bias"], (*up, "bias"), 1 / 2, eps / 8, 0),
        (updates["final_norm"]["scale"], ("final_norm", "scale"), 1, eps / 4, 0),
    ]
    for update, path, rate, eps_here, decay in cases:
        w, (g1, g2) = params, gradients
        for name in path:
            w, g1, g2 = w[name], g1[name], g2[name]
        mean = (b1 * (1 - b1) * g1 + (1 - b1) * g2) / (1 - b1**2)
        square = (b2 * (1 - b2) * g1**2 + (1 - b2) * g2**2) / (1 - b2**2)
        by_hand = -rate * mean / (np.sqrt(square) + eps_here) - decay * w
        np.testing.assert_allclose(update, by_hand, rtol=2e-4, atol=1e-6, err_msg=str(path))


def checked_run(cache):
    model = GPTConfig(vocab_size=257, context=16, d_model=16, n_layers=2, n_heads=2, positions="none")
    data = DataConfig((Source("markov:states=4,documents=50,length=300"),), tokenizer="bytes", cache=cache)
    return RunConfig(model=model, data=data, optim=OptimConfig(lr=0.01), batch=8, steps=1000)


def test_activations_move_alike_at_every_width_with_mup_and_not_without(tmp_path):
    found = coord_check(checked_run(str(tmp_path)), (16, 128), steps=2, seeds=1)
    standard, mup = (found["parametrizations"][name] for name in ("standard", "mup"))
    assert list(mup) == ["layer 1", "stream", "scores", "logits"] and found["base"] == 16
    for quantity in ("layer 1", "stream", "scores", "logits"):
        assert standard[quantity]["slope"][-1] > 0.5, (quantity, standard[quantity])
        assert mup[quantity]["slope"][-1] < 0.2, (quantity, mup[quantity])
    assert all(abs(slope) < 0.2 for name in ("layer 1", "stream") for slope in mup[name]["slope"])
    first = [standard[q]["value"][0] for q in standard], [mup[q]["value"][0] for q in mup]
    assert first[0] == first[1]  # the base width is the same in both
    assert len(draw(found).axes) == 6


def test_the_stream_grows_with_depth_and_not_under_completep(tmp_path):
    run = checked_run(str(tmp_path))
    shallow = replace(run, model=replace(run.model, n_layers=1))
    found = coord_check(shallow, depths=(1, 4), steps=2, seeds=1)["parametrizations"]
    assert found["standard"]["stream"]["slope"][-1] > 0.5 > 0.2 > abs(found["mup"]["stream"]["slope"][-1])


@pytest.mark.parametrize("config", [BASE, LLAMA], ids=["gpt2", "llama"])
def test_the_stream_observed_is_the_one_that_makes_the_logits(config):
    params = init(config)
    seen = jax.jit(config.build().observe)(params, batch_of(TOKENS))
    x = seen["stream"] - (seen["stream"].mean(-1, keepdims=True) if config.norm == "layernorm" else 0)
    x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + config.norm_eps)
    table = params["embedding"].T if config.tied else params["head"]["kernel"]
    np.testing.assert_allclose(seen["logits"], x @ table, rtol=1e-3, atol=1e-5)


def test_what_has_no_rule_is_refused(tmp_path):
    with pytest.raises(BadInput, match="'adafactor' has no known rule of transfer"):
        make_optimizer(OptimConfig(name="adafactor"), WIDE.build().axes, WIDE.scales)
    with pytest.raises(BadInput, match="set norm_place to 'pre'"):
        replace(WIDE, norm_place="post")
    with pytest.raises(BadInput, match="depth_alpha = 2"):
        replace(WIDE, depth_alpha=2.0)
    run = checked_run(str(tmp_path))
    with pytest.raises(BadInput, match="two or more"):
        coord_check(run, (16,))
    with pytest.raises(BadInput, match="would not widen"):
        coord_check(replace(run, model=replace(run.model, d_mlp=64)), (16, 32))
