"""The formulas for parameters and FLOPs equal what the real trees hold and what XLA computes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.models.cost import counted
from gptjax.models.gpt import GPTConfig
from helpers import logits_of

BASE = GPTConfig(vocab_size=61, context=16, d_model=24, n_layers=3, n_heads=4)
LLAMA = replace(
    BASE,
    norm="rmsnorm",
    bias=False,
    positions="rope",
    activation="silu",
    gated=True,
    tied=False,
    n_kv_heads=2,
    d_mlp=40,
)
CONFIGS = {
    "gpt2": BASE,
    "gpt1": replace(BASE, norm_place="post"),
    "llama": LLAMA,
    "gopher": replace(BASE, norm="rmsnorm", positions="rope", d_head=10),
    "biased gate": replace(LLAMA, bias=True, norm="layernorm"),
    "unbiased layernorm": replace(BASE, bias=False, positions="none"),
    "qk_norm": replace(LLAMA, qk_norm=True, norm_place="post"),
}


GROUPS = {
    "embedding": "embedding",
    "positions": "positions",
    "head": "head",
    "final_norm": "norm",
    "layers.attention_norm": "norm",
    "layers.mlp_norm": "norm",
    "layers.attention.query_norm": "norm",
    "layers.attention.key_norm": "norm",
    "layers.attention": "attention",
    "layers.mlp": "mlp",
}


@pytest.mark.parametrize("execution", [DEFAULT_EXECUTION, Execution(vocab_multiple=16)], ids=["exact", "padded"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_formulas_are_what_the_tree_of_weights_holds(config, execution):
    formula = config.cost(16, execution)
    tree = counted(config, GROUPS, formula.widths, execution)
    assert {group: n for group, n in tree.params.items() if n} == {g: n for g, n in formula.params.items() if n}
    assert (tree.padding, tree.stored, tree.total) == (formula.padding, formula.stored, formula.total)
    assert tree.flops.items() <= formula.flops.items()
    shapes = jax.eval_shape(config.build(execution).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == formula.stored


def test_a_weight_without_a_group_is_an_error_and_not_forgotten():
    missing = {name: group for name, group in GROUPS.items() if name != "layers.mlp"}
    with pytest.raises(RuntimeError, match=r"layers\.mlp\.\w+\.\w+ is in no group"):
        counted(BASE, missing, BASE.cost(16).widths, DEFAULT_EXECUTION)


def test_padding_the_vocabulary_changes_no_convention():
    padded, plain = BASE.cost(16, Execution(vocab_multiple=128)), BASE.cost(16)
    assert padded.stored > padded.total == plain.total
    assert padded.flops == plain.flops and padded.useful == plain.useful


def test_what_each_convention_leaves_out():
    tied, untied = BASE.cost(16), replace(BASE, tied=False).cost(16)
    assert tied.total - tied.with_head == tied.params["positions"]
    assert untied.total - untied.with_head == untied.params["embedding"] + untied.params["positions"]
    assert tied.with_head == untied.with_head and tied.non_embedding == untied.non_embedding
    flops = tied.flops
    assert flops["6n_total"] == 6 * tied.total
    assert flops["6n_attention"] - flops["6n_with_head"] == 12 * 3 * 16 * 24
    assert flops["appendix_f"] - flops["table_a4"] == 3 * 4 * 61 * 24


def test_flops_are_what_xla_counts():
    """A forward pass has a third of the FLOPs; XLA counts no lookup, and a few more for norms and activations."""
    for config in (BASE, LLAMA):
        config = replace(config, d_model=256, d_mlp=512, n_heads=4, vocab_size=512, context=64)
        params = jax.eval_shape(config.build().init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
        apply = partial(logits_of, config, execution=Execution(scan=False))
        xla = jax.jit(apply).lower(params, tokens).compile().cost_analysis()["flops"] / tokens.size
        flops = config.cost(64).flops
        lookup = 3 * 2 * config.vocab_size * config.d_model
        assert xla == pytest.approx((flops["appendix_f"] - lookup) / 3, rel=0.03)
        assert xla == pytest.approx(flops["6n_attention"] / 3, rel=0.03)
