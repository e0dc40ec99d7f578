"""A sweep on a Ray cluster: each run is a task with its own resources, on any machine.

All machines need this package, the recipe's files and the sweep's directory at the same paths (a
shared file system), because a lost run is resumed from its checkpoint on another machine.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from sora_cli.core.atomic import remove_file, write_text_atomic
from sora_cli.core.environment import PACKAGE
from sora_cli.core.errors import SoraError, first_line
from sora_cli.experiments.sweep.engine import LOST, Engine, Job, end_processes, start_process
from sora_cli.experiments.sweep.ray_internals import keep_off_the_terminal

_STOP = ".stop"
"""Suffix of the stop file beside a log: if the file exists, the run must end."""
_NODE = ".node"
"""Suffix of the file beside a log that holds the id of the node on which the run is."""
_LOOK = 0.5
"""Seconds between two checks for the stop file."""


@final
class RayEngine(Engine):
    """Tasks on a Ray cluster; Ray queues tasks until the cluster has room.

    Args:
        address: of the cluster, such as "auto"; None starts a cluster on this machine.
        slots: largest number of tasks at the same time; None means one per CPU of the cluster.
    """

    def __init__(self, address: str | None, *, slots: int | None) -> None:
        self._ray = _ray()
        try:
            with _same_handlers():
                self._ray.init(
                    address=address or "local",  # Ray's own default joins a cluster that it finds
                    log_to_driver=False,
                    logging_level="ERROR",
                    include_dashboard=False if address is None else None,
                )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise SoraError(
                f"no Ray cluster at '{address}': {first_line(error)}", hint="ray start --head"
            ) from error
        resources = self._ray.cluster_resources()
        self._cpus, self._has_gpus = resources.get("CPU", 1), resources.get("GPU", 0) > 0
        self._slots = slots or max(int(self._cpus), 1)
        self._tasks: dict[str, Any] = {}
        self._logs: dict[str, Path] = {}
        self._places: dict[str, str] = {}

    @property
    def running(self) -> list[str]:
        """The names of the running tasks."""
        return list(self._tasks)

    def has_room(self) -> bool:
        """Return True if another task may be submitted to the cluster."""
        return len(self._tasks) < self._slots

    def start(self, job: Job) -> None:
        """Submit a task; an error if it needs more CPUs than the cluster has."""
        if job.cpus > self._cpus:
            raise SoraError(
                f"run {job.name} asks for {job.cpus} CPUs; the whole cluster has {self._cpus:g}",
                hint="resources.cpus=N or --threads N",
            )
        # max_retries=0: the loop of the sweep counts restarts, Ray must not start a run by itself
        gpus = float(self._has_gpus) if job.gpus is None else job.gpus
        remove_file(_stop_file(job.log))
        remove_file(_node_file(job.log))
        task = self._ray.remote(_carry_out).options(
            num_cpus=job.cpus, num_gpus=gpus, max_retries=0, name=job.name
        )
        self._logs[job.name] = job.log
        self._tasks[job.name] = task.remote(job, str(Path.cwd()), _paths())

    def poll(self) -> list[tuple[str, int]]:
        """Return the tasks that ended since the last call, with exit codes."""
        if not self._tasks:
            return []
        names = {task: name for name, task in self._tasks.items()}
        done, _ = self._ray.wait(list(names), num_returns=len(names), timeout=0)
        ended = [(names[task], self._exit_code(task)) for task in done]
        for name, code in ended:
            if code == LOST:
                self._places[name] = self._node(_node_file(self._logs[name]))
            del self._tasks[name]
            remove_file(_stop_file(self._logs[name]))
            remove_file(_node_file(self._logs[name]))
        return ended

    def place(self, name: str) -> str | None:
        """Return the node on which an ended task was lost; None: it was not lost."""
        return self._places.pop(name, None)

    def _node(self, file: Path) -> str:
        """Return the name, address and id of the node in a task's file."""
        own = file.read_text(encoding="utf-8") if file.is_file() else ""
        for node in self._ray.nodes():
            if node["NodeID"] == own:
                host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
                return f"node {own[:8]} ({host}, {address})"
        return "a node that is not known"

    def stop(self, name: str) -> None:
        """Ask a task to stop its process."""
        if name in self._tasks:
            file = _stop_file(self._logs[name])
            file.parent.mkdir(parents=True, exist_ok=True)  # the task may not have made it yet
            file.touch()

    def close(self) -> None:
        """Stop all tasks, and leave the cluster."""
        for name in self._tasks:
            self.stop(name)
        if self._tasks:
            self._ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=150)
            for name in self._tasks:
                remove_file(_stop_file(self._logs[name]))
                remove_file(_node_file(self._logs[name]))
        self._tasks.clear()
        self._ray.shutdown()

    def _exit_code(self, task: Any) -> int:
        """Return the exit code of a run's process; `LOST` if Ray lost the task or its machine."""
        errors = self._ray.exceptions
        try:
            code: int = self._ray.get(task)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.RayTaskError,
                errors.OutOfMemoryError, errors.ObjectLostError):  # fmt: skip
            return LOST
        return code


def _carry_out(job: Job, directory: str, paths: list[str]) -> int:
    """Run the job's process on a machine of the cluster, until it ends or a stop file appears."""
    import subprocess

    import ray

    os.chdir(directory)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(_node_file(job.log), ray.get_runtime_context().get_node_id())
    known = os.environ.get("PYTHONPATH")
    variables = {**os.environ, **job.environment()}
    variables["PYTHONPATH"] = os.pathsep.join([*paths, *([known] if known else [])])
    process = start_process(job, variables)
    stopped = False
    try:
        while True:
            try:
                return process.wait(timeout=_LOOK)
            except subprocess.TimeoutExpired:
                if not stopped and _stop_file(job.log).exists():
                    stopped = True
                    process.terminate()
    finally:
        end_processes({job.name: process} if process.poll() is None else {})


@contextmanager
def _same_handlers() -> Iterator[None]:
    """Restore the sweep's signal handlers: `ray.init` replaces them, and would end it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _paths() -> list[str]:
    """Return the parent of this package for PYTHONPATH; needed if it is not installed."""
    return [str(PACKAGE.parent)]


def _stop_file(log: Path) -> Path:
    return log.with_name(log.name + _STOP)


def _node_file(log: Path) -> Path:
    return log.with_name(log.name + _NODE)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SoraError(
            "--engine ray needs Ray, which is not installed", hint="pip install 'sora-cli[ray]'"
        ) from error
    keep_off_the_terminal()
    return ray
