"""With the same weights, our logits and gradients are those of Hugging Face's GPT-1, GPT-2 and LLaMA."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.generate import Sampling, allowed, generate
from gptjax.models.gpt import GPTConfig, gpt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T = 3, 11  # of a context of 16 and a vocabulary of 97, so that no two sizes agree by accident


def nest(flat):
    """Turn {"a/b": array} into {"a": {"b": array}}."""
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def stacked(weights, prefix, names, n_layers):
    """Gather one layer's map {ours: (theirs, change)} over the layers."""
    return {
        f"layers/{ours}": np.stack([change(weights[f"{prefix}.{i}.{theirs}"]) for i in range(n_layers)])
        for ours, (theirs, change) in names.items()
    }


def from_openai(weights, c):
    """Map GPT-1's or GPT-2's names: Conv1D stores (in, out), with queries, keys and values side by side."""
    N, K, D = c.n_heads, c.head_size, c.d_model
    gpt1 = c.norm_place == "post"
    names = {
        "attention/out/kernel": ("attn.c_proj.weight", lambda w: w.reshape(N, K, D)),
        "attention/out/bias": ("attn.c_proj.bias", np.asarray),
        "mlp/up/kernel": ("mlp.c_fc.weight", np.asarray),
        "mlp/up/bias": ("mlp.c_fc.bias", np.asarray),
        "mlp/down/kernel": ("mlp.c_proj.weight", np.asarray),
        "mlp/down/bias": ("mlp.c_proj.bias", np.asarray),
    }
    for i, part in enumerate(("query", "key", "value")):
        names[f"attention/{part}/kernel"] = ("attn.c_attn.weight", lambda w, i=i: np.split(w, 3, 1)[i].reshape(D, N, K))
        names[f"attention/{part}/bias"] = ("attn.c_attn.bias", lambda w, i=i: np.split(w, 3)[i].reshape(N, K))
    for norm, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        names |= {f"{norm}/scale": (f"{theirs}.weight", np.asarray), f"{norm}/bias": (f"{theirs}.bias", np.asarray)}
    flat = stacked(weights, "transformer.h", names, c.n_layers)
    flat["embedding"] = weights["transformer.tokens_embed.weight" if gpt1 else "transformer.wte.weight"]
    flat["positions"] = weights["transformer.positions_embed.weight" if gpt1 else "transformer.wpe.weight"]
    if not gpt1:
        flat["final_norm/scale"] = weights["transformer.ln_f.weight"]
        flat["final_norm/bias"] = weights["transformer.ln_f.bias"]
    return nest(flat)


def from_llama(weights, c):
    """Map LLaMA's names: Linear stores (out, in)."""
    D, K = c.d_model, c.head_size
    names = {
        "attention/query/kernel": ("self_attn.q_proj.weight", lambda w: w.T.reshape(D, -1, K)),
        "attention/key/kernel": ("self_attn.k_proj.weight", lambda w: w.T.reshape(D, -1, K)),
        "attention/value/kernel": ("self_attn.v_proj.weight", lambda w: w.T.reshape(D, -1, K)),
        "attention/out/kernel": ("self_attn.o_proj.weight", lambda w: w.T.reshape(-1, K, D)),
        "attention_norm/scale": ("input_layernorm.weight", np.asarray),
        "mlp_norm/scale": ("post_attention_layernorm.weight", np.asarray),
        **{f"mlp/{part}/kernel": (f"mlp.{part}_proj.weight", np.transpose) for part in ("gate", "up", "down")},
    }
    flat = stacked(weights, "model.layers", names, c.n_layers)
    flat["embedding"] = weights["model.embed_tokens.weight"]
    flat["final_norm/scale"] = weights["model.norm.weight"]
    flat["head/kernel"] = weights["lm_head.weight"].T
    return nest(flat)


GPT2 = GPTConfig(vocab_size=97, context=16, d_model=42, n_layers=3, n_heads=3)
LLAMA = replace(
    GPT2,
    d_model=48,
    d_mlp=70,
    n_heads=6,
    n_kv_heads=2,
    norm="rmsnorm",
    norm_eps=1e-6,
    bias=False,
    positions="rope",
    rope_theta=50.0,
    activation="silu",
    gated=True,
    tied=False,
)


def hf_openai(c):
    sizes = {"n_positions": c.context, "n_embd": c.d_model, "n_layer": c.n_layers, "n_head": c.n_heads}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    settings = {"vocab_size": c.vocab_size, "bos_token_id": None, "eos_token_id": None, **sizes, **no_dropout}
    if c.norm_place == "post":
        return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**settings))
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))


def hf_llama(c):
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= {"rope_type": "llama3", **dict(zip(names, c.rope_scaling, strict=True))}
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.mlp_size,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.context,
        rms_norm_eps=c.norm_eps,
        rope_parameters=rope,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("config", "theirs", "mapped"),
    [
        (replace(GPT2, norm_place="post"), hf_openai, from_openai),
        (GPT2, hf_openai, from_openai),
        (LLAMA, hf_llama, from_llama),
        (replace(LLAMA, context=64, rope_scaling=(8.0, 1.0, 4.0, 32)), hf_llama, from_llama),
    ],
    ids=["gpt1", "gpt2", "llama", "llama3.1"],
)
def test_logits_and_gradients_are_those_of_transformers(config, theirs, mapped):
    torch.manual_seed(0)
    reference = theirs(config).float()
    with torch.no_grad():
        for parameter in reference.parameters():  # biases and scales too stand at no special value
            parameter.add_(0.2 * torch.randn_like(parameter))
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(B, T))
    logits = reference(torch.tensor(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(ids[:, 1:]).flatten())
    loss.backward()
    named = dict(reference.named_parameters())
    params = mapped({name: p.detach().numpy() for name, p in named.items()}, config)
    gradient = mapped({name: p.grad.numpy() for name, p in named.items()}, config)

    model = gpt(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    def our_loss(params):
        ours = model.apply(params, jnp.asarray(ids))
        log_p = jax.nn.log_softmax(ours[:, :-1])
        return -jnp.take_along_axis(log_p, jnp.asarray(ids)[:, 1:, None], axis=-1).mean(), ours

    (our_value, ours), our_gradient = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(params)
    worst = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), our_gradient, gradient)))
    off = float(np.abs(ours - logits.detach().numpy()).max())
    print(
        f"logits {off:.1e} of {float(ours.std()):.2f}, loss {abs(float(our_value) - loss.item()):.1e}, grad {worst:.1e}"
    )
    assert off < 1e-4
    assert abs(float(our_value) - loss.item()) < 1e-5
    assert worst < 1e-4

    new = config.context - T
    greedy = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
    reference.generation_config.eos_token_id = None
    with torch.no_grad():
        continued = reference.generate(torch.tensor(ids), attention_mask=torch.ones(B, T), **greedy)[:, T:].numpy()
    np.testing.assert_array_equal(
        np.stack(generate(params, config, list(ids), new, Sampling(temperature=0))), continued
    )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(top_p=0.6),
        Sampling(1.3, top_k=20, top_p=0.8, repetition_penalty=1.4),
        Sampling(repetition_penalty=0.8),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_of_transformers(sampling):
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(scale=3, size=(B, 97)).astype(np.float32), rng.integers(97, size=(B, T))
    seen = np.zeros((B, 97), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    processors = transformers.LogitsProcessorList()
    processors.append(transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(transformers.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    theirs = torch.softmax(processors(torch.tensor(ids), torch.tensor(logits)), -1).numpy()
    ours = jax.nn.softmax(allowed(jnp.asarray(logits), jnp.asarray(seen), sampling))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
