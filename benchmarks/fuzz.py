"""Give every reader damaged files, guided by what code they reach: only a line for the user may come out, or a value.

    python benchmarks/fuzz.py [TARGET ...] [--seconds S] [--json FILE]

Needs atheris (pip install atheris), which changes the bytes of files that gptjax wrote itself. Each target has a
process of its own, at most 6 GiB of memory, and 20 s for an input. A finding is an error other than BadInput or
OSError, a message of several lines, too much memory or time; its input is kept in the folder that is printed.
docs/reliability.md says what was found; quick versions of these checks are tests.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
TABLE = "run,params,tokens,loss,lr,status\n" + "".join(
    f"r{i},{1e6 * i},{2e7 * i},{4 - i / 9},.01,done\n" for i in range(1, 9)
)
LINES = b'{"text": "one"}\n{"text": "two \\u2028"}\n'
VOCABULARY = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "\u0120": 4}
TOKENIZER = {
    "version": "1.0", "added_tokens": [{"id": 0, "content": "<unk>", "special": True}], "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "unk_token": "<unk>", "vocab": VOCABULARY, "merges": [["a", "b"]]},
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader: the name of the file that it reads, whole examples of one, and how it is called with its path."""

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], Any]


def config_json() -> list[bytes]:
    from gptjax.config import RunConfig, to_json

    return [json.dumps(to_json(RunConfig())).encode()]


def read_config(path: Path) -> None:
    from gptjax.config import load_config

    load_config(path)


def result() -> dict[str, Any]:
    from gptjax.files import plain
    from gptjax.run.result import Result

    numbers = {"seed": 0, "tokens": 9, "tokens_paid": 9, "steps": 3, "epochs": 0.1, "seconds": 1.0}
    losses = {"loss": 3.0, "loss_se": 0.1, "bits_per_byte": 1.5, "evals": {"python": {"loss": 3.0}}}
    texts = {"status": "done", "reason": "", "fingerprint": "f", "data_digest": "d", "device": "cpu"}
    return plain(Result(**texts, params={"mlp": 3}, flops_per_token={"6n_total": 18.0}, **numbers, **losses))


def result_json() -> list[bytes]:
    return [json.dumps(result()).encode()]


def row_json() -> list[bytes]:
    facts = {"run": "a", "role": "cell", "size": "d", "budget": 1e9, "fingerprint": "f"}
    failed = facts | {"status": "failed", "reason": "its trunk failed"}
    whole = facts | {"batch": 3, "lr": 0.01, "b2": 0.95} | result()
    return [json.dumps(failed).encode(), json.dumps(whole).encode()]


def read_result(path: Path) -> None:
    from gptjax.config import from_file
    from gptjax.run.result import Result

    from_file(Result, path)


def read_row(path: Path) -> None:
    from gptjax.sweep.ledger import Ledger
    from gptjax.sweep.loop import table_row

    for row in Ledger(path.parents[1]).rows().values():
        table_row(row, 1000, "6n_total")


def read_lease(path: Path) -> None:
    from gptjax.jobs import leases

    leases.is_held(path.parent)


def read_metrics_file(path: Path) -> None:
    from gptjax.run.metrics import read_metrics

    read_metrics(path)


def read_table(path: Path) -> None:
    from gptjax.laws.checks import read_runs

    read_runs(path)


def parquet(column: str) -> list[bytes]:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"text": ["one", "two"]}
    if column == "params":
        columns = {"params": [1e6, 2e6], "tokens": [2e7, 4e7], "loss": [4.0, 3.5]}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return [out.getvalue()]


def read_documents(path: Path) -> None:
    from gptjax.data.corpora import read_corpus

    for _ in read_corpus(str(path)):
        pass


def read_tokenizer_json(path: Path) -> None:
    from gptjax.data.json_tokenizer import JsonTokenizer, packed

    JsonTokenizer(packed({"tokenizer.json": path.read_bytes()}, None)).token_bytes.sum()


def sentencepiece() -> list[bytes]:
    from gptjax.data.tokenizer import train_sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        train_sentencepiece([b"the cat sat on the mat"] * 9, 290).save(Path(folder))
        return [Path(folder, "tokenizer.model").read_bytes()]


def read_tokenizer_model(path: Path) -> None:
    from gptjax.data.tokenizer import load_tokenizer

    load_tokenizer(path.parent)


def tensors() -> list[bytes]:
    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    return [len(text).to_bytes(8, "little") + text + bytes(16)]


def read_tensors(path: Path) -> None:
    from gptjax.hf.tensor_files import open_tensors

    open_tensors(path.parent)


def law_json() -> list[bytes]:
    from gptjax.laws.analysis import fit_all
    from gptjax.laws.fit import Choices
    from gptjax.laws.published import BESIROGLU_2024
    from gptjax.laws.simulate import ladder, simulate

    runs = simulate(BESIROGLU_2024, *ladder(BESIROGLU_2024, (1e18, 1e19, 1e20)), noise=0.01, seed=0)
    law = fit_all(runs, Choices(bootstrap=40), tables=False).to_json()
    for fit in law["approaches"].values():  # a short file is changed in more telling places
        for name in ("profile", "influence", "band", "errors", "used", "budgets"):
            fit.pop(name, None)
    return [json.dumps(law).encode()]


def read_law(path: Path) -> None:
    from gptjax.laws.forecaster import read_forecaster
    from gptjax.laws.predict import predict

    predict(read_forecaster(str(path), force=True), flops=1e21)


def manifest_json() -> list[bytes]:
    from gptjax.data.store import build_store

    with tempfile.TemporaryDirectory() as folder:
        build_store("markov:documents=20,length=50", "bytes", Path(folder, "s"), progress=False)
        return [Path(folder, "s", "manifest.json").read_bytes()]


def read_manifest(path: Path) -> None:
    from gptjax.data.store import build_store, open_store

    store = path.parent / "store"
    if not store.is_dir():
        build_store("markov:documents=20,length=50", "bytes", store, progress=False)
    (store / "manifest.json").write_bytes(path.read_bytes())
    open_store(store)


def task_lines() -> list[bytes]:
    return [b'{"context": "a", "choices": ["b", "c"], "answer": 0}\n', b'{"context": "a", "answers": ["b"]}\n']


def read_task_file(path: Path) -> None:
    from gptjax.eval.tasks import read_task

    read_task(path)


TARGETS = {
    "config": Target("config.json", config_json, read_config),
    "result": Target("result.json", result_json, read_result),
    "ledger": Target("ledger/a.json", row_json, read_row),
    "lease": Target(
        "lease/000001.json",
        lambda: [b'{"held": true, "machine": "m", "pid": 1, "began": "b", "beat": 3}'],
        read_lease,
    ),
    "metrics": Target("metrics.jsonl", lambda: [b'{"step": 1, "train/loss": 3.0}\n{"step": 2}\n'], read_metrics_file),
    "table": Target("runs.csv", lambda: [TABLE.encode()], read_table),
    "table-parquet": Target("runs.parquet", lambda: parquet("params"), read_table),
    "jsonl": Target("a.jsonl", lambda: [LINES], read_documents),
    "jsonl-gz": Target("a.jsonl.gz", lambda: [gzip.compress(LINES, mtime=0)], read_documents),
    "parquet": Target("a.parquet", lambda: parquet("text"), read_documents),
    "text": Target("a.txt", lambda: ["text \U0001f600\n".encode() * 3], read_documents),
    "tokenizer-json": Target("tokenizer.json", lambda: [json.dumps(TOKENIZER).encode()], read_tokenizer_json),
    "tokenizer-model": Target("tokenizer.model", sentencepiece, read_tokenizer_model),
    "safetensors": Target("model.safetensors", tensors, read_tensors),
    "law": Target("law.json", law_json, read_law),
    "manifest": Target("manifest.json", manifest_json, read_manifest),
    "task": Target("task.jsonl", task_lines, read_task_file),
}


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """Fuzz one target in this process; atheris ends it."""
    import atheris

    target = TARGETS[name]
    seeds = target.seeds()
    (folder / "seeds").mkdir(parents=True)
    for i, seed in enumerate(seeds):
        (folder / "seeds" / str(i)).write_bytes(seed)
    path = folder / "files" / target.file
    path.parent.mkdir(parents=True)

    def once(data: bytes) -> None:
        from gptjax.errors import BadInput

        path.write_bytes(data)
        try:
            target.read(path)
        except BadInput as error:
            if "\n" in str(error):
                raise AssertionError(f"a message of several lines: {error}") from error
        except OSError:
            pass

    with atheris.instrument_imports(include=["gptjax"]):
        for seed in seeds:
            once(seed)  # imports what it needs
    resource.setrlimit(resource.RLIMIT_AS, (6 * GIB, 6 * GIB))
    options = ["-timeout=20", "-rss_limit_mb=6000", f"-max_total_time={seconds}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, "-verbosity=0", "-print_final_stats=1", str(folder / "seeds")], once)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := [name for name in args.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}; the targets are {', '.join(TARGETS)}")
    if args.one:
        fuzz(args.targets[0], args.seconds, args.one)
        return
    rows = []
    kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in args.targets or TARGETS:
        command = [sys.executable, __file__, name, "--seconds", str(args.seconds), "--one", str(kept / name)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        runs = [
            line.split()[-1] for line in done.stderr.splitlines() if line.startswith("stat::number_of_executed_units")
        ]
        found = sorted(str(path) for kind in ("crash", "timeout", "oom") for path in (kept / name).glob(f"{kind}-*"))
        said = (done.stderr + done.stdout).splitlines()
        why = next(
            (line for line in reversed(said) if "Error" in line or "Exception" in line), said[-1] if said else ""
        )
        rows.append(
            {"target": name, "inputs": int(runs[0]) if runs else 0, "found": found, "why": why if found else ""}
        )
        print(f"{name:16} {rows[-1]['inputs']:9,} inputs, {len(found)} found {rows[-1]['why'][:150]}", flush=True)
        if done.returncode and not found:
            print("\n".join(said[-5:]))
    print(f"what was found is in {kept}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
