"""How the process deals with the memory that every training step frees and takes again."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Has glibc's malloc keep what is freed, for the next step, instead of giving it back to the operating system.

    Activations and gradients are freed and taken anew in every step. By default each of them is mapped and unmapped,
    and the system clears every page of it again; docs/speed.md has what that costs. Where the C library is another one,
    nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
