"""Freed memory that a job takes again for the next picture."""

from __future__ import annotations

import ctypes
import sys

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
LARGEST = 2**25  # bytes of a block that is kept, the most that glibc takes; larger ones go back to the system
KEPT = 2**28  # bytes of freed blocks together


def keep_freed() -> None:
    """Has this process keep the memory of arrays that are freed, where its C library is glibc; elsewhere nothing
    changes. By default every array goes back to the system, which clears the next one's memory again, page by page:
    half of the time of a job of model-free maps."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM, KEPT)
        mallopt(_MMAP, LARGEST)
