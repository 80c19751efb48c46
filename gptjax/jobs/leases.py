"""Who works on what, on whichever machine: a lease is held by renewing it, and taken over from a holder that is gone.

A lease is a folder of numbered files, of which the highest counts: it says who holds the lease, and at which beat. One
takes it by creating the next number, which one process alone can do (storage.create): no file system needs locks, and
no clocks are compared. A holder is gone when its process is known to be, if it ran on this machine, or when its beat
has been watched to stand still for LEASE_SECONDS. One that was only stalled finds a higher number than its own, and
gives up. A lease that cannot be read, as a power cut may leave it, has a holder that nobody knows, and is watched too.
"""

import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from gptjax.jobs import hosts, storage

BEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0
LOOK_SECONDS = 0.5

LeaseState = dict[str, Any]
KINDS = {"held": bool, "machine": str, "pid": int, "began": str, "beat": int}
UNKNOWN: LeaseState = {"held": True, "machine": "", "pid": 0, "began": "", "beat": -1}
_watched: dict[Path, tuple[int, int, float]] = {}  # number and beat of a lease, and when they were first seen


class Lost(SystemExit):
    """Another process has taken over what this one held; everything done before is saved."""


@contextmanager
def hold(directory: Path, *, watch: bool = False) -> Iterator["Lease | None"]:
    """Hold a lease if nobody does; None if somebody may: to wait is to ask again.

    With `watch`, a holder on another machine is watched first, until it moves or has stood still for too long.
    """
    lease, first = _take(directory), _newest(directory)
    while watch and lease is None and first == _newest(directory) and first[1].get("machine") != machine():
        time.sleep(LOOK_SECONDS)
        lease = _take(directory)
    try:
        yield lease
    finally:
        if lease:
            lease.release()


def is_held(directory: Path) -> bool:
    """Say whether a lease is held, as far as one look tells."""
    number, state = _newest(directory)
    return number > 0 and state["held"] and not _has_ended(state)


def confirm(lease: "Lease | None", what: Path) -> None:
    """Raise Lost (exit code 75), on every process of a job, if the lease that the first one held is another's now."""
    if not hosts.agree(lambda: lease is not None and lease.held()):
        if hosts.is_first():
            print(f"gptjax: {what} was taken over by another process while this one stood still", file=sys.stderr)
        raise Lost(hosts.PREEMPTED)


def confirm_alone(lease: "Lease | None", what: Path) -> None:
    """Raise Lost, or stop the whole job, if the lease is another's now; for a thread, where processes cannot meet."""
    if lease and not lease.held():
        reason = f"{what} was taken over by another process while this one stood still"
        if hosts.several():
            hosts.stop(hosts.PREEMPTED, reason)
        print(f"gptjax: {reason}", file=sys.stderr)
        raise Lost(hosts.PREEMPTED)


class Lease:
    """A lease of this process, which renews it in the background."""

    def __init__(self, directory: Path, number: int) -> None:
        self.directory, self.number, self.beat = directory, number, 0
        self.me = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "began": _began(os.getpid())}
        self.lost, self.over, self.lock = False, threading.Event(), threading.Lock()

    def held(self) -> bool:
        """Renew the lease and say whether it is still this process's: to ask before writing where others may work."""
        return self._renew(held=True)

    def release(self) -> None:
        """Say that the lease is free; where that cannot be written, as on a full disk, others find its holder gone."""
        self.over.set()
        with suppress(OSError):
            self._renew(held=False)

    def _renew(self, held: bool) -> bool:
        with self.lock:
            if held and self.over.is_set():
                return False
            if not self.lost:
                self.beat += 1
                storage.write(_file(self.directory, self.number), self.state(held))
                self.lost = _numbers(self.directory)[-1] > self.number  # after the write, so that NFS looks anew
                if self.lost:
                    storage.remove(_file(self.directory, self.number))
            return not self.lost

    def state(self, held: bool) -> bytes:
        return json.dumps({"held": held, **self.me, "beat": self.beat}).encode()

    def keep(self) -> None:
        while not self.over.wait(BEAT_SECONDS):
            try:
                if not self.held():
                    return
            except OSError:
                pass  # the storage is away: whoever wants to write asks too, and is told


def _take(directory: Path) -> Lease | None:
    number, state = _newest(directory)
    if number and state["held"] and not _has_ended(state) and not _stands_still(directory, number, state["beat"]):
        return None
    lease = Lease(directory, number + 1)
    directory.mkdir(parents=True, exist_ok=True)
    if not storage.create(_file(directory, number + 1), lease.state(held=True)) or not lease.held():
        return None  # another was faster, or even by two numbers
    for old in _numbers(directory):
        if old < lease.number:
            storage.remove(_file(directory, old))
    threading.Thread(target=lease.keep, daemon=True).start()
    return lease


def _stands_still(directory: Path, number: int, beat: int) -> bool:
    before = _watched.get(directory)
    if before is None or before[:2] != (number, beat):
        _watched[directory] = (number, beat, time.monotonic())
        return False
    return time.monotonic() - before[2] > LEASE_SECONDS


def _newest(directory: Path) -> tuple[int, LeaseState]:
    """Return the highest number and its state; 0 and nothing where a lease was never held."""
    while numbers := _numbers(directory):
        if (data := storage.read(_file(directory, numbers[-1]))) is not None:  # else a higher one has come
            return numbers[-1], _state(data)
    return 0, {}


def _state(data: bytes) -> LeaseState:
    """Read what a lease says; where it says nothing, somebody unknown holds it."""
    with suppress(ValueError, RecursionError):
        state = json.loads(data)
        if isinstance(state, dict) and all(isinstance(state.get(key), kind) for key, kind in KINDS.items()):
            return state
    return UNKNOWN


def _numbers(directory: Path) -> list[int]:
    found = (
        int(name[:-5]) for name in storage.names(directory) if re.fullmatch(r"([0-9]{6}|[1-9][0-9]{6,})\.json", name)
    )
    return sorted(number for number in found if number)


def _file(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.json"


def _has_ended(state: LeaseState) -> bool:
    """Say whether the holder is known to be gone: it ran here, and its process is no more."""
    return state["machine"] == machine() and _began(state["pid"]) != state["began"]


@cache
def machine() -> str:
    """Name the kernel that now runs here and the part of it in which its process numbers count, as a container's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{uuid.getnode():x}"


def _began(pid: int) -> str:
    """Return what tells a process from another of its number, "" if there is none; a zombie is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        pass
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
