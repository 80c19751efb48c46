"""Our tokenizers as a tokenizer.json that gives the same ids for any text."""

import json
from typing import Any

from gptjax.data.json_tokenizer import JsonTokenizer
from gptjax.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer

BOS, UNKNOWN = "<s>", "<unk>"


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """Return tokenizer.json and tokenizer_config.json, by name."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,  # a document ends where the next begins
        "unk_token": UNKNOWN,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a text that says <s> means those three characters
    }
    if isinstance(tokenizer, ByteTokenizer):
        vocab = {f"<0x{b:02X}>": b for b in range(256)} | {BOS: tokenizer.bos}
        del settings["unk_token"]
        content = _bpe(vocab, [], [tokenizer.bos])
    elif isinstance(tokenizer, SentencePieceTokenizer):
        content = _from_sentencepiece(tokenizer)
    elif isinstance(tokenizer, JsonTokenizer):
        return tokenizer.files
    else:
        raise TypeError(f"a {type(tokenizer).__name__} has no tokenizer.json")
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False, indent=1).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=1).encode(),
    }


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Spell pieces with the space itself, so that a text may hold SentencePiece's mark for it, which becomes bytes.

    SentencePiece joins the pair whose piece comes first in the vocabulary, and so do merges in that order.
    """
    pieces = tokenizer.pieces()
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    joined = {piece for piece, kind in pieces if kind == "text"}
    merges = []
    for piece, kind in pieces:
        if kind == "text":
            pairs = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            whole = [pair for pair in pairs if pair[0] in joined and pair[1] in joined]
            merges += sorted(whole, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return _bpe(vocab, merges, [i for i, (_, kind) in enumerate(pieces) if kind == "mark"])


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], marks: list[int]) -> dict[str, Any]:
    """Return a BPE over whole texts, in which a character that is no piece is its UTF-8 bytes, led by bos."""
    names = {i: piece for piece, i in vocab.items()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = {"SpecialToken": {"id": BOS, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": names[i], **plain} for i in marks],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [vocab[BOS]], "tokens": [BOS]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN if UNKNOWN in vocab else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
