"""A model that transformers saved, read into a folder of weights: every tensor is accounted for before one is written.

Tensors go from disk to disk, one at a time.
"""

import re
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from gptjax.data.json_tokenizer import FILES, JSON_FILE, JsonTokenizer, packed
from gptjax.errors import BadInput
from gptjax.files import read_json
from gptjax.hf.architectures import Architecture, Part, Settings, Tensor, architecture_named, tensors_of
from gptjax.hf.tensor_files import Incoming, open_tensors
from gptjax.hf.tokenizer import Compared, compare_tokenizer
from gptjax.models.gpt import GPTConfig
from gptjax.params import Params, nested
from gptjax.run.checkpoint import chunk_of, copy_array
from gptjax.run.export import write_model, written_aside
from gptjax.run.weights import MARK_IDS, Marks

# Masks and frequencies that older versions saved, and the prefix that GPT-1's and GPT-2's own files lack.
NO_WEIGHT = re.compile(r"(^|\.)(h\.\d+\.attn\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$")
PREFIX = "transformer."


@dataclass(frozen=True)
class Loaded:
    """A model of transformers whose files have been read as far as their headers."""

    folder: Path
    family: Architecture
    config: GPTConfig
    marks: Marks
    tensors: dict[str, Incoming]  # by the names of the family's table
    wanted: list[Tensor]
    dtype: np.dtype
    tokenizer: JsonTokenizer | None
    compared: Compared | None = None  # how transformers reads the tokenizer, where it was asked


def open_hf(folder: Path) -> Loaded:
    """Read what a folder holds; BadInput naming file, tensor, expected and found where it is not a model of ours."""
    path = folder / "config.json"
    content = _json_object(path)
    match content.get("architectures"):
        case [str(name), *_]:
            family = architecture_named(name, str(path))
        case _:
            raise BadInput(f"{path} names no architectures; give the folder that save_pretrained wrote")
    if (kind := content.get("model_type", family.model_type)) != family.model_type:
        raise BadInput(f"{path}: model_type {kind!r} is not that of {name}, {family.model_type!r}; mend one of them")
    try:
        config = family.read(Settings(content))
        marks = marks_of(content, folder / "generation_config.json")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    found = _named(open_tensors(folder), family)
    _check_sizes(path, config, found)
    wanted = tensors_of(config, family)
    embedding, head = wanted[0].name, "lm_head.weight"
    if config.tied and embedding not in found and head in found:
        found[embedding] = found.pop(head)
    tied = found.pop(head, None) if config.tied else None
    _check(folder, wanted, found)
    if tied and (tied.shape != found[embedding].shape or not np.array_equal(tied.read(), found[embedding].read())):
        raise BadInput(f"{path} says tie_word_embeddings, and {head} is not {embedding}; untie them")
    tokenizer = _tokenizer(folder, config, marks, family.model_type)
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        raise BadInput(
            f"{folder / JSON_FILE} has {tokenizer.vocab_size} ids and the model {config.vocab_size}; "
            "give the tokenizer that belongs to it"
        )
    return Loaded(folder, family, config, marks, found, wanted, found[embedding].dtype, tokenizer)


def _json_object(path: Path) -> dict[str, Any]:
    content = read_json(path, "the folder that save_pretrained wrote")
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__} and not an object; copy_array it again")
    return content


def marks_of(config: dict[str, Any], generation: Path) -> Marks:
    """Return the ids that begin and end texts, of the content of a config.json and of the file beside it."""

    def named(content: dict[str, Any]) -> dict[str, Any]:
        return {name: content[name] for name in MARK_IDS if name in content}

    return Marks(named(config), named(_json_object(generation)) if generation.is_file() else None)


def _check_sizes(path: Path, config: GPTConfig, found: dict[str, Incoming]) -> None:
    """Refuse sizes that the files cannot hold, before anything is made of such a size."""
    numbers = sum(prod(tensor.shape) for tensor in found.values())
    sizes = {"layers": config.n_layers, "vocabulary": config.vocab_size, "width": config.d_model}
    sizes |= {"MLP": config.mlp_size, "heads": config.n_heads * config.head_size}
    for name, size in sizes.items():
        if size > (len(found) if name == "layers" else numbers):
            raise BadInput(
                f"{path} asks for {name} of {size}, and the files beside it hold {len(found)} tensors of {numbers} "
                "numbers; give the config.json that was saved with the weights"
            )


def _named(found: dict[str, Incoming], family: Architecture) -> dict[str, Incoming]:
    """Give tensors the names of the family's table, and leave out what is no weight."""
    weights = {name: tensor for name, tensor in found.items() if not NO_WEIGHT.search(name)}
    if not family.rows[0].theirs.startswith(PREFIX) or any(name.startswith(PREFIX) for name in weights):
        return weights
    return {name if name.startswith("lm_head.") else PREFIX + name: tensor for name, tensor in weights.items()}


def _check(folder: Path, wanted: list[Tensor], found: dict[str, Incoming]) -> None:
    if missing := [tensor for tensor in wanted if tensor.name not in found]:
        raise BadInput(
            f"{folder} has no tensor {missing[0].name} of shape {missing[0].shape}"
            + f", nor {len(missing) - 1} others" * (len(missing) > 1)
            + "; its weights are not those of its config.json"
        )
    if extra := sorted(found.keys() - {tensor.name for tensor in wanted}):
        first = found[extra[0]]
        raise BadInput(
            f"{first.path}: tensor {extra[0]} of shape {first.shape} has no place in the architecture of config.json"
            + f", nor have {len(extra) - 1} others" * (len(extra) > 1)
            + "; gptjax has no model with it"
        )
    usual = found[wanted[0].name]
    for tensor in wanted:
        given = found[tensor.name]
        if given.shape != tensor.shape:
            raise BadInput(f"{given.path}: {tensor.name} has shape {given.shape}, and config.json asks {tensor.shape}")
        if given.dtype != usual.dtype:
            raise BadInput(
                f"{given.path}: {tensor.name} is {given.dtype} and {wanted[0].name} {usual.dtype}; save all in one type"
            )


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def _tokenizer(folder: Path, config: GPTConfig, marks: Marks, model_type: str) -> JsonTokenizer | None:
    files = _tokenizer_files(folder)
    if JSON_FILE not in files:
        return None
    lead = next((i for i in marks.leads if 0 <= i < config.vocab_size), None)
    try:
        tokenizer = JsonTokenizer(packed(files, lead, model_type, config.vocab_size))
        tokenizer.check()
    except (BadInput, RecursionError) as error:  # the second: lists within lists, a few less than JSON may have
        raise BadInput(f"{folder / JSON_FILE}: {error}; take it away to import the weights alone") from None
    return tokenizer


def import_hf(folder: Path, to: Path) -> Loaded:
    """Write a folder of weights from one of transformers, in the type that it is stored in.

    It appears when it is whole; BadInput if it exists, or for what `open_hf` refuses, or where transformers is
    installed and reads the tokenizer otherwise.
    """
    model = open_hf(folder)
    if model.tokenizer:
        files = _tokenizer_files(folder)
        model = replace(model, compared=compare_tokenizer(model.tokenizer, files, model.family.model_type))
    facts = {
        "source": f"{folder.resolve().name}, {model.family.architecture} of transformers",
        "config_sha256": sha256((folder / "config.json").read_bytes()).hexdigest(),
        "dtype": model.dtype.name,
        "marks": asdict(model.marks),
    }
    with written_aside(to) as aside:
        write_model(aside, model.config, arrays_of(model), facts)
        if model.tokenizer:
            model.tokenizer.save(aside)
    return model


@dataclass(frozen=True)
class Placed:
    """A layer of one of our arrays (None: all of it), and the tensor of theirs it is a part of."""

    part: Part
    tensor: Tensor
    file: Incoming

    def read(self) -> np.ndarray:
        """Return the part in our shape, after a leading 1 if it is a layer."""
        found = self.file.read()
        found = found.T if self.tensor.transposed else found
        widths = [part.matrix[-1] for part in self.tensor.parts]
        place = self.tensor.parts.index(self.part)
        start = sum(widths[:place])
        mine = found[..., start : start + widths[place]].reshape(self.part.shape)
        return mine if self.part.layer is None else mine[None]


@dataclass(frozen=True)
class Stacked:
    """One of our arrays, to be put together of tensors of theirs."""

    pieces: tuple[Placed, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        part = self.pieces[0].part
        return part.shape if part.layer is None else (len(self.pieces), *part.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.pieces[0].file.dtype

    @property
    def chunk(self) -> tuple[int, ...]:
        part = self.pieces[0].part
        return part.shape if part.layer is None else (1, *part.shape)

    def write(self, target: ts.TensorStore) -> None:
        for piece in self.pieces:
            values = ts.array(piece.read())
            origin = [piece.part.layer or 0] + [0] * (values.ndim - 1)
            copy_array(values[ts.d[:].translate_to[origin]], target, chunk_of(target), flights=1)


def arrays_of(model: Loaded) -> dict[str, Stacked]:
    """Return our arrays by name."""
    pieces: dict[str, list[Placed]] = {}
    for tensor in model.wanted:
        for part in tensor.parts:
            pieces.setdefault(part.name, []).append(Placed(part, tensor, model.tensors[tensor.name]))
    return {name: Stacked(tuple(placed)) for name, placed in pieces.items()}


def read_params(model: Loaded) -> Params:
    """Return the weights as nested dicts of float32 arrays, all in memory."""
    params = {}
    for name, array in arrays_of(model).items():
        layers = [piece.read() for piece in array.pieces]
        whole = layers[0] if array.pieces[0].part.layer is None else np.concatenate(layers)
        params[name] = whole.astype(np.float32)
    return nested(params)
