"""What a config may say, and what it asks apart from how the answer is computed: fingerprints are of the question."""

import hashlib
import json
from collections.abc import Container, Hashable, Mapping
from dataclasses import Field, field, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gptjax.errors import BadInput

T = TypeVar("T")
SHOWN = 5  # fields that `difference` names
LIMIT = 2**31  # whole numbers of a config are below it: a device counts steps and sizes in 32 bits
INFINITE = 3.4e38  # other numbers are below this: a device computes with them in 32 bits


def how(default: T) -> T:
    """Declare a dataclass field that changes speed, place or reporting of a run, and not what it asks."""
    return field(default=default, metadata={"how": True})


def gained(default: T) -> T:
    """Declare a field that configs have gained: at its default they ask what they asked before, by fingerprint too."""
    return field(default=default, metadata={"gained": True})


def check_values(config: Any, prefix: str = "", *, unchecked: Container[str] = ()) -> None:
    """Refuse a value that is not of its field's type; a list becomes a tuple, and a whole number a float, where due.

    Numbers are finite, whole ones below `LIMIT`, and a truth value is no number. `prefix` is where the config stands in
    a run, for the message; fields named in `unchecked` have other bounds, which the caller checks.
    """
    types: dict[str, Any] = _types(type(config))  # type: ignore[arg-type]  # a class is hashable
    for name, kind in types.items():
        value = getattr(config, name)
        if isinstance(value, list) and get_origin(kind) is tuple:
            object.__setattr__(config, name, value := tuple(value))
        if name not in unchecked and (wrong := _wrong(value, kind)):
            raise BadInput(f"{prefix}{name} = {value!r} {wrong}")
        if kind is float and type(value) is int:
            object.__setattr__(config, name, float(value))


@cache
def _types(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)  # which is slow, and a plan makes thousands of configs


def _wrong(value: Any, kind: Any) -> str:
    """Say how a value breaks the rule of its type, "" if it does not; a type that has no rule takes anything."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        listed = any(value == choice and type(value) is type(choice) for choice in inner)
        return "" if listed else f"is not one of {', '.join(map(str, inner))}"
    if get_origin(kind) in (Union, UnionType):
        wrongs = [_wrong(value, one) for one in inner]
        return "" if "" in wrongs else wrongs[0]
    if get_origin(kind) is tuple:
        kinds = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1] is ... else inner
        if not isinstance(value, tuple) or len(value) != len(kinds):
            return "must be a list" if inner[-1] is ... else f"must be a list of {len(inner)}"
        wrongs = [f"has {item!r}, which {w}" for item, k in zip(value, kinds, strict=True) if (w := _wrong(item, k))]
        return next(iter(wrongs), "")
    if kind is float:
        finite = isinstance(value, Real) and not isinstance(value, bool) and -INFINITE < value < INFINITE  # type: ignore[operator]
        return "" if finite else "must be a finite number"
    if kind is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return "must be a whole number" if not whole else "" if abs(value) < LIMIT else f"must be below {LIMIT:,}"
    if isinstance(kind, type) and not isinstance(value, kind):
        words = {bool: "must be true or false", str: "must be text", type(None): "must be null"}
        return words.get(kind, f"must be a {kind.__name__}")
    return ""


def question(config: Any) -> Any:
    """Return the JSON of a config without its `how` fields."""
    if is_dataclass(config):
        return {f.name: question(getattr(config, f.name)) for f in fields(config) if _is_asked(config, f)}
    if isinstance(config, tuple):
        return [question(item) for item in config]
    return float(config) if type(config) is int else config  # 1 and 1.0 ask the same


def _is_asked(config: Any, f: Field[Any]) -> bool:
    return not (f.metadata.get("how") or (f.metadata.get("gained") and getattr(config, f.name) == f.default))


def difference(ours: Any, theirs: Any) -> str:
    """Say in which fields two configs ask for different things, with both values; theirs may be of a file."""
    one, other = _leaves(question(ours)), _leaves(question(theirs))
    names = [name for name in {**one, **other} if one.get(name, "absent") != other.get(name, "absent")]
    said = [f"{name} is {other.get(name, 'absent')} there and {one.get(name, 'absent')} here" for name in names[:SHOWN]]
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join(said + more)


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    """Return the values of a question as JSON, by the path of their field; a list is one value."""
    if isinstance(value, Mapping):
        parts = [_leaves(item, f"{path}.{key}" if path else key) for key, item in value.items()]
        return {name: text for part in parts for name, text in part.items()}
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return {path: json.dumps(int(value) if whole else value)}


def fingerprint(config: Any) -> str:
    """Hash what a config asks: the same on any mesh, path and machine."""
    return hashlib.sha256(json.dumps(question(config), sort_keys=True).encode()).hexdigest()[:16]
