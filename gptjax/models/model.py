"""The door: all that the rest of gptjax knows about a model. A family is a config class, and a row of families.py.

Shapes: B batch, T positions, D embed, V vocab.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax

from gptjax.batch import Batch
from gptjax.execution import DEFAULT_EXECUTION, Execution
from gptjax.models.cost import Cost
from gptjax.params import Params, named, nested
from gptjax.sharding import Layout

State = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hidden:
    """What the head reads, (B, T, D), and losses of the model's own, in nats a token, as a router's balance.

    Those are added to the objective as they are and reported by name.
    """

    x: jax.Array
    losses: dict[str, jax.Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoder:
    """Text a token at a time, from a state that is the family's own: keys and values, or what a recurrence holds."""

    # Read prompts (B, T), padded on the left: a row begins at its column of first_B, and what stands before is padding.
    # `room` is T and the tokens that may follow. Gives the logits after the last column, (B, V), and the state.
    start: Callable[[Params, jax.Array, jax.Array, int], tuple[jax.Array, State]]
    # Prepare the weights, once; what is returned reads a token a row, (B,), and gives logits (B, V) and the new state.
    stepper: Callable[[Params], Callable[[jax.Array, State], tuple[jax.Array, State]]]


@dataclass(frozen=True, eq=False)
class Model:
    """A config's functions. One config and execution give one object, so that compiled programs are found again."""

    config: "ModelConfig"
    execution: Execution
    init: Callable[[jax.Array], Params]
    axes: Params  # the name of every dimension of every weight
    trained: Params  # the axes of those weights that training moves
    hidden: Callable[[Params, Batch], Hidden]
    # Logits (B, T, V) in float32 of any positions of `hidden`, from the weights of `head` alone.
    readout: Callable[[Params, jax.Array], jax.Array]
    read_by: tuple[str, ...]  # the weights that `readout` reads, by the beginnings of their names
    reads: tuple[str, ...] = ()  # which optional parts of a batch `hidden` heeds: "segments", "prefix"
    decoder: Decoder | None = None  # None: the family does not generate
    observe: Callable[[Params, Batch], dict[str, jax.Array]] | None = None  # activations by name, for the coord check

    def head(self, tree: Params) -> Params:
        """Return the weights that `readout` reads, or what else a tree has at their places."""
        return nested({name: leaf for name, leaf in named(tree).items() if self._is_read(name)})

    def _is_read(self, name: str) -> bool:
        return any(name == first or name.startswith(first + ".") for first in self.read_by)

    def logits(self, params: Params, batch: Batch) -> jax.Array:
        """Return the logits of all positions, (B, T, V)."""
        return self.readout(self.head(params), self.hidden(params, batch).x)


@dataclass(frozen=True)
class Scales:
    """How many times wider and deeper a model is than the one whose hyper-parameters it takes (muP, CompleteP)."""

    width: float = 1.0
    depth: float = 1.0
    alpha: float = 1.0  # residual branches are multiplied by depth^-alpha


@runtime_checkable
class ModelConfig(Protocol):
    """What a family's config answers: a frozen dataclass whose field `family` is its tag in JSON."""

    def __hash__(self) -> int: ...

    @property
    def family(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def scales(self) -> Scales | None:
        """None: the optimizer treats every weight alike (standard parametrization)."""

    def build(self, execution: Execution = DEFAULT_EXECUTION) -> Model: ...

    def cost(self, seq_len: int, execution: Execution = DEFAULT_EXECUTION) -> Cost: ...

    def check(self, layout: Layout, execution: Execution) -> None:
        """Refuse, as BadInput, what this family cannot be split by."""

    def unseen(self, other: Any) -> tuple[str, ...]:
        """Name the settings that weights of `other` depend on, and that neither their names nor their shapes show."""
