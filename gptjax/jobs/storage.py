"""Folders on a file system or in object storage: files written whole, files that one process alone creates.

A folder in object storage is an etils path, as Orbax takes it: it is read like any other path, and it has neither
append nor rename. It is written through TensorStore, whose conditional writes etils lacks.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TextIO, cast

from gptjax.errors import BadInput

if find_spec("fsspec"):
    import fsspec.config

    fsspec.config.conf["gcs"] = {"use_listings_cache": False}  # other machines write there too
ABSENT = b"\x02"  # the generation that TensorStore gives to what is not there; an empty one sets no condition


def folder(where: str) -> Path:
    """Read what a user gives as a directory: a path of this machine, or gs://BUCKET/PATH.

    The second is no pathlib.Path, and has as much of its interface as this program uses. BadInput for other addresses,
    and for a path in a bucket whose signs are a pattern to one of its readers, or a part of an address to another.
    """
    if "://" not in where:
        return Path(where)
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+/[^/].*", where):
        raise BadInput(f"{where} is not a folder that Orbax can write; give a directory, or gs://BUCKET/PATH")
    if sign := re.search(r"[][*?#%{}\\\x00-\x1f]", where):
        raise BadInput(f"{where} has {sign[0]!r} in its name, which does not work in a bucket; use letters and digits")
    if find_spec("gcsfs") is None:
        raise BadInput(f"{where} needs gcsfs; make install EXTRAS=test,gcs")
    from etils import epath

    return cast(Path, epath.Path(where))


def is_address(text: str) -> bool:
    """Say whether a text is an address, as gs://BUCKET/PATH, or gs:/BUCKET/PATH, which pathlib makes of it."""
    return re.match("[A-Za-z][A-Za-z0-9+.-]*:/", text) is not None


def is_remote(path: Path) -> bool:
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    return path if is_remote(path) else path.absolute()


def read(path: Path) -> bytes | None:
    """Return what a file holds, None if there is no such file."""
    if is_remote(path):
        store, key = _object(path)
        found = _result(path, store.read(key))
        return found.value if found.state == "value" else None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: Path, data: bytes) -> None:
    """Write a file whole: whatever dies meanwhile, a reader finds the old content or the new."""
    if is_remote(path):
        store, key = _object(path)
        _result(path, store.write(key, data))
        return
    beside = _write_beside(path, data)
    try:
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def create(path: Path, data: bytes) -> bool:
    """Write a file whole unless there is one; of those who try at once, on any machines, one alone gets True."""
    if is_remote(path):
        store, key = _object(path)
        return _result(path, store.write(key, data, if_equal=ABSENT)).generation != b""
    beside = _write_beside(path, data)
    try:
        os.link(beside, path)  # unlike a rename it refuses when the name is taken, on NFS too, and needs no lock
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is in the place of a file", str(path)) from None
        return beside.stat().st_nlink == 2  # NFS may refuse, when asked again, the link that it has just made
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise BadInput(f"the file system of {path.parent} has no hard links; use another, or gs://") from None
        raise
    finally:
        beside.unlink()
    return True


def names(directory: Path) -> list[str]:
    """List the files of a folder, not those of its folders; none if it is not there."""
    if is_remote(directory):
        return [name for name in all_names(directory) if "/" not in name]
    try:
        with os.scandir(directory) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
    except FileNotFoundError:
        return []


def all_names(directory: Path) -> list[str]:
    """List the files of a folder and of its folders, as paths from there."""
    if is_remote(directory):
        import tensorstore as ts

        store, key = _object(directory)
        within = ts.KvStore.KeyRange(f"{key}/", f"{key}0")  # 0 comes after /
        return sorted(
            name.decode() for name in _result(directory, store.list(within, strip_prefix_length=len(key) + 1))
        )
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds; what is not there is fine."""
    if is_remote(path):
        import tensorstore as ts

        store, key = _object(path)
        _result(path, store.write(key, None))
        _result(path, store.delete_range(ts.KvStore.KeyRange(f"{key}/", f"{key}0")))
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def url_of(path: Path) -> str:
    """Return the address by which TensorStore knows a folder."""
    return f"{path}/" if is_remote(path) else f"{path.absolute().as_uri()}/"


def reason(error: BaseException) -> str:
    """Say why in a line: what the system said where TensorStore or Python quotes it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    line = next(iter(str(error).splitlines()), type(error).__name__)
    quoted = re.search(r"([^:]+) \[os_error_code=", line)
    return quoted[1].strip() if quoted else line


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of storage be an OSError that says of which file it is.

    One from a write or a flush says nothing of it (a full disk), and TensorStore's are ValueErrors.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except ValueError as error:
        if "os_error_code=" not in str(error):
            raise
        raise OSError(errno.EIO, reason(error), str(path)) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Make an empty folder that no other process uses; a killed process gives it up, and its leavings are removed."""
    lock = _lock(folder.with_name(folder.name + ".lock"))
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.unlink(lock.name)
        lock.close()


def _lock(path: Path) -> TextIO:
    """Wait for the lock on a file that its holder removes on leaving."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = path.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()  # its holder removed the file while we waited: this lock keeps nobody out


def _write_beside(path: Path, data: bytes) -> Path:
    """Write a new file beside a path; where that fails, as on a full disk, nothing is left."""
    with naming(path), NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        beside = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(beside, 0o644)
        except BaseException:
            beside.unlink()
            raise
    return beside


def _object(path: Path) -> tuple[Any, str]:
    bucket, _, key = str(path).removeprefix("gs://").partition("/")
    return _result(path, _bucket(bucket)), key


@cache
def _bucket(name: str) -> Any:
    import tensorstore as ts

    return ts.KvStore.open(f"gs://{name}/")


def _result(path: Path, future: Any) -> Any:
    """Wait for TensorStore; what it reports becomes the OSError that a file system would raise."""
    try:
        return future.result()
    except ValueError as error:
        raise OSError(errno.EIO, str(error).partition("\n")[0], str(path)) from error
