"""One decoder: GPT-1, GPT-2, GPT-3, Chinchilla and LLaMA are settings of `GPTConfig`.

Shapes: B batch, T positions, D embed, V vocab.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.batch import Batch
from gptjax.errors import BadInput
from gptjax.execution import DEFAULT_EXECUTION, Execution, Kernel
from gptjax.fields import check_values
from gptjax.fingerprint import gained
from gptjax.kernels.matmul import matmul
from gptjax.models import gpt_cost
from gptjax.models.cache import Cache, Held, empty_cache
from gptjax.models.cost import Cost
from gptjax.models.layers import ACTIVATIONS, MLP, Attention, Linear, Norm
from gptjax.models.model import Decoder, Hidden, Model, Scales
from gptjax.models.stack import Losses, run_stack, unstacked
from gptjax.params import Init, Params, functions_of, normal, param, stack
from gptjax.sharding import Layout, constrain


@dataclass(frozen=True)
class GPTConfig:
    """The architecture. Sizes left at 0 follow from the others; the defaults are GPT-2's."""

    vocab_size: int = 50257  # token ids, from 0 up; at least those of the tokenizer
    context: int = 1024  # tokens of a window: the longest that attention reaches back
    d_model: int = 768  # width of the residual stream
    n_layers: int = 12  # layers
    n_heads: int = 12  # attention heads of a layer
    n_kv_heads: int = 0  # heads of keys and values; 0: n_heads; fewer: grouped queries (Ainslie et al. 2023)
    d_head: int = 0  # width of a head; 0: d_model / n_heads
    d_mlp: int = 0  # width inside the MLP; 0: 4 d_model
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # what normalizes the inputs of attention and MLP
    norm_place: Literal["pre", "post"] = "pre"  # before attention and MLP, or after the sum (GPT-1)
    norm_eps: float = 1e-5  # added to the variance before its root is taken
    bias: bool = True  # add biases in linear layers and LayerNorm
    positions: Literal["learned", "rope", "none"] = "learned"  # how positions are told
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rope_scaling: tuple[float, float, float, int] | None = None  # LLaMA 3.1: factor, low, high, tokens
    activation: str = "gelu"  # the MLP's nonlinearity: gelu (its tanh form), gelu_exact, relu or silu
    gated: bool = False  # multiply the activation by a second projection; with silu: SwiGLU
    tied: bool = True  # use the embedding, transposed, as the head
    qk_norm: bool = False  # normalize queries and keys in each head
    logit_cap: float = 0.0  # above 0: logits become c tanh(logits / c) (Gemma 2)
    init_std: float = 0.02  # standard deviation of initial weights; 0: 1/sqrt(fan in)
    scaled_residual: bool = True  # draw output projections smaller by 1/sqrt(2 n_layers) (GPT-2, section 2.3)
    # Hyper-parameters tuned at mup_width transfer to d_model (muP, Yang et al. 2022, Table 8), and those tuned at
    # mup_depth to n_layers (CompleteP, Dey et al. 2025, Table 1). A d_head that is given stays as the width grows,
    # with more heads; else their number stays and d_head grows.
    mup_width: int = 0  # 0: standard parametrization
    mup_depth: int = 0  # 0: depth changes nothing
    depth_alpha: float = 1.0  # residual branches times (n_layers / mup_depth)^-alpha; 1 is CompleteP
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and matmuls; weights stay float32
    family: Literal["gpt"] = gained("gpt")  # the family of models that this config is of

    def __post_init__(self) -> None:
        check_values(self)
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise BadInput(f"activation = {self.activation!r} is not one of {known}; gptjax config names all fields")
        sizes = ("n_kv_heads", "d_head", "d_mlp", "mup_width", "mup_depth")
        for name in (*sizes, "init_std", "logit_cap", "norm_eps"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} = {getattr(self, name)} must be at least 0")
        for name in ("vocab_size", "context", "d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} = {getattr(self, name)} must be at least 1")
        if not self.d_head and self.d_model % self.n_heads:
            raise BadInput(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; set d_head")
        if self.n_heads % self.kv_heads:
            raise BadInput(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.kv_heads}; use a divisor")
        if not self.rope_theta > 0:
            raise BadInput(f"rope_theta = {self.rope_theta} must be above 0")
        if self.rope_scaling and not self.rope_scaling[1] < self.rope_scaling[2]:
            raise BadInput(f"rope_scaling {self.rope_scaling}: its low factor must be below its high one, as 1 and 4")
        if self.rope_scaling and not min(self.rope_scaling) > 0:
            raise BadInput(f"rope_scaling {self.rope_scaling} must be above 0, all four")
        if self.positions == "rope" and self.head_size % 2:
            raise BadInput(f"rope rotates pairs, and d_head = {self.head_size} is odd; use an even d_head")
        if not 0 <= self.depth_alpha <= 1:
            raise BadInput(f"depth_alpha = {self.depth_alpha} must lie in [0, 1]; 1 is CompleteP")
        if self.mup_depth and self.norm_place == "post":
            raise BadInput(f"mup_depth {self.mup_depth} scales branches of pre-norm layers; set norm_place to 'pre'")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_size(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def mlp_size(self) -> int:
        return self.d_mlp or 4 * self.d_model

    @property
    def width_ratio(self) -> float:
        """m of muP: how many times wider than the base the model is."""
        return self.d_model / self.mup_width if self.mup_width else 1.0

    @property
    def depth_ratio(self) -> float:
        """m_L of CompleteP: how many times deeper than the base the model is."""
        return self.n_layers / self.mup_depth if self.mup_depth else 1.0

    @property
    def branch_scale(self) -> float:
        return self.depth_ratio**-self.depth_alpha

    @property
    def attention_scale(self) -> float:
        """1/sqrt(d_head), and 1/d_head as heads widen (Yang et al. 2022, Definition 4.1), equal at the base's heads."""
        return 1 / sqrt(self.head_size * (1.0 if self.d_head else self.width_ratio))

    @property
    def scales(self) -> Scales | None:
        if not (self.mup_width or self.mup_depth):
            return None
        return Scales(self.width_ratio, self.depth_ratio, self.depth_alpha)

    def build(self, execution: Execution = DEFAULT_EXECUTION) -> Model:
        return _built(self, execution)

    def cost(self, seq_len: int, execution: Execution = DEFAULT_EXECUTION) -> Cost:
        return gpt_cost.cost(self, seq_len, execution)

    def check(self, layout: Layout, execution: Execution) -> None:
        rules, stages = layout.rules, layout.parts(layout.rules.layers)
        if self.n_layers % stages:
            raise BadInput(f"n_layers {self.n_layers} is not divisible by {stages} pipeline stages; use a divisor")
        if layout.parts(rules.keys) > 1 and self.kv_heads > 1 and rules.heads != rules.kv_heads:
            raise BadInput(
                f"rules.kv_heads {rules.kv_heads!r} must be rules.heads, {rules.heads!r}, where keys are split"
            )
        if execution.attention == "cudnn" and layout.parts(rules.seq) > 1:
            raise BadInput("execution.attention = cudnn cannot split positions; use auto, or a mesh with context = 1")

    def unseen(self, other: Any) -> tuple[str, ...]:
        """Name what no weight's shape shows.

        Free are dtype and initialization. A longer context may change the rotary wavelengths, so as to reach further.
        """
        stretched = self.positions == "rope" and self.context <= other.context
        return (*UNSEEN, *(("rope_theta", "rope_scaling") if stretched else ()))


UNSEEN = ("norm", "norm_eps", "norm_place", "positions", "activation", "logit_cap", "mup_width", "mup_depth",
          "depth_alpha")  # fmt: skip


def scaled(x: jax.Array, factor: float) -> jax.Array:
    return x if factor == 1 else x * factor


class Block(nnx.Module):
    """Attention and MLP, each with a residual connection and a norm before or after it."""

    def __init__(self, rngs: nnx.Rngs, config: GPTConfig, kernel: Kernel) -> None:
        c = self.config = config
        residual = 1 / sqrt(2 * (c.mup_depth or c.n_layers)) if c.scaled_residual else 1.0

        def init(inputs: int, scale: float = 1.0) -> Init:
            std = c.init_std / sqrt(c.width_ratio) if c.init_std else 1 / sqrt(inputs)  # muP: variance as 1 / fan in
            return normal(scale * std)

        def norm() -> Norm:
            return Norm(rngs, c.d_model, "embed", kind=c.norm, bias=c.bias, eps=c.norm_eps)

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(rngs, c, kernel, init(c.d_model), init(c.n_heads * c.head_size, residual))
        self.mlp = MLP(rngs, c, init(c.d_model), init(c.mlp_size, residual))

    def __call__(
        self, x_BTD: jax.Array, segments_BT: jax.Array | None, prefix_BT: jax.Array | None
    ) -> tuple[jax.Array, Losses]:
        return self._through(x_BTD, lambda h_BTD: (self.attention(h_BTD, segments_BT, prefix_BT), {}))

    def self_scores(self, x_BTD: jax.Array) -> jax.Array:
        """Return each position's attention score with itself, (B, T, N): rotary positions leave it alone."""
        c, attention = self.config, self.attention
        y_BTD = self.attention_norm(x_BTD) if c.norm_place == "pre" else x_BTD
        q, k = attention.query(y_BTD), attention.key(y_BTD)
        if c.qk_norm:
            q, k = attention.query_norm(q), attention.key_norm(k)
        return c.attention_scale * jnp.sum(q * jnp.repeat(k, c.n_heads // c.kv_heads, axis=2), axis=-1)

    def cached(self, x_BTD: jax.Array, cache: Cache, layer: int) -> tuple[jax.Array, Held]:
        return self._through(x_BTD, lambda h_BTD: self.attention.cached(h_BTD, cache, layer))

    def _through(
        self, x_BTD: jax.Array, attention: Callable[[jax.Array], tuple[jax.Array, Any]]
    ) -> tuple[jax.Array, Any]:
        """Return x after both branches, and what attention gives besides."""
        if self.config.norm_place == "post":
            y_BTD, more = attention(x_BTD)
            x_BTD = self.attention_norm(x_BTD + y_BTD)
            return constrain(self.mlp_norm(x_BTD + self.mlp(x_BTD)), "batch", "stream", None), more
        branch = self.config.branch_scale
        y_BTD, more = attention(constrain(self.attention_norm(x_BTD), "batch", "seq", None))
        x_BTD = x_BTD + scaled(constrain(y_BTD, "batch", "stream", None), branch)
        h_BTD = constrain(self.mlp_norm(x_BTD), "batch", "seq", None)
        return x_BTD + scaled(constrain(self.mlp(h_BTD), "batch", "stream", None), branch), more


class GPT(nnx.Module):
    """A causal language model: token ids (B, T) to float32 logits (B, T, V)."""

    def __init__(self, rngs: nnx.Rngs, config: GPTConfig, execution: Execution) -> None:
        c = self.config = config
        self.execution, self.rows = execution, execution.padded(c.vocab_size)
        base = c.mup_width or c.d_model  # muP leaves embeddings and head as they are at the base width
        init = normal(c.init_std if c.init_std else 1 / sqrt(base))
        self.embedding = param(rngs, (self.rows, c.d_model), ("vocab", "embed"), self._padded(init, 0))
        if c.positions == "learned":
            self.positions = param(rngs, (c.context, c.d_model), ("positions", "embed"), init)
        self.layers = stack(lambda r: Block(r, c, execution.attention), c.n_layers, rngs)
        if c.norm_place == "pre":
            self.final_norm = Norm(rngs, c.d_model, "embed", kind=c.norm, bias=c.bias, eps=c.norm_eps)
        if not c.tied:
            padded = self._padded(init, 1)
            self.head = Linear(rngs, (c.d_model, self.rows), ("embed", "vocab"), init=padded, bias=False)

    def _padded(self, init: Init, axis: int) -> Init:
        """Draw a weight for the true vocabulary, so that padding changes none of it, and pad it with zeros."""
        missing = self.rows - self.config.vocab_size

        def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            true = tuple(size - missing * (i == axis) for i, size in enumerate(shape))
            return jnp.pad(init(key, true), [(0, missing * (i == axis)) for i in range(len(shape))])

        return draw if missing else init

    def hidden(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None, prefix_BT: jax.Array | None
    ) -> tuple[jax.Array, Losses]:
        """Return what the head reads, (B, T, D), and the layers' losses."""
        c, T = self.config, tokens_BT.shape[1]
        if T > c.context:
            raise BadInput(f"{T} tokens do not fit the context of {c.context}; use shorter sequences")
        x_BTD = self._embedded(tokens_BT, slice(T))
        x_BTD, losses = run_stack(self.layers, x_BTD, segments_BT, prefix_BT, execution=self.execution)
        return self._read_out(x_BTD), losses

    def stepper(self) -> Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]:
        """Return a function of tokens that follow those in a cache: the logits after the last, (B, V), and the cache.

        Call this outside a loop: a stack is taken apart here, which copies its weights.
        """
        layers = unstacked(self.layers, "cached")

        def step(tokens_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
            T, held = tokens_BT.shape[1], []
            x_BTD = self._embedded(tokens_BT, cache.positions(T))
            for i, layer in enumerate(layers):
                x_BTD, new = layer(x_BTD, cache, i)
                held.append(new)
            return self.logits(self._read_out(x_BTD[:, -1:]))[:, 0], Cache(tuple(held), cache.first_B, cache.filled + T)

        return step

    def _embedded(self, tokens_BT: jax.Array, positions: jax.Array | slice) -> jax.Array:
        c = self.config
        table_VD = constrain(self.embedding[...], "vocab", None)
        x_BTD = table_VD[tokens_BT].astype(c.dtype)  # gathered in float32, so that its gradient is summed in float32
        if c.positions == "learned":
            x_BTD = x_BTD + self.positions[positions].astype(c.dtype)
        return constrain(x_BTD, "batch", "stream", None)

    def _read_out(self, x_BTD: jax.Array) -> jax.Array:
        if self.config.norm_place == "pre":
            x_BTD = self.final_norm(x_BTD)
        return scaled(x_BTD, 1 / self.config.width_ratio)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Return the float32 logits of what `hidden` gives, of any number of positions."""
        c = self.config
        if c.tied:
            logits = matmul(x_BTD, constrain(self.embedding[...], "vocab", None).T.astype(c.dtype))
        else:
            logits = self.head(x_BTD)
        logits = constrain(logits, "batch", "seq", "vocab").astype(jnp.float32)
        if c.logit_cap:
            logits = c.logit_cap * jnp.tanh(logits / c.logit_cap)
        if self.rows > c.vocab_size:
            logits = jnp.where(jnp.arange(self.rows) < c.vocab_size, logits, -1e30)
        return logits

    def observe(self, tokens_BT: jax.Array) -> dict[str, jax.Array]:
        """Return the residual stream after each layer and at the end, the last layer's scores, and the logits."""
        c, seen = self.config, {}
        x_BTD = self._embedded(tokens_BT, slice(tokens_BT.shape[1]))
        scores = unstacked(self.layers, "self_scores")[-1]
        for i, layer in enumerate(unstacked(self.layers, "__call__")):
            scores_BTN = scores(x_BTD) if i == c.n_layers - 1 else None
            x_BTD, _ = layer(x_BTD, None, None)
            seen[f"layer {i + 1}"] = x_BTD
        del seen[f"layer {c.n_layers}"]
        logits = self.logits(self._read_out(x_BTD))[..., : c.vocab_size]
        return {**seen, "stream": x_BTD, "scores": scores_BTN, "logits": logits}


@lru_cache(maxsize=64)
def _built(config: GPTConfig, execution: Execution) -> Model:
    call, init, axes = functions_of(lambda rngs: GPT(rngs, config, execution))

    def hidden(params: Params, batch: Batch) -> Hidden:
        return Hidden(*call(params, batch.inputs, batch.segments, batch.prefix, method="hidden"))

    def readout(head: Params, x_BTD: jax.Array) -> jax.Array:
        return call(head, x_BTD, method="logits")

    def start(params: Params, tokens_BT: jax.Array, first_B: jax.Array, room: int) -> tuple[jax.Array, Cache]:
        shape = (len(tokens_BT), config.kv_heads, room, config.head_size)
        cache = empty_cache(config.n_layers, shape, config.dtype, first_B)
        return call(params, method="stepper")(tokens_BT, cache)

    def stepper(params: Params) -> Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]:
        step = call(params, method="stepper")
        return lambda token_B, cache: step(token_B[:, None], cache)

    def observe(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return call(params, batch.inputs, method="observe")

    read_by = ("embedding",) if config.tied else ("head",)
    functions = (init, axes, axes, hidden, readout, read_by, ("segments", "prefix"))
    return Model(config, execution, *functions, Decoder(start, stepper), observe)
