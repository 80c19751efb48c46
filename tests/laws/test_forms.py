"""Laws as values: published figures come out, optima are optima, and what the solver differentiates is the law."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.laws.forms import BY_EXPONENT, CHINCHILLA, KAPLAN, TIED, ChinchillaLaw, saturating, slopes_at
from gptjax.laws.published import (
    BESIROGLU_2024,
    HOFFMANN_2022,
    KAPLAN_2020,
    MUENNIGHOFF_2023,
    PUBLISHED,
    DataConstrainedLaw,
    serving_optimum,
)

SCARCE = DataConstrainedLaw(MUENNIGHOFF_2023, 25e9)


@pytest.mark.parametrize("law", [*PUBLISHED.values(), SCARCE], ids=[*PUBLISHED, "scarce"])
def test_an_optimum_has_no_better_neighbour_and_is_one_for_c_n_d_and_l(law):
    best = law.optimum(flops=1e22)
    n = best.params * np.geomspace(0.5, 2, 201)
    assert np.argmin(law.loss(n, 1e22 / (6 * n))) == 100
    for name in ("params", "tokens", "loss"):
        assert law.optimum(**{name: getattr(best, name)}).flops == pytest.approx(1e22, rel=1e-6)
    assert law.tokens_to_reach(best.loss, best.params) == pytest.approx(best.tokens, rel=1e-6)
    with pytest.raises(BadInput, match="exactly one"):
        law.optimum(flops=1e21, params=1e9)
    with pytest.raises(BadInput, match="not a finite positive"):
        law.optimum(flops=-1.0)


def test_a_loss_below_the_floor_has_no_optimum():
    assert math.isinf(BESIROGLU_2024.tokens_to_reach(1.9, 1e6))
    for law in (BESIROGLU_2024, SCARCE):
        with pytest.raises(BadInput, match="floor"):
            law.optimum(loss=1.5)


def test_published_exponents_and_points():
    assert pytest.approx(0.4565, abs=1e-4) == HOFFMANN_2022.a  # from the TeX source; printed as .46
    assert BESIROGLU_2024.a == pytest.approx(0.513, abs=5e-4)
    # Muennighoff et al.'s own released code gives these two losses
    assert SCARCE.loss(6.34e9, 242e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert SCARCE.loss(8.67e9, 178e9) == pytest.approx(2.2269634075087867, rel=1e-12)


def test_repeating_data_is_worth_less_and_the_first_epoch_all():
    fresh, twice = SCARCE.loss(1e9, 25e9), SCARCE.loss(1e9, 50e9)
    assert fresh == pytest.approx(MUENNIGHOFF_2023.loss(1e9, 25e9), rel=1e-12)
    assert MUENNIGHOFF_2023.loss(1e9, 50e9) < twice < fresh
    assert SCARCE.loss(1e9, 1e15) == pytest.approx(SCARCE.loss(1e9, 1e14), rel=1e-6)  # worth nothing more


def test_the_published_serving_example():
    # Sardana et al. 2024: the quality of a compute-optimal 13B model, 2e12 tokens served
    law = ChinchillaLaw(406.4, 410.7, 1.69, 0.336, 0.283)
    alone = law.optimum(params=13e9)
    best = serving_optimum(law, alone.loss, 2e12)
    assert best.params == pytest.approx(6.97e9, rel=1e-3) and best.tokens == pytest.approx(1.25e12, rel=2e-3)
    assert best.saving == pytest.approx(0.174, abs=1e-3)
    assert law.loss(best.params, best.tokens) == pytest.approx(alone.loss, rel=1e-9)
    least = serving_optimum(law, alone.loss, 1.0)
    assert least.params == pytest.approx(alone.params, rel=1e-3) and least.saving == pytest.approx(0, abs=1e-6)
    assert serving_optimum(KAPLAN_2020, 2.5, 1e12).params < KAPLAN_2020.optimum(loss=2.5).params


THETAS = {
    CHINCHILLA: BESIROGLU_2024.theta,
    BY_EXPONENT: np.array([*BESIROGLU_2024.theta[:3], 0.7136, 0.5126]),
    TIED: np.array([6.2, 7.3, 0.6, 0.35]),
    KAPLAN: np.array([23.5, 30.5, 0.74, 0.103]),
    saturating("flops"): np.array([2.2, 0.5, 0.05]),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", THETAS, ids=lambda form: form.name)
def test_a_form_is_its_law_wherever_the_origin_lies(form):
    theta = THETAS[form]
    values = np.array([[1e8, 3e9, 7e10], [2e10, 1e11, 3e12]])[: len(form.columns)]
    x, origin = np.log(values), np.log(values).mean(axis=1)
    with jax.enable_x64(True):
        measured = np.asarray(form.log_loss(jnp.asarray(theta), jnp.asarray(x)))
        moved = np.asarray(form.log_loss(jnp.asarray(form.shift(theta, origin)), jnp.asarray(x - origin[:, None])))
    assert measured == pytest.approx(np.log(form.at(theta).loss(*values)), rel=1e-12)
    assert moved == pytest.approx(measured, rel=1e-12)
    step = 1e-6
    with jax.enable_x64(True):
        for i, slope in enumerate(slopes_at(form, theta, x).T):
            ends = [
                np.asarray(form.log_loss(jnp.asarray(theta + s * step * np.eye(len(theta))[i]), x)) for s in (1, -1)
            ]
            assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-9)


def test_the_closed_sensitivity_is_the_differentiated_one():
    n, d = np.geomspace(1e6, 1e11, 7), np.geomspace(1e8, 1e13, 7)
    by_jax = slopes_at(CHINCHILLA, BESIROGLU_2024.theta, np.log([n, d]))
    assert BESIROGLU_2024.sensitivity(n, d) == pytest.approx(by_jax, rel=1e-12)


@pytest.mark.parametrize("form", [CHINCHILLA, TIED, KAPLAN], ids=lambda form: form.name)
def test_coefficients_beyond_all_numbers_have_no_optimum_and_raise_nothing(form):
    rng = np.random.default_rng(0)
    wild = np.concatenate([rng.normal(0, 10.0**k, (60, form.starts.shape[1])) for k in range(5)])
    found = form.optima(wild, (1e18, 1e21), {})
    assert found.shape == (300, 2, 2) and np.isnan(found[:, 0, 0]).any() and np.isfinite(found[:, 0, 0]).any()
