"""What a user gives on the command line: files with configs, directories of sweeps, places to write."""

import argparse
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptjax.errors import BadInput
from gptjax.jobs.storage import folder, is_address
from gptjax.lab.places import existing as existing
from gptjax.lab.places import load as load
from gptjax.lab.places import tables_of as tables_of
from gptjax.lab.places import writable as writable

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


@contextmanager
def as_flags(*names: str) -> Iterator[None]:
    """Say of settings that are refused which flags set them: the door of Python calls them by their bare names."""
    try:
        yield
    except BadInput as error:
        raise BadInput(re.sub(rf"(^|for )({'|'.join(names)})\b(?= )", r"\1--\2", str(error))) from None


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
