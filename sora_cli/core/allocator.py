"""The C library's memory allocator."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt's options, from malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory; return False where the C library is another one.

    By default glibc returns large blocks to the system as soon as they are freed, and the next
    allocation pays for zeroed pages again. On a CPU that costs a step of MiniLM a sixth of its time
    (`benchmarks/step.py --system-allocator`), with any kind of layer. It costs `sora prune` of a
    7B-class adapter a fifth, since its threads return more memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # blocks up to 1 GiB come from the heap, and its free end is given back only from 2 GiB on
    return all([mallopt(_MMAP_THRESHOLD, 1 << 30), mallopt(_TRIM_THRESHOLD, _LARGEST)])
