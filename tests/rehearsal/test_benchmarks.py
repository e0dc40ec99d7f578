"""`benchmarks.gpu` at its tiny size on the device: nothing of it on the wrong one."""

from __future__ import annotations

import sys

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.rows import ROWS
from tests.matrix import rest_is_long
from tests.rehearsal import fake

pytest.importorskip("peft")
FIRST = "bf16, checkpointing"
NO_CODE = () if fake.REAL else ("4-bit base", "compiled blocks")  # bitsandbytes', inductor's
TITLES = sorted((row.title for row in ROWS if not row.title.startswith(NO_CODE)), key=FIRST.__ne__)


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("title", rest_is_long(TITLES))
def test_a_row(
    title: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--rounds", "1", "--rows", title])
    assert program.main() == 0
    shown = capsys.readouterr().out
    if f"\n- tiny, {title}" in shown:
        pytest.skip(shown.partition("\nSkipped:\n- ")[2].splitlines()[0])
    assert f"\n| {title} | " in shown
