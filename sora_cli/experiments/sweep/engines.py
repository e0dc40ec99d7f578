"""The choice of the engine that carries a sweep out, and the division of its machine."""

from __future__ import annotations

import os
import shutil
import subprocess

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.experiments.sweep.engine import Engine, LocalEngine

ENGINES = ("local", "ray")
_MOST_ON_CPU = 4
"""Runs side by side on a CPU, unless more are asked for: each needs memory of its own."""


def choose_engine(
    name: str, *, runs: int, jobs: int | None, threads: int | None, address: str | None
) -> tuple[Engine, int]:
    """Return the engine, and the threads of a run whose recipe asks for no number.

    On this machine: one run per GPU, or without any as many as there are processors, 4 at most;
    the processors are divided among them.

    Raises:
        SoraError: there is no such engine, or it is not installed.
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
    """Return the runs side by side on this machine and the threads of each, if not given."""
    cpus = available_cpus()
    slots = jobs or len(visible_gpus()) or min(cpus // (threads or 1), _MOST_ON_CPU)
    slots = max(min(slots, runs), 1)
    return slots, threads or max(cpus // slots, 1)


def available_cpus() -> int:
    """Return the number of processors that this process may use."""
    if os.name == "posix" and os.uname().sysname == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that runs may use, from the environment or else the driver's tool."""
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
