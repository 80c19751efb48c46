"""How fast the data room is: encoding against SentencePiece itself, batches against a step's need; and its memory.

    python benchmarks/data.py [--json FILE] [--turns N] [--parts encoding,loader,memory] [--large]

Encoding: `build_store` with a tokenizer that is there, so reading, splitting, encoding, hashing and writing, against
SentencePiece's own encode of the same documents as strings, one at a time in one process, times the cores, and against
as many such processes at once, which is what the machine can do.

Loader: tokens a second that prefetch gives, without its placing them on a device, for calls of one step and of many,
from a store that is held in memory and from one that is read from disk; over the tokens a second that a step takes.

Memory: the peak while a store is built from a synthesised corpus, and while windows of it are read, over what the
process held before; each in a process of its own. --large adds 10 GB, and takes tens of minutes.
"""

import argparse
import json
import multiprocessing as mp
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import sentencepiece as spm
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.batch import Batch
from gptjax.data import feed
from gptjax.data import store as store_module
from gptjax.data.corpora import documents
from gptjax.data.loader import Loader
from gptjax.data.store import build_store, open_store
from gptjax.data.tokenizer import MODEL_FILE, train_sentencepiece
from gptjax.files import write_json
from gptjax.mesh import make_mesh
from gptjax.sharding import MeshConfig

SHAPES = ((8, 64), (16, 256), (64, 1024))
STEPS_PER_CALL = (1, 20)
GPU_STEP = 500_000  # tokens a second
GOAL = 50  # times the tokens a second of the fastest step
DOCUMENT = 4000  # bytes of a synthesised one
LOADED_MB = 100  # two bytes a token: held in memory as it comes, and three times the cache when it is not
READ_WINDOWS, READ_LENGTH = 4096, 1025
MB = 10**6


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that work took, and those of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def synthesise(path: Path, size: int) -> Path:
    """Write a .jsonl of so many bytes of text: slices, each with its own number, of words as frequent as in English."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, n)) for n in rng.integers(2, 9, 20_000)])
    text = " ".join(words[np.minimum(rng.zipf(1.2, 2_000_000), len(words)) - 1])
    with path.open("w") as file:
        for number in range(size // DOCUMENT):
            start = rng.integers(len(text) - DOCUMENT)
            file.write(json.dumps({"text": f"{number} {text[start : start + DOCUMENT]}"}) + "\n")
    return path


# ---- encoding


def serve(model: Path, texts: list[str], pipe: Any) -> None:
    """Encode the texts by SentencePiece itself whenever asked."""
    processor = spm.SentencePieceProcessor(model_file=str(model))
    pipe.send(len(texts))
    while pipe.recv():
        pipe.send(sum(len(processor.encode(text)) for text in texts))


def encoding(turns: int, corpus: str, size: int, vocab: int) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = folder / "sample.jsonl"
        texts = []
        with sample.open("w") as file:
            held = 0
            for document, _ in documents(corpus):
                text = document.decode("utf-8", "ignore")
                if text.isascii():  # what SentencePiece alters is encoded by us: the same work for both
                    texts.append(text)
                    file.write(json.dumps({"text": text}) + "\n")
                    held += len(text)
                if held >= size:
                    break
        tokenizer = train_sentencepiece((text.encode() for text in texts), vocab)
        tokenizer.save(folder)
        processor = spm.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
        context = mp.get_context("spawn")
        pipes, ours = [], []
        for i in range(cores):
            pipe, theirs = context.Pipe()
            work = (folder / MODEL_FILE, texts[i::cores], theirs)
            context.Process(target=serve, args=work, daemon=True).start()
            pipe.recv()
            pipes.append(pipe)

        def at_once() -> None:
            for pipe in pipes:
                pipe.send(True)
            for pipe in pipes:
                pipe.recv()

        times: dict[str, list[tuple[float, float]]] = {"sentencepiece": [], "build_store": [], "processes": []}
        for turn in range(turns):
            build = partial(build_store, str(sample), name, folder / str(turn), progress=False)
            times["sentencepiece"].append(seconds(lambda: [processor.encode(text) for text in texts]))
            times["build_store"].append(seconds(lambda build=build: ours.append(build())))  # type: ignore[misc]
            times["processes"].append(seconds(at_once))
        for pipe in pipes:
            pipe.send(False)
        facts = ours[0].manifest.splits.values()
        tokens, n_bytes = sum(f.tokens - f.documents for f in facts), sum(f.bytes for f in facts)
        assert len({store.digest for store in ours}) == 1
        assert tokens == sum(len(processor.encode(text)) for text in dict.fromkeys(texts))
    rates = {way: [n_bytes / MB / wall for wall, _ in series] for way, series in times.items()}
    alone, built, together = rates.values()
    cpu = [ours / theirs for (_, ours), (_, theirs) in zip(times["build_store"], times["sentencepiece"], strict=True)]
    return {
        "corpus": corpus,
        "MB": n_bytes / MB,
        "bytes per token": n_bytes / tokens,
        "cores": cores,
        "MB/s": {way: summary(series) for way, series in rates.items()},
        "tokens/s": {way: summary([rate * MB * tokens / n_bytes for rate in series]) for way, series in rates.items()},
        "share of cores x sentencepiece": summary([b / a / cores for b, a in zip(built, alone, strict=True)]),
        "share of processes at once": summary([b / p for b, p in zip(built, together, strict=True)]),
        "CPU seconds over sentencepiece's": summary(cpu),
    }


# ---- loader


def loading(turns: int, step_rate: float) -> dict[str, Any]:
    series: dict[tuple[str, int, int, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        corpus = synthesise(Path(name) / "corpus.jsonl", LOADED_MB * MB)
        build_store(str(corpus), "bytes", Path(name) / "store", progress=False)
        held_bytes = {"memory": store_module.HELD_BYTES, "disk": 0}
        stores = {where: open_store(Path(name) / "store") for where in held_bytes}
        for _ in range(turns):
            for where, (batch, seq_len), n in product(stores, SHAPES, STEPS_PER_CALL):
                loader = Loader((stores[where],), (1.0,), batch, seq_len, seed=0)
                with mock.patch.object(store_module, "HELD_BYTES", held_bytes[where]):
                    rate = tokens_per_second(loader, n)
                series.setdefault((where, batch, seq_len, n), []).append(rate)
    rows = []
    for (where, batch, seq_len, n), rates in series.items():
        row = {"where": where, "batch": batch, "seq": seq_len, "steps a call": n, "tokens/s": summary(rates)}
        middle = statistics.median(rates)
        rows.append(row | {"times a step": middle / step_rate, "times a GPU step": middle / GPU_STEP})
    return {"step": step_rate, "gpu step": GPU_STEP, "goal": GOAL, "rows": rows}


def tokens_per_second(loader: Loader, steps: int, least: float = 0.2) -> float:
    """Take calls of so many steps from prefetch, its arrays left on the host, for at least so many seconds."""
    calls = [range(i * steps, (i + 1) * steps) for i in range(10_000)]

    def stay(read: Callable[[np.ndarray], Batch], shape: tuple[int, ...], _: NamedSharding) -> Batch:
        return jax.tree.map(np.ascontiguousarray, read(np.arange(shape[1])))

    nowhere = NamedSharding(make_mesh(MeshConfig()), PartitionSpec())
    with mock.patch.object(feed, "spread", stay):
        batches = feed.prefetch(loader, calls, nowhere)
        next(batches)  # the store is read here, if it is to be held
        done, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < least:
            next(batches)
            done += 1
        batches.close()  # type: ignore[attr-defined]
    return done * steps * loader.batch * loader.seq_len / passed


# ---- memory


def memory(kind: str) -> int:
    """Return what this process holds (VmRSS), or the most it held (VmHWM), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def build(corpus: Path, tokenizer: str, directory: Path) -> None:
    build_store(str(corpus), tokenizer, directory, progress=False)


def read(corpus: Path, tokenizer: str, directory: Path) -> None:
    store = open_store(directory)
    starts = np.random.default_rng(0).integers(store.n_tokens("train") - READ_LENGTH, size=READ_WINDOWS)
    for part in np.split(starts, READ_WINDOWS // 64):
        store.windows("train", part, READ_LENGTH)


def peak(work: Callable[[Path, str, Path], None], given: tuple[Path, str, Path], pipe: Any) -> None:
    """Send the peak over what this process held before, in bytes, and the seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = memory("VmRSS")
    wall, _ = seconds(lambda: work(*given))
    pipe.send((memory("VmHWM") - before, wall))


def remembering(sizes: list[int], tokenizer: str) -> list[dict[str, Any]]:
    spawn, rows = mp.get_context("spawn"), []
    for size in sizes:
        row: dict[str, Any] = {"MB": size}
        with tempfile.TemporaryDirectory() as name:
            corpus = synthesise(Path(name) / "corpus.jsonl", size * MB)
            for work in (build, read):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=peak, args=(work, (corpus, tokenizer, Path(name) / "store"), theirs))
                process.start()
                theirs.close()  # so that a process that dies is an EOFError here
                bytes_held, wall = ours.recv()
                process.join()
                row |= {f"{work.__name__} peak MB": bytes_held / MB, f"{work.__name__} seconds": wall}
            row["tokens"] = open_store(Path(name) / "store").n_tokens("train")
        rows.append(row)
    return rows


# ---- all


def summary(series: list[float]) -> dict[str, float]:
    return {"median": statistics.median(series), "least": min(series), "most": max(series)}


def show(found: dict[str, Any]) -> None:
    def spread(of: dict[str, float], unit: float = 1) -> str:
        return f"{of['median'] / unit:.3g} ({of['least'] / unit:.3g} to {of['most'] / unit:.3g})"

    if part := found.get("encoding"):
        print(f"\nencoding {part['MB']:.0f} MB of {part['corpus']}, {part['cores']} cores")
        for way in part["MB/s"]:
            print(f"  {way:14s} {spread(part['MB/s'][way]):24s} MB/s, {spread(part['tokens/s'][way], MB)} M tokens/s")
        for name in (
            "share of cores x sentencepiece",
            "share of processes at once",
            "CPU seconds over sentencepiece's",
        ):
            print(f"  {name:32s} {spread(part[name])}")
    if part := found.get("loader"):
        print(f"\nloader, goal {part['goal']} times a step's {part['step']:,.0f} tokens/s; a GPU's is {GPU_STEP:,}")
        for row in part["rows"]:
            shape = f"({row['batch']}, {row['seq']}) from {row['where']}, {row['steps a call']} a call"
            rate = f"{spread(row['tokens/s'], MB)} M tokens/s"
            print(f"  {shape:36s} {rate:36s} {row['times a step']:6.0f} times, {row['times a GPU step']:6.0f}")
    for row in found.get("memory", []):
        sizes = f"{row['MB']:6,} MB, {row['tokens']:13,} tokens"
        print(f"memory: {sizes}: peak {row['build peak MB']:.0f} MB to build, {row['read peak MB']:.0f} MB to read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--parts", default="encoding,loader,memory")
    parser.add_argument("--corpus", default="python", help="what is encoded")
    parser.add_argument("--megabytes", type=int, default=16, help="of it")
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--step-tokens-per-s", type=float, default=200_000)
    parser.add_argument("--sizes", default="50,200", help="of corpora whose memory is measured, MB")
    parser.add_argument("--large", action="store_true", help="and one of 10 GB")
    parser.add_argument("--tokenizer", default="sentencepiece:512", help="of those corpora")
    args = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    names = ("sentencepiece", "tensorstore", "numpy")
    found: dict[str, Any] = {"machine": machine, "versions": {name: version(name) for name in names}}
    parts = args.parts.split(",")
    if "encoding" in parts:
        found["encoding"] = encoding(args.turns, args.corpus, args.megabytes * MB, args.vocab)
    if "loader" in parts:
        found["loader"] = loading(args.turns, args.step_tokens_per_s)
    if "memory" in parts:
        sizes = [int(size) for size in args.sizes.split(",")] + [10_000] * args.large
        found["memory"] = remembering(sizes, args.tokenizer)
    show(found)
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
