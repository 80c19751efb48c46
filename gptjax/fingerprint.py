"""What a config asks, apart from how the answer is computed: fingerprints are of the question."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")
SHOWN = 5  # fields that `difference` names


def how(default: T) -> T:
    """Declare a dataclass field that changes speed, place or reporting of a run, and not what it asks."""
    return field(default=default, metadata={"how": True})


def gained(default: T) -> T:
    """Declare a field that configs have gained: at its default they ask what they asked before, by fingerprint too."""
    return field(default=default, metadata={"gained": True})


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
