"""Two arms of one sweep: does LLaMA's kind of layer need less compute than GPT-2's for the same loss?

    gptjax sweep experiments/arms.py --dir runs/arms      # 2 CPU cores, about 4 minutes

Both arms have the widths, the data, the batch and the rule for the rate of chinchilla/quick.py. The rate was tuned for
the llama arm. What was measured stands in experiments/README.md.
"""

from dataclasses import replace

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import Speed, SweepConfig
from gptjax.sweep.rules import power
from gptjax.train.optim import OptimConfig

LLAMA = GPTConfig(
    vocab_size=512, context=64, n_layers=2, n_heads=2, norm="rmsnorm", bias=False, positions="rope", init_std=0.0
)
GPT2 = replace(LLAMA, norm="layernorm", bias=True, positions="learned")
ARMS = {"llama": LLAMA, "gpt2": GPT2}


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
        budgets=(1e11, 2e11, 4e11, 8e11),
        sizes=tuple((arm, width) for arm in ARMS for width in (16, 20, 24, 32, 40, 48, 64)),
        shape=lambda size: replace(ARMS[size[0]], d_model=size[1]),
        arm=lambda size: size[0],
        lr=power(0.0085, at_params=14.4e3, exponent=-0.3),
        batch_tokens=512,
        warmup_tokens=50 * 512,
        tokens_per_param=(2.2, 150.0),
        speed=Speed(5.5e10, 2.5e-3, 3.0),
        workers=2,
    )
