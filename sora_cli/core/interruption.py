"""SIGINT and SIGTERM: a clean end, at once or after the current training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sora_cli.core.console import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def raise_on_signals() -> None:
    """Let SIGINT and SIGTERM raise `Interrupted`, so that files are tidied up as after an error."""
    for number in _SIGNALS:
        signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (Python passes it)
    raise Interrupted(number)


class Deferral:
    """A signal that is kept until somebody asks for it; a second signal raises `Interrupted`.

    Attributes:
        received: the signal, if one came.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; raise at the second."""
        if self.received is not None:
            raise Interrupted(number)
        self.received = number
        name = signal.Signals(number).name
        say(f"\n{name}: finishing this step, then a checkpoint; a second signal stops at once")


@contextmanager
def deferred() -> Iterator[Deferral]:
    """Note signals while the block runs, for whoever looks at the `Deferral`.

    In a thread that is not the main one, where Python handles no signals, nothing changes.
    """
    deferral = Deferral()
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
