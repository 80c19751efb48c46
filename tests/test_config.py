"""A run is a value: JSON round trip, fingerprint of the question alone, overrides, errors that teach."""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest

from gptjax.cli import main
from gptjax.config import MOVED, InitFrom, RunConfig, from_json, override, to_json
from gptjax.data.loader import DataConfig, Source
from gptjax.data.objectives import Masked, PrefixLM
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.fingerprint import difference, fingerprint
from gptjax.models.gpt import GPTConfig
from gptjax.sharding import MeshConfig, Rules
from gptjax.sweep.plan import SweepConfig
from gptjax.train.adapters import tuned
from gptjax.train.optim import learning_rates, make_optimizer

CONFIG = RunConfig(
    model=GPTConfig(rope_scaling=(8.0, 1.0, 4.0, 8192), positions="rope"),
    data=DataConfig(sources=(Source("python", 0.5), Source("notes.txt", 2.0))),
    init_from=InitFrom("trunk", 40),
    rules=Rules(mlp=("fsdp", "tensor")),
)


def test_json_round_trip():
    assert from_json(RunConfig, json.loads(json.dumps(to_json(CONFIG)))) == CONFIG


def test_the_fingerprint_is_of_the_question():
    how = replace(
        CONFIG,
        mesh=MeshConfig(fsdp=8),
        steps_per_call=7,
        log_every=3,
        data=replace(CONFIG.data, cache="/elsewhere"),
        execution=Execution(remat="full", scan=False, vocab_multiple=128, attention="xla", microbatches=4),
    )
    assert fingerprint(how) == fingerprint(CONFIG)
    assert fingerprint(replace(CONFIG, z_loss=0)) == fingerprint(CONFIG)  # as its JSON round trip
    asked = [
        replace(CONFIG, seed=1),
        replace(CONFIG, batch=64),
        replace(CONFIG, model=replace(CONFIG.model, bias=False)),
    ]
    assert len({fingerprint(c) for c in [CONFIG, *asked]}) == 4


def test_models_and_objectives_are_told_by_their_tags():
    whole = override(CONFIG, ['data.objective={"kind": "masked", "rate": 0.3}'])
    assert whole.data.objective == Masked(rate=0.3) and whole.model == CONFIG.model
    assert override(CONFIG, ["data.objective=prefix"]).data.objective == PrefixLM()
    assert override(override(CONFIG, ["data.objective=masked"]), ["data.objective.rate=0.3"]) == whole
    assert override(whole, ["data.objective=causal"]) == CONFIG
    assert from_json(RunConfig, json.loads(json.dumps(to_json(whole)))) == whole
    assert len({fingerprint(c) for c in (CONFIG, whole, override(CONFIG, ["data.objective=masked"]))}) == 3
    content = to_json(CONFIG)
    assert content["model"].pop("family") == "gpt" and content["data"].pop("objective") == {"kind": "causal"}
    assert from_json(RunConfig, content) == CONFIG  # as files were before there were tags
    for name in ("mamba", [], {}, None, 0):
        with pytest.raises(BadInput, match=r"family.*is not one of gpt") as error:
            from_json(RunConfig, content | {"model": {"family": name}})
        assert "\n" not in str(error.value)
    for wrong in ("data.objective=span", "data.objective.kind=7", "data.objective.rate=0.3", "data.objective=[]"):
        with pytest.raises(BadInput, match=r"objective|rate|kind") as error:
            override(CONFIG, [wrong])
        assert "\n" not in str(error.value)


def test_how_a_model_is_computed_was_once_said_in_the_model():
    here = replace(CONFIG, execution=Execution(remat="dots", scan=False, vocab_multiple=128))
    assert override(CONFIG, ["model.remat=dots", "model.scan=false", "model.vocab_multiple=128"]) == here
    content = to_json(here)
    of_model = {name: content["execution"].pop(name) for name in MOVED}
    del content["execution"]
    assert from_json(RunConfig, content | {"model": content["model"] | of_model}) == here
    with pytest.raises(BadInput, match=r"execution\.vocab_multiple"):
        from_json(RunConfig, content | {"model": content["model"] | of_model | {"vocab_multiple": "x"}})
    with pytest.raises(BadInput, match=r"execution\.remat"):
        override(CONFIG, ["model.remat=most"])
    with pytest.raises(BadInput, match="kernels"):  # which no model ever had
        override(CONFIG, ["model.kernels=plain"])


def test_overrides_reach_any_depth_and_keep_types():
    config = override(CONFIG, ["optim.lr=3e-4", "model.n_layers=3", "optim.name=lion", "save.at=[1,2]", "seed=7"])
    assert (config.optim.lr, config.model.n_layers, config.optim.name) == (3e-4, 3, "lion")
    assert config.save.at == (1, 2) and config.seed == 7
    assert override(CONFIG, ["init_from=null"]).init_from is None
    assert override(CONFIG, ["init_from=null", "steps=50", "optim.warmup=10"]).steps == 50  # valid together only
    assert override(CONFIG, ['data.sources=[{"corpus": "a.txt"}]']).data.sources == (Source("a.txt"),)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("optim.lr", "no '='"),
        ("optim.warmpu=1", "did you mean warmup"),
        ("optimm.lr=1", "did you mean optim"),
        ("seed.x=1", "no field 'x'"),
        ("steps=7.5", "steps must be a whole number"),
        ("steps=many", "steps must be a whole number"),
        ("model.bias=1", "model.bias must be true or false"),
        ("optim.name=sgd", "sgd"),
        ("steps=0", "at least 1"),
        ("model.n_heads=5", "not divisible"),
        ("optim.lr=-1", "above 0"),
    ],
)
def test_bad_overrides_are_one_line(assignment, words):
    with pytest.raises(BadInput, match=words) as error:
        override(CONFIG, [assignment])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_and_its_parts_are_not_set_together(order):
    with pytest.raises(BadInput, match="set it whole or by its fields"):
        override(CONFIG, ["init_from=null", "init_from.step=3"][::order])


def test_unknown_keys_and_wrong_types_in_json_are_named_by_path():
    content = to_json(CONFIG)
    content["optim"]["lr"] = "fast"
    with pytest.raises(BadInput, match=r"optim.lr: expected float, got 'fast'"):
        from_json(RunConfig, content)
    content = to_json(CONFIG)
    content["model"]["depth"] = 3
    with pytest.raises(BadInput, match="depth"):
        from_json(RunConfig, content)


SMALL = RunConfig(model=GPTConfig(vocab_size=64, context=16, d_model=32, n_layers=2, n_heads=2))
NONSENSE = [
    0,
    -1,
    True,
    "x",
    [],
    {},
    None,
    math.nan,
    math.inf,
    -math.inf,
    1e300,
    2**31,
    2**63,
    10**400,
    [-1],
    [math.nan],
]


def places(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give the path of every field of a config and of the configs in it."""
    for f in fields(config):
        value = getattr(config, f.name)
        yield from places(value, (*path, f.name)) if is_dataclass(value) else [(*path, f.name)]


def changed(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return replace(config, **{name: changed(getattr(config, name), tuple(rest), value) if rest else value})


def at(config: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(getattr, path, config)


MASKED = replace(SMALL, data=replace(SMALL.data, objective=Masked()))
HIDDEN = [("data", "objective", name) for name in ("rate", "keep", "swap")]


@pytest.mark.slow
@pytest.mark.parametrize("path", [*places(SMALL), *HIDDEN, ("init_from", "step"), ("data", "sources")], ids=".".join)
@pytest.mark.filterwarnings("error")
def test_any_value_of_any_field_is_refused_in_a_line_or_makes_a_run_that_can_be_built(path):
    begun = replace(SMALL, init_from=InitFrom("trunk", 4))
    base = begun if path[0] == "init_from" else MASKED if path in HIDDEN else SMALL
    for value in NONSENSE:
        try:
            config = changed(base, path, value)
        except BadInput as error:
            assert "\n" not in str(error) and path[-1] in str(error)
            continue
        assert value is not True or isinstance(at(base, path), bool | None)
        assert from_json(RunConfig, json.loads(json.dumps(to_json(config), allow_nan=False))) == config
        model = tuned(config.model.build(config.execution), config.tune)
        make_optimizer(config.optim, model.trained, config.model.scales)
        jax.eval_shape(model.init, jax.random.key(config.seed))
        assert np.isfinite(learning_rates(config.optim, 0, 3, config.steps)).all()


WRONG = ("seed=-1", "seed=9223372036854775808", "optim.lr=1e400", "optim.weight_decay=NaN", "z_loss=NaN",
         "optim.lr=true", "steps=100000000000000000000", "evaluate.every=-1")  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_nonsense_on_the_command_line_is_refused_before_anything_is_written(text, tmp_path, capsys):
    file = tmp_path / "experiment.py"
    file.write_text("from gptjax.config import RunConfig\nrun = RunConfig\n")
    with pytest.raises(SystemExit) as stop:
        main(["train", str(file), "--dir", str(tmp_path / "run"), "--set", text])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and text.partition("=")[0].rpartition(".")[2] in said
    assert not (tmp_path / "run").exists()


def test_a_sweep_refuses_what_is_no_number():
    for wrong in ({"budgets": (math.nan,)}, {"budgets": (math.inf,)}, {"lr_factors": (True,)}, {"min_steps": 1.5}):
        settings = {"base": SMALL, "sizes": (1,), "shape": lambda n: SMALL.model, "lr": 1e-3, "batch_tokens": 64.0}
        with pytest.raises(BadInput, match=next(iter(wrong))):
            SweepConfig(**settings | {"budgets": (1e9,)} | wrong)


def test_a_list_is_as_good_as_a_tuple_and_a_whole_number_as_a_float():
    listed = replace(CONFIG, z_loss=0, data=replace(CONFIG.data, sources=list(CONFIG.data.sources)))
    assert listed == CONFIG and hash(listed) == hash(CONFIG) and fingerprint(listed) == fingerprint(CONFIG)


GOLDEN = ("af8843969b3dc02e", "4070dc9a3813dd91")  # as they were on 2026-11-29; every result on disk has one


def test_fingerprints_of_finished_runs_do_not_move():
    assert (fingerprint(RunConfig()), fingerprint(CONFIG)) == GOLDEN


def test_what_differs_is_named_with_both_values():
    other = replace(CONFIG, seed=3, optim=replace(CONFIG.optim, lr=0.5), log_every=7, init_from=None)
    said = difference(other, CONFIG)
    assert "seed is 0 there and 3 here" in said and "optim.lr is 0.0003 there and 0.5 here" in said
    assert "log_every" not in said and "init_from" in said and difference(CONFIG, CONFIG) == ""
