"""Versions and machine facts for reports, and memory figures (used and free)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sora_cli import __version__
from sora_cli.core.device import device_module, is_accelerated

PACKAGE = Path(__file__).resolve().parent.parent
"""Folder of this package; its parent is a checkout or the directory of installed packages."""
_PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "safetensors")


def environment() -> dict[str, Any]:
    """Return the versions, the machine facts and the git commit for a report."""
    import torch

    gpu = device_module().get_device_name() if is_accelerated() else None
    return {
        "sora": __version__,
        "python": platform.python_version(),
        **{name: installed(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "git_commit": _git_commit(),
    }


@cache
def installed(package: str) -> str | None:
    """Return a package's installed version; None: it is not installed.

    Each is read once: for a version Python parses the package's whole description.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes; with a GPU, the peak of GPU memory."""
    if is_accelerated():
        # torch 2.8 has no such figure in `torch.accelerator`
        # until: torch 2.9 (pytorch/pytorch#152932)
        return int(device_module().max_memory_allocated())
    peak = process_memory("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    # ru_maxrss is in bytes on macOS, in kilobytes on Linux and the BSDs
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def process_memory(field: str) -> int | None:
    """Return one memory figure of this process in bytes, such as "VmHWM"; None if not on Linux."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{field}:")), None)


@cache
def _git_commit() -> str | None:
    """Return the git commit of this checkout; None outside a checkout."""
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
    """Return the free memory in bytes, within a container's limit; None if unknown."""
    known = [n for n in (_available(), _left_in_container()) if n is not None]
    return min(known) if known else None


def _available() -> int | None:
    """Return the memory available without swapping, in bytes: Linux's estimate, else free pages."""
    amount = _field(Path("/proc/meminfo"), "MemAvailable:")
    if amount is not None:
        return amount * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _left_in_container() -> int | None:
    """Return limit minus usage of the control group (version 2); file caches count as free."""
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return None
    cached = _field(_CGROUP / "memory.stat", "inactive_file") or 0
    return max(limit - used + cached, 0)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max", which means no limit
        return None


def _field(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    words = (line.split() for line in lines)
    return next((int(w[1]) for w in words if len(w) > 1 and w[0] == name), None)
