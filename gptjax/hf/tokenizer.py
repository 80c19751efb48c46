"""Our tokenizers as a tokenizer.json that gives the same ids for any text, and what transformers says of one."""

import importlib.metadata
import json
import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptjax.data.json_tokenizer import AS_IT_STANDS, CONFIG_FILE, JSON_FILE, JsonTokenizer
from gptjax.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from gptjax.errors import BadInput

BOS, UNKNOWN = "<s>", "<unk>"
TEXTS = 300  # that two tokenizers are compared on


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """Return tokenizer.json and tokenizer_config.json, by name."""
    settings = {
        "tokenizer_class": AS_IT_STANDS,
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
        given = json.loads(tokenizer.files.get(CONFIG_FILE, b"{}"))
        if given.get("tokenizer_class") == AS_IT_STANDS:
            return tokenizer.files
        mended = {**given, "tokenizer_class": AS_IT_STANDS}  # LLaMA-2's own class would alter what is read
        return {**tokenizer.files, CONFIG_FILE: json.dumps(mended, indent=1).encode()}
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


@dataclass(frozen=True)
class Compared:
    """How transformers reads an imported tokenizer."""

    by: str
    differs: str  # in what from ours; nothing if in nothing


def compare_tokenizer(tokenizer: JsonTokenizer, files: dict[str, bytes], model_type: str) -> Compared | None:
    """Compare a tokenizer with what transformers makes of the files it came in; None where that is not installed.

    The class that tokenizer_config.json names may build a tokenizer's parts anew. Where transformers reads
    tokenizer.json itself as we do, that tokenizer_difference is told; any other is BadInput.
    """
    if not (find_spec("transformers") and find_spec("tokenizers")):
        return None
    import transformers

    transformers.logging.set_verbosity_error()
    by = f"transformers {importlib.metadata.version('transformers')}"
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in {
            **_without_code(files),
            "config.json": json.dumps({"model_type": model_type}).encode(),
        }.items():
            (folder / file).write_bytes(data)
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # a class it lacks, a field it refuses: its reasons are many, and none is a bug here
            line = next(iter(str(error).splitlines()), type(error).__name__)
            return Compared(by, f"cannot be read by {by} ({line}), so its ids were not compared")
        if not (differs := tokenizer_difference(theirs, tokenizer)):
            return Compared(by, "")
        as_it_stands = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        if tokenizer_difference(as_it_stands, tokenizer):
            raise BadInput(f"{by} reads {differs}: gptjax does not know this tokenizer; give another, or none")
        return Compared(
            by,
            f"is rebuilt by {by} as a {type(theirs).__name__}, which reads {differs}, which is what {JSON_FILE} says",
        )


def _without_code(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out where the code of a tokenizer is: none is run that comes with a model."""
    if CONFIG_FILE not in files:
        return files
    settings = json.loads(files[CONFIG_FILE])
    settings.pop("auto_map", None)
    return {**files, CONFIG_FILE: json.dumps(settings).encode()}


def tokenizer_difference(theirs: Any, ours: Tokenizer) -> str:
    """Say of which text, the shortest found, a tokenizer of transformers gives other ids than ours; nothing if none."""
    texts = sorted(adversarial_texts(ours), key=len)
    for text, ids in zip(texts, ours.encode_many([text.encode() for text in texts]), strict=True):
        found, own = theirs.encode(text, add_special_tokens=False), ids.tolist()
        if found != own:
            return f"{text!r} as {found}, and gptjax as {own}"
    return ""


def adversarial_texts(tokenizer: Tokenizer, n: int = TEXTS, seed: int = 0) -> list[str]:
    """Return texts of the tokenizer's own pieces in any order, and of spaces, marks and letters it may lack."""
    rng = random.Random(seed)
    pieces = [tokenizer.decode([i]).decode(errors="ignore") for i in range(tokenizer.vocab_size)]
    letters = [
        " ",
        "  ",
        "    ",
        "\n",
        "\t",
        "\u2581",
        "\u00e9",
        "e\u0301",
        "\u65e5\u672c",
        "\U0001d11e",
        "\u200d",
        "\0",
    ]
    letters += ["<s>", "<unk>", "0", "A", *(tokenizer.added if isinstance(tokenizer, JsonTokenizer) else ())]
    texts = []
    for i in range(n):
        alphabet = pieces if i % 2 else rng.sample(letters, rng.randrange(1, len(letters)))
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))))
    return texts
