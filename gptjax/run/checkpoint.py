"""Checkpoints that are what they say: Orbax writes them, a sha256 seal proves them, damaged ones are passed over.

Orbax alone restores flipped bytes silently and counts an empty directory as the latest step, so a step exists only
while its seal does: the seal is written last, in the background, once the step has been opened, and goes first when
the step is deleted. Steps are read an array at a time and a few chunks at a time, so that the host never holds more
than the piece that a device is to get.
"""

import glob
import hashlib
import itertools
import re
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils.epath.gpath import PosixGPath

from gptjax.config import SaveConfig
from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.jobs import hosts, process
from gptjax.jobs.storage import absolute, all_names, is_remote, names, reason, remove, url_of

CHUNK = 8 * 2**20  # bytes: the least that is read of an array
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder until Orbax has written all of it
ASIDE = ".unreadable"  # ends the name of a step that could not be taken
SAVE_SECONDS = 10**9  # that a save may take: Orbax counts them by a clock that somebody may set, by years even


class Unreadable(Exception):
    """What was written is there, byte for byte, and is not a checkpoint."""


class _Literal(PosixGPath):
    """A path whose own name is never taken for a pattern, which etils (1.15) does with `[3e-4]` in a folder's name."""

    def glob(self, pattern: str) -> Iterator["_Literal"]:
        return (self / name for name in glob.glob(pattern, root_dir=self))


def for_orbax(path: Path) -> Path:
    """Return a folder as Orbax can be given it; BadInput for a name that TensorStore cannot write as it is.

    Addresses of object storage are checked where they are read (storage.folder).
    """
    if is_remote(path):
        return path
    name = str(path)
    if "\\" in name or name != name.encode(errors="replace").decode():
        raise BadInput(f"{path}: checkpoints cannot lie where a name has a backslash or is not UTF-8; use another")
    return _Literal(path.absolute())


def seal_of(directory: Path, step: int) -> Path:
    return directory / "seals" / f"{step}.json"


def sealed_steps(directory: Path) -> list[int]:
    """Return the steps that have a seal, newest first."""
    stems = (name.removesuffix(".json") for name in names(directory / "seals") if name.endswith(".json"))
    return sorted((int(stem) for stem in stems if stem.isdecimal()), reverse=True)


def written_steps(directory: Path) -> list[int]:
    """Return the steps of which there is anything, newest first."""
    written = (int(path.name) for path in directory.glob("*") if path.name.isdecimal())
    return sorted({*written, *sealed_steps(directory)}, reverse=True)


def newest_intact(directory: Path, discard: Callable[[int], None] = lambda step: None) -> int | None:
    """Find the newest intact step; name those passed over on the way, and discard them."""
    for step in hosts.agree(lambda: written_steps(directory)):
        if (wrong := damage(directory, step)) is None:
            return step
        warn(directory, step, wrong)
        hosts.agree(partial(discard, step))
    return None


def warn(directory: Path, step: int, wrong: str) -> None:
    if hosts.is_first():
        print(f"checkpoint {directory / str(step)} {wrong}; taking an older one", file=sys.stderr)


def damage(directory: Path, step: int) -> str | None:
    """Say what is wrong with a step, or None if every byte is as it was written; every process asks at once."""
    return altered(directory / str(step), seal_of(directory, step))


def altered(folder: Path, sealed: Path) -> str | None:
    """Say how a folder differs from what its seal says of it, or None; every process asks at once."""
    seal = hosts.agree(lambda: _read_seal(sealed))
    if isinstance(seal, str):
        return seal
    found = _digests(folder)
    for name, digest in seal["files"].items():
        if found.get(name) != digest:
            return f"is damaged: {name} {'is not as it was written' if name in found else 'is missing'}"
    return None


def seal(folder: Path, loss: float | None = None) -> dict[str, Any]:
    """Return what proves a folder: size and sha256 of each file, and what is to be remembered with it."""
    return {"files": {name: _digest(folder / name) for name in all_names(folder)}, "loss": loss}


def _read_seal(path: Path) -> dict[str, Any] | str:
    """Return a seal, `{"files": {name: [size, sha256]}, "loss": nats a token or None}`, or what is wrong with it."""
    if not path.is_file():
        return "has no seal, so it was never finished, or its seal was not copied"
    try:
        seal = read_json(path)
        if seal["files"] and isinstance(seal["files"], dict) and isinstance(seal["loss"], float | None):
            return seal
    except (BadInput, KeyError, TypeError):
        pass
    return f"cannot be proved: its seal {path} is damaged"


def _digests(step: Path) -> dict[str, list[Any]]:
    """Return size and sha256 of every file of a step; each process reads its share."""
    names = hosts.agree(lambda: all_names(step))
    share = {name: _digest(step / name) for name in names[jax.process_index() :: jax.process_count()]}
    return {name: digest for part in hosts.gather(share) for name, digest in part.items()}


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def restore(directory: Path, step: int, abstract: Any) -> Any:
    """Read a step into the shapes, dtypes and shardings of `abstract`, whatever mesh wrote it.

    `abstract` may be a part of what was saved, as `{"params": state.params}`.
    """
    if wrong := damage(directory, step):
        raise BadInput(f"checkpoint {directory / str(step)} {wrong}; run again what wrote it")
    state, wrong = _restore_sound(directory, step, abstract)
    if wrong:
        raise BadInput(f"checkpoint {directory / str(step)} {wrong}; run again what wrote it")
    return state


def _restore_sound(directory: Path, step: int, abstract: Any) -> tuple[Any, str | None]:
    """Read a step whose bytes are proved; return it, or what is wrong with it on any process."""
    state, wrong = None, None
    path = directory / str(step)
    try:
        state = read_tree(open_arrays(path / "default"), abstract, f"checkpoint {path}")
    except Unreadable as error:
        wrong = str(error)
    return state, next(filter(None, hosts.gather(wrong)), None)


def check_arrays(arrays: Mapping[str, ts.TensorStore], abstract: Any, what: str) -> None:
    """Refuse arrays that are not those of a tree, before memory of the tree's size is taken."""
    for path, leaf in jax.tree.leaves_with_path(abstract):
        name = _name(path)
        if name not in arrays:
            raise BadInput(f"{what} holds no {name}; it is of another model or optimizer")
        if arrays[name].shape != leaf.shape:
            raise BadInput(f"{what} has {name} of shape {arrays[name].shape}, not {leaf.shape}; it is another model's")


def read_tree(arrays: Mapping[str, ts.TensorStore], abstract: Any, what: str) -> Any:
    """Read arrays one by one, each device's piece in turn; the host holds one piece and a few chunks."""
    check_arrays(arrays, abstract, what)
    leaves, tree = jax.tree.flatten_with_path(abstract)
    flights = in_flight(arrays)
    found = []
    for path, leaf in leaves:
        array = arrays[_name(path)]
        try:
            found.append(_place(array, leaf, flights))
        except (ValueError, OSError) as error:
            raise Unreadable(f"cannot be read: {_name(path)}: {reason(error)}") from error
    return jax.tree.unflatten(tree, found)


def open_arrays(tree: Path) -> dict[str, ts.TensorStore]:
    """Open every array of a tree that Orbax wrote, by the names of its path joined with dots."""
    base = {"driver": "ocdbt", "base": url_of(tree)}
    try:
        keys = ts.KvStore.open(base).result().list().result()
        found = [key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")]
        opening = {name: ts.open({"driver": "zarr", "kvstore": {**base, "path": name}}, open=True) for name in found}
        opened = {name: array.result() for name, array in opening.items()}
    except (ValueError, OSError) as error:
        raise Unreadable(f"cannot be read: {reason(error)}") from error
    if not opened:
        raise Unreadable("cannot be read: it holds no arrays")
    return opened


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _opens(step: Path) -> bool:
    """Say whether a step is whole as far as its arrays can be opened."""
    try:
        return bool(open_arrays(step / "default"))
    except Unreadable:
        return False


def _chunked(path: tuple[Any, ...], array: jax.Array) -> ocp.SaveArgs:
    """Cut a large array into chunks, stacked layers between layers first, so that one is read without the others."""
    stacked = array.nbytes > CHUNK and any(getattr(key, "key", "") == "layers" for key in path)
    return ocp.SaveArgs(chunk_byte_size=CHUNK, shard_axes=(0,) if stacked else ())


def in_flight(arrays: Mapping[str, ts.TensorStore]) -> int:
    """Return how many chunks to read at once: with what they are unpacked from, they take a quarter of an array."""
    largest = max(array.size * array.dtype.numpy_dtype.itemsize for array in arrays.values())
    return min(max(1, largest // (8 * CHUNK)), 64)


def _place(array: ts.TensorStore, leaf: jax.ShapeDtypeStruct, flights: int) -> jax.Array:
    """Put each piece of an array on the devices that hold it, the next one only when the host is rid of it."""
    sharding: Any = leaf.sharding
    holders = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        holders[tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))].append(device)
    pieces = []
    for edges, devices in holders.items():
        piece = np.empty([stop - start for start, stop in edges], leaf.dtype)
        source = ts.cast(array, leaf.dtype)[tuple(slice(*edge) for edge in edges)]
        target = ts.array(piece)[ts.d[:].translate_to[[start for start, _ in edges]]]
        copy_array(source, target, chunk_of(array), flights)
        pieces += jax.block_until_ready([jax.device_put(piece, device) for device in devices])
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, pieces)


def copy_array(source: ts.TensorStore, target: ts.TensorStore, chunk: tuple[int, ...], flights: int) -> None:
    """Copy all of a domain by the chunks in which it is stored, so many at a time."""
    pending: deque[Any] = deque()
    for part in _chunks(source.domain, chunk):
        pending.append(target[part].write(source[part]))
        if len(pending) == flights:
            pending.popleft().result()
    for writing in pending:
        writing.result()


def chunk_of(array: ts.TensorStore) -> tuple[int, ...]:
    return tuple(size or 1 for size in array.chunk_layout.read_chunk.shape or ())


def _chunks(domain: ts.IndexDomain, chunk: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut a domain where the chunks of a grid from the origin end."""
    cuts = []
    for start, stop, size in zip(domain.inclusive_min, domain.exclusive_max, chunk, strict=True):
        edges = [start, *range((start // size + 1) * size, stop, size), stop]
        cuts.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    return itertools.product(*cuts)


def _is_of_storage(error: BaseException) -> bool:
    """Say whether an error is storage's answer and no bug: TensorStore's are ValueErrors such as "INTERNAL: ..."."""
    told = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", str(error))
    return isinstance(error, OSError | Unreadable) or bool(told)


def kept(losses: dict[int, float | None], save: SaveConfig) -> set[int]:
    """Choose of the steps, each with its validation loss if it has one, those to keep."""
    steps = sorted(losses)
    ranked = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    best = [step for _, step in ranked[: save.keep_best]]
    spaced = [step for step in steps if save.keep_every and step % save.keep_every == 0]
    return {*steps[-save.keep :], *best, *spaced, *save.at}


class Checkpoints:
    """The checkpoints of one run: `save` returns at once, leaving the block waits for what is being written.

    `still_ours`, called on a thread of the first process, ends what another process has taken over.
    """

    def __init__(self, directory: Path, save: SaveConfig, still_ours: Callable[[], None] = lambda: None) -> None:
        self.directory, self.config, self.still_ours = absolute(directory), save, still_ours
        hosts.agree(self._make_ready)
        self.newest = newest_intact(self.directory, self._discard)
        hosts.agree(self._retain)
        patient = ocp.CheckpointManagerOptions(async_options=ocp.AsyncOptions(timeout_secs=SAVE_SECONDS))
        self.manager = ocp.CheckpointManager(for_orbax(self.directory), options=patient)  # keeps all; `_retain` deletes
        self.thread = ThreadPoolExecutor(1)
        self.finish: Callable[[], None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            process.silence_the_end()
        try:
            if kind is None or not hosts.several():  # else peers may be elsewhere, and nobody may wait for them
                self.wait()
        finally:
            self.thread.shutdown()
            with suppress(Exception):  # it says again what `wait` has said
                self.manager.close()

    def restore(self, abstract: Any) -> tuple[Any, int] | None:
        """Read the newest step that can be read, and say which it is; None if there is none."""
        while self.newest is not None:
            state, wrong = _restore_sound(self.directory, self.newest, abstract)
            if not wrong:
                return state, self.newest
            warn(self.directory, self.newest, f"{wrong} (set aside)")
            hosts.agree(partial(self._set_aside, self.newest))
            self.newest = newest_intact(self.directory, self._discard)
            self.manager.reload()
        return None

    def save(self, step: int, state: Any, loss: float | None = None) -> None:
        """Begin to write a step, with its validation loss if known; a failure of the one before is raised here."""
        self.wait()
        if step == self.newest:
            return
        hosts.agree(lambda: self._delete(step))  # what a process that lost this run to us may have written meanwhile
        chunked = jax.tree.map_with_path(_chunked, state)
        shapes = {_name(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(state)}

        def write() -> None:
            if not self.manager.save(step, args=ocp.args.StandardSave(state, save_args=chunked)):
                raise OSError(f"Orbax declines step {step}; its newest is {self.manager.latest_step()}")

        self._or_say(step, write)
        self.finish = self.thread.submit(lambda: self._or_say(step, lambda: self._seal(step, loss, shapes))).result
        self.newest = step

    def wait(self) -> None:
        """Wait for the step being written, and for its seal."""
        finish, self.finish = self.finish, None
        if finish:
            finish()

    def _or_say(self, step: int, write: Callable[[], Any]) -> None:
        """Write; what storage refuses becomes an OSError in our words: exit code 1, and a launcher starts again."""
        try:
            write()
        except Exception as error:
            self.still_ours()
            if not _is_of_storage(error):
                raise
            intact = next(iter(sealed_steps(self.directory)), None)
            good = "no step is" if intact is None else f"step {intact} is"
            path = self.directory / str(step)
            raise OSError(f"checkpoint {path} was not saved ({reason(error)}); {good} intact") from error

    def _seal(self, step: int, loss: float | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Wait until every process has written a step; on the first open it, seal it, and delete what is not kept.

        This runs in a thread, where processes cannot meet: the first reads all files.
        """
        self.manager.wait_until_finished()
        if hosts.is_first():
            written = self.directory / str(step)
            if {name: array.shape for name, array in open_arrays(written / "default").items()} != shapes:
                raise Unreadable("it holds other arrays than those that were to be written")
            found = seal(written, loss)
            self.still_ours()
            write_json(seal_of(self.directory, step), found)
            self._retain()

    def _make_ready(self) -> None:
        """Make the folders, and clear what a killed save left; a process that wakes may still be busy with it.

        A kill leaves one whole step without a seal, and the folder of seals. BadInput where there is more than that:
        seals were lost, and to discard steps would lose work.
        """
        seals = self.directory / "seals"
        newest = max(sealed_steps(self.directory), default=-1)
        bare = [step for step in written_steps(self.directory) if step > newest and _opens(self.directory / str(step))]
        if len(bare) > 1 or (bare and not is_remote(seals) and not seals.is_dir()):
            steps = ", ".join(map(str, reversed(bare)))
            raise BadInput(
                f"{self.directory} holds steps without their seals, which prove them: {steps}; copy {seals} from where "
                "they were written, or delete these steps to train them again"
            )
        seals.mkdir(parents=True, exist_ok=True)
        for left in self.directory.glob(f"*{UNFINISHED}*"):
            with suppress(OSError):
                remove(left)

    def _retain(self) -> None:
        """Delete the sealed steps that are not kept, and what lies about of steps that a newer sealed one replaces.

        That is what a process left that was killed while it deleted a step, and what was set aside.
        """
        seals = {step: _read_seal(seal_of(self.directory, step)) for step in written_steps(self.directory)}
        losses = {step: seal["loss"] for step, seal in seals.items() if not isinstance(seal, str)}
        keep, newest = kept(losses, self.config), max(losses, default=-1)
        for step in losses.keys() - keep:
            self._delete(step)
        bare = seals.keys() - sealed_steps(self.directory) - keep
        aside = {int(path.stem): path for path in self.directory.glob(f"*{ASIDE}") if path.stem.isdecimal()}
        for step, left in [*((step, self.directory / str(step)) for step in bare), *aside.items()]:
            if step <= newest:
                with suppress(OSError):  # another process may be at it too
                    remove(left)

    def _delete(self, step: int) -> None:
        remove(seal_of(self.directory, step))
        remove(self.directory / str(step))

    def _discard(self, step: int) -> None:
        """Make way for a step that is to be written anew: what was sealed is only set aside."""
        if seal_of(self.directory, step).is_file():
            self._set_aside(step)
        else:
            self._delete(step)

    def _set_aside(self, step: int) -> None:
        """Take a sealed step out of the way, until it is written anew: the fault may be the seal's, or the reader's."""
        written, aside = self.directory / str(step), self.directory / f"{step}{ASIDE}"
        remove(seal_of(self.directory, step))
        remove(aside)
        if written.exists():
            written.rename(aside)
