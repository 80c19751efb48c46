"""Does a learning rate transfer? Four widths at seven rates, standard and under muP, for as many tokens each.

    gptjax sweep experiments/mup.py:standard --dir runs/standard
    gptjax sweep experiments/mup.py:mup --dir runs/mup

Devices: a laptop's CPU, some five minutes each. Expected: the best rate falls as width grows in standard
parametrization, and stays under muP (Yang et al. 2022, Figure 1). Measured numbers stand in experiments/README.md.
"""

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import Speed, SweepConfig
from gptjax.train.optim import OptimConfig

BASE_WIDTH = 64
BATCH_TOKENS, STEPS = 512, 480


def shape(width: int, mup_width: int = 0) -> GPTConfig:
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
        mup_width=mup_width,
    )


def standard(mup_width: int = 0) -> SweepConfig:
    return SweepConfig(
        base=RunConfig(
            data=DataConfig(sources=(Source("python"),), tokenizer="sentencepiece:512"),
            optim=OptimConfig(schedule="cosine", weight_decay=0.1),
            execution=Execution(scan=False),
            steps_per_call=20,
            log_every=20,
            evaluate=EvalConfig(sequences=1024, batch=64),
            save=SaveConfig(every=10**9),
            trackers=(),
        ),
        horizons=(BATCH_TOKENS * STEPS,),
        sizes=(32, 64, 128, 256),
        shape=lambda width: shape(width, mup_width),
        lr=0.004,  # near the best of BASE_WIDTH: chinchilla/quick.py's rule
        lr_factors=(1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0),
        batch_tokens=BATCH_TOKENS,
        warmup_tokens=40 * BATCH_TOKENS,
        tokens_per_param=(0.1, 100.0),
        speed=Speed(7.5e10, 2e-3, 4.0),
        workers=2,
    )


def mup() -> SweepConfig:
    return standard(BASE_WIDTH)
