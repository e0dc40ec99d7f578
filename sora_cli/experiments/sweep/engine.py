"""The contract of engines, which carry a sweep's runs out, and the engine of local processes.

Every run is a process of its own, started with the command that a person would type.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

_GRACE = 120.0
"""Seconds a run has for its step and its checkpoint when it is told to stop."""
_HEAD = "\n$ sora "
"""Before each process's arguments and output in a log."""
LOST = -signal.SIGKILL
"""Exit code of a run whose machine was lost."""


@dataclass(frozen=True)
class Job:
    """One process to start.

    Attributes:
        name: the run's.
        arguments: of the program, after `sora`.
        log: where its output goes, added to what is there.
        cpus: threads it may use.
        gpus: of its own; 0: it sees none. None: whatever the machine shows.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    cpus: int
    gpus: float | None = None

    def environment(self) -> dict[str, str]:
        """Return variables for its process that replace those of this one."""
        threads = str(self.cpus)
        chosen = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TQDM_MININTERVAL": "2"}
        return chosen | {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def code_options(code: Sequence[Path]) -> list[str]:
    """Return the options that hand plug-in files to a run."""
    return [word for path in code for word in ("--code", str(path))]


class Engine(ABC):
    """Starts jobs and reports which have ended."""

    @property
    @abstractmethod
    def running(self) -> list[str]:
        """The names of the running jobs."""

    @abstractmethod
    def has_room(self) -> bool:
        """Return whether another job may be started now."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start a job."""

    @abstractmethod
    def poll(self) -> list[tuple[str, int]]:
        """Return jobs that ended since the last call, with exit codes; a signal's is below 0."""

    @abstractmethod
    def stop(self, name: str) -> None:
        """Ask a job to end: it writes a checkpoint first, and `poll` reports it later."""

    @abstractmethod
    def close(self) -> None:
        """Ask all jobs to end, and wait for them."""


@final
class LocalEngine(Engine):
    """Processes on this machine.

    Args:
        slots: jobs at work at the same time.
        gpus: numbers of the GPUs that are dealt out, one per job; without any, jobs see none.
    """

    def __init__(self, slots: int, gpus: tuple[str, ...] = ()) -> None:
        self.slots = slots
        self._gpus = list(gpus)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._held: dict[str, str] = {}

    @property
    def running(self) -> list[str]:
        """The names of the running jobs."""
        return list(self._processes)

    def has_room(self) -> bool:
        """Return whether fewer jobs than allowed are running."""
        return len(self._processes) < self.slots

    def start(self, job: Job) -> None:
        """Start the job's process."""
        variables = {**os.environ, **job.environment()}
        if self._gpus and job.gpus != 0:
            self._held[job.name] = self._gpus.pop(0)
            variables["CUDA_VISIBLE_DEVICES"] = self._held[job.name]
        self._processes[job.name] = start_process(job, variables)

    def poll(self) -> list[tuple[str, int]]:
        """Return the processes that ended since the last call, with exit codes."""
        ended = [
            (name, code) for name, p in self._processes.items() if (code := p.poll()) is not None
        ]
        for name, _ in ended:
            del self._processes[name]
            if name in self._held:
                self._gpus.append(self._held.pop(name))
        return ended

    def stop(self, name: str) -> None:
        """Send SIGTERM to the job's process."""
        if name in self._processes:
            self._processes[name].send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End all processes."""
        end_processes(self._processes)
        self._processes.clear()


def start_process(job: Job, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the job's process in a group of its own: Ctrl-C reaches the sweep alone."""
    command = [sys.executable, "-m", "sora_cli", *job.arguments]
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        _head(log, job.arguments)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(variables),
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def end_processes(processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and kill those that take too long."""
    for process in processes.values():
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + _GRACE
    for process in processes.values():
        try:
            process.wait(timeout=max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_output(log: Path, limit: int) -> str:
    """Return the end of what a job's last process has said; "" if nothing yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - limit, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(_HEAD)[2]


def _head(log: IO[bytes], arguments: tuple[str, ...]) -> None:
    log.write(f"{_HEAD}{shlex.join(arguments)}\n".encode())
    log.flush()


def _end_with_parent() -> None:
    """Have a killed sweep take its runs with it: they would keep their directories locked."""
    import ctypes

    set_signal_of_parents_death = 1
    ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGTERM)
