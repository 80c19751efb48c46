"""The quick sweep: a compute-optimal law from this machine's own Python text, on two CPU cores, in ten minutes.

    gptjax sweep experiments/chinchilla/quick.py

Devices: a laptop's CPU. Expected: an interior minimum at every budget, N* growing as about C^0.45, and the held-out
run's loss predicted within 0.03 nats in log loss. Measured numbers stand in experiments/README.md.
"""

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import Speed, SweepConfig
from gptjax.sweep.rules import always, power
from gptjax.train.optim import OptimConfig


def shape(width: int) -> GPTConfig:
    """Two layers and two heads at every width: sizes differ in one thing only, so the law has no kinks of shape."""
    return GPTConfig(
        vocab_size=512,
        context=64,
        d_model=width,
        n_layers=2,
        n_heads=2,
        norm="rmsnorm",
        bias=False,
        positions="rope",
        init_std=0.0,
    )


def sweep() -> SweepConfig:
    return SweepConfig(
        base=RunConfig(
            data=DataConfig(sources=(Source("python"),), tokenizer="sentencepiece:512"),
            optim=OptimConfig(schedule="wsd", cooldown=0.2, b2=0.95, weight_decay=0.1),
            execution=Execution(scan=False),
            steps_per_call=20,
            log_every=20,
            evaluate=EvalConfig(sequences=2048, batch=64),
            save=SaveConfig(every=10**9),
            trackers=(),
        ),
        budgets=(1e11, 2.4e11, 5.5e11, 1.3e12, 3e12),
        sizes=(16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128),
        shape=shape,
        lr=power(0.0085, at_params=14.4e3, exponent=-0.3),  # tuned at 3e11 FLOPs on four sizes: LOG.md
        batch_tokens=always(512),
        warmup_tokens=always(50 * 512),
        tokens_per_param=(2.2, 150.0),
        holdout=9e12,
        holdout_sizes=(64, 72, 80, 88, 96, 104, 112, 120, 128),
        speed=Speed(5.5e10, 2.5e-3, 3.0),
        workers=2,
    )
