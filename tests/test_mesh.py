"""Every layout computes what one device computes: the same losses over several steps, the same gradients."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import numpy as np
import optax
import pytest

from gptjax.batch import Batch
from gptjax.config import RunConfig
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.mesh import make_mesh, mesh_sizes, outermost
from gptjax.models.gpt import GPTConfig
from gptjax.run.checks import check_shapes
from gptjax.sharding import Layout, MeshConfig, Rules, use
from gptjax.train.state import abstract_state, new_state
from gptjax.train.step import train_steps

LLAMA = GPTConfig(
    vocab_size=61, context=16, d_model=32, n_layers=4, n_heads=4, n_kv_heads=2, positions="rope", norm="rmsnorm",
    gated=True, activation="silu", bias=False, tied=False, init_std=0.2,
)  # fmt: skip
GPT2 = GPTConfig(vocab_size=61, context=16, d_model=32, n_layers=4, n_heads=4, init_std=0.2)
B, S = 16, 3  # sequences a step, steps


@dataclass(frozen=True)
class Case:
    mesh: MeshConfig
    rules: Rules = Rules()
    model: GPTConfig = LLAMA
    microbatches: int = 0
    remat: str = "none"
    accumulate: int = 1
    segments: bool = False  # documents kept apart


RING, STREAM = Rules(keys="context"), Rules(stream=("context", "tensor"))
CASES = {
    "data": Case(MeshConfig(data=8)),
    "fsdp": Case(MeshConfig(data=1, fsdp=8), remat="full", segments=True),
    "data-fsdp-tensor": Case(MeshConfig(data=2, fsdp=2, tensor=2), model=GPT2, accumulate=2),
    "sequence": Case(MeshConfig(data=2, fsdp=2, tensor=2), STREAM, remat="dots"),
    "gathered-keys": Case(MeshConfig(data=2, context=4), model=GPT2, segments=True),
    "ring": Case(MeshConfig(data=2, context=4), RING, segments=True),
    "ring-fsdp-tensor": Case(
        MeshConfig(data=1, fsdp=2, context=2, tensor=2), Rules(keys="context", stream=("context", "tensor"))
    ),
    "pipeline": Case(MeshConfig(data=2, pipeline=4), model=GPT2, microbatches=8, segments=True, remat="full"),
    "pipeline-fsdp-tensor": Case(MeshConfig(data=1, pipeline=2, fsdp=2, tensor=2), accumulate=2),
    "pipeline-ring": Case(MeshConfig(data=2, pipeline=2, context=2), RING, microbatches=2, segments=True),
}


def batches(segments: bool) -> Batch:
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, 61, (2, S, B, 16), dtype=np.int32)
    documents = np.cumsum(rng.random((S, B, 16)) < 0.2, axis=-1, dtype=np.int32) if segments else None
    return Batch(inputs, targets, rng.random((S, B, 16), np.float32), documents)


def descend(case: Case, devices: int, dtype: str = "float32"):
    """Take S steps down the gradient; return the losses and how far each weight went, S gradients."""
    execution = Execution(vocab_multiple=8, microbatches=case.microbatches, remat=case.remat)
    layout, model, optimizer = (
        Layout(make_mesh(case.mesh, jax.devices()[:devices]), case.rules),
        replace(case.model, dtype=dtype).build(execution),
        optax.sgd(1.0),
    )
    shardings = jax.tree.map(lambda s: s.sharding, abstract_state(model, optimizer, layout))
    state = jax.jit(lambda: new_state(jax.random.key(0), model, optimizer), out_shardings=shardings)()
    before = jax.tree.map(np.asarray, state.params)

    def steps(state, batch, rates):
        with use(layout):
            settings = {"model": model, "optimizer": optimizer, "z_loss": 1e-3, "accumulate": case.accumulate}
            return train_steps(state, batch, rates, **settings)

    placed = jax.device_put(batches(case.segments), layout.sharding((None, "batch", "seq")))
    state, metrics = jax.jit(steps, out_shardings=(shardings, layout.replicated))(
        state, placed, np.full(S, 0.1, np.float32)
    )
    return np.asarray(metrics["loss"]), jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, before)


@cache
def on_one_device(model: GPTConfig, segments: bool, dtype: str = "float32"):
    return descend(Case(MeshConfig(), model=model, segments=segments), 1, dtype)


@pytest.mark.parametrize("name", CASES)
def test_a_layout_computes_what_one_device_computes(name, capfd):
    case = CASES[name]
    losses, moved = descend(case, 8)
    expected_losses, expected = on_one_device(case.model, case.segments)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), moved, expected)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["ring-fsdp-tensor", "pipeline-fsdp-tensor"])
def test_a_layout_in_bfloat16_is_as_near_to_float32_as_one_device_in_bfloat16(name):
    case = CASES[name]
    exact_losses, exact = on_one_device(case.model, case.segments)

    def error(run):
        losses, moved = run
        far = [np.linalg.norm(a - b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(exact), strict=True)]
        size = [np.linalg.norm(b) for b in jax.tree.leaves(exact)]
        return np.abs(losses / exact_losses - 1).max(), np.linalg.norm(far) / np.linalg.norm(size)

    ours, theirs = error(descend(case, 8, "bfloat16")), error(on_one_device(case.model, case.segments, "bfloat16"))
    assert 1e-5 < ours[0] < 2 * theirs[0] + 1e-3 and 1e-3 < ours[1] < 1.5 * theirs[1]


def test_meshes_cover_their_devices():
    assert mesh_sizes(MeshConfig(data=2, tensor=-1), 8) == {
        "data": 2,
        "pipeline": 1,
        "fsdp": 1,
        "context": 1,
        "tensor": 4,
    }
    with pytest.raises(BadInput, match="product must be 8"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(BadInput, match="at most one -1"):
        MeshConfig(fsdp=-1)


def test_rules_that_cannot_be_are_refused():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with pytest.raises(BadInput, match=r"rules.mlp names a mesh axis 'tensr'; the axes are data, pipeline"):
        Layout(mesh, Rules(mlp="tensr"))
    with pytest.raises(BadInput, match=r"the rules split \(embed, mlp\) twice by fsdp"):
        Layout(mesh, Rules(mlp=("fsdp", "tensor"))).sharding(("embed", "mlp"))
    run = RunConfig(
        model=LLAMA, execution=Execution(vocab_multiple=8), batch=16, mesh=MeshConfig(data=2, context=2, tensor=2)
    )
    for rules, match in (
        (Rules(keys="context", kv_heads=None), "rules.kv_heads None must be rules.heads, 'tensor'"),
        (Rules(keys="tensor", kv_heads=None, heads=None), "rules.keys 'tensor' must be None or"),
    ):
        with pytest.raises(BadInput, match=match):
            check_shapes(run, Layout(make_mesh(run.mesh), rules))
    for changes, match in (
        ({"mesh": MeshConfig(data=1, pipeline=8)}, "n_layers 4 is not divisible by 8 pipeline stages"),
        ({"mesh": MeshConfig(data=4, pipeline=2)}, "batch of 8 sequences is not divisible by 16 parts"),
        (
            {"mesh": MeshConfig(data=1, context=8), "execution": Execution(attention="cudnn", vocab_multiple=8)},
            "cudnn cannot split",
        ),
        ({"mesh": MeshConfig(data=1, tensor=8)}, "not divisible by its 8 mesh parts"),
    ):
        run = replace(RunConfig(model=LLAMA, execution=Execution(vocab_multiple=8), batch=8), **changes)
        with pytest.raises(BadInput, match=match):
            check_shapes(run, Layout(make_mesh(run.mesh), run.rules))


def test_slices_are_split_by_the_outermost_axes():
    assert outermost((4, 1, 8, 1, 2), 2) == [2, 1, 1, 1, 1]
    assert outermost((1, 4, 8, 1, 2), 8) == [1, 4, 2, 1, 1]
    assert outermost((1, 1, 1, 1, 16), 4) == [1, 1, 1, 1, 4]
