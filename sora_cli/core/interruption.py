"""SIGINT and SIGTERM: a clean end, at once or after the current training step.

Handlers write to file descriptor 2 directly, because Python's streams are not reentrant.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any

from sora_cli.core.processes import is_main

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SWALLOWING = ("datasets/fingerprint.py", "dill/_dill.py")
"""Library files whose bare `except:` would swallow `Interrupted` and go on."""
_NO_IMPORT = "_handle_fromlist"
"""What `from package import name` also calls where the package was imported long ago."""
_raised: list[int] = []
"""Signals that have raised `Interrupted` in this process (see `raise_on_signals`)."""
_last_steps: list[Callable[[], None]] = []
"""Functions to call before a signal ends the process at once."""
_HARMLESS = signal.SIGURG
"""Ignored by default and sent by nobody else: Go's runtime interrupts its threads by it, too."""
_PAUSE = 0.02  # seconds between two interruptions of a call


class Interrupted(BaseException):
    """A signal that asks the process to end.

    Like KeyboardInterrupt it is not an `Exception`, so that handlers of errors do not catch it. It
    is not a KeyboardInterrupt either, because Typer would turn that into a nameless abort.

    Attributes:
        words: lines for the user: the files that are kept, and the command that resumes the run.
    """

    def __init__(self, number: int, *words: str) -> None:
        self.signal = signal.Signals(number)
        self.words = words
        super().__init__(f"interrupted by {self.signal.name}")

    def with_words(self, *words: str) -> Interrupted:
        """Return the same interruption with lines for the user."""
        return Interrupted(self.signal, *words)

    @property
    def exit_code(self) -> int:
        """The exit code by the shells' rule, 128 + signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process at once, after the functions given to `tidied`."""
    for number in _SIGNALS:
        signal.signal(number, _end)


def raise_on_signals() -> None:
    """Let SIGINT and SIGTERM raise `Interrupted`, so that files are cleaned up as after an error.

    During the import of a module they end the process at once, because C++ libraries abort if an
    exception arises there. In code that would swallow `Interrupted`, it is raised a little later.
    """
    sys.unraisablehook = _raise_later
    for number in _SIGNALS:
        signal.signal(number, _raise)


def swallowed() -> Interrupted | None:
    """Return the interruption that a signal has raised in this process; None without one.

    A later error is its consequence: C code and class bodies turn `Interrupted` into errors of
    their own.
    """
    return Interrupted(_raised[-1]) if _raised else None


@contextmanager
def tidied(last_step: Callable[[], None]) -> Iterator[None]:
    """Call a function at the block's end, even if a signal ends the process at once."""
    _last_steps.append(last_step)
    try:
        yield
    finally:
        _last_steps.remove(last_step)
        last_step()


@contextmanager
def held() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the block ends.

    A process that is started in the block inherits the delay, until it calls
    `leave_signals_to_parent`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(_: int = 0) -> None:
    """Ignore SIGINT, and the first SIGTERM, in a worker process.

    Both may be sent to the whole process group. The parent first finishes its step and then ends
    its workers, if necessary with a second SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # a mask set by `held` is inherited


def _ignore_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (as below)
    signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (Python passes it)
    interrupted = Interrupted(number)
    _write_line(str(interrupted))
    while _last_steps:
        _last_steps.pop()()
    os._exit(interrupted.exit_code)  # not sys.exit, whose exception could be swallowed


def _raise(number: int, frame: FrameType | None) -> None:
    running = list(_running(frame))
    # an import: C++ code of the module would abort on an exception
    if any(c.co_filename.startswith("<frozen importlib") and c.co_name != _NO_IMPORT
           for c in running):  # fmt: skip
        _end(number, frame)
    if any(c.co_filename.endswith(_SWALLOWING) for c in running):
        _send_again(number)
        return
    _raised.append(number)
    raise Interrupted(number)


def _running(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _raise_later(unraisable: sys.UnraisableHookArgs) -> None:
    """Send the signal again if `Interrupted` arose in code that cannot raise, such as `__del__`."""
    if isinstance(unraisable.exc_value, Interrupted):
        _send_again(unraisable.exc_value.signal)
    else:
        sys.__unraisablehook__(unraisable)


def _send_again(number: int) -> None:
    # again in 10 ms, and if need be again, until the frame that swallows exceptions has returned
    threading.Timer(0.01, os.kill, [os.getpid(), number]).start()


def _write_line(message: str) -> None:
    if is_main():
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())


@contextmanager
def interruptible() -> Iterator[None]:
    """Let handlers run at once while the block waits for input.

    Python runs a handler between two bytecodes, or when a signal interrupts a system call. Without
    this, a signal between the last bytecode and the call would wait until the call returns.
    In any thread but the main one nothing changes, as in `deferred`.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    told, telling = os.pipe()
    os.set_blocking(telling, False)
    repeating = threading.Thread(target=_interrupt, args=(told, main.ident), daemon=True)
    repeating.start()
    before = signal.signal(_HARMLESS, lambda *_: None)  # without a handler it interrupts no call
    outer = signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(telling)  # ends the thread
        repeating.join()
        signal.signal(_HARMLESS, before)


def _interrupt(told: int, thread: int) -> None:
    """Interrupt a thread's system calls, again and again, from the first signal to the pipe's end.

    Args:
        told: the pipe into which Python writes a byte for each signal that has a handler, also for
            those sent here.
    """
    while os.read(told, 512):
        time.sleep(_PAUSE)  # again, as this, too, may come before the call
        signal.pthread_kill(thread, _HARMLESS)
    os.close(told)


_A_STEP = "finishing this step, then a checkpoint; a second signal stops at once"


class Deferral:
    """A first signal, stored until the program asks for it; a second signal raises `Interrupted`.

    Attributes:
        received: the number of the first signal; None: none yet.
    """

    def __init__(self, message: str) -> None:
        self.received: int | None = None
        self._message = message

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Store the first signal; raise `Interrupted` at the second."""
        if self.received is not None:
            raise Interrupted(number)
        self.received = number
        name = signal.Signals(number).name
        _write_line(f"\n{name}: {self._message}")


@contextmanager
def deferred(message: str = _A_STEP) -> Iterator[Deferral]:
    """Store signals in the `Deferral` while the block runs.

    In any thread but the main one nothing changes, because Python handles no signals there.

    Args:
        message: the text to the user at the first signal.
    """
    deferral = Deferral(message)
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
