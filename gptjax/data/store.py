"""Token arrays: written once, atomically, read from disk or object storage.

A store is a directory: `manifest.json`, `tokenizer.model`, `provenance.json` and, per split, a zarr3 array of token
ids, every document led by bos. A token of a prompt, which is read and not predicted, stands as its id plus the
tokenizer's vocab_size. A store is built beside its place and moved there whole, so that a directory with a manifest is
complete; it is never changed, and where its corpus has changed another one is built.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, get_args

import numpy as np
import tensorstore as ts
from tqdm import tqdm

from gptjax.data.corpora import Split, corpus_files, documents, is_pairs, pair_of
from gptjax.data.provenance import PROVENANCE_FILE, Provenance
from gptjax.data.shards import ShardFiles, shard_and_chunk
from gptjax.data.tokenizer import MODEL_FILE, Tokenizer, load_tokenizer, make_tokenizer, read_tokenizer, without_marks
from gptjax.errors import BadInput
from gptjax.jobs.storage import exclusive, is_address, naming

FORMAT = 1
SPLITS: tuple[Split, ...] = get_args(Split)

# 64 random windows of 2049 tokens from 100M, hot, 2 cores: 1.0 ms with 16 Ki chunks, 1.4 with 4 Ki, 2.1 with 64 Ki,
# 1.8 with zstd; one gather of 64 x 2049 indices instead of 64 reads takes 9 ms.
SHARD_TOKENS = 1 << 24
CHUNK_TOKENS = 1 << 14
LARGEST_SHARD = 1 << 26  # that is opened
CACHE_BYTES = 1 << 26  # shard indexes stay in it
HELD_BYTES = 1 << 28  # arrays up to this size are read whole: 0.15 ms for the same windows

CHECKED_SHARDS = 1 << 10  # read at a time on opening
ENCODED_BYTES = 1 << 23  # of documents tokenized at a time


@dataclass(frozen=True)
class SplitFacts:
    """What one split holds; tokens count bos, bytes are the documents' own, or of pairs the answers'."""

    documents: int
    tokens: int
    bytes: int
    sha256: str  # of the token ids, little-endian
    predicted: int | None = None  # of pairs: tokens of answers, with the bos that ends each

    def __post_init__(self) -> None:
        counts = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes, "predicted": self.predicted}
        for name, n in counts.items():
            if not ((type(n) is int and 0 < n < 1 << 62) or (name, n) in (("bytes", 0), ("predicted", None))):
                raise ValueError(f"{name} {n!r} is no count")
        if not isinstance(self.sha256, str):
            raise ValueError(f"sha256 {self.sha256!r} is no text")

    @property
    def bytes_per_token(self) -> float:
        """Bytes of what is predicted, by its tokens."""
        return self.bytes / (self.tokens if self.predicted is None else self.predicted)

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        if self.predicted is None:
            del row["predicted"]
        return row


@dataclass(frozen=True)
class Manifest:
    """What a store holds and where it came from."""

    corpus: str
    tokenizer: str
    tokenizer_digest: str
    splits: dict[Split, SplitFacts]
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("corpus", "tokenizer", "tokenizer_digest"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} {getattr(self, name)!r} is no text")

    @property
    def digest(self) -> str:
        """Hash the content: tokens and tokenizer, whatever the corpus was called."""
        content = [self.format, self.tokenizer_digest, [self.splits[split].to_json() for split in SPLITS]]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def is_pairs(self) -> bool:
        return self.splits["train"].predicted is not None

    def to_json(self) -> str:
        """Return the manifest as JSON, with the facts that follow from it."""
        row = asdict(self) | {"digest": self.digest}
        for split, facts in self.splits.items():
            row["splits"][split] = facts.to_json() | {"bytes_per_token": facts.bytes_per_token}
        return json.dumps(row, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Read what `to_json` wrote; one of the errors of DAMAGED if it is something else."""
        row = json.loads(text)
        digest = row.pop("digest")
        for facts in row["splits"].values():
            del facts["bytes_per_token"]
        manifest = cls(**row | {"splits": {split: SplitFacts(**row["splits"][split]) for split in SPLITS}})
        if manifest.digest != digest:
            raise ValueError(f"digest {digest} is not {manifest.digest}")
        return manifest


DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what JSON of another form gives


class TokenStore:
    """The tokens of a corpus, to read at random."""

    def __init__(
        self,
        where: str,
        manifest: Manifest,
        tokenizer: Tokenizer,
        arrays: dict[Split, ts.TensorStore],
        files: dict[Split, ShardFiles] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        self.manifest = manifest
        self.provenance = provenance  # None: it was built before this was recorded
        self.is_new = False  # True: this process has built it
        self.digest = manifest.digest
        self.tokenizer = tokenizer
        self._where = where
        self._arrays = arrays
        self._files = files or {}  # of a local disk
        self._held: dict[Split, np.ndarray] = {}

    def n_tokens(self, split: Split) -> int:
        return self.manifest.splits[split].tokens

    def holds(self, split: Split) -> bool:
        """Say whether a split is small enough to be held in memory."""
        array = self._arrays[split]
        return array.size * array.dtype.numpy_dtype.itemsize <= HELD_BYTES

    def held(self, split: Split) -> np.ndarray:
        """Return all tokens of a split, which stay in memory from then on, in the type that they are stored in."""
        if split not in self._held:
            self._held[split] = self._checked(self._arrays[split].read().result)
        return self._held[split]

    def windows(self, split: Split, starts: np.ndarray, length: int) -> np.ndarray:
        """Return tokens[start : start + length] for every start, (n, length) int32; they must lie within the split."""
        starts = np.asarray(starts, np.int64)
        last = self.n_tokens(split) - length
        if starts.size and not 0 <= starts.min() <= starts.max() <= last:
            given = f"{starts.min()} to {starts.max()}"
            raise ValueError(f"windows of {length} {split} tokens start at {given}, not within 0 to {last}")
        if not self.holds(split):
            if split in self._files:
                return self._checked(partial(self._files[split].windows, starts, length)).astype(np.int32)
            array = self._arrays[split]
            reads = [array[start : start + length].read() for start in starts.tolist()]
            return np.array([self._checked(read.result) for read in reads], np.int32).reshape(len(starts), length)
        held = self.held(split)
        # What sliding_window_view gives, without the 50 us that it takes: as long as gathering 64 windows of 2049.
        every = np.ndarray((last + 1, length), held.dtype, held, strides=held.strides * 2)
        return every[starts].astype(np.int32)

    def verify(self) -> None:
        """Read everything and compare it with the manifest's hashes; BadInput if it differs."""
        for split, array in self._arrays.items():
            content = sha256()
            for start in range(0, array.size, SHARD_TOKENS):
                content.update(self._checked(array[start : min(start + SHARD_TOKENS, array.size)].read().result).data)
            if content.hexdigest() != self.manifest.splits[split].sha256:
                raise BadInput(f"{self._where} {split} tokens do not have the sha256 of the manifest; {REBUILD}")

    def _check_shards(self) -> None:
        """Read one token of every shard: its index, at the file's end, carries a checksum that truncation breaks."""
        for array in self._arrays.values():
            shard, _ = shard_and_chunk(array)
            for first in range(0, array.size, CHECKED_SHARDS * shard):  # a size that is only claimed ends at once
                shards = np.arange(first, min(array.size, first + CHECKED_SHARDS * shard), shard)
                self._checked(array[shards].read().result)

    def _checked(self, read: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            tokens = read()
        except (ValueError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise BadInput(f"{self._where} has a damaged array ({reason}); {REBUILD}") from error
        absent = np.iinfo(tokens.dtype).max  # the fill value, which TensorStore gives for absent chunks
        if tokens.max(initial=0) == absent:
            raise BadInput(f"{self._where} lacks part of its arrays; {REBUILD}")
        return tokens


class Changed(BadInput):
    """Report that a store is there, and that its corpus or tokenizer is no longer what it was made from."""


REBUILD = "delete the directory and build it again with gptjax data"


def build_store(corpus: str, tokenizer_spec: str, directory: str | Path, progress: bool = True) -> TokenStore:
    """Tokenize a corpus into a new directory, or open the store that is there if it is of the same two names.

    The tokenizer is `bytes`, `sentencepiece:VOCAB` (trained on the corpus) or the directory of another store, to share.

    Raises:
      Changed: the store that is there was made when the corpus or the tokenizer was another.
      BadInput: the corpus or tokenizer is unknown or unfit, or the directory holds something else.
    """
    if is_address(str(directory)):
        raise BadInput(f"{directory} is not a local directory and a store is built in one; build it here, then copy it")
    directory = Path(directory).absolute()
    if store := _find_store(corpus, tokenizer_spec, directory):
        return store
    provenance = Provenance.of(corpus)
    texts = (b"".join(pair_of(d)) if is_pairs(corpus) else d for d, split in documents(corpus) if split == "train")
    tokenizer = make_tokenizer(tokenizer_spec, texts)
    next(documents(corpus))  # so that a bad corpus is refused before anything is written
    with naming(directory), exclusive(directory.with_name(f".{directory.name}.partial")) as partial:
        if store := _find_store(corpus, tokenizer_spec, directory):  # another process built it while we waited
            return store
        dropped: Counter[str] = Counter()
        facts = _write_arrays(corpus, tokenizer, partial, progress, dropped)
        if changed := _difference(corpus, provenance):
            raise BadInput(f"corpus {corpus!r}: {changed} while it was read; run this again when nobody writes there")
        tokenizer.save(partial)
        manifest = Manifest(corpus, tokenizer_spec, tokenizer.digest, facts)
        Path(partial, "manifest.json").write_text(manifest.to_json())
        Path(partial, PROVENANCE_FILE).write_text(replace(provenance, dropped=dict(dropped)).to_json())
        for path in (partial / MODEL_FILE, partial / PROVENANCE_FILE, partial / "manifest.json", partial):
            _sync(path)
        os.replace(partial, directory)
        _sync(directory.parent)
    store = open_store(directory)
    store.is_new = True
    return store


def open_store(directory: str | Path) -> TokenStore:
    """Open a store on disk, or in object storage if given as a URL (gs://, s3://), and check that it is whole.

    Raises:
      BadInput: there is none, or its parts are missing, truncated or of another store.
    """
    where = str(directory)
    url = (where if "://" in where else Path(where).absolute().as_uri()).rstrip("/") + "/"
    try:
        files = ts.KvStore.open(url).result()
        manifest_file, model_file, provenance_file = (
            files.read(name).result() for name in ("manifest.json", MODEL_FILE, PROVENANCE_FILE)
        )
    except ValueError as error:
        raise BadInput(f"{where} cannot be read ({error}); give a directory, or a gs:// or s3:// address") from error
    if manifest_file.state != "value":
        raise BadInput(f"{where} holds no manifest.json, so it is no token store; build one with gptjax data")
    try:
        manifest = Manifest.from_json(manifest_file.value)
    except DAMAGED as error:
        raise BadInput(f"{where} has a manifest.json of another form ({error!r}); {REBUILD}") from error
    try:
        provenance = Provenance.from_json(provenance_file.value) if provenance_file.state == "value" else None
    except DAMAGED as error:
        raise BadInput(f"{where} has a {PROVENANCE_FILE} of another form ({error!r}); {REBUILD}") from error
    if manifest.format != FORMAT:
        raise BadInput(f"{where} has format {manifest.format} and this gptjax reads {FORMAT}; {REBUILD}")
    if sha256(model_file.value).hexdigest() != manifest.tokenizer_digest:
        raise BadInput(f"{where} has not the {MODEL_FILE} of its manifest; {REBUILD}")
    tokenizer = read_tokenizer(model_file.value)
    arrays = {}
    for split, facts in manifest.splits.items():
        try:
            arrays[split] = ts.open(_array_spec(f"{url}{split}/"), open=True, read=True).result()
        except ValueError as error:
            raise BadInput(f"{where} has no {split} array that can be read; {REBUILD}") from error
        dtype = _dtype(tokenizer, manifest.is_pairs)
        found, wanted = (arrays[split].size, arrays[split].dtype.name), (facts.tokens, dtype.name)
        if found != wanted:
            raise BadInput(f"{where} {split} array is {found} and its manifest says {wanted}; {REBUILD}")
        if not _is_laid_out_as_written(arrays[split]):
            raise BadInput(f"{where} {split} array is laid out as this program does not write it; {REBUILD}")
    local = {} if "://" in where else {split: ShardFiles(Path(where, split), arrays[split]) for split in SPLITS}
    store = TokenStore(where, manifest, tokenizer, arrays, local, provenance)
    store._check_shards()
    return store


def _find_store(corpus: str, spec: str, directory: Path) -> TokenStore | None:
    """Open the store in a directory if it is this one; None if the place is free, BadInput if it is taken."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not directory.is_dir() or not (directory / "manifest.json").is_file():
        raise BadInput(f"{directory} exists and is no token store; name a new directory")
    store = open_store(directory)
    found = (store.manifest.corpus, store.manifest.tokenizer)
    if found != (corpus, spec):
        raise BadInput(f"{directory} holds the store of {found}, not of {(corpus, spec)}; name another directory")
    changed = _difference(corpus, store.provenance)
    if not changed and Path(spec, MODEL_FILE).is_file() and load_tokenizer(spec).digest != store.tokenizer.digest:
        changed = f"{Path(spec, MODEL_FILE)} has changed"
    if changed:
        raise Changed(
            f"{directory} holds what {corpus} was before: {changed}; name another directory, or delete this one"
        )
    return store


def _difference(corpus: str, provenance: Provenance | None) -> str:
    """Say which files of a corpus are not as they were; nothing where none was recorded, or where none is left."""
    if not provenance or not provenance.files:
        return ""
    try:
        files = corpus_files(corpus)
    except BadInput:  # it was removed, or not brought along: the store is what there is
        return ""
    return provenance.difference(files.read) if files else ""


def _sync(path: Path) -> None:
    """Make a file's content, or a directory's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_arrays(
    corpus: str, tokenizer: Tokenizer, directory: Path, progress: bool, dropped: Counter[str]
) -> dict[Split, SplitFacts]:
    pairs = is_pairs(corpus)
    encode = _encoded_pairs if pairs else _encoded
    writers = {split: _Writer(directory / split, _dtype(tokenizer, pairs)) for split in SPLITS}
    predicted = dict.fromkeys(SPLITS, 0)
    with tqdm(desc=f"tokens of {corpus}", unit="B", unit_scale=True, disable=None if progress else True) as bar:
        for batch in _batches(documents(corpus, dropped)):
            texts = [document for document, _ in batch]
            for (document, split), (tokens, n_bytes) in zip(batch, encode(texts, tokenizer), strict=True):
                writers[split].append(tokens, n_bytes)
                predicted[split] += int((tokens < tokenizer.vocab_size).sum()) if pairs else 0
                bar.update(len(document))
    return {split: replace(writers[split].close(), predicted=predicted[split] if pairs else None) for split in SPLITS}


def _encoded(texts: list[bytes], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the tokens of each text, led by bos, and its bytes."""
    for text, ids in zip(texts, tokenizer.encode_many(texts), strict=True):
        yield np.append(np.int32(tokenizer.bos), ids), len(text)


def _encoded_pairs(documents: list[bytes], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the tokens of each pair, led by bos, its prompt's marked as only read, and the bytes of its answer."""
    pairs = [pair_of(document) for document in documents]
    prompts, answers = (_without_bos([pair[side] for pair in pairs], tokenizer) for side in (0, 1))
    for (_, text), prompt, answer in zip(pairs, prompts, answers, strict=True):
        yield np.concatenate([[np.int32(tokenizer.bos)], prompt + tokenizer.vocab_size, answer]), len(text)


def _without_bos(texts: list[bytes], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Encode texts of which none may begin an example: one that spells bos is encoded as if there were no marks."""
    encoded = tokenizer.encode_many(texts)
    spelling = [i for i, ids in enumerate(encoded) if tokenizer.bos in ids]
    if spelling:
        again = without_marks(tokenizer).encode_many([texts[i] for i in spelling])
        for i, ids in zip(spelling, again, strict=True):
            if tokenizer.bos in ids:
                raise BadInput(f"{texts[i][:40].decode(errors='replace')!r} has token {tokenizer.bos}, with which the "
                               "tokenizer begins an example; give pairs a tokenizer with a bos of its own")  # fmt: skip
            encoded[i] = ids
    return encoded


def _batches(split_documents: Iterable[tuple[bytes, Split]]) -> Iterator[list[tuple[bytes, Split]]]:
    batch, held = [], 0
    for document, split in split_documents:
        batch.append((document, split))
        held += len(document)
        if held >= ENCODED_BYTES:
            yield batch
            batch, held = [], 0
    yield batch


class _Writer:
    """Append tokens to an array, a whole shard at a time; one that is not full waits in a nameless file.

    In memory, the shards of both splits would take 64 MB, and validation's would fill over the first 2 GB of a corpus.
    """

    def __init__(self, directory: Path, dtype: np.dtype) -> None:
        self._array = ts.open(_array_spec(f"{directory.as_uri()}/", dtype), create=True, open=True).result()
        self._dtype = dtype
        self._shard = TemporaryFile(dir=directory)  # noqa: SIM115
        self._filled = self._written = self._documents = self._bytes = 0
        self._content = sha256()

    def append(self, tokens: np.ndarray, n_bytes: int) -> None:
        self._documents += 1
        self._bytes += n_bytes
        tokens = tokens.astype(self._dtype)
        while len(tokens):
            part = tokens[: SHARD_TOKENS - self._filled]
            self._shard.write(part.data)
            self._filled += len(part)
            tokens = tokens[len(part) :]
            if self._filled == SHARD_TOKENS:
                self._write()

    def close(self) -> SplitFacts:
        self._write()
        self._shard.close()
        return SplitFacts(self._documents, self._written, self._bytes, self._content.hexdigest())

    def _write(self) -> None:
        self._shard.seek(0)
        tokens = np.fromfile(self._shard, self._dtype, self._filled)
        self._shard.seek(0)
        start, self._written, self._filled = self._written, self._written + self._filled, 0
        self._array = self._array.resize(exclusive_max=[self._written]).result()
        # TensorStore need not copy the tokens: they stay as they are, and its cache, which could keep them, is off.
        self._array[start : self._written].write(tokens, can_reference_source_data_indefinitely=True).result()
        self._content.update(tokens.data)


def _dtype(tokenizer: Tokenizer, pairs: bool) -> np.dtype:
    """Return the smallest type whose largest value, kept for chunks that are absent, is no token."""
    values = tokenizer.vocab_size * (2 if pairs else 1)
    return np.dtype(np.uint16 if values <= np.iinfo(np.uint16).max else np.uint32)


def _is_laid_out_as_written(array: ts.TensorStore) -> bool:
    """Compare an array with what is written, but for the sizes of shards and chunks, which have a limit."""
    if array.rank != 1 or array.fill_value != np.iinfo(array.dtype.numpy_dtype).max:
        return False
    shard, chunk = shard_and_chunk(array)
    found = {} if array.codec is None else array.codec.to_json()
    sizes = shard % chunk == 0 and shard <= LARGEST_SHARD and shard // chunk <= LARGEST_SHARD // CHUNK_TOKENS
    return sizes and found.get("codecs") == _codecs(chunk)


def _codecs(chunk: int) -> list[dict[str, Any]]:
    """Return how shards are encoded: chunks of so many tokens as they are, each with a checksum, and where each is."""
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [chunk], "codecs": plain, "index_codecs": plain, "index_location": "end"}
    return [{"name": "sharding_indexed", "configuration": sharding}]


def _array_spec(url: str, dtype: np.dtype | None = None) -> dict[str, Any]:
    """Describe a zarr3 array: where it is and, to create it, its type and layout."""
    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": url,
        "recheck_cached_data": False,
        "context": {"cache_pool": {"total_bytes_limit": CACHE_BYTES if dtype is None else 0}},
    }
    if dtype is None:
        return spec
    return spec | {
        "metadata": {
            "shape": [0],
            "data_type": dtype.name,
            "fill_value": int(np.iinfo(dtype).max),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD_TOKENS]}},
            "codecs": _codecs(CHUNK_TOKENS),
        }
    }
