"""Prompts and answers: whole examples in rows, the loss on answers alone, each predicted once."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.corpora import documents, pair_of
from gptjax.data.feed import Resident
from gptjax.data.loader import DataConfig, Loader, Source, open_stores, validation_batches
from gptjax.data.objectives import Causal, Reading, halves
from gptjax.data.pairs import in_rows, lay_out, pack
from gptjax.data.store import build_store, open_store
from gptjax.errors import BadInput
from gptjax.mesh import make_mesh
from gptjax.models.gpt import GPTConfig
from gptjax.run.loop import train
from gptjax.run.metrics import read_metrics
from gptjax.run.validation import Validation
from gptjax.sharding import Layout, MeshConfig, Rules
from gptjax.train.loss import summed_loss
from gptjax.train.optim import OptimConfig
from helpers import needed

T, BOS, V = 24, 256, 257


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"pairs:{path}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Numbers to be written backwards, of all lengths; and what JSON and UTF-8 make hard."""
    rng = np.random.default_rng(0)
    numbers = [str(rng.integers(10 ** rng.integers(1, 10))) for _ in range(400)]
    rows = [{"prompt": f"{n}=", "answer": n[::-1], "more": 1} for n in numbers]
    rows += [{"prompt": "", "answer": "no prompt"}, {"prompt": "no answer", "answer": ""}]
    rows += [{"prompt": 'é"\\', "answer": "\ud800\0"}, {"prompt": "x" * 20, "answer": "fit"}]  # bos and 23: a full row
    return write(tmp_path_factory.mktemp("corpus") / "numbers.jsonl", rows)


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    return build_store(corpus, "bytes", tmp_path_factory.mktemp("stores") / "store")


def examples(corpus: str, split: str) -> list[tuple[bytes, bytes]]:
    return [pair_of(document) for document, where in documents(corpus) if where == split]


def test_a_store_of_pairs_holds_prompts_marked_and_counts_answers(corpus, built):
    for split in ("train", "validation"):
        pairs, facts = examples(corpus, split), built.manifest.splits[split]
        found = built.held(split)
        expected = [token for p, a in pairs for token in [BOS, *(b + V for b in p), *a]]
        np.testing.assert_array_equal(found, expected)
        assert (facts.documents, facts.bytes) == (len(pairs), sum(len(a) for _, a in pairs))
        assert facts.predicted == facts.bytes + len(pairs) and facts.bytes_per_token < 1
    again = open_store(built._where)
    assert again.digest == built.digest and again.manifest == built.manifest and again.manifest.is_pairs
    built.verify()


def decoded(batch) -> list[tuple[bytes, bytes]]:
    """Read the examples back out of rows, by what the loss sees: targets, weights, and where segments begin."""
    found = []
    for inputs, targets, weights in zip(batch.inputs, batch.targets, batch.weights, strict=True):
        starts = [*np.flatnonzero(inputs == BOS), len(inputs)]
        for a, b in itertools.pairwise(starts):
            predicted = weights[a:b] > 0
            if not predicted.any():
                assert b == a + 1, "an example is never predicted, or padding is not bos alone"
                continue
            first = int(np.argmax(predicted))
            assert predicted[first:].all() and targets[b - 1] == BOS, "answer and end, to the end"
            found.append((bytes(targets[a : a + first].tolist()), bytes(targets[a + first : b - 1].tolist())))
    return found


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_example_is_cut_and_every_answer_is_predicted_once(corpus, built, split):
    store = in_rows(built, T)
    n = (store.n_tokens(split) - 1) // T
    windows = store.windows(split, np.arange(n) * T, T + 1)
    batch = Reading(Causal(), BOS, V)(windows, halves(np.arange(n)), 0)
    assert sorted(decoded(batch)) == sorted(examples(corpus, split))
    assert batch.weights.sum() == built.manifest.splits[split].predicted
    assert batch.inputs.max() < V and batch.targets.max() < V
    if split == "train":
        waste = 1 - built.n_tokens(split) / (n * T)
        assert waste < 0.1


def test_an_epoch_of_the_loader_reads_every_example_once_on_host_and_device(corpus, built):
    loader = Loader((in_rows(built, T),), (1.0,), batch=1, seq_len=T, seed=3, separate_documents=True)
    (n,) = loader.n_windows
    batch = loader.read(range(n), np.arange(1))
    flat = jax.tree.map(lambda x: x[:, 0], batch)
    assert sorted(decoded(flat)) == sorted(examples(corpus, "train"))
    crossing = (flat.segments[:, 1:] != flat.segments[:, :-1]) != (flat.inputs[:, 1:] == BOS)
    assert not crossing.any()
    sharding = Layout(make_mesh(MeshConfig(), jax.devices()[:1]), Rules()).sharding((None, "batch", "seq"))
    there = Resident(loader, sharding)([range(n)])[0]
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(batch), strict=True):
        np.testing.assert_array_equal(a, b)


def test_packing_never_overlaps_and_takes_the_best_fit():
    lengths = np.random.default_rng(0).integers(1, 17, 300).tolist()
    placed, rows = pack(lengths, 16)
    taken = np.concatenate([np.arange(p, p + n) for p, n in zip(placed, lengths, strict=True)])
    assert len(set(taken.tolist())) == sum(lengths) and taken.max() < rows * 16
    assert all(p // 16 == (p + n - 1) // 16 for p, n in zip(placed, lengths, strict=True))
    assert pack([10, 12, 4, 6, 16], 16)[0].tolist() == [0, 16, 28, 10, 32]


@pytest.mark.slow
def test_the_loss_is_on_the_answer_alone_as_torch_ignores_labels(built):
    torch = needed("torch", "hf")
    model = GPTConfig(vocab_size=V, context=T, d_model=16, n_layers=1, n_heads=2).build()
    params = model.init(jax.random.key(0))
    batch = validation_batches(in_rows(built, T), 2, 2, T, True)
    batch = jax.tree.map(lambda x: x[0], batch)
    labels = np.where(batch.weights > 0, batch.targets, -100)
    assert (labels == -100).any() and (labels != -100).any()
    logits = model.logits(params, batch)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)).flatten(0, 1), torch.tensor(labels).flatten().long(), ignore_index=-100
    )
    ours = summed_loss(model, params, batch, 0.0)[0] / batch.weights.sum()
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-5)


def test_validation_divides_by_what_is_predicted():
    nats, weights = np.array([[6.0, 2.0], [4.0, 8.0]]), np.array([[2, 1], [2, 3]], float)
    found = Validation("x", None, weights.ravel(), bytes=5).read(nats)
    assert found["loss"] == 20 / 8 and found["bits_per_byte"] == pytest.approx(20 / 5 / np.log(2))
    alike = Validation("x", None, np.full(4, 2.0), bytes=8).read(nats)
    assert alike["loss_se"] == pytest.approx((nats.ravel() / 2).std(ddof=1) / 2)


@pytest.mark.slow
def test_a_model_learns_to_answer_and_to_stop(tmp_path):
    """One of two answers to each of two prompts: the loss falls to that of a coin, and the prompt's does not count."""
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"{'ab'[i % 2]}{rng.integers(10**6):06}", "answer": "xy"[i % 2]} for i in range(1500)]
    corpus = write(tmp_path / "rows.jsonl", rows)
    config = RunConfig(
        model=GPTConfig(vocab_size=V, context=T, d_model=16, n_layers=1, n_heads=2, init_std=0.0, positions="rope"),
        data=DataConfig((Source(corpus),), tokenizer="bytes", separate_documents=True, cache=str(tmp_path / "cache")),
        optim=OptimConfig(lr=2e-2, warmup=5),
        batch=16,
        steps=80,
        steps_per_call=40,
        evaluate=EvalConfig(sequences=8, batch=8),
        save=SaveConfig(every=0),
        trackers=(),
    )
    result = train(config, tmp_path / "run")
    assert result.loss < 0.1  # six random digits would cost 2.3 nats each
    assert result.bits_per_byte == pytest.approx(2 * result.loss / np.log(2))  # a byte and its end
    line = next(row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row)
    assert line["train/bits_per_byte"] == pytest.approx(2 * line["train/loss"] / np.log(2))


def test_pairs_and_text_are_mixed(corpus, tmp_path):
    sources = (Source(corpus, 0.5), Source("markov:states=4,documents=60,length=300", 0.5))
    stores = open_stores(DataConfig(sources, tokenizer="bytes", cache=str(tmp_path)), T)
    batch = Loader(stores, (0.5, 0.5), batch=8, seq_len=T, seed=0).read(range(8), np.arange(8))
    whole = batch.weights.all(-1)
    assert 0.3 < whole.mean() < 0.7 and batch.targets.max() < V


def test_bad_pairs_are_refused_in_a_line(built, tmp_path):
    with pytest.raises(BadInput, match=r"1 of \d+ examples exceed the context of 23, the longest with 24 tokens") as e:
        in_rows(built, 23)
    assert "\n" not in str(e.value)
    bad = {
        "line 2 has no string field 'answer'": write(
            tmp_path / "a.jsonl", [{"prompt": "", "answer": ""}, {"prompt": "x"}]
        ),
        "line 1 has no string field 'prompt'": write(tmp_path / "b.jsonl", [["p", "a"]]),
        "names no readable file": "pairs:nowhere.jsonl",
        "is not .jsonl": f"pairs:{tmp_path}/c.txt",
    }
    (tmp_path / "c.txt").write_text("text")
    for words, name in bad.items():
        with pytest.raises(BadInput, match=words) as error:
            build_store(name, "bytes", tmp_path / "store")
        assert "\n" not in str(error.value) and not (tmp_path / "store").exists()


def test_a_large_vocabulary_has_room_for_marks(built):
    tokens = np.array([5, 40000 + 3, 7, 5, 40000 + 5, 8], np.uint32)  # the second prompt is the token of bos
    rows = lay_out(tokens, 5, 40000, 4, "x")
    assert rows.tolist() == [40005, 40003, 7, 5, 40005, 40005, 8, 5, 40005]
    batch = Reading(Causal(), 5, 40000)(rows.astype(np.int32)[None], halves(np.arange(1)), 0)
    assert batch.weights.tolist() == [[0, 1, 1, 0, 0, 1, 1, 0]]


def test_rows_of_another_context_are_other_data(built):
    assert len({in_rows(built, n).digest for n in (T, T + 1)} | {built.digest}) == 3
    assert replace(in_rows(built, T).manifest, splits=built.manifest.splits) == built.manifest
