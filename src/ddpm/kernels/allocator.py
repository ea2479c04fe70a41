"""The memory that a process keeps from one layer of a network to the next."""

import ctypes
import os
import sys

CHOSEN = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD"}
"""Variables of the environment by which a user decides about the allocator."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST = 2**31 - 1


def keep_memory() -> None:
    """Let glibc keep large blocks that were freed, for this process.

    By default it returns them to the system, and the next layer faults every page in again, which makes small networks
    on a CPU about 1.3 times slower. What the environment says (`CHOSEN`) comes first; other C libraries have no choice.
    """
    if not sys.platform.startswith("linux") or CHOSEN & {*os.environ}:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(option, MOST)
