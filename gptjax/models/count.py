"""How large a model is, from its shape alone: parameters by group, FLOPs under every convention, bytes of state."""

from dataclasses import dataclass, replace

from gptjax.errors import BadInput
from gptjax.models.gpt import GPTConfig


@dataclass(frozen=True)
class ParamCount:
    """Parameters by group: a bias counts with its matrix, a QK-norm with the norms."""

    embedding: int
    positions: int
    attention: int
    mlp: int
    norm: int
    head: int  # 0 where tied
    padding: int  # rows of the embedding and head that no token uses: stored, but in no convention of N

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """Kaplan et al. 2020, section 2.1: N without vocabulary and positions."""
        return self.attention + self.mlp + self.norm

    @property
    def with_head(self) -> int:
        """Parameters that multiply activations: the layers and the head, which may be the embedding."""
        return self.non_embedding + (self.head or self.embedding)

    @property
    def stored(self) -> int:
        """Parameters in memory."""
        return self.total + self.padding


def count(config: GPTConfig) -> ParamCount:
    """Count the parameters of `gpt(config)` by formula."""
    c, D, F, K, L = config, config.d_model, config.mlp_size, config.head_size, config.n_layers
    heads, kv_heads, ups = c.n_heads * K, c.kv_heads * K, 2 if c.gated else 1
    attention = D * (2 * heads + 2 * kv_heads) + c.bias * (heads + 2 * kv_heads + D)
    mlp = (ups + 1) * D * F + c.bias * (ups * F + D)
    norms = 2 * L + (c.norm_place == "pre")
    return ParamCount(
        embedding=c.vocab_size * D,
        positions=c.context * D if c.positions == "learned" else 0,
        attention=L * attention,
        mlp=L * mlp,
        norm=norms * D * (2 if c.norm == "layernorm" and c.bias else 1) + c.qk_norm * L * 2 * K,
        head=0 if c.tied else c.vocab_size * D,
        padding=(c.padded_vocab - c.vocab_size) * D * (1 if c.tied else 2),
    )


def flops_per_token(config: GPTConfig, seq_len: int) -> dict[str, float]:
    """Count the FLOPs that train one token (forward, and backward at twice its cost) under each convention.

    6n_total, 6n_with_head, 6n_non_embedding: six times that count of `ParamCount` (Kaplan et al. 2020, Eq. 2.2).
    6n_attention: 6n_with_head and the attention's 12 L T d, not halved for causality (Chowdhery et al. 2022, App. B).
    appendix_f: as Hoffmann et al. 2022, App. F words it, with 2 V d for the embedding's lookup and for the head.
    table_a4: appendix_f's layers alone, which is what their Table A4 divides by 6 N.

    Padding the vocabulary changes how a run computes and not what it asks, so no convention counts it.
    """
    c, D, F, K, n = config, config.d_model, config.mlp_size, config.head_size, count(config)
    heads, kv_heads = c.n_heads * K, c.kv_heads * K
    attention = 2 * D * (heads + 2 * kv_heads) + 4 * seq_len * heads + 3 * c.n_heads * seq_len + 2 * heads * D
    layers = c.n_layers * (attention + 2 * (3 if c.gated else 2) * D * F)
    return {
        "6n_total": 6.0 * n.total,
        "6n_with_head": 6.0 * n.with_head,
        "6n_non_embedding": 6.0 * n.non_embedding,
        "6n_attention": 6.0 * n.with_head + 12.0 * c.n_layers * seq_len * heads,
        "appendix_f": 3.0 * (layers + 2 * 2 * c.vocab_size * D),
        "table_a4": 3.0 * layers,
    }


def model_flops(config: GPTConfig, seq_len: int) -> float:
    """Count the FLOPs that train one token, as every MFU here does: those of weights, and of causal attention.

    A weight of a matmul counts 6. A token attends to half of the positions on average, so attention counts 6 L T d,
    half of what PaLM's convention has (Chowdhery et al. 2022, App. B; `6n_attention` above): some kernels compute the
    scores of later positions too, and those are no useful work.
    """
    c = config
    return 6.0 * count(c).with_head + 6.0 * c.n_layers * seq_len * c.n_heads * c.head_size


def state_bytes(config: GPTConfig, optimizer: str = "adamw") -> dict[str, int]:
    """Count the bytes of float32 weights, their gradients and the optimizer's moments, over all devices.

    Adafactor's moments depend on each weight's shape: `abstract_state` gives them.
    """
    stored = count(config).stored
    plain = count(replace(config, bias=False))
    moments = {
        "adamw": 2 * stored,
        "lion": stored,
        "muon": 2 * stored - plain.attention - plain.mlp,  # one moment for the layers' matrices, AdamW's two elsewhere
    }
    if optimizer not in moments:
        raise BadInput(f"state_bytes knows no optimizer {optimizer!r}; use one of {', '.join(moments)}")
    sizes = {"params": 4 * stored, "gradients": 4 * stored, "optimizer": 4 * moments[optimizer]}
    return sizes | {"total": sum(sizes.values())}
