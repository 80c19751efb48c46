"""What a path holds, without loading it: a run, checkpoint, weights, transformers model, token store or sweep."""

import base64
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gptjax.config import load_config
from gptjax.data.tokenizer import MODEL_FILE, load_tokenizer
from gptjax.errors import BadInput
from gptjax.files import read_json
from gptjax.fingerprint import fingerprint
from gptjax.hf.load import open_hf
from gptjax.jobs.storage import all_names
from gptjax.models.model import ModelConfig
from gptjax.run.checkpoint import Unreadable, damage, open_arrays, sealed_steps, written_steps
from gptjax.run.weights import MARK, saved_model


@dataclass(frozen=True)
class StoredArray:
    """An array on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    split: str  # how it lay on the devices that wrote it, where that is known


@dataclass(frozen=True)
class Description:
    """What a path holds: what it is, facts by name, and arrays."""

    kind: str
    facts: dict[str, Any]
    arrays: tuple[StoredArray, ...] = ()


def inspect(path: Path) -> Description:
    """Describe a path; BadInput where nothing of ours, or of transformers', is there."""
    if (path / "plan.json").is_file():
        return _sweep(path)
    if (path / MARK).is_file():
        return _weights(path)
    if (path / "manifest.json").is_file():
        return Description("token store", _object(path / "manifest.json"))
    if (path / "checkpoints").is_dir():
        return _run(path)
    if (path / "default").is_dir():
        wrong = damage(path.parent, int(path.name)) if path.name.isdecimal() else "has no step for a name"
        return Description("checkpoint", {"state": wrong or "intact"}, () if wrong else _arrays(path / "default"))
    if (path / "config.json").is_file():
        return _hf(path)
    raise BadInput(f"{path} is no run, checkpoint, weights, token store, sweep or transformers model; give one")


def describe(found: Description) -> str:
    """Return a description as text."""
    lines = [found.kind, *_facts(found.facts)]
    if found.arrays:
        width = max(len(array.name) for array in found.arrays)
        shapes = [str(array.shape) for array in found.arrays]
        wide = max(map(len, shapes))
        lines += ["arrays"] + [
            f"  {array.name:<{width}}  {shape:<{wide}}  {array.dtype}" + (f"  {array.split}" if array.split else "")
            for array, shape in zip(found.arrays, shapes, strict=True)
        ]
    return "\n".join(lines)


def _facts(facts: dict[str, Any], indent: str = "  ") -> list[str]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_facts(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {f'{value:,}' if type(value) is int else value}")
    return lines


def _sweep(path: Path) -> Description:
    planned = _object(path / "plan.json").get("runs")
    if not isinstance(planned, list) or not all(isinstance(run, dict) and "name" in run for run in planned):
        raise BadInput(f"{path / 'plan.json'} names no runs; give the directory of a sweep")
    runs = [run["name"] for run in planned]
    done = [name for name in runs if (path / "ledger" / f"{name}.json").is_file()]
    facts = {"runs": len(runs), "done": len(done), "directories": str(path / "runs")}
    return Description("sweep", facts)


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__} and not an object; write it again")
    return content


def _run(path: Path) -> Description:
    config = load_config(path / "config.json")
    saved = path / "checkpoints"
    steps = {}
    for step in reversed(written_steps(saved)):
        size = sum((saved / str(step) / name).stat().st_size for name in all_names(saved / str(step)))
        steps[str(step)] = f"{size:,} bytes, {'sealed' if step in sealed_steps(saved) else 'not sealed'}"
    facts: dict[str, Any] = {
        "fingerprint": fingerprint(config),
        "model": _model(config.model),
        "steps": config.steps,
        "tokens a step": config.tokens_per_step,
        "data": ", ".join(source.corpus for source in config.data.sources),
        **({"tokenizer": f"{load_tokenizer(path).vocab_size:,} ids"} if (path / MODEL_FILE).is_file() else {}),
        "optimizer": _changed(config.optim),
    }
    for name in ("env.json", "result.json"):
        if (path / name).is_file():
            facts[name] = read_json(path / name)
    facts["checkpoints"] = steps or "none"
    newest = next(iter(sealed_steps(saved)), None)
    return Description("run", facts, () if newest is None else _arrays(saved / str(newest) / "default"))


def _weights(path: Path) -> Description:
    saved = saved_model(path)
    tokenizer = f"{saved.tokenizer.vocab_size:,} ids" if saved.has_tokenizer else "none"
    facts = {**saved.facts, "model": _model(saved.config), "tokenizer": tokenizer, "state": "intact"}
    return Description("weights", facts, _arrays(path / "params"))


def _hf(path: Path) -> Description:
    model = open_hf(path)
    tokenizer = f"{model.tokenizer.vocab_size:,} ids" if model.tokenizer else "none"
    facts = {"architecture": model.family.architecture, "model": _model(model.config), "tokenizer": tokenizer}
    arrays = (StoredArray(name, t.shape, t.code, t.path.name) for name, t in model.tensors.items())
    return Description("transformers model", facts, tuple(arrays))


def _model(config: ModelConfig) -> dict[str, Any]:
    return {"parameters": config.cost(config.context).total, **_changed(config)}


def _changed(config: Any) -> dict[str, Any]:
    """Return the fields of a config that are not at their defaults."""
    return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}


def _arrays(tree: Path) -> tuple[StoredArray, ...]:
    try:
        found = open_arrays(tree)
    except Unreadable as error:
        raise BadInput(f"{tree} {error}; write it again") from error
    split = _splits(tree / "_sharding")
    return tuple(
        StoredArray(name, array.shape, array.dtype.name, split.get(name, "")) for name, array in sorted(found.items())
    )


def _splits(path: Path) -> dict[str, str]:
    """Say by which mesh axes Orbax found each array split when it was written."""
    if not path.is_file():
        return {}
    splits = {}
    for name, text in read_json(path).items():
        sharding = json.loads(text)
        sizes = dict(zip(sharding.get("axis_names", []), sharding.get("shape", []), strict=True))
        named = [[axis] if isinstance(axis, str) else axis or [] for axis in sharding.get("partition_spec", [])]
        dims = [" ".join(f"{axis}={sizes[axis]}" for axis in dim if sizes[axis] > 1) for dim in named]
        if any(dims):
            splits[base64.b64decode(name).decode()] = f"split ({', '.join(dim or '-' for dim in dims)})"
    return splits
