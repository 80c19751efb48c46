"""Every published shape traces, counts as its paper counts, and is found by its name."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from gptjax.errors import BadInput
from gptjax.models.presets import CHINCHILLA, GPT2, PRESETS, PUBLISHED_PARAMS, ROWS, TABLE_A9, preset
from helpers import logits_of


@pytest.mark.parametrize("name", PRESETS)
def test_preset_traces(name):
    config = preset(name)
    params = jax.eval_shape(config.build().init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    logits = jax.eval_shape(partial(logits_of, config), params, tokens)
    assert logits.shape == (1, config.context, config.vocab_size)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.cost(config.context).stored


def test_tables_are_whole():
    assert len(PRESETS) == len(PUBLISHED_PARAMS) == len(ROWS), "two rows share a name"
    assert len(TABLE_A9) == 50 and len(GPT2) == 4
    assert [row.published_params for row in CHINCHILLA[:50]] == sorted(row.published_params for row in CHINCHILLA[:50])


def test_every_mismatch_beyond_rounding_is_explained_and_small():
    for row in ROWS:
        assert row.note or abs(row.difference) <= 0.5 / float(row.published[:-1].replace(".", "")) + 1e-9, row
        assert abs(row.difference) < 0.08, row
    assert {row.note for row in ROWS if abs(row.difference) > 0.02} == {
        "",  # "7B" is what 6.74B rounds to
        "the paper counts GPT-1's vocabulary",
        "the paper counts relative positions' projections",
    }


def test_gpt2_counts_are_the_papers_with_the_vocabulary_of_gpt1():
    counted = [round(replace(row.config, vocab_size=40478).cost(1024).total / 1e6) for row in GPT2]
    assert counted == [117, 345, 762, 1542]
    assert [round(row.params / 1e6) for row in GPT2] == [124, 355, 774, 1558]  # the names of the released weights


def relative_projections(config):
    """Transformer-XL projects relative positions to every head, in every layer (Dai et al. 2019, section 3.3)."""
    return config.n_layers * config.d_model * config.n_heads * config.head_size


def test_chinchilla_counts_are_the_papers_with_relative_positions():
    for row in CHINCHILLA:
        whole = row.params + relative_projections(row.config)
        assert abs(whole - row.published_params) < (0.55e6 if row.published.endswith("M") else 0.5e9), row


def test_table_a4_divides_the_layers_by_the_papers_own_count():
    """Hoffmann et al. 2022, Table A4: 73M, 305M, 552M, 1.1B, 1.6B, 6.8B."""
    ratios = {"74m": 1.03, "306m": 1.10, "552m": 1.08, "1143m": 1.04, "1593m": 1.03, "6796m": 0.99}
    for size, ratio in ratios.items():
        config = preset(f"chinchilla-{size}")
        cost = config.cost(2048)
        flops, n = cost.flops, cost.total + relative_projections(config)
        assert round(flops["table_a4"] / (6 * n), 2) == ratio
        assert flops["appendix_f"] / (6 * n) > ratio + 0.03, "as the text words it, the ratios are larger"


def test_llama_counts_are_those_of_the_released_weights():
    released = {
        "llama-7b": 6_738_415_616,
        "llama-65b": 65_285_660_672,
        "llama2-70b": 68_976_648_192,
        "llama3-8b": 8_030_261_248,
        "llama3.1-405b": 405_853_388_800,
    }
    assert {name: preset(name).cost(2048).total for name in released} == released


def test_unknown_name_offers_near_ones():
    with pytest.raises(BadInput, match="no preset is named 'GPT2_XL'; did you mean gpt2-xl"):
        preset("GPT2_XL")
    with pytest.raises(BadInput, match="gptjax presets"):
        preset("mamba")
