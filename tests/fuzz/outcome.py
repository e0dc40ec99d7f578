"""Commands run in this process, through the real error boundary, and what they may do at most."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unicodedata import category

from hypothesis import HealthCheck, settings

from sora_cli.core.boundary import guarded

TIME_LIMIT = 20  # seconds a case may take: far beyond what any does, far below what a hang does
_LINES = 3


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code and what went to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def good(self) -> bool:
        """It did what it was asked to."""
        return self.code == 0


def cases(number: int) -> settings:
    """Hypothesis settings: so many cases, the same ones in each run."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(command: Callable[[], object]) -> Outcome:
    """Run a command as the `sora` script does.

    Raises:
        AssertionError: a traceback, an internal error, an error of more than three lines, or one
            that a terminal would take orders from.
    """
    # as the interpreter sets them up: text that is no UTF-8 is an error on stdout only
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with redirect_stdout(out), redirect_stderr(err), limited():
        code = guarded(command)
    result = Outcome(code, _text(out), _text(err))
    _check(result)
    return result


def _check(result: Outcome) -> None:
    said = result.err
    assert result.code in {0, 2}, f"exit code {result.code}: {said}"
    assert "Traceback" not in said, said
    assert "internal error" not in said, said
    error = said[said.rfind("error: ") :].rstrip("\n") if not result.good else ""
    assert result.good or error, said
    assert len(error.split("\n")) <= _LINES, error
    for text in (said, result.out):
        odd = [c for c in text if category(c) in {"Cc", "Cs"} and c != "\n"]
        assert not odd, f"{odd[:9]} in {text!r}"


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    content = stream.buffer
    assert isinstance(content, io.BytesIO)
    return content.getvalue().decode("utf-8")


@contextmanager
def limited(seconds: float = TIME_LIMIT) -> Iterator[None]:
    """Interrupt what hangs by an exception; the boundary reports that as an internal error."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
