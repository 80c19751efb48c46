"""The sweep for one GPU: budgets of 1e15 to 3.2e16 FLOPs and a held-out run of 1e17, on web text.

    gptjax sweep experiments/chinchilla/h200.py          # 27 minutes, predicted
    gptjax sweep experiments/chinchilla/h200.py:short    # 5 minutes, predicted: budgets of 3e14 to 2e15 FLOPs

Devices: one H200; any GPU or TPU will do, only the predicted times are the H200's. Expected: N* growing
as C^0.5 (Hoffmann et al. 2022, Table 2: .49 and .50 by the first two approaches). Batch, rate and beta2 follow Porian
et al. 2024. The text is read from `fineweb/*.parquet` (a column `text`); with `--set
base.data.sources='[{"corpus": "python"}]'` it is this machine's Python, which the larger runs then read many times
over. Not yet measured: experiments/README.md says so.
"""

from dataclasses import replace

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import Speed, SweepConfig
from gptjax.sweep.rules import porian_batch_tokens, porian_lr
from gptjax.train.optim import OptimConfig

SIZES = {96: 2, 128: 3, 160: 3, 192: 4, 224: 4, 256: 5, 320: 6, 384: 7, 448: 8, 512: 9}  # width: layers


def shape(width: int) -> GPTConfig:
    """LLaMA's kind of layer; width over depth stays near 55."""
    return GPTConfig(
        vocab_size=4096,
        context=1024,
        d_model=width,
        n_layers=SIZES[width],
        n_heads=width // 32,
        norm="rmsnorm",
        bias=False,
        positions="rope",
        activation="silu",
        gated=True,
        d_mlp=-(-8 * width // 3 // 64) * 64,
        qk_norm=True,
        init_std=0.0,
        dtype="bfloat16",
    )


def sweep() -> SweepConfig:
    return SweepConfig(
        base=RunConfig(
            data=DataConfig(sources=(Source("fineweb/*.parquet"),), tokenizer="sentencepiece:4096"),
            optim=OptimConfig(schedule="wsd", cooldown=0.2, weight_decay=0.1),
            execution=Execution(vocab_multiple=128),
            steps_per_call=10,
            log_every=20,
            evaluate=EvalConfig(sequences=1024, batch=64),
            save=SaveConfig(every=5000),
        ),
        budgets=(1e15, 2.4e15, 5.6e15, 1.3e16, 3.2e16),
        sizes=tuple(SIZES),
        shape=shape,
        lr=porian_lr,
        batch_tokens=porian_batch_tokens,
        b2=lambda n, d: 0.99 if n < 3e7 else 0.95,  # small batches want the longer memory (Porian et al.)
        warmup_tokens=lambda n, d: 100 * porian_batch_tokens(n, d),  # 100 steps: LOG.md says why not N tokens
        tokens_per_param=(2.0, 300.0),
        holdout=1e17,
        holdout_sizes=(320, 384, 448, 512),
        speed=Speed(2.5e14, 5e-4, 8.0),
    )


def short() -> SweepConfig:
    """The same recipe in the minutes that a borrowed card has: three budgets, seven sizes, a held-out run of 6e15."""
    return replace(
        sweep(),
        budgets=(3e14, 8e14, 2e15),
        sizes=(96, 128, 160, 192, 224, 256, 320),
        tokens_per_param=(2.0, 600.0),
        holdout=6e15,
        holdout_sizes=(192, 224, 256, 320),
    )
