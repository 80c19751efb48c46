"""Fine-tuning: begin with any weights, train all, a part, or adapters; and what is on disk is the merged model."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

from gptjax.config import EvalConfig, InitFrom, RunConfig, SaveConfig, from_json, load_config, to_json
from gptjax.data.feed import prefetch
from gptjax.data.loader import DataConfig, Source, open_stores
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.fingerprint import fingerprint
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.params import named, nested
from gptjax.run.begin import make_loader, programs_of
from gptjax.run.checkpoint import Checkpoints, open_arrays
from gptjax.run.export import export
from gptjax.run.initial_weights import check_origin, with_resolved_origin
from gptjax.run.loop import Preempted, train
from gptjax.run.result import Result
from gptjax.run.weights import saved_model
from gptjax.sharding import Layout, MeshConfig
from gptjax.sweep.plan import SweepConfig, make_plan
from gptjax.train.adapters import EVERYTHING, TuneConfig, merged, merged_arrays, tuned
from gptjax.train.mup import factors
from gptjax.train.optim import OptimConfig, decays
from gptjax.train.programs import Programs
from helpers import batch_of, needed

MODEL = GPTConfig(
    vocab_size=257, context=32, d_model=16, n_layers=2, n_heads=2, d_head=4, init_std=0.0, norm="rmsnorm", bias=False,
    positions="rope", gated=True, activation="silu", tied=False,
)  # fmt: skip
PADDED = Execution(vocab_multiple=8)
PLAIN = MODEL.build(PADDED)
LORA = TuneConfig(lora_rank=2, lora_alpha=6.0, lora_targets=("attention", "mlp"))
FROZEN = TuneConfig(frozen=("embedding", "layers.mlp", "*.scale"))


@pytest.fixture(scope="module")
def config(cache):
    return RunConfig(
        model=MODEL,
        execution=PADDED,
        data=DataConfig(sources=(Source("markov:states=4,documents=60,length=300"),), tokenizer="bytes", cache=cache),
        optim=OptimConfig(lr=2e-2, warmup=2),
        batch=8,
        steps=4,
        steps_per_call=2,
        log_every=2,
        evaluate=EvalConfig(sequences=8, batch=8),
        save=SaveConfig(every=2, keep=3),
        trackers=(),
    )


@pytest.fixture(scope="module")
def base(config, tmp_path_factory):
    """A trained run, and its result."""
    directory = tmp_path_factory.mktemp("runs") / "base"
    return directory, train(config, directory)


def tuning(config: RunConfig, base: Path, tune: TuneConfig = EVERYTHING, **changes) -> RunConfig:
    """Fine-tune on other data."""
    sources = (Source("markov:states=4,seed=1,documents=60,length=300"),)
    data = replace(config.data, sources=sources)
    return replace(config, init_from=InitFrom(str(base), what="weights"), tune=tune, data=data, **changes)


def saved(directory: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Return all of a checkpoint's arrays."""
    arrays = open_arrays(directory / "checkpoints" / str(step) / "default")
    return {name: array.read().result() for name, array in arrays.items()}


def weights(directory: Path, step: int) -> dict[str, np.ndarray]:
    return {name[7:]: w for name, w in saved(directory, step).items() if name.startswith("params.")}


def random_adapters(params):
    """Give B entries that are not zero."""
    named_params = named(params)
    for i, name in enumerate(name for name in sorted(named_params) if name.endswith("lora_b")):
        named_params[name] = 0.3 * jax.random.normal(jax.random.key(i), named_params[name].shape)
    return nested(named_params)


def tokens(rows: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 257, (rows, 32)).astype(np.int32)


# ---- adapters


@pytest.mark.parametrize(
    ("change", "execution"),
    [({}, PADDED), ({"dtype": "bfloat16", "mup_width": 8}, replace(PADDED, scan=False, remat="full"))],
    ids=["plain", "changed"],
)
def test_adapters_begin_as_the_model_itself(change, execution):
    plain = replace(MODEL, **change).build(execution)
    lora = tuned(plain, LORA)
    params, adapted = plain.init(jax.random.key(0)), lora.init(jax.random.key(0))
    for name, w in named(params).items():
        np.testing.assert_array_equal(named(adapted)[name], w, err_msg=name)
    logits = lora.logits(adapted, batch_of(tokens()))
    np.testing.assert_array_equal(logits, plain.logits(params, batch_of(tokens())))
    assert (lora.logits(random_adapters(adapted), batch_of(tokens())) != logits).any()


def test_adapters_are_the_papers_formula():
    """h = W x + (alpha / r) B A x (Hu et al. 2021, Eq. 3), layer by layer, for one input axis and for two."""
    lora = tuned(PLAIN, LORA)
    params = random_adapters(lora.init(jax.random.key(0)))
    found, weights = named(merged(params, LORA)), named(params)
    assert found.keys() == named(PLAIN.axes).keys()
    rng = np.random.default_rng(0)
    for kernel, n_in in (("attention.query", 1), ("attention.out", 2), ("mlp.down", 1)):
        w, a, b = (np.asarray(weights[f"layers.{kernel}.{last}"]) for last in ("kernel", "lora_a", "lora_b"))
        for layer in range(MODEL.n_layers):
            x = rng.normal(size=w.shape[1 : 1 + n_in])
            A = a[layer].reshape(-1, 2).T  # (r, in)
            B = b[layer].reshape(2, -1).T  # (out, r)
            h = w[layer].reshape(x.size, -1).T @ x.ravel() + 6.0 / 2 * B @ (A @ x.ravel())
            ours = np.tensordot(x, found[f"layers.{kernel}.kernel"][layer], n_in)
            np.testing.assert_allclose(ours.ravel(), h, rtol=1e-4, atol=1e-5, err_msg=kernel)


def test_gradients_of_adapters_are_torchs():
    """The gradient of sum(y^2) for y = x (W + s A B), by torch's autograd."""
    torch = needed("torch", "hf")
    rng = np.random.default_rng(0)
    w, a, b, x = (rng.normal(size=s).astype(np.float32) for s in ((3, 5, 4), (3, 5, 2), (3, 2, 4), (3, 7, 5)))
    leaves = {"layers": {"up": {"kernel": w, "lora_a": a, "lora_b": b}}}

    def loss(params):
        return jnp.sum((x @ merged(params, LORA)["layers"]["up"]["kernel"]) ** 2)

    ours = jax.grad(loss)(jax.tree.map(jnp.asarray, leaves))["layers"]["up"]
    A, B = (torch.tensor(m, requires_grad=True) for m in (a, b))
    ((torch.tensor(x) @ torch.tensor(w) + 3.0 * (torch.tensor(x) @ A) @ B) ** 2).sum().backward()
    for name, theirs in (("lora_a", A), ("lora_b", B)):
        np.testing.assert_allclose(ours[name], theirs.grad, rtol=1e-4)


def test_rates_and_decay_of_adapters():
    wide = replace(MODEL, mup_width=4)
    axes = named(tuned(wide.build(), LORA).trained)
    assert {name.rpartition(".")[2] for name in axes} == {"lora_a", "lora_b"} and all(map(decays, axes.values()))
    for name, a in axes.items():
        assert factors(a, wide.scales).rate == (1 / 4 if name.endswith("lora_a") else 1.0), name


# ---- what is trained


def abstract_bytes(programs: Programs) -> tuple[int, int]:
    """Return the bytes of weights and of moments."""
    state = programs.abstract
    weights, moments = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (state.params, state.opt))
    return weights, moments


def layout_of(config: RunConfig, mesh: MeshConfig, devices: int) -> Layout:
    return Layout(make_mesh(mesh, jax.devices()[:devices]), config.rules)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor", "lion"])
@pytest.mark.parametrize("tune", [FROZEN, LORA], ids=["frozen", "lora"])
def test_what_is_frozen_has_no_moments(config, tune, optimizer):
    run = replace(config, tune=tune, optim=replace(config.optim, name=optimizer))
    layout = layout_of(run, MeshConfig(), 1)
    programs = programs_of(run, layout)
    trained = named(tuned(PLAIN, tune).trained)
    sizes = {name: w.size * 4 for name, w in named(programs.abstract.params).items()}
    moved = sum(size for name, size in sizes.items() if name in trained)
    _, whole = abstract_bytes(programs_of(replace(run, tune=EVERYTHING), layout))
    _, moments = abstract_bytes(programs)
    assert moved < sum(sizes.values()) / 2 and moments < whole * 0.75
    if optimizer == "adamw":
        assert moments == 2 * moved + 4  # two of each, and the count


def test_the_gradient_of_what_is_frozen_is_not_computed(config):
    """With all but the last norm frozen, the backward pass is the head's alone."""

    def flops(tune: TuneConfig) -> float:
        programs = programs_of(replace(config, tune=tune), layout_of(config, MeshConfig(), 1))
        arguments = programs.example(1, config.batch, MODEL.context, config.data)
        return programs.train.lower(*arguments).compile().cost_analysis()["flops"]

    assert flops(TuneConfig(frozen=("embedding", "layers", "head"))) < 0.6 * flops(EVERYTHING)


def test_frozen_weights_stay_bit_for_bit_while_the_others_move(config, base, tmp_path):
    directory, _ = base
    before = weights(directory, 4)
    for name, run in {"frozen": tuning(config, directory, FROZEN), "lora": tuning(config, directory, LORA)}.items():
        train(run, tmp_path / name)
        after, trained = weights(tmp_path / name, 4), named(tuned(PLAIN, run.tune).trained)
        assert 0 < len(trained) < len(after)
        for weight, value in after.items():
            if weight not in trained:
                np.testing.assert_array_equal(value, before[weight], err_msg=weight)
            elif weight in before:
                assert (value != before[weight]).any(), weight
            else:
                assert value.any(), weight


def few_steps(config: RunConfig, mesh: MeshConfig, devices: int) -> dict[str, np.ndarray]:
    programs = programs_of(config, layout_of(config, mesh, devices))
    loader = make_loader(config, open_stores(config.data, config.model.context))
    (batches,) = prefetch(loader, [range(3)], programs.batches)
    _, metrics = programs.train(programs.init(jax.random.key(0)), batches, np.full(3, 1e-1, np.float32))
    return {name: np.asarray(value) for name, value in metrics.items()}


@pytest.mark.parametrize("mesh", [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_eight_devices_tune_as_one(config, mesh, capfd):
    run = replace(config, tune=LORA)
    one, many = few_steps(run, MeshConfig(), 1), few_steps(run, mesh, 8)
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4, err_msg=name)
    assert one["loss"][2] < one["loss"][0]
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_accumulation_changes_nothing_but_rounding(config):
    whole, parts = (few_steps(replace(config, tune=LORA, accumulate=n), MeshConfig(), 1) for n in (1, 4))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, err_msg=name)


# ---- on disk


def test_a_saved_run_of_adapters_reads_and_exports_as_the_merged_model(config, base, tmp_path):
    train(tuning(config, base[0], LORA), tmp_path / "lora")
    params = nested(weights(tmp_path / "lora", 4))
    expected = named(jax.tree.map(np.asarray, merged(params, LORA)))
    model = saved_model(tmp_path / "lora")
    read = named(model.read(model.layout()))
    export(model, tmp_path / "out", "float32")
    exported = saved_model(tmp_path / "out").arrays
    assert read.keys() == exported.keys() == expected.keys() == named(PLAIN.axes).keys()
    for name, w in expected.items():
        np.testing.assert_allclose(read[name], w, rtol=1e-5, atol=1e-7, err_msg=name)
        np.testing.assert_array_equal(exported[name].read().result(), read[name], err_msg=name)
    logits = tuned(PLAIN, LORA).logits(params, batch_of(tokens()))
    np.testing.assert_allclose(PLAIN.logits(nested(read), batch_of(tokens())), logits, rtol=1e-4, atol=1e-5)
    assert (read["layers.mlp.up.kernel"] != weights(base[0], 4)["layers.mlp.up.kernel"]).any()


def test_merged_arrays_are_read_by_chunks(tmp_path):
    """Each piece of a view is that of the whole, in chunks that cut every axis."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 8, 4, 6), "lora_a": (3, 8, 4, 2), "lora_b": (3, 2, 6)}
    leaves = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays = {}
    for name, value in leaves.items():
        spec = {"driver": "zarr", "kvstore": (tmp_path / name).as_uri() + "/"}
        chunks = ts.ChunkLayout(read_chunk_shape=[2, 3, 2, 4][: value.ndim])
        arrays[f"layers.out.{name}"] = ts.open(
            spec, create=True, dtype=ts.float32, shape=value.shape, chunk_layout=chunks
        ).result()
        arrays[f"layers.out.{name}"].write(value).result()
    (view,) = merged_arrays(arrays, LORA).values()
    whole = merged({"layers": {"out": leaves}}, LORA)["layers"]["out"]["kernel"]
    np.testing.assert_allclose(view.read().result(), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(view[1:, 2:5, :, 3:].read().result(), whole[1:, 2:5, :, 3:], rtol=1e-5, atol=1e-6)
    assert view.chunk_layout.read_chunk.shape == (2, 3, 2, 4)


# ---- where it begins


def begin(config: RunConfig, base: Path, directory: Path, **changes) -> dict[str, np.ndarray]:
    """Return the weights that a fine-tune begins with: its rate is as good as none."""
    optim = replace(config.optim, lr=1e-30, weight_decay=0.0)
    train(tuning(config, base, steps=3, **{"optim": optim, **changes}), directory)
    return weights(directory, 3)


def test_a_fine_tune_begins_with_the_weights_of_a_step_and_nothing_else(config, base, tmp_path):
    directory, _ = base
    for step in (2, 4):
        init = InitFrom(str(directory), step, what="weights")
        run = replace(tuning(config, directory, steps=3, optim=replace(config.optim, lr=1e-30)), init_from=init)
        result = train(run, tmp_path / str(step))
        for name, w in weights(directory, step).items():
            np.testing.assert_array_equal(weights(tmp_path / str(step), 3)[name], w, err_msg=name)
        assert (result.steps, result.tokens, result.tokens_paid) == (3, *[3 * config.tokens_per_step] * 2)
    state = saved(tmp_path / "4", 3)
    (count,) = (value for name, value in state.items() if name.endswith("count"))
    assert state["step"] == count == 3


def test_a_folder_of_weights_is_begun_with_as_the_run_it_comes_from(config, base, tmp_path):
    export(saved_model(base[0]), tmp_path / "folder", "float32")
    found = begin(config, tmp_path / "folder", tmp_path / "run")
    for name, w in weights(base[0], 4).items():
        np.testing.assert_array_equal(found[name], w, err_msg=name)
    assert load_config(tmp_path / "run" / "config.json").init_from.step == 0


def test_a_tuned_run_is_tuned_again(config, base, tmp_path):
    train(tuning(config, base[0], LORA), tmp_path / "lora")
    found = begin(config, tmp_path / "lora", tmp_path / "again", tune=replace(LORA, lora_rank=3))
    model = saved_model(tmp_path / "lora")
    for name, w in named(model.read(model.layout())).items():
        np.testing.assert_array_equal(found[name], w, err_msg=name)


def test_a_context_of_its_own(config, base, tmp_path):
    longer = begin(config, base[0], tmp_path / "longer", model=replace(MODEL, context=36, rope_theta=5e4))
    np.testing.assert_array_equal(longer["embedding"], weights(base[0], 4)["embedding"])
    learned = replace(config, model=replace(MODEL, positions="learned"))
    train(learned, tmp_path / "learned")
    shorter = begin(learned, tmp_path / "learned", tmp_path / "shorter", model=replace(learned.model, context=16))
    np.testing.assert_array_equal(shorter["positions"], weights(tmp_path / "learned", 4)["positions"][:16])


def test_the_fingerprint_tells_the_weights_and_not_the_place(config, base, tmp_path):
    directory, result = base
    prints = set()
    shutil.copytree(directory, tmp_path / "moved")
    export(saved_model(directory), tmp_path / "folder", "bfloat16")
    origins = {"base": (directory, 0), "moved": (tmp_path / "moved", 4), "early": (directory, 2)}
    for name, (origin, step) in (origins | {"folder": (tmp_path / "folder", 0)}).items():
        run = tuning(config, directory, steps=3)
        train(replace(run, init_from=InitFrom(str(origin), step, what="weights")), tmp_path / name / "run")
        begun = load_config(tmp_path / name / "run" / "config.json")
        prints.add(fingerprint(begun))
        found = from_json(Result, json.loads((tmp_path / name / "run" / "result.json").read_text()))
        assert found.fingerprint == fingerprint(begun)
        if name != "folder":
            assert begun.init_from.trajectory == result.fingerprint
    assert len(prints) == 3  # base and moved ask the same


def test_resumed_is_uninterrupted_bit_for_bit_also_without_the_origin(config, base, tmp_path, monkeypatch):
    shutil.copytree(base[0], tmp_path / "base")
    run = replace(tuning(config, base[0], LORA, steps_per_call=1), init_from=InitFrom("base", what="weights"))
    train(run, tmp_path / "whole")
    save = Checkpoints.save

    def save_and_be_terminated(self, step, *values):
        save(self, step, *values)
        if step == 2:
            monkeypatch.undo()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("gptjax.run.loop.Checkpoints.save", save_and_be_terminated)
    with pytest.raises(Preempted):
        train(run, tmp_path / "twice")
    shutil.rmtree(tmp_path / "base")
    result = train(run, tmp_path / "twice")
    ours, theirs = saved(tmp_path / "twice", 4), saved(tmp_path / "whole", 4)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert train(run, tmp_path / "twice") == result  # finished, and its origin gone


def test_what_cannot_be_begun_with_is_refused_in_a_line(config, base, tmp_path):
    directory, _ = base
    run = tuning(config, directory)
    (tmp_path / "empty").mkdir()
    bad = {
        "neither a run nor": replace(run, init_from=InitFrom("empty", what="weights")),
        "has no seal": replace(run, init_from=InitFrom(str(directory), 3, what="weights")),
        "not 0123": replace(run, init_from=InitFrom(str(directory), trajectory="0123", what="weights")),
        r"layers.mlp.down.kernel is of shape \(2, 32, 16\).*\(2, 64,": replace(run, model=replace(MODEL, d_mlp=32)),
        r"layers.mlp.gate.kernel is absent.*of shape": replace(run, model=replace(MODEL, gated=False)),
        "model.activation is 'gelu'": replace(run, model=replace(MODEL, activation="gelu")),
        "model.rope_theta": replace(run, model=replace(MODEL, rope_theta=5e5)),
        "'nothing' names none of embedding, ": replace(run, tune=TuneConfig(frozen=("nothing",))),
        "'head' names none of layers.attention": replace(run, tune=replace(LORA, lora_targets=("head",))),
        "leaves nothing to train": replace(run, tune=TuneConfig(frozen=("*",))),
    }
    for words, wrong in bad.items():
        with pytest.raises(BadInput, match=words) as error:
            train(wrong, tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists(), words
    with pytest.raises(BadInput, match=r"another tokenizer; set data\.tokenizer to"):
        check_origin(with_resolved_origin(run, tmp_path / "run"), tmp_path / "run", SimpleNamespace(digest="other"))
    for settings, words in (({"lora_rank": -1}, "lora_rank -1"), ({"lora_rank": 1, "frozen": ("a",)}, "leave it out")):
        with pytest.raises(BadInput, match=words):
            TuneConfig(**settings)


def test_an_origin_that_changed_is_not_taken_for_the_one_before(config, base, tmp_path):
    run = tuning(config, base[0], steps=3)
    train(run, tmp_path / "run")
    other = replace(run, init_from=replace(run.init_from, run=str(tmp_path / "other")))
    train(replace(config, seed=1), tmp_path / "other")
    with pytest.raises(BadInput, match="another config"):
        train(other, tmp_path / "run")


def test_a_sweep_of_fine_tunes_branches_off_a_tuned_trunk(config):
    optim = replace(config.optim, schedule="wsd")
    sizes = {"sizes": (16,), "shape": lambda _: MODEL, "horizons": (16384.0, 32768.0)}
    rules = {"lr": 1e-3, "batch_tokens": 256.0, "tokens_per_param": (0.1, 1e3)}
    trunk, *cells = make_plan(SweepConfig(base=tuning(config, Path("base"), LORA, optim=optim), **sizes, **rules)).runs
    assert trunk.config.init_from.what == "weights" and trunk.flops_paid == pytest.approx(
        0.8 * cells[1].flops, rel=0.05
    )
    for cell in cells:
        assert cell.config.init_from.what == "state" and cell.flops_paid == pytest.approx(0.2 * cell.flops, rel=0.1)


def test_what_was_asked_before_is_asked_as_before(config):
    """Fingerprints and config files from before fine-tuning was there."""
    old = to_json(RunConfig(init_from=InitFrom("a", 3, "t")))
    del old["tune"], old["init_from"]["what"], old["rules"]["lora"]
    assert fingerprint(from_json(RunConfig, old)) == "c6f329c6ed2a986f"
    assert fingerprint(RunConfig()) == "af8843969b3dc02e"
    assert fingerprint(replace(config, tune=LORA)) != fingerprint(config)
