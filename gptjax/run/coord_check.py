"""The coordinate check (Yang et al. 2022, App. D.1): whether activations move alike at every width, or depth.

Train a few steps at several sizes on the same batches; where one learning rate is right for all sizes, what a step
changes in the residual stream, the attention scores and the logits does not depend on the size.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from gptjax.batch import Batch
from gptjax.config import RunConfig
from gptjax.data.loader import open_stores
from gptjax.errors import BadInput
from gptjax.laws.drawing.style import BY_BUDGET, NARROW, WIDE, styled
from gptjax.models.model import ModelConfig
from gptjax.run.begin import make_loader
from gptjax.train.optim import make_optimizer
from gptjax.train.state import TrainState, new_state
from gptjax.train.step import train_step

Json = dict[str, Any]
PARAMETRIZATIONS = ("standard", "mup")


def coord_check(
    base: RunConfig,
    widths: Sequence[int] = (),
    *,
    depths: Sequence[int] = (),
    steps: int = 4,
    seeds: int = 2,
    parametrizations: Sequence[str] = PARAMETRIZATIONS,
) -> Json:
    """Measure activations and their change since initialization at each size and step, on the first batch.

    The rate is the base run's peak throughout, and mup transfers from the base run's own size, or its mup_width and
    mup_depth where set. Returns plain data: of each parametrization and quantity its mean absolute `value` by size and
    step 0..steps, its mean absolute `change` by size and step 1..steps, and the `slope` of log change against log size
    by step; means over seeds. Raises BadInput for sizes that cannot be compared, and where a run diverges.

    A slope above 0 says that a rate fit for small sizes is too high for large ones. With mup those of scores and logits
    begin near -1/2, the share of random initial weights in them, and rise towards 0 (Yang et al. 2022, App. D.2).
    """
    axis, sizes = ("n_layers", depths) if depths else ("d_model", widths)
    if bool(widths) == bool(depths) or len(set(sizes)) < 2:
        raise BadInput(f"widths {list(widths)}, depths {list(depths)}: give two or more of the one, none of the other")
    if unknown := set(parametrizations) - set(PARAMETRIZATIONS):
        raise BadInput(f"parametrization {min(unknown)!r} is not one of {', '.join(PARAMETRIZATIONS)}")
    if steps < 1 or seeds < 1:
        raise BadInput(f"steps {steps} and seeds {seeds} must be at least 1")
    model: Any = base.model
    if not all(hasattr(model, name) for name in (axis, "mup_width", "mup_depth")):
        raise BadInput(f"a model of family {model.family} has no {axis} with rules of transfer; check a gpt")
    for name in ("d_head", "d_mlp"):
        if widths and getattr(model, name):
            raise BadInput(f"{name} = {getattr(model, name)} would not widen with d_model; set it to 0 to derive it")
    field = "mup_width" if widths else "mup_depth"
    origin = getattr(model, field) or getattr(model, axis)
    kinds: dict[str, Json] = {"standard": {"mup_width": 0, "mup_depth": 0}, "mup": {field: origin}}
    layers = [f"layer {i}" for i in range(1, min(depths) if depths else model.n_layers)]
    loader = make_loader(base, open_stores(base.data, base.model.context))
    batches = [loader(step, np.arange(base.batch)) for step in range(steps)]
    found: Json = {}
    for name in parametrizations:
        shapes: list[Json] = [{**kinds[name], axis: size} for size in sizes]
        of_size = [_measure(base, replace(model, **shape), batches, seeds) for shape in shapes]
        found[name] = {}
        for quantity in (*layers, "stream", "scores", "logits"):
            value, change = np.moveaxis(np.array([other[quantity] for other in of_size]), -1, 0)
            found[name][quantity] = {
                "value": value.tolist(),
                "change": change[:, 1:].tolist(),
                "slope": [_slope(sizes, at_step) for at_step in change[:, 1:].T],
            }
    return {
        "axis": axis,
        "sizes": list(sizes),
        "base": origin,
        "steps": steps,
        "seeds": seeds,
        "lr": base.optim.lr,
        "optimizer": base.optim.name,
        "parametrizations": found,
    }


def _measure(base: RunConfig, config: ModelConfig, batches: list[Batch], seeds: int) -> dict[str, np.ndarray]:
    """Train one size from each seed; return (steps + 1, 2) of each quantity, its value and its change."""
    model = config.build(base.execution)
    if (observe := model.observe) is None:
        raise BadInput(f"a model of family {config.family} shows no activations to check; check a gpt")
    optimizer = make_optimizer(base.optim, model.axes, config.scales)
    settings = {"model": model, "optimizer": optimizer, "z_loss": base.z_loss}

    @jax.jit
    def program(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        seen = observe(state.params, batches[0])
        return train_step(state, batch, jnp.float32(base.optim.lr), **settings)[0], seen

    init = jax.jit(lambda key: new_state(key, model, optimizer))
    runs = []
    for seed in range(base.seed, base.seed + seeds):
        state, trace = init(jax.random.key(seed)), []
        for batch in (*batches, batches[-1]):  # the last step is taken only to see where the one before led
            state, seen = program(state, batch)
            trace.append(seen)
        values = {name: np.array([at[name] for at in trace], np.float32) for name in seen}
        runs.append({name: np.stack([_mean_size(x), _mean_size(x - x[0])], axis=1) for name, x in values.items()})
    means = {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}
    if not all(np.isfinite(values).all() for values in means.values()):
        where = ", ".join(f"{name} {getattr(config, name)}" for name in ("d_model", "n_layers"))
        raise BadInput(f"{where} diverged within {len(batches)} steps at optim.lr {base.optim.lr}; lower the rate")
    return means


def _mean_size(x: np.ndarray) -> np.ndarray:
    return np.abs(x).reshape(len(x), -1).mean(axis=1)


def _slope(sizes: Sequence[int], changes: np.ndarray) -> float | None:
    return float(np.polyfit(np.log(sizes), np.log(changes), 1)[0]) if (changes > 0).all() else None


def describe(result: Json) -> str:
    """Write the slopes as lines: a parametrization and quantity each, a number per step."""
    lines = [f"slope of log change against log {result['axis']}, by step 1..{result['steps']}"]
    for name, quantities in result["parametrizations"].items():
        for quantity, found in quantities.items():
            slopes = "  ".join("  none" if slope is None else f"{slope:+.2f}" for slope in found["slope"])
            lines.append(f"{name:<10}{quantity:<10}{slopes}")
    return "\n".join(lines)


@styled
def draw(result: Json, narrow: bool = False) -> Figure:
    """Draw change against size, a line a step: flat where hyper-parameters transfer. A row a parametrization."""
    names, columns = list(result["parametrizations"]), ("stream", "scores", "logits")
    figure = Figure(figsize=(NARROW if narrow else WIDE, 2.3 * len(names) + 0.4))
    grid = figure.subplots(len(names), len(columns), squeeze=False, sharex=True, sharey="col")
    colours = [BY_BUDGET((step + 0.5) / result["steps"]) for step in range(result["steps"])]
    for row, name in zip(grid, names, strict=True):
        for axes, quantity in zip(row, columns, strict=True):
            found = result["parametrizations"][name][quantity]
            for i, (colour, change) in enumerate(zip(colours, np.transpose(found["change"]), strict=True)):
                axes.plot(
                    result["sizes"], change, "o-", color=colour, linewidth=1.2, markersize=3, label=f"step {i + 1}"
                )
            slope = found["slope"][-1]
            title = {"standard": "standard", "mup": "muP"}[name] + f", {quantity}"
            axes.set_title(title if slope is None else f"{title}: slope {slope:+.2f}")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator(result["sizes"]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda change, _: f"{change:g}")
        row[0].set_ylabel("mean |change|")
    for axes in grid[-1]:
        axes.set_xlabel({"d_model": "width", "n_layers": "layers"}[result["axis"]])
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, result["steps"]))
    return figure
