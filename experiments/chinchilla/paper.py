"""The paper's own sweep: budgets of 6e18 to 3e21 FLOPs on the sizes of Table A9 (Hoffmann et al. 2022, section 3.2).

    gptjax sweep experiments/chinchilla/paper.py --dry-run

Devices: a TPU or GPU pod. Expected: N* as C^0.49, D* as C^0.51 (Table 2, Approach 2). Each cell is its own cosine run
whose cycle ends with the run (section 3.1), with peak rates from 2e-4 at the smallest to 1.25e-4 at the largest size
and batches of half a million tokens (section D.4), which are the values the paper gives; it leaves the rest unsaid.
The text is read from `text/*.parquet`. Not measured: nobody lent us the pod.
"""

from dataclasses import replace

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.gpt import GPTConfig
from gptjax.models.presets import TABLE_A9, preset
from gptjax.sharding import MeshConfig
from gptjax.sweep.plan import Speed, SweepConfig
from gptjax.sweep.rules import always, power
from gptjax.train.optim import OptimConfig


def shape(name: str) -> GPTConfig:
    return replace(preset(name), dtype="bfloat16")


def sweep() -> SweepConfig:
    return SweepConfig(
        base=RunConfig(
            data=DataConfig(sources=(Source("text/*.parquet"),), tokenizer="sentencepiece:32000"),
            optim=OptimConfig(schedule="cosine", floor=0.1, weight_decay=0.1),
            evaluate=EvalConfig(sequences=4096, batch=256),
            save=SaveConfig(every=1000),
            execution=Execution(remat="dots", vocab_multiple=128),
            mesh=MeshConfig(data=-1, fsdp=16),
        ),
        budgets=(6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21),
        sizes=tuple(f"chinchilla-{millions}m" for millions, *_ in TABLE_A9),
        shape=shape,
        lr=power(2e-4, 44e6, -0.08, low=1.25e-4),
        batch_tokens=always(2**19),
        tokens_per_param=(1.5, 250.0),
        min_steps=500,
        speed=Speed(256 * 0.5 * 459e12, 0.0, 120.0),  # 256 TPU v5p at half their peak
    )
