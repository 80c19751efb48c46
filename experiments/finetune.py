"""Teach experiments/tiny.py to name functions: from a docstring's first line to the name, on this machine's Python.

    gptjax train experiments/tiny.py --dir runs/tiny
    python experiments/finetune.py
    gptjax train experiments/finetune.py:full --dir runs/names-full
    gptjax train experiments/finetune.py:lora --dir runs/names-lora
    gptjax train experiments/finetune.py:frozen --dir runs/names-frozen
    gptjax train experiments/finetune.py:scratch --dir runs/names-scratch
    gptjax train experiments/finetune.py:untuned --dir runs/names-untuned

Devices: a CPU, a minute each. Expected: the loss on answers falls far below the base's 4.8 nats a token; training all
weights (131k) does best, adapters (9k) and attention alone (33k) come near, and new weights stay behind.
"""

import ast
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gptjax.config import EvalConfig, InitFrom, RunConfig, SaveConfig, load_config
from gptjax.data.loader import DataConfig, Source
from gptjax.train.adapters import TuneConfig
from gptjax.train.optim import OptimConfig

BASE = Path("runs/tiny")
PAIRS = Path("runs/names.jsonl")
LONGEST = 120  # bytes of a pair: as many tokens at most, so that each fits the context


def full() -> RunConfig:
    """Train all weights, at a quarter of the rate that they were first trained at."""
    return RunConfig(
        model=load_config(BASE / "config.json").model,
        data=DataConfig((Source(f"pairs:{PAIRS}"),), tokenizer=str(BASE), separate_documents=True),
        optim=OptimConfig(lr=1e-3, warmup=10, weight_decay=0.0),
        init_from=InitFrom(BASE.name, what="weights"),
        batch=16,
        steps=200,
        steps_per_call=10,
        evaluate=EvalConfig(sequences=64, batch=8, every=50),
        save=SaveConfig(every=100),
        trackers=(),
    )


def lora() -> RunConfig:
    """Train adapters alone, at the base's own rate."""
    config = full()
    tune = TuneConfig(lora_rank=4, lora_targets=("attention", "mlp"))
    return replace(config, tune=tune, optim=replace(config.optim, lr=4e-3))


def frozen() -> RunConfig:
    """Train the layers' attention and the norms, with embedding and MLPs as they are."""
    return replace(full(), tune=TuneConfig(frozen=("embedding", "layers.mlp")))


def scratch() -> RunConfig:
    """Train new weights on the pairs, at the base's rate."""
    config = full()
    return replace(config, init_from=None, optim=replace(config.optim, lr=4e-3))


def untuned() -> RunConfig:
    """Evaluate the base on the pairs: one step at a rate of next to nothing."""
    return replace(full(), steps=1, steps_per_call=1, optim=OptimConfig(lr=1e-20, warmup=0))


def pairs() -> Iterator[dict[str, str]]:
    """Yield the functions of the standard library that have a docstring, by file."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"test", "tests", "idlelib", "lib2to3", "site-packages"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                prompt = f'"""{text.partition(chr(10))[0]}"""\ndef '
                if len((prompt + node.name).encode()) < LONGEST:
                    yield {"prompt": prompt, "answer": node.name}


if __name__ == "__main__":
    PAIRS.parent.mkdir(exist_ok=True)
    PAIRS.write_text("".join(json.dumps(pair) + "\n" for pair in pairs()))
    print(f"{PAIRS}: {sum(1 for _ in pairs())} pairs")
