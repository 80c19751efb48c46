"""A model on disk and on the devices: its weights are read once, by whatever asks for them first."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gptjax.errors import BadInput
from gptjax.lab.places import Named
from gptjax.params import Params
from gptjax.run.weights import SavedModel, saved_model
from gptjax.sharding import Layout


@dataclass(frozen=True)
class Weights:
    """A model whose weights are read onto the devices when they are first needed, and stay there."""

    saved: SavedModel = field(repr=False)

    @cached_property
    def layout(self) -> Layout:
        """Which device holds what."""
        return self.saved.layout()

    @cached_property
    def params(self) -> Params:
        """Its weights, on the devices of its layout."""
        return self.saved.read(self.layout)


def saved_at(path: Named, step: int | None = None) -> SavedModel:
    """Find a model on disk, of a run, of one of its checkpoints, or of weights alone."""
    place = Path(path)
    if place.parent.name == "checkpoints" and place.name.isdecimal() and place.is_dir():
        if step not in (None, int(place.name)):
            raise BadInput(f"{place} is the checkpoint of step {place.name}; leave out step {step}")
        return saved_model(place.parent.parent, int(place.name))
    return saved_model(place, step)
