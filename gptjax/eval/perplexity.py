"""Loss, perplexity and bits per byte of a model on a corpus, and the loss at every position of its context.

Shapes: N windows, T positions. A window begins anywhere in a document, so position t is predicted from t tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from gptjax.batch import Batch
from gptjax.config import EvalConfig
from gptjax.data.corpora import Split
from gptjax.data.loader import DataConfig, Source, open_stores, validation_batches
from gptjax.data.objectives import CAUSAL, Objective
from gptjax.data.store import TokenStore
from gptjax.data.tokenizer import MODEL_FILE
from gptjax.errors import BadInput
from gptjax.eval.estimates import Estimate, ratio
from gptjax.eval.score import begin_reading, rows_of
from gptjax.models.model import Model
from gptjax.params import Params
from gptjax.run.weights import SavedModel
from gptjax.sharding import Layout


@dataclass(frozen=True)
class Bin:
    """The mean loss over positions first to last, counted from 1, in nats a token."""

    first: int
    last: int
    loss: Estimate

    @property
    def name(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Perplexity:
    """What a model makes of a corpus; standard errors are over windows."""

    corpus: str
    split: str
    sequences: int
    tokens: int
    bytes: int
    loss: Estimate  # nats a token
    perplexity: Estimate  # of a token
    bits_per_byte: Estimate
    bins: tuple[Bin, ...]
    position_loss: np.ndarray  # (T,), nats: Kaplan et al. 2020, Figure 7, right
    position_se: np.ndarray


def stores_for(saved: SavedModel, corpus: str | None) -> tuple[TokenStore, ...]:
    """Open what to evaluate a model on, with its own tokenizer: a corpus, or else what its run was trained on.

    A corpus that is not in the cache is tokenized into it. BadInput where a store has another tokenizer.
    """
    data = saved.run.data if saved.run else DataConfig()
    if corpus is None:
        if saved.run is None:
            raise BadInput(f"{saved.directory} holds weights alone and knows no corpus; give --corpus NAME")
        return _with_its_tokenizer(saved, data)
    if saved.run and corpus in (names := [source.corpus for source in data.sources]):
        return (_with_its_tokenizer(saved, data)[names.index(corpus)],)
    return _with_tokenizer_of(saved, DataConfig((Source(corpus),), cache=data.cache))


def _with_its_tokenizer(saved: SavedModel, data: DataConfig) -> tuple[TokenStore, ...]:
    """Open the data of a run; where it has changed, a tokenizer trained on it is another, and the run's is taken."""
    stores = open_stores(data, saved.config.context)
    same = stores[0].tokenizer.digest == saved.tokenizer.digest
    return stores if same else _with_tokenizer_of(saved, data)


def _with_tokenizer_of(saved: SavedModel, data: DataConfig) -> tuple[TokenStore, ...]:
    tokenizer = saved.tokenizer
    kept = Path(data.cache, "tokenizers", tokenizer.digest[:16])  # by content: all models that share it share stores
    if not (kept / MODEL_FILE).is_file():
        kept.mkdir(parents=True, exist_ok=True)
        tokenizer.save(kept)
    stores = open_stores(replace(data, tokenizer=str(kept)), saved.config.context)
    if stores[0].tokenizer.digest != tokenizer.digest:
        corpus = data.sources[0].corpus
        raise BadInput(f"{corpus} was tokenized otherwise than the data of {saved.directory}; name its corpus instead")
    return stores


def measure(
    params: Params,
    model: Model,
    store: TokenStore,
    layout: Layout,
    *,
    split: Split = "validation",
    sequences: int = EvalConfig.sequences,
    batch: int = EvalConfig.batch,
    separate_documents: bool = False,
    objective: Objective = CAUSAL,
    progress: str = "",
) -> Perplexity:
    """Evaluate a model on evenly spaced windows: with a run's `sequences` and `batch`, on those of its training."""
    config = model.config
    if sequences < 2:
        raise BadInput(f"{sequences} sequences give no standard error; use 2 or more")
    if store.tokenizer.vocab_size > config.vocab_size:
        raise BadInput(
            f"{store.manifest.corpus} has token ids up to {store.tokenizer.vocab_size - 1}, and the model "
            f"{config.vocab_size} tokens; use the tokenizer that it was trained with"
        )
    batch = min(batch, sequences)
    whole = validation_batches(store, sequences, batch, config.context, separate_documents, split, objective)
    whole = jax.tree.map(lambda x: x.reshape(-1, config.context), whole)
    N, T = whole.inputs.shape
    nats_NT = np.zeros((N, T))
    with tqdm(total=N, desc=progress, disable=None if progress else True, leave=False) as bar:
        for rows, part in _parts(whole, rows_of(T, N, model, layout)):
            read, _ = begin_reading(params, part, model, layout)
            nats_NT[rows] = np.asarray(read)[: rows.stop - rows.start]
            bar.update(rows.stop - rows.start)
    predicted_NT = np.asarray(whole.weights, np.float64)  # 0 for the prompts of pairs, else 1
    nats_NT *= predicted_NT
    bytes_N = (store.tokenizer.token_bytes[whole.targets] * predicted_NT).sum(axis=1)

    def over(first: int, last: int) -> Estimate:
        """Estimate the loss over positions first to last, counted from 1."""
        here = slice(first - 1, last)
        return ratio(nats_NT[:, here].sum(axis=1), predicted_NT[:, here].sum(axis=1))

    loss = over(1, T)
    positions = [over(t, t) for t in range(1, T + 1)]
    return Perplexity(
        corpus=store.manifest.corpus,
        split=split,
        sequences=N,
        tokens=int(predicted_NT.sum()),
        bytes=int(bytes_N.sum()),
        loss=loss,
        perplexity=loss.exp(),
        bits_per_byte=ratio(nats_NT.sum(axis=1) / log(2), bytes_N),
        bins=tuple(Bin(*edges, over(*edges)) for edges in doubling(T)),
        position_loss=np.array([each.value for each in positions]),
        position_se=np.array([each.se for each in positions]),
    )


def doubling(T: int) -> list[tuple[int, int]]:
    """Return positions 1, 2, 3 to 4, 5 to 8, and so on to T, as (first, last)."""
    ends = [1 << i for i in range(T.bit_length()) if 1 << i < T] + [T]
    return list(zip([1, *(end + 1 for end in ends[:-1])], ends, strict=True))


def _parts(whole: Batch, size: int) -> Iterator[tuple[slice, Batch]]:
    """Yield the rows of a batch, so many at a time, the last ones filled up with copies of the first."""
    N = len(whole.inputs)
    for first in range(0, N, size):
        rows = np.arange(first, first + size)
        rows[rows >= N] = 0
        yield slice(first, min(first + size, N)), jax.tree.map(lambda x, rows=rows: x[rows], whole)
