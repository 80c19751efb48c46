"""A tokenizer that came with an imported model: a tokenizer.json, run by Hugging Face's library of tokenizers.

transformers takes a part of a tokenizer from the files beside tokenizer.json: `packed` puts it in.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import parse_json, write_file

JSON_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
ADDED_FILE, MARKS_FILE, TEMPLATE_FILE = "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"
FILES = (JSON_FILE, CONFIG_FILE, ADDED_FILE, MARKS_FILE, TEMPLATE_FILE)  # all that is kept of a folder

Json = dict[str, Any]
Spelling = Callable[[str], bytes]

MARKS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
AS_IT_STANDS = "PreTrainedTokenizerFast"  # the class that runs tokenizer.json; others build its parts anew
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
CLASSES = {"gpt2": "GPT2Tokenizer", "qwen3": "Qwen2Tokenizer"}  # where tokenizer_config.json names none
PREFIXED = ("normalizer", "pre_tokenizer")  # the parts that may put a space before a text
LARGEST_ID = 2**22  # a table of bytes has a row for every id, and no published tokenizer has a tenth of these


def packed(files: dict[str, bytes], bos: int | None, model_type: str = "", vocab_size: int = LARGEST_ID) -> bytes:
    """Join the files of a tokenizer, and the id that leads documents (None: the one for unknown text), into one.

    model_type and vocab_size are those of the model's config.json. Raises BadInput where the files contradict each
    other or are no tokenizer that is known here.
    """
    files = dict(files)
    content, settings = _object(files, JSON_FILE), _object(files, CONFIG_FILE)
    changed = {**content, "added_tokens": _with_tokens_beside(content, files, vocab_size)}
    kind = str(settings.get("tokenizer_class") or CLASSES.get(model_type, AS_IT_STANDS)).removesuffix("Fast")
    prefix = settings.get("add_prefix_space")
    if kind == "LlamaTokenizer" and prefix is not None:
        changed |= {part: _with_prefix(content.get(part), "Metaspace", prefix) for part in PREFIXED}
    elif kind not in (*GENERIC, "LlamaTokenizer"):
        changed["pre_tokenizer"] = _with_prefix(content.get("pre_tokenizer"), "ByteLevel", prefix)
    if changed != {part: content.get(part) for part in changed}:
        files[JSON_FILE] = json.dumps(changed, ensure_ascii=False, indent=1).encode("utf-8", "replace")
    if bos is None:
        unknown = content["model"].get("unk_token")
        ids = _pieces(content) | {token["content"]: token["id"] for token in changed["added_tokens"]}
        bos = ids.get(unknown)
        if bos is None:
            raise BadInput("names no token that leads a document; set bos_token_id in config.json")
    return json.dumps({"bos": bos, "files": {name: _text(files, name) for name in files}}).encode()


class JsonTokenizer:
    """What `packed` joined. Unlike our own tokenizers it may alter text, as LLaMA's adds a space and GPT-1's lowers."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        held = parse_json(model, f"a tokenizer of {len(model)} bytes")
        bos, texts = (held.get("bos"), held.get("files")) if isinstance(held, dict) else (None, None)
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise BadInput(f"a tokenizer of {len(model)} bytes has no files of one; import it again")
        self.files: dict[str, bytes] = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
        content, settings = _object(self.files, JSON_FILE), _object(self.files, CONFIG_FILE)
        self._table = _table(content)
        self.added = tuple(token["content"] for token in _added(content))
        self._splits_marks = settings.get("split_special_tokens", False)  # in a text that spells them
        if type(self._splits_marks) is not bool:
            raise BadInput(
                f"{CONFIG_FILE}: split_special_tokens = {self._splits_marks!r} is not true or false; mend it"
            )
        if type(bos) is not int or not 0 <= bos < LARGEST_ID:
            raise BadInput(f"has a bos of {bos!r}, and ids go from 0 to {len(self._table) - 1}; set bos_token_id")
        self.bos: int = bos
        self.vocab_size = len(self._table)
        self.token_bytes = np.array([len(piece) for piece in self._table])
        self.digest = sha256(model).hexdigest()

    def encode(self, document: bytes) -> np.ndarray:
        return self.encode_many([document])[0]

    def encode_many(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        texts = [document.decode("utf-8", "replace") for document in documents]
        try:
            found = self._library.encode_batch(texts, add_special_tokens=False)
        except BadInput:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise BadInput(
                f"the library of tokenizers cannot read a text ({_line(error)}); mend {JSON_FILE}"
            ) from error
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that ids stand for; an id that only pads the model's vocabulary stands for none."""
        return b"".join(self._table[i] for i in ids if i < self.vocab_size)

    def save(self, directory: Path) -> None:
        write_file(directory / "tokenizer.model", self._model)

    def check(self) -> None:
        """Refuse what the library cannot open, where it is installed."""
        if find_spec("tokenizers"):
            assert self._library

    @cached_property
    def _library(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise BadInput("this model's tokenizer needs tokenizers; make install EXTRAS=test,tokenizers") from error
        try:
            library = tokenizers.Tokenizer.from_str(self.files[JSON_FILE].decode())
        except Exception as error:  # the library raises nothing narrower
            raise BadInput(f"the library of tokenizers refuses it ({_line(error)}); mend {JSON_FILE}") from error
        library.no_truncation()  # what was saved is about how a text was read last, as in transformers
        library.no_padding()
        library.encode_special_tokens = self._splits_marks
        return library


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# ---- the files


def _text(files: dict[str, bytes], name: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not UTF-8 ({error}); save it again") from None


def _object(files: dict[str, bytes], name: str) -> Json:
    """Return the content of a file, nothing if there is none."""
    content = parse_json(files.get(name, b"{}"), name)
    if not isinstance(content, dict):
        raise BadInput(f"{name} holds a {type(content).__name__} and not an object; save the tokenizer again")
    return content


def _added(content: Json) -> list[Json]:
    """Return the added tokens of a tokenizer.json."""
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else [added]:
        match token:
            case {"id": int(i), "content": str(), "special": bool()} if 0 <= i < LARGEST_ID:
                continue
        raise BadInput(f"{JSON_FILE}: {token!r:.99} is no added token with its id, content and special; save it again")
    return added or []


def _pieces(content: Json) -> dict[str, int]:
    """Return the ids of a tokenizer.json's vocabulary, added tokens aside."""
    model = content.get("model")
    if not isinstance(model, dict):
        model = {}
    vocab = model.get("vocab")
    if vocab and (prefix := model.get("continuing_subword_prefix")):  # the library may crash where it cuts this off
        raise BadInput(f"{JSON_FILE}: continuing_subword_prefix = {prefix!r:.99}, and gptjax has none; use another")
    if isinstance(vocab, list) and all(isinstance(row, list) and row and isinstance(row[0], str) for row in vocab):
        vocab = {row[0]: i for i, row in enumerate(vocab)}
    if isinstance(vocab, dict) and all(type(i) is int and 0 <= i < LARGEST_ID for i in vocab.values()):
        return vocab
    raise BadInput(f"{JSON_FILE} has no vocabulary of ids from 0 to {LARGEST_ID - 1}; save the tokenizer again")


def _with_tokens_beside(content: Json, files: dict[str, bytes], vocab_size: int) -> list[Json]:
    """Return the added tokens, with those that only the files beside tokenizer.json name, in transformers' order.

    A mark that is nothing but named, and would get an id that the model lacks, as that of padding often, is left out.
    """
    added, pieces = _added(content), _pieces(content)
    held = {token["content"] for token in added}
    after = max([*pieces.values(), *(token["id"] for token in added), -1]) + 1
    new: list[Json] = []
    for given, token in _named_beside(files):
        name = token["content"]
        if name in held or not name:
            continue
        i = pieces.get(name, after)
        if given is None and i >= vocab_size:
            continue
        if given is not None and given != i:
            raise BadInput(f"token {name!r} is said to have id {given}, and it gets {i}; save the tokenizer again")
        after += i == after
        held.add(name)
        new.append({"id": i, **token})
    return [*added, *sorted(new, key=lambda token: token["id"])]


def _named_beside(files: dict[str, bytes]) -> Iterator[tuple[int | None, Json]]:
    """Yield the tokens that are named beside tokenizer.json, each with its id where that is said."""
    settings = _object(files, CONFIG_FILE)
    listed = settings.get("added_tokens_decoder")
    named = settings
    if listed is None:
        named = settings | _object(files, MARKS_FILE)
    several = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    if not isinstance(several, list | dict):
        raise BadInput(f"{CONFIG_FILE}: {several!r:.99} lists no tokens; save the tokenizer again")
    marks = [named.get(name) for name in MARKS] + list(several.values() if isinstance(several, dict) else several)
    special = [_token(mark, special=True) for mark in marks if mark]
    names = {token["content"] for token in special}
    if listed is None:
        found = [(i, _token(name, special=name in names)) for name, i in _object(files, ADDED_FILE).items()]
    elif isinstance(listed, dict):
        found = [(int(key) if key.isdecimal() else key, _token(token, False)) for key, token in listed.items()]
    else:
        found = [(None, {})]
    if any(type(i) is not int for i, _ in found):
        raise BadInput(f"{ADDED_FILE if listed is None else CONFIG_FILE} gives no id for each token; save it again")
    yield from sorted(found, key=lambda pair: pair[0])
    yield from ((None, token) for token in special)


def _token(given: Any, special: bool) -> Json:
    """Return a token as tokenizer.json has it, of its text or of its fields."""
    fields = {"content": given} if isinstance(given, str) else given
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise BadInput(f"{CONFIG_FILE}: {given!r:.99} is no token; save the tokenizer again")
    special = fields.get("special", special) is True
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"content": fields["content"], **{k: fields.get(k, v) is True for k, v in usual.items()}, "special": special}


def _with_prefix(part: Any, kind: str, prefix: Any) -> Any:
    """Return a normalizer or pre-tokenizer of which what is of a kind puts a space before a text, or does not."""
    match part:
        case {"type": "Sequence"}:
            lists = {name: value for name, value in part.items() if isinstance(value, list)}
            return {**part, **{name: [_with_prefix(p, kind, prefix) for p in parts] for name, parts in lists.items()}}
        case {"type": "ByteLevel"} if kind == "ByteLevel":
            return {**part, "add_prefix_space": bool(prefix)}
        case {"type": "Metaspace", **rest} if kind == "Metaspace":
            usual = rest.get("prepend_scheme")
            return {**part, "prepend_scheme": ("first" if usual in (None, "never") else usual) if prefix else "never"}
        case {"type": "Prepend"} if kind == "Metaspace" and not prefix:
            return {"type": "Sequence", "normalizers": []}
    return part


# ---- the bytes of ids


def _table(content: Json) -> list[bytes]:
    """Return the bytes that each id stands for; none for marks."""
    pieces, added = _pieces(content), _added(content)
    spelled, spelled_added = _spellings(content)
    table = [b""] * (1 + max([*pieces.values(), *(token["id"] for token in added)], default=-1))
    for piece, i in pieces.items():
        table[i] = spelled(piece)
    for token in added:
        table[token["id"]] = b"" if token["special"] else spelled_added(token["content"])
    return table


def _spellings(content: Json) -> tuple[Spelling, Spelling]:
    """Return how a piece of the vocabulary, and how an added token, becomes bytes."""
    decoders = list(_decoders(content))
    kinds = {part["type"] for part in decoders}
    if "ByteLevel" in kinds:
        letters = _byte_letters()

        def byte_level(piece: str) -> bytes:
            known = all(letter in letters for letter in piece)
            return bytes(letters[letter] for letter in piece) if known else piece.encode("utf-8", "replace")

        return byte_level, lambda token: token.encode("utf-8", "replace")  # it is found in the text as it stands
    if "BPEDecoder" in kinds:
        suffix = next(part.get("suffix") for part in decoders if part["type"] == "BPEDecoder")
        if isinstance(suffix, str) and suffix:
            return (lambda piece: piece.replace(suffix, " ").encode("utf-8", "replace"),) * 2
    if "ByteFallback" in kinds:
        marks = [mark for part in decoders if (mark := _space_mark(part))]

        def with_spaces(piece: str) -> bytes:
            for mark in marks:
                piece = piece.replace(mark, " ")
            return piece.encode("utf-8", "replace")

        bytes_of = {f"<0x{b:02X}>": bytes([b]) for b in range(256)}
        return lambda piece: bytes_of.get(piece) or with_spaces(piece), with_spaces
    told = ", ".join(sorted(kinds)) or "none"
    raise BadInput(f"{JSON_FILE} needs a decoder of ByteLevel, ByteFallback or BPEDecoder, not {told}; use another")


def _decoders(content: Json) -> Iterator[Json]:
    decoder = content.get("decoder")
    match decoder:
        case None:
            return
        case {"type": "Sequence", "decoders": [*parts]}:
            pass
        case _:
            parts = [decoder]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadInput(f"{JSON_FILE}: {part!r:.99} is no decoder; save the tokenizer again")
        yield part


def _space_mark(decoder: Json) -> str:
    """Return what a decoder turns into a space; nothing if it does something else."""
    match decoder:
        case {"type": "Replace", "pattern": {"String": str(mark)}, "content": " "}:
            return mark
        case {"type": "Metaspace", "replacement": str(mark)}:
            return mark
    return ""


def _byte_letters() -> dict[str, int]:
    """Return the letter that GPT-2 writes each byte with: printable ones are themselves (Radford et al. 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
