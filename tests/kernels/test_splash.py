"""Splash attention, interpreted on a CPU, equals plain softmax attention: its values, gradients, and layouts.

Shapes: B batch, T positions, N heads, G key/value heads, K head.
"""

import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.errors import BadInput
from gptjax.kernels import splash
from gptjax.kernels.layers import kept_by_dots
from gptjax.kernels.mask import CausalMask, FullMask, Mask, PrefixMask, WindowMask
from gptjax.kernels.pipeline import pipeline
from gptjax.kernels.splash import fits, splash_attend
from gptjax.mesh import make_mesh
from gptjax.sharding import Layout, MeshConfig, Rules, use
from helpers import LIBTPU, ROOT

B, T, N, G, K = 4, 256, 4, 2, 32
SCALE = 0.3
MASKS = (CausalMask(), FullMask(), WindowMask(100))


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Cut the positions of these tests into more than one block."""
    monkeypatch.setattr(splash, "BLOCK", 128)


def inputs(n: int = N, g: int = G, t: int = T, dtype=jnp.float32, segments: bool = False):
    """Draw queries, keys, values, and segments of some fifty positions where wanted."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, t, heads, K)), dtype) for heads in (n, g, g))
    return q, k, v, jnp.cumsum(jnp.asarray(rng.random((B, t)) < 0.02), 1, dtype=jnp.int32) if segments else None


def plain(q_BTNK, k_BTGK, v_BTGK, mask: Mask, segments_BT):
    """Softmax attention with all scores."""
    repeat = q_BTNK.shape[2] // k_BTGK.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (q_BTNK, k_BTGK.repeat(repeat, 2), v_BTGK.repeat(repeat, 2)))
    positions = jnp.arange(q.shape[1])
    visible = mask.visible(positions, positions)
    if segments_BT is not None:
        visible = visible & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    scores = jnp.where(visible, jnp.einsum("btnk,bsnk->bnts", q, k) * SCALE, -jnp.inf)
    return jnp.einsum("bnts,bsnk->btnk", jax.nn.softmax(scores), v)


def with_gradients(attend, q, k, v):
    """Return what attention gives, and the gradients of a loss that weights all of it differently."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(q, k, v):
        out = attend(q, k, v)
        return (out.astype(jnp.float32) * weights).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), (out, *gradients))


def assert_equal(mask: Mask, q, k, v, segments, layout: Layout | None = None, tolerance: float = 2e-5):
    ours = partial(splash_attend, mask=mask, scale=SCALE, segments_BT=segments, layout=layout, interpret=True)
    found = with_gradients(ours, q, k, v)
    wanted = with_gradients(partial(plain, mask=mask, segments_BT=segments), q, k, v)
    for name, ours_, theirs in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours_ / scale, theirs / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_values_and_gradients(mask, segments):
    assert_equal(mask, *inputs(segments=segments))


@pytest.mark.parametrize(("n", "g"), [(2, 2), (4, 1), (6, 2)])
def test_grouped_queries(n, g):
    assert_equal(CausalMask(), *inputs(n, g, segments=True))


def test_positions_that_are_no_power_of_two(monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 512)
    assert splash.block_of(384) == 384 and splash.block_of(640) == 128 and splash.block_of(1152) == 384
    assert_equal(WindowMask(130), *inputs(2, 1, 640))  # five blocks, of which a query sees up to three


def test_bfloat16():
    q, k, v, _ = inputs(dtype=jnp.bfloat16)
    assert splash_attend(q, k, v, CausalMask(), SCALE, None, None, interpret=True).dtype == jnp.bfloat16
    assert_equal(CausalMask(), q, k, v, None, tolerance=1e-2)


def layout_of(rules: Rules | None = None, **sizes: int) -> Layout:
    return Layout(make_mesh(MeshConfig(**sizes)), rules or Rules())


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_batch_and_heads_split_over_devices(mask):
    layout = layout_of(data=2, fsdp=2, tensor=2)
    q, k, v, segments = inputs(segments=True)
    heads = layout.sharding(("batch", None, "heads", None))
    q, k, v = jax.device_put((q, k, v), (heads, heads, heads))
    assert_equal(mask, q, k, v, jax.device_put(segments, layout.sharding(("batch", None))), layout)


def test_one_key_head_serves_heads_that_are_split():
    layout = layout_of(Rules(kv_heads=None), data=2, tensor=4)
    assert_equal(CausalMask(), *inputs(4, 1), layout)


def layers(attend):
    """Make a function of stacked weights: three layers of attention whose queries, keys and values are projections."""

    def layer(w_KK, x_BTNK, segments_BT):
        q, k, v = (x_BTNK @ w for w in w_KK)
        return x_BTNK + attend(q, k[:, :, ::2], v[:, :, ::2], segments_BT)

    return layer


def through_layers(attend, remat: str, layout: Layout | None = None):
    """Run a scan over layers, rematerialized as stack.py does it, and differentiate it."""
    x, _, _, segments = inputs(segments=True)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3, K, K)) / np.sqrt(K), jnp.float32)
    policy = {"dots": kept_by_dots, "full": None}
    layer = layers(attend)
    if remat != "none":
        layer = jax.checkpoint(layer, policy=policy[remat], prevent_cse=False)

    def loss(weights, x):
        return (jax.lax.scan(lambda x, w: (layer(w, x, segments), None), x, weights)[0] ** 2).mean()

    return loss, (weights, x)


def ours(layout: Layout | None = None):
    def attend(q, k, v, segments):
        return splash_attend(q, k, v, CausalMask(), SCALE, segments, layout, interpret=True)

    return attend


def assert_trees_equal(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(np.abs(b).max()))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_scan_over_layers_with_remat(remat, split):
    layout = layout_of(data=2, fsdp=2, tensor=2) if split else None
    loss, args = through_layers(ours(layout), remat)
    wanted, _ = through_layers(lambda q, k, v, s: plain(q, k, v, CausalMask(), s), "none")
    assert_trees_equal(*(jax.jit(jax.value_and_grad(f, (0, 1)))(*args) for f in (loss, wanted)))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_dots_keep_what_the_kernel_gave(remat):
    """The forward kernel need not run again for a backward pass that has its output and its sums."""
    loss, args = through_layers(ours(), remat)
    kept = {leaf.shape for leaf in jax.tree.leaves(jax.vjp(loss, *args)[1])}
    assert ((3, B, N, T) in kept) == ((3, B, N, T, K) in kept) == (remat != "full")


def test_pipeline():
    layout = layout_of(data=2, pipeline=2, tensor=2)
    x, _, _, segments = inputs(segments=True)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, K, K)) / np.sqrt(K), jnp.float32)

    def stage(attend):
        return lambda weights, x, s: (jax.lax.scan(lambda x, w: (layers(attend)(w, x, s), None), x, weights)[0], {})

    def staged(weights, x):
        with use(layout):
            return (pipeline(stage(ours(layout)), weights, x, (segments,), layout, 2)[0] ** 2).mean()

    def whole(weights, x):
        return (stage(lambda q, k, v, s: plain(q, k, v, CausalMask(), s))(weights, x, segments)[0] ** 2).mean()

    assert_trees_equal(*(jax.jit(jax.value_and_grad(f, (0, 1)))(weights, x) for f in (staged, whole)))


def test_shapes_that_do_not_fit():
    q, k = (8, T, 8, 64), (8, T, 4, 64)
    taken = partial(fits, dtype=jnp.bfloat16, mask=CausalMask(), layout=None)
    assert taken(q, k) and taken(q, k, dtype=jnp.float32, mask=WindowMask(3))
    assert not taken((8, 200, 8, 64), (8, 200, 4, 64))  # not in blocks
    assert not taken(q, (8, 2 * T, 4, 64))  # other positions than the queries'
    assert not taken(q, (8, T, 3, 64))
    assert not taken((8, T, 8, 512), (8, T, 4, 512))  # heads too wide
    assert taken((8, 509 * 128, 8, 64), (8, 509 * 128, 4, 64)) and not taken(
        (8, 521 * 128, 8, 64), (8, 521 * 128, 4, 64)
    )
    assert not taken(q, k, dtype=jnp.float16)
    assert not taken(q, k, mask=PrefixMask(jnp.ones((8, T), bool)))
    assert taken(q, k, layout=layout_of(data=2, fsdp=2, tensor=2))
    assert not taken(q, k, layout=layout_of(data=2, context=4))  # positions are split
    assert not taken(q, k, layout=layout_of(data=1, tensor=8))  # half a key head for each device
    assert not taken(q, k, layout=layout_of(Rules(kv_heads=None), data=4, tensor=2))  # heads, but not their keys
    assert not taken((4, T, 8, 64), (4, T, 4, 64), layout=layout_of(data=8))
    with pytest.raises(BadInput, match="use the plain form"):
        splash_attend(*inputs(t=200)[:3], CausalMask(), SCALE, None, None)


@LIBTPU
def test_no_square_of_scores_as_compiled_for_tpus(tmp_path):
    script, found = ROOT / "benchmarks" / "attention_memory.py", tmp_path / "found.json"
    subprocess.run([sys.executable, script, "--only", "attention 4096", "--json", found], check=True)
    ours, usual = json.loads(found.read_text())
    assert (ours["attention"], usual["attention"]) == ("auto", "xla")
    assert ours["temporaries"] < 0.05 * usual["temporaries"]


ranges = st.builds(lambda start, length: range(start, start + length), st.integers(0, 12), st.integers(0, 6))
masks = st.one_of(st.just(CausalMask()), st.just(FullMask()), st.builds(WindowMask, st.integers(1, 8)))


@settings(max_examples=300, deadline=None)
@given(masks, ranges, ranges)
def test_blocks_are_answered_as_their_pairs(mask, queries, keys):
    visible = np.asarray(
        mask.visible(np.arange(20)[queries.start : queries.stop], np.arange(20)[keys.start : keys.stop])
    )
    assert visible.shape == (len(queries), len(keys))
    assert mask.none(queries, keys) == (not visible.any()) and mask.every(queries, keys) == visible.all()


@settings(max_examples=100, deadline=None)
@given(ranges, ranges, st.integers(0, 2**20 - 1))
def test_a_prefix_answers_for_all_that_may_be_read(queries, keys, read):
    mask = PrefixMask(
        np.asarray([[read >> i & 1 for i in range(20)]], bool)
    )  # numpy, whose shapes need not be compiled
    visible = mask.visible(np.asarray(queries, int), np.asarray(keys, int))
    assert visible.shape == (1, len(queries), len(keys))
    assert not (mask.none(queries, keys) and visible.any())
    assert not mask.every(queries, keys) or visible.all()
    assert all(visible[0, i, j] == (read >> s & 1 or s <= t) for i, t in enumerate(queries) for j, s in enumerate(keys))


def test_windows_by_hand():
    positions = np.arange(4)
    assert WindowMask(2).visible(positions, positions).tolist() == [
        [True, False, False, False], [True, True, False, False], [False, True, True, False], [False, False, True, True],
    ]  # fmt: skip
    assert (WindowMask(4).visible(positions, positions) == CausalMask().visible(positions, positions)).all()
    with pytest.raises(BadInput, match="size of 1 or more"):
        WindowMask(0)
