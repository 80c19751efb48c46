"""Batches that devices cut from tokens of their own are those that the host would send."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.data import feed
from gptjax.data.feed import prefetch
from gptjax.data.loader import Loader
from gptjax.data.objectives import Causal, Masked, PrefixLM, objective_label
from gptjax.data.store import build_store
from gptjax.mesh import make_mesh
from gptjax.sharding import Layout, MeshConfig, Rules


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    where = tmp_path_factory.mktemp("stores")
    names = ("markov:states=4,documents=60,length=500", "markov:states=6,seed=1,documents=40,length=300")
    return tuple(build_store(name, "bytes", where / str(i)) for i, name in enumerate(names))


@pytest.mark.parametrize("objective", [Causal(), PrefixLM(), Masked()], ids=objective_label)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("mesh", [MeshConfig(data=1), MeshConfig(data=4, context=2)], ids=str)
def test_batches_cut_on_the_devices_are_those_sent_there(stores, monkeypatch, mesh, separate, objective):
    loader = Loader(stores, (1.0, 2.0), 8, 16, seed=3, separate_documents=separate, objective=objective)
    layout = Layout(make_mesh(mesh, jax.devices()[: mesh.data * mesh.context]), Rules())
    sharding = layout.sharding((None, "batch", "seq"))
    calls = [range(0, 5), range(5, 200), range(200, 201)]
    sent = list(prefetch(loader, calls, sharding))
    monkeypatch.setattr(feed, "may_reside", lambda *_: True)
    cut = list(prefetch(loader, calls, sharding))
    assert [batch.inputs.shape for batch in cut] == [(5, 8, 16), (195, 8, 16), (1, 8, 16)]
    for ours, theirs in zip(jax.tree.leaves(cut), jax.tree.leaves(sent), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype and ours.sharding.is_equivalent_to(theirs.sharding, 3)


@pytest.mark.parametrize("together", [1, 400, 10**6])
def test_calls_read_together_get_the_batches_of_their_own_steps(stores, monkeypatch, together):
    loader = Loader(stores, (1.0, 2.0), batch=4, seq_len=16, seed=3)
    monkeypatch.setattr(feed, "READ_TOKENS", together)
    calls = [range(7, 8), range(8, 10), range(10, 30), *(range(i, i + 1) for i in range(30, 40))]
    batches = list(prefetch(loader, calls, NamedSharding(make_mesh(MeshConfig()), PartitionSpec())))
    for steps, batch in zip(calls, batches, strict=True):
        for of_call, step in zip(batch.inputs, steps, strict=True):
            np.testing.assert_array_equal(of_call, loader(step, np.arange(4)).inputs)


def test_runs_that_read_the_same_tokens_share_them_on_the_device(stores):
    sharding = NamedSharding(make_mesh(MeshConfig()), PartitionSpec())
    a, b = (feed.Resident(Loader(stores, (1.0, 1.0), 8, 16, seed), sharding) for seed in (0, 1))
    other = feed.Resident(Loader(stores[:1], (1.0,), 8, 16, 0), sharding)
    assert a.tokens is b.tokens and len(other.tokens) < len(a.tokens)


def test_only_accelerators_keep_tokens_and_only_small_stores(stores, monkeypatch):
    loader = Loader(stores, (1.0, 1.0), 8, 16, 0)
    here = NamedSharding(make_mesh(MeshConfig()), PartitionSpec())

    class Accelerator:
        is_fully_addressable = True
        mesh = type("Mesh", (), {"devices": np.array([type("Device", (), {"platform": "gpu"})])})

    assert not feed.may_reside(loader, here)
    assert feed.may_reside(loader, Accelerator)
    monkeypatch.setattr("gptjax.data.store.HELD_BYTES", 100)
    assert not feed.may_reside(loader, Accelerator)
