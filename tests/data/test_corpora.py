"""Corpora: every format read, no document twice, a split that order does not change, a source of known entropy."""

import gzip
import itertools
import json
import random
import subprocess
import sys
import sysconfig
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptjax.data import corpora
from gptjax.data.corpora import Digests, documents, markov_entropy, read_corpus
from gptjax.errors import BadInput

TEXTS = ["one\n", "zwei ü \U0001f600\n", "a\0b", "lone \ud800 surrogate"]
BYTES = [text.encode("utf-8", "surrogatepass") for text in TEXTS]


def write_jsonl(path: Path, texts: list[str]) -> None:
    with pa.output_stream(path, compression="detect") as stream:
        stream.write("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_jsonl(tmp_path, name):
    write_jsonl(tmp_path / name, TEXTS)
    assert list(read_corpus(str(tmp_path / name))) == BYTES


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array([*TEXTS[:3], None], kind), "n": range(4)}), tmp_path / "a.parquet")
    assert list(read_corpus(str(tmp_path / "a.parquet"))) == BYTES[:3]


def test_folders_and_globs(tmp_path):
    (tmp_path / "sub").mkdir()
    for path, text in {"b.txt": b"b", "sub/a.py": b"a", "c[1].md": b"c", "d.bin": b"d"}.items():
        (tmp_path / path).write_bytes(text)
    assert list(read_corpus(str(tmp_path))) == [b"b", b"c", b"a"]
    assert list(read_corpus(f"{tmp_path}/**/*.py")) == [b"a"]
    assert list(read_corpus(f"{tmp_path}/c[1].md")) == [b"c"]


def test_a_long_text_is_cut_at_line_ends_and_loses_nothing(tmp_path):
    text = b"".join(b"line %d\n" % i for i in range(30_000))
    (tmp_path / "book.txt").write_bytes(text)
    parts = list(read_corpus(str(tmp_path / "book.txt")))
    assert len(parts) > 2 and b"".join(parts) == text and all(part.endswith(b"\n") for part in parts)


def test_duplicates_are_dropped_and_the_split_ignores_order(tmp_path):
    texts = [f"document {i}" for i in range(1000)]
    splits = []
    for seed in range(2):
        shuffled = texts + texts[:300]
        random.Random(seed).shuffle(shuffled)
        write_jsonl(tmp_path / "a.jsonl", shuffled)
        found = list(documents(str(tmp_path / "a.jsonl")))
        assert sorted(document for document, _ in found) == sorted(text.encode() for text in texts)
        splits.append(dict(found))
    assert splits[0] == splits[1]
    assert 4 <= Counter(splits[0].values())["validation"] <= 35  # 1 in 64, give or take 4 sigma


@pytest.mark.slow
def test_digests_are_a_set_of_few_bytes():
    rng = np.random.default_rng(0)
    far = rng.integers(1, 2000, size=4000, dtype=np.uint64) << 40  # equal in their low bits
    near = rng.integers(1, 30_000, size=50_000, dtype=np.uint64)
    digests, seen = Digests(), set()
    for digest in [*far.tolist(), *near.tolist()]:
        assert digests.add(digest) == (digest not in seen)
        seen.add(digest)
    assert len(digests) == len(seen)
    assert sys.getsizeof(digests._slots) <= 21.4 * len(seen)


def test_a_few_documents_still_give_both_splits(tmp_path):
    for n in (2, 3, 10):
        for start in range(40):
            write_jsonl(tmp_path / "a.jsonl", [f"document {start + i}" for i in range(n)])
            assert {split for _, split in documents(str(tmp_path / "a.jsonl"))} == {"train", "validation"}


def test_python_takes_text_and_leaves_tests_and_tables(tmp_path, monkeypatch):
    kept = {"a.py": b"import this\n", "z/b.rst": b"Title\n=====\n", "z/c.md": b"# x\n"}
    left = {
        "test/a.py": b"assert 1\n",
        "z/tests/a.py": b"assert 2\n",
        "gptjax/cli.py": b"main()\n",
        "d.json": b"{}",
        "empty.py": b"",
        "nul.py": b"a\0b\n",
        "big.py": b"x = y\n" * 200_000,
        "long.txt": b"word " * 100,
        "digits.txt": b"1.2345\n" * 9,
    }
    for path, text in (kept | left).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(text)
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: dict.fromkeys(("stdlib", "purelib", "platlib"), str(tmp_path)))
    assert list(read_corpus("python")) == list(kept.values())


def test_python_is_the_same_in_another_process():
    code = """
import itertools, hashlib
from gptjax.data.corpora import read_corpus
print(hashlib.sha256(b"".join(itertools.islice(read_corpus("python"), 400))).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == sha256(b"".join(itertools.islice(read_corpus("python"), 400))).hexdigest()


@pytest.mark.parametrize(("states", "order"), [(2, 1), (5, 2), (8, 1), (10, 0)])
def test_markov_has_the_entropy_it_states(states, order):
    """The text's own conditional entropy, from counts alone, is the exact rate."""
    name = f"markov:states={states},order={order},documents=200,length=2000,seed=3"
    texts = list(read_corpus(name))
    assert len(texts) == 200 and all(len(text) == 2000 for text in texts)
    pairs = Counter(text[i : i + order + 1] for text in texts for i in range(len(text) - order))
    contexts: Counter[bytes] = Counter()
    for pair, n in pairs.items():
        contexts[pair[:order]] += n
    rate = -sum(n * np.log(n / contexts[pair[:order]]) for pair, n in pairs.items()) / sum(pairs.values())
    assert rate == pytest.approx(markov_entropy(name), rel=0.01)


def test_markov_starts_stationary():
    texts = np.array([list(text) for text in read_corpus("markov:states=4,order=2,documents=4000,length=40,seed=5")])
    for symbol in np.unique(texts):
        first, late = (texts[:, 0] == symbol).mean(), (texts[:, 20:] == symbol).mean()
        assert abs(first - late) < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    "name",
    ["", "no/such/file", "markov:states=1", "markov:staes=3", "markov:seed=x", "markov:order=9", "markov:length=1"],
)
def test_unknown_corpora_are_refused_at_once(name):
    with pytest.raises(BadInput, match=r"give|use|keys|lower"):
        read_corpus(name)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"no": 1}\n'),
        ("a.jsonl", b'{"text": 3}\n'),
        ("a.jsonl", b"{broken\n"),
        ("a.jsonl.gz", b"not gzip at all"),
        ("a.jsonl.zst", b"not zstd at all"),
        ("a.parquet", b"not parquet"),
        ("a.txt", b""),
        ("a.txt", b"one document\n"),
    ],
)
def test_unreadable_or_too_small_files_are_refused_in_one_line(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BadInput) as error:
        list(documents(str(tmp_path / file)))
    assert "\n" not in str(error.value) and file in str(error.value)


def test_a_parquet_without_text_is_refused(tmp_path):
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"'body'.*rename"):
        list(read_corpus(str(tmp_path / "a.parquet")))


def test_hugging_face_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"make install EXTRAS=test,hf"):
        next(read_corpus("hf:wikitext"))


def test_hugging_face_streams(monkeypatch):
    calls = []

    class Datasets:
        @staticmethod
        def load_dataset(*args, **settings):
            calls.append((args, settings))
            return iter([{"text": "a"}, {"text": "ü"}])

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert list(read_corpus("hf:owner/name:small:test")) == [b"a", "ü".encode()]
    assert list(corpora.read_corpus("hf:owner/name"))
    assert calls[0] == (("owner/name", "small"), {"split": "test", "streaming": True})
    assert calls[1] == (("owner/name", None), {"split": "train", "streaming": True})


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return str(tmp_path)


LINES = b'{"text": "one"}\n\n{"text": "two"}\n'


def test_a_folder_is_read_in_capitals_and_packed_and_says_what_it_leaves_out(tmp_path):
    texts = {"A.TXT": b"a" * 50, "b.json.gz": gzip.compress(LINES), "c.json": b'{"text": "three"}\n'}
    name = folder_of(tmp_path, {**texts, "d.pm": b"my $x;", "e.json": b'{"name": 1}'})
    assert sorted(read_corpus(name)) == [b"a" * 50, b"one", b"three", b"two"]
    assert corpora.corpus_files(name).checked().summary() == {".json": (1, 11), ".pm": (1, 6)}


def test_a_folder_of_which_the_larger_part_would_be_left_out_is_refused(tmp_path):
    name = folder_of(tmp_path, {"README.md": b"read me", "a.pm": b"x" * 100, "b.pl": b"y" * 100})
    with pytest.raises(BadInput, match=r"would leave out more than it reads .*\.pm 1 files, 100 bytes"):
        list(read_corpus(name))
    assert sorted(read_corpus(f"{name}/*.p[lm]")) == [b"x" * 100, b"y" * 100]  # what a glob names is read


def test_a_text_without_line_ends_is_cut_between_characters(tmp_path):
    text = "\U0001f600" * 100_000
    found = list(read_corpus(folder_of(tmp_path, {"a.txt": text.encode()}) + "/a.txt"))
    assert b"".join(found).decode() == text and max(map(len, found)) <= 1 << 16
    assert all(part.decode() for part in found)


@pytest.mark.parametrize(
    ("lines", "words"),
    [(LINES + b'{"text": 3}\n', "line 4"), (LINES + b"{\n", "line 4"), (LINES + b'{"text": "\xff"}\n', "line 4"),
     (b'{"text": ' + b"[" * 100_000 + b"\n", "line 1")],
)  # fmt: skip
def test_a_mistake_in_json_lines_is_named_by_its_line(tmp_path, lines, words):
    with pytest.raises(BadInput, match=words) as error:
        list(read_corpus(folder_of(tmp_path, {"a.jsonl": lines}) + "/a.jsonl"))
    assert "\n" not in str(error.value)


def test_only_line_feeds_end_a_line_of_json(tmp_path):
    rows = ["a\u2028b", "c\u0085d", "e\u000cf"]
    content = b"\xef\xbb\xbf" + "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in rows).encode()
    assert list(read_corpus(folder_of(tmp_path, {"a.jsonl": content}) + "/a.jsonl")) == [t.encode() for t in rows]


@pytest.mark.parametrize("column", [[["a"]], [1, 2], [{"body": "a"}]])
def test_a_text_column_of_parquet_that_is_no_text_is_refused_in_a_line(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="text") as error:
        list(read_corpus(str(tmp_path / "a.parquet")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["markov:order=10000", "markov:states=" + "9" * 30, "markov:order=٣", "hf:", "gs://b/c"]
)
def test_a_corpus_that_cannot_be_is_a_line(name):
    with pytest.raises(BadInput) as error:
        list(read_corpus(name))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
