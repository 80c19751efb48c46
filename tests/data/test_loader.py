"""The order of the data is a function of (seed, step), whatever the host count."""

import numpy as np
import pytest

from gptjax.data.loader import BLOCK, Loader, shuffled, validation_batches
from gptjax.data.store import build_store
from gptjax.errors import BadInput


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    where = tmp_path_factory.mktemp("stores")
    names = ("markov:states=4,documents=60,length=500", "markov:states=6,seed=1,documents=40,length=300")
    return tuple(build_store(name, "bytes", where / str(i)) for i, name in enumerate(names))


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000, 4097])
def test_shuffle_is_a_bijection_that_depends_on_the_seed(n):
    order = shuffled(np.arange(n), n, (0, 1))
    assert (np.sort(order) == np.arange(n)).all()
    if n > 60:
        assert (order != shuffled(np.arange(n), n, (0, 2))).any() and (order != np.arange(n)).any()


def test_an_epoch_reads_every_window_once(stores):
    loader = Loader(stores[:1], (1.0,), batch=4, seq_len=32, seed=3)
    n = (stores[0].n_tokens("train") - 1) // 32
    windows = [tuple(row) for step in range(-(-n // 4)) for row in loader(step, np.arange(4)).inputs.tolist()]
    assert len(set(windows[:n])) == n
    assert loader.epochs(n // 4) == pytest.approx(1, abs=4 / n)


def test_a_row_is_the_same_whoever_asks_for_it(stores):
    loader = Loader(stores, (3.0, 1.0), 8, 16, 5)
    for step in range(3):
        whole = loader(step, np.arange(8)).inputs
        np.testing.assert_array_equal(whole[[6, 1, 3]], loader(step, np.array([6, 1, 3])).inputs)


def test_targets_are_the_next_inputs_and_segments_count_documents(stores):
    batch = Loader(stores[:1], (1.0,), 4, 64, 0, separate_documents=True)(0, np.arange(4))
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    bos = stores[0].tokenizer.bos
    np.testing.assert_array_equal(np.diff(batch.segments, axis=1) == 1, batch.inputs[:, 1:] == bos)


def test_a_mixture_keeps_its_weights_exactly_in_every_block(stores):
    small = set(np.unique(stores[0].windows("train", np.arange(0, 20000, 50), 50)))
    loader = Loader(stores, (3.0, 1.0), BLOCK, 16, 0)
    for step in range(2):
        from_second = sum(not set(row) <= small for row in loader(step, np.arange(BLOCK)).inputs.tolist())
        assert from_second == pytest.approx(BLOCK / 4, abs=12)  # a window of the second may by chance use few symbols


def test_validation_windows_are_the_same_for_every_batch_size(stores):
    a = validation_batches(stores[0], 8, 8, 16, False).inputs.reshape(-1, 16)
    b = validation_batches(stores[0], 8, 2, 16, False).inputs.reshape(-1, 16)
    np.testing.assert_array_equal(a, b)


def test_a_corpus_shorter_than_a_window_is_refused(stores):
    with pytest.raises(BadInput, match="fewer than one window"):
        Loader(stores[:1], (1.0,), 4, 10**6, 0)
    with pytest.raises(BadInput, match="smaller eval batch"):
        validation_batches(stores[0], 8, 8, 10**6, False)
