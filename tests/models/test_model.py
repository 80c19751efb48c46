"""What must hold of the decoder whatever its settings: causality, and that no way of computing changes the answer."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.kernels import layers
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.params import named, nested
from gptjax.sharding import Layout, MeshConfig, Rules, use
from helpers import CUDA
from helpers import logits_of as computed

T = 12
GPT2 = GPTConfig(vocab_size=64, context=16, d_model=32, n_layers=2, n_heads=4)
GPT1 = replace(GPT2, norm_place="post")
GOPHER = replace(GPT2, norm="rmsnorm", positions="rope", d_head=16)
LLAMA = replace(
    GOPHER, bias=False, n_kv_heads=2, d_head=0, d_mlp=48, activation="silu", gated=True, tied=False, qk_norm=True
)
EXTREMES = pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
FAMILIES = pytest.mark.parametrize("config", [GPT2, GPT1, GOPHER, LLAMA], ids=["gpt2", "gpt1", "gopher", "llama"])
SEGMENTS = jnp.repeat(jnp.arange(3), T // 3)[None]


def init(config, execution=DEFAULT_EXECUTION):
    """Draw weights, the biases and scales among them, so that none stands at a special value."""
    shapes, rng = jax.eval_shape(config.build(execution).init, jax.random.key(0)), np.random.default_rng(0)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "scale") + 0.2 * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map_with_path(draw, shapes)


def draw_tokens(batch=2, length=T, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, GPT2.vocab_size)


def logits_of(config, params, tokens, segments=None, execution=DEFAULT_EXECUTION):
    return jax.jit(partial(computed, config, execution=execution))(params, tokens, segments)


def loss_and_gradient(config, params, tokens, execution=DEFAULT_EXECUTION, **jit):
    def loss(params, tokens):
        logits = computed(config, params, tokens[:, :-1], execution=execution)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()

    return jax.jit(jax.value_and_grad(loss), **jit)(params, tokens)


@cache
def on_one_device(config, batch=2):
    """Return loss and gradient of the drawn weights and tokens."""
    return loss_and_gradient(config, init(config), draw_tokens(batch))


def assert_close(a, b, tolerance=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def influence(config, segments):
    """Return |d readout of position t / d embedding of token s| as a (t, s) matrix.

    The tokens are all different and the readout weighs the logits of other ids at random, so row s of the embedding
    acts at position s alone.
    """
    params = init(config)
    tokens, others = jnp.arange(T)[None], jnp.arange(T, config.vocab_size)
    weights = jax.random.normal(jax.random.key(2), others.shape)

    def readout(embedding):
        return computed(config, {**params, "embedding": embedding}, tokens, segments)[0][:, others] @ weights

    return np.abs(jax.jit(jax.jacrev(readout))(params["embedding"])[:, :T]).sum(-1)


@FAMILIES
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["whole", "segments"])
def test_a_position_sees_its_segment_up_to_itself_and_nothing_else(config, segments):
    sees = np.tril(np.ones((T, T), bool))
    if segments is not None:
        sees &= np.asarray(segments[0][:, None] == segments[0])
    matrix = influence(config, segments)
    assert (matrix[~sees] == 0).all()
    assert (matrix[sees] > 1e-3).all()


@EXTREMES
def test_scan_and_remat_change_neither_loss_nor_gradient(config):
    params, tokens = init(config), draw_tokens()
    plain = on_one_device(config)
    for scan, remat in [(True, "dots"), (True, "full"), (False, "none"), (False, "dots"), (False, "full")]:
        assert_close(loss_and_gradient(config, params, tokens, Execution(scan=scan, remat=remat)), plain)


def test_remat_full_keeps_less_than_dots_and_dots_less_than_none():
    params, tokens = init(GPT2), draw_tokens(8)

    def kept(remat):
        apply = partial(computed, GPT2, tokens=tokens, execution=Execution(remat=remat))
        backward = jax.eval_shape(lambda params: jax.vjp(lambda p: apply(params=p), params)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept("full") < kept("dots") < kept("none")


@EXTREMES
def test_padding_the_vocabulary_changes_no_probability(config):
    odd = replace(config, vocab_size=61)
    padded = Execution(vocab_multiple=16)
    wide = init(odd, padded)
    narrow = {**wide, "embedding": wide["embedding"][:61]}
    if not config.tied:
        narrow["head"] = {"kernel": wide["head"]["kernel"][:, :61]}
    tokens = draw_tokens() % 61
    exact = jax.nn.log_softmax(logits_of(odd, narrow, tokens))
    log_p = jax.nn.log_softmax(logits_of(odd, wide, tokens, execution=padded))
    assert log_p.shape[-1] == 64
    assert_close(log_p[..., :61], exact)
    assert (jnp.exp(log_p[..., 61:]) == 0).all()
    gradient = loss_and_gradient(odd, wide, tokens, padded)[1]
    assert (gradient["embedding"][61:] == 0).all() and (gradient["embedding"][:61] != 0).any()


def test_grouped_queries_are_heads_that_share_keys_and_values():
    params, tokens = init(LLAMA), draw_tokens()
    attention = dict(params["layers"]["attention"])
    for name in ("key", "value"):  # (layers, embed, kv_heads, head)
        attention[name] = {"kernel": jnp.repeat(attention[name]["kernel"], 2, axis=2)}
    repeated = {**params, "layers": {**params["layers"], "attention": attention}}
    full = replace(LLAMA, n_kv_heads=4)
    assert_close(logits_of(LLAMA, params, tokens), logits_of(full, repeated, tokens))
    assert_close(logits_of(full, repeated, tokens), logits_of(replace(full, n_kv_heads=0), repeated, tokens))


def test_a_gpu_runs_few_layers_without_a_loop(monkeypatch):
    """As a loop gives, and with every position's features side by side in memory."""
    config = replace(GPT2, n_layers=3)
    params, tokens = init(config), draw_tokens()
    wanted = loss_and_gradient(config, params, tokens)

    def program():
        return str(jax.make_jaxpr(lambda params: computed(config, params, tokens))(params))

    assert " scan[" in program()
    monkeypatch.setattr(layers, "target", lambda: "gpu")
    assert " scan[" not in program()
    assert program().count("major_to_minor=(0, 1, 2)") == config.n_layers + 1
    assert_close(loss_and_gradient(config, params, tokens), wanted)
    monkeypatch.setattr(layers, "UNROLLED", 2)
    assert " scan[" in program()


@CUDA
def test_dots_keeps_what_fused_attention_gives():
    config, execution = replace(GPT2, dtype="bfloat16", d_head=64), Execution(attention="cudnn", remat="dots")
    summed = lambda p: computed(config, p, draw_tokens(), execution=execution).sum()  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(summed))(init(config)))
    assert program.count("dot_product_attention_fwd_wrapper[") == 1
    assert program.count("dot_product_attention_bwd_wrapper[") == 1


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_cpu_contracts_no_first_axis(config):
    """Of the first of two matrices: XLA packs it element by element, and gives every other product to a library."""
    params, tokens = init(config), draw_tokens()

    def loss(params):
        return jnp.square(computed(config, params, tokens, execution=Execution(scan=False))).sum()

    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    assert len(products) > 10 * config.n_layers
    for line in products:
        batch = re.search(r"lhs_batch_dims={([\d,]*)}", line)
        last = 1 + (len(batch[1].split(",")) if batch else 0)  # of two matrices, after the axes of a batch
        assert f"lhs_contracting_dims={{{last}}}" in line


def test_rotary_positions_are_relative_and_learned_ones_are_not():
    """With rope, a pair of tokens that is a segment of its own gives the same logits wherever it stands."""
    pairs, segments = jnp.tile(jnp.array([3, 5]), T // 2)[None], jnp.repeat(jnp.arange(T // 2), 2)[None]

    def logits(config, tokens):
        return logits_of(config, init(config), tokens, segments).reshape(T // 2, 2, -1)

    rope, learned = logits(GOPHER, pairs), logits(GPT2, pairs)
    assert_close(rope, jnp.broadcast_to(rope[0], rope.shape))
    assert jnp.abs(learned - learned[0]).max() > 0.1
    shallow = replace(GOPHER, n_layers=1)  # deeper, the causal mask alone gives away the order
    one, other = (logits_of(shallow, init(shallow), jnp.array([ids]))[:, -1] for ids in ([3, 5, 9], [5, 3, 9]))
    assert jnp.abs(one - other).max() > 0.01


def test_logit_cap_bounds_the_logits():
    params, tokens = init(GPT2), draw_tokens()
    free, capped = logits_of(GPT2, params, tokens), logits_of(replace(GPT2, logit_cap=3.0), params, tokens)
    assert jnp.abs(free).max() > 3 >= jnp.abs(capped).max()
    assert_close(capped, 3 * jnp.tanh(free / 3))


@EXTREMES
def test_bfloat16_computes_near_float32_from_float32_weights(config):
    params, tokens = init(config), draw_tokens()
    half = replace(config, dtype="bfloat16")
    shapes = jax.eval_shape(half.build().init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    exact, logits = logits_of(config, params, tokens), logits_of(half, params, tokens)
    assert logits.dtype == jnp.float32
    assert 1e-4 < (logits - exact).std() / exact.std() < 0.03
    (loss, gradient), (exact_loss, exact_gradient) = loss_and_gradient(half, params, tokens), on_one_device(config)
    assert abs(loss - exact_loss) < 0.02
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (gradient, exact_gradient))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, fsdp=2, tensor=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
]


@EXTREMES
@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"{mesh.data}x{mesh.fsdp}x{mesh.tensor}")
def test_one_device_is_eight_devices(config, mesh):
    if mesh.tensor == 4:
        config = replace(config, n_kv_heads=4)
    params, tokens = init(config), draw_tokens(8)
    layout = Layout(make_mesh(mesh), Rules())
    shardings = layout.params(config.build().axes, params)
    placed = jax.device_put((params, tokens), (shardings, layout.sharding(("batch", "seq"))))
    with use(layout):
        split = loss_and_gradient(config, *placed, out_shardings=(None, shardings))
    assert len(split[1]["embedding"].sharding.device_set) == 8
    assert_close(split, on_one_device(config, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_layers": 0}, "n_layers = 0 must be at least 1"),
        ({"d_model": 30, "n_heads": 4}, "30 is not divisible by n_heads 4; set d_head"),
        ({"n_heads": 4, "n_kv_heads": 3}, "4 is not divisible by n_kv_heads 3; use a divisor"),
        ({"positions": "rope", "d_head": 7}, "d_head = 7 is odd"),
    ],
)
def test_bad_shapes_are_one_line_with_a_remedy(settings, message):
    with pytest.raises(BadInput, match=message) as error:
        replace(GPT2, **settings)
    assert "\n" not in str(error.value)


def test_bad_sequences_and_meshes_are_refused():
    with pytest.raises(BadInput, match="17 tokens do not fit the context of 16"):
        computed(GPT2, init(GPT2), draw_tokens(length=17))
    layout = Layout(make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)), Rules())
    with pytest.raises(BadInput, match="kv_heads of size 2 is not divisible by its 4 mesh parts"):
        layout.params(LLAMA.build().axes, init(LLAMA))
    with pytest.raises(BadInput, match="does not cover 8 devices"):
        make_mesh(MeshConfig(data=3))


@pytest.mark.parametrize("tied", [True, False])
def test_padding_the_vocabulary_changes_no_weight_and_no_logit(tied):
    plain = GPTConfig(vocab_size=50, context=16, d_model=32, n_layers=2, n_heads=4, tied=tied)
    padded, tokens = Execution(vocab_multiple=16), jnp.arange(32).reshape(2, 16)
    one, other = (named(plain.build(execution).init(jax.random.key(0))) for execution in (DEFAULT_EXECUTION, padded))
    for name in one:
        np.testing.assert_array_equal(other[name][tuple(map(slice, one[name].shape))], one[name], err_msg=name)
    a, b = (computed(plain, nested(w), tokens, execution=e) for e, w in ((DEFAULT_EXECUTION, one), (padded, other)))
    np.testing.assert_allclose(b[..., :50], a, atol=1e-5)
