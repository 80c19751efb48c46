"""What a user names by a path: a Python file that makes a config, a sweep with its tables, a place to write."""

import importlib.util
import sys
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from gptjax.errors import BadInput
from gptjax.jobs.storage import folder

Named = str | PathLike[str]  # a path, or the address of a folder in object storage


def place_of(named: Named) -> Path:
    """Read a directory or a file that is named by a text or a path; BadInput for an address that is none of ours."""
    if not str(named):
        raise BadInput("an empty path names nothing; give a file or a directory")
    return folder(named) if isinstance(named, str) else named  # type: ignore[return-value]


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


def tables_of(sweep: Path) -> Path:
    """Bring the tables of a sweep up to date with its ledger, so that one in progress can be fitted too."""
    if (sweep / "plan.json").is_file():
        from gptjax.sweep.loop import write_tables
        from gptjax.sweep.plan import Plan

        write_tables(Plan.load(sweep / "plan.json"), sweep)
    return existing(sweep, "runs.csv")


def existing(place: Path, needed: str, what: str = "a sweep") -> Path:
    """Give back a directory that holds a file; BadInput where it does not."""
    if place.is_file():
        raise BadInput(f"{place} is a file; give the directory of {what}, or fit a table with gptjax fit")
    if not (place / needed).is_file():
        raise BadInput(f"{place} has no {needed}; give the directory of {what}")
    return place
