"""Tokenizers: bytes -> ids -> the same bytes, for any bytes at all."""

import heapq
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece as spm

from gptjax.data.json_tokenizer import CONFIG_FILE, JsonTokenizer
from gptjax.errors import BadInput
from gptjax.files import write_file
from gptjax.jobs.process import return_freed_memory

MODEL_FILE = "tokenizer.model"
SPACE = "\u2581"  # how SentencePiece writes a space, so that it cannot tell its own from ours
RAW = re.compile(f"([\udc80-\udcff{SPACE}]+)")  # what goes round SentencePiece: that mark, and undecodable bytes

UNKNOWN_MARK = "\u2585"  # SentencePiece's trainer writes it for rare characters, and passes over sentences with it

SENTENCE_CHARACTERS = 4000
SCANNED_SAMPLES = 50  # a tokenizer is trained on a sample from no more than this many times its size


class Tokenizer(Protocol):
    """What turns documents into ids below `vocab_size` and back, exactly."""

    vocab_size: int
    bos: int
    token_bytes: np.ndarray  # (vocab_size,): bytes each id stands for; none for bos and other marks
    digest: str  # sha256 of the model

    def encode(self, document: bytes) -> np.ndarray:
        """Return the int32 ids of a document, without bos."""

    def encode_many(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """Encode every document, on all cores."""

    def decode(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that ids stand for."""

    def save(self, directory: Path) -> None:
        """Write the model where `load_tokenizer` finds it."""


class ByteTokenizer:
    """One id per byte value, then bos."""

    MODEL = b"bytes"

    def __init__(self) -> None:
        self.vocab_size = 257
        self.bos = 256
        self.token_bytes = np.append(np.ones(256, np.int64), 0)
        self.digest = sha256(self.MODEL).hexdigest()

    def encode(self, document: bytes) -> np.ndarray:
        return np.frombuffer(document, np.uint8).astype(np.int32)

    def encode_many(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        return [self.encode(document) for document in documents]

    def decode(self, ids: Iterable[int]) -> bytes:
        return bytes(i for i in ids if i != self.bos)

    def save(self, directory: Path) -> None:
        write_file(directory / MODEL_FILE, self.MODEL)


# A SentencePiece model's `normalizer_spec` (field 3): name "identity", no character map, no dummy prefix, extra spaces
# kept, spaces written as SPACE. Protocol buffers merge it with the model's own when it is put after that.
AS_IT_IS = b"\x0a\x08identity\x12\x00\x18\x00\x20\x00\x28\x01"
AS_IT_IS = b"\x1a" + bytes([len(AS_IT_IS)]) + AS_IT_IS


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback, applied to a text as it is.

    A model that would normalize the text, or put a space before it, does not: its pieces and scores are kept. What
    SentencePiece would still alter is given to it as bytes.
    """

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = spm.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model + AS_IT_IS)
        self._byte_ids = np.array([self._processor.piece_to_id(f"<0x{b:02X}>") for b in range(256)], np.int32)
        if not self._has_bytes():
            raise BadInput(f"a {MODEL_FILE} of SentencePiece has no byte fallback, so that characters it lacks would "
                           "be lost; train it with byte_fallback=True, or use sentencepiece:VOCABULARY")  # fmt: skip
        self._table = [self._bytes_of(i) for i in range(self._processor.vocab_size())]
        self.vocab_size = len(self._table)
        # Where a model has no bos, its eos separates documents, or else the piece for what is unknown: with bytes to
        # fall back on, no text has any of the three.
        p = self._processor
        self.bos = next(i for i in (p.bos_id(), p.eos_id(), p.unk_id()) if i >= 0)
        self.token_bytes = np.array([len(piece) for piece in self._table])
        self.digest = sha256(model).hexdigest()

    def encode(self, document: bytes) -> np.ndarray:
        return self.encode_many([document])[0]

    def encode_many(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        texts = [document.decode("utf-8", "surrogateescape") for document in documents]
        parts = [[text] if text.isascii() else RAW.split(text) for text in texts]  # text, raw, text, ..., text
        plain = [text for document in parts for text in document[::2]]
        encoded = iter(self._processor.encode(plain, out_type="numpy", num_threads=os.cpu_count() or 1))
        return [
            np.concatenate([self._encode_raw(part) if i % 2 else next(encoded) for i, part in enumerate(document)])
            for document in parts
        ]

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._table[i] for i in ids)

    def save(self, directory: Path) -> None:
        write_file(directory / MODEL_FILE, self._model)

    def pieces(self) -> list[tuple[str, str]]:
        """Return every piece, spelled with the space itself, and its kind: text, byte or mark."""
        p = self._processor
        kinds = ["byte" if p.is_byte(i) else "mark" if _is_mark(p, i) else "text" for i in range(self.vocab_size)]
        names = map(p.id_to_piece, range(self.vocab_size))
        return [(n.replace(SPACE, " ") if kind == "text" else n, kind) for n, kind in zip(names, kinds, strict=True)]

    def _has_bytes(self) -> bool:
        """Say whether a character that is no piece becomes its bytes."""
        p = self._processor
        unused = next(c for c in map(chr, range(0xF0000, 0x10FFFE)) if p.piece_to_id(c) == p.unk_id())
        return all(map(p.is_byte, self._byte_ids.tolist())) and p.unk_id() not in p.encode(unused)

    def _encode_raw(self, part: str) -> np.ndarray:
        return self._byte_ids[np.frombuffer(part.encode("utf-8", "surrogateescape"), np.uint8)]

    def _bytes_of(self, i: int) -> bytes:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes.fromhex(piece[3:5])
        return b"" if _is_mark(self._processor, i) else piece.replace(SPACE, " ").encode()


def _is_mark(processor: Any, i: int) -> bool:
    return processor.is_control(i) or processor.is_unknown(i)


def without_marks(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer of the same ids for which a text that spells a mark, as <s>, is no more than that text."""
    if not isinstance(tokenizer, JsonTokenizer):
        return tokenizer  # so are our own
    settings = json.loads(tokenizer.files.get(CONFIG_FILE, b"{}")) | {"split_special_tokens": True}
    files = {name: content.decode() for name, content in tokenizer.files.items()} | {CONFIG_FILE: json.dumps(settings)}
    return JsonTokenizer(json.dumps({"bos": tokenizer.bos, "files": files}).encode())


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Read the tokenizer that `save` wrote; BadInput if there is none."""
    path = Path(directory, MODEL_FILE)
    if not path.is_file():
        raise BadInput(f"{path} does not exist and a tokenizer is read from it; name a folder that one was saved to")
    return read_tokenizer(path.read_bytes())


def read_tokenizer(model: bytes) -> Tokenizer:
    """Build the tokenizer from the content of its model file; BadInput if it is not one."""
    if model == ByteTokenizer.MODEL:
        return ByteTokenizer()
    if model.startswith(b"{"):
        return JsonTokenizer(model)
    try:
        return SentencePieceTokenizer(model)
    except RuntimeError as error:
        raise BadInput(f"a {MODEL_FILE} of {len(model)} bytes is no SentencePiece model; make it again") from error


def make_tokenizer(spec: str, documents: Iterable[bytes]) -> Tokenizer:
    """Make `bytes` or `sentencepiece:VOCAB`, trained on the documents, or load the one in the directory spec names."""
    kind, _, vocab_size = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if kind == "sentencepiece" and re.fullmatch("[0-9]{1,9}", vocab_size):
        return train_sentencepiece(documents, int(vocab_size))
    if Path(spec, MODEL_FILE).is_file():
        return load_tokenizer(spec)
    raise BadInput(f"tokenizer {spec!r} is not bytes, sentencepiece:VOCAB or a tokenizer's directory; "
                   "try sentencepiece:512")  # fmt: skip


def train_sentencepiece(
    documents: Iterable[bytes], vocab_size: int, *, sample_bytes: int = 20_000_000
) -> SentencePieceTokenizer:
    """Train a lossless BPE of exactly `vocab_size` ids on a sample of documents, the same on every machine.

    Raises:
      BadInput: there is no text, or vocab_size is less or more than it admits.
    """
    texts = [document.decode("utf-8", "ignore") for document in _sample(documents, sample_bytes)]
    if not any(texts):
        raise BadInput("the corpus holds no UTF-8 text to train a tokenizer on; use the tokenizer bytes")
    # Newlines stay inside the sentences, so that pieces may hold them ("):\n"): 1.78 bytes per token at vocabulary
    # 512 and 3.12 at 4096 on this machine's Python, against 1.76 and 2.94 when every line is a sentence.
    cuts = ((text, i) for text in texts for i in range(0, len(text), SENTENCE_CHARACTERS))
    sentences = [text[i : i + SENTENCE_CHARACTERS] for text, i in cuts]
    if 2 * sum(UNKNOWN_MARK in sentence for sentence in sentences) > len(sentences):
        sentences = [sentence.replace(UNKNOWN_MARK, "") for sentence in sentences]
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=0.999,  # at vocabulary 512 the default, 0.9995, costs 1% of the bytes per token
            max_sentence_length=4 * SENTENCE_CHARACTERS,  # in bytes; longer ones would be dropped
            unk_id=0,
            bos_id=1,
            eos_id=-1,
            pad_id=-1,
            num_threads=2,  # a constant, because the model records it and so would its digest
            minloglevel=2,
        )
    except RuntimeError as error:
        raise BadInput(_explain(str(error), vocab_size)) from error
    return_freed_memory()
    return SentencePieceTokenizer(model.getvalue())


def _sample(documents: Iterable[bytes], size: int) -> list[bytes]:
    """Return the documents of smallest hash that fill `size` bytes: a random sample, whatever their order."""
    sample: list[tuple[int, bytes]] = []  # a heap with the largest hash on top
    held = scanned = 0
    for document in documents:
        heapq.heappush(sample, (-int.from_bytes(blake2b(document, digest_size=8).digest()), document))
        held += len(document)
        scanned += len(document)
        while held - len(sample[0][1]) >= size:
            held -= len(heapq.heappop(sample)[1])
        if scanned > SCANNED_SAMPLES * size:
            break
    return [document for _, document in sorted(sample, reverse=True)]


def _explain(error: str, vocab_size: int) -> str:
    """Say in a line what SentencePiece's error means for the vocabulary asked for."""
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (f"vocabulary {vocab_size} is below the {smallest[1]} bytes, marks and characters of this text; "
                f"use {smallest[1]} or more")  # fmt: skip
    if largest := re.search(r"set it to a value <= (\d+)", error):
        return f"vocabulary {vocab_size} is above the {largest[1]} that this text can fill; use {largest[1]} or less"
    return f"vocabulary {vocab_size} cannot be trained on this text ({error}); give more text, or use bytes"
