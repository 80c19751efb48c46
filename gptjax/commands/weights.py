"""The verbs of weights: export, import, inspect, generate."""

import argparse
import codecs
import os
import sys
from functools import partial
from pathlib import Path

from gptjax.commands.arguments import Verb, writable
from gptjax.errors import BadInput
from gptjax.jobs.process import settle, use_compilation_cache

MOST = 10_000  # answers at once: each has a cache of its own
ROOM = 2048  # tokens: a context that a config.json claims may be longer than any memory


def add(verb: Verb) -> None:
    export = verb("export", run_export, "write a model's weights for transformers, or for anybody with Orbax")
    export.add_argument("dir", type=Path, metavar="MODEL", help="the directory of a run or of weights")
    export.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    export.add_argument("--format", default="hf", choices=("hf", "orbax"), help="default: %(default)s, transformers'")
    export.add_argument("--step", type=int, help="default: the newest intact one")
    export.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: as stored")
    export.add_argument("--shard-bytes", type=float, default=5e9, metavar="N", help="of a file (default: %(default)g)")
    export.add_argument("--no-verify", action="store_true", help="do not load it again to compare logits")

    bring = verb("import", run_import, "read a model that transformers saved into a directory of weights")
    bring.add_argument("folder", type=Path, metavar="HF_DIR", help="with config.json and safetensors")
    bring.add_argument("out", type=Path, metavar="OUT", help="a new directory")

    look = verb("inspect", run_inspect, "say what a path holds, without loading it")
    look.add_argument("path", type=Path, metavar="PATH", help="a run, checkpoint, weights, transformers model, ...")
    look.add_argument("--json", type=Path, metavar="FILE")

    generate = verb("generate", run_generate, "continue a prompt with a run's weights")
    generate.add_argument("dir", type=Path, metavar="MODEL", help="the directory of a run or of weights")
    generate.add_argument("prompt", nargs="?", default="", help="a text; - reads it from the standard input")
    generate.add_argument("--count", type=int, default=1, help="answers (default: %(default)s)")
    generate.add_argument("--tokens", type=int, help=f"new ones; default: the context's room, {ROOM} at most")
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    generate.add_argument("--top-k", type=int, default=0, help="default: of all tokens")
    generate.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s")
    generate.add_argument("--repetition-penalty", type=float, default=1.0, help="default: %(default)s, none")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--step", type=int, help="default: the newest intact one")


def run_export(args: argparse.Namespace) -> None:
    use_compilation_cache()
    from gptjax.run.weights import saved_model

    writable(args.out)
    if args.out.exists():
        raise BadInput(f"{args.out} exists and is not overwritten; move it away or choose another name")
    settle()
    if args.format == "orbax":
        from gptjax.run.export import export

        facts = export(saved_model(args.dir, args.step), args.out, args.dtype)
        print("\n".join(f"{name}: {value}" for name, value in facts.items()))
        return
    if not 1 <= args.shard_bytes <= 1e18:
        raise BadInput(f"--shard-bytes {args.shard_bytes:g} must lie between 1 and 1e18; 5e9 is usual")
    from gptjax.hf.export import export_hf

    saved = saved_model(args.dir, args.step)
    proof = export_hf(saved, args.out, args.dtype, shard_bytes=int(args.shard_bytes), verified=not args.no_verify)
    print(f"{args.out}: {proof or 'not verified'}")


def run_import(args: argparse.Namespace) -> None:
    from gptjax.hf.load import import_hf

    writable(args.out)
    settle()
    model = import_hf(args.folder, args.out)
    tokenizer = "with its tokenizer" if model.tokenizer else "without a tokenizer.json"
    n = model.config.cost(model.config.context).total
    if model.compared and not model.compared.differs:
        tokenizer += f", read as {model.compared.by} reads it"
    print(f"{args.out}: {n:,} parameters of {model.family.architecture}, {model.dtype.name}, {tokenizer}")
    if model.compared and model.compared.differs:
        print(f"gptjax: the tokenizer of {args.folder} {model.compared.differs}", file=sys.stderr)


def run_inspect(args: argparse.Namespace) -> None:
    from gptjax.files import plain, write_json
    from gptjax.look import describe, inspect

    found = inspect(args.path)
    print(describe(found))
    if args.json:
        write_json(args.json, plain(found))


def run_generate(args: argparse.Namespace) -> None:
    use_compilation_cache()
    import numpy as np

    from gptjax.generate import Sampling, check_prompts, check_seed, generate, stream
    from gptjax.run.weights import saved_model

    if not 1 <= args.count <= MOST:
        raise BadInput(f"--count {args.count} must lie between 1 and {MOST}; call again for more")
    check_seed(args.seed)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    saved = saved_model(args.dir, args.step)
    tokenizer = saved.tokenizer
    text = standard_input() if args.prompt == "-" else os.fsencode(args.prompt)
    prompt = np.append(np.int32(tokenizer.bos), tokenizer.encode(text))
    model = saved.speaker
    config = model.config
    new = min(config.context - len(prompt), ROOM) if args.tokens is None else args.tokens
    if args.tokens is None and new < 1:
        raise BadInput(f"the prompt of {len(prompt)} tokens fills the context of {config.context}; shorten it")
    given = model, [prompt] * args.count, new, sampling
    check_prompts(*given[:3])
    layout = saved.layout()
    params = saved.read(layout)
    settings = {"stop": saved.stops, "seed": args.seed, "layout": layout}
    show = partial(print, end="", flush=True)
    if args.count == 1:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        show(decoder.decode(text))
        for (ids,) in stream(params, *given, **settings, every=8):
            show(decoder.decode(tokenizer.decode(ids)))
        print(decoder.decode(b"", final=True))
        return
    for i, ids in enumerate(generate(params, *given, **settings)):
        print(f"---- {i}\n{(text + tokenizer.decode(ids)).decode(errors='replace')}")


def standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise BadInput("the prompt - is read from the standard input, which is closed; pipe a text into it")
    return sys.stdin.buffer.read()
