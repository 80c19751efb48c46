"""Keep the memory that a step frees for the next one, on a CPU.

glibc gives large blocks back to the system as soon as they are freed, so every step pays for the same pages again, one
fault for each 4 kB: a tenth of a step's time and more (docs/performance.md).
"""

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
MADV_HUGEPAGE = 14  # sys/mman.h
HUGE = 2 * 2**20  # bytes of a huge page


@cache
def keep_freed_memory() -> bool:
    """Let malloc serve this process from one heap of huge pages that only grows; return whether it does (glibc alone).

    Memory stays with the process after its peak, until it ends.
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
