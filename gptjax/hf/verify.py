"""Proof that what was exported is the model: it is loaded again, and its logits are compared with ours.

transformers loads it where it is installed with torch, else our own reader does.
"""

import importlib.metadata
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.batch import Batch
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import BadInput
from gptjax.hf.architectures import gpt_config
from gptjax.hf.load import open_hf, read_params
from gptjax.hf.tokenizer import TEXTS, tokenizer_difference
from gptjax.kernels.choice import kernels_of
from gptjax.run.weights import SavedModel
from gptjax.sharding import Layout, use

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.02}  # of the spread of the logits, at the worst of them
TOKENS = 64


@dataclass(frozen=True)
class Verification:
    """How an export was proved."""

    by: str  # the reader
    largest: float  # tokenizer_difference of a logit
    spread: float  # standard deviation of the logits
    tokens: int
    texts: int  # whose ids were compared; 0: none were

    def __str__(self) -> str:
        tokenizer = f", {self.texts} texts tokenized alike" if self.texts else ""
        return f"read by {self.by}: logits within {self.largest:.1e} on {self.tokens} tokens{tokenizer}"


def verify(folder: Path, saved: SavedModel, dtype: np.dtype) -> Verification:
    """Compare a folder with the model it was written from; BadInput where they differ by more than rounding."""
    layout = saved.layout()
    rows = layout.parts(layout.rules.batch) * max(2, saved.execution.in_flight(layout.parts(layout.rules.layers)))
    ids = np.random.default_rng(0).integers(saved.config.vocab_size, size=(rows, min(TOKENS, saved.config.context)))
    ours = _logits(saved.read(layout), saved, ids, layout)
    if find_spec("torch") and find_spec("transformers"):
        by, theirs, texts = _by_transformers(folder, ids, saved.tokenizer if saved.has_tokenizer else None)
    else:
        by, texts = "gptjax (transformers is not installed)", 0
        model = open_hf(folder)
        theirs = np.asarray(model.config.build().logits(read_params(model), _batch(jnp.asarray(ids))))
    largest, spread = float(np.abs(ours - theirs).max()), float(ours.std())
    if not largest <= TOLERANCE[dtype.name] * max(1.0, spread):
        raise BadInput(
            f"{folder} read by {by} gives logits that differ by {largest:.2g} (their spread is {spread:.2g}), so it is "
            "not this model and was not kept; please report it with the model's config"
        )
    return Verification(by, largest, spread, ids.size, texts)


def _logits(params: Any, saved: SavedModel, ids: np.ndarray, layout: Layout) -> np.ndarray:
    model = replace(gpt_config(saved.config), dtype="float32").build(saved.execution)

    @jax.jit
    def apply(params: Any, ids: jax.Array) -> jax.Array:
        with use(layout), kernels_of(saved.execution):
            return model.logits(params, _batch(ids))

    return np.asarray(apply(params, jnp.asarray(ids)))[..., : saved.config.vocab_size]


def _batch(ids: jax.Array) -> Batch:
    return Batch(ids, ids, jnp.ones(ids.shape))


def _by_transformers(folder: Path, ids: np.ndarray, tokenizer: Tokenizer | None) -> tuple[str, np.ndarray, int]:
    """Return who read the folder, what it says, and how many texts its tokenizer reads as ours."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    model, told = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told.get(what):
            raise BadInput(f"{folder}: transformers finds {what.replace('_', ' ')}: {sorted(told[what])[0]}; not kept")
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits.numpy()
    texts = 0
    if tokenizer:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if differs := tokenizer_difference(theirs, tokenizer):
            raise BadInput(f"{folder}: the tokenizer reads {differs}; not kept")
        texts = TEXTS
    return f"transformers {importlib.metadata.version('transformers')}", logits, texts
