"""Weights for others: no optimizer, cast, in Orbax's own format, for whoever reads that without our code.

They go from disk to disk a few chunks at a time, so a model need not fit the machine that exports it.
"""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from gptjax.config import to_json
from gptjax.errors import BadInput
from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.files import write_json
from gptjax.fingerprint import fingerprint
from gptjax.jobs.storage import exclusive, reason
from gptjax.models.model import ModelConfig
from gptjax.params import nested
from gptjax.run.checkpoint import CHUNK, Unreadable, chunk_of, copy_array, for_orbax, in_flight, seal
from gptjax.run.weights import MARK, SavedModel


def facts_of(saved: SavedModel) -> dict[str, Any]:
    """Say where a model's weights come from."""
    if saved.run is None:
        return dict(saved.facts)
    tokens = (saved.step or 0) * saved.run.tokens_per_step
    return {"step": saved.step, "tokens": tokens, "fingerprint": fingerprint(saved.run)}


def stored_dtype(saved: SavedModel) -> str:
    """Return the type of a model's numbers on disk."""
    kinds = (jnp.dtype(array.dtype.numpy_dtype) for array in saved.arrays.values())
    return next(kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)).name


def export(saved: SavedModel, to: Path, dtype: str | None = None) -> dict[str, Any]:
    """Write a model's weights, cast or as they are stored, as a folder of weights; return what its weights.json says.

    The folder appears when it is whole; BadInput if it exists.
    """
    dtype = dtype or stored_dtype(saved)
    facts = {**facts_of(saved), "dtype": dtype}
    with written_aside(to) as aside:
        write_model(aside, saved.config, stored(saved.arrays, dtype), facts, saved.execution)
        if saved.has_tokenizer:
            saved.tokenizer.save(aside)
    return facts


def write_model(
    to: Path,
    config: ModelConfig,
    weights: Mapping[str, "Writable"],
    facts: dict[str, Any],
    execution: Execution = DEFAULT_EXECUTION,
) -> None:
    """Write a folder of weights, all but its tokenizer."""
    padding = {} if execution.vocab_multiple == 1 else {"vocab_multiple": execution.vocab_multiple}
    write_params(weights, to / "params")
    write_json(to / "seal.json", seal(to / "params"))
    write_json(to / MARK, {"model": to_json(config), **padding, **facts})


@contextmanager
def written_aside(to: Path) -> Iterator[Path]:
    """Give a new folder that takes its name when it is whole, and is gone if it never is.

    What a killed process left of it is removed; another that is at work on it is waited for. BadInput if it exists, or
    for what it is made of; OSError where it cannot be written, as on a full disk.
    """
    to = to.absolute()
    try:
        with exclusive(to.with_name(f".{to.name}.partial")) as aside:
            if to.exists():
                raise BadInput(f"{to} exists and is not overwritten; move it away or choose another name")
            yield aside
            aside.rename(to)
    except Unreadable as error:
        raise BadInput(f"{to} was not written: what it is made of {error}; give another --step") from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"was not written ({reason(error)})", str(to)) from error
    except ValueError as error:
        if "os_error_code=" not in str(error):  # by which TensorStore says that storage has failed
            raise
        raise OSError(errno.EIO, f"was not written ({reason(error)})", str(to)) from error


class Writable(Protocol):
    """An array that can be written somewhere without being held whole."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def chunk(self) -> tuple[int, ...]:
        """The parts by which it is best written."""

    def write(self, target: ts.TensorStore) -> None: ...


def write_params(weights: Mapping[str, Writable], to: Path) -> None:
    """Write arrays, named by their path joined with dots, into an Orbax checkpoint of nested dicts."""
    kinds = {type(source) for source in weights.values()}
    registry = ocp.type_handlers.create_type_handler_registry(*((kind, SourceHandler()) for kind in kinds))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as writer:
        writer.save(for_orbax(to), nested(weights))


@dataclass(frozen=True)
class Stored:
    """An array on disk, cast to a floating type."""

    array: ts.TensorStore
    floating: str
    flights: int  # chunks to read at once

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        stored = jnp.dtype(self.array.dtype.numpy_dtype)
        return jnp.dtype(self.floating) if jnp.issubdtype(stored, jnp.floating) else stored

    @property
    def chunk(self) -> tuple[int, ...]:
        return chunk_of(self.array)

    def write(self, target: ts.TensorStore) -> None:
        copy_array(ts.cast(self.array, self.dtype), target, self.chunk, self.flights)


def stored(arrays: Mapping[str, ts.TensorStore], dtype: str) -> dict[str, Writable]:
    """Return arrays on disk as what can be written elsewhere."""
    return {name: Stored(array, dtype, in_flight(arrays)) for name, array in arrays.items()}


class SourceHandler(ocp.type_handlers.NumpyHandler):
    """Write sources as Orbax writes numpy's arrays, and so for any reader of those."""

    async def serialize(
        self, values: Sequence[Writable], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> list[Any]:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=value.shape,
                local_shape=value.chunk,
                dtype=value.dtype,
                process_index=jax.process_index(),
                arg=ocp.SaveArgs(chunk_byte_size=CHUNK),
            )
            value.write(await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context))
        return []
