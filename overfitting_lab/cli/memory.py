"""Keep the memory that every training step frees and allocates again."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory for the next step instead of returning it to the operating system.

    Every step frees and allocates activations and gradients. By default, malloc maps and unmaps each of them, and the
    system clears every page again; docs/speed.md has the cost. With another C library, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
