"""`benchmarks.gpu` at its tiny size on the device: nothing of it on the wrong one."""

from __future__ import annotations

import sys

import pytest

from benchmarks.gpu import __main__ as program

pytest.importorskip("peft")
TITLES = ("bf16, checkpointing", "SoRA")


@pytest.mark.usefixtures("watch")
def test_rows_and_their_gradients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--rounds", "1", "--rows", *TITLES])
    assert program.main() == 0
    shown = capsys.readouterr().out
    assert all(f"\n| {title} | " in shown for title in TITLES)
