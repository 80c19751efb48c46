"""The next sweep, from Python as from the shell: a proposal that can be run, a design without shapes, cells to add."""

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import plain, write_file, write_json
from gptjax.lab.fitted import FittedLaw
from gptjax.lab.forecasts import LawSource, source_of
from gptjax.lab.forms import form_of
from gptjax.lab.laws import Table, read
from gptjax.lab.places import load, writable
from gptjax.laws.forecaster import Forecaster, published_forecaster
from gptjax.laws.frames import Frame
from gptjax.laws.planning.design import Design, describe_design, propose
from gptjax.laws.planning.extension import Extension, describe_extension, next_cells
from gptjax.laws.record import Analysis
from gptjax.sweep.as_python import experiment
from gptjax.sweep.own_text import plan_own_text
from gptjax.sweep.plan import SweepConfig
from gptjax.sweep.proposal import Proposal
from gptjax.sweep.propose import plan_sweep

LAW = "besiroglu-2024"


@dataclass(frozen=True)
class Planned:
    """What `gptjax.plan` gives: a proposal that can be run, a design, or cells to add to runs already done."""

    found: Proposal | Design | Extension
    doubt: str = ""  # why the law that places the cells is a doubtful one

    @property
    def sweep(self) -> SweepConfig:
        """The proposed sweep, as `gptjax.sweep` takes it; BadInput for a plan without shapes."""
        return self._proposal.sweep

    def table(self) -> Frame:
        """Give a row for each cell: its parameters, tokens and FLOPs, and how often it is trained."""
        if isinstance(self.found, Proposal):
            cells = self.found.priced.cells
            return Frame(
                [{"run": c.name, "params": c.params, "tokens": c.tokens, "flops": c.flops, "seconds": c.seconds}
                 for c in cells]
            )  # fmt: skip
        return Frame([{k: v for k, v in plain(vars(cell)).items() if not isinstance(v, dict | list)}
                      for cell in self.found.cells])  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Give the object that `save` writes."""
        return self.found.to_json() if isinstance(self.found, Proposal) else plain(self.found)

    def save(self, path: str | Path) -> None:
        """Write the plan, as `gptjax plan --json` does."""
        writable(Path(path))
        write_json(Path(path), self.to_json())

    def write(self, path: str | Path) -> None:
        """Write the proposed sweep as an experiment, a Python file that `gptjax sweep` runs; it must not exist."""
        place = Path(path)
        check_new(place)
        write_file(place, experiment(self._proposal, place))

    @property
    def _proposal(self) -> Proposal:
        if not isinstance(self.found, Proposal):
            raise BadInput(
                "this plan has no shapes and is no sweep to run; give a sweep's file, or a corpus and minutes"
            )
        return self.found

    def __str__(self) -> str:
        if isinstance(self.found, Proposal):
            return self.found.describe()
        return describe_design(self.found) if isinstance(self.found, Design) else describe_extension(self.found)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<div><pre>{escape(str(self))}</pre>{self.table()._repr_html_()}</div>"


def check_new(path: Path) -> None:
    """Refuse an experiment's file that is there, or is no Python file."""
    writable(path)
    if path.exists():
        raise BadInput(f"{path} exists and would be lost; write another file")
    if path.suffix != ".py":
        raise BadInput(f"{path} must end in .py: an experiment is a Python file")


def plan(
    file: SweepConfig | str | Path | float | None = None,
    *,
    flops: float | None = None,
    minutes: float | None = None,
    corpus: str | Path | None = None,
    tokenizer: str = "",
    vocab: int | None = None,
    context: int | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    flops_per_second: float | None = None,
    law: FittedLaw | Analysis | str | Path | None = None,
    form: str = "",
    goal: Any = "a",
    target: float | None = None,
    noise: float | None = None,
    table: Table | None = None,
    runs: int | None = None,
    cooldown: float | None = None,
) -> Planned:
    """Plan what to train for an allowance of `flops` or `minutes`.

    With `file`, a sweep or the Python file of one (FILE[:NAME]): a sweep of its shapes, by its rules, that can be run.
    With `corpus`, what `gptjax data` reads: a sweep for that text within so many minutes; `tokenizer`, `vocab`,
    `context` and `flops_per_second` (of one worker; None: measured) settle what it would choose. `seeds` trains every
    cell so often. With neither: a design without shapes worth so many FLOPs, or with a `table` of runs already done the
    cells to add to it; a number in the place of `file` is these FLOPs. `law` (what `predict` takes) places the cells,
    `goal` is what to know best: a, or the loss or params at `target` FLOPs; `noise` is the sd of one run's log loss.
    Raises BadInput where the allowance buys no sweep, with what the least one takes.
    """
    if isinstance(file, int | float | np.number) and not isinstance(file, bool):
        flops, file = float(file), None
    numbers = {"flops": flops, "minutes": minutes, "target": target, "noise": noise}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.number)):
            raise BadInput(f"{name} {value!r} is not a number; give one")
    if form:
        form_of(form)
    source = source_of(law) if law else None
    forecaster = source.forecaster(force=True, held={}) if source else None
    doubt = (
        f"{forecaster.name} is {forecaster.forced}; the plan is as good as that law"
        if forecaster and forecaster.forced
        else ""
    )
    check_allowed(file, corpus, minutes, flops)
    if file is None and corpus is None:
        forecaster = forecaster or published_forecaster(LAW)
        sd = (forecaster.noise or 0.01) if noise is None else noise
        assert flops is not None
        return Planned(_design(forecaster, source, flops, sd, goal, target, table, runs, cooldown), doubt)
    placed: dict[str, Any] = {"goal": goal, "target_flops": target, "noise": noise or 0.01}
    if forecaster:
        sd = (forecaster.noise or 0.01) if noise is None else noise
        placed |= {"law": forecaster.law, "law_name": forecaster.name, "noise": sd}
    if file is not None:
        of = "" if isinstance(file, SweepConfig) else str(file)
        base = file if isinstance(file, SweepConfig) else load(of, SweepConfig, "sweep")
        proposal = plan_sweep(base, of=of, flops=flops, minutes=minutes, seeds=seeds, workers=workers, **placed)
        return Planned(proposal, doubt)
    assert minutes is not None
    proposal = plan_own_text(
        str(corpus), minutes, flops=flops or math.inf, tokenizer=tokenizer, vocab=vocab, context=context,
        workers=workers, flops_per_second=flops_per_second, seeds=seeds, **placed,
    )  # fmt: skip
    return Planned(proposal, doubt)


def check_allowed(file: Any, corpus: Any, minutes: float | None, flops: float | None) -> None:
    """Refuse an allowance that is missing, or that contradicts what is to be planned."""
    if file is not None and corpus is not None:
        raise BadInput(f"{file} has a corpus of its own and --corpus {corpus} is another; give one of them")
    if corpus is not None and minutes is None:
        raise BadInput(f"--corpus {corpus} needs --minutes M, the time that its sweep may take")
    if file is None and corpus is None and flops is None:
        raise BadInput("give what to spend: --flops X, or --minutes M with a sweep's FILE or --corpus DIR")


def _design(
    forecaster: Forecaster,
    source: LawSource | None,
    flops: float,
    noise: float,
    goal: Any,
    target: float | None,
    table: Table | None,
    runs: int | None,
    cooldown: float | None,
) -> Design | Extension:
    if table is None:
        count = 36 if runs is None else runs
        settings: dict[str, Any] = {"target_flops": target, "cooldown": cooldown, "runs": count}
        return propose(forecaster.law, flops, noise=noise, goal=goal, **settings)
    done = read(table)
    if source and source.law:
        done = done.counted(source.law.settings.convention)
    done = done.tuned()
    return next_cells(forecaster.law, done.params, done.tokens, flops, noise=noise, goal=goal, target_flops=target)
