"""The contract of engines, which execute the runs of a sweep, and the engine of local processes.

Each run is a separate process, started with the same command that a user would type.
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
"""Seconds for a run to finish its step and write a checkpoint after a request to stop."""
_HEAD = "\n$ sora "
"""Marks the start of each process in a log; its arguments follow."""
LOST = -signal.SIGKILL
"""Exit code of a run on a machine that was lost, as if it had been killed: it is started again."""


@dataclass(frozen=True)
class Job:
    """The process of a run, to be started by an engine.

    Attributes:
        name: of the run.
        arguments: of the command, after `sora`.
        log: file that the output is appended to.
        cpus: number of threads.
        gpus: number of GPUs to reserve for this process; None means one, if there are any; with 0
            it sees none.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    cpus: int
    gpus: float | None = None

    def environment(self) -> dict[str, str]:
        """Return environment variables to set in the process."""
        # runs side by side would each start a thread per processor; a bar drawn every 2 s keeps
        # logs small
        threads = str(self.cpus)
        chosen = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TQDM_MININTERVAL": "2"}
        chosen |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        return chosen | ({"CUDA_VISIBLE_DEVICES": ""} if self.gpus == 0 else {})


def code_options(code: Sequence[Path]) -> list[str]:
    """Return the command-line options that pass plug-in files to a run."""
    return [word for path in code for word in ("--code", str(path))]


class Engine(ABC):
    """Starts jobs and reports their exit codes."""

    @property
    @abstractmethod
    def running(self) -> list[str]:
        """The names of the running jobs."""

    @abstractmethod
    def has_room(self) -> bool:
        """Return True if another job may be started now."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start a job."""

    @abstractmethod
    def poll(self) -> list[tuple[str, int]]:
        """Return the jobs that ended since the last call, with exit codes; negative: a signal."""

    @abstractmethod
    def place(self, name: str) -> str | None:
        """Return the machine on which an ended job was lost; None: it was not, or on this one."""

    @abstractmethod
    def stop(self, name: str) -> None:
        """Ask a job to end: it writes a checkpoint first, and `poll` reports its end later."""

    @abstractmethod
    def close(self) -> None:
        """Ask all jobs to end, and wait until all have ended."""


@final
class LocalEngine(Engine):
    """Processes on this machine.

    Args:
        slots: largest number of jobs at the same time.
        gpus: numbers of the GPUs to assign, one per job, however many or few a job asks for.
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
        """Return True if fewer jobs than allowed are running."""
        return len(self._processes) < self.slots

    def start(self, job: Job) -> None:
        """Start the job's process, with a GPU of its own if there are GPUs."""
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

    def place(self, name: str) -> str | None:
        """Return None: no other machine can be lost."""
        return None

    def stop(self, name: str) -> None:
        """Send SIGTERM to the job's process."""
        if name in self._processes:
            self._processes[name].send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End all processes."""
        end_processes(self._processes)
        self._processes.clear()


def start_process(job: Job, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the job's process in a new session, so that Ctrl-C reaches only the sweep."""
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
    """Ask processes to end, and kill them after a time limit."""
    for process in processes.values():
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + _GRACE  # one limit for all: they end side by side
    for process in processes.values():
        try:
            process.wait(timeout=max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_output(log: Path, limit: int) -> str:
    """Return the last characters of the output of a job's newest process; "" without output."""
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
    """Let the kernel send SIGTERM to a run when its sweep dies.

    A run that outlived a killed sweep would keep its directory locked.
    """
    import ctypes

    set_signal_of_parents_death = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>; Python has no binding
    ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGTERM)
