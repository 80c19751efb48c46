"""SIGTERM and Ctrl-C: whoever is told to stop saves first, and then leaves."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gptjax.jobs.hosts import several


@contextmanager
def catch_sigterm() -> Iterator[list[int]]:
    """Collect SIGTERM in a list, for a loop to look at between steps; a collector outside this one is told as well.

    Who was told to stop is about to end: signals that come after the first do not disturb it, and its exit code stands.
    They are taken by a handler, since programs that it starts would inherit that they are ignored.
    """
    received: list[int] = []
    if several():  # jax's own handler tells all of them; see hosts.preempted
        yield received
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, _told_already if received and not callable(before) else before)


def _told_already(number: int, frame: Any) -> None:
    """Do nothing at a signal to stop that comes again."""


@contextmanager
def interrupted_gently() -> Iterator[None]:
    """Take a first Ctrl-C as SIGTERM, on which runs in progress are saved, and raise KeyboardInterrupt after that.

    A second Ctrl-C raises it at once. Where several processes are one job, jax's own handlers stay. In the background
    job of a shell, which ignores Ctrl-C, it stays ignored.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if several() or ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        if len(pressed) > 1 or not callable(signal.getsignal(signal.SIGTERM)):  # nobody would save anything
            raise KeyboardInterrupt
        os.write(2, b"\ngptjax: stopping once the runs in progress are saved; Ctrl-C again stops at once\n")
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except SystemExit:
        if not pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
