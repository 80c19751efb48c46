"""Whether two versions of gptjax are one: the newer goes on with what the older wrote, and both compute the same.

    git worktree add /tmp/older COMMIT
    python benchmarks/versions.py /tmp/older [CHECK ...] [--turns N] [--json FILE]

Checks: fingerprints, losses, resume, sweep, export, estimate, speed; all of them by default. Each version runs in
processes of its own, from its own checkout, with the packages of this environment. Losses and weights are compared bit
for bit, bytes of `gptjax estimate` within 2 %; speed is tokens a second of short runs in turns, newer over older.
Before a change of the house this says what may not move; where a line differs on purpose, the log says so.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """
from dataclasses import replace
from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import SweepConfig
from gptjax.sweep.rules import always, power
from gptjax.train.optim import OptimConfig

SMALL = GPTConfig(vocab_size=257, context=32, d_model=32, n_layers=2, n_heads=2)
DATA = DataConfig(sources=(Source("markov:states=4,documents=400,length=600"),), tokenizer="bytes", cache={cache!r})

def gpt2():
    return RunConfig(model=SMALL, data=DATA, batch=8, steps=600, save=SaveConfig(every=100), log_every=10,
                     evaluate=EvalConfig(sequences=64, batch=8, every=200), optim=OptimConfig(lr=3e-3, warmup=20),
                     trackers=())

def llama():
    model = replace(SMALL, norm="rmsnorm", bias=False, positions="rope", activation="silu", gated=True, tied=False)
    return replace(gpt2(), model=model, z_loss=1e-4, accumulate=2)

def muon():
    optim = OptimConfig(name="muon", lr=3e-3, warmup=20, schedule="wsd")
    return replace(gpt2(), optim=optim, model=replace(SMALL, mup_width=16))

def wide():
    return replace(gpt2(), model=replace(SMALL, d_model=128, n_heads=4, context=128), steps=150, steps_per_call=5,
                   log_every=5)

def sweep():
    return SweepConfig(
        base=replace(gpt2(), optim=OptimConfig(schedule="wsd", weight_decay=0.0)), budgets=(2e9, 4e9, 8e9, 1.6e10),
        sizes=(8, 12, 16, 24, 32), shape=lambda width: replace(SMALL, d_model=width, n_heads=1),
        lr=power(2e-2, 3e3, -0.3), batch_tokens=always(256), tokens_per_param=(0.5, 300.0), min_steps=10,
        workers=2, holdout=3e10, holdout_sizes=(24, 32, 40))
"""
FINGERPRINTS = """
import json, runpy, sys
try:
    from gptjax.fingerprint import fingerprint
except ImportError:  # its name until 2026-11-29
    from gptjax.question import fingerprint
from gptjax.sweep.plan import SweepConfig, make_plan

found = {}
for target in sys.argv[1:]:
    file, function = target.split(":")
    config = runpy.run_path(file)[function]()
    runs = make_plan(config).runs if isinstance(config, SweepConfig) else ()
    found[target] = [fingerprint(run.config) for run in runs] or [fingerprint(config)]
print(json.dumps(found))
"""
TARGETS = (
    "tiny.py:run", "mup.py:mup", "mup.py:standard", "chinchilla/quick.py:sweep",
    "chinchilla/h200.py:sweep", "pods.py:chinchilla_70b", "pods.py:llama3_8b",
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """A checkout, whose code runs in processes of its own."""

    name: str
    root: Path
    work: Path

    def start(self, *command: str) -> subprocess.Popen[str]:
        env = os.environ | {
            "PYTHONPATH": str(self.root), "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.work / f"programs-{self.name}"),
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, *command],
            env=env,
            cwd=self.work,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *command: str, may_fail: bool = False) -> str:
        process = self.start(*command)
        said, _ = process.communicate()
        if process.returncode and not may_fail:
            raise SystemExit(f"{self.name}: {' '.join(command)} ends with {process.returncode}:\n{said[-2000:]}")
        return said

    def gptjax(self, *arguments: str) -> str:
        return self.run("-m", "gptjax.cli", *arguments)

    def train(self, name: str, directory: str, until: int | None = None) -> None:
        """Train a run of EXPERIMENT, or stop it with SIGTERM once it has written metrics of a step."""
        arguments = ("-m", "gptjax.cli", "train", f"experiment.py:{name}", "--dir", directory)
        if until is None:
            self.run(*arguments)
            return
        process, metrics = self.start(*arguments), self.work / directory / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and f'"step": {until},' in metrics.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate()


@dataclass(frozen=True)
class Pair:
    """Two versions that share a folder."""

    old: Version
    new: Version

    @property
    def work(self) -> Path:
        return self.new.work

    def result(self, directory: str) -> Any:
        return json.loads((self.work / directory / "result.json").read_text())

    def weights(self, directory: str) -> dict[str, str]:
        """Return a hash of each array of the newest checkpoint of a run, or of a folder of weights."""
        code = (
            "import hashlib, json, sys; from pathlib import Path; from gptjax.run.weights import saved_model; "
            "arrays = saved_model(Path(sys.argv[1])).arrays; print('HASHES' + json.dumps({name: hashlib.sha256("
            "array.read().result().tobytes()).hexdigest() for name, array in arrays.items()}))"
        )
        return json.loads(self.new.run("-c", code, directory).split("HASHES")[1])


def fingerprints(pair: Pair) -> list[str]:
    """Compare what every experiment asks."""
    found = []
    for version in (pair.old, pair.new):
        experiments = [str(version.root / "experiments" / target) for target in TARGETS]
        asked = json.loads(version.run("-c", FINGERPRINTS, *experiments).splitlines()[-1])
        found.append(dict(zip(TARGETS, asked.values(), strict=True)))
    return [f"{target} asks for something else" for target in TARGETS if found[0][target] != found[1][target]]


def losses(pair: Pair) -> list[str]:
    """Compare three short runs of each version."""
    wrong = []
    for name in ("gpt2", "llama", "muon"):
        for version in (pair.old, pair.new):
            version.train(name, f"{name}-{version.name}")
        old, new = f"{name}-{pair.old.name}", f"{name}-{pair.new.name}"
        wrong += _differences(pair, old, new)
    return wrong


def _differences(pair: Pair, one: str, other: str) -> list[str]:
    loss, again = pair.result(one)["loss"], pair.result(other)["loss"]
    wrong = [f"{other} ends at {again!r} and {one} at {loss!r}"] if loss != again else []
    mine, theirs = pair.weights(one), pair.weights(other)
    return wrong + [f"{name} of {other} is not that of {one}" for name in mine if mine[name] != theirs.get(name)]


def resume(pair: Pair) -> list[str]:
    """Stop a run of the older version and go on with the newer: it is the run of the older."""
    wrong = []
    for name in ("gpt2", "muon"):
        if not (pair.work / f"{name}-{pair.old.name}").is_dir():
            pair.old.train(name, f"{name}-{pair.old.name}")
        pair.old.train(name, f"{name}-resumed", until=200)
        if (pair.work / f"{name}-resumed" / "result.json").is_file():
            wrong.append(f"{name} was done before it could be stopped")
        pair.new.train(name, f"{name}-resumed")
        wrong += _differences(pair, f"{name}-{pair.old.name}", f"{name}-resumed")
    return wrong


def sweep(pair: Pair) -> list[str]:
    """Have the newer version report a sweep of the older, and finish one that lacks half of its rows."""
    command = ("-m", "gptjax.cli", "sweep", "experiment.py:sweep", "--dir", "sweep")
    pair.old.run(*command, may_fail=True)  # as its report may; what it trained is gone on with
    half, ledger = pair.work / "half", pair.work / "sweep" / "ledger"
    shutil.copytree(pair.work / "sweep", half)
    for row in sorted(ledger.iterdir())[::2]:
        (half / "ledger" / row.name).unlink()
        shutil.rmtree(half / "runs" / row.stem)
    before = _rows(ledger)
    pair.new.gptjax("status", "sweep")
    pair.new.gptjax("sweep", "experiment.py:sweep", "--dir", "sweep")
    pair.new.gptjax("sweep", "experiment.py:sweep", "--dir", "half")
    wrong = [] if _rows(ledger) == before else ["a finished sweep was not left as it was"]
    for name, row in _rows(half / "ledger").items():
        said, was = (r.get("loss", r["reason"]) for r in (row, before[name]))
        if said != was:
            wrong.append(f"{name} of the finished half gives {said} and was {was}")
    pair.new.gptjax("report", "sweep", "--coverage", "0")
    return wrong


def _rows(ledger: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(ledger.iterdir())}


def export(pair: Pair) -> list[str]:
    """Compare what both versions export of a run of the older, and let the newer read the older's weights."""
    run = f"llama-{pair.old.name}"
    if not (pair.work / run).is_dir():
        pair.old.train("llama", run)
    for version in (pair.old, pair.new):
        version.gptjax("export", run, f"hf-{version.name}", "--no-verify")
        version.gptjax("export", run, f"weights-{version.name}", "--format", "orbax")
    wrong = []
    hashes = [
        hashlib.sha256((pair.work / f"hf-{version.name}" / "model.safetensors").read_bytes()).hexdigest()
        for version in (pair.old, pair.new)
    ]
    if hashes[0] != hashes[1]:
        wrong.append("model.safetensors is another")
    if pair.weights(f"weights-{pair.old.name}") != pair.weights(f"weights-{pair.new.name}"):
        wrong.append("weights in Orbax are others")
    said = [version.gptjax("generate", f"weights-{pair.old.name}", "ab", "--tokens", "20", "--temperature", "0")
            for version in (pair.old, pair.new)]  # fmt: skip
    return wrong + ([] if said[0] == said[1] else [f"generates {said[1]!r} and not {said[0]!r}"])


def estimate(pair: Pair) -> list[str]:
    """Compare the bytes that a step of two published shapes needs, as compiled for CPU cores."""
    wrong = []
    for preset in ("gpt2", "llama-7b"):
        needs = []
        for version in (pair.old, pair.new):
            file = f"{preset}-{version.name}.json"
            version.gptjax("estimate", preset, "--topology", "cpu-core:8", "--batch-tokens", "16384", "--json", file)
            needs.append(_sizes(json.loads((pair.work / file).read_text())))
        wrong += [f"{preset}: {name} is {needs[1].get(name)} and was {value}" for name, value in needs[0].items()
                  if abs(needs[1].get(name, 0) / value - 1) > 0.02]  # fmt: skip
    return wrong


def _sizes(content: Any, path: str = "") -> dict[str, float]:
    """Return every number of bytes in the JSON of an estimate, by its path."""
    if isinstance(content, dict):
        parts = [_sizes(value, f"{path}.{key}") for key, value in content.items()]
        return {name: value for part in parts for name, value in part.items()}
    known = "bytes" in path and isinstance(content, int | float) and not isinstance(content, bool) and content > 0
    return {path: float(content)} if known else {}


def speed(pair: Pair, turns: int) -> list[str]:
    """Compare tokens a second of a run of width 128, in turns; it says the median and the range of the ratios."""
    ratios = []
    for turn in range(turns):
        rates = {}
        for version in (pair.old, pair.new) if turn % 2 == 0 else (pair.new, pair.old):
            directory = f"wide-{version.name}-{turn}"
            version.train("wide", directory)
            lines = [json.loads(line) for line in (pair.work / directory / "metrics.jsonl").read_text().splitlines()]
            known = [line["perf/tokens_per_second"] for line in lines if "perf/tokens_per_second" in line]
            rates[version.name] = statistics.median(known[3:])
        ratios.append(rates["new"] / rates["old"])
    middle = statistics.median(ratios)
    print(f"speed: newer over older {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) in {turns} turns")
    return [f"the step has {middle:.3f} of its speed"] if middle < 0.98 else []


def main() -> None:
    checks: dict[str, Callable[..., list[str]]] = {
        check.__name__: check for check in (fingerprints, losses, resume, sweep, export, estimate, speed)
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("older", type=Path, metavar="OLDER", help="a checkout of the older version")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(checks))
    parser.add_argument("--turns", type=int, default=7, help="of the check of speed (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if unknown := [name for name in args.checks if name not in checks]:
        parser.error(f"no check {unknown[0]!r}; the checks are {', '.join(checks)}")
    found = {}
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        work = Path(folder)
        (work / "experiment.py").write_text(EXPERIMENT.format(cache=str(work / "cache")))
        pair = Pair(Version("old", args.older.resolve(), work), Version("new", ROOT, work))
        for name in args.checks or checks:
            began = time.monotonic()
            found[name] = checks[name](pair, args.turns) if name == "speed" else checks[name](pair)
            print(f"{name:13}{len(found[name]):3} differences, {time.monotonic() - began:.0f} s", flush=True)
            for line in found[name]:
                print(f"  {line}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()
