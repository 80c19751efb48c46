"""Do forecasts hold? Many small sweeps, each with runs at 3 and at 10 times its largest budget that no fit has seen.

    python experiments/forecasts.py --dir runs/forecasts            # 2 CPU cores, 40 minutes
    python experiments/forecasts.py --dir runs/forecasts --score    # what was trained, scored again
    python experiments/forecasts.py --dir runs/smaller --smaller    # sweeps below 3e11 FLOPs, 25 minutes

The sweeps differ in text, tokenizer, context, optimizer, schedule, shape of the grid and width of its range. Each is
fitted, the sizes nearest to its predicted optima are trained at 3 and 10 times its largest budget, and the forecast of
each of these runs is scored. docs/laws.md has the table that this prints.
"""

import argparse
import csv
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gptjax.config import EvalConfig, RunConfig, SaveConfig
from gptjax.data.loader import DataConfig, Source
from gptjax.data.text_files import in_folder
from gptjax.execution import Execution
from gptjax.jobs.process import settle, use_compilation_cache
from gptjax.laws.checks import read_runs
from gptjax.laws.forecast import forecast
from gptjax.laws.parametric import parametric
from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.reading import read_rows
from gptjax.laws.simulate import simulate
from gptjax.models.gpt import GPTConfig
from gptjax.sweep.ledger import Ledger
from gptjax.sweep.local import execute
from gptjax.sweep.loop import write_tables
from gptjax.sweep.plan import Speed, SweepConfig, holdout_run, make_plan
from gptjax.sweep.rules import Rule, always, power
from gptjax.train.optim import OptimConfig

BEYOND = (3.0, 10.0)  # times the largest budget
ADAMW = power(0.0085, at_params=14.4e3, exponent=-0.3)  # as tuned for chinchilla/quick.py


def width(vocab_size: int, context: int = 64, **settings: object) -> Callable[[int], GPTConfig]:
    """Two layers of LLaMA's kind at a width."""
    base = GPTConfig(
        vocab_size=vocab_size, context=context, n_layers=2, n_heads=2, norm="rmsnorm", bias=False, positions="rope",
        init_std=0.0,
    )  # fmt: skip
    return lambda d_model: replace(base, d_model=d_model, **settings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """A small sweep, and what of it differs from the others."""

    corpus: str
    tokenizer: str
    shape: Callable[[int], GPTConfig]
    budgets: tuple[float, ...] = ()
    horizons: tuple[float, ...] = ()
    sizes: tuple[int, ...] = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96)
    optim: OptimConfig = OptimConfig(schedule="wsd", cooldown=0.2, b2=0.95, weight_decay=0.1)
    lr: Rule = ADAMW
    batch: int = 512
    windows: int = 2048
    ratios: tuple[float, float] = (2.2, 150.0)

    def sweep(self) -> SweepConfig:
        return SweepConfig(
            base=RunConfig(
                data=DataConfig(sources=(Source(self.corpus),), tokenizer=self.tokenizer),
                optim=self.optim,
                execution=Execution(scan=False),
                steps_per_call=20,
                log_every=20,
                evaluate=EvalConfig(sequences=self.windows, batch=64),
                save=SaveConfig(every=10**9),
                trackers=(),
            ),
            budgets=self.budgets,
            horizons=self.horizons,
            sizes=self.sizes,
            shape=self.shape,
            lr=self.lr,
            batch_tokens=always(self.batch),
            warmup_tokens=always(50 * self.batch),
            tokens_per_param=self.ratios,
            speed=Speed(5.5e10, 2.5e-3, 3.0),
            workers=2,
        )


def packages(*endings: str) -> str:
    """Name the corpus that the files of this Python's installed packages make."""
    return in_folder(sysconfig.get_path("purelib"), list(endings))


PYTHON = ("python", "sentencepiece:512", width(512))
WSD = Case.optim
CASES: dict[str, Callable[[], Case]] = {
    "python": lambda: Case(*PYTHON, (6e10, 1.4e11, 3.4e11, 8e11)),
    "C headers": lambda: Case(in_folder("/usr/include", [".h"]), *PYTHON[1:], (6e10, 1.4e11, 3.4e11, 8e11)),
    "Muon": lambda: Case(
        *PYTHON, (6e10, 1.4e11, 3.4e11, 8e11),
        optim=replace(WSD, name="muon"), lr=power(2.2 * 0.0085, at_params=14.4e3, exponent=-0.3),
    ),
    "bytes": lambda: Case("python", "bytes", width(257), (6e10, 2e11, 7e11)),
    "context 128": lambda: Case("python", "sentencepiece:512", width(512, 128), (6e10, 1.4e11, 3.4e11, 8e11)),
    "narrow range": lambda: Case(*PYTHON, (2.5e11, 4.5e11, 8e11)),
    "packages": lambda: Case(packages(".py", ".pyi"), *PYTHON[1:], (1e11, 2.5e11, 6e11)),
    "wide range": lambda: Case(*PYTHON, (3e10, 9e10, 2.7e11, 8e11)),
    "GPT-2 layers": lambda: Case(
        "python", "sentencepiece:512", width(512, norm="layernorm", bias=True, positions="learned"),
        (1e11, 2.5e11, 6e11),
    ),
    "1024 pieces": lambda: Case("python", "sentencepiece:1024", width(1024), (1e11, 3e11, 9e11)),
    "Perl": lambda: Case(in_folder("/usr/share/perl", [".pm", ".pl", ".pod"]), *PYTHON[1:], (8e10, 2e11, 5e11)),
    "context 32": lambda: Case("python", "sentencepiece:512", width(512, 32), (1e11, 2.5e11, 6e11)),
    "few windows": lambda: Case(*PYTHON, (1e11, 2.5e11, 6e11), windows=256),
    "cosine": lambda: Case(*PYTHON, (1e11, 2.2e11, 5e11), optim=replace(WSD, schedule="cosine")),
    "scattered": lambda: Case(*PYTHON, horizons=(3e5, 7e5, 1.6e6, 3e6), sizes=(16, 20, 24, 32, 40)),
    "Lion": lambda: Case(
        *PYTHON, (1e11, 2.5e11, 6e11),
        optim=replace(WSD, name="lion", b1=0.9, b2=0.98, weight_decay=0.5),
        lr=power(0.0012, at_params=14.4e3, exponent=-0.3),
    ),
}  # fmt: skip


SMALL = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
SMALLER: dict[str, Callable[[], Case]] = {  # below 3e11 FLOPs, where losses are still near that of guessing
    "python": lambda: Case(*PYTHON, (3e10, 6e10, 1.2e11, 2.4e11), sizes=SMALL),
    "python, narrow": lambda: Case(*PYTHON, (8e10, 1.4e11, 2.4e11), sizes=SMALL, windows=512),
    "python, wide": lambda: Case(*PYTHON, (1e10, 3e10, 9e10, 2.7e11), sizes=SMALL),
    "python, bytes": lambda: Case("python", "bytes", width(257), (2e10, 5e10, 1.2e11, 3e11), sizes=SMALL),
    "python, 1024 pieces": lambda: Case(
        "python", "sentencepiece:1024", width(1024), (5e10, 1.2e11, 3e11), sizes=SMALL
    ),
    "python, context 128": lambda: Case(
        "python", "sentencepiece:512", width(512, 128), (3e10, 8e10, 2e11), sizes=SMALL
    ),
    "python, context 32": lambda: Case(
        "python", "sentencepiece:512", width(512, 32), (2e10, 5e10, 1.2e11, 3e11), sizes=SMALL
    ),
    "python, cosine": lambda: Case(
        *PYTHON, (3e10, 8e10, 2e11), sizes=SMALL, optim=replace(WSD, schedule="cosine")
    ),
    "python, Muon": lambda: Case(
        *PYTHON, (3e10, 6e10, 1.2e11, 2.4e11), sizes=SMALL,
        optim=replace(WSD, name="muon"), lr=power(0.012, at_params=14.4e3, exponent=-0.3),
    ),
    "python, Lion": lambda: Case(
        *PYTHON, (3e10, 8e10, 2e11), sizes=SMALL,
        optim=replace(WSD, name="lion", b1=0.9, b2=0.98, weight_decay=0.5),
        lr=power(0.0012, at_params=14.4e3, exponent=-0.3),
    ),
    "C headers": lambda: Case(in_folder("/usr/include", [".h"]), *PYTHON[1:], (3e10, 8e10, 2e11), sizes=SMALL),
    "packages": lambda: Case(packages(".py", ".pyi"), *PYTHON[1:], (3e10, 8e10, 2e11), sizes=SMALL),
    "notes of packages": lambda: Case(
        packages(".rst", ".md", ".txt"), *PYTHON[1:], (2e10, 5e10, 1.2e11), sizes=SMALL
    ),
    "few windows": lambda: Case(*PYTHON, (2e10, 5e10, 1.2e11), sizes=SMALL, windows=256),
    "scattered": lambda: Case(*PYTHON, horizons=(1.2e5, 3e5, 7e5, 1.6e6), sizes=SMALL[:5]),
    "GPT-2 layers": lambda: Case(
        "python", "sentencepiece:512", width(512, norm="layernorm", bias=True, positions="learned"),
        (3e10, 8e10, 2e11), sizes=SMALL,
    ),
}  # fmt: skip


# sizes that runs beyond the budgets may have
LARGER = (
    8,
    12,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    72,
    80,
    88,
    96,
    104,
    112,
    120,
    128,
    144,
)


def train(case: Case, directory: Path) -> None:
    """Train a case's cells, and then its runs beyond: of about the best size at the largest budget, grown as C^.5.

    No law chooses the size, so that these runs stay the same when the laws are improved.
    """
    sweep = case.sweep()
    plan = make_plan(sweep)
    execute(plan, directory, workers=2)
    rows = Ledger(directory).rows()
    cells = [run for run in plan.runs if run.role == "cell"]
    best = min(cells, key=lambda run: rows[run.name].get("loss") or float("inf"))
    top = max(run.flops for run in cells)
    for factor in BEYOND:
        larger = replace(sweep, holdout=factor * top, holdout_sizes=LARGER)
        run = holdout_run(larger, best.params * (factor * top / best.flops) ** 0.5)
        plan = replace(plan, runs=(*plan.runs, run))
    execute(plan, directory, workers=2)
    write_tables(plan, directory)


@dataclass(frozen=True)
class Scored:
    """A forecast of one run, and what it reached; errors are log forecast - log measured."""

    case: str
    times: float  # C of the run over the largest budget
    error: float
    half_width: float  # of the 95 % interval, in log loss
    inside: bool
    by_law: float  # the error of the parametric law of all rows, which takes its form for true


def score(case: str, directory: Path) -> list[Scored]:
    """Forecast each held-out run of a directory from its cells alone."""
    runs = read_runs(directory / "runs.csv")
    found, law = forecast(runs), parametric(runs).plane
    top = float((6 * runs.params * runs.tokens).max())
    scored = []
    for _, row in read_rows(directory / "runs.csv")[1]:
        if row["status"] == "holdout":
            n, d, loss = (float(row[name]) for name in ("params", "tokens", "loss"))
            said = found.at(6 * n * d, n)
            low, high = said.interval()
            by_law = math.log(float(law.loss(n, d)) / loss) if law else math.nan
            scored.append(Scored(case, 6 * n * d / top, said.log_loss - math.log(loss), math.log(high / low) / 2,
                                 low <= loss <= high, by_law))  # fmt: skip
    return scored


def published(path: Path) -> list[Scored]:
    """Forecast the best published point near 4 and 16 times each cut from the points up to it."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dropped_by_besiroglu"] == "0"]
    n, d, c, loss = (np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "flops", "loss"))
    whole = replace(simulate(BESIROGLU_2024, n, d, noise=0.0, seed=0), flops=c, loss=loss)
    scored = []
    for cut in CUTS:
        early = whole.take(np.flatnonzero(c <= cut * 1.05))
        found, law = forecast(early), parametric(early).plane
        for times in (4, 16):
            near = np.flatnonzero(np.abs(np.log(c / (times * cut))) < math.log(1.4))
            if len(near) < 3:
                continue
            i = near[loss[near].argmin()]
            said = found.at(6 * n[i] * d[i], n[i])
            low, high = said.interval()
            by_law = math.log(float(law.loss(n[i], d[i])) / loss[i]) if law else math.nan
            scored.append(Scored(f"points to {cut:.2g}", times, said.log_loss - math.log(loss[i]),
                                 math.log(high / low) / 2, bool(low <= loss[i] <= high), by_law))  # fmt: skip
    return scored


CUTS = (2e19, 4e19, 7e19, 1.4e20, 3.5e20, 7e20)


def table(scored: list[Scored]) -> str:
    """Lay scores out, and sum them up by distance."""
    lines = ["| sweep | times C | error, % | half-width, % | held | parametric law, % |", "|---|---|---|---|---|---|"]
    for one in scored:
        numbers = f"{100 * one.error:+.1f} | {100 * one.half_width:.1f} | {'yes' if one.inside else 'no'}"
        lines.append(f"| {one.case} | {one.times:.1f} | {numbers} | {100 * one.by_law:+.1f} |")
    for label, kept in (("about 3 times", (0, 6)), ("about 10 times", (6, 13)), ("16 times", (13, 99))):
        some = [one for one in scored if kept[0] < one.times <= kept[1]]
        if some:
            errors, by_law = ([100 * abs(getattr(one, name)) for one in some] for name in ("error", "by_law"))
            held = sum(one.inside for one in some)
            own, other = (f"{np.median(each):.1f} %, most {max(each):.1f} %" for each in (errors, by_law))
            lines.append(f"{label}: {held} of {len(some)} held; median error {own}; parametric law {other}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs/forecasts"))
    parser.add_argument("--smaller", action="store_true", help="the sweeps below 3e11 FLOPs")
    parser.add_argument("--only", nargs="*", metavar="CASE")
    parser.add_argument("--score", action="store_true", help="train nothing")
    parser.add_argument("--points", type=Path, metavar="FILE", help="score on the published points of this file too")
    args = parser.parse_args()
    cases = SMALLER if args.smaller else CASES
    places = {name: args.dir / name.replace(", ", "-").replace(" ", "-") for name in args.only or cases}
    if not args.score:
        for name, place in places.items():
            train(cases[name](), place)
    scored = [one for name, place in places.items() if (place / "runs.csv").is_file() for one in score(name, place)]
    print(table(scored))
    if args.points:
        print(table(published(args.points)))


if __name__ == "__main__":
    settle()
    use_compilation_cache()
    main()
