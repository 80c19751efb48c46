"""The parts of a transformer: projections, norms, rotary positions, attention, MLPs.

Shapes: B batch, T target positions, S source positions, D embed, N heads, G key/value heads, K head, F mlp.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.execution import Kernel
from gptjax.kernels.attention import attend
from gptjax.kernels.mask import CausalMask, Mask, PrefixMask
from gptjax.kernels.matmul import matmul
from gptjax.kernels.norm import normalize
from gptjax.models.cache import Cache, Held
from gptjax.params import Axes, Init, constant, param
from gptjax.sharding import constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # the tanh form, as GPT-1/2/3 have it ("gelu_new")
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Linear(nnx.Module):
    """An affine map whose input and output may have several named axes."""

    def __init__(
        self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, *, init: Init, bias: bool, n_in: int = 1
    ) -> None:
        self.n_in = n_in
        self.kernel = param(rngs, shape, axes, init)
        self.bias = param(rngs, shape[n_in:], axes[n_in:], constant(0.0)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        return matmul(x, self.kernel[...].astype(x.dtype), bias, self.n_in)


class Norm(nnx.Module):
    """LayerNorm or RMSNorm, with a scale and perhaps a bias (kernels/norm.py)."""

    def __init__(self, rngs: nnx.Rngs, size: int, axis: str, *, kind: str, bias: bool, eps: float) -> None:
        self.kind, self.eps = kind, eps
        self.scale = param(rngs, (size,), (axis,), constant(1.0))
        self.bias = param(rngs, (size,), (axis,), constant(0.0)) if kind == "layernorm" and bias else None

    @jax.named_scope("norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        return normalize(x, self.scale[...], bias, self.kind == "layernorm", self.eps)


def rope(x_BTNK: jax.Array, positions: jax.Array, theta: float, scaling: tuple[float, float, float, int] | None):
    """Rotate pairs (k, k + K/2) by position (Su et al. 2021, Eq. 34; the half layout of LLaMA in transformers).

    positions: (T,), or (B, T) where rows differ.
    scaling: (factor, low, high, original context) stretches slow frequencies as LLaMA 3.1 does.
    """
    half = x_BTNK.shape[-1] // 2
    freq_K = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling:
        factor, low, high, context = scaling
        turns = context * freq_K / (2 * jnp.pi)
        keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        freq_K = freq_K * (keep + (1 - keep) / factor)
    angle_TK = positions.astype(jnp.float32)[..., None] * freq_K
    cos, sin = jnp.cos(angle_TK)[..., None, :], jnp.sin(angle_TK)[..., None, :]
    a, b = jnp.split(x_BTNK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNK.dtype)


def attend_held(
    q_BTNK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, visible_BTS: jax.Array, scale: float
) -> jax.Array:
    """Softmax attention over the columns that are visible; returns (B, T, N, K)."""
    B, T, N, K = q_BTNK.shape
    G, S = k_BGSK.shape[1:3]
    q = (q_BTNK * scale).transpose(0, 2, 1, 3).reshape(B, G, -1, K)
    scores = jnp.einsum("bgtk,bgsk->bgts", q, k_BGSK, preferred_element_type=jnp.float32).reshape(B, N, T, S)
    weights = jax.nn.softmax(jnp.where(visible_BTS[:, None], scores, -1e30)).astype(v_BGSK.dtype)
    return (weights.reshape(B, G, -1, S) @ v_BGSK).reshape(B, N, T, K).transpose(0, 2, 1, 3)


class Attention(nnx.Module):
    """Multi-head attention with optional grouped queries, rotary positions and QK-norm."""

    def __init__(self, rngs: nnx.Rngs, config, kernel: Kernel, init: Init, init_out: Init) -> None:
        D, N, G, K = config.d_model, config.n_heads, config.kv_heads, config.head_size
        self.config, self.kernel = config, kernel
        self.query = Linear(rngs, (D, N, K), ("embed", "heads", "head"), init=init, bias=config.bias)
        self.key = Linear(rngs, (D, G, K), ("embed", "kv_heads", "head"), init=init, bias=config.bias)
        self.value = Linear(rngs, (D, G, K), ("embed", "kv_heads", "head"), init=init, bias=config.bias)
        out = ("heads", "head", "embed")
        self.out = Linear(rngs, (N, K, D), out, init=init_out, bias=config.bias, n_in=2)
        if config.qk_norm:  # Henry et al. 2020; Dehghani et al. 2023
            self.query_norm = Norm(rngs, K, "head", kind="rmsnorm", bias=False, eps=config.norm_eps)
            self.key_norm = Norm(rngs, K, "head", kind="rmsnorm", bias=False, eps=config.norm_eps)

    @jax.named_scope("attention")
    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array | None, prefix_BT: jax.Array | None) -> jax.Array:
        mask: Mask = CausalMask() if prefix_BT is None else PrefixMask(prefix_BT)
        segments = None if segments_BT is None else (segments_BT, segments_BT)
        q, k, v = self._heads(x_BTD, jnp.arange(x_BTD.shape[1]))
        q = constrain(q, "batch", "seq", "heads", None)
        k, v = (constrain(a, "batch", "keys", "kv_heads", None) for a in (k, v))
        seen = attend(q, k, v, mask, self.config.attention_scale, segments, self.kernel)
        # This places the gradient as well: without it XLA gathers attention scores in the backward pass.
        return self.out(constrain(seen, "batch", "seq", "heads", None))

    @jax.named_scope("attention")
    def cached(self, x_BTD: jax.Array, cache: Cache, layer: int) -> tuple[jax.Array, Held]:
        """Attend from tokens that follow those in the cache; return what the layer is to hold, these included."""
        T = x_BTD.shape[1]
        q, k, v = self._heads(x_BTD, cache.positions(T))
        held = cache.put(layer, k, v)
        return self.out(attend_held(q, *held, cache.visible(T), self.config.attention_scale)), held

    def _heads(self, x_BTD: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries, keys and values."""
        c = self.config
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if c.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if c.positions == "rope":
            q, k = (rope(a, positions, c.rope_theta, c.rope_scaling) for a in (q, k))
        return q, k, v


class MLP(nnx.Module):
    """Two projections around an activation, or three with a gate (Shazeer 2020)."""

    def __init__(self, rngs: nnx.Rngs, config, init: Init, init_out: Init) -> None:
        D, F = config.d_model, config.mlp_size
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(rngs, (D, F), ("embed", "mlp"), init=init, bias=config.bias) if config.gated else None
        self.up = Linear(rngs, (D, F), ("embed", "mlp"), init=init, bias=config.bias)
        self.down = Linear(rngs, (F, D), ("mlp", "embed"), init=init_out, bias=config.bias)

    @jax.named_scope("mlp")
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        gate = None if self.gate is None else self.gate(x_BTD)
        # For the backward pass this keeps what goes into the activation, and not what comes out.
        y = jax.checkpoint(self._activate)(self.up(x_BTD), gate)
        return self.down(constrain(y, "batch", "seq", "mlp"))

    def _activate(self, y_BTF: jax.Array, gate_BTF: jax.Array | None) -> jax.Array:
        return self.activation(y_BTF) if gate_BTF is None else self.activation(gate_BTF) * y_BTF
