"""The types that fields of configs have: each in plain words, and the rule that a value of it keeps."""

import math
from collections.abc import Callable, Container, Hashable
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gptjax.errors import BadInput

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
SEVERAL = {int: "whole numbers", float: "numbers", str: "texts", Hashable: "numbers or names"}
COUNTS = range(1 - 2**31, 2**31)  # whole numbers of a config: a device counts steps and sizes in 32 bits
SEEDS = range(2**63)
INFINITE = 3.4e38  # other numbers are below this: a device computes with them in 32 bits


def check_values(config: Any, prefix: str = "", *, seeds: Container[str] = ()) -> None:
    """Refuse a value that is not of its field's type; a list becomes a tuple, and a whole number a float, where due.

    Numbers are finite, whole ones of `COUNTS`, those of the fields named in `seeds` of `SEEDS`, and a truth value is no
    number. `prefix` is where the config stands in a run, for the message.
    """
    for name, kind in hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, list) and get_origin(kind) is tuple:
            object.__setattr__(config, name, value := tuple(value))
        if broken := wrong(value, kind, SEEDS if name in seeds else COUNTS):
            raise BadInput(f"{prefix}{name} = {value!r} {broken}; gptjax config names all fields")
        if kind is float and type(value) is int:
            object.__setattr__(config, name, float(value))


def hints(kind: type) -> dict[str, Any]:
    """Return the type of each field, read once: a plan makes thousands of configs."""
    return _hints(kind)


_hints = cache(get_type_hints)


def wrong(value: Any, kind: Any, whole: range = COUNTS) -> str:
    """Say how a value breaks the rule of a type, "" if it does not; a type that has no rule takes anything."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        listed = any(value == choice and type(value) is type(choice) for choice in inner)
        return "" if listed else f"is not one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        broken = [wrong(value, one, whole) for one in inner]
        return "" if "" in broken else broken[0]
    if origin is tuple:
        if not isinstance(value, tuple) or (inner[-1] is not ... and len(value) != len(inner)):
            return f"must be {in_words(kind)}"
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        broken = [wrong(item, one, whole) for item, one in zip(value, kinds, strict=True)]
        return next((f"has {item!r}, which {why}" for item, why in zip(value, broken, strict=True) if why), "")
    if kind is float:
        if not isinstance(value, Real) or isinstance(value, bool) or not -math.inf < value < math.inf:  # type: ignore[operator]
            return "must be a finite number"
        return "" if -INFINITE < value < INFINITE else f"must be below {INFINITE:g}"  # type: ignore[operator]
    if kind is int:
        if not isinstance(value, Integral) or isinstance(value, bool):
            return "must be a whole number"
        low, high = _power(whole.start), _power(whole.stop - 1)
        return "" if value in whole else f"must be a whole number from {low} to {high}"
    if kind is Hashable:
        return "" if _is_hashable(value) else f"must be {in_words(kind)}"
    if kind is Callable or origin is not None:
        return "" if callable(value) else "must be a function"
    if not isinstance(kind, type) or (isinstance(value, kind) and not isinstance(value, type)):
        return ""
    members = [name for name in vars(kind) if not name.startswith("_")] if getattr(kind, "_is_protocol", False) else []
    lacking = [name for name in members if not hasattr(value, name)]
    lacks = f", and lacks {', '.join(lacking)}" if 0 < len(lacking) < len(members) else ""
    return f"must be {in_words(kind)}{lacks}"


def _power(bound: int) -> str:
    """Write a bound of a range, of the kind 2^n - 1, as people do."""
    power = abs(bound).bit_length()
    return f"-2^{power} + 1" if bound < 0 else f"2^{power} - 1" if bound else "0"


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def in_words(kind: Any) -> str:
    """Name a type in plain words, as "a list of numbers"."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in WORDS:
        return WORDS[kind]
    if origin is Literal:
        return " or ".join(str(choice) for choice in inner)
    if origin in (Union, UnionType):
        return " or ".join(in_words(one) for one in inner)
    if origin is tuple:
        each = SEVERAL.get(inner[0], getattr(inner[0], "__name__", str(inner[0])))
        return f"a list of {each}" if inner[-1] is Ellipsis else f"a list of {len(inner)} {each}"
    if origin is Callable or kind is Callable or getattr(kind, "__name__", "") == "Callable":
        return "a function"
    if kind is Hashable or kind is Any:
        return "a number or text"
    return f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}" if isinstance(kind, type) else str(kind)
