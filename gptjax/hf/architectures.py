"""Which architectures of transformers our settings are, and what their tensors are called there.

To add one, add an `Architecture`: a name table, and how its config.json is written and read. Whether it can express a
model is found by writing its config and reading that back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import jax

from gptjax.errors import BadInput
from gptjax.models.gpt import GPTConfig
from gptjax.models.model import ModelConfig
from gptjax.params import named

Json = dict[str, Any]


@dataclass(frozen=True)
class Naming:
    """A tensor of theirs ({} is the layer): one of ours, or several side by side along what they put out."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False  # theirs is (out, in), as torch's Linear has it; ours (in, out)


def _rows(prefix: str, *table: tuple[str, str], transposed: bool = False) -> tuple[Naming, ...]:
    return tuple(Naming(prefix + theirs, tuple(ours.split()), transposed) for theirs, ours in table)


OPENAI_LAYERS = _rows(
    "transformer.h.{}.",
    ("ln_1.weight", "layers.attention_norm.scale"),
    ("ln_1.bias", "layers.attention_norm.bias"),
    ("attn.c_attn.weight", "layers.attention.query.kernel layers.attention.key.kernel layers.attention.value.kernel"),
    ("attn.c_attn.bias", "layers.attention.query.bias layers.attention.key.bias layers.attention.value.bias"),
    ("attn.c_proj.weight", "layers.attention.out.kernel"),
    ("attn.c_proj.bias", "layers.attention.out.bias"),
    ("ln_2.weight", "layers.mlp_norm.scale"),
    ("ln_2.bias", "layers.mlp_norm.bias"),
    ("mlp.c_fc.weight", "layers.mlp.up.kernel"),
    ("mlp.c_fc.bias", "layers.mlp.up.bias"),
    ("mlp.c_proj.weight", "layers.mlp.down.kernel"),
    ("mlp.c_proj.bias", "layers.mlp.down.bias"),
)
OPENAI_HEAD = _rows("lm_head.", ("weight", "head.kernel"), transposed=True)
GPT1_ROWS = (
    *_rows("transformer.", ("tokens_embed.weight", "embedding"), ("positions_embed.weight", "positions")),
    *OPENAI_LAYERS,
    *OPENAI_HEAD,
)
GPT2_ROWS = (
    *_rows("transformer.", ("wte.weight", "embedding"), ("wpe.weight", "positions")),
    *OPENAI_LAYERS,
    *_rows("transformer.ln_f.", ("weight", "final_norm.scale"), ("bias", "final_norm.bias")),
    *OPENAI_HEAD,
)
LLAMA_ROWS = (
    *_rows("model.", ("embed_tokens.weight", "embedding")),
    *_rows(
        "model.layers.{}.",
        ("self_attn.q_proj.weight", "layers.attention.query.kernel"),
        ("self_attn.k_proj.weight", "layers.attention.key.kernel"),
        ("self_attn.v_proj.weight", "layers.attention.value.kernel"),
        ("self_attn.o_proj.weight", "layers.attention.out.kernel"),
        ("mlp.gate_proj.weight", "layers.mlp.gate.kernel"),
        ("mlp.up_proj.weight", "layers.mlp.up.kernel"),
        ("mlp.down_proj.weight", "layers.mlp.down.kernel"),
        transposed=True,
    ),
    *_rows(
        "model.layers.{}.",
        ("self_attn.q_proj.bias", "layers.attention.query.bias"),
        ("self_attn.k_proj.bias", "layers.attention.key.bias"),
        ("self_attn.v_proj.bias", "layers.attention.value.bias"),
        ("self_attn.o_proj.bias", "layers.attention.out.bias"),
        ("self_attn.q_norm.weight", "layers.attention.query_norm.scale"),
        ("self_attn.k_norm.weight", "layers.attention.key_norm.scale"),
        ("mlp.gate_proj.bias", "layers.mlp.gate.bias"),
        ("mlp.up_proj.bias", "layers.mlp.up.bias"),
        ("mlp.down_proj.bias", "layers.mlp.down.bias"),
        ("input_layernorm.weight", "layers.attention_norm.scale"),
        ("post_attention_layernorm.weight", "layers.mlp_norm.scale"),
    ),
    *_rows("model.norm.", ("weight", "final_norm.scale")),
    *_rows("lm_head.", ("weight", "head.kernel"), transposed=True),
)

THEIR_ACTIVATIONS = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu", "silu": "silu"}
ACTIVATIONS_READ = {theirs: ours for ours, theirs in THEIR_ACTIVATIONS.items()} | {
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "swish": "silu",
}
AFN = {"gelu": "gelu", "relu": "relu", "silu": "silu"}  # GPT-1's names: its gelu is the tanh form


def activation_named(ours: str, names: dict[str, str]) -> str:
    if ours not in names:
        known = ", ".join(names)
        raise BadInput(f"activation {ours!r} has no name in transformers, as {known} have; use --format orbax")
    return names[ours]


class Settings:
    """A config.json; what it lacks, says in vain or says in another type is BadInput. A null is as good as nothing."""

    def __init__(self, content: Json, inside: str = "") -> None:
        self.content, self.inside = content, inside  # of which part of config.json, with a dot after it

    def get(self, key: str, default: Any = None) -> Any:
        value = self.content.get(key)
        value = default if value is None else value
        if value is None:
            raise BadInput(f"has no {self.inside + key!r}; give the config.json that was saved with the weights")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value < 2**31:
            raise self.wrong(key, "a whole number from 1 to 2^31")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1e30:
            raise self.wrong(key, "a number of 0 or more")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def require(self, **only: Any) -> None:
        for key, value in only.items():
            if self.get(key, value) != value:
                raise BadInput(f"{self.inside}{key} = {self.content[key]!r} and gptjax has only {value!r}")

    def choice(self, key: str, of: dict[str, Any], default: Any = None) -> Any:
        value = self.get(key, default)
        if not isinstance(value, str) or value not in of:
            raise BadInput(f"{self.inside}{key} = {value!r} is not one of {', '.join(of)}")
        return of[value]

    def wrong(self, key: str, wanted: str) -> BadInput:
        return BadInput(f"{self.inside}{key} = {self.content[key]!r} is not {wanted}; mend config.json")


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers."""

    architecture: str
    model_type: str
    rows: tuple[Naming, ...]
    write: Callable[[GPTConfig], Json]  # what config.json says of a model
    read: Callable[[Settings], GPTConfig]
    even_heads: bool = False  # whether the width must be divisible by the heads even where their size is given


def _openai_sizes(c: GPTConfig) -> Json:
    return {
        "vocab_size": c.vocab_size,
        "n_positions": c.context,
        "n_embd": c.d_model,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std or 0.02,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def _gpt2(c: GPTConfig) -> Json:
    activation = activation_named(c.activation, THEIR_ACTIVATIONS)
    return {**_openai_sizes(c), "n_inner": c.mlp_size, "activation_function": activation}


def _read_openai(s: Settings) -> GPTConfig:
    return GPTConfig(
        vocab_size=s.size("vocab_size"),
        context=s.size("n_positions"),
        d_model=s.size("n_embd"),
        n_layers=s.size("n_layer"),
        n_heads=s.size("n_head"),
        norm_eps=s.number("layer_norm_epsilon", 1e-5),
        tied=s.flag("tie_word_embeddings", True),
    )


def _read_gpt1(s: Settings) -> GPTConfig:
    activation = s.choice("afn", {**AFN, "swish": "silu"}, "gelu")
    return replace(_read_openai(s), norm_place="post", activation=activation, scaled_residual=False)


def _read_gpt2(s: Settings) -> GPTConfig:
    s.require(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    config = _read_openai(s)
    return replace(
        config,
        d_mlp=s.size("n_inner", 4 * config.d_model),
        activation=s.choice("activation_function", ACTIVATIONS_READ, "gelu_new"),
    )


def _llama(c: GPTConfig) -> Json:
    rope: Json = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= {"rope_type": "llama3", **dict(zip(names, c.rope_scaling, strict=True))}
    return {
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context,
        "hidden_size": c.d_model,
        "intermediate_size": c.mlp_size,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "hidden_act": activation_named(c.activation, THEIR_ACTIVATIONS),
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": rope,
        "rope_theta": c.rope_theta,  # where transformers before version 5, and others, look for them
        "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"} if c.rope_scaling else None,
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std or 0.02,
    }


def _rope(s: Settings) -> tuple[float, tuple[float, float, float, int] | None]:
    """Return theta, and how its frequencies are stretched.

    As transformers 5 reads them: a rope_scaling that is not empty stands for all of rope_parameters, theta included.
    """
    key = "rope_scaling" if s.content.get("rope_scaling") else "rope_parameters"
    given = s.content.get(key) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise s.wrong(key, "one table of numbers for all layers")
    rope = Settings(given, f"{key}.")
    theta = rope.number("rope_theta", s.number("rope_theta", 10000.0))
    if not theta:
        raise BadInput("rope_theta = 0 turns nothing; 10000 is usual")
    kind = rope.get("rope_type", given.get("type") or "default")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise BadInput(f"rope_type = {kind!r} of {key}, and gptjax has default and llama3")
    context = "original_max_position_embeddings"
    trained = s.size(context) if s.content.get(context) else rope.size(context, s.size("max_position_embeddings"))
    factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if not factor:
        raise BadInput(f"factor = 0 of {key} stretches nothing; 8 is usual")
    return theta, (factor, low, high, trained)


def _read_llama(s: Settings, eps: float = 1e-6, activation: str = "silu") -> GPTConfig:
    """Read a LLaMA, or one of its kin, whose defaults in transformers are these."""
    bias = s.flag("attention_bias", False)
    if s.flag("mlp_bias", False) != bias:
        raise BadInput(f"mlp_bias = {not bias} and gptjax has only {bias} where attention_bias is")
    theta, scaling = _rope(s)
    d_model, n_heads = s.size("hidden_size"), s.size("num_attention_heads")
    return GPTConfig(
        vocab_size=s.size("vocab_size"),
        context=s.size("max_position_embeddings"),
        d_model=d_model,
        n_layers=s.size("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=s.size("num_key_value_heads", n_heads),
        d_head=s.size("head_dim", max(1, d_model // n_heads)),
        d_mlp=s.size("intermediate_size"),
        norm="rmsnorm",
        norm_eps=s.number("rms_norm_eps", eps),
        bias=bias,
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        activation=s.choice("hidden_act", ACTIVATIONS_READ, activation),
        gated=True,
        tied=s.flag("tie_word_embeddings", False),
    )


def _read_arcee(s: Settings) -> GPTConfig:
    return replace(_read_llama(s, eps=1e-5, activation="relu2"), gated=False)


def _qwen3(c: GPTConfig) -> Json:
    return {key: value for key, value in _llama(c).items() if key != "mlp_bias"} | {"use_sliding_window": False}


def _read_qwen3(s: Settings) -> GPTConfig:
    s.require(attention_bias=False, use_sliding_window=False)
    kinds = s.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise s.wrong("layer_types", "full_attention for every layer, which is all that gptjax has")
    usual = {"head_dim": 128, "num_key_value_heads": 32}  # transformers' own, whatever the other sizes are
    return replace(_read_llama(Settings(usual | s.content)), qk_norm=True)


ARCHITECTURES = (
    Architecture(
        "OpenAIGPTLMHeadModel",
        "openai-gpt",
        GPT1_ROWS,
        lambda c: {**_openai_sizes(c), "afn": activation_named(c.activation, AFN)},
        _read_gpt1,
    ),
    Architecture("GPT2LMHeadModel", "gpt2", GPT2_ROWS, _gpt2, _read_gpt2),
    Architecture("LlamaForCausalLM", "llama", LLAMA_ROWS, _llama, _read_llama, even_heads=True),
    Architecture("ArceeForCausalLM", "arcee", LLAMA_ROWS, _llama, _read_arcee, even_heads=True),
    Architecture("Qwen3ForCausalLM", "qwen3", LLAMA_ROWS, _qwen3, _read_qwen3),
)


def without_mup(c: GPTConfig) -> GPTConfig:
    """Return the same architecture without muP's multipliers, which `multipliers` puts into the weights.

    GPT-1 and GPT-2 always have biases: a model without is one whose biases are zero.
    """
    bias = c.bias or c.norm == "layernorm"
    return replace(c, bias=bias, d_head=c.head_size, mup_width=0, mup_depth=0)


def multipliers(c: GPTConfig) -> dict[str, float]:
    """Return what to multiply weights with, so that a plain model computes what a muP model does."""
    attention = c.attention_scale * sqrt(c.head_size)
    branch, head = c.branch_scale, 1 / c.width_ratio
    factors = {
        "layers.attention.query_norm.scale" if c.qk_norm else "layers.attention.query.kernel": attention,
        "layers.attention.query.bias": 1.0 if c.qk_norm else attention,
        "layers.attention.out.kernel": branch,
        "layers.attention.out.bias": branch,
        "layers.mlp.down.kernel": branch,
        "layers.mlp.down.bias": branch,
        "final_norm.scale": head,
        "final_norm.bias": head,
    }
    return {name: factor for name, factor in factors.items() if factor != 1}


def _architecture(c: GPTConfig) -> Json:
    """Return what a model computes with, sizes spelled out."""
    same = ["vocab_size", "context", "d_model", "n_layers", "n_heads", "norm", "norm_place", "norm_eps", "bias"]
    same += ["positions", "activation", "gated", "tied", "qk_norm", "logit_cap"]
    rope = {"rope_theta": c.rope_theta, "rope_scaling": c.rope_scaling} if c.positions == "rope" else {}
    sizes = {"n_kv_heads": c.kv_heads, "d_head": c.head_size, "d_mlp": c.mlp_size}
    return {name: getattr(c, name) for name in same} | sizes | rope


def gpt_config(config: ModelConfig) -> GPTConfig:
    """Return a config as what these architectures are written from; BadInput for other families."""
    if not isinstance(config, GPTConfig):
        raise BadInput(f"no transformers architecture is known for family {config.family!r}; use --format orbax")
    return config


def architecture_of(config: ModelConfig) -> Architecture:
    """Return the architecture that a model is; BadInput, with what stands against the nearest, where there is none."""
    c = gpt_config(config)
    same = without_mup(c)
    asked = _architecture(same)
    if c.norm_place == "post" and c.width_ratio != 1:
        raise BadInput(f"no transformers architecture scales its head (mup_width = {c.mup_width}) without a final norm")
    against: dict[str, list[str]] = {}
    refused = ""
    for family in ARCHITECTURES:
        try:
            found = _architecture(family.read(Settings(family.write(same))))
        except BadInput as error:
            refused = str(error)
            continue
        against[family.architecture] = [name for name in asked if asked[name] != found.get(name, asked[name])]
        if not against[family.architecture]:
            if family.even_heads and c.d_model % c.n_heads:
                raise BadInput(
                    f"{family.architecture} of transformers needs a d_model divisible by n_heads, and {c.d_model} is "
                    f"not by {c.n_heads}; use --format orbax"
                )
            return family
    if not against:
        raise BadInput(f"no transformers architecture is this model: {refused}; use --format orbax")
    nearest = min(against, key=lambda name: len(against[name]))
    differs = ", ".join(f"{name} = {asked[name]!r}" for name in against[nearest])
    raise BadInput(f"no transformers architecture has {differs} (the nearest is {nearest}); use --format orbax")


def architecture_named(architecture: str, where: str) -> Architecture:
    for family in ARCHITECTURES:
        if family.architecture == architecture:
            return family
    known = ", ".join(family.architecture for family in ARCHITECTURES)
    raise BadInput(f"{where}: architecture {architecture!r} is not one of {known}")


@dataclass(frozen=True)
class Part:
    """One of our arrays, or a layer of it, as a part of a tensor of theirs."""

    name: str
    layer: int | None
    shape: tuple[int, ...]  # ours, of the layer
    n_in: int  # leading dimensions that are read; 0: a vector

    @property
    def matrix(self) -> tuple[int, ...]:
        """The shape with what is read and what is put out each as one dimension."""
        size, inner = prod(self.shape), prod(self.shape[: self.n_in])
        return (inner, size // inner) if self.n_in else (size,)


@dataclass(frozen=True)
class Tensor:
    """A tensor of theirs and what it is made of."""

    name: str
    parts: tuple[Part, ...]
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        matrices = [part.matrix for part in self.parts]
        joined = (*matrices[0][:-1], sum(m[-1] for m in matrices))
        return joined[::-1] if self.transposed else joined


def tensors_of(c: GPTConfig, family: Architecture) -> list[Tensor]:
    """List a model's tensors in the names of a family, from shapes alone."""
    model = without_mup(c).build()
    shapes = named(jax.eval_shape(model.init, jax.random.key(0)))
    axes = named(model.axes)
    tensors = []
    for row in family.rows:
        if row.ours[0] not in shapes:
            continue
        layers = range(c.n_layers) if "{}" in row.theirs else (None,)
        for layer in layers:
            parts = tuple(_part(name, layer, shapes[name].shape, axes[name]) for name in row.ours)
            tensors.append(Tensor(row.theirs.format(layer), parts, row.transposed))
    if missed := shapes.keys() - {name for row in family.rows for name in row.ours}:
        raise RuntimeError(f"the name table of {family.architecture} lacks {', '.join(sorted(missed))}")
    return tensors


def _part(name: str, layer: int | None, shape: tuple[int, ...], axes: tuple[str, ...]) -> Part:
    if layer is not None:
        shape, axes = shape[1:], axes[1:]
    vector = name.endswith((".bias", ".scale"))
    return Part(name, layer, shape, 0 if vector else 1 if axes[0] == "embed" else len(axes) - 1)
