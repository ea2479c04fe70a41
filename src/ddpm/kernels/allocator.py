"""Keep freed memory in the process from one network layer to the next."""

import ctypes
import os
import sys

CHOSEN = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD"}
"""Environment variables with which a user configures the allocator."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
MOST = 2**31 - 1


def keep_memory() -> None:
    """Let glibc keep large freed blocks in this process.

    By default, glibc returns them to the system and the next layer faults every page in again, which makes small
    networks on a CPU about 1.3 times slower. Environment variables (`CHOSEN`) take precedence. Does nothing with other
    C libraries.
    """
    if not sys.platform.startswith("linux") or CHOSEN & {*os.environ}:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(option, MOST)
