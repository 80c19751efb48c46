"""The training step as XLA compiles it for H200s that are not here: kernels, memory by remat, and what is exchanged.

    python benchmarks/gpu_compiled.py [--only WORDS] [--json FILE]

Needs the extra cuda12 or cuda13 (CUDA wheels of jax; Linux, x86-64, 5 GB) and no GPU. Each program is compiled in 15 to
45 s on a core, 30 of them. Nothing runs: kernels are counted in the compiled text, times in loops included, and no
second is measured. XLA times its choices of kernels on the device that it compiles on; without one they may differ.
Activations are bfloat16, state is float32.
"""

import argparse
import math
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from gptjax.config import RunConfig
from gptjax.devices import devices
from gptjax.estimate.collectives import collectives, executed
from gptjax.estimate.estimate import Json, memory_of
from gptjax.estimate.topology import Topology, parse
from gptjax.execution import Execution
from gptjax.files import plain, write_json
from gptjax.kernels.loss import head_parts
from gptjax.mesh import make_mesh
from gptjax.models.presets import preset
from gptjax.sharding import Layout, MeshConfig, use
from gptjax.train.optim import without_schedule
from gptjax.train.programs import make_programs

ON_ONE = tuple(  # shape, sequences, remat, attention
    (shape, batch, remat, attention)
    for shape, batches, attentions in (("gpt2", (16, 32), ("cudnn", "xla")), ("gpt3-1.3b", (8, 16), ("cudnn",)))
    for remat in ("none", "dots", "full")
    for attention in attentions
    for batch in batches
)
ON_EIGHT = (  # shape, sequences, mesh, options of the compiler
    ("gpt2", 256, {"data": 8}, {}),
    ("gpt2", 256, {"data": 8}, {"xla_gpu_enable_latency_hiding_scheduler": False}),
    ("gpt2", 256, {"data": 1, "fsdp": 8}, {}),
)
KERNEL = re.compile(r" (fusion|custom-call|copy|scatter|sort|dot|convolution)\(")
STARTED = re.compile(r"%([\w.\-]+) = \S.* (?:all-reduce|all-gather|reduce-scatter|collective-permute)-start\(")
DONE = re.compile(r" (?:all-reduce|all-gather|reduce-scatter|collective-permute)-done\(%?([\w.\-]+)\)")


def compiled(
    topology: Topology,
    shape: str,
    batch: int,
    *,
    mesh: dict[str, int],
    remat: Any = "none",
    attention: Any = "auto",
    options: dict[str, bool],
) -> Json:
    """Compile a step and read its text: bytes on a chip, kernels and collectives of a step."""
    model = replace(preset(shape), dtype="bfloat16")
    execution = Execution(remat=remat, attention=attention, vocab_multiple=128)
    run = RunConfig(model=model, execution=execution, batch=batch, mesh=MeshConfig(**mesh))
    layout = Layout(make_mesh(run.mesh, topology.devices()), run.rules)
    programs = make_programs(model, execution, without_schedule(run.optim), layout, 0.0, 1)
    begun = time.perf_counter()
    lowered = programs.train.lower(*programs.example(1, batch, model.context, run.data))  # type: ignore[attr-defined]
    step = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - begun
    hlo, memory = step.as_text(), step.memory_analysis()
    with use(layout):
        parts = head_parts((batch, model.context, execution.padded(model.vocab_size)))
    found, unknown = collectives(hlo, topology.chips)
    behind = hidden_behind(hlo)
    return {
        "shape": shape,
        "topology": topology.name,
        "sequences": batch,
        "context": model.context,
        "mesh": mesh,
        "remat": remat,
        "attention": attention,
        "options": options,
        "compile_seconds": seconds,
        "arguments": memory.argument_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "head_parts": parts,
        "kernels": dict(kernels(hlo)),
        "unknown_loops": unknown,
        "exchanged": sum(c.bytes * c.runs for c in found),
        "collectives": sum(c.runs for c in found),
        "async": len(behind),
        "async_over_nothing": sum(n == 0 for n in behind.values()),
        "written": len(found),
        "behind": behind,
    }


def kernels(hlo: str) -> Counter[str]:
    """Count the kernels that a call launches, by kind, those in loops as often as the loop runs."""
    computations, runs, _ = executed(hlo)
    fused = {name for body in computations.values() for line in body if " fusion(" in line for name in _called(line)}
    total: Counter[str] = Counter()
    for name, body in computations.items():
        for line in body:
            if target := re.search(r'custom_call_target="([^"]+)"', line):  # may lie in a fusion that writes its slice
                total[target[1]] += runs[name]
            elif name not in fused and (match := KERNEL.search(line)):
                kind = re.search(r'"kind":"__(\w+)"', line)
                total[kind[1] if kind else match[1]] += runs[name]
    return total


def _called(line: str) -> list[str]:
    return re.findall(r"calls=%?([\w.\-]+)", line)


def hidden_behind(hlo: str) -> dict[str, int]:
    """Count, for each asynchronous collective, the kernels and loops scheduled between its start and its end."""
    between: dict[str, int] = {}
    begun: dict[str, int] = {}
    at = 0
    for line in hlo.splitlines():
        at += bool(KERNEL.search(line)) or " while(" in line
        if match := STARTED.search(line):
            begun[match[1]] = at
        elif match := DONE.search(line):
            between[match[1]] = at - begun[match[1]]
    return between


def gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


def fused_attention(e: Json) -> str:
    """Give the runs of cuDNN's forward and backward attention in a step."""
    counts = e["kernels"]
    return f"{counts.get('__cudnn$fmhaSoftmax', 0)} + {counts.get('__cudnn$fmhaSoftmaxBackward', 0)}"


def matmuls(e: Json) -> str:
    """Give the runs of matmul kernels, Triton's and cuBLAS's."""
    counts = e["kernels"]
    triton = sum(n for kind, n in counts.items() if kind.startswith("triton") and "gemm" in kind)
    return f"{triton} + {sum(n for kind, n in counts.items() if 'cublas' in kind)}"


def most_rows(few: Json, more: Json, room: float) -> int:
    """Return how many sequences fit, by the line through two compiled programs."""
    each = (more["peak"] - few["peak"]) / (more["sequences"] - few["sequences"])
    return math.floor((room - few["peak"]) / each) + few["sequences"]


def print_row(row: list[str], widths: tuple[int, ...]) -> None:
    print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="programs whose shape, remat and attention contain this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # this process only compiles
    one, eight = (parse(name, devices()) for name in ("h200:1", "h200:8"))
    if one.uncompiled:
        raise SystemExit(one.uncompiled)
    usual, whole = memory_of(one), one.device.hbm_gib * 2**30
    found = []

    widths = (10, 5, 9, 9, 11, 7, 7, 9, 11, 9, 6, 10, 9)
    header = "shape,remat,attention,sequences,temporaries,peak,donated,head in,fmha f + b,gemms t+c,copies,kernels"
    print_row([*header.split(","), "compile s"], widths)
    pairs: dict[tuple[str, ...], list[Json]] = {}
    for shape, batch, remat, attention in ON_ONE:
        if args.only not in f"{shape} {remat} {attention}":
            continue
        e = compiled(one, shape, batch, mesh={"data": 1}, remat=remat, attention=attention, options={})
        found.append(e)
        pairs.setdefault((shape, remat, attention), []).append(e)
        counts = e["kernels"]
        row = [shape, remat, attention, str(batch), gib(e["temporaries"]), gib(e["peak"]), gib(e["donated"])]
        row += [f"{e['head_parts']} parts", fused_attention(e), matmuls(e), str(counts.get("custom_fusion", 0))]
        print_row([*row, str(sum(counts.values())), f"{e['compile_seconds']:.0f}"], widths)

    print(f"\nsequences that fit {gib(usual)} GiB, jax's share of the memory unless told otherwise, and {gib(whole)}")
    for (shape, remat, attention), (few, more) in pairs.items():
        near = most_rows(few, more, whole)  # a program of about that size, and the line through it
        full = compiled(one, shape, near, mesh={"data": 1}, remat=remat, attention=attention, options={})
        found.append(full)
        fits = [str(most_rows(more, full, room)) for room in (usual, whole)]
        print_row([shape, remat, attention, *fits], (10, 5, 9, 6, 6))

    print()
    widths = (6, 18, 46, 4, 8, 11, 9, 16, 28)
    header = "shape,mesh,option,GiB,head in,collectives,GB a step,written as async,kernels behind each"
    print_row(header.split(","), widths)
    for shape, batch, mesh, options in ON_EIGHT:
        if args.only not in f"{shape} {mesh} {options}":
            continue
        e = compiled(eight, shape, batch, mesh=mesh, options=options)
        found.append(e)
        option = ", ".join(f"{name}={value}".lower() for name, value in options.items()) or "none"
        row = [shape, ", ".join(f"{axis}={n}" for axis, n in mesh.items()), option, gib(e["peak"])]
        row += [f"{e['head_parts']} parts", str(e["collectives"]), f"{e['exchanged'] / 1e9:.2f}"]
        print_row([*row, f"{e['async']} of {e['written']}", " ".join(map(str, e["behind"].values()))], widths)
    print("GiB on a chip; fmha: cuDNN's attention, forward + backward; gemms: Triton's + cuBLAS's; copies: of slices")
    print("of what loops carry; kernels and collectives as often as their loops run")
    if args.json:
        write_json(args.json, plain({"jax": jax.__version__, "programs": found}))


if __name__ == "__main__":
    main()
