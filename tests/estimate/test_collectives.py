"""Collectives read from compiled programs whose collectives are known by construction, on 8 simulated devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.estimate.collectives import axes_of, collectives
from gptjax.mesh import make_mesh
from gptjax.sharding import MeshConfig

MESH = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
SIZES = dict(MESH.shape)
FSDP, TENSOR = ((0, 2, 4, 6), (1, 3, 5, 7)), ((0, 1), (2, 3), (4, 5), (6, 7))


def shape(dims, *split):
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(MESH, P(*split)))


def found(f, *args):
    listed, unknown = collectives(jax.jit(f).lower(*args).compile().as_text(), 8)
    assert unknown == 0
    return listed


@pytest.mark.parametrize(("layers", "parts"), [(5, 1), (3, 7)])
def test_weights_gathered_in_a_scan_count_once_for_each_trip(layers, parts):
    gathered = NamedSharding(MESH, P())

    def step(x, weights):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, gathered)), None

        return jax.lax.scan(lambda x, _: (jax.lax.scan(layer, x, weights)[0], None), x, None, length=parts)[0]

    (only,) = found(step, shape((16, 64), "fsdp", None), shape((layers, 64, 64), None, "fsdp", None))
    assert (only.kind, only.runs, only.bytes) == ("all-gather", layers * parts, 64 * 64 * 4)
    assert axes_of(only.groups, SIZES) == ("fsdp",) and only.devices == 4


@pytest.mark.parametrize(
    ("axis", "kind", "f", "size"),
    [
        ("fsdp", "all-reduce", lambda x, a: jax.lax.psum(x, a), 1),
        ("tensor", "all-reduce", lambda x, a: jax.lax.psum(x, a), 1),
        ("fsdp", "all-gather", lambda x, a: jax.lax.all_gather(x, a), 4),
        ("tensor", "all-gather", lambda x, a: jax.lax.all_gather(x, a), 2),
        ("fsdp", "reduce-scatter", lambda x, a: jax.lax.psum_scatter(x, a, tiled=True), 1),
        ("fsdp", "all-to-all", lambda x, a: jax.lax.all_to_all(x, a, 0, 0, tiled=True), 1),
        ("tensor", "collective-permute", lambda x, a: jax.lax.ppermute(x, a, [(0, 1), (1, 0)]), 1),
        (("fsdp", "tensor"), "all-reduce", lambda x, a: jax.lax.psum(x, a), 1),
    ],
)
def test_each_kind_has_its_bytes_and_its_axis(axis, kind, f, size):
    axes = (axis,) if isinstance(axis, str) else axis
    local = 8 * 12 * 4
    everywhere = partial(jax.shard_map, mesh=MESH, in_specs=P("fsdp", "tensor"), out_specs=P("fsdp", "tensor"))
    (only,) = found(
        everywhere(lambda x: 2 * f(x + 1, axis).reshape(-1, 12), check_vma=False), shape((32, 24), *MESH_AXES)
    )
    assert (only.kind, only.runs, only.bytes) == (kind, 1, size * local)
    assert axes_of(only.groups, SIZES) == axes


MESH_AXES = ("fsdp", "tensor")


def test_gradients_of_a_split_batch_are_reduced_over_what_splits_it():
    def loss(w, x):
        return jnp.square(x @ w).mean()

    listed = found(jax.grad(loss), shape((64, 32)), shape((128, 64), ("fsdp", "tensor"), None))
    assert {c.kind for c in listed} == {"all-reduce"}
    assert sum(c.bytes * c.runs for c in listed) == 64 * 32 * 4
    assert axes_of(listed[0].groups, SIZES) == ("fsdp", "tensor")


def written(groups: str, kind: str = "all-reduce") -> str:
    """A program of one collective, as the TPU compiler writes one."""
    one = f"f32[4,8]{{1,0:T(4,128)(2,1)S(1)}} {kind}(%p), channel_id=3, {groups}, use_global_device_ids=true"
    return f"ENTRY %main (p: f32[4,8]) -> f32[4,8] {{\n  ROOT %c = {one}\n}}\n"


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", FSDP),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", FSDP),
        ("replica_groups=[4,2]<=[8]", TENSOR),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", FSDP),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", TENSOR),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", TENSOR),
        ("replica_groups=mesh['a'=8] {'a':(1)4}", FSDP),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", FSDP),
        ("replica_groups={}", (tuple(range(8)),)),
        ("replica_groups=something new", ()),
    ],
)
def test_replica_groups_are_read_in_every_way_of_writing_them(text, groups):
    (only,), _ = collectives(written(text), 8)
    assert {frozenset(g) for g in only.groups} == {frozenset(g) for g in groups} and only.bytes == 4 * 8 * 4
    assert axes_of(only.groups, SIZES) == {FSDP: ("fsdp",), TENSOR: ("tensor",), (): ()}.get(groups, ("fsdp", "tensor"))


CHAIN = """
%overlapped_start (p: f32[8]) -> f32[64] {
  %g = f32[64]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], frontend_attributes={chain_id="2"}
}

%overlapped_step (p: f32[8]) -> f32[64] {
  %g = f32[64]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], frontend_attributes={chain_id="2"}
}

%inner (t: (f32[8])) -> (f32[8]) {
  %f = f32[64]{0} fusion(%p), kind=kCustom, calls=%overlapped_step
  %s = (f32[6,2]{1,0:T(8,128)}, f32[6,2]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1}}
}

%inner_ends (t: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%all-reduce-scatter (p: bf16[16,4]) -> bf16[2,4] {
  %r = bf16[16,4]{1,0} all-reduce(%p), channel_id=9, replica_groups=[1,8]<=[8], to_apply=%sum
}

%outer (t: (s32[])) -> (s32[]) {
  %a = f32[64]{0} fusion(%p), kind=kCustom, calls=%overlapped_start
  %w = (f32[8]) while(%t), condition=%inner_ends, body=%inner
  %b = bf16[2,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter
}

%outer_ends (t: (s32[])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (t: (s32[])) -> (s32[]) {
  ROOT %w = (s32[]) while(%t), condition=%outer_ends, body=%outer, backend_config={"known_trip_count":{"n":"12"}}
}
"""


def test_what_the_tpu_compiler_writes_its_own_way():
    listed, unknown = collectives(CHAIN, 8)
    facts = {c.kind: (c.runs, c.bytes) for c in listed}
    assert len(listed) == 3 and unknown == 0
    assert facts["all-gather"] == (12, 64 * 4)  # begun once a trip of the outer loop, overlapped four times
    assert facts["collective-permute"] == (48, 6 * 2 * 4)
    assert facts["reduce-scatter"] == (12, 16 * 4 * 2)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("all-gather-start", "((f32[2,8]{1,0}, bf16[4]{0}), (f32[8,8]{1,0}, bf16[16]{0}))"),
        ("reduce-scatter-start", "((f32[8,8]{1,0}, bf16[16]{0}), (f32[2,8]{1,0}, bf16[4]{0}))"),
        ("all-reduce-start", "(f32[8,8]{1,0}, bf16[16]{0})"),
        ("all-reduce-start", "((f32[8,8]{1,0}, bf16[16]{0}), (f32[8,8]{1,0}, bf16[16]{0}))"),
    ],
)
def test_an_asynchronous_start_carries_the_whole_once(kind, shape):
    start = f"%s = {shape} {kind}(%x, %y), channel_id=3, replica_groups=[2,4]<=[8]"
    (only,), _ = collectives(f"ENTRY %main (p: f32[4]) -> f32[4] {{\n  {start}\n}}\n", 8)
    assert (only.kind, only.bytes) == (kind.removesuffix("-start"), 8 * 8 * 4 + 16 * 2)


@pytest.mark.parametrize(
    ("slices", "kind", "expected"),
    [
        ("{1,2}x{0:3}", "ALL_REDUCE", ("all-reduce", 2, 64)),
        ("{0:3}x{0:3}", "ALL_GATHER", ("all-gather", 4, 256)),
        ("{1,2}x{0:3}", "ONE_TO_ONE", ("collective-permute", 2, 64)),
    ],
)
def test_what_slices_send_each_other_through_their_hosts(slices, kind, expected):
    attributes = f'_xla_megascale_target="{slices}",_xla_megascale_transfer_type="{kind}"'
    send = f"%s = (bf16[4,8]{{1,0}}, u32[], token[]) send(%x, %t), frontend_attributes={{{attributes}}}"
    (only,), _ = collectives(f"ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {{\n  {send}\n}}\n", 4)
    assert (only.kind, only.slices, only.bytes) == expected and only.runs == 1


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    listed, unknown = collectives(CHAIN.replace('"known_trip_count":{"n":"12"}', ""), 8)
    assert unknown == 1 and {c.kind: c.runs for c in listed}["collective-permute"] == 4


def test_a_group_crosses_the_axes_along_which_its_devices_differ():
    sizes = {"data": 2, "fsdp": 3, "tensor": 4}
    ids = np.arange(24).reshape(2, 3, 4)
    assert axes_of((tuple(ids[0, :, 1].tolist()),), sizes) == ("fsdp",)
    assert axes_of((tuple(ids[:, 1, :].ravel().tolist()),), sizes) == ("data", "tensor")
