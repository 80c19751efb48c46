"""What gptjax leaves when it is killed, preempted, out of disk, out of time or not alone: the same as undisturbed.

    python benchmarks/chaos.py [STAGE ...] [--kills N] [--points N] [--seconds S] [--seed K] [--folder DIR]

Stages: kills, full, clocks, two, storms, devices; all of them by default. Each runs commands of gptjax on tiny models,
disturbs them at random moments, runs them again until they are done, and compares the folder with that of a quiet run:
every file, what is left over, and bit for bit but for clocks and durations. --kills counts per verb, --points the
sizes of disk per verb, and --seconds bounds all stages together. `full` needs root, for a small tmpfs; `clocks` needs
libfaketime. docs/reliability.md says what is promised and what was found.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.plan import SweepConfig
from gptjax.sweep.rules import always, power
from gptjax.train.optim import OptimConfig

HERE = Path(__file__).resolve()
ROUNDS = 4  # times that one folder is disturbed before the command may finish
LONGEST = 600  # seconds that a command may take
CLOCKS = {"seconds", "wall seconds", "registered", "scored", "sha256", "digest of time"}  # keys that a clock is in
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None) if sys.platform == "linux" else None


# ---- what is run: `gptjax train benchmarks/chaos.py:run`


def run() -> RunConfig:
    """Return a run of a few seconds that saves and evaluates often."""
    return RunConfig(
        model=shape(16),
        data=DataConfig(sources=(Source("markov:states=4,documents=200,length=600"),), tokenizer="bytes"),
        batch=8,
        steps=1200,
        steps_per_call=5,
        log_every=10,
        save=SaveConfig(every=30),
        evaluate=EvalConfig(sequences=64, batch=8, every=60),
        trackers=(),
    )


def wide() -> RunConfig:
    """Return a run whose weights take a while to write, of an architecture that transformers has."""
    llama = {"positions": "rope", "activation": "silu", "gated": True, "tied": False}
    model = replace(shape(256), n_layers=6, n_heads=4, **llama)
    short = {"optim": OptimConfig(warmup=1), "steps": 5, "save": SaveConfig(every=5), "evaluate": EvalConfig(8, 8)}
    return replace(run(), model=model, **short)


def sweep() -> SweepConfig:
    """Return a sweep of trunks, branches and a held-out run, on two processes."""
    optim = OptimConfig(schedule="wsd", weight_decay=0.0)
    return SweepConfig(
        base=replace(run(), optim=optim, log_every=1, save=SaveConfig(every=50), evaluate=EvalConfig(64, 8)),
        budgets=(2e8, 4e8, 8e8),
        holdout=1.6e9,
        holdout_sizes=(8, 12),
        sizes=(4, 6, 8, 12),
        shape=shape,
        lr=power(2e-2, 3e3, -0.3),
        batch_tokens=always(128),
        tokens_per_param=(0.5, 100.0),
        min_steps=10,
        workers=2,
    )


def shape(width: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=257, context=16, d_model=width, n_layers=1, n_heads=1, init_std=0.0, bias=False, norm="rmsnorm"
    )


# ---- verbs


@dataclass(frozen=True)
class Verb:
    """A command: its arguments for a folder to write to, and what must stand there before."""

    name: str
    arguments: Callable[[Path], list[str]]
    prepare: Callable[[Path], None] = lambda folder: None


def verbs(inputs: Path) -> dict[str, Verb]:
    """Return the verbs of the campaign, which read what `make_inputs` wrote."""

    def copy(folder: Path) -> None:
        shutil.copytree(inputs / "sweep", folder / "sweep", dirs_exist_ok=True)

    cache = f"data.cache={inputs / 'cache'}"
    corpus = "markov:states=4,documents=8000,length=2000"
    listed = (
        Verb("train", lambda out: ["train", f"{HERE}:run", "--dir", str(out / "run"), "--set", cache]),
        Verb("sweep", lambda out: ["sweep", str(HERE), "--dir", str(out / "sweep"), "--set", f"base.{cache}"]),
        Verb("data", lambda out: ["data", corpus, "--tokenizer", "bytes", "--out", str(out / "store")]),
        Verb("import", lambda out: ["import", str(inputs / "hf"), str(out / "weights")]),
        Verb("export", lambda out: ["export", str(inputs / "wide"), str(out / "hf"), "--no-verify"]),
        Verb("report", lambda out: ["report", str(out / "sweep"), "--coverage", "5"], copy),
    )
    return {verb.name: verb for verb in listed}


def make_inputs(inputs: Path) -> None:
    """Write what verbs read: tokens, a run with weights to export, a model to import, a sweep to report."""
    cache = f"data.cache={inputs / 'cache'}"
    for arguments in (
        ["train", f"{HERE}:wide", "--dir", str(inputs / "wide"), "--set", cache],
        ["export", str(inputs / "wide"), str(inputs / "hf"), "--no-verify"],
        ["sweep", str(HERE), "--dir", str(inputs / "sweep"), "--set", f"base.{cache}"],
    ):
        ended = finish(start(arguments, inputs))
        if ended.code:
            raise SystemExit(f"{arguments[0]} fails undisturbed: {ended.said}")
    for left in ("law.json", "report.html", "figures"):
        path = inputs / "sweep" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---- processes


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it said last."""

    code: int
    said: str

    @property
    def is_told(self) -> bool:
        """Say whether it ended by itself, with no more than a line of gptjax's own."""
        return "Traceback" not in self.said


def start(arguments: Sequence[str], inputs: Path, **env: str) -> subprocess.Popen[bytes]:
    """Start gptjax in a process group of its own."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(inputs / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    command = [sys.executable, "-m", "gptjax.cli", *arguments]
    said = (inputs / f"said-{time.monotonic_ns()}").open("w+b")
    process = subprocess.Popen(
        command, env=environment | env, start_new_session=True, stdout=said, stderr=subprocess.STDOUT, cwd=inputs
    )
    process.said = said  # type: ignore[attr-defined]
    return process


def finish(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for a command, and for what it has started."""
    try:
        process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        kill(process)
        return Ended(-1, f"hangs: not done after {LONGEST} s")
    said = process.said  # type: ignore[attr-defined]
    said.seek(0)
    text = said.read().decode(errors="replace")
    said.close()
    Path(said.name).unlink()
    return Ended(process.returncode, text[-3000:])


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_change(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until a command writes its first file, or ends: before, there is nothing to disturb."""
    before = listing(folder)
    while process.poll() is None and listing(folder) == before:
        time.sleep(0.005)


def listing(folder: Path) -> set[str]:
    return {os.path.join(where, name) for where, folders, files in os.walk(folder) for name in (*folders, *files)}


# ---- what a folder holds


def contents(folder: Path) -> dict[str, str]:
    """Digest all that a folder holds, by path: arrays by their values, the rest without clocks and durations."""
    found = {}
    trees = {path.parent for path in folder.rglob("manifest.ocdbt")}
    trees = {tree for tree in trees if not trees & set(tree.parents)}
    for tree in trees:
        found[name_of(tree, folder)] = digest(arrays(tree))
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            if not any(path.iterdir()):
                found[f"{path.relative_to(folder)}/"] = "empty"
        elif not trees & set(path.parents):
            found |= {name: digest(value) for name, value in content(path, folder).items()}
    return found


def name_of(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))


def arrays(tree: Path) -> list[Any]:
    from gptjax.run.checkpoint import open_arrays

    opened = sorted(open_arrays(tree).items())
    return [
        [name, a.shape, a.dtype.name, hashlib.sha256(a.read().result().tobytes()).hexdigest()] for name, a in opened
    ]


def content(path: Path, folder: Path) -> dict[str, Any]:
    """Return what is promised of a file, by the name under which it is compared."""
    name = name_of(path, folder)
    if path.parent.name == "lease":
        return {f"{path.parent.relative_to(folder)} held": json.loads(path.read_bytes())["held"]}
    if path.parent.name == "seals" or path.name == "seal.json":
        return {name: "a seal"}  # of files that Orbax names anew every time; their arrays are compared
    if path.parent.parent.name == "checkpoints":
        return {}  # Orbax's notes about a step, with times
    if path.suffix == ".json":
        return {name: timeless(json.loads(path.read_bytes()))}
    if path.suffix == ".jsonl":
        return {name: curve([timeless(json.loads(line)) for line in path.read_text().splitlines()])}
    if path.suffix == ".csv":
        return {name: [timeless(row) for row in csv.DictReader(path.read_text().splitlines())]}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return {name: [timeless(row) for row in pq.read_table(path).to_pylist()]}
    if path.suffix == ".html":
        return {name: "a page"}  # it says how long the sweep took
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()}


def curve(lines: list[dict[str, Any]]) -> list[Any]:
    """Return evaluations, and the sum of all losses so far at every tenth step.

    A run that is told to stop writes one line more, of the steps since the line before; sums do not change by that.
    """
    found: list[Any] = [line for line in lines if "train/loss" not in line]
    trained = [line for line in lines if "train/loss" in line]
    begins = [2 * trained[0]["step"] - trained[1]["step"] if len(trained) > 1 else 0]  # a branch's first line is whole
    total = 0.0
    for before, line in zip([*begins, *(line["step"] for line in trained)], trained, strict=False):
        total += line["train/loss"] * (line["step"] - before)
        if line["step"] % 10 == 0:
            found.append([line["step"], line["tokens"], round(total, 6)])
    return found


def timeless(value: Any) -> Any:
    """Leave out what clocks and speeds are in."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in CLOCKS and not str(k).startswith("perf/")}
        return {key: timeless(item) for key, item in kept.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Say how a folder differs from the quiet one."""
    return [
        *(f"{name} is missing" for name in sorted(wanted.keys() - found.keys())),
        *(f"{name} is left over" for name in sorted(found.keys() - wanted.keys())),
        *(f"{name} is another" for name in sorted(found.keys() & wanted.keys()) if found[name] != wanted[name]),
    ]


# ---- stages


@dataclass
class Campaign:
    """Where all happens, how far it may go, and what it has found."""

    folder: Path
    verbs: dict[str, Verb]
    chosen: Sequence[str]  # those of the stages that take any
    kills: int
    points: int
    random: random.Random
    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    quiet: dict[str, tuple[dict[str, str], float]] = field(default_factory=dict)

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs"

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.deadline

    def start(self, verb: str, out: Path, *more: str, **env: str) -> subprocess.Popen[bytes]:
        return start([*self.verbs[verb].arguments(out), *more], self.inputs, **env)

    @contextmanager
    def place(self, verb: str) -> Iterator[Path]:
        """Give a new folder, with what the verb needs."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f"{verb}-") as name:
            self.verbs[verb].prepare(Path(name))
            yield Path(name)

    def undisturbed(self, verb: str) -> tuple[dict[str, str], float]:
        """Return what a verb leaves when nothing disturbs it, and its seconds from the first file on.

        It is run twice: what differs then is no promise, and a mistake of this script.
        """
        kept = self.inputs / f"quiet-{verb}.json"
        if kept.is_file():
            self.quiet[verb] = tuple(json.loads(kept.read_bytes()))
        if verb not in self.quiet:
            found, seconds = [], 0.0
            for _ in range(2):
                with self.place(verb) as out:
                    process = self.start(verb, out)
                    wait_for_change(process, out)
                    began = time.monotonic()
                    ended = finish(process)
                    seconds = time.monotonic() - began
                    if ended.code:
                        raise SystemExit(f"{verb} fails undisturbed: {ended.said}")
                    found.append(contents(out))
            if wrong := differences(*found):
                raise SystemExit(f"two quiet runs of {verb} differ: {'; '.join(wrong)}")
            self.quiet[verb] = found[0], seconds
            kept.write_text(json.dumps(self.quiet[verb]))
        return self.quiet[verb]

    def check(self, verb: str, out: Path, ended: Ended) -> list[str]:
        """Say what is wrong with a verb that was let finish; one that had just finished when it was killed says so."""
        if ended.code and not (ended.code == 2 and "exists and is not overwritten" in ended.said):
            return [f"ends with {ended.code}: {ended.said.strip()[-300:]}"]
        return differences(contents(out), self.undisturbed(verb)[0])

    def record(self, stage: str, verb: str, disturbed: int, checked: int, wrong: list[str]) -> None:
        row = {"stage": stage, "verb": verb, "disturbed": disturbed, "checked": checked, "wrong": wrong}
        self.rows.append(row)
        print(f"{stage:8} {verb:7} {disturbed:4} disturbed {checked:3} compared {len(wrong):3} wrong", flush=True)
        for line, times in sorted({line: wrong.count(line) for line in wrong}.items()):
            print(f"         {line}" + f" ({times} times)" * (times > 1), flush=True)


def kills(c: Campaign) -> None:
    """Kill every verb at random moments: all of its processes, or of several the first alone."""
    for verb in c.chosen:
        _, seconds = c.undisturbed(verb)
        hits, checked, wrong = 0, 0, []
        while hits < c.kills and not c.is_over:
            with c.place(verb) as out:
                for _ in range(ROUNDS):
                    process = c.start(verb, out)
                    wait_for_change(process, out)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(c.random.uniform(0, seconds))
                        break  # it was faster
                    if c.random.random() < 0.5:
                        process.kill()  # its workers find out by themselves
                        process.wait()
                    else:
                        kill(process)
                    hits += 1
                wrong += c.check(verb, out, finish(c.start(verb, out)))
                checked += 1
        c.record("kills", verb, hits, checked, wrong)


def full(c: Campaign) -> None:
    """Let the disk be full at every write, from the first to the last, then make room and run the verb again."""
    if os.geteuid():
        print("full     needs root, to mount a small tmpfs: left out")
        return
    for verb in c.chosen:
        c.undisturbed(verb)
        with disk(c, verb, 1 << 30) as (out, used):
            process, most = c.start(verb, out), 0
            while process.poll() is None:
                most = max(most, used())
                time.sleep(0.01)
            finish(process)
        hits, checked, wrong = 0, 0, []
        for i in range(c.points):
            if c.is_over:
                break
            room = 4096 * round(1 + most / 4096 * (i + c.random.random()) / c.points)
            with disk(c, verb, room) as (out, used):
                ended = finish(c.start(verb, out))
                if ended.code:
                    hits += 1
                    if ended.code != 1 or not ended.is_told:
                        wrong.append(f"ends with {ended.code}: {ended.said.strip().splitlines()[-1][:200]}")
                remount(out, 1 << 30)
                wrong += c.check(verb, out, finish(c.start(verb, out)))
                checked += 1
        c.record("full", verb, hits, checked, wrong)


@contextmanager
def disk(c: Campaign, verb: str, room: int) -> Iterator[tuple[Path, Callable[[], int]]]:
    """Give a disk with so many bytes of room beside what the verb needs, and a function of the bytes it has taken."""
    with tempfile.TemporaryDirectory(dir=c.folder) as name:
        out = Path(name)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={1 << 30}", "none", name], check=True)
        try:

            def taken() -> int:
                stat = os.statvfs(out)
                return (stat.f_blocks - stat.f_bfree) * stat.f_frsize

            c.verbs[verb].prepare(out)
            before = taken()
            remount(out, before + room)
            yield out, lambda: taken() - before
        finally:
            subprocess.run(["umount", name], check=True)


def remount(out: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(out)], check=True)


def clocks(c: Campaign) -> None:
    """Move the clock of two executors of one sweep by years, forth and back, while they work."""
    if FAKETIME is None:
        print("clocks   needs libfaketime: left out")
        return
    hits, wrong = 0, []
    with c.place("sweep") as out, tempfile.TemporaryDirectory() as clock:
        file = Path(clock, "offset")
        file.write_text("+0")
        settings = {"FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        jumping = c.start("sweep", out, LD_PRELOAD=str(FAKETIME), **settings)
        steady = c.start("sweep", out)
        while jumping.poll() is None:
            file.write_text(c.random.choice(("+3y", "-3y", "+1h", "-1h", "-40s", "+0")))
            hits += 1
            time.sleep(c.random.uniform(0.1, 2))
        wrong += c.check("sweep", out, finish(jumping)) + c.check("sweep", out, finish(steady))
    c.record("clocks", "sweep", hits, 1, wrong)


def two(c: Campaign) -> None:
    """Work with two executors on one sweep, of which now one and now the other is killed and started again."""
    _, seconds = c.undisturbed("sweep")
    hits, checked, wrong = 0, 0, []
    while hits < c.kills and not c.is_over:
        with c.place("sweep") as out:
            both = [c.start("sweep", out), c.start("sweep", out)]
            wait_for_change(both[0], out)
            for _ in range(ROUNDS):
                time.sleep(c.random.uniform(0, seconds / ROUNDS))
                i = c.random.randrange(2)
                if both[i].poll() is None:
                    kill(both[i])
                    hits += 1
                both[i] = c.start("sweep", out)
            for process in both:
                wrong += c.check("sweep", out, finish(process))
            checked += 1
    c.record("two", "sweep", hits, checked, wrong)


def storms(c: Campaign) -> None:
    """Send SIGTERM again and again while a command saves and leaves: it ends with 75, and goes on where it was."""
    for verb in ("train", "sweep"):
        _, seconds = c.undisturbed(verb)
        hits, checked, wrong = 0, 0, []
        while hits < c.kills and not c.is_over:
            with c.place(verb) as out:
                for _ in range(ROUNDS):
                    process = c.start(verb, out)
                    wait_for_change(process, out)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(c.random.uniform(0, seconds))
                        break
                    hits += 1
                    began = time.monotonic()
                    while process.poll() is None and time.monotonic() < began + LONGEST:
                        os.killpg(process.pid, signal.SIGTERM)
                        time.sleep(c.random.uniform(0, 0.2))
                    ended = finish(process)
                    if ended.code not in (0, 75, -signal.SIGTERM) or not ended.is_told:
                        wrong.append(f"SIGTERM ends it with {ended.code}: {ended.said.strip()[-300:]}")
                wrong += c.check(verb, out, finish(c.start(verb, out)))
                checked += 1
        c.record("storms", verb, hits, checked, wrong)


def devices(c: Campaign) -> None:
    """Train on 8 devices, go on with 1 and end with 4: the same run to rounding; with 8 all along, to the bit."""
    curves, hits, wrong = {}, 0, []
    for name, counts in {"1": (1,), "8": (8,), "8 again": (8, 8, 8), "8, 1, 4": (8, 1, 4)}.items():
        with c.place("train") as out:
            for i, n in enumerate(counts):
                # XLA needs more threads than devices: as many can wait for one another for ever
                env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n}", "PJRT_NPROC": str(4 * n)}
                process = c.start("train", out, **env)
                if i < len(counts) - 1:
                    until_step(process, out / "run", 400 * (i + 1))
                    process.send_signal(signal.SIGTERM)
                    hits += 1
                ended = finish(process)
                if ended.code != (75 if i < len(counts) - 1 else 0):
                    wrong.append(f"{name}: ends with {ended.code}: {ended.said.strip()[-300:]}")
            result = json.loads((out / "run" / "result.json").read_bytes())
            lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
            curves[name] = [point[2] for point in curve(lines) if isinstance(point, list)], result["loss"]
    if curves["8 again"] != curves["8"]:
        wrong.append("8, 8, 8 devices give other bits than 8")
    (quiet, last), (moved, end) = curves["1"], curves["8, 1, 4"]
    off = max(abs(a / b - 1) for a, b in zip([*quiet, last], [*moved, end], strict=True))
    if off > 1e-4:
        wrong.append(f"8, 1, 4 devices are off by {off:.1e} from 1")
    c.record("devices", "train", hits, len(curves), wrong)


def until_step(process: subprocess.Popen[bytes], directory: Path, step: int) -> None:
    metrics = directory / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        time.sleep(0.02)


STAGES = {stage.__name__: stage for stage in (kills, full, clocks, two, storms, devices)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--verbs", default="", metavar="VERB,...", help="of kills and full; default: all")
    parser.add_argument("--kills", type=int, default=17, help="of each verb (default: %(default)s)")
    parser.add_argument("--points", type=int, default=20, help="sizes of disk for each verb (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all stages (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to keep what is read and what quiet runs left, for the next call")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add what was found to this file")
    args = parser.parse_args()
    if unknown := [stage for stage in args.stages if stage not in STAGES]:
        parser.error(f"no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        inputs = folder / "inputs"
        if not (inputs / "sweep" / "runs.csv").is_file():
            inputs.mkdir(parents=True)
            make_inputs(inputs)
        known = verbs(inputs)
        chosen = args.verbs.split(",") if args.verbs else list(known)
        campaign = Campaign(
            folder, known, chosen, args.kills, args.points, random.Random(args.seed), began + args.seconds
        )
        for stage in args.stages or STAGES:
            STAGES[stage](campaign)
    wrong = sum(len(row["wrong"]) for row in campaign.rows)
    disturbed = sum(row["disturbed"] for row in campaign.rows)
    print(f"{disturbed} disturbances, {wrong} wrong, {time.monotonic() - began:.0f} s")
    if args.json:  # what an earlier call found stays
        before = json.loads(args.json.read_text()) if args.json.is_file() else []
        args.json.write_text(
            json.dumps([*before, *({"seed": args.seed} | row for row in campaign.rows)], indent=1) + "\n"
        )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
