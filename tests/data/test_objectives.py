"""An objective hides what it says, weighs what it hides, and draws the same for a window whoever asks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.feed import prefetch
from gptjax.data.loader import DataConfig, Loader, Source, validation_batches
from gptjax.data.objectives import OBJECTIVES, Causal, Masked, Objective, PrefixLM, Reading, halves, objective_label
from gptjax.data.store import build_store
from gptjax.errors import BadInput
from gptjax.fingerprint import fingerprint
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.run.loop import train
from gptjax.sharding import MeshConfig
from gptjax.train.optim import OptimConfig

BOS, V, T, N = 3, 50, 24, 400
DRAWN = {"masked": Masked(), "often": Masked(rate=0.5, keep=0.2, swap=0.3), "prefix": PrefixLM()}
ALL = {"causal": Causal(), **DRAWN}
drawn = pytest.mark.parametrize("objective", DRAWN.values(), ids=DRAWN)
every = pytest.mark.parametrize("objective", ALL.values(), ids=ALL)


def windows(n: int = N, read_only: float = 0.0) -> np.ndarray:
    """Return random windows, a share of whose tokens is read and not predicted."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(V, size=(n, T + 1))
    return (tokens + V * (rng.random(tokens.shape) < read_only)).astype(np.int32)


def read(objective: Objective, tokens: np.ndarray, seed: int = 0, first: int = 0, separate: bool = False):
    return Reading(objective, BOS, V, separate)(tokens, halves(first + np.arange(len(tokens))), seed)


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ---- what each asks


def test_causal_predicts_the_next_token_of_all_that_count():
    tokens = windows(read_only=0.3)
    batch = read(Causal(), tokens)
    assert batch.prefix is None and batch.segments is None
    np.testing.assert_array_equal(batch.inputs, tokens[:, :-1] % V)
    np.testing.assert_array_equal(batch.targets, tokens[:, 1:] % V)
    np.testing.assert_array_equal(batch.weights, tokens[:, 1:] < V)


@pytest.mark.parametrize(
    "objective",
    [Masked(), Masked(rate=0.4, keep=0.2, swap=0.3), Masked(rate=0.5, keep=0.0, swap=0.0)],
    ids=objective_label,
)
def test_a_masked_token_is_hidden_kept_or_swapped_as_often_as_said(objective):
    tokens, o = windows(4000), objective
    batch = read(o, tokens)
    tokens, chosen = tokens[:, :-1], batch.weights == 1
    assert batch.prefix is None and set(np.unique(batch.weights)) == {0, 1}
    np.testing.assert_array_equal(batch.targets, tokens)
    np.testing.assert_array_equal(batch.inputs[~chosen], tokens[~chosen])
    assert 0 <= batch.inputs.min() and batch.inputs.max() == V  # the mask is the first id above the tokenizer's
    hidden, kept = batch.inputs[chosen] == V, batch.inputs[chosen] == tokens[chosen]

    def about(share, n):
        return pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n) + 1e-12)

    assert chosen.mean() == about(o.rate, chosen.size)
    assert hidden.mean() == about(1 - o.keep - o.swap, chosen.sum())
    assert kept.mean() == about(o.keep + o.swap / V, chosen.sum())  # a random token may be the same
    swapped = batch.inputs[chosen][~hidden & ~kept]
    if o.swap:
        counts = np.bincount(swapped, minlength=V) / len(swapped)
        assert counts == about(1 / V, len(swapped)) and len(counts) == V
    for axis in (0, 1):  # no row and no position is spared or preferred
        share, n = chosen.mean(axis), chosen.shape[axis]
        assert share.std() == pytest.approx(np.sqrt(o.rate * (1 - o.rate) / n), rel=0.5)


def test_the_extremes_of_masking():
    tokens = windows()
    for objective, inputs in (
        (Masked(rate=0.3, keep=1.0, swap=0.0), tokens[:, :-1]),
        (Masked(rate=0.999999, keep=0.0, swap=0.0), V),
    ):
        np.testing.assert_array_equal(read(objective, tokens).inputs, np.broadcast_to(inputs, (N, T)))
    swapped = read(Masked(rate=0.3, keep=0.0, swap=1.0), tokens)
    assert swapped.inputs.max() < V and 0.2 < swapped.weights.mean() < 0.4


def test_a_prefix_is_seen_whole_and_what_follows_it_is_predicted():
    tokens = windows()
    batch = read(PrefixLM(), tokens)
    np.testing.assert_array_equal(batch.inputs, tokens[:, :-1])
    np.testing.assert_array_equal(batch.targets, tokens[:, 1:])
    length, place = batch.prefix.sum(-1), np.arange(T)
    np.testing.assert_array_equal(batch.prefix, place < length[:, None])
    seen = place + 1 < length[:, None]  # targets that stand in the prefix
    np.testing.assert_array_equal(batch.weights, ~seen)
    assert set(length) == set(range(1, T))  # something is seen, and two tokens or more are predicted
    assert np.bincount(length)[1:] == pytest.approx(N / (T - 1), abs=5 * np.sqrt(N / (T - 1)))
    alone = Reading(PrefixLM(), BOS, V)(tokens[:, :2], halves(np.arange(N)), 0)
    assert alone.prefix.all() and alone.weights.all()


@every
def test_what_is_only_read_is_never_predicted(objective):
    tokens = windows(read_only=0.4)
    batch, free = read(objective, tokens), read(objective, tokens % V)
    answers = tokens[:, :-1] < V if isinstance(objective, Masked) else tokens[:, 1:] < V
    np.testing.assert_array_equal(batch.weights, free.weights * answers)
    np.testing.assert_array_equal(batch.targets, free.targets)
    assert batch.weights.any() and batch.inputs.max() <= V
    if isinstance(objective, Masked):
        hidden = batch.inputs != tokens[:, :-1] % V
        assert (batch.weights[hidden] == 1).all()  # a prompt stands as it is


@every
def test_segments_count_documents_also_where_their_first_token_is_hidden(objective):
    tokens = windows()
    batch = read(objective, tokens, separate=True)
    np.testing.assert_array_equal(batch.segments, np.cumsum(tokens[:, :-1] == BOS, -1))
    assert batch.segments.dtype == np.int32
    assert_same(replace(batch, segments=None), read(objective, tokens))


# ---- what is drawn


@every
def test_a_window_is_drawn_alike_in_any_company_on_host_and_device(objective):
    tokens = windows(read_only=0.2)
    whole = read(objective, tokens, seed=7)
    rows = np.array([5, 399, 0, 17])
    some = Reading(objective, BOS, V)(tokens[rows], halves(rows), 7)
    assert_same(some, jax.tree.map(lambda x: x[rows], whole))
    stacked = Reading(objective, BOS, V)(tokens.reshape(8, 50, -1), halves(np.arange(N)).reshape(8, 50, 2), 7)
    assert_same(stacked, jax.tree.map(lambda x: x.reshape(8, 50, T), whole))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(whole))
    there = jax.jit(Reading(objective, BOS, V), static_argnums=2)(jnp.asarray(tokens), halves(np.arange(N)), 7)
    assert same(there, whole) and {x.dtype for x in jax.tree.leaves(there)} <= {np.dtype(t) for t in ("i4", "f4", "?")}


@drawn
def test_seed_and_number_of_a_window_decide_and_both_halves_of_a_number(objective):
    tokens = np.repeat(windows(1), N, axis=0)
    batch = read(objective, tokens)
    assert not same(jax.tree.map(lambda x: x[:-1], batch), jax.tree.map(lambda x: x[1:], batch))
    assert len(np.unique(batch.weights, axis=0)) > (300 if isinstance(objective, Masked) else T / 2)
    others = [read(objective, tokens, seed=1), *(read(objective, tokens, first=i) for i in (1, N, 2**32, 2**40))]
    for i, one in enumerate([batch, *others]):
        assert not any(same(one, other) for other in [batch, *others][i + 1 :])
    assert_same(read(objective, tokens[1:], first=1), jax.tree.map(lambda x: x[1:], batch))
    assert halves(np.array([2**40 + 5])).tolist() == [[2**8, 5]]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build_store("markov:states=4,documents=60,length=500", "bytes", tmp_path_factory.mktemp("store") / "s")


def loader_of(store, objective, batch=8, seed=3):
    return Loader((store,), (1.0,), batch, 16, seed, True, objective)


@every
def test_a_row_is_the_same_whoever_asks_for_it_and_a_resumed_run_reads_on(store, objective):
    loader = loader_of(store, objective)
    whole = loader.read(range(6), np.arange(8))
    for step in (0, 5):
        assert_same(loader(step, np.arange(8)), jax.tree.map(lambda x, step=step: x[step], whole))
        mine = loader_of(store, objective)(step, np.array([6, 1, 3]))  # as another process has it
        assert_same(mine, jax.tree.map(lambda x, step=step: x[step, [6, 1, 3]], whole))
    sharding = NamedSharding(make_mesh(MeshConfig()), jax.sharding.PartitionSpec(None, "data"))
    begun, resumed = (list(prefetch(loader, [range(a, 6)], sharding)) for a in (0, 4))
    assert_same(resumed[0], jax.tree.map(lambda x: x[4:], begun[0]))
    assert_same(jax.tree.map(np.asarray, begun[0]), whole)


@drawn
def test_an_epoch_draws_anew_for_each_of_its_windows(store, objective):
    loader = loader_of(store, objective, batch=1)
    (n,) = loader.n_windows
    _, number = loader.sequences(range(2 * n), np.arange(1))
    first, second = (jax.tree.map(lambda x, by=by: x[by, 0], loader.read(range(2 * n), np.arange(1)))
                     for by in (np.argsort(number[:n]), n + np.argsort(number[n:])))  # fmt: skip
    np.testing.assert_array_equal(first.targets, second.targets)
    assert (first.weights != second.weights).any(-1).mean() > 0.8


@every
def test_validation_is_the_same_for_every_run_and_batch_size(store, objective):
    whole = validation_batches(store, 16, 16, 16, True, objective=objective)
    cut = validation_batches(store, 16, 4, 16, True, objective=objective)
    assert_same(jax.tree.map(lambda x: x.reshape(1, 16, 16), cut), whole)


# ---- as a config


def test_labels_say_what_is_asked():
    assert (
        [objective_label(kind()) for kind in OBJECTIVES.values()] == list(OBJECTIVES) == ["causal", "prefix", "masked"]
    )
    assert objective_label(Masked(rate=0.3)) == "masked (rate=0.3)"
    assert objective_label(Masked(rate=0.3, swap=0.0)) == "masked (rate=0.3, swap=0.0)"
    assert all(isinstance(kind(), Objective) and kind().kind == name for name, kind in OBJECTIVES.items())


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"rate": 1.0}, {"rate": float("nan")}, {"keep": -0.1}, {"swap": -1.0}, {"keep": 0.95}],
    ids=str,
)  # fmt: skip
def test_impossible_shares_are_refused_in_a_line(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))) as error:
        Masked(**wrong)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return RunConfig(
        model=GPTConfig(vocab_size=258, context=32, d_model=16, n_layers=1, n_heads=2, init_std=0.0, positions="rope"),
        data=DataConfig((Source("markov:states=4,documents=200,length=300"),), tokenizer="bytes", cache=cache),
        optim=OptimConfig(lr=2e-2, warmup=4),
        batch=16,
        steps=24,
        steps_per_call=4,
        evaluate=EvalConfig(sequences=32, batch=8),
        save=SaveConfig(every=0),
        trackers=(),
    )


def asking(config: RunConfig, objective: Objective) -> RunConfig:
    return replace(config, data=replace(config.data, objective=objective))


@every
def test_each_is_learned_alike_on_any_mesh(config, tmp_path, objective):
    run = asking(replace(config, mesh=MeshConfig(data=8)), objective)
    split = replace(run, mesh=MeshConfig(data=2, fsdp=2, tensor=2), steps_per_call=3, accumulate=2)
    found, other = (train(each, tmp_path / name) for name, each in (("run", run), ("split", split)))
    assert found.objective == objective_label(objective) and found.status == "done"
    assert found.loss < np.log(257) - 1  # 24 steps: letters of a language of 4 states are told from all others
    assert other.loss == pytest.approx(found.loss, rel=1e-4) and other.fingerprint == found.fingerprint
    assert len({fingerprint(asking(config, o)) for o in ALL.values()}) == len(ALL)


def test_a_mask_needs_an_id_of_its_own(config, tmp_path):
    short = replace(config, model=replace(config.model, vocab_size=257))
    with pytest.raises(BadInput, match="257 is below the tokenizer's 257 and 1 of the objective masked; set it to 258"):
        train(asking(short, Masked()), tmp_path / "run")
    assert not (tmp_path / "run").exists()
