"""A tokenizer that came with an imported model: a tokenizer.json, run by Hugging Face's library of tokenizers."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import write_file

JSON_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
SPACE = "\u2581"


def packed(files: dict[str, bytes], bos: int | None) -> bytes:
    """Join the files of a tokenizer, and the id that leads documents (None: the one for unknown text), into one."""
    content = json.loads(files[JSON_FILE])
    if bos is None:
        unknown = content["model"].get("unk_token")
        bos = next((t["id"] for t in content["added_tokens"] if t["content"] == unknown), 0)
    return json.dumps({"bos": bos, "files": {name: data.decode() for name, data in files.items()}}).encode()


class JsonTokenizer:
    """What `packed` joined. Unlike our own tokenizers it may alter text, as LLaMA's adds a space and GPT-1's lowers."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        try:
            held = json.loads(model)
            self.bos: int = held["bos"]
            self.files = {name: text.encode() for name, text in held["files"].items()}
            self._content = json.loads(self.files[JSON_FILE])
            self._table = _table(self._content)
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"a {JSON_FILE} of {len(model)} bytes cannot be read ({error!r}); make it again") from None
        self.vocab_size = len(self._table)
        self.token_bytes = np.array([len(piece) for piece in self._table])
        self.digest = sha256(model).hexdigest()

    def encode(self, document: bytes) -> np.ndarray:
        return self.encode_many([document])[0]

    def encode_many(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        texts = [document.decode("utf-8", "replace") for document in documents]
        found = self._library.encode_batch(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._table[i] for i in ids)

    def save(self, directory: Path) -> None:
        write_file(directory / "tokenizer.model", self._model)

    @cached_property
    def _library(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise BadInput("this model's tokenizer needs tokenizers; pip install 'gptjax[tokenizers]'") from error
        library = tokenizers.Tokenizer.from_str(self.files[JSON_FILE].decode())
        settings = json.loads(self.files.get(CONFIG_FILE, b"{}"))
        library.encode_special_tokens = settings.get("split_special_tokens", False)  # texts that spell marks
        return library


def _table(content: dict[str, Any]) -> list[bytes]:
    """Return the bytes that each id stands for; none for marks."""
    model, kinds = content["model"], {part["type"] for part in _decoders(content)}
    vocab = model["vocab"]
    pieces = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    if "ByteLevel" in kinds:
        letters = _byte_letters()

        def spelled(piece: str) -> bytes:
            return bytes(letters[letter] for letter in piece)
    elif "ByteFallback" in kinds:
        mark = SPACE if kinds & {"Replace", "Metaspace"} else " "

        def spelled(piece: str) -> bytes:
            is_byte = len(piece) == 6 and piece.startswith("<0x")
            return bytes.fromhex(piece[3:5]) if is_byte else piece.replace(mark, " ").encode()
    elif "BPEDecoder" in kinds:
        suffix = next(part["suffix"] for part in _decoders(content) if part["type"] == "BPEDecoder")

        def spelled(piece: str) -> bytes:
            return piece.replace(suffix, " ").encode()
    else:
        raise KeyError(f"a decoder of ByteLevel, ByteFallback or BPEDecoder, not {', '.join(sorted(kinds)) or 'none'}")
    added = {token["id"]: token for token in content["added_tokens"]}
    table = [b""] * (1 + max([*pieces.values(), *added]))
    for piece, i in pieces.items():
        if i not in added:
            table[i] = spelled(piece)
    for i, token in added.items():
        table[i] = b"" if token["special"] else token["content"].encode()
    return table


def _decoders(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    decoder = content.get("decoder") or {}
    yield from decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder] if decoder else []


def _byte_letters() -> dict[str, int]:
    """Return the letter that GPT-2 writes each byte with: printable ones are themselves (Radford et al. 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
