"""What the fields of a config are: the comment that explains each, its type in words, whether a value is of it."""

import ast
import inspect
import io
import json
import math
import numbers
import textwrap
import tokenize
from collections.abc import Callable, Hashable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
SEVERAL = {int: "whole numbers", float: "numbers", str: "texts", Hashable: "numbers or names"}


@dataclass(frozen=True)
class Field:
    """One field of a config: its path as --set takes it, its type, its comment, and what it is set to."""

    path: str
    kind: str
    text: str
    default: Any
    value: Any
    how: bool  # it changes how a run is computed, and not what it asks


def comments(kind: type) -> dict[str, str]:
    """Return the comment of each field of a dataclass: beside it, or in the lines right above it.

    A comment above the first of several fields speaks of that one alone.
    """
    source = textwrap.dedent(inspect.getsource(kind))
    found: dict[int, str] = {}  # by line, and whether the line holds nothing else
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = token.string.lstrip("# ").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    texts = {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = [found[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in found]
            above: list[str] = []
            line = node.lineno - 1
            while line in alone:
                above.insert(0, found[line])
                line -= 1
            texts[node.target.id] = " ".join([*above, *beside])
    return texts


def hints(kind: type) -> dict[str, Any]:
    """Return the type of each field, read once: a plan asks for them for each of its configs."""
    return _hints(kind)


_hints = cache(get_type_hints)


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
    return f"a {kind.__name__}" if isinstance(kind, type) else str(kind)


def fits(value: Any, kind: Any) -> bool:
    """Say whether a value is of a field's type; lists count as tuples, whole numbers as numbers, and NaN as nothing."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind is bool or isinstance(value, bool):
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, numbers.Real) and not math.isnan(value)
    if kind is int:
        return isinstance(value, numbers.Integral)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(each) and all(map(fits, value, each))
    if kind is Hashable:
        return _is_hashable(value)
    return callable(value) if origin is not None else isinstance(value, kind)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def as_text(config: Any, usual: Any) -> str:
    """Lay out the fields of a config, marking with * what is not its default; `usual` stands in for what has none."""
    lines = ['* marks what is not the default; "how" does not change what a run asks, only how it is computed', ""]
    for f in listed(config, usual if type(config) is type(usual) else None):
        changed = f.value != f.default and f.default is not MISSING
        facts = [f.kind, *([f"default {shown(f.default)}"] if changed else []), *(["how"] if f.how else [])]
        lines += [f"{'*' if changed else ' '} {f.path} = {shown(f.value)}", f"      {f.text} ({'; '.join(facts)})"]
    return "\n".join(lines)


def as_markdown(kinds: dict[str, type]) -> str:
    """Write the page that lists the fields of some classes of configs, a table each."""
    parts = [
        "# Every field of a config\n\nMade by `gptjax config --markdown`. A value is set in a Python file or by `--set "
        "PATH=VALUE`.\n*How* fields change speed, place or reporting, and not what a run asks: they are no part of its "
        "fingerprint.\n"
    ]
    for title, kind in kinds.items():
        rows = listed(kind, None) if isinstance(kind, type) else []
        parts.append(f"\n## {title}: `{kind.__name__}`\n\n| field | default | type | meaning |\n|---|---|---|---|\n")
        for f in rows:
            default = "" if f.default is MISSING else f"`{shown(f.default)}`"
            meaning = f.text.replace("|", "\\|") + (" (*how*)" if f.how else "")
            parts.append(f"| `{f.path}` | {default} | {f.kind} | {meaning} |\n")
    return "".join(parts)


def shown(value: Any) -> str:
    """Say a value as --set takes it, where JSON can say it."""
    if callable(value):
        name = getattr(value, "__name__", "<>")
        return "a function" if name.startswith("<") else name
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return str(value)


def listed(config: Any, default: Any, path: str = "", how: bool = False) -> list[Field]:
    """Return every field of a config and of the configs that it holds, in order, beside those of another as default.

    Of a class instead of a config, fields have their defaults, and MISSING where there is none.
    """
    found = []
    kind = config if isinstance(config, type) else type(config)
    texts, kinds = comments(kind), hints(kind)
    for f in fields(kind):
        value = f.default if isinstance(config, type) else getattr(config, f.name)
        usual = f.default if default is None else getattr(default, f.name)
        here, is_how = path + f.name, how or bool(f.metadata.get("how"))
        if is_dataclass(value) and not isinstance(value, type):
            found += listed(value, usual if type(usual) is type(value) else None, f"{here}.", is_how)
        else:
            found.append(Field(here, in_words(kinds[f.name]), texts[f.name], usual, value, is_how))
    return found
