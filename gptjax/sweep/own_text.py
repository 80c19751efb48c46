"""A base sweep for a text of one's own: tokens at hand, shapes, batch, rate and this machine's speed.

What is derived here a written experiment spells out (sweep/as_python.py), so both take it from `OwnText`.
"""

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.corpora import corpus_files
from gptjax.data.loader import DataConfig, Source, open_stores
from gptjax.data.store import TokenStore
from gptjax.errors import BadInput
from gptjax.execution import Execution
from gptjax.laws.table import short
from gptjax.models.families import FAMILIES
from gptjax.models.model import ModelConfig
from gptjax.sweep.plan import Speed, SweepConfig
from gptjax.sweep.proposal import Allowance, Derived, Proposal
from gptjax.sweep.propose import HOLDOUT, propose_sweep
from gptjax.sweep.rules import Rule, porian_batch_tokens, porian_lr, small_batch_tokens, small_lr
from gptjax.sweep.speed import measure_speed
from gptjax.train.optim import OptimConfig

SMALL_WIDTHS = (8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128)
OWN_WIDTHS = (*SMALL_WIDTHS, *range(192, 1024, 64), *range(1024, 8193, 256))
WIDTH_OF_LAYER = 64  # a model has a layer and a head for so much width, and two of each at least
SMALL_PARAMS = 2e6  # sizes below are given the small rules
TIMED_WIDTHS = {"cpu": (24, 128), "gpu": (128, 512), "tpu": (128, 512)}
MOST_WORKERS = 8
COUNTED_BYTES = 200e6  # of files: more are not tokenized for a plan, but estimated
# By vocabulary, on this machine's Python text; the last, and how fast text is tokenized, are assumed.
BYTES_PER_TOKEN = ((257, 1.0), (512, 1.8), (4096, 3.1), (32768, 4.2))
TRAINING_SHARE = 63 / 64  # of documents; the rest is for validation
TOKENIZED_PER_SECOND = 4e6  # bytes
MOST_WINDOWS = 2048  # of validation, where there are as many
VALIDATED = 64  # windows at a time
WARMUP_STEPS, MIN_STEPS = 50, 100
COSTS = {
    "cpu": (2.5e-3, 3.0),
    "gpu": (5e-4, 8.0),
    "tpu": (5e-4, 8.0),
}  # seconds of a step and a run, where not measured


@dataclass(frozen=True)
class OwnText:
    """What a base sweep is made of, so that a file can spell it out."""

    corpus: str
    tokenizer: str
    vocab_size: int
    context: int
    windows: int  # of validation
    speed: Speed
    workers: int
    small: bool  # rules for small models
    cpu: bool
    cache: str = ".cache/gptjax"

    def shape(self, width: int) -> ModelConfig:
        """Give the model of a width: a layer and a head for every 64 of it, and two of each at least."""
        deep = max(2, width // WIDTH_OF_LAYER)
        return FAMILIES["gpt"](
            vocab_size=self.vocab_size, context=self.context, d_model=width, n_layers=deep, n_heads=deep,
            norm="rmsnorm", bias=False, positions="rope", init_std=0.0, dtype="float32" if self.cpu else "bfloat16",
        )  # type: ignore[call-arg]  # fmt: skip

    @property
    def lr(self) -> Rule:
        return small_lr if self.small else porian_lr

    @property
    def batch_tokens(self) -> Rule:
        return small_batch_tokens if self.small else porian_batch_tokens

    def warmup_tokens(self, n: float, d: float) -> float:
        return WARMUP_STEPS * self.batch_tokens(n, d)

    @property
    def calls(self) -> int:
        """Steps that a call of the device takes."""
        return 20 if self.small else 10

    def run(self) -> RunConfig:
        return RunConfig(
            data=DataConfig(sources=(Source(self.corpus),), tokenizer=self.tokenizer, cache=self.cache),
            optim=OptimConfig(schedule="wsd", cooldown=0.2, weight_decay=0.1),
            execution=Execution(scan=False) if self.cpu else Execution(vocab_multiple=128),
            steps_per_call=self.calls,
            log_every=20,
            evaluate=EvalConfig(sequences=self.windows, batch=min(VALIDATED, self.windows)),
            save=SaveConfig(every=10**9 if self.small else 5000),
            trackers=(),
        )

    def sweep(self) -> SweepConfig:
        """Give a sweep of all widths, with a held-out run, from which one is proposed."""
        return SweepConfig(
            base=self.run(),
            budgets=(1.0,),
            sizes=OWN_WIDTHS,
            shape=self.shape,
            lr=self.lr,
            batch_tokens=self.batch_tokens,
            warmup_tokens=self.warmup_tokens,
            min_steps=MIN_STEPS,
            holdout=HOLDOUT,
            holdout_sizes=OWN_WIDTHS,
            speed=self.speed,
            workers=self.workers,
        )


@dataclass(frozen=True)
class TokensAtHand:
    """Tokens of a corpus: to train on and to validate on, and how they were found."""

    train: float
    validation: float
    vocab_size: int
    before: float  # seconds that a sweep takes to tokenize what is not tokenized yet
    line: Derived


def plan_own_text(
    corpus: str,
    minutes: float,
    *,
    flops: float = math.inf,
    tokenizer: str = "",
    vocab: int | None = None,
    context: int | None = None,
    workers: int | None = None,
    flops_per_second: float | None = None,
    seeds: int | None = None,
    cache: str = ".cache/gptjax",
    **settings: object,
) -> Proposal:
    """Derive a sweep of one's own text from the minutes and the tokens at hand.

    `corpus` is any that `gptjax data` reads, or a directory that it wrote. `tokenizer` is as there (by default
    sentencepiece of `vocab` pieces; 512 of them on a CPU and 4096 elsewhere), `context` in tokens (64 and 512). The
    corpus is tokenized into `cache`, as the sweep would, unless it is large; then its tokens are estimated. Speed is
    measured in a few seconds unless `flops_per_second` gives that of one of the `workers`. `settings` are those of
    `propose_sweep`. BadInput, in a line, where there is too little text or time, with what is needed.
    """
    allowed = Allowance(flops=flops, seconds=60 * minutes)  # refused before anything is read
    platform = jax.default_backend()
    cpu = platform == "cpu"
    if vocab is not None and (tokenizer or vocab < 1):
        given = f"--vocab {vocab} beside --tokenizer {tokenizer}" if tokenizer else f"a vocabulary of {vocab}"
        raise BadInput(f"{given}: give one of them, as a vocabulary of 512")
    if context is not None and context < 8:
        raise BadInput(f"a context of {context} tokens is too short to learn from; give 8 or more, as 64")
    if flops_per_second is not None and not 0 < flops_per_second < math.inf:
        raise BadInput(f"a speed of {flops_per_second:g} FLOPs a second is none; give a number above 0")
    spec = tokenizer or f"sentencepiece:{vocab or (512 if cpu else 4096)}"
    length = context or (64 if cpu else 512)
    data = DataConfig(sources=(Source(corpus),), tokenizer=spec, cache=cache)
    counted = count_tokens(data)
    windows = min(MOST_WINDOWS, int((counted.validation - 1) // length))
    if windows < 2 * VALIDATED:
        raise BadInput(f"corpus {corpus!r} has {counted.validation:,.0f} tokens to validate on, {max(0, windows)} "
                       f"windows of {length}; give more text, so that there are {2 * VALIDATED}")  # fmt: skip
    many = workers or (min(MOST_WORKERS, len(os.sched_getaffinity(0))) if cpu else 1)
    own = OwnText(
        corpus=corpus,
        tokenizer=spec,
        vocab_size=counted.vocab_size,
        context=length,
        windows=windows // VALIDATED * VALIDATED,
        speed=Speed(flops_per_second or 1.0, *COSTS.get(platform, COSTS["gpu"])),
        workers=many,
        small=cpu,
        cpu=cpu,
        cache=cache,
    )
    own, alone, speed_line = measured(own, platform) if flops_per_second is None else (own, own.speed, given_speed(own))
    allowed = replace(allowed, tokens=counted.train, before=counted.before)
    lines = (counted.line, speed_line, compute_line(own, allowed))
    for small in (True, False) if own.small else (False,):
        own = replace(own, small=small)
        proposal = propose_sweep(own.sweep(), allowed, seeds=seeds, alone=alone, derived=lines, **settings)  # type: ignore[arg-type]
        if max(run.params for run in proposal.priced.cells) < SMALL_PARAMS:
            break
    return replace(proposal, own=own)


def count_tokens(data: DataConfig) -> TokensAtHand:
    """Open or build the token store of a corpus as a sweep does, or estimate its tokens from its bytes."""
    corpus = data.sources[0].corpus
    files = None if (Path(corpus) / "manifest.json").is_file() else corpus_files(corpus)
    size = sum(path.stat().st_size for path in files.read) if files else 0
    if size > COUNTED_BYTES and not Path(data.tokenizer).is_dir():
        if not (named := re.fullmatch("bytes|sentencepiece:([0-9]{1,9})", data.tokenizer)):
            raise BadInput(f"tokenizer {data.tokenizer!r} is not bytes, sentencepiece:VOCAB or a tokenizer's directory")
        vocab = max(257, int(named[1] or 257))
        each = bytes_per_token(vocab)
        tokens = size / each
        line = Derived(f"tokens at hand: about {short(TRAINING_SHARE * tokens)} in {size:,} bytes",
                       f"estimated at {each:.2g} bytes each, as in Python text; gptjax data counts them")  # fmt: skip
        share = 1 - TRAINING_SHARE
        return TokensAtHand(TRAINING_SHARE * tokens, share * tokens, vocab, size / TOKENIZED_PER_SECOND, line)
    (store,) = open_stores(data)
    return TokensAtHand(
        store.n_tokens("train"), store.n_tokens("validation"), store.tokenizer.vocab_size, 0.0, store_line(store)
    )


def store_line(store: TokenStore) -> Derived:
    train, held = (store.n_tokens(split) for split in ("train", "validation"))
    how = f"{store.manifest.splits['train'].bytes_per_token:.2f} bytes a token, {store.manifest.tokenizer}"
    return Derived(f"tokens at hand: {short(train)} to train on and {short(held)} to validate on", f"counted; {how}")


def bytes_per_token(vocab: int) -> float:
    """Estimate how many bytes a token stands for, by its vocabulary, straight between those measured."""
    sizes, measured_bytes = zip(*BYTES_PER_TOKEN, strict=True)
    return float(np.interp(math.log(vocab), np.log(sizes), measured_bytes))


def measured(own: OwnText, platform: str) -> tuple[OwnText, Speed, Derived]:
    """Measure this machine's speed on a small and a large shape of the sweep."""
    configs = []
    for width in TIMED_WIDTHS.get(platform, TIMED_WIDTHS["gpu"]):
        model = own.shape(width)
        tokens = own.batch_tokens(model.cost(model.context).total, 0.0)
        configs.append(replace(own.run(), model=model, batch=max(1, round(tokens / own.context))))
    speed, alone = measure_speed(configs, own.workers)
    rounded = [Speed(*(float(f"{value:.2g}") for value in vars(each).values())) for each in (speed, alone)]
    own = replace(own, speed=rounded[0])
    line = Derived(f"speed: {words(rounded[0])} in each of {own.workers} worker(s), {words(rounded[1])} alone",
                   f"measured on {platform}")  # fmt: skip
    return own, rounded[1], line


def given_speed(own: OwnText) -> Derived:
    return Derived(f"speed: {words(own.speed)} in each of {own.workers} worker(s)", "FLOPs a second as given")


def words(speed: Speed) -> str:
    return f"{speed.flops_per_second:.2g} FLOPs a second and {1e3 * speed.seconds_per_step:.2g} ms a step"


def compute_line(own: OwnText, allowed: Allowance) -> Derived:
    most = allowed.seconds * own.workers * own.speed.flops_per_second
    return Derived(f"compute in {allowed.seconds / 60:g} minutes on {own.workers} worker(s): {most:.2g} FLOPs at most, "
                   f"less {own.speed.seconds_per_run:.2g} s a run to compile and evaluate")  # fmt: skip
