"""A model written as transformers reads it: config, safetensors, tokenizer, and a card with where it comes from.

Weights go from disk to disk, one array or one layer of it at a time.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import BadInput
from gptjax.files import write_file, write_json
from gptjax.hf.architectures import (
    Architecture,
    Part,
    Tensor,
    architecture_of,
    gpt_config,
    multipliers,
    tensors_of,
    without_mup,
)
from gptjax.hf.card import card
from gptjax.hf.tensor_files import Outgoing, write_tensors
from gptjax.hf.tokenizer import tokenizer_files
from gptjax.hf.verify import Verification, verify
from gptjax.run.checkpoint import chunk_of, copy_array, in_flight
from gptjax.run.export import stored_dtype, written_aside
from gptjax.run.weights import SavedModel

BLOCK_BYTES = 2**24  # of a tensor, written at a time
SHARD_BYTES = 5 * 10**9


def export_hf(
    saved: SavedModel, to: Path, dtype: str | None = None, *, shard_bytes: int = SHARD_BYTES, verified: bool = True
) -> Verification | None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer read; return how it was proved to be the model.

    The folder appears when it is whole and, unless told otherwise, proved. BadInput where transformers has no such
    architecture, where the folder exists, or where what was written says something else than the model.
    """
    family = architecture_of(saved.config)
    kind = jnp.dtype(dtype or stored_dtype(saved))
    tokenizer = saved.tokenizer if saved.has_tokenizer else None
    if tokenizer and tokenizer.vocab_size > saved.config.vocab_size:
        raise BadInput(
            f"{saved.directory} has a tokenizer of {tokenizer.vocab_size} ids, its model {saved.config.vocab_size}; "
            "put there the one that it was trained with"
        )
    with written_aside(to) as aside:
        write_config(aside, saved, family, kind, tokenizer)
        tensors = [outgoing(tensor, saved) for tensor in tensors_of(gpt_config(saved.config), family)]
        write_tensors(aside, tensors, kind, shard_bytes)
        proof = verify(aside, saved, kind) if verified else None
        write_file(aside / "README.md", card(saved, family, kind, proof))
    return proof


def write_config(
    to: Path, saved: SavedModel, family: Architecture, dtype: np.dtype, tokenizer: Tokenizer | None
) -> None:
    """Write config.json, generation_config.json and the tokenizer's files."""
    if saved.marks:
        marks, generation = saved.marks.config, saved.marks.generation
    else:  # a document ends where the next begins
        marks, generation = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.bos if tokenizer else None), None
    content = {"architectures": [family.architecture], "model_type": family.model_type, "dtype": dtype.name}
    write_json(to / "config.json", {**content, **family.write(without_mup(gpt_config(saved.config))), **marks})
    write_json(to / "generation_config.json", marks if generation is None else generation)
    if tokenizer:
        for name, data in tokenizer_files(tokenizer, saved.config.context).items():
            write_file(to / name, data)


def outgoing(tensor: Tensor, saved: SavedModel) -> Outgoing:
    return Outgoing(tensor.name, tensor.shape, partial(_blocks, tensor, saved))


def _blocks(tensor: Tensor, saved: SavedModel) -> Iterator[np.ndarray]:
    """Yield rows of a tensor of theirs, made of ours."""
    factors = multipliers(gpt_config(saved.config))
    parts = [_read(part, saved.arrays, factors.get(part.name, 1.0)).reshape(part.matrix) for part in tensor.parts]
    if tensor.transposed:
        for matrix in parts:  # one below the other
            yield from _rows(matrix.T)
    elif len(parts) == 1:
        yield from _rows(parts[0])
    else:
        yield np.concatenate(parts, axis=-1)


def _rows(matrix: np.ndarray) -> Iterator[np.ndarray]:
    n = max(1, BLOCK_BYTES // max(1, matrix[:1].nbytes))
    for start in range(0, len(matrix), n):
        yield matrix[start : start + n]


def _read(part: Part, arrays: Mapping[str, ts.TensorStore], factor: float) -> np.ndarray:
    """Read an array of ours, or a layer of it, without the padding of its vocabulary; a bias we lack is zero."""
    if part.name not in arrays and part.name.endswith(".bias"):
        return np.zeros(part.shape, np.float32)
    array = arrays[part.name]
    layers = () if part.layer is None else (slice(part.layer, part.layer + 1),)
    source = array[(*layers, *map(slice, part.shape))]
    values = np.empty(source.shape, source.dtype.numpy_dtype)
    copy_array(source, ts.array(values)[ts.d[:].translate_to[source.origin]], chunk_of(array), in_flight(arrays))
    if factor != 1:
        values *= np.asarray(factor, values.dtype)
    return values
