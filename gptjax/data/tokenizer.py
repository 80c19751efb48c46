"""Tokenizers: bytes -> ids -> the same bytes, for any bytes at all."""

import heapq
import io
import os
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece as spm

from gptjax.allocator import return_freed_memory
from gptjax.data.json_tokenizer import JsonTokenizer
from gptjax.errors import BadInput
from gptjax.files import write_file

MODEL_FILE = "tokenizer.model"
SPACE = "\u2581"  # how SentencePiece writes a space, so that it cannot tell its own from ours
RAW = re.compile(f"([\udc80-\udcff{SPACE}]+)")  # what goes round SentencePiece: that mark, and undecodable bytes

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


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback; what SentencePiece would alter is given to it as bytes."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = spm.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self._table = [self._bytes_of(i) for i in range(self._processor.vocab_size())]
        self._byte_ids = np.array([self._processor.piece_to_id(f"<0x{b:02X}>") for b in range(256)], np.int32)
        self.vocab_size = len(self._table)
        self.bos = self._processor.bos_id()
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

    def _encode_raw(self, part: str) -> np.ndarray:
        return self._byte_ids[np.frombuffer(part.encode("utf-8", "surrogateescape"), np.uint8)]

    def _bytes_of(self, i: int) -> bytes:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes.fromhex(piece[3:5])
        return b"" if _is_mark(self._processor, i) else piece.replace(SPACE, " ").encode()


def _is_mark(processor: Any, i: int) -> bool:
    return processor.is_control(i) or processor.is_unknown(i)


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
    if kind == "sentencepiece" and vocab_size.isdecimal():
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
    sentences = (text[i : i + SENTENCE_CHARACTERS] for text in texts for i in range(0, len(text), SENTENCE_CHARACTERS))
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=sentences,
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
