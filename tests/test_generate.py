"""What is generated from a cache is what the whole model would say, however prompts are batched, cut or sharded."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.generate import Sampling, draw_tokens, generate, stream
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.sharding import Layout, MeshConfig, Rules
from helpers import logits_of

SMALL = GPTConfig(vocab_size=97, context=48, d_model=48, n_layers=3, n_heads=6, init_std=0.2)
ROTARY = replace(SMALL, n_kv_heads=2, norm="rmsnorm", bias=False, positions="rope", activation="silu", gated=True)
CONFIGS = {
    "gpt1": replace(SMALL, norm_place="post"),
    "gpt2": SMALL,
    "llama": replace(ROTARY, tied=False, qk_norm=True),
    "llama3": replace(ROTARY, rope_scaling=(8.0, 1.0, 4.0, 32)),
    "mup": replace(ROTARY, tied=False, mup_width=16, mup_depth=2, logit_cap=5.0),
}
PADDED = Execution(vocab_multiple=8)
GPT2, LLAMA = SMALL.build(PADDED), ROTARY.build(PADDED)
GREEDY = Sampling(temperature=0.0)


def weights(model, seed=1):
    return jax.jit(model.init)(jax.random.key(seed))


@pytest.fixture
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(97, size=n) for n in (3, 9, 5)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_greedy_is_what_the_whole_model_says_at_every_step(config, prompts):
    model = config.build(PADDED)
    params = weights(model)
    answers = generate(params, model, prompts, 20, GREEDY)

    @jax.jit
    def likeliest(tokens):
        return jnp.argmax(logits_of(config, params, tokens, execution=PADDED), axis=-1)

    for prompt, answer in zip(prompts, answers, strict=True):
        text = np.zeros((1, config.context), np.int32)
        text[0, : len(prompt) + 20] = np.append(prompt, answer)
        said = np.asarray(likeliest(text))[0]
        np.testing.assert_array_equal(said[len(prompt) - 1 : len(prompt) + 19], answer)
    assert len(set(np.concatenate(answers).tolist())) > 5


def test_a_row_does_not_depend_on_the_others(prompts):
    params, sampling = weights(GPT2), Sampling(0.9, top_k=20, top_p=0.95, repetition_penalty=1.3)
    together = generate(params, GPT2, prompts, 16, sampling, seed=3)
    alone = generate(params, GPT2, prompts[:1], 16, sampling, seed=3)
    np.testing.assert_array_equal(together[0], alone[0])
    again = generate(params, GPT2, [prompts[0], prompts[0]], 16, sampling, seed=3)
    assert (again[0] == alone[0]).all() and (again[1] != again[0]).any()
    assert (generate(params, GPT2, prompts[:1], 16, sampling, seed=4)[0] != alone[0]).any()


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_a_stream_is_the_whole_in_pieces(prompts, every):
    params, sampling = weights(LLAMA), Sampling(0.8)
    whole = generate(params, LLAMA, prompts, 17, sampling, seed=1)
    pieces = list(stream(params, LLAMA, prompts, 17, sampling, seed=1, every=every))
    assert [len(piece[0]) for piece in pieces[:-1]] == [every] * (len(pieces) - 1)
    for row in range(3):
        np.testing.assert_array_equal(np.concatenate([piece[row] for piece in pieces]), whole[row])


@pytest.mark.parametrize("every", [0, 4])
def test_a_row_ends_with_its_stop_token_and_the_others_go_on(prompts, every):
    params = weights(GPT2)
    free = generate(params, GPT2, prompts, 20, Sampling(1.0), seed=2)
    stops = [int(free[0][6]), int(free[1][2])]
    parts = list(stream(params, GPT2, prompts, 20, Sampling(1.0), seed=2, stop=stops, every=every))
    for row, whole in enumerate(free):
        hits = np.flatnonzero(np.isin(whole, stops))
        expected = whole[: hits[0] + 1] if len(hits) else whole
        np.testing.assert_array_equal(np.concatenate([part[row] for part in parts]), expected)
    assert len(np.concatenate([part[1] for part in parts])) <= 3


def test_all_stopped_ends_the_loop(prompts):
    params = weights(GPT2)
    parts = list(stream(params, GPT2, prompts, 30, Sampling(1.0), stop=range(97), every=5))
    assert len(parts) == 1 and [len(row) for row in parts[0]] == [1, 1, 1]


@pytest.mark.parametrize("mesh", [MeshConfig(data=4, tensor=2), MeshConfig(data=1, fsdp=8)], ids=str)
def test_sharded_over_a_mesh_it_says_the_same(prompts, mesh):
    params = weights(LLAMA)
    layout = Layout(make_mesh(mesh), Rules())
    placed = jax.device_put(params, layout.params(LLAMA.axes, params))
    alone = generate(params, LLAMA, prompts, 12, GREEDY)
    sharded = generate(placed, LLAMA, prompts, 12, GREEDY, layout=layout)
    for a, b in zip(alone, sharded, strict=True):
        np.testing.assert_array_equal(a, b)


def drawn(logits, sampling, n=4000):
    """Return how often each token is drawn."""
    keys = jax.random.split(jax.random.key(0), n)
    logits_BV = jnp.tile(jnp.asarray(logits, jnp.float32), (n, 1))
    tokens = draw_tokens(logits_BV, jnp.zeros(logits_BV.shape, bool), keys, 0, sampling)
    return np.bincount(np.asarray(tokens), minlength=len(logits)) / n


def test_tokens_are_drawn_as_often_as_they_should_be():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    noise = 0.03  # four standard errors of 4000 draws

    def about(*shares):
        return pytest.approx(np.array(shares) / sum(shares), abs=noise)

    assert drawn(np.log(p), Sampling()) == about(*p)
    assert drawn(np.log(p), Sampling(temperature=0.5)) == about(*p**2)
    assert drawn(np.log(p), Sampling(top_k=2)) == about(0.4, 0.3, 0, 0)
    assert drawn(np.log(p), Sampling(top_p=0.6)) == about(0.4, 0.3, 0, 0)
    assert drawn(np.log(p), Sampling(top_p=0.3)) == about(1, 0, 0, 0)
    assert drawn(np.log(p), Sampling(top_p=0.75)) == about(0.4, 0.3, 0.2, 0)
    assert drawn(np.log(p), Sampling(top_k=99)) == about(*p)


def test_a_repeated_token_is_less_likely_whatever_the_sign_of_its_logit():
    logits = jnp.array([[2.0, 1.5, -1.0, -1.1]])
    keys = jax.random.split(jax.random.key(0), 1)
    seen = jnp.array([[True, False, True, False]])
    penalty = Sampling(temperature=0.0, repetition_penalty=1.5)
    assert draw_tokens(logits, seen, keys, 0, penalty)[0] == 1
    assert draw_tokens(logits.at[:, :2].set(-9.0), seen, keys, 0, penalty)[0] == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompts": [np.array([], int)]}, "no token"),
        ({"prompts": [np.array([97])]}, "ids from 97"),
        ({"prompts": [np.arange(30)]}, "30 tokens and 20 new ones exceed the context of 48"),
        ({"new_tokens": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_continued_is_refused(given, words):
    settings = {"prompts": [np.arange(5)], "new_tokens": 20} | given
    with pytest.raises(BadInput, match=words):
        generate(weights(GPT2), GPT2, **settings)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "temperature": (-1, 1e-40, float("nan"), float("inf")),
        "top_k": (-1,),
        "top_p": (0, 1.1, float("nan")),
        "repetition_penalty": (0, 1e-40, float("nan"), float("inf")),
    }.items(),
)
def test_impossible_sampling_is_refused(name, values):
    for value in values:
        with pytest.raises(BadInput, match=f"{name} {value} must"):
            Sampling(**{name: value})


def test_a_model_that_does_not_generate_is_refused():
    with pytest.raises(BadInput, match="family gpt does not generate text"):
        generate(weights(GPT2), replace(GPT2, decoder=None), [np.arange(3)], 2)


def test_a_seed_that_repeats_another_is_refused():
    for seed in (-1, 2**32, 2**63):
        with pytest.raises(BadInput, match=f"seed {seed} must"):
            generate(weights(GPT2), GPT2, [np.arange(3)], 2, seed=seed)
