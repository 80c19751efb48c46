"""A model on disk: a step of a run, or weights alone as `export` and `import` write them; read onto any devices.

A folder of weights holds weights.json (the model, and where it comes from), params/ (Orbax), seal.json (the sha256 of
every file of params/) and, where there is one, tokenizer.model.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any

import jax
import tensorstore as ts

from gptjax.config import RunConfig, from_json, load_config
from gptjax.data.loader import open_stores
from gptjax.data.tokenizer import MODEL_FILE, Tokenizer, load_tokenizer
from gptjax.errors import BadInput
from gptjax.files import read_json
from gptjax.models.gpt import GPTConfig, gpt
from gptjax.params import Params
from gptjax.sharding import Layout, MeshConfig, Rules, make_mesh
from gptjax.train.checkpoint import Unreadable, altered, damage, newest_intact, open_arrays, read_tree
from gptjax.train.tune import merged_arrays

MARK = "weights.json"  # in a folder of weights alone
PARAMS = "params."


@dataclass(frozen=True)
class SavedModel:
    """A model whose files are proved; nothing of it is in memory."""

    directory: Path
    config: GPTConfig
    run: RunConfig | None  # None: weights alone
    step: int | None
    facts: dict[str, Any]  # where it comes from, as weights.json has it

    @cached_property
    def arrays(self) -> dict[str, ts.TensorStore]:
        """The weights, by the names of their path joined with dots; adapters are merged as they are read."""
        try:
            if self.run is None:
                return open_arrays(self.directory / "params")
            whole = open_arrays(self.directory / "checkpoints" / str(self.step) / "default")
        except Unreadable as error:
            raise BadInput(f"{self.directory} {error}; write it again") from error
        params = {name.removeprefix(PARAMS): array for name, array in whole.items() if name.startswith(PARAMS)}
        return merged_arrays(params, self.run.tune)

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

    def layout(self) -> Layout:
        """Return how its run lay on the devices; where these are others, it is split over what divides it."""
        if self.run:
            with suppress(BadInput):
                return Layout(make_mesh(self.run.mesh), self.run.rules)
        return Layout(make_mesh(MeshConfig(fsdp=gcd(self.config.d_model, jax.device_count()))), Rules())

    def read(self, layout: Layout) -> Params:
        """Read the weights onto the devices of a layout."""
        model = gpt(self.config)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        placed = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            layout.params(model.axes, shapes),
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
        facts = read_json(directory / MARK)
        return SavedModel(directory, from_json(GPTConfig, facts.pop("model")), None, facts.get("step"), facts)
    if not (directory / "config.json").is_file():
        raise BadInput(f"{directory} has neither config.json nor {MARK}; give the directory of a run or of weights")
    if "architectures" in read_json(directory / "config.json"):
        raise BadInput(f"{directory} holds a model of transformers; gptjax import it first")
    config = load_config(directory / "config.json")
    return SavedModel(directory, config.model, config, _chosen_step(directory, step), {})


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
