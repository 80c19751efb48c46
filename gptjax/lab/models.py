"""A trained model in Python: its logits, what it generates, and how it leaves for transformers.

Shapes: B batch, T positions, V vocab.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from math import lcm
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np
from numpy.typing import ArrayLike

from gptjax.batch import Batch
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import BadInput
from gptjax.generate import Sampling, check_prompts, check_seed, stream
from gptjax.generate import generate as generate_ids
from gptjax.kernels.choice import kernels_of
from gptjax.lab.evaluation import Evaluated, evaluate
from gptjax.lab.places import Named, writable
from gptjax.lab.weights import Weights, saved_at
from gptjax.models.model import Model, ModelConfig
from gptjax.params import Params
from gptjax.sharding import Layout, use

MOST = 10_000  # answers at once: each has a cache of its own
ROOM = 2048  # tokens: a context that a config.json claims may be longer than any memory
STREAMED = 8  # tokens that are drawn between two pieces of a stream


@dataclass(frozen=True)
class LoadedModel(Weights):
    """A trained model. Its weights are read onto the devices when they are first needed, and stay there."""

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self.saved.directory

    @property
    def step(self) -> int | None:
        """The step of its run; None where it is not known."""
        return self.saved.step

    @property
    def config(self) -> ModelConfig:
        """Its shape, as the family's config."""
        return self.saved.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its training data; BadInput where none is known."""
        return self.saved.tokenizer

    def logits(self, ids: ArrayLike, *, context: ArrayLike | None = None) -> np.ndarray:
        """Give the logits of each position, (B, T, V) in float32, for token ids (B, T), or (T,) for one row.

        Position t is the prediction of what follows ids[:, :t + 1]. `context` is what an encoder reads beside them; a
        decoder has none. Raises BadInput for ids that are no whole numbers of the vocabulary, and for more positions
        than the model's context.
        """
        if context is not None:
            raise BadInput(f"a model of family {self.config.family} reads no context beside its ids; leave it out")
        ids_BT = _checked(ids, self.config)
        (B, T), layout, model = ids_BT.shape, self.layout, self.saved.model
        at_once = layout.parts(layout.rules.batch) * model.execution.in_flight(layout.parts(layout.rules.layers))
        unit = lcm(layout.parts(layout.rules.seq), layout.parts(layout.rules.stream))
        rows, positions = -(-B // at_once) * at_once, -(-T // unit) * unit
        if positions > T and model.decoder is None:
            raise BadInput(f"{T} positions are not split by the mesh; give a multiple of {unit}")
        padded_BT = np.pad(ids_BT, ((0, rows - B), (0, positions - T)))  # a decoder does not see what comes later
        batch = Batch(padded_BT, padded_BT, np.ones(padded_BT.shape, np.float32))
        return np.asarray(_logits(self.params, batch, model=model, layout=layout))[:B, :T]

    def stream(
        self,
        prompt: str | bytes = "",
        *,
        tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the prompt and then what follows it, piece by piece; takes what `generate` takes."""
        text, *given, settings = self._asked(prompt, 1, tokens, seed, (temperature, top_k, top_p, repetition_penalty))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        yield decoder.decode(text)
        for (ids,) in stream(self.params, *given, **settings, every=STREAMED):
            yield decoder.decode(self.tokenizer.decode(ids))
        yield decoder.decode(b"", final=True)

    @overload
    def generate(
        self,
        prompt: str | bytes = ...,
        *,
        count: None = ...,
        tokens: int | None = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        repetition_penalty: float = ...,
        seed: int = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str | bytes = ...,
        *,
        count: int,
        tokens: int | None = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        repetition_penalty: float = ...,
        seed: int = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | bytes = "",
        *,
        count: int | None = None,
        tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """Continue a prompt; give the prompt with what follows, or a list of so many answers where `count` is given.

        `tokens` are new ones (default: the context's room, 2048 at most). A temperature of 0 is greedy; `top_k` (0: of
        all), `top_p` and `repetition_penalty` are as in `generate.Sampling`. Raises BadInput where the context has no
        room, and for a family that does not generate.
        """
        text, *given, settings = self._asked(
            prompt, 1 if count is None else count, tokens, seed, (temperature, top_k, top_p, repetition_penalty)
        )
        answers = generate_ids(self.params, *given, **settings)
        told = [(text + self.tokenizer.decode(ids)).decode(errors="replace") for ids in answers]
        return told[0] if count is None else told

    def _asked(
        self, prompt: str | bytes, count: int, tokens: int | None, seed: int, sampled: tuple[float, int, float, float]
    ) -> tuple[Any, ...]:
        """Check what is asked for before the weights are read: the prompt's bytes, what to decode, and how."""
        if not 1 <= count <= MOST:
            raise BadInput(f"count {count} must lie between 1 and {MOST}; call again for more")
        check_seed(seed)
        sampling = Sampling(*sampled)
        text = prompt if isinstance(prompt, bytes) else prompt.encode("utf-8", "surrogateescape")
        ids = np.append(np.int32(self.tokenizer.bos), self.tokenizer.encode(text))
        model = self.saved.speaker
        new = min(model.config.context - len(ids), ROOM) if tokens is None else tokens
        if tokens is None and new < 1:
            raise BadInput(f"the prompt of {len(ids)} tokens fills the context of {model.config.context}; shorten it")
        check_prompts(model, [ids] * count, new)
        settings = {"stop": self.saved.stops, "seed": seed, "layout": self.layout}
        return text, model, [ids] * count, new, sampling, settings

    def evaluate(self, **asked: Any) -> Evaluated:
        """Measure what it knows; takes what `gptjax.evaluate` takes besides models."""
        return evaluate(self, **asked)

    def export(self, out: str | Path, **asked: Any) -> "Exported":
        """Write it for transformers, or its weights alone; takes what `gptjax.export` takes."""
        return export(self, out, **asked)

    def __repr__(self) -> str:
        n = self.config.cost(self.config.context).total
        facts = f"{self.config.family}, {n:,} parameters, context {self.config.context}, step {self.step}"
        return f"{self.directory}: {facts}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>"


def _checked(ids: ArrayLike, config: ModelConfig) -> np.ndarray:
    """Give ids as an int32 array (B, T); BadInput for what the model cannot read."""
    given = np.asarray(ids)
    if given.dtype.kind not in "iu" or given.ndim not in (1, 2) or not given.size:
        raise BadInput(f"ids of type {given.dtype} and shape {given.shape} are no token ids; give whole numbers (B, T)")
    low, high = given.min(), given.max()
    if low < 0 or high >= config.vocab_size:
        raise BadInput(f"ids go from {low} to {high}, and the model has {config.vocab_size}; use its tokenizer")
    if given.shape[-1] > config.context:
        raise BadInput(f"{given.shape[-1]} tokens do not fit the context of {config.context}; use shorter sequences")
    return np.atleast_2d(given).astype(np.int32)


@partial(jax.jit, static_argnames=("model", "layout"))
def _logits(params: Params, batch: Batch, *, model: Model, layout: Layout) -> jax.Array:
    with use(layout), kernels_of(model.execution):
        return model.logits(params, batch)[..., : model.config.vocab_size]


def load(path: Named, step: int | None = None) -> LoadedModel:
    """Load a model: the directory of a run (its newest intact step, or the one given), one of its checkpoints, or
    weights as `export` with format="orbax" and `gptjax import` write them.

    Raises BadInput where there is none, or where a byte of it is not as it was written.
    """
    return LoadedModel(saved_at(path, step))


def generate(model: LoadedModel | Named, prompt: str | bytes = "", *, step: int | None = None, **asked: Any) -> Any:
    """Continue a prompt with a model, or with the one at a path: see `LoadedModel.generate`."""
    return (model if isinstance(model, LoadedModel) else load(model, step)).generate(prompt, **asked)


@dataclass(frozen=True)
class Exported:
    """A model that was written for others."""

    path: Path
    facts: dict[str, Any]  # of format orbax: what weights.json says of them
    proof: Any = None  # of format hf: how it was proved to be the model (`hf.verify.Verification`); None: it was not


def export(
    model: LoadedModel | Named,
    out: str | Path,
    *,
    format: str = "hf",
    step: int | None = None,
    dtype: str | None = None,
    shard_bytes: float = 5e9,
    verify: bool = True,
) -> Exported:
    """Write a model for transformers (format="hf"), proved by loading it again, or its weights alone ("orbax").

    `dtype` is bfloat16 or float32 (default: as stored), `shard_bytes` the size of a file. Raises BadInput where `out`
    exists, where transformers has no such architecture, or where what was written says something else than the model.
    """
    out = Path(out)
    if format not in ("hf", "orbax"):
        raise BadInput(f"format {format!r} is not known; use hf or orbax")
    if dtype not in (None, "bfloat16", "float32"):
        raise BadInput(f"dtype {dtype!r} is not known; use bfloat16 or float32")
    writable(out)
    if out.exists():
        raise BadInput(f"{out} exists and is not overwritten; move it away or choose another name")
    if format == "hf" and not 1 <= shard_bytes <= 1e18:
        raise BadInput(f"shard-bytes {shard_bytes:g} must lie between 1 and 1e18; 5e9 is usual")
    saved = model.saved if isinstance(model, LoadedModel) else saved_at(model, step)
    if format == "orbax":
        from gptjax.run.export import export as export_orbax

        return Exported(out, export_orbax(saved, out, dtype))
    from gptjax.hf.export import export_hf

    return Exported(out, {}, export_hf(saved, out, dtype, shard_bytes=int(shard_bytes), verified=verify))
