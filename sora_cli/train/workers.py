"""Processes that prepare batches: signals that ask a run to end are left to the run itself."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

from sora_cli.core.interruption import held


def worker_context(workers: int) -> BaseContext | None:
    """Return how a DataLoader starts that many workers; None: as it does by itself.

    A worker that is forked runs for a moment before `leave_signals_to_parent` is called in it. A
    signal to the whole process group would end it there, and with it the run.
    """
    if not workers or multiprocessing.get_start_method() != "fork":
        return None
    return _HeldContext()


class _HeldProcess(multiprocessing.context.ForkProcess):
    def start(self) -> None:
        with held():
            super().start()


class _HeldContext(multiprocessing.context.ForkContext):
    Process = _HeldProcess
