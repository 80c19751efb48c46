"""A model on disk: a step of a run, or weights alone as `export` and `import` write them; read onto any devices.

A folder of weights holds weights.json (the model, and where it comes from), params/ (Orbax), seal.json (the sha256 of
every file of params/) and, where there is one, tokenizer.model.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any

import jax
import tensorstore as ts

from gptjax.config import RunConfig, from_json, load_config, moved
from gptjax.data.loader import open_stores
from gptjax.data.tokenizer import MODEL_FILE, Tokenizer, load_tokenizer
from gptjax.errors import BadInput
from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.files import read_json
from gptjax.mesh import make_mesh
from gptjax.models.model import Model, ModelConfig
from gptjax.params import Params
from gptjax.run.checkpoint import Unreadable, altered, check_arrays, damage, newest_intact, open_arrays, read_tree
from gptjax.sharding import Layout, MeshConfig, Rules
from gptjax.train.adapters import merged_arrays

MARK = "weights.json"  # in a folder of weights alone
PARAMS = "params."
MARK_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Marks:
    """The ids that begin and end texts, as transformers' config.json and generation_config.json name them.

    generation is None where there was no such file, and config.json counts for it too. BadInput for what is no id.
    """

    config: dict[str, Any]
    generation: dict[str, Any] | None

    def __post_init__(self) -> None:
        for said in (self.config, self.generation or {}):
            for name in MARK_IDS:
                value = said.get(name)
                ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
                if not all(i is None or (type(i) is int and -(2**31) <= i < 2**31) for i in ids):
                    raise BadInput(f"{name} = {value!r} is not an id; give a whole number, or null")

    @property
    def leads(self) -> list[int]:
        """The ids that may lead a text, the best first: some of them may be none of the vocabulary."""
        files = (self.config, self.generation or {})
        return [i for name in MARK_IDS[:2] for said in files for i in _ids(said.get(name))]

    @property
    def stops(self) -> list[int]:
        """The ids at which transformers ends a generation."""
        return _ids((self.config if self.generation is None else self.generation).get("eos_token_id"))


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if i is not None]


@dataclass(frozen=True)
class SavedModel:
    """A model whose files are proved; nothing of it is in memory."""

    directory: Path
    config: ModelConfig
    run: RunConfig | None  # None: weights alone
    step: int | None
    facts: dict[str, Any]  # where it comes from, as weights.json has it
    marks: Marks | None = None  # what an imported model says of them
    execution: Execution = DEFAULT_EXECUTION  # its run's, or how its vocabulary is padded

    @property
    def model(self) -> Model:
        return self.config.build(self.execution)

    @cached_property
    def arrays(self) -> dict[str, ts.TensorStore]:
        """The weights, by the names of their path joined with dots; adapters are merged as they are read."""
        try:
            if self.run is None:
                arrays = open_arrays(self.directory / "params")
            else:
                whole = open_arrays(self.directory / "checkpoints" / str(self.step) / "default")
                params = {name.removeprefix(PARAMS): array for name, array in whole.items() if name.startswith(PARAMS)}
                arrays = merged_arrays(params, self.run.tune)
        except Unreadable as error:
            raise BadInput(f"{self.directory} {error}; write it again") from error
        check_arrays(arrays, jax.eval_shape(self.model.init, jax.random.key(0)), str(self.directory))
        return arrays

    @property
    def has_tokenizer(self) -> bool:
        return self.run is not None or (self.directory / MODEL_FILE).is_file()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its training data; BadInput where none is known."""
        if (self.directory / MODEL_FILE).is_file():
            return load_tokenizer(self.directory)
        if self.run is None:
            raise BadInput(f"{self.directory} has no {MODEL_FILE}: it was imported without one; put it there")
        return open_stores(self.run.data)[0].tokenizer

    @property
    def stops(self) -> list[int]:
        """The ids that end a generation: an imported model's own, else the one that begins the next document."""
        stops = self.marks.stops if self.marks else [self.tokenizer.bos]
        return [i for i in stops if 0 <= i < self.config.vocab_size]

    @property
    def speaker(self) -> Model:
        """The model to generate with: ids that its tokenizer lacks, and that only pad its vocabulary, are not drawn."""
        known = min(self.tokenizer.vocab_size, self.config.vocab_size)
        as_wide = replace(self.execution, vocab_multiple=self.execution.padded(self.config.vocab_size))
        return replace(self.config, vocab_size=known).build(as_wide)  # type: ignore[type-var]

    def layout(self) -> Layout:
        """Return how its run lay on the devices; where these are others, it is split over what divides it."""
        if self.run:
            with suppress(BadInput):
                return Layout(make_mesh(self.run.mesh), self.run.rules)
        width = self.config.cost(self.config.context, self.execution).widths.stream
        return Layout(make_mesh(MeshConfig(fsdp=gcd(width, jax.device_count()))), Rules())

    def read(self, layout: Layout) -> Params:
        """Read the weights onto the devices of a layout."""
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        placed = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            layout.params(self.model.axes, shapes),
        )
        try:
            return read_tree(self.arrays, placed, str(self.directory))
        except Unreadable as error:
            raise BadInput(f"{self.directory} {error}; write it again") from error


def saved_model(directory: Path, step: int | None = None) -> SavedModel:
    """Find the model of a run (its newest intact step unless one is given) or of a folder of weights.

    BadInput where there is none, or where a byte of it is not as it was written.
    """
    if (directory / MARK).is_file():
        if step is not None:
            raise BadInput(f"{directory} holds weights of one step; leave out --step")
        if wrong := altered(directory / "params", directory / "seal.json"):
            raise BadInput(f"{directory / 'params'} {wrong}; write it again")
        return _read_mark(directory)
    if not (directory / "config.json").is_file():
        raise BadInput(f"{directory} has neither config.json nor {MARK}; give the directory of a run or of weights")
    content = read_json(directory / "config.json")
    if isinstance(content, dict) and "architectures" in content:
        raise BadInput(f"{directory} holds a model of transformers; gptjax import it first")
    config = load_config(directory / "config.json")
    return SavedModel(directory, config.model, config, _chosen_step(directory, step), {}, None, config.execution)


def _read_mark(directory: Path) -> SavedModel:
    """Read weights.json; BadInput where it does not say what it has to."""
    path = directory / MARK
    facts = read_json(path)
    if not isinstance(facts, dict) or "model" not in facts:
        raise BadInput(f"{path} does not say which model it is; export or import it again")
    for name in ("step", "tokens"):
        if type(facts.get(name)) not in (int, type(None)):
            raise BadInput(f"{path}: {name} = {facts[name]!r} is not a whole number; export or import it again")
    try:
        model, execution = moved(facts.pop("model"))
        config = from_json(ModelConfig, model)  # type: ignore[type-abstract]
        padding = facts.pop("vocab_multiple", execution.get("vocab_multiple", 1))
        as_padded = from_json(Execution, {"vocab_multiple": padding})
        marks = _marks(facts.get("marks"))
    except BadInput as error:
        raise BadInput(f"{path}: {error}; export or import it again") from None
    return SavedModel(directory, config, None, facts.get("step"), facts, marks, as_padded)


def _marks(given: Any) -> Marks | None:
    """Rebuild the marks of weights.json: those from before there were any, and exports of runs, have none."""
    if given is None:
        return None
    config, generation = (given.get("config"), given.get("generation")) if isinstance(given, dict) else (None, None)
    if not isinstance(config, dict) or not isinstance(generation, dict | None):
        raise BadInput("its marks are not those of two files")
    return Marks(config, generation)


def _chosen_step(run: Path, step: int | None) -> int:
    """Return the step asked for, or the newest intact one; BadInput if there is none."""
    saved = run / "checkpoints"
    if step is None:
        step = newest_intact(saved)
        if step is None:
            raise BadInput(f"{run} has no intact checkpoint; train it first")
    elif wrong := damage(saved, step):
        raise BadInput(f"checkpoint {saved / str(step)} {wrong}; leave out --step for the newest that is intact")
    return step
