"""A run as a value: `RunConfig` composes the configs of every room; JSON round trip and overrides."""

import dataclasses
import difflib
import json
import os
import runpy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cattrs import AttributeValidationNote, IterableValidationNote
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn
from cattrs.preconf.json import make_converter

from gptjax.data.loader import DataConfig, Source
from gptjax.data.objectives import OBJECTIVES, Objective
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.fields import check_values, in_words
from gptjax.files import read_json
from gptjax.fingerprint import difference, fingerprint, gained, how
from gptjax.models.families import DEFAULT, FAMILIES
from gptjax.models.model import ModelConfig
from gptjax.sharding import MeshConfig, Rules
from gptjax.train.adapters import TuneConfig
from gptjax.train.optim import OptimConfig

T = TypeVar("T")


@dataclass(frozen=True)
class EvalConfig:
    """Validation: the same windows for every run, always at the end and every so many steps."""

    sequences: int = 512  # validation windows
    batch: int = 16  # windows evaluated at a time
    every: int = how(0)  # steps between evaluations; 0: only at the end

    def __post_init__(self) -> None:
        check_values(self, "evaluate.")
        if self.every < 0:
            raise BadInput(f"evaluate.every = {self.every} must be 0 (only at the end) or more steps")
        if self.batch < 1 or self.sequences < max(2, self.batch):
            raise BadInput(
                f"evaluate.sequences {self.sequences} must be 2 or more and at least evaluate.batch {self.batch}"
            )


@dataclass(frozen=True)
class SaveConfig:
    """Checkpoints: every so many steps; the last few are kept, the best, some at an interval, and the steps of `at`."""

    every: int = 1000  # steps between checkpoints; 0: only those of `at` and the last
    keep: int = 2  # newest checkpoints that are kept
    keep_best: int = 0  # checkpoints kept for their validation loss, the lowest
    keep_every: int = 0  # steps between checkpoints that are kept for good; 0: none
    at: tuple[int, ...] = ()  # steps that are saved and kept for good

    def __post_init__(self) -> None:
        check_values(self, "save.")
        if self.every < 0 or any(step < 0 for step in self.at):
            raise BadInput(f"save.every = {self.every} and save.at = {self.at} count steps; give 0 or more")
        if self.keep < 2:
            raise BadInput(f"save.keep = {self.keep} must be at least 2: one is intact while another is written")
        if self.keep_best < 0:
            raise BadInput(f"save.keep_best = {self.keep_best} must be 0 or more")
        if self.keep_every < 0 or (self.keep_every and (self.every < 1 or self.keep_every % self.every)):
            raise BadInput(f"save.keep_every = {self.keep_every} must be a multiple of save.every = {self.every}")


@dataclass(frozen=True)
class InitFrom:
    """Begin with the whole state of another run, to go on at its step, or with weights alone, to begin at step 0.

    `run` is the directory of that run, or a folder of weights: a path from the directory in which this run's lies (base
    of runs/tuned is runs/base), or an absolute one. `trajectory` identifies what is there, so that a fingerprint tells
    two origins apart. For a state it is the fingerprint of that run at a length of one step. For weights it is filled
    in when the run begins (run/initial_weights.py), and a step of 0 means the newest.
    """

    run: str = field(metadata={"how": True})
    step: int = 0
    trajectory: str = ""
    what: Literal["state", "weights"] = gained("state")

    def __post_init__(self) -> None:
        check_values(self, "init_from.")
        if self.step < 0:
            raise BadInput(f"init_from.step {self.step} must be 0 or more")


@dataclass(frozen=True)
class RunConfig:
    """One training run: the question (what is trained on what) and, marked `how`, the way to answer."""

    model: ModelConfig = FAMILIES[DEFAULT]()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    batch: int = 32  # sequences a step, of model.context tokens each
    steps: int = 1000  # steps of the whole run
    seed: int = 0  # of initial weights and the order of the data
    z_loss: float = 0.0  # weight of log^2 Z in the loss (PaLM, section 5)
    init_from: InitFrom | None = None  # a run to go on from, or whose weights to begin with
    tune: TuneConfig = gained(TuneConfig())
    evaluate: EvalConfig = EvalConfig()
    save: SaveConfig = how(SaveConfig())
    execution: Execution = how(Execution())
    accumulate: int = how(1)  # parts in which a batch is taken, one after the other, to save memory
    steps_per_call: int = how(1)  # steps that one call of the compiled program takes
    log_every: int = how(10)  # steps between lines of metrics
    trackers: tuple[str, ...] = how(("tensorboard",))  # where metrics go besides metrics.jsonl: tensorboard, wandb
    mesh: MeshConfig = how(MeshConfig())
    rules: Rules = how(Rules())

    def __post_init__(self) -> None:
        check_values(self, seeds=("seed",))
        if self.z_loss < 0:
            raise BadInput(f"z_loss = {self.z_loss} must be 0 or more")
        for name in ("batch", "steps", "accumulate", "steps_per_call", "log_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} = {getattr(self, name)} must be at least 1")
        if self.batch % self.accumulate:
            raise BadInput(f"batch {self.batch} is not divisible by accumulate = {self.accumulate}; use a divisor")
        if self.optim.schedule != "constant" and self.optim.warmup >= self.steps:
            raise BadInput(f"optim.warmup {self.optim.warmup} must be below steps = {self.steps}")
        if not self.first_step < self.steps:
            raise BadInput(f"init_from.step {self.first_step} must be below steps = {self.steps}")
        if self.save.keep_best and (self.evaluate.every < 1 or self.save.every % self.evaluate.every):
            raise BadInput(
                f"save.keep_best = {self.save.keep_best} needs a validation loss at every save: save.every = "
                f"{self.save.every} must be a multiple of evaluate.every = {self.evaluate.every}"
            )
        unknown = set(self.trackers) - {"tensorboard", "wandb"}
        if unknown:
            raise BadInput(f"unknown tracker {sorted(unknown)[0]!r}; use tensorboard or wandb")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.model.context

    @property
    def first_step(self) -> int:
        """The step that it begins at: a branch's is its trunk's."""
        return self.init_from.step if self.init_from and self.init_from.what == "state" else 0


_converter = make_converter(forbid_extra_keys=True)


def _strict(kind: type) -> None:
    def structure(value: Any, _: Any) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {value!r}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise TypeError(f"expected an int of 64 bits, got one of {value.bit_length()}")
        return value

    _converter.register_structure_hook(kind, structure)


for _kind in (int, float, bool, str):
    _strict(_kind)
_source = make_dict_structure_fn(Source, _converter, _cattrs_forbid_extra_keys=True)
_converter.register_structure_hook(
    Source, lambda value, kind: Source(value) if type(value) is str else _source(value, kind)
)


OWN = "GPTJAX_FILES"  # in the environment: files that add rows to the tables, for verbs that are given none


def _tagged(kind: type, tag: str, table: Mapping[str, type], default: str) -> None:
    """Read and write what is one of several classes by a field that names it; text alone is a class's defaults."""

    def structure(value: Any, _: Any) -> Any:
        value = {tag: value} if type(value) is str else value
        name = str(value.get(tag, default)) if isinstance(value, dict) else ""
        if name not in table:
            load_own(filter(None, os.environ.get(OWN, "").split(os.pathsep)))
        if name not in table:
            known = ", ".join(table)
            raise TypeError(f"{tag} = {name!r} is not one of {known}; if a file of yours adds it, name it in {OWN}")
        return _converter.structure(value, table[name])

    _converter.register_structure_hook_func(lambda t: t is kind, structure)
    _converter.register_unstructure_hook_func(
        lambda t: t is kind, lambda value: _converter.unstructure(value, unstructure_as=type(value))
    )


_tagged(ModelConfig, "family", FAMILIES, DEFAULT)
_tagged(Objective, "kind", OBJECTIVES, "causal")


_own: list[str] = []  # files of the user's that have added a row to the table of families or of objectives


@contextmanager
def noting_rows(file: Path) -> Iterator[None]:
    """Note whether a file that is loaded inside adds rows to the tables: workers of a sweep must load it too."""
    before = {**FAMILIES, **OBJECTIVES}
    yield
    if {**FAMILIES, **OBJECTIVES} != before:
        _own.append(str(file.resolve()))


def own_files() -> tuple[str, ...]:
    """Return the files that have added rows."""
    return tuple(dict.fromkeys(_own))


def load_own(files: Iterable[str]) -> None:
    """Load in another process what `own_files` named there."""
    for file in files:
        runpy.run_path(file)


# Fields of a run's model, before gptjax told how a model is computed from what it is: files of then are still read.
MOVED = ("remat", "attention", "microbatches", "scan", "vocab_multiple")


def moved(model: Any) -> tuple[Any, dict[str, Any]]:
    """Take out of a model's JSON what belongs to its execution today."""
    if not isinstance(model, dict):
        return model, {}
    return {k: v for k, v in model.items() if k not in MOVED}, {k: v for k, v in model.items() if k in MOVED}


def _structure_run(value: Any, kind: type) -> Any:
    if isinstance(value, dict) and isinstance(value.get("execution", {}), dict):
        model, execution = moved(value.get("model"))
        if execution:
            value = value | {"model": model, "execution": execution | value.get("execution", {})}
    return _run(value, kind)


_run = make_dict_structure_fn(RunConfig, _converter, _cattrs_forbid_extra_keys=True)
_converter.register_structure_hook(RunConfig, _structure_run)


def to_json(config: Any) -> dict[str, Any]:
    return _converter.unstructure(config)


def from_json(kind: type[T], content: Any) -> T:
    """Rebuild a config from its JSON; wrong types and unknown keys are `BadInput`."""
    try:
        return _converter.structure(content, kind)
    except (ClassValidationError, IterableValidationError) as error:
        raise BadInput(f"{kind.__name__}: {_first_cause(error)}") from None
    except (TypeError, ValueError, AttributeError) as error:  # the last: a list or a number where an object belongs
        raise BadInput(f"{kind.__name__}: {error}") from None


def _first_cause(error: BaseException, path: str = "") -> str:
    """Describe the first leaf of cattrs' tree of errors by the path of the field it stands at."""
    if isinstance(error, BaseExceptionGroup):
        cause = error.exceptions[0]
        here = ""
        for note in getattr(cause, "__notes__", []):  # others are text, which has an `index` too
            if isinstance(note, AttributeValidationNote):
                here += f".{note.name}"
            elif isinstance(note, IterableValidationNote):
                here += f"[{note.index}]"
        return _first_cause(cause, path + here)
    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown key {sorted(error.extra_fields)[0]!r}" + (f" in {path[1:]}" if path else "")
    return f"{path[1:]}: {error}" if path else str(error)


def from_file(kind: type[T], path: Path) -> T:
    """Read a config, or what else `to_json` wrote, from a file; BadInput names the file."""
    content = read_json(path)
    try:
        return from_json(kind, content)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def load_config(path: Path) -> RunConfig:
    return from_file(RunConfig, path)


def differs(directory: Path, config: RunConfig) -> str:
    """Say in brackets where a run differs from the one whose directory this is; "" where that one is not known."""
    path = directory / "config.json"
    begun = load_config(path) if path.is_file() else config
    return f" ({difference(config, begun)})" if fingerprint(begun) != fingerprint(config) else ""


def override(config: T, assignments: list[str]) -> T:
    """Apply dotted assignments such as `optim.lr=3e-4` all at once; values are JSON, or text where they are not."""
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise BadInput(f"--set {assignment!r} has no '='; write it as optim.lr=3e-4")
        *parents, last = path.split(".")
        if last in MOVED and parents[-1:] == ["model"]:
            parents[-1] = "execution"
        branch = tree
        for name in parents:
            branch = branch.setdefault(name, {})
            if isinstance(branch, Assigned):
                raise BadInput(f"--set {path}: {name} is set as a whole too; set it whole or by its fields")
        if isinstance(branch.get(last), dict):
            raise BadInput(f"--set {path}: fields of {last} are set too; set it whole or by its fields")
        try:
            branch[last] = Assigned(json.loads(text))
        except (ValueError, RecursionError):
            branch[last] = Assigned(text)
    return _assign(config, tree, "")


@dataclass(frozen=True)
class Assigned:
    """A value given on the command line, as distinct from a branch of assignments."""

    value: Any


def _assign(config: Any, tree: dict[str, Any], path: str) -> Any:
    known = [f.name for f in fields(config)] if is_dataclass(config) else []
    changes = {}
    for name, given in tree.items():
        here = f"{path}{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"fields here: {', '.join(known) or 'none'};"
            raise BadInput(f"--set {here}: no field {name!r}; {hint} gptjax config explains all fields")
        if isinstance(given, dict):
            changes[name] = _assign(getattr(config, name), given, f"{here}.")
        else:
            changes[name] = _structure(get_type_hints(type(config))[name], given.value, here)
    return replace(config, **changes)


def _is_plain(kind: Any) -> bool:
    """Say whether a type has no parts, so that its words say all that is wrong with a value."""
    return kind in (int, float, bool, str) or get_origin(kind) is Literal


def _in_json(kind: Any) -> bool:
    """Say whether JSON can express a type: functions, and sizes of any hashable kind, are Python's own."""
    own = (Callable, Hashable)
    return kind not in own and get_origin(kind) not in own and all(_in_json(inner) for inner in get_args(kind))


def _structure(kind: Any, value: Any, path: str) -> Any:
    """Turn a JSON value into a field's type; a field that JSON cannot express takes it as it is, lists as tuples."""
    if not _in_json(kind):
        return tuple(value) if isinstance(value, list) else value
    length = len(get_args(kind)) if get_origin(kind) is tuple and Ellipsis not in get_args(kind) else None
    if get_origin(kind) is tuple and not (isinstance(value, list) and length in (None, len(value))):
        as_list = json.dumps([1, 2][:length])
        raise BadInput(f"--set {path}={value}: expected {in_words(kind)}, in brackets as '{path}={as_list}'")
    box = dataclasses.make_dataclass("Value", [("value", kind)])
    try:
        return from_json(box, {"value": value}).value
    except BadInput as error:
        reason = "" if _is_plain(kind) else str(error).removeprefix("Value: value").removeprefix(": ") + "; "
        raise BadInput(f"--set {path}={value}: {reason}{path} must be {in_words(kind)}") from None
