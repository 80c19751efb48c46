"""The verbs that train: data, train, sweep, status, coord-check, and the presets they start from."""

import argparse
import re
import sys
from pathlib import Path

from gptjax.commands.arguments import Verb, as_flags, directory, in_job, load, with_file, with_job
from gptjax.commands.hardware import dry_topology, print_on_hardware
from gptjax.errors import BadInput
from gptjax.jobs.process import settle, use_compilation_cache


def add(verb: Verb) -> None:
    data = verb("data", run_data, "tokenize a corpus into a token store")
    kinds = "python, markov[:OPTIONS], hf:NAME, pairs:FILES, or a file, folder or glob of text, JSON lines or parquet"
    data.add_argument("corpus", help=kinds)
    data.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new directory of this machine")
    data.add_argument("--tokenizer", default="sentencepiece:512", help="bytes, sentencepiece:VOCABULARY, or a folder")
    data.add_argument("--ext", metavar="ENDING,...", help="read the files of a folder with these endings, as pm,pl")

    train = verb("train", run_train, "train one run")
    with_file(train, "RunConfig")
    with_job(train)
    train.add_argument("--dir", required=True, type=directory, help="of the run; may be gs://BUCKET/PATH")
    train.add_argument(
        "--profile", action="store_true", help="record a few calls in DIR/profile, for TensorBoard or Perfetto"
    )

    sweep = verb("sweep", run_sweep, "plan, train, fit and report a sweep; run again, it does what is pending")
    with_file(sweep, "SweepConfig")
    with_job(sweep)
    sweep.add_argument("--dir", type=directory, help="default: runs/ and the file's name; may be gs://BUCKET/PATH")
    sweep.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    sweep.add_argument("--topology", help="with --dry-run: say which runs fit hardware you do not have, as v5p:4x4x4")
    sweep.add_argument("--executor", default="local", choices=("local", "slurm", "ray"), help="what runs the training")
    sweep.add_argument("--workers", type=int, help="processes on this machine (default: the sweep's)")
    resource = "what each run asks slurm or ray for, as minutes=120"
    sweep.add_argument("--resource", action="append", default=[], metavar="KEY=VALUE", help=resource)

    verb("status", run_status, "say how far a sweep or a run is").add_argument("dir", type=directory)

    coord = verb("coord-check", run_coord_check, "show that activations keep their size as width grows")
    with_file(coord, "RunConfig")
    coord.add_argument("--widths", default="32,64,128,256", metavar="W,W,...")
    coord.add_argument("--steps", type=int, default=5)
    coord.add_argument("--out", type=Path, metavar="DIR", help="write coord_check.png here")
    coord.add_argument("--json", type=Path, metavar="FILE")

    config = verb("config", run_config, "print every field of a config, with its type, value and meaning")
    config.add_argument("file", nargs="?", metavar="FILE[:NAME]", help="of a run or a sweep (default: the defaults)")
    config.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override, as optim.lr=3e-4")
    config.add_argument("--markdown", action="store_true", help="write the page docs/config.md")

    verb("presets", run_presets, "list the published shapes, counted against their papers")


def run_data(args: argparse.Namespace) -> None:
    from gptjax.data.store import build_store

    corpus = args.corpus if args.ext is None else glob_of(args.corpus, args.ext)
    store = build_store(corpus, args.tokenizer, args.out)
    for split, facts in store.manifest.splits.items():
        size = f"{facts.documents:,} documents, {facts.tokens:,} tokens"
        print(f"{split}: {size}, {facts.bytes_per_token:.3f} bytes a token")
    for line in store.provenance.notes() if store.provenance else []:
        print(line)
    if args.ext is not None:
        print(f"corpus {corpus!r}")
    print(f"{args.out}: {'built' if store.is_new else 'opened'}, digest {store.digest}")


def glob_of(folder: str, endings: str) -> str:
    """Return the name of the corpus of a folder's files with these endings."""
    from gptjax.data.text_files import in_folder

    kinds = [f".{ending.removeprefix('.')}" for ending in endings.split(",")]
    if not Path(folder).is_dir() or not all(re.fullmatch(r"(\.\w+)+", kind) for kind in kinds):
        raise BadInput(f"--ext {endings!r} of {folder!r}: give a folder, and endings with commas between, as pm,pl")
    return in_folder(folder, kinds)


def run_train(args: argparse.Namespace) -> None:
    use_compilation_cache()
    from gptjax.config import RunConfig, override
    from gptjax.jobs.hosts import is_first
    from gptjax.jobs.storage import is_remote
    from gptjax.lab.training import train

    if args.profile and is_remote(args.dir):
        raise BadInput(f"--profile writes to a local disk, and {args.dir} is none; profile a short run elsewhere")
    with in_job(args):
        settle()
        result = train(override(load(args.file, RunConfig, "run"), args.set), args.dir, profile=args.profile)
        if result.epochs > 1 and is_first():
            print(f"gptjax: {result.steps} steps read the data {result.epochs:.1f} times over", file=sys.stderr)
        if result.status == "done" and is_first():
            loss = f"loss {result.loss:.4f} ± {result.loss_se:.4f} nats a token"
            print(f"{loss}, {result.bits_per_byte:.4f} bits a byte: {args.dir}")
        elif is_first():
            print(f"gptjax: {args.dir} failed: {result.reason}", file=sys.stderr)
    if result.status != "done":
        sys.exit(1)


def run_sweep(args: argparse.Namespace) -> None:
    use_compilation_cache()
    topology = dry_topology(args.topology, args.dry_run) if args.topology else None
    from gptjax.config import override
    from gptjax.lab.training import executor_of, refuse_what_a_sweep_sets, sweep
    from gptjax.sweep.plan import SweepConfig, describe

    refuse_what_a_sweep_sets([assignment.partition("=")[0] for assignment in args.set], "--set ")
    config = override(load(args.file, SweepConfig, "sweep"), args.set)
    with as_flags("workers", "resource", "executor"):  # refused before processes join
        executor_of(args.executor, config, args.workers, args.resource)
    if args.dry_run:
        print(describe(config, config.workers if args.workers is None else args.workers))
        if topology:
            print_on_hardware(config, topology)
        return
    from gptjax.jobs.hosts import is_first

    asked = {"executor": args.executor, "workers": args.workers, "resources": args.resource}
    with in_job(args):
        settle()
        done = sweep(config, args.dir or Path("runs") / Path(args.file.partition(":")[0]).stem, **asked)
        if is_first():
            print(done.report)


def run_status(args: argparse.Namespace) -> None:
    from gptjax.sweep.follow import status

    print(status(args.dir))


def run_coord_check(args: argparse.Namespace) -> None:
    use_compilation_cache()
    from gptjax.config import RunConfig, override
    from gptjax.files import write_file, write_json
    from gptjax.laws.drawing.drawn import to_png
    from gptjax.run import coord_check

    try:
        widths = [int(width) for width in args.widths.split(",")]
    except ValueError:
        raise BadInput(f"--widths {args.widths!r} is not a list of whole numbers; write 32,64,128,256") from None
    result = coord_check.coord_check(override(load(args.file, RunConfig, "run"), args.set), widths, steps=args.steps)
    if args.json:
        write_json(args.json, result)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_file(args.out / "coord_check.png", to_png(coord_check.draw(result)))
    print(coord_check.describe(result))


def run_config(args: argparse.Namespace) -> None:
    from gptjax.commands.listing import as_markdown, as_text
    from gptjax.config import RunConfig, override
    from gptjax.sweep.plan import SweepConfig

    if args.markdown:
        if args.file or args.set:
            raise BadInput("--markdown writes the page of all defaults; leave FILE and --set out")
        print(as_markdown({"A run": RunConfig, "A sweep": SweepConfig}), end="")
        return
    config = load(args.file, RunConfig | SweepConfig, "sweep", "run") if args.file else RunConfig()
    print(as_text(override(config, args.set), RunConfig()))


def run_presets(args: argparse.Namespace) -> None:
    from gptjax.models.presets import ROWS

    print(f"{'name':<18}{'layers':>7}{'width':>7}{'heads':>6}{'kv':>5}{'mlp':>7}{'context':>9}{'vocab':>8}", end="")
    print(f"{'parameters':>18}{'published':>11}{'off':>8}")
    for row in ROWS:
        c = row.config
        shape = (
            f"{c.n_layers:>7}{c.d_model:>7}{c.n_heads:>6}{c.kv_heads:>5}{c.mlp_size:>7}{c.context:>9}{c.vocab_size:>8}"
        )
        note = f"  {row.note}" if row.note else ""
        print(f"{row.name:<18}{shape}{row.params:>18,}{row.published:>11}{row.difference:>+8.1%}{note}")
