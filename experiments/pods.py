"""Layouts for models that need a pod, written down: each fits the slice that it names.

    gptjax estimate experiments/pods.py:chinchilla_70b --topology v5p:8x8x8
    gptjax estimate experiments/pods.py:gpt3_175b --topology v5p:8x8x8
    gptjax estimate experiments/pods.py:gpt3_13b --topology '2x v5e:16x16'
    gptjax estimate experiments/pods.py:llama3_8b --topology v6e:16x16

Devices: the slices above; `gptjax estimate` compiles for them on any Linux machine with the extra tpu. Expected:
FITS. Not trained: nobody lent us a pod. Weights, gradients and moments are float32 and split over "fsdp", activations
are bfloat16, and each layer is computed again for its gradient, from its input alone.
"""

from dataclasses import replace

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.models.presets import preset
from gptjax.sharding import MeshConfig
from gptjax.train.optim import OptimConfig


def on_a_pod(name: str, *, tokens: float, batch: int, lr: float, mesh: MeshConfig) -> RunConfig:
    """Train a published shape on so many tokens, in batches of so many sequences."""
    model = replace(preset(name), dtype="bfloat16")
    steps = round(tokens / batch / model.context)
    return RunConfig(
        model=model,
        data=DataConfig(sources=(Source("text/*.parquet"),), tokenizer=f"sentencepiece:{model.vocab_size}"),
        optim=OptimConfig(lr=lr, schedule="cosine", floor=0.1, warmup=steps // 100, weight_decay=0.1),
        batch=batch,
        steps=steps,
        evaluate=EvalConfig(sequences=2048, batch=512),
        save=SaveConfig(every=500),
        execution=Execution(remat="full", vocab_multiple=128),
        mesh=mesh,
    )


def chinchilla_70b() -> RunConfig:
    """Hoffmann et al. 2022, Table 4: 1.4e12 tokens at 1e-4 in batches of (at last) 3M; v5p:8x8x8."""
    return on_a_pod("chinchilla-70b", tokens=1.4e12, batch=1536, lr=1e-4, mesh=MeshConfig(data=-1, fsdp=64))


def gpt3_175b() -> RunConfig:
    """Brown et al. 2020, Table 2.1: 3e11 tokens at 0.6e-4 in batches of 3.2M; v5p:8x8x8."""
    return on_a_pod("gpt3-175b", tokens=3e11, batch=1536, lr=6e-5, mesh=MeshConfig(data=-1, fsdp=128))


def gpt3_13b() -> RunConfig:
    """Brown et al. 2020, Table 2.1: 3e11 tokens at 1e-4 in batches of 2M; a copy on each of 2x v5e:16x16."""
    return on_a_pod("gpt3-13b", tokens=3e11, batch=1024, lr=1e-4, mesh=MeshConfig(data=2, fsdp=-1))


def llama3_8b() -> RunConfig:
    """Grattafiori et al. 2024, Table 3: batches of 4M tokens at 3e-4, and 20 tokens a parameter; v6e:16x16."""
    return on_a_pod("llama3-8b", tokens=1.6e11, batch=512, lr=3e-4, mesh=MeshConfig(data=1, fsdp=-1))
