"""The error that a mistake ends in."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from tests.golden import told


def refused(capsys: pytest.CaptureFixture[str], *words: object, hide: str = "") -> list[str]:
    """Return the lines of a mistake's error, all of which is stored with the command line.

    Args:
        hide: a regular expression of what differs between machines.
    """
    lines = error_of(capsys, *words)
    told("\n".join([f"$ sora {shlex.join(map(str, words))}", *lines]), hide=hide)
    return lines


@contextmanager
def refusal() -> Iterator[pytest.ExceptionInfo[SoraError]]:
    """Expect a mistake's error from a function, all lines of which are stored."""
    with pytest.raises(SoraError) as caught:
        yield caught
    assert len(caught.value.lines()) <= 3
    told(str(caught.value))


def called(words: Sequence[str]) -> int:
    """Run a command line, of which some errors make the next one; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sora", *words])
        return run(words)


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """What a command line that is a mistake says: at most three lines, nothing on stdout."""
    capsys.readouterr()
    assert called([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" or "--dry-run" in words  # which shows what it knows before
    assert "Traceback" not in err, err
    lines = err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - first <= 3, err
    return [line.strip() for line in lines[first:]]


def error_text(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The same as one text."""
    return "\n".join(error_of(capsys, *words))
