"""A proposed sweep as an experiment: the text of a Python file that `gptjax sweep` runs as it is."""

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax.errors import BadInput
from gptjax.sweep.own_text import WARMUP_STEPS, WIDTH_OF_LAYER, OwnText
from gptjax.sweep.plan import Repeat, Speed
from gptjax.sweep.plan import short as flops_of
from gptjax.sweep.proposal import Proposal

WIDTH = 120  # of a line


def experiment(proposal: Proposal, path: Path) -> str:
    """Return the text of a file at `path`, whose function `sweep` gives the proposed sweep.

    It stands alone where the sweep was derived for a corpus, and else takes the base sweep from its file, by a path
    from its own folder. BadInput for sizes that cannot be written down, and for a base sweep that is of no file.
    """
    if proposal.own:
        return experiment_of(proposal, proposal.own, path)
    if not proposal.of:
        raise BadInput(f"{path} needs the file of the base sweep, and this one was made by no file; write it by hand")
    return experiment_on(proposal, proposal.of, path)


def experiment_on(proposal: Proposal, base: str, path: Path) -> str:
    """Write a file that takes the sweep of `base`, FILE[:NAME], and changes what is proposed."""
    file, _, name = base.partition(":")
    beside = os.path.relpath(Path(file).resolve(), path.resolve().parent)
    target = f'f"{{BASE}}:{name}"' if name else "BASE"
    repeat = "Repeat, " if proposal.sweep.repeats else ""
    return "\n".join([
        header(proposal, path, f"The sweep of {Path(file).name} as `gptjax plan` proposes it"),
        "from dataclasses import replace",
        "from pathlib import Path",
        "",
        "from gptjax.lab.places import load",
        f"from gptjax.sweep.plan import {repeat}SweepConfig",
        "",
        f'BASE = str(Path(__file__).parent / "{Path(beside).as_posix()}")',
        "",
        "",
        "def sweep() -> SweepConfig:",
        f'    base = load({target}, SweepConfig, "sweep")',
        "    return replace(",
        "        base,",
        *(["        horizons=(),"] if not proposal.sweep.horizons else []),
        *fields_proposed(proposal),
        "    )",
        "",
    ])  # fmt: skip


def experiment_of(proposal: Proposal, own: OwnText, path: Path) -> str:
    """Write a file that stands alone: a sweep of one's own text."""
    small = own.small
    rules = "small_batch_tokens, small_lr" if small else "porian_batch_tokens, porian_lr"
    repeat = "Repeat, " if proposal.sweep.repeats else ""
    execution = "Execution(scan=False)" if own.cpu else "Execution(vocab_multiple=128)"
    dtype = [] if own.cpu else ['        dtype="bfloat16",']
    cache = "" if own.cache == OwnText.cache else f", cache={literal(own.cache)}"
    data = f"DataConfig(sources=(Source({literal(own.corpus)}),), tokenizer={literal(own.tokenizer)}{cache})"
    optim = 'OptimConfig(schedule="wsd", cooldown=0.2, weight_decay=0.1)'
    windows = f"EvalConfig(sequences={own.windows}, batch={own.run().evaluate.batch})"
    save = f"SaveConfig(every={'10**9' if small else 5000})"
    return "\n".join([
        header(proposal, path, f"A sweep of {own.corpus}, as `gptjax plan` derives it from minutes and tokens"),
        "from gptjax.config import EvalConfig, RunConfig, SaveConfig",
        "from gptjax.data.loader import DataConfig, Source",
        "from gptjax.execution import Execution",
        "from gptjax.models.gpt import GPTConfig",
        f"from gptjax.sweep.plan import {repeat}Speed, SweepConfig",
        f"from gptjax.sweep.rules import {rules}",
        "from gptjax.train.optim import OptimConfig",
        "",
        "",
        "def shape(width: int) -> GPTConfig:",
        f'    """Take a layer and a head for every {WIDTH_OF_LAYER} of width, and two of each at least."""',
        f"    deep = max(2, width // {WIDTH_OF_LAYER})",
        "    return GPTConfig(",
        f"        vocab_size={own.vocab_size},",
        f"        context={own.context},",
        "        d_model=width,",
        "        n_layers=deep,",
        "        n_heads=deep,",
        '        norm="rmsnorm",',
        "        bias=False,",
        '        positions="rope",',
        "        init_std=0.0,",
        *dtype,
        "    )",
        "",
        "",
        "def warmup_tokens(n: float, d: float) -> float:",
        f'    """Warm up for {WARMUP_STEPS} steps."""',
        f"    return {WARMUP_STEPS} * {rules.partition(',')[0]}(n, d)",
        "",
        "",
        "def sweep() -> SweepConfig:",
        "    return SweepConfig(",
        "        base=RunConfig(",
        *wrapped("            data=", data),
        f"            optim={optim},",
        f"            execution={execution},",
        f"            steps_per_call={own.calls},",
        "            log_every=20,",
        f"            evaluate={windows},",
        f"            save={save},",
        "            trackers=(),",
        "        ),",
        "        shape=shape,",
        f"        lr={rules.partition(', ')[2]},",
        f"        batch_tokens={rules.partition(',')[0]},",
        "        warmup_tokens=warmup_tokens,",
        f"        min_steps={proposal.sweep.min_steps},",
        *fields_proposed(proposal),
        f"        speed={speed(own.speed)},",
        "    )",
        "",
    ])  # fmt: skip


def header(proposal: Proposal, path: Path, title: str) -> str:
    """Open the file by what it is, its command, and how it was derived."""
    p = proposal.priced
    held = f" and a held-out run of {flops_of(proposal.sweep.holdout)} FLOPs" if p.held_out else ""
    first = f"{title}: {len(p.cells)} cells{held}, {p.seconds / 60:.1f} minutes predicted."
    lines = [
        *textwrap.wrap(first, WIDTH - 3),
        "",
        f"    gptjax sweep {path.name}",
        "",
        "How it was derived:",
        *(part for line in proposal.derivation for part in textwrap.wrap(f"- {line}", WIDTH, subsequent_indent="  ")),
    ]
    text = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}\n"""\n'


def fields_proposed(proposal: Proposal) -> list[str]:
    """Write the fields that a proposal sets."""
    s = proposal.sweep
    fields = [
        ("budgets", s.budgets), ("sizes", s.sizes), ("tokens_per_param", s.tokens_per_param), ("seeds", s.seeds),
        *([("repeats", s.repeats)] if s.repeats else []), ("holdout", s.holdout), ("holdout_sizes", s.holdout_sizes),
        ("workers", s.workers),
    ]  # fmt: skip
    lines = []
    for name, value in fields:
        line = f"        {name}={literal(value)},"
        if len(line) <= WIDTH or not isinstance(value, tuple):
            lines.append(line)
        else:
            lines += [f"        {name}=(", *(f"            {literal(one)}," for one in value), "        ),"]
    return lines


def wrapped(before: str, call: str) -> list[str]:
    """Write a call with arguments on one line, or, where that is too long, each on its own."""
    if len(before) + len(call) < WIDTH:
        return [f"{before}{call},"]
    name, _, rest = call.partition("(")
    inner = " " * (len(before) - len(before.lstrip()) + 4)
    sources, _, others = rest[:-1].partition("), ")
    arguments = [f"{sources})", *others.split(", ")] if others else [sources]
    return [f"{before}{name}(", *(f"{inner}{one}," for one in arguments), f"{inner[4:]}),"]


def literal(value: Any) -> str:
    """Write a value as ruff would format it; BadInput for one that has no short text."""
    if isinstance(value, Repeat):
        times = f", {value.times}" if value.times != 1 else ""
        return f"Repeat({literal(value.size)}, {literal(value.budget)}{times})"
    if isinstance(value, tuple):
        return _in_brackets([literal(one) for one in value])
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, str):
        return repr(value) if '"' in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return number(value)
    raise BadInput(f"size {value!r} has no short text to be written in a file; name sizes by numbers or texts")


def _in_brackets(parts: Sequence[str]) -> str:
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def number(value: float) -> str:
    """Write a number shortly and exactly."""
    short = min((f"{value:.{digits}g}" for digits in range(1, 18)), key=lambda text: (float(text) != value, len(text)))
    mantissa, _, exponent = short.partition("e")
    if exponent:
        return f"{mantissa}e{int(exponent)}"
    return short if "." in short else f"{short}.0"


def speed(value: Speed) -> str:
    return f"Speed({', '.join(number(one) for one in vars(value).values())})"
