"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that are free, within a container's limit; None where that can not be told."""
    known = [n for n in (_available(), _left_in_container()) if n is not None]
    return min(known) if known else None


def _available() -> int | None:
    """Linux's estimate of what programs can take without swapping; elsewhere the free pages."""
    amount = _field(Path("/proc/meminfo"), "MemAvailable:")
    if amount is not None:
        return amount * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _left_in_container() -> int | None:
    """Limit minus use of the control group (version 2); cached files count as free."""
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return None
    cached = _field(_CGROUP / "memory.stat", "inactive_file") or 0
    return max(limit - used + cached, 0)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None


def _field(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    words = (line.split() for line in lines)
    return next((int(w[1]) for w in words if len(w) > 1 and w[0] == name), None)
