"""Tokenizers: lossless on any bytes, deterministic, exact about the bytes behind each id."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    read_tokenizer,
    train_sentencepiece,
)
from gptjax.errors import BadInput

# What SentencePiece treats specially, and the neighbours of each.
MARKS = ["<s>", "</s>", "<unk>", "<pad>", "<0x41>", "<0xE2>", "\u2581", "\u2581\u2581", "\u2585", "\u2047", " ", "  ",
         "\t", "\n", "\r\n", "\0", "\x01", "\x7f", "\ufeff", "\u00a0", "\u3000", "\u200b", "\ufffd", "\uffff",
         "e\u0301", "é", "ﬁ", "\uff21", "\U0001f600", "\U0010ffff", "def f(self):\n    return 12345\n"]  # fmt: skip
BROKEN = [b"\xff", b"\xe2\x96", b"\x81", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]

SOURCE = [
    f"def function_{i}(argument, other):\n    if argument > {i}:\n        return other + {i}\n\n\n".encode() * 5
    for i in range(50)
] + ["".join(MARKS).encode() * 20, b"a <s> b </s> c <unk> <0x41> d\n" * 50]

SENTENCEPIECE = train_sentencepiece(SOURCE, 360)
TOKENIZERS: list[Tokenizer] = [ByteTokenizer(), SENTENCEPIECE]

adversarial = st.lists(st.sampled_from([mark.encode() for mark in MARKS] + BROKEN)).map(b"".join)
anything = st.one_of(st.binary(), st.text().map(str.encode), adversarial)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=500, derandomize=True, deadline=None)
@given(document=anything)
def test_lossless(tokenizer, document):
    ids = tokenizer.encode(document)
    assert tokenizer.decode(ids) == document
    assert ids.dtype == np.int32 and ids.shape == (len(ids),)
    assert tokenizer.bos not in ids
    assert tokenizer.token_bytes[ids].sum() == len(document)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_lossless_on_every_character_and_every_pair_of_bytes(tokenizer):
    characters = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000).encode()
    pairs = b"".join(bytes([a, b, 32]) for a in range(256) for b in range(256))
    for document in (characters, pairs):
        assert tokenizer.decode(tokenizer.encode(document)) == document


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_many_are_encoded_as_one_by_one(tokenizer):
    documents = [*SOURCE, b"", *BROKEN, "".join(MARKS).encode()]
    for together, document in zip(tokenizer.encode_many(documents), documents, strict=True):
        np.testing.assert_array_equal(together, tokenizer.encode(document))
    assert tokenizer.encode_many([]) == []


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_marks_stand_for_no_bytes(tokenizer):
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[tokenizer.bos] == 0
    assert tokenizer.decode([tokenizer.bos]) == b""


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_saved_is_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer) and loaded.digest == tokenizer.digest
    np.testing.assert_array_equal(loaded.encode(SOURCE[0]), tokenizer.encode(SOURCE[0]))


def test_training_fills_the_vocabulary_and_ignores_order():
    shuffled = SOURCE.copy()
    random.Random(0).shuffle(shuffled)
    again = train_sentencepiece(iter(shuffled), 360)
    assert again.vocab_size == 360 and again.digest == SENTENCEPIECE.digest
    assert train_sentencepiece(shuffled, 360, sample_bytes=5000).digest == (
        train_sentencepiece(SOURCE, 360, sample_bytes=5000).digest
    )


def test_pieces_may_hold_newlines():
    pieces = {SENTENCEPIECE.decode([i]) for i in range(SENTENCEPIECE.vocab_size)}
    assert any(b"\n" in piece and len(piece) > 1 for piece in pieces)
    assert any(piece.strip(b" ") == b"" and len(piece) > 1 for piece in pieces)


@pytest.mark.parametrize(("vocab_size", "remedy"), [(257, r"use \d+ or more"), (100_000, r"use \d+ or less")])
def test_an_impossible_vocabulary_names_the_nearest_possible_one(vocab_size, remedy):
    with pytest.raises(BadInput, match=remedy) as error:
        train_sentencepiece(SOURCE, vocab_size)
    nearest = int(str(error.value).split()[-3])
    assert train_sentencepiece(SOURCE, nearest).vocab_size == nearest


@pytest.mark.parametrize("spec", ["", "sentencepiece", "sentencepiece:", "sentencepiece:-5", "gpt2", "bytes:3"])
def test_unknown_tokenizers_are_refused(spec):
    with pytest.raises(BadInput, match="try sentencepiece:512"):
        make_tokenizer(spec, SOURCE)


def test_no_text_or_no_model_is_refused(tmp_path):
    with pytest.raises(BadInput, match="use the tokenizer bytes"):
        train_sentencepiece([b"", b"\xff"], 300)
    with pytest.raises(BadInput, match="does not exist"):
        load_tokenizer(tmp_path)
    for model in (b"", b"nonsense"):
        with pytest.raises(BadInput, match="no SentencePiece model"):
            read_tokenizer(model)
