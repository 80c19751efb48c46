"""Test the loop on what is known: planted laws must come back, and no model beats the entropy of a Markov source."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.corpora import markov_entropy
from gptjax.data.loader import DataConfig, Source
from gptjax.execution import Execution
from gptjax.laws import coverage as laws
from gptjax.laws.forms import ChinchillaLaw
from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.simulate import ladder
from gptjax.models.presets import preset
from gptjax.run.loop import train
from gptjax.run.metrics import read_metrics
from gptjax.train.optim import OptimConfig

Json = dict[str, Any]
MARKOV = "markov:states=16,order=1,seed=0,documents=600"
PLANTED = {
    "published": (BESIROGLU_2024, (6e18, 3e19, 1e20, 6e20, 3e21), 0.004),
    "small compute": (ChinchillaLaw(214, 108, 1.70, 0.539, 0.349), (1e11, 2.4e11, 5.5e11, 1.3e12, 3e12), 0.008),
}
SIGMAS = 4.0  # a loss this many standard errors below the entropy rate means that something leaks


def selftest(sweeps: int, steps: int) -> Json:
    """Simulate sweeps from planted laws and count what each approach recovers; train a tiny model on known entropy."""
    result: Json = {"laws": {}}
    for name, (law, budgets, noise) in PLANTED.items():
        params, tokens = ladder(law, budgets)
        with tqdm(total=sweeps, desc=name, unit="sweep", disable=None, leave=False) as bar:
            found = laws.coverage(law, params, tokens, noise=noise, sweeps=sweeps, done=bar.update)
        result["laws"][name] = {"runs": len(params), "noise": noise, "approaches": found}
    result["markov"] = markov(steps)
    return result


def markov(steps: int) -> Json:
    """Train a tiny model on a Markov source and compare its losses with the entropy rate, which none may beat."""
    config = RunConfig(
        model=replace(preset("gpt2"), vocab_size=257, context=64, d_model=32, n_layers=1, n_heads=2, norm="rmsnorm",
                      bias=False, positions="rope", init_std=0.0),
        execution=Execution(scan=False),
        data=DataConfig(sources=(Source(MARKOV),), tokenizer="bytes"),
        optim=OptimConfig(lr=1e-2, schedule="wsd", warmup=20, weight_decay=0.0),
        batch=16, steps=steps, steps_per_call=20, log_every=20,
        evaluate=EvalConfig(every=max(20, steps // 5), sequences=1024, batch=64),
        save=SaveConfig(every=10**9), trackers=(),
    )  # fmt: skip
    with TemporaryDirectory() as directory:
        result = train(config, Path(directory) / "run")
        lines = read_metrics(Path(directory) / "run" / "metrics.jsonl")
    if result.loss is None or result.loss_se is None:
        return {"status": result.reason}
    entropy = markov_entropy(MARKOV)
    losses = [
        value for line in lines for name, value in line.items() if name.startswith("eval/") and name.endswith("/loss")
    ]
    least = min([result.loss, *losses])
    return {
        "entropy": entropy,
        "loss": result.loss,
        "loss_se": result.loss_se,
        "excess": result.loss - entropy,
        "least": least,
        "sound": bool(least > entropy - SIGMAS * result.loss_se),
    }


def describe(result: Json) -> str:
    """Lay the findings out for a terminal."""
    lines = []
    for name, entry in result["laws"].items():
        truth = next(iter(entry["approaches"].values())).truth
        lines += [f"{name}: {entry['runs']} runs, {entry['noise']:.1%} noise, a = {truth:.4f}"]
        lines += [laws.describe(entry["approaches"]), ""]
    m = result["markov"]
    if "entropy" not in m:
        return "\n".join([*lines, f"Markov source: the run failed ({m['status']})"])
    verdict = "no loss below it" if m["sound"] else "BELOW it: targets leak into inputs, or validation into training"
    lines.append(
        f"Markov source: entropy rate {m['entropy']:.4f} nats, loss {m['loss']:.4f} ± {m['loss_se']:.4f}, {verdict}"
    )
    return "\n".join(lines)
