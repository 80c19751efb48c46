"""What `gptjax config` prints: every field of a config with its type, its value and the comment that explains it."""

import ast
import inspect
import io
import json
import textwrap
import tokenize
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from gptjax.fields import hints, in_words


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


def keys_as_markdown() -> str:
    """Write the page that lists every key of law.json: a table for each type in it, made of its comments."""
    from gptjax.laws.record import PARTS, Analysis, Found

    sections: dict[type, str] = {Analysis: "law.json", Found: "approaches.NAME"}
    sections |= {part: f"approaches.{name}" for name, part in PARTS.items()}
    parts = [
        "# Every key of law.json\n\nMade by `gptjax keys > docs/law.json.md`. Every sweep writes this object, and so "
        "does `gptjax fit TABLE --json FILE`.\nN is parameters, D tokens, C FLOPs; N\\* and D\\* are compute-optimal. "
        "`null` stands where there is no number.\n[laws.md](laws.md) says how each number is found.\n"
    ]
    written: set[type] = set()
    while waiting := [kind for kind in sections if kind not in written]:
        for kind in waiting:
            written.add(kind)
            texts, kinds = comments(kind), hints(kind)
            beside = " It has these keys besides those of every approach." if kind in PARTS.values() else ""
            parts.append(
                f"\n## {sections[kind]}\n\n{inspect.getdoc(kind)}{beside}\n\n| key | holds | meaning |\n|---|---|---|\n"
            )
            for name in texts:
                text = texts[name].replace("|", "\\|")
                parts.append(f"| `{name}` | {_holds(kinds[name], sections)} | {text} |\n")
    return "".join(parts)


def _holds(kind: Any, sections: dict[type, str]) -> str:
    """Name the type of a key, with a link where it is an object; a type met for the first time gets a section."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_holds(one, sections) for one in inner)
    if origin is list:
        return f"list: {_holds(inner[0], sections)}"
    if origin is dict:
        return f"object: {_holds(inner[1], sections)} by name"
    if origin is tuple:
        return f"list of {len(inner)}: {_holds(inner[0], sections)}"
    if origin is Literal:
        return ", ".join(map(str, inner))
    if kind is Any:
        return "any"
    if is_dataclass(kind) and isinstance(kind, type) and kind.__module__.startswith("gptjax.laws"):
        if kind.__name__ == "Choices":
            return "object: the options of `gptjax fit`"
        title = sections.setdefault(kind, kind.__name__)
        return f"[{title}](#{title.lower().replace('.', '')})"
    return in_words(kind)


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
