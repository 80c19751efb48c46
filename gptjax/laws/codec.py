"""Typed values as JSON and back: what a dataclass says of its fields is all that there is to know.

A number that is not finite is null in JSON: nan where a field is a float, None where it may be None. A field of
metadata `OMITTED` has no key while it is None. A class may say what else stands beside its fields (`beside`, a method
without arguments) and how an object that an earlier version wrote is to be read (`upgraded`, a static method).
"""

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gptjax.errors import BadInput
from gptjax.files import plain

Json = dict[str, Any]
OMITTED: dict[str, Any] = {"omitted": True}
T = TypeVar("T")


def written(value: Any) -> Any:
    """Turn a typed value into what strict JSON holds."""
    if hasattr(value, "as_name"):
        return value.as_name()
    if is_dataclass(value) and not isinstance(value, type):
        kept = ((f, getattr(value, f.name)) for f in fields(value))
        found = {f.name: written(one) for f, one in kept if one is not None or not f.metadata.get("omitted")}
        return {**written(value.beside()), **found} if hasattr(value, "beside") else found
    if isinstance(value, dict):
        return {key: written(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [written(one) for one in value]
    return plain(value)


def read(kind: type[T], value: Any, where: str) -> T:
    """Make a value of a type of what JSON holds; BadInput says at which key of `where` it is something else.

    Keys that the type does not know are of a later version, and left out.
    """
    return _read(kind, value, where)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        fitting = [one for one in inner if one is not NoneType and _fits(one, value)]
        return _read((fitting or [one for one in inner if one is not NoneType])[0], value, where)
    if origin is Literal:
        if value not in inner:
            raise BadInput(f"{where} is {value!r:.60} and must be one of {', '.join(map(repr, inner))}")
        return value
    if kind is float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput(f"{where} is {value!r:.60} and must be a number")
        return float(value)
    base = origin or kind
    if is_dataclass(base) and isinstance(base, type):
        return _read_fields(base, value, where)
    if base in (list, tuple):
        if not isinstance(value, list | tuple):
            raise BadInput(f"{where} is {value!r:.60} and must be a list")
        if base is tuple and Ellipsis not in inner:
            if len(value) != len(inner):
                raise BadInput(f"{where} has {len(value)} items and must have {len(inner)}")
            return tuple(
                _read(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(inner, value, strict=True))
            )
        return base(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if base is dict:
        if not isinstance(value, dict):
            raise BadInput(f"{where} is {value!r:.60} and must be an object")
        return {str(key): _read(inner[1], item, _inside(where, key)) for key, item in value.items()}
    if type(value) is not kind:
        raise BadInput(f"{where} is {value!r:.60} and must be of type {getattr(kind, '__name__', kind)}")
    return value


def _read_fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise BadInput(f"{where} is {value!r:.60} and must be an object")
    value = kind.upgraded(value) if hasattr(kind, "upgraded") else value
    hints, given = get_type_hints(kind), {}
    for f in fields(kind):
        if f.name in value:
            given[f.name] = _read(hints[f.name], value[f.name], _inside(where, f.name))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise BadInput(f"{where} has no key {f.name!r}")
    return kind(**given)


def _inside(where: str, key: str) -> str:
    """Say where a key stands: in a file, whose name ends in a colon, or in another key."""
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def _fits(kind: Any, value: Any) -> bool:
    """Say whether a value has the shape of a type, to choose one of several."""
    base = get_origin(kind) or kind
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if base in (list, tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, dict) if is_dataclass(base) else base is Any or isinstance(value, base)
