"""What a GPT costs, by the papers' formulas: parameters by group, and FLOPs under every convention."""

from typing import TYPE_CHECKING

from gptjax.execution import Execution
from gptjax.models.cost import Cost, Widths

if TYPE_CHECKING:
    from gptjax.models.gpt import GPTConfig


def cost(config: "GPTConfig", seq_len: int, execution: Execution) -> Cost:
    """Count a GPT by formula. A bias counts with its matrix, a QK-norm with the norms, a tied head as 0.

    FLOPs train one token, forward, and backward at twice its cost:
    6n_total, 6n_with_head, 6n_non_embedding: six times that count of parameters (Kaplan et al. 2020, Eq. 2.2).
    6n_attention: 6n_with_head and the attention's 12 L T d, not halved for causality (Chowdhery et al. 2022, App. B).
    appendix_f: as Hoffmann et al. 2022, App. F words it, with 2 V d for the embedding's lookup and for the head.
    table_a4: appendix_f's layers alone, which is what their Table A4 divides by 6 N.
    Padding the vocabulary changes how a run computes and not what it asks, so no convention counts it.

    Useful are those of weights, 6 each, and of causal attention: a token attends to half of the positions on average,
    so 6 L T d, half of what PaLM's convention has. Some kernels compute the scores of later positions too, and those
    are no useful work.
    """
    c, D, F, K, L = config, config.d_model, config.mlp_size, config.head_size, config.n_layers
    heads, kv_heads, ups = c.n_heads * K, c.kv_heads * K, 2 if c.gated else 1
    norms = 2 * L + (c.norm_place == "pre")
    params = {
        "embedding": c.vocab_size * D,
        "positions": c.context * D if c.positions == "learned" else 0,
        "attention": L * (D * (2 * heads + 2 * kv_heads) + c.bias * (heads + 2 * kv_heads + D)),
        "mlp": L * ((ups + 1) * D * F + c.bias * (ups * F + D)),
        "norm": norms * D * (2 if c.norm == "layernorm" and c.bias else 1) + c.qk_norm * L * 2 * K,
        "head": 0 if c.tied else c.vocab_size * D,
    }
    padding = (execution.padded(c.vocab_size) - c.vocab_size) * D * (1 if c.tied else 2)
    widths = Widths(
        layers=L,
        stream=D,
        inner=2 * heads + 2 * kv_heads + ups * F,
        activated=F,
        keys=2 * kv_heads,
        heads=c.n_heads,
        attention=heads,
        unrepeated=D * F if c.norm_place == "pre" else 0,  # of the MLP's last matrix, which only the stream's sum reads
    )
    n = Cost(params, {}, 0.0, widths, padding)
    attention = 2 * D * (heads + 2 * kv_heads) + 4 * seq_len * heads + 3 * c.n_heads * seq_len + 2 * heads * D
    layers = L * (attention + 2 * (ups + 1) * D * F)
    flops = {
        "6n_total": 6.0 * n.total,
        "6n_with_head": 6.0 * n.with_head,
        "6n_non_embedding": 6.0 * n.non_embedding,
        "6n_attention": 6.0 * n.with_head + 12.0 * L * seq_len * heads,
        "appendix_f": 3.0 * (layers + 2 * 2 * c.vocab_size * D),
        "table_a4": 3.0 * layers,
    }
    useful = 6.0 * n.with_head + 6.0 * L * seq_len * heads
    return Cost(params, flops, useful, widths, padding)
