"""Start and end of the process, and fast imports of slow packages."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn

from sora_cli.core.console import say
from sora_cli.core.interruption import Interrupted

_state: dict[str, float] = {}


def process_start() -> float:
    """Return the start time of this process on the clock of `time.perf_counter`, in seconds.

    Linux tells it to 10 ms. Elsewhere the processor time used so far stands for the age of the
    process; it is a little too short, because waiting for the disk does not count.
    """
    now = time.perf_counter()
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])  # field 22 of proc(5)'s stat, starttime: clock ticks since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = time.process_time()
    return now - max(age, 0.0)


def start_with_process() -> None:
    """Count the process's start as the start of its command: the process runs only one."""
    _state["start"] = process_start()


def command_start() -> float:
    """Return the start time of the command on the clock of `time.perf_counter`, in seconds.

    That is the current time unless `start_with_process` was called.
    """
    return _state.get("start", time.perf_counter())


@contextmanager
def importing() -> Iterator[None]:
    """Check package versions, announce the import of torch, and import faster in the block."""
    from sora_cli.core.versions import check_versions

    check_versions()
    _announce()
    with uncollected():
        yield


@cache
def _announce() -> None:
    """Announce the import of torch, the first time only: then it is loaded."""
    say("loading torch and transformers ...")


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch the garbage collector off while the block imports large packages.

    Torch and transformers create a million objects, and none of them is garbage: collections would
    take a seventh of the import time (benchmarks/startup.py). If the block was the first to import
    torch, these objects are also excluded from later collections, each of which would take 0.7 s.
    """
    first = "torch" not in sys.modules
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:  # a later freeze could keep a discarded model alive for ever
            gc.freeze()
        if enabled:
            gc.enable()


def leave_with(command: Callable[[], int]) -> NoReturn:
    """Call a command, then end the process at once with its exit code.

    Python would first free the million objects of torch and transformers one by one, which takes
    over a second. Threads and `atexit` functions still finish: `atexit` runs the function that was
    registered first, which ends the process, last.
    """
    code = 1

    def end_process() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(end_process)
    try:
        code = command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Interrupted as end:  # a second signal during the message on the first
        code = end.exit_code
    sys.exit(code)
