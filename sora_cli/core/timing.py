"""Start and end of the process, and the imports in between that take seconds."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from sora_cli.core.console import say
from sora_cli.core.interruption import Interrupted

_state: dict[str, float] = {}


def process_start() -> float:
    """Return when this process was started, on the clock of `time.perf_counter`.

    From the system where it tells (Linux, to 10 ms). Elsewhere the processor time spent so far
    stands for the time: a little less, as it leaves out waiting for the disk.
    """
    now = time.perf_counter()
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])  # starttime, since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = time.process_time()
    return now - max(age, 0.0)


def start_with_process() -> None:
    """Let the command to come have begun when its process was started: it is the only one in it."""
    _state["start"] = process_start()


def command_start() -> float:
    """Return when the command began, on the clock of `time.perf_counter`.

    That is now, unless the process was started for it (`start_with_process`).
    """
    return _state.get("start", time.perf_counter())


@contextmanager
def importing() -> Iterator[None]:
    """Say that torch and transformers are being imported, and make the imports of the block faster.

    Raises:
        SoraError: a package is older than the lower bound of its version.
    """
    from sora_cli.core.versions import check_versions

    check_versions()
    say("loading torch and transformers ...")
    with uncollected():
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector wait while the block imports large packages.

    Torch and transformers make a million objects and none of them is garbage, so that looking for
    some takes a seventh of the time (benchmarks/startup.py). Where the block was the first to
    import torch, they are not looked at later, either: a whole collection would take 0.7 s.
    """
    first = "torch" not in sys.modules
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:  # later there may be a model that is garbage by now
            gc.freeze()
        if enabled:
            gc.enable()


def leave_with(command: Callable[[], int]) -> NoReturn:
    """Call a command and end the process with its exit code, at once.

    Python would first free, one by one, the million objects that torch and transformers consist of,
    which takes over a second. Threads are waited for and everything registered with `atexit` is
    done as always: the last step, registered first, is only to go.
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
    except Interrupted as end:  # a second signal, while the first one was told
        code = end.exit_code
    sys.exit(code)
