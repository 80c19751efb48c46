"""Each fast form computes what its plain form does, with the gradient of every input; and plain ones go forward too."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptjax.kernels import attention
from gptjax.kernels import matmul as matmul_file
from gptjax.kernels.attention import attend
from gptjax.kernels.choice import plain_kernels
from gptjax.kernels.loss import token_nats
from gptjax.kernels.mask import CausalMask, FullMask, PrefixMask, WindowMask
from gptjax.kernels.matmul import matmul
from gptjax.kernels.norm import normalize
from gptjax.models.gpt import GPTConfig
from gptjax.train.loss import summed_loss
from helpers import batch_of

T = 12


def assert_close(a, b, tolerance=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("positions", [T, 150, 699])  # on a CPU: one block, blocks of 64, of 175, with a shorter last
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("documents", [False, True], ids=["whole", "segments"])
def test_attend_is_jax_dot_product_attention(positions, n_kv_heads, documents):
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, positions, heads, 8))
        for i, heads in enumerate((4, n_kv_heads, n_kv_heads))
    )
    starts = jax.random.bernoulli(jax.random.key(3), 0.1, (2, positions))
    segments = jnp.cumsum(starts, axis=1) if documents else None
    mask = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])

    def reference(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="xla")

    def ours(q, k, v):
        return attend(q, k, v, CausalMask(), 8**-0.5, None if segments is None else (segments, segments))

    def value_and_gradient(f):
        def summed(*qkv):
            attended = f(*qkv)
            return jnp.sin(attended).sum(), attended

        return jax.jit(jax.value_and_grad(summed, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    assert_close(value_and_gradient(ours), value_and_gradient(reference))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 6, 5, 40), (2, 6, 40, 5), (2, 6, 8, 8)], ids=["widens", "narrows", "keeps"])
@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu", "plain"])
def test_matmul_has_the_gradients_of_tensordot(sizes, device, monkeypatch):
    """Alone and for runs that train together, as every kind of device computes it."""
    monkeypatch.setattr(matmul_file, "target", lambda: device)
    *lead, inner, outer = sizes
    shapes = (*lead, 2, inner), (2, inner, outer, 3), (outer, 3), (*lead, outer, 3)
    inputs = [jax.random.normal(jax.random.key(i), (3, *shape)) for i, shape in enumerate(shapes)]

    def gradients(product, *inputs):
        return jax.grad(lambda x, w, b, seen: (product(x, w, b) * seen).sum(), argnums=(0, 1, 2))(*inputs)

    ours = partial(gradients, lambda x, w, b: matmul(x, w, b, 2))
    alone = ours(*(x[0] for x in inputs))
    assert_close(alone, gradients(lambda x, w, b: jnp.tensordot(x, w, 2) + b, *(x[0] for x in inputs)))
    together = jax.vmap(ours)(*inputs)
    assert_close(jax.tree.map(lambda g: g[0], together), alone)


@pytest.mark.parametrize("kind", [nnx.LayerNorm, nnx.RMSNorm])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_are_those_of_flax(kind, dtype):
    """With the gradients that jax takes itself; kept for them are the input and two numbers a row."""
    key = jax.random.key(0)
    norm = kind(48, epsilon=1e-5, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=jnp.float32)
    norm.scale[...] = 1 + jax.random.normal(key, (48,))
    graph, weights = nnx.split(norm)
    x, seen = (3 * jax.random.normal(jax.random.fold_in(key, i), (4, 5, 48)) + 1 for i in range(2))
    bias = getattr(norm, "bias", None)

    def ours(x, scale, bias):
        return normalize(x, scale, bias, kind is nnx.LayerNorm, 1e-5)

    def theirs(x, weights):
        return nnx.merge(graph, weights)(x)

    x = x.astype(dtype)
    inputs = x, norm.scale[...], None if bias is None else bias[...]
    found, gradient = jax.vjp(ours, *inputs)
    wanted, reference = jax.vjp(theirs, x, weights)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    assert_close(found, wanted, tolerance)
    dx, d_scale, d_bias = gradient(seen.astype(dtype))
    their_dx, their_weights = reference(seen.astype(dtype))
    assert_close((dx, d_scale), (their_dx, their_weights["scale"][...]), tolerance)
    if bias is not None:
        assert_close(d_bias, their_weights["bias"][...], tolerance)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(gradient))
    assert kept <= x.nbytes + 2 * 4 * 4 * 5 + 2 * 4 * 48


MASKS = {"causal": CausalMask(), "full": FullMask(), "window": WindowMask(70), "narrow window": WindowMask(3)}


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("documents", [False, True], ids=["whole", "segments"])
def test_attention_in_blocks_is_the_plain_one_under_every_mask(mask, documents):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 150, heads, 8)) for i, heads in enumerate((4, 2, 2)))
    segments = jnp.cumsum(jax.random.bernoulli(jax.random.key(3), 0.1, (2, 150)), axis=1) if documents else None
    pair = None if segments is None else (segments, segments)

    def gradients(q, k, v):
        return jax.value_and_grad(lambda *qkv: jnp.sin(attend(*qkv, mask, 0.3, pair)).sum(), argnums=(0, 1, 2))(q, k, v)

    with plain_kernels():
        wanted = gradients(q, k, v)
    assert "custom_vjp" in str(jax.make_jaxpr(lambda *qkv: attend(*qkv, mask, 0.3, pair))(q, k, v))
    assert_close(jax.jit(gradients)(q, k, v), wanted)


@pytest.mark.slow
def test_a_prefix_is_seen_by_all_and_the_rest_by_those_after_it():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, T, 2, 4)) for i in range(3))
    read = jnp.arange(T)[None] < 5
    mask = PrefixMask(read)

    def influence(v):
        return jax.jacrev(lambda v: attend(q, k, v, mask, 0.5)[0].sum((1, 2)))(v)[:, 0].any((2, 3))

    expected = np.tril(np.ones((T, T), bool)) | np.asarray(read)
    np.testing.assert_array_equal(influence(v), expected)
    with plain_kernels():
        assert_close(attention.attend(q, k, v, mask, 0.5), jax.jit(lambda: attend(q, k, v, mask, 0.5))())


@dataclass(frozen=True)
class DilatedMask:
    """A mask of somebody else: a position sees itself and every third before it."""

    def visible(self, queries_T, keys_S):
        back_TS = queries_T[:, None] - keys_S
        return (back_TS >= 0) & (back_TS % 3 == 0)

    def none(self, queries, keys):
        return CausalMask().none(queries, keys)

    def every(self, queries, keys):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("keys", [150, 200])
@pytest.mark.parametrize("documents", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_a_mask_of_ones_own_is_asked_whoever_computes(keys, documents, device, monkeypatch):
    monkeypatch.setattr(attention, "target", lambda: device)
    q = jax.random.normal(jax.random.key(0), (2, 150, 4, 8))
    k, v = (jax.random.normal(jax.random.key(i), (2, keys, 2, 8)) for i in (1, 2))
    own, other = (jnp.arange(n)[None].repeat(2, 0) // 60 for n in (150, keys))
    segments = None if not documents else (own, own if keys == 150 else other)
    wanted = attention.plain_attention(q, k, v, DilatedMask(), 0.3, segments)
    assert_close(attend(q, k, v, DilatedMask(), 0.3, segments), wanted)


@pytest.mark.slow
def test_attention_to_another_sequence_sees_all_of_its_segment():
    q = jax.random.normal(jax.random.key(0), (2, 6, 4, 8))
    k, v = (jax.random.normal(jax.random.key(i), (2, 9, 2, 8)) for i in (1, 2))
    own, other = jnp.arange(6)[None].repeat(2, 0) // 3, jnp.arange(9)[None].repeat(2, 0) // 5
    mask = own[:, None, :, None] == other[:, None, None, :]
    wanted = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.3)
    assert_close(attend(q, k, v, FullMask(), 0.3, (own, other)), wanted)
    with plain_kernels():
        assert_close(attend(q, k, v, FullMask(), 0.3, (own, other)), wanted)


SMALL = {
    "gpt2": GPTConfig(vocab_size=31, context=8, d_model=8, n_layers=2, n_heads=2),
    "llama": GPTConfig(vocab_size=31, context=8, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, norm="rmsnorm",
                       bias=False, positions="rope", activation="silu", gated=True, tied=False, qk_norm=True),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_plain_kernels_are_differentiated_forward_and_twice(config):
    """What second-order optimizers and probes of sharpness need: jvp, forward over reverse, and a hessian."""
    model = config.build()
    params = jax.jit(model.init)(jax.random.key(0))
    batch = batch_of(jax.random.randint(jax.random.key(1), (2, 8), 0, 31))

    def loss(params):
        return summed_loss(model, params, batch, 1e-3)[0]

    with plain_kernels():
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        direction = jax.tree.map(lambda w: jax.random.normal(jax.random.key(2), w.shape), params)
        slope = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,))[1])(params, direction)
        product = jax.jit(lambda p, d: jax.jvp(jax.grad(loss), (p,), (d,))[1])(params, direction)
        scale = params["layers"]["mlp_norm"]["scale"]
        layers = params["layers"]

        def of_scale(scale):
            return loss({**params, "layers": {**layers, "mlp_norm": {**layers["mlp_norm"], "scale": scale}}})

        hessian = jax.jit(jax.hessian(of_scale))(scale)
    expected = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(slope, expected, rtol=1e-3)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(product))
    assert_close(hessian, hessian.transpose(2, 3, 0, 1), 1e-3)
    assert_close(jax.jit(jax.value_and_grad(loss))(params), (value, gradient), 1e-4)  # the fast forms compute the same
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(loss, (params,), (direction,))


def test_fast_nats_are_the_plain_ones():
    logits = 5 * jax.random.normal(jax.random.key(0), (2, 6, 32))
    targets = jax.random.randint(jax.random.key(1), (2, 6), 0, 32)

    def found(logits):
        return jax.value_and_grad(lambda x: sum(jnp.sin(part).sum() for part in token_nats(x, targets)))(logits)

    with plain_kernels():
        wanted = found(logits)
    assert_close(found(logits), wanted)
