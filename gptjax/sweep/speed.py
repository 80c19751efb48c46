"""How fast this machine trains: a few seconds of measured steps, in as many processes as a sweep will have workers."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median

import jax
import numpy as np

from gptjax.config import RunConfig, from_json, to_json
from gptjax.data.objectives import Reading
from gptjax.errors import BadInput
from gptjax.jobs.process import settle
from gptjax.mesh import make_mesh
from gptjax.run.begin import programs_of
from gptjax.sharding import Layout
from gptjax.sweep.plan import Speed

SECONDS = 1.0  # of training calls that are timed, for each model and each process
FEWEST_CALLS = 3
LONGEST = 120.0  # seconds that a process may take
RUNS_A_SIZE = 3.0  # that share what is compiled for one size, as a trunk and its branches do
RUN_SECONDS = 0.5  # of opening and saving a run, besides
LEAST_SHARE = 0.1  # of a small model's step may go to arithmetic, at the least: what cannot be told apart


@dataclass(frozen=True)
class Timed:
    """What one model took: seconds of a step, of an evaluation, and to compile; the latter two where asked for."""

    step: float
    evaluate: float = 0.0
    compile: float = 0.0


def measure_speed(configs: Sequence[RunConfig], workers: int) -> tuple[Speed, Speed]:
    """Measure a small and a large model, by a worker among so many and by one process alone, a few seconds each.

    Batches, context and what is evaluated are those of the two runs; models are given random tokens. Gives the speed of
    each of the workers and that of one alone. BadInput where the machine trains no such run.
    """
    flops = [config.model.cost(config.model.context).flops["6n_total"] * config.tokens_per_step for config in configs]
    if workers == 1:  # in this process: an accelerator has one
        speed = speed_of(
            flops, [time_model(config, whole) for config, whole in zip(configs, (False, True), strict=True)]
        )
        return speed, speed
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    together = _in_processes(configs, (False, True), [cores[i::workers] for i in range(workers)])
    of_worker = speed_of(flops, [_slowest([each[i] for each in together]) for i in (0, 1)])
    ((one,),) = _in_processes(configs[1:], (False,), [cores])
    gain = max(each[1].step for each in together) / one.step  # of the large model, which a held-out run is
    return of_worker, Speed(
        gain * of_worker.flops_per_second, of_worker.seconds_per_step / gain, of_worker.seconds_per_run
    )


def _slowest(found: Sequence[Timed]) -> Timed:
    return Timed(*(max(getattr(each, name) for each in found) for name in ("step", "evaluate", "compile")))


def speed_of(flops: Sequence[float], timed: Sequence[Timed]) -> Speed:
    """Part the seconds of a step into those that grow with FLOPs and those that every step takes."""
    (c0, c1), (t0, t1) = flops, (each.step for each in timed)
    per_flop = max((t1 - t0) / (c1 - c0), LEAST_SHARE * t0 / c0)
    a_run = RUN_SECONDS + max(each.evaluate for each in timed) + max(each.compile for each in timed) / RUNS_A_SIZE
    return Speed(1 / per_flop, max(0.0, t0 - per_flop * c0), a_run)


def _in_processes(
    configs: Sequence[RunConfig], whole: Sequence[bool], shares: Sequence[list[int]]
) -> list[list[Timed]]:
    """Time the models in one process for each share of the cores, all at once."""
    spawn = multiprocessing.get_context("spawn")
    told = [*zip(map(to_json, configs), whole, strict=True)]
    ends: list[Connection] = []
    processes = []
    for cores in shares:
        here, there = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_time_models, args=(told, cores, there), daemon=True)
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    try:
        found = []
        for here in ends:
            if not here.poll(LONGEST):
                raise BadInput(f"measuring this machine's speed took over {LONGEST:.0f} s; give --flops-per-second")
            try:
                found.append(here.recv())
            except EOFError:
                raise BadInput("this machine's speed could not be measured; give --flops-per-second") from None
        return found
    finally:
        for process in processes:
            process.kill()


def _time_models(told: Sequence[tuple[dict, bool]], cores: list[int], there: Connection) -> None:
    """Be one process of several: time each model and send what was found."""
    if cores:
        os.sched_setaffinity(0, cores)
    settle()
    there.send([time_model(from_json(RunConfig, config), whole) for config, whole in told])


def time_model(config: RunConfig, whole: bool) -> Timed:
    """Time a run's calls of the device on random tokens; the whole also compiles all its programs, and evaluates."""
    layout = Layout(make_mesh(config.mesh), config.rules)
    programs, model = programs_of(config, layout), config.model
    rng = np.random.default_rng(0)
    reading = Reading(config.data.objective, 0, model.vocab_size, config.data.separate_documents)

    def batches(steps: int, sequences: int) -> object:
        windows = rng.integers(1, model.vocab_size, (steps, sequences, model.context + 1), np.int32)
        flat = reading(windows, np.zeros((steps, sequences, 2), np.uint32), 0)
        return jax.device_put(flat, programs.batches)

    began = time.perf_counter()
    if whole:
        state = programs.init(jax.random.key(0))
    else:  # a call takes as long from zeros
        state = jax.tree.map(lambda s: jax.device_put(np.zeros(s.shape, s.dtype), s.sharding), programs.abstract)
    batch, rates = batches(config.steps_per_call, config.batch), np.zeros(config.steps_per_call, np.float32)
    state, _ = jax.block_until_ready(programs.train(state, batch, rates))
    compiled = evaluated = 0.0
    if whole:
        e = config.evaluate
        held = batches(e.sequences // e.batch, e.batch)
        jax.block_until_ready(programs.evaluate(state.params, held))
        compiled = time.perf_counter() - began
        began = time.perf_counter()
        jax.block_until_ready(programs.evaluate(state.params, held))
        evaluated = time.perf_counter() - began
    calls: list[float] = []
    while len(calls) < FEWEST_CALLS or sum(calls) < SECONDS:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(programs.train(state, batch, rates))
        calls.append(time.perf_counter() - began)
    return Timed(median(calls) / config.steps_per_call, evaluated, compiled)
