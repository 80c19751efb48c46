"""One small run on this machine's Python text: 131 thousand parameters, two million tokens, half a minute on a laptop.

    gptjax train experiments/tiny.py --dir runs/tiny

Devices: a CPU. Expected: about 2.8 nats a token.
"""

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.train.optim import OptimConfig


def run() -> RunConfig:
    return RunConfig(
        model=GPTConfig(
            vocab_size=512,
            context=128,
            d_model=64,
            n_layers=2,
            n_heads=2,
            norm="rmsnorm",
            bias=False,
            positions="rope",
            init_std=0.0,
        ),
        execution=Execution(scan=False),
        optim=OptimConfig(lr=4e-3, schedule="wsd", warmup=50),
        batch=16,
        steps=1000,
        steps_per_call=10,
        evaluate=EvalConfig(sequences=512, batch=32, every=250),
        save=SaveConfig(every=250),
    )
