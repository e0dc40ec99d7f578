"""SIGINT and SIGTERM: a clean end, at once or after the current training step.

Handlers write to the descriptor itself: Python's streams cannot be entered a second time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from sora_cli.core.processes import is_main

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SWALLOWING = ("datasets/fingerprint.py", "dill/_dill.py")
"""Files of other people whose `except:` would take `Interrupted` for a failure and go on."""
_raised: list[int] = []
"""Signals that have raised `Interrupted`, in a process that `raise_on_signals` was called in."""
_last_steps: list[Callable[[], None]] = []
"""Done before a signal ends the process at once."""


class Interrupted(BaseException):
    """A signal that asks for the end.

    Like KeyboardInterrupt it is no `Exception`, to get past handlers of errors; it is no
    KeyboardInterrupt, since Typer would make an unnamed abort of that.

    Attributes:
        signal: which one.
        words: what a person should know: what is kept, and the command that resumes the run.
    """

    def __init__(self, number: int, *words: str) -> None:
        self.signal = signal.Signals(number)
        self.words = words
        super().__init__(f"interrupted by {self.signal.name}")

    def with_words(self, *words: str) -> Interrupted:
        """Return the same interruption with something to say."""
        return Interrupted(self.signal, *words)

    @property
    def exit_code(self) -> int:
        """The exit code as shells count it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process at once, but for what `tidied` was told."""
    for number in _SIGNALS:
        signal.signal(number, _end)


def raise_on_signals() -> None:
    """Let SIGINT and SIGTERM raise `Interrupted`, so that files are tidied up as after an error.

    While a module is being imported they end the process at once: libraries written in C++ abort
    if an exception arises there. Where `Interrupted` would be swallowed it is raised later.
    """
    sys.unraisablehook = _raise_later
    for number in _SIGNALS:
        signal.signal(number, _raise)


def swallowed() -> Interrupted | None:
    """Return the interruption that a signal has raised, if any.

    An error that comes after it is its consequence: C code and class bodies turn `Interrupted`
    into errors of their own.
    """
    return Interrupted(_raised[-1]) if _raised else None


@contextmanager
def tidied(last_step: Callable[[], None]) -> Iterator[None]:
    """Call a function at the block's end, also where a signal ends the process at once."""
    _last_steps.append(last_step)
    try:
        yield
    finally:
        _last_steps.remove(last_step)
        last_step()


@contextmanager
def held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block ends.

    A process started in the block has them wait, too, until `leave_signals_to_parent`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(_: int = 0) -> None:
    """Ignore SIGINT in a worker process, and the first SIGTERM.

    Both may be sent to the whole process group. The parent ends its workers when it has finished
    its step; it does so with SIGTERM if it must.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _ignore_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (as below)
    signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (Python passes it)
    interrupted = Interrupted(number)
    _tell(str(interrupted))
    while _last_steps:
        _last_steps.pop()()
    os._exit(interrupted.exit_code)


def _raise(number: int, frame: FrameType | None) -> None:
    files = list(_files(frame))
    if any(file.startswith("<frozen importlib") for file in files):
        _end(number, frame)
    if any(file.endswith(_SWALLOWING) for file in files):
        _send_again(number)
        return
    _raised.append(number)
    raise Interrupted(number)


def _files(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def _raise_later(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose `Interrupted` arose where Python can only print it."""
    if isinstance(unraisable.exc_value, Interrupted):
        _send_again(unraisable.exc_value.signal)
    else:
        sys.__unraisablehook__(unraisable)


def _send_again(number: int) -> None:
    threading.Timer(0.01, os.kill, [os.getpid(), number]).start()


def _tell(message: str) -> None:
    if is_main():
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())


_A_STEP = "finishing this step, then a checkpoint; a second signal stops at once"


class Deferral:
    """A signal that is kept until somebody asks for it; a second signal raises `Interrupted`.

    Attributes:
        received: the signal, if one came.
    """

    def __init__(self, told: str) -> None:
        self.received: int | None = None
        self._told = told

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; raise at the second."""
        if self.received is not None:
            raise Interrupted(number)
        self.received = number
        name = signal.Signals(number).name
        _tell(f"\n{name}: {self._told}")


@contextmanager
def deferred(told: str = _A_STEP) -> Iterator[Deferral]:
    """Note signals while the block runs, for whoever looks at the `Deferral`.

    In a thread that is not the main one, where Python handles no signals, nothing changes.

    Args:
        told: what a person is told at the first signal.
    """
    deferral = Deferral(told)
    if threading.current_thread() is not threading.main_thread():
        yield deferral
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in before:
        signal.signal(number, deferral.handle)
    try:
        yield deferral
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
