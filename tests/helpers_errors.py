"""The error that a mistake ends in."""

from __future__ import annotations

import pytest

from sora_cli.app import run


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """What a command line that is a mistake says: at most three lines, nothing on stdout."""
    capsys.readouterr()
    assert run([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - first <= 3, err
    return [line.strip() for line in lines[first:]]


def error_text(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The same as one text."""
    return "\n".join(error_of(capsys, *words))
