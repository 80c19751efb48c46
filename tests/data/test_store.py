"""The token store: what was written is read, whatever is damaged is noticed, and a kill leaves nothing half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptjax.data import store as store_module
from gptjax.data.corpora import documents
from gptjax.data.loader import DataConfig, Source, open_stores
from gptjax.data.store import SPLITS, build_store, open_store
from gptjax.errors import BadInput

CORPUS = "markov:states=20,documents=500,length=300"
SHARD, CHUNK = 1 << 14, 1 << 10  # small, so that a small corpus has several


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_TOKENS", SHARD)
        patch.setattr(store_module, "CHUNK_TOKENS", CHUNK)
        patch.setattr(store_module, "ENCODED_BYTES", 10_000)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "byte s"
    build_store(CORPUS, "bytes", directory)
    return directory


@pytest.fixture
def copy(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "copy"))


def expected(split, bos):
    parts = [np.append(bos, list(document)) for document, found in documents(CORPUS) if found == split]
    return np.concatenate(parts).astype(np.int32)


@pytest.mark.parametrize("held_bytes", [1 << 28, 0], ids=["held", "disk"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_window_is_the_corpus(built, monkeypatch, split, held_bytes):
    monkeypatch.setattr(store_module, "HELD_BYTES", held_bytes)
    store, length = open_store(built), 100
    tokens = expected(split, store.tokenizer.bos)
    assert store.n_tokens(split) == len(tokens)
    last = len(tokens) - length
    starts = np.array([0, last, *(s for s in (SHARD - 50, CHUNK - 50) if s <= last), *range(0, last, 997)])
    windows = store.windows(split, starts, length)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows, tokens[starts[:, None] + np.arange(length)])
    assert store.windows(split, starts[:0], length).shape == (0, length)
    for outside in (-1, last + 1):
        with pytest.raises(ValueError, match="not within"):
            store.windows(split, np.array([0, outside]), length)


@pytest.mark.parametrize("length", [3, CHUNK, 3 * CHUNK + 1, 2 * SHARD])
def test_files_give_what_tensorstore_gives(built, monkeypatch, length):
    """A plain directory is read from its files and a URL through TensorStore; more shards than may be open, too."""
    monkeypatch.setattr(store_module, "HELD_BYTES", 0)
    monkeypatch.setattr("gptjax.data.shards.OPEN_FILES", 2)
    starts = np.random.default_rng(0).integers(open_store(built).n_tokens("train") - length, size=150)
    windows = open_store(built).windows("train", starts, length)
    np.testing.assert_array_equal(windows, open_store(built.as_uri()).windows("train", starts, length))


def test_no_file_stays_open_without_its_store(built, monkeypatch):
    monkeypatch.setattr(store_module, "HELD_BYTES", 0)
    store = open_store(built)
    store.windows("train", np.array([0, SHARD]), 10)

    def opened():
        return [p for p in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if p.startswith(str(built / "train"))]

    assert len(opened()) == 2
    del store
    assert not opened()


def test_the_manifest_counts(built):
    store = open_store(str(built))
    for split in SPLITS:
        found = [document for document, where in documents(CORPUS) if where == split]
        facts = store.manifest.splits[split]
        assert (facts.documents, facts.bytes) == (len(found), sum(map(len, found)))
        assert facts.tokens == facts.bytes + facts.documents
    row = json.loads((built / "manifest.json").read_text())
    assert row["digest"] == store.digest and row["corpus"] == CORPUS
    assert row["splits"]["train"]["bytes_per_token"] == pytest.approx(300 / 301)
    store.verify()
    assert open_store(built.as_uri()).digest == store.digest


def test_a_sentencepiece_store_decodes_to_the_corpus(tmp_path):
    store = build_store(CORPUS, "sentencepiece:300", tmp_path / "store")
    tokens = store.windows("validation", np.array([0]), store.n_tokens("validation"))[0]
    found = b"".join(document for document, split in documents(CORPUS) if split == "validation")
    assert store.tokenizer.decode(tokens) == found
    assert store.tokenizer.token_bytes[tokens].sum() == len(found)


def test_a_second_corpus_can_share_the_tokenizer_of_the_first(tmp_path):
    first = build_store(CORPUS, "sentencepiece:300", tmp_path / "first")
    again = CORPUS + ",seed=1"
    second = build_store(again, str(tmp_path / "first"), tmp_path / "second")
    assert second.tokenizer.digest == first.tokenizer.digest
    assert second.digest != first.digest


def test_building_again_opens_and_another_store_is_refused(built, monkeypatch, tmp_path):
    assert build_store(CORPUS, "bytes", tmp_path / "again").digest == open_store(built).digest
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_write_arrays", None)  # not to be called
        assert build_store(CORPUS, "bytes", built).digest == open_store(built).digest
    for corpus, tokenizer in ((CORPUS + ",seed=1", "bytes"), (CORPUS, "sentencepiece:300")):
        with pytest.raises(BadInput, match="name another directory"):
            build_store(corpus, tokenizer, built)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(BadInput, match="no token store"):
        build_store(CORPUS, "bytes", tmp_path / "notes")


@pytest.mark.parametrize(
    ("corpus", "tokenizer"), [("no/such", "bytes"), (CORPUS, "sentencepiece:9999"), (CORPUS, "words")]
)
def test_bad_input_writes_nothing(tmp_path, corpus, tokenizer):
    with pytest.raises(BadInput):
        build_store(corpus, tokenizer, tmp_path / "deep" / "store")
    assert not list(tmp_path.iterdir())


def damage_by_truncation(store: Path) -> None:
    shard = store / "train" / "c" / "1"
    os.truncate(shard, shard.stat().st_size - 1)


def damage_by_truncation_to_half(store: Path) -> None:
    shard = store / "train" / "c" / "2"
    os.truncate(shard, shard.stat().st_size // 2)


def damage_by_emptying(store: Path) -> None:
    os.truncate(store / "train" / "c" / "0", 0)


def damage_by_a_missing_shard(store: Path) -> None:
    (store / "train" / "c" / "3").unlink()


def damage_by_a_missing_array(store: Path) -> None:
    shutil.rmtree(store / "validation")


def damage_by_another_length(store: Path) -> None:
    path = store / "train" / "zarr.json"
    path.write_text(path.read_text().replace(str(open_store(store).n_tokens("train")), str(SHARD)))


def damage_by_another_tokenizer(store: Path) -> None:
    build_store(CORPUS, "sentencepiece:300", store.parent / "other").tokenizer.save(store)


def damage_by_a_missing_tokenizer(store: Path) -> None:
    (store / "tokenizer.model").unlink()


def damage_by_a_missing_manifest(store: Path) -> None:
    (store / "manifest.json").unlink()


def damage_by_an_edited_manifest(store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text().replace('"documents": ', '"documents": 1'))


def damage_by_a_cut_manifest(store: Path) -> None:
    os.truncate(store / "manifest.json", 100)


@pytest.mark.parametrize("damage", [f for name, f in sorted(globals().items()) if name.startswith("damage_by_")])
def test_a_damaged_store_does_not_open(copy, damage):
    open_store(copy)
    damage(copy)
    with pytest.raises(BadInput) as error:
        open_store(copy)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


def test_a_flipped_byte_is_noticed_when_read(copy):
    shard = copy / "train" / "c" / "1"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    store = open_store(copy)
    with pytest.raises(BadInput, match="damaged"):
        store.verify()
    with pytest.raises(BadInput, match="damaged"):
        store.windows("train", np.array([0]), 10)


@pytest.mark.parametrize("where", [str, Path.as_uri], ids=["files", "tensorstore"])
def test_absent_chunks_and_short_files_are_refused(copy, monkeypatch, where):
    monkeypatch.setattr(store_module, "HELD_BYTES", 0)
    array = store_module.ts.open(store_module._array_spec((copy / "train").as_uri() + "/"), open=True).result()
    # TensorStore leaves out a chunk that holds the fill value alone.
    array[SHARD + CHUNK : SHARD + 2 * CHUNK].write(np.iinfo(np.uint16).max).result()
    store = open_store(where(copy))
    with pytest.raises(BadInput):
        store.windows("train", np.array([SHARD + CHUNK]), 10)
    os.truncate(copy / "train" / "c" / "2", 5 * CHUNK)
    with pytest.raises(BadInput):
        store.windows("train", np.array([2 * SHARD + 5 * CHUNK]), 10)


def test_a_shard_cut_while_it_is_read_is_noticed(copy, monkeypatch):
    monkeypatch.setattr(store_module, "HELD_BYTES", 0)
    store = open_store(copy)
    store.windows("train", np.array([2 * SHARD]), 10)
    os.truncate(copy / "train" / "c" / "2", 5 * CHUNK)
    with pytest.raises(BadInput, match="shorter"):
        store.windows("train", np.array([2 * SHARD + 5 * CHUNK]), 10)


def test_a_shard_lost_after_opening_is_noticed(copy, monkeypatch):
    monkeypatch.setattr(store_module, "HELD_BYTES", 0)
    store = open_store(copy)
    (copy / "train" / "c" / "4").unlink()
    with pytest.raises(BadInput):
        open_store(copy).windows("train", np.array([4 * SHARD]), 10)
    with pytest.raises(BadInput):
        store.windows("train", np.array([4 * SHARD + 5 * CHUNK]), 10)


def test_other_tokens_of_the_right_form_fail_verification(copy):
    """Shards exchanged whole pass every checksum of their own."""
    first, second = copy / "train" / "c" / "0", copy / "train" / "c" / "1"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(BadInput, match="sha256"):
        open_store(copy).verify()


KILLED = """
import os, signal, sys
from gptjax.data import store
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
target, name = {target}, {name!r}
setattr(target, name, die)
store.build_store({corpus!r}, "bytes", {directory!r})
"""


def test_kill_9_leaves_no_store_and_the_next_build_cleans_up(tmp_path, built):
    directory = tmp_path / "store"
    points = [("store._Writer", "close"), ("store.Manifest", "to_json"), ("store", "_sync"), ("os", "replace")]
    for target, name in points:
        code = KILLED.format(target=target, name=name, corpus=CORPUS, directory=str(directory))
        assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
        assert {path.name for path in tmp_path.iterdir()} == {".store.partial", ".store.partial.lock"}
        with pytest.raises(BadInput, match="no token store"):
            open_store(directory)
    assert build_store(CORPUS, "bytes", directory).digest == open_store(built).digest
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_builders_at_once_build_once(tmp_path, monkeypatch):
    written, write = [], store_module._write_arrays
    monkeypatch.setattr(store_module, "_write_arrays", lambda *args: written.append(1) or write(*args))
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda: digests.append(build_store(CORPUS, "bytes", tmp_path / "store").digest))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1 and len(digests) == 4 and all(a == b for a, b in pairwise(digests))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def lines_of(path: Path, word: str) -> str:
    path.write_text("".join(json.dumps({"text": f"{word} {i}"}) + "\n" for i in range(200)))
    return str(path)


def test_a_corpus_that_changed_is_refused_where_it_was_built(tmp_path):
    corpus = lines_of(tmp_path / "c.jsonl", "cat")
    first = build_store(corpus, "bytes", tmp_path / "s")
    lines_of(tmp_path / "c.jsonl", "cat")  # written again, the same: its time is another and its content is not
    assert build_store(corpus, "bytes", tmp_path / "s").digest == first.digest
    lines_of(tmp_path / "c.jsonl", "dog")  # as many bytes
    with pytest.raises(BadInput, match=r"c\.jsonl has changed; name another directory"):
        build_store(corpus, "bytes", tmp_path / "s")
    assert open_store(tmp_path / "s").digest == first.digest


def test_a_corpus_that_changed_is_tokenized_anew_in_the_cache(tmp_path):
    config = DataConfig((Source(lines_of(tmp_path / "c.jsonl", "cat")),), "bytes", cache=str(tmp_path / "cache"))
    (first,), (again,) = open_stores(config), open_stores(config)
    lines_of(tmp_path / "c.jsonl", "dog")
    (changed,) = open_stores(config)
    assert first.digest == again.digest != changed.digest and b"dog" in changed.tokenizer.decode(
        changed.held("train")[:20].tolist()
    )
    lines_of(tmp_path / "c.jsonl", "cat")
    assert open_stores(config)[0].digest == first.digest  # what a run was begun on is still there


def test_a_store_of_before_files_were_recorded_opens(tmp_path):
    corpus = lines_of(tmp_path / "c.jsonl", "cat")
    store = build_store(corpus, "bytes", tmp_path / "s")
    (tmp_path / "s" / "provenance.json").unlink()
    assert build_store(corpus, "bytes", tmp_path / "s").digest == store.digest


DAMAGE = st.sampled_from([b"", b"{", b"null", b"[]", b"[" * 100_000, b"1" * 5000, b"\xff"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_manifest_is_told_in_a_line(copy, built, data):
    content = json.loads((built / "manifest.json").read_text())
    key = data.draw(st.sampled_from(sorted(content)))
    value = data.draw(st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2))
    text = data.draw(DAMAGE | st.just(json.dumps({**content, key: value}).encode()))
    (copy / "manifest.json").write_bytes(text)
    try:
        open_store(copy)
    except BadInput as error:
        assert "\n" not in str(error)


def test_a_full_disk_ends_a_build_in_a_line_and_leaves_nothing(tmp_path):
    corpus = "markov:documents=200,length=600"
    tokens = build_store(corpus, "bytes", tmp_path / "whole", progress=False).manifest.splits["train"].tokens
    for room in (1_000, 2 * tokens):  # bytes of a file: tokens that wait for their shard have none; the shard has none
        full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room},) * 2)"
        run = f"from gptjax.cli import main; main(['data', '{corpus}', '--tokenizer', 'bytes', '--out', 'out'])"
        given = [sys.executable, "-c", f"{full}; {run}"]
        ran = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        said = f"gptjax: {tmp_path / 'out'}: File too large; make room"
        assert ran.returncode == 1 and ran.stderr.startswith(said) and ran.stderr.count("\n") == 1, ran.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"whole"}
