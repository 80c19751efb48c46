"""Several processes of one job: how they find each other, agree, and stop together instead of waiting for the dead.

Plain jax waits for ever on a peer that raised, and aborts in a page of log when one is killed. Here every process tells
the coordination service that it lives, and hears from it that another has stopped: one line, an exit code, no hang.
"""

import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import glob
from typing import Any, TypeVar

import jax

from gptjax.errors import BadInput, exit_code_of
from gptjax.jobs.service import KeyValue, chosen

T = TypeVar("T")

PREEMPTED = 75  # exit code (EX_TEMPFAIL): what was finished is saved; run the same command again
BEAT_SECONDS = 2.0
SILENT_SECONDS = float(os.environ.get("GPTJAX_SILENT_SECONDS", 30))  # not heard of for so long, a process is dead
STOPPED = "gptjax/stopped"
GONE = "it is gone, and with it the job's coordinator"

_service = chosen()
_calls = itertools.count()
_noticed = threading.Event()
_ended = threading.Event()  # nothing is left for the watch to say


def join_job(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Meet the other processes of this job, where flags or the environment say that there are any.

    In this order: the arguments; GPTJAX_COORDINATOR (host:port), GPTJAX_PROCESSES and GPTJAX_PROCESS; srun; mpirun of
    Open MPI; GPTJAX_COORDINATOR=auto, which leaves all to jax, as TPU pods need. Must come before jax is used.
    """
    env = os.environ
    given = (
        coordinator or env.get("GPTJAX_COORDINATOR", ""),
        processes or _number(env, "GPTJAX_PROCESSES", 0),
        process if process >= 0 else _number(env, "GPTJAX_PROCESS", -1),
    )
    settings = job_settings(given, env)
    if settings is None or several():
        return
    if settings.get("process_id") == 0 and "coordinator_address" in settings:
        _check_port(settings["coordinator_address"])
    try:
        jax.distributed.initialize(**settings, heartbeat_timeout_seconds=10 * int(SILENT_SECONDS))
    except (RuntimeError, ValueError) as error:
        where = settings.get("coordinator_address") or "the coordinator that jax detected"
        reason = str(error).partition("\n")[0]
        raise BadInput(f"no job could be joined at {where} ({reason}); check address, port and count") from None
    if several():
        _service.joined()
    if several() and isinstance(_service, KeyValue):
        _service.on_abort(_coordinator_is_gone)
        threading.Thread(target=_watch, args=(_service,), name="watch", daemon=True).start()


def _check_port(address: str) -> None:
    """Refuse a port that another process listens on: jax (0.10, 0.11) crashes there."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", int(address.rpartition(":")[2])), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise BadInput(
            f"coordinator {address}: port cannot be opened here ({error.strerror}); give a free one"
        ) from None


def job_settings(given: tuple[str, int, int], env: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the arguments of jax.distributed.initialize, or None for a process on its own."""
    coordinator, processes, process = given
    if coordinator == "auto":
        return {}
    if coordinator or processes or process >= 0:
        port = re.fullmatch(r".+:([0-9]{1,5})", coordinator)
        if not port or not 0 < int(port[1]) < 2**16 or not 0 <= process < processes:
            raise BadInput(
                f"coordinator {coordinator!r}, processes {processes} and process {process} are given together: "
                "a host:port, how many, and which of them (from 0) this one is"
            )
        return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    for count, rank, local_count, local_rank in (
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ):
        if _number(env, count, 1) > 1:
            here = int(env.get(local_count, "1").partition("(")[0].partition(",")[0])
            mine = {} if "SLURM_GPUS_PER_TASK" in env else _share_of_gpus(env, here, _number(env, local_rank, 0))
            return {"num_processes": _number(env, count, 1), "process_id": _number(env, rank, 0), **mine}
    return None


def _share_of_gpus(env: Mapping[str, str], processes: int, rank: int) -> dict[str, list[int]]:
    """Give a process its part of the node's GPUs, all if it is alone there; left to itself jax takes one."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    gpus = len(glob("/dev/nvidia[0-9]*")) if visible is None else len([x for x in visible.split(",") if x])
    if not gpus:
        return {}
    each = gpus // processes if gpus >= processes else gpus
    first = rank * each if gpus >= processes else 0
    return {"local_device_ids": list(range(first, first + each))}


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(env.get(name, default))
    except ValueError:
        raise BadInput(f"{name}={env[name]!r} in the environment is not a whole number; set it or unset it") from None


def several() -> bool:
    """Say whether this process has peers."""
    return _service.count > 1


def is_first() -> bool:
    """Say whether this is the process that writes."""
    return not several() or _service.rank == 0


def agree(decide: Callable[[], T]) -> T:
    """Return to every process what `decide` gave on the first, which alone calls it; several: as JSON brings it."""
    return _service.agree(decide) if several() else decide()


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, by process, to each of them; nobody goes on before all have come."""
    return _service.gather(value) if several() else [value]


def check_same(value: Any, what: str) -> None:
    """Refuse to go on where the processes of a job were given different things."""
    for i, other in enumerate(values := gather(value)):
        if other != values[0]:
            raise BadInput(f"{what} of process {i} is not that of process 0; give all processes the same")


class Met:
    """A jitted function that every process compiles before any runs it: a collective waits half a minute for peers."""

    def __init__(self, jitted: Any) -> None:
        self.jitted = jitted
        self.met: set[str] = set()  # the shapes that all have compiled it for

    def lower(self, *args: Any) -> Any:
        return self.jitted.lower(*args)

    def __call__(self, *args: Any) -> Any:
        shapes = str(jax.tree.map(jax.typeof, args))
        if shapes not in self.met:
            self.lower(*args).compile()
            gather(None)
            self.met.add(shapes)
        return self.jitted(*args)


def meet_when_compiled(jitted: Any) -> Any:
    """Return a jitted function for one process of a job, or as it is for a process on its own."""
    return Met(jitted) if several() else jitted


def preempted(received: list[int]) -> bool:
    """Say whether to save and stop, from the same call of this on every process; all must ask equally often."""
    if not several():
        return bool(received)
    if _service.preempted(next(_calls)):
        _noticed.set()
    return _noticed.is_set()


@contextmanager
def together() -> Iterator[None]:
    """Run the work of one process of several so that its failure stops the others, and theirs stops it."""
    try:
        counts = gather(jax.local_device_count())  # the first touch of the devices needs every process
        if len(counts) > 1 and is_first():
            print(f"gptjax: {len(counts)} processes with {counts} devices", file=sys.stderr)
        yield
    except BaseException as error:
        if (
            several()
            and _service.watched
            and not (isinstance(error, SystemExit) and error.code in (None, 0, PREEMPTED))
        ):
            if _may_be_a_peers(error):
                time.sleep(3 * SILENT_SECONDS + 30)  # the watch ends this process once it knows which one is gone
            stop(*_verdict(error))
        _part()
        raise
    _part()


def _part() -> None:
    """Leave when all are done: the watch ends first, for the service goes with the first process."""
    if several():
        gather(None)
        _ended.set()
        if isinstance(_service, KeyValue):
            next(thread for thread in threading.enumerate() if thread.name == "watch").join()
            _service.leaving()
        jax.distributed.shutdown()


def _verdict(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line for an error; a bug's traceback is printed here."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, f"it exited with {error.code}"
    if end := exit_code_of(error):
        return end[0], end[1] or "it was interrupted"
    traceback.print_exc()
    return 1, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _may_be_a_peers(error: BaseException) -> bool:
    """Say whether an error of the runtime may be the death of a peer, felt in a collective."""
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION")
    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own)


def stop(code: int, reason: str) -> None:
    """End this process of several with a line, and by it the others, without waiting for anybody."""
    _ended.set()
    _announce(_service.rank, code, reason)
    _exit(code, reason)


def _announce(process: int, code: int, reason: str) -> None:
    if isinstance(_service, KeyValue):
        with suppress(jax.errors.JaxRuntimeError):  # another was first, or the service is gone
            _service.put(STOPPED, json.dumps({"process": process, "code": code, "reason": reason}))


def _exit(code: int, line: str) -> None:
    print(f"gptjax: {line}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if is_first():
        time.sleep(2 * BEAT_SECONDS)  # the service dies with this process: let the others hear first
    os._exit(code)


def _watch(service: KeyValue) -> None:
    """Beat; on the first process, look for those that do not; on all, leave when one has stopped.

    Silence is counted in looks and not by a clock, which goes on when the whole job is suspended.
    """
    heard: dict[str, tuple[str, int]] = {}
    failures = 0
    for beat in itertools.count():
        stopped = None
        try:
            service.put(f"gptjax/alive/{service.rank}", str(beat), again=True)
            if is_first():
                for key, value in service.all_under("gptjax/alive/"):
                    if heard.get(key, ("", 0))[0] != value:
                        heard[key] = (value, beat)
                    elif (beat - heard[key][1]) * BEAT_SECONDS > SILENT_SECONDS:
                        _leave(int(key.rpartition("/")[2]), PREEMPTED, f"not heard of for {SILENT_SECONDS:.0f} s")
            stopped = json.loads(service.wait(STOPPED, BEAT_SECONDS))
        except jax.errors.JaxRuntimeError as error:
            failures = failures + 1 if "DEADLINE_EXCEEDED" not in str(error) else 0
            if failures == 3:
                stopped = {"process": 0, "code": PREEMPTED, "reason": GONE}
            elif failures:
                time.sleep(BEAT_SECONDS)
        if _ended.is_set():
            return
        if stopped:
            _leave(**stopped)


def _leave(process: int, code: int, reason: str) -> None:
    """End this process because another has stopped."""
    if is_first():
        _announce(process, code, reason)
    hint = "; run the same command again" if code == PREEMPTED else ""
    _exit(code, f"process {process} stopped: {reason}{hint}")


def _coordinator_is_gone(host: str, port: int) -> None:
    """End with our line and exit code where jax aborts this process because the coordinator is gone."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        _leave(0, PREEMPTED, GONE)
