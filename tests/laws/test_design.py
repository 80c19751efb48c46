"""A design says beforehand how well a sweep will know its law, keeps its allowance, and never gives up the grid."""

import json
import re

import numpy as np
import pytest

from gptjax.errors import BadInput
from gptjax.files import plain
from gptjax.laws.fit import Choices
from gptjax.laws.forms import CHINCHILLA, ChinchillaLaw
from gptjax.laws.parametric import parametric, refit
from gptjax.laws.planning.design import describe_design, flops_paid, propose
from gptjax.laws.planning.extension import _greedy, describe_extension, next_cells
from gptjax.laws.planning.precision import gradient, huber_inflation, standard_errors
from gptjax.laws.published import BESIROGLU_2024, HOFFMANN_2022
from gptjax.laws.simulate import ladder, losses, simulate

SMALL = ChinchillaLaw(214, 108, 1.70, 0.539, 0.349)
BUDGETS = 1e20 * np.geomspace(1 / 30, 1, 5)
N, D = ladder(BESIROGLU_2024, BUDGETS)


def goals(law: ChinchillaLaw, target: float) -> dict[str, float]:
    """Give the numbers that a design wants to know, loss at the optimum of the law itself."""
    best = law.optimum(flops=target)
    return {"a": law.a, "params": np.log(best.params), "loss": np.log(best.loss)}


def test_gradients_are_the_slopes_of_the_goals():
    theta, target = SMALL.theta, 1e14
    for goal in ("a", "params", "loss"):
        slope = []
        for step in 1e-6 * np.eye(5):
            ends = [goals(CHINCHILLA.at(theta + sign * step), target)[goal] for sign in (1, -1)]
            slope.append((ends[0] - ends[1]) / 2e-6)
        assert gradient(SMALL, goal, target) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_huber_inflation_runs_from_least_absolute_deviation_to_least_squares():
    assert huber_inflation(0) == pytest.approx(np.pi / 2, rel=1e-3)
    assert huber_inflation(1.345) == pytest.approx(1 / 0.95, rel=1e-3)  # the textbook's 95 % efficiency
    assert huber_inflation(np.inf) == 1


@pytest.mark.parametrize("choices", [Choices(), Choices(loss="lsq-log")])
def test_predicted_standard_errors_are_the_spread_of_simulated_fits(choices):
    noise, target, draws = 0.005, 1e21, 600
    fit = parametric(simulate(BESIROGLU_2024, N, D, noise=0, seed=0), starts=BESIROGLU_2024.theta[None])
    drawn = losses(BESIROGLU_2024, N, D, noise=noise, seed=1, draws=draws)
    thetas, _ = refit(simulate(BESIROGLU_2024, N, D, noise=0, seed=0), fit, choices, losses=drawn)
    found = [goals(CHINCHILLA.at(theta), target) for theta in thetas]
    delta = choices.delta if choices.loss == "huber" else np.inf
    expected = standard_errors(BESIROGLU_2024, N, D, noise=noise, target_flops=target, delta=delta)
    for goal in ("a", "params", "loss"):
        spread = np.std([values[goal] for values in found])
        assert spread == pytest.approx(getattr(expected, goal), rel=0.12), goal  # 4 standard errors of a spread


def test_a_repeat_is_a_second_run_of_the_same_cell():
    settings = {"noise": 0.01, "target_flops": 1e21}
    thrice = standard_errors(BESIROGLU_2024, np.repeat(N, 3), np.repeat(D, 3), **settings)
    assert vars(standard_errors(BESIROGLU_2024, N, D, seeds=3.0, **settings)) == pytest.approx(vars(thrice))
    assert standard_errors(BESIROGLU_2024, N, D, **settings).a == pytest.approx(thrice.a * 3**0.5)


@pytest.mark.parametrize("goal", ["a", "loss"])
def test_the_next_cell_is_the_best_of_all_and_its_errors_are_those_of_a_fit_with_it(goal):
    allowance, target = 5e19, 1e21
    (pick,) = next_cells(BESIROGLU_2024, N, D, allowance, goal=goal, target_flops=target, count=1).cells
    base = BESIROGLU_2024.sensitivity(N, D)
    c, ratio = np.meshgrid(
        np.geomspace(BUDGETS.min(), allowance, 25), np.geomspace((D / N).min(), (D / N).max(), 25), indexing="ij"
    )
    n = np.sqrt(c / (6 * ratio)).ravel()
    d = ratio.ravel() * n
    of_goal = gradient(BESIROGLU_2024, goal, target)
    variances = []
    for slope in BESIROGLU_2024.sensitivity(n, d):
        rows = np.vstack([base, slope])
        variances.append(of_goal @ np.linalg.solve(rows.T @ rows, of_goal))
    best = int(np.argmin(variances))
    assert (pick.params, pick.tokens) == pytest.approx((n[best], d[best]))

    extension = next_cells(BESIROGLU_2024, N, D, allowance, goal=goal, target_flops=target, count=6)
    many = extension.cells
    assert sum(cell.flops for cell in many) <= allowance * (1 + 1e-9) and len(many) <= 6
    assert many[-1].goal_se <= pick.goal_se
    for last in range(1, len(many) + 1):
        more = np.array([(cell.params, cell.tokens) for cell in many[:last]])
        n_all, d_all = np.append(N, more[:, 0]), np.append(D, more[:, 1])
        errors = standard_errors(BESIROGLU_2024, n_all, d_all, noise=0.01, target_flops=target)
        assert getattr(errors, goal) == pytest.approx(many[last - 1].goal_se, rel=1e-6)
    assert getattr(extension.after, goal) == pytest.approx(many[-1].goal_se, rel=1e-6)
    assert extension.before == standard_errors(BESIROGLU_2024, N, D, noise=0.01, target_flops=target)
    assert f"{many[-1].goal_se:.4f}" in describe_extension(extension) and json.dumps(plain(extension), allow_nan=False)


@pytest.mark.parametrize("per_flop", [True, False])
def test_each_greedy_choice_is_the_best_affordable_one(per_flop):
    rng = np.random.default_rng(5)
    base, further, of_goal = rng.normal(size=(7, 5)), 3 * rng.normal(size=(40, 5)), rng.normal(size=5)
    flops, left, count = rng.uniform(1, 3, size=40), 7.0, 6
    picks, ses = _greedy(np.linalg.inv(base.T @ base), further, flops, of_goal, left, count, per_flop)

    def variance(rows):
        return of_goal @ np.linalg.solve(rows.T @ rows, of_goal)

    found = []
    for runs in range(count, 0, -1):
        gains = {
            i: (variance(base) - variance(np.vstack([base, further[i]]))) / (flops[i] if per_flop else 1)
            for i in np.flatnonzero(flops <= (left if per_flop else left / runs))
        }
        if gains:
            found.append(max(gains, key=gains.get))
            base, left = np.vstack([base, further[found[-1]]]), left - flops[found[-1]]
            assert ses[len(found) - 1] == pytest.approx(variance(base) ** 0.5)
    assert picks == found and len(found) >= 3 and left >= 0


@pytest.mark.parametrize("law,flops", [(BESIROGLU_2024, 1e21), (HOFFMANN_2022, 3e18), (SMALL, 4e13)])
@pytest.mark.parametrize("cooldown", [None, 0.2])
def test_a_proposal_keeps_its_allowance_its_grid_and_its_limits(law, flops, cooldown):
    design = propose(law, flops, cooldown=cooldown)
    n, d, seeds = (np.array([getattr(cell, name) for cell in design.cells]) for name in ("params", "tokens", "seeds"))
    assert 0.98 * flops <= design.paid <= flops and design.runs == seeds.sum() == 36
    assert design.credited == pytest.approx(sum(cell.flops * cell.seeds for cell in design.cells))
    assert design.paid == design.credited if cooldown is None else design.paid < design.credited
    assert n.min() >= 1e3 and 0.99 <= (d / n).min() and (d / n).max() <= 1000
    for budget in design.budgets:
        sizes = n[np.isclose(6 * n * d, budget, rtol=1e-9)]
        best = law.optimum(flops=budget).params
        assert (
            len(sizes) >= 4 and sizes.min() < best / 1.4 and sizes.max() > best * 1.4
        )  # of 4, half a rung may be off and a cell out
    assert design.budgets[-1] / design.budgets[0] == pytest.approx(30, rel=0.03)
    assert json.loads(json.dumps(plain(design), allow_nan=False))["cells"][0]["params"] == n[0]


def test_a_proposal_knows_a_better_than_the_grid_that_costs_as_much():
    design = propose(BESIROGLU_2024, 1e21, runs=35, target_flops=1e21)
    relative = np.geomspace(1 / 30, 1, 5)
    grid = ladder(BESIROGLU_2024, 1e21 * relative / (7 * relative.sum()))
    uniform = standard_errors(BESIROGLU_2024, *grid, noise=0.01, target_flops=1e21)
    assert design.errors.a < 0.7 * uniform.a
    for_loss = propose(BESIROGLU_2024, 1e21, runs=35, target_flops=1e21, goal="loss")
    assert for_loss.errors.loss < 0.85 * uniform.loss and for_loss.errors.loss < design.errors.loss


def test_the_printed_lines_plan_the_cells():
    design = propose(BESIROGLU_2024, 1e21)
    lines: dict = {}
    for line in describe_design(design).splitlines():
        if re.match(r"(budgets|sizes|tokens_per_param)=", line):
            exec(line, lines)
    low, high = lines["tokens_per_param"]
    cells = {(n, c) for n in lines["sizes"] for c in lines["budgets"] if low <= c / (6 * n * n) <= high}
    planned = {(cell.params, float(f"{cell.flops:.3g}")) for cell in design.cells}
    assert cells >= planned
    assert (f"{len(cells - planned)} more cells" in describe_design(design)) == (cells != planned)


def test_a_size_pays_its_longest_horizon_and_the_cooldown_of_the_others():
    params, tokens = np.array([10.0, 10, 10, 20]), np.array([100.0, 300, 200, 50])
    seeds = np.array([2, 1, 1, 1])
    assert flops_paid(params, tokens, seeds, 0.2) == pytest.approx(60 * (300 + 0.2 * 300) + 120 * 50 + 60 * 100)
    assert flops_paid(params, tokens, seeds, 1.0) == pytest.approx(60 * 700 + 120 * 50)


def test_simulated_noise_is_of_log_loss_and_grows_as_told():
    drawn = losses(SMALL, [1e4, 1e6], [1e6, 1e8], noise=0.01, seed=0, draws=4000, growth=2.0)
    exact = SMALL.loss([1e4, 1e6], [1e6, 1e8])
    sd = 0.01 * (exact / exact.min()) ** 2
    assert np.std(np.log(drawn / exact), axis=0) == pytest.approx(sd, rel=0.05)
    runs = simulate(SMALL, [1e4, 1e6], [1e6, 1e8], noise=0.01, seed=3, loss_se=0.02)
    again = simulate(SMALL, [1e4, 1e6], [1e6, 1e8], noise=0.01, seed=3)
    assert (runs.loss == again.loss).all() and runs.loss_se[0] == 0.02 and np.isnan(again.loss_se[0])
    assert runs.flops[0] == 6e10 and len(runs) == 2


def test_a_ladder_shares_sizes_and_brackets_each_optimum():
    n, d = (values.reshape(5, 7) for values in (N, D))
    assert 6 * n * d == pytest.approx(np.repeat(BUDGETS[:, None], 7, axis=1))
    best = BESIROGLU_2024.params_law(BUDGETS)
    half_rung = 4 ** (1 / 6) * 1.001
    assert (n[:, 0] * 4 <= best * half_rung).all() and (n[:, -1] * half_rung >= best * 4).all()
    assert len(np.unique(N)) <= 7 + 8


BAD = {
    "allowance": (lambda: propose(BESIROGLU_2024, -1), "allowance -1 must be a number above 0"),
    "tiny": (lambda: propose(HOFFMANN_2022, 1e12), "the least that works is about"),
    "vast": (lambda: propose(HOFFMANN_2022, 1e32), "allow less"),
    "budgets": (lambda: propose(BESIROGLU_2024, 1e21, budgets=2), "use at least 3 budgets x 4 sizes"),
    "runs": (lambda: propose(BESIROGLU_2024, 1e21, runs=10), "10 runs do not fill 4 budgets x 5 sizes"),
    "goal": (lambda: propose(BESIROGLU_2024, 1e21, goal="E"), "use one of a, params, loss"),
    "floor": (lambda: propose(ChinchillaLaw(400, 400, 0, 0.3, 0.3), 1e21), "must be above 0"),
    "noise": (lambda: propose(BESIROGLU_2024, 1e21, noise=0), "noise 0 must be"),
    "span": (lambda: propose(BESIROGLU_2024, 1e21, span=1), "factors above 1"),
    "slice": (lambda: next_cells(BESIROGLU_2024, N[:7], D[:7] * 0 + 1e9, 1e20), "do not determine"),
    "poor": (lambda: next_cells(BESIROGLU_2024, N, D, 1e10), "the cheapest so far took 3.33e18"),
    "none": (lambda: next_cells(BESIROGLU_2024, N, D, 1e20, count=0), "ask for at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_teaches(name):
    call, message = BAD[name]
    with pytest.raises(BadInput) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_least_allowance_named_is_one_that_works():
    with pytest.raises(BadInput) as error:
        propose(HOFFMANN_2022, 1e12)
    least = float(re.search(r"works is about (\S+) FLOPs", str(error.value)).group(1))
    assert propose(HOFFMANN_2022, least * 1.01).paid <= least * 1.01
    with pytest.raises(BadInput):
        propose(HOFFMANN_2022, least * 0.9)
