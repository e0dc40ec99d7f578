"""Work in processes of their own: forks of this thread, whose ends are told whatever they are."""

from __future__ import annotations

import gc
import multiprocessing
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any


class Failure:
    """The end of a process that gave no result."""

    def __init__(self, text: str) -> None:
        self.text = text


def in_forks(
    names: Iterable[str], work: Callable[[str], Any], jobs: int, limit: float
) -> Iterator[tuple[str, Any]]:
    """Yield each name with what `work` gives for it in a process of its own, in their order.

    This thread forks them all. Forks of another one crashed, within `os.fork`, in a process that
    had had process groups (gloo's).

    Args:
        jobs: processes at once.
        limit: seconds that a process may take.
    """
    names = list(names)
    waiting = deque(names)
    running: dict[Connection, _Running] = {}
    found: dict[str, Any] = {}
    for name in names:
        while name not in found:
            while waiting and len(running) < jobs:
                begun = _forked(work, waiting.popleft())
                running[begun.receiver] = begun
            ends = min(each.began + limit for each in running.values())
            wait(running, max(ends - time.monotonic(), 0))
            for each in [*running.values()]:
                if each.receiver.poll() or each.began + limit <= time.monotonic():
                    found[each.name] = each.result(limit)
                    del running[each.receiver]
        yield name, found.pop(name)


@dataclass(frozen=True)
class _Running:
    """A process that works on a name, since a time of `time.monotonic`."""

    name: str
    process: BaseProcess
    receiver: Connection
    began: float

    def result(self, limit: float) -> Any:
        try:
            got = self.receiver.poll()
            return self.receiver.recv() if got else Failure(f"took over {limit} s")
        except EOFError:
            self.process.join()
            return Failure(f"the process ended with {self.process.exitcode}")
        finally:
            self.process.kill()
            self.process.join()
            self.receiver.close()


def _forked(work: Callable[[str], Any], name: str) -> _Running:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        # garbage of the parent may own threads that are not here, such as a process group's
        gc.freeze()
        try:
            sender.send(work(name))
        except BaseException:
            sender.send(Failure(traceback.format_exc()))

    process = context.Process(target=child)
    process.start()
    sender.close()
    return _Running(name, process, receiver, time.monotonic())
