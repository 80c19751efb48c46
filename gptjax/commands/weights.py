"""The verbs of weights: export, import, inspect, generate."""

import argparse
import os
import sys
from pathlib import Path

from gptjax.commands.arguments import Verb, as_flags, writable
from gptjax.errors import BadInput
from gptjax.jobs.process import settle, use_compilation_cache


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
    generate.add_argument("--tokens", type=int, help="new ones; default: the context's room, 2048 at most")
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    generate.add_argument("--top-k", type=int, default=0, help="default: of all tokens")
    generate.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s")
    generate.add_argument("--repetition-penalty", type=float, default=1.0, help="default: %(default)s, none")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--step", type=int, help="default: the newest intact one")


def run_export(args: argparse.Namespace) -> None:
    use_compilation_cache()
    from gptjax.lab.models import export

    settle()
    settings = {"step": args.step, "dtype": args.dtype, "shard_bytes": args.shard_bytes, "verify": not args.no_verify}
    with as_flags("shard-bytes"):
        written = export(args.dir, args.out, format=args.format, **settings)
    if args.format == "orbax":
        print("\n".join(f"{name}: {value}" for name, value in written.facts.items()))
    else:
        print(f"{args.out}: {written.proof or 'not verified'}")


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
    from gptjax.lab.models import load

    sampled = ("tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    settings = {name: getattr(args, name) for name in sampled}
    model = load(args.dir, args.step)
    text = standard_input() if args.prompt == "-" else os.fsencode(args.prompt)
    if args.count == 1:
        for piece in model.stream(text, **settings):
            print(piece, end="", flush=True)
        print()
        return
    with as_flags("count"):
        answers = model.generate(text, count=args.count, **settings)
    for i, answer in enumerate(answers):
        print(f"---- {i}\n{answer}")


def standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise BadInput("the prompt - is read from the standard input, which is closed; pipe a text into it")
    return sys.stdin.buffer.read()
