"""Train several runs in one process: those of one shape share a compiled call where that is measured to be faster.

Small models leave a device idle; `vmap` over their states fills it. Else the runs take turns. What each gets is what it
would get alone, up to the rounding of sums taken in another order.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.batch import Batch
from gptjax.config import RunConfig
from gptjax.errors import BadInput
from gptjax.jobs.leases import Lost
from gptjax.mesh import make_mesh
from gptjax.run.begin import programs_of
from gptjax.run.loop import Run
from gptjax.sharding import Layout
from gptjax.train.programs import Programs
from gptjax.train.state import TrainState
from gptjax.train.step import Metrics

Answer = tuple[TrainState, Metrics]
TIMED = 3  # calls of a program that are timed: the first compiles, the faster of the others counts
WORTH = 4  # try a packed program only where what is left to do takes longer than this many compilations


@dataclass(frozen=True)
class Asked:
    """A call that a run asks for: to take S steps on stacked batches, after which so many are left of it."""

    programs: Programs
    state: TrainState
    batch: Batch
    rates_S: np.ndarray
    left: int

    @property
    def shape(self) -> Hashable:
        """What calls of one compiled program have in common."""
        return self.programs, self.batch.inputs.shape


def train_together(runs: Sequence[Run], ended: Callable[[int], None]) -> None:
    """Take opened runs to their ends, in turns or packed; `ended` is told of each when it has its result.

    A run that is told to stop (SystemExit) leaves the others to go on until they end or stop too; then the first exit
    is raised. One that another process took over is left to it. Any other error is raised at once.
    """
    exits: list[SystemExit] = []
    packs: dict[Hashable, Pack] = {}
    left = dict(enumerate(runs))

    def settle(i: int) -> None:
        if runs[i].result is not None:
            del left[i]
            ended(i)

    for i in range(len(runs)):
        settle(i)
    while left:
        calls = {i: run.next_call() for i, run in left.items()}
        asked: dict[Hashable, dict[int, Asked]] = defaultdict(dict)
        for i, call in calls.items():
            run = runs[i]
            one = Asked(run.programs, run.state, call.batch, call.rates, run.config.steps - call.steps.stop)
            asked[one.shape][i] = one
        for shape, alike in asked.items():
            for i, (state, metrics) in packs.setdefault(shape, Pack()).answer(alike).items():
                try:
                    runs[i].took(calls[i], state, metrics)
                    settle(i)
                except SystemExit as error:
                    left.pop(i, None)
                    exits += [] if isinstance(error, Lost) else [error]
    if exits:
        raise exits[0]


class Pack:
    """Runs whose calls have one shape: answered one by one, or all at once."""

    def __init__(self) -> None:
        self.slots: dict[int, TrainState] = {}  # while packed: each run's newest state, also of those that have left

    def answer(self, calls: dict[int, Asked]) -> dict[int, Answer]:
        """Answer the call of each run, the way that has proved the faster."""
        some = next(iter(calls.values()))
        known = _known(some.shape)
        if self._is_worth_it(calls, known) and (answers := self._together(calls, some, known)):
            return answers
        self.slots = {}
        return {i: known.timed(1, partial(c.programs.train, c.state, c.batch, c.rates_S)) for i, c in calls.items()}

    def _is_worth_it(self, calls: dict[int, Asked], known: "Known") -> bool:
        """Compare a packed call with as many single ones; try it where what lies ahead repays its compilation."""
        if len(calls) < 2 or not set(calls) <= set(self.slots or calls) or len(known.seconds[1]) < 2:
            return False
        first, *others = known.seconds[1]
        one_by_one = min(others) * len(calls)
        together = known.seconds[len(self.slots or calls)]
        if len(together) < 2:
            ahead = one_by_one * min(call.left / len(call.rates_S) for call in calls.values())
            return bool(together) or ahead > WORTH * (first - min(others))
        return min(together[1:]) < one_by_one

    def _together(self, calls: dict[int, Asked], some: Asked, known: "Known") -> dict[int, Answer]:
        """Answer by one program over as many states as the pack began with; {} if the device cannot hold it.

        A run that has left keeps its place, at rate zero.
        """
        slots = self.slots or {i: call.state for i, call in calls.items()}
        idle = Asked(some.programs, some.state, some.batch, np.zeros_like(some.rates_S), 0)
        states = tuple(calls[i].state if i in calls else state for i, state in slots.items())
        batches, rates = zip(*((c.batch, c.rates_S) for c in (calls.get(i, idle) for i in slots)), strict=True)
        n = len(slots)
        if n not in known.packed:
            known.packed[n] = compile_pack(some.programs, states, batches, rates)
        program = known.packed[n]
        if program is None:
            return {}
        answers = known.timed(n, partial(program, states, batches, rates))
        self.slots = {i: state for i, (state, _) in zip(slots, answers, strict=True)}
        return {i: answer for i, answer in zip(slots, answers, strict=True) if i in calls}


@dataclass
class Known:
    """What is known of the calls of one shape, by the number of runs that share one."""

    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # of the first calls, in order
    packed: dict[int, Callable[..., tuple[Answer, ...]] | None] = field(default_factory=dict)  # None: too large

    def timed(self, n: int, call: Callable[[], Any]) -> Any:
        """Take a call; while too few of its kind have been timed, wait for it and note its seconds."""
        if len(self.seconds[n]) >= TIMED:
            return call()
        begun = time.perf_counter()
        result = jax.block_until_ready(call())
        self.seconds[n].append(time.perf_counter() - begun)
        return result


@lru_cache(maxsize=32)
def _known(shape: Hashable) -> Known:
    return Known()


def compile_pack(programs: Programs, *args: Any) -> Callable[..., tuple[Answer, ...]] | None:
    """Compile the training of several runs in one call: tuples of states, batches and rates give a tuple of answers.

    None if the devices have not the memory for it.
    """
    runs = len(args[0])

    def train(states: Any, batches: Any, rates: Any) -> tuple[Answer, ...]:
        stacked = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in (states, batches, rates))
        together = jax.vmap(programs.train_traced)(*stacked)
        return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(runs))

    jitted = jax.jit(train, donate_argnums=0, out_shardings=(programs.train_shardings,) * runs)
    program = jitted.lower(*args).compile()
    memory: Any = program.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    stats = [device.memory_stats() for device in jax.local_devices()]  # None of a CPU
    return None if any(s and needed > s["bytes_limit"] - s["bytes_in_use"] for s in stats) else program


def compile_ahead(config: RunConfig) -> None:
    """Compile what a run will call, so that it finds it compiled when it begins; a run that cannot be compiles nothing.

    Its validation may turn out to have fewer windows than asked for; then that program alone is compiled again.
    """
    try:
        programs = programs_of(config, Layout(make_mesh(config.mesh), config.rules))
        T, e = config.model.context, config.evaluate
        state, batch, rates = programs.example(config.steps_per_call, config.batch, T, config.data)
        _, windows, _ = programs.example(e.sequences // e.batch, e.batch, T, config.data)
        programs.train.lower(state, batch, rates).compile()
        programs.evaluate.lower(state.params, windows).compile()
        if config.first_step == 0:
            programs.init.lower(jax.random.key(config.seed)).compile()
    except BadInput:
        return
