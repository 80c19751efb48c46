"""The alternatives that benchmarks compare with: GPT-2 training steps as others write them, from the same weights.

Each `*_step` returns a function that takes a step on a batch and returns its loss. Weights come as our nested dict of
numpy arrays, so that all compute the same thing: mean cross-entropy, gradient norm clipped to 1, AdamW(0.9, 0.95, 1e-8)
with decay 0.1 on what has two dimensions or more, float32 weights, activations in float32 or (autocast) bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
Step = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Shape:
    """GPT-2 of a size, and the sequences of a batch."""

    vocab: int
    d_model: int
    layers: int
    context: int
    heads: int
    batch: int


def torch_step(shape: Shape, weights: dict[str, Any], *, compiled: bool, bfloat16: bool = False) -> Step:
    """PyTorch as nanoGPT uses it: one matmul for q, k, v; fused attention; fused AdamW."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            d = shape.d_model
            self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            B, T, D = x.shape
            qkv = self.qkv(self.norm1(x)).split(D, dim=-1)
            q, k, v = (a.view(B, T, shape.heads, -1).transpose(1, 2) for a in qkv)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(shape.vocab, shape.d_model)
            self.positions = nn.Parameter(torch.empty(shape.context, shape.d_model))
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = nn.LayerNorm(shape.d_model)

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens) + self.positions
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.embedding.weight)
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    model = GPT()
    _fill(model, weights, torch.from_numpy)
    model.to(device)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    run = torch.compile(model) if compiled else model

    def step(tokens: np.ndarray, targets: np.ndarray) -> float:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = run(torch.from_numpy(tokens).long().to(device), torch.from_numpy(targets).long().to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _fill(model: Any, weights: dict[str, Any], tensor: Callable[[np.ndarray], Any]) -> None:
    d = weights["embedding"].shape[1]

    def put(target: Any, values: np.ndarray) -> None:
        target.data.copy_(tensor(np.ascontiguousarray(values)))

    put(model.embedding.weight, weights["embedding"])
    put(model.positions, weights["positions"])
    for i, block in enumerate(model.blocks):
        layer = _layer(weights["layers"], i)
        for norm, name in ((block.norm1, "attention_norm"), (block.norm2, "mlp_norm")):
            put(norm.weight, layer[name]["scale"])
            put(norm.bias, layer[name]["bias"])
        qkv = [layer["attention"][name] for name in ("query", "key", "value")]
        put(block.qkv.weight, np.concatenate([part["kernel"].reshape(d, d) for part in qkv], axis=1).T)
        put(block.qkv.bias, np.concatenate([part["bias"].ravel() for part in qkv]))
        rest = ((block.out, "attention", "out"), (block.up, "mlp", "up"), (block.down, "mlp", "down"))
        for linear, room, name in rest:
            put(linear.weight, layer[room][name]["kernel"].reshape(linear.in_features, -1).T)
            put(linear.bias, layer[room][name]["bias"])
    put(model.norm.weight, weights["final_norm"]["scale"])
    put(model.norm.bias, weights["final_norm"]["bias"])


def _layer(stacked: dict[str, Any], i: int) -> dict[str, Any]:
    return {name: _layer(value, i) if isinstance(value, dict) else value[i] for name, value in stacked.items()}


def linen_step(shape: Shape, weights: dict[str, Any]) -> Step:
    """Flax Linen as NanoDO uses it: rank-3 activations, DenseGeneral, layers unrolled, optax, one jitted step."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x_BTD: jax.Array) -> jax.Array:
            h = nn.LayerNorm(epsilon=1e-5, name="attention_norm")(x_BTD)
            heads = (shape.heads, shape.d_model // shape.heads)
            q, k, v = (nn.DenseGeneral(heads, name=name)(h) for name in ("query", "key", "value"))
            scores = jnp.einsum("btnk,bsnk->bnts", q / heads[1] ** 0.5, k)
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
            y = jnp.einsum("bnts,bsnk->btnk", nn.softmax(scores), v)
            x_BTD = x_BTD + nn.DenseGeneral(shape.d_model, axis=(-2, -1), name="out")(y)
            h = nn.gelu(nn.Dense(4 * shape.d_model, name="up")(nn.LayerNorm(epsilon=1e-5, name="mlp_norm")(x_BTD)))
            return x_BTD + nn.Dense(shape.d_model, name="down")(h)

    class GPT(nn.Module):
        @nn.compact
        def __call__(self, tokens_BT: jax.Array) -> jax.Array:
            embed = nn.Embed(shape.vocab, shape.d_model, name="embedding")
            positions = self.param("positions", nn.initializers.normal(), (shape.context, shape.d_model))
            x = embed(tokens_BT) + positions
            for i in range(shape.layers):
                x = Block(name=f"layer{i}")(x)
            return embed.attend(nn.LayerNorm(epsilon=1e-5, name="norm")(x))

    params: dict[str, Any] = {
        "embedding": {"embedding": weights["embedding"]},
        "positions": weights["positions"],
        "norm": weights["final_norm"],
    }
    for i in range(shape.layers):
        layer = _layer(weights["layers"], i)
        params[f"layer{i}"] = {name: layer[name] for name in ("attention_norm", "mlp_norm")}
        params[f"layer{i}"] |= layer["attention"] | layer["mlp"]
    model = GPT()
    decayed = jax.tree.map_with_path(lambda path, w: path[-1].key not in ("bias", "scale"), params)
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LR, *BETAS, EPS, weight_decay=DECAY, mask=decayed))

    def update(state: Any, tokens: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        params, opt = state
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    jitted = jax.jit(update, donate_argnums=0)
    params = jax.tree.map(jnp.array, params)
    state = (params, tx.init(params))

    def step(tokens: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state
        state, value = jitted(state, tokens, targets)
        return float(value)

    return step
