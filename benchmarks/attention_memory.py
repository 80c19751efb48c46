"""What attention needs of a TPU's memory: splash attention against all scores at once, as compiled for chips not here.

    python benchmarks/attention_memory.py [--only WORDS] [--json FILE]

Needs the extra tpu (libtpu; Linux, x86-64) and no TPU. First attention alone, forward and backward; then the training
step of LLaMA-3 8B, with execution.attention "auto", which is splash attention there, and "xla". Each program is
compiled in a process of its own. Counted is memory on the board (HBM); what XLA finds room for in a chip's vector
memory, 128 MiB on these, is not in it.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptjax.commands.arguments import writable
from gptjax.config import RunConfig, from_json, to_json
from gptjax.devices import devices
from gptjax.estimate.compile import compiled_here
from gptjax.estimate.estimate import Json
from gptjax.estimate.topology import Topology, parse
from gptjax.execution import Execution, Kernel
from gptjax.files import write_json
from gptjax.kernels.attention import attend
from gptjax.kernels.mask import CausalMask
from gptjax.mesh import make_mesh
from gptjax.models.presets import preset
from gptjax.sharding import Layout, MeshConfig, Rules, use

ROWS, HEADS, HEAD = 8, 8, 128  # sequences, heads and their width of attention alone, on four chips
ALONE, STEP = "v5e:2x2", "v6e:4x4"
HOWS: tuple[Kernel, ...] = ("auto", "xla")
PROGRAMS = tuple(  # what is compiled, for which chips, at how many positions, with which attention
    [("attention", ALONE, context, how) for context in (4096, 8192, 32768) for how in HOWS]
    + [("llama3-8b", STEP, context, how) for context in (8192, 32768) for how in HOWS]
)
NEEDED = re.compile(r"(?:\(|Used )([\d.]+)([KMGT])(?:\) exceeds| of )")  # in the compiler's refusal
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def alone(how: Kernel, context: int, topology: Topology) -> Json:
    """Compile attention and its gradients, sequences and heads split over the chips."""
    import jax
    import jax.numpy as jnp

    layout = Layout(make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), topology.devices()), Rules())
    spread = layout.sharding(("batch", None, "heads", None))
    shape = jax.ShapeDtypeStruct((ROWS, context, HEADS, HEAD), jnp.bfloat16, sharding=spread)

    def gradients(q: Any, k: Any, v: Any, g: Any) -> Any:
        with use(layout):
            out, back = jax.vjp(lambda q, k, v: attend(q, k, v, CausalMask(), HEAD**-0.5, None, how), q, k, v)
            return out, back(g)

    begun = time.perf_counter()
    try:
        compiled = jax.jit(gradients, out_shardings=spread).lower(shape, shape, shape, shape).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = NEEDED.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
            raise
        return {"refused": float(needed[1]) * UNITS[needed[2]], "seconds": time.perf_counter() - begun}
    memory = compiled.memory_analysis()
    return {"temporaries": memory.temp_size_in_bytes, "seconds": time.perf_counter() - begun}


def step(how: Kernel, name: str, context: int, topology: Topology) -> Json:
    """Compile a training step, a sequence on each chip, with this attention."""
    model = replace(preset(name), context=context, dtype="bfloat16")
    execution = Execution(remat="full", vocab_multiple=128, attention=how)
    mesh = MeshConfig(data=1, fsdp=topology.chips)
    found = compiled_here(RunConfig(model=model, execution=execution, batch=topology.chips, mesh=mesh), topology)
    if found.refusal:
        return {"refused": found.peak, "seconds": found.seconds}
    return {"temporaries": found.temporaries, "peak": found.peak, "seconds": found.seconds}


def compile_elsewhere(what: str, topology: Topology, context: int, how: str) -> Json:
    """Compile one of the programs in a process that is prepared for this topology."""
    task = json.dumps([what, to_json(topology), context, how])
    command = [sys.executable, __file__, "--task", task]
    done = subprocess.run(command, capture_output=True, text=True, env=topology.environment)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-12:]))
    said: Json = json.loads(done.stdout.splitlines()[-1])
    return {"what": what, "topology": topology.name, "context": context, "attention": how, **said}


def size(e: Json, name: str) -> str:
    return f"{e[name] / 2**30:,.3f}" if name in e else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="programs whose name, positions and attention contain this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        what, topology, context, how = json.loads(args.task)
        chips = from_json(Topology, topology)
        print(json.dumps(alone(how, context, chips) if what == "attention" else step(how, what, context, chips)))
        return
    if args.json:
        writable(args.json)
    widths, found = (10, 9, 9, 12, 15, 10, 12, 9), []
    header = "program,chips,positions,attention,temporaries GiB,peak GiB,refused GiB,compile s"
    print("  ".join(text.ljust(width) for text, width in zip(header.split(","), widths, strict=True)))
    for what, name, context, how in PROGRAMS:
        if args.only not in f"{what} {context} {how}":
            continue
        topology = parse(name, devices())
        if topology.uncompiled:
            raise SystemExit(topology.uncompiled)
        e = compile_elsewhere(what, topology, context, how)
        found.append(e)
        row = (what, name, f"{context:,}", how, *(size(e, s) for s in ("temporaries", "peak", "refused")))
        cells = zip((*row, f"{e['seconds']:.0f}"), widths, strict=True)
        print("  ".join(text.ljust(width) for text, width in cells), flush=True)
    print("GiB of one chip; refused: what the program would need, where the compiler says that it has no room for it")
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
