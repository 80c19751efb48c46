"""Is relu better than gelu, and Muon than AdamW, and by how much compute? On the quick sweep's sizes, each as a ladder.

    gptjax sweep experiments/interventions.py --dir runs/activations        # gelu and relu, both with AdamW: 2 arms
    gptjax sweep experiments/interventions.py:muon --dir runs/muon          # gelu, with Muon
    gptjax compare runs/activations --by arm --figure activations.png
    gptjax compare runs/activations/arms/gelu runs/muon --figure muon.png

Devices: 2 CPU cores, about 4 minutes for the first and 3 for the second. All is as in chinchilla/quick.py but for the
activation, and for the optimizer with its own rate: 2.2 times AdamW's, as docs/laws.md measured it at two widths. What
was measured stands in experiments/README.md.
"""

from dataclasses import replace

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import Speed, SweepConfig
from gptjax.sweep.rules import power
from gptjax.train.optim import OptimConfig

WIDTHS = (16, 20, 24, 32, 40, 48, 64)
ADAMW_LR, MUON_FACTOR = 0.0085, 2.2


def shape(activation: str, width: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=512, context=64, d_model=width, n_layers=2, n_heads=2, norm="rmsnorm", bias=False, positions="rope",
        activation=activation, init_std=0.0,
    )  # fmt: skip


def sweep() -> SweepConfig:
    """Two arms that differ in the activation."""
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
        budgets=(1e11, 2e11, 4e11, 8e11),
        sizes=tuple((activation, width) for activation in ("gelu", "relu") for width in WIDTHS),
        shape=lambda size: shape(*size),
        arm=lambda size: size[0],
        lr=power(ADAMW_LR, at_params=14.4e3, exponent=-0.3),
        batch_tokens=512,
        warmup_tokens=50 * 512,
        tokens_per_param=(2.2, 150.0),
        speed=Speed(5.5e10, 2.5e-3, 3.0),
        workers=2,
    )


def muon() -> SweepConfig:
    """The arm of gelu, trained by Muon at its own rate."""
    adamw = sweep()
    return replace(
        adamw,
        base=replace(adamw.base, optim=replace(adamw.base.optim, name="muon")),
        sizes=WIDTHS,
        shape=lambda width: shape("gelu", width),
        arm=None,
        lr=power(MUON_FACTOR * ADAMW_LR, at_params=14.4e3, exponent=-0.3),
    )
