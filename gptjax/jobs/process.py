"""What a process of gptjax's own sets for all of itself: memory, compiled programs, other libraries' messages.

Commands and workers of sweeps call this; a library call sets none of it, so that a notebook stays as it is. With
GPTJAX_SETTLE=0 in the environment, commands set nothing either.
"""

import atexit
import ctypes
import logging
import os
import sys
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
MADV_HUGEPAGE = 14  # sys/mman.h
HUGE = 2 * 2**20  # bytes of a huge page
_settled: list[bool] = []


def is_plain() -> bool:
    """Say whether the environment asks that nothing be set."""
    return os.environ.get("GPTJAX_SETTLE", "1") == "0"


def use_compilation_cache(seconds: float = 0.5) -> None:
    """Keep programs that took so long to compile between processes; workers inherit it, and jax reads it on import."""
    if not is_plain():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(".cache/gptjax/xla").absolute()))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(seconds))


def settle() -> None:
    """Silence what other libraries say of errors that gptjax tells in a line; on a CPU keep freed memory."""
    if is_plain():
        return
    import jax

    _settled.append(True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # a failed save is a line of ours, not pages of Orbax's
    sys.unraisablehook = _silent_about_closed_loops
    if jax.default_backend() == "cpu":
        keep_freed_memory()


def silence_the_end() -> None:
    """Let a settled process say nothing once Python ends: TensorStore goes on there about a save that failed."""
    if _settled:
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


def _silent_about_closed_loops(ignored: "sys.UnraisableHookArgs") -> None:
    """Report an error that nobody can catch, but not TensorStore's, of each array of a save that was given up."""
    if "Event loop is closed" not in str(ignored.exc_value):
        sys.__unraisablehook__(ignored)


@cache
def keep_freed_memory() -> bool:
    """Let malloc serve this process from one heap of huge pages that only grows; return whether it does (glibc alone).

    glibc gives large blocks back to the system as soon as they are freed, so every step pays for the same pages again,
    one fault for each 4 kB: a tenth of a step's time and more (docs/performance.md). Here memory stays with the process
    after its peak, until it ends. The heap takes half of the machine's memory in addresses, which is none of it until
    it is touched.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return False
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
        libc.mallopt(option, value)
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # of addresses: untouched, it is no memory
    heap = libc.malloc(size)
    if heap:
        first = -(-heap // HUGE) * HUGE
        libc.madvise(first, heap + size - first, MADV_HUGEPAGE)
        libc.free(heap)
    return True


def return_freed_memory() -> None:
    """Give the system what is free, as after a tokenizer's training: glibc keeps 40 MB of it in its threads' arenas."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
