"""The machine and the versions that a result depends on, and memory, both used and free."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sora_cli import __version__

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of the program; its parent is a checkout, or where packages are installed."""
_PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "safetensors")


def environment() -> dict[str, Any]:
    """Return the versions, the machine and the commit that a result depends on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "sora": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "git_commit": _git_commit(),
    }


def peak_memory() -> int | None:
    """Return the most memory this process has used so far, in bytes; with a GPU, the GPU's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = process_memory("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def process_memory(field: str) -> int | None:
    """Return a memory figure of this process in bytes, by Linux's name; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{field}:")), None)


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """Return the commit of the checkout that this package lies in; None outside of one."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Return the free bytes, within a container's limit; None where that is not known."""
    known = [n for n in (_available(), _left_in_container()) if n is not None]
    return min(known) if known else None


def _available() -> int | None:
    """Return Linux's estimate of what fits without swapping; elsewhere the free pages."""
    amount = _field(Path("/proc/meminfo"), "MemAvailable:")
    if amount is not None:
        return amount * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _left_in_container() -> int | None:
    """Return limit minus use of the control group (version 2); cached files count as free."""
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
