"""The choice of a sweep's engine, and the division of the machine among its runs."""

from __future__ import annotations

import os
import shutil
import subprocess

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.experiments.sweep.engine import Engine, LocalEngine

ENGINES = ("local", "ray")
_MOST_ON_CPU = 4
"""Default limit of runs side by side on a CPU: each needs its own memory."""


def choose_engine(
    name: str, *, runs: int, jobs: int | None, threads: int | None, address: str | None
) -> tuple[Engine, int]:
    """Return the engine, and the default number of threads per run.

    On this machine, one run at a time gets each GPU. Without GPUs there are as many runs at a time
    as processors, at most 4. The processors are divided among the runs.
    """
    if name not in ENGINES:
        raise SoraError(f"no engine '{name}'", hint=did_you_mean(name, ENGINES))
    if name == "ray":
        from sora_cli.experiments.sweep.ray_engine import RayEngine

        return RayEngine(address, slots=jobs), threads or 1
    if address is not None:
        raise SoraError("--address goes with --engine ray")
    slots, each = divide(runs, jobs, threads)
    return LocalEngine(slots, visible_gpus()), each


def divide(runs: int, jobs: int | None, threads: int | None) -> tuple[int, int]:
    """Return the number of runs side by side on this machine, and the threads of each."""
    cpus = available_cpus()
    slots = jobs or len(visible_gpus()) or min(cpus // (threads or 1), _MOST_ON_CPU)
    slots = max(min(slots, runs), 1)
    return slots, threads or max(cpus // slots, 1)


def available_cpus() -> int:
    """Return the number of processors that this process may use."""
    # a container or job scheduler may allow fewer processors than the machine has
    if os.name == "posix" and os.uname().sysname == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that runs may use: from CUDA_VISIBLE_DEVICES, otherwise from nvidia-smi."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(part.strip() for part in chosen.split(",") if part.strip() not in ("", "-1"))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(done.stdout.split())
