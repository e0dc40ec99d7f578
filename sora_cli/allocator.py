"""Memory that a training step has freed stays with the process for the next step.

glibc gives large blocks back to the system as soon as they are freed, and the next step takes, page
by page, zeroed ones again. On a CPU that costs a step of MiniLM a sixth of its time
(`benchmarks/step.py --system-allocator`), with any layers.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's numbers, from malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc, for the whole process; False where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_THRESHOLD, 1 << 30), mallopt(_TRIM_THRESHOLD, _LARGEST)])
