"""How fast tokens come: ours and transformers' `generate`, greedy, from the same GPT-2 weights, on one machine.

    python benchmarks/generate.py [--json FILE] [--turns N]

Both continue a batch of prompts of one length, from a cache, in float32 (bfloat16 on a GPU), and must agree on nearly
all tokens. They take turns in processes of their own; the first turn, with its compilation, is not counted. Decoding
reads every weight and the cache for each token: the share of the memory's bandwidth says how near the limit is.
"""

import argparse
import json
import multiprocessing as mp
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peers import Shape
from step import ours as build_ours
from step import read_weights

SHAPES = (Shape(512, 64, 2, 512, 2, 1), Shape(2048, 256, 6, 512, 4, 1), Shape(2048, 256, 6, 512, 4, 16))
GPU_SHAPES = (Shape(50304, 768, 12, 1024, 12, 1), Shape(50304, 768, 12, 1024, 12, 64))
PROMPT, NEW = 64, 128


def ours(shape: Shape, weights: Path, bfloat16: bool) -> Any:
    import jax

    from gptjax.generate import Sampling, generate
    from gptjax.jobs.process import keep_freed_memory
    from gptjax.models.gpt import GPTConfig

    keep_freed_memory()
    model = GPTConfig(
        shape.vocab, shape.context, shape.d_model, shape.layers, shape.heads,
        dtype="bfloat16" if bfloat16 else "float32",
    ).build()  # fmt: skip
    params = jax.tree.map(jax.numpy.asarray, read_weights(weights))
    return lambda prompts: np.stack(generate(params, model, list(prompts), NEW, Sampling(temperature=0.0)))


def theirs(shape: Shape, weights: Path, bfloat16: bool) -> Any:
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.context, n_embd=shape.d_model, n_layer=shape.layers,
        n_head=shape.heads, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    w = read_weights(weights)
    state = {"wte.weight": w["embedding"], "wpe.weight": w["positions"]}
    state |= {"ln_f.weight": w["final_norm"]["scale"], "ln_f.bias": w["final_norm"]["bias"]}
    layers, d = w["layers"], shape.d_model
    for i in range(shape.layers):
        attention, mlp = layers["attention"], layers["mlp"]
        parts = [attention[name] for name in ("query", "key", "value")]
        for norm, name in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
            state |= {f"h.{i}.{norm}.weight": layers[name]["scale"][i], f"h.{i}.{norm}.bias": layers[name]["bias"][i]}
        state[f"h.{i}.attn.c_attn.weight"] = np.concatenate([p["kernel"][i].reshape(d, d) for p in parts], axis=1)
        state[f"h.{i}.attn.c_attn.bias"] = np.concatenate([p["bias"][i].reshape(d) for p in parts])
        state[f"h.{i}.attn.c_proj.weight"] = attention["out"]["kernel"][i].reshape(d, d)
        state[f"h.{i}.attn.c_proj.bias"] = attention["out"]["bias"][i]
        for name, part in (("c_fc", mlp["up"]), ("c_proj", mlp["down"])):
            state |= {f"h.{i}.mlp.{name}.weight": part["kernel"][i], f"h.{i}.mlp.{name}.bias": part["bias"][i]}
    model.transformer.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    device = "cuda" if bfloat16 else "cpu"
    model = model.to(device, torch.bfloat16 if bfloat16 else torch.float32)

    def call(prompts: np.ndarray) -> np.ndarray:
        ids = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
                pad_token_id=0,
            )  # fmt: skip
        return out[:, prompts.shape[1] :].cpu().numpy()

    return call


def serve(name: str, shape: Shape, weights: Path, bfloat16: bool, pipe: Any) -> None:
    """Build one of the two; then continue the prompts whenever asked, and answer with seconds and tokens."""
    call = (ours if name == "ours" else theirs)(shape, weights, bfloat16)
    prompts = np.random.default_rng(0).integers(shape.vocab, size=(shape.batch, PROMPT))
    pipe.send(call(prompts))
    while pipe.recv():
        begun = time.perf_counter()
        call(prompts)
        pipe.send(time.perf_counter() - begun)


def bandwidth() -> float:
    """Return the bytes a second at which this machine reads an array larger than its caches."""
    x = np.ones(2**27, np.float32)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - begun)
    return x.nbytes / min(seconds)


def measure(shape: Shape, turns: int, bfloat16: bool) -> dict[str, Any]:
    context = mp.get_context("spawn")
    pipes, said = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        writer = context.Process(target=build_ours, args=(shape, weights, bfloat16))  # it writes its weights first
        writer.start()
        writer.join()
        for name in ("ours", "transformers"):
            pipes[name], other = context.Pipe()
            context.Process(target=serve, args=(name, shape, weights, bfloat16, other), daemon=True).start()
            said[name] = pipes[name].recv()
    agreed = float((said["ours"] == said["transformers"]).mean())
    # In 16 bits the first near tie parts a pair of continuations for good.
    assert bfloat16 or agreed > 0.95, f"the two agree on {agreed:.0%} of the tokens"
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(turns):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    parameters = 12 * shape.layers * shape.d_model**2 + (shape.vocab + shape.context) * shape.d_model
    cache = 2 * shape.layers * shape.d_model * (PROMPT + NEW) * shape.batch
    return {
        "shape": vars(shape),
        "agreed": agreed,
        "seconds": seconds,
        "bytes": (2 if bfloat16 else 4) * (parameters + cache),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    gpu = Path("/proc/driver/nvidia").exists()
    if gpu:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # two processes share it
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
    rate = float("nan") if gpu else bandwidth()
    found = []
    for shape in GPU_SHAPES if gpu else SHAPES:
        row = measure(shape, args.turns, bfloat16=gpu)
        found.append(row)
        print(
            "\n" + ", ".join(f"{name} {value}" for name, value in row["shape"].items()) + f"; agree {row['agreed']:.1%}"
        )
        for name, series in row["seconds"].items():
            per_second = shape.batch * NEW / statistics.median(series)
            ratio = statistics.median(b / a for a, b in zip(row["seconds"]["ours"], series, strict=True))
            share = row["bytes"] * NEW / statistics.median(series) / rate
            print(f"  {name:14s}{per_second:10,.0f} tokens/s, {ratio:5.2f} of our time, {share:.0%} of the bandwidth")
    if args.json:
        about = {"machine": platform.machine(), "cores": os.cpu_count(), "bytes a second": rate}
        args.json.write_text(json.dumps({"about": about, "shapes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
