"""What a user gives on the command line: files with configs, directories of sweeps, places to write."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from gptjax.errors import BadInput
from gptjax.jobs.storage import folder, is_address

Action = Callable[[argparse.Namespace], None]
Verb = Callable[[str, Action, str], argparse.ArgumentParser]  # name, what it does, help: adds a verb


def with_file(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("file", metavar="FILE[:NAME]", help=f"a Python file and its function that returns a {what}")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override, as optim.lr=3e-4")


def with_job(sub: argparse.ArgumentParser) -> None:
    """Add the flags by which a process finds the others of its job, where the environment does not say."""
    job = sub.add_argument_group("several processes").add_argument
    job("--coordinator", default="", metavar="HOST:PORT", help="where process 0 listens")
    job("--processes", type=int, default=0, metavar="N", help="how many work together")
    job("--process", type=int, default=-1, metavar="I", help="which of them this is, from 0")


@contextmanager
def in_job(args: argparse.Namespace) -> Iterator[None]:
    """Work as one process of a job, if there is one: they stop together."""
    from gptjax.jobs import hosts

    hosts.join_job(args.coordinator, args.processes, args.process)
    with hosts.together():
        yield


def directory(text: str) -> Path:
    """Read a directory of runs, on a file system or in object storage."""
    if not is_address(text):
        return local_path(text)
    try:
        return folder(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def local_path(text: str) -> Path:
    """Read a path of this machine; the parser calls this for every argument whose type is Path."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing; give a file or a directory")
    if is_address(text):
        raise argparse.ArgumentTypeError(f"{text} is in object storage and a path of this machine is asked for; "
                                         "work on a copy here")  # fmt: skip
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8, and paths are kept as text; rename it") from None
    return Path(text)


def load(target: str, kind: type | UnionType, *names: str) -> Any:
    """Call the function of a file that returns a config, by default the first that it has of these names."""
    path, _, function = target.partition(":")
    if not Path(path).is_file():
        raise BadInput(f"{path} is not a file; give a Python file such as experiments/chinchilla/quick.py")
    spec = importlib.util.spec_from_file_location(f"experiment_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} is not a Python file; give one such as experiments/chinchilla/quick.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    from gptjax.config import noting_rows

    try:
        with noting_rows(Path(path)):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        raise BadInput(f"{path}:{error.lineno}: {error.msg}") from None
    function = function or next((name for name in names if hasattr(module, name)), names[0])
    if not hasattr(module, function):
        offered = [
            n for n, f in vars(module).items() if callable(f) and getattr(f, "__module__", "") == module.__name__
        ]
        raise BadInput(f"{path} has no function {function!r}; it has {', '.join(offered) or 'none'}")
    config = getattr(module, function)()
    if not isinstance(config, kind):
        wanted = " or a ".join(one.__name__ for one in get_args(kind) or (kind,))
        raise BadInput(f"{path}:{function} returned a {type(config).__name__}; it must return a {wanted}")
    return config


def writable(path: Path) -> None:
    """Refuse before anything is written when the directory of a file to write is not there."""
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent} is not a directory; make it, or write {path.name} elsewhere")


WRITTEN = ("json", "csv", "register", "figure")  # the flags of all verbs that name a file to write
RECORDS = ("config.json", "facts.json", "plan.json", "prediction.json", "result.json", "runs.csv", "curves.csv",
           "runs.parquet", "weights.json")  # what verbs read of a directory  # fmt: skip


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse, before any work, a file to write that has no directory, is one, or is read or written elsewhere too."""
    given: dict[str, Any] = {name: value for name, value in vars(args).items() if isinstance(value, str | Path | list)}
    outputs = {f"--{name}": Path(given.pop(name)) for name in WRITTEN if given.get(name)}
    inputs = {Path(one) for value in given.values() for one in (value if isinstance(value, list) else [value])
              if isinstance(one, str | Path) and os.path.exists(one)}  # fmt: skip
    records = {place / name for place in inputs if place.is_dir() for name in RECORDS}
    seen: dict[str, str] = {os.path.realpath(path): "read too" for path in inputs | records}
    for flag, path in outputs.items():
        writable(path)
        if path.is_dir():
            raise BadInput(f"{flag} {path} is a directory; name a file")
        if other := seen.get(os.path.realpath(path)):
            raise BadInput(f"{flag} {path} is {other}, and would be overwritten; write it elsewhere")
        seen[os.path.realpath(path)] = f"what {flag} writes"


def tables_of(sweep: Path) -> Path:
    """Bring the tables of a sweep up to date with its ledger, so that one in progress can be fitted too."""
    if (sweep / "plan.json").is_file():
        from gptjax.sweep.loop import write_tables
        from gptjax.sweep.plan import Plan

        write_tables(Plan.load(sweep / "plan.json"), sweep)
    return existing(sweep, "runs.csv")


def existing(place: Path, needed: str, what: str = "a sweep") -> Path:
    if place.is_file():
        raise BadInput(f"{place} is a file; give the directory of {what}, or fit a table with gptjax fit")
    if not (place / needed).is_file():
        raise BadInput(f"{place} has no {needed}; give the directory of {what}")
    return place
