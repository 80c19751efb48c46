"""A run's weights for others: no optimizer, cast, in Orbax's own format, for whoever reads that without our code.

They go from disk to disk a few chunks at a time, so a model need not fit the machine that exports it.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from gptjax.config import load_config, to_json
from gptjax.errors import BadInput
from gptjax.files import write_json
from gptjax.question import fingerprint
from gptjax.train.checkpoint import CHUNK, Unreadable, chunk_of, copy, in_flight, open_arrays, reason
from gptjax.train.weights import chosen_step

PARAMS = "params."


def export(run: Path, to: Path, step: int | None, dtype: str) -> dict[str, Any]:
    """Write `to`/params, an Orbax checkpoint, and `to`/export.json, which says what it is and is returned.

    The newest intact step is taken where none is given. `to` appears when it is whole; BadInput if it exists.
    """
    config, saved = load_config(run / "config.json"), run / "checkpoints"
    if to.exists():
        raise BadInput(f"{to} exists and is not overwritten; move it away or choose another --to")
    step = chosen_step(run, step)
    facts = {
        "model": to_json(config.model),
        "step": step,
        "tokens": step * config.tokens_per_step,
        "fingerprint": fingerprint(config),
        "dtype": dtype,
    }
    partial = Path(mkdtemp(dir=to.absolute().parent, prefix=f".{to.name}."))
    try:
        write_weights(saved / str(step), partial / "params", dtype)
        write_json(partial / "export.json", facts)
        partial.chmod(0o755)
        partial.rename(to)
    except (Unreadable, OSError, ValueError) as error:
        raise BadInput(f"{to} was not written ({reason(error)}); make room, or give another --step") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def write_weights(step: Path, to: Path, dtype: str) -> None:
    """Copy the weights of a step, floating ones as `dtype`, into an Orbax checkpoint of nested dicts."""
    tree: dict[str, Any] = {}
    arrays = open_arrays(step)
    for name, array in arrays.items():
        if name.startswith(PARAMS):
            *parents, last = name.removeprefix(PARAMS).split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = Stored(array, dtype)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns that the registry below knows no jax.Array
    registry = ocp.type_handlers.create_type_handler_registry((Stored, StoredHandler(in_flight(arrays))))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as writer:
        writer.save(to.absolute(), tree)


@dataclass(frozen=True)
class Stored:
    """An array on disk, to be read as another floating type."""

    array: ts.TensorStore
    floating: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        stored = jnp.dtype(self.array.dtype.numpy_dtype)
        return jnp.dtype(self.floating) if jnp.issubdtype(stored, jnp.floating) else stored


class StoredHandler(ocp.type_handlers.NumpyHandler):
    """Write stored arrays as Orbax writes numpy's, and so for any reader of those."""

    def __init__(self, flights: int) -> None:
        super().__init__()
        self.flights = flights

    async def serialize(
        self, values: Sequence[Stored], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> list[Any]:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            chunk = chunk_of(value.array)
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=value.shape,
                local_shape=chunk,
                dtype=value.dtype,
                process_index=jax.process_index(),
                arg=ocp.SaveArgs(chunk_byte_size=CHUNK),
            )
            target = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
            copy(ts.cast(value.array, value.dtype), target, chunk, self.flights)
        return []
