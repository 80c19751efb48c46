"""What a config may say, and what it asks apart from how the answer is computed: fingerprints are of the question."""

import hashlib
import json
from dataclasses import Field, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from gptjax.errors import BadInput

T = TypeVar("T")


def how(default: T) -> T:
    """Declare a dataclass field that changes speed, place or reporting of a run, and not what it asks."""
    return field(default=default, metadata={"how": True})


def gained(default: T) -> T:
    """Declare a field that configs have gained: at its default they ask what they asked before, by fingerprint too."""
    return field(default=default, metadata={"gained": True})


def check_choices(config: Any) -> None:
    """Refuse a value that the Literal type of its field does not list."""
    for name, choices in _choices(type(config)).items():  # type: ignore[arg-type]  # a class is hashable
        value = getattr(config, name)
        if value not in choices:
            raise BadInput(f"{name} = {value!r} is not one of {', '.join(choices)}")


@cache  # a sweep makes tens of thousands of configs, and reading type hints takes longer than all else
def _choices(kind: type) -> dict[str, tuple[str, ...]]:
    """Return what each Literal field of a class may be."""
    hints = get_type_hints(kind).items()
    return {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}


def question(config: Any) -> Any:
    """Return the JSON of a config without its `how` fields."""
    if is_dataclass(config):
        return {f.name: question(getattr(config, f.name)) for f in fields(config) if _is_asked(config, f)}
    if isinstance(config, tuple):
        return [question(item) for item in config]
    return float(config) if type(config) is int else config  # 1 and 1.0 ask the same


def _is_asked(config: Any, f: Field[Any]) -> bool:
    return not (f.metadata.get("how") or (f.metadata.get("gained") and getattr(config, f.name) == f.default))


def fingerprint(config: Any) -> str:
    """Hash what a config asks: the same on any mesh, path and machine."""
    return hashlib.sha256(json.dumps(question(config), sort_keys=True).encode()).hexdigest()[:16]
